"""LoRA beside packed weights: peft's numbers, V's memory, and training as in QLoRA."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

import interp
from interp.models.low_rank_linear import LowRankLinear
from interp.models.memory import count_bytes
from interp.models.packed_weights import is_packed
from interp.unlearning import TrainableModel
from interp.unlearning import save as save_checkpoint
from tests.helpers.packed_models import PACKINGS, make_packed_pair, needs_bitsandbytes
from tests.helpers.tiny_models import mixed_trajectories, save

peft = pytest.importorskip("peft")

# Between peft and transformers.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

IDS = torch.arange(3, 20)[None]


def test_a_low_rank_map_by_hand():
    """W = (1 1) gives 3 of (1, 2), A = (1 0) gives 1, B = (10), s = 0.5: 3 + 0.5 · 10."""
    base = torch.nn.Linear(2, 1, bias=False)
    base.weight = torch.nn.Parameter(torch.ones(1, 2))
    module = LowRankLinear(base, torch.tensor([[1.0, 0.0]]), torch.tensor([[10.0]]), scale=0.5)
    assert module(torch.tensor([[1.0, 2.0]])).tolist() == [[8.0]]
    assert (module.in_features, module.out_features) == (2, 1)
    assert set(module.state_dict()) == {"packed.weight", "lora_a", "lora_b", "scale"}


def make_adapter(model, tmp_path, kind="LoraConfig", **settings) -> tuple[str, torch.Tensor]:
    """Save a model and an adapter on it; return the adapter's directory and peft's own logits."""
    spec = save(model, tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(spec, dtype=model.dtype, device_map={"": "cpu"})
    for module in base.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    if kind == "LoraConfig":
        settings = {"r": 4, "lora_alpha": 12, "init_lora_weights": False} | settings
    torch.manual_seed(5)
    targets = ["q_proj", "down_proj"]
    config = getattr(peft, kind)(target_modules=targets, task_type="CAUSAL_LM", **settings)
    adapted = peft.get_peft_model(base, config).eval()
    adapted.save_pretrained(tmp_path / "adapter")
    return str(tmp_path / "adapter"), adapted(IDS).logits.detach()


@needs_bitsandbytes
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("packing", PACKINGS)
def test_an_adapter_stays_beside_packed_weights(packing, dtype, tmp_path):
    packed, _ = make_packed_pair(tmp_path, packing, dtype=dtype)
    spec, expected = make_adapter(packed, tmp_path)
    vanilla = interp.load(str(tmp_path / "base"), dtype=dtype)
    before = vanilla.content_hash()
    unlearned = interp.load(spec, like=vanilla)
    assert torch.equal(unlearned.model(IDS).logits, expected)
    assert vanilla.content_hash() == before != unlearned.content_hash()
    # Of rank 4 beside q (64 in, 64 out) and down (128 in, 64 out), in float32; a scale each.
    own = 5 * ((4 * (64 + 64) + 4 * (128 + 64)) * 4 + 2 * 8)
    assert count_bytes(vanilla, unlearned)[1] == own
    assert all(
        is_packed(parts.values.packed) and isinstance(parts.values, LowRankLinear)
        for parts in unlearned.anatomy.layers
    )
    # Alone, on the base that it names.
    alone = interp.load(spec, dtype=dtype)
    assert alone.content_hash() == unlearned.content_hash()
    krs = interp.sweep(
        vanilla,
        spec,
        mixed_trajectories(3),
        sites=["coef", "attn+mlp_out"],
        window=5,
        progress=False,
    ).krs()
    # Whatever all layers' blocks write is V's, and the embedding is.
    whole = krs.query("site == 'attn+mlp_out' and layer == 2")["krs"].item()
    assert whole == pytest.approx(1, abs=1e-3)


@needs_bitsandbytes
def test_what_is_more_than_low_rank_is_refused(tmp_path):
    packed, _ = make_packed_pair(tmp_path, "4bit")
    kinds = {"dora": {"use_dora": True}}
    kinds["ia3"] = {"kind": "IA3Config", "feedforward_modules": ["down_proj"]}
    for name, settings in kinds.items():
        (tmp_path / name).mkdir()
        spec, _ = make_adapter(packed, tmp_path / name, **settings)
        vanilla = interp.load(str(tmp_path / name / "base"))
        with pytest.raises(ValueError, match=r"more than add B A to the packed .* dequantise=True"):
            interp.load(spec, like=vanilla)
        # Into plain weights it can be merged.
        plain = interp.load(str(tmp_path / name / "base"), dequantise=True)
        assert not interp.load(spec, like=plain).has_packed_weights
    spec, _ = make_adapter(packed, tmp_path)
    vanilla = interp.load(str(tmp_path / "base"))
    with pytest.raises(ValueError, match=r"where the packed weights of .* are and computes in the"):
        interp.load(spec, like=vanilla, dtype="bfloat16")


@needs_bitsandbytes
@pytest.mark.parametrize("packing", PACKINGS)
def test_training_beside_packed_weights(packing, tmp_path):
    """QLoRA: the loss falls, V stays as it is, and what was trained is what is saved."""
    vanilla, _ = make_packed_pair(tmp_path, packing)
    before = vanilla.content_hash()
    with pytest.raises(ValueError, match=r"cannot be trained; use lora, or load it with dequant"):
        TrainableModel(vanilla, "mlp")
    trainable = TrainableModel(vanilla, "lora", lora_rank=4)
    assert count_bytes(vanilla, trainable.model)[1] == sum(
        value.nbytes for value in trainable.trained.values()
    )
    optimizer = torch.optim.AdamW(trainable.trained.values(), lr=1e-2)
    losses = []
    for _ in range(4):
        loss = trainable.model.model(IDS, labels=IDS).loss
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.8 * losses[0]
    with trainable.evaluate_as_made(None):
        expected = trainable.model.model(IDS).logits.detach()
    adapter = trainable.extract_adapter()
    finished = trainable.finish()
    assert torch.equal(finished.model(IDS).logits, expected)
    assert vanilla.content_hash() == before
    out = save_checkpoint(finished, tmp_path / "out", card={}, adapter=adapter)
    loaded = interp.load(out, like=vanilla)
    assert loaded.content_hash() == finished.content_hash()
    assert torch.equal(loaded.model(IDS).logits, expected)
