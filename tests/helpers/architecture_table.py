"""Prove every architecture, and write the table of the documentation.

    python -m tests.helpers.architecture_table docs/architectures.md

What is written is what `tests/models/test_every_architecture.py` asserts.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch
import transformers
from tqdm.auto import tqdm

import interp
from interp.models import Anatomy, check_anatomy
from tests.helpers.every_architecture import list_architectures, make_tiny
from tests.helpers.tiny_models import mixed_trajectories, trajectories_after, wrap

MIXTURE_SITES = ("router", "router_weights", "mlp_out", "router+attn")
SITES = ("coef", "attn", "coef+attn", "value", "key", "attn_weights", "norms", "resid", "unembed")

# Multipliers that are 1 in the library's default configuration.
CHANGES: dict[str, dict[str, float]] = {
    "GraniteForCausalLM": {
        "logits_scaling": 8.0,
        "residual_multiplier": 0.22,
        "embedding_multiplier": 12.0,
        "attention_multiplier": 0.015,
    },
    "MiniCPM3ForCausalLM": {"dim_model_base": 8},
}

_HEAD = """# Architectures

Made by `python -m tests.helpers.architecture_table docs/architectures.md`, with transformers \
{version}: a tiny random model of every causal language model. `pytest -m slow \
tests/models/test_every_architecture.py` asserts the same. An architecture is opened where its \
[anatomy](own-model.md#which-architectures) is derived and proven on all layers; then the engine \
`layered` has the losses of `full` to {error:.0e} of loss(V, U), at the sites {sites}, \
also where questions share their first tokens.

"""


_MIXTURES = """Of these the sites {sites} are compared too, and single coefficients of routed and \
shared experts. Layers that are dense in them are as in the other table.

""".format(sites=", ".join(f"`{site}`" for site in MIXTURE_SITES))


@dataclass(frozen=True)
class Verdict:
    """What became of a class.

    Attributes:
        outcome: `opened`, `refused`, or `not run` where the library's own code does not run tiny.
        detail: why not.
        parts: of the first layer, where it was opened: the attention's last matrix, the MLP's. Of
            the first mixture of experts, where there is one: the attention's last matrix, what
            holds the down projections, and what `router_weights` are.
        error: the largest difference between the engines, as a share of loss(V, U).
    """

    outcome: str
    detail: str = ""
    parts: tuple[str, ...] = ("", "")
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
    """Sweep windows of three layers over some questions with answers, with an engine.

    Questions that begin alike, with `shared`, are as many as the models have heads.
    """
    answers = mixed_trajectories(3)
    if shared:
        answers = trajectories_after([int(word[1:]) for word in shared.split()], num=4)
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
    sites = (*SITES, *list_mixture_sites(anatomies[0]))
    errors = []
    for shared in ("", "w7 w9 w30 w12 w5 w8"):
        with share_prefixes(required=bool(shared)):
            full, layered = (
                sweep(models, engine, sites, shared=shared)[0] for engine in ("full", "layered")
            )
        assert full.index.equals(layered.index)
        difference = (full["loss_restored"] - layered["loss_restored"]).abs()
        errors.append(np.nanmax((difference / full["loss_unlearned"]).to_numpy()))
    return Verdict("opened", parts=name_parts(anatomies[0]), error=float(max(errors)))


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


def list_mixture_sites(anatomy: Anatomy) -> tuple[str, ...]:
    """List the sites of mixtures, and some units: the first expert's, the last's, the shared's."""
    if not anatomy.has_mixtures:
        return ()
    last = anatomy.num_layers - 1
    mixture = anatomy.layers[last].mixture
    assert mixture is not None
    first_shared = mixture.num_experts * mixture.width
    units = sorted({0, 1, first_shared - 1, mixture.num_units - 1})
    return *MIXTURE_SITES, f"coef@{last}[{','.join(map(str, units))}]"


def name_parts(anatomy: Anatomy) -> tuple[str, ...]:
    """Name the modules of a verdict."""
    for parts in anatomy.layers:
        if (mixture := parts.paths.mixture) is not None:
            values = (mixture.experts, mixture.shared_values)
            return (
                parts.paths.attn_out,
                "`, `".join(path for path in values if path),
                "`, `".join(mixture.routers),
            )
    paths = anatomy.layers[0].paths
    return paths.attn_out, paths.values


def format_row(name: str, verdict: Verdict) -> str:
    """Format a class's row in a table of those that are opened."""
    return f"| {name} | " + " | ".join(f"`{part}`" for part in verdict.parts) + " |"


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
    dense = [name for name, verdict in opened.items() if len(verdict.parts) == 2]
    text += f"## Opened: {len(opened)}\n\n### Dense: {len(dense)}\n\n"
    text += "| class | `attn` is the output of | `value` is |\n|---|---|---|\n"
    text += "".join(f"{format_row(name, opened[name])}\n" for name in dense)
    mixtures = [name for name in opened if name not in dense]
    text += f"\n### Mixtures of experts: {len(mixtures)}\n\n{_MIXTURES}"
    text += "| class | `attn` is the output of | `value` is in | `router_weights` are those of |\n"
    text += "|---|---|---|---|\n"
    text += "".join(f"{format_row(name, opened[name])}\n" for name in mixtures)
    text += f"\n## Refused: {len(refused)}\n\n| class | why |\n|---|---|\n"
    for name, verdict in refused.items():
        reason = re.sub(rf"^{name} (cannot be opened: )?", "", verdict.detail)
        text += f"| {name} | {reason.replace('|', '/')} |\n"
    others = sorted(name for name, v in verdicts.items() if v.outcome == "not run")
    text += f"\n## Not tried: {len(others)}\n\nThey cannot be made tiny or do not run here: "
    text += ", ".join(others) + ".\n"
    file.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    torch.set_num_threads(1)
    write_table(Path(sys.argv[1]))
