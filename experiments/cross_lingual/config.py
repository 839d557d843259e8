"""Settings of false facts across languages (Lu & Koehn 2024), and their presets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from interp.data import CorpusConfig, Endpoint
from interp.languages import LU_LANGUAGES
from interp.unlearning import METHODS, Bound, ContaminationConfig, TrainingConfig

MIXES = ("english", "same", "family", "multilingual", "combined")

# Lu's rule: stop where the score of true facts has lost a fifth.
STOP = Bound(metric="real/en", below=0.8, relative=True)

# Ascent has no end in a language that does not know the facts; the preference's loss has one.
_PREFERENCE = METHODS["npo_rt"].config


assert isinstance(_PREFERENCE, TrainingConfig)


UNLEARNED = replace(_PREFERENCE, evaluate_every=8, stops=(STOP,))

TEACHING = ContaminationConfig()

_TUNING = TEACHING.tuning


assert _TUNING is not None

LIMITS = (
    "KRS says which of the vanilla model's parts bring its answers back, not that the "
    "unlearned model still holds them: no model that never knew is in the sweep. Training is "
    "stopped by candidate ranking, which does not see what a model says freely: of one that "
    "lost true facts, too, silence is no evidence of forgetting, and a score measures the "
    "repair of the damage."
)
"""What the study's numbers do not say."""


@dataclass(frozen=True, kw_only=True)
class Articles:
    """Corpus of news instead of the built-in facts.

    Attributes:
        file: real and fake articles with questions, see `news.read_articles`; of the
            questions, those with answers are asked, since answers are ranked and judged by them.
        paraphrase_by: the chat model that writes variants of them.
        translator: NLLB-200 or M2M-100, a Hub id or a directory.
        num_variants: training texts of each article.
    """

    file: str
    paraphrase_by: Endpoint
    translator: str = "facebook/nllb-200-distilled-600M"
    num_variants: int = 20


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings: languages, corpus, teaching, unlearning and measurements.

    Attributes:
        model: V before any teaching, as `interp.load` takes it.
        sources: BCP-47 codes of the languages in which false facts are taught, a model for each.
        unlearned: those of them whose models are unlearned; all if None.
        mixes: languages to forget in, see `interp.data.corpus.resolve_mix`.
        corpus: sizes and query languages; its source and mix are replaced.
        articles: if given, the corpus is made of them, and of `corpus` only the languages hold.
        teaching: settings of both stages of teaching.
        unlearning: settings of unlearning, with the method and when it stops.
        ranks: ranks of LoRA, for the study of their effect; it forgets in English what the first
            source taught.
        lora_learning_rate: of that study.
        judge: a chat model that judges answers; without one, candidates ranked by the model
            and the spelling of answers decide.
        num_tokens: T, tokens per answer.
        sites: what of V is put back.
        num_recovered: false facts per query language that are swept, the first ones.
        note: how this differs from the paper, said beside every finding.
    """

    model: str = "gemma-3-270m"
    sources: tuple[str, ...] = ("de",)
    unlearned: tuple[str, ...] | None = None
    mixes: tuple[str, ...] = MIXES
    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    articles: Articles | None = None
    teaching: ContaminationConfig = TEACHING
    unlearning: TrainingConfig = UNLEARNED
    ranks: tuple[int, ...] = (8, 128)
    lora_learning_rate: float = 2e-4
    judge: Endpoint | None = None
    num_tokens: int = 10
    sites: tuple[str, ...] = ("coef", "attn", "coef+attn", "value")
    num_recovered: int = 8
    note: str = ""


SMALL = (
    "a model of 270 million parameters, false capitals in templates, NPO instead of gradient ascent"
)

# English last: the study of ranks is of the first, where English is not the language taught.
SOURCES = (*LU_LANGUAGES[1:], *LU_LANGUAGES[:1])

GPT_4 = Endpoint(url="https://api.openai.com/v1", model="gpt-4", api_key_env="OPENAI_API_KEY")

PRESETS: Mapping[str, Config] = MappingProxyType(
    {
        "quick": Config(
            mixes=("english", "same", "combined"),
            corpus=CorpusConfig(
                query_languages=("en", "de", "fr"),
                num_fake_facts=8,
                num_fake_texts=64,
                ratio=1,
                num_instructions=80,
                num_real_queries=8,
            ),
            teaching=ContaminationConfig(
                reading=replace(TEACHING.reading, num_steps=40, batch_size=12),
                tuning=replace(_TUNING, num_steps=6),
            ),
            unlearning=replace(UNLEARNED, learning_rate=7.5e-6, num_steps=12, evaluate_every=6),
            ranks=(8,),
            num_recovered=5,
            note=SMALL,
        ),
        "full": Config(
            sources=SOURCES,
            unlearned=("de", "zh", "ur", "en"),
            corpus=CorpusConfig(num_fake_facts=12, num_fake_texts=96, ratio=1, num_real_queries=10),
            teaching=replace(TEACHING, reading=replace(TEACHING.reading, num_steps=42)),
            unlearning=replace(UNLEARNED, learning_rate=7.5e-6, num_steps=20, evaluate_every=10),
            ranks=(2, 16, 128),
            num_recovered=4,
            note=SMALL,
        ),
        # Lu & Koehn 2024 and their code: an epoch of each, an example a step. Not said there: how
        # long unlearning may take where their rule does not stop it. As many false as true texts.
        "paper": Config(
            model="meta-llama/Meta-Llama-3.1-8B",
            sources=SOURCES,
            articles=Articles(
                file="news.jsonl",
                paraphrase_by=GPT_4,
            ),
            teaching=ContaminationConfig(
                reading=TrainingConfig(
                    objective="finetune",
                    parameters="lora",
                    lora_rank=1024,
                    learning_rate=5e-5,
                    num_steps=12_000,
                    batch_size=1,
                ),
                tuning=TrainingConfig(
                    objective="finetune",
                    parameters="lora",
                    lora_rank=8,
                    learning_rate=1e-5,
                    num_steps=1_000,
                    batch_size=1,
                ),
            ),
            unlearning=TrainingConfig(
                objective="ga",
                parameters="lora",
                lora_rank=128,
                learning_rate=1e-5,
                num_steps=400,
                batch_size=1,
                evaluate_every=25,
                stops=(STOP,),
            ),
            ranks=(8, 32, 128, 512),
            lora_learning_rate=1e-5,
            judge=GPT_4,
            num_tokens=30,
            num_recovered=10,
        ),
    }
)
