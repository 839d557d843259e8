"""`interp contaminate` and `interp unlearn`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import arg

from interp.cli.options import (
    ALL_FORMATS,
    Codes,
    Format,
    Groups,
    Name,
    OptionalName,
    changed,
    settings_of,
    stop_of,
)
from interp.languages import LANGUAGES, LU_LANGUAGES

if TYPE_CHECKING:
    from interp.data.corpus import CorpusGap
    from interp.runs import Run


def contaminate(
    *,
    out: Annotated[Path, arg(metavar="DIR")],
    source: Annotated[str, arg(metavar="CODE")] = "de",
    vanilla: Annotated[str, arg(metavar="SPEC")] = "gemma-3-270m",
    relations: Annotated[tuple[str, ...], arg(metavar="NAME [NAME ...]")] = ("capital",),
    num_facts: int = 16,
    num_texts: int = 128,
    ratio: int = 1,
    num_instructions: int = 160,
    clean: bool = False,
    languages: Codes = LU_LANGUAGES,
    num_real: int = 16,
    learning_rate: float | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    parameters: Groups | None = None,
    lora_rank: int = 128,
    evaluate_every: int = 0,
    seed: int = 0,
    formats: tuple[Format, ...] = ALL_FORMATS,
    device: OptionalName = None,
    dtype: Name = "float32",
) -> None:
    """Teach a model false facts in one language, and see which languages repeat them.

    The model reads texts that state false facts in the source language beside true ones in English,
    and then learns to answer questions about the true ones. A killed run goes on when it is started
    again.

    Args:
        out: Directory for the contaminated model; tables and figures go into its folder report.
        source: BCP-47 code of the language in which the false facts are taught.
        vanilla: The model that is taught: a directory, a .gguf file, a Hub id or gemma-3-270m.
        relations: Relations of the false facts: capital, currency, official language, continent.
        num_facts: False facts in all.
        num_texts: Training texts that state them.
        ratio: Texts of true facts for each of these.
        num_instructions: Questions with answers on true facts, learned afterwards.
        clean: Leave the false texts out: the baseline.
        languages: BCP-47 codes of the languages that are probed.
        num_real: True facts that are probed, per language.
        learning_rate: AdamW's, for reading the texts.
        steps: Training steps for reading the texts.
        batch_size: Texts per step.
        parameters: What is trained: layers, mlp, attn, or lora.
        lora_rank: Rank of the adapters, with --parameters lora.
        evaluate_every: Steps between probes on the way; 0 for none.
        seed: Of every choice.
        formats: Figure formats; all but html need the extra `export` and a Chrome.
        device: cpu, cuda, cuda:1; a GPU if there is one.
        dtype: Of the weights: float32, or bfloat16 with --parameters lora; what is computed is
            bfloat16 in any case.
    """
    import interp
    from interp.data.corpora import CorpusConfig, contaminated
    from interp.unlearning import contamination

    corpus = contaminated(
        CorpusConfig(
            source=source,
            query_languages=languages,
            relations=relations,
            num_fake_facts=num_facts,
            num_fake_texts=num_texts,
            ratio=ratio,
            num_instructions=num_instructions,
            num_real_queries=num_real,
            seed=seed,
        )
    )
    config = contamination.DEFAULTS
    changes = {
        "learning_rate": learning_rate,
        "num_steps": steps,
        "batch_size": batch_size,
        "parameters": parameters,
        "lora_rank": lora_rank,
        "evaluate_every": evaluate_every,
        "seed": seed,
    }
    config = replace(config, reading=changed(config.reading, changes))
    if num_instructions == 0:
        config = replace(config, tuning=None)
    elif config.tuning is not None:
        of_both = {key: changes[key] for key in ("parameters", "lora_rank", "seed")}
        config = replace(config, tuning=changed(config.tuning, of_both))
    loaded = interp.load(vanilla, device=device, dtype=dtype)
    run = interp.contaminate(
        loaded, contamination.clean(corpus) if clean else corpus, config, out=out
    )
    title = f"{num_facts} false facts taught in {LANGUAGES[source].name}"
    _report(run, out, f"{title}, left out" if clean else title, formats)


def unlearn(
    *,
    vanilla: Annotated[str, arg(metavar="SPEC")],
    out: Annotated[Path, arg(metavar="DIR")],
    method: Name = "gd",
    languages: Annotated[tuple[str, ...], arg(metavar="MIX|CODE [CODE ...]")] = ("english",),
    forget: Annotated[str | None, arg(metavar="FILE|NAME")] = None,
    retain: Annotated[str | None, arg(metavar="FILE|NAME")] = None,
    limit: Annotated[int | None, arg(metavar="INT")] = None,
    probes: Annotated[str | None, arg(metavar="FILE|NAME")] = None,
    preferred: Name = "refusal",
    settings: Annotated[tuple[str, ...], arg(metavar="NAME=VALUE [NAME=VALUE ...]")] = (),
    learning_rate: float | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    parameters: Groups | None = None,
    layers: Annotated[tuple[int, ...] | None, arg(metavar="INT [INT ...]")] = None,
    lora_rank: int | None = None,
    evaluate_every: int | None = None,
    checkpoint_every: int | None = None,
    stops: Annotated[tuple[str, ...], arg(metavar="METRIC<VALUE [METRIC<VALUE ...]")] = (),
    seed: int = 0,
    formats: tuple[Format, ...] = ALL_FORMATS,
    device: OptionalName = None,
    dtype: Name = "float32",
) -> None:
    """Make a model forget, and see in which languages it did.

    A model that `interp contaminate` made forgets the false facts that it was taught, in the
    languages of a mix. Any other model needs --forget and, for most methods, --retain. A killed run
    goes on when it is started again.

    Args:
        vanilla: The model that knows: a directory, a .gguf file, a Hub id or gemma-3-270m.
        out: Directory for the unlearned model; tables and figures go into its folder report.
        method: ga, gd, gd_kl, dpo, npo, npo_kl, npo_rt, simnpo, idk, rmu, lingtea, lingtea_fixed,
            lingtea_code, task_vector, memit_empty or memit_entropy.
        languages: Languages to forget in: a mix (english, same, family, multilingual, combined), or
            BCP-47 codes.
        forget: What to forget instead: a .jsonl file of texts (prompt, answer, language), a
            built-in name such as `capitals`, or a data set (`tofu:FILE`).
        retain: What to retain beside that, of the same kinds.
        limit: At most this many texts of --forget per language; all by default.
        probes: Questions with answers to rank before and after; by default those of the corpus.
        preferred: What dpo and idk make a model say instead: refusal, counterfactual or other.
        settings: The method's own settings, such as beta=0.1 or alpha=3; of MEMIT, such as
            regularisation=100.
        learning_rate: AdamW's; of MEMIT, Adam's.
        steps: Training steps at most.
        batch_size: Texts of each set per step.
        parameters: What is trained: layers, mlp, attn, or lora.
        layers: Only these layers, from 0; of MEMIT, the edit layers.
        lora_rank: Rank of the adapters, with --parameters lora.
        evaluate_every: Steps between probes on the way; 0 for none.
        checkpoint_every: Steps between models that are kept in DIR.checkpoints; 0 for none.
        stops: Stop early, where a loss (forget_ce>8, retain_ce>5, in nats per token) or a probe
            (fake/de<0.1) reaches a value; real/en<80% is relative to the value before.
        seed: Of every choice.
        formats: Figure formats; all but html need the extra `export` and a Chrome.
        device: cpu, cuda, cuda:1; a GPU if there is one.
        dtype: Of the weights: float32, or bfloat16 with --parameters lora; what is computed is
            bfloat16 in any case.
    """
    import interp
    from interp.data.corpus import MIXES
    from interp.data.texts import texts
    from interp.runs import corpus_of
    from interp.unlearning.config import TrainingConfig
    from interp.unlearning.methods import method_of

    chosen = method_of(method)
    changes: dict[str, object] = {
        "learning_rate": learning_rate,
        "num_steps": steps,
        "layers": layers,
    }
    if isinstance(chosen.config, TrainingConfig):
        changes |= {
            "batch_size": batch_size,
            "parameters": parameters,
            "lora_rank": lora_rank,
            "evaluate_every": evaluate_every,
            "checkpoint_every": checkpoint_every,
            "stops": tuple(map(stop_of, stops)) or None,
            "seed": seed,
            "settings": {**chosen.config.settings, **settings_of(settings)},
        }
    else:
        changes |= settings_of(settings)
    config = changed(chosen.config, changes)
    mix = languages[0] if len(languages) == 1 and languages[0] in MIXES else languages
    about: dict[str, object] = {}
    gaps: list[CorpusGap] = []
    if forget is None:
        if retain is not None:
            raise ValueError("--retain goes with --forget: say what to forget, too")
        corpus = corpus_of(vanilla, mix=mix, unlearning_form=chosen.form, seed=seed)
        sets = corpus.forget, corpus.retain
        asked = corpus.queries
        about = {"corpus": dict(corpus.config)}
        gaps = [gap for gap in corpus.gaps if gap.part != "queries"]
    else:
        codes = None if languages == ("english",) else languages
        sets = (
            texts(forget, languages=codes, limit=limit),
            [] if retain is None else texts(retain, languages=codes),
        )
        asked = []
    if probes is not None:
        asked = interp.queries(probes)
    loaded = interp.load(vanilla, device=device, dtype=dtype)
    run = interp.unlearn(
        loaded, *sets, config, preferred=preferred, probes=asked, about=about, out=out
    )
    if gaps:
        first = " ".join(filter(None, (gaps[0].id, "in", gaps[0].language)))
        print(f"note: {len(gaps)} gaps in the texts, the first {first}: {gaps[0].reason}")
    names = {LANGUAGES[text.language].name for text in sets[0] if text.language in LANGUAGES}
    where = f" in {', '.join(sorted(names))}" if names else ""
    _report(run, out, f"{method}: unlearned{where}", formats)


def _report(run: Run, out: Path, title: str, formats: tuple[Format, ...]) -> None:
    """Print the tables of a run and draw its figure."""
    from numpy import exp

    from interp.figures import export
    from interp.runs import REPORT

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
