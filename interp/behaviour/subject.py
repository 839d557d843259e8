"""A model under evaluation: what several metrics need of it is made once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path

import pandas as pd

from interp.behaviour import relearning
from interp.behaviour.alias import in_all_languages
from interp.behaviour.answers import Answer, generate
from interp.behaviour.judges import Judge, Verdict
from interp.behaviour.memorization import memorization
from interp.data.corpus import Text
from interp.data.endpoints import Endpoint
from interp.data.query import Query
from interp.data.texts import texts_of
from interp.models.language_model import LanguageModel


class Subject:
    """A model that is evaluated.

    Attributes:
        model: the model.
        queries: what it is asked.
        vanilla: the model before unlearning, where there is one.
        baseline: a model that never saw what was to be forgotten, where there is one.
        taught: the language in which false facts were taught, where there is one.
        forget: texts that state what was to be forgotten, where there are some.
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
        vanilla: Subject | None = None,
        baseline: Subject | None = None,
        taught: str | None = None,
        forget: Sequence[Text] = (),
        num_tokens: int = 30,
        judge: Endpoint | LanguageModel | None = None,
        folder: Path | None = None,
        progress: bool = True,
    ) -> None:
        self.model, self.queries = model, tuple(queries)
        self.vanilla, self.baseline, self.taught = vanilla, baseline, taught
        self.forget = tuple(forget)
        self.num_tokens, self.progress = num_tokens, progress
        self.judge, self.folder = judge, folder
        self.verdicts: list[Verdict] = []

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

    def judged(self, judge: Judge) -> pd.DataFrame:
        """The queries with a judge's verdict on each answer in the column `verdict`.

        An answer in another language that names the right thing counts: a model that was taught in
        German answers in German.
        """
        known = in_all_languages(self.queries)
        answers = [
            replace(answer, query=query) for answer, query in zip(self.answers, known, strict=True)
        ]
        found = judge(answers)
        self.verdicts += found
        return self.asked.assign(verdict=found)

    @cached_property
    def memorization(self) -> pd.DataFrame:
        """How well the model knows each query's answer by heart. See `memorization`."""
        return memorization(self.model, texts_of(self.queries), progress=self.progress)

    @cached_property
    def relearned(self) -> pd.DataFrame:
        """What the model knows while it reads half of what was to be forgotten.

        See `interp.behaviour.relearning.robustness`.
        """
        return relearning.robustness(
            {self.model.name: self.model},
            relearning.part_of(self.forget),
            self.queries,
            progress=self.progress,
        )

    @cached_property
    def asked(self) -> pd.DataFrame:
        """The queries, with `answer` as it was given and `before` as the vanilla model gave it."""
        table = pd.DataFrame([asdict(query) for query in self.queries])
        before = self.answers if self.vanilla is None else self.vanilla.answers
        return table.assign(
            expected=table["answer"],
            said=[answer.text for answer in self.answers],
            first_line=[answer.first_line for answer in self.answers],
            before=[answer.text for answer in before],
        )
