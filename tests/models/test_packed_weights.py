"""Packed weights: what their codes stand for, loading, saving, unpacking, copies and refusals."""

from __future__ import annotations

import copy
import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from transformers.pytorch_utils import Conv1D

import interp
from interp.behaviour import ROUNDINGS
from interp.models.memory import count_bytes
from interp.models.packed_weights import (
    compute_packed_in_float32,
    describe_packing,
    ignore_outliers,
    is_packed,
    keep_layout,
    unpack_weight,
)
from interp.models.pairs import copy_with_shared_tensors
from tests.helpers.every_architecture import make_tiny
from tests.helpers.packed_models import (
    HAS_BITSANDBYTES,
    PACKINGS,
    SIZES,
    make_packed_pair,
    needs_bitsandbytes,
    save_plain,
)
from tests.helpers.samples import mark_rest
from tests.helpers.tiny_models import save, tiny, wrap

if HAS_BITSANDBYTES:
    from tests.helpers.packed_models import bitsandbytes

IDS = torch.arange(3, 20)[None]


def pack_by_hand(weight: torch.Tensor, bits: int, threshold: float = 0.0) -> nn.Module:
    out, inputs = weight.shape
    if bits == 4:
        module = bitsandbytes.nn.Linear4bit(inputs, out, bias=False, quant_type="nf4")
        kind = bitsandbytes.nn.Params4bit
        module.weight = kind(weight, quant_type="nf4", compress_statistics=True, module=module)
    else:
        module = bitsandbytes.nn.Linear8bitLt(
            inputs, out, bias=False, has_fp16_weights=False, threshold=threshold
        )
        module.weight = bitsandbytes.nn.Int8Params(weight, requires_grad=False)
    return module.to("cpu").eval()


# By hand


@needs_bitsandbytes
def test_four_bits_by_hand():
    """Twice NF4's sixteen levels, four times in a block of 64, are themselves: their scale is 2."""
    weight = (2 * torch.tensor(ROUNDINGS["nf4"].levels)).repeat(32, 4)
    module = pack_by_hand(weight.clone(), 4)
    assert is_packed(module)
    assert not is_packed(nn.Linear(2, 2))
    torch.testing.assert_close(unpack_weight(module, torch.float32), weight, rtol=0, atol=1e-6)
    half = unpack_weight(module, torch.bfloat16)
    assert half.dtype == torch.bfloat16
    assert torch.equal(half, unpack_weight(module, torch.float32).bfloat16())


@needs_bitsandbytes
def test_eight_bits_by_hand():
    """A row's scale is its largest entry over 127: 254 means steps of 2, and 5 is 4 or 6."""
    module = pack_by_hand(torch.tensor([[127.0, 1.0], [254.0, 6.0]]), 8)
    assert unpack_weight(module, torch.float32).tolist() == [
        [pytest.approx(127, rel=1e-5), pytest.approx(1, rel=1e-5)],
        [pytest.approx(254, rel=1e-5), pytest.approx(6, rel=1e-5)],
    ]


@needs_bitsandbytes
def test_a_neighbour_changes_what_eight_bits_give_by_hand():
    """Of (1, 0.5) the second entry is 63.5 steps of 1/127 and rounds to 64: 127 + 64 is 191.

    Beside (0, 8), which reaches the threshold of 6, it is an outlier and stays 0.5: 127 · 1.5.
    """
    module = pack_by_hand(torch.tensor([[127.0, 127.0]]), 8, threshold=6.0)
    token, neighbour = torch.tensor([[1.0, 0.5]]), torch.tensor([[0.0, 8.0]])
    both = torch.cat([token, neighbour])
    assert float(module(token)) == pytest.approx(191, abs=0.01)
    assert float(module(both)[0]) == pytest.approx(190.5, abs=0.01)
    with ignore_outliers(module):
        assert float(module(both)[0]) == pytest.approx(191, abs=0.01)
    assert module.state.threshold == 6
    with compute_packed_in_float32(module):
        assert float(module(token)) == pytest.approx(190.5, abs=1e-3)
        assert float(module(both)[0]) == pytest.approx(190.5, abs=1e-3)
    assert "forward" not in module.__dict__
    assert float(module(token)) == pytest.approx(191, abs=0.01)


@needs_bitsandbytes
def test_in_float32_four_bits_are_not_rounded_to_what_is_computed_in():
    """256 + 1 is 256 in bfloat16, which keeps 8 bits, and 257 in float32."""
    module = pack_by_hand(torch.ones(1, 64), 4)
    keep_layout(module)
    module.compute_dtype, module.compute_type_is_set = torch.bfloat16, True
    state = torch.zeros(1, 64)
    state[0, 0], state[0, 1] = 256, 1
    assert float(module(state)) == 256
    with compute_packed_in_float32(module):
        assert float(module(state)) == pytest.approx(257, abs=1e-3)
    assert float(module(state)) == 256


# Loading


@needs_bitsandbytes
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("name", mark_rest(SIZES, ("gpt2", "llama_biases")))
def test_packed_saved_read_and_unpacked(name, packing, dtype, tmp_path):
    """What is saved is read to the bit, and unpacked it is a plain checkpoint of its numbers."""
    plain = save_plain(tmp_path, name)
    model = interp.load(plain, quantise=packing, dtype=dtype)
    bits = {"4bit": 4, "8bit": 8}[packing]
    assert describe_packing(model.model.config) == f"bitsandbytes, {bits} bits"
    assert (model.packing, model.has_packed_weights) == (packing, True)
    assert str(model.dtype) == f"torch.{dtype}"
    before = model.content_hash()
    assert before != interp.load(plain, dtype=dtype).content_hash()
    stored = interp.load(save(model, tmp_path / "packed"), dtype=dtype)
    assert stored.packing is None
    assert stored.content_hash() == before == model.content_hash()
    assert torch.equal(stored.model(IDS).logits, model.model(IDS).logits)
    assert count_bytes(model)[0] < 0.8 * count_bytes(interp.load(plain, dtype=dtype))[0]

    unpacked = interp.load(str(tmp_path / "packed"), dtype=dtype, dequantise=True)
    assert (unpacked.packing, unpacked.has_packed_weights) == ("none", False)
    for layer, of in zip(unpacked.anatomy.layers, model.anatomy.layers, strict=True):
        kind = type(layer.values)
        assert kind is (Conv1D if name == "gpt2" else nn.Linear)
        weight = layer.values.weight.T if kind is Conv1D else layer.values.weight
        assert torch.equal(weight, unpack_weight(of.values, model.dtype))
    # Computed with as float32 matrices they are the same numbers.
    with compute_packed_in_float32(model.model):
        if dtype == "float32":
            torch.testing.assert_close(unpacked.model(IDS).logits, model.model(IDS).logits)
    again = interp.load(save(unpacked, tmp_path / "unpacked"), dtype=dtype)
    assert again.content_hash() == unpacked.content_hash()


@needs_bitsandbytes
@pytest.mark.parametrize("packing", PACKINGS)
def test_models_packed_in_memory(packing, tmp_path):
    plain = save_plain(tmp_path)
    settings = BitsAndBytesConfig(load_in_4bit=packing == "4bit", load_in_8bit=packing == "8bit")
    model = AutoModelForCausalLM.from_pretrained(plain, quantization_config=settings, dtype="auto")
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    wrapped = wrap(model.eval(), name="mine")
    before = wrapped.content_hash()
    assert interp.load(wrapped) is wrapped
    assert wrapped.anatomy.num_layers == 5
    assert wrapped.content_hash() == before


@needs_bitsandbytes
def test_weights_that_this_cpu_would_round_again_are_refused(tmp_path):
    model = interp.load(save_plain(tmp_path), quantise="4bit")
    assert not model.model.model.layers[2].mlp.up_proj.support_avx512bf16_for_cpu
    model.model.model.layers[2].mlp.up_proj.support_avx512bf16_for_cpu = True
    with pytest.raises(ValueError, match=r"4-bit weights \(model.layers.2.mlp.up_proj\) that bits"):
        interp.load(model)


@needs_bitsandbytes
def test_the_unlearned_model_is_packed_as_the_vanilla_one_was(tmp_path):
    vanilla, unlearned = make_packed_pair(tmp_path, "4bit")
    assert unlearned.packing == "4bit"
    assert unlearned.has_packed_weights
    packed = save(vanilla, tmp_path / "packed")
    plain = interp.load(packed, dequantise=True)
    other = interp.load(save(unlearned, tmp_path / "other"), like=plain)
    assert (other.packing, other.has_packed_weights) == ("none", False)
    # A packed checkpoint stays as it is.
    assert interp.load(packed, quantise="8bit").content_hash() == vanilla.content_hash()


@needs_bitsandbytes
def test_a_pair_of_packed_and_plain_weights_is_warned_of(tmp_path):
    vanilla, _ = make_packed_pair(tmp_path, "4bit")
    unlearned = interp.load(save_plain(tmp_path, seed=1))
    match = r"are bitsandbytes, 4 bits and those of .* not packed: how they were rounded is part"
    with pytest.warns(UserWarning, match=match):
        interp.load(unlearned, like=vanilla)


def test_options_that_do_not_go_together(tmp_path, monkeypatch):
    plain = save_plain(tmp_path)
    with pytest.raises(ValueError, match="packs weights and dequantise=True unpacks them"):
        interp.load(plain, quantise="4bit", dequantise=True)
    monkeypatch.setattr("interp.models.packed_weights.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="unknown quantise='int4'; valid: 4bit, 8bit"):
        interp.load(plain, quantise="int4")
    with pytest.raises(ImportError, match=r"needs the package bitsandbytes: pip install 'interp\["):
        interp.load(plain, quantise="4bit")
    # What is plain stays so.
    assert interp.load(plain, dequantise=True).content_hash() == interp.load(plain).content_hash()


# Copies


@needs_bitsandbytes
@pytest.mark.parametrize("packing", PACKINGS)
def test_copies_share_codes_and_scales(packing, tmp_path):
    model, _ = make_packed_pair(tmp_path, packing)
    before, expected = model.content_hash(), model.model(IDS).logits
    copied = wrap(copy_with_shared_tensors(model.model, own=()))
    assert count_bytes(model, copied)[1] == 0
    for module, other in zip(model.model.modules(), copied.model.modules(), strict=True):
        if is_packed(module):
            assert other is not module
            assert type(other.weight) is type(module.weight)
            if packing == "4bit":
                ours, theirs = other.weight.quant_state, module.weight.quant_state
                assert ours is not theirs
                assert ours is other.quant_state
                assert ours.absmax.data_ptr() == theirs.absmax.data_ptr()
            else:
                assert other.state.SCB.data_ptr() == module.state.SCB.data_ptr()
    assert torch.equal(copied.model(IDS).logits, expected)
    assert copied.content_hash() == before == model.content_hash()
    alone = wrap(copy.deepcopy(model.model))
    assert alone.content_hash() == before


# Other methods

METHODS = {
    "gptq": ({"bits": 4, "group_size": 64}, r"gptq, 4 bits, .*pip install optimum"),
    "awq": ({"bits": 4, "group_size": 64, "zero_point": True}, r"awq, 4 bits.*gptqmodel"),
    "torchao": ({"quant_type": "int8_weight_only"}, r"torchao, .*pip install torchao"),
    "hqq": ({"quant_config": {}}, r"hqq, .*HQQ version"),
    "compressed-tensors": ({"format": "dense", "config_groups": {}}, r"pip install compressed-t"),
    "fbgemm_fp8": ({}, r"fbgemm_fp8, .*requires a GPU"),
    "nvfp4": ({}, r"nvfp4, .*not supported yet"),
}


@pytest.mark.parametrize("dequantise", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_methods_without_their_packages_are_refused_in_a_sentence(method, dequantise, tmp_path):
    settings, match = METHODS[method]
    spec = save(tiny(num_layers=2), tmp_path)
    edit(tmp_path, {"quant_method": method} | settings)
    with pytest.raises(ValueError, match=match) as error:
        interp.load(spec, dequantise=dequantise)
    assert re.search(r"packed by .*; a checkpoint that is not quantised needs", str(error.value))
    assert "\n" not in str(error.value)


def edit(directory, quantization_config: dict) -> None:
    file = directory / "config.json"
    written = json.loads(file.read_text())
    written["quantization_config"] = quantization_config
    file.write_text(json.dumps(written))


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU multiplies them as they are")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_fp8_is_made_plain_where_there_is_no_gpu(dtype, tmp_path):
    """Codes of eight bits times a scale of 2 for each block of 16 by 16."""
    spec = save(tiny("llama", hidden_size=32, intermediate_size=64), tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    expected = dict(state)
    for name in [name for name in state if name.endswith("proj.weight")]:
        state[name] = (state[name] / 2).to(torch.float8_e4m3fn)
        blocks = [-(-size // 16) for size in state[name].shape]
        state[f"{name}_scale_inv"] = torch.full(blocks, 2.0)
        expected[name] = state[name].float() * 2
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    settings = {"weight_block_size": [16, 16], "activation_scheme": "dynamic"}
    edit(tmp_path, {"quant_method": "fp8"} | settings)
    model = interp.load(spec, dtype=dtype)
    assert not model.has_packed_weights
    found = model.model.state_dict()
    assert all(torch.equal(found[name], value.to(model.dtype)) for name, value in expected.items())
    again = interp.load(save(model, tmp_path / "again"), dtype=dtype)
    assert again.content_hash() == model.content_hash()


FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU may multiply them as they are")
@pytest.mark.filterwarnings("ignore:.*RoPE")
@pytest.mark.parametrize("dequantise", [False, True])
def test_mxfp4_is_made_plain(dequantise, tmp_path):
    """GPT-OSS as it is published: two codes of four bits a byte, a power of two for every 32."""
    config = copy.deepcopy(make_tiny("GptOssForCausalLM").config)
    config.intermediate_size = 32
    torch.manual_seed(0)
    plain = AutoModelForCausalLM.from_config(config).eval()
    state, expected = dict(plain.state_dict()), {}
    for name in [name for name in state if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, inputs, outputs = state.pop(name).shape
        codes = torch.randint(16, (experts, outputs, inputs // 32, 32))
        exponents = torch.randint(-3, 1, (experts, outputs, inputs // 32))
        state[f"{name}_blocks"] = (codes[..., ::2] | codes[..., 1::2] << 4).to(torch.uint8)
        state[f"{name}_scales"] = (exponents + 127).to(torch.uint8)
        values = torch.tensor(FP4)[codes] * 2.0 ** exponents[..., None]
        expected[name] = values.flatten(2).transpose(1, 2)
    spec = save(wrap(plain), tmp_path)
    save_file(
        {name: value.contiguous() for name, value in state.items()},
        tmp_path / "model.safetensors",
        metadata={"format": "pt"},
    )
    edit(tmp_path, {"quant_method": "mxfp4"})
    model = interp.load(spec, dequantise=dequantise)
    assert not model.has_packed_weights
    assert model.dtype == torch.float32
    found = model.model.state_dict()
    assert len(expected) == 8
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    again = interp.load(save(model, tmp_path / "again"))
    assert again.content_hash() == model.content_hash()
