"""Demo on the embedded model: unlearn capitals in English, restore, draw.

Run as `interp demo`. Gemma-3-270M unlearns the capitals of twelve countries that it knows in
English; then the recovery of that knowledge is swept over sites, layers and query languages.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from interp.behaviour.guards import format_guards
from interp.behaviour.retain_texts import make_retain_texts
from interp.data.corpus_builder import write_unlearning_texts
from interp.data.facts import Fact, select_facts
from interp.data.filters import limit_per_language
from interp.data.kept_queries import find_kept_queries
from interp.data.queries import queries
from interp.data.samples import sample_texts
from interp.data.trajectories import trajectories
from interp.figures import export
from interp.launch.recovery import Recovery
from interp.launch.sweep import sweep
from interp.models.language_model import LanguageModel
from interp.models.loading import load
from interp.pipelines.unlearning import find_answers_file, unlearn
from interp.tables import write_csv
from interp.unlearning.methods import find_method

MODEL = "gemma-3-270m"
NUM_FORGOTTEN = 12
NUM_CANDIDATES = 60
NUM_CONTROLS = 4
"""Kept capitals per language that are swept, too: of those that the vanilla model knows there."""

METHOD = "simnpo"
WATCHED = ("en", "de", "fr", "zh")
"""Languages in which texts are retained and that are guarded, whatever languages are swept."""

NUM_RETAINED = 150
"""Texts on facts to retain per language."""

NUM_ASKED = 96
"""Questions on facts to keep per language, of which the first 24 known ones are guards."""


def run_demo(
    *, out: Path, languages: Sequence[str], num_tokens: int = 30, formats: Sequence[str] = ("html",)
) -> Recovery:
    """Unlearn, probe, sweep and draw; what `out` holds already is not done again.

    Args:
        out: directory for the unlearned model, the losses and the figures.
        languages: BCP-47 codes of the query languages.
        num_tokens: longest answer, in tokens.
        formats: of the figures.

    Raises:
        ValueError: a language without built-in questions, or `out` holds another run.
        ImportError: the embedded model is not installed.
    """
    start = time.monotonic()
    queries("capitals", languages=languages)
    vanilla = load(MODEL)
    known = find_known_facts(vanilla)
    forgotten = known[:NUM_FORGOTTEN]
    unlearned, retained = _load_or_unlearn(vanilla, forgotten, out / "unlearned")
    kept = [fact for fact in known[NUM_FORGOTTEN:] if fact.id not in retained][:NUM_FORGOTTEN]

    right = {
        model.name: _check_answers(model, [*forgotten, *kept], languages)
        for model in (vanilla, unlearned)
    }
    table = _tabulate_accuracy(right, {"forgotten": forgotten, "kept": kept}, languages)
    write_csv(out / "accuracy.csv", table)
    print("\nShare of capitals answered rightly (greedy), before and after unlearning in English:")
    wide = table.pivot(index=["countries", "model"], columns="language", values="accuracy")
    print(wide[list(languages)].round(2).to_string(), flush=True)

    forgotten_queries, kept_queries = (
        queries("capitals", languages=languages, ids=[fact.id for fact in group])
        for group in (forgotten, kept)
    )
    is_known = right[vanilla.name]
    controls = limit_per_language(
        [query for query in kept_queries if is_known[query.language, query.id]], NUM_CONTROLS
    )
    recovery = sweep(
        vanilla,
        unlearned,
        forgotten_queries,
        controls=controls or False,
        num_tokens=num_tokens,
        out=out,
    )
    title = "Knowledge recovered, 12 capitals unlearned in English, Gemma-3-270M"
    drawn = {
        out / "figures" / "heatmap": recovery.heatmap(title=title),
        out / "figures" / "lines": recovery.lines(title=title),
        out / "figures" / "answers": recovery.heatmap(
            value="answers", title=f"Answers given again: {title[0].lower()}{title[1:]}"
        ),
    }
    paths = export(drawn, formats=formats)
    _print_scores(recovery, languages)
    print(f"\nThe figures ({time.monotonic() - start:.0f} s in all):")
    for path in paths:
        print(f"  {path}")
    return recovery


def _print_scores(recovery: Recovery, languages: Sequence[str]) -> None:
    """Print what V knows, the damage, and both scores at their best windows."""
    counts, damages = {}, {}
    for row in recovery.known().to_dict("records"):
        counts[row["language"]] = f"{row['num_known']:.0f}/{row['num_asked']}"
    for row in recovery.damage().to_dict("records") if recovery.has_controls else ():
        known = not math.isnan(row["damage"])
        damages[row["language"]] = f"{row['damage']:.2f}" if known else "–"
    rows = {"known to the vanilla model": counts, "damage on kept capitals": damages}
    table = pd.DataFrame.from_dict(rows, orient="index", columns=list(languages)).fillna("–")
    print("\nWhat the scores rest on (damage: loss on kept capitals / on forgotten ones):")
    print(table.to_string())
    for name, scores, heading in (
        ("krs", recovery.krs(), "KRS"),
        ("recovered", recovery.answers(), "Share of the vanilla model's answers given again"),
    ):
        best: dict[str, dict[str, str]] = {}
        for _, cells in scores.groupby(["site", "language"], sort=False):
            site, code = cells[["site", "language"]].iloc[0]
            best.setdefault(site, {})[code] = f"{cells[name].max():.2f}"
        table = pd.DataFrame.from_dict(best, orient="index", columns=list(languages))
        print(f"\n{heading} at the best window of five layers:")
        print(table.to_string())
    print(
        "\nThese say which of the vanilla model's parts bring its answers back. Whether the "
        "unlearned\nmodel still holds them they cannot say: no model that never knew capitals "
        "stands beside it\n(docs/krs.md)."
    )


def find_known_facts(model: LanguageModel) -> list[Fact]:
    """Find the well-known capitals that a model answers rightly in English, best-known first."""
    candidates = select_facts("capital", languages=["en"])[:NUM_CANDIDATES]
    right = _check_answers(model, candidates, ["en"])
    known = [fact for fact in candidates if right["en", fact.id]]
    if len(known) < 2 * NUM_FORGOTTEN:
        raise ValueError(
            f"{model.name!r} knows {len(known)} of {NUM_CANDIDATES} capitals in English; "
            f"the demo needs {2 * NUM_FORGOTTEN}"
        )
    return known


def _load_or_unlearn(
    vanilla: LanguageModel, forgotten: Sequence[Fact], directory: Path
) -> tuple[LanguageModel, set[str]]:
    """Load the unlearned model, or train it now if the directory does not have it.

    Returns:
        U, and the ids of the facts that were retained in training.
    """
    form = find_method(METHOD).form
    texts = [
        text for fact in forgotten for text in write_unlearning_texts(fact, "real", ["en"], form)
    ]
    retain = make_retain_texts(
        vanilla, texts, languages=WATCHED, num_facts=NUM_RETAINED, cache=find_answers_file()
    )
    targets = queries("capitals", languages=["en"], ids=[fact.id for fact in forgotten])
    candidates = find_kept_queries([*texts, *retain], WATCHED, like=targets[0], asked=targets)
    run = unlearn(
        vanilla,
        texts,
        retain,
        method=METHOD,
        targets=targets,
        kept=[query for found in candidates.values() for query in found[:NUM_ASKED]],
        samples=sample_texts(vanilla, WATCHED, num_texts=4, num_tokens=32),
        out=directory,
    )
    print(f"\nUnlearned by {METHOD}: {run.reason}")
    print(format_guards(run.guards).to_string(), flush=True)
    return run.model, {text.id for text in retain}


def _check_answers(
    model: LanguageModel, of: Sequence[Fact], languages: Sequence[str]
) -> dict[tuple[str, str], bool]:
    """Check if the greedy answer begins with the right one, by language and fact."""
    answers = trajectories(
        model,
        queries("capitals", languages=languages, ids=[fact.id for fact in of]),
        num_tokens=6,
    )
    return {
        (item.query.language, item.query.id): item.answer.strip().startswith(str(item.query.answer))
        for item in answers
    }


def _tabulate_accuracy(
    right: dict[str, dict[tuple[str, str], bool]],
    groups: dict[str, Sequence[Fact]],
    languages: Sequence[str],
) -> pd.DataFrame:
    """Tabulate the share of right answers per model, group and language."""
    rows = []
    for model, answers in right.items():
        for name, group in groups.items():
            for language in languages:
                hits = [
                    answers[language, fact.id] for fact in group if (language, fact.id) in answers
                ]
                rows.append(
                    {
                        "countries": name,
                        "model": model,
                        "language": language,
                        "accuracy": sum(hits) / len(hits),
                        "num_queries": len(hits),
                    }
                )
    return pd.DataFrame(rows)
