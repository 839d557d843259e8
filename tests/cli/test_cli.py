"""The command line: from models on disk to tables and figures, and one sentence per mistake."""

from __future__ import annotations

import errno
import inspect
import json
import os
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest

import interp
from interp import LanguageModel, cli
from interp.behaviour import load_metrics
from interp.data import write_queries
from interp.files import LOCK
from interp.results import read_losses
from tests.helpers.tiny_models import CONTEXT, question, save, tiny, tokenizer

pytestmark = pytest.mark.usefixtures("unchecked")

LANGUAGES = ("en", "de")


@pytest.fixture(scope="module")
def disk(tmp_path_factory) -> Path:
    """V, U and models that do not fit, in directories; questions in two languages."""
    home = tmp_path_factory.mktemp("disk")
    sizes = {"num_layers": 5, "max_position_embeddings": CONTEXT}
    vanilla, unlearned = tiny("llama", **sizes), tiny("llama", seed=1, **sizes)
    save(vanilla, home / "V")
    save(unlearned, home / "U")
    save(tiny("llama", seed=2, **sizes), home / "U2")
    save(vanilla, home / "twin")
    save(tiny("qwen2", seed=1), home / "qwen")
    save(tiny("llama", seed=1, num_layers=3), home / "short")
    other = tokenizer(vocab_size=40)
    save(LanguageModel(unlearned.model, other), home / "tokenizer")
    shutil.copytree(home / "U", home / "nan")
    broken = tiny("llama", seed=1, **sizes).model
    broken.model.layers[2].mlp.up_proj.weight[3, 3] = float("nan")
    broken.save_pretrained(home / "nan")
    write_queries(
        [question(n, language=code, concept="c") for code in LANGUAGES for n in range(3)],
        home / "q.jsonl",
    )
    (home / "q2.jsonl").write_text('{"language": "en", "prompt": "w5", "answer": "w6"}\n')
    good = '{"id": "1", "language": "en", "prompt": "w5"}\n'
    (home / "malformed.jsonl").write_text(good + '{"id": "2", "language": \n')
    (home / "empty.jsonl").write_text("\n")
    long = {"id": "long", "language": "en", "prompt": " ".join(["w9"] * CONTEXT)}
    (home / "long.jsonl").write_text(good + json.dumps(long) + "\n")
    return home


@pytest.fixture
def at_home(disk, tmp_path, monkeypatch):
    """Specifications are relative paths, as a person types them."""
    monkeypatch.chdir(disk)
    return tmp_path / "run"


def sweep_args(out: Path, **changes: object) -> list[str]:
    options: dict[str, object] = {
        "vanilla": "./V",
        "unlearned": "./U",
        "queries": "q.jsonl",
        "window": 3,
        "num-tokens": 5,
        "sites": ["coef", "value"],
        "out": out,
    } | changes
    args = ["sweep"]
    for name, value in options.items():
        args += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return args


def files(directory: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(directory)): file.read_bytes()
        for file in sorted(directory.rglob("*"))
        if file.is_file() and file.name != LOCK
    }


def refused(args: list[str], capsys) -> str:
    """The one line that a mistake prints; plan and progress bars aside, nothing else is printed."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        cli.main(args)
    printed = capsys.readouterr()
    assert caught.value.code == 2, printed.err
    assert printed.out == ""
    lines = [
        line
        for line in re.split(r"[\r\n]+", printed.err)
        if line.strip() and not re.search(r"\d%\||\d+/\d+ \[|^plan: ", line)
    ]
    assert len(lines) == 1, lines
    assert lines[0].startswith("interp: ")
    assert "Traceback" not in lines[0]
    return lines[0]


# From models to figures


def test_from_models_to_figures(at_home, capsys):
    cli.main(sweep_args(at_home))
    assert f"interp krs {at_home}" in capsys.readouterr().out
    losses = read_losses(at_home)
    assert len(losses) == 2 * 3 * 2 * 5
    vanilla = interp.load("./V")
    expected = interp.sweep(
        vanilla,
        interp.load("./U", like=vanilla),
        interp.queries("q.jsonl"),
        sites=["coef", "value"],
        window=3,
        num_tokens=5,
        progress=False,
    )
    key = ["language", "query_id", "site", "layer"]
    pd.testing.assert_frame_equal(
        losses.sort_values(key, ignore_index=True),
        expected.losses.sort_values(key, ignore_index=True),
    )

    krs = expected.krs().set_index(["language", "site", "layer"])["krs"]
    cli.main(["krs", str(at_home)])
    table = capsys.readouterr().out
    for language in LANGUAGES:
        for site in ("coef", "value"):
            row = next(
                line.split()
                for line in table.splitlines()
                if line.split()[-6:-5] == [site]
                and (language in line.split() or site == "value")
                and f"{krs[language, site, 0]:.2f}" == line.split()[-5]
            )
            assert row[-5:] == [f"{krs[language, site, layer]:.2f}" for layer in range(5)]

    csv = at_home.parent / "krs.csv"
    cli.main(["krs", str(at_home), "--csv", str(csv)])
    written = pd.read_csv(csv).set_index(["language", "site", "layer"])["krs"]
    pd.testing.assert_series_equal(written.sort_index(), krs.sort_index())
    cli.main(["krs", str(at_home), "--by", "concept", "--csv", str(csv)])
    assert set(pd.read_csv(csv)["concept"]) == {"c"}

    capsys.readouterr()
    cli.main(["figures", str(at_home), "--formats", "html"])
    drawn = sorted((at_home / "figures").iterdir())
    assert [file.name for file in drawn] == [
        "answers.html",
        "explore.html",
        "heatmap.html",
        "lines.html",
    ]
    assert sorted(capsys.readouterr().out.split()) == [str(file) for file in drawn]
    for file in drawn:
        assert "coef" in file.read_text(encoding="utf-8")


def test_a_second_run_adds_nothing(at_home, capsys):
    cli.main(sweep_args(at_home))
    before = files(at_home)
    cli.main(sweep_args(at_home))
    assert files(at_home) == before


def test_several_models_languages_and_shards(at_home):
    both = {"unlearned": ["./U", "./U2"], "languages": ["de", "en"], "limit": 2}
    for shard in ("1/2", "2/2"):
        cli.main(sweep_args(at_home, **both, shard=shard))
    losses = read_losses(at_home)
    assert len(losses) == 2 * 2 * 2 * 2 * 5
    assert not losses.duplicated(["unlearned", "language", "query_id", "site", "layer"]).any()
    assert set(losses["unlearned"]) == {"./U", "./U2"}


def test_options_reach_the_sweep(at_home):
    options = {"engine": "full", "direction": "corrupt", "distance": "kl", "positions": "prompt"}
    cli.main(sweep_args(at_home, **options, dtype="bfloat16", languages="en"))
    losses = read_losses(at_home)
    for column, value in (options | {"dtype": "bfloat16", "language": "en"}).items():
        assert set(losses[column]) == {value}


def test_queries_are_written(at_home, capsys):
    out = at_home.parent / "capitals.jsonl"
    cli.main(["queries", "capitals", "--languages", "de", "fr", "--limit", "4", "--out", str(out)])
    assert capsys.readouterr().out == f"8 queries in {out}: de 4, fr 4\n"
    assert interp.queries(out) == interp.queries("capitals", languages=["de", "fr"], limit=4)
    cloze = ["queries", "currencies", "--languages", "hy", "--form", "cloze", "--wording", "2"]
    cli.main([*cloze, "--out", str(out)])
    asked = interp.queries("currencies", languages=["hy"], form="cloze", wording=2)
    assert interp.queries(out) == asked


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help_explains_every_option(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    with pytest.raises(SystemExit) as caught:
        cli.main([command, "--help"])
    assert caught.value.code == 0
    printed = " ".join(capsys.readouterr().out.split())
    function = cli.build_command(command)
    explained = dict(re.findall(r"^ {4}(\w+): (.+)$", inspect.getdoc(function) or "", re.MULTILINE))
    assert explained.keys() == inspect.signature(function).parameters.keys()
    for name, sentence in explained.items():
        if name not in ("directory", "name"):
            flag = {"guards": "while"}.get(name, name)
            assert f"--{flag.replace('_', '-')}" in printed
        assert sentence.replace("`", "").split(";")[0] in printed.replace("`", "")


def command(name: str, **options: object) -> list[str]:
    args = [name]
    for option, value in options.items():
        args += [f"--{option.replace('_', '-')}"]
        args += [str(each) for each in (value if isinstance(value, list) else [value])]
    return args


TEACHING = {
    "vanilla": "./V", "num_facts": 4, "num_texts": 4, "num_instructions": 4, "num_real": 3,
    "steps": 2, "batch_size": 2, "languages": ["en", "de"], "formats": "html",
}  # fmt: skip


@pytest.fixture(scope="module")
def contaminated(disk, tmp_path_factory):
    """A model that read four false capitals in German."""
    out = tmp_path_factory.mktemp("contaminated") / "m"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(disk)
        cli.main(command("contaminate", **TEACHING, out=out))
    return out


UNLEARNING = {
    "steps": 2, "batch_size": 2, "languages": "combined", "evaluate_every": 1, "formats": "html",
    "until": [], "while": [],
}  # fmt: skip


def test_taught_and_unlearned(at_home, contaminated, capsys):
    args = command("unlearn", vanilla=contaminated, method="npo", **UNLEARNING, out=at_home)
    cli.main(args)
    printed = capsys.readouterr().out
    assert "npo: unlearned in English, German (all 2 steps)" in printed
    assert re.search(r"before +step 1 +after", printed)
    assert "chance: fake 25" in printed
    report = {path.name for path in (at_home / "report").iterdir()}
    assert {"training.html", "history.csv", "probes.csv", "accuracy.csv"} <= report
    loaded = interp.load(str(at_home), like=interp.load(str(contaminated)))
    card = json.loads((at_home / "unlearning.json").read_text(encoding="utf-8"))
    assert (card["method"], card["corpus"]["mix"]) == ("npo", "combined")
    assert card["data"]["forget"]["languages"] == {"en": 32, "de": 32}
    assert card["parent_hash"] == interp.load(str(contaminated)).content_hash()
    before = files(at_home)
    cli.main(args)
    after = files(at_home)
    assert {name: after[name] for name in before if "report" not in name} == {
        name: before[name] for name in before if "report" not in name
    }
    # It stops early when it is asked to.
    stopped = at_home.with_name("stopped")
    options = {**UNLEARNING, "method": "npo", "stops": ["real/en>1%", "retain_ce>9"]}
    cli.main(command("unlearn", vanilla=contaminated, out=stopped, **options))
    card = json.loads((stopped / "unlearning.json").read_text(encoding="utf-8"))
    assert card["reason"].startswith("real/en reached 0.333 (stop at real/en>=1%)")
    assert len(card["history"]) == 1
    # It can be unlearned further, in other languages, with adapters.
    again = at_home.with_name("again")
    options = {"parameters": "lora", "lora_rank": 2, "settings": "beta=0.2", "steps": 1}
    options |= {"until": [], "while": []}
    cli.main(
        command("unlearn", vanilla=at_home, method="dpo", languages=["fr", "en"], formats="html",
                preferred="counterfactual", out=again, **options)
    )  # fmt: skip
    assert (again / "adapter_config.json").is_file()
    card = json.loads((again / "unlearning.json").read_text(encoding="utf-8"))
    assert card["settings"]["settings"] == {"beta": 0.2}
    assert card["parent_hash"] == loaded.content_hash()


def test_evaluated(at_home, contaminated, capsys):
    names = ["accuracy", "overlap", "logit_lens", "drift", "relearning"]
    options = {"models": contaminated, "vanilla": contaminated, "metrics": names, "num_tokens": 3}
    args = command("evaluate", **options, languages=["de", "en"], formats="html", out=at_home)
    cli.main(args)
    printed = capsys.readouterr().out
    table = pd.read_csv(at_home / "measures.csv", keep_default_na=False)
    assert {*table["language"]} == {"de", "en", ""}
    assert {*names[:1], "bleu", "chrf", "drift_cosine", "relearning_steps"} <= {*table["metric"]}
    assert re.search(r"language +de +en\n", printed)
    assert "chance is 0.25" in printed
    drawn = {path.stem for path in (at_home / "figures").iterdir()}
    assert {"accuracy", "accuracy-target-unrelated", "drift", "logit-lens-logprob"} <= drawn
    before = (at_home / "measures.csv").read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("interp.behaviour.probing.probe", None)
        cli.main(args)
    assert (at_home / "measures.csv").read_bytes() == before


def test_the_help_names_every_metric(capsys):
    with pytest.raises(SystemExit):
        cli.main(["evaluate", "--help"])
    text = capsys.readouterr().out
    assert all(re.search(rf"\b{name}\b", text) for name in load_metrics())


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"metrics": "magic"}, "unknown metric 'magic'; valid: accuracy"),
        ({"metrics": "uds"}, "the metric uds needs the vanilla model"),
        ({"metrics": "q_r"}, "the metric q_r needs a chat model that judges"),
        ({"metrics": "o_f", "judge": "http://localhost:1/v1"}, "needs --judge-model"),
        ({"metrics": "alias", "queries": "q.jsonl"}, "the metric alias needs answers"),
        ({"metrics": "relearning", "vanilla": "./V", "queries": "q.jsonl"}, "texts to forget"),
        ({"languages": "xx"}, "nothing in the language 'xx'"),
        ({"models": "./V"}, "give queries to evaluate it"),
        ({"models": ["./V", "./V"], "queries": "q.jsonl"}, "'./V' is named twice in --models"),
        ({"models": "nowhere/at/all", "queries": "q.jsonl"}, "nowhere/at/all"),
    ],
)
def test_mistakes_in_evaluation(at_home, contaminated, capsys, changes, says):
    options = {"models": contaminated, "out": at_home, "formats": "html", **changes}
    assert says in refused(command("evaluate", **options), capsys)
    assert not at_home.exists()


def test_the_baseline_lacks_the_false_texts(at_home, contaminated):
    cli.main([*command("contaminate", **TEACHING, out=at_home), "--clean"])
    counts = [
        json.loads((path.with_name(path.name + ".reading") / "unlearning.json").read_text())
        for path in (contaminated, at_home)
    ]
    assert [card["data"]["retain"]["languages"] for card in counts] == [
        {"en": 4, "de": 4},
        {"en": 4},
    ]


@pytest.mark.filterwarnings("default")
def test_texts_of_ones_own(at_home, disk, tmp_path, capsys):
    rows = [
        {"id": str(n), "language": "en", "prompt": f"w{n} w9", "answer": f"w{n + 20}"}
        for n in range(10, 14)
    ]
    path = tmp_path / "forget.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    args = command("unlearn", vanilla="./V", forget=path, retain=path, probes=path, steps=2,
                   limit=2, formats="html", out=at_home)  # fmt: skip
    cli.main(args)
    assert "answers too few of the questions for forget<=0.1" in capsys.readouterr().err
    card = json.loads((at_home / "unlearning.json").read_text(encoding="utf-8"))
    assert [card["data"][name]["examples"] for name in ("forget", "retain")] == [2, 4]
    assert len(pd.read_csv(at_home / "report" / "accuracy.csv")) == 2


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"method": "gdd"}, "unknown method 'gdd'; valid: dpo, dpo_kl, altpo, ceu, ga, gd"),
        ({"languages": "polyglot"}, "'polyglot'"),
        ({"languages": "kab"}, "no texts in kab"),
        ({"languages": ["en", "combined"]}, "'combined'"),
        ({"preferred": "silence", "method": "dpo"}, "unknown preferred answers 'silence'"),
        ({"stops": "real/en"}, "a bound must be METRIC<=VALUE"),
        ({"stops": "real/en<1.2.3"}, "such as forget<=0.1, not 'real/en<1.2.3'"),
        ({"stops": "real/xx<80%"}, "unknown metric 'real/xx'"),
        ({"while": "retenton>=0.9"}, "unknown metric 'retenton' in 'retenton>=0.9'; valid: forge"),
        ({"settings": "beta"}, "a setting must be NAME=VALUE"),
        ({"settings": "gamma=much"}, "'gamma=much'"),
        ({"settings": "kappa=1"}, "simnpo has no setting 'kappa'; valid: beta, delta, alpha"),
        ({"settings": "gamma=1", "method": "memit_empty"}, "gamma"),
        ({"parameters": "lora", "lora-rank": 0}, "lora_rank must be at least 1, not 0"),
        ({"layers": 99}, "layer 99 is out of range"),
        ({"layers": 99, "method": "memit_empty"}, "layer 99 is out of range"),
        ({"steps": 0}, "num_steps must be at least 1, not 0"),
        ({"batch_size": "many"}, "a batch size must be a number, such as 24, or one for each set"),
        ({"batch_size": [2, "retain=3"]}, "forget=24 retain=36, not '2 retain=3'"),
        ({"batch_size": "forget=2"}, "batch_size has no entry for the retain examples"),
        ({"batch_size": ["forget=2", "retain=0"]}, "batch_size must be at least 1, not 0"),
        ({"vanilla": "./V"}, "has no card"),
        ({"vanilla": "gemma-3-270m"}, "texts to forget to unlearn it"),
        ({"forget": "empty.jsonl"}, "empty.jsonl holds no entries"),
        ({"forget": "malformed.jsonl"}, "malformed.jsonl, line 2: not valid JSON"),
        ({"forget": "capitals", "languages": "xx"}, "'xx'"),
        ({"forget": "missing.jsonl"}, "no file of texts 'missing.jsonl'"),
        ({"forget": "capitals", "languages": "en", "limit": 0}, "not 0"),
        ({"forget": "q2.jsonl", "method": "memit_empty", "languages": "en"}, "its subject"),
        ({"probes": "missing.jsonl"}, "missing.jsonl"),
    ],
)  # fmt: skip
def test_mistakes_in_unlearning(at_home, contaminated, capsys, changes, says):
    options = {"vanilla": contaminated, **UNLEARNING, "out": at_home, **changes}
    assert says in refused(command("unlearn", **options), capsys)
    assert not at_home.exists()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"source": "xx"}, "'xx'"),
        ({"source": "kab"}, "no templates in 'kab'"),
        ({"relations": "mayor"}, "'mayor'"),
        ({"num_facts": 1}, "num_fake_facts must be at least 2, not 1"),
        ({"num_texts": 0}, "num_fake_texts must be at least 1, not 0"),
        ({"ratio": -1}, "ratio must be at least 0, not -1"),
        ({"learning_rate": 0}, "learning_rate must be above 0"),
        ({"parameters": "lora", "lora_rank": -1}, "lora_rank must be at least 1"),
        ({"vanilla": "./missing"}, "./missing"),
    ],
)
def test_mistakes_in_contamination(at_home, capsys, changes, says):
    assert says in refused(
        command("contaminate", **{**TEACHING, "out": at_home, **changes}), capsys
    )
    assert not at_home.exists()


# Mistakes

MISTAKES = [
    ({"queries": "missing.jsonl"}, "missing.jsonl"),
    ({"vanilla": "./missing"}, "./missing"),
    ({"unlearned": "./missing"}, "./missing"),
    ({"queries": "malformed.jsonl"}, "malformed.jsonl, line 2"),
    ({"queries": "empty.jsonl"}, "empty.jsonl holds no entries"),
    ({"queries": "long.jsonl"}, "'long' (en) has 65 tokens"),
    ({"languages": ["en", "xx"]}, "'xx'"),
    ({"limit": 0}, "not 0"),
    ({"sites": ["coef", "mlp"]}, "'mlp'"),
    ({"engine": "fast"}, "'fast'"),
    ({"variant": "hong"}, "'hong'"),
    ({"positions": "last"}, "'last'"),
    ({"direction": "up"}, "'up'"),
    ({"distance": "mse"}, "'mse'"),
    ({"dtype": "float8"}, "'float8'"),
    ({"device": "abacus"}, "'abacus'"),
    ({"window": 0}, "not 0"),
    ({"window": 2}, "not 2"),
    ({"window": 7}, "not 7"),
    ({"num-tokens": 0}, "not 0"),
    ({"num-tokens": -3}, "not -3"),
    ({"num-tokens": CONTEXT}, f"context of {CONTEXT}"),
    ({"shard": "0/2"}, "0/2"),
    ({"shard": "half"}, "'half'"),
    ({"unlearned": "./qwen"}, "Qwen2ForCausalLM"),
    ({"unlearned": "./short"}, "num_hidden_layers is 3"),
    ({"unlearned": "./tokenizer"}, "vocabulary size is 40"),
    ({"unlearned": "./twin"}, "'./twin' is identical to './V'"),
    ({"unlearned": "./nan"}, "model.layers.2.mlp.up_proj"),
    ({"vanilla": "./nan"}, "model.layers.2.mlp.up_proj"),
]


@pytest.mark.parametrize(("changes", "says"), MISTAKES, ids=lambda value: str(value)[:40])
def test_mistakes(at_home, capsys, changes, says):
    assert says in refused(sweep_args(at_home, **changes), capsys)
    # Nothing is left that stands in the way of the right command, or that it would trust.
    left = files(at_home)
    assert not [file for file in left if file.endswith(".parquet")]
    cli.main(sweep_args(at_home))
    assert len(read_losses(at_home)) == 2 * 3 * 2 * 5


def test_a_mistake_in_the_second_model_keeps_the_first(at_home, capsys):
    args = sweep_args(at_home, unlearned=["./U", "./qwen"])
    assert "'./qwen'" in refused(args, capsys)
    cli.main(sweep_args(at_home, unlearned=["./U", "./U2"]))
    assert len(read_losses(at_home)) == 2 * (2 * 3 * 2 * 5)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"window": 5}, "another window (3, now 5)"),
        ({"num-tokens": 4}, "another queries"),
        ({"vanilla": "./U2"}, '"./V", now "./U2"'),
        ({"dtype": "bfloat16"}, 'another dtype ("float32", now "bfloat16")'),
    ],
)
def test_a_run_directory_from_another_configuration(at_home, capsys, changes, says):
    cli.main(sweep_args(at_home))
    before = files(at_home)
    message = refused(sweep_args(at_home, **changes), capsys)
    assert says in message
    assert str(at_home) in message
    assert files(at_home) == before


@pytest.mark.parametrize("num_writes", range(6))
def test_a_full_disk(at_home, capsys, monkeypatch, num_writes):
    replace, written = os.replace, 0

    def full(source, target):
        nonlocal written
        if written == num_writes:
            raise OSError(errno.ENOSPC, "No space left on device", str(target))
        written += 1
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        assert "No space left on device" in refused(sweep_args(at_home), capsys)
    left = files(at_home)
    assert len(left) <= num_writes
    for file in left:
        assert "partial" not in file
        if file.endswith(".parquet"):
            pd.read_parquet(at_home / file)
    cli.main(sweep_args(at_home))
    assert len(read_losses(at_home)) == 2 * 3 * 2 * 5


def test_an_output_that_is_a_file(at_home, capsys):
    at_home.write_text("mine")
    assert str(at_home) in refused(sweep_args(at_home), capsys)
    assert at_home.read_text() == "mine"


def test_a_damaged_shard(at_home, capsys):
    cli.main(sweep_args(at_home))
    shard = next((at_home / "losses").iterdir())
    shard.write_bytes(b"PAR1")
    for args in (["krs", str(at_home)], sweep_args(at_home), ["figures", str(at_home)]):
        assert str(shard) in refused(args, capsys)


def test_tables_and_figures_of_nothing(at_home, capsys):
    at_home.mkdir()
    for command in ("krs", "figures"):
        message = refused([command, str(at_home)], capsys)
        assert f"'{at_home}' is not a run directory" in message
        assert str(at_home / "x") in refused([command, str(at_home / "x")], capsys)
    assert files(at_home) == {}


def test_options_of_krs(at_home, capsys):
    cli.main(sweep_args(at_home))
    assert "'hong'" in refused(["krs", str(at_home), "--variant", "hong"], capsys)
    assert "tongue" in refused(["krs", str(at_home), "--by", "tongue"], capsys)


def test_queries_that_are_not_built_in(at_home, capsys):
    out = at_home.parent / "out.jsonl"
    assert "'rivers'" in refused(["queries", "rivers", "--out", str(out)], capsys)
    args = ["queries", "capitals", "--languages", "xx", "--out", str(out)]
    assert "'xx'" in refused(args, capsys)
    assert not out.exists()


def test_interrupted(at_home, capsys, monkeypatch):
    def interrupt(*_args: object, **_options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("interp.launch.worker.measure", interrupt)
    with pytest.raises(SystemExit) as caught:
        cli.main(sweep_args(at_home))
    assert caught.value.code == 130
    assert "goes on where it was" in capsys.readouterr().err
