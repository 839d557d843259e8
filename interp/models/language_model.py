"""A language model with its tokenizer, and what is asked of it everywhere."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

if TYPE_CHECKING:
    from interp.models.anatomy import Anatomy
    from interp.recovery.exploring import ActivationCache, HookFunction, Prompts
    from interp.recovery.sites import Positions

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


class LanguageModel:
    """A causal language model and its tokenizer, both as they were handed over.

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

    @cached_property
    def anatomy(self) -> Anatomy:
        """Where each site lives in this model.

        Raises:
            ValueError: the architecture is not known.
        """
        from interp.models.anatomy import find_anatomy

        return find_anatomy(self.model)

    @property
    def num_layers(self) -> int:
        """The number of decoder layers, L."""
        return self.model.config.num_hidden_layers

    @property
    def device(self) -> torch.device:
        """The device of the first parameter, an embedding: where token ids are wanted.

        A model loaded with `device="auto"` has its layers on others too.
        """
        return self.model.device

    @property
    def devices(self) -> set[torch.device]:
        """All devices that hold parameters."""
        return {parameter.device for parameter in self.model.parameters()}

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the model's first floating-point parameter."""
        return self.model.dtype

    @property
    def has_packed_weights(self) -> bool:
        """Whether weights are packed (quantised), so that they are no plain matrices."""
        return getattr(self.model.config, "quantization_config", None) is not None

    def encode(self, text: str) -> tuple[int, ...]:
        """A text's token ids, with the model's usual special tokens."""
        return tuple(self.tokenizer(text)["input_ids"])  # pyright: ignore[reportArgumentType]

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """The text of token ids."""
        text = self.tokenizer.decode(list(token_ids), skip_special_tokens=skip_special_tokens)
        assert isinstance(text, str)
        return text

    def content_hash(self) -> str:
        """SHA-256 over the architecture and the weights' names, shapes, precisions and bytes.

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

    def run_with_cache(
        self, prompts: Prompts, sites: Sequence[str] = ("coef", "attn", "resid")
    ) -> tuple[Tensor, ActivationCache]:
        """Run the model once and keep its states.

        logits, cache = model.run_with_cache(["Paris is", "Rome is"], sites=["coef", "head@3"])
        cache["coef", 5]                 # [query, pos, d_mlp]
        cache["head", 3]                 # [query, pos, head, d_head]
        cache.stack("coef")              # [layer, query, pos, d_mlp]
        cache.tokens[cache.real]         # padding stands on the right

        No gradients are kept. Inside `hooks` and `restore` the run is theirs.

        Args:
            prompts: a text or several, queries, or trajectories (their whole text).
            sites: activation sites, of every layer ("coef") or one ("coef@3"), or single heads and
                coefficients ("head[2]", "coef@3[17]").

        Returns:
            The logits at each prompt's last token, [query, vocab], and the states. (The logits of
            all tokens are `model.anatomy.logits` of the final states; with a vocabulary of 262,144
            they are large.)

        Raises:
            ValueError: no prompts, a prompt without tokens or longer than the context, or a name
                that is no activation site.
        """
        from interp.recovery.exploring import run_with_cache

        return run_with_cache(self, prompts, sites)

    def hooks(self, functions: Sequence[tuple[str, HookFunction]]) -> AbstractContextManager[None]:
        """Show states to functions, which may replace them, in every forward inside the block.

        def silence(value, hook):        # value [query, pos, head, d_head]
            print(hook.name, hook.layer())
            return value * 0

        with model.hooks([("head@3[2]", silence), ("model.norm", look)]):
            model.model.generate(**tokens)

        A function is given a state and its `Hook` (`name`, `layer()`); it returns a tensor of the
        same shape and precision that takes the state's place, or None. As in TransformerLens, what
        it changes in place is changed. The functions at one place run in their order.

        Args:
            functions: pairs of a place and a function. A place is an activation site as in
                `run_with_cache` (of every layer: the function is called for each), or the dotted
                path of a module, whose output (the first, if several) is then the state.

        Raises:
            ValueError: a place is neither; or, inside the block, a function returns something else.
        """
        from interp.recovery.exploring import hooks

        return hooks(self, functions)

    def restore(
        self,
        vanilla: LanguageModel,
        sites: str | Sequence[str],
        layers: Sequence[int] | None = None,
        *,
        positions: Positions = "all",
        units: Sequence[int] | Mapping[int, Sequence[int]] | None = None,
    ) -> AbstractContextManager[None]:
        """Make every forward inside the block one of this model with the other's parts put in.

        with unlearned.restore(vanilla, "coef+attn", layers=range(11, 16)):
            unlearned.model.generate(**tokens)

        The other model reads the same tokens beside this one, with a key-value cache of its own.
        That is exact with and without a cache, for padded batches, sliding windows and beam search.

        Args:
            vanilla: the model whose parts are put in.
            sites: sites, activations or parameters, one or several ("coef+attn").
            layers: the layers; all if None, or those that `sites` or `units` name.
            positions: where activation sites are restored: "all", the "prompt" (what the first
                forward of a text reads) or the "answer" (what later forwards read).
            units: single heads or coefficients, the same in each layer or by layer.

        Raises:
            ValueError: the models do not match; a site, layer, unit or position is not there; or,
                inside the block, a forward without token ids, or with a cache that is no
                `DynamicCache` or was filled outside the block.
        """
        from interp.recovery.beside import restore

        return restore(self, vanilla, sites, layers, positions=positions, units=units)
