"""ROUGE-L recall in any script: how much of a reference is found in an answer, in order (Lin 2004).

The package `rouge_score` computes it; its own words are of the letters a to z alone.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable

_WITHOUT_SPACES = (
    *("CJK", "IDEOGRAPHIC", "HIRAGANA", "KATAKANA"),
    *("THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN"),
)


def rouge_l_recall() -> Callable[[str, str, str], float]:
    """ROUGE-L recall, as a function of reference, answer and language (Lin 2004).

    The longest common subsequence of `words` by the number of the reference's; NaN of a reference
    without words. English words are stemmed, as in TOFU's code.

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
            return [stem(word) if len(word) > 3 else word for word in words(text)]

    class Other:
        def tokenize(self, text: str) -> list[str]:
            return words(text)

    english, other = (RougeScorer(["rougeL"], tokenizer=kind()) for kind in (English, Other))

    def recall(reference: str, answer: str, language: str) -> float:
        if not words(reference):
            return math.nan
        scorer = english if language == "en" else other
        return scorer.score(reference, answer)["rougeL"].recall

    return recall


def words(text: str) -> list[str]:
    """A text's words, in any script; its letters where a script writes no space between words."""
    found: list[str] = []
    # Whether a further letter belongs to the last word, and a further mark to the last letter.
    open_word = open_letter = False
    for char in unicodedata.normalize("NFKC", text).lower():
        category = unicodedata.category(char)
        # Joiners stand inside words of Arabic and Indian scripts.
        if category == "Cf":
            continue
        if category[0] not in "LMN":
            open_word = open_letter = False
            continue
        alone = unicodedata.name(char, "").startswith(_WITHOUT_SPACES)
        if (open_letter and category[0] == "M") or (open_word and not alone):
            found[-1] += char
        else:
            found.append(char)
            open_word = not alone
        open_letter = True
    return found
