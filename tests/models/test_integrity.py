"""Models in memory: what computes beside the weights is refused in a sentence, by every door."""

from __future__ import annotations

import copy
import gc
import types
import warnings
from functools import partial

import pytest
import torch
from accelerate import cpu_offload, cpu_offload_with_hook, dispatch_model
from peft import IA3Config, LoraConfig, get_peft_model, inject_adapter_in_model
from torch import nn
from torch.nn.utils import parametrizations, weight_norm
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaMLP

import interp
from interp.behaviour import apply_logit_lens, generate, measure_drift, probe, quantise_model
from interp.models.integrity import check_copyable, check_runnable
from interp.models.loading import load
from interp.models.pairs import copy_with_shared_tensors
from interp.unlearning import TrainableModel
from tests.helpers.tiny_models import mixed_trajectories, question, save, tiny, tiny_model, wrap

IDS = torch.tensor([[1, 5, 9, 13, 30, 41]])
QUERIES = [
    interp.Query(id=f"q{number}", language="en", prompt=f"w{number} w8", answer=f"w{number + 1}")
    for number in (5, 6, 7)
]
SHIFT = 3 * torch.eye(50)[7]
TERNARY = interp.behaviour.ROUNDINGS["int4"]


def hooked(module: nn.Module) -> None:
    module.register_forward_hook(lambda _m, _a, output: output)


def halve(model: nn.Module, path: str) -> None:
    module = model.get_submodule(path)
    own = module.forward
    module.forward = lambda *args, **kwargs: own(*args, **kwargs) * 0.5


def bound(module: nn.Module) -> None:
    module.forward = types.MethodType(lambda self, x: x, module)


def layer_in_bfloat16(model: nn.Module) -> None:
    model.model.layers[1].mlp.to(torch.bfloat16)


def dropout_alone(model: nn.Module) -> None:
    model.model.layers[1].self_attn.train()


class Wrapped(nn.Module):
    """Layer around a layer."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, *args, **kwargs):
        return self.inner(*args, **kwargs)


class CastHead(nn.Sequential):
    """Unembedding as training scripts make it, cast to float32."""

    def forward(self, x):
        return super().forward(x).float()


class Biased(nn.Linear):
    """Linear map that does more than its weight says."""

    def forward(self, x):
        return super().forward(x) + 0.1


class Doubled(LlamaDecoderLayer):
    """Layer that does not add to the residual stream."""

    def forward(self, *args, **kwargs):
        return super().forward(*args, **kwargs) * 2


class Steered(LlamaMLP):
    """MLP that returns more than its down projection."""

    def forward(self, x):
        return super().forward(x) + 0.1


def of_class(path: str, kind: type):
    def change(model: nn.Module) -> None:
        model.get_submodule(path).__class__ = kind

    return change


CHANGES = {
    "training": (lambda m: m.train(), r"training mode: call model.eval\(\)"),
    "dropout": (dropout_alone, r"training mode \(model.layers.1.self_attn\)"),
    "hook on logits": (hooked, r"hook of '.*test_integrity' \(at the model itself\)"),
    "hook on unembedding": (lambda m: hooked(m.lm_head), r"\(at lm_head\): remove it"),
    "pre-hook": (
        lambda m: m.model.norm.register_forward_pre_hook(lambda _m, args: args),
        r"hook of .*\(at model.norm\)",
    ),
    "partial": (
        lambda m: m.model.register_forward_hook(partial(lambda *_run: None, 1)),
        r"hook of .*\(at model\)",
    ),
    "builtin": (lambda m: m.model.register_forward_hook(len), r"hook of 'builtin.*\(at model\)"),
    "weight norm": (
        lambda m: weight_norm(m.model.layers[0].mlp.up_proj),
        r"hook of 'torch.nn.utils.weight_norm' \(at model.layers.0.mlp.up_proj\)",
    ),
    "mlp": (partial(halve, path="model.layers.0.mlp"), "forward of its own .at model.layers.0.mlp"),
    "root": (lambda m: setattr(m, "forward", m.model.forward), "forward of its own .at the model"),
    "method": (lambda m: bound(m.model.norm), r"forward of its own \(at model.norm\) in place of"),
    "generate": (lambda m: setattr(m, "generate", print), "generate of its own"),
    "compiled forward": (
        lambda m: setattr(m.model, "forward", torch.compile(m.model.forward, backend="eager")),
        r"is compiled \(at model\)",
    ),
    "compiled": (
        lambda m: m.model.layers[2].compile(backend="eager"),
        r"is compiled \(at model.layers.2\)",
    ),
    "optimized": (
        lambda m: setattr(m.model.layers[1], "mlp", torch.compile(m.model.layers[1].mlp)),
        r"is compiled \(at model.layers.1.mlp\)",
    ),
    "parametrized": (
        lambda m: parametrizations.weight_norm(m.model.layers[0].mlp.down_proj),
        r"parametrized weights \(at model.layers.0.mlp.down_proj\)",
    ),
    "lora": (
        lambda m: inject_adapter_in_model(LoraConfig(target_modules=["down_proj"]), m),
        r"modules of an adapter inside \(at model.layers.0.mlp.down_proj\)",
    ),
    "add_adapter": (
        lambda m: (m.add_adapter(LoraConfig(target_modules=["q_proj"])), m.eval()),
        r"modules of an adapter inside \(at model.layers.0.self_attn.q_proj\)",
    ),
    "ia3": (
        lambda m: inject_adapter_in_model(
            IA3Config(target_modules=["k_proj"], feedforward_modules=[]), m
        ),
        r"modules of an adapter inside \(at model.layers.0.self_attn.k_proj\)",
    ),
    "precision": (layer_in_bfloat16, r"several precisions \(model.layers.1.mlp.gate_proj.weight"),
    "embedding's precision": (
        lambda m: m.model.embed_tokens.to(torch.bfloat16),
        r"several precisions \(model.layers.0.self_attn.q_proj.weight is float32, the first bflo",
    ),
    "offloaded": (lambda m: cpu_offload(m, torch.device("cpu")), "offloaded from the device"),
    "fetched": (lambda m: cpu_offload_with_hook(m, torch.device("cpu")), "offloaded from the dev"),
    "meta": (lambda m: m.model.layers[3].to("meta"), "offloaded from the device"),
    "wrapped layer": (
        lambda m: m.model.layers.__setitem__(1, Wrapped(m.model.layers[1]).eval()),
        "other modules than its class",
    ),
    "cast unembedding": (
        lambda m: setattr(m, "lm_head", CastHead(m.lm_head).eval()),
        "the unembedding of this LlamaForCausalLM is a CastHead, not a Linear",
    ),
    "own unembedding": (of_class("lm_head", Biased), r"unembed.* is not the logits"),
    "own values": (of_class("model.layers.2.mlp.down_proj", Biased), "layer 2: the coefficients"),
    "own projection": (of_class("model.layers.2.mlp", Steered), "layer 2: the coefficients times"),
    "own layer": (of_class("model.layers.3", Doubled), "layer 3: it does not add its blocks"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_computes_beside_the_weights_is_refused(what):
    change, message = CHANGES[what]
    model = wrap(tiny_model(), name="M")
    check_runnable(model, adapters=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        change(model.model)
        with pytest.raises(ValueError, match=message) as error:
            check_runnable(model, adapters=False)
    assert "\n" not in str(error.value)


def test_hooks_on_all_modules():
    handle = nn.modules.module.register_module_forward_hook(lambda _m, _a, output: output)
    try:
        with pytest.raises(ValueError, match="is on all modules of this process"):
            check_runnable(tiny())
    finally:
        handle.remove()
    check_runnable(tiny())


def recording(model: nn.Module) -> None:
    """Transformers leaves its own hooks on a model that has once returned its states."""
    model(IDS, output_hidden_states=True, output_attentions=True)
    assert any(module._forward_hooks for module in model.modules())


def trained(model: nn.Module) -> None:
    model.enable_input_require_grads()
    model.config.use_cache = False


KEPT = {
    "recorded states": recording,
    "spread": lambda m: dispatch_model(m, {"": "cpu"}, force_hooks=True),
    "spread and back": lambda m: (
        gc.collect()
        or __import__("accelerate").hooks.remove_hook_from_submodules(
            dispatch_model(m, {"": "cpu"}, force_hooks=True)
        )
    ),
    "trained": trained,
    "own forward put back": lambda m: setattr(m.model.norm, "forward", m.model.norm.forward),
}


@pytest.mark.parametrize("what", KEPT)
def test_what_libraries_leave_on_a_model_is_accepted(what):
    vanilla, unlearned = tiny(), tiny(seed=1)
    expected = interp.sweep(
        vanilla, unlearned, mixed_trajectories(), sites=["coef", "value"], progress=False
    )
    for model in (vanilla.model, unlearned.model):
        KEPT[what](model)
    found = interp.sweep(
        vanilla, unlearned, mixed_trajectories(), sites=["coef", "value"], progress=False
    )
    assert found.losses.equals(expected.losses)
    copied = copy_with_shared_tensors(unlearned.model, own=())
    weight = copied.model.layers[1].mlp.down_proj.weight
    assert torch.equal(copied(IDS).logits, unlearned.model(IDS).logits)
    # A copy of a spread model calls its own modules, not the original's.
    copied.model.layers[1].mlp.down_proj.weight = nn.Parameter(weight * 2, requires_grad=False)
    assert not torch.equal(copied(IDS).logits, unlearned.model(IDS).logits)


@pytest.mark.parametrize("architecture", ["gemma2", "gpt2", "bloom", "opt_post_norm"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_accepted(architecture, dtype):
    check_runnable(wrap(tiny_model(architecture).to(dtype)), adapters=False)


def test_norms_in_float32_are_accepted():
    model = tiny_model("gpt2").to(torch.bfloat16)
    model.transformer.ln_f.float()
    check_runnable(wrap(model))


def test_states_that_overflow_prove_nothing_and_refuse_nothing():
    model = tiny()
    for part in ("up_proj", "down_proj"):
        getattr(model.model.model.layers[1].mlp, part).weight.mul_(1e30)
    assert not model.model(IDS).logits.isfinite().any()
    check_runnable(model)


def test_modules_replaced_after_a_proof_are_seen():
    vanilla, model = tiny(), tiny(seed=1)
    interp.sweep(vanilla, model, mixed_trajectories(), sites=["coef"], progress=False)
    stale = model.anatomy
    model.model.model.layers[2].mlp = copy.deepcopy(model.model.model.layers[2].mlp)
    assert model.anatomy is stale
    check_runnable(model)
    assert model.anatomy.layers[2].values is model.model.model.layers[2].mlp.down_proj
    model.model.model.layers[2].mlp.__class__ = Steered
    with pytest.raises(ValueError, match="layer 2: the coefficients times"):
        interp.sweep(vanilla, model, mixed_trajectories(), sites=["coef"], progress=False)


DOORS = {
    "sweep, V": lambda m, o: interp.sweep(m, o, mixed_trajectories(), progress=False),
    "sweep, U": lambda m, o: interp.sweep(o, m, mixed_trajectories(), progress=False),
    "trajectories": lambda m, _: interp.trajectories(m, QUERIES, num_tokens=2, progress=False),
    "attribution": lambda m, o: interp.attribution(m, o, mixed_trajectories(), progress=False),
    "run_with_cache": lambda m, _: interp.run_with_cache(m, "w4 w5"),
    "hooks": lambda m, _: interp.hooks(m, [("model.norm", lambda *_: None)]).__enter__(),
    "restore": lambda m, o: interp.restore(o, m, "coef").__enter__(),
    "restored_answers": lambda m, o: interp.restored_answers(m, o, QUERIES, window=1),
    "load": lambda m, _: load(m),
    "generate": lambda m, _: generate(m, QUERIES, num_tokens=2),
    "evaluate": lambda m, _: interp.evaluate(m, QUERIES, ["accuracy"], progress=False),
    "probe": lambda m, _: probe(m, QUERIES),
    "logit lens": lambda m, _: apply_logit_lens(m, QUERIES),
    "drift": lambda m, o: measure_drift(m, o),
    "quantise": lambda m, _: quantise_model(m, TERNARY),
    "train": lambda m, _: TrainableModel(m, "mlp"),
    "to_transformer_lens": lambda m, _: interp.to_transformer_lens(m),
    "to_nnsight": lambda m, _: interp.to_nnsight(m),
}


@pytest.mark.parametrize("what", ["training", "hook on unembedding", "mlp"])
@pytest.mark.parametrize("door", DOORS)
def test_every_door_is_closed(door, what):
    change, message = CHANGES[what]
    model, other = tiny(), tiny(seed=1)
    change(model.model)
    with pytest.raises(ValueError, match=message):
        DOORS[door](model, other)


def test_what_is_loaded_like_an_altered_model(tmp_path):
    directory = save(tiny(seed=1), tmp_path / "U")
    for what in ("compiled forward", "mlp"):
        vanilla = tiny()
        CHANGES[what][0](vanilla.model)
        with pytest.raises(ValueError, match=CHANGES[what][1]):
            load(directory, like=vanilla)


# What is inside the blocks of this library


def test_evaluation_inside_restore_and_hooks():
    vanilla, unlearned = tiny(), tiny(seed=1)
    with interp.restore(unlearned, vanilla, "resid"):
        restored = [answer.text for answer in generate(unlearned, QUERIES, num_tokens=3)]
        table = probe(unlearned, QUERIES, progress=False)
    assert restored == [
        answer.text for answer in generate(wrap_twin(unlearned, vanilla), QUERIES, num_tokens=3)
    ]
    assert len(table) == len(QUERIES)
    with interp.hooks(unlearned, [("lm_head", lambda value, _: value + SHIFT * 1000)]):
        assert {answer.text for answer in generate(unlearned, QUERIES, num_tokens=2)} == {"w7 w7"}


def wrap_twin(unlearned, vanilla):
    """U with V's residual stream after the last layer: V but for the final norm and unembedding."""
    twin = copy.deepcopy(vanilla.model)
    twin.model.norm, twin.lm_head = unlearned.model.model.norm, unlearned.model.lm_head
    return wrap(twin)


def test_what_the_content_hash_does_not_know_is_not_kept(tmp_path):
    """Answers of a restored model would be read for those of the model itself."""
    vanilla, unlearned = tiny(), tiny(seed=1)
    cached = partial(generate, unlearned, QUERIES, num_tokens=2, cache=tmp_path / "answers.jsonl")
    cached()
    with interp.restore(unlearned, vanilla, "coef"):
        with pytest.raises(ValueError, match=r"inside interp.hooks or interp.restore .* outside"):
            cached()
        with pytest.raises(ValueError, match=r"inside interp.hooks or interp.restore"):
            interp.sweep(vanilla, unlearned, mixed_trajectories(), progress=False)
        with pytest.raises(ValueError, match=r"inside interp.hooks or interp.restore"):
            interp.evaluate(unlearned, QUERIES, out=tmp_path / "out", progress=False)
        with pytest.raises(ValueError, match="a copy would not be"):
            quantise_model(unlearned, TERNARY)
    cached()


def test_a_hook_that_would_be_passed_over_is_refused():
    """Log-probabilities are made of the unembedding's weights, block by block."""
    model = tiny()
    with interp.hooks(model, [("lm_head", lambda value, _: value * 2)]):
        for measure in (probe, apply_logit_lens):
            with pytest.raises(ValueError, match="hooks on its unembedding"):
                measure(model, QUERIES)
    with interp.hooks(model, [("model.norm", lambda value, _: value * 2)]):
        probe(model, QUERIES, progress=False)


# Copies


@pytest.mark.parametrize(
    "what", ["hook on logits", "mlp", "compiled", "compiled forward", "parametrized"]
)
def test_copies_carry_nothing_along(what):
    model = tiny_model()
    CHANGES[what][0](model)
    with pytest.raises(ValueError, match=CHANGES[what][1]):
        copy_with_shared_tensors(model, own=())
    with pytest.raises(ValueError, match="LlamaForCausalLM to be copied"):
        check_copyable(model)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_adapters_do_not_matter_to_answers():
    model = tiny_model()
    live = get_peft_model(copy.deepcopy(model), LoraConfig(target_modules=["up_proj"])).eval()
    for name, parameter in live.named_parameters():
        if "lora_B" in name:
            parameter.data += 0.3
    inside, merged = live.get_base_model(), copy.deepcopy(live).merge_and_unload()
    texts = [
        [answer.text for answer in generate(wrap(each), QUERIES, num_tokens=4)]
        for each in (inside, merged, model)
    ]
    assert texts[0] == texts[1] != texts[2]


# What is no model


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
def test_what_is_no_model():
    vanilla, unlearned = tiny(), tiny(seed=1)
    answers = mixed_trajectories()
    refused = [
        (
            ("path", unlearned, answers),
            r"vanilla must be a LanguageModel, not str: .*load\('path'\)",
        ),
        ((vanilla.model, unlearned, answers), "not LlamaForCausalLM: make one .*from_model"),
        ((vanilla, unlearned.model, answers), "unlearned must be a specification or a LanguageM"),
        ((vanilla, [unlearned, 3], answers), "unlearned must be a specification or .*, not int"),
        ((vanilla, {"U": unlearned}, answers), "not a dict: give its values"),
        ((vanilla, unlearned, ["w5 w6"]), "item 0 is a str: Query"),
        ((vanilla, unlearned, "w5 w6"), "answers must be a list of Trajectory or Query, not str"),
        ((vanilla, unlearned, {"q": question(1)}), "answers must be a list .*, not dict"),
        ((vanilla, unlearned, 3), "answers must be a list .*, not int"),
        ((vanilla, unlearned, None), "answers must be a list .*, not NoneType"),
    ]
    for arguments, message in refused:
        with pytest.raises(TypeError, match=message):
            interp.sweep(*arguments, progress=False)
    with pytest.raises(ValueError, match=r"no queries: give at least one"):
        interp.sweep(vanilla, unlearned, [], progress=False)
    with pytest.raises(TypeError, match="queries must be a list of Query, and item 1 is a int"):
        interp.trajectories(vanilla, [question(1), 3])
    with pytest.raises(TypeError, match="vanilla must be a LanguageModel, not Linear"):
        interp.trajectories(nn.Linear(2, 2), [question(1)])
    with pytest.raises(
        TypeError, match="spec must be a specification or a LanguageModel, not Llama"
    ):
        interp.load(vanilla.model)
    with pytest.raises(ValueError, match="not OptimizedModule: give the model as it was before"):
        interp.LanguageModel(torch.compile(vanilla.model), vanilla.tokenizer)


def test_what_is_meant_all_the_same():
    """An iterator is read once, one question is a list of one, one site is a list of one."""
    vanilla, unlearned = tiny(), tiny(seed=1)
    answers = mixed_trajectories()
    expected = interp.sweep(vanilla, unlearned, answers, sites=["coef"], progress=False).losses
    found = interp.sweep(vanilla, iter([unlearned]), iter(answers), sites="coef", progress=False)
    assert found.losses.equals(expected)
    alone = interp.sweep(vanilla, unlearned, answers[0], sites="coef", progress=False).losses
    assert set(alone["query_id"]) == {answers[0].query.id}


# What computes in another precision, or changes as it computes


def sweep_losses(vanilla, unlearned):
    return interp.sweep(
        vanilla, unlearned, mixed_trajectories(2), sites=["coef"], window=1, progress=False
    ).losses


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_autocast_is_refused_where_numbers_are_compared(precision, tmp_path):
    vanilla, unlearned = tiny(num_layers=2), tiny(num_layers=2, seed=1)
    places = save(vanilla, tmp_path / "V"), save(unlearned, tmp_path / "U")
    expected = sweep_losses(vanilla, unlearned)
    says = f"would compute in {str(precision).removeprefix('torch.')}, as torch.autocast is on"
    with torch.autocast("cpu", precision):
        for door in (
            lambda: sweep_losses(vanilla, unlearned),
            lambda: interp.run_with_cache(vanilla, "w5", ["coef"]),
            lambda: interp.restore(vanilla, unlearned, ["coef"], layers=[0]).__enter__(),
            lambda: TrainableModel(vanilla, "all"),
        ):
            with pytest.raises(ValueError, match=says):
                door()
        # What is loaded is proven in its own precision.
        loaded = load(places[0])
        other = load(places[1], like=loaded)
        assert load(other, like=loaded) is other
        check_runnable(vanilla)
    assert sweep_losses(loaded, other)["loss_restored"].equals(expected["loss_restored"])
    with torch.autocast("cpu", enabled=False):
        assert sweep_losses(vanilla, unlearned).equals(expected)


@pytest.mark.parametrize("precision", [torch.float64, torch.bfloat16])
def test_another_default_precision_is_refused(precision):
    vanilla, unlearned = tiny(num_layers=2), tiny(num_layers=2, seed=1)
    torch.set_default_dtype(precision)
    try:
        with pytest.raises(ValueError, match=r"\(torch\.set_default_dtype\), and scores would be"):
            sweep_losses(vanilla, unlearned)
    finally:
        torch.set_default_dtype(torch.float32)


class Doubled(torch.Tensor):
    """Weight with which a linear map gives twice what it says."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        result = super().__torch_function__(func, types, args, kwargs or {})
        return result * 2 if func is nn.functional.linear else result


class Named(torch.Tensor):
    """Weight that computes as any other."""


def put_weight(model: nn.Module, make) -> None:
    linear = model.model.layers[0].mlp.up_proj
    linear.weight = nn.Parameter(make(linear.weight.data), requires_grad=False)


def put_class(kind: type):
    def change(model: nn.Module) -> None:
        model.model.layers[0].mlp.up_proj.weight.__class__ = kind

    return change


def put_buffer(model: nn.Module) -> None:
    linear = model.model.layers[0].mlp.up_proj
    weight = linear.weight.data
    del linear.weight
    linear.register_buffer("weight", weight)


def delete_weight(model: nn.Module) -> None:
    del model.model.layers[0].mlp.up_proj.weight


WEIGHTS = {
    "a class that doubles": (put_class(Doubled), "a weight of the class .*Doubled"),
    "sparse": (partial(put_weight, make=lambda w: w.to_sparse()), "sparse, complex or a view"),
    "complex": (partial(put_weight, make=lambda w: w + 0j), "sparse, complex or a view"),
    "negated": (partial(put_weight, make=torch._neg_view), "sparse, complex or a view"),
    "expanded": (
        partial(put_weight, make=lambda w: w[:1].expand(w.shape)),
        "a view that repeats its memory",
    ),
    "a buffer": (put_buffer, r"no parameter \(at model\.layers\.0\.mlp\.up_proj\)"),
    "none": (delete_weight, r"no parameter \(at model\.layers\.0\.mlp\.up_proj\)"),
    "an embedding that renews itself": (
        lambda model: setattr(model.model.embed_tokens, "max_norm", 0.1),
        "changes its embedding whenever it runs",
    ),
    "tuples": (
        lambda model: setattr(model.config, "return_dict", False),
        "set model.config.return_dict = True",
    ),
    "more layers in the configuration": (
        lambda model: setattr(model.config, "num_hidden_layers", 9),
        "has 2 layers, and its configuration says 9",
    ),
}


@pytest.mark.parametrize("what", WEIGHTS)
def test_weights_that_are_no_plain_tensors(what):
    change, says = WEIGHTS[what]
    models = [tiny_model(num_layers=2, seed=seed) for seed in (0, 1)]
    for model in models:
        change(model)
    with pytest.raises(ValueError, match=says) as caught:
        sweep_losses(wrap(models[0]), wrap(models[1]))
    assert "\n" not in str(caught.value)


def test_weights_of_another_name_or_order_are_plain():
    vanilla, unlearned = tiny(num_layers=2), tiny(num_layers=2, seed=1)
    expected = sweep_losses(vanilla, unlearned)
    put_class(Named)(unlearned.model)
    put_weight(vanilla.model, lambda weight: weight.t().contiguous().t())
    assert sweep_losses(vanilla, unlearned).equals(expected)


def test_tuples_in_a_configuration_change_nothing(tmp_path):
    model = tiny(num_layers=2)
    model.model.config.return_dict = False
    loaded = load(save(model, tmp_path))
    assert loaded.model.config.return_dict
    assert loaded.content_hash() == model.content_hash()
