"""Unlearning by MEMIT: texts become edits, C is measured, and the strength obeys the guards.

δ is optimised once. Where there are guards, it is added whole, then by four fifths of it and so on,
until they hold: what is edited less forgets less, and costs less.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from interp.data.chat import list_fields
from interp.data.corpus import Text
from interp.data.samples import sample_tokens
from interp.models.gguf import get_cache_directory
from interp.models.language_model import LanguageModel
from interp.models.pairs import copy_with_shared_tensors
from interp.unlearning.config import MemitConfig
from interp.unlearning.examples import make_examples, tokenize
from interp.unlearning.goal import check_before, check_goal, find_broken
from interp.unlearning.memit.layer_stats import measure_second_moments
from interp.unlearning.memit.memit_main import edit_at_strengths
from interp.unlearning.memit.requests import Edit, check_edits
from interp.unlearning.model_card import make_memit_card
from interp.unlearning.resume import RunStore, Trained
from interp.unlearning.training import Evaluate

_SHARES = (1.0, 0.8, 0.6, 0.4, 0.2)
"""Of the strength, one after the other, until the guards hold."""


def unlearn_by_memit(
    vanilla: LanguageModel,
    forget: Sequence[Text],
    retain: Sequence[Text],
    config: MemitConfig,
    *,
    evaluate: Evaluate | None = None,
    confirm: Evaluate | None = None,
    about: Mapping[str, object] = MappingProxyType({}),
    out: str | Path | None = None,
    progress: bool = True,
) -> Trained:
    """Edit facts out of a model. See `interp.unlearning.methods.unlearn`.

    Returns:
        The model of the largest strength at which the guards hold, V if they never do. Its history
        has a row per strength that was tried: `step`, from 0, `strength`, means over the edits, and
        what was evaluated.

    Raises:
        ValueError: see `memit`; a guard on what `evaluate` does not give, or that V breaks.
    """
    check_goal(config)
    edits = build_edits(forget)
    layers, _ = check_edits(vanilla, edits, config)
    store = None
    if out is not None:
        data = {
            "forget": [list_fields(text) for text in forget],
            "retain": [list_fields(text) for text in retain],
        }
        store = RunStore(Path(out), make_memit_card(vanilla, data, config, about))
        if finished := store.load_finished(vanilla):
            return finished
    edit = partial(
        edit_at_strengths,
        vanilla,
        edits,
        measure_own_moments(vanilla, layers, config, progress=progress),
        config,
        retained=measure_retained_moments(vanilla, layers, retain, progress=progress),
        progress=progress,
    )
    name = f"{len(edits)} facts edited"
    if evaluate is None or not config.guards:
        ((_, model, table),) = edit(strengths=[config.strength])
        row = {"step": 0.0, **_average(table)}
        found = Trained(model=model, history=[row], reason=name, edits=table.to_dict("records"))
    else:
        strengths = [share * config.strength for share in _SHARES]
        found = _edit_while_guards_hold(
            vanilla, config, edit(strengths=strengths), evaluate, confirm, name
        )
    if store is not None:
        store.finish(found)
    return found


def _edit_while_guards_hold(
    vanilla: LanguageModel,
    config: MemitConfig,
    edited: Iterable[tuple[float, LanguageModel, pd.DataFrame]],
    evaluate: Evaluate,
    confirm: Evaluate | None,
    name: str,
) -> Trained:
    """Take the first, the largest strength at which the guards hold; V where they never do."""
    before = evaluate(vanilla)
    check_before(config, before)
    history: list[dict[str, float]] = []
    why = ""
    for strength, model, table in edited:
        metrics = dict(evaluate(model))
        missed = find_broken((*config.until, *config.guards), metrics, before)
        if confirm is not None and not missed:
            metrics |= confirm(model)
        row = {"step": float(len(history)), "strength": strength, **_average(table), **metrics}
        history.append(row)
        if broken := find_broken(config.guards, metrics, before):
            metric, bound = next(iter(broken.items()))
            why = why or f"at {strength:g} {metric} was {metrics[metric]:.3g} (guard {bound})"
            continue
        reason = f"{name} at strength {strength:g}"
        if config.until and not find_broken(config.until, metrics, before):
            reason += ": the goal is reached"
        return Trained(
            model=model,
            history=history,
            reason="; ".join(filter(None, (reason, why))),
            edits=table.to_dict("records"),
        )
    copied = copy_with_shared_tensors(vanilla.model, set()).eval()
    return Trained(
        model=LanguageModel(copied, vanilla.tokenizer, name=f"{vanilla.name} unlearned"),
        history=history,
        reason=f"nothing edited, since at no strength all guards held: {why}",
    )


def _average(table: pd.DataFrame) -> dict[str, float]:
    return {str(name): float(v) for name, v in table.mean(numeric_only=True).items()}


def build_edits(texts: Iterable[Text]) -> list[Edit]:
    """Build MEMIT's edits: each fact in each language, with the prompts that mention the subject.

    Where an answer says something before the object ("The capital is called Paris."), the fact is
    asked for at both places: behind the prompt, and before the object.

    Raises:
        ValueError: a fact that no prompt mentions the subject of.
    """
    groups: dict[tuple[str, str], list[Text]] = {}
    for text in texts:
        if text.messages:
            raise ValueError(
                f"{text.id} in {text.language!r} is a chat: MEMIT edits what plain prompts ask for"
            )
        groups.setdefault((text.id, text.language), []).append(text)
    edits = []
    for (name, code), group in groups.items():
        usable = [
            text for text in group if text.mention and text.object and text.object in text.answer
        ]
        if not usable:
            raise ValueError(
                f"{name} in {code!r} has no prompt that mentions its subject and whose answer "
                "contains its object: MEMIT needs one (the fields prompt, subject, mention and "
                "object)"
            )
        prompts = {
            prompt: (start := text.prompt.rindex(text.mention), start + len(text.mention))
            for text in usable
            for prompt in _split_at_object(text)
        }
        first = usable[0]
        space = first.answer[: len(first.answer) - len(first.answer.lstrip())]
        edits.append(
            Edit(
                id=name,
                language=code,
                subject=first.subject,
                prompts=tuple(prompts),
                spans=tuple(prompts.values()),
                answer=space + first.object,
            )
        )
    return edits


def _split_at_object(text: Text) -> list[str]:
    """Return the prompt, and what is said from there until the object is."""
    before = text.answer[: text.answer.index(text.object)].rstrip()
    return [text.prompt, *([text.prompt + before] if before else [])]


def measure_own_moments(
    vanilla: LanguageModel,
    layers: Sequence[int],
    config: MemitConfig,
    *,
    progress: bool = True,
) -> dict[int, Float[Tensor, "d_mlp d_mlp"]]:
    """Measure C on what a model writes by itself; texts and C are kept in the user's cache.

    Args:
        vanilla: V.
        layers: from 0.
        config: says how many tokens, and in which languages.
        progress: show progress bars.

    Raises:
        ValueError: see `sample_tokens` and `measure_second_moments`.
    """
    samples = sample_tokens(
        vanilla, config.moment_languages, num_tokens=config.moment_tokens, progress=progress
    )
    return measure_second_moments(
        vanilla,
        layers,
        [sample.prompt_ids + sample.token_ids for sample in samples],
        cache=_find_moment_folder(),
        progress=progress,
    )


def measure_retained_moments(
    vanilla: LanguageModel, layers: Sequence[int], retain: Sequence[Text], *, progress: bool = True
) -> dict[int, Float[Tensor, "d_mlp d_mlp"]]:
    """Measure C_r, on texts to retain; kept in the user's cache, and empty without texts.

    Args:
        vanilla: V.
        layers: from 0.
        retain: the texts.
        progress: show a progress bar.
    """
    if not retain:
        return {}
    rows = [tokenize(vanilla, example).ids for example in make_examples(retain)]
    return measure_second_moments(
        vanilla, layers, rows, few=True, cache=_find_moment_folder(), progress=progress
    )


def _find_moment_folder() -> Path:
    return get_cache_directory() / "second-moments"
