"""`interp demo`, `interp sweep`, `interp krs`, `interp figures`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

from interp.cli.commands import OptionSet, has_options
from interp.cli.options import (
    ChatOptions,
    FigureOptions,
    ModelOptions,
    QueryOptions,
    check_output_file,
    read_chat_options,
    select_load_options,
)
from interp.files import check_folder
from interp.launch.options import AnswerOptions, LaunchConfig
from interp.launch.signature import select_options

if TYPE_CHECKING:
    import pandas as pd

Value = Literal["krs", "answers", "retained"]


@has_options(lambda _args: OptionSet(configs=(AnswerOptions, FigureOptions)))
def demo(
    *,
    out: Annotated[Path, arg(metavar="DIR")] = Path("runs/demo"),
    languages: Annotated[tuple[str, ...], arg(metavar="CODE [CODE ...]")] = (
        *("en", "de", "fr", "zh", "ru", "ja", "ar", "hi", "ur"),
    ),
    **options: Any,
) -> None:
    """Unlearn capitals in English on the embedded model, sweep, and draw where they are.

    Gemma-3-270M unlearns the capitals of twelve countries by SimNPO, while guards hold; then every
    window of five layers is restored, site by site, and asked in nine languages. Minutes on two
    cores. A second run does only what is missing.

    Args:
        out: directory for the unlearned model, the losses and the figures.
        languages: BCP-47 codes of the query languages.
    """
    from interp.demo import run_demo

    check_folder(out)
    run_demo(out=out, languages=languages, **options)


def _find_sweep_options(_args: Sequence[str]) -> OptionSet:
    from interp.recovery.sweep_config import SweepConfig

    configs = (QueryOptions, ChatOptions, SweepConfig, AnswerOptions, ModelOptions, LaunchConfig)
    return OptionSet(configs=configs, without=("remote",))


@has_options(_find_sweep_options)
def sweep(
    *,
    vanilla: Annotated[str, arg(metavar="SPEC")],
    unlearned: Annotated[tuple[str, ...], arg(metavar="SPEC [SPEC ...]")],
    queries: Annotated[str, arg(metavar="FILE|NAME")],
    out: Annotated[Path, arg(metavar="DIR")],
    controls: bool = False,
    never: Annotated[str | None, arg(metavar="SPEC")] = None,
    **options: Any,
) -> None:
    """Restore every window of layers of an unlearned model, and store losses and answers.

    A SPEC is a Hugging Face directory (a full model or a PEFT adapter), a .gguf file, a Hub id
    (optionally with @revision) or the embedded gemma-3-270m.

    Args:
        vanilla: the original model, V.
        unlearned: one or more unlearned models, U, of the same architecture and tokenizer.
        queries: a .jsonl file, a built-in name such as `capitals`, or a data set (`bmlama:FILE`);
            see `interp queries --help`.
        out: run directory; what it holds already is not measured again.
        controls: ask as many built-in questions on facts to keep, too, for the damage done; a file
            marks its own with "control": true.
        never: a model that never knew what the others forgot, for the excess over it.
    """
    import interp
    from interp.models.precision import WEIGHTS
    from interp.recovery.sweep_config import SweepConfig

    check_folder(out)
    select_options(LaunchConfig(), options)
    # Names of other libraries are read with the model, in `sweep`.
    own = tuple(site for site in options["sites"] if "." not in site)
    select_options(SweepConfig(), options | {"sites": own or ("coef",)})
    asked = read_chat_options(options)
    for name in asked:
        del options[name]
    languages, limit, dtype = (options.pop("languages"), options.pop("limit"), options["dtype"])
    loaded_queries = interp.queries(queries, languages=languages, limit=limit, **asked)
    chosen = select_load_options(options)
    chosen["dtype"] = None if dtype is None else WEIGHTS[dtype]
    for name in chosen.keys() - {"dtype"}:
        del options[name]
    interp.sweep(
        interp.load(vanilla, **chosen),
        unlearned,
        loaded_queries,
        controls=controls,
        never=never,
        out=out,
        **options,
    )
    print(f"losses in {out / 'losses'}; next: interp krs {out}, interp figures {out}")


def krs(
    directory: Annotated[Positional[Path], arg(metavar="DIR")],
    *,
    value: Value | None = None,
    variant: str | None = None,
    by: Annotated[tuple[str, ...], arg(metavar="COLUMN [COLUMN ...]")] = ("language",),
    controls: bool = False,
    only: Literal["known"] | None = None,
    never: Annotated[str | None, arg(metavar="NAME")] = None,
    csv: Annotated[Path | None, arg(metavar="FILE")] = None,
) -> None:
    """Print what a run measured: recovery scores and answers, or one of them as a CSV file.

    By layer: the knowledge recovery score, the share of V's answers that a restored model gives
    again, and what V still says with U's parts (of a sweep with --direction both or corrupt). And
    per language what V knows, and the damage, of a sweep with --controls.

    Args:
        directory: the run directory.
        value: krs, answers or retained alone; all that was measured by default, and with --csv krs.
        variant: paper (ratio of means) or hong2024 (mean of ratios); that of the run by default.
        by: columns that make a group: language, concept, query_id.
        controls: of the questions on facts to keep instead.
        only: known leaves out questions to which V does not give the right answer.
        never: the model that never knew; the one that the sweep was given by default.
        csv: write the whole table here instead.
    """
    from interp.launch.recovery import Recovery
    from interp.tables import write_csv

    if csv is not None:
        check_output_file(csv)
    recovery = Recovery.read(directory)
    options: dict[str, Any] = {"by": by, "only": only, "never": never or recovery.never}
    makers = {
        "krs": lambda: recovery.krs(variant=variant, controls=controls, **options),
        "answers": lambda: recovery.answers(controls=controls, **options),
        "retained": lambda: recovery.retained(**options),
    }
    if csv is not None:
        write_csv(csv, makers[value or "krs"]())
        print(csv)
        return
    tables = [makers[name]() for name in ([value] if value else recovery.list_values())]
    print("What V knows: right answers of those asked; loss(V, U)")
    print(recovery.known(by=by).to_string(index=False, na_rep="–", float_format="{:.3g}".format))
    if recovery.has_controls:
        print("\nDamage: loss(V, U) on facts to keep / on those unlearned")
        shown = recovery.damage(by=by).drop(columns="reason")
        print(shown.to_string(index=False, na_rep="–", float_format="{:.3g}".format))
    for table in tables:
        _print_by_layer(table, controls)
    for note in sorted({reason for table in tables for reason in table["reason"]} - {""}):
        print(f"note: {note}")


_HEADINGS = {
    "krs": "krs",
    "effect": "effect",
    "recovered": "share of V's answers given again",
    "retained": "share of V's answers that V still gives with U's part",
    "erased_fall": "erased: what U's part costs V's answers of what that of N costs (log-prob.)",
    "excess": "excess over the model that never knew",
}
"""Columns that are printed by layer, with what stands above them."""


def _print_by_layer(table: pd.DataFrame, controls: bool) -> None:
    """Print the scores of a table by layer."""
    groups = list(table.columns[: list(table.columns).index("site")])
    for name, heading in _HEADINGS.items():
        if name not in table:
            continue
        if name == "excess":
            heading = f"{heading}, of {'krs' if 'krs' in table else 'answers'}"
        of = " (questions on facts to keep)" if controls else ""
        wide = table.pivot(index=[*groups, "site"], columns="layer", values=name)
        print(f"\n{heading} by layer (window centre){of}")
        print(wide.to_string(float_format=lambda value: f"{value:.2f}", na_rep="–"))


@has_options(lambda _args: OptionSet(configs=(FigureOptions,)))
def figures(
    directory: Annotated[Positional[Path], arg(metavar="DIR")],
    *,
    out: Path | None = None,
    **options: Any,
) -> None:
    """Draw a run: heatmaps (language by layer, a facet per site) and lines with intervals.

    The heatmaps are of the score and, where they were measured, of the answers that come back
    (answers) and of those that V still gives with U's parts (retained). explore.html is the heatmap
    of the score to click through: the questions and losses behind each cell.

    Args:
        directory: the run directory.
        out: where to write them; DIR/figures by default.
    """
    from interp.figures import export
    from interp.launch.recovery import Recovery
    from interp.results import RunDirectory, read_manifest

    target = directory / "figures" if out is None else out
    check_folder(target)
    recovery = Recovery.read(directory)
    store = RunDirectory(directory, read_manifest(directory)["config"])
    languages = recovery.losses["language"].unique()
    trajectories = [item for code in languages for item in store.read_trajectories(code) or []]
    drawn = {target / "heatmap": recovery.heatmap(), target / "lines": recovery.lines()}
    for value in recovery.list_values()[1:]:
        drawn[target / value] = recovery.heatmap(value=value)
    explorer = recovery.explore(trajectories=trajectories)
    for path in (explorer.write(target / "explore.html"), *export(drawn, **options)):
        print(path)
