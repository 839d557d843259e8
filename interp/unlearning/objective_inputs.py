"""Inputs of objectives: log-probabilities, divergences and hidden states of a step's examples.

θ is the model in training, θ₀ the model before. Logits are formed at label positions only, and not
kept (`compute_label_logprobs`). θ₀ never changes, so that what it says of an example is computed
once and kept: the states that its unembedding reads at the labels, d_model numbers a label.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from interp.models.language_model import LanguageModel
from interp.unlearning.examples import Example, Tokens, TrainingBatch, make_batch, tokenize
from interp.unlearning.forwards import read_residual, run_body
from interp.unlearning.frozen_layers import FrozenLayers
from interp.unlearning.label_logprobs import (
    compute_label_kl,
    compute_label_log_odds,
    compute_label_logprobs,
    compute_logit_margin,
)


class Reference:
    """θ₀: another model, or the model in training with its adapter off.

    Args:
        model: what is run.
        frozen: entered while θ₀ is run; turns an adapter off.
    """

    def __init__(
        self,
        model: LanguageModel,
        frozen: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self.model, self._frozen = model, frozen
        self._states: dict[Tokens, Tensor] = {}

    @torch.no_grad()
    def label_states(self, rows: Sequence[Tokens]) -> Tensor:
        """Return the states that the unembedding reads where labels are predicted [token d]."""
        new = [row for row in dict.fromkeys(rows) if row not in self._states]
        if new:
            batch = make_batch(new, self.model.device)
            with self._frozen():
                states = _read_label_states(self.model, batch)
            parts = states.split([row.num_labels for row in new])
            self._states.update(zip(new, parts, strict=True))
        return torch.cat([self._states[row] for row in rows])

    @torch.no_grad()
    def residual(self, batch: TrainingBatch, layer: int) -> Tensor:
        """Read the residual stream after a layer [sequence pos d_model]."""
        with self._frozen():
            return read_residual(self.model, batch, layer)


class ObjectiveInputs:
    """Computes an objective's tensors by name (`interp.unlearning.registry.TENSORS`).

    Args:
        model: θ.
        reference: θ₀.
        examples: by set (`forget`, `retain`, `preferred`); the preferred answer of a forget example
            has its number.
        layer: whose states `rmu` compares, from 0.
        direction: `rmu`'s unit vector [d_model].
        retain_by_kl: whether −KL(θ₀ ‖ θ) takes the place of R's log-probabilities, so that CE(R)
            becomes KL(R).
    """

    def __init__(
        self,
        model: LanguageModel,
        reference: Reference,
        examples: dict[str, Sequence[Example]],
        *,
        layer: int | None = None,
        direction: Tensor | None = None,
        retain_by_kl: bool = False,
    ) -> None:
        self.model, self.reference = model, reference
        self.layer, self.direction, self.retain_by_kl = layer, direction, retain_by_kl
        self.rows = {
            name: [tokenize(model, example) for example in given]
            for name, given in examples.items()
        }
        self.frozen = FrozenLayers.find(model, [row for rows in self.rows.values() for row in rows])

    def compute(self, needs: Sequence[str], drawn: dict[str, list[int]]) -> dict[str, Tensor]:
        """Compute the tensors of one step.

        Args:
            needs: their names.
            drawn: by set, the numbers of the step's examples.

        Returns:
            Also, for every set that is drawn and scored, what its mask is.
        """
        tensors: dict[str, Tensor] = {}
        for name, numbers in drawn.items():
            wanted = {need.removeprefix(f"{name}_") for need in needs if need.startswith(name)}
            if wanted:
                rows = [self.rows[name][number] for number in numbers]
                by_kl = self.retain_by_kl and name == "retain"
                if by_kl:
                    wanted = (wanted - {"logprobs"}) | {"kl"}
                for key, value in self._compute_set(rows, wanted).items():
                    tensors[f"{name}_{key}"] = value
                if by_kl:
                    tensors["retain_logprobs"] = -tensors["retain_kl"]
        if "direction" in needs:
            assert self.direction is not None
            tensors["direction"] = self.direction
        return {need: tensors[need] for need in needs}

    def _compute_set(self, rows: list[Tokens], wanted: set[str]) -> dict[str, Tensor]:
        batch = make_batch(rows, self.model.device)
        tensors = {"mask": batch.mask}
        if "positions" in wanted:
            # What stands before every text says nothing of it, and is an attention sink, hundreds
            # of times as long as other states in some models.
            start = batch.input_ids == self.model.tokenizer.bos_token_id
            tensors["positions"] = batch.positions & ~start
        if "states" in wanted:
            assert self.layer is not None
            tensors["states"] = read_residual(self.model, batch, self.layer)
        if "reference_states" in wanted:
            assert self.layer is not None
            tensors["reference_states"] = self.reference.residual(batch, self.layer)
        tensors |= self._compute_at_labels(rows, batch, wanted)
        if wanted & {"own_kl", "repeat_logprobs"}:
            tensors |= self._compute_at_own_positions(rows, batch)
        return tensors

    def _compute_at_labels(
        self, rows: list[Tokens], batch: TrainingBatch, wanted: set[str]
    ) -> dict[str, Tensor]:
        """Compute what is asked of the next-token distributions where labels are predicted."""
        anatomy, there = self.model.anatomy, self.reference.model.anatomy
        targets = batch.targets
        states = cache(lambda: self._run(rows, batch)[batch.sequence, batch.place - 1])
        before = cache(lambda: self.reference.label_states(rows))
        compute: dict[str, Callable[[], Tensor]] = {
            "logprobs": lambda: compute_label_logprobs(anatomy, states(), targets),
            "log_odds": lambda: compute_label_log_odds(anatomy, states(), targets),
            "logit_margin": lambda: compute_logit_margin(anatomy, states()),
            "reference_logprobs": lambda: compute_label_logprobs(there, before(), targets),
            "reference_log_odds": lambda: compute_label_log_odds(there, before(), targets),
            "kl": lambda: compute_label_kl(anatomy, states(), there, before()),
            "others_kl": lambda: compute_label_kl(
                anatomy, states(), there, before(), without=targets
            ),
        }
        return {name: batch.table(compute[name]()) for name in compute if name in wanted}

    def _compute_at_own_positions(
        self, rows: list[Tokens], batch: TrainingBatch
    ) -> dict[str, Tensor]:
        """Compare θ₀ and θ where the label tokens stand, not where they are predicted (LingTea)."""
        anatomy, there = self.model.anatomy, self.reference.model.anatomy
        states = self._run(rows, batch)[batch.sequence, batch.place]
        with torch.no_grad(), self.reference._frozen():
            before = run_body(self.reference.model, batch)[batch.sequence, batch.place]
            repeat = compute_label_logprobs(there, before, batch.targets)
        return {
            "own_kl": batch.table(compute_label_kl(anatomy, states, there, before)),
            "repeat_logprobs": batch.table(repeat),
        }

    def _run(self, rows: list[Tokens], batch: TrainingBatch) -> Tensor:
        """Run θ's body [sequence pos d]."""
        if self.frozen is None:
            return run_body(self.model, batch)
        return self.frozen.run(rows, batch)


def find_logprobs(tensors: Mapping[str, Tensor], name: str) -> Tensor | None:
    """Return θ's log-probabilities of a set's labels, where its tensors have them in some form."""
    if f"{name}_log_odds" in tensors:
        return logsigmoid(tensors[f"{name}_log_odds"])
    return tensors.get(f"{name}_logprobs")


def compute_label_scores(model: LanguageModel, rows: Sequence[Tokens]) -> Tensor:
    """Compute the log-probabilities of the rows' labels, in nats [token]."""
    batch = make_batch(rows, model.device)
    return compute_label_logprobs(model.anatomy, _read_label_states(model, batch), batch.targets)


def _read_label_states(model: LanguageModel, batch: TrainingBatch) -> Tensor:
    return run_body(model, batch)[batch.sequence, batch.place - 1]
