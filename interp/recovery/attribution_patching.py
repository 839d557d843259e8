"""Attribution patching: the few coefficients that carry the recovery, checked by restoring them.

Every coefficient of every layer gets a gate g in U's run, the same at every position and question:
m := m + g (m_V − m). At g = 0 that is U, at g = 1 the coefficient is restored. A coefficient's
attribution is the KRS that the gradient at U promises (attribution patching, Nanda 2023):

    a = −∂ loss(V, R) / ∂g / loss(V, U)

Each is a slope, so that together they may promise more than there is: what the first of them bring
back is then measured. (Integrated gradients, from U's coefficients to V's, chose worse ones: with
64 of them restored in Gemma-3-270M, KRS 0.64 and 0.36 on two unlearned models against 0.66 and
0.58 here.)
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from interp.data.query import list_questions
from interp.data.trajectories import Trajectory, check_trajectories
from interp.models.integrity import check_known_by_weights
from interp.models.language_model import LanguageModel
from interp.models.pairs import check_pair
from interp.recovery.batches import Batch, make_batch
from interp.recovery.engines import layered
from interp.recovery.hook_points import hook_site
from interp.recovery.hooks import record, require_state
from interp.recovery.pair import Pair
from interp.recovery.sites import NOTHING, Restoration

if TYPE_CHECKING:
    import pandas as pd

NUM_RANDOM = 3
"""Random choices that each choice is compared with."""

BATCH_SIZE = 8
"""Questions whose gradients are computed at once."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Attribution:
    """Coefficients by attribution, best first.

    Attributes:
        ranked: layer, coefficient, attribution (the KRS that the gradient promises) and krs (what
            restoring it alone gives), by falling attribution.
        recovery: for num = 1, 2, 4, …: krs, restoring the first num of `ranked` together, and
            krs_random, restoring as many random ones of the same layers.
        attributions: of all coefficients.
    """

    ranked: pd.DataFrame
    recovery: pd.DataFrame
    attributions: Float[Tensor, "layer d_mlp"]

    def units(self, num: int) -> dict[int, tuple[int, ...]]:
        """Return the first `num` coefficients by layer, as `interp.restore` takes them.

        with interp.restore(unlearned, vanilla, "coef", units=attribution.units(8)): ...
        """
        chosen = self.ranked.head(num)
        return _group_by_layer(list(zip(chosen["layer"], chosen["coefficient"], strict=True)))


def attribution(
    vanilla: LanguageModel,
    unlearned: LanguageModel,
    answers: Sequence[Trajectory],
    *,
    num: int = 64,
    seed: int = 0,
    progress: bool = True,
) -> Attribution:
    """Find the coefficients of U that bring back most of V's answers when they are V's.

    Losses are means over each question's scored positions, then over questions, of the squared
    difference of logits; KRS are ratios of these means over all the questions given.

    Args:
        vanilla: V.
        unlearned: U, of the same architecture and tokenizer.
        answers: V's trajectories on the questions.
        num: how many to check; `recovery` goes up to it in powers of two.
        seed: of the random choices.
        progress: show a progress bar on standard error, if it takes over two seconds.

    Raises:
        ValueError: `num` is out of range, the models do not match, no answer scores
            anything, or loss(V, U) is 0.
    """
    import pandas as pd

    check_pair(vanilla, unlearned)
    for model in (vanilla, unlearned):
        check_known_by_weights(model)
    answers = list_questions(answers, "answers", Trajectory)
    check_trajectories(vanilla, answers)
    if vanilla.anatomy.has_mixtures:
        raise ValueError(
            f"{vanilla.name!r} is a mixture of experts, of which single coefficients cannot be "
            "ranked: measure named ones with interp.sweep, such as the site coef@3[17]"
        )
    total = unlearned.num_layers * unlearned.anatomy.num_units("coef")
    if not 1 <= num <= total:
        raise ValueError(
            f"num must be between 1 and {total}, the coefficients there are, not {num}"
        )
    scored = [item for item in answers if item.scored]
    if not scored:
        raise ValueError("no answer scores anything: give at least one trajectory with an answer")
    if len(scored) < len(answers):
        warnings.warn(
            f"{len(answers) - len(scored)} of {len(answers)} answers are empty and left out",
            stacklevel=2,
        )
    pair = Pair(vanilla=vanilla, unlearned=unlearned)
    counts = sorted({2**power for power in range(num.bit_length())} | {num})
    num_restored = 1 + num + len(counts) * (1 + NUM_RANDOM)
    bar = tqdm(total=1.0, desc="coefficients", delay=2, disable=not progress, bar_format=_BAR)
    # A gradient costs about three forwards.
    share = 3 / (3 + num_restored)
    with bar:
        slopes = _measure_slopes(pair, scored, lambda part: bar.update(part * share))
        order = slopes.flatten().argsort(descending=True, stable=True)[:num].tolist()
        best = [divmod(index, slopes.shape[1]) for index in order]
        choices = [[unit] for unit in best] + [best[:count] for count in counts]
        generator = torch.Generator().manual_seed(seed)
        for _ in range(NUM_RANDOM):
            random = _draw_from_same_layers(best, slopes.shape[1], generator)
            choices += [random[:count] for count in counts]
        losses = layered.measure(
            pair,
            scored,
            [NOTHING, *map(_make_restoration, choices)],
            answers=False,
            advance=lambda done: bar.update(done / len(scored) * (1 - share)),
        ).losses.mean(1)
    if losses[0] == 0:
        raise ValueError("loss(V, U) is 0 on these answers, so that the KRS is undefined")
    krs = 1 - losses[1:] / losses[0]
    alone, together, of_random = krs.split([num, len(counts), len(counts) * NUM_RANDOM])
    attributions = slopes / losses[0]
    return Attribution(
        ranked=pd.DataFrame(
            {
                "layer": [layer for layer, _ in best],
                "coefficient": [unit for _, unit in best],
                "attribution": [float(attributions[unit]) for unit in best],
                "krs": alone.tolist(),
            }
        ),
        recovery=pd.DataFrame(
            {
                "num": counts,
                "krs": together.tolist(),
                "krs_random": of_random.view(NUM_RANDOM, -1).mean(0).tolist(),
            }
        ),
        attributions=attributions,
    )


def coefficients(*args: Any, **kwargs: Any) -> Attribution:
    """Call `attribution` by its old name."""
    warnings.warn(
        "interp.coefficients is called interp.attribution now", DeprecationWarning, stacklevel=2
    )
    return attribution(*args, **kwargs)


_BAR = "{desc}: {percentage:3.0f}% {bar} [{elapsed}<{remaining}]"


def _measure_slopes(
    pair: Pair, scored: Sequence[Trajectory], advance: Callable[[float], object]
) -> Float[Tensor, "layer d_mlp"]:
    """Measure the slope at which each gate lowers the mean loss, float64 on the CPU."""
    anatomy = pair.base.anatomy
    total = torch.zeros(anatomy.num_layers, anatomy.num_units("coef"), dtype=torch.float64)
    pair.get_scorer("logit_mse").prepare("unlearned")
    for start in range(0, len(scored), BATCH_SIZE):
        batch = make_batch(scored[start : start + BATCH_SIZE], device=pair.base.device)
        total -= _compute_gate_gradients(pair, batch).double().cpu()
        advance(len(batch.input_ids) / len(scored))
    return total / len(scored)


def _compute_gate_gradients(pair: Pair, batch: Batch) -> Float[Tensor, "layer d_mlp"]:
    """Compute the gradient of a batch's summed losses, one per question, where all gates are 0."""
    base = pair.base.anatomy
    with torch.no_grad():
        donor = record(pair.donor.anatomy, batch, {"coef"})
    gates = torch.zeros(
        base.num_layers, base.num_units("coef"), device=pair.base.device, requires_grad=True
    )

    def open_gate(layer: int, value: Tensor) -> Tensor:
        change = require_state(donor.layers[layer].coef).to(value.device).view_as(value) - value
        return value + (gates[layer].to(value.device) * change).to(value.dtype)

    with torch.enable_grad(), ExitStack() as stack:
        for layer, parts in enumerate(base.layers):
            stack.enter_context(hook_site(parts, "coef", partial(open_gate, layer)))
        final = base.body(**batch.inputs(base.body)).last_hidden_state
        (losses,) = pair.get_scorer("logit_mse").compute_losses(
            batch.at_scored(donor.final),
            batch.at_scored(final)[None],
            batch.at_scored(batch.next_ids),
            readout="unlearned",
        )
        (gradient,) = torch.autograd.grad(batch.average_per_question(losses).sum(), gates)
    return gradient


def _make_restoration(units: Sequence[tuple[int, int]]) -> Restoration:
    by_layer = _group_by_layer(units)
    return Restoration(sites=("coef",), layers=tuple(by_layer), units=tuple(by_layer.values()))


def _group_by_layer(units: Sequence[tuple[int, int]]) -> dict[int, tuple[int, ...]]:
    """Group pairs of layer and coefficient as coefficients by layer, both ascending."""
    by_layer: dict[int, tuple[int, ...]] = {}
    for layer, unit in sorted(units):
        by_layer[layer] = (*by_layer.get(layer, ()), unit)
    return by_layer


def _draw_from_same_layers(
    best: Sequence[tuple[int, int]], d_mlp: int, generator: torch.Generator
) -> list[tuple[int, int]]:
    """Draw as many coefficients of the same layers, in the same order, without repetition."""
    drawn = {
        layer: iter(torch.randperm(d_mlp, generator=generator).tolist())
        for layer in sorted({layer for layer, _ in best})
    }
    return [(layer, next(drawn[layer])) for layer, _ in best]
