"""Prove every architecture, and write the table of the documentation.

    python -m tests.helpers.architecture_table docs/architectures.md

What is written is what `tests/models/test_every_architecture.py` asserts.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from pkgutil import resolve_name
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch
import transformers
from tqdm.auto import tqdm

import interp
from interp.models import check_anatomy
from tests.helpers.every_architecture import list_architectures, make_tiny
from tests.helpers.tiny_models import question, wrap

SITES = ("coef", "attn", "coef+attn", "value", "key", "attn_weights", "norms", "resid", "unembed")

# Multipliers that are 1 in the library's default configuration.
CHANGES: dict[str, dict[str, float]] = {
    "GraniteForCausalLM": {
        "logits_scaling": 8.0,
        "residual_multiplier": 0.22,
        "embedding_multiplier": 12.0,
        "attention_multiplier": 0.015,
    },
}

_HEAD = """# Architectures

Made by `python -m tests.helpers.architecture_table docs/architectures.md`, with transformers \
{version}: a tiny random model of every causal language model. `pytest -m slow \
tests/models/test_every_architecture.py` asserts the same. An architecture is opened where its \
[anatomy](own-model.md#which-architectures) is derived and proven on all layers; then the engine \
`layered` has the losses of `full` to {error:.0e} of loss(V, U), at the sites {sites}, \
also where questions share their first tokens.

"""


@dataclass(frozen=True)
class Verdict:
    """What became of a class.

    Attributes:
        outcome: `opened`, `refused`, or `not run` where the library's own code does not run tiny.
        detail: why not.
        parts: of the first layer, where it was opened: the attention's last matrix, the MLP's.
        error: the largest difference between the engines, as a share of loss(V, U).
    """

    outcome: str
    detail: str = ""
    parts: tuple[str, str] = ("", "")
    error: float = 0.0


def make_pair(name: str) -> list[interp.LanguageModel]:
    """Make two models of a class that share nothing but their shapes."""
    changes = CHANGES.get(name, {})
    return [wrap(make_tiny(name, seed=seed, **changes), name=f"M{seed}") for seed in (0, 1)]


def sweep(
    models: list[interp.LanguageModel],
    engine: str,
    sites: tuple[str, ...] = SITES,
    *,
    shared: str = "",
) -> tuple[pd.DataFrame, list[interp.Trajectory]]:
    """Sweep windows of three layers over some questions, with an engine.

    Questions that begin alike, with `shared`, are as many as the models have heads.
    """
    questions = [question(number, words=3 + number) for number in range(4 if shared else 3)]
    questions = [replace(each, prompt=f"{shared} {each.prompt}".strip()) for each in questions]
    answers = interp.trajectories(models[0], questions, num_tokens=4, progress=False)
    recovery = interp.sweep(
        *models, answers, sites=list(sites), window=3, engine=engine, progress=False
    )
    return recovery.losses.set_index(["site", "layer", "query_id"]).sort_index(), answers


def prove(name: str) -> Verdict:
    """Open a class, prove it, and compare the two engines.

    Raises:
        Exception: it is opened, and then something fails.
    """
    try:
        models = make_pair(name)
    except Exception as error:  # noqa: BLE001
        return Verdict("not run", f"{type(error).__name__}: {error}".splitlines()[0])
    try:
        anatomies = [model.anatomy for model in models]
    except ValueError as error:
        return Verdict("refused", str(error))
    check_anatomy(models[0].model, anatomies[0])
    errors = []
    for shared in ("", "w7 w9 w30 w12 w5 w8"):
        with share_prefixes(required=bool(shared)):
            full, layered = (
                sweep(models, engine, shared=shared)[0] for engine in ("full", "layered")
            )
        assert full.index.equals(layered.index)
        difference = (full["loss_restored"] - layered["loss_restored"]).abs()
        errors.append(np.nanmax((difference / full["loss_unlearned"]).to_numpy()))
    paths = anatomies[0].layers[0].paths
    return Verdict("opened", parts=(paths.attn_out, paths.values), error=float(max(errors)))


@contextmanager
def share_prefixes(*, required: bool) -> Iterator[None]:
    """Let the engine `layered` run what questions begin with once, however short it is."""
    layered = "interp.recovery.engines.layered"
    make = resolve_name(f"{layered}.upward_pass:make_prefix_batch")
    with (
        patch(f"{layered}.row_budget.SAVED_TOKENS", 1),
        patch(f"{layered}.row_budget.GROUP_OVERHEAD", 0),
        patch(f"{layered}.upward_pass.make_prefix_batch", wraps=make) as shared,
    ):
        yield
    assert shared.called or not required


def write_table(file: Path) -> None:
    """Write the page."""
    verdicts = {name: prove(name) for name in tqdm(sorted(list_architectures()))}
    opened = {name: v for name, v in verdicts.items() if v.outcome == "opened"}
    refused = {name: v for name, v in verdicts.items() if v.outcome == "refused"}
    text = _HEAD.format(
        version=transformers.__version__,
        error=max(verdict.error for verdict in opened.values()),
        sites=", ".join(f"`{site}`" for site in SITES),
    )
    text += f"## Opened: {len(opened)}\n\n| class | `attn` is the output of | `value` is |\n"
    text += "|---|---|---|\n"
    for name, verdict in opened.items():
        text += f"| {name} | `{verdict.parts[0]}` | `{verdict.parts[1]}` |\n"
    text += f"\n## Refused: {len(refused)}\n\n| class | why |\n|---|---|\n"
    for name, verdict in refused.items():
        reason = re.sub(rf"^{name} (cannot be opened: )?", "", verdict.detail).partition(
            ": its coef"
        )
        text += f"| {name} | {reason[0].replace('|', '/')} |\n"
    others = sorted(name for name, v in verdicts.items() if v.outcome == "not run")
    text += f"\n## Not tried: {len(others)}\n\nThey cannot be made tiny or do not run here: "
    text += ", ".join(others) + ".\n"
    file.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    torch.set_num_threads(1)
    write_table(Path(sys.argv[1]))
