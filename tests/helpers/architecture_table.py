"""Prove every architecture, and write the table of the documentation.

    python -m tests.helpers.architecture_table docs/architectures.md [verdicts.jsonl]

What is written is what `tests/models/test_every_architecture.py` asserts. The verdicts are kept in
the second file, if one is named, so that a run that was stopped goes on where it was.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from pkgutil import resolve_name
from unittest.mock import patch

import pandas as pd
import torch
import transformers
from tqdm.auto import tqdm

import interp
from interp.models import Anatomy, check_anatomy
from interp.recovery import can_share_prefix
from tests.helpers.engine_comparison import (
    IN_EXPERTS,
    OTHERS,
    Comparison,
    compare,
    measure_difference,
    sweep,
)
from tests.helpers.every_architecture import list_architectures, make_tiny
from tests.helpers.tiny_models import mixed_trajectories, trajectories_after, wrap

MIXTURE_SITES = ("router", "router_weights", "router+attn")
SITES = (
    *("coef", "attn", "coef+attn", "value"),
    *("key", "attn_weights", "norms", "head", "mlp_out", "resid", "unembed"),
)

# Multipliers that are 1 in the library's default configuration.
_GRANITE = {
    "logits_scaling": 8.0,
    "residual_multiplier": 0.22,
    "embedding_multiplier": 12.0,
    "attention_multiplier": 0.015,
}
CHANGES: dict[str, dict[str, float]] = {
    "GraniteForCausalLM": _GRANITE,
    "GraniteMoeHybridForCausalLM": _GRANITE,
    "FalconH1ForCausalLM": {
        "attention_in_multiplier": 1.5,
        "attention_out_multiplier": 0.9,
        "embedding_multiplier": 5.0,
        "key_multiplier": 0.4,
        "lm_head_multiplier": 0.04,
        "ssm_in_multiplier": 1.25,
        "ssm_out_multiplier": 0.24,
    },
    "MiniCPM3ForCausalLM": {"dim_model_base": 8},
}

_HEAD = """# Architectures

Made by `python -m tests.helpers.architecture_table docs/architectures.md`, with transformers \
{version}: a tiny random model of every causal language model. `pytest -m slow \
tests/models/test_every_architecture.py` asserts the same. An architecture is opened where its \
[anatomy](own-model.md#which-architectures) is derived and proven on all layers. Then the \
[engines](engines.md) are compared with `full`, at the sites {sites}: a cell is the largest \
difference of a loss as a share of loss(V, U), and the sites that the engine refuses; – where the \
library under it does not run this class. `layered` is compared where questions share their first \
tokens, too.

"""


_MIXTURES = """Of these the sites {sites} are compared too, and single coefficients of routed and \
shared experts. Layers that are dense in them are as in the other table. The engines over other \
libraries refuse the sites inside the experts ({inside}), and are compared at the others.

""".format(
    sites=", ".join(f"`{site}`" for site in MIXTURE_SITES),
    inside=", ".join(f"`{site}`" for site in IN_EXPERTS),
)


_HYBRIDS = """In these not only attention mixes tokens. A layer's kind is its mixer's class, \
without the model's name; two that stand side by side are joined by +, and `attn` is both their \
outputs. `layered` runs whole questions in them, since layers keep more of a prefix than keys and \
values.

"""


@dataclass(frozen=True)
class Verdict:
    """What became of a class.

    Attributes:
        outcome: `opened`, `refused`, or `not run` where the library's own code does not run tiny.
        detail: why not.
        parts: of the first layer, where it was opened: the attention's last matrix, the MLP's. Of
            the first mixture of experts, where there is one: the attention's last matrix, what
            holds the down projections, and what `router_weights` are.
        engines: what became of each engine.
        kinds: what mixes tokens in each layer.
        shares: whether `layered` runs once what questions begin with.
    """

    outcome: str
    detail: str = ""
    parts: tuple[str, ...] = ("", "")
    engines: dict[str, Comparison] = field(default_factory=dict)
    kinds: tuple[str, ...] = ()
    shares: bool = True

    @property
    def is_hybrid(self) -> bool:
        """Return whether something else than attention mixes tokens in some layers."""
        return any(kind != "attention" for kind in self.kinds)

    @classmethod
    def read(cls, line: str) -> tuple[str, Verdict]:
        """Read a verdict, and of which class it is."""
        name, values = json.loads(line)
        engines = {engine: Comparison(**of) for engine, of in values.pop("engines").items()}
        values |= {key: tuple(values[key]) for key in ("parts", "kinds")}
        return name, cls(**values, engines=engines)


def make_pair(name: str) -> list[interp.LanguageModel]:
    """Make two models of a class that share nothing but their shapes."""
    changes = CHANGES.get(name, {})
    return [wrap(make_tiny(name, seed=seed, **changes), name=f"M{seed}") for seed in (0, 1)]


def prove(name: str) -> Verdict:
    """Open a class, prove it, and compare the engines.

    Raises:
        Exception: it is opened, and then something fails.
    """
    try:
        models = make_pair(name)
    except Exception as error:  # noqa: BLE001
        said = " ".join(f"{type(error).__name__}: {error}".split())
        return Verdict("not run", said if len(said) <= 200 else f"{said[:199]}…")
    try:
        anatomies = [model.anatomy for model in models]
    except ValueError as error:
        return Verdict("refused", str(error))
    check_anatomy(models[0].model, anatomies[0])
    sites = (*SITES, *list_mixture_sites(anatomies[0]))
    if len(anatomies[0].attention_layers) < anatomies[0].num_layers:
        sites = tuple(site for site in sites if site != "head")
    full, errors, shares = pd.DataFrame(), [], can_share_prefix(models[0].model)
    for answers in (trajectories_after([7, 9, 30, 12, 5, 8]), mixed_trajectories(3)):
        # As many questions that begin alike as the models have heads.
        with share_prefixes(required=len(answers) == 4 and shares):
            full, layered = (
                sweep(models, engine, sites, answers) for engine in ("full", "layered")
            )
        errors.append(measure_difference(full, layered))
    engines = {"layered": Comparison(max(errors))}
    engines |= {engine: compare(models, engine, sites, full) for engine in OTHERS}
    return Verdict(
        "opened",
        parts=name_parts(anatomies[0]),
        engines=engines,
        kinds=tuple(parts.kind for parts in anatomies[0].layers),
        shares=shares,
    )


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
    outs = [mixer.out for parts in anatomy.layers for mixer in parts.paths.mixers]
    attn_out = "`, `".join(dict.fromkeys(outs))
    for parts in anatomy.layers:
        if (mixture := parts.paths.mixture) is not None:
            values = (mixture.experts, mixture.shared_values)
            return (
                attn_out,
                "`, `".join(path for path in values if path),
                "`, `".join(mixture.routers),
            )
    paths = anatomy.layers[0].paths
    return attn_out, paths.values


def format_row(name: str, verdict: Verdict) -> str:
    """Format a class's row in a table of those that are opened."""
    cells = [f"`{part}`" for part in verdict.parts] + [str(of) for of in verdict.engines.values()]
    return f"| {name} | " + " | ".join(cells) + " |"


def format_hybrid(name: str, verdict: Verdict) -> str:
    """Format a class's row in the table of hybrids."""
    return f"| {name} | {', '.join(verdict.kinds)} |"


def hide_errors(rows: str) -> str:
    """Put a sign in the place of the engines' differences, which are others on every machine."""
    return re.sub(r"(?<=\| )(\de-\d\d|0)(?=[ ,])", "#", rows)


def prove_all(file: Path | None) -> dict[str, Verdict]:
    """Prove every class, or read what became of it."""
    verdicts: dict[str, Verdict] = {}
    if file is not None and file.exists():
        verdicts = dict(map(Verdict.read, file.read_text(encoding="utf-8").splitlines()))
    for name in tqdm(sorted(list_architectures())):
        if name in verdicts:
            continue
        verdicts[name] = prove(name)
        if file is not None:
            with file.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps([name, asdict(verdicts[name])]) + "\n")
    return dict(sorted(verdicts.items()))


def write_table(file: Path, verdicts: dict[str, Verdict]) -> None:
    """Write the page."""
    opened = {name: v for name, v in verdicts.items() if v.outcome == "opened"}
    text = _HEAD.format(
        version=transformers.__version__, sites=", ".join(f"`{site}`" for site in SITES)
    )
    dense = [name for name, verdict in opened.items() if len(verdict.parts) == 2]
    engines = " | ".join(f"`{engine}`" for engine in ("layered", *OTHERS))
    text += f"## Opened: {len(opened)}\n\n### Dense: {len(dense)}\n\n"
    text += f"| class | `attn` is the output of | `value` is | {engines} |\n|{'---|' * 6}\n"
    text += "".join(f"{format_row(name, opened[name])}\n" for name in dense)
    mixtures = [name for name in opened if name not in dense]
    text += f"\n### Mixtures of experts: {len(mixtures)}\n\n{_MIXTURES}"
    text += "| class | `attn` is the output of | `value` is in | `router_weights` are those of | "
    text += f"{engines} |\n|{'---|' * 7}\n"
    text += "".join(f"{format_row(name, opened[name])}\n" for name in mixtures)
    hybrids = {name: verdict for name, verdict in opened.items() if verdict.is_hybrid}
    text += f"\n### Hybrids: {len(hybrids)} of them\n\n{_HYBRIDS}"
    text += "| class | the tiny model's layers |\n|---|---|\n"
    text += "".join(f"{format_hybrid(name, verdict)}\n" for name, verdict in hybrids.items())
    text += _list_refusals_of_engines(opened)
    refused = {name: v for name, v in verdicts.items() if v.outcome == "refused"}
    text += f"\n## Refused: {len(refused)}\n\n| class | why |\n|---|---|\n"
    for name, verdict in refused.items():
        reason = re.sub(rf"^{name} (cannot be opened: )?", "", verdict.detail)
        text += f"| {name} | {reason.replace('|', '/')} |\n"
    others = {name: v.detail for name, v in verdicts.items() if v.outcome == "not run"}
    text += f"\n## Not tried: {len(others)}\n\nThey cannot be made tiny or do not run here; what "
    text += "the library says:\n\n| class | error |\n|---|---|\n"
    text += "".join(f"| {name} | {error.replace('|', '/')} |\n" for name, error in others.items())
    file.write_text(text, encoding="utf-8")


def _list_refusals_of_engines(opened: dict[str, Verdict]) -> str:
    """List the sentences with which an engine refuses a class, but that it is unknown to it."""
    lines = []
    for name, verdict in opened.items():
        for of in verdict.engines.values():
            sentence = of.refused.get("", "Unsupported architecture")
            if "Unsupported architecture" not in sentence:
                lines.append(f"- {name}: {sentence}\n")
    return "\nWhere – is not that TransformerLens does not know the class:\n\n" * bool(
        lines
    ) + "".join(lines)


if __name__ == "__main__":
    torch.set_num_threads(1)
    table, *kept = map(Path, sys.argv[1:])
    write_table(table, prove_all(kept[0] if kept else None))
