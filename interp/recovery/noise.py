"""What rounding does to scores: the noise floor, and a warning where it hides the effect.

The noise floor is |1 − KRS| of V patched with its own states, in the precision used. The run that
is patched and the run that it is measured against make the same rounding errors, so that an engine
may find 0 in bfloat16. Therefore, below float32, the distance of V in the precision used from V
computed in float32, with the same weights, is added: losses are squares, and squares of independent
errors add. What rounding the weights themselves did when they were loaded is not in it.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from interp.data.trajectories import Trajectory
from interp.models.language_model import LanguageModel
from interp.models.precision import whole_in_float32
from interp.recovery.batches import make_batch
from interp.recovery.scoring import Distance, distance_of


def rounding_losses(
    model: LanguageModel, trajectories: Sequence[Trajectory], distance: Distance
) -> Float[Tensor, " query"]:
    """loss(V in float32, V in the precision now set), per question; float64 on the CPU.

    Args:
        model: V.
        trajectories: the questions, run as one batch.
        distance: as in `scoring`; a negative one counts as its size.
    """
    anatomy = model.anatomy
    batch = make_batch(trajectories, device=model.device)

    def logits() -> Tensor:
        final = anatomy.body(**batch.inputs(anatomy.body)).last_hidden_state
        return anatomy.logits(batch.at_scored(final)).float()

    with torch.inference_mode():
        used = logits()
        with whole_in_float32(model):
            exact = logits()
        next_ids = batch.at_scored(batch.next_ids).to(exact.device)
        losses = distance_of(distance, exact, used, next_ids).abs()
        return batch.mean_per_question(losses.double()).cpu()


def warn_of_noise(scores: pd.DataFrame) -> None:
    """Warn, once, of the sites where the noise floor exceeds what was measured.

    That is where, in every window, the score is nearer to 0 than the floor, or in every window the
    interval is narrower than the floor: then not the questions but the rounding limits the result.

    Args:
        scores: as `krs.krs_table` gives them.
    """
    name = "effect" if "effect" in scores else "krs"
    groups = list(scores.columns[: list(scores.columns).index("layer")])
    found: dict[str, list[str]] = {}
    for key, cells in scores[scores["noise_floor"] > 0].groupby(groups, sort=False):
        floor = cells["noise_floor"]
        *group, site = key if isinstance(key, tuple) else (key,)
        where = f"{site} ({', '.join(map(str, group))}: {floor.max():.2g})"
        if (cells[name].abs() < floor).all():
            found.setdefault("the score of every window", []).append(where)
        elif (cells["ci_high"] - cells["ci_low"] < floor).all():
            found.setdefault("the interval of every window", []).append(where)
    if found:
        said = "; ".join(f"{what} at {', '.join(places)}" for what, places in found.items())
        warnings.warn(
            f"the noise floor exceeds {said}: measure again with more precision, such as float32",
            stacklevel=3,
        )
