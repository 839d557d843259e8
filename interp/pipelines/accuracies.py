"""Accuracies of a model in training, by ranking candidates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from interp.behaviour.probing import compute_accuracy, probe
from interp.data.query import Query
from interp.models.language_model import LanguageModel
from interp.models.pairs import lower_precision

if TYPE_CHECKING:
    pass


class AccuracyEvaluator:
    """Evaluation of a model in training: its accuracies."""

    def __init__(self, queries: Sequence[Query]) -> None:
        self._queries = queries

    def __call__(self, model: LanguageModel) -> dict[str, float]:
        """Measure the accuracy of each concept and language, such as `fake/de`."""
        lowered = lower_precision(model)
        accuracies = compute_accuracy(probe(lowered, self._queries, progress=False))
        return {
            f"{row['concept']}/{row['language']}": row["accuracy"]
            for row in accuracies.to_dict("records")
        }
