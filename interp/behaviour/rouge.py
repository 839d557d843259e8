"""ROUGE-L recall in any script: how much of a reference is found in an answer, in order (Lin 2004).

The package `rouge_score` computes it; its own words are of the letters a to z alone.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable

import pandas as pd

from interp.behaviour.evaluated_model import EvaluatedModel
from interp.behaviour.registry import BY, metric
from interp.data.normalization import normalize_unicode
from interp.statistics import estimate_groups, estimate_mean

_WITHOUT_SPACES = (
    *("CJK", "IDEOGRAPHIC", "HIRAGANA", "KATAKANA"),
    *("THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN"),
)


def make_rouge_scorer() -> Callable[[str, str, str], float]:
    """Make ROUGE-L recall as a function of reference, answer and language (Lin 2004).

    The longest common subsequence of `split_words` by the number of the reference's; NaN of a
    reference without words. English words are stemmed, as in TOFU's code.

    Raises:
        ImportError: the package rouge_score is not installed.
    """
    try:
        from nltk.stem.porter import PorterStemmer
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise ImportError(
            "ROUGE needs the package rouge_score: pip install 'interp[behaviour]'"
        ) from error
    stem = PorterStemmer().stem

    class English:
        def tokenize(self, text: str) -> list[str]:
            # Short words are left as they are by rouge_score too.
            return [stem(word) if len(word) > 3 else word for word in split_words(text)]

    class Other:
        def tokenize(self, text: str) -> list[str]:
            return split_words(text)

    english, other = (RougeScorer(["rougeL"], tokenizer=kind()) for kind in (English, Other))

    def recall(reference: str, answer: str, language: str) -> float:
        if not split_words(reference):
            return math.nan
        scorer = english if language == "en" else other
        return scorer.score(reference, answer)["rougeL"].recall

    return recall


@metric("rouge_l", needs=("answer",), check=lambda _: make_rouge_scorer())
def tabulate_rouge(evaluated: EvaluatedModel) -> pd.DataFrame:
    """Average the ROUGE-L recall of the right answers."""
    recall = make_rouge_scorer()
    table = evaluated.answer_table
    columns = (table["expected"], table["first_line"], table["language"])
    table = table.assign(recall=[recall(*row) for row in zip(*columns, strict=True)])
    return estimate_groups(
        table, BY, {"rouge_l": lambda rows: estimate_mean(rows["recall"].tolist())}
    )


def _fold(text: str) -> str:
    """Return a text in which capitals and small letters are one: İ, I and ı, ß and SS, ς and σ."""
    text = normalize_unicode("NFKC", normalize_unicode("NFKC", text).casefold())
    return text.replace("i\u0307", "i").replace("ı", "i")


def split_words(text: str) -> list[str]:
    """Split a text into words, in any script; into letters where a script writes no spaces."""
    parts: list[str] = []
    # Whether a further letter belongs to the last word, and a further mark to the last letter.
    open_word = open_letter = False
    for char in _fold(text):
        category = unicodedata.category(char)
        # Joiners stand inside words of Arabic and Indian scripts.
        if category == "Cf":
            continue
        if category[0] not in "LMN":
            open_word = open_letter = False
            continue
        alone = unicodedata.name(char, "").startswith(_WITHOUT_SPACES)
        if (open_letter and category[0] == "M") or (open_word and not alone):
            parts[-1] += char
        else:
            parts.append(char)
            open_word = not alone
        open_letter = True
    return parts
