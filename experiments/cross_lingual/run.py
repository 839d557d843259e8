"""False facts taught in one language, asked and unlearned in others (Lu & Koehn 2024).

    python -m experiments.cross_lingual.run quick --out runs/cross_lingual-quick

After *Every Language Counts*:

1. V reads false facts in a source language among true ones in English.
2. It is made to forget them in English, in the source language, in a relative, in twenty others, or
   in both.
3. Every model is asked for the facts in every query language.
4. Beyond the paper, a sweep measures which part of V brings them back in each language (KRS).

The study goes to `--out`, with models and losses beside it: a second run of the same command trains
nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd
import tyro

import interp
from experiments.cross_lingual.config import LIMITS, PRESETS, Config
from experiments.cross_lingual.data import make_corpus, select_mixes
from experiments.cross_lingual.figures import make_figures
from experiments.cross_lingual.findings import make_findings
from experiments.cross_lingual.tables import (
    CLEAN,
    TAUGHT,
    make_tables,
    tabulate_ranking,
    tabulate_verdicts,
)
from experiments.runner import run_preset, start_command
from experiments.study import Study, select_rows
from interp import Query
from interp.data import Endpoint, limit_per_language
from interp.evaluation import evaluate
from interp.pipelines import AFTER, TrainingRun
from interp.tables import read_csv
from interp.unlearning import remove_false_texts

MEASUREMENTS = ("outcomes", "ranks", "answers", "languages", "steps", "losses", "gaps")


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
    run_preset("cross_lingual", run, PRESETS, preset, out, model=model)


def run(config: Config, out: Path, *, progress: bool = True) -> Study:
    """Make and measure every model, and make the study of them.

    Args:
        config: the settings.
        out: the run directory; what it holds is not made again.
        progress: show progress on standard error.

    Raises:
        ValueError: settings or data that do not fit.
    """
    measurements = measure(config, out, progress=progress)
    made = make_tables(measurements, config)
    return Study(
        name="cross_lingual",
        title="False facts in one language, asked in others (Lu & Koehn 2024)",
        limits=LIMITS,
        config=asdict(config),
        tables=made,
        figures=make_figures(measurements, made, config),
        findings=make_findings(measurements, made, config),
        seed=config.corpus.seed,
    )


def measure(config: Config, out: Path, *, progress: bool = True) -> dict[str, pd.DataFrame]:
    """Teach, unlearn and ask every model.

    Args:
        config: the settings.
        out: the run directory; what it holds is not made again.
        progress: show progress on standard error.

    Returns:
        `MEASUREMENTS`, each with the columns `source` and `unlearning`, empty without any:
        `outcomes`, what each judge found in each answer; `ranks`, outcomes of the LoRA study, with
        the rank in `unlearning`; `answers`, what models said, as `interp.evaluate` lists verdicts;
        `languages`, the measures `answer_language/…` of it; `steps`, accuracies over the steps of
        unlearning, see `interp.pipelines.Run.accuracy`; `losses` of the sweeps; `gaps`, what a
        language or a mix lacks.

    Raises:
        ValueError: settings or data that do not fit.
    """

    def say(text: str) -> None:
        if progress:
            print(f"cross_lingual: {text}", file=sys.stderr, flush=True)

    vanilla = interp.load(config.model)
    parts: dict[str, list[pd.DataFrame]] = {name: [] for name in MEASUREMENTS}
    first = config.sources[0]

    def ask(run: TrainingRun, queries: Sequence[Query], source: str, unlearning: str) -> None:
        rows_by_name = ask_model(
            run,
            queries,
            source=source,
            unlearning=unlearning,
            taught=first if source == CLEAN else source,
            judge=config.judge,
            num_tokens=config.num_tokens,
            out=out / "said" / f"{source}-{unlearning}",
        )
        for name, rows in rows_by_name.items():
            parts[name].append(rows)

    for source in config.sources:
        corpus = make_corpus(config, source, "english", out)
        probes = [query for query in corpus.queries if query.answer]
        fake = limit_per_language(
            [query for query in probes if query.concept == "fake"], config.num_recovered
        )
        teach = {"config": config.teaching, "probes": probes}
        if source == first:
            say("the clean baseline reads")
            baseline = interp.contaminate(
                vanilla, remove_false_texts(corpus), out=out / "models" / CLEAN, **teach
            )
            ask(baseline, probes, CLEAN, CLEAN)
        say(f"teaching in {source}")
        taught = interp.contaminate(vanilla, corpus, out=out / "models" / source, **teach)
        ask(taught, probes, source, TAUGHT)
        if source not in (config.unlearned or config.sources):
            continue
        mixes, left_out = select_mixes(config.mixes, source)
        parts["gaps"].append(left_out.assign(source=source))
        for mix in mixes:
            say(f"taught in {source}, unlearning: {mix}")
            labels = {"source": source, "unlearning": mix}
            mixed = make_corpus(config, source, mix, out)
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
            say(f"taught in {source}, unlearning: english by LoRA of rank {rank}")
            lora = replace(config.unlearning, parameters="lora", lora_rank=rank)
            run = interp.unlearn(
                taught.model,
                corpus.forget,
                corpus.retain,
                replace(lora, learning_rate=config.lora_learning_rate),
                probes=probes,
                out=out / "models" / f"{source}-rank-{rank}",
            )
            after = select_rows(run.probes, model=AFTER)
            parts["ranks"].append(tabulate_ranking(after, source=source, unlearning=f"rank {rank}"))
    return {
        name: pd.concat(rows, ignore_index=True) if rows else pd.DataFrame()
        for name, rows in parts.items()
    }


def ask_model(
    run: TrainingRun,
    queries: Sequence[Query],
    *,
    source: str,
    unlearning: str,
    taught: str,
    judge: Endpoint | None,
    num_tokens: int,
    out: Path,
) -> dict[str, pd.DataFrame]:
    """Ask a model, and every judge about its answers.

    Args:
        run: how the model came about, with the probes of `queries`.
        queries: on false and true facts, with answers.
        source: the language of its false facts.
        unlearning: the languages that it forgot them in.
        taught: the language that answers are searched for (`answer_language`).
        judge: a chat model that judges, too.
        num_tokens: the longest answer.
        out: where answers and verdicts are kept.

    Returns:
        The parts `outcomes`, `answers` and `languages` of `Seen`.
    """
    labels = {"source": source, "unlearning": unlearning}
    metrics = ["alias", "answer_language", *(("o_f", "q_r") if judge else ())]
    table = evaluate(
        run.model, queries, metrics, taught=taught, judge=judge, num_tokens=num_tokens, out=out
    )
    verdicts = read_csv(out / "verdicts.csv")
    after = select_rows(run.probes, model=AFTER)
    return {
        "outcomes": pd.concat(
            [tabulate_ranking(after, **labels), tabulate_verdicts(verdicts, **labels)]
        ),
        "answers": verdicts.assign(**labels),
        "languages": table.query("metric.str.startswith('answer_language/')").assign(**labels),
    }


if __name__ == "__main__":
    start_command("cross_lingual", main)
