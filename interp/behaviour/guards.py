"""Guards: what unlearning must not cost, measured by free generation while a model is trained.

    guards = prepare_guards(vanilla, interp.queries("capitals", languages=["en"], limit=16))
    guards(model)      # {"forget/en": 0.06, "retention/en": 0.97, "reference_kl/en": 0.03, …}

| metric, per language | what it is |
|---|---|
| `forget` | of the targets that V answers rightly, the share that the model still does |
| `forget_elsewhere` | the same, in a language in which nothing is unlearned |
| `same_answer` | the largest share of these targets that get one and the same answer |
| `retention` | of the questions on facts to keep that V answers rightly, the share that it does |
| `repetition` | the share of all these answers that say one thing over and over |
| `reference_kl` | KL(V ‖ U), nats per token, on texts that V wrote |
| `reference_perplexity` | the model's perplexity on these texts, as a multiple of V's |

Answers are greedy and judged by `AliasJudge`. Ranking candidates sees none of this: a model that
writes nonsense may rank the right one first. As an answer that repeats the right name counts as
right, `repetition` is looked at beside it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import pandas as pd
from torch import Tensor

from interp.behaviour.alias import AliasJudge
from interp.behaviour.answers import Answer, generate
from interp.behaviour.diversity import tokenize_text
from interp.behaviour.reference_divergence import compute_divergence
from interp.data.chat import list_fields
from interp.data.query import Query
from interp.data.samples import Sample
from interp.files import compute_digest
from interp.models.language_model import LanguageModel
from interp.models.pairs import lower_precision

LANGUAGES = ("en", "de", "fr", "es", "zh", "ru")
"""Languages in which facts to keep and V's own texts are looked at, beside those of the targets."""

_FEWEST_WORDS = 4
"""Words of the shortest answer that can repeat itself."""

_FEWEST_DISTINCT = 0.5
"""Share of distinct words below which an answer repeats itself."""

_SUMMED = ("kl", "nll", "nll_vanilla", "num_tokens")

_OF_SAMPLES = ("reference_kl", "reference_perplexity")

METRICS = ("forget", "forget_elsewhere", "same_answer", "retention", "repetition", *_OF_SAMPLES)
"""What a model is measured by, in each language."""

_LARGEST_EXPONENT = 700.0
"""Of what a float can hold."""


@dataclass(frozen=True, kw_only=True)
class Guards:
    """Questions and texts by which a model in training is measured; call it with the model.

    Attributes:
        vanilla: V, in the precision of the measurements.
        targets: questions on what is to be forgotten that V answers rightly, without repeating
            itself.
        kept: such questions on facts to keep.
        also_kept: more of them, which are asked only before a goal counts as reached: a share of a
            few facts is right by chance, and the first one that is high enough ends a run.
        samples: texts that V wrote.
        forgotten_in: languages in which something is unlearned; all of the targets' if None.
        num_tokens: the longest answer.
        precise: whether models are measured in their own precision, not in bfloat16 where that is
            faster.
    """

    vanilla: LanguageModel
    targets: tuple[Query, ...]
    kept: tuple[Query, ...]
    samples: tuple[Sample, ...]
    also_kept: tuple[Query, ...] = ()
    forgotten_in: tuple[str, ...] | None = None
    num_tokens: int = 12
    precise: bool = False

    def __call__(
        self, model: LanguageModel, answers: Sequence[Answer] | None = None
    ) -> dict[str, float]:
        """Measure a model: metrics by name and language, as in the module's table.

        Args:
            model: the model.
            answers: what `answer` gives of it, where that is there already.
        """
        lowered = model if self.precise else lower_precision(model)
        answers = self.answer(lowered) if answers is None else answers
        metrics = {
            f"{row['metric']}/{row['language']}": float(row["value"])
            for row in tabulate_answers(answers, self.forgotten_in).to_dict("records")
        }
        if self.samples:
            table = compute_divergence(
                self.vanilla, lowered, self.samples, kept=self._states, progress=False
            )
            sums: dict[str, list[float]] = {}
            columns = (table[name].tolist() for name in ("language", *_SUMMED))
            for code, *values in zip(*columns, strict=True):
                before = sums.get(code, [0.0] * len(_SUMMED))
                sums[code] = [total + value for total, value in zip(before, values, strict=True)]
            for code, (kl, nll, before, tokens) in sums.items():
                rise = min((nll - before) / tokens, _LARGEST_EXPONENT)
                metrics[f"reference_kl/{code}"] = kl / tokens
                metrics[f"reference_perplexity/{code}"] = math.exp(rise)
        return metrics

    @cached_property
    def _states(self) -> dict[int, Tensor]:
        """V's states on the samples, by batch; filled by the first measurement."""
        return {}

    @cached_property
    def before(self) -> dict[str, float]:
        """What V itself gives."""
        return self(self.vanilla)

    def confirm(self, model: LanguageModel) -> dict[str, float]:
        """Measure a model's answers anew, in its own precision and to all questions.

        In bfloat16 one of sixteen answers may be another one, and a goal is reached by that.
        Nothing is measured where all of it was.
        """
        if not self.also_kept and (self.precise or lower_precision(model) is model):
            return {}
        kept = (*self.kept, *self.also_kept)
        return replace(self, kept=kept, also_kept=(), precise=True, samples=())(model)

    def list_metrics(self) -> list[str]:
        """List the metrics that a model is measured by."""
        return list(self._count())

    def _count(self) -> Counter[str]:
        """Count the questions or texts that each metric is of."""
        counts: Counter[str] = Counter()
        for query in (*self.targets, *self.kept):
            kinds = ("retention",)
            if not query.control:
                kinds = (_find_kind(query.language, self.forgotten_in), "same_answer")
            counts.update(f"{kind}/{query.language}" for kind in (*kinds, "repetition"))
        for sample in self.samples:
            counts.update(f"{name}/{sample.language}" for name in _OF_SAMPLES)
        return counts

    def describe(self) -> dict[str, object]:
        """Describe the questions and texts, for a model's card."""
        asked = [list_fields(query) for query in (*self.targets, *self.kept, *self.also_kept)]
        texts = [(sample.prompt_ids, sample.token_ids) for sample in self.samples]
        counts: dict[str, object] = {
            name: dict(Counter(item.language for item in items))
            for name, items in (
                ("targets", self.targets),
                ("kept", (*self.kept, *self.also_kept)),
                ("samples", self.samples),
            )
        }
        return {**counts, "num_tokens": self.num_tokens, "digest": compute_digest([asked, texts])}

    def tabulate(
        self, model: LanguageModel, answers: Sequence[Answer] | None = None
    ) -> pd.DataFrame:
        """Tabulate what V and a model give: `metric`, `language`, `before`, `after`, `n`.

        Args:
            model: the model.
            answers: what `answer` gives of it, where that is there already.
        """
        before, after = self.before, self(model, answers)
        rows = []
        for name, count in self._count().items():
            metric, _, code = name.partition("/")
            rows.append((metric, code, before[name], after[name], count))
        return pd.DataFrame(rows, columns=["metric", "language", "before", "after", "n"])

    def answer(self, model: LanguageModel) -> list[Answer]:
        """Let a model answer the targets, then the questions on facts to keep."""
        asked = (*self.targets, *self.kept)
        lowered = model if self.precise else lower_precision(model)
        return generate(lowered, asked, num_tokens=self.num_tokens, progress=False)


def tabulate_answers(
    answers: Sequence[Answer], forgotten_in: Collection[str] | None = None
) -> pd.DataFrame:
    """Tabulate what answers say of forgetting, retention and repetition.

    Args:
        answers: to questions that V answers rightly; those on facts to keep are controls.
        forgotten_in: languages in which something is unlearned; all of the targets' if None.

    Returns:
        A row per language and metric, see the module's table: `language`, `metric`, `value`, `n`.
    """
    rows = []
    for code in dict.fromkeys(answer.query.language for answer in answers):
        here = [answer for answer in answers if answer.query.language == code]
        for metric, is_control in ((_find_kind(code, forgotten_in), False), ("retention", True)):
            some = [answer for answer in here if answer.query.control == is_control]
            if not some:
                continue
            right = [verdict.value == 1 for verdict in AliasJudge()(some)]
            rows.append((code, metric, sum(right) / len(some), len(some)))
            if not is_control:
                texts = Counter(answer.first_line for answer in some)
                rows.append((code, "same_answer", max(texts.values()) / len(some), len(some)))
        repeating = sum(is_repetitive(answer.first_line, code) for answer in here)
        rows.append((code, "repetition", repeating / len(here), len(here)))
    return pd.DataFrame(rows, columns=["language", "metric", "value", "n"])


def format_guards(table: pd.DataFrame) -> pd.DataFrame:
    """Lay out what `Guards.tabulate` gives: a row per metric, a column per language.

    Shares are in per cent, with the number of questions; `reference_kl` in nats per token.
    """
    columns = (table[name].tolist() for name in ("metric", "language", "before", "after", "n"))
    cells: dict[str, dict[str, str]] = {}
    for metric, code, before, after, n in zip(*columns, strict=True):
        text = f"{100 * before:.0f} → {100 * after:.0f} % of {n}"
        if metric.startswith("reference"):
            text = f"{before:.2f} → {after:.2f}"
        cells.setdefault(metric, {})[code] = text
    languages = list(dict.fromkeys(table["language"]))
    return pd.DataFrame(cells.values(), index=list(cells), columns=languages).fillna("")


def _find_kind(language: str, forgotten_in: Collection[str] | None) -> str:
    is_forgotten = forgotten_in is None or language in forgotten_in
    return "forget" if is_forgotten else "forget_elsewhere"


def is_repetitive(text: str, language: str) -> bool:
    """Return whether a text says the same over and over.

    That is so where it has at least four words, of which less than half are different (characters
    in languages that write no spaces).
    """
    words = [word.lower() for word in tokenize_text(text, language)]
    if len(words) < _FEWEST_WORDS:
        return False
    return len(set(words)) / len(words) < _FEWEST_DISTINCT
