"""`interp demo`, `interp sweep`, `interp krs`, `interp figures`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

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

    Gemma-3-270M unlearns the capitals of twelve countries by gradient difference; then every window
    of five layers is restored, site by site, and asked in nine languages. Minutes on two cores. A
    second run does only what is missing.

    Args:
        out: directory for the unlearned model, the losses and the figures.
        languages: BCP-47 codes of the query languages.
    """
    from interp.demo import run_demo

    check_folder(out)
    run_demo(out=out, languages=languages, **options)


def _find_sweep_options(_args: Sequence[str]) -> OptionSet:
    from interp.recovery.sweep import SweepConfig

    configs = (QueryOptions, ChatOptions, SweepConfig, AnswerOptions, ModelOptions, LaunchConfig)
    return OptionSet(configs=configs, without=("remote",))


@has_options(_find_sweep_options)
def sweep(
    *,
    vanilla: Annotated[str, arg(metavar="SPEC")],
    unlearned: Annotated[tuple[str, ...], arg(metavar="SPEC [SPEC ...]")],
    queries: Annotated[str, arg(metavar="FILE|NAME")],
    out: Annotated[Path, arg(metavar="DIR")],
    **options: Any,
) -> None:
    """Restore every window of layers of an unlearned model and store the losses.

    A SPEC is a Hugging Face directory (a full model or a PEFT adapter), a .gguf file, a Hub id
    (optionally with @revision) or the embedded gemma-3-270m.

    Args:
        vanilla: the original model, V.
        unlearned: one or more unlearned models, U, of the same architecture and tokenizer.
        queries: a .jsonl file, a built-in name such as `capitals`, or a data set (`bmlama:FILE`);
            see `interp queries --help`.
        out: run directory; what it holds already is not measured again.
    """
    import interp
    from interp.models.precision import WEIGHTS
    from interp.recovery.sweep import SweepConfig

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
        out=out,
        **options,
    )
    print(f"losses in {out / 'losses'}; next: interp krs {out}, interp figures {out}")


def krs(
    directory: Annotated[Positional[Path], arg(metavar="DIR")],
    *,
    variant: str | None = None,
    by: Annotated[tuple[str, ...], arg(metavar="COLUMN [COLUMN ...]")] = ("language",),
    csv: Annotated[Path | None, arg(metavar="FILE")] = None,
) -> None:
    """Print the knowledge recovery scores of a run, or write them to a CSV file.

    Args:
        directory: the run directory.
        variant: paper (ratio of means) or hong2024 (mean of ratios); that of the run by default.
        by: columns that make a group: language, concept, query_id.
        csv: write the whole table here instead.
    """
    from interp.launch.recovery import Recovery
    from interp.tables import write_csv

    if csv is not None:
        check_output_file(csv)
    table = Recovery.read(directory).krs(variant=variant, by=by)
    if csv is not None:
        write_csv(csv, table)
        print(csv)
        return
    name = "effect" if "effect" in table else "krs"
    groups = list(table.columns[: list(table.columns).index("site")])
    wide = table.pivot(index=[*groups, "site"], columns="layer", values=name)
    print(f"{name} by layer (window centre)")
    print(wide.to_string(float_format=lambda value: f"{value:.2f}", na_rep="–"))
    for reason in sorted(set(table["reason"]) - {""}):
        print(f"note: {reason}")


@has_options(lambda _args: OptionSet(configs=(FigureOptions,)))
def figures(
    directory: Annotated[Positional[Path], arg(metavar="DIR")],
    *,
    out: Path | None = None,
    **options: Any,
) -> None:
    """Draw a run: a heatmap (language by layer, a facet per site) and lines with intervals.

    explore.html is the heatmap to click through: the questions and losses behind each cell.

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
    explorer = recovery.explore(trajectories=trajectories)
    for path in (explorer.write(target / "explore.html"), *export(drawn, **options)):
        print(path)
