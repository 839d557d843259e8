"""The table of measures: every metric, kept, and asked for again."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest
from models_for_tests import tiny

import interp
from interp import evaluation
from interp.behaviour.probing import accuracy, probe
from interp.data.query import Query
from interp.evaluation import COLUMNS, METRICS, Subject


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
    wanted = accuracy(probe(models[1], QUERIES, progress=False))
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

    def counted(subject):
        measured.append(subject.model.name)
        return evaluation._accuracy(subject)

    metric = replace(METRICS["accuracy"], measure=counted)
    monkeypatch.setattr(evaluation, "METRICS", {**METRICS, "accuracy": metric})
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
        measure=lambda subject: seen.append((subject.model.name, len(alive))) or [],
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "METRICS", {"accuracy": metric})
        interp.evaluate(one_by_one(), QUERIES, progress=False)
    assert seen == [("V", 1), ("U", 2), ("clean", 3)]


def test_what_cannot_be_measured(models):
    def refused(*args, **options) -> str:
        with pytest.raises(ValueError, match=r".") as caught:
            interp.evaluate(*args, progress=False, **options)
        return str(caught.value)

    assert "no metric 'magic'; valid: accuracy" in refused(models[0], QUERIES, ["magic"])
    assert "no metrics are named" in refused(models[0], QUERIES, [])
    assert "no queries" in refused(models[0], [])
    assert "no models" in refused([], QUERIES)
    assert "two models are called 'V'" in refused([models[0]] * 2, QUERIES)
    lacking = [replace(QUERIES[0], answer=None)]
    assert "accuracy needs answers: fake-10 in 'en' has none" in refused(models[0], lacking)
    for name, metric in METRICS.items():
        for need in {*metric.needs} - {"answer"}:
            assert f"{name} needs the {need} model" in refused(models[0], QUERIES, [name])


def test_answers_are_made_once(models):
    subject = Subject(models[0], QUERIES, progress=False)
    assert subject.answers is subject.answers
    assert [answer.query for answer in subject.answers] == QUERIES
    assert list(subject.groups(range(16))) == [
        ("en", "fake"), ("de", "fake"), ("en", "real"), ("de", "real")
    ]  # fmt: skip
