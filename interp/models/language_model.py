"""Language model with its tokenizer, its anatomy and its content hash."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from interp.models.encoding import select_text_tokens

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


def select_functional_settings(config: PreTrainedConfig) -> dict[str, Any]:
    """Select the settings that determine the function that a model computes."""
    return {
        key: value
        for key, value in config.to_dict().items()
        if key not in NOT_HASHED and not key.startswith("_") and value is not None
    }


class LanguageModel:
    """Causal language model and its tokenizer, both as they were handed over.

    Attributes:
        model: the Hugging Face model.
        tokenizer: its tokenizer.
        name: the specification that it was loaded from, or "in-memory" and the class.
        packing: what was done to its weights while it was loaded: "4bit" or "8bit" where they were
            packed, "none" where packed ones were made plain, None where they are as stored.

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
                hint = _suggest_model(given) if part == "model" else ""
                raise ValueError(
                    f"the {part} must be a transformers {wanted.__name__}, not "
                    f"{type(given).__name__}{hint}"
                )
        self.model = model
        self.tokenizer = tokenizer
        self.name = name or f"in-memory {type(model).__name__}"
        self.packing: str | None = None
        # Modules that `integrity.check_runnable` found to be those of the architecture.
        self.proven: tuple[tuple[int, type], ...] = ()
        self._noted: set[str] = set()
        # What `chat.find_chat_format` found, by template and special tokens.
        self.chat_formats: dict[object, object] = {}

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
    def text_config(self) -> PreTrainedConfig:
        """Configuration of the text model, which models of images or sounds have inside."""
        return self.model.config.get_text_config(decoder=True)

    @property
    def num_layers(self) -> int:
        """Number of decoder layers, L."""
        return self.text_config.num_hidden_layers

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
        """Return a text's token ids, with the model's usual special tokens.

        Those that end texts are left out, and those that begin them stand there once, each with a
        warning; see `interp.models.encoding`.

        Raises:
            ValueError: the tokenizer has a token that the model does not.
        """
        return self.encode_with(text)[0]

    def encode_with(self, text: str, **settings: Any) -> tuple[tuple[int, ...], Any]:
        """Encode a text as `encode` does; return what else the tokenizer gives of its tokens, too.

        Args:
            text: the text.
            settings: of the tokenizer, such as `return_offsets_mapping=True`.
        """
        encoded: Any = self.tokenizer(text, **settings)
        kept, notes = select_text_tokens(self.tokenizer, text, encoded["input_ids"])
        for note in notes:
            self.warn_once(note, stacklevel=5)
        token_ids = tuple(encoded["input_ids"][kept])
        self.check_token_ids(token_ids)
        return token_ids, {name: values[kept] for name, values in encoded.items()}

    def warn_once(self, note: str, *, stacklevel: int = 4) -> None:
        """Warn of something about this model, the first time only."""
        if note not in self._noted:
            self._noted.add(note)
            warnings.warn(note, stacklevel=stacklevel)

    def check_token_ids(self, token_ids: Sequence[int]) -> None:
        """Raise ValueError if a token is beyond the model's vocabulary: a GPU would not recover."""
        num_rows = getattr(self.model.get_input_embeddings(), "num_embeddings", None)
        if num_rows is None or not token_ids:
            return
        for token_id in (min(token_ids), max(token_ids)):
            if not 0 <= token_id < num_rows:
                known = 0 <= token_id < len(self.tokenizer)
                token = f" ({self.tokenizer.convert_ids_to_tokens(token_id)!r})" if known else ""
                raise ValueError(
                    f"token {token_id}{token} is out of range: {self.name!r} has tokens 0 to "
                    f"{num_rows - 1}; resize its vocabulary to the tokenizer's, or use the "
                    "tokenizer that it was trained with"
                )

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
        settings = select_functional_settings(self.model.config)
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


def check_language_model(given: object, argument: str, *, also: str = "") -> None:
    """Raise TypeError unless an argument is a LanguageModel, with how one is made of what it is.

    Args:
        given: the argument.
        argument: what it is called.
        also: what else it might have been, such as "a specification or ".
    """
    if isinstance(given, LanguageModel):
        return
    hint = ""
    if isinstance(given, str | os.PathLike):
        hint = f": load it first, interp.load({os.fspath(given)!r})"
    elif isinstance(given, torch.nn.Module):
        hint = ": make one of it with interp.from_model(model, tokenizer)"
    raise TypeError(f"{argument} must be {also}a LanguageModel, not {type(given).__name__}{hint}")


def _suggest_model(given: object) -> str:
    if isinstance(given, str | os.PathLike):
        return f": load it with interp.load({os.fspath(given)!r})"
    if hasattr(given, "_orig_mod"):
        return ": give the model as it was before torch.compile"
    return "; merge an adapter with merge_and_unload() first"
