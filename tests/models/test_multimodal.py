"""Models of images or sounds: their text model is loaded, and computes what the whole one does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.overrides import TorchFunctionMode
from transformers import Gemma3ForCausalLM

import interp
from tests.helpers.every_architecture import list_multimodal, make_tiny
from tests.helpers.tiny_models import question, save, wrap

IDS = torch.tensor([[11, 18, 25, 32, 39, 5]])

# Those that can be made tiny and run here.
LOADED = [
    "Aria",
    "AyaVision",
    "Cohere2Vision",
    "DeepseekVL",
    "Gemma3",
    "GlmAsr",
    "GotOcr2",
    "GraniteSpeech",
    "HyperCLOVAXVisionV2",
    "Idefics2",
    "Idefics3",
    "InternVL",
    "Lfm2Vl",
    "LightOnOcr",
    "Llava",
    "LlavaNext",
    "LlavaNextVideo",
    "LlavaOnevision",
    "Mistral3",
    "MossTranscribeDiarize",
    "Ovis2",
    "PaliGemma",
    "Qwen2Audio",
    "Qwen3ASR",
    "SmolVLM",
    "VideoLlama3",
    "VideoLlava",
    "VipLlava",
    "Voxtral",
]
SAMPLE = ("Aria", "AyaVision", "Gemma3", "Idefics3", "Llava")


def make(name: str, *, seed: int = 0):
    return make_tiny(f"{name}ForConditionalGeneration", seed=seed)


def compute_logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[] if n in SAMPLE else pytest.mark.slow) for n in LOADED],
)
def test_the_text_model_computes_what_the_whole_one_does(tmp_path, name):
    assert f"{name}ForConditionalGeneration" in list_multimodal()
    whole = make(name)
    loaded = interp.load(save(wrap(whole), tmp_path / "m"))
    right, found = compute_logits(whole), compute_logits(loaded.model)
    assert (found - right).abs().max() <= 1e-6 * right.abs().max()
    assert type(loaded.model).__name__.endswith("ForCausalLM")
    # Nothing of what sees or hears is kept.
    assert loaded.model.num_parameters() < whole.num_parameters()
    assert not any("vision" in key or "audio" in key for key in loaded.model.state_dict())


def rename(directory: Path, *changes: tuple[str, str]) -> None:
    """Give the tensors of a checkpoint other names."""
    file = directory / "model.safetensors"
    tensors, used = {}, set()
    for name, tensor in load_file(file).items():
        for old, new in changes:
            if name.startswith(old):
                name = new + name.removeprefix(old)
                used.add(old)
                break
        tensors[name] = tensor
    assert used == {old for old, _ in changes}
    save_file(tensors, file, {"format": "pt"})


@pytest.mark.parametrize(
    "changes",
    [
        # The newer of the library's two spellings, and two that nobody has used yet.
        (("language_model.model.", "model.language_model."),),
        (("language_model.model.", "text."),),
        (("language_model.model.", "a.b.c."), ("vision_tower.", "model.")),
    ],
)
def test_whatever_the_names_begin_with(tmp_path, changes):
    whole = make("Gemma3")
    save(wrap(whole), tmp_path / "m")
    rename(tmp_path / "m", *changes)
    loaded = interp.load(tmp_path / "m")
    assert torch.equal(compute_logits(loaded.model), compute_logits(whole))


def test_an_unembedding_of_its_own(tmp_path):
    whole = make_tiny("Gemma3ForConditionalGeneration", tie_word_embeddings=False)
    whole.lm_head.weight.data += 1
    loaded = interp.load(save(wrap(whole), tmp_path / "m"))
    assert torch.equal(compute_logits(loaded.model), compute_logits(whole))
    assert torch.equal(loaded.anatomy.unembed.weight, whole.lm_head.weight)


def sweep(vanilla, unlearned, answers):
    sites = ["coef", "attn", "value", "norms", "unembed"]
    recovery = interp.sweep(vanilla, unlearned, answers, sites=sites, window=3, progress=False)
    return recovery.losses["loss_restored"].to_numpy()


def test_scores_are_those_of_the_text_model_alone_to_the_last_digit(tmp_path):
    """Wrapped and bare Gemma 3, from directories and in memory."""
    whole = [make("Gemma3", seed=seed) for seed in (0, 1)]
    bare = []
    for model in whole:
        alone = Gemma3ForCausalLM(model.config.text_config).eval()
        alone.model, alone.lm_head = model.model.language_model, model.lm_head
        bare.append(alone)
    kinds = {
        "wrapped": [
            interp.load(save(wrap(model), tmp_path / f"w{n}")) for n, model in enumerate(whole)
        ],
        "bare": [
            interp.load(save(wrap(model), tmp_path / f"b{n}")) for n, model in enumerate(bare)
        ],
        "in memory": [wrap(model, name=f"m{n}") for n, model in enumerate(whole)],
    }
    questions = [question(number) for number in range(3)]
    answers = interp.trajectories(kinds["bare"][0], questions, num_tokens=4, progress=False)
    found = {kind: sweep(*models, answers) for kind, models in kinds.items()}
    assert (found["wrapped"] == found["bare"]).all()
    assert (found["in memory"] == found["bare"]).all()
    assert len(set(found["bare"])) > 10


def run_by_hand(models, paths, item, site, window):
    """Compute loss(V, R) with hooks of a few lines; `paths` are the layers', by name."""
    vanilla, unlearned = models
    ids = torch.tensor([[*item.prompt_ids, *item.answer_ids]])
    scored = slice(len(item.prompt_ids) - 1, ids.shape[1] - 1)
    leaf = "self_attn.o_proj" if site == "attn" else "mlp.down_proj"
    states, handles = {}, []
    for layer in window:
        theirs, mine = (
            model.get_submodule(f"{path}.{layer}.{leaf}")
            for model, path in zip(models, paths, strict=True)
        )
        if site == "coef":
            handles += [
                theirs.register_forward_pre_hook(
                    lambda _m, args, layer=layer: states.update({layer: args[0]})
                ),
                mine.register_forward_pre_hook(lambda _m, _args, layer=layer: (states[layer],)),
            ]
        else:
            handles += [
                theirs.register_forward_hook(
                    lambda *run, layer=layer: states.update({layer: run[-1]})
                ),
                mine.register_forward_hook(lambda *_run, layer=layer: states[layer]),
            ]
    with torch.no_grad():
        wanted = vanilla(input_ids=ids, use_cache=False).logits[0, scored]
        logits = unlearned(input_ids=ids, use_cache=False).logits[0, scored]
    for handle in handles:
        handle.remove()
    return ((wanted - logits) ** 2).mean().item()


def test_hooks_by_hand_give_the_scores_of_wrapped_and_bare(tmp_path):
    """Gemma 3, whole and its text model alone, in memory and from a directory."""
    whole = [make("Gemma3", seed=seed) for seed in (0, 1)]
    loaded = [interp.load(save(wrap(model), tmp_path / f"w{n}")) for n, model in enumerate(whole)]
    bare = [model.model for model in loaded]
    assert [type(model).__name__ for model in bare] == ["Gemma3ForCausalLM"] * 2
    questions = [question(number) for number in range(2)]
    answers = interp.trajectories(loaded[0], questions, num_tokens=4, progress=False)
    krs = []
    for models in (loaded, [wrap(model, name=f"m{n}") for n, model in enumerate(whole)]):
        recovery = interp.sweep(
            *models, answers, sites=["coef", "attn"], window=3, engine="full", progress=False
        )
        krs.append(recovery.krs()["krs"].to_numpy())
        losses = recovery.losses.set_index(["site", "layer", "query_id"])["loss_restored"]
        for kind, path in ((whole, "model.language_model.layers"), (bare, "model.layers")):
            for item in answers:
                for site in ("coef", "attn"):
                    for layer in range(4):
                        window = [n for n in range(layer - 1, layer + 2) if 0 <= n < 4]
                        right = run_by_hand(kind, (path, path), item, site, window)
                        found = losses.loc[site, layer, item.query.id]
                        assert found == pytest.approx(right, rel=1e-5)
    # To the last digit.
    assert (krs[0] == krs[1]).all()
    assert len(set(krs[0])) == 8


def test_no_memory_is_taken_for_what_sees(tmp_path):
    """Every tensor that a load makes is counted, whether it is kept or not."""
    tower = {"hidden_size": 128, "intermediate_size": 512}
    whole = make_tiny("Gemma3ForConditionalGeneration", vision_config=tower)
    directory = save(wrap(whole), tmp_path / "m")
    text = sum(value.nbytes for value in whole.model.language_model.parameters())
    sees = sum(value.nbytes for value in whole.model.vision_tower.parameters())
    assert sees > 30 * text
    made = {}

    class Counting(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and not result.is_meta:
                # They are held, so that no address is used twice.
                storage = result.untyped_storage()
                made[storage.data_ptr()] = storage
            return result

    with Counting():
        loaded = interp.load(directory)
    total = sum(storage.nbytes() for storage in made.values())
    assert sum(value.nbytes for value in loaded.model.parameters()) == text
    # The text model, and what its checks compute.
    assert text <= total < sees / 4


def test_a_text_model_without_a_class_of_its_own(tmp_path):
    """Qwen3-VL's: the whole model is wrapped, and its layers are those of the text."""
    whole = make("Qwen3VL")
    directory = save(wrap(whole), tmp_path / "m")
    says = "Qwen3VLForConditionalGeneration, whose text model has no class of its own in transform"
    with pytest.raises(ValueError, match=says) as error:
        interp.load(directory)
    assert "\n" not in str(error.value)
    model = interp.from_model(whole, wrap(whole).tokenizer)
    assert model.anatomy.path == "model.language_model.layers"


def test_a_text_model_that_is_not_there(tmp_path):
    save(wrap(make("Gemma3")), tmp_path / "m")
    rename(tmp_path / "m", ("language_model.model.layers.0.", "elsewhere."))
    with pytest.raises(ValueError, match="no Gemma3ForCausalLM is found: save its text model"):
        interp.load(tmp_path / "m")


def test_a_classifier_is_no_language_model(tmp_path):
    save(wrap(make("Gemma3")), tmp_path / "m")
    file = tmp_path / "m" / "config.json"
    config = json.loads(file.read_text()) | {"architectures": ["Gemma3ForSequenceClassification"]}
    file.write_text(json.dumps(config))
    with pytest.raises(ValueError, match="only text models with a decoder alone can be loaded"):
        interp.load(tmp_path / "m")
