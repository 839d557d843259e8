"""Choi's experiments: materials, comparisons by hand, and all of it on a tiny model."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from experiments.lingtea import run, training
from experiments.lingtea.config import PRESETS, Config
from experiments.lingtea.data import (
    PARTS,
    Material,
    convert_to_queries,
    convert_to_texts,
    make_fact_clozes,
    make_fact_sentences,
    make_materials,
    read_material,
    split_pool,
)
from experiments.lingtea.figures import plot_bands
from experiments.lingtea.findings import compare_cost, judge_materials
from experiments.lingtea.run import score_entries
from experiments.lingtea.tables import (
    ResampledScores,
    average_cost,
    compare_models,
    summarise_scores,
)
from experiments.lingtea.training import (
    UnlearningPlan,
    plan_models,
    trace_forgetting,
    unlearn_material,
)
from interp import LanguageModel, figures, load
from interp.data import Sentence, read_bmlama
from interp.unlearning import (
    Draws,
    Example,
    TrainingConfig,
    make_examples,
    make_training_card,
    train,
)
from tests.helpers.tiny_models import save, tiny

LANGUAGES = ("en", "de", "zh")

# What training in one language after the other needs


def in_languages(number: int) -> list[Example]:
    return [
        Example(prompt="w3", answer=f" w{n}", language=code, group=f"{n}")
        for n in range(3, 3 + number)
        for code in LANGUAGES
    ]


def test_sequences_stay_in_a_language_for_as_many_steps_as_are_asked_for():
    examples = in_languages(4)
    draws = Draws(examples, seed=0, purpose="f", steps_per_language=2)
    steps = [[examples[n] for n in draws.indices(step, 2)] for step in range(8)]
    codes = [{example.language for example in step} for step in steps]
    assert codes == [{"en"}, {"en"}, {"de"}, {"de"}, {"zh"}, {"zh"}, {"en"}, {"en"}]
    # An epoch of four sequences takes two steps.
    for first in range(0, 8, 2):
        groups = [example.group for step in steps[first : first + 2] for example in step]
        assert sorted(groups) == ["3", "4", "5", "6"]


def test_cards_of_languages_drawn_anew_are_those_from_before_there_was_a_choice():
    examples = {"forget": in_languages(2)}
    settings = [
        make_training_card(
            tiny(), examples, TrainingConfig(objective="ga", steps_per_language=steps)
        )["settings"]
        for steps in (0, 3)
    ]
    assert "steps_per_language" not in settings[0]
    assert settings[1] == settings[0] | {"steps_per_language": 3}


# Materials


def test_built_in_facts_are_the_same_clozes_in_every_language():
    facts = make_fact_clozes(LANGUAGES, ["capital", "currency"], num_candidates=5)
    ids = list(dict.fromkeys(fact.id for fact in facts))
    assert [fact.language for fact in facts] == [*LANGUAGES] * len(ids)
    assert [id.partition("-")[0] for id in ids[:8]] == ["capital"] * 4 + ["currency"] * 4
    (french,) = (fact for fact in facts if (fact.id, fact.language) == ("capital-FR", "de"))
    assert french.fill("X") == "Die Hauptstadt von Frankreich ist X."
    assert french.answers[0] == "Paris"
    for fact in facts:
        assert fact.answers[0] in fact.candidates
        assert len(set(fact.candidates)) == 5
        assert not set(fact.answers[1:]) & set(fact.candidates)
    (text,) = convert_to_texts([french], "test")
    assert (text.text, text.answer) == ("Die Hauptstadt von Frankreich ist Paris", " Paris")
    assert text.kind == "test"
    (query,) = convert_to_queries([french], "forget")
    assert (query.prompt, query.answer) == (text.prompt, "Paris")


def test_built_in_sentences_state_a_country_s_facts():
    sentences = make_fact_sentences(["en", "zh"], ["capital", "currency"])
    told = {(each.id, each.language): each.text for each in sentences}
    assert told["EG", "en"].startswith("The capital of Egypt is Cairo. The currency of Egypt is")
    assert told["EG", "zh"].startswith("埃及的首都是开罗。埃及的货币单位是")
    (text,) = convert_to_texts([sentences[0]], "retain")
    assert (text.prompt, text.answer) == ("", sentences[0].text)
    (query,) = convert_to_queries([sentences[0]], "forget")
    assert sentences[0].text.startswith(query.prompt)
    assert query.concept == "forget"


def pool(number: int) -> list[Sentence]:
    return [
        Sentence(id=str(n), language=code, text=f"w{n + 3} w5 w{n + 4}", concept="c")
        for n in range(number)
        for code in ("en", "de")
    ]


def test_parts_share_nothing_and_a_smaller_forget_set_is_the_beginning_of_a_larger():
    small, large = (
        split_pool("sentences", pool(12), size=size, num_retain=3, num_test=2) for size in (2, 6)
    )
    ids = {part: [each.id for each in getattr(large, part)] for part in PARTS}
    assert ids["forget"] == [n for n in ("0", "2", "4", "6", "8", "10") for _ in range(2)]
    assert ids["retain"] == ["1", "1", "5", "5", "9", "9"]
    assert ids["test"] == ["3", "3", "7", "7"]
    assert small.forget == large.forget[:4]
    assert (small.test, small.size, large.size) == (large.test, 2, 6)
    with pytest.raises(ValueError, match=r"4 sentences are wanted in the retain part; of 12 .* 3"):
        split_pool("sentences", pool(12), size=2, num_retain=4, num_test=2)


def write_facts(path: Path, numbers: range, **changes: dict) -> str:
    """A file as BMLAMA-53's: n is followed by n + 20, in two languages."""
    rows = []
    for n in numbers:
        row = {
            "prompt": {"en": f"w{n} w9 <mask> w4", "de": f"w{n} w8 <mask>"},
            "answers": {code: [f"w{n + 20}"] for code in ("en", "de")},
            "candidates": {code: [f"w{m + 20}" for m in numbers] for code in ("en", "de")},
        }
        rows.append(row | changes.get(f"n{n}", {}))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def write_sentences(path: Path, numbers: range) -> str:
    rows = [
        {"en": f"w{n} w7 w{n + 1} w9 w{n + 20}", "de": f"w{n} w6 w{n + 20} w8"} for n in numbers
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_files_give_entries_that_all_languages_have(tmp_path):
    bare = {"prompt": {"en": "<mask> w9", "de": "w8 <mask>"}}
    lacking = {"prompt": {"en": "w12 w9 <mask>"}}
    paths = {"forget": str(tmp_path / "forget-{size}.jsonl")}
    write_facts(tmp_path / "forget-2.jsonl", range(10, 14), n10=bare, n12=lacking)
    for part in ("retain", "test"):
        paths[part] = write_facts(tmp_path / f"{part}.jsonl", range(14, 17))
    material = read_material("facts", read_bmlama, paths, languages=["de", "en"], size=2)
    assert [(each.id, each.language) for each in material.forget] == [
        *(("bmlama53-forget-2:2", code) for code in ("de", "en")),
        *(("bmlama53-forget-2:4", code) for code in ("de", "en")),
    ]
    assert {(gap.id, gap.language, gap.reason) for gap in material.gaps} == {
        ("bmlama53-forget-2:1", "en", "nothing stands before the blank"),
        ("bmlama53-forget-2:3", "de", "no prompt in the source"),
    }
    # What follows the blank is not labelled.
    assert [text.text for text in convert_to_texts(material.forget[:2], "forget")] == [
        "w11 w8 w31",
        "w11 w9 w31",
    ]
    with pytest.raises(ValueError, match="2 facts in all languages, fewer than 3"):
        read_material(
            "facts", read_bmlama, paths | {"forget": paths["forget"].format(size=2)},
            languages=["de", "en"], size=3,
        )  # fmt: skip
    with pytest.raises(ValueError, match=r"no file '.*forget-9.jsonl' of facts to forget"):
        read_material("facts", read_bmlama, paths, languages=["de"], size=9)


# Comparisons


def scores_of(**models: dict) -> pd.DataFrame:
    """Right tokens of each entry, by model, (part, language); an entry has 4 tokens."""
    rows = [
        {"model": model, "concept": part, "language": code, "text_id": str(entry)}
        | {"num_tokens": 4, "num_right": right, "right": right > 2}
        for model, cells in models.items()
        for (part, code), entries in cells.items()
        for entry, right in enumerate(entries)
    ]
    return pd.DataFrame(rows)


def test_scores_are_pooled_over_tokens_of_the_drawn_entries():
    drawn = ResampledScores(scores_of(a={("forget", "en"): [4, 0], ("forget", "de"): [2, 3]}))
    assert drawn.ma("a", "forget").tolist() == [0.5, 0.625]
    assert drawn.pa("a", "forget").tolist() == [0.5, 0.5]
    drawn.weights["forget"] = np.array([2.0, 0.0])
    assert drawn.ma("a", "forget").tolist() == [1.0, 0.5]
    assert drawn.pa("a", "forget").tolist() == [1.0, 0.0]


def test_comparisons_draw_entries_of_all_models_and_languages_together():
    # Entries differ much, models always by one token of four.
    scores = scores_of(
        a={("test", "en"): [4, 1, 3, 2], ("test", "de"): [4, 1, 3, 2]},
        b={("test", "en"): [3, 0, 2, 1], ("test", "de"): [3, 0, 2, 1]},
    )

    def ahead(drawn):
        return float((drawn.ma("a", "test") - drawn.ma("b", "test")).mean())

    found = compare_models(scores, ahead, parts=["test"])
    assert (found.value, found.n) == (0.25, 4)
    assert found.ci_low == pytest.approx(0.25)
    assert found.ci_high == pytest.approx(0.25)
    alone = compare_models(
        scores, lambda drawn: float(drawn.ma("a", "test").mean()), parts=["test"]
    )
    assert alone.value == 0.625
    assert alone.ci_low < 0.4
    assert alone.ci_high > 0.8


def curves_of(**runs: dict[int, list[int]]) -> pd.DataFrame:
    """Right tokens of two entries of 10 by the sequences trained, in one language."""
    rows = [
        {"run": run, "step": step, "sequences": sequences, "language": "en"}
        | {"text_id": str(entry), "num_tokens": 10, "num_right": right}
        for run, points in runs.items()
        for step, (sequences, entries) in enumerate(points.items())
        for entry, right in enumerate(entries)
    ]
    return pd.DataFrame(rows)


FAST = {0: [10, 8], 4: [6, 6], 8: [4, 3]}


def test_cost_until_as_much_is_forgotten():
    slow = {0: [10, 8], 12: [9, 8], 16: [8, 1], 20: [5, 4]}
    found = compare_cost(curves_of(slow=slow, fast=FAST), "slow", "fast", level=0.5)
    # Half of 18 is 9: the fast run is there after 8 sequences, the slow one after 16.
    assert found.value == 1.0
    # Of the first entry alone after 8 and 20, of the second alone after 8 and 16.
    assert (found.ci_low, found.ci_high, found.n) == (1.0, 1.5, 2)
    # Lines are the means, per sequence trained.
    lines = average_cost(curves_of(fast=FAST), {"fast": "random"})
    assert lines["x"].tolist() == [0, 4, 8]
    assert lines["value"].tolist() == pytest.approx([0.9, 0.6, 0.35])


def test_cost_of_what_is_never_forgotten():
    never = {0: [10, 8], 24: [9, 8]}
    found = compare_cost(curves_of(slow=never, fast=FAST), "slow", "fast", level=0.5)
    assert found.value == 2.0
    assert found.reason == "slow did not come down to 50%: a lower bound"
    found = compare_cost(curves_of(slow=FAST, fast=never), "slow", "fast", level=0.5)
    assert math.isnan(found.value)
    assert found.reason == "fast did not come down to 50% of its accuracy before"


def cells(forget: list[list[int]], test: int) -> dict:
    """Eight alike entries in en and de."""
    found = {("forget", code): forget[n] * 4 for n, code in enumerate(("en", "de"))}
    return found | {("test", code): [test] * 8 for code in ("en", "de")}


def found_of(models: dict, reasons: dict[str, str] | None = None) -> list:
    return judge_materials(
        {"facts": scores_of(**models)},
        {},
        reasons={"facts": reasons or {}},
        kappas=[0.5],
        only="en",
        level=0.5,
        note="small",
    )


def verdicts(**models: dict) -> dict[str, str]:
    found = found_of(models)
    assert all(item.note.endswith("small") for item in found)
    return {item.signature.removeprefix("facts: "): item.verdict for item in found}


BEFORE = cells([[4, 4], [3, 3]], test=4)


def test_findings_of_a_run_that_agrees():
    found = verdicts(
        before=BEFORE,
        lingtea=cells([[1, 0], [1, 0]], test=4),
        ga=cells([[0, 0], [1, 1]], test=2),
        gd=cells([[0, 0], [1, 1]], test=4),
        **{"kappa-0.5": cells([[1, 0], [1, 0]], test=3), "only-en": cells([[0, 1], [3, 3]], 4)},
    )
    assert found == {
        "LingTea forgets in every language": "seen",
        "LingTea lowers probing accuracy on what it forgets": "seen",
        "LingTea retains more than GA": "seen",
        "LingTea retains more than GD": "undecided",
        "LingTea retains more than NPO": "not measured",
        "the adaptive κ is better than κ = 0.5": "seen",
        "languages drawn anew forget at less cost than one after the other": "not measured",
        "unlearning in en alone forgets less in the other languages than in en": "seen",
        "unlearning in en alone leaves more in the other languages than LingTea in all": "seen",
    }


def test_findings_of_a_run_that_contradicts():
    found = verdicts(
        before=BEFORE,
        # It forgets in English and learns in German.
        lingtea=cells([[0, 0], [4, 4]], test=2),
        npo=cells([[0, 0], [1, 1]], test=4),
        **{"kappa-0.5": cells([[0, 0], [0, 0]], test=3), "only-en": cells([[3, 3], [0, 0]], 4)},
    )
    assert found["LingTea forgets in every language"] == "contradicted"
    assert found["LingTea retains more than NPO"] == "contradicted"
    assert found["the adaptive κ is better than κ = 0.5"] == "contradicted"
    assert list(found.values())[-2:] == ["contradicted"] * 2


def test_findings_name_models_that_did_not_stop_where_all_were_to_stop():
    models = {"before": BEFORE, "lingtea": BEFORE, "ga": BEFORE, "gd": BEFORE}
    reasons = {"lingtea": "forget_ma reached 0.1 (bound 0.2)", "ga": "diverged at step 5"}
    notes = {
        item.signature.removeprefix("facts: "): item.note for item in found_of(models, reasons)
    }
    assert "ga: diverged at step 5; small" in notes["LingTea retains more than GA"]
    assert "reached" not in "".join(notes.values())
    assert "diverged" not in notes["LingTea retains more than GD"]


def test_bands_draw_per_cent_with_their_intervals():
    rows = [
        {
            "facet": part,
            "line": line,
            "x": x,
            "value": x / 100,
            "ci_low": 0.0,
            "ci_high": 0.9,
            "n": 4,
        }
        for part in ("forget", "test")
        for line in ("gd", "lingtea")
        for x in (32, 64)
    ]
    figure = plot_bands(pd.DataFrame(rows), x_title="facts", y_title="MA (%)", log=True)
    lines = [trace for trace in figure.data if trace.mode == "lines+markers"]
    assert [(line.name, line.showlegend, list(line.y)) for line in lines] == [
        ("gd", True, [32, 64]),
        ("lingtea", True, [32, 64]),
        ("gd", False, [32, 64]),
        ("lingtea", False, [32, 64]),
    ]
    assert list(figure.data[0].y) == [90, 90, 0, 0]
    with pytest.raises(ValueError, match="lacks the columns n"):
        plot_bands(pd.DataFrame(rows).drop(columns="n"), x_title="", y_title="")


# All of it on a tiny model

STEPS = TrainingConfig(num_steps=6, batch_size=2, evaluate_every=1, autocast=False)


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Config:
    folder = tmp_path_factory.mktemp("data")
    facts = {"forget": "3", "retain": "3", "test": "3"}
    for number, part in enumerate(facts):
        numbers = range(10 + 3 * number, 13 + 3 * number)
        facts[part] = write_facts(folder / f"{part}.jsonl", numbers)
    sentences = {
        part: write_sentences(folder / f"s-{part}.jsonl", range(10 + 3 * n, 13 + 3 * n))
        for n, part in enumerate(("forget", "retain", "test"))
    }
    config = Config(
        model="",
        languages={"facts": ("en", "de"), "sentences": ("de", "en")},
        fact_files=facts,
        sentence_files=sentences,
        size=3,
        methods=("ga", "lingtea", "lingtea_code"),
        extras=("facts",),
        kappas=(0.5,),
        steps_per_language=2,
        sizes=(2,),
        size_methods=("lingtea",),
        learning_rates={"facts": 3e-3, "sentences": 3e-3},
        training=STEPS,
        num_queries=2,
        num_tokens=3,
        sites=("coef", "value"),
        note="tiny",
    )
    known = [
        text
        for each in make_materials(config)
        for part in PARTS
        for text in convert_to_texts(getattr(each, part), part)
    ]
    learning = TrainingConfig(
        objective="finetune", learning_rate=1e-2, num_steps=120, batch_size=40, autocast=False
    )
    taught = train(tiny(), {"retain": make_examples(known)}, learning, progress=False).model
    return replace(config, model=save(taught, folder / "vanilla"))


@pytest.fixture(scope="module")
def vanilla(config) -> LanguageModel:
    return load(config.model)


@pytest.fixture(scope="module")
def facts(config) -> Material:
    return make_materials(config)[0]


def test_the_model_of_these_tests_knows_what_it_is_to_forget(vanilla, facts, tmp_path):
    table = summarise_scores(
        score_entries(vanilla, facts, tmp_path, progress=False).assign(model="before")
    )
    values = table.set_index(["metric", "concept", "language"])["value"]
    for metric in ("memorization_accuracy", "accuracy"):
        assert (values[metric] == 1).all()
    assert (values["perplexity"] < 5).all()
    assert table.query("metric == 'accuracy'")["reason"].eq("chance is 0.333").all()


def test_the_models_of_a_material(config):
    first, small, sentences = make_materials(config)
    assert [(each.name, each.size) for each in (first, small, sentences)] == [
        ("facts", 3),
        ("facts", 2),
        ("sentences", 3),
    ]
    names = [
        [plan.name for plan in plan_models(config, each)] for each in (first, small, sentences)
    ]
    assert names[0] == ["ga", "lingtea", "lingtea_code", "kappa-0.5", "sequential", "only-en"]
    assert names[1:] == [["lingtea"], ["ga", "lingtea", "lingtea_code"]]
    with pytest.raises(ValueError, match="'fr' is none of the languages of the facts: en, de"):
        make_materials(replace(config, only="fr"))


def test_training_stops_where_enough_is_forgotten_and_its_cost_is_counted(vanilla, facts, tmp_path):
    plan = UnlearningPlan(name="sequential", objective="lingtea", steps_per_language=2)
    training = replace(STEPS, learning_rate=3e-3)
    made = unlearn_material(
        vanilla, facts, plan, training, level=-1, out=tmp_path / "m", progress=False
    )
    # Two steps in each of two languages, two sequences of each set a step; w3 w9 w5 has four
    # tokens with <s>, all clozes have as many.
    rows = trace_forgetting(vanilla, facts, plan, training, made).drop_duplicates("step")
    assert rows["sequences"].tolist() == [0, 2, 4, 6, 8]
    assert rows["tokens"].tolist() == [0, 16, 32, 48, 64]
    assert rows["seconds"].is_monotonic_increasing
    stopped = unlearn_material(
        vanilla, facts, plan, training, level=2, out=tmp_path / "n", progress=False
    )
    assert (len(stopped.history), stopped.reason[:17]) == (1, "forget_ma reached")


def test_a_run_that_was_killed_counts_its_seconds_on(vanilla, facts, tmp_path):
    plan = UnlearningPlan(name="lingtea", objective="lingtea")
    training = replace(STEPS, num_steps=3)
    made = unlearn_material(
        vanilla, facts, plan, training, level=-1, out=tmp_path / "m", progress=False
    )
    for row, seconds in zip(made.history, (5.0, 2.0, 3.0), strict=True):
        row["seconds"] = seconds
    rows = trace_forgetting(vanilla, facts, plan, training, made).drop_duplicates("step")
    assert rows["seconds"].tolist() == [0, 5, 7, 8]


@pytest.fixture
def script(config, monkeypatch):
    """The experiment with a preset of its own; figures as HTML alone, for want of time."""
    monkeypatch.setattr(run, "PRESETS", {"tiny": config})
    export = figures.export
    monkeypatch.setattr(figures, "export", lambda drawn, formats: export(drawn, formats=["html"]))
    return run.main


@pytest.mark.slow
def test_the_experiment_goes_on_where_it_was_killed(script, tmp_path, monkeypatch, capsys):
    count = 0

    def killed(*given, **named):
        nonlocal count
        count += 1
        if count == 5:
            raise KeyboardInterrupt
        return train(*given, **named)

    monkeypatch.setattr(training, "train", killed)
    with pytest.raises(KeyboardInterrupt):
        script("tiny", out=tmp_path)
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "models").glob("*/*.json")}
    script("tiny", out=tmp_path)
    assert (
        made.items()
        <= {
            path: path.stat().st_mtime_ns for path in (tmp_path / "models").glob("*/*.json")
        }.items()
    )
    tables = {path.name: path.read_bytes() for path in (tmp_path / "tables").iterdir()}
    assert sorted(tables) == [
        *("answers.csv", "cost-facts.csv", "krs.csv", "measures.csv", "runs.csv"),
        "sizes-facts.csv",
    ]
    # Again: nothing is trained, asked or swept.
    monkeypatch.setattr("interp.unlearning.training.TrainableModel", None)
    monkeypatch.setattr("interp.launch.worker.measure", None)
    monkeypatch.setattr("experiments.lingtea.run.measure_memorization", None)
    capsys.readouterr()
    script("tiny", out=tmp_path)
    assert {p.name: p.read_bytes() for p in (tmp_path / "tables").iterdir()} == tables
    shown = capsys.readouterr().out
    assert "facts: LingTea retains more than NPO" in shown
    assert "not measured" in shown
    study = json.loads((tmp_path / "study.json").read_text())
    assert len(study["findings"]) == 18 - 1
    assert set(study["figures"]) == {
        *("ma-facts", "pa-facts", "kept-facts", "krs-facts", "cost-facts", "sizes-facts"),
        *("ma-sentences", "kept-sentences", "krs-sentences"),
    }
    krs = pd.read_csv(tmp_path / "tables" / "krs.csv")
    assert krs.groupby(["material", "method", "language", "site"]).size().unique().tolist() == [5]
    assert set(krs["method"]) == {"ga", "lingtea", "lingtea_code"}
    measured = pd.read_csv(tmp_path / "tables" / "measures.csv")
    assert set(measured.query("material == 'sentences'")["metric"]) == {
        "memorization_accuracy",
        "perplexity",
    }


def test_presets_fit_their_data():
    for name, sizes in {"quick": [12, 12], "full": [32, 64, 128, 32]}.items():
        found = make_materials(PRESETS[name])
        assert [each.size for each in found] == sizes
        for each in found:
            records = (*each.forget, *each.retain, *each.test)
            assert len({(record.id, record.language) for record in records}) == len(records)
            assert {record.language for record in records} == {*PRESETS[name].languages[each.name]}
    with pytest.raises(ValueError, match=r"no file 'data/bmlama53/forget-32.jsonl' of facts to f"):
        make_materials(PRESETS["paper"])
