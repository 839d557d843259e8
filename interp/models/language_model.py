"""Language model with its tokenizer, its anatomy and its content hash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

if TYPE_CHECKING:
    from interp.models.anatomy import Anatomy

# What a configuration says about anything but the function that the model computes.
NOT_HASHED = frozenset(
    {
        "architectures",
        "bos_token_id",
        "chunk_size_feed_forward",
        "dtype",
        "eos_token_id",
        "id2label",
        "label2id",
        "output_attentions",
        "output_hidden_states",
        "pad_token_id",
        "problem_type",
        "return_dict",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    }
)

HASH_CHUNK = 2**24

FUNCTIONS = ("run_with_cache", "hooks", "restore")
"""Functions of `interp` that other libraries have as methods of a model."""


class LanguageModel:
    """Causal language model and its tokenizer, both as they were handed over.

    Attributes:
        model: the Hugging Face model.
        tokenizer: its tokenizer.
        name: the specification that it was loaded from, or "in-memory" and the class.

    Raises:
        ValueError: the model is not a Hugging Face model, or is wrapped in another.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        name: str | None = None,
    ):
        for part, given, wanted in (
            ("model", model, PreTrainedModel),
            ("tokenizer", tokenizer, PreTrainedTokenizerBase),
        ):
            if not isinstance(given, wanted):
                hint = "; merge an adapter with merge_and_unload() first" if part == "model" else ""
                raise ValueError(
                    f"the {part} must be a transformers {wanted.__name__}, not "
                    f"{type(given).__name__}{hint}"
                )
        self.model = model
        self.tokenizer = tokenizer
        self.name = name or f"in-memory {type(model).__name__}"

    def __repr__(self) -> str:
        return f"LanguageModel({self.name!r}, {type(self.model).__name__}, {self.dtype})"

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> object:
            """Raise AttributeError; where a function of `interp` does what is wanted, name it."""
            if name in FUNCTIONS:
                raise AttributeError(f"LanguageModel has no {name}: use interp.{name}(model, ...)")
            return self.__getattribute__(name)

    @cached_property
    def anatomy(self) -> Anatomy:
        """Module paths of each site in this model.

        Raises:
            ValueError: the architecture is not known.
        """
        from interp.models.anatomy import find_anatomy

        return find_anatomy(self.model)

    @property
    def num_layers(self) -> int:
        """Number of decoder layers, L."""
        return self.model.config.num_hidden_layers

    @property
    def device(self) -> torch.device:
        """Device of the first parameter, an embedding: where token ids are wanted.

        A model loaded with `device="auto"` has its layers on others too.
        """
        return self.model.device

    @property
    def devices(self) -> set[torch.device]:
        """All devices that hold parameters."""
        return {parameter.device for parameter in self.model.parameters()}

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the model's first floating-point parameter."""
        return self.model.dtype

    @property
    def has_packed_weights(self) -> bool:
        """True if weights are packed (quantised), so that they are no plain matrices."""
        return getattr(self.model.config, "quantization_config", None) is not None

    def encode(self, text: str) -> tuple[int, ...]:
        """Return a text's token ids, with the model's usual special tokens."""
        return tuple(self.tokenizer(text)["input_ids"])  # pyright: ignore[reportArgumentType]

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """Return the text of token ids."""
        text = self.tokenizer.decode(list(token_ids), skip_special_tokens=skip_special_tokens)
        assert isinstance(text, str)
        return text

    def content_hash(self) -> str:
        """Hash the architecture and the weights' names, shapes, precisions and bytes (SHA-256).

        The same weights have the same hash however they came here: loaded, made in memory, or
        sharing another model's memory; tied weights count once. It is computed anew at every
        call (about 0.4 s per GB on two cores), so it can also prove that a model is unchanged.
        """
        config = self.model.config.to_dict()
        settings = {
            key: config[key]
            for key in config
            if key not in NOT_HASHED and not key.startswith("_") and config[key] is not None
        }
        lines = [type(self.model).__name__, json.dumps(settings, sort_keys=True, default=str)]
        seen: set[int] = set()
        with ThreadPoolExecutor() as pool:
            for name, tensor in sorted(self.model.state_dict(keep_vars=True).items()):
                if id(tensor) in seen:
                    continue
                seen.add(id(tensor))
                data = tensor.detach().reshape(-1).cpu().view(torch.uint8).numpy()
                chunks = [data[i : i + HASH_CHUNK] for i in range(0, len(data), HASH_CHUNK)]
                digests = pool.map(lambda chunk: hashlib.sha256(chunk).hexdigest(), chunks)
                lines.append(f"{name} {tensor.dtype} {tuple(tensor.shape)} {' '.join(digests)}")
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()
