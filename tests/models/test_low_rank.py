"""LoRA pairs without a second model: the merged model's numbers, bit for bit, in V's memory."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from interp import Restoration
from interp.models.language_model import LanguageModel
from interp.models.loading import load
from interp.models.low_rank import LowRankSum, hold_sums
from interp.models.memory import count_bytes
from interp.models.pairs import are_identical, check_pair, copy_with_shared_tensors
from interp.recovery import NOTHING, SITES, Pair
from tests.helpers.samples import mark_rest
from tests.helpers.tiny_models import OWN_ENGINES, mixed_trajectories, save, tiny, tiny_model, wrap

peft = pytest.importorskip("peft")

# peft asks transformers for an attribute by its old name.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

TRAJECTORIES = mixed_trajectories(3)

W = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
A = torch.tensor([[1.0, -1.0]])
B = torch.tensor([[2.0], [0.0], [4.0]])
# W + 0.5 · B A, by hand.
SUM = torch.tensor([[2.0, 1.0], [3.0, 4.0], [7.0, 4.0]])


def by_hand(**changes) -> LowRankSum:
    return LowRankSum.from_matrices(**({"base": W, "a": A, "b": B, "scale": 0.5} | changes))


def adapter(architecture: str, directory: Path, **options) -> str:
    """Make a random LoRA adapter on the tiny V, by default on all matrices inside the layers."""
    settings = {"r": 1, "lora_alpha": 3, "target_modules": "all-linear"} | options
    settings["fan_in_fan_out"] = architecture == "gpt2"
    model = peft.get_peft_model(tiny_model(architecture), peft.LoraConfig(**settings))
    torch.manual_seed(5)
    for name, parameter in model.named_parameters():
        if "lora_" in name or "magnitude" in name:
            parameter.data.normal_(std=0.2)
    model.save_pretrained(directory)
    return str(directory)


def merged(vanilla: LanguageModel, directory: str) -> LanguageModel:
    """Let peft merge the adapter into a copy of V, as the reference."""
    model = peft.PeftModel.from_pretrained(copy.deepcopy(vanilla.model), directory)
    return wrap(model.merge_and_unload().requires_grad_(False).eval(), name="merged")


def lora_pair(architecture: str, directory: Path, **options) -> tuple[Pair, Pair]:
    """V and U in V's memory; V and U merged."""
    vanilla = tiny(architecture)
    spec = adapter(architecture, directory, **options)
    unlearned = load(spec, like=vanilla)
    return (
        Pair(vanilla=vanilla, unlearned=unlearned),
        Pair(vanilla=vanilla, unlearned=merged(vanilla, spec)),
    )


def kept_low_rank(model: LanguageModel) -> set[str]:
    return {name for name, p in model.model.named_parameters() if isinstance(p, LowRankSum)}


# The sum


def test_the_sum_by_hand():
    assert torch.equal(by_hand().detach(), SUM)
    transposed = by_hand(base=W.T, transposed=True)
    assert transposed.shape == (2, 3)
    assert torch.equal(transposed.detach(), SUM.T)
    x = torch.tensor([[1.0, 10.0]])
    module = nn.Linear(2, 3, bias=False)
    module._parameters["weight"] = by_hand()
    # 2 + 10, 3 + 40, 7 + 40.
    assert module(x).tolist() == [[12.0, 43.0, 47.0]]
    assert torch.equal(W, torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]))


def test_a_sum_of_a_sum():
    twice = by_hand(base=by_hand())
    assert torch.equal(twice.detach(), SUM + (SUM - W))


def test_it_is_rounded_as_peft_rounds():
    a, b = torch.randn(4, 30), torch.randn(20, 4)
    base = torch.randn(20, 30, dtype=torch.bfloat16)
    total = LowRankSum.from_matrices(base, a, b, scale=0.3)
    assert total.dtype == torch.bfloat16
    assert torch.equal(total.detach(), base + (b @ a * 0.3).bfloat16())


def test_a_module_takes_it_for_its_weight():
    module = nn.Linear(2, 3)
    module._parameters["weight"] = by_hand()
    assert isinstance(module.weight, nn.Parameter)
    assert [name for name, _ in module.named_parameters()] == ["weight", "bias"]
    assert type(module.state_dict()["weight"]) is torch.Tensor
    assert torch.equal(module.state_dict()["weight"], SUM)
    x = torch.tensor([[1.0, 10.0]], requires_grad=True)
    module.requires_grad_(False)
    module(x).sum().backward()
    # The sums of the columns.
    assert x.grad is not None
    assert x.grad.tolist() == [[12.0, 9.0]]


def test_it_cannot_be_written_into():
    weight = by_hand()
    for write in (
        lambda: weight.add_(1),
        lambda: weight.copy_(SUM),
        lambda: torch.add(SUM, 1, out=weight),
        lambda: nn.init.zeros_(weight),
    ):
        with pytest.raises(ValueError, match="cannot be written into"):
            write()
    assert torch.equal(weight.detach(), SUM)


def test_a_copy_has_weights_of_its_own():
    module = nn.Linear(2, 3)
    module._parameters["weight"] = by_hand()
    with hold_sums(module):
        copied = copy.deepcopy(module)
    assert type(copied.weight) is nn.Parameter
    with torch.no_grad():
        copied.weight.add_(1)
    assert torch.equal(module.weight.detach(), SUM)
    assert torch.equal(copied.weight, SUM + 1)


def test_a_conversion_makes_it_an_ordinary_weight():
    module = nn.Linear(2, 3, bias=False)
    module._parameters["weight"] = weight = by_hand()
    assert weight.own_bytes == (2 + 3) * 4
    module.to(torch.float32)
    assert weight.own_bytes == (2 + 3) * 4
    module.to(torch.bfloat16)
    assert module.weight.dtype == torch.bfloat16
    assert weight.own_bytes == 6 * 2
    assert torch.equal(module.weight.detach(), SUM.bfloat16())
    assert module(torch.ones(1, 2, dtype=torch.bfloat16)).tolist() == [[3.0, 7.0, 11.0]]
    assert torch.equal(weight.alias(), SUM.bfloat16())


def test_sums_are_held_inside_the_block_alone():
    module = nn.Sequential(nn.Linear(2, 3))
    weight = module[0]._parameters["weight"] = by_hand()
    sums = []

    def held_and_interrupted() -> None:
        with hold_sums(module):
            sums.append(weight.detach())
            with hold_sums(module):
                sums.append(weight.detach())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        held_and_interrupted()
    assert torch.equal(sums[0], SUM)
    assert sums[0].data_ptr() == sums[1].data_ptr() != weight.detach().data_ptr()


# The pair


@pytest.mark.parametrize(
    "architecture", ["llama", "gpt2", "bloom", "gemma3", "opt", "llama_biases"]
)
def test_it_is_the_merged_model(architecture, tmp_path):
    pair, expected = lora_pair(architecture, tmp_path)
    ours, theirs = pair.unlearned, expected.unlearned
    assert kept_low_rank(ours)
    state = ours.model.state_dict()
    for name, tensor in theirs.model.state_dict().items():
        assert torch.equal(state[name], tensor), name
    assert ours.content_hash() == theirs.content_hash()
    assert are_identical(ours, theirs)
    assert not are_identical(pair.vanilla, ours)
    check_pair(pair.vanilla, ours)


def test_it_takes_the_memory_of_the_two_thin_matrices(tmp_path):
    pair, expected = lora_pair("llama", tmp_path)
    # Per layer q, o 16 × 16, k, v 16 × 8, gate, up, down 16 × 24, rank 1: 2·32 + 2·24 + 3·40.
    assert count_bytes(pair.vanilla, pair.unlearned)[1] == 5 * (64 + 48 + 120) * 4
    # Merged, they are 2·256 + 2·128 + 3·384 each.
    assert count_bytes(expected.vanilla, expected.unlearned)[1] > 5 * 1920 * 4
    ours = dict(pair.unlearned.model.named_parameters())
    for name, theirs in pair.vanilla.model.named_parameters():
        weight = ours[name]
        shared = weight.base if isinstance(weight, LowRankSum) else weight
        assert shared.data_ptr() == theirs.data_ptr(), name


@pytest.mark.parametrize("direction", ["restore", "corrupt"])
@pytest.mark.parametrize("engine", OWN_ENGINES)
@pytest.mark.parametrize("architecture", mark_rest(["llama", "gpt2", "bloom"], ["gpt2"]))
def test_losses_are_those_of_the_merged_model(architecture, engine, direction, tmp_path):
    restorations = [
        NOTHING,
        *(Restoration(sites=(site,), layers=(1, 2)) for site in SITES),
        Restoration(sites=("coef", "attn", "value", "norms"), layers=(0, 4)),
    ]
    losses = []
    for pair in lora_pair(architecture, tmp_path):
        turned = Pair(vanilla=pair.vanilla, unlearned=pair.unlearned, direction=direction)
        before = [model.content_hash() for model in (pair.vanilla, pair.unlearned)]
        losses.append(OWN_ENGINES[engine](turned, TRAJECTORIES, restorations))
        assert [model.content_hash() for model in (pair.vanilla, pair.unlearned)] == before
    assert torch.equal(*losses)
    assert losses[0].max() > 1e-6


def test_models_are_as_before_after_an_exception(monkeypatch, tmp_path):
    pair, _ = lora_pair("llama", tmp_path)
    before = [pair.vanilla.content_hash(), pair.unlearned.content_hash()]
    forward, calls = nn.Linear.forward, 0

    def failing(self, values):
        nonlocal calls
        calls += 1
        if calls == 60:
            raise KeyboardInterrupt
        return forward(self, values)

    with monkeypatch.context() as patch:
        patch.setattr(nn.Linear, "forward", failing)
        with pytest.raises(KeyboardInterrupt):
            OWN_ENGINES["layered"](
                pair, TRAJECTORIES, [Restoration(sites=("value",), layers=(1, 2, 3))]
            )
    assert [pair.vanilla.content_hash(), pair.unlearned.content_hash()] == before
    assert all(
        weight.held is None
        for weight in pair.unlearned.model.parameters()
        if isinstance(weight, LowRankSum)
    )


def test_it_is_saved_as_the_merged_model(tmp_path):
    pair, expected = lora_pair("llama", tmp_path / "a")
    again = load(save(pair.unlearned, tmp_path / "merged"))
    assert again.content_hash() == expected.unlearned.content_hash()
    assert load(tmp_path / "merged", like=pair.unlearned).content_hash() == again.content_hash()


def test_what_takes_less_memory_merged_is_merged(tmp_path):
    """q at rank 8: 8 · (16 + 16) = 16 · 16. down at rank 8: 8 · (16 + 24) < 16 · 24."""
    pair, expected = lora_pair("llama", tmp_path, r=8, target_modules=["q_proj", "down_proj"])
    assert kept_low_rank(pair.unlearned) == {
        f"model.layers.{layer}.mlp.down_proj.weight" for layer in range(5)
    }
    assert are_identical(pair.unlearned, expected.unlearned)
    # The merged q projections are memory of its own.
    assert count_bytes(pair.vanilla, pair.unlearned)[1] == 5 * (8 * 40 + 256) * 4


@pytest.mark.parametrize(
    "options",
    [
        {"use_dora": True, "target_modules": ["q_proj"]},
        {"target_modules": ["lm_head", "embed_tokens"]},
        {"target_modules": ["v_proj"], "modules_to_save": ["lm_head"]},
        {"bias": "all", "target_modules": ["q_proj"]},
    ],
    ids=["dora", "embeddings", "modules_to_save", "bias"],
)
def test_other_adapters_are_merged_beside_vanilla(options, tmp_path):
    vanilla = tiny("llama_biases" if "bias" in options else "llama", tie_word_embeddings=False)
    architecture = "llama_biases" if "bias" in options else "llama"
    before = vanilla.content_hash()
    settings = {"r": 1, "lora_alpha": 3} | options
    model = peft.get_peft_model(
        tiny_model(architecture, tie_word_embeddings=False), peft.LoraConfig(**settings)
    )
    for name, parameter in model.named_parameters():
        if any(part in name for part in ("lora_", "magnitude", "modules_to_save", "bias")):
            parameter.data.add_(torch.randn_like(parameter) * 0.2)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Setting `save_embedding_layers`")
        model.save_pretrained(tmp_path)
    unlearned = load(tmp_path, like=vanilla)
    assert are_identical(unlearned, merged(vanilla, str(tmp_path)))
    assert vanilla.content_hash() == before
    assert not are_identical(unlearned, vanilla)


def test_an_adapter_alone_is_merged(tmp_path):
    spec = save(tiny(), tmp_path / "v")
    vanilla = load(spec)
    directory = adapter("llama", tmp_path / "a")
    config = tmp_path / "a" / "adapter_config.json"
    text = config.read_text().replace(
        '"base_model_name_or_path": null', f'"base_model_name_or_path": "{spec}"'
    )
    config.write_text(
        text.replace('"base_model_name_or_path": ""', f'"base_model_name_or_path": "{spec}"')
    )
    alone = load(directory)
    assert not kept_low_rank(alone)
    assert are_identical(alone, merged(vanilla, directory))


def test_another_precision_is_merged(tmp_path):
    vanilla = tiny()
    unlearned = load(adapter("llama", tmp_path), like=wrap(vanilla.model, name="V"))
    assert kept_low_rank(unlearned)
    with pytest.raises(ValueError, match=r"dtype is torch\.bfloat16"):
        load(str(tmp_path), like=vanilla, dtype="bfloat16")


def test_a_copy_of_which_a_part_is_trained(tmp_path):
    """As a U that is unlearned further: its trained weights are its own, the rest is V's."""
    pair, expected = lora_pair("llama", tmp_path)
    name = "model.layers.2.mlp.down_proj.weight"
    before = pair.unlearned.content_hash()
    copied = copy_with_shared_tensors(pair.unlearned.model, own={name})
    assert count_bytes(pair.unlearned, wrap(copied))[1] == 16 * 24 * 4 + 5 * 232 * 4 - 40 * 4
    trained = copied.get_parameter(name).requires_grad_(True)
    copied(torch.tensor([[3, 4, 5]])).logits.square().sum().backward()
    assert trained.grad is not None
    with torch.no_grad():
        trained.sub_(trained.grad)
    assert pair.unlearned.content_hash() == before
    state = copied.state_dict()
    for key, tensor in expected.unlearned.model.state_dict().items():
        assert torch.equal(state[key], tensor) == (key != name)
