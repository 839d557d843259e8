"""Models of images or sounds: their text model is loaded, and computes what the whole one does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Gemma3ForCausalLM

import interp
from tests.helpers.every_architecture import list_multimodal, make_tiny
from tests.helpers.tiny_models import question, save, wrap

IDS = torch.tensor([[11, 18, 25, 32, 39, 5]])

# Those that can be made tiny and run here.
LOADED = [
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
SAMPLE = ("AyaVision", "Gemma3", "Idefics3", "Llava")


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
