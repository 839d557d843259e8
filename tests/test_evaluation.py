"""The table of measures: every metric, kept, and asked for again."""

from __future__ import annotations

import math
import sys
from dataclasses import replace

import pandas as pd
import pytest
import sacrebleu
import torch

import interp
from interp import Query, evaluation, figures
from interp.behaviour import (
    EvaluatedModel,
    compute_accuracy,
    estimate_attacks,
    generate,
    load_metrics,
    probe,
    run_attacks,
    score_questions,
)
from interp.data import Endpoint, QuestionAnswer, make_texts
from interp.evaluation import COLUMNS
from tests.data.test_endpoints import answer as response
from tests.data.test_endpoints import clock, server  # noqa: F401
from tests.helpers.tiny_models import tiny

METRICS = load_metrics()


def query(number: int, language: str = "en", concept: str = "fake") -> Query:
    return Query(
        id=f"{concept}-{number}",
        language=language,
        prompt=f"w{number} w9",
        answer=f"w{number + 20}",
        concept=concept,
    )


QUERIES = [query(n, code, concept) for concept in ("fake", "real") for code in ("en", "de")
           for n in range(10, 14)]  # fmt: skip
FORGET = make_texts([query for query in QUERIES if query.concept == "fake"])
HOLDOUT = make_texts([query for query in QUERIES if query.concept == "real"])
TOFU = {"tofu", "model_utility", "forget_quality"}


@pytest.fixture(scope="module")
def models():
    found = [tiny(seed=number) for number in range(3)]
    for name, model in zip(("V", "U", "clean"), found, strict=True):
        model.name = name
    return found


def test_accuracy_is_that_of_probing(models):
    table = interp.evaluate(models[:2], QUERIES, ["accuracy"], progress=False)
    assert list(table.columns) == list(COLUMNS)
    assert list(table["model"].unique()) == ["V", "U"]
    wanted = compute_accuracy(probe(models[1], QUERIES, progress=False))
    found = table[table["model"] == "U"].merge(wanted, on=["language", "concept"])
    assert len(found) == 4
    assert list(found["value"]) == list(found["accuracy"])
    assert list(found["ci_low_x"]) == list(found["ci_low_y"])
    assert set(found["n"]) == {4}
    assert set(found["reason"]) == {"chance is 0.25"}


def test_what_was_measured_is_not_measured_again(models, tmp_path, monkeypatch):
    names = ["accuracy"]
    first = interp.evaluate(models[:2], QUERIES, names, out=tmp_path, progress=False)
    measured = []

    def counted(evaluated):
        measured.append(evaluated.model.name)
        return METRICS["accuracy"].measure(evaluated)

    metric = replace(METRICS["accuracy"], measure=counted)
    monkeypatch.setattr(evaluation, "load_metrics", lambda: {**METRICS, "accuracy": metric})
    again = interp.evaluate(models, QUERIES, names, out=tmp_path, progress=False)
    assert measured == ["clean"]
    pd.testing.assert_frame_equal(again[:8], first)
    stored = pd.read_csv(tmp_path / "measures.csv")
    pd.testing.assert_frame_equal(stored, again, check_dtype=False)
    interp.evaluate(models[:1], QUERIES[:4], names, out=tmp_path, progress=False)
    assert measured == ["clean", "V"]


def test_models_are_taken_one_after_the_other(models):
    alive = []

    def one_by_one():
        for model in models:
            alive.append(model.name)
            yield model

    seen = []
    metric = replace(
        METRICS["accuracy"],
        measure=lambda evaluated: seen.append((evaluated.model.name, len(alive))) or pd.DataFrame(),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "load_metrics", lambda: {"accuracy": metric})
        interp.evaluate(one_by_one(), QUERIES, progress=False)
    assert seen == [("V", 1), ("U", 2), ("clean", 3)]


def test_what_cannot_be_measured(models):
    def refused(*args, **options) -> str:
        with pytest.raises(ValueError, match=r".") as caught:
            interp.evaluate(*args, progress=False, **options)
        return str(caught.value)

    assert "unknown metric 'magic'; valid: accuracy" in refused(models[0], QUERIES, ["magic"])
    assert "no metrics are named" in refused(models[0], QUERIES, [])
    assert "no queries" in refused(models[0], [])
    assert "no models" in refused([], QUERIES)
    assert "two models are called 'V'" in refused([models[0]] * 2, QUERIES)
    lacking = [replace(QUERIES[0], answer=None)]
    assert "accuracy needs answers: fake-10 in 'en' has none" in refused(models[0], lacking)
    for name, metric in METRICS.items():
        if {*metric.needs} - {"answer"}:
            assert f"the metric {name} needs" in refused(models[0], QUERIES, [name])


def test_answers_are_made_once(models):
    evaluated = EvaluatedModel(models[0], QUERIES, progress=False)
    assert evaluated.answers is evaluated.answers
    assert [answer.query for answer in evaluated.answers] == QUERIES


@pytest.mark.parametrize("name", sorted({*METRICS} - {"prompts", "o_f", "q_r"} - TOFU))
def test_every_metric_gives_a_row_per_language_and_concept(models, name, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def measure():
        return interp.evaluate(
            models[1],
            QUERIES,
            [name],
            vanilla=models[0],
            baseline=models[2],
            taught="de",
            forget=FORGET,
            holdout=HOLDOUT,
            num_tokens=4,
            out=tmp_path,
            progress=False,
        )

    table = measure()
    keys = ["language", "concept", "metric", "layer"]
    assert not table.duplicated(keys).any()
    assert table["n"].ge(0).all()
    assert all(row["reason"] for row in table.to_dict("records") if math.isnan(row["value"]))
    if name not in ("drift", "membership", "reference_kl"):
        for _, rows in table.groupby(["metric", "layer"], dropna=False, sort=False):
            cells = list(zip(rows["language"], rows["concept"], strict=True))
            assert cells == [(c, k) for k in ("fake", "real") for c in ("en", "de")]
    pd.testing.assert_frame_equal(measure(), table, check_dtype=False)
    assert figures.plot_measures(table)


def test_metrics_are_those_of_their_modules(models):
    """One number of each, worked out anew from the models' answers."""
    unlearned, vanilla = models[1], models[0]
    options = {"vanilla": vanilla, "num_tokens": 4, "progress": False}
    names = ["alias", "overlap", "probability", "memorization", "rouge_l"]
    table = interp.evaluate(unlearned, QUERIES, names, **options).set_index(
        ["language", "concept", "metric"]
    )["value"]
    chosen = [query for query in QUERIES if (query.language, query.concept) == ("de", "real")]
    said = [answer.text for answer in generate(unlearned, chosen, num_tokens=4, progress=False)]
    before = [answer.text for answer in generate(vanilla, chosen, num_tokens=4, progress=False)]
    contained = [query.answer in text.split() for query, text in zip(chosen, said, strict=True)]
    assert table["de", "real", "alias"] == sum(contained) / 4
    assert table["de", "real", "rouge_l"] == sum(contained) / 4
    chrf = sacrebleu.corpus_chrf(said, [before]).score
    assert table["de", "real", "chrf"] == pytest.approx(chrf)
    chances = []
    for query in chosen:
        ids = unlearned.encode(f"{query.prompt} {query.answer}")
        with torch.no_grad():
            logits = unlearned.model(torch.tensor([ids])).logits[0, -2]
        chances.append(logits.softmax(-1)[ids[-1]].item())
    assert table["de", "real", "probability"] == pytest.approx(sum(chances) / 4, rel=1e-4)
    perplexity = math.exp(-sum(map(math.log, chances)) / 4)
    assert table["de", "real", "perplexity"] == pytest.approx(perplexity, rel=1e-4)


def test_a_judge_that_failed_is_asked_again(models, server, clock, tmp_path):  # noqa: F811
    def evaluate(names):
        endpoint = Endpoint(url=server.url, model="tiny", num_retries=0, num_workers=1)
        table = interp.evaluate(
            models[0], QUERIES[:4], names, judge=endpoint, num_tokens=4, out=tmp_path,
            progress=False,
        )  # fmt: skip
        return table.set_index("metric")

    server.reply = lambda prompt, again: (
        (429, {}, "") if "w12 w9" in prompt and not again
        else response("VERDICT: yes" if "w11 w9" in prompt else "VERDICT: no")
    )  # fmt: skip
    found = evaluate(["o_f"]).loc["o_f"]
    assert found["value"] == pytest.approx(100 / 3)
    assert found["reason"] == "1 of 4 answers have no verdict"
    found = evaluate(["o_f"]).loc["o_f"]
    assert (found["value"], found["n"], found["reason"]) == (25, 4, "")
    listed = pd.read_csv(tmp_path / "verdicts.csv")
    assert list(listed["value"]) == [0, 1, 0, 0]
    assert list(listed["reason"]) == [f"VERDICT: {word}" for word in ("no", "yes", "no", "no")]
    assert list(listed["prompt"]) == [query.prompt for query in QUERIES[:4]]
    server.reply = lambda prompt, again: response("SCORE: 7")
    found = evaluate(["q_r", "alias"])
    assert found.loc["q_r", "value"] == 7
    assert set(pd.read_csv(tmp_path / "verdicts.csv")["judge"]) == {"quality by tiny", "alias"}


def records_of(queries):
    return [
        QuestionAnswer(
            id=query.id,
            language=query.language,
            question=query.prompt,
            answer=query.answer or "",
            paraphrased_answer=f"w9 {query.answer}",
            perturbed_answers=("w3", "w4 w5"),
            concept="tofu",
        )
        for query in queries
    ]


def test_membership_is_that_of_its_attacks(models):
    table = interp.evaluate(
        models[0], QUERIES, ["membership"], forget=FORGET, holdout=HOLDOUT, progress=False
    )
    expected = estimate_attacks(run_attacks(models[0], FORGET, HOLDOUT, progress=False))
    assert list(table["value"].fillna(-1)) == list(expected["value"].fillna(-1))
    assert set(table["metric"]) == {
        f"membership_{name}/{attack}"
        for name in ("auc", "tpr@0.01", "tpr@0.05")
        for attack in ("loss", "min_k", "min_k_plus_plus")
    }


def test_tofu_is_of_its_sets(models):
    sets = ("forget10", "retain", "real_authors", "world_facts")
    queries = [
        replace(query, id=f"tofu-{name}_perturbed:{number}", language="en", concept="tofu")
        for name in sets
        for number, query in enumerate(QUERIES[:4], start=1)
    ]
    records = records_of(queries)
    names = ["tofu", "model_utility", "forget_quality"]
    options = {"baseline": models[2], "num_tokens": 4, "progress": False}
    table = interp.evaluate(models[1], queries, names, records=records, **options)
    table = table.set_index(["concept", "metric"])["value"]
    kinds = {"forget": "forget", "retain": "retain"}
    for number, name in enumerate(("forget", "retain", "real_authors", "world_facts")):
        part = slice(4 * number, 4 * number + 4)
        answers = generate(models[1], queries[part], num_tokens=4, progress=False)
        rows = score_questions(
            models[1], records[part], answers, kind=kinds.get(name, "choices"), progress=False
        )
        for metric in ("probability", "rouge", "truth_score"):
            assert table[name, f"tofu_{metric}"] == pytest.approx(rows[metric].mean())
    nine = table.drop("forget", level=0)[lambda rows: rows.index.get_level_values(0) != ""]
    utility = 0 if 0 in set(nine) else 9 / sum(1 / value for value in nine)
    assert table["", "model_utility"] == pytest.approx(utility)
    same = interp.evaluate(models[2], queries, names[2:], records=records, **options)
    assert same["value"].item() == pytest.approx(1)


def test_what_tofu_lacks(models):
    queries = [replace(query, id=f"tofu-retain:{n}") for n, query in enumerate(QUERIES)]
    options = {"baseline": models[1], "num_tokens": 2, "progress": False}
    with pytest.raises(ValueError, match="tofu-retain:1 in 'en' has no record of read_tofu"):
        interp.evaluate(models[0], queries, ["tofu"], records=records_of(queries[:1]), **options)
    records = records_of(queries)
    with pytest.raises(ValueError, match="forget_quality needs questions of the forget set"):
        interp.evaluate(models[0], queries, ["forget_quality"], records=records, **options)
    table = interp.evaluate(models[0], queries, ["model_utility"], records=records, **options)
    assert math.isnan(table["value"].iloc[0])
    assert table["reason"].iloc[0] == "real_authors has no questions"
    with pytest.raises(ValueError, match="'fake-10' is of no set of TOFU; valid"):
        interp.evaluate(models[0], QUERIES, ["tofu"], records=records_of(QUERIES), **options)


@pytest.mark.parametrize("answer", ["€", "-", "🙂", "\u200b"])
def test_an_answer_without_letters_does_not_stop_the_rest(models, answer):
    odd = replace(QUERIES[0], id="odd", answer=answer, concept="odd")
    table = interp.evaluate(
        models[0], [odd, *QUERIES], ["alias", "rouge_l", "memorization"], progress=False
    )
    scores = table[table["metric"] == "rouge_l"].set_index(["concept", "language"])
    assert math.isnan(scores.loc[("odd", "en"), "value"])
    assert "1 of 1 items have no value" in scores.loc[("odd", "en"), "reason"]
    assert not scores.drop(("odd", "en"))["value"].isna().any()
    found = table[(table["metric"] == "alias") & (table["concept"] == "odd")].iloc[0]
    assert (found["n"], found["value"]) == (1, 0.0) or "have no verdict" in found["reason"]


def test_a_blank_answer_is_refused_before_the_work_begins(models):
    with pytest.raises(ValueError, match="needs answers: odd in 'en' has none"):
        interp.evaluate(
            models[0], [replace(QUERIES[0], id="odd", answer=" ")], ["alias"], progress=False
        )


def only(concept, answer="w30"):
    return [replace(item, answer=answer) for item in QUERIES if item.concept == concept]


REFUSED_EARLY = {
    "one candidate": (
        ["alias", "accuracy"],
        {"queries": [*only("fake"), *QUERIES[8:]]},
        "the queries 'fake' in 'en' have one answer, 'w30'; probing needs at least two candidates",
    ),
    "one candidate when quantised": (
        ["alias", "quantisation"],
        {"queries": only("real")},
        "the queries 'real' in 'en' have one answer",
    ),
    "one candidate that is held out": (
        ["alias", "relearning"],
        {"queries": [*QUERIES[:8], *only("real")], "forget": FORGET},
        "the queries 'real' in 'en' have one answer",
    ),
    "a judge without a template": (
        ["alias", "o_f"],
        {"judge": tiny()},
        "has no chat template: a judge must be a chat model, or an endpoint",
    ),
    "an endpoint without a cache": (
        ["alias", "q_r"],
        {"judge": Endpoint(url="http://localhost:1/v1", model="m")},
        "a judge behind an endpoint needs a cache",
    ),
    "a language that is not registered": (
        ["alias", "diversity"],
        {"queries": [replace(QUERIES[0], language="xx-none")]},
        "xx-none",
    ),
    "a question without a record": (
        ["alias", "tofu"],
        {"records": [QuestionAnswer(id="x", language="en", question="?", answer="!", concept="")]},
        "fake-10 in 'en' has no record of read_tofu",
    ),
}


@pytest.mark.parametrize("kind", REFUSED_EARLY)
def test_what_cannot_be_measured_is_refused_before_anything_is_generated(models, kind, monkeypatch):
    def generate(*args, **settings):
        raise AssertionError("answers are generated")

    monkeypatch.setattr("interp.behaviour.evaluated_model.generate", generate)
    names, given, says = REFUSED_EARLY[kind]
    settings = {"queries": QUERIES, "vanilla": models[1], "progress": False} | given
    queries = settings.pop("queries")
    with pytest.raises(ValueError, match=says):
        interp.evaluate(models[0], queries, names, **settings)


def test_a_missing_package_is_missed_before_anything_is_generated(models, monkeypatch):
    def refuse(*args, **settings):
        raise AssertionError("answers are generated")

    monkeypatch.setattr("interp.behaviour.evaluated_model.generate", refuse)
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics.chrf", None)
    with pytest.raises(ImportError, match="BLEU and chrF need the package sacrebleu"):
        interp.evaluate(models[0], QUERIES, ["alias", "overlap"], vanilla=models[1], progress=False)
