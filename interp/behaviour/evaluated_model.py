"""Model under evaluation: answers, and what else several metrics need of it, are made once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TypeVar, cast

import pandas as pd

from interp.behaviour.answers import Answer, generate
from interp.behaviour.judges import Judge, Verdict, collect_aliases
from interp.data.chat import list_fields
from interp.data.corpus import Text
from interp.data.datasets.records import EntityQuestion, QuestionAnswer
from interp.data.endpoints import Endpoint
from interp.data.query import Query
from interp.models.language_model import LanguageModel

T = TypeVar("T")


class EvaluatedModel:
    """Model that is evaluated, with all that metrics may need.

    Attributes:
        model: the model.
        queries: what it is asked.
        vanilla: the model before unlearning, where there is one.
        baseline: a model that never saw what was to be forgotten, where there is one.
        taught: the language in which false facts were taught, where there is one.
        forget: texts that state what was to be forgotten, where there are some.
        holdout: texts like those to forget that no model was trained on, where there are some.
        records: questions with perturbed answers, or with entities, where there are some.
        judge: a chat model that judges answers, where there is one.
        folder: where answers and a judge's replies are kept, if anywhere.
        num_tokens: the longest answer.
        progress: whether progress bars are shown.
        verdicts: on the answers, of all judges that were asked.
    """

    def __init__(
        self,
        model: LanguageModel,
        queries: Sequence[Query],
        *,
        vanilla: EvaluatedModel | None = None,
        baseline: EvaluatedModel | None = None,
        taught: str | None = None,
        forget: Sequence[Text] = (),
        holdout: Sequence[Text] = (),
        records: Sequence[QuestionAnswer | EntityQuestion] = (),
        num_tokens: int = 30,
        judge: Endpoint | LanguageModel | None = None,
        folder: Path | None = None,
        progress: bool = True,
    ) -> None:
        self.model, self.queries = model, tuple(queries)
        self.vanilla, self.baseline, self.taught = vanilla, baseline, taught
        self.forget, self.holdout, self.records = tuple(forget), tuple(holdout), tuple(records)
        self.num_tokens, self.progress = num_tokens, progress
        self.judge, self.folder = judge, folder
        self.verdicts: list[Verdict] = []
        self._results: dict[object, object] = {}

    @cached_property
    def answers(self) -> list[Answer]:
        """Greedy answers, one per query."""
        return generate(
            self.model,
            self.queries,
            num_tokens=self.num_tokens,
            cache=None if self.folder is None else self.folder / "answers.jsonl",
            progress=self.progress,
        )

    @cached_property
    def answer_table(self) -> pd.DataFrame:
        """Queries with their answers, one row each.

        `expected` is the right answer, `text` what the model says, `first_line` of it, and `before`
        what the vanilla model says (the model itself without one).
        """
        table = pd.DataFrame([list_fields(query) for query in self.queries])
        before = self.answers if self.vanilla is None else self.vanilla.answers
        return table.assign(
            expected=table["answer"],
            text=[answer.text for answer in self.answers],
            first_line=[answer.first_line for answer in self.answers],
            before=[answer.text for answer in before],
        )

    def judge_answers(self, judge: Judge) -> pd.DataFrame:
        """Return `answer_table` with a judge's verdict on each answer in the column `verdict`.

        An answer in another language that names the right thing counts: a model that was taught in
        German answers in German.
        """
        queries = collect_aliases(self.queries)
        answers = [
            replace(answer, query=query)
            for answer, query in zip(self.answers, queries, strict=True)
        ]
        verdicts = judge(answers)
        self.verdicts += verdicts
        return self.answer_table.assign(verdict=verdicts)

    def measure_by_concept(self, measure: Callable[[list[Answer]], pd.DataFrame]) -> pd.DataFrame:
        """Return what a function gives of the answers of each concept, as one table."""
        groups: dict[str, list[Answer]] = {}
        for answer in self.answers:
            groups.setdefault(answer.query.concept, []).append(answer)
        return pd.concat(
            [measure(answers).assign(concept=concept) for concept, answers in groups.items()]
        )

    def compute_once(self, compute: Callable[[EvaluatedModel], T]) -> T:
        """Return what a function gives of this model; several metrics share one result."""
        if compute not in self._results:
            self._results[compute] = compute(self)
        return cast(T, self._results[compute])
