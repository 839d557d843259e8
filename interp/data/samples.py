"""Texts that a model writes itself, in each language: what it must go on saying after unlearning.

A model begins with a sentence in a language (`openings` of its templates) and goes on at
temperature 1, so that what it writes is what it says by itself: KL(V ‖ U) on V's samples
(`interp.behaviour.reference_divergence`) needs no data set. The opening is prompt, the tokens that
were drawn are the sample.

Every draw depends on the seed, the language, the number of the text and the token's place alone:
batches do not matter. Samples are kept under the model's hash in the user's cache.

    samples = sample_texts(vanilla, ["en", "de"])
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from interp.data.answer_cache import make_key
from interp.data.counterfactuals import hash_text
from interp.data.facts import select_facts
from interp.data.templates import fill, read_templates
from interp.files import compute_digest, write_atomically
from interp.models.generation import compute_text_hash, generate_continuations
from interp.models.gguf import get_cache_directory
from interp.models.language_model import LanguageModel

_ABOUT = "continent"
"""The relation whose facts openings are filled with: it has the most countries."""

_STRIDE = 7
"""From one text's country to the next one's."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Text that a model wrote.

    Attributes:
        language: BCP-47 code of the opening.
        prompt_ids: the opening's tokens, special tokens included.
        token_ids: the tokens that were drawn, at least one.
        text: those tokens as text.
    """

    language: str
    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    text: str


def sample_texts(
    model: LanguageModel,
    languages: Sequence[str],
    *,
    num_texts: int = 16,
    num_tokens: int = 48,
    batch_size: int = 16,
    seed: int = 0,
    folder: Path | None = None,
    progress: bool = True,
) -> list[Sample]:
    """Let a model write texts at temperature 1, in each language.

    Args:
        model: V.
        languages: BCP-47 codes of languages with templates.
        num_texts: texts per language. One that ends before its first token is left out.
        num_tokens: the longest text, in tokens.
        batch_size: texts written at once.
        seed: of the draws.
        folder: where they are kept; `samples` in the user's cache if None.
        progress: show a progress bar on standard error if it takes more than two seconds.

    Returns:
        Language by language.

    Raises:
        ValueError: no language, a language without templates, fewer than one text or token, or a
            language in which the model ends every text at once.
    """
    if not languages:
        raise ValueError("no languages to write in: give at least one")
    for name, number in (("num_texts", num_texts), ("num_tokens", num_tokens)):
        if number < 1:
            raise ValueError(f"{name} must be at least 1, not {number}")
    prompts = {code: _make_openings(code, num_texts) for code in dict.fromkeys(languages)}
    key = make_key(
        kind="samples",
        model=model.content_hash(),
        text=compute_text_hash(model),
        prompts=json.dumps(prompts),
        num_tokens=num_tokens,
        seed=seed,
    )
    kept = (get_cache_directory() / "samples" if folder is None else folder) / f"{key}.json"
    if (stored := _read(kept)) is not None:
        return stored
    samples = []
    bar = tqdm(
        total=num_texts * len(prompts), desc="samples", unit="text", disable=not progress, delay=2
    )
    with bar:
        for code, openings in prompts.items():
            encoded = [model.encode(opening) for opening in openings]
            written: dict[int, tuple[int, ...]] = {}
            for number, token_ids in generate_continuations(
                model,
                encoded,
                num_tokens=num_tokens,
                batch_size=batch_size,
                pick=TokenDraw([f"{seed}/samples/{code}/{n}" for n in range(num_texts)]),
            ):
                written[number] = token_ids
                bar.update()
            some = [number for number in sorted(written) if written[number]]
            if not some:
                raise ValueError(f"{model.name!r} ends every text in {code!r} before it begins")
            samples += [
                Sample(
                    language=code,
                    prompt_ids=encoded[number],
                    token_ids=written[number],
                    text=model.decode(written[number]),
                )
                for number in some
            ]
    _write(kept, samples)
    return samples


class TokenDraw:
    """Draw of the next token, at temperature 1.

    Args:
        purposes: of each prompt, what tells its draws from others.
    """

    def __init__(self, purposes: Sequence[str]) -> None:
        self._purposes = purposes

    def __call__(
        self, logits: Float[Tensor, "row vocab"], numbers: Sequence[int], step: int
    ) -> Int[Tensor, " row"]:
        """Draw a token per row: of p, the largest p/q with q from an exponential distribution."""
        drawn = []
        for row, number in zip(logits.float().cpu(), numbers, strict=True):
            digest = hash_text(f"{self._purposes[number]}/{step}")
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
            noise = torch.empty_like(row).exponential_(generator=generator)
            drawn.append((row - noise.log()).argmax())
        return torch.stack(drawn)


def _make_openings(language: str, count: int) -> list[str]:
    """Make openings about one country after the other."""
    openings = read_templates(language).openings
    facts = select_facts(_ABOUT, languages=[language])
    return [
        fill(
            openings[number % len(openings)], facts[_STRIDE * number % len(facts)], language
        ).rstrip()
        for number in range(count)
    ]


def _read(file: Path) -> list[Sample] | None:
    """Read samples that were kept; None where there are none, or the file is damaged."""
    try:
        held = json.loads(file.read_text(encoding="utf-8"))
        if held["digest"] != compute_digest(held["samples"]):
            return None
        return [
            Sample(
                language=row["language"],
                prompt_ids=tuple(row["prompt_ids"]),
                token_ids=tuple(row["token_ids"]),
                text=row["text"],
            )
            for row in held["samples"]
        ]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None


def _write(file: Path, samples: Sequence[Sample]) -> None:
    rows = [asdict(sample) for sample in samples]
    text = json.dumps({"digest": compute_digest(rows), "samples": rows}, ensure_ascii=False)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, lambda scratch: scratch.write_text(text, encoding="utf-8"))
    except OSError:
        # A cache that cannot be written costs time, not the result.
        return
