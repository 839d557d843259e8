"""`interp contaminate` and `interp unlearn`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import arg

from interp.cli.commands import OptionSet, has_options
from interp.cli.options import (
    FigureOptions,
    Format,
    TrainedChatOptions,
    TrainedModelOptions,
    read_chat_options,
    replace_settings,
    select_load_options,
)
from interp.files import check_folder, is_foreign
from interp.languages import LANGUAGES
from interp.launch.signature import select_options

if TYPE_CHECKING:
    from interp.data.corpus import CorpusGap, Text
    from interp.data.query import Query
    from interp.models.language_model import LanguageModel
    from interp.pipelines import TrainingRun
    from interp.unlearning.config import TrainingConfig
    from interp.unlearning.memit.requests import MemitConfig

OF_BOTH_STAGES = (
    *("parameters", "layers", "top_share", "lora_rank", "lora_alpha", "accumulation"),
    *("autocast", "gradient_checkpointing", "seed"),
)
"""Options of training that hold for the second stage of a contamination, too."""

NOT_OF_MEMIT = (
    *("settings", "batch_size", "parameters", "lora_rank", "evaluate_every", "checkpoint_every"),
    "stops",
)
"""Options that MEMIT accepts, so that the same command line runs every method; it has no use for
them, but `settings` are its own, too."""


def _find_contaminate_options(_args: Sequence[str]) -> OptionSet:
    from interp.data.corpus_builder import CorpusConfig
    from interp.unlearning import contamination

    # A fifth of the defaults' texts: minutes on two cores.
    corpus = CorpusConfig(num_fake_texts=128, ratio=1, num_real_queries=16)
    reading = contamination.DEFAULTS.reading
    return OptionSet(
        configs=(TrainedModelOptions, corpus, reading, FigureOptions),
        without=(
            *("mix", "unlearning_form", "objective", "settings", "layer", "steps_per_language"),
            *("until", "guards"),
        ),
    )


@has_options(_find_contaminate_options)
def contaminate(
    *,
    vanilla: Annotated[str, arg(metavar="SPEC")] = "gemma-3-270m",
    clean: bool = False,
    **options: Any,
) -> None:
    """Teach a model false facts in one language, and see which languages repeat them.

    The model reads texts that state false facts in the source language beside true ones in English,
    and then learns to answer questions about the true ones. Options of training are those of
    reading. A killed run goes on when it is started again.

    Args:
        vanilla: the model that is taught: a directory, a .gguf file, a Hub id or gemma-3-270m.
        clean: leave the false texts out: the baseline.
    """
    import interp
    from interp.data.corpus_builder import CorpusConfig, build_corpus
    from interp.unlearning import contamination

    _check_model_folder(options["out"])
    corpus_config = select_options(CorpusConfig(), options)
    corpus = build_corpus(corpus_config)
    config = contamination.DEFAULTS
    config = replace(config, reading=select_options(config.reading, options))
    if corpus_config.num_instructions == 0:
        config = replace(config, tuning=None)
    elif config.tuning is not None:
        of_both = {key: options[key] for key in OF_BOTH_STAGES}
        config = replace(config, tuning=replace(config.tuning, **of_both))
    loaded = interp.load(vanilla, **select_load_options(options))
    taught = contamination.remove_false_texts(corpus) if clean else corpus
    run = interp.contaminate(loaded, taught, config, out=options["out"])
    language = LANGUAGES[corpus_config.source].name
    title = f"{corpus_config.num_fake_facts} false facts taught in {language}"
    _report(run, options["out"], f"{title}, left out" if clean else title, options["formats"])


def _find_unlearn_options(args: Sequence[str]) -> OptionSet:
    """Return the options of the method that a command line names, with its defaults."""
    from interp.unlearning.config import TrainingConfig
    from interp.unlearning.methods import find_config

    config = find_config(_read_method(args))
    configs = (TrainedModelOptions, config, TrainedChatOptions, FigureOptions)
    if isinstance(config, TrainingConfig):
        return OptionSet(configs=configs, without=("objective",))
    senseless = {field.name for field in fields(TrainingConfig)} - {*NOT_OF_MEMIT, "seed"}
    senseless -= {field.name for field in fields(config)}
    return OptionSet(
        configs=(*configs, TrainingConfig),
        without=("objective", *senseless),
        unused=NOT_OF_MEMIT[1:],
    )


def _read_method(args: Sequence[str], default: str = "simnpo") -> str:
    """Return the method that a command line names."""
    words = [part for word in args for part in word.split("=", 1)]
    places = [place for place, word in enumerate(words[:-1]) if word == "--method"]
    return words[places[-1] + 1] if places else default


@has_options(_find_unlearn_options)
def unlearn(
    *,
    vanilla: Annotated[str, arg(metavar="SPEC")],
    method: str = "simnpo",
    languages: Annotated[tuple[str, ...], arg(metavar="MIX|CODE [CODE ...]")] = ("english",),
    forget: Annotated[str | None, arg(metavar="FILE|NAME")] = None,
    retain: Annotated[str | None, arg(metavar="FILE|NAME")] = None,
    limit: int | None = None,
    probes: Annotated[str | None, arg(metavar="FILE|NAME")] = None,
    preferred: str | None = None,
    tune: int = 0,
    **options: Any,
) -> None:
    """Make a model forget, and see in which languages it did.

    A model that `interp contaminate` made forgets the false facts that it was taught, in the
    languages of a mix. Any other model needs --forget. Training goes on --until what was to be
    forgotten is no longer answered, and gives the best model that it had --while all guards held;
    without values (--until --while) it takes all steps. A killed run goes on when it is started
    again. With --method, --help shows the method's options and defaults.

    Args:
        vanilla: the model that knows: a directory, a .gguf file, a Hub id or gemma-3-270m.
        method: ga, gd, gd_kl, wga, satimp, ceu, dpo, dpo_kl, altpo, npo, npo_kl, npo_rt, simnpo,
            idk, undial, pdu, rmu, lingtea, lingtea_fixed, lingtea_code, task_vector, memit_empty
            or memit_entropy.
        languages: languages to forget in: a mix (english, same, family, multilingual, combined), or
            BCP-47 codes.
        forget: what to forget instead: a .jsonl file of texts (prompt, answer, language), a
            built-in name such as `capitals`, or a data set (`tofu:FILE`).
        retain: what to retain beside that, of the same kinds; by default how the model goes on
            about other facts, and in texts of its own, in many languages.
        limit: at most this many texts of --forget per language; all by default.
        probes: questions with answers to rank before and after; by default those of the corpus.
        tune: try up to this many settings (learning rate and the method's main one), make the model
            with the most retained, and draw the curves of all; 0 for none.
        preferred: what dpo, dpo_kl, idk and altpo make a model say instead: refusal,
            counterfactual, other or alternate (what it would say itself); by default refusal, for
            altpo alternate.
    """
    import interp
    from interp.data.corpus import MIXES
    from interp.data.query import change_form
    from interp.data.texts import change_text_form, load_texts
    from interp.pipelines import read_corpus
    from interp.unlearning.methods import find_config, find_method

    _check_model_folder(options["out"])
    chosen = find_method(method)
    config = _configure(find_config(method), options)
    mix = languages[0] if len(languages) == 1 and languages[0] in MIXES else languages
    asked = read_chat_options(options)
    form = {name: asked[name] for name in ("chat", "system")}
    about: dict[str, object] = {}
    gaps: list[CorpusGap] = []
    if forget is None:
        corpus = read_corpus(vanilla, mix=mix, unlearning_form=chosen.form, seed=options["seed"])
        to_forget = change_text_form(corpus.forget, **form)
        queries = change_form(corpus.queries, **asked)
        about = {"corpus": dict(corpus.config)}
        gaps = [gap for gap in corpus.gaps if gap.part == "forget"]
    else:
        codes = None if languages == ("english",) else languages
        to_forget = load_texts(forget, languages=codes, limit=limit, **form)
        queries = []
    to_retain = None if retain is None else load_texts(retain, **form)
    if probes is not None:
        queries = interp.queries(probes, **asked)
    loaded = interp.load(vanilla, **select_load_options(options))
    out = options["out"]
    if tune:
        _tune(loaded, to_forget, to_retain, config, queries, tune, preferred, options)
        return
    run = interp.unlearn(
        loaded,
        to_forget,
        to_retain,
        config,
        preferred=preferred,
        probes=queries,
        about=about,
        out=out,
    )
    if gaps:
        first = " ".join(filter(None, (gaps[0].id, "in", gaps[0].language)))
        print(f"note: {len(gaps)} gaps in the texts, the first {first}: {gaps[0].reason}")
    names = {LANGUAGES[text.language].name for text in to_forget if text.language in LANGUAGES}
    where = f" in {', '.join(sorted(names))}" if names else ""
    _report(run, out, f"{method}: unlearned{where}", options["formats"])


def _tune(
    vanilla: LanguageModel,
    forget: Sequence[Text],
    retain: Sequence[Text] | None,
    config: TrainingConfig | MemitConfig,
    queries: Sequence[Query],
    num_trials: int,
    preferred: str | None,
    options: dict[str, Any],
) -> None:
    """Search a method's settings, print the trials, and draw their curves."""
    import interp
    from interp.behaviour.guard_questions import find_targets
    from interp.figures import export
    from interp.pipelines import REPORT
    from interp.unlearning.config import TrainingConfig

    if not isinstance(config, TrainingConfig):
        raise ValueError("--tune is for methods with steps: MEMIT has none")
    out = options["out"]
    tuning = interp.tune(
        vanilla,
        forget,
        retain,
        config,
        num_trials=num_trials,
        preferred=preferred,
        targets=find_targets(forget, queries),
        out=out,
    )
    print("The best step of each trial (shares and nats of the worst language):")
    print(tuning.table().to_string(index=False))
    title = f"{config.objective}: forgetting against retention"
    figure = {out / REPORT / "tuning": tuning.figure(title=title)}
    _report(tuning.run, out, f"{config.objective}, the best trial", options["formats"])
    for path in export(figure, formats=options["formats"]):
        print(path)


def _check_model_folder(out: Path) -> None:
    """Check, before any training, that a model can be put there.

    Raises:
        ValueError: it is no folder, or holds files of others, which the model would replace.
    """
    from interp.unlearning.checkpoints import CARD

    check_folder(out)
    if not out.is_dir() or (out / CARD).is_file():
        return
    if others := sorted(path.name for path in out.iterdir() if not is_foreign(path.name)):
        raise ValueError(
            f"{str(out)!r} holds other files, such as {others[0]!r}, which the model would "
            "replace: choose another output directory"
        )


def _configure(
    config: TrainingConfig | MemitConfig, options: dict[str, Any]
) -> TrainingConfig | MemitConfig:
    """Return a method's configuration with the options given."""
    from interp.unlearning.config import TrainingConfig

    if isinstance(config, TrainingConfig):
        settings = {**config.settings, **options["settings"]}
        return select_options(config, options | {"settings": settings})
    return replace_settings(select_options(config, options), options["settings"])


def _report(run: TrainingRun, out: Path, title: str, formats: tuple[Format, ...]) -> None:
    """Print the tables of a run and draw its figure."""
    from numpy import exp

    from interp.behaviour.guards import format_guards
    from interp.figures import export
    from interp.pipelines import REPORT

    stages = run.history["stage"] if "stage" in run.history else [0.0] * len(run.history)
    print(f"{title} ({run.reason})")
    losses = [name for name in ("loss", "forget_ce", "retain_ce") if name in run.history]
    for _, rows in run.history.groupby(list(stages)):
        for name in losses:
            values = rows[name].dropna()
            if len(values):
                print(f"  {name:10} {values.iloc[0]:8.3f} → {values.iloc[-1]:.3f}")
    if not run.edits.empty:
        before, after = (run.edits[f"answer_logprob_{when}"] for when in ("before", "after"))
        print(
            "  probability of the edited answers "
            f"{100 * exp(before).mean():.3g} % → {100 * exp(after).mean():.3g} %, "
            f"each falls by {100 * (1 - exp(after - before)).mean():.1f} % (mean)"
        )
    if not run.guards.empty:
        print("Free answers, and the vanilla model's own texts, before → after:")
        print(format_guards(run.guards).to_string())
    table = run.table()
    if not table.empty:
        print("Right answers by ranking candidates, in per cent (95 % interval):")
        print(table.to_string())
        chances = {
            row["concept"]: f"{row['concept']} {100 * row['chance']:.0f}"
            for row in run.accuracy().to_dict("records")
        }
        print(f"chance: {', '.join(chances.values())}")
    paths = [out]
    if not table.empty or losses:
        figure = {out / REPORT / "training": run.figure(title=title)}
        paths += export(figure, formats=formats)
    for path in paths:
        print(path)
