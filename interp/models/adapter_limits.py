"""Adapters that lie: what would take memory or time without end is refused before it does.

What peft would make of a configuration is made without memory first, and compared with the shapes
in the adapter's file. Patterns of module names are tried in a process of their own, as a pattern
can take longer than any run and cannot be interrupted.
"""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import PreTrainedModel

from interp.models.packed_weights import alias_packed_weight, is_packed
from interp.models.pairs import copy_model

if TYPE_CHECKING:
    from peft import PeftConfig

MAX_SECONDS = 10.0
"""Time for the patterns of an adapter; usual ones take milliseconds."""

MAX_REPEATS = 1_000
"""Times that anything is repeated at most; the default of peft is 10 at most."""

REPEATS = (
    "boft_n_butterfly_factor",
    "depth",
    "encoder_num_layers",
    "gralora_k",
    "loftq_iter",
    "n_skills",
    "n_splits",
    "num_B",
    "num_cayley_neumann_terms",
    "num_subspaces",
    "psoft_svd_lowrank_niter",
)
"""Settings that say how often something is made or done."""

NO_SIZES = re.compile(r"seed|prng|step|tinit|tfinal|warmup|interval|alpha|lambda|scaling|_ids?$")
"""Settings that may be any whole number: nothing is made of that size."""

FORMS = (r"%s", r"(.*\.)?(%s)$", r"(^|.*\.)%s($|\..*)", r"(?:^|.*?\.)%s\.(\d+)\.")
"""What peft makes of the patterns in its settings."""

PATTERNS = ("target_modules", "exclude_modules", "feedforward_modules", "layers_pattern")
"""Settings that are patterns where they are text, and names where they are lists."""

TRY_PATTERNS = """
import json, re, sys
given = json.load(sys.stdin)
for pattern in given["patterns"]:
    try:
        for form in given["forms"]:
            compiled = re.compile(form % pattern)
            for name in given["names"]:
                compiled.match(name), compiled.fullmatch(name)
    except (re.error, OverflowError, RecursionError, ValueError) as error:
        sys.exit(json.dumps([pattern, str(error)]))
    print(".", flush=True)
"""
"""Matching as peft does it, for each pattern with all names."""


def check_settings(
    config: PeftConfig, model: PreTrainedModel, stored: Mapping[str, tuple[int, ...]] | None
) -> None:
    """Refuse settings of an adapter with which peft would work without end on this base.

    Args:
        config: the configuration.
        model: the base; left untouched.
        stored: shapes of the adapter's weights by name, None if they are not known.

    Raises:
        ValueError: a size is beyond those of all weights, something is repeated too often, more is
            listed than the base has, or a pattern is none or takes too long.
    """
    shapes = [tuple(parameter.shape) for parameter in model.parameters()]
    largest = max(MAX_REPEATS, *(max(shape, default=0) for shape in shapes))
    largest = max([largest, *(max(shape, default=0) for shape in (stored or {}).values())])
    names = [name for name, _ in model.named_modules()]
    names += [name for name, _ in model.named_parameters()]
    rows = getattr(model.get_input_embeddings(), "num_embeddings", 0)
    most = len(names) + rows
    for key, value in _walk(asdict(config)):
        if isinstance(value, int) and value > largest and not NO_SIZES.search(key):
            raise ValueError(
                f"{key} is {str(value)[:40]}, and nothing in the base or the adapter's file is "
                f"larger than {largest}"
            )
        if isinstance(value, list | dict | set | tuple) and len(value) > most:
            raise ValueError(f"{key} has {len(value)} entries, and the base {len(names)} parts")
        repeats = re.fullmatch(r"pissa_niter_(.*)", value) if isinstance(value, str) else None
        repeats = repeats.group(1) if repeats else value if key in REPEATS else 0
        if repeats is not None and not _is_small(repeats):
            raise ValueError(
                f"{key} is {str(value)[:40]!r}, and nothing is repeated more than "
                f"{MAX_REPEATS} times"
            )
    patterns = {value for value in _list_patterns(config) if not re.fullmatch(r"[\w.-]*", value)}
    if patterns:
        _try_patterns(sorted(patterns), names)


def _is_small(repeats: Any) -> bool:
    try:
        return -1 <= float(repeats) <= MAX_REPEATS
    except (TypeError, ValueError):
        return False


def _walk(settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        yield key, value
        if isinstance(value, dict):
            yield from _walk({str(inner): held for inner, held in value.items()})


def _list_patterns(config: PeftConfig) -> Iterator[str]:
    """Yield what peft matches as patterns."""
    for key, value in asdict(config).items():
        if key in PATTERNS and isinstance(value, str):
            yield value
        elif key in ("layers_pattern", "modules_to_save") and isinstance(value, list | set | tuple):
            yield from (entry for entry in value if isinstance(entry, str))
        elif key.endswith("_pattern") and isinstance(value, dict):
            yield from map(str, value)


def _try_patterns(patterns: list[str], names: list[str]) -> None:
    given = json.dumps({"patterns": patterns, "names": names, "forms": FORMS})
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", TRY_PATTERNS],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )
    try:
        _, errors = process.communicate(given, timeout=MAX_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        done, _ = process.communicate()
        pattern = patterns[min(done.count("."), len(patterns) - 1)]
        raise ValueError(
            f"the pattern {pattern[:80]!r} of module names takes more than {MAX_SECONDS:g} s: "
            "name the modules in a list, without repeats of repeats"
        ) from None
    if process.returncode:
        pattern, reason = json.loads(errors.strip().splitlines()[-1])
        raise ValueError(f"{pattern[:80]!r} is no pattern of module names: {reason}")


def check_shapes(
    config: PeftConfig, model: PreTrainedModel, stored: Mapping[str, tuple[int, ...]] | None
) -> None:
    """Refuse an adapter whose configuration announces other weights than its file holds.

    Args:
        config: the configuration.
        model: the base; left untouched.
        stored: shapes in the file by name, None if they are not known.

    Raises:
        ValueError: weights have other shapes, or there are far more of them.
    """
    announced = None if stored is None else _announce_shapes(config, model)
    if stored is None or announced is None:
        return
    for name, shape in announced.items():
        if stored.get(name, shape) != shape:
            raise ValueError(f"{name} is {stored[name]} instead of {shape}")
    sizes = [sum(torch.Size(s).numel() for s in shapes.values()) for shapes in (announced, stored)]
    if sizes[0] > 4 * sizes[1] + (1 << 16):
        raise ValueError(f"its configuration announces {sizes[0]} weights, and it holds {sizes[1]}")


def _announce_shapes(
    config: PeftConfig, model: PreTrainedModel
) -> dict[str, tuple[int, ...]] | None:
    """Return the shapes that peft would make, by name; None where it must see the weights."""
    from peft import PeftModel, get_peft_model_state_dict

    memo: dict[int, Any] = {
        id(tensor): torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
        for tensor in model.buffers()
    } | {
        id(tensor): nn.Parameter(
            torch.empty(tensor.shape, dtype=tensor.dtype, device="meta"), requires_grad=False
        )
        for tensor in model.parameters()
    }
    for module in filter(is_packed, model.modules()):
        weight: Any = module._parameters["weight"]
        memo[id(weight)] = alias_packed_weight(weight, {}, data=memo[id(weight)].data)
    skeleton = copy_model(model, memo)
    try:
        with warnings.catch_warnings(), torch.device("meta"), torch.random.fork_rng(devices=()):
            warnings.simplefilter("ignore")
            adapted: Any = PeftModel(skeleton, copy.deepcopy(config), low_cpu_mem_usage=True)
            # Whether embeddings belong to it would be asked of the network.
            state = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    except NotImplementedError:
        return None
    except RuntimeError as error:
        if "meta" in str(error).lower():
            return None
        raise
    return {name: tuple(tensor.shape) for name, tensor in state.items()}
