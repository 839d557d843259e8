"""Settings of training runs and of MEMIT, with their defaults."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

OWN_METRICS = ("forget_ce", "retain_ce")
"""Metrics that every step has of the sets it drew."""

MemitObjective = Literal["empty", "entropy"]

RetainLoss = Literal["ce", "kl"]

Schedule = Literal["constant", "linear"]

MOMENT_LANGUAGES = ("en", "de", "fr", "es", "it", "pt", "ru", "zh", "ja", "ar", "hi", "id")
"""The languages with over 2 % of the text on the web, and three more scripts or families."""


@dataclass(frozen=True, kw_only=True)
class Bound:
    """Bound that a metric reaches or keeps: at least `above`, or at most `below`.

    Attributes:
        metric: one of the step's own (`forget_ce`, `retain_ce`: nats per token, before the step) or
            of what `evaluate` gives. `retention` is each of `retention/en`, `retention/de` and so
            on, where there is no metric of that very name.
        above: the metric is at least this.
        below: the metric is at most this.
        relative: the bounds are multiples of the metric's value before training.
    """

    metric: str
    above: float = math.inf
    below: float = -math.inf
    relative: bool = False

    def __str__(self) -> str:
        """Write it as the command line reads it: `retention>=0.9`."""
        sign, bound = (">=", self.above) if math.isfinite(self.above) else ("<=", self.below)
        return f"{self.metric}{sign}" + (f"{100 * bound:g}%" if self.relative else f"{bound:g}")

    def find(self, metrics: Iterable[str]) -> list[str]:
        """Find the metrics, among some, that it bounds."""
        given = list(metrics)
        if self.metric in given:
            return [self.metric]
        return [name for name in given if name.startswith(f"{self.metric}/")]

    def measure_gap(self, metric: str, value: float, before: Mapping[str, float]) -> float:
        """Measure by how much a metric misses the bound: 0 where it holds, ∞ if undefined."""
        scale = before[metric] if self.relative else 1.0
        gaps = [
            gap
            for bound, gap in (
                (self.above, self.above * scale - value),
                (self.below, value - self.below * scale),
            )
            if math.isfinite(bound)
        ]
        gap = max(gaps, default=0.0)
        return math.inf if math.isnan(gap) else max(0.0, gap)


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Settings of a training run.

    Attributes:
        objective: a name out of `interp.unlearning.registry.OBJECTIVES`.
        settings: the objective's own settings; those of its sources where not given.
        parameters: `layers` (all weights but embedding and unembedding), `mlp`, `attn`, or `lora`.
        layers: only these layers, from 0; those of `top_share` if None.
        top_share: share of the layers, from the last one down, that is trained; at least one. What
            is unlearned in the upper layers of one language spares others most.
        retain_loss: what methods with CE(R) retain by: `ce`, or `kl`, by which KL(θ₀ ‖ θ) at R's
            labels takes its place (OpenUnlearning's retain_loss_type). It has the same gradient in
            the mean where R is what θ₀ itself says, and far less noise.
        lora_rank: rank of the adapters.
        lora_alpha: their scale times the rank; twice the rank if None.
        learning_rate: AdamW's.
        weight_decay: AdamW's.
        adam_epsilon: AdamW's ε. Gradients are clipped to a norm, so that one weight's is about
            max_grad_norm / √(number of weights): far below that, every weight moves by the learning
            rate at every step, whether it matters or not; a few times that, those that matter move
            most.
        warmup_steps: steps until the learning rate is reached, linearly.
        schedule: what becomes of the learning rate after that: `constant`, or `linear`, down to
            zero behind the last step.
        num_steps: steps at most.
        batch_size: examples of each set per step; by set where they differ.
        accumulation: parts that a step's examples are computed in, one after the other.
        max_grad_norm: gradients are clipped to this norm.
        autocast: compute in bfloat16 (weights stay in their own precision) where the processor has
            instructions for it; several times faster where it has bf16 matrix units.
        gradient_checkpointing: keep no states inside a layer; slower, with less memory.
        evaluate_every: steps between evaluations; 0 for none.
        checkpoint_every: steps between models that are kept, beside the directory of the last one;
            0 for none.
        steps_per_language: of sequences in several languages: 0 draws the language anew for every
            sequence (Choi et al. 2024), a number takes all of them in one language for that many
            steps, then in the next.
        stops: ends the run at once where a loss (forget_ce>=8, retain_ce>=5, in nats per token) or
            what is evaluated (fake/de<=0.1) reaches one of these bounds; real/en<=80% is relative
            to the value before.
        until: ends the run where all of these hold, and all guards (forget<=0.1).
        guards: what must hold in the model that is made (retention>=0.9, reference_kl<=0.1). Of the
            evaluations at which they do, the one nearest to `until` is gone back to; where they
            never do, the model is V.
        layer: whose states `rmu` moves, from 0; 7 in its source.
        seed: of the order of the examples and of `rmu`'s direction.
    """

    objective: str = "gd"
    settings: Mapping[str, float] = field(default_factory=dict)
    parameters: str = "layers"
    layers: tuple[int, ...] | None = None
    top_share: float = 1.0
    retain_loss: RetainLoss = "ce"
    lora_rank: int = 128
    lora_alpha: int | None = None
    learning_rate: float = 5e-6
    weight_decay: float = 0.0
    adam_epsilon: float = 1e-8
    warmup_steps: int = 0
    schedule: Schedule = "constant"
    num_steps: int = 60
    batch_size: int | Mapping[str, int] = 24
    accumulation: int = 1
    max_grad_norm: float = 1.0
    autocast: bool = True
    gradient_checkpointing: bool = False
    evaluate_every: int = 0
    checkpoint_every: int = 0
    steps_per_language: int = 0
    stops: tuple[Bound, ...] = ()
    until: tuple[Bound, ...] = ()
    guards: tuple[Bound, ...] = ()
    layer: int = 7
    seed: int = 0

    def compute_learning_rate(self, step: int) -> float:
        """Compute the learning rate of a step, from 0."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / (self.warmup_steps + 1)
        if self.schedule == "constant":
            return self.learning_rate
        return self.learning_rate * (self.num_steps - step) / (self.num_steps - self.warmup_steps)

    def choose_layers(self, num_layers: int) -> tuple[int, ...] | None:
        """Choose the layers to train of a model with so many; None for all."""
        if self.layers is not None or self.top_share == 1:
            return self.layers
        count = max(1, round(self.top_share * num_layers))
        return tuple(range(num_layers - count, num_layers))


@dataclass(frozen=True, kw_only=True)
class MemitConfig:
    """Settings of MEMIT for removal; the defaults are the sources' where these have any.

    Attributes:
        layers: the edit layers, from 0, ascending; those of `default_edit_layers` if None.
        objective: `empty`: NLL of `target`; `entropy`: −mean over `entropy_layers` of the entropy
            of softmax(unembed(norm(h))) at the prompt's last token. In nats.
        entropy_layers: layers whose output is read out; from the top edit layer up if None.
        target: what `empty` makes the model say, with the space before it.
        essence: the prompt whose next-token distribution KL(before ‖ after) is to keep.
        learning_rate: Adam's, in units of the residual stream.
        num_steps: of Adam.
        kl_weight: weight of the KL term.
        weight_decay: weight of ‖δ‖² / ‖z₀‖².
        clamp: c in ‖δ‖ ≤ c·‖z₀‖.
        strength: σ in z = z₀ + σ·δ: the optimised δ is multiplied by it. Below 1 less is forgotten;
            above 1 it leads past what was optimised, and `entropy` forgets less again.
        regularisation: λ, in tokens. The sources' is for models of 7B with d_mlp = 11008; λ counts
            against kᵀC⁻¹k, which is d_mlp for an average key, so a smaller model wants a smaller λ.
        retain_regularisation: λ_r, in tokens: how much the texts to retain count.
        moment_tokens: tokens that V writes itself (`interp.data.samples`), on which C is measured.
        moment_languages: BCP-47 codes of the languages that it writes in.
        until: what is to be reached (forget<=0.1); said of the model that is made.
        guards: what must hold in it (retention>=0.9): where it does not, the strength is lowered to
            0.8, 0.6, 0.4 and 0.2 of it, until it does; else the model is V.
    """

    layers: tuple[int, ...] | None = None
    objective: MemitObjective = "entropy"
    entropy_layers: tuple[int, ...] | None = None
    target: str = " dummy"
    essence: str = "{subject} is a"
    learning_rate: float = 0.5
    num_steps: int = 25
    kl_weight: float = 0.0625
    weight_decay: float = 1e-3
    clamp: float = 4.0
    strength: float = 1.0
    regularisation: float = 15000.0
    retain_regularisation: float = 100_000.0
    moment_tokens: int = 100_000
    moment_languages: tuple[str, ...] = MOMENT_LANGUAGES
    until: tuple[Bound, ...] = ()
    guards: tuple[Bound, ...] = ()

    def __post_init__(self) -> None:
        if self.objective not in get_args(MemitObjective):
            valid = ", ".join(get_args(MemitObjective))
            raise ValueError(f"unknown objective {self.objective!r}; valid: {valid}")
        for name in ("layers", "entropy_layers"):
            chosen = getattr(self, name)
            if chosen is not None and (not chosen or list(chosen) != sorted(set(chosen))):
                raise ValueError(f"{name} must be ascending, distinct and not empty, not {chosen}")
        for name in ("num_steps", "moment_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not self.moment_languages:
            raise ValueError("moment_languages names no language")
        for name in ("learning_rate", "clamp", "strength", "regularisation"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive and finite, not {getattr(self, name)}")
        for name in ("kl_weight", "weight_decay", "retain_regularisation"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be finite and not negative: {getattr(self, name)}")
        if self.essence.count("{subject}") != 1:
            raise ValueError(f"essence must contain {{subject}} once, not {self.essence!r}")
        if not self.target.strip():
            raise ValueError("target is blank: give a word for the objective 'empty'")
