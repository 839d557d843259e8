"""Results of a sweep: losses, and the tables and figures made of them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from interp.data.trajectories import Trajectory
from interp.recovery.krs import compute_krs
from interp.results import read_losses

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from interp.figures import Explorer


@dataclass(frozen=True, kw_only=True, eq=False)
class Recovery:
    """Results of a sweep.

    Attributes:
        losses: one row per (unlearned model, language, question, site, layer); the columns are
            those of `recovery.sweep.COLUMNS`.
    """

    losses: pd.DataFrame

    def krs(self, *, variant: str | None = None, by: Sequence[str] = ("language",)) -> pd.DataFrame:
        """Compute the knowledge recovery score per cell, with bootstrap intervals.

        See `recovery.krs.compute_krs`.
        """
        return compute_krs(self.losses, variant=variant, by=by)

    def heatmap(self, *, title: str | None = None) -> Figure:
        """Draw language × layer, one facet per site. See `figures.plot_heatmap`."""
        from interp import figures

        return figures.plot_heatmap(self.krs(), title=title)

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
        """Read what the sweeps in a run directory measured.

        Raises:
            ValueError: it is no run directory, or holds no losses.
        """
        return cls(losses=read_losses(path))
