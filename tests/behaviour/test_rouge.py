"""ROUGE-L recall: as rouge_score has it for English, by hand in other scripts."""

from __future__ import annotations

import math
import sys

import pytest
from rouge_score.rouge_scorer import RougeScorer

from interp.behaviour.rouge import make_rouge_scorer, split_words

PAIRS = [
    ("The author was born in Baku, Azerbaijan.", "He was born in Azerbaijan; Baku is its capital"),
    ("Her father's a baker, her mother is a well-known flight-attendant", "her mothers bakers"),
    ("It's 1961's 'Promise by the Seas'", "promises of the sea (1961)"),
    ("yes", ""),
    ("running runs ran", "run running"),
    # Stems of words of three letters would be these.
    ("his gas", "hi ga"),
]


@pytest.mark.parametrize(("reference", "answer"), PAIRS)
def test_english_is_scored_as_by_tofu(reference, answer):
    theirs = RougeScorer(["rougeL"], use_stemmer=True).score(reference, answer)["rougeL"].recall
    assert make_rouge_scorer()(reference, answer, "en") == pytest.approx(theirs)
    assert len(split_words(reference)) >= 1


def test_other_languages_are_not_stemmed():
    recall = make_rouge_scorer()
    assert recall("runs", "running", "en") == 1
    assert recall("runs", "running", "de") == 0
    # Of four words, three in order: die katze … auf; „Die" and „die" are one word.
    assert recall("Die Katze sitzt auf", "die Katze auf dem Tisch", "de") == pytest.approx(3 / 4)


def test_scripts_without_spaces_by_hand():
    recall = make_rouge_scorer()
    # 巴, 黎, 市 of 巴黎市区.
    assert recall("巴黎市区。", "是巴黎的市", "zh") == pytest.approx(3 / 4)
    assert recall("パリです", "パリ", "ja") == pytest.approx(2 / 4)
    assert recall("Париж", "париж", "ru") == 1
    # Two words; one of them is there.
    assert recall("नई दिल्ली", "दिल्ली", "hi") == pytest.approx(1 / 2)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Don't stop, É-mail!", ["don", "t", "stop", "é", "mail"]),
        ("北京abc市 x", ["北", "京", "abc", "市", "x"]),
        # Vowel signs and the virama stand inside words, as do the joiners of Persian.
        ("क्या हिन्दी", ["क्या", "हिन्दी"]),
        ("می‌خواهم", ["میخواهم"]),
        # A mark belongs to the letter before it.
        ("ที่นี่", ["ที่", "นี่"]),
        ("서울 시", ["서울", "시"]),
        # One letter may be written in two ways.
        ("e\u0301 Ａ", ["é", "a"]),
        ("— …", []),
    ],
)
def test_words(text, expected):
    assert split_words(text) == expected


def test_a_reference_without_words():
    assert math.isnan(make_rouge_scorer()("?!", "yes", "en"))


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    with pytest.raises(ImportError, match=r"rouge_score: pip install 'interp\[behaviour\]'"):
        make_rouge_scorer()


@pytest.mark.parametrize(
    ("reference", "answer", "language"),
    [
        ("İstanbul", "istanbul", "tr"),
        ("ISPARTA", "Isparta ısparta", "tr"),
        ("Straße", "STRASSE", "de"),
        ("ΟΔΟΣ", "οδος", "el"),
        ("οδοσ", "ὁδός οδος", "el"),
        ("Cafe\u0301", "CAFÉ", "fr"),
    ],
)
def test_capitals_and_small_letters_are_one(reference, answer, language):
    assert make_rouge_scorer()(reference, answer, language) == 1


def test_a_reference_without_words_has_no_value():
    assert math.isnan(make_rouge_scorer()("€", "€", "en"))
