"""Where the work runs: here, in this process, cell by cell.

`sweep` ties the rooms together: trajectories, losses, the run directory. A cell is one language's
block of questions for one unlearned model; cells are independent, so `shard=(i, n)` splits them
over any batch system.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import pandas as pd
from tqdm.auto import tqdm

from interp.data.query import Query
from interp.data.trajectories import Trajectory, trajectories
from interp.models.language_model import LanguageModel
from interp.models.pairs import check_pair, identical
from interp.models.precision import Dtype
from interp.recovery.krs import krs_table
from interp.recovery.names import site_name
from interp.recovery.noise import warn_of_noise
from interp.recovery.pair import Direction, Pair
from interp.recovery.scoring import Distance
from interp.recovery.sites import Positions
from interp.recovery.sweep import DEFAULT_SITES, Remote, SweepConfig, Variant, measure
from interp.results import RunDirectory, read_losses, read_table

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from interp.figures import Explorer

BLOCK = 32
"""Questions per cell."""

ANSWERED_TOGETHER = 128
"""Questions, over all languages, that are answered before anything is stored."""

BAR_FORMAT = "{desc}: {percentage:3.0f}% {bar} {n:.0f}/{total:.0f} [{elapsed}<{remaining}{postfix}]"


@dataclass(frozen=True, kw_only=True, eq=False)
class Recovery:
    """What a sweep measured.

    Attributes:
        losses: one row per (unlearned model, language, question, site, layer); the columns are
            those of `recovery.sweep.COLUMNS`.
    """

    losses: pd.DataFrame

    def krs(self, *, variant: str | None = None, by: Sequence[str] = ("language",)) -> pd.DataFrame:
        """The knowledge recovery score per language, site and layer, with bootstrap intervals.

        See `recovery.krs.krs_table`.
        """
        return krs_table(self.losses, variant=variant, by=by)

    def heatmap(self, *, title: str | None = None) -> Figure:
        """Language × layer, one facet per site. See `figures.heatmap`."""
        from interp import figures

        return figures.heatmap(self.krs(), title=title)

    def lines(self, *, title: str | None = None) -> Figure:
        """KRS over layers with intervals, one facet per language. See `figures.lines`."""
        from interp import figures

        return figures.lines(self.krs(), title=title)

    def explore(
        self,
        answers: pd.DataFrame | Mapping[str, pd.DataFrame] | None = None,
        trajectories: Sequence[Trajectory] | None = None,
        *,
        title: str | None = None,
    ) -> Explorer:
        """The heatmap to click through, with the questions behind each cell; Jupyter shows it.

        `.write("explore.html")` makes one file that opens without a network.

        Args:
            answers: what V, U and R answer, for the cells where R answered: the columns language,
                query_id, concept, prompt, vanilla, unlearned, restored, site and layer. Where there
                are several unlearned models: a table each, by the model's name.
            trajectories: V's answers on which the losses were measured, with their questions.
            title: above all of it.

        Raises:
            ValueError: `answers` do not fit the losses; see `figures.explore`.
        """
        from interp import figures

        questions = None
        if trajectories:
            questions = pd.DataFrame(
                [
                    {
                        "language": item.query.language,
                        "concept": item.query.concept,
                        "query_id": item.query.id,
                        "prompt": item.query.prompt,
                        "answer": item.answer,
                    }
                    for item in trajectories
                ],
            )
        return figures.explore(
            self.losses, self.krs(), questions=questions, answers=answers, title=title
        )

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Recovery:
        """What the sweeps in a run directory measured.

        Raises:
            ValueError: it is no run directory, or holds no losses.
        """
        return cls(losses=read_losses(path))


def sweep(
    vanilla: LanguageModel,
    unlearned: LanguageModel,
    answers: Sequence[Trajectory] | Sequence[Query],
    *,
    sites: Sequence[str] = DEFAULT_SITES,
    window: int = 5,
    num_tokens: int = 30,
    engine: str = "layered",
    variant: Variant = "paper",
    positions: Positions = "all",
    direction: Direction = "restore",
    distance: Distance = "logit_mse",
    remote: Remote = False,
    dtype: Dtype | None = None,
    out: str | os.PathLike[str] | None = None,
    shard: tuple[int, int] = (1, 1),
    progress: bool = True,
) -> Recovery:
    """Restore every window of layers, site by site, and measure what returns.

    Args:
        vanilla: V.
        unlearned: U, of the same architecture and tokenizer.
        answers: V's trajectories on the questions; or the queries, trajectories are then made.
        sites: sites or several joined by "+": coef, attn, value and the controls key,
            attn_weights, norms, unembed, mlp_out, resid; or TransformerLens' hook names and module
            paths, see `recovery.names.site_name`.
        window: number of layers restored together, odd.
        num_tokens: T, tokens per answer; used where queries are given.
        engine: `layered`, `full` for the reference, `transformer_lens` or `nnsight`.
        variant: `paper` or `hong2024`.
        positions: where activation sites are restored: `all`, `prompt`, `answer`.
        direction: `restore` puts V's parts into U, `corrupt` U's parts into V.
        distance: `logit_mse`, `kl` or `answer_logprob`.
        remote: with the engine `nnsight`, True runs the forwards on NDIF, where V is hosted, and
            needs a key of it and a U that is a LoRA adapter on V; "local" simulates that here.
        dtype: the models' own precision if None, "float32", "bfloat16" or "float16"; or "tf32" or
            "bf32" for rounded matrix products of float32 models, "mixed" for bfloat16 models scored
            in float32, see `models.precision`. Where its noise floor exceeds the effect, a warning
            says so.
        out: a run directory. What it holds already is not measured again. It may take several
            unlearned models, one call each.
        shard: (i, n): only every n-th cell, starting with the i-th (from 1).
        progress: show progress bars on standard error.

    Returns:
        What was measured; with `out`, all that the directory holds of this unlearned model.

    Raises:
        ValueError: a setting is not valid, the models do not match or are identical, a loss is
            not finite, or `out` holds a run of another configuration.
    """
    config = SweepConfig(
        sites=tuple(site_name(site, vanilla) for site in sites),
        window=window,
        engine=engine,
        variant=variant,
        positions=positions,
        direction=direction,
        distance=distance,
        remote=remote,
        dtype=dtype,
    )
    config.restorations(vanilla.num_layers)
    check_shard(shard)
    if not answers:
        raise ValueError("no queries: give at least one")
    check_pair(vanilla, unlearned)
    if identical(vanilla, unlearned):
        raise ValueError(
            f"{unlearned.name!r} is identical to {vanilla.name!r}: nothing was unlearned, "
            "so the KRS is undefined"
        )
    config.check_models(vanilla, unlearned)
    pair = Pair(vanilla=vanilla, unlearned=unlearned, direction=direction)
    store = None if out is None else _open(out, pair, answers, config, num_tokens)
    made = _trajectories(vanilla, answers, num_tokens, store, progress)
    unlearned_hash = "" if store is None else unlearned.content_hash()
    if store is not None:
        store.add_model("unlearned", unlearned.name, unlearned_hash)
    tables = []
    bar = tqdm(
        total=len(made) + 1e-6,
        desc=f"sweep {_short(unlearned.name)}",
        bar_format=BAR_FORMAT,
        # Layers differ in work: the mean speed tells the time left better than the latest.
        smoothing=0,
        disable=not progress,
    )
    with bar:
        for number, (language, block, items) in enumerate(_cells(made)):
            if number % shard[1] != shard[0] - 1:
                bar.update(len(items))
                continue
            bar.set_postfix_str(language)
            path = None
            if store is not None:
                path = store.losses_path(unlearned.name, unlearned_hash, language, block)
                if path.exists():
                    tables.append(read_table(path))
                    bar.update(len(items))
                    continue
            table = measure(pair, items, config, advance=bar.update)
            if store is not None and path is not None:
                store.write_losses(path, table)
            tables.append(table)
    if not tables:
        raise ValueError(f"shard {shard[0]}/{shard[1]} holds no cells; there are too many shards")
    recovery = Recovery(losses=pd.concat(tables, ignore_index=True))
    if config.dtype_of(pair.base) != "float32":
        warn_of_noise(recovery.krs())
    return recovery


def check_shard(shard: tuple[int, int]) -> None:
    """Raise ValueError unless shard is (i, n) with 1 ≤ i ≤ n."""
    index, count = shard
    if not 1 <= index <= count:
        raise ValueError(f"shard must be i/n with 1 ≤ i ≤ n, not {index}/{count}")


def _cells(made: Sequence[Trajectory]) -> Iterator[tuple[str, int, list[Trajectory]]]:
    """(language, block number, questions), languages in order of first appearance."""
    languages = list(dict.fromkeys(item.query.language for item in made))
    for language in languages:
        items = [item for item in made if item.query.language == language]
        for block, start in enumerate(range(0, len(items), BLOCK)):
            yield language, block, items[start : start + BLOCK]


def _open(
    out: str | os.PathLike[str],
    pair: Pair,
    answers: Sequence[Trajectory] | Sequence[Query],
    config: SweepConfig,
    num_tokens: int,
) -> RunDirectory:
    """The run directory, if it is new or of the same configuration."""
    asked = []
    for item in answers:
        given = isinstance(item, Trajectory)
        fields = asdict(item.query if given else item)
        # Other right spellings change no measurement.
        del fields["aliases"]
        asked.append(
            fields | ({"answer_ids": item.answer_ids} if given else {"num_tokens": num_tokens})
        )
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
    settings = asdict(config) | {"dtype": config.dtype_of(pair.base)}
    if not config.remote:
        del settings["remote"]
    store = RunDirectory(
        out,
        {
            "vanilla": pair.vanilla.name,
            "num_queries": len(answers),
            "queries": digest,
            **settings,
        },
    )
    store.add_model("vanilla", pair.vanilla.name, pair.vanilla.content_hash())
    return store


def _trajectories(
    vanilla: LanguageModel,
    answers: Sequence[Trajectory] | Sequence[Query],
    num_tokens: int,
    store: RunDirectory | None,
    progress: bool,
) -> list[Trajectory]:
    """V's answers: given, stored or made now, and stored."""
    by_language: dict[str, list[Trajectory | Query]] = {}
    for item in answers:
        query = item.query if isinstance(item, Trajectory) else item
        by_language.setdefault(query.language, []).append(item)
    made: dict[str, list[Trajectory]] = {}
    waiting: dict[str, list[Query]] = {}
    for number, (language, items) in enumerate(by_language.items(), start=1):
        stored = None if store is None else store.read_trajectories(language)
        if stored is not None:
            made[language] = stored
        elif isinstance(items[0], Trajectory):
            made[language] = [item for item in items if isinstance(item, Trajectory)]
        else:
            waiting[language] = [item for item in items if isinstance(item, Query)]
        # Small languages are answered together, large ones stored as soon as they are done.
        count = sum(map(len, waiting.values()))
        if count and (count >= ANSWERED_TOGETHER or number == len(by_language)):
            asked = [query for queries in waiting.values() for query in queries]
            for item in trajectories(vanilla, asked, num_tokens=num_tokens, progress=progress):
                made.setdefault(item.query.language, []).append(item)
            if store is not None:
                for answered in waiting:
                    store.write_trajectories(answered, made[answered])
            waiting = {}
    if store is not None:
        for language, items in by_language.items():
            if isinstance(items[0], Trajectory) and store.read_trajectories(language) is None:
                store.write_trajectories(language, made[language])
    return [item for language in by_language for item in made[language]]


def _short(name: str) -> str:
    return name if len(name) <= 24 else "…" + name[-23:]
