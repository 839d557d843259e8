"""Distances of a run's logits from V's, at every scored position.

Three distances, by name:

- `logit_mse`: the mean over the vocabulary of (z_V − z)², Hong et al. 2024's loss. Where logits are
  an affine function of the final state, no logits are formed. With δ = h_V − h, D = W_V − W:

      ‖W_V h_V − W h‖² = δᵀ(WᵀW)δ + 2 δᵀ(WᵀD)h_V + h_Vᵀ(DᵀD)h_V

  Biases are one more column of W, with a 1 below h_V and h. Nothing cancels where h ≈ h_V.
- `kl`: KL(softmax z_V ‖ softmax z), in nats.
- `answer_logprob`: log p_V(y) − log p(y), y the answer's next token, in nats. It is negative where
  the run is surer of V's answer than V itself.

Legend: row = restorations, scored = scored positions, d = what the unembedding reads.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from itertools import pairwise
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from interp.models.anatomy import Anatomy
from interp.models.precision import set_matmul_precision

Distance = Literal["logit_mse", "kl", "answer_logprob"]
Readout = Literal["vanilla", "unlearned"]

CHUNK = 1 << 14
"""Rows of an unembedding that are read at a time."""


def compute_distance(
    distance: Distance,
    target: Float[Tensor, "*rows vocab"],
    logits: Float[Tensor, "*rows vocab"],
    next_ids: Int[Tensor, "*rows"],
) -> Float[Tensor, "*rows"]:
    """Compute the distance of logits from V's, by its plain definition.

    Args:
        distance: its name.
        target: V's raw logits.
        logits: the run's raw logits.
        next_ids: the answer tokens that the positions predict (used by `answer_logprob` alone).

    Raises:
        ValueError: unknown distance, or `answer_logprob` where a position predicts no token.
    """
    check_distance(distance)
    if distance == "answer_logprob":  # A look at the values, for which the CPU waits for a GPU.
        check_answered(distance, bool((next_ids >= 0).all()))
    return _compute_distance(distance, target, logits, next_ids)


def compare_logits(
    distance: Distance,
    target: Float[Tensor, "scored vocab"],
    logits: Float[Tensor, "scored vocab"],
    next_ids: Int[Tensor, " scored"],
) -> Float[Tensor, "2 scored"]:
    """Compare a run's logits with V's and with V's answer.

    Returns:
        The distances (`compute_distance`), and 1 where the likeliest token is the answer's next.
    """
    distances = compute_distance(distance, target, logits, next_ids)
    is_likeliest = logits.argmax(-1) == next_ids
    return torch.stack([distances, is_likeliest.to(distances.dtype)])


def _compute_distance(
    distance: Distance, target: Tensor, logits: Tensor, next_ids: Tensor
) -> Tensor:
    """Compute a distance without the checks of `compute_distance`."""
    if distance == "logit_mse":
        return (target - logits).square().mean(-1)
    target_log, log = target.float().log_softmax(-1), logits.float().log_softmax(-1)
    if distance == "kl":
        return (target_log.exp() * (target_log - log)).sum(-1)
    index = next_ids[..., None]
    return (target_log.gather(-1, index) - log.gather(-1, index))[..., 0]


def check_answered(distance: Distance, all_answered: bool) -> None:
    """Raise ValueError where `answer_logprob` is asked of positions that predict no token."""
    if distance == "answer_logprob" and not all_answered:
        raise ValueError(
            "the distance answer_logprob needs the variant 'paper': "
            "hong2024 scores a position that predicts no answer token"
        )


def check_distance(distance: str) -> None:
    """Raise ValueError unless `distance` is a known name."""
    if distance not in get_args(Distance):
        raise ValueError(f"unknown distance {distance!r}; valid: {', '.join(get_args(Distance))}")


class DistanceScorer:
    """Distances of final states from V's, for one pair of models.

    The Gram matrices are made at the first use and kept for the pair; that of V's own unembedding,
    which most unlearned models share, is kept with V. Everything is scored where
    the unembedding that reads it lives, without waiting for it.
    """

    def __init__(
        self,
        vanilla: Anatomy,
        unlearned: Anatomy,
        *,
        runs: Anatomy | None = None,
        distance: Distance = "logit_mse",
        own_precision: bool = False,
        logits_budget: int = 1 << 28,
    ) -> None:
        """Choose the distance.

        Args:
            vanilla: V's anatomy.
            unlearned: U's anatomy.
            runs: that of the model that runs, whose logits are capped as it caps them, whichever
                unembedding reads them; U's if None.
            distance: its name.
            own_precision: form logits and squared errors in the models' own precision, as
                `hong2024` does; no difference in float32.
            logits_budget: bytes of logits formed at a time, where they must be formed.
        """
        check_distance(distance)
        self._anatomy: dict[Readout, Anatomy] = {"vanilla": vanilla, "unlearned": unlearned}
        self._runs = unlearned if runs is None else runs
        self.distance: Distance = distance
        self._logits_budget = logits_budget
        half = vanilla.unembed.weight.dtype != torch.float32
        is_affine = vanilla.logit_cap is None and self._runs.logit_cap is None
        is_affine &= vanilla.logit_scale == self._runs.logit_scale
        self._exact = distance == "logit_mse" and is_affine and not (own_precision and half)
        self._own_precision = own_precision
        self._grams: dict[Readout, tuple[Tensor, Tensor | None, Tensor | None]] = {}

    def prepare(self, readout: Readout) -> None:
        """Make the Gram matrices for runs read by this model's unembedding, if they are needed."""
        if not self._exact or readout in self._grams:
            return
        vanilla, reader = self._anatomy["vanilla"].unembed, self._anatomy[readout].unembed
        # They are kept, also for those who differentiate: no inference tensors, no graph.
        with torch.inference_mode(False), torch.no_grad():
            if have_same_unembedding(vanilla, reader):
                self._grams[readout] = get_own_gram(vanilla), None, None
            else:
                self._grams[readout] = compute_gram_matrices(vanilla, reader)

    def compute_losses(
        self,
        target: Float[Tensor, "scored d"],
        states: Float[Tensor, "row scored d"],
        next_ids: Int[Tensor, " scored"],
        *,
        readout: Readout,
    ) -> Float[Tensor, "row scored"]:
        """Compute the distance at every scored position, float64.

        Args:
            target: V's final states.
            states: the runs' final states.
            next_ids: the answer tokens that the positions predict; see `check_answered`.
            readout: whose unembedding reads `states`.
        """
        if self._exact:
            return self._compute_by_gram(target, states, readout)
        return self._compute_by_logits(target, states, next_ids, readout)

    def get_unembedding(self, readout: Readout) -> nn.Linear:
        """Return the unembedding of one of the two models."""
        return self._anatomy[readout].unembed

    def finish_logits(self, logits: Tensor) -> Tensor:
        """Scale and cap an unembedding's outputs as the model does that runs."""
        return self._runs.finish_logits(logits)

    def read_in_parts(
        self, states: Float[Tensor, "state d"], readout: Readout
    ) -> Iterator[Float[Tensor, "part vocab"]]:
        """Yield the logits of final states, as many at a time as the budget has room for."""
        unembed = self._anatomy[readout].unembed
        size = max(1, self._logits_budget // (unembed.weight.shape[0] * 4))
        for part in states.to(unembed.weight.device).split(size):
            yield self.finish_logits(unembed(part))

    def _compute_by_gram(self, target: Tensor, states: Tensor, readout: Readout) -> Tensor:
        self.prepare(readout)
        gram, cross, constant = self._grams[readout]
        h = target.to(gram)
        delta = h - states.to(gram)
        if gram.shape[0] == h.shape[-1] + 1:
            h = torch.cat([h, h.new_ones(*h.shape[:-1], 1)], dim=-1)
            delta = torch.cat([delta, delta.new_zeros(*delta.shape[:-1], 1)], dim=-1)
        total = ((delta @ gram) * delta).sum(-1)
        if cross is not None and constant is not None:
            total = total + 2 * (delta * (h @ cross.T)).sum(-1)
            total = total + ((h @ constant) * h).sum(-1)
        vanilla = self._anatomy["vanilla"]
        return total * (vanilla.logit_scale**2 / vanilla.unembed.weight.shape[0])

    def _compute_by_logits(
        self, target: Tensor, states: Tensor, next_ids: Tensor, readout: Readout
    ) -> Tensor:
        vanilla, reader = self._anatomy["vanilla"], self._anatomy[readout]
        vocab_size = vanilla.unembed.weight.shape[0]
        step = max(1, self._logits_budget // (vocab_size * 4 * 3))
        device = reader.unembed.weight.device
        target, states = target.to(vanilla.unembed.weight.device), states.to(device)
        next_ids = next_ids.to(device)
        losses = torch.empty(states.shape[:2], dtype=torch.float64, device=device)
        for start in range(0, states.shape[1], step):
            here = slice(start, start + step)
            target_logits = vanilla.logits(target[here]).to(device)
            for row in range(states.shape[0]):
                logits = self.finish_logits(reader.unembed(states[row, here]))
                if not self._own_precision:
                    target_logits, logits = target_logits.float(), logits.float()
                losses[row, here] = _compute_distance(
                    self.distance, target_logits, logits, next_ids[here]
                ).double()
        return losses


def compute_gram_matrices(
    vanilla: nn.Linear, reader: nn.Linear, *, chunk: int = CHUNK
) -> tuple[Float[Tensor, "d d"], Float[Tensor, "d d"] | None, Float[Tensor, "d d"] | None]:
    """Compute WᵀW, WᵀD and DᵀD of a run's unembedding W, with D = W_V − W.

    Products in float32, sums over chunks of the vocabulary in float64. The latter two are None
    where W is W_V. With biases each matrix has one row and column more. They are where W is.
    """
    same = have_same_unembedding(vanilla, reader)
    precise = torch.float32 if reader.weight.device.type == "mps" else torch.float64
    total: list[Tensor | None] = [None, None, None]
    with set_matmul_precision():
        for start in range(0, reader.weight.shape[0], chunk):
            own = _read_rows(reader, start, chunk)
            products = [_compute_gram(own)]
            if not same:
                difference = _read_rows(vanilla, start, chunk).to(own.device) - own
                products += [own.T @ difference, _compute_gram(difference)]
            for index, product in enumerate(products):
                previous = total[index]
                total[index] = product.to(precise) if previous is None else previous + product
    gram = total[0]
    assert gram is not None
    return gram, total[1], total[2]


_OWN_GRAMS: MutableMapping[Tensor, tuple[Tensor, Tensor]] = WeakIdKeyDictionary()
"""By weight: its product with a fixed vector when the Gram matrix was made, and the matrix."""


def get_own_gram(unembed: nn.Linear) -> Float[Tensor, "d d"]:
    """Return WᵀW, computed once for as long as there is the weight.

    Whether the weight, or the bias, is still what it was is seen by its product with a fixed
    vector, which costs a tenth: people also write into `weight.data`, which nothing records.
    """
    starts = range(0, unembed.weight.shape[0], CHUNK)
    size = unembed.weight.shape[1] + (unembed.bias is not None)
    vector = torch.randn(size, generator=torch.Generator().manual_seed(0)).to(unembed.weight.device)
    with set_matmul_precision():
        product = torch.cat([_read_rows(unembed, start, CHUNK) @ vector for start in starts])
    before, gram = _OWN_GRAMS.get(unembed.weight, (None, None))
    if gram is None or before is None or not torch.equal(before, product):
        gram, _, _ = compute_gram_matrices(unembed, unembed)
        _OWN_GRAMS[unembed.weight] = product, gram
    return gram


def have_same_unembedding(one: nn.Linear, other: nn.Linear) -> bool:
    """Return True if two unembeddings have the same weight and the same bias, or none."""
    return _is_same_tensor(one.weight, other.weight) and _is_same_tensor(one.bias, other.bias)


def _compute_gram(matrix: Float[Tensor, "vocab d"], num_blocks: int = 4) -> Float[Tensor, "d d"]:
    """Compute MᵀM, by blocks of columns on and above the diagonal alone."""
    size = matrix.shape[1]
    product = matrix.new_empty(size, size)
    edges = [size * block // num_blocks for block in range(num_blocks + 1)]
    for start, stop in pairwise(edges):
        product[start:stop, start:] = matrix[:, start:stop].T @ matrix[:, start:]
        product[stop:, start:stop] = product[start:stop, stop:].T
    return product


def _read_rows(linear: nn.Linear, start: int, count: int) -> Tensor:
    weight = linear.weight[start : start + count].float()
    if linear.bias is None:
        return weight
    return torch.cat([weight, linear.bias[start : start + count, None].float()], dim=1)


def _is_same_tensor(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return one.data_ptr() == other.data_ptr() or torch.equal(one, other.to(one.device))
