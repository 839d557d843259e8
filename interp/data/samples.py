"""Texts that a model writes itself, in each language: what it must go on saying after unlearning.

A model begins with a sentence in a language (`openings` of its templates) and goes on at
temperature 1, so that what it writes is what it says by itself: KL(V ‖ U) on V's samples
(`interp.behaviour.reference_divergence`) and MEMIT's second moments (`interp.unlearning.memit`)
need no data set. The opening is prompt, the tokens that were drawn are the sample.

Every draw depends on the seed, the language, the number of the text and the token's place alone:
batches do not matter. The model computes in its own precision: in another, it would write other
texts. Samples are kept under the model's hash in the user's cache, language by language.

    samples = sample_texts(vanilla, ["en", "de"])
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor
from tqdm.auto import tqdm

from interp.data.answer_cache import make_key
from interp.data.facts import select_facts
from interp.data.templates import fill, read_templates
from interp.files import compute_digest, write_atomically
from interp.models.generation import compute_text_hash, generate_continuations
from interp.models.gguf import get_cache_directory
from interp.models.language_model import LanguageModel
from interp.models.sampling import make_sampler

_ABOUT = "continent"
"""The relation whose facts openings are filled with: it has the most countries."""

_STRIDE = 7
"""From one text's country to the next one's."""

_NUM_OPENINGS = 256
"""Openings that tell one set of templates from another: every wording and country is in them."""


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
    batch_size: int = 64,
    seed: int = 0,
    folder: Path | None = None,
    progress: bool = True,
) -> list[Sample]:
    """Let a model write texts at temperature 1, in each language.

    Args:
        model: V.
        languages: BCP-47 codes of languages with templates.
        num_texts: texts per language. One that ends before its first token is left out.
        num_tokens: the longest text, in tokens; shorter where the model's context ends.
        batch_size: texts written at once.
        seed: of the draws.
        folder: where they are kept, a file per language; `samples` in the user's cache if None.
        progress: show a progress bar on standard error if it takes more than two seconds.

    Returns:
        Language by language.

    Raises:
        ValueError: no language, a language without templates, fewer than one text or token, or a
            language in which the model ends every text at once or has no room for one.
    """
    codes = _check(languages, num_texts=num_texts, num_tokens=num_tokens)
    writer = _Writer(model, num_tokens, batch_size, seed, folder)

    def write(code: str, bar: tqdm) -> list[Sample]:
        return writer.write(code, range(num_texts), bar)

    return writer.collect(
        codes, write, amount=f"{num_texts} texts", share=num_texts * num_tokens, progress=progress
    )


def sample_tokens(
    model: LanguageModel,
    languages: Sequence[str],
    *,
    num_tokens: int,
    text_length: int = 128,
    batch_size: int = 96,
    seed: int = 0,
    folder: Path | None = None,
    progress: bool = True,
) -> list[Sample]:
    """Let a model write texts until they have so many tokens, equally many in each language.

    Their first tokens are those of `sample_texts`. A run that was killed goes on with the language
    that it was at. One core writes 100,000 tokens of Gemma-3-270M in a quarter of an hour.

    Args:
        model: V.
        languages: BCP-47 codes of languages with templates.
        num_tokens: drawn tokens in all, at least; less than a text in each language is added.
        text_length: the longest text, in tokens; shorter where the model's context ends.
        batch_size: texts written at once.
        seed: of the draws.
        folder: where they are kept, a file per language; `samples` in the user's cache if None.
        progress: show a progress bar on standard error if it takes more than two seconds.

    Returns:
        Language by language.

    Raises:
        ValueError: as `sample_texts`.
    """
    codes = _check(languages, num_tokens=num_tokens, text_length=text_length)
    writer = _Writer(model, text_length, batch_size, seed, folder)
    share = -(-num_tokens // len(codes))

    def write(code: str, bar: tqdm) -> list[Sample]:
        samples: list[Sample] = []
        asked = written = 0
        while written < share:
            more = -(-(share - written) // text_length)
            samples += writer.write(code, range(asked, asked + more), bar)
            asked += more
            written = sum(len(sample.token_ids) for sample in samples)
        return samples

    return writer.collect(codes, write, amount=f"{share} tokens", share=share, progress=progress)


def _check(languages: Sequence[str], **numbers: int) -> list[str]:
    """Return the languages, each once, if all have templates."""
    if not languages:
        raise ValueError("no languages to write in: give at least one")
    for name, number in numbers.items():
        if number < 1:
            raise ValueError(f"{name} must be at least 1, not {number}")
    for code in languages:
        read_templates(code)
    return list(dict.fromkeys(languages))


@dataclass(frozen=True)
class _Writer:
    """Model that writes texts of a length, and the folder that keeps them."""

    model: LanguageModel
    num_tokens: int
    batch_size: int
    seed: int
    folder: Path | None

    def write(self, language: str, numbers: range, bar: tqdm) -> list[Sample]:
        """Write the texts of some numbers; those that end at once are left out.

        Raises:
            ValueError: all of them end at once, or the openings fill the model's context.
        """
        encoded = [self.model.encode(opening) for opening in _make_openings(language, numbers)]
        context = getattr(self.model.text_config, "max_position_embeddings", math.inf)
        room = context - max(map(len, encoded))
        if room < 1:
            raise ValueError(
                f"the openings in {language!r} fill the context of {self.model.name!r}, "
                f"{context} tokens"
            )
        draw = make_sampler([f"{self.seed}/samples/{language}/{number}" for number in numbers])

        def pick(logits: Tensor, rows: Sequence[int], step: int) -> Tensor:
            bar.update(len(rows))
            return draw(logits, rows, step)

        written = dict(
            generate_continuations(
                self.model,
                encoded,
                num_tokens=int(min(self.num_tokens, room)),
                batch_size=self.batch_size,
                pick=pick,
            )
        )
        samples = [
            Sample(
                language=language,
                prompt_ids=encoded[place],
                token_ids=written[place],
                text=self.model.decode(written[place]),
            )
            for place in sorted(written)
            if written[place]
        ]
        if not samples:
            raise ValueError(
                f"{self.model.name!r} ends every text in {language!r} before it begins"
            )
        return samples

    def collect(
        self,
        languages: Sequence[str],
        write: Callable[[str, tqdm], list[Sample]],
        *,
        amount: str,
        share: int,
        progress: bool,
    ) -> list[Sample]:
        """Read what is kept, and write and keep what is not, a share of tokens per language."""
        files = {code: self._find_file(code, amount) for code in languages}
        kept = {code: _read(file) for code, file in files.items()}
        missing = [code for code, samples in kept.items() if samples is None]
        # The mean rate so far: that of the last moment jumps, as texts end and batches begin.
        bar = tqdm(
            total=share * len(missing),
            desc="samples",
            unit="token",
            disable=not progress,
            delay=2,
            smoothing=0,
        )
        with bar:
            for code in missing:
                samples = kept[code] = write(code, bar)
                _write(files[code], samples)
        return [sample for samples in kept.values() for sample in samples or ()]

    def _find_file(self, language: str, amount: str) -> Path:
        key = make_key(
            kind="samples by inversion",
            model=self.model.content_hash(),
            text=compute_text_hash(self.model),
            openings=json.dumps(_make_openings(language, range(_NUM_OPENINGS))),
            language=language,
            amount=amount,
            num_tokens=self.num_tokens,
            seed=self.seed,
        )
        folder = get_cache_directory() / "samples" if self.folder is None else self.folder
        return folder / f"{key}.json"


def _make_openings(language: str, numbers: range) -> list[str]:
    """Make openings about one country after the other."""
    openings = read_templates(language).openings
    facts = select_facts(_ABOUT, languages=[language])
    return [
        fill(
            openings[number % len(openings)], facts[_STRIDE * number % len(facts)], language
        ).rstrip()
        for number in numbers
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
