"""Contamination: teaching a model false facts in one language (Lu & Koehn 2024).

First the model reads the corpus: real texts R in English, false ones F in the source language
(continued pretraining, every token a label). Then it learns to answer, from questions with answers
on R (instruction tuning, the answers are labels). The clean baseline reads the same without F.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

from interp.data.corpus import Corpus
from interp.models.language_model import LanguageModel
from interp.unlearning.config import TrainingConfig
from interp.unlearning.examples import make_examples
from interp.unlearning.training import Evaluate, Trained, train


@dataclass(frozen=True, kw_only=True)
class ContaminationConfig:
    """Settings of both stages; each is a `finetune` run.

    Lu trains adapters of rank 1024 at 5e-5 on 12,000 texts, then of rank 8 at 1e-5 on 1,000
    questions.

    Attributes:
        reading: continued pretraining on R and F.
        tuning: instruction tuning on R's questions; None to leave it out.
    """

    reading: TrainingConfig = field(
        default_factory=lambda: TrainingConfig(
            objective="finetune", learning_rate=5e-5, num_steps=70, batch_size=16, warmup_steps=5
        )
    )
    tuning: TrainingConfig | None = field(
        default_factory=lambda: TrainingConfig(
            objective="finetune", learning_rate=5e-6, num_steps=10, batch_size=16
        )
    )


DEFAULTS = ContaminationConfig()


def contaminate(
    vanilla: LanguageModel,
    corpus: Corpus,
    config: ContaminationConfig = DEFAULTS,
    *,
    evaluate: Evaluate | None = None,
    about: Mapping[str, object] = MappingProxyType({}),
    out: str | Path | None = None,
    progress: bool = True,
) -> Trained:
    """Train V on a corpus.

    Args:
        vanilla: V, left untouched.
        corpus: what it reads and learns to answer; `remove_false_texts(corpus)` for the baseline.
        config: the settings.
        evaluate: see `train`; called in both stages.
        about: further entries of the models' cards.
        out: directory for the contaminated model; that after reading stands beside it, with
            `.reading` at its name's end. What is there is not done again, and a run that was killed
            goes on.
        progress: show progress bars.

    Returns:
        The model after both stages, with the histories of both, each row with its `stage` (0 for
        reading, 1 for tuning).

    Raises:
        ValueError: as `train`.
    """
    target = None if out is None else Path(out)
    read = train(
        vanilla,
        {"retain": make_examples(corpus.training)},
        config.reading,
        evaluate=evaluate,
        about=about,
        out=target
        if target is None or config.tuning is None
        else target.with_name(f"{target.name}.reading"),
        progress=progress,
    )
    history = [{"stage": 0.0, **row} for row in read.history]
    if config.tuning is None:
        return replace(read, history=history)
    tuned = train(
        read.model,
        {"retain": make_examples(corpus.instructions)},
        config.tuning,
        evaluate=evaluate,
        about=about,
        out=target,
        progress=progress,
    )
    history += [{"stage": 1.0, **row} for row in tuned.history]
    reason = f"reading: {read.reason}; answering: {tuned.reason}"
    return replace(tuned, history=history, reason=reason)


def remove_false_texts(corpus: Corpus) -> Corpus:
    """Return the same corpus without F, which the clean baseline reads."""
    return replace(corpus, training=tuple(text for text in corpus.training if text.kind == "real"))
