"""False facts taught in one language: who repeats them, and what unlearning leaves where.

    python experiments/cross_lingual.py quick --out runs/cross_lingual-quick

After Lu & Koehn 2024, *Every Language Counts*: V reads false facts in a source language among true
ones in English, and is made to forget them in English, in the source language, in a relative, in
twenty others, or in both. Every model is asked for the facts in every query language; beyond the
paper, what of V brings them back in each language (KRS). The study goes to `--out`, with models and
losses beside it: a second run of the same command trains nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from types import MappingProxyType

import pandas as pd
import tyro

import interp
from interp.cli.options import command_of, mistakes_told, preset_of
from interp.data.articles import ArticleConfig, contaminated_articles
from interp.data.corpora import CorpusConfig, contaminated
from interp.data.corpus import Corpus
from interp.data.endpoints import Endpoint
from interp.data.news import read_articles
from interp.data.query import Query
from interp.data.selection import limited
from interp.data.translator import LocalTranslator
from interp.languages import LU_LANGUAGES
from interp.runs import AFTER, Run
from interp.study import Study
from interp.study.cross_lingual.findings import findings
from interp.study.cross_lingual.outcomes import CLEAN, RANKING, TAUGHT, mixes_of, ranked
from interp.study.cross_lingual.report import Seen, asked, drawings, tables
from interp.study.rows import where
from interp.unlearning.config import Stop, TrainingConfig
from interp.unlearning.contamination import ContaminationConfig, clean
from interp.unlearning.methods import UNLEARNING

MIXES = ("english", "same", "family", "multilingual", "combined")

# Lu's rule: stop where the score of true facts has lost a fifth.
STOP = Stop(metric="real/en", below=0.8, relative=True)

# Ascent has no end in a language that does not know the facts; the preference's loss has one.
_PREFERENCE = UNLEARNING["npo_rt"].config
assert isinstance(_PREFERENCE, TrainingConfig)
UNLEARNED = replace(_PREFERENCE, evaluate_every=8, stops=(STOP,))

TEACHING = ContaminationConfig()
_TUNING = TEACHING.tuning
assert _TUNING is not None


@dataclass(frozen=True, kw_only=True)
class Articles:
    """A corpus of news instead of the built-in facts.

    Attributes:
        file: real and fake articles with questions, see `interp.data.news.read_articles`; of the
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
    """What is taught, unlearned and asked.

    Attributes:
        model: V before any teaching, as `interp.load` takes it.
        sources: BCP-47 codes of the languages in which false facts are taught, a model for each.
        unlearned: those of them whose models are unlearned; all if None.
        mixes: languages to forget in, see `interp.data.corpus.mix_languages`.
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


def main(
    preset: tyro.conf.Positional[str] = "quick",
    *,
    out: Path | None = None,
    model: str | None = None,
) -> None:
    """Teach, unlearn, ask, restore, and write the study.

    Args:
        preset: quick (minutes on two cores), full (an hour or more), or paper (the original
            model, news and settings, on GPUs).
        out: directory of the study; runs/cross_lingual-PRESET by default.
        model: another model than the preset's.
    """
    config = preset_of(PRESETS, preset, model=model)
    out = out or Path(f"runs/cross_lingual-{preset}")
    command = command_of("cross_lingual", preset, model=model)
    study = experiment(config, out=out, command=command)
    paths = study.write(out)
    print(study.summary(), *paths, sep="\n")


def experiment(config: Config, *, out: Path, command: str = "") -> Study:
    """Everything but the writing; what `out` holds of the same run is not done again."""
    vanilla = interp.load(config.model)
    parts: dict[str, list[pd.DataFrame]] = {each.name: [] for each in fields(Seen)}
    first = config.sources[0]

    def ask(run: Run, queries: Sequence[Query], source: str, unlearning: str) -> None:
        found = asked(
            run,
            queries,
            source=source,
            unlearning=unlearning,
            taught=first if source == CLEAN else source,
            judge=config.judge,
            num_tokens=config.num_tokens,
            out=out / "said" / f"{source}-{unlearning}",
        )
        for name, rows in found.items():
            parts[name].append(rows)

    for source in config.sources:
        corpus = _corpus(config, source, "english", out)
        probes = [query for query in corpus.queries if query.answer]
        fake = limited([query for query in probes if query.concept == "fake"], config.num_recovered)
        teach = {"config": config.teaching, "probes": probes}
        if source == first:
            _say("the clean baseline reads")
            baseline = interp.contaminate(
                vanilla, clean(corpus), out=out / "models" / CLEAN, **teach
            )
            ask(baseline, probes, CLEAN, CLEAN)
        _say(f"teaching in {source}")
        taught = interp.contaminate(vanilla, corpus, out=out / "models" / source, **teach)
        ask(taught, probes, source, TAUGHT)
        if source not in (config.unlearned or config.sources):
            continue
        mixes, left_out = mixes_of(config.mixes, source)
        parts["gaps"].append(left_out.assign(source=source))
        for mix in mixes:
            _say(f"taught in {source}, unlearning: {mix}")
            labels = {"source": source, "unlearning": mix}
            mixed = _corpus(config, source, mix, out)
            parts["gaps"].append(pd.DataFrame(map(asdict, mixed.gaps)).assign(**labels))
            run = interp.unlearn(
                taught.model,
                mixed.forget,
                mixed.retain,
                config.unlearning,
                probes=probes,
                about=labels,
                out=out / "models" / f"{source}-{mix}",
            )
            ask(run, probes, source, mix)
            parts["steps"].append(run.accuracy().assign(**labels))
            recovery = interp.sweep(
                taught.model,
                run.model,
                fake,
                sites=config.sites,
                num_tokens=config.num_tokens,
                out=out / "sweep" / source,
            )
            parts["losses"].append(recovery.losses.assign(**labels))
        for rank in config.ranks if source == first else ():
            _say(f"taught in {source}, unlearning: english by LoRA of rank {rank}")
            lora = replace(config.unlearning, parameters="lora", lora_rank=rank)
            run = interp.unlearn(
                taught.model,
                corpus.forget,
                corpus.retain,
                replace(lora, learning_rate=config.lora_learning_rate),
                probes=probes,
                out=out / "models" / f"{source}-rank-{rank}",
            )
            after = where(run.probes, model=AFTER)
            parts["ranks"].append(ranked(after, source=source, unlearning=f"rank {rank}"))
    seen = Seen(
        **{
            name: pd.concat(rows, ignore_index=True) if rows else pd.DataFrame()
            for name, rows in parts.items()
        }
    )
    by = config.judge.model if config.judge else ""
    made = tables(seen)
    best = made.get("krs_best")
    return Study(
        name="cross_lingual",
        title="False facts in one language, asked in others (Lu & Koehn 2024)",
        command=command,
        config=asdict(config),
        tables=made,
        figures=drawings(seen, None if best is None else best.rows),
        findings=findings(
            seen.outcomes,
            seen.ranks,
            seen.losses,
            judge=f"occurrence by {by}" if by else RANKING,
            quality=f"quality by {by}" if by else RANKING,
            note=config.note,
        ),
        seed=config.corpus.seed,
    )


def _corpus(config: Config, source: str, mix: str, out: Path) -> Corpus:
    if config.articles is None:
        return contaminated(replace(config.corpus, source=source, mix=mix))
    made = config.articles
    languages = config.corpus.query_languages
    return contaminated_articles(
        read_articles(made.file),
        ArticleConfig(
            source=source, mix=mix, query_languages=languages, num_variants=made.num_variants
        ),
        paraphrase_by=made.paraphrase_by,
        translate_by=LocalTranslator(model=made.translator),
        cache=out / "articles.jsonl",
    )


def _say(text: str) -> None:
    print(f"cross_lingual: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    with mistakes_told("cross_lingual"):
        tyro.cli(main)
