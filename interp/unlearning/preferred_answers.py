"""Preferred answers: what a model is to say instead of what it forgets.

| kind | the preferred answer |
|---|---|
| `refusal` | that one does not know, in the text's language |
| `counterfactual` | the answer of another text to be forgotten |
| `other` | a text about something else: one of those to be retained (Hong et al. 2024) |
| `alternate` | what the model would say instead (Mekala et al. 2024); see `alternate_answers` |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from interp.data.corpus import Text
from interp.data.counterfactuals import sort_by_hash
from interp.data.templates import list_template_languages, read_templates
from interp.models.language_model import LanguageModel
from interp.unlearning.alternate_answers import sample_alternate_answers

KINDS = ("refusal", "counterfactual", "other", "alternate")


def check_kind(kind: str) -> None:
    """Raise ValueError where there are no preferred answers of that kind."""
    if kind not in KINDS:
        raise ValueError(f"unknown preferred answers {kind!r}; valid: {', '.join(KINDS)}")


def choose_preferred_answers(
    forget: Sequence[Text],
    kind: str,
    *,
    retain: Sequence[Text] = (),
    seed: int = 0,
    model: LanguageModel | None = None,
) -> list[Text]:
    """Choose to each text the answer that is preferred, after the same prompt.

    Args:
        forget: what is to be forgotten.
        kind: one of `KINDS`.
        retain: what `other` takes texts from; those in the text's language if there are any.
        seed: of the choice.
        model: V, which writes what is `alternate`. Where it knows nothing but the text's own
            answer, that is a counterfactual, with a warning.

    Raises:
        ValueError: an unknown kind, a language without refusals, or nothing to choose.
    """
    check_kind(kind)
    alternates = _sample_alternates(forget, model, seed) if kind == "alternate" else {}
    answered = []
    for number, text in enumerate(forget):
        options = alternates.get(number) or _list_options(text, kind, forget, retain)
        purpose = f"{seed}/preferred/{kind}/{number}/{text.id}"
        chosen = sort_by_hash(options, purpose, key=lambda option: option)[0]
        space = text.answer[: len(text.answer) - len(text.answer.lstrip())]
        answered.append(replace(text, answer=space + chosen.strip()))
    return answered


def _sample_alternates(
    forget: Sequence[Text], model: LanguageModel | None, seed: int
) -> dict[int, list[str]]:
    """Sample alternates by the texts' numbers, and warn where there are none."""
    if model is None:
        raise ValueError("the preferred answers 'alternate' are a model's own: give model")
    sampled = sample_alternate_answers(model, forget, seed=seed)
    failed = [text.id for text, found in zip(forget, sampled, strict=True) if found is None]
    if failed:
        model.warn_once(
            f"{model.name!r} has no alternate answer to {len(failed)} of {len(forget)} texts, the "
            f"first {failed[0]}: counterfactuals stand in for them"
        )
    return {number: [found] for number, found in enumerate(sampled) if found is not None}


def _list_options(
    text: Text, kind: str, forget: Sequence[Text], retain: Sequence[Text]
) -> list[str]:
    if kind == "refusal":
        if text.language not in list_template_languages():
            raise ValueError(
                f"no refusals in {text.language!r}; there are some in "
                f"{', '.join(list_template_languages())}: choose counterfactual or other"
            )
        return list(read_templates(text.language).refusals)
    if kind in ("counterfactual", "alternate"):
        others = [
            other
            for other in forget
            if (other.language, other.wording) == (text.language, text.wording)
            and other.id != text.id
            and other.answer != text.answer
        ]
        if not others:
            raise ValueError(
                f"{text.id} in {text.language!r} has no counterfactual: no other forget text of "
                "that language has another answer"
            )
        return list(dict.fromkeys(other.answer for other in others))
    there = [other for other in retain if other.language == text.language] or list(retain)
    if not there:
        raise ValueError("the preferred answers 'other' need retain texts to take them from")
    return list(dict.fromkeys(other.answer if text.messages else other.text for other in there))
