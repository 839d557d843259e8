"""distinct-n and self-BLEU, by hand and against sacrebleu."""

import math
import random

import pytest

from interp import Query
from interp.behaviour.answers import Answer
from interp.behaviour.diversity import (
    COLUMNS,
    compute_distinct,
    compute_self_bleu,
    measure_diversity,
    tokenize_text,
)

sacrebleu = pytest.importorskip("sacrebleu", reason="sacrebleu (extra `behaviour`)")


def test_tokens_are_words_or_characters():
    assert tokenize_text("Paris, l’été (2024)!", "fr") == ["Paris", "l", "été", "2024"]
    # Vowel signs and joiners are part of a word.
    assert tokenize_text("भारत की राजधानी।", "hi") == ["भारत", "की", "राजधानी"]
    assert tokenize_text("می‌خواهم", "fa") == ["می‌خواهم"]
    assert tokenize_text("首都は、東京 2", "ja") == ["首", "都", "は", "東", "京", "2"]
    with pytest.raises(ValueError, match="unknown language 'xx'"):
        tokenize_text("a", "xx")


def test_distinct_n_by_hand():
    texts = ["a b a b.", "b a c"]
    # a b a b b a c: three different of seven words.
    assert compute_distinct(texts, "en", order=1).value == 3 / 7
    # ab ba ab, ba ac: no pair reaches from one answer into the next.
    assert compute_distinct(texts, "en", order=2).value == 3 / 5
    # aba bab, bac.
    assert compute_distinct(texts, "en", order=3).value == 1
    assert compute_distinct(["東京 東京"], "ja", order=1).value == 2 / 4


def test_the_interval_of_distinct_n_is_the_jackknifes():
    texts = ["a b", "a c", "a d d"]
    found = compute_distinct(texts, "en", order=1)
    assert found.value == 4 / 7
    # Without each answer in turn: a c d of 5, a b d of 5, a b c of 4.
    without = [3 / 5, 3 / 5, 3 / 4]
    centre = sum(without) / 3
    error = math.sqrt(2 / 3 * sum((each - centre) ** 2 for each in without))
    ends = 4 / 7 - 1.959964 * error, 4 / 7 + 1.959964 * error
    assert (found.ci_low, found.ci_high) == pytest.approx(ends)


def test_answers_without_n_grams():
    found = compute_distinct(["a b", "a", ""], "en", order=2)
    assert (found.value, found.n) == (1, 1)
    assert math.isnan(found.ci_low)
    assert found.reason == "2 of 3 answers have fewer than 2 tokens"
    nothing = compute_distinct(["a"], "en", order=2)
    assert math.isnan(nothing.value)
    assert nothing.reason == "1 of 1 answers have fewer than 2 tokens"
    assert compute_distinct([], "en", order=1).reason == "no answers"


def test_self_bleu_by_hand():
    # Each against the other two: the equal ones score 100. Of "a b c e" three of four words, two of
    # three pairs and one of two triples are in "a b c d", and its one quadruple counts as a half.
    texts = ["a b c d", "a b c d", "a b c e"]
    by_hand = 100 * (3 / 4 * 2 / 3 * 1 / 2 * 1 / 2) ** (1 / 4)
    assert compute_self_bleu(texts, "en").value == pytest.approx((100 + 100 + by_hand) / 3)
    assert compute_self_bleu(["a b c d", "e f g h"], "en").value == 0


@pytest.mark.parametrize(("code", "tokenizer"), [("en", "13a"), ("zh", "zh"), ("th", "char")])
def test_self_bleu_is_sacrebleus_sentence_score_against_all_others(code, tokenizer):
    rng = random.Random(0)
    texts = [" ".join(rng.choices("巴黎是首都", k=rng.randint(1, 9))) + "." for _ in range(20)]
    metric = sacrebleu.metrics.BLEU(tokenize=tokenizer, effective_order=True)
    scores = [
        metric.sentence_score(text, [*texts[:at], *texts[at + 1 :]]).score
        for at, text in enumerate(texts)
    ]
    found = compute_self_bleu(texts, code)
    assert found.value == pytest.approx(sum(scores) / 20)
    assert found.ci_low < found.value < found.ci_high


def test_self_bleu_without_two_answers():
    found = compute_self_bleu(["a b", " ", "a b"], "en")
    assert found.value == pytest.approx(100)
    assert found.reason == "1 of 3 answers left out: empty"
    nothing = compute_self_bleu(["a b", ""], "en")
    assert math.isnan(nothing.value)
    assert nothing.reason == "1 of 2 answers left out: empty; there are no two answers to compare"


def answers(code, id, *texts):
    query = Query(id=id, language=code, prompt=f"{id}?")
    return [Answer(query=query, text=text, sample=at) for at, text in enumerate(texts)]


def test_diversity_within_a_language_or_within_a_query(unchecked):
    said = answers("en", "q1", "a b", "a b") + answers("en", "q2", "c d", "e f")
    said += answers("zh", "q1", "东京")
    table = measure_diversity(said)
    assert tuple(table.columns) == COLUMNS
    metrics = ["distinct-1", "distinct-2", "distinct-3", "self-BLEU"]
    assert list(table["metric"]) == metrics * 2
    assert list(table["language"]) == ["en"] * 4 + ["zh"] * 4
    # Six different words of eight, three pairs of four; two of four answers are the same.
    assert table["value"][[0, 1, 3, 4]].tolist() == pytest.approx([6 / 8, 3 / 4, 50, 1])
    assert table["value"][[2, 6, 7]].isna().all()
    assert list(table["n"][:4]) == [4, 4, 0, 4]
    by_query = measure_diversity(said, within="query")
    # Half of the words of the first query and all of the second's.
    assert by_query["value"][[0, 1, 3]].tolist() == pytest.approx([0.75, 0.75, 50])
    assert list(by_query["n"][:4]) == [2, 2, 0, 2]
    assert by_query["reason"][2] == "2 of 2 items have no value"
    assert (by_query["ci_low"][0], by_query["ci_high"][0]) == (0.5, 1)
    with pytest.raises(ValueError, match="within a query or a language, not 'answer'"):
        measure_diversity(said, within="answer")


def test_the_same_answer_to_everything_is_seen():
    varied = answers("en", "q", *(f"It is called {name}." for name in "abcdefgh"))
    same = answers("en", "q", *["It is called a."] * 8)
    values = [measure_diversity(said)["value"].tolist() for said in (varied, same)]
    # a, … h and three words that are always the same.
    assert values[0][0] == 11 / 32
    assert values[1] == pytest.approx([4 / 32, 3 / 24, 2 / 16, 100])
    assert values[0][3] < 70
