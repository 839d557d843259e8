"""Unlearning by any registered method: V and texts to forget and to retain become U.

Methods train the top quarter of the layers, on texts of all forms, and are guarded. The learning
rate and settings of `npo_kl` were found so on Gemma-3-270M; those of other methods are older, were
found by ranking candidates, and want `interp.tune`. Layers are those of a model with 18.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import MappingProxyType

from jaxtyping import Float
from torch import Tensor

from interp.data.chat import list_fields
from interp.data.corpus import Text
from interp.data.samples import sample_tokens
from interp.models.gguf import get_cache_directory
from interp.models.language_model import LanguageModel
from interp.unlearning import objectives as objectives
from interp.unlearning.config import MemitConfig, TrainingConfig
from interp.unlearning.examples import make_examples, tokenize
from interp.unlearning.goal import GUARDS, UNTIL
from interp.unlearning.memit.layer_stats import measure_second_moments
from interp.unlearning.memit.memit_main import memit
from interp.unlearning.memit.requests import Edit, check_edits
from interp.unlearning.model_card import make_card
from interp.unlearning.preferred_answers import check_kind, choose_preferred_answers
from interp.unlearning.registry import METHODS, OBJECTIVES, Method, find_sets
from interp.unlearning.registry import TENSORS as TENSORS
from interp.unlearning.registry import default_settings as default_settings
from interp.unlearning.registry import method as method
from interp.unlearning.registry import objective as objective
from interp.unlearning.resume import RunStore, Trained
from interp.unlearning.training import Evaluate, train
from interp.unlearning.validation import check_settings


def find_method(name: str) -> Method:
    """Return a method by its name.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}; valid: {', '.join(METHODS)}")
    return METHODS[name]


def find_config(name: str) -> TrainingConfig | MemitConfig:
    """Return a method's own settings, with the default goal and guards where it has steps.

    Raises:
        ValueError: there is no method of that name.
    """
    config = find_method(name).config
    if isinstance(config, TrainingConfig):
        return replace(config, until=UNTIL, guards=GUARDS)
    return config


def find_tuned_setting(name: str) -> str | None:
    """Return the setting of a method that a search changes beside the learning rate, if any."""
    return METHODS[name].tuned if name in METHODS else None


def unlearn(
    vanilla: LanguageModel,
    forget: Sequence[Text],
    retain: Sequence[Text],
    config: TrainingConfig | MemitConfig,
    *,
    preferred: str | None = None,
    evaluate: Evaluate | None = None,
    about: Mapping[str, object] = MappingProxyType({}),
    out: str | Path | None = None,
    progress: bool = True,
) -> Trained:
    """Make a model forget.

    Args:
        vanilla: V, left untouched.
        forget: what to forget, in the languages to forget it in. MEMIT edits what their prompts
            ask for, by the subject that they mention.
        retain: what to retain, for methods that do; MEMIT keeps what its layers compute of it.
        config: the settings, which name the method.
        preferred: which answers are preferred where a method needs some; see
            `interp.unlearning.choose_preferred_answers`. The method's own if None.
        evaluate: see `train`; MEMIT is a single step.
        about: further entries of the model's card.
        out: directory for the model; see `train`.
        progress: show progress bars.

    Raises:
        ValueError: settings, texts or a model that do not fit, before any training.
        ImportError: LoRA without the package `peft`.
    """
    if isinstance(config, MemitConfig):
        return _unlearn_by_memit(vanilla, forget, retain, config, about, out, progress)
    # Of a text in several languages LingTea draws one each time.
    parallel = config.objective.startswith("lingtea")
    sets = {
        "forget": make_examples(forget, parallel=parallel),
        "retain": make_examples(retain, parallel=parallel),
    }
    if config.objective in OBJECTIVES and "preferred" in find_sets(config.objective):
        usual = METHODS[config.objective].preferred if config.objective in METHODS else "refusal"
        kind = preferred or usual
        chosen = choose_preferred_answers(
            forget, kind, retain=retain, seed=config.seed, model=vanilla
        )
        sets["preferred"] = make_examples(chosen)
    return train(vanilla, sets, config, evaluate=evaluate, about=about, out=out, progress=progress)


def check_unlearning(
    vanilla: LanguageModel, config: TrainingConfig | MemitConfig, preferred: str | None
) -> None:
    """Raise ValueError for settings that no texts make right, before what takes time.

    Raises:
        ValueError: see `train`.
    """
    if isinstance(config, TrainingConfig):
        check_settings(vanilla, config, evaluates=True)
        if preferred is not None:
            check_kind(preferred)


def needs_retain_texts(config: TrainingConfig | MemitConfig) -> bool:
    """Return whether a method uses texts to retain."""
    if isinstance(config, MemitConfig):
        return config.retain_regularisation > 0
    return config.objective in OBJECTIVES and "retain" in find_sets(config.objective)


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


def _unlearn_by_memit(
    vanilla: LanguageModel,
    forget: Sequence[Text],
    retain: Sequence[Text],
    config: MemitConfig,
    about: Mapping[str, object],
    out: str | Path | None,
    progress: bool,
) -> Trained:
    edits = build_edits(forget)
    layers, _ = check_edits(vanilla, edits, config)
    store = None
    if out is not None:
        data = {
            "forget": [list_fields(text) for text in forget],
            "retain": [list_fields(text) for text in retain],
        }
        method = f"memit_{config.objective}"
        store = RunStore(Path(out), make_card(vanilla, method, asdict(config), data, about))
        if finished := store.load_finished(vanilla):
            return finished
    moments = measure_own_moments(vanilla, layers, config, progress=progress)
    retained = measure_retained_moments(vanilla, layers, retain, progress=progress)
    model, table = memit(vanilla, edits, moments, config, retained=retained, progress=progress)
    means = {str(name): float(v) for name, v in table.mean(numeric_only=True).items()}
    trained = Trained(
        model=model,
        history=[{"step": 0.0, **means}],
        reason=f"{len(edits)} facts edited",
        edits=table.to_dict("records"),
    )
    if store is not None:
        store.finish(trained)
    return trained


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
