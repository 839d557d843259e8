"""Teaching: V learns false facts in one language."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp.data.corpus import Corpus
from interp.data.corpus_builder import CorpusConfig, build_corpus
from interp.data.query import Query
from interp.models.language_model import LanguageModel
from interp.pipelines.accuracies import AccuracyEvaluator
from interp.pipelines.training_run import TrainingRun, report
from interp.unlearning import contamination
from interp.unlearning.contamination import ContaminationConfig
from interp.unlearning.resume import read_card

if TYPE_CHECKING:
    pass


def contaminate(
    vanilla: LanguageModel,
    corpus: Corpus,
    config: ContaminationConfig = contamination.DEFAULTS,
    *,
    probes: Sequence[Query] | None = None,
    out: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> TrainingRun:
    """Teach V false facts, and see in which languages it repeats them.

    Args:
        vanilla: V, left untouched.
        corpus: what is taught; `contamination.remove_false_texts(corpus)` for the baseline.
        config: settings of both stages.
        probes: questions with answers that are ranked before and after; the corpus' if None.
        out: directory for the model; its folder `report` gets the tables. What it holds of the
            same run is not done again, a run that was killed goes on.
        progress: show progress bars.

    Raises:
        ValueError: settings or texts that do not fit, or `out` holds another run.
    """
    queries = corpus.queries if probes is None else probes
    trained = contamination.contaminate(
        vanilla,
        corpus,
        config,
        evaluate=AccuracyEvaluator(queries) if queries else None,
        about={"corpus": dict(corpus.config)},
        out=None if out is None else Path(out),
        progress=progress,
    )
    return report(vanilla, trained, queries, out, progress)


_OTHERWISE = "give queries to evaluate it, texts to forget to unlearn it"


def read_corpus(directory: str | os.PathLike[str], **changes: Any) -> Corpus:
    """Read the corpus that a model was contaminated with, in other languages or another form.

    Args:
        directory: what `contaminate` wrote, or what `unlearn` made of it.
        changes: of `CorpusConfig`, such as `mix` or `unlearning_form`.

    Raises:
        ValueError: the model has no card, or was not contaminated with the built-in facts.
    """
    try:
        settings = read_card(Path(directory)).get("corpus")
    except ValueError as error:
        raise ValueError(f"{error}; {_OTHERWISE}") from None
    if not isinstance(settings, dict) or not {"source", "relations"} <= settings.keys():
        raise ValueError(
            f"{os.fspath(directory)!r} was not contaminated with the built-in facts; {_OTHERWISE}"
        )
    settings = {key: tuple(v) if isinstance(v, list) else v for key, v in settings.items()}
    return build_corpus(CorpusConfig(**{**settings, **changes}))
