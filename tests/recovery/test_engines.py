"""Every engine gives the reference's numbers, and the reference gives the definition's."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from interp.recovery.engines import full, layered
from interp.recovery.engines.layered import row_budget as budget_module
from interp.recovery.engines.layered import upward_pass
from interp.recovery.engines.layered.row_budget import RowBudget
from interp.recovery.pair import Pair
from interp.recovery.sites import (
    ACTIVATION_SITES,
    NOTHING,
    SITES,
    Restoration,
    SiteName,
    make_windows,
)
from tests.helpers import ROOT
from tests.helpers.samples import mark_rest
from tests.helpers.tiny_models import (
    ARCHITECTURES,
    OWN_ENGINES,
    mixed_trajectories,
    tiny_pair,
    trajectories_after,
)

JOINED = (
    "coef+attn",
    "coef+value",
    "attn+value",
    "coef+attn+value+unembed",
    "coef+attn+norms",
    "attn+mlp_out",
    "value+key+attn_weights+norms",
    "head+attn_weights",
    "attn+head",
    "coef+head",
)
APART = [
    Restoration(sites=("coef",), layers=(0, 2, 4)),
    Restoration(sites=("attn",), layers=(1, 3), positions="prompt"),
    Restoration(sites=("coef", "attn"), layers=(0, 4)),
    Restoration(sites=("value",), layers=(1, 4)),
    Restoration(sites=("norms", "unembed"), layers=(0, 3)),
    Restoration(sites=("resid",), layers=(0, 3), positions="answer"),
    Restoration(sites=("head",), layers=(0, 1, 3), units=((2,), (0, 3), (2,))),
    Restoration(sites=("coef",), layers=(0, 1, 4), units=((2,), (0, 17, 3), (2,))),
    Restoration(sites=("coef",), layers=(2, 3), units=((), (1,)), positions="prompt"),
]
TRAJECTORIES = mixed_trajectories()


def every_restoration() -> list[Restoration]:
    """Every site and control and some joined, windows 1, 3, 5, every positions option."""
    found = [NOTHING, *APART]
    for site in (*SITES, *JOINED, "head[1]", "head[0,3]", "coef[5,7,11]"):
        for window, positions in (
            *((window, "all") for window in (1, 3, 5)),
            (5, "prompt"),
            (3, "answer"),
        ):
            # Positions are of no matter where only parameters are restored.
            if positions == "all" or set(SiteName.parse(site).sites) & set(ACTIVATION_SITES):
                found += make_windows(site, num_layers=5, window=window, positions=positions)
    return found


def some_restorations() -> list[Restoration]:
    """One window of every site and of some joined."""
    return [
        NOTHING,
        *APART,
        *(Restoration(sites=tuple(site.split("+")), layers=(1, 2)) for site in (*SITES, *JOINED)),
        *(
            Restoration(sites=tuple(site.split("+")), layers=(2, 3, 4), positions="prompt")
            for site in ("coef", "attn", "coef+attn", "resid")
        ),
    ]


def assert_same(actual, expected, scale, restorations, tolerance=1e-5):
    """Losses agree within `tolerance` of loss(V, U), question by question."""
    error = (actual - expected).abs() / scale
    worst = error.max(1).values.argmax().item()
    assert error.max() <= tolerance, (restorations[worst], error[worst])


def vanilla_against_unlearned(architecture: str) -> torch.Tensor:
    scale = full.measure(tiny_pair(architecture), TRAJECTORIES, [NOTHING]).losses[0]
    assert scale.min() > 1e-3
    return scale


# Layered equals full


CORRUPTED = ("llama", "gemma3", "gpt2", "xglm")
"""Architectures whose other direction is run each time; that of all is run with the slow tests."""


@pytest.mark.parametrize(
    ("architecture", "direction"),
    [
        *((name, "restore") for name in ARCHITECTURES),
        *(
            pytest.param(name, "corrupt", marks=[] if name in CORRUPTED else pytest.mark.slow)
            for name in ARCHITECTURES
        ),
    ],
)
def test_layered_equals_full(architecture, direction):
    pair = tiny_pair(architecture, direction=direction)
    restorations = every_restoration()
    scale = vanilla_against_unlearned(architecture)
    expected = full.measure(pair, TRAJECTORIES, restorations).losses
    for side in ("right", "left"):
        actual = layered.measure(pair, TRAJECTORIES, restorations, padding_side=side).losses
        assert_same(actual, expected, scale, restorations)


@pytest.mark.parametrize(
    "architecture", mark_rest(ARCHITECTURES, (*CORRUPTED, "bloom", "gemma2", "gpt_neox"))
)
def test_padding_changes_nothing(architecture):
    pair, restorations = tiny_pair(architecture), some_restorations()
    alone = full.measure(pair, TRAJECTORIES, restorations, batch_size=1).losses
    scale = alone[0]
    for side in ("right", "left"):
        for size in (2, 5):
            options = {"padding_side": side, "batch_size": size}
            together = full.measure(pair, TRAJECTORIES, restorations, **options).losses
            assert_same(together, alone, scale, restorations)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_one_question_alone(architecture):
    restorations = some_restorations()
    for direction in ("restore", "corrupt"):
        pair = tiny_pair(architecture, direction=direction)
        expected = full.measure(pair, TRAJECTORIES[:1], restorations).losses
        scale = vanilla_against_unlearned(architecture)[:1]
        for side in ("right", "left"):
            actual = layered.measure(pair, TRAJECTORIES[:1], restorations, padding_side=side).losses
            assert_same(actual, expected, scale, restorations)


@pytest.mark.parametrize("distance", ["kl", "answer_logprob"])
@pytest.mark.parametrize("architecture", ["llama", "gemma2", "phi", "opt_post_norm"])
def test_other_distances(architecture, distance):
    restorations = some_restorations()
    found = full.measure(tiny_pair(architecture), TRAJECTORIES, [NOTHING], distance=distance).losses
    # One answer's log-probability may by chance be nearly the same.
    scale = found.abs().mean()
    assert scale > 1e-2
    for direction in ("restore", "corrupt"):
        pair = tiny_pair(architecture, direction=direction)
        expected = full.measure(pair, TRAJECTORIES, restorations, distance=distance).losses
        actual = layered.measure(pair, TRAJECTORIES, restorations, distance=distance).losses
        assert_same(actual, expected, scale, restorations)


@pytest.mark.parametrize("own_precision", [False, True])
@pytest.mark.parametrize(
    ("architecture", "dtype"),
    [
        ("llama", torch.bfloat16),
        ("llama", torch.float16),
        ("gpt2", torch.float16),
        ("gemma3", torch.bfloat16),
    ],
)
def test_half_precision(architecture, dtype, own_precision):
    pair, restorations = tiny_pair(architecture), some_restorations()
    exact = full.measure(pair, TRAJECTORIES, restorations).losses
    for model in (pair.vanilla.model, pair.unlearned.model):
        model.to(dtype)
    assert pair.base.dtype == dtype
    for engine in OWN_ENGINES.values():
        coarse = engine(pair, TRAJECTORIES, restorations, own_precision=own_precision)
        # bfloat16 keeps 8 bits, so that rounded states move a loss by some percent of the scale;
        # float16 keeps 11.
        tolerance = {torch.bfloat16: 0.1, torch.float16: 0.02}[dtype]
        assert_same(coarse, exact, exact[0], restorations, tolerance=tolerance)
        assert (coarse - exact).abs().max() > 1e-5


# How much is computed at once


BUDGETS = [
    RowBudget(chunk_tokens=1, bytes=1),
    RowBudget(chunk_tokens=60, bytes=1 << 29),
    RowBudget(chunk_tokens=1 << 20, bytes=60_000),
    RowBudget(chunk_tokens=1 << 20, bytes=400_000),
]


@pytest.mark.parametrize("budget", BUDGETS, ids=str)
@pytest.mark.parametrize("architecture", ["llama", "bloom", "xglm"])
def test_budgets_change_nothing(architecture, budget):
    pair, restorations = tiny_pair(architecture), some_restorations()
    expected = full.measure(pair, TRAJECTORIES, restorations).losses
    progress: list[float] = []
    actual = layered.measure(
        pair, TRAJECTORIES, restorations, budget=budget, advance=progress.append
    ).losses
    assert_same(actual, expected, expected[0], restorations)
    assert sum(progress) == pytest.approx(len(TRAJECTORIES))


@pytest.mark.parametrize("engine", OWN_ENGINES)
def test_progress_adds_up_to_the_questions(engine):
    progress: list[float] = []
    OWN_ENGINES[engine](tiny_pair(), TRAJECTORIES, some_restorations(), advance=progress.append)
    assert sum(progress) == pytest.approx(len(TRAJECTORIES))
    assert len(progress) >= 5


@contextmanager
def memory_for(monkeypatch, model, max_rows: int, error: Exception) -> Iterator[list[int]]:
    """Let a call of a layer with more than `max_rows` rows fail; collects the sizes that failed."""
    layer_class = type(model.anatomy.layers[0].layer)
    forward = layer_class.forward
    refused: list[int] = []

    def limited(self, hidden_states, *args, **kwargs):
        if hidden_states.shape[0] > max_rows:
            refused.append(hidden_states.shape[0])
            raise error
        return forward(self, hidden_states, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(layer_class, "forward", limited)
        yield refused


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory"),
    MemoryError(),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried ..."),
]


@pytest.mark.parametrize("max_rows", [1, 3, 7, 40])
@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: type(error).__name__)
def test_out_of_memory(monkeypatch, error, max_rows):
    pair, restorations = tiny_pair(), some_restorations()
    expected = layered.measure(pair, TRAJECTORIES, restorations).losses
    progress: list[float] = []
    with memory_for(monkeypatch, pair.base, max_rows, error) as refused:
        actual = layered.measure(pair, TRAJECTORIES, restorations, advance=progress.append).losses
    assert refused
    assert_same(actual, expected, expected[0], restorations, tolerance=1e-6)
    assert sum(progress) == pytest.approx(len(TRAJECTORIES))
    assert min(torch.tensor(progress).cumsum(0)) > -1e-9


def test_memory_that_suffices_for_nothing(monkeypatch):
    pair = tiny_pair()
    with (
        memory_for(monkeypatch, pair.base, 0, OUT_OF_MEMORY[0]),
        pytest.raises(torch.OutOfMemoryError),
    ):
        layered.measure(pair, TRAJECTORIES, some_restorations())


def test_other_errors_are_not_taken_for_a_lack_of_memory(monkeypatch):
    pair = tiny_pair()
    with (
        memory_for(monkeypatch, pair.base, 7, RuntimeError("shapes")) as refused,
        pytest.raises(RuntimeError, match="shapes"),
    ):
        layered.measure(pair, TRAJECTORIES, some_restorations())
    assert len(refused) == 1


# What questions begin with is run once

FEW_SHOT = (7, 21, 40, 9, 33, 12, 5)
"""Longer than the sliding windows."""


@contextmanager
def prefixes_run(monkeypatch, *, saved: int = 1) -> Iterator[list[tuple[int, int]]]:
    """Share prefixes that save `saved` tokens; collects (questions, length of the prefix)."""
    found = []
    run_through = upward_pass.UpwardPass.__init__

    def spy(self, pair, trajectories, *args, prefix, **kwargs):
        found.append((len(trajectories), prefix))
        run_through(self, pair, trajectories, *args, prefix=prefix, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(budget_module, "SAVED_TOKENS", saved)
        patch.setattr(upward_pass.UpwardPass, "__init__", spy)
        yield found


@pytest.mark.parametrize("direction", ["restore", "corrupt"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_shared_prefix_changes_nothing(monkeypatch, architecture, direction):
    pair = tiny_pair(architecture, direction=direction)
    items = trajectories_after(FEW_SHOT)
    restorations = some_restorations()
    expected = full.measure(pair, items, restorations).losses
    scale = full.measure(tiny_pair(architecture), items, [NOTHING]).losses[0]
    with prefixes_run(monkeypatch) as found:
        actual = layered.measure(pair, items, restorations).losses
    assert found == [(4, len(FEW_SHOT))]
    assert_same(actual, expected, scale, restorations)


@pytest.mark.parametrize("architecture", ["gemma3", "bloom"])
def test_every_restoration_behind_a_shared_prefix(monkeypatch, architecture):
    pair, items, restorations = (
        tiny_pair(architecture),
        trajectories_after(FEW_SHOT, 3),
        every_restoration(),
    )
    expected = full.measure(pair, items, restorations).losses
    with prefixes_run(monkeypatch) as found:
        actual = layered.measure(pair, items, restorations).losses
    assert found == [(3, len(FEW_SHOT))]
    assert_same(actual, expected, expected[0], restorations)


@pytest.mark.parametrize("budget", BUDGETS, ids=str)
def test_budgets_change_nothing_behind_a_shared_prefix(monkeypatch, budget):
    pair, restorations = tiny_pair("gemma3"), some_restorations()
    items = trajectories_after(FEW_SHOT, 6)
    expected = full.measure(pair, items, restorations).losses
    progress: list[float] = []
    with prefixes_run(monkeypatch):
        actual = layered.measure(
            pair, items, restorations, budget=budget, advance=progress.append
        ).losses
    assert_same(actual, expected, expected[0], restorations)
    assert sum(progress) == pytest.approx(len(items))


def test_each_group_of_questions_has_its_own_prefix(monkeypatch):
    """Two preambles of 40 tokens, mixed up, and a question that shares nothing."""
    one, other = [5] * 40, [6] * 40
    items = [
        *trajectories_after(one, 9),
        *trajectories_after(other, 9, seed=1),
        *trajectories_after([8], 1, seed=2),
    ]
    items = items[::2] + items[1::2]
    pair, restorations = tiny_pair(), some_restorations()
    expected = full.measure(pair, items, restorations).losses
    with prefixes_run(monkeypatch, saved=64) as found:
        actual = layered.measure(pair, items, restorations).losses
    assert sorted(found) == [(1, 0), (9, 40), (9, 40)]
    assert_same(actual, expected, expected[0], restorations)


def test_where_prefixes_are_not_shared(monkeypatch):
    pair, items = tiny_pair(), trajectories_after(FEW_SHOT)
    for saved, options in ((22, {}), (1, {"padding_side": "left"})):
        with prefixes_run(monkeypatch, saved=saved) as found:
            layered.measure(pair, items, [NOTHING], **options)
        assert found == [(4, 0)]
    with prefixes_run(monkeypatch, saved=21) as found:
        layered.measure(pair, items, [NOTHING])
    assert found == [(4, 7)]


# The reference, against the definition written out for three architectures

LLAMA = {
    "layer": "model.layers.{}",
    "coef": "mlp.down_proj",
    "attn": "self_attn.o_proj",
    "value": ["mlp.down_proj."],
    "key": ["mlp.gate_proj.", "mlp.up_proj."],
    "attn_weights": ["self_attn."],
    "norms": ["input_layernorm.", "post_attention_layernorm."],
    "final_norm": "model.norm.",
    "unembed": "lm_head.",
}
GPT2 = {
    "layer": "transformer.h.{}",
    "coef": "mlp.c_proj",
    "attn": "attn.c_proj",
    "value": ["mlp.c_proj."],
    "key": ["mlp.c_fc."],
    "attn_weights": ["attn."],
    "norms": ["ln_1.", "ln_2."],
    "final_norm": "transformer.ln_f.",
    "unembed": "lm_head.",
}
OPT = {
    "layer": "model.decoder.layers.{}",
    "coef": "fc2",
    "attn": "self_attn.out_proj",
    "value": ["fc2."],
    "key": ["fc1."],
    "attn_weights": ["self_attn."],
    "norms": ["self_attn_layer_norm.", "final_layer_norm."],
    "final_norm": "model.decoder.final_layer_norm.",
    "unembed": "lm_head.",
}


def by_hand(
    paths, vanilla, unlearned, item, sites, layers, positions, channels=slice(None)
) -> float:
    """Section 1 of docs/definitions.md: plain hooks, copied weights, explicit logits."""
    ids = torch.tensor([item.token_ids])
    num_prompt, num_answer = len(item.prompt_ids), len(item.answer_ids)
    where = {
        "all": slice(None),
        "prompt": slice(0, num_prompt),
        "answer": slice(num_prompt, None),
    }[positions]
    restored, handles, kept = copy.deepcopy(unlearned), [], {}
    weights, donor = restored.state_dict(), vanilla.state_dict()
    for name in weights:
        for site in set(sites) - set(ACTIVATION_SITES):
            prefixes = [paths["unembed"]] if site == "unembed" else []
            if site != "unembed":
                prefixes = [
                    f"{paths['layer'].format(layer)}.{part}"
                    for layer in layers
                    for part in paths[site]
                ]
            if site == "norms" and 4 in layers:
                prefixes.append(paths["final_norm"])
            if any(name.startswith(prefix) for prefix in prefixes):
                weights[name].copy_(donor[name])
    for layer in layers:
        for site in set(sites) & set(ACTIVATION_SITES):
            path = paths["layer"].format(layer)
            if site != "resid":
                path += "." + paths["attn" if site in ("attn", "head") else "coef"]
            source, sink = vanilla.get_submodule(path), restored.get_submodule(path)
            key = (layer, site)
            if site in ("coef", "head"):
                handles += [
                    source.register_forward_pre_hook(
                        lambda _m, args, key=key: kept.update({key: args[0].view(ids.shape[1], -1)})
                    ),
                    sink.register_forward_pre_hook(
                        lambda _m, args, key=key: put(args[0], kept[key], where, channels)
                    ),
                ]
            else:
                handles += [
                    source.register_forward_hook(
                        lambda _m, _a, out, key=key: kept.update({key: first(out)})
                    ),
                    sink.register_forward_hook(
                        lambda _m, _a, out, key=key: like(out, put(first(out), kept[key], where))
                    ),
                ]
    with torch.no_grad():
        target = vanilla(ids).logits[0]
        logits = restored(ids).logits[0]
    for handle in handles:
        handle.remove()
    scored = slice(num_prompt - 1, num_prompt + num_answer - 1)
    return (target[scored] - logits[scored]).double().square().mean().item()


def first(out):
    return out[0] if isinstance(out, tuple) else out


def like(out, value):
    return (value, *out[1:]) if isinstance(out, tuple) else value


def put(old, new, where, channels=slice(None)):
    shape = old.shape
    old = old.reshape(-1, shape[-1]).clone()
    old[where, channels] = new.reshape(old.shape)[where, channels]
    return old.view(shape)


@pytest.mark.parametrize(
    ("architecture", "paths"), [("llama", LLAMA), ("gpt2", GPT2), ("opt", OPT)]
)
def test_full_is_the_definition(architecture, paths):
    # Untied, so that the unembedding can be put back alone.
    pair = tiny_pair(architecture, tie_word_embeddings=False)
    items = TRAJECTORIES[:3]
    for sites, layers, positions in [
        *(((site,), (1, 2, 3), "all") for site in SITES),
        *(((site,), (3, 4), "prompt") for site in ACTIVATION_SITES),
        *(((site,), (0, 1), "answer") for site in ACTIVATION_SITES),
        (("norms",), (3, 4), "all"),
        (("coef", "attn"), (0, 1, 2), "all"),
        (("coef", "attn", "value", "norms", "unembed"), (2, 3, 4), "prompt"),
    ]:
        restoration = Restoration(sites=sites, layers=layers, positions=positions)
        expected = [
            by_hand(paths, pair.vanilla.model, pair.unlearned.model, item, sites, layers, positions)
            for item in items
        ]
        found = full.measure(pair, items, [restoration]).losses[0].tolist()
        assert found == pytest.approx(expected, rel=1e-5), restoration
        backwards = Pair(vanilla=pair.vanilla, unlearned=pair.unlearned, direction="corrupt")
        corrupted = [
            # V's logits are the target in both directions.
            by_hand_corrupt(paths, pair, item, sites, layers, positions)
            for item in items[:1]
        ]
        found = full.measure(backwards, items[:1], [restoration]).losses[0].tolist()
        assert found == pytest.approx(corrupted, rel=1e-5), restoration


@pytest.mark.parametrize(
    ("architecture", "paths"), [("llama", LLAMA), ("gpt2", GPT2), ("opt", OPT)]
)
def test_units_are_the_definition(architecture, paths):
    """Head 2 of four with 16 channels in all is channels 8 to 11; coefficient 5 is channel 5."""
    pair = tiny_pair(architecture)
    for site, unit, channels in (("head", 2, slice(8, 12)), ("coef", 5, slice(5, 6))):
        restoration = Restoration(sites=(site,), layers=(1, 2), units=((unit,), (unit,)))
        models = pair.vanilla.model, pair.unlearned.model
        expected = [
            by_hand(paths, *models, item, (site,), (1, 2), "all", channels)
            for item in TRAJECTORIES[:3]
        ]
        found = full.measure(pair, TRAJECTORIES[:3], [NOTHING, restoration]).losses
        assert found[1].tolist() == pytest.approx(expected, rel=1e-5)
        assert found[1].tolist() != pytest.approx(found[0].tolist(), rel=1e-4)


def by_hand_corrupt(paths, pair, item, sites, layers, positions) -> float:
    """loss(V, V←U) = ‖z_V − z_{V←U}‖², out of three losses with V←U written as a restoration."""
    ids = torch.tensor([item.token_ids])
    logits: list[torch.Tensor] = []

    def keep(_module, _args, out):
        logits.append(out)

    # `by_hand` runs the donor, then a copy of the base with the donor's parts: keep the second.
    base = copy.deepcopy(pair.vanilla.model)
    base.get_output_embeddings().register_forward_hook(keep)
    by_hand(paths, pair.unlearned.model, base, item, sites, layers, positions)
    with torch.no_grad():
        target = pair.vanilla.model(ids).logits[0]
    scored = slice(len(item.prompt_ids) - 1, len(item.token_ids) - 1)
    return (target[scored] - logits[-1][0, scored]).double().square().mean().item()


# Shapes


def test_shapes_are_as_annotated():
    """`states` and `layered` under jaxtyping, which the other tests leave out for speed."""
    program = """
import jaxtyping, torch
torch.set_num_threads(1)
jaxtyping.install_import_hook(["interp.recovery"], "beartype.beartype")
from tests.helpers.tiny_models import OWN_ENGINES, tiny_pair, mixed_trajectories
from tests.recovery.test_engines import some_restorations
for name, direction in [("gemma3", "restore"), ("opt", "corrupt")]:
    for engine in OWN_ENGINES.values():
        pair = tiny_pair(name, direction=direction)
        engine(pair, mixed_trajectories(2), some_restorations(), padding_side="left")
print("checked")
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "checked\n", done.stderr[-2000:]
