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

Meng's released code differs in details: KL(after ‖ before) at the subject's token instead of the
prompt's last, weight decay on ‖δ‖ / ‖z₀‖², and one key per fact, the mean over its prompts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers.pytorch_utils import Conv1D

from interp.models.language_model import LanguageModel
from interp.models.pairs import copy_sharing
from interp.unlearning.covariance import least_squares_update
from interp.unlearning.delta import (
    Task,
    answer_logprobs,
    group_mean,
    measure,
    observe,
    optimise,
)
from interp.unlearning.edits import (
    DEFAULTS,
    Edit,
    MemitConfig,
    check,
    check_moments,
)


def memit(
    vanilla: LanguageModel,
    edits: Sequence[Edit],
    moments: Mapping[int, Float[Tensor, "d_mlp d_mlp"]],
    config: MemitConfig = DEFAULTS,
    *,
    batch_size: int = 16,
    progress: bool = True,
) -> tuple[LanguageModel, pd.DataFrame]:
    """Remove facts by one edit of the down projections.

    Args:
        vanilla: V, left untouched.
        edits: what to remove, in any languages.
        moments: C by layer, of V, from `second_moments`.
        config: the settings.
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
    layers, read_out = check(vanilla, edits, config)
    check_moments(vanilla, moments, layers)
    edited_weights = {id(vanilla.anatomy.layers[layer].values.weight) for layer in layers}
    names = {name for name, p in vanilla.model.named_parameters() if id(p) in edited_weights}
    model = copy_sharing(vanilla.model, names).eval()
    edited = LanguageModel(model, vanilla.tokenizer, name=f"{vanilla.name} unlearned")
    bar = tqdm(total=len(edits), desc="MEMIT", unit="fact", disable=not progress)
    tasks: list[Task] = []
    for start in range(0, len(edits), batch_size):
        tasks.append(optimise(edited, edits[start : start + batch_size], layers, read_out, config))
        bar.update(len(tasks[-1].edits))
    bar.close()
    for number, layer in enumerate(layers):
        keys, changes = [], []
        for task in tasks:
            seen = observe(edited, task.plain, layers)
            change = (task.wanted - seen.resid) / (len(layers) - number)
            norm = seen.norms[layer]
            changes.append(change if norm is None else norm.entering(change))
            keys.append(seen.keys[layer])
        update = least_squares_update(
            torch.cat(keys),
            torch.cat(changes),
            moments[layer].to(model.device),
            regularisation=config.regularisation,
        )
        _add_to_weight(edited.anatomy.layers[layer].values, update)
    rows = [row for task in tasks for row in _table(edited, task, layers, read_out)]
    return edited, pd.DataFrame(rows)


@torch.no_grad()
def _table(
    edited: LanguageModel, task: Task, layers: Sequence[int], read_out: Sequence[int]
) -> list[dict[str, str | float]]:
    """What happened to each edit of a task."""
    after, _ = measure(edited, task.rows, task.num_prompts, None, layers[-1], read_out)
    now = observe(edited, task.plain, layers).resid
    missed = (task.wanted - now).norm(dim=-1) / (task.wanted - task.start).norm(dim=-1)
    reached = group_mean(1 - missed, task.plain.edit, len(task.edits))
    answers = answer_logprobs(edited, task.edits)
    return [
        {"id": edit.id, "language": edit.language, "subject": edit.subject}
        | task.found[number]
        | {
            "objective_after": after[number].item(),
            "reached": reached[number].item(),
            "answer_logprob_after": answers[number].item(),
        }
        for number, edit in enumerate(task.edits)
    ]


def _add_to_weight(values: nn.Module, update: Float[Tensor, "d_model d_mlp"]) -> None:
    weight = values.weight
    assert isinstance(weight, nn.Parameter)
    update = update.T if isinstance(values, Conv1D) else update
    weight.data = (weight.data.double() + update).to(weight.dtype)
