"""Answers of tens of thousands of characters that once took minutes to be read, or for ever."""

import re
import time
from random import Random

import pytest

from interp.behaviour.alias import has_name
from interp.behaviour.chat_judges import OccurrenceJudge, QualityJudge
from interp.behaviour.language_identification import (
    _SENTENCE_END,
    identify_languages,
)
from interp.behaviour.rouge import split_words
from interp.behaviour.spelling import has_sign, normalise_text
from interp.data import Endpoint

SIZE = 40_000
MARKS = "\u0315\u0300"
UNITS = [
    " ", "\n", ".", ". ", "..a", "!", ",", "1", "1,", "1.", "-", "a", "a ", "a.", "a'", "a-", "+",
    "€", "€ ", "中a", "ا", "्", "\u200b", "\u0301", "VERDICT:", "<think>",
]  # fmt: skip


def judge(kind):
    return kind(by=Endpoint(url="http://localhost/v1", model="m")).parse_verdict


READERS = {
    "normalise_text": lambda text: normalise_text(text, "hi", joined=True),
    "has_name": lambda text: has_name(text, "Kairo", "de"),
    "has_sign": lambda text: has_sign(text, "!!!"),
    "split_words": split_words,
    "sentences": _SENTENCE_END.split,
    "a verdict": lambda text: judge(OccurrenceJudge)(f"VERDICT:{text}"),
    "a score": lambda text: judge(QualityJudge)(f"SCORE:{text}"),
}


@pytest.mark.parametrize("reader", READERS)
def test_no_answer_takes_long(reader):
    units = UNITS if reader in ("normalise_text", "sentences") else UNITS[::3]
    for text in (*(unit * (SIZE // len(unit)) for unit in units), MARKS * SIZE):
        started = time.process_time()
        READERS[reader](f"{text}x")
        assert time.process_time() - started < 5, text[:9]


def test_no_answer_takes_long_to_be_identified():
    pytest.importorskip("py3langid", reason="py3langid (extra `behaviour`)")
    identify_languages("to load the model")
    numbered = ". ".join(f"a {number}" for number in range(SIZE // 8))
    for text in ("." * SIZE + "x", "ا" * SIZE, numbered, MARKS * SIZE):
        started = time.process_time()
        identify_languages(text)
        assert time.process_time() - started < 5, text[:9]


@pytest.mark.parametrize("language", ["tr", "fi", "hu", "ko", "ar", "he", "ru", "de", "zh"])
def test_no_name_of_many_words_takes_long(language):
    """Names whose words stand in each other can be found in such texts in very many ways."""
    letter = {"ar": "و", "he": "ה", "ru": "аа", "zh": "中"}.get(language, "a")
    for count in (6, 12, 40):
        name = " ".join([letter] * count + ["b"])
        for unit in (letter, f"{letter} ", f"{letter}{letter} ", f"{letter}x "):
            started = time.process_time()
            assert not has_name((unit * 3000)[:3000], name, language)
            assert time.process_time() - started < 5, (count, unit)


def test_names_of_many_words_are_found():
    name = "Demokratik Kongo Cumhuriyeti ve Güney Sandviç Adaları"
    assert has_name(f"Bence {name.lower()}.", name, "tr")
    assert has_name("Demokratik Kongo Cumhuriyeti'nde ve Güney Sandviç Adalarında", name, "tr")
    assert not has_name("Demokratik Kongo Cumhuriyeti ve Güney Adaları", name, "tr")
    # Up to six may be written together.
    assert has_name("Yenizelanda", "Yeni Zelanda", "tr")
    assert has_name("abcdef", "a b c d e f", "tr")
    assert not has_name("abcdefg", "a b c d e f g", "tr")


def test_sentences_end_where_they_did():
    """Against the pattern in its plain form, which takes the square of the number of dots."""
    plain = re.compile(r"[!?。।؟۔։\n]+|\.+(?=\s|$)")
    random = Random(0)
    for _ in range(2000):
        text = "".join(random.choices("..!a \n。", k=random.randrange(12)))
        assert _SENTENCE_END.split(text) == plain.split(text)
