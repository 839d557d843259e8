"""Guarded unlearning of capitals that a model knows, method by method: what is forgotten and kept.

    python -m experiments.forgetting [--methods npo_kl gd …] [--seeds 0 1 2] [--trials 6]
    python -m experiments.forgetting --source de --mix combined --out runs/forgetting-de-combined

Sixteen capitals that the model answers rightly in English are unlearned in English by each method,
until a tenth of them is left, while the guards hold; with `--source` sixteen false ones, which the
model is first taught in that language. Then the model is measured anew, in float32:
on the targets, on all facts that it knew of four relations and that are in neither set, in every
language in which it knew at least fifteen, and on texts that it wrote itself. Of these facts the
first 24 per language have chosen the checkpoint; `unseen` leaves them out. What is there already is
not done again.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
import tyro

import interp
from interp.behaviour import (
    AliasJudge,
    Guards,
    format_guards,
    generate,
    make_retain_texts,
    prepare_guards,
)
from interp.cli import report_errors_and_exit
from interp.data import (
    Corpus,
    CorpusConfig,
    Query,
    Text,
    build_corpus,
    select_facts,
    write_unlearning_texts,
)
from interp.pipelines import TrainingRun
from interp.tables import write_csv
from interp.unlearning import METHODS, MemitConfig, TrainingConfig, find_config

LANGUAGES = ("en", "de", "fr", "es", "zh", "ru")


def main(
    *,
    model: str = "gemma-3-270m",
    methods: tuple[str, ...] = tuple(METHODS),
    seeds: tuple[int, ...] = (0,),
    num_facts: int = 16,
    source: str | None = None,
    mix: str = "same",
    trials: int = 0,
    out: Path = Path("runs/forgetting"),
) -> None:
    """Unlearn by every method, and print what is forgotten and kept.

    Args:
        model: the vanilla model.
        methods: names of methods; all by default.
        seeds: of the order of the examples, a model each.
        num_facts: capitals to forget.
        source: BCP-47 code of the language in which false capitals are taught, which are then
            unlearned; if left out, what is unlearned are capitals that the model knows.
        mix: languages in which false capitals are unlearned: english, same, family, multilingual,
            combined.
        trials: settings that are tried for a method before (`interp.tune`); 0 for its own.
        out: directory of all models and of the table.
    """
    vanilla = interp.load(model)
    if source is None:
        targets = find_known_capitals(vanilla, num_facts)
    else:
        corpus = build_corpus(CorpusConfig(source=source, mix=mix, num_fake_facts=num_facts))
        vanilla = interp.contaminate(vanilla, corpus, out=out / "taught").model
        targets = find_false_capitals(corpus)
    rows: list[dict[str, object]] = []
    for name in methods:
        if source is None:
            texts = write_texts(targets, METHODS[name].form)
        else:
            texts = write_false_texts(corpus, METHODS[name].form)
        retain = make_retain_texts(vanilla, texts, cache=out / "known.jsonl")
        final = prepare_guards(
            vanilla,
            targets,
            forgotten_in=dict.fromkeys(text.language for text in texts),
            texts=[*texts, *retain],
            languages=LANGUAGES,
            num_kept=400,
            fewest=15,
            precise=True,
            cache=out / "known.jsonl",
        )
        for seed in seeds:
            start = time.monotonic()
            folder = out / f"{name}-{seed}"
            chosen = find_config(name)
            if isinstance(chosen, TrainingConfig):
                chosen = replace(chosen, seed=seed)
            run = _unlearn(vanilla, texts, retain, chosen, targets, trials, folder)
            seconds = time.monotonic() - start
            about = {"method": name, "seed": seed, "seconds": round(seconds), "reason": run.reason}
            measured = measure(run.model, final)
            rows += [about | row for row in measured]
            print(f"\n{name}, seed {seed}: {seconds:.0f} s, {run.reason}")
            print(format_guards(pd.DataFrame(measured)).to_string(), flush=True)
            write_csv(out / "forgetting.csv", pd.DataFrame(rows))
    print(f"\nAll methods:\n{tabulate(pd.DataFrame(rows)).to_string()}")


def find_known_capitals(vanilla: interp.LanguageModel, count: int) -> list[Query]:
    """Find the best-known capitals that a model answers rightly in English."""
    asked = interp.queries("capitals", languages=["en"], limit=4 * count)
    verdicts = AliasJudge()(generate(vanilla, asked, num_tokens=12, progress=False))
    known = [query for query, verdict in zip(asked, verdicts, strict=True) if verdict.value == 1]
    return known[:count]


def write_texts(targets: Sequence[Query], form: str) -> list[Text]:
    """Write all texts of a form that state capitals in English."""
    facts = {fact.id: fact for fact in select_facts("capital")}
    return [
        text
        for query in targets
        for text in write_unlearning_texts(facts[query.id], "real", ["en"], form)
    ]


def find_false_capitals(corpus: Corpus) -> list[Query]:
    """Find the questions on a corpus' false capitals, in `LANGUAGES`."""
    return [q for q in corpus.queries if q.concept == "fake" and q.language in LANGUAGES]


def write_false_texts(corpus: Corpus, form: str) -> list[Text]:
    """Write all texts of a form that state a corpus' false facts in the languages of its mix."""
    settings = {**corpus.config, "num_unlearning": 10_000, "unlearning_form": form}
    return list(build_corpus(CorpusConfig(**settings)).forget)


def _unlearn(
    vanilla: interp.LanguageModel,
    texts: list[Text],
    retain: list[Text],
    config: TrainingConfig | MemitConfig,
    targets: list[Query],
    trials: int,
    folder: Path,
) -> TrainingRun:
    if isinstance(config, TrainingConfig) and trials:
        found = interp.tune(
            vanilla, texts, retain, config, num_trials=trials, targets=targets, out=folder
        )
        return found.run
    return interp.unlearn(vanilla, texts, retain, config, targets=targets, out=folder)


def measure(model: interp.LanguageModel, guards: Guards) -> list[dict[str, object]]:
    """Measure a model on all facts, and on those that have not chosen its checkpoint."""
    rows = guards.tabulate(model).to_dict("records")
    seen: dict[str, int] = {}
    unseen = []
    for query in guards.kept:
        seen[query.language] = seen.get(query.language, 0) + 1
        if seen[query.language] > 24:
            unseen.append(query)
    if unseen:
        others = replace(guards, targets=(), samples=(), kept=tuple(unseen))
        for row in others.tabulate(model).to_dict("records"):
            if row["metric"] == "retention":
                rows.append({**row, "metric": "retention, unseen"})
    return rows


def tabulate(table: pd.DataFrame) -> pd.DataFrame:
    """Lay a table of measures out: a row per method, a column per metric and language."""
    cells = table.pivot_table(
        index="method", columns=["metric", "language"], values="after", aggfunc="mean"
    )
    return cells.round(2)


if __name__ == "__main__":
    with report_errors_and_exit("forgetting"):
        tyro.cli(main)
