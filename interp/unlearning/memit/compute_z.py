"""Step 1 of MEMIT: optimise z, the residual stream at the subject that makes a model forget."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp.models.anatomy import Anatomy
from interp.models.language_model import LanguageModel
from interp.unlearning.memit.post_norm import PostNorm
from interp.unlearning.memit.requests import (
    Edit,
    MemitConfig,
    Rows,
    list_essence_rows,
    list_prompt_rows,
    make_rows,
)


@dataclass(frozen=True, kw_only=True)
class ObservedStates:
    """Keys, norms and residual stream at the subjects' last tokens, in float64.

    `keys` and `norms` (None where there is none) by edit layer; `resid` after the top one.
    """

    keys: dict[int, Float[Tensor, "row d_mlp"]]
    norms: dict[int, PostNorm | None]
    resid: Float[Tensor, "row d_model"]


@torch.no_grad()
def observe_states(model: LanguageModel, rows: Rows, layers: Sequence[int]) -> ObservedStates:
    """Read the keys, norms and residual stream at the subjects' last tokens."""
    shape = rows.input_ids.shape
    keys: dict[int, Tensor] = {}
    norms: dict[int, PostNorm | None] = {}
    resid: list[Tensor] = []

    def at_subject(state: Tensor) -> Tensor:
        state = state.view(*shape, state.shape[-1])
        return state[torch.arange(len(state), device=state.device), rows.subject].double()

    def keep_key(layer: int, _module: nn.Module, args: tuple) -> None:
        keys[layer], norms[layer] = at_subject(args[0]), None

    def keep_norm(layer: int, module: nn.Module, args: tuple, output: Tensor) -> None:
        # Of a layer's norms, the one after its down projection.
        if layer in keys:
            entered = args[0]
            # Of mean zero and mean square one: a LayerNorm and an RMSNorm alike scale it by g only.
            probe = torch.ones_like(entered.flatten()[: entered.shape[-1]])
            probe[1::2] = -1
            bias = module.forward(torch.zeros_like(probe)).double()
            gain = (module.forward(probe).double() - bias) * probe
            norms[layer] = PostNorm(
                gain=gain, bias=bias, entered=at_subject(entered), left=at_subject(output)
            )

    anatomy = model.anatomy
    with ExitStack() as stack:
        for layer in layers:
            parts = anatomy.layers[layer]
            hook = parts.values.register_forward_pre_hook
            stack.callback(hook(partial(keep_key, layer)).remove)
            for norm in parts.norms:
                hook = norm.register_forward_hook
                stack.callback(hook(partial(keep_norm, layer)).remove)
        hook = anatomy.layers[layers[-1]].layer.register_forward_hook
        stack.callback(hook(lambda *run: resid.append(at_subject(_hidden_state(run[-1])))).remove)
        anatomy.body(input_ids=rows.input_ids, use_cache=False)
    return ObservedStates(keys=keys, norms=norms, resid=resid[0])


def _hidden_state(output: Tensor | tuple) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


@dataclass(frozen=True, kw_only=True)
class ZObjective:
    """Edits with the δ that step 1 optimised for them.

    `rows` are the prompts (`num_prompts`, with the target after them for `empty`), then the
    essences; `plain` are the prompts alone, of which `start` is z₀ and `norms` are the edit layers'
    norms; `delta` and `measures` have a row per edit.
    """

    edits: Sequence[Edit]
    rows: Rows
    num_prompts: int
    plain: Rows
    start: Float[Tensor, "row d_model"]
    norms: Sequence[PostNorm | None]
    delta: Float[Tensor, "edit d_model"]
    measures: list[dict[str, float]]

    def compute_target(self, strength: float) -> Float[Tensor, "row d_model"]:
        """Compute z = z₀ + strength·δ, cut to what the edit layers can do."""
        return self.start + compute_shift(strength * self.delta, self.plain, self.norms)


def compute_shift(
    delta: Float[Tensor, "edit d_model"], rows: Rows, norms: Sequence[PostNorm | None]
) -> Float[Tensor, "row d_model"]:
    """Compute by how much δ moves the residual stream, for each row, if each layer takes a share.

    Args:
        delta: δ.
        rows: texts.
        norms: those of the edit layers, None for a layer without.
    """
    share = delta.double()[rows.edit] / len(norms)
    return sum(
        (share if norm is None else norm.displacement(share) for norm in norms),
        start=torch.zeros_like(share),
    )


def optimize_z(
    model: LanguageModel,
    edits: Sequence[Edit],
    layers: Sequence[int],
    read_out: Sequence[int],
    config: MemitConfig,
) -> ZObjective:
    """Optimise δ of each edit. The edits' losses are summed, so that none sees another."""
    following = [config.target if config.objective == "empty" else ""] * len(edits)
    prompts = list(list_prompt_rows(edits, following))
    rows = make_rows(model, [*prompts, *list_essence_rows(edits, config.essence)])
    plain = make_rows(model, list_prompt_rows(edits, [""] * len(edits)))
    observed = observe_states(model, plain, layers)
    norms = list(observe_states(model, rows, layers).norms.values())
    state_norm = average_groups(observed.resid.norm(dim=-1), plain.edit, len(edits))

    def evaluate(delta: Tensor | None) -> tuple[Tensor, Tensor]:
        shift = None if delta is None else compute_shift(delta, rows, norms)
        return measure_objective(model, rows, len(prompts), shift, layers[-1], read_out)

    with torch.no_grad():
        before, essence_before = evaluate(None)
    precision = torch.promote_types(model.dtype, torch.float32)
    delta = torch.zeros(len(edits), observed.resid.shape[-1], dtype=precision, device=model.device)
    delta.requires_grad_()
    optimizer = torch.optim.Adam([delta], lr=config.learning_rate)

    def divergence(essence: Tensor) -> Tensor:
        return (essence_before.exp() * (essence_before - essence)).sum(-1)

    for step in range(config.num_steps):
        objective, essence = evaluate(delta)
        decay = delta.square().sum(-1) / state_norm**2
        loss = objective + config.kl_weight * divergence(essence) + config.weight_decay * decay
        if not loss.isfinite().all():
            raise ValueError(
                f"the loss is not finite at step {step}: lower the learning rate "
                f"({config.learning_rate})"
            )
        optimizer.zero_grad()
        loss.sum().backward()
        optimizer.step()
        with torch.no_grad():
            longest = config.clamp * state_norm / delta.norm(dim=-1).clamp(min=1e-30)
            delta *= longest.clamp(max=1.0)[:, None].to(precision)
    with torch.no_grad():
        objective, essence = evaluate(delta)
        columns = {
            "objective_before": before,
            "objective_delta": objective,
            "kl": divergence(essence),
            "state_norm": state_norm,
            "delta_norm": delta.norm(dim=-1),
            "answer_logprob_before": measure_answer_logprobs(model, edits),
        }
    return ZObjective(
        edits=edits,
        rows=rows,
        num_prompts=len(prompts),
        plain=plain,
        start=observed.resid,
        norms=list(observed.norms.values()),
        delta=delta.detach(),
        measures=[
            dict(zip(columns, values, strict=True))
            for values in zip(*(column.tolist() for column in columns.values()), strict=True)
        ],
    )


def measure_objective(
    model: LanguageModel,
    rows: Rows,
    num_prompts: int,
    shift: Float[Tensor, "row d_model"] | None,
    top: int,
    read_out: Sequence[int],
) -> tuple[Float[Tensor, " edit"], Float[Tensor, "edit vocab"]]:
    """Measure the objective of every edit, and the log-probabilities after its essence.

    With nothing to read out the objective is the labels' NLL.
    """
    anatomy = model.anatomy
    row = torch.arange(len(rows.subject), device=model.device)
    hidden: list[Tensor] = []

    def add(_module: nn.Module, _args: tuple, output: Tensor | tuple) -> Tensor | tuple:
        assert shift is not None
        state = _hidden_state(output)
        state = state.index_put((row, rows.subject), shift.to(state.dtype), accumulate=True)
        return (state, *output[1:]) if isinstance(output, tuple) else state

    with ExitStack() as stack:
        if shift is not None:
            stack.callback(anatomy.layers[top].layer.register_forward_hook(add).remove)
        for layer in read_out:
            hook = anatomy.layers[layer].layer.register_forward_hook
            stack.callback(hook(lambda *run: hidden.append(_hidden_state(run[-1]))).remove)
        final = anatomy.body(input_ids=rows.input_ids, use_cache=False).last_hidden_state
    essence = _compute_logprobs(anatomy, final[row, rows.last][num_prompts:])
    prompt, last = row[:num_prompts], rows.last[:num_prompts]
    if read_out:
        entropies = [
            _compute_entropy(_compute_logprobs(anatomy, anatomy.readout_state(state[prompt, last])))
            for state in hidden
        ]
        value = -torch.stack(entropies).mean(0)
    else:
        value = -average_groups(
            compute_row_logprobs(anatomy, final, rows), rows.label_row, num_prompts
        )
    return average_groups(value, rows.edit[:num_prompts], len(essence)), essence


def _compute_logprobs(anatomy: Anatomy, state: Tensor) -> Tensor:
    logits = anatomy.logits(state)
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)


def compute_row_logprobs(anatomy: Anatomy, final: Tensor, rows: Rows) -> Float[Tensor, " label"]:
    """Compute the log-probabilities, in nats, of the tokens that follow the prompts."""
    logprobs = _compute_logprobs(anatomy, final[rows.label_row, rows.label_place - 1])
    labels = rows.input_ids[rows.label_row, rows.label_place]
    return logprobs.gather(-1, labels[:, None])[:, 0]


def _compute_entropy(logprobs: Float[Tensor, "row vocab"]) -> Float[Tensor, " row"]:
    return -(logprobs.exp() * logprobs).sum(-1)


def average_groups(values: Float[Tensor, " item"], group: Tensor, num_groups: int) -> Tensor:
    """Average the values of each group."""
    sums = values.new_zeros(num_groups).index_add(0, group, values)
    return sums / torch.bincount(group, minlength=num_groups)


@torch.no_grad()
def measure_answer_logprobs(model: LanguageModel, edits: Sequence[Edit]) -> Float[Tensor, " edit"]:
    """Measure log p(answer | prompt), the mean over an edit's prompts; NaN without an answer."""
    answers = [edit.answer for edit in edits]
    answered = [item for item in list_prompt_rows(edits, answers) if item[-1].strip()]
    if not answered:
        return torch.full((len(edits),), math.nan)
    rows = make_rows(model, answered)
    final = model.anatomy.body(input_ids=rows.input_ids, use_cache=False).last_hidden_state
    each = compute_row_logprobs(model.anatomy, final, rows)
    sums = each.new_zeros(len(answered)).index_add(0, rows.label_row, each)
    # A group of nothing has the mean 0 / 0.
    return average_groups(sums, rows.edit, len(edits))
