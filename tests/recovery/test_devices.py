"""Layers on several devices: everything goes where a layer lives, and the CPU waits for no GPU."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM

import interp
from interp.recovery import batches
from interp.recovery.engines import full, layered
from interp.recovery.pair import Pair
from interp.recovery.sites import NOTHING, SITES, Restoration
from interp.recovery.sweep_config import SweepConfig
from tests.helpers import ROOT
from tests.helpers.every_architecture import make_tiny
from tests.helpers.tiny_models import (
    mixed_trajectories,
    question,
    save,
    tiny,
    tiny_model,
    tiny_pair,
    trajectory,
    wrap,
)

RESTORATIONS = [
    NOTHING,
    *(Restoration(sites=(site,), layers=(1, 2, 3)) for site in SITES),
    Restoration(sites=("coef", "attn"), layers=(2, 3, 4)),
    Restoration(sites=("coef",), layers=(1, 2), units=((3,), (4, 5))),
]


@pytest.mark.parametrize(
    ("cuts", "places", "last"),
    [
        # V's layers 0 and 1 are on gpu:0, U's 0 to 2.
        pytest.param(("2", "3"), "gpu:0 gpu:0 gpu:0 gpu:1 gpu:1", "gpu:1", marks=pytest.mark.slow),
        (("1,3", "2,4"), "gpu:0 gpu:0 gpu:1 gpu:1 gpu:2", "gpu:2"),
    ],
    ids=["two", "three"],
)
def test_several_gpus(cuts, places, last):
    """V's layers are cut elsewhere than U's: sites move between the two, losses come once.

    fake_gpus.py fails where tensors of two devices meet and where the CPU would wait for one.
    gemma2 caps its logits, so that they are formed; llama is scored through Gram matrices.
    """
    done = subprocess.run(
        [
            sys.executable,
            "-W",
            "ignore",
            "-m",
            "tests.helpers.fake_gpus",
            *cuts,
            "llama",
            "gemma2",
        ],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    # Two passes, with and without a shared prefix: each fetches its losses once, from the device
    # of the unembedding, which in gemma2 is tied to the embedding.
    assert done.stdout.splitlines() == [
        f"llama {places} | {last} {last} | 20 20",
        f"gemma2 {places} | gpu:0 gpu:0 | 20 20",
    ]


# accelerate's hooks, with numbers


def dispatched(architecture: str, seed: int):
    """Dispatch a model with accelerate's hooks on every layer, all on the CPU."""
    return dispatch(tiny_model(architecture, seed=seed), seed)


def dispatch(model, seed: int):
    from accelerate import dispatch_model

    names = {name: "cpu" for name, child in model.named_children() if child is not model.base_model}
    prefix = model.base_model_prefix
    names |= {f"{prefix}.{name}": "cpu" for name, _ in model.base_model.named_children()}
    layers = wrap(model).anatomy.path
    del names[layers]
    names |= {f"{layers}.{layer}": "cpu" for layer in range(model.config.num_hidden_layers)}
    return wrap(dispatch_model(model, names, force_hooks=True), name=f"M{seed}")


@pytest.mark.parametrize("architecture", ["gemma3", "bloom", "gpt2"])
def test_hooks_change_no_number(architecture):
    items = mixed_trajectories()
    expected = full.measure(tiny_pair(architecture), items, RESTORATIONS).losses
    pair = Pair(vanilla=dispatched(architecture, 0), unlearned=dispatched(architecture, 1))
    before = [
        {name: module.forward for name, module in model.model.named_modules()}
        for model in (pair.vanilla, pair.unlearned)
    ]
    for engine in (full, layered):
        found = engine.measure(pair, items, RESTORATIONS).losses
        assert ((found - expected).abs() / expected[0]).max() < 1e-5
    for model, forwards in zip((pair.vanilla, pair.unlearned), before, strict=True):
        for name, module in model.model.named_modules():
            assert module.forward == forwards[name], name


def mixture(seed: int):
    model = make_tiny("MixtralForCausalLM")
    torch.manual_seed(seed)
    for parameter in model.parameters():
        parameter.data += torch.randn_like(parameter) / 10
    return model


def test_hooks_change_no_number_of_mixtures():
    items = mixed_trajectories(3)
    sites = ("coef", "router", "attn", "mlp_out", "value", "key", "router_weights")
    wanted = [NOTHING, *(Restoration(sites=(site,), layers=(1, 2)) for site in sites)]
    plain, hooked = (
        Pair(vanilla=make(mixture(0), 0), unlearned=make(mixture(1), 1))
        for make in (lambda model, _seed: wrap(model), dispatch)
    )
    expected = full.measure(plain, items, wanted).losses
    for engine in (full, layered):
        found = engine.measure(hooked, items, wanted).losses
        assert ((found - expected).abs() / expected[0]).max() < 1e-5


def test_hooks_change_no_answer():
    queries = [question(number) for number in range(3)]
    answers = [
        [item.answer_ids for item in interp.trajectories(model, queries, num_tokens=5)]
        for model in (tiny("gemma3"), dispatched("gemma3", 0))
    ]
    assert answers[0] == answers[1]
    assert any(answers[0])


@pytest.mark.parametrize("kind", ["cpu_offload", "disk_offload", "cpu_offload_with_hook"])
def test_offloads_of_accelerate_are_refused(kind, tmp_path):
    import accelerate

    options = {"offload_dir": tmp_path} if kind == "disk_offload" else {}
    model = tiny_model()
    getattr(accelerate, kind)(model, execution_device=torch.device("cpu"), **options)
    with pytest.raises(ValueError, match=r"'V' has weights that are offloaded.*device='auto'"):
        interp.load(wrap(model, name="V"))


def test_offloaded_weights_are_refused():
    vanilla, unlearned = tiny(), tiny(seed=1)
    unlearned.model.model.layers[3].to("meta")
    with pytest.raises(ValueError, match=r"'U' has weights that are offloaded.*device='auto'"):
        SweepConfig().check_models(vanilla, unlearned)


# Loading


def test_auto_without_a_gpu(tmp_path):
    """One device, the CPU, with the same weights."""
    vanilla = tiny()
    spec = save(vanilla, tmp_path / "v")
    loaded = interp.load(spec, device="auto")
    assert loaded.device == torch.device("cpu")
    assert loaded.content_hash() == interp.load(spec).content_hash()
    again = interp.load(spec, like=loaded)
    assert again.model.lm_head.weight.data_ptr() == loaded.model.lm_head.weight.data_ptr()


def test_auto_spreads_and_the_unlearned_follows(tmp_path, monkeypatch):
    """Device maps: transformers is to choose for V, and V's own map for U."""
    asked = []
    spread = {"model.embed_tokens": "cpu", "model.layers": "cpu", "model.norm": "cpu"} | {
        "model.rotary_emb": "cpu",
        "lm_head": "cpu",
    }
    read = AutoModelForCausalLM.from_pretrained

    def from_pretrained(*args, device_map, **options):
        asked.append(device_map)
        model, report = read(*args, device_map=None, **options)
        model.hf_device_map = spread
        return model, report

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", from_pretrained)
    spec = save(tiny(), tmp_path / "v")
    loaded = interp.load(spec, device="auto")
    interp.load(spec, like=loaded)
    # On one device it is not spread: it shares V's memory.
    interp.load(spec, like=loaded, device="cpu", allow_pickle=True)
    assert asked == ["auto", spread]


def test_a_model_that_does_not_fit(tmp_path, monkeypatch):
    read = AutoModelForCausalLM.from_pretrained

    def from_pretrained(*args, device_map, **options):
        model, report = read(*args, device_map=None, **options)
        model.model.layers[4].to("meta")
        return model, report

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", from_pretrained)
    spec = save(tiny(), tmp_path / "v")
    with pytest.raises(ValueError, match=r"does not fit on the GPUs here: load it with dtype="):
        interp.load(spec, device="auto")


def test_auto_needs_accelerate(tmp_path, monkeypatch):
    spec = save(tiny(), tmp_path / "v")
    monkeypatch.setattr("interp.models.loading.find_spec", lambda _name: None)
    with pytest.raises(ImportError, match="pip install accelerate"):
        interp.load(spec, device="auto")


# Without waiting


@pytest.mark.usefixtures("unchecked")
def test_to_a_gpu_from_pinned_memory(monkeypatch):
    """Batches are sent from pinned memory, and nobody waits for it."""
    sent = []

    class Pinned:
        def to(self, device, *, non_blocking):
            sent.append((device, non_blocking))
            return "there"

    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda _self: Pinned())
    assert batches.send(torch.zeros(2), "cuda:1") == "there"
    assert sent == [("cuda:1", True)]


def test_scored_positions_by_number():
    """Prompts of 2 and 1 tokens, answers of 1 and 2: position 1 above, 0 and 1 below."""
    items = [trajectory([5, 6], [7]), trajectory([8], [9, 10])]
    batch = batches.make_batch(items)
    assert batch.scored_at.tolist() == [1, 2, 3]
    assert batch.scored_question.tolist() == [0, 1, 1]
    assert batch.at_scored(batch.next_ids).tolist() == [7, 9, 10]
    assert batch.all_answered
    left = batches.make_batch([trajectory([5, 6, 3], [7]), items[1]], padding_side="left")
    assert left.scored_at.tolist() == [2, 4, 5]
