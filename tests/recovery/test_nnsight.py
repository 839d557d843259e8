"""Engine `nnsight` gives the reference's numbers, here and through requests; models stay."""

from __future__ import annotations

import inspect
import io
import json
import linecache
import sys
from importlib.metadata import PackageNotFoundError
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import interp
from interp import LanguageModel
from interp.models import read_low_rank_deltas
from interp.recovery import distances
from interp.recovery.engines import full, nnsight, nnsight_remote, nnsight_trace
from interp.recovery.pair import Pair
from interp.recovery.sites import NOTHING, Restoration
from interp.recovery.sweep_config import SweepConfig
from tests.helpers import ROOT
from tests.helpers.every_architecture import make_tiny
from tests.helpers.tiny_models import (
    ARCHITECTURES,
    mixed_trajectories,
    tiny,
    tiny_model,
    tiny_pair,
    wrap,
)
from tests.recovery.test_engines import assert_same, every_restoration, some_restorations

pytestmark = [
    pytest.mark.skipif(find_spec("nnsight") is None, reason="the extra `nnsight` is not installed"),
    # peft asks transformers for an attribute by its old name.
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*save_embedding_layers:UserWarning"),
]

TRAJECTORIES = mixed_trajectories()


def scale_of(pair: Pair) -> torch.Tensor:
    """loss(V, U), question by question."""
    forwards = Pair(vanilla=pair.vanilla, unlearned=pair.unlearned)
    return full.measure(forwards, TRAJECTORIES, [NOTHING]).losses[0]


# Parity


@pytest.mark.parametrize("direction", ["restore", "corrupt"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_equals_full(architecture, direction):
    pair, restorations = tiny_pair(architecture, direction=direction), some_restorations()
    scale = scale_of(pair)
    expected = full.measure(pair, TRAJECTORIES, restorations).losses
    for options in (
        {"padding_side": "left", "invokes": 1},
        {"padding_side": "left", "invokes": 5},
        {"padding_side": "right", "invokes": len(restorations)},
    ):
        actual = nnsight.measure(pair, TRAJECTORIES, restorations, **options).losses
        assert_same(actual, expected, scale, restorations)


@pytest.mark.parametrize(
    ("architecture", "direction"),
    [("llama", "restore"), ("gemma3", "restore"), ("gpt2", "corrupt"), ("bloom", "corrupt")],
)
def test_equals_full_everywhere(architecture, direction):
    pair, restorations = tiny_pair(architecture, direction=direction), every_restoration()
    items, scale = TRAJECTORIES[:3], scale_of(pair)[:3]
    expected = full.measure(pair, items, restorations).losses
    actual = nnsight.measure(pair, items, restorations, invokes=16, padding_side="left").losses
    assert_same(actual, expected, scale, restorations)
    # Restorations differ, so that parity says something.
    assert (expected / scale).mean(1).std() > 0.01


@pytest.mark.parametrize("distance", ["kl", "answer_logprob"])
def test_other_distances(distance):
    pair, restorations = tiny_pair("gemma2"), some_restorations()
    expected = full.measure(pair, TRAJECTORIES, restorations, distance=distance).losses
    actual = nnsight.measure(pair, TRAJECTORIES, restorations, distance=distance, invokes=4).losses
    assert_same(actual, expected, expected[0].abs().mean(), restorations)


def test_windows_in_one_forward_do_not_mix():
    """Windows do not mix: a loss is the same whatever is beside it, and in whatever order."""
    pair, restorations = tiny_pair("opt"), some_restorations()
    together = nnsight.measure(pair, TRAJECTORIES, restorations, invokes=len(restorations)).losses
    backwards = nnsight.measure(pair, TRAJECTORIES, restorations[::-1], invokes=7).losses
    assert torch.allclose(together, backwards.flip(0), rtol=1e-5)


@pytest.mark.gemma
def test_equals_full_on_gemma(gemma_pair):
    vanilla, unlearned = gemma_pair.vanilla, gemma_pair.unlearned
    queries = [
        interp.Query(id=name, language="en", prompt=f"Question: The capital of {name}\nAnswer:")
        for name in ("France", "the United Kingdom of Great Britain")
    ]
    answers = interp.trajectories(vanilla, queries, num_tokens=4, progress=False)
    names = ("coef", "attn", "head", "value", "norms", "attn_weights", "key", "resid", "unembed")
    restorations = [
        NOTHING,
        *(Restoration(sites=(name,), layers=(8, 9, 17)) for name in names),
        Restoration(sites=("coef", "attn"), layers=(3, 4, 5), positions="answer"),
    ]
    before = unlearned.content_hash()
    expected = full.measure(gemma_pair, answers, restorations).losses
    actual = nnsight.measure(
        gemma_pair, answers, restorations, invokes=3, padding_side="left"
    ).losses
    assert_same(actual.mean(1, True), expected.mean(1, True), expected[0].mean(), restorations)
    assert unlearned.content_hash() == before


def test_what_nnsight_would_not_restore_is_refused(monkeypatch):
    restorations = [NOTHING, Restoration(sites=("value",), layers=(1, 2))]
    monkeypatch.setattr(nnsight_trace, "_is_applied", lambda *_: False)
    with pytest.raises(ValueError, match="nnsight does not restore the site 'value' of this Lla"):
        nnsight.measure(tiny_pair(), TRAJECTORIES, restorations)


def test_modules_that_do_not_run_or_otherwise():
    """BART's decoder alone has norms of a cross-attention that it has not; GPT-OSS has sinks."""
    norms = [NOTHING, Restoration(sites=("norms",), layers=(0, 1, 2, 3))]
    pair = Pair(
        vanilla=wrap(make_tiny("BartForCausalLM")),
        unlearned=wrap(make_tiny("BartForCausalLM", seed=1)),
    )
    expected = full.measure(pair, TRAJECTORIES, norms).losses
    assert_same(nnsight.measure(pair, TRAJECTORIES, norms).losses, expected, expected[0], norms)
    sinks = wrap(make_tiny("GptOssForCausalLM"))
    pair = Pair(vanilla=sinks, unlearned=sinks)
    weights = [Restoration(sites=("attn_weights",), layers=(1,))]
    with pytest.raises(
        ValueError, match=r"'attn_weights' of this GptOss.*layers\.1\.self_attn is no"
    ):
        nnsight.measure(pair, TRAJECTORIES, weights)


# The models stay as they were


def everything_about(model: LanguageModel) -> dict:
    """Take what a person could notice about a model."""
    ids = torch.tensor([[5, 6, 7, 8]])
    return {
        "hash": model.content_hash(),
        "keys": list(model.model.state_dict()),
        "memory": [tensor.data_ptr() for tensor in model.model.state_dict().values()],
        "parameters": [id(parameter) for parameter in model.model.parameters()],
        "attributes": {
            name: {key: id(value) for key, value in module.__dict__.items()}
            for name, module in model.model.named_modules()
        },
        "hooks": [
            list(module._forward_hooks) + list(module._forward_pre_hooks)
            for module in model.model.modules()
        ],
        "tokenizer": {key: repr(value) for key, value in model.tokenizer.__dict__.items()},
        "logits": model.model(ids).logits.tolist(),
    }


@pytest.mark.parametrize("direction", ["restore", "corrupt"])
def test_models_stay_as_they_were(direction):
    pair = tiny_pair("gpt2", direction=direction)
    calls = []
    for model in (pair.vanilla, pair.unlearned):
        model.anatomy.layers[1].layer.register_forward_hook(lambda *run: calls.append(len(run)))
    before = [everything_about(model) for model in (pair.vanilla, pair.unlearned)]
    nnsight.measure(pair, TRAJECTORIES, some_restorations(), invokes=3)
    assert before == [everything_about(model) for model in (pair.vanilla, pair.unlearned)]
    # A person's own hook ran with the model.
    assert len(calls) > 10


@pytest.mark.parametrize("invokes", [1, 4])
def test_models_stay_as_they_were_after_an_exception(invokes):
    pair, count = tiny_pair(), 0

    def fails(_module, _args, _output):
        nonlocal count
        count += 1
        if count == 12 // invokes:
            raise RuntimeError("enough")

    hook = pair.unlearned.anatomy.layers[3].attn_out.register_forward_hook(fails)
    before = [everything_about(model) for model in (pair.vanilla, pair.unlearned)]
    count = 0
    with pytest.raises(RuntimeError, match="enough"):
        nnsight.measure(pair, TRAJECTORIES, some_restorations(), invokes=invokes)
    assert before == [everything_about(model) for model in (pair.vanilla, pair.unlearned)]
    hook.remove()
    restorations = some_restorations()
    expected = full.measure(pair, TRAJECTORIES, restorations).losses
    actual = nnsight.measure(pair, TRAJECTORIES, restorations, invokes=invokes).losses
    assert_same(actual, expected, expected[0], restorations)


def test_a_model_that_a_person_traces_with_nnsight():
    from nnsight import NNsight

    pair, restorations = tiny_pair(), some_restorations()
    own = NNsight(pair.unlearned.model)
    ids = torch.tensor([[5, 6, 7, 8]])

    def looked_at() -> torch.Tensor:
        seen = []
        with own.trace(ids):
            seen.append(own.model.layers[2].mlp.output)
        return seen[0]

    before = looked_at()
    expected = full.measure(pair, TRAJECTORIES, restorations).losses
    actual = nnsight.measure(pair, TRAJECTORIES, restorations, invokes=3).losses
    assert_same(actual, expected, expected[0], restorations)
    assert torch.equal(looked_at(), before)


# Low-rank deltas


def adapter(directory: Path, base, **settings) -> str:
    """Write a random LoRA adapter on disk."""
    peft = pytest.importorskip("peft")
    adapted = peft.get_peft_model(base, peft.LoraConfig(r=2, lora_alpha=6, **settings))
    torch.manual_seed(5)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(std=0.3)
    adapted.save_pretrained(directory)
    return str(directory)


LLAMA = ["q_proj", "o_proj", "down_proj", "gate_proj", "lm_head"]
GPT2 = ["c_attn", "c_proj"]
UNTIED = {"tie_word_embeddings": False}


def lora_pair(
    directory: Path,
    architecture: str = "llama",
    *,
    name: str = "V",
    direction="restore",
    **settings,
) -> Pair:
    """V, and U loaded from an adapter on it."""
    targets = {"llama": LLAMA, "gpt2": GPT2}[architecture]
    settings = {"target_modules": targets} | settings
    if architecture == "gpt2":
        settings["fan_in_fan_out"] = True
    path = adapter(directory, tiny_model(architecture, **UNTIED), **settings)
    vanilla = wrap(tiny_model(architecture, **UNTIED), name=name)
    return Pair(vanilla=vanilla, unlearned=interp.load(path, like=vanilla), direction=direction)


def test_low_rank_by_hand():
    """y + B A x with A = (1 2), B = (12 0), x = (1 1): 1 + 12 * 3 = 37, and 1."""
    added = nnsight_remote.make_low_rank_change(
        torch.tensor([[1.0, 2.0]]), torch.tensor([[12.0], [0.0]])
    )
    assert added(torch.ones(5, 2), torch.ones(5, 2))[3].tolist() == [37.0, 1.0]


@pytest.mark.parametrize(
    ("settings", "scales"),
    [
        # alpha / r; alpha / sqrt(r) with r = 4; a module's own alpha and rank.
        ({}, {"q_proj": 3.0, "down_proj": 3.0}),
        ({"rank_pattern": {"q_proj": 4}, "use_rslora": True}, {"q_proj": 3.0}),
        ({"rank_pattern": {"q_proj": 4}}, {"q_proj": 1.5, "down_proj": 3.0}),
        ({"alpha_pattern": {"q_proj": 8}}, {"q_proj": 4.0, "down_proj": 3.0}),
    ],
)
def test_deltas_are_scaled(tmp_path, settings, scales):
    from safetensors.torch import load_file

    pair = lora_pair(tmp_path, **settings)
    written = load_file(tmp_path / "adapter_model.safetensors")
    deltas = read_low_rank_deltas(pair.vanilla, pair.unlearned)
    assert len(deltas) == 4 * 5 + 1
    for site, scale in scales.items():
        part = "mlp" if site == "down_proj" else "self_attn"
        path = f"model.layers.2.{part}.{site}"
        a, b = (written[f"base_model.model.{path}.lora_{half}.weight"] for half in "AB")
        assert torch.equal(deltas[path][0], a)
        assert torch.allclose(deltas[path][1], scale * b)


def test_what_is_no_adapter_on_the_base(tmp_path):
    pair = lora_pair(tmp_path / "a")
    other = Pair(vanilla=tiny("llama", **UNTIED), unlearned=tiny("llama", seed=1, **UNTIED))
    with pytest.raises(ValueError, match=r"directory of a LoRA adapter on 'V', and 'U' is not one"):
        nnsight.measure(other, TRAJECTORIES, [NOTHING], remote="local")
    # A third model's weights are not V's plus the adapter.
    stranger = Pair(vanilla=tiny("llama", seed=3, **UNTIED), unlearned=pair.unlearned)
    with pytest.raises(ValueError, match=r"'U3' plus its adapter, and model\.embed_tokens\.weight"):
        nnsight.measure(stranger, TRAJECTORIES, [NOTHING], remote="local")
    # One that is changed where the adapter does nothing, and one changed where it does.
    for path in ("model.layers.1.self_attn.v_proj", "model.layers.1.self_attn.q_proj"):
        weight = pair.unlearned.model.get_submodule(path).weight
        own, weight.data = weight.data, weight.data + 0.01
        with pytest.raises(ValueError, match=f"and {path}.weight of .* is not$"):
            nnsight.measure(pair, TRAJECTORIES, [NOTHING], remote="local")
        weight.data = own
    nnsight.measure(pair, TRAJECTORIES, [NOTHING], remote="local")
    dora = lora_pair(tmp_path / "d", use_dora=True, target_modules=["q_proj"])
    with pytest.raises(ValueError, match=r"plain LoRA matrices, and .* also has .*magnitude"):
        nnsight.measure(dora, TRAJECTORIES, [NOTHING], remote="local")


# Requests


@pytest.mark.parametrize("direction", ["restore", "corrupt"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_simulated_request_equals_full(architecture, direction, tmp_path):
    pair = lora_pair(tmp_path, architecture, direction=direction)
    restorations = some_restorations()
    scale = scale_of(pair)
    assert scale.min() > 0.01
    expected = full.measure(pair, TRAJECTORIES, restorations).losses
    before = [everything_about(model) for model in (pair.vanilla, pair.unlearned)]
    path, loaded = list(sys.path), set(sys.modules)
    for side, invokes in (("left", 4), ("right", 1), ("left", len(restorations))):
        actual = nnsight.measure(
            pair, TRAJECTORIES, restorations, remote="local", invokes=invokes, padding_side=side
        ).losses
        assert_same(actual, expected, scale, restorations)
    assert (sys.path, loaded - set(sys.modules)) == (path, set())
    assert before == [everything_about(model) for model in (pair.vanilla, pair.unlearned)]


@pytest.mark.parametrize("distance", ["kl", "answer_logprob"])
def test_simulated_request_with_other_distances(distance, tmp_path):
    pair, restorations = lora_pair(tmp_path), some_restorations()
    expected = full.measure(pair, TRAJECTORIES, restorations, distance=distance).losses
    actual = nnsight.measure(
        pair, TRAJECTORIES, restorations, distance=distance, remote="local", invokes=9
    ).losses
    assert_same(actual, expected, expected[0].abs().mean(), restorations)


def test_noise_floor_of_a_simulated_request(tmp_path):
    """V into V: nothing is added anywhere."""
    pair = lora_pair(tmp_path).with_itself()
    found = nnsight.measure(
        pair, TRAJECTORIES, some_restorations(), remote="local", invokes=8
    ).losses
    assert found.max() < 1e-10


def test_request_runs_where_this_library_is_not(tmp_path, monkeypatch):
    """Server in NDIF's place, which has V and nnsight, and sees the request's bytes alone."""
    from nnsight import TransformersModel
    from nnsight.intervention.backends.local import LocalSimulationBackend
    from nnsight.intervention.backends.remote import RemoteBackend
    from nnsight.modeling import huggingface
    from nnsight.schema.request import RequestModel

    pair = lora_pair(tmp_path, name="owner/base@v2")
    restorations = some_restorations()
    expected = full.measure(pair, TRAJECTORIES, restorations).losses
    server = TransformersModel(
        tiny_model(**UNTIED), tokenizer=tiny().tokenizer, task="text-generation"
    )
    asked, sizes = [], []

    def answer(self, tracer):
        asked.append(self.model_key)
        blob = RequestModel.serialize(tracer)
        simulation = LocalSimulationBackend(server)
        hidden = simulation._hide_local_modules()
        try:
            assert "interp" not in sys.modules
            received = RequestModel.deserialize(blob, server._remoteable_persistent_objects())
            received.execute(received.info.code)
            sent = io.BytesIO()
            torch.save(received.info.frame.f_locals["distances"], sent)
        finally:
            simulation._restore(hidden)
        sizes.append(len(sent.getvalue()))
        self._push({"distances": torch.load(io.BytesIO(sent.getvalue()))}, tracer)

    monkeypatch.setattr(RemoteBackend, "__call__", answer)
    # The server writes the source that it received where this process has its own.
    monkeypatch.setattr(linecache, "cache", dict(linecache.cache))
    monkeypatch.setitem(huggingface._ID_CACHE, "owner/base", "owner/base")
    # Their checks of types, which only tests have, hide a function's source.
    for module, name in (
        (distances, "check_distance"),
        (distances, "compute_distance"),
        (nnsight_remote, "compare_logits"),
    ):
        monkeypatch.setattr(module, name, inspect.unwrap(getattr(module, name)))
    actual = nnsight.measure(pair, TRAJECTORIES, restorations, remote=True, invokes=6).losses
    assert_same(actual, expected, expected[0], restorations)
    (key,) = asked
    model_class, _, identity = key.partition(":")
    assert model_class.endswith("TransformersModel")
    assert json.loads(identity) == {
        "repo_id": "owner/base",
        "revision": "v2",
        "task": "text-generation",
    }
    # Numbers per scored position come back, no logits.
    num_scored = sum(len(item.scored) for item in TRAJECTORIES)
    assert sizes[0] < len(restorations) * (num_scored * 8 + 1000)


@pytest.mark.parametrize("name", ["V", "gemma-3-270m", "tests/helpers/tiny_models.py", "a/b/c"])
def test_a_vanilla_model_that_is_not_hosted(name, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    pair = lora_pair(tmp_path, name=name)
    with pytest.raises(ValueError, match=f"its Hub id .owner/name., and '{name}' is not one"):
        nnsight.measure(pair, TRAJECTORIES, [NOTHING], remote=True)


# Sweeps


def test_sweep(tmp_path):
    pair = lora_pair(tmp_path / "a")
    options = {"sites": ("attn", "value"), "window": 3, "progress": False}
    models = pair.vanilla, pair.unlearned
    expected = interp.sweep(*models, TRAJECTORIES, engine="full", **options).losses
    for remote in (False, "local"):
        out = tmp_path / f"run {remote}"
        found = interp.sweep(
            *models, TRAJECTORIES, engine="nnsight", remote=remote, out=out, **options
        ).losses
        assert set(found["engine"]) == {"nnsight"}
        for column in ("loss_unlearned", "loss_restored"):
            difference = (found[column] - expected[column]).abs() / expected["loss_unlearned"]
            assert difference.max() < 1e-5
        # What ran where is part of the run only where it was elsewhere.
        config = json.loads((out / "run.json").read_text())["config"]
        assert config.get("remote", "absent") == (remote or "absent")


def test_remote_needs_this_engine():
    with pytest.raises(ValueError, match=r"^remote= needs engine='nnsight', not 'layered'$"):
        SweepConfig(remote="local")


@pytest.mark.usefixtures("unchecked")
def test_remote_that_there_is_not():
    with pytest.raises(ValueError, match="unknown remote 'here'; valid: False, True"):
        SweepConfig(engine="nnsight", remote="here")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("installed", "says"),
    [
        ("0.7.9", r"needs nnsight 0\.8 or newer, not 0\.7\.9: .*'interp\[nnsight\]'$"),
        (None, r"needs the package nnsight: pip install 'interp\[nnsight\]'$"),
    ],
)
def test_nnsight_too_old_or_missing(monkeypatch, installed, says):
    def version(name: str) -> str:
        assert name == "nnsight"
        if installed is None:
            raise PackageNotFoundError(name)
        return installed

    monkeypatch.setattr("interp.models.conversion.version", version)
    with pytest.raises(ImportError, match=says):
        nnsight.measure(tiny_pair(), TRAJECTORIES, [NOTHING])
