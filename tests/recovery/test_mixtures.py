"""Mixtures of experts: what is put back is what the definition says, in both engines.

The reference is written out by hand, densely: g and a of every expert, of every token.
"""

from __future__ import annotations

import copy
from contextlib import ExitStack
from functools import cache

import pytest
import torch
from torch import nn

import interp
from interp.recovery import NOTHING, Pair, Restoration, SweepConfig, full, layered, make_batch
from interp.recovery.cost_estimate import _count_weights, _OperationCounter
from interp.recovery.hooks import record
from interp.recovery.sweep import NO_ROUTER
from tests.helpers.architecture_table import make_pair
from tests.helpers.every_architecture import make_tiny
from tests.helpers.tiny_models import mixed_trajectories, tiny, trajectories_after, wrap

NUM_EXPERTS, LAYERS = 4, (1, 2, 3)
TRAJECTORIES = mixed_trajectories(3)
FAMILIES = (
    "MixtralForCausalLM",
    "Qwen3MoeForCausalLM",
    "GptOssForCausalLM",
    "DeepseekV3ForCausalLM",
    "Qwen2MoeForCausalLM",
)
ENGINES = {"full": full.measure, "layered": layered.measure}


@cache
def pair_of(name: str) -> Pair:
    vanilla, unlearned = make_pair(name)
    return Pair(vanilla=vanilla, unlearned=unlearned)


class Dense:
    """One layer's mixture, all experts computed for all tokens: weights by site, and formulas."""

    def __init__(self, name: str, model: nn.Module, layer: int) -> None:
        self.name = name
        self.mlp = model.get_submodule(f"model.layers.{layer}.mlp")
        self.experts = self.mlp.get_submodule("experts")
        self.shared = getattr(self.mlp, "shared_experts", getattr(self.mlp, "shared_expert", None))

    def route(self, x):
        """G of every expert [token, E], 0 where it is not chosen, and of the shared one."""
        router = self.mlp.router if self.name == "GptOssForCausalLM" else self.mlp.gate
        _, weights, chosen = router(x)
        g = torch.zeros(len(x), NUM_EXPERTS).scatter(1, chosen, weights)
        gate = torch.ones(len(x), 1)
        if self.name == "Qwen2MoeForCausalLM":
            gate = torch.sigmoid(self.mlp.shared_expert_gate(x))
        return g, gate

    def activate(self, x):
        """The activations of every expert [token, E, f], and of the shared one."""
        if self.name == "GptOssForCausalLM":
            raw = torch.einsum("nd,edf->nef", x, self.experts.gate_up_proj)
            raw = raw + self.experts.gate_up_proj_bias
            gate, up = raw[..., 0::2].clamp(max=7.0), raw[..., 1::2].clamp(-7.0, 7.0)
            return (up + 1) * gate * torch.sigmoid(1.702 * gate), None
        raw = torch.einsum("nd,efd->nef", x, self.experts.gate_up_proj)
        gate, up = raw.chunk(2, dim=-1)
        active = nn.functional.silu(gate) * up
        if self.shared is None:
            return active, None
        mine = nn.functional.silu(self.shared.gate_proj(x)) * self.shared.up_proj(x)
        return active, mine

    def values(self):
        """The value vectors [E, f, d], biases [E, d], and the shared expert's vectors [f, d]."""
        down = self.experts.down_proj
        if self.name == "GptOssForCausalLM":
            return down, self.experts.down_proj_bias, None
        shared = None if self.shared is None else self.shared.down_proj.weight.T
        return down.transpose(1, 2), torch.zeros(NUM_EXPERTS, down.shape[1]), shared


def run_by_hand(name, vanilla, unlearned, ids, site, layers, units):
    """Compute V's logits, and U's with V's site in some layers, mixtures by the formulas."""
    inputs = {}

    def keep(layer):
        return lambda _m, args: inputs.update({layer: args[0].flatten(0, -2).clone()})

    def compute(layer):
        v, u = Dense(name, vanilla, layer), Dense(name, unlearned, layer)

        def hook(_module, args, output):
            x, x_v = args[0].flatten(0, -2), inputs[layer]
            g, gate = (v if site == "router_weights" else u).route(x)
            a, shared = (v if site == "key" else u).activate(x)
            down, bias, shared_down = (v if site == "value" else u).values()
            if site in ("coef", "router"):
                g, gate = v.route(x_v)
            if site == "coef":
                a, shared = v.activate(x_v)
            m = g[..., None] * a
            m_shared = None if shared is None else gate * shared
            if site == "units":
                (g_v, gate_v), (a_v, shared_v) = v.route(x_v), v.activate(x_v)
                m_v, width = g_v[..., None] * a_v, a.shape[-1]
                for unit in units:
                    expert, neuron = divmod(unit, width)
                    if expert < NUM_EXPERTS:
                        m[:, expert, neuron] = m_v[:, expert, neuron]
                    else:
                        place = unit - NUM_EXPERTS * width
                        m_shared[:, place] = (gate_v * shared_v)[:, place]
            new = torch.einsum("nef,efd->nd", m, down) + g @ bias
            if m_shared is not None:
                new = new + m_shared @ shared_down
            if isinstance(output, tuple):
                return new.view_as(output[0]), *output[1:]
            return new.view_as(output)

        return hook

    handles = []
    for layer in layers:
        path = f"model.layers.{layer}.mlp"
        handles.append(vanilla.get_submodule(path).register_forward_pre_hook(keep(layer)))
        handles.append(unlearned.get_submodule(path).register_forward_hook(compute(layer)))
    with torch.no_grad():
        wanted = vanilla(input_ids=ids, use_cache=False).logits
        logits = unlearned(input_ids=ids, use_cache=False).logits
    for handle in handles:
        handle.remove()
    return wanted, logits


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_put_back_is_what_the_definition_says(name):
    """By hand: Σₑ gₑ (Σᵢ aₑᵢ vₑᵢ + bₑ) + g_shared Σᵢ aᵢ vᵢ, parts of it V's."""
    pair = pair_of(name)
    mixture = pair.base.anatomy.layers[3].mixture
    assert mixture is not None
    units = (0, 1, mixture.num_experts * mixture.width - 1, mixture.num_units - 1)
    sites = ("coef", "router", "router_weights", "value", "key")
    restorations = [Restoration(sites=(site,), layers=LAYERS) for site in sites]
    restorations.append(Restoration(sites=("coef",), layers=LAYERS, units=(units,) * 3))
    found = {
        engine: measure(pair, TRAJECTORIES, restorations).losses
        for engine, measure in ENGINES.items()
    }
    for row, restoration in enumerate(restorations):
        for column, item in enumerate(TRAJECTORIES):
            ids = torch.tensor([[*item.prompt_ids, *item.answer_ids]])
            scored = slice(len(item.prompt_ids) - 1, ids.shape[1] - 1)
            wanted, logits = run_by_hand(
                name,
                pair.vanilla.model,
                pair.unlearned.model,
                ids,
                "units" if restoration.units else restoration.sites[0],
                LAYERS,
                units,
            )
            loss = ((wanted - logits)[0, scored] ** 2).mean().item()
            for engine, losses in found.items():
                assert losses[row, column].item() == pytest.approx(loss, rel=1e-4), (
                    engine,
                    restoration.site,
                )
    # They are six different things.
    assert len({round(loss, 6) for loss in found["full"][:, 0].tolist()}) == 6


def copy_changed(model, names: str, *, seed: int = 5):
    """Copy a model with other weights in layer 2, of those whose name ends so."""
    changed = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    count = 0
    for name, tensor in [*changed.named_parameters(), *changed.named_buffers()]:
        if name.startswith("model.layers.2.mlp") and name.endswith(names):
            tensor.data += torch.randn(tensor.shape, generator=generator)
            count += 1
    assert count
    return changed


def krs_of(vanilla, unlearned, *sites: str, answers=TRAJECTORIES) -> dict[str, float]:
    """KRS of layer 2 alone, by site, to five digits."""
    recovery = interp.sweep(
        wrap(vanilla, name="V"),
        wrap(unlearned, name="U"),
        answers,
        sites=[f"{site}@2" if "[" not in site else site.replace("[", "@2[") for site in sites],
        window=1,
        progress=False,
    )
    return recovery.krs().set_index("site")["krs"].round(5).to_dict()


@pytest.mark.parametrize(
    ("name", "router", "values"),
    [
        ("MixtralForCausalLM", "mlp.gate.weight", "down_proj"),
        ("GptOssForCausalLM", ("router.weight", "router.bias"), ("down_proj", "down_proj_bias")),
        ("DeepseekV3ForCausalLM", "gate.e_score_correction_bias", "down_proj"),
        ("DeepseekV3ForCausalLM", "mlp.gate.weight", "shared_experts.down_proj.weight"),
        ("Qwen2MoeForCausalLM", "shared_expert_gate.weight", "experts.down_proj"),
    ],
)
def test_a_change_of_the_router_alone_and_one_of_the_experts_alone(name, router, values):
    """U is V but for one part of layer 2, so that what it reads there is V's."""
    vanilla, sites = make_tiny(name), ("router", "router_weights", "coef", "value", "key")
    found = krs_of(vanilla, copy_changed(vanilla, router), *sites)
    assert found == {"router": 1, "router_weights": 1, "coef": 1, "value": 0, "key": 0}
    found = krs_of(vanilla, copy_changed(vanilla, values), *sites)
    assert found == {"router": 0, "router_weights": 0, "coef": 0, "value": 1, "key": 0}


def test_a_change_of_one_neuron_is_that_unit():
    """Expert 1's neuron 5 of f = 24 is unit 24 + 5: its first matrices alone are other."""
    vanilla = make_tiny("MixtralForCausalLM")
    edited = copy.deepcopy(vanilla)
    edited.model.layers[2].mlp.experts.gate_up_proj.data[1, 5] += 3.0
    sites = ("coef", "coef[29]", "coef[28]", "key", "router")
    answers = trajectories_after([3, 9, 12], num=6)
    found = krs_of(vanilla, edited, *sites, answers=answers)
    assert found == {"coef": 1, "coef[29]": 1, "coef[28]": 0, "key": 1, "router": 0}


@pytest.mark.parametrize("name", ["GptOssForCausalLM", "Qwen2MoeForCausalLM"])
@pytest.mark.parametrize("direction", ["restore", "corrupt"])
def test_engines_agree_at_positions_and_behind_a_prefix(name, direction):
    there = pair_of(name)
    pair = Pair(vanilla=there.vanilla, unlearned=there.unlearned, direction=direction)
    width = pair.base.anatomy.num_units("coef")
    apart = ((0, width - 1), (), (7,))
    restorations = [
        Restoration(sites=sites, layers=layers, positions=positions, units=units)
        for positions in ("all", "prompt", "answer")
        for sites, layers, units in (
            (("coef",), (0, 1), None),
            (("router",), (0, 2, 3), None),
            (("coef", "attn"), (2, 3), None),
            (("coef", "value"), (1, 3), None),
            (("attn", "router"), (1, 2), None),
            (("coef", "router"), (1, 2), None),
            (("key", "router_weights"), (1, 2), None),
            (("value", "router_weights", "router"), (0, 3), None),
            (("mlp_out",), (0, 3), None),
            (("coef",), (0, 1, 3), apart),
        )
    ]
    answers = trajectories_after(range(3, 40))
    found = [measure(pair, answers, restorations).losses for measure in ENGINES.values()]
    between, *_ = full.measure(there, answers, [NOTHING]).losses
    assert ((found[0] - found[1]).abs() < 1e-5 * between).all()
    # Every restoration changes something.
    none, *_ = full.measure(pair, answers, [NOTHING]).losses
    assert ((found[0] - none).abs().amax(dim=1) > 1e-4 * between.max()).all()


@pytest.mark.parametrize("name", ["MixtralForCausalLM", "GptOssForCausalLM"])
@pytest.mark.parametrize("kind", ["eager", "batched_mm", "grouped_mm"])
def test_recording_moves_no_number_whatever_runs_the_experts(name, kind):
    model = wrap(make_tiny(name), name="V")
    model.model.set_experts_implementation(kind)
    batch = make_batch(TRAJECTORIES, device=torch.device("cpu"))
    plain = record(model.anatomy, batch, ()).final
    recorded = record(model.anatomy, batch, {"coef"})
    assert (recorded.final - plain).abs().max() < 1e-6 * plain.abs().max()
    # Of 4 experts with f neurons, only the two chosen are kept.
    states, mixture = recorded.layers[1].mixture, model.anatomy.layers[1].mixture
    assert states is not None
    assert mixture is not None
    assert states.activations is not None
    assert states.activations.shape == (*batch.input_ids.shape, 2, mixture.width)
    assert not any("forward" in module.__dict__ for module in model.model.modules())


def test_models_are_as_before():
    pair = pair_of("Qwen2MoeForCausalLM")
    models = (pair.vanilla.model, pair.unlearned.model)
    before = [{**dict(m.named_parameters()), **dict(m.named_buffers())} for m in models]
    copies = [{name: tensor.clone() for name, tensor in of.items()} for of in before]
    for site in ("coef", "router", "router_weights", "value", "key"):
        for measure in ENGINES.values():
            measure(pair, TRAJECTORIES, [Restoration(sites=(site,), layers=LAYERS)])
    for model, tensors, kept in zip(models, before, copies, strict=True):
        after = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        for name, tensor in after.items():
            assert tensor is tensors[name]
            assert torch.equal(tensor, kept[name])
        for module in model.modules():
            assert not module._forward_hooks
            assert not module._forward_pre_hooks
            assert "forward" not in module.__dict__


def test_dense_layers_among_mixtures_have_no_router():
    """DeepSeek's first layer is dense: its window says so, others hold what routers they have."""
    pair = pair_of("DeepseekV3ForCausalLM")
    table = interp.sweep(
        pair.vanilla,
        pair.unlearned,
        TRAJECTORIES,
        sites=["router", "router_weights", "coef"],
        window=1,
        progress=False,
    )
    krs = table.krs().set_index(["site", "layer"])
    for site in ("router", "router_weights"):
        assert krs.loc[(site, 0), "krs"] != krs.loc[(site, 0), "krs"]
        assert NO_ROUTER in krs.loc[(site, 0), "reason"]
        assert krs.loc[(site, 1), "reason"] == ""
    assert krs.loc[("coef", 0), "reason"] == ""
    with pytest.raises(ValueError, match=r"layer 0 .* has no router; layers .* are 1, 2, 3$"):
        interp.sweep(
            pair.vanilla, pair.unlearned, TRAJECTORIES, sites=["router@0"], window=1, progress=False
        )
    wider = [Restoration(sites=("router",), layers=layers) for layers in ((0, 1), (1,))]
    both = full.measure(pair, TRAJECTORIES, wider).losses
    torch.testing.assert_close(both[0], both[1], rtol=0, atol=0)


def test_a_token_meets_its_own_experts():
    """What the engines plan with: k of E experts, and what is kept of a token."""
    config = SweepConfig(sites=("coef",), window=1)
    expert, dense = 2 * 12 * 32 + 12 * 32, 3 * 24 * 32
    for name, weights, stored in (
        ("MixtralForCausalLM", 2 * (2 * 24 * 32 + 24 * 32), 2 * (24 + 2) + 1),
        # Two routed experts and the shared one; the first of four layers is dense.
        ("DeepseekV3ForCausalLM", (dense + 3 * 3 * expert) / 4, 2 * (12 + 2) + 12 + 1),
    ):
        pair = pair_of(name)
        assert _OperationCounter(pair, config).count_forward(1) / 4 == pytest.approx(
            weights + _count_weights(pair.base.anatomy.layers[0].attn_weights)
        )
        assert pair.base.anatomy.layers[1].stored_width == stored


def test_units_out_of_range_are_named_by_layer():
    """24 in the dense layer; 4 experts of 12 and a shared one of 12 elsewhere."""
    pair = pair_of("DeepseekV3ForCausalLM")
    models = pair.vanilla, pair.unlearned
    anatomy = pair.vanilla.anatomy
    assert [parts.num_units for parts in anatomy.layers] == [24, 60, 60, 60]
    sweep = {"window": 1, "progress": False}
    interp.sweep(*models, TRAJECTORIES, sites=["coef@1[59]"], **sweep)
    with pytest.raises(ValueError, match=r"coefficient 60 .* out of range 0 to 59"):
        interp.sweep(*models, TRAJECTORIES, sites=["coef@1[60]"], **sweep)
    with pytest.raises(ValueError, match=r"coefficient 24 .* out of range 0 to 23"):
        interp.sweep(*models, TRAJECTORIES, sites=["coef[24]"], **sweep)


def test_what_mixtures_and_dense_models_are_refused():
    pair = pair_of("MixtralForCausalLM")
    models = pair.vanilla, pair.unlearned
    dense = tiny("llama"), tiny("llama", seed=1)
    sweep = {"window": 1, "progress": False}
    with pytest.raises(ValueError, match=r"'router' is one of mixtures of experts.*dense"):
        interp.sweep(*dense, TRAJECTORIES, sites=["router"], **sweep)
    for engine in ("transformer_lens", "nnsight"):
        says = f"{engine} cannot restore the site 'coef' of a mixture"
        with pytest.raises(ValueError, match=says):
            interp.sweep(*models, TRAJECTORIES, sites=["attn", "coef"], engine=engine, **sweep)
    for site in ("coef", "router"):
        no_tensor = f"{site} of a mixture of experts is no one tensor"
        with pytest.raises(ValueError, match=no_tensor), interp.restore(*models[::-1], site):
            pass
        with pytest.raises(ValueError, match=no_tensor):
            interp.run_with_cache(models[0], ["w3 w4"], [site])
    with pytest.raises(ValueError, match="single coefficients cannot be ranked"):
        interp.attribution(*models, TRAJECTORIES, progress=False)


@pytest.mark.parametrize("site", ["attn", "mlp_out", "value", "router_weights"])
def test_restore_runs_the_bare_model_restored(site):
    pair = pair_of("GptOssForCausalLM")
    item = TRAJECTORIES[0]
    ids = torch.tensor([[*item.prompt_ids, *item.answer_ids]])
    scored = slice(len(item.prompt_ids) - 1, ids.shape[1] - 1)
    with ExitStack() as stack, torch.no_grad():
        wanted = pair.vanilla.model(input_ids=ids).logits
        stack.enter_context(interp.restore(pair.unlearned, pair.vanilla, site, layers=LAYERS))
        logits = pair.unlearned.model(input_ids=ids).logits
    found = full.measure(pair, [item], [Restoration(sites=(site,), layers=LAYERS)]).losses.item()
    assert ((wanted - logits)[0, scored] ** 2).mean().item() == pytest.approx(found, rel=1e-5)
