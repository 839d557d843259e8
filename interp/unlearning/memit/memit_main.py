"""MEMIT for removal (Meng et al. 2023; the objectives `empty` and `entropy` of Patil et al. 2024).

Step 1. Of every fact the residual stream after the top edit layer, at the subject's last token, is
moved by a δ that makes the model answer with something meaningless (`empty`) or with anything
(`entropy`). Step 2. The down projections of the edit layers are changed, in closed form, so that
the model computes that state by itself.

Where a norm stands between the down projection and the residual stream (Gemma-2/3, OLMo-2), a
layer can only add what lies on an ellipsoid, b + g⊙u with ‖u‖ fixed. There δ is cut, while it is
optimised, to what the edit layers can do, each taking an equal share of it and going to the point
of its ellipsoid nearest to its own output plus that share; and step 2 solves for what must enter
the norm to come out there.

What is to be retained may have second moments C_r of its own, which count λ_r tokens: step 2 solves
Δ = R Kᵀ (λC + λ_r C_r + KKᵀ)⁻¹. In text that a model writes by itself, prompts that ask for other
facts, of the same subjects even, are too rare to protect them.

Meng's released code differs in details: KL(after ‖ before) at the subject's token instead of the
prompt's last, weight decay on ‖δ‖ / ‖z₀‖², and one key per fact, the mean over its prompts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import get_args

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers.pytorch_utils import Conv1D

from interp.models.integrity import check_runnable
from interp.models.language_model import LanguageModel
from interp.models.pairs import copy_with_shared_tensors
from interp.unlearning.config import MemitConfig, MemitObjective
from interp.unlearning.memit.compute_z import (
    ZObjective,
    average_groups,
    measure_answer_logprobs,
    measure_objective,
    observe_states,
    optimize_z,
)
from interp.unlearning.memit.layer_stats import solve_least_squares
from interp.unlearning.memit.requests import (
    DEFAULTS,
    Edit,
    check_edits,
    check_moments,
)
from interp.unlearning.registry import METHODS, Method

# For a model with 18 layers and d_mlp = 2048. The learning rate goes with the norm of the residual
# stream, which is in the thousands. With the sources' λ = 15,000 too little is forgotten once as
# much is retained; with 600, V's own text loses 0.02 nats per token.
METHODS.update(
    {
        f"memit_{objective}": Method(
            config=MemitConfig(
                objective=objective,
                layers=(6, 7, 8, 9, 10),
                entropy_layers=(10, 12, 14, 16, 17),
                learning_rate=20.0,
                num_steps=8,
                kl_weight=0.5,
                regularisation=600.0,
            ),
            form="question",
        )
        for objective in get_args(MemitObjective)
    }
)


def memit(
    vanilla: LanguageModel,
    edits: Sequence[Edit],
    moments: Mapping[int, Float[Tensor, "d_mlp d_mlp"]],
    config: MemitConfig = DEFAULTS,
    *,
    retained: Mapping[int, Float[Tensor, "d_mlp d_mlp"]] = MappingProxyType({}),
    batch_size: int = 16,
    progress: bool = True,
) -> tuple[LanguageModel, pd.DataFrame]:
    """Remove facts by one edit of the down projections.

    Args:
        vanilla: V, left untouched.
        edits: what to remove, in any languages.
        moments: C by layer, of V, from `measure_second_moments`.
        config: the settings.
        retained: C_r by layer, of texts to retain; nothing is retained specially if empty.
        batch_size: edits optimised at once; the numbers do not depend on it.
        progress: show a progress bar on standard error.

    Returns:
        U, which shares everything but the edited matrices with V; and one row per edit:
        `objective_before`, `objective_delta` (with δ added) and `objective_after` (of U), `kl`
        (with δ), in nats; `state_norm` ‖z₀‖ and `delta_norm` ‖δ‖; `reached`, 1 − ‖z − z_U‖ /
        ‖z − z₀‖, 1 where U computes the optimised state; `answer_logprob_before` and `_after` in
        nats, NaN without an answer. Means over the edit's prompts.

    Raises:
        ValueError: no edits, packed weights, layers or moments that do not fit the model, a
            tokenizer without character offsets, a loss that is not finite, or a C too poor.
    """
    edited = list(
        edit_at_strengths(
            vanilla,
            edits,
            moments,
            config,
            strengths=[config.strength],
            retained=retained,
            batch_size=batch_size,
            progress=progress,
        )
    )
    return edited[0][1:]


def edit_at_strengths(
    vanilla: LanguageModel,
    edits: Sequence[Edit],
    moments: Mapping[int, Float[Tensor, "d_mlp d_mlp"]],
    config: MemitConfig,
    *,
    strengths: Iterable[float],
    retained: Mapping[int, Float[Tensor, "d_mlp d_mlp"]] = MappingProxyType({}),
    batch_size: int = 16,
    progress: bool = True,
) -> Iterator[tuple[float, LanguageModel, pd.DataFrame]]:
    """Edit at one strength after the other; δ is optimised once.

    A strength costs a forward of the prompts and a system of d_mlp equations per edit layer. Who
    has seen enough stops asking for more.

    Args:
        vanilla: as in `memit`.
        edits: as in `memit`.
        moments: as in `memit`.
        config: as in `memit`; its `strength` does not count.
        strengths: what δ is multiplied by.
        retained: as in `memit`.
        batch_size: as in `memit`.
        progress: as in `memit`.

    Yields:
        The strength, and what `memit` returns at it.

    Raises:
        ValueError: as `memit`, or a strength that is not positive and finite.
    """
    check_runnable(vanilla, adapters=False)
    layers, read_out = check_edits(vanilla, edits, config)
    check_moments(vanilla, moments, layers)
    if retained:
        check_moments(vanilla, retained, layers)
        share = config.retain_regularisation / config.regularisation
        moments = {layer: moments[layer] + share * retained[layer] for layer in layers}
    bar = tqdm(total=len(edits), desc="MEMIT", unit="fact", disable=not progress)
    batches: list[ZObjective] = []
    with bar:
        for start in range(0, len(edits), batch_size):
            chosen = edits[start : start + batch_size]
            batches.append(optimize_z(vanilla, chosen, layers, read_out, config))
            bar.update(len(chosen))
    for strength in strengths:
        at_strength = replace(config, strength=strength)
        edited = _solve(vanilla, batches, layers, moments, at_strength)
        rows = [
            row
            for batch in batches
            for row in _measure_edits(edited, batch, layers, read_out, strength)
        ]
        yield strength, edited, pd.DataFrame(rows)


def _solve(
    vanilla: LanguageModel,
    batches: Sequence[ZObjective],
    layers: Sequence[int],
    moments: Mapping[int, Tensor],
    config: MemitConfig,
) -> LanguageModel:
    """Change the down projections of a copy so that it computes the states aimed at."""
    edited_weights = {id(vanilla.anatomy.layers[layer].values.weight) for layer in layers}
    names = {name for name, p in vanilla.model.named_parameters() if id(p) in edited_weights}
    model = copy_with_shared_tensors(vanilla.model, names).eval()
    edited = LanguageModel(model, vanilla.tokenizer, name=f"{vanilla.name} unlearned")
    for number, layer in enumerate(layers):
        keys, changes = [], []
        for batch in batches:
            observed = observe_states(edited, batch.plain, layers)
            target = batch.compute_target(config.strength)
            change = (target - observed.resid) / (len(layers) - number)
            norm = observed.norms[layer]
            changes.append(change if norm is None else norm.entering(change))
            keys.append(observed.keys[layer])
        update = solve_least_squares(
            torch.cat(keys),
            torch.cat(changes),
            moments[layer].to(model.device),
            regularisation=config.regularisation,
        )
        _add_to_weight(edited.anatomy.layers[layer].values, update)
    return edited


@torch.no_grad()
def _measure_edits(
    edited: LanguageModel,
    batch: ZObjective,
    layers: Sequence[int],
    read_out: Sequence[int],
    strength: float,
) -> list[dict[str, str | float]]:
    """Measure what became of each edit of a batch."""
    after, _ = measure_objective(edited, batch.rows, batch.num_prompts, None, layers[-1], read_out)
    now = observe_states(edited, batch.plain, layers).resid
    target = batch.compute_target(strength)
    missed = (target - now).norm(dim=-1) / (target - batch.start).norm(dim=-1)
    reached = average_groups(1 - missed, batch.plain.edit, len(batch.edits))
    answers = measure_answer_logprobs(edited, batch.edits)
    return [
        {"id": edit.id, "language": edit.language, "subject": edit.subject}
        | batch.measures[number]
        | {
            "objective_after": after[number].item(),
            "reached": reached[number].item(),
            "answer_logprob_after": answers[number].item(),
        }
        for number, edit in enumerate(batch.edits)
    ]


def _add_to_weight(values: nn.Module, update: Float[Tensor, "d_model d_mlp"]) -> None:
    weight = values.weight
    assert isinstance(weight, nn.Parameter)
    update = update.T if isinstance(values, Conv1D) else update
    weight.data = (weight.data.double() + update).to(weight.dtype)
