"""Layer sweep to copy: which part of which layer brings the knowledge back, in which language?

    python experiments/layer_sweep.py

Set the models, queries and sites in `Config`. The run directory takes up where it was stopped, and
holds the losses, V's answers, the table and the figures. The defaults use what `interp demo` made.
"""

from dataclasses import dataclass, field
from pathlib import Path

import interp
from interp.cli import report_errors_and_exit
from interp.figures import export
from interp.tables import write_csv


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the sweep. Models are directories, PEFT adapters, .gguf files or Hub ids."""

    vanilla: str = "gemma-3-270m"
    unlearned: dict[str, str] = field(default_factory=lambda: {"gd-en": "runs/demo/unlearned"})
    queries: str = "capitals"
    languages: tuple[str, ...] = ("en", "de", "zh")
    num_queries: int = 10
    sites: tuple[str, ...] = ("coef", "attn", "coef+attn", "value")
    window: int = 5
    num_tokens: int = 30
    formats: tuple[str, ...] = ("html", "png", "svg", "pdf")
    out: Path = Path("runs/layer_sweep")


def main(config: Config) -> None:
    """Sweep every unlearned model, then write the table and the figures."""
    vanilla = interp.load(config.vanilla)
    queries = interp.queries(config.queries, languages=config.languages, limit=config.num_queries)
    answers = interp.trajectories(vanilla, queries, num_tokens=config.num_tokens)
    for name, spec in config.unlearned.items():
        unlearned = interp.load(spec, like=vanilla)
        out = config.out / name
        recovery = interp.sweep(
            vanilla, unlearned, answers, sites=config.sites, window=config.window, out=out
        )
        table = recovery.krs()
        write_csv(out / "krs.csv", table)
        best = table.loc[table.groupby(["language", "site"], sort=False)["krs"].idxmax()]
        print(best[["language", "site", "layer", "krs", "ci_low", "ci_high"]].to_string())
        figures = {out / "heatmap": recovery.heatmap(title=name), out / "lines": recovery.lines()}
        export(figures, formats=config.formats)


if __name__ == "__main__":
    with report_errors_and_exit("layer_sweep"):
        main(Config())
