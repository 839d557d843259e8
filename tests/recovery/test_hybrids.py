"""Hybrids: layers that mix tokens by something else than attention, beside layers with attention.

What is put back is compared with hooks at paths written down by hand; batches with single
questions, engines with each other, and generation with and without a cache.
"""

from __future__ import annotations

import dataclasses
from functools import cache

import pytest
import torch
from transformers import DynamicCache

import interp
from interp.models import (
    CacheSupport,
    check_anatomy,
    find_anatomy,
    find_cache_support,
    generate_continuations,
)
from interp.recovery import Pair, Restoration, SweepConfig, full, layered
from interp.recovery.engines import nnsight
from interp.recovery.engines.layered.prefix_sharing import can_share_prefix
from interp.recovery.engines.layered.row_budget import JobPlanner, RowBudget
from interp.recovery.restored_model import apply_restoration
from interp.unlearning import TrainableModel
from tests.helpers.architecture_table import CHANGES
from tests.helpers.every_architecture import make_tiny
from tests.helpers.hand_hooks import OUTPUTS, run_restored
from tests.helpers.tiny_models import (
    mixed_trajectories,
    question,
    tiny,
    trajectories_after,
    trajectory,
    wrap,
)

QWEN, JAMBA = "Qwen3_5ForCausalLM", "JambaForCausalLM"
FALCON, GRANITE = "FalconH1ForCausalLM", "GraniteMoeHybridForCausalLM"
LFM, MINIMAX, GEMMA = "Lfm2ForCausalLM", "MiniMaxForCausalLM", "RecurrentGemmaForCausalLM"
DENSE_GRANITE = f"{GRANITE} dense"

DELTA = "linear_attn.out_proj"
MAMBA, ATTENTION = "mamba.out_proj", "self_attn.o_proj"
GATED = (("mlp.gate_proj", "mlp.up_proj"), "mlp.down_proj")
# The output projections of each layer, the MLP's first matrices and its last, read off the
# library's source; of Jamba's layers those with one dense MLP.
BY_HAND = {
    QWEN: ([[DELTA]] * 3 + [[ATTENTION]], *GATED),
    JAMBA: (
        [[MAMBA], [ATTENTION], [MAMBA], [MAMBA]],
        ("feed_forward.gate_proj", "feed_forward.up_proj"),
        "feed_forward.down_proj",
    ),
    FALCON: (
        [[MAMBA, ATTENTION]] * 4,
        ("feed_forward.gate_proj", "feed_forward.up_proj"),
        "feed_forward.down_proj",
    ),
    DENSE_GRANITE: (
        [[MAMBA], [ATTENTION]] * 2,
        ("shared_mlp.input_linear",),
        "shared_mlp.output_linear",
    ),
    LFM: (
        [["conv.out_proj"], ["self_attn.out_proj"]] * 2,
        ("feed_forward.w1", "feed_forward.w3"),
        "feed_forward.w2",
    ),
}
KINDS = {
    QWEN: ["GatedDeltaNet"] * 3 + ["attention"],
    JAMBA: ["MambaMixer", "attention", "MambaMixer", "MambaMixer"],
    FALCON: ["Mixer+attention"] * 4,
    LFM: ["ShortConv", "attention"] * 2,
    MINIMAX: ["attention", "LightningAttention"] * 2,
    GEMMA: ["RecurrentBlock", "RecurrentBlock", "attention", "RecurrentBlock"],
}
ENGINES = {"full": full.measure, "layered": layered.measure}


@cache
def pair_of(name: str) -> Pair:
    base, _, is_dense = name.partition(" ")
    changes = CHANGES.get(base, {}) | ({"num_local_experts": 0} if is_dense else {})
    vanilla, unlearned = (
        wrap(make_tiny(base, seed=seed, **changes), name=f"M{seed}") for seed in (0, 1)
    )
    return Pair(vanilla=vanilla, unlearned=unlearned)


def measure(name, engine, trajectories, restorations, **options):
    return ENGINES[engine](pair_of(name), trajectories, restorations, **options).losses


@pytest.mark.parametrize("name", KINDS)
def test_each_layer_knows_what_mixes_its_tokens(name):
    anatomy = pair_of(name).vanilla.anatomy
    assert [parts.kind for parts in anatomy.layers] == KINDS[name]
    assert anatomy.attention_layers == [
        layer for layer, kind in enumerate(KINDS[name]) if kind == "attention"
    ]


@pytest.mark.parametrize("site", ["coef", "attn", "value", "key", "mlp_out"])
@pytest.mark.parametrize("name", BY_HAND)
def test_full_puts_back_what_is_meant(name, site):
    mixers, keys, values = BY_HAND[name]
    pair = pair_of(name)
    layers = (0, 2) if name == JAMBA else (1, 2, 3)
    by_site = {"coef": [values], "value": [values], "mlp_out": [values], "key": keys}
    paths = [
        f"model.layers.{layer}.{path}"
        for layer in layers
        for path in by_site.get(site, mixers[layer])
    ]
    (item,) = mixed_trajectories(1, seed=3)
    ids = torch.tensor([[*item.prompt_ids, *item.answer_ids]])
    scored = slice(item.scored.start, item.scored.stop)
    with torch.no_grad():
        wanted = pair.vanilla.model(input_ids=ids, use_cache=False).logits[0, scored]
    logits = run_restored(pair.vanilla.model, pair.unlearned.model, ids, paths, site)[0, scored]
    loss = ((wanted - logits) ** 2).mean().item()
    restorations = [Restoration(sites=(site,), layers=layers), Restoration(sites=(), layers=())]
    found = measure(name, "full", [item], restorations)[:, 0]
    assert found[0].item() == pytest.approx(loss, rel=1e-5)
    # It is not what U computes by itself.
    assert abs(found[0] - found[1]) > 1e-4 * found[1]


def test_coefficients_and_value_vectors_are_the_output_of_two_blocks():
    """Granite-4: Σ m v of the experts and of the shared one, which is a block of its own."""
    (item,) = mixed_trajectories(1)
    layers = (0, 1, 2)
    both, out = (
        measure(GRANITE, "full", [item], [Restoration(sites=sites, layers=layers)])[0, 0]
        for sites in (("coef", "value"), ("mlp_out",))
    )
    assert both.item() == pytest.approx(out.item(), rel=1e-5)
    pair = pair_of(GRANITE)
    ids = torch.tensor([[*item.prompt_ids, *item.answer_ids]])
    blocks = ("block_sparse_moe", "shared_mlp")
    paths = [f"model.layers.{layer}.{block}" for layer in layers for block in blocks]
    logits = run_restored(pair.vanilla.model, pair.unlearned.model, ids, paths, OUTPUTS[-1])
    with torch.no_grad():
        wanted = pair.vanilla.model(input_ids=ids, use_cache=False).logits
    scored = slice(item.scored.start, item.scored.stop)
    loss = ((wanted - logits)[0, scored] ** 2).mean().item()
    assert out.item() == pytest.approx(loss, rel=1e-5)


RESTORATIONS = [
    Restoration(sites=(site,), layers=(1, 2))
    for site in ("coef", "attn", "value", "attn_weights", "norms", "mlp_out", "resid")
] + [Restoration(sites=("attn", "coef"), layers=(0, 1, 2), positions="answer")]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", [QWEN, JAMBA, FALCON, LFM, MINIMAX, GEMMA])
def test_questions_of_unequal_length_in_a_batch_are_as_each_alone(name, engine):
    """The longest is longer than the chunks of 64 tokens in which states are computed."""
    rng = torch.Generator().manual_seed(0)

    def tokens(num):
        return torch.randint(3, 50, (num,), generator=rng).tolist()

    items = [trajectory(tokens(num), tokens(3)) for num in (3, 12, 70)]
    own = measure(name, "full", items, [Restoration(sites=(), layers=())], batch_size=1)
    together = measure(name, engine, items, RESTORATIONS)
    for place, item in enumerate(items):
        alone = measure(name, "full", [item], RESTORATIONS)[:, 0]
        assert (together[:, place] - alone).abs().max() < 1e-5 * own[0, place]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", [QWEN, JAMBA, FALCON])
def test_padding_on_the_left_changes_nothing(name, engine):
    items = mixed_trajectories(3, seed=5)
    right, left = (
        measure(name, engine, items, RESTORATIONS, padding_side=side) for side in ("right", "left")
    )
    own = measure(name, "full", items, [Restoration(sites=(), layers=())])
    assert ((right - left).abs() / own).max() < 1e-5


def test_only_attention_shares_a_prefix():
    for name in (QWEN, JAMBA, FALCON, LFM, MINIMAX, GEMMA):
        assert not can_share_prefix(pair_of(name).base.model)
    assert can_share_prefix(tiny("llama").model)
    assert can_share_prefix(tiny("mistral").model)
    # The indexer's keys have no place in the cache.
    assert not can_share_prefix(make_tiny("DeepseekV32ForCausalLM"))
    items = trajectories_after(list(range(3, 40)), num=4)
    budget = RowBudget(chunk_tokens=1000, bytes=1 << 30)
    attention = tiny("llama")
    jobs = JobPlanner(Pair(vanilla=attention, unlearned=attention), items).plan_jobs(3, budget)
    assert [job.prefix for job in jobs] == [37]
    jobs = JobPlanner(pair_of(QWEN), items).plan_jobs(3, budget)
    assert [job.prefix for job in jobs] == [0]
    assert sorted(index for job in jobs for index in job.questions) == [0, 1, 2, 3]


def test_one_convolution_that_sees_no_prefix_is_found_out():
    """Alike but for one layer of four, the last: every layer is compared."""
    model = make_tiny(LFM, layer_types=["full_attention"] * 3 + ["conv"])
    assert not can_share_prefix(model)
    model = make_tiny(LFM, layer_types=["full_attention"] * 4)
    assert can_share_prefix(model)


@pytest.mark.parametrize(
    ("name", "cached", "padded"),
    [
        (QWEN, True, True),
        (JAMBA, True, True),
        (FALCON, True, True),
        (LFM, True, True),
        ("BambaForCausalLM", True, True),
        # A cache of its own; states in its modules, and no mask for them.
        (MINIMAX, False, True),
        (GEMMA, False, False),
        ("LlamaForCausalLM", True, True),
    ],
)
def test_what_caches_and_padding_do(name, cached, padded):
    model = make_tiny(name)
    assert find_cache_support(model) == CacheSupport(cached=cached, padded=padded)


def generate_naively(model, prompt, num_tokens):
    """Choose the likeliest token again and again, the whole text read anew each time."""
    ids = list(prompt)
    for _ in range(num_tokens):
        with torch.no_grad():
            logits = model.model(input_ids=torch.tensor([ids]), use_cache=False).logits
        token = int(logits[0, -1].argmax())
        if token == 2:
            break
        ids.append(token)
    return tuple(ids[len(prompt) :])


PROMPTS = [(5, 9, 30, 7, 12), (8, 3), (40, 41, 42), (21, 9, 9, 30, 5, 4, 17), (6,), (33, 3, 18)]


@pytest.mark.parametrize("name", [QWEN, JAMBA, FALCON, LFM, "BambaForCausalLM", MINIMAX, GEMMA])
def test_generation_of_unequal_prompts_is_that_of_each_alone(name):
    """Rows end at different times: the ends are tokens that some of the answers hold."""
    pair = pair_of(name)
    num_tokens = 5
    wanted = [generate_naively(pair.unlearned, prompt, num_tokens) for prompt in PROMPTS]
    found = dict(generate_continuations(pair.unlearned, PROMPTS, num_tokens=num_tokens))
    assert [found[number] for number in range(len(PROMPTS))] == wanted
    stop = next(answer[1] for answer in wanted if len(answer) > 1)
    ends = [interp.models.Ends(token_ids=frozenset({stop}))] * len(PROMPTS)
    found = dict(generate_continuations(pair.unlearned, PROMPTS, num_tokens=num_tokens, ends=ends))
    cut = [answer[: answer.index(stop)] if stop in answer else answer for answer in wanted]
    assert [found[number] for number in range(len(PROMPTS))] == cut
    assert len({len(answer) for answer in cut}) > 1


@pytest.mark.parametrize("name", [QWEN, JAMBA, LFM, MINIMAX, GEMMA])
def test_generation_restored(name):
    pair = pair_of(name)
    item = Restoration(sites=("attn",), layers=(1, 2))
    with apply_restoration(pair, item):
        found = dict(generate_continuations(pair.base, PROMPTS, num_tokens=4))
        wanted = [generate_naively(pair.base, prompt, 4) for prompt in PROMPTS]
    assert [found[number] for number in range(len(PROMPTS))] == wanted
    plain = dict(generate_continuations(pair.base, PROMPTS, num_tokens=4))
    assert plain != found


@pytest.mark.parametrize("name", [QWEN, FALCON])
def test_nnsight_has_the_losses_of_full(name):
    pytest.importorskip("nnsight")
    sites = ["coef", "value", "mlp_out", "resid", *(["attn"] if name == QWEN else [])]
    restorations = [Restoration(sites=(site,), layers=(1, 2, 3)) for site in sites]
    items = mixed_trajectories(2)
    by_full = measure(name, "full", items, restorations)
    torch.testing.assert_close(
        nnsight.measure(pair_of(name), items, restorations).losses, by_full, rtol=1e-5, atol=1e-9
    )


def test_what_is_refused_is_said():
    pair = pair_of(MINIMAX)
    with (
        apply_restoration(pair, Restoration(sites=("attn",), layers=(1,))),
        pytest.raises(ValueError, match="a DynamicCache does not hold all that MiniMaxForCausalLM"),
    ):
        pair.base.model(input_ids=torch.tensor([[3, 4]]), past_key_values=DynamicCache())
    qwen, falcon = pair_of(QWEN).vanilla, pair_of(FALCON).vanilla
    for sites, engine, says in (
        (("head",), "layered", r"layer 0 of 'M0' mixes tokens by GatedDeltaNet: .* are 3"),
        (("head@1[0]",), "full", "layer 1 of 'M0' mixes tokens by GatedDeltaNet"),
        (("attn_weights",), "nnsight", "nnsight cannot restore the site 'attn_weights' of 'M0'"),
    ):
        with pytest.raises(ValueError, match=says):
            SweepConfig(sites=sites, window=1, engine=engine).check_models(qwen)
    SweepConfig(sites=("head@3[1]",), window=1).check_models(qwen)
    with pytest.raises(ValueError, match="nnsight cannot restore the site 'attn' of 'M0'"):
        SweepConfig(sites=("attn",), window=1, engine="nnsight").check_models(falcon)
    with pytest.raises(ValueError, match=r"two token mixers side by side \(mamba and self_attn"):
        interp.run_with_cache(falcon, "w3 w4", sites=["attn"])


def test_heads_of_a_hybrid_are_those_of_its_attention_layers():
    """All heads of a layer are its attention state before the output projection."""
    pair = pair_of(QWEN)
    width = pair.vanilla.model.get_submodule("model.layers.3.self_attn.o_proj").in_features
    assert pair.vanilla.anatomy.channels("head", [1], 3) == list(range(width // 4, width // 2))
    items = mixed_trajectories(2)
    restorations = [
        Restoration(sites=("head",), layers=(3,), units=((0, 2),)),
        Restoration(sites=("head",), layers=(3,), units=((0, 1, 2, 3),)),
        Restoration(sites=("head",), layers=(3,)),
    ]
    by_full, by_layered = (measure(QWEN, engine, items, restorations) for engine in ENGINES)
    torch.testing.assert_close(by_layered, by_full, rtol=1e-5, atol=0)
    torch.testing.assert_close(by_full[1], by_full[2], rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", [QWEN, JAMBA, FALCON, GRANITE, LFM, GEMMA])
def test_half_precision_has_the_same_anatomy(name):
    right = pair_of(name).vanilla.anatomy
    half = make_tiny(name, **CHANGES.get(name, {})).to(torch.bfloat16)
    found = find_anatomy(half)
    check_anatomy(half, found)
    assert [parts.paths for parts in found.layers] == [parts.paths for parts in right.layers]
    assert not can_share_prefix(half)


def test_a_sweep_answers_and_a_restored_table():
    pair = pair_of(QWEN)
    answers = interp.trajectories(
        pair.vanilla, [question(0), question(1, words=7)], num_tokens=3, progress=False
    )
    for item in answers:
        assert item.answer_ids == generate_naively(pair.vanilla, item.prompt_ids, 3)
    table = interp.restored_answers(
        pair.vanilla,
        pair.unlearned,
        answers,
        site="resid",
        layer=3,
        window=1,
        progress=False,
        num_tokens=3,
    )
    # The residual stream after the last layer is all that V's own readout would read, not U's.
    assert (table["vanilla"] != table["unlearned"]).any()
    with_readout = dataclasses.replace(
        Restoration(sites=("resid", "norms", "unembed"), layers=(3,)), centre=3
    )
    with apply_restoration(pair, with_readout):
        found = dict(
            generate_continuations(pair.base, [item.prompt_ids for item in answers], num_tokens=3)
        )
    assert [found[n] for n in range(2)] == [item.answer_ids for item in answers]


def test_lora_adapts_linear_maps_alone():
    """Of Falcon-H1 not the state space's output projection, whose weight kernels read."""
    trainable = TrainableModel(pair_of(FALCON).vanilla, "lora", layers=[1], lora_rank=2)
    adapted = {name.partition(".lora_")[0].partition("layers.1.")[2] for name in trainable.trained}
    assert adapted == {
        "mamba.in_proj",
        *(f"self_attn.{name}_proj" for name in "qkvo"),
        *(f"feed_forward.{name}_proj" for name in ("gate", "up", "down")),
    }
