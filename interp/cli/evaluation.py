"""`interp evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import arg

from interp.cli.options import ALL_FORMATS, Format, OptionalCodes, OptionalName

if TYPE_CHECKING:
    import pandas as pd


def evaluate(
    *,
    models: Annotated[tuple[str, ...], arg(metavar="SPEC [SPEC ...]")],
    out: Annotated[Path, arg(metavar="DIR")],
    metrics: Annotated[tuple[str, ...], arg(metavar="NAME [NAME ...]")] = ("accuracy", "alias"),
    queries: Annotated[str | None, arg(metavar="FILE|NAME")] = None,
    languages: OptionalCodes = None,
    limit: Annotated[int | None, arg(metavar="INT")] = None,
    vanilla: Annotated[str | None, arg(metavar="SPEC")] = None,
    baseline: Annotated[str | None, arg(metavar="SPEC")] = None,
    num_tokens: int = 30,
    formats: tuple[Format, ...] = ALL_FORMATS,
    device: OptionalName = None,
    dtype: OptionalName = None,
) -> None:
    """Measure what models still say, per query language.

    {metrics}

    Args:
        models: The models: directories, .gguf files, Hub ids or gemma-3-270m.
        out: Directory for the table (measures.csv), the answers and the figures; what it holds
            already is not measured again.
        metrics: What is measured; see above.
        queries: A .jsonl file, a built-in name such as `capitals`, or a data set; by default the
            questions on false and true facts that the first model was contaminated with.
        languages: BCP-47 codes of the query languages; all that the queries have by default.
        limit: At most this many queries per language; all by default.
        vanilla: The model before unlearning, for metrics that compare with it.
        baseline: A model that never saw what was to be forgotten, for uds.
        num_tokens: Longest answer, in tokens.
        formats: Figure formats; all but html need the extra `export` and a Chrome.
        device: cpu, cuda, cuda:1; a GPU if there is one.
        dtype: float32, bfloat16 or float16; float32 on a CPU, else the checkpoint's own.
    """
    import interp
    from interp.data.selection import in_languages, limited
    from interp.evaluation import check_metrics
    from interp.runs import corpus_of

    others = {"vanilla": vanilla, "baseline": baseline}
    check_metrics(metrics, [name for name, spec in others.items() if spec is not None])
    if len(set(models)) < len(models):
        raise ValueError(f"{max(models, key=models.count)} is named twice in --models")
    if queries is None:
        asked = in_languages(corpus_of(models[0]).queries, languages, models[0])
        asked = limited(asked, limit)
    else:
        asked = interp.queries(queries, languages=languages, limit=limit)
    first = interp.load(vanilla or models[0], device=device, dtype=dtype)
    table = interp.evaluate(
        (first if spec == first.name else interp.load(spec, like=first) for spec in models),
        asked,
        metrics,
        vanilla=None if vanilla is None else first,
        baseline=None if baseline is None else interp.load(baseline, like=first),
        num_tokens=num_tokens,
        out=out,
    )
    _report(table, out, formats)


def _report(table: pd.DataFrame, out: Path, formats: tuple[Format, ...]) -> None:
    """Print a table per metric, models by languages, and draw them."""
    from interp.figures import export, spread, target_unrelated

    figures = {}
    for name, rows in table.groupby("metric", sort=False):
        wide = rows.pivot(index=["concept", "model"], columns="language", values="value")
        wide = wide[list(rows["language"].unique())].map(lambda value: f"{value:.3g}")
        print(f"\n{name}\n{wide.to_string()}")
        for reason in rows["reason"].unique():
            if reason:
                print(f"  note: {reason}")
        figures[out / "figures" / str(name)] = spread(rows)
        if {"fake", "real"} <= {*rows["concept"]}:
            figures[out / "figures" / f"{name}-target-unrelated"] = target_unrelated(rows)
    paths = [out / "measures.csv", *export(figures, formats=formats)]
    print("", *paths, sep="\n")
