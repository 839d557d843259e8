"""Results of a sweep: what was measured, and the tables and figures made of it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from interp.data.trajectories import Trajectory
from interp.recovery.answer_recovery import compute_answer_recovery
from interp.recovery.damage import compute_damage
from interp.recovery.excess import compute_excess
from interp.recovery.krs import compute_krs
from interp.recovery.question_selection import find_controls, select_questions, tabulate_known
from interp.recovery.retained_readout import compute_retained
from interp.results import read_losses, read_manifest

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from interp.figures import Explorer

Value = Literal["krs", "answers", "retained"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Recovery:
    """Results of a sweep.

    Attributes:
        losses: one row per (unlearned model, language, question, site, layer); the columns are
            those of `recovery.sweep.COLUMNS`.
        never: name, among the unlearned models, of one that never knew what the others forgot.
    """

    losses: pd.DataFrame
    never: str | None = None

    def krs(
        self,
        *,
        variant: str | None = None,
        by: Sequence[str] = ("language",),
        controls: bool = False,
        only: str | None = None,
        never: str | bool | None = None,
    ) -> pd.DataFrame:
        """Compute the knowledge recovery score per cell, with bootstrap intervals.

        See `recovery.krs.compute_krs`.

        Args:
            variant: paper or hong2024; the one it was measured with if None.
            by: the columns that make a group.
            controls: of the questions on what was to be kept.
            only: `known` leaves out the questions to which V does not give the right answer.
            never: name of a model that never knew (True: the one given to the sweep). Its score
                `krs_never`, and the `excess` of the others over it with the interval `excess_low`
                and `excess_high`, are added, and its own rows left out.

        Raises:
            ValueError: there are no controls, right answers or such a model; or as `compute_krs`.
        """
        losses = self._select()
        options: dict[str, Any] = {"by": by, "controls": controls, "only": only}
        table = compute_krs(losses, variant=variant, **options)
        if name := self._find_never(never):
            table = _add_excess(table, compute_excess(losses, name, **options), name, "unlearned")
        return table

    def answers(
        self,
        *,
        by: Sequence[str] = ("language",),
        controls: bool = False,
        only: str | None = None,
        never: str | bool | None = None,
    ) -> pd.DataFrame:
        """Compute the share of questions to which R gives V's answer again, per cell.

        See `recovery.answer_recovery.compute_answer_recovery`; the arguments are those of `krs`.
        With `never`, the columns are `recovered_never`, `excess`, `excess_low` and `excess_high`.
        """
        losses = self._select()
        options: dict[str, Any] = {"by": by, "controls": controls, "only": only}
        table = compute_answer_recovery(losses, **options)
        if name := self._find_never(never):
            excess = compute_excess(losses, name, value="answers", **options)
            table = _add_excess(table, excess, name, "model")
        return table

    def retained(
        self,
        *,
        by: Sequence[str] = ("language",),
        only: str | None = None,
        never: str | bool | None = None,
    ) -> pd.DataFrame:
        """Compute what V still says with U's parts, which needs the direction corrupt or both.

        See `recovery.retained_readout.compute_retained`; `never` as in `krs`.
        """
        losses = self._select("corrupt")
        return compute_retained(losses, self._find_never(never), by=by, only=only)

    @property
    def has_controls(self) -> bool:
        """Whether questions on what was to be kept were measured."""
        return bool(find_controls(self.losses).any())

    def list_values(self) -> list[Value]:
        """List what was measured."""
        values: list[Value] = ["krs"]
        if "answered_restored" in self.losses:
            answered = self.losses.dropna(subset=["answered_restored"])
            found = set(answered["direction"])
            if "restore" in found:
                values.append("answers")
            if "corrupt" in found:
                values.append("retained")
        return values

    def damage(self, *, by: Sequence[str] = ("language",)) -> pd.DataFrame:
        """Compute loss(V, U) on the controls over that on the targets.

        See `recovery.damage.compute_damage`.
        """
        return compute_damage(self._select(), by=by)

    def known(self, *, by: Sequence[str] = ("language",)) -> pd.DataFrame:
        """Count per group what V answers rightly: `num_known` of `num_asked`, and loss(V, U).

        See `recovery.question_selection.tabulate_known`.
        """
        return tabulate_known(self._select(), by=by)

    def heatmap(self, *, value: Value = "krs", title: str | None = None, **options: Any) -> Figure:
        """Draw language × layer, one facet per site. See `figures.plot_heatmap`.

        Args:
            value: `krs`, `answers` (the share of V's answers that are back) or `retained` (that V
                still gives with U's parts).
            title: above it.
            options: of `krs`, `answers` or `retained`, such as `only="known"`.

        Raises:
            ValueError: an unknown value, or one that was not measured.
        """
        from interp import figures

        makers = {"krs": self.krs, "answers": self.answers, "retained": self.retained}
        if value not in makers:
            raise ValueError(f"unknown value {value!r}; valid: {', '.join(makers)}")
        return figures.plot_heatmap(makers[value](**options), title=title)

    def lines(self, *, title: str | None = None) -> Figure:
        """Draw KRS over layers with intervals, one facet per language. See `figures.plot_lines`."""
        from interp import figures

        return figures.plot_lines(self.krs(), title=title)

    def explore(
        self,
        answers: pd.DataFrame | Mapping[str, pd.DataFrame] | None = None,
        trajectories: Sequence[Trajectory] | None = None,
        *,
        title: str | None = None,
    ) -> Explorer:
        """Make the heatmap to click through, with the questions behind each cell; Jupyter shows it.

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

        losses = select_questions(self._select())
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
                    if not item.query.control
                ],
            )
        return figures.explore(
            losses, self.krs(), questions=questions, answers=answers, title=title
        )

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Recovery:
        """Read what the sweeps in a run directory measured.

        Raises:
            ValueError: it is no run directory, or holds no losses.
        """
        models = read_manifest(path)["models"].items()
        never = next((name for name, entry in models if entry.get("never")), None)
        return cls(losses=read_losses(path), never=never)

    def _select(self, direction: str = "restore") -> pd.DataFrame:
        """Return the losses of one direction, where both were measured."""
        found = list(dict.fromkeys(self.losses["direction"]))
        if len(found) < 2:
            return self.losses
        return self.losses.loc[(self.losses["direction"] == direction).to_numpy()]

    def _find_never(self, given: str | bool | None) -> str | None:
        if given is not True:
            return given or None
        if self.never is None:
            raise ValueError(
                "never=True needs a sweep that was given a model that never knew: name it"
            )
        return self.never


def _add_excess(table: pd.DataFrame, excess: pd.DataFrame, never: str, model: str) -> pd.DataFrame:
    """Add the columns of an excess to a table of scores, without the model that never knew."""
    cells = ["site", "layer", "first_layer", "last_layer"]
    groups = [
        column
        for column in excess.columns[: list(excess.columns).index("site")]
        if column != "unlearned"
    ]
    name = next(column for column in ("krs", "effect", "recovered", "retained") if column in table)
    renamed = excess.rename(
        columns={
            "unlearned": model,
            "never": f"{name}_never",
            "ci_low": "excess_low",
            "ci_high": "excess_high",
        }
    )
    added = [f"{name}_never", "excess", "excess_low", "excess_high"]
    keys = [model, *groups, *cells]
    kept = table.loc[(table[model] != never).to_numpy()]
    return kept.merge(renamed[[*keys, *added]], on=keys, how="left", sort=False)
