"""What Hong et al. 2024 found, looked for in the losses of sweeps over methods and languages.

Methods that train are looked at together, as in the paper: of each the KRS, the ratio of means over
the questions of all concepts, then the mean over methods. MEMIT edits value vectors in closed form
and is told apart. All intervals are over questions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from interp.behaviour.measure import Measure, undefined
from interp.recovery.krs import krs_table
from interp.study.contrasts import contrast
from interp.study.dissect.signatures import OWN, SIGNATURES, SOURCE
from interp.study.rows import where
from interp.study.study import Finding

MEAN = "mean of methods that train"

_CELL = ["language", "concept", "query_id", "site", "layer", "first_layer", "last_layer"]
_SETTINGS = ["vanilla", "variant", "direction", "distance", "positions"]
_LOSSES = ["loss_unlearned", "loss_restored", "loss_self"]


def is_trained(method: str) -> bool:
    """Whether a method trains, which MEMIT does not."""
    return not method.startswith("memit")


def trained(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of methods that train."""
    return where(table, method={name for name in table["method"] if is_trained(name)})


def are_both_there(table: pd.DataFrame) -> bool:
    """Whether a table has methods that train and MEMIT."""
    return len({is_trained(method) for method in table["method"]}) == 2


def mean_krs(losses: pd.DataFrame) -> pd.DataFrame:
    """KRS per language, site and layer, averaged over the methods that train.

    Losses are divided by their method's mean loss(V, U) in the language; the ratio of means over
    methods and questions is then the mean over methods of Hong's ratio of means.

    Args:
        losses: of a sweep, with the column `method`.

    Returns:
        See `krs_table`; its intervals are over questions.

    Raises:
        ValueError: no method trains.
    """
    rows = trained(losses)
    if rows.empty:
        raise ValueError("there are no losses of a method that trains")
    of_method: Any = rows.groupby(["method", "language"])
    unit = of_method["loss_unlearned"].transform("mean")
    scaled = rows.assign(**{name: rows[name] / unit for name in _LOSSES})
    kept = dict.fromkeys(_LOSSES, "mean") | dict.fromkeys([*_SETTINGS, "reason"], "first")
    cells: Any = scaled.groupby(_CELL, sort=False, dropna=False)
    return krs_table(cells.agg(kept).reset_index().assign(unlearned=MEAN))


def method_krs(losses: pd.DataFrame) -> pd.DataFrame:
    """KRS per method, language, site and layer, over the questions of all concepts."""
    return krs_table(losses.assign(unlearned=""), by=("method", "language"))


def recovery_findings(losses: pd.DataFrame, language: str, *, note: str = "") -> list[Finding]:
    """Every signature of the KRS curves in one query language.

    Args:
        losses: of a sweep, with the column `method`.
        language: BCP-47 code.
        note: what differs from the paper's setting.
    """
    rows = where(trained(losses), language=language)
    there = set(rows["site"])
    found = []
    for signature in SIGNATURES:
        lacking = [site for site in signature.sites if site not in there]
        measure = undefined(f"{', '.join(lacking)} not swept with a method that trains")
        if not lacking:
            used = where(rows, site=signature.sites)
            measure = contrast(
                used,
                lambda curves, s=signature: s.statistic(_over_methods(curves)),
                by=["method"],
            )
        found.append(
            Finding(
                signature=signature.text,
                source=signature.source,
                quantity=signature.quantity,
                measure=measure,
                note="; ".join(filter(None, (signature.note, note))),
            )
        )
    return found


def language_findings(losses: pd.DataFrame) -> list[Finding]:
    """Whether the order of sites is the same in every query language, and that of MEMIT not."""
    rows = trained(losses)
    languages = list(dict.fromkeys(rows["language"]))
    note = f"the language in which it is least so, of {', '.join(languages)}"
    found = []
    for low, high in (("value", "attn"), ("coef", "coef+attn")):
        used = where(rows, site=[low, high])

        def least(curves: Mapping[tuple, np.ndarray], low: str = low, high: str = high) -> float:
            by_language = [
                _over_methods({key[1:]: curve for key, curve in curves.items() if key[0] == code})
                for code in languages
            ]
            return float(min((krs[high] - krs[low]).mean() for krs in by_language))

        measure = undefined(f"{low} or {high} not swept with a method that trains")
        if {low, high} <= set(used["site"]):
            measure = contrast(used, least, by=["language", "method"])
        found.append(
            Finding(
                signature=f"KRS({low}) < KRS({high}) in every query language",
                source=OWN,
                quantity=f"the lowest mean over layers of KRS({high}) − KRS({low})",
                measure=measure,
                note=note,
            )
        )
    used = where(losses, site="value")
    measure = undefined("value not swept with both kinds of methods")
    if are_both_there(used):
        measure = contrast(used, _edited_above_trained, by=["method"])
    control = Finding(
        signature="What MEMIT wrote into value vectors is found there",
        source=f"{OWN}: a control of the measurement",
        quantity="the highest KRS(value) of MEMIT − that of methods that train",
        measure=measure,
        note="means over methods, all query languages",
    )
    return [*found, control]


def by_language(findings: Mapping[str, Sequence[Finding]]) -> pd.DataFrame:
    """Findings of every query language: a row each, with its verdict and interval."""
    return pd.DataFrame(
        [
            {"language": code, "signature": item.signature, "verdict": item.verdict}
            | {"quantity": item.quantity, **vars(item.measure)}
            for code, of_language in findings.items()
            for item in of_language
        ]
    )


def drift_findings(drifts: pd.DataFrame) -> list[Finding]:
    """Whether methods that train leave the unembedding and the norms where they were.

    Args:
        drifts: rows of `interp.behaviour.drift.drift` with the columns `method` and `concept`.
    """
    found = []
    for what, groups in (
        ("the unembedding", ("unembed",)),
        ("the norms", ("norms", "final_norm")),
    ):
        rows = where(trained(drifts), group=groups)
        models = len({*zip(rows["method"], rows["concept"], strict=True)})
        measure = undefined("no model was compared")
        if len(rows) and not any(rows["relative_change"].tolist()):
            measure = undefined("not among the weights that were trained")
        elif len(rows):
            value = min(rows["cosine"].tolist()) - 0.999
            measure = Measure(value=value, ci_low=value, ci_high=value, n=models)
        found.append(
            Finding(
                signature=f"Training hardly moves {what}",
                source=SOURCE,
                quantity=f"the lowest cosine of {what}, U against V − 0.999",
                measure=measure,
                note="of all layers and models, n; weights are no sample, there is no interval",
            )
        )
    return found


def _over_methods(curves: Mapping[Sequence[str], np.ndarray]) -> dict[str, np.ndarray]:
    """The mean over methods of the curves by (method, site)."""
    by_site: dict[str, list[np.ndarray]] = {}
    for (_, site), curve in curves.items():
        by_site.setdefault(site, []).append(curve)
    return {site: np.mean(several, axis=0) for site, several in by_site.items()}


def _edited_above_trained(curves: Mapping[Sequence[str], np.ndarray]) -> float:
    best = {method: curve.max() for (method, _), curve in curves.items()}
    of_trained = [value for method, value in best.items() if is_trained(method)]
    of_edited = [value for method, value in best.items() if not is_trained(method)]
    return float(np.mean(of_edited) - np.mean(of_trained))
