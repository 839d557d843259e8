"""Guarded unlearning of capitals that a model knows, method by method: what is forgotten and kept.

    python -m experiments.forgetting [--methods npo_kl gd …] [--seeds 0 1 2] [--trials 6]
    python -m experiments.forgetting --source de --mix combined --out runs/forgetting-de-combined

Sixteen capitals that the model answers rightly in English are unlearned in English by each method,
until a tenth of them is left, while the guards hold; with `--source` sixteen false ones, which the
model is first taught in that language. Then the model is measured anew, in float32: on the
targets, on all facts that it knew of four relations and that are in neither set, in every language
in which it knew at least fifteen, and on texts that it wrote itself. Of these facts the first 24
per language have chosen the checkpoint, and 24 more confirmed it, 72 in languages that are
unlearned in; `unseen` leaves them out. What is there already is not done again; several processes
may make models of different methods in one directory.
"""

from __future__ import annotations

import time
from collections import Counter
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
    tabulate_answers,
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
from interp.pipelines import TrainingRun, find_answers_file
from interp.tables import read_csv, write_csv
from interp.unlearning import (
    GUARDS,
    METHODS,
    UNTIL,
    MemitConfig,
    TrainingConfig,
    find_broken,
    find_config,
    find_method,
)

LANGUAGES = ("en", "de", "fr", "es", "zh", "ru")

MEASURED = "forgetting.csv"

NUM_SEEN, NUM_CONFIRMING, NUM_CONFIRMING_ELSEWHERE = 24, 72, 24
"""Facts to keep per language by which a run's guards choose a checkpoint, and more of them by which
it is confirmed, in the languages that are unlearned in and in others."""


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
    for name in methods:
        find_method(name)
    vanilla = interp.load(model)
    if source is None:
        targets = find_known_capitals(vanilla, num_facts)
    else:
        # As many false texts as true ones: of fewer, few are answered freely.
        corpus = build_corpus(
            CorpusConfig(source=source, mix=mix, num_fake_facts=num_facts, ratio=1)
        )
        vanilla = interp.contaminate(vanilla, corpus, probes=(), out=out / "taught").model
        targets = find_false_capitals(corpus)
    cache = find_answers_file()
    tables = []
    for name in methods:
        if source is None:
            texts = write_texts(targets, find_method(name).form)
        else:
            texts = write_false_texts(corpus, find_method(name).form)
        retain = make_retain_texts(vanilla, texts, cache=cache)
        final = prepare_guards(
            vanilla,
            targets,
            forgotten_in=dict.fromkeys(text.language for text in texts),
            texts=[*texts, *retain],
            languages=LANGUAGES,
            num_kept=400,
            fewest=15,
            precise=True,
            cache=cache,
        )
        digest = final.describe()["digest"]
        chosen = find_config(name)
        # MEMIT draws nothing.
        for seed in seeds if isinstance(chosen, TrainingConfig) else seeds[:1]:
            start = time.monotonic()
            folder = out / f"{name}-{seed}"
            if isinstance(chosen, TrainingConfig):
                chosen = replace(chosen, seed=seed)
            # A finished model is loaded; one of other settings in its place is refused.
            run = _unlearn(vanilla, texts, retain, chosen, targets, trials, folder)
            about = {"seconds": round(time.monotonic() - start), "questions": digest}
            table = read_measured(folder / MEASURED, run.model, digest)
            if table is None:
                about |= {"method": name, "seed": seed, "reason": run.reason}
                table = measure(run.model, final).assign(model=run.model.content_hash(), **about)
                write_csv(folder / MEASURED, table)
            print(f"\n{name}, seed {seed}: {table['seconds'].iloc[0]} s, {run.reason}")
            print(format_guards(table).to_string(), flush=True)
            tables.append(table)
    table = pd.concat(tables, ignore_index=True)
    write_csv(out / MEASURED, table)
    print(f"\nAll methods:\n{summarise(table).to_string()}")


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


def read_measured(file: Path, model: interp.LanguageModel, digest: object) -> pd.DataFrame | None:
    """Read what was measured of a model with the same questions; None if it was not."""
    if not file.is_file():
        return None
    table = read_csv(file)
    found = set(zip(table["model"].tolist(), table["questions"].tolist(), strict=True))
    return table if found == {(model.content_hash(), digest)} else None


def measure(model: interp.LanguageModel, guards: Guards) -> pd.DataFrame:
    """Measure a model on all facts, and on those that have not chosen its checkpoint."""
    answers = guards.answer(model)
    confirmed_in = guards.forgotten_in or ()
    seen: Counter[str] = Counter()
    unseen = []
    for answer in answers:
        if answer.query.control:
            code = answer.query.language
            seen[code] += 1
            more = NUM_CONFIRMING if code in confirmed_in else NUM_CONFIRMING_ELSEWHERE
            if seen[code] > NUM_SEEN + more:
                unseen.append(answer)
    others = tabulate_answers(unseen).query("metric == 'retention'")
    others = others.rename(columns={"value": "after"}).assign(metric="unseen", before=1.0)
    return pd.concat([guards.tabulate(model, answers), others], ignore_index=True)


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Lay a table of measures out: a row per method, means over its seeds and their range.

    Shares in per cent; of the reference KL the largest of a language and seed, in nats per token;
    `passes` counts the seeds whose model reached the goal with all guards met on all facts.
    """
    rows: dict[str, dict[str, str]] = {}
    for name, of_method in table.groupby("method", sort=False):
        runs = [run for _, run in of_method.groupby("seed")]
        cells = {"passes": f"{sum(map(is_passing, runs))} of {len(runs)}"}
        shares = of_method[of_method["metric"].isin(["forget", "forget_elsewhere", "retention"])]
        for measured, group in shares.groupby(
            shares["metric"] + "/" + shares["language"], sort=False
        ):
            values = 100 * group["after"]
            spread = f" ({values.min():.0f}–{values.max():.0f})" if len(runs) > 1 else ""
            cells[str(measured)] = f"{values.mean():.0f}{spread}"
        kl = of_method.loc[of_method["metric"] == "reference_kl", "after"].max()
        cells["reference_kl"] = f"{kl:.2f}"
        cells["seconds"] = f"{of_method['seconds'].max():.0f}"
        rows[str(name)] = cells
    return pd.DataFrame.from_dict(rows, orient="index").fillna("")


def is_passing(run: pd.DataFrame) -> bool:
    """Return whether a model that was measured reached the goal, with all guards met."""
    before, after = (
        {f"{row['metric']}/{row['language']}": row[when] for row in run.to_dict("records")}
        for when in ("before", "after")
    )
    return not find_broken((*UNTIL, *GUARDS), after, before)


if __name__ == "__main__":
    with report_errors_and_exit("forgetting"):
        tyro.cli(main)
