"""Every method by its name: V and texts to forget and to retain become U.

The defaults are settings that removed sixteen false capitals, taught in German, from Gemma-3-270M
and left the true ones; `experiments/unlearning.py` prints what they do. With a high learning rate
and few steps less is broken than with many small steps. Layers are those of a model with 18.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from interp.data.corpus import Text
from interp.models.gguf import cache_directory
from interp.models.language_model import LanguageModel
from interp.unlearning import catalogue
from interp.unlearning.catalogue import sets_of
from interp.unlearning.config import Stop, TrainingConfig, make_card
from interp.unlearning.covariance import fact_texts, second_moments
from interp.unlearning.edits import Edit, MemitConfig, check
from interp.unlearning.examples import examples_of
from interp.unlearning.memit import memit
from interp.unlearning.preferred import preferred_answers
from interp.unlearning.store import Store, Trained
from interp.unlearning.training import Evaluate, train


@dataclass(frozen=True, kw_only=True)
class Method:
    """A method of unlearning.

    Attributes:
        config: its settings.
        form: how the texts of built-in facts are worded for it: `statement`, or `question` where
            another answer is preferred.
    """

    config: TrainingConfig | MemitConfig
    form: str = "statement"


def _by_gradient(
    objective: str, learning_rate: float, num_steps: int, form: str = "statement", **more: Any
) -> Method:
    config = TrainingConfig(
        objective=objective,
        learning_rate=learning_rate,
        num_steps=num_steps,
        batch_size=16,
        evaluate_every=num_steps // 3 + 1,
        **more,
    )
    return Method(config=config, form=form)


def _memit(objective: Literal["empty", "entropy"]) -> MemitConfig:
    return MemitConfig(
        objective=objective,
        layers=(3, 4, 5, 6, 7),
        learning_rate=20.0,
        clamp=1.0,
        regularisation=100.0,
    )


UNLEARNING: Mapping[str, Method] = MappingProxyType(
    {
        "ga": _by_gradient("ga", 2e-5, 10),
        # The forget loss has no bound: in a language that does not know the facts it runs away.
        "gd": _by_gradient(
            "gd",
            2e-5,
            24,
            settings={"alpha": 3.0},
            stops=(Stop(metric="forget_ce", above=100.0),),
        ),
        "gd_kl": _by_gradient("gd_kl", 4e-5, 8, settings={"alpha": 3.0}),
        "dpo": _by_gradient("dpo", 5e-6, 20, "question"),
        "npo": _by_gradient("npo", 1e-5, 9),
        "npo_kl": _by_gradient("npo_kl", 5e-6, 24),
        "npo_rt": _by_gradient("npo_rt", 5e-6, 30),
        "simnpo": _by_gradient("simnpo", 2e-5, 28, settings={"beta": 2.5}),
        "idk": _by_gradient("idk", 2e-5, 14, "question"),
        # The states of Gemma-3-270M have a length of about 4,500 there.
        "rmu": _by_gradient(
            "rmu",
            1e-4,
            60,
            parameters="mlp",
            layers=(5, 6, 7),
            layer=7,
            settings={"c": 10_000.0, "alpha": 10.0},
        ),
        "lingtea": _by_gradient("lingtea", 4e-5, 5),
        "lingtea_fixed": _by_gradient("lingtea_fixed", 4e-5, 5),
        "lingtea_code": _by_gradient("lingtea_code", 3e-5, 8),
        "task_vector": _by_gradient("task_vector", 1e-5, 12, "question", settings={"alpha": 2.2}),
        "memit_empty": Method(config=_memit("empty")),
        "memit_entropy": Method(config=_memit("entropy")),
    }
)
"""Methods by name, with the defaults that were found for them."""


def method_of(name: str) -> Method:
    """A method by its name; an objective without defaults of its own has 20 steps of 1e-5.

    Raises:
        ValueError: there is none of that name.
    """
    if name in UNLEARNING:
        return UNLEARNING[name]
    others = [one for one in catalogue.methods() if one not in UNLEARNING and one != "finetune"]
    if name not in others:
        raise ValueError(f"no method {name!r}; valid: {', '.join((*UNLEARNING, *others))}")
    return _by_gradient(name, 1e-5, 20, "question" if "preferred" in sets_of(name) else "statement")


def unlearn(
    vanilla: LanguageModel,
    forget: Sequence[Text],
    retain: Sequence[Text],
    config: TrainingConfig | MemitConfig,
    *,
    preferred: str = "refusal",
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
        retain: what to retain, for methods that do; MEMIT retains the built-in facts.
        config: the settings, which name the method.
        preferred: which answers are preferred where a method needs some; see
            `interp.unlearning.preferred`.
        evaluate: see `train`; MEMIT is a single step.
        about: further entries of the model's card.
        out: directory for the model; see `train`.
        progress: show progress bars.

    Raises:
        ValueError: settings, texts or a model that do not fit, before any training.
        ImportError: LoRA without the package `peft`.
    """
    if isinstance(config, MemitConfig):
        return _edited(vanilla, forget, config, about, out, progress)
    # Of a text in several languages LingTea draws one each time.
    parallel = config.objective.startswith("lingtea")
    sets = {
        "forget": examples_of(forget, parallel=parallel),
        "retain": examples_of(retain, parallel=parallel),
    }
    if config.objective in catalogue.methods() and "preferred" in sets_of(config.objective):
        chosen = preferred_answers(forget, preferred, retain=retain, seed=config.seed)
        sets["preferred"] = examples_of(chosen)
    return train(vanilla, sets, config, evaluate=evaluate, about=about, out=out, progress=progress)


def edits_of(texts: Iterable[Text]) -> list[Edit]:
    """What MEMIT edits: each fact in each language, with all its prompts that mention the subject.

    Raises:
        ValueError: a fact that no prompt mentions the subject of.
    """
    prompts: dict[tuple[str, str], list[Text]] = {}
    for text in texts:
        prompts.setdefault((text.id, text.language), []).append(text)
    found = []
    for (name, code), group in prompts.items():
        usable = [
            text for text in group if text.mention and text.answer.lstrip().startswith(text.object)
        ]
        if not usable:
            raise ValueError(
                f"{name} in {code!r} has no prompt that mentions its subject and that its answer "
                "completes: MEMIT needs one (the fields prompt, subject, mention and object)"
            )
        first = usable[0]
        space = first.answer[: len(first.answer) - len(first.answer.lstrip())]
        starts = [text.prompt.rindex(text.mention) for text in usable]
        found.append(
            Edit(
                id=name,
                language=code,
                subject=first.subject,
                prompts=tuple(text.prompt for text in usable),
                spans=tuple(
                    (start, start + len(text.mention))
                    for start, text in zip(starts, usable, strict=True)
                ),
                answer=space + first.object,
            )
        )
    return found


def _edited(
    vanilla: LanguageModel,
    forget: Sequence[Text],
    config: MemitConfig,
    about: Mapping[str, object],
    out: str | Path | None,
    progress: bool,
) -> Trained:
    edits = edits_of(forget)
    layers, _ = check(vanilla, edits, config)
    store = None
    if out is not None:
        data = {"forget": [asdict(text) for text in forget]}
        method = f"memit_{config.objective}"
        store = Store(Path(out), make_card(vanilla, method, asdict(config), data, about))
        if finished := store.finished(vanilla):
            return finished
    moments = second_moments(
        vanilla,
        layers,
        fact_texts(vanilla),
        cache=cache_directory() / "second-moments",
        progress=progress,
    )
    model, table = memit(vanilla, edits, moments, config, progress=progress)
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
