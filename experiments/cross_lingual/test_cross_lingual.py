"""False facts in one language: formulas by hand, and the experiment on a tiny model."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from experiments.cross_lingual import run as script
from experiments.cross_lingual.agreement import compute_kappa
from experiments.cross_lingual.config import GPT_4, PRESETS, Config
from experiments.cross_lingual.data import select_mixes
from experiments.cross_lingual.findings import compute_share_kappa, judge_signatures
from experiments.cross_lingual.tables import (
    CLEAN,
    RANKING,
    TAUGHT,
    average_outcomes,
    compare_outcomes,
    compare_with_before,
    select_best_windows,
    tabulate_agreement,
)
from experiments.study import convert_to_json
from interp import LanguageModel, load
from interp.behaviour import probe
from interp.data import CorpusConfig, build_corpus
from interp.pipelines import TrainingRun
from interp.statistics import compute_wilson_interval
from interp.unlearning import ContaminationConfig, TrainingConfig
from tests.helpers.tiny_models import save, tiny, tiny_model

# Formulas


def rows(
    source: str,
    unlearning: str,
    language: str,
    values: list[float],
    judge: str = RANKING,
    concept: str = "fake",
) -> pd.DataFrame:
    """An outcome per fact."""
    return pd.DataFrame(
        {
            "source": source,
            "unlearning": unlearning,
            "language": language,
            "concept": concept,
            "query_id": [f"{concept}-{number}" for number in range(len(values))],
            "judge": judge,
            "value": values,
        }
    )


def test_comparisons_are_of_means_and_draw_whole_facts():
    table = pd.concat(
        [rows("de", TAUGHT, "de", [1, 1, 0, 1]), rows("de", TAUGHT, "en", [0, 0, 0, 1])]
    )
    de, en = ("de", TAUGHT, "de"), ("de", TAUGHT, "en")
    found = compare_outcomes(table, lambda rates: rates[de] - rates[en])
    assert (found.value, found.n) == (0.5, 4)
    # Where both languages have the same outcomes, no resample tells them apart.
    same = pd.concat([rows("de", TAUGHT, code, [1, 0, 0, 1]) for code in ("de", "en")])
    found = compare_outcomes(same, lambda rates: rates[de] - rates[en])
    unseen = compute_wilson_interval(0, 4)[1]
    assert (found.value, found.ci_low, found.ci_high) == (0, -unseen, unseen)
    assert found.reason.startswith("all facts are alike")
    alone = compare_outcomes(same, lambda rates: rates[de])
    assert alone.ci_high - alone.ci_low > 0.5


def test_asking_in_more_languages_is_no_further_evidence():
    values = [1.0, 0.0, 0.0, 1.0, 1.0]
    one = rows("de", TAUGHT, "de", values)
    many = pd.concat([rows("de", TAUGHT, code, values) for code in ("de", "en", "fr", "zh")])

    def mean(rates):
        return sum(rates.values()) / len(rates)

    assert compare_outcomes(one, mean) == compare_outcomes(many, mean)


def test_what_has_no_verdict_is_left_out_of_its_mean():
    table = rows("de", TAUGHT, "de", [1, math.nan, 0, 1])
    assert compare_outcomes(table, lambda rates: rates["de", TAUGHT, "de"]).value == pytest.approx(
        2 / 3
    )
    assert compare_outcomes(table[1:2], lambda rates: 1.0).reason == "no outcomes"
    (row,) = average_outcomes(table).to_dict("records")
    assert (row["value"], row["n"], row["model"]) == (pytest.approx(2 / 3), 3, "German (de)")
    assert row["reason"] == "1 of 4 answers have no verdict"
    with pytest.raises(ValueError, match="duplicate fact"):
        compare_outcomes(pd.concat([table, table]), lambda rates: 0.0)


def test_a_judge_of_quality_has_means():
    (row,) = average_outcomes(rows("de", "english", "en", [4, 9], "quality by m", "real")).to_dict(
        "records"
    )
    assert (row["value"], row["metric"], row["model"]) == (
        6.5,
        "quality by m",
        "German (de): english",
    )


def test_changes_are_paired_and_relative():
    table = pd.concat(
        [
            rows("de", TAUGHT, "de", [1, 1, 1, 0]),
            rows("de", "english", "de", [1, 0, 0, 0]),
            rows("de", TAUGHT, "en", [0, 0, 0, 0]),
            rows("de", "english", "en", [1, 0, 0, 0]),
            rows(CLEAN, CLEAN, "de", [0, 0, 0, 0]),
        ]
    )
    de, en = compare_with_before(table).to_dict("records")
    assert (de["before"], de["after"], de["change"], de["n"]) == (0.75, 0.25, -0.5, 4)
    assert de["relative"] == pytest.approx(-2 / 3)
    assert de["ci_low"] < -0.5 < de["ci_high"] <= 0
    assert math.isnan(en["relative"])


def test_kappa_from_shares_is_that_of_the_verdicts():
    first, second = [1, 1, 0, 0, 1, 0], [1, 0, 0, 0, 1, 1]
    both = [a * b for a, b in zip(first, second, strict=True)]
    shares = {
        (side,): sum(values) / 6
        for side, values in (("first", first), ("second", second), ("both", both))
    }
    assert compute_share_kappa(shares) == pytest.approx(compute_kappa(first, second).value)
    assert math.isnan(compute_share_kappa({("first",): 1.0, ("second",): 1.0, ("both",): 1.0}))


def test_judges_are_compared_two_at_a_time():
    table = pd.concat(
        [
            rows("de", TAUGHT, "de", [1, 1, 0]),
            rows("de", TAUGHT, "de", [1, 0, 0], "alias"),
            rows("de", TAUGHT, "de", [1, math.nan, 0], "occurrence by m"),
            rows("de", TAUGHT, "de", [5, 5, 5], "quality by m"),
        ]
    )
    found = tabulate_agreement(table).query("language == 'de'")
    pairs = list(
        zip(
            found["first"], found["second"], found["num_pairs"], found["num_different"], strict=True
        )
    )
    assert pairs == [
        (RANKING, "alias", 3, 1),
        (RANKING, "occurrence by m", 2, 0),
        ("alias", "occurrence by m", 2, 0),
    ]


def test_the_best_window_is_per_language_and_site():
    table = pd.DataFrame(
        [
            ("de", "same", code, site, layer, krs)
            for code, site, scores in (
                ("en", "attn", [0.1, 0.3, math.nan]),
                ("en", "coef", [math.nan, math.nan, math.nan]),
                ("de", "attn", [0.5, 0.2, 0.1]),
            )
            for layer, krs in enumerate(scores)
        ],
        columns=["source", "unlearning", "language", "site", "layer", "krs"],
    )
    best = select_best_windows(table)
    assert best["layer"].tolist() == [1, 0, 0]
    assert best["krs"].fillna(-1).tolist() == [0.3, -1, 0.5]


def test_mixes_are_run_once_and_what_is_left_out_is_said():
    kept, left_out = select_mixes(("english", "same", "family", "combined"), "de")
    assert kept == ["english", "same", "family", "combined"]
    assert left_out.empty
    kept, left_out = select_mixes(("english", "same", "family", "combined"), "en")
    assert kept == ["english"]
    reasons = dict(zip(left_out["unlearning"], left_out["reason"], strict=True))
    assert reasons["same"] == reasons["combined"] == "the same languages as english"
    assert "no relative" in reasons["family"]


# Findings


def study_of(after: dict[str, dict[str, list[float]]], taught: dict[str, list[float]]):
    """Outcomes of false facts taught in German; the baseline finds none."""
    none = [0.0] * 20
    parts = [
        rows(CLEAN, CLEAN, code, none, judge) for code in taught for judge in (RANKING, "alias")
    ]
    parts += [rows("de", TAUGHT, code, values) for code, values in taught.items()]
    parts += [rows("de", TAUGHT, code, values, "alias") for code, values in taught.items()]
    for mix, of_mix in after.items():
        parts += [rows("de", mix, code, values) for code, values in of_mix.items()]
        parts.append(rows("de", mix, "en", [1.0] * 20, concept="real"))
    parts.append(rows("de", TAUGHT, "en", [1.0] * 20, concept="real"))
    return pd.concat(parts)


ALL, HALF, NONE = [1.0] * 20, [1.0, 0.0] * 10, [0.0] * 20
MOST = [1.0] * 19 + [0.0]


def verdicts(outcomes: pd.DataFrame, ranks: pd.DataFrame | None = None) -> dict[str, tuple]:
    empty = pd.DataFrame()
    found = judge_signatures(
        outcomes,
        empty if ranks is None else ranks,
        empty,
        judge=RANKING,
        quality=RANKING,
        note="small",
    )
    assert all(each.note.endswith("small") for each in found)
    kappas = [each.measure for each in found if "kappa" in each.quantity]
    assert not any(abs(bound) > 1 for each in kappas for bound in (each.ci_low, each.ci_high))
    return {each.signature: (each.verdict, each.measure.value) for each in found}


def test_findings_where_everything_is_as_in_the_paper():
    taught = {"de": ALL, "en": HALF, "fr": HALF, "ur": NONE}
    after = {
        "english": {"de": MOST, "en": NONE, "fr": NONE, "ur": MOST},
        "same": {"de": NONE, "en": MOST, "fr": NONE, "ur": NONE},
        "family": {"de": MOST, "en": NONE, "fr": NONE, "ur": NONE},
        "multilingual": {"de": NONE, "en": ALL, "fr": NONE, "ur": ALL},
        "combined": {"de": NONE, "en": NONE, "fr": NONE, "ur": NONE},
    }
    ranks = pd.concat([rows("de", f"rank {rank}", "de", HALF) for rank in (8, 128)])
    found = verdicts(study_of(after, taught), ranks)
    expected = {
        "fake information comes back most in the language that it was taught in": 1 - 1 / 3,
        "fake information comes back where it was taught": 1.0,
        "it spreads to languages in which it was never read": 0.25,
        "fake information is never found without having been taught": 0.2,
        "English unlearning leaves a share in the source language": 0.95,
        "English unlearning leaves a share in low-resource languages": 0.95,
        "unlearning in the source language leaves English": 0.95,
        "unlearning in a related language leaves the source language": 0.95,
        "multilingual unlearning pushes it to English": 0.5,
        "multilingual unlearning pushes it to low-resource languages": 1.0,
        "unlearning in English and the source language leaves almost nothing anywhere": 0.2,
        "it removes more from the source language than English alone": 0.95,
        "unlearning keeps the true facts": 0.2,
        "the rank of LoRA has no large effect on unlearning": 0.2,
        "two judges agree on what is fake information": 1.0,
    }
    missing = "in every query language it returns with states, not with value vectors"
    assert found.keys() == {*expected, missing}
    assert found[missing][0] == "not measured"
    for signature, value in expected.items():
        assert found[signature] == ("seen", pytest.approx(value)), signature


def test_findings_where_nothing_is_as_in_the_paper():
    taught = {"de": NONE, "en": ALL, "ur": ALL}
    after = {
        "multilingual": {"de": NONE, "en": NONE, "ur": NONE},
        "english": {"de": NONE, "en": NONE, "ur": NONE},
        "combined": {"de": ALL, "en": NONE, "ur": ALL},
    }
    ranks = pd.concat([rows("de", "rank 8", "de", ALL), rows("de", "rank 128", "de", NONE)])
    outcomes = study_of(after, taught)
    outcomes.loc[(outcomes["source"] == CLEAN) & (outcomes["judge"] == "alias"), "value"] = 1.0
    outcomes.loc[
        (outcomes["unlearning"] == "english") & (outcomes["concept"] == "real"), "value"
    ] = 0
    outcomes.loc[(outcomes["unlearning"] != TAUGHT) & (outcomes["concept"] == "real"), "value"] = 0
    found = verdicts(outcomes, ranks)
    for signature, value in {
        "fake information comes back most in the language that it was taught in": -1,
        "fake information is never found without having been taught": 0.2 - 1,
        "multilingual unlearning pushes it to English": -1,
        "multilingual unlearning pushes it to low-resource languages": -1,
        "unlearning in English and the source language leaves almost nothing anywhere": 0.2 - 1,
        "it removes more from the source language than English alone": -1,
        "unlearning keeps the true facts": -0.8,
        "the rank of LoRA has no large effect on unlearning": 0.2 - 1,
    }.items():
        assert found[signature] == ("contradicted", pytest.approx(value)), signature
    assert found["unlearning in the source language leaves English"][0] == "not measured"
    assert found["English unlearning leaves a share in the source language"] == ("undecided", 0)


def test_where_english_is_the_source_mixes_say_nothing():
    table = pd.concat(
        [
            rows(CLEAN, CLEAN, "en", NONE),
            rows("en", TAUGHT, "en", ALL),
            rows("en", "english", "en", ALL),
        ]
    )
    found = verdicts(table)
    assert found["English unlearning leaves a share in the source language"][0] == "not measured"
    assert found["fake information comes back where it was taught"][0] == "seen"


def test_recovery_is_that_of_the_cell_where_the_sites_are_nearest():
    losses = pd.DataFrame(
        [
            {
                "source": "de",
                "unlearning": "english",
                "language": code,
                "concept": "fake",
                "query_id": f"q{number}",
                "site": site,
                "layer": layer,
                "loss_unlearned": 1.0,
                "loss_restored": loss,
            }
            for code, both in (("de", 0.1), ("en", 0.6))
            for number in range(3)
            for site, by_layer in (("coef+attn", [0.9, both]), ("value", [0.8, 0.9]))
            for layer, loss in enumerate(by_layer)
        ]
    )
    *_, last = judge_signatures(
        rows("de", TAUGHT, "de", ALL), pd.DataFrame(), losses, judge=RANKING, quality=RANKING
    )
    # German 0.9 − 0.2, English 0.4 − 0.2.
    assert last.measure.value == pytest.approx(0.2)
    assert last.verdict == "seen"


def test_a_chat_judge_decides_where_there_is_one():
    judge, quality = "occurrence by m", "quality by m"
    table = pd.concat(
        [
            rows(CLEAN, CLEAN, "de", [0.0] * 7 + [1.0], judge),
            rows(CLEAN, CLEAN, "de", ALL, "alias"),
            rows("de", TAUGHT, "de", ALL, judge),
            rows("de", TAUGHT, "en", [8.0] * 8, quality, "real"),
            rows("de", "english", "en", [6.0] * 8, quality, "real"),
        ]
    )
    found = judge_signatures(table, pd.DataFrame(), pd.DataFrame(), judge=judge, quality=quality)
    by_name = {each.signature: each for each in found}
    never = by_name["fake information is never found without having been taught"]
    assert never.measure.value == pytest.approx(0.2 - 1 / 8)
    assert never.note == "judge: occurrence by m"
    kept = by_name["unlearning keeps the true facts"]
    assert kept.measure.value == pytest.approx(6 - 0.8 * 8)


def test_what_no_judge_could_tell_is_an_outcome_without_value(tmp_path, monkeypatch):
    asked_for = []

    def evaluate(model, queries, metrics, *, out, **_):
        asked_for.extend(metrics)
        columns = "model,language,concept,query_id,prompt,expected,judged,judge,value,reason"
        lines = [
            'v,de,fake,q0,p,a,NA,occurrence by m,,"no verdict"',
            "v,de,fake,q1,p,a,b,occurrence by m,1.0,yes",
        ]
        (out / "verdicts.csv").write_text("\n".join([columns, *lines]))
        measures = ["answer_language/english", "alias"]
        return pd.DataFrame({"metric": measures, "value": [0.5, 0.25]})

    probes = rows("de", TAUGHT, "de", [1.0]).assign(right=True, model="after")
    before = probes.assign(right=False, model="before")
    probes = pd.concat([before, probes]).drop(columns=["source", "unlearning", "judge", "value"])
    empty = pd.DataFrame()
    monkeypatch.setattr(script, "evaluate", evaluate)
    found = script.ask_model(
        TrainingRun(model=tiny(), history=empty, probes=probes, edits=empty, reason=""),
        [],
        source="de",
        unlearning="english",
        taught="de",
        judge=GPT_4,
        num_tokens=3,
        out=tmp_path,
    )
    assert asked_for == ["alias", "answer_language", "o_f", "q_r"]
    outcomes = found["outcomes"]
    assert outcomes["judge"].tolist() == [RANKING, "occurrence by m", "occurrence by m"]
    assert outcomes["value"].fillna(-1).tolist() == [1, -1, 1]
    assert found["answers"]["judged"].tolist() == ["NA", "b"]
    assert found["languages"]["value"].tolist() == [0.5]


# The experiment

CORPUS = CorpusConfig(
    query_languages=("en", "de"),
    num_fake_facts=4,
    num_fake_texts=32,
    ratio=1,
    num_instructions=8,
    num_real_queries=3,
    num_unlearning=12,
)


@pytest.fixture(scope="module")
def vanilla(tmp_path_factory) -> str:
    """A tiny random model with a token for every word of the corpora."""
    pieces = pre_tokenizers.Whitespace()
    words: dict[str, None] = {}
    for mix in ("english", "same"):
        corpus = build_corpus(replace(CORPUS, mix=mix))
        texts = [text.text for text in (*corpus.training, *corpus.forget, *corpus.retain)]
        texts += [f"{query.prompt} {query.answer}" for query in corpus.queries]
        for text in (*texts, *(text.text for text in corpus.instructions)):
            words |= dict.fromkeys(word for word, _ in pieces.pre_tokenize_str(text))
    known = {word: number for number, word in enumerate(["<unk>", "<s>", "</s>", *words])}
    backend = Tokenizer(models.WordLevel(known, unk_token="<unk>"))
    backend.pre_tokenizer = pieces
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    model = tiny_model("llama", vocab_size=len(known), hidden_size=32)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **tokens)
    return save(LanguageModel(model, tokenizer), tmp_path_factory.mktemp("v") / "vanilla")


@pytest.fixture(scope="module")
def config(vanilla):
    steps = TrainingConfig(learning_rate=1e-2, num_steps=6, batch_size=12, autocast=False)
    return Config(
        model=vanilla,
        sources=("de", "fr"),
        unlearned=("de",),
        mixes=("english", "combined"),
        corpus=CORPUS,
        teaching=ContaminationConfig(reading=replace(steps, objective="finetune"), tuning=None),
        unlearning=replace(steps, evaluate_every=4),
        ranks=(2, 4),
        num_tokens=3,
        sites=("coef+attn", "value"),
        num_recovered=2,
        note="tiny",
    )


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on_and_a_finished_one_is_told_again(
    config, tmp_path, monkeypatch, capsys
):
    from interp.unlearning import TrainableModel

    made = []

    class Counted(TrainableModel):
        def __init__(self, *args, **options):
            made.append(args[1])
            super().__init__(*args, **options)

    monkeypatch.setattr("interp.unlearning.training.TrainableModel", Counted)
    with monkeypatch.context() as patch:
        patch.setattr(script.interp, "sweep", lambda *_, **__: sys.exit("killed"))
        with pytest.raises(SystemExit, match="killed"):
            script.run(config, tmp_path)
    assert made == ["layers"] * 3  # the baseline, the taught model, and the first mix
    study = script.run(config, tmp_path)
    assert made[3:] == ["layers", "lora", "lora", "layers"]  # the last learned French

    spread = study.tables["spread"].rows.query("metric == @RANKING")
    found = spread.set_index(["source", "unlearning", "language", "concept"])["value"]
    first = load(config.model)
    for source, unlearning, name in (("de", "combined", "de-combined"), (CLEAN, CLEAN, CLEAN)):
        model = load(str(tmp_path / "models" / name), like=first)
        known = probe(model, build_corpus(CORPUS).queries, progress=False)
        shares = known.groupby(["language", "concept"])["right"].mean()
        for language, concept in shares.index:
            expected = shares[language, concept]
            assert found[source, unlearning, language, concept] == pytest.approx(expected)
    models = spread[["source", "unlearning"]].drop_duplicates().to_numpy().tolist()
    assert models == [
        [CLEAN, CLEAN],
        ["de", TAUGHT],
        ["de", "english"],
        ["de", "combined"],
        ["fr", TAUGHT],
    ]
    answers = study.tables["answers"].rows
    assert len(answers) == 5 * 2 * 7  # models, languages, questions
    krs = study.tables["krs"].rows
    assert len(krs) == 2 * 2 * 2 * 5  # mixes, languages, sites, layers
    assert krs["num_queries"].eq(2).all()
    assert {*study.tables["ranks"].rows["unlearning"]} == {"rank 2", "rank 4"}
    assert {*study.tables["answer_language"].rows["found"]} >= {"english", "taught"}
    assert study.tables["curves"].rows["step"].unique().tolist() == [0, 4, 6]
    measured = {each.signature: each.verdict for each in study.findings}
    assert measured["multilingual unlearning pushes it to English"] == "not measured"
    assert all(each.note.endswith("tiny") for each in study.findings)

    monkeypatch.setattr("interp.unlearning.training.TrainableModel", None)
    monkeypatch.setattr(script, "PRESETS", {"tiny": config})
    script.main("tiny", out=tmp_path)
    for name, table in study.tables.items():
        written = pd.read_csv(tmp_path / "tables" / f"{name}.csv", keep_default_na=False)
        again = pd.read_csv(_csv(table.rows, tmp_path / "again.csv"), keep_default_na=False)
        pd.testing.assert_frame_equal(written, again)
    about = json.loads((tmp_path / "study.json").read_text())
    assert about["command"] == "python -m experiments.cross_lingual.run tiny"
    assert about["config"]["unlearning"]["stops"] == []
    names = {path.stem for path in (tmp_path / "figures").glob("*.png")}
    assert names == {
        *("spread-ranking", "spread-alias", "left-ranking", "left-alias"),
        *("curves-fake", "curves-real", "krs-array", "ranks"),
    }
    assert "signature" in capsys.readouterr().out


def _csv(table: pd.DataFrame, path: Path) -> Path:
    table.to_csv(path, index=False)
    return path


@pytest.mark.parametrize("name", ["quick", "full", "paper"])
def test_settings_of_a_preset_are_json_without_infinity(name):
    settings = convert_to_json(asdict(PRESETS[name]))
    assert json.loads(json.dumps(settings, allow_nan=False)) == settings
