"""Where does fine-tuning unlearning happen? (Hong et al. 2024), per query language.

    python experiments/dissect.py quick --out runs/dissect-quick

Concepts that the model knows are unlearned in English, each by itself, by several methods at
several strengths. What each model then answers is held against the vanilla model's answers, on
target and on unrelated questions (Fig. 2); of the models at one strength KRS is swept over sites,
layers and query languages (Fig. 1), and their weights are compared with the vanilla ones. A second
run of the same command does only what is missing.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import pandas as pd
import tyro

import interp
from interp.cli.options import command_of, mistakes_told, preset_of
from interp.study import Study
from interp.study.dissect.concepts import Concept, fact_concepts, file_concepts
from interp.study.dissect.models import at_strength, measured
from interp.study.dissect.recovery import is_trained
from interp.study.dissect.report import study
from interp.unlearning.config import TrainingConfig
from interp.unlearning.edits import MemitConfig
from interp.unlearning.methods import UNLEARNING

TRAINED = ("dpo", "gd", "npo", "npo_kl", "ga")
EDITED = ("memit_empty", "memit_entropy")

DISTANCE = 1e-4
"""Learning rate times steps, about how far AdamW moves a weight: alike for all methods at strength
1, where Gemma-3-270M forgets by `gd` and still answers other questions."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """What is dissected.

    Attributes:
        model: V, as `interp.load` takes it.
        concepts: groups of built-in facts, such as `capital/Europe`.
        file: a file of the authors' concepts instead.
        num_concepts: of the file, the first ones.
        num_candidates: facts of a group that V is asked, of which those it knows are unlearned.
        num_questions: about each concept, at most.
        num_unrelated: unrelated questions per language.
        languages: BCP-47 codes of the query languages; a file has English alone.
        methods: settings at strength 1, by name.
        preferred: what `dpo` prefers, see `interp.unlearning.preferred`.
        strengths: multiples of what `trained_by` and `edited_by` name.
        trained_by: `learning_rate` or `num_steps`, of methods that train.
        edited_by: `clamp`, or `regularisation`, which is divided by the strength.
        swept: the strength whose models are swept and whose weights are compared.
        sites: of the sweep; the controls tell what restorations of the same kind bring back.
        window: layers restored together.
        num_tokens: T, tokens per answer.
        keep_models: keep weights when all is measured. Without them a run of the same settings
            trains nothing anew either.
        seed: of every choice.
    """

    model: str = "gemma-3-270m"
    concepts: tuple[str, ...] = ("capital/Europe", "capital/Asia")
    file: str = ""
    num_concepts: int = 10
    num_candidates: int = 40
    num_questions: int = 10
    num_unrelated: int = 20
    languages: tuple[str, ...] = ("en", "de", "zh")
    methods: Mapping[str, TrainingConfig | MemitConfig] = field(default_factory=dict)
    preferred: str = "refusal"
    strengths: tuple[float, ...] = (0.5, 1.0, 2.0)
    trained_by: str = "learning_rate"
    edited_by: str = "regularisation"
    swept: float = 1.0
    sites: tuple[str, ...] = ("coef", "attn", "coef+attn", "value", "key", "attn_weights")
    window: int = 5
    num_tokens: int = 30
    keep_models: bool = False
    seed: int = 0


def in_steps(name: str, num_steps: int, batch_size: int = 16) -> TrainingConfig:
    """A method with its usual settings, in so many steps that it moves a weight by `DISTANCE`."""
    usual = UNLEARNING[name].config
    assert isinstance(usual, TrainingConfig)
    return replace(
        usual,
        num_steps=num_steps,
        learning_rate=DISTANCE / num_steps,
        batch_size=batch_size,
        evaluate_every=0,
    )


def as_published(name: str, learning_rate: float) -> TrainingConfig:
    """A method as the authors' configuration has it: ten epochs of the paragraphs in batches of 32.

    DEFINITIONS has α = 1.5 for `gd` from the paper's code.
    """
    return TrainingConfig(
        objective=name,
        settings={"alpha": 1.5} if name == "gd" else {},
        learning_rate=learning_rate,
        weight_decay=0.01,
        warmup_steps=6,
        num_steps=60,
        batch_size=32,
        accumulation=8,
        gradient_checkpointing=True,
    )


PRESETS: Mapping[str, Config] = {
    "quick": Config(
        concepts=("capital/Europe",),
        num_candidates=16,
        num_questions=6,
        num_unrelated=8,
        languages=("en", "de"),
        methods={name: in_steps(name, 5, batch_size=8) for name in ("gd", "npo")}
        | {"memit_empty": UNLEARNING["memit_empty"].config},
        strengths=(0.5, 1.0),
        num_tokens=10,
    ),
    "full": Config(
        concepts=("capital/Europe", "capital/Asia", "capital/Africa"),
        num_unrelated=16,
        methods={name: in_steps(name, 8) for name in TRAINED}
        | {name: UNLEARNING[name].config for name in EDITED},
        num_tokens=20,
    ),
    "paper": Config(
        model="meta-llama/Llama-2-7b-chat-hf",
        file="llama2-7b_concepts_test_30tokens_answers.json",
        num_unrelated=50,
        languages=("en",),
        methods={
            name: as_published(name, 2e-5 if name in ("ga", "gd") else 5e-5) for name in TRAINED
        }
        | {
            "memit_empty": MemitConfig(objective="empty"),
            "memit_entropy": MemitConfig(objective="entropy"),
        },
        preferred="other",
        sites=(*Config.sites, "mlp_out", "resid"),
        keep_models=True,
    ),
}


def main(
    preset: tyro.conf.Positional[str] = "quick",
    *,
    out: Path | None = None,
    model: str | None = None,
    file: str | None = None,
) -> None:
    """Unlearn concepts, restore, and print which signatures of the paper were seen.

    Args:
        preset: quick (minutes on two cores), full (about an hour), or paper (Llama-2-7B-chat and
            the authors' file of concepts in the working directory, for GPUs).
        out: directory of all that is made; runs/dissect-PRESET by default.
        model: another vanilla model, such as allenai/OLMo-7B-hf, the paper's second.
        file: another file of the authors' concepts, such as OLMo's.
    """
    config = preset_of(PRESETS, preset, model=model, file=file)
    out = out or Path(f"runs/dissect-{preset}")
    command = command_of("dissect", preset, model=model, file=file)
    study = dissect(config, out, command=command)
    paths = study.write(out)
    print(study.summary(), *paths, sep="\n")


def dissect(config: Config, out: Path, *, command: str = "", progress: bool = True) -> Study:
    """Make and measure every model, and say what was found.

    Args:
        config: what is dissected.
        out: directory of models, sweeps and measures; what it holds is not made again.
        command: what was typed, for the study.
        progress: show progress on standard error.

    Raises:
        ValueError: settings or data that do not fit.
    """
    if config.swept not in config.strengths:
        raise ValueError(f"swept is {config.swept:g}, which is not among the strengths")
    if not any(map(is_trained, config.methods)):
        names = ", ".join(name for name in UNLEARNING if is_trained(name))
        raise ValueError(f"methods has none that trains; those that do: {names}")
    vanilla = interp.load(config.model)
    if config.file:
        concepts = file_concepts(
            config.file,
            num_concepts=config.num_concepts,
            num_questions=config.num_questions,
            num_unrelated=config.num_unrelated,
        )
    else:
        concepts = fact_concepts(
            vanilla,
            config.concepts,
            languages=config.languages,
            num_questions=config.num_questions,
            num_unrelated=config.num_unrelated,
            num_candidates=config.num_candidates,
            num_tokens=config.num_tokens,
            seed=config.seed,
            cache=out / "measures" / "answers.jsonl",
            progress=progress,
        )
    parts: dict[str, list[pd.DataFrame]] = {}
    todo = list(_models(config, concepts))
    for number, (concept, method, strength) in enumerate(todo, start=1):
        if progress:
            label = f"{concept.name}, {method} at strength {strength:g}"
            print(f"[{number}/{len(todo)}] {label}", file=sys.stderr, flush=True)
        about = {"concept": concept.name, "method": method, "strength": strength}
        found = measured(
            vanilla,
            concept,
            method,
            at_strength(
                config.methods[method],
                strength,
                trained_by=config.trained_by,
                edited_by=config.edited_by,
                seed=config.seed,
            ),
            out=out,
            name=f"{concept.name.replace('/', '-')}-{method}-{strength:g}",
            preferred=config.preferred,
            num_tokens=config.num_tokens,
            sites=config.sites if strength == config.swept else (),
            window=config.window,
            keep_model=config.keep_models,
            progress=progress,
        )
        for name, table in found.items():
            if name != "losses":
                # Questions are of a kind, and the model is what has the concept: its path says
                # nothing more.
                table = table.rename(columns={"concept": "questions"})
                table = table.drop(columns="model", errors="ignore")
            parts.setdefault(name, []).append(table.assign(**about))
    tables = {name: pd.concat(several, ignore_index=True) for name, several in parts.items()}
    return study(
        tables,
        concepts,
        model=config.model,
        command=command,
        config=asdict(config),
        setting=f"T = {config.num_tokens}, strength {config.swept:g}",
        seed=config.seed,
    )


def _models(config: Config, concepts: list[Concept]) -> Iterator[tuple[Concept, str, float]]:
    for concept in concepts:
        for method in config.methods:
            for strength in config.strengths:
                yield concept, method, strength


if __name__ == "__main__":
    with mistakes_told("dissect"):
        tyro.cli(main)
