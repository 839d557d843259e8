"""Unlearning by every method in every mix of languages, of false facts in one language.

    python -m experiments.unlearning [--source de] [--methods gd npo …] [--mixes same combined …]

The model reads false capitals in the source language; then each method makes it forget them, in
each mix. What it answers before and after, per query language, goes into `summary.csv` and is
printed. What is there already is not done again.
"""

from __future__ import annotations

import time
from pathlib import Path

import pandas as pd
import tyro

import interp
from interp.cli import report_errors_and_exit
from interp.data import CorpusConfig, build_corpus
from interp.pipelines import TrainingRun, read_corpus
from interp.tables import write_csv
from interp.unlearning import METHODS, find_method, remove_false_texts


def main(
    *,
    model: str = "gemma-3-270m",
    source: str = "de",
    methods: tuple[str, ...] = tuple(METHODS),
    mixes: tuple[str, ...] = ("same",),
    baseline: bool = False,
    out: Path = Path("runs/unlearning"),
) -> None:
    """Contaminate, unlearn by every method in every mix, and print what is left.

    Args:
        model: the vanilla model.
        source: BCP-47 code of the language of the false facts.
        methods: names of methods; all by default.
        mixes: languages to forget in: english, same, family, multilingual, combined.
        baseline: train the clean model, without false facts, too.
        out: directory of all models and of the table.
    """
    for name in methods:
        find_method(name)
    vanilla = interp.load(model)
    corpus = build_corpus(
        CorpusConfig(source=source, num_fake_texts=128, ratio=1, num_real_queries=16)
    )
    rows = []
    if baseline:
        rows += summary(
            interp.contaminate(vanilla, remove_false_texts(corpus), out=out / "clean"), "clean", ""
        )
    start = time.monotonic()
    taught = interp.contaminate(vanilla, corpus, out=out / "taught")
    rows += summary(taught, "taught", source)
    print(f"\ntaught in {source} in {time.monotonic() - start:.0f} s\n{taught.table().to_string()}")
    for mix in mixes:
        for name in methods:
            method = find_method(name)
            start = time.monotonic()
            mixed = read_corpus(out / "taught", mix=mix, unlearning_form=method.form)
            run = interp.unlearn(
                taught.model,
                mixed.forget,
                mixed.retain,
                method.config,
                probes=mixed.queries,
                about={"corpus": dict(mixed.config)},
                out=out / f"{name}-{mix}",
            )
            print(f"\n{name}, {mix}: {time.monotonic() - start:.0f} s, {run.reason}")
            print(run.table().to_string(), flush=True)
            rows += summary(run, name, mix)
    table = pd.DataFrame(rows)
    write_csv(out / "summary.csv", table)
    wide = table.pivot(index=["concept", "mix", "method"], columns="language", values="after")
    print(f"\nRight after unlearning, per cent:\n{(100 * wide).round().to_string()}")


def summary(run: TrainingRun, method: str, mix: str) -> list[dict[str, object]]:
    """Tabulate accuracy before and after, a row per language and concept."""
    rows = run.accuracy().to_dict("records")
    before = {(row["language"], row["concept"]): row["accuracy"] for row in rows if not row["step"]}
    return [
        {"method": method, "mix": mix, "language": row["language"], "concept": row["concept"]}
        | {"before": before[row["language"], row["concept"]], "after": row["accuracy"]}
        for row in rows
        if row["step"] == len(run.history)
    ]


if __name__ == "__main__":
    with report_errors_and_exit("unlearning"):
        tyro.cli(main)
