"""Model cards: how a model came about, by which a run is known again."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from types import MappingProxyType
from typing import Any

from interp.data.chat import list_fields
from interp.models.chat import compute_template_hash
from interp.models.language_model import LanguageModel
from interp.unlearning.config import MemitConfig, TrainingConfig
from interp.unlearning.examples import Example
from interp.unlearning.registry import SETS, default_settings

_BOUNDS = ("stops", "until", "guards")


def make_training_card(
    vanilla: LanguageModel,
    examples: Mapping[str, Sequence[Example]],
    config: TrainingConfig,
    about: Mapping[str, object] = MappingProxyType({}),
) -> dict[str, object]:
    """Make the card of a training run. Equal cards mean equal models.

    Args:
        vanilla: the parent.
        examples: by set, what is trained on.
        config: the settings.
        about: further entries, such as where the examples come from.
    """
    settings = asdict(config)
    settings["settings"] = {**default_settings(config.objective), **config.settings}
    if not config.steps_per_language:
        # Cards say so only where it is set: older ones do not know it.
        del settings["steps_per_language"]
    for name in ("top_share", "retain_loss", "schedule", "adam_epsilon"):
        if settings[name] == getattr(TrainingConfig, name):
            del settings[name]
    _describe_bounds(settings)
    data = {name: [list_fields(example) for example in given] for name, given in examples.items()}
    if any(example.messages for given in examples.values() for example in given):
        about = {**about, "chat_template": compute_template_hash(vanilla)[:16]}
    return make_card(vanilla, config.objective, settings, data, about)


def make_memit_card(
    vanilla: LanguageModel,
    data: Mapping[str, Sequence[Mapping[str, object]]],
    config: MemitConfig,
    about: Mapping[str, object] = MappingProxyType({}),
) -> dict[str, object]:
    """Make the card of an edit; see `make_training_card`."""
    settings = asdict(config)
    _describe_bounds(settings)
    return make_card(vanilla, f"memit_{config.objective}", settings, data, about)


def _describe_bounds(settings: dict[str, Any]) -> None:
    """Write bounds as JSON has them, which knows no infinity, and none where there are none."""
    for name in _BOUNDS:
        for bound in settings.get(name, ()):
            for side in ("above", "below"):
                bound[side] = bound[side] if math.isfinite(bound[side]) else None
    for name in ("until", "guards"):
        if not settings[name]:
            del settings[name]


def make_card(
    vanilla: LanguageModel,
    method: str,
    settings: Mapping[str, object],
    data: Mapping[str, Sequence[Mapping[str, object]]],
    about: Mapping[str, object] = MappingProxyType({}),
) -> dict[str, object]:
    """Make a card of how a model comes about: method, settings, parent, a summary of data."""
    card = {
        "method": method,
        "settings": settings,
        "parent": vanilla.name,
        "parent_hash": vanilla.content_hash(),
        "data": {name: _summarise(rows) for name, rows in data.items()},
        **about,
    }
    # As it will be read again: JSON has no tuples.
    return json.loads(json.dumps(card))


def describe_difference(card: Mapping[str, object], wanted: Mapping[str, object]) -> str:
    """Describe the first difference of two cards; "" if they are of the same run.

    What the parent is called does not matter: its hash says whether it is the same.
    """
    for key in dict.fromkeys((*card, *wanted)):
        one, other = card.get(key), wanted.get(key)
        if one != other and key != "parent":
            if key in SETS:
                return f"other {key} examples"
            if isinstance(one, dict) and isinstance(other, dict):
                return describe_difference(one, other)
            if isinstance(one, list) or isinstance(other, list):
                return f"another {key}"
            return f"{key} {one!r} instead of {other!r}"
    return ""


def _summarise(rows: Sequence[Mapping[str, object]]) -> dict[str, object]:
    return {
        "examples": len(rows),
        "languages": dict(Counter(str(row["language"]) for row in rows)),
        "sha256": hashlib.sha256(json.dumps(rows).encode()).hexdigest(),
    }
