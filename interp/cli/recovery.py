"""`interp demo`, `interp sweep`, `interp krs`, `interp figures`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from interp.cli.options import (
    ALL_FORMATS,
    Codes,
    Format,
    Name,
    OptionalCodes,
    OptionalName,
    shard_of,
)


def demo(
    *,
    out: Annotated[Path, arg(metavar="DIR")] = Path("runs/demo"),
    languages: Codes = ("en", "de", "fr", "zh", "ru", "ja", "ar", "hi", "ur"),
    num_tokens: int = 30,
    formats: tuple[Format, ...] = ALL_FORMATS,
) -> None:
    """Unlearn capitals in English on the embedded model, sweep, and draw where they are.

    Gemma-3-270M unlearns the capitals of twelve countries by gradient difference; then every window
    of five layers is restored, site by site, and asked in nine languages. Minutes on two cores. A
    second run does only what is missing.

    Args:
        out: Directory for the unlearned model, the losses and the figures.
        languages: BCP-47 codes of the query languages.
        num_tokens: Longest answer, in tokens.
        formats: Figure formats; all but html need the extra `export` and a Chrome.
    """
    from interp.demo import run_demo

    run_demo(out=out, languages=languages, num_tokens=num_tokens, formats=formats)


def sweep(
    *,
    vanilla: Annotated[str, arg(metavar="SPEC")],
    unlearned: Annotated[tuple[str, ...], arg(metavar="SPEC [SPEC ...]")],
    queries: Annotated[str, arg(metavar="FILE|NAME")],
    out: Annotated[Path, arg(metavar="DIR")],
    languages: OptionalCodes = None,
    limit: Annotated[int | None, arg(metavar="INT")] = None,
    sites: Annotated[tuple[str, ...], arg(metavar="SITE [SITE ...]")] = (
        "coef",
        "attn",
        "coef+attn",
        "value",
    ),
    window: int = 5,
    num_tokens: int = 30,
    engine: Name = "layered",
    variant: Name = "paper",
    positions: Name = "all",
    direction: Name = "restore",
    distance: Name = "logit_mse",
    dtype: OptionalName = None,
    device: OptionalName = None,
    shard: Annotated[str, arg(metavar="I/N")] = "1/1",
    launcher: Name = "local",
    address: Annotated[str | None, arg(metavar="HOST:PORT")] = None,
    num_workers: Annotated[int | None, arg(metavar="INT")] = None,
    gpus_per_worker: Annotated[float | None, arg(metavar="FLOAT")] = None,
) -> None:
    """Restore every window of layers of an unlearned model and store the losses.

    A SPEC is a Hugging Face directory (a full model or a PEFT adapter), a .gguf file, a Hub id
    (optionally with @revision) or the embedded gemma-3-270m.

    Args:
        vanilla: The original model.
        unlearned: One or more unlearned models of the same architecture and tokenizer.
        queries: A .jsonl file, a built-in name such as `capitals`, or a data set (`bmlama:FILE`);
            see `interp queries --help`.
        out: Run directory; what it holds already is not measured again.
        languages: BCP-47 codes of the query languages; all that the queries have by default.
        limit: At most this many queries per language; all by default.
        sites: What to restore, joined by + where together: coef, attn, value, and the controls
            key, attn_weights, norms, unembed, mlp_out, resid; one layer's (coef@3), single heads
            (head[0,2]) or coefficients (coef@3[17]); or TransformerLens' hook names.
        window: Number of consecutive layers restored together, odd.
        num_tokens: Longest answer of the vanilla model, in tokens.
        engine: layered (fast), full (the plain reference), transformer_lens or nnsight.
        variant: paper, or hong2024 for the released notebooks' positions and averaging.
        positions: Where states are restored: all, prompt or answer.
        direction: restore (vanilla parts into the unlearned model), or corrupt (the reverse).
        distance: logit_mse, kl or answer_logprob.
        dtype: float32, bfloat16 or float16; tf32 or bf32 for float32 with rounded matrix products
            (on a GPU, on a CPU with bfloat16 units); mixed for bfloat16 scored in float32. float32
            on a CPU, else the checkpoint's own.
        device: cpu, cuda, cuda:1, or auto to spread the layers over several GPUs; a GPU if there is
            one.
        shard: Measure only the I-th of N parts of the work, for batch systems.
        launcher: local (this process), or ray (workers of a Ray cluster; see docs/clusters.md).
        address: The Ray cluster; by default that of this machine, else one made for this command.
        num_workers: Ray workers; as many as there is room for by default.
        gpus_per_worker: Part of a GPU that a Ray worker takes, 0 to 1; 1 by default if the vanilla
            model is on one here.
    """
    import interp
    from interp.launch import check_launcher, check_shard
    from interp.models.precision import WEIGHTS
    from interp.recovery.sweep import SweepConfig

    part = shard_of(shard)
    check_shard(part)
    where: dict[str, Any] = {
        "launcher": launcher,
        "address": address,
        "num_workers": num_workers,
        "gpus_per_worker": gpus_per_worker,
    }
    check_launcher(**where)
    settings: dict[str, Any] = {
        "sites": sites,
        "window": window,
        "engine": engine,
        "variant": variant,
        "positions": positions,
        "direction": direction,
        "distance": distance,
        "dtype": dtype,
    }
    # Names of other libraries are read with the model, in `sweep`.
    own = tuple(site for site in sites if "." not in site)
    SweepConfig(**{**settings, "sites": own or ("coef",)})
    asked = interp.queries(queries, languages=languages, limit=limit)
    interp.sweep(
        interp.load(vanilla, device=device, dtype=None if dtype is None else WEIGHTS[dtype]),
        unlearned,
        asked,
        num_tokens=num_tokens,
        out=out,
        shard=part,
        **settings,
        **where,
    )
    print(f"losses in {out / 'losses'}; next: interp krs {out}, interp figures {out}")


def krs(
    directory: Annotated[Positional[Path], arg(metavar="DIR")],
    *,
    variant: OptionalName = None,
    by: Annotated[tuple[str, ...], arg(metavar="COLUMN [COLUMN ...]")] = ("language",),
    csv: Annotated[Path | None, arg(metavar="FILE")] = None,
) -> None:
    """Print the knowledge recovery scores of a run, or write them to a CSV file.

    Args:
        directory: The run directory.
        variant: paper (ratio of means) or hong2024 (mean of ratios); that of the run by default.
        by: Columns that make a group: language, concept, query_id.
        csv: Write the whole table here instead.
    """
    from interp.files import write_atomically
    from interp.launch import Recovery

    table = Recovery.read(directory).krs(variant=variant, by=by)
    if csv is not None:
        write_atomically(csv, lambda scratch: table.to_csv(scratch, index=False))
        print(csv)
        return
    name = "effect" if "effect" in table else "krs"
    groups = list(table.columns[: list(table.columns).index("site")])
    wide = table.pivot(index=[*groups, "site"], columns="layer", values=name)
    print(f"{name} by layer (window centre)")
    print(wide.to_string(float_format=lambda value: f"{value:.2f}", na_rep="–"))
    for reason in sorted(set(table["reason"]) - {""}):
        print(f"note: {reason}")


def figures(
    directory: Annotated[Positional[Path], arg(metavar="DIR")],
    *,
    formats: tuple[Format, ...] = ALL_FORMATS,
    out: Annotated[Path | None, arg(metavar="DIR")] = None,
) -> None:
    """Draw a run: a heatmap (language by layer, a facet per site) and lines with intervals.

    explore.html is the heatmap to click through: the questions and losses behind each cell.

    Args:
        directory: The run directory.
        formats: Figure formats; all but html need the extra `export` and a Chrome.
        out: Where to write them; DIR/figures by default.
    """
    from interp.figures import export
    from interp.launch import Recovery
    from interp.results import RunDirectory, read_manifest

    recovery = Recovery.read(directory)
    store = RunDirectory(directory, read_manifest(directory)["config"])
    languages = recovery.losses["language"].unique()
    asked = [item for code in languages for item in store.read_trajectories(code) or []]
    target = directory / "figures" if out is None else out
    drawn = {target / "heatmap": recovery.heatmap(), target / "lines": recovery.lines()}
    explorer = recovery.explore(trajectories=asked)
    for path in (explorer.write(target / "explore.html"), *export(drawn, formats=formats)):
        print(path)
