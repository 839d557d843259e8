"""Agreement of two judges, worked out by hand and by the usual table."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.cross_lingual.agreement import OVERALL, compare_judges, compute_kappa, read_labels
from interp.behaviour import Verdict


def verdicts(values, *, language="en", judge="one"):
    return [
        Verdict(query_id=f"q{number}", language=language, judge=judge, value=value)
        for number, value in enumerate(values)
    ]


def by_table(first, second, scores, weights):
    """Kappa as textbooks have it: a table of counts, its margins, and a matrix of weights."""
    counts = np.zeros((len(scores), len(scores)))
    for left, right in zip(first, second, strict=True):
        counts[scores.index(left), scores.index(right)] += 1
    by_chance = np.outer(counts.sum(1), counts.sum(0)) / counts.sum()
    rows, columns = np.indices(counts.shape)
    apart = (rows - columns) ** 2 if weights else (rows != columns)
    return 1 - (apart * counts).sum() / (apart * by_chance).sum()


def test_kappa_by_hand():
    # 20 times both yes, 15 times both no, 5 and 10 times one of them: agreed 0.7 of the time; by
    # chance 0.5 · 0.6 + 0.5 · 0.4 = 0.5; (0.7 - 0.5) / (1 - 0.5) = 0.4.
    first = [1] * 25 + [0] * 25
    second = [1] * 20 + [0] * 5 + [1] * 10 + [0] * 15
    found = compute_kappa(first, second)
    assert (found.value, found.n, found.reason) == (pytest.approx(0.4), 50, "")
    # Its large-sample standard error is √(0.7 · 0.3 / 50) / 0.5 = 0.13.
    assert found.ci_low == pytest.approx(0.4 - 1.96 * 0.13, abs=0.05)
    assert found.ci_high == pytest.approx(0.4 + 1.96 * 0.13, abs=0.05)
    assert compute_kappa(first, first).value == 1
    assert compute_kappa([1, 0], [0, 1]).value == -1
    # One judge always says yes: agreement is that of chance.
    assert compute_kappa([1, 1, 1, 1], [1, 0, 1, 0]).value == 0


def test_quadratic_weights_by_hand():
    # Scores 1 2 3 against 1 3 3: squared differences 0 1 0, their mean 1/3. By chance, each of the
    # three with each of the three: (0 + 4 + 4 + 1 + 1 + 1 + 4 + 0 + 0) / 9 = 5/3. 1 - 1/5 = 0.8.
    assert compute_kappa([1, 2, 3], [1, 3, 3], weights="quadratic").value == pytest.approx(0.8)
    # Without weights: agreed 2/3, by chance 1/3 · 1/3 + 1/3 · 0 + 1/3 · 2/3 = 1/3; 0.5.
    assert compute_kappa([1, 2, 3], [1, 3, 3]).value == pytest.approx(0.5)


scores = st.integers(1, 10)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(scores, scores), min_size=2, max_size=30))
def test_kappa_is_that_of_the_table_of_all_scores(pairs):
    first, second = zip(*pairs, strict=True)
    for weights in (None, "quadratic"):
        found = compute_kappa(first, second, weights=weights)
        if len({*first, *second}) == 1:
            assert math.isnan(found.value)
            continue
        expected = by_table(first, second, list(range(1, 11)), weights)
        assert found.value == pytest.approx(expected, abs=1e-9)
        assert compute_kappa(second, first, weights=weights).value == pytest.approx(
            expected, abs=1e-9
        )


def test_kappa_of_one_verdict_alone_is_not_defined():
    found = compute_kappa([1, 1, 1], [1, 1, 1])
    assert math.isnan(found.value)
    assert (found.n, found.reason) == (3, "all 3 verdicts of both judges are 1")
    assert compute_kappa([], []).reason == "no items"


@pytest.mark.parametrize(
    ("first", "second", "weights", "says"),
    [
        ([1, 0], [1], None, "2 verdicts cannot be compared with 1"),
        ([1, 0], [1, math.nan], None, "a verdict is NaN"),
        ([1, 0], [1, 0], "linear", "unknown weights 'linear'; valid: None, 'quadratic'"),
    ],
)
def test_what_has_no_kappa(first, second, weights, says):
    with pytest.raises(ValueError, match=says):
        compute_kappa(first, second, weights=weights)


def test_agreement_per_language_and_overall():
    first = verdicts([1, 1, 0, 0, None, 1]) + verdicts([1, 1], language="de")
    second = verdicts([1, 0, 0, 0, 1], judge="two") + verdicts([1, 1], language="de", judge="two")
    table = compare_judges(first, second).set_index("language")
    assert table.index.tolist() == ["en", "de", OVERALL]
    assert table["num_pairs"].tolist() == [4, 2, 6]
    assert table["num_different"].tolist() == [1, 0, 1]
    # en: agreed 3/4, by chance 1/2 · 1/4 + 1/2 · 3/4 = 1/2; 1/2.
    assert table.loc["en", "kappa"] == pytest.approx(0.5)
    assert math.isnan(table.loc["de", "kappa"])
    # All: agreed 5/6, by chance 2/3 · 1/2 + 1/3 · 1/2 = 1/2; 2/3.
    assert table.loc[OVERALL, "kappa"] == pytest.approx(2 / 3)
    assert table["mean_difference"].tolist() == pytest.approx([1 / 4, 0, 1 / 6])
    assert table["reason"].tolist() == [
        "2 of 6 answers have no verdict of both judges",
        "all 2 verdicts of both judges are 1",
        "2 of 8 answers have no verdict of both judges",
    ]


def test_agreement_of_scores():
    table = compare_judges(
        verdicts([1, 2, 3]), verdicts([1, 3, 3], judge="two"), weights="quadratic"
    )
    assert table["kappa"].tolist() == pytest.approx([0.8, 0.8])
    assert table["num_different"].tolist() == [1, 1]
    assert table["mean_difference"].tolist() == pytest.approx([1 / 3, 1 / 3])


def test_judges_without_a_common_answer():
    table = compare_judges(verdicts([1, 0]), verdicts([1], language="de"))
    assert table["num_pairs"].tolist() == [0, 0, 0]
    assert table["kappa"].isna().all()
    assert table["mean_difference"].isna().all()
    assert table["reason"].tolist()[0] == (
        "no answers that both judges have a verdict on; "
        "2 of 2 answers have no verdict of both judges"
    )


def test_two_verdicts_on_an_answer_are_refused():
    with pytest.raises(ValueError, match="'one' has two verdicts on q0 in 'en', sample 0"):
        compare_judges(verdicts([1]) * 2, verdicts([1]))


def test_labels_of_people(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text(
        "\ufeffquery_id,language,note,sample,value\nq0,en,clear,0,1\nq1,en,,2,0\nq2,hy,unsure,,\n",
        encoding="utf-8",
    )
    found = read_labels(path)
    assert [(v.query_id, v.language, v.sample, v.value, v.judge) for v in found] == [
        ("q0", "en", 0, 1.0, "people"),
        ("q1", "en", 2, 0.0, "people"),
        ("q2", "hy", 0, None, "people"),
    ]
    path.write_text("value,query_id,language\n7,q0,de\n", encoding="utf-8")
    assert read_labels(path, judge="Ada") == [
        Verdict(query_id="q0", language="de", judge="Ada", value=7.0)
    ]


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ("query_id,value\nq0,1\n", "has no column 'language'"),
        ("query_id,language,value\nq0,en,1\nq1,en,yes\n", "line 3: 'yes' is not a number"),
        ("query_id,language,value\nq0,en,nan\n", "line 2: 'nan' is not a number"),
        ("query_id,language,value,sample\nq0,en,1,a\n", "line 2: 'a' is not a number"),
        ("", "has no column 'query_id'"),
    ],
)
def test_labels_that_cannot_be_read(tmp_path, written, says):
    path = tmp_path / "labels.csv"
    path.write_text(written, encoding="utf-8")
    with pytest.raises(ValueError, match=says):
        read_labels(path)


def test_no_labels(tmp_path):
    with pytest.raises(FileNotFoundError, match="give the path of a CSV file"):
        read_labels(tmp_path / "labels.csv")
