"""Tiny random models of every architecture, a tokenizer of fifty words, and questions for them.

All in float32 with random norms and biases, so that nothing is right by chance: a norm that is
left out or a bias that is added twice changes the numbers.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from interp import LanguageModel, Query, Trajectory
from interp.recovery import Direction, Pair, full, layered

OWN_ENGINES = {
    "layered": lambda *given, **options: layered.measure(*given, **options).losses,
    "full": lambda *given, **options: full.measure(*given, **options).losses,
}
"""Losses by engines over plain transformers; those over other libraries have tests of their own."""

VOCAB_SIZE = 50
NUM_LAYERS = 5
CONTEXT = 64
EOS = 2

_SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": EOS}
_COMMON = _SPECIAL | {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 4,
    "max_position_embeddings": CONTEXT,
}
_GROUPED = _COMMON | {"num_key_value_heads": 2}
_GPT2 = _SPECIAL | {"vocab_size": VOCAB_SIZE, "n_embd": 16, "n_head": 4, "n_positions": CONTEXT}
_BLOOM = _SPECIAL | {"vocab_size": VOCAB_SIZE, "hidden_size": 16, "n_head": 4}
_XGLM = _SPECIAL | {
    "vocab_size": VOCAB_SIZE,
    "d_model": 16,
    "ffn_dim": 24,
    "attention_heads": 4,
    "max_position_embeddings": CONTEXT,
}
_OPT = _SPECIAL | {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 16,
    "ffn_dim": 24,
    "num_attention_heads": 4,
    "max_position_embeddings": CONTEXT,
    "word_embed_proj_dim": 16,
}

# The sliding windows are shorter than the questions.
_ARCHITECTURES: dict[str, tuple[str, str, dict]] = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", _GROUPED),
    "llama_biases": (
        "LlamaConfig",
        "LlamaForCausalLM",
        _GROUPED | {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    ),
    "mistral": (
        "MistralConfig",
        "MistralForCausalLM",
        _GROUPED | {"sliding_window": 4, "head_dim": 4},
    ),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", _GROUPED),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", _GROUPED | {"head_dim": 8}),
    "gemma2": (
        "Gemma2Config",
        "Gemma2ForCausalLM",
        _GROUPED | {"head_dim": 4, "sliding_window": 4, "final_logit_softcapping": 3.0},
    ),
    "gemma3": (
        "Gemma3TextConfig",
        "Gemma3ForCausalLM",
        _GROUPED
        | {
            "head_dim": 4,
            "sliding_window": 4,
            "layer_types": ["sliding_attention"] * 2
            + ["full_attention"]
            + ["sliding_attention"] * 2,
        },
    ),
    "olmo": ("OlmoConfig", "OlmoForCausalLM", _GROUPED),
    "olmo2": ("Olmo2Config", "Olmo2ForCausalLM", _GROUPED),
    "phi": ("PhiConfig", "PhiForCausalLM", _COMMON | {"partial_rotary_factor": 0.5}),
    "phi_qk_norm": (
        "PhiConfig",
        "PhiForCausalLM",
        _COMMON | {"partial_rotary_factor": 0.5, "qk_layernorm": True},
    ),
    "gpt2": ("GPT2Config", "GPT2LMHeadModel", _GPT2),
    "gpt_neox": ("GPTNeoXConfig", "GPTNeoXForCausalLM", _COMMON | {"rotary_pct": 0.5}),
    "gpt_neox_sequential": (
        "GPTNeoXConfig",
        "GPTNeoXForCausalLM",
        _COMMON | {"rotary_pct": 0.5, "use_parallel_residual": False},
    ),
    "bloom": ("BloomConfig", "BloomForCausalLM", _BLOOM),
    "bloom_post_norm": (
        "BloomConfig",
        "BloomForCausalLM",
        _BLOOM | {"apply_residual_connection_post_layernorm": True},
    ),
    "xglm": ("XGLMConfig", "XGLMForCausalLM", _XGLM),
    "opt": ("OPTConfig", "OPTForCausalLM", _OPT),
    "opt_post_norm": (
        "OPTConfig",
        "OPTForCausalLM",
        _OPT | {"word_embed_proj_dim": 8, "do_layer_norm_before": False},
    ),
}
ARCHITECTURES = tuple(_ARCHITECTURES)

_LAYERS_KEY = {"gpt2": "n_layer", "bloom": "n_layer", "bloom_post_norm": "n_layer"} | {
    "xglm": "num_layers"
}


def tiny_model(
    name: str = "llama", *, seed: int = 0, num_layers: int = NUM_LAYERS, **changes: object
) -> PreTrainedModel:
    """Make a random model of an architecture; the same seed gives the same weights."""
    config, model_class, settings = _ARCHITECTURES[name]
    settings = settings | {_LAYERS_KEY.get(name, "num_hidden_layers"): num_layers} | changes
    if len(settings.get("layer_types", ())) > num_layers:
        settings["layer_types"] = settings["layer_types"][:num_layers]
    torch.manual_seed(seed)
    model = getattr(transformers, model_class)(getattr(transformers, config)(**settings)).eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
        parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def tokenizer(vocab_size: int = VOCAB_SIZE, **special: str) -> PreTrainedTokenizerFast:
    """Make words w3, w4, … tokens 3, 4, …, with <s> put in front of every text."""
    words = ["<unk>", "<s>", "</s>", *(f"w{index}" for index in range(3, vocab_size))]
    backend = Tokenizer(
        models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>")
    )
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"} | special
    return PreTrainedTokenizerFast(tokenizer_object=backend, **tokens)


_TOKENIZER = tokenizer()


def wrap(model: PreTrainedModel, *, name: str | None = None) -> LanguageModel:
    """Wrap a model with the tokenizer of fifty words."""
    return LanguageModel(model, _TOKENIZER, name=name)


def tiny(
    name: str = "llama", *, seed: int = 0, num_layers: int = NUM_LAYERS, **changes: object
) -> LanguageModel:
    """Make a `tiny_model`, wrapped and named by its seed: V for 0, U for 1."""
    model = tiny_model(name, seed=seed, num_layers=num_layers, **changes)
    return wrap(model, name={0: "V", 1: "U"}.get(seed, f"U{seed}"))


def tiny_pair(name: str = "llama", *, direction: Direction = "restore", **changes: object) -> Pair:
    """Make two models that share nothing but their shapes."""
    return Pair(
        vanilla=tiny(name, **changes), unlearned=tiny(name, seed=1, **changes), direction=direction
    )


def save(model: LanguageModel, directory: Path) -> str:
    """Write a model and its tokenizer as a Hugging Face directory."""
    model.model.save_pretrained(directory)
    model.tokenizer.save_pretrained(directory)
    return str(directory)


def question(number: int, *, language: str = "en", concept: str = "", words: int = 4) -> Query:
    """Make a query of some random words."""
    rng = random.Random(f"{number} {language}")
    prompt = " ".join(f"w{rng.randrange(3, VOCAB_SIZE)}" for _ in range(words))
    return Query(id=f"q{number}", language=language, prompt=prompt, concept=concept)


def trajectory(
    prompt_ids: Sequence[int], answer_ids: Sequence[int], *, query: Query | None = None
) -> Trajectory:
    """Make a trajectory scored as the paper does: where the logits predict the answer."""
    start = len(prompt_ids) - 1
    return Trajectory(
        query=query or Query(id="q", language="en", prompt="w3"),
        prompt_ids=tuple(prompt_ids),
        answer_ids=tuple(answer_ids),
        answer="",
        scored=range(start, start + len(answer_ids)),
        reason="" if answer_ids else "nothing scored: the answer is empty",
    )


def trajectories_after(prefix: Sequence[int], num: int = 4, *, seed: int = 0) -> list[Trajectory]:
    """Make prompts that begin alike and go on for 1 to 5 tokens, with answers of 1 to 6."""
    rng = random.Random(seed)

    def tokens(low: int, high: int) -> list[int]:
        return [rng.randrange(3, VOCAB_SIZE) for _ in range(rng.randint(low, high))]

    return [
        trajectory(
            [*prefix, *tokens(1, 5)],
            tokens(1, 6),
            query=Query(id=f"q{index}", language="en", prompt="w3"),
        )
        for index in range(num)
    ]


def mixed_trajectories(num: int = 5, *, seed: int = 0) -> list[Trajectory]:
    """Make prompts of 2 to 8 random tokens with answers of 1 to 6: longer than the windows."""
    rng = random.Random(seed)

    def tokens(low: int, high: int) -> list[int]:
        return [rng.randrange(3, VOCAB_SIZE) for _ in range(rng.randint(low, high))]

    return [
        trajectory(
            tokens(2, 8), tokens(1, 6), query=Query(id=f"q{index}", language="en", prompt="w3")
        )
        for index in range(num)
    ]
