"""The command line, over the same functions as the library."""

from __future__ import annotations

import os
import re
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

import tyro
from tyro.conf import OmitSubcommandPrefixes, Positional, arg

from interp.languages import LANGUAGES, LU_LANGUAGES

if TYPE_CHECKING:
    from interp.data.corpus import CorpusGap
    from interp.runs import Run
    from interp.unlearning.config import Stop

Format = Literal["html", "png", "svg", "pdf"]
ALL_FORMATS: tuple[Format, ...] = ("html", "png", "svg", "pdf")
Codes = Annotated[tuple[str, ...], arg(metavar="CODE [CODE ...]")]
OptionalCodes = Annotated[tuple[str, ...] | None, arg(metavar="CODE [CODE ...]")]
Name = Annotated[str, arg(metavar="NAME")]
OptionalName = Annotated[str | None, arg(metavar="NAME")]
Groups = Literal["layers", "mlp", "attn", "lora"]
T = TypeVar("T")


def demo(
    *,
    out: Annotated[Path, arg(metavar="DIR")] = Path("runs/demo"),
    languages: Codes = ("en", "de", "fr", "zh", "ru", "ja", "ar", "hi", "ur"),
    num_tokens: int = 30,
    formats: tuple[Format, ...] = ALL_FORMATS,
) -> None:
    """Unlearn capitals in English on the embedded model, sweep, and draw where they are.

    Gemma-3-270M unlearns the capitals of twelve countries by gradient difference; then every window
    of five layers is restored, site by site, and asked in nine languages. Minutes on two cores. A
    second run does only what is missing.

    Args:
        out: Directory for the unlearned model, the losses and the figures.
        languages: BCP-47 codes of the query languages.
        num_tokens: Longest answer, in tokens.
        formats: Figure formats; all but html need the extra `export` and a Chrome.
    """
    from interp.demo import run_demo

    run_demo(out=out, languages=languages, num_tokens=num_tokens, formats=formats)


def sweep(
    *,
    vanilla: Annotated[str, arg(metavar="SPEC")],
    unlearned: Annotated[tuple[str, ...], arg(metavar="SPEC [SPEC ...]")],
    queries: Annotated[str, arg(metavar="FILE|NAME")],
    out: Annotated[Path, arg(metavar="DIR")],
    languages: OptionalCodes = None,
    limit: Annotated[int | None, arg(metavar="INT")] = None,
    sites: Annotated[tuple[str, ...], arg(metavar="SITE [SITE ...]")] = (
        "coef",
        "attn",
        "coef+attn",
        "value",
    ),
    window: int = 5,
    num_tokens: int = 30,
    engine: Name = "layered",
    variant: Name = "paper",
    positions: Name = "all",
    direction: Name = "restore",
    distance: Name = "logit_mse",
    dtype: OptionalName = None,
    device: OptionalName = None,
    shard: Annotated[str, arg(metavar="I/N")] = "1/1",
) -> None:
    """Restore every window of layers of an unlearned model and store the losses.

    A SPEC is a Hugging Face directory (a full model or a PEFT adapter), a .gguf file, a Hub id
    (optionally with @revision) or the embedded gemma-3-270m.

    Args:
        vanilla: The original model.
        unlearned: One or more unlearned models of the same architecture and tokenizer.
        queries: A .jsonl file, a built-in name such as `capitals`, or a data set (`bmlama:FILE`);
            see `interp queries --help`.
        out: Run directory; what it holds already is not measured again.
        languages: BCP-47 codes of the query languages; all that the queries have by default.
        limit: At most this many queries per language; all by default.
        sites: What to restore, joined by + where together: coef, attn, value, and the controls
            key, attn_weights, norms, unembed, mlp_out, resid.
        window: Number of consecutive layers restored together, odd.
        num_tokens: Longest answer of the vanilla model, in tokens.
        engine: layered (fast), or full (the plain reference).
        variant: paper, or hong2024 for the released notebooks' positions and averaging.
        positions: Where states are restored: all, prompt or answer.
        direction: restore (vanilla parts into the unlearned model), or corrupt (the reverse).
        distance: logit_mse, kl or answer_logprob.
        dtype: float32, bfloat16 or float16; float32 on a CPU, else the checkpoint's own.
        device: cpu, cuda, cuda:1; a GPU if there is one.
        shard: Measure only the I-th of N parts of the work, for batch systems.
    """
    import interp
    from interp.launch import check_shard
    from interp.recovery.sweep import SweepConfig

    part = _shard(shard)
    check_shard(part)
    settings = {
        "sites": sites,
        "window": window,
        "engine": engine,
        "variant": variant,
        "positions": positions,
        "direction": direction,
        "distance": distance,
    }
    SweepConfig(**settings)
    asked = interp.queries(queries, languages=languages, limit=limit)
    loaded = interp.load(vanilla, device=device, dtype=dtype)
    for spec in unlearned:
        interp.sweep(
            loaded,
            interp.load(spec, like=loaded),
            asked,
            num_tokens=num_tokens,
            out=out,
            shard=part,
            **settings,
        )
    print(f"losses in {out / 'losses'}; next: interp krs {out}, interp figures {out}")


def krs(
    directory: Annotated[Positional[Path], arg(metavar="DIR")],
    *,
    variant: OptionalName = None,
    by: Annotated[tuple[str, ...], arg(metavar="COLUMN [COLUMN ...]")] = ("language",),
    csv: Annotated[Path | None, arg(metavar="FILE")] = None,
) -> None:
    """Print the knowledge recovery scores of a run, or write them to a CSV file.

    Args:
        directory: The run directory.
        variant: paper (ratio of means) or hong2024 (mean of ratios); that of the run by default.
        by: Columns that make a group: language, concept, query_id.
        csv: Write the whole table here instead.
    """
    from interp.files import write_atomically
    from interp.launch import Recovery

    table = Recovery.read(directory).krs(variant=variant, by=by)
    if csv is not None:
        write_atomically(csv, lambda scratch: table.to_csv(scratch, index=False))
        print(csv)
        return
    name = "effect" if "effect" in table else "krs"
    groups = list(table.columns[: list(table.columns).index("site")])
    wide = table.pivot(index=[*groups, "site"], columns="layer", values=name)
    print(f"{name} by layer (window centre)")
    print(wide.to_string(float_format=lambda value: f"{value:.2f}", na_rep="–"))
    for reason in sorted(set(table["reason"]) - {""}):
        print(f"note: {reason}")


def figures(
    directory: Annotated[Positional[Path], arg(metavar="DIR")],
    *,
    formats: tuple[Format, ...] = ALL_FORMATS,
    out: Annotated[Path | None, arg(metavar="DIR")] = None,
) -> None:
    """Draw a run: a heatmap (language by layer, a facet per site) and lines with intervals.

    Args:
        directory: The run directory.
        formats: Figure formats; all but html need the extra `export` and a Chrome.
        out: Where to write them; DIR/figures by default.
    """
    from interp.figures import export
    from interp.launch import Recovery

    recovery = Recovery.read(directory)
    target = directory / "figures" if out is None else out
    drawn = {target / "heatmap": recovery.heatmap(), target / "lines": recovery.lines()}
    for path in export(drawn, formats=formats):
        print(path)


def queries(
    name: Annotated[Positional[str], arg(metavar="NAME")],
    *,
    out: Annotated[Path, arg(metavar="FILE")],
    languages: OptionalCodes = None,
    limit: Annotated[int | None, arg(metavar="INT")] = None,
    form: Literal["question", "cloze"] = "question",
    wording: int = 1,
) -> None:
    """Write queries as JSON Lines: built-in facts, or the entries of a data set.

    Built in are capitals, currencies, official-languages and continents. Data sets are named with
    their reader: bmlama:FILE, flores:FILE, tofu:FILE, rwku:FILE, concepts:FILE, where FILE may be a
    Hub name, hub:OWNER/NAME[@REVISION][:CONFIG][:SPLIT].

    Args:
        name: The set, such as `capitals` or `bmlama:forget-32.jsonl`.
        out: The .jsonl file to write.
        languages: BCP-47 codes; all that the set has by default.
        limit: At most this many queries per language; all by default.
        form: question, or cloze: a sentence that the answer completes.
        wording: Which of the built-in wordings of that form, from 1.
    """
    from interp.data.queries import queries as read
    from interp.data.query import write_queries

    found = read(name, languages=languages, limit=limit, form=form, wording=wording)
    write_queries(found, out)
    counts = Counter(query.language for query in found)
    print(f"{len(found)} queries in {out}: {', '.join(f'{k} {n}' for k, n in counts.items())}")


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
    config = replace(config, reading=_changed(config.reading, changes))
    if num_instructions == 0:
        config = replace(config, tuning=None)
    elif config.tuning is not None:
        of_both = {key: changes[key] for key in ("parameters", "lora_rank", "seed")}
        config = replace(config, tuning=_changed(config.tuning, of_both))
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
        method: ga, gd, gd_kl, dpo, npo, npo_kl, npo_rt, simnpo, idk, rmu, lingtea, lingtea_code,
            task_vector, memit_empty or memit_entropy.
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
            "stops": tuple(map(_stop, stops)) or None,
            "seed": seed,
            "settings": {**chosen.config.settings, **_settings(settings)},
        }
    else:
        changes |= _settings(settings)
    config = _changed(chosen.config, changes)
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


COMMANDS: dict[str, Callable[..., None]] = {
    "demo": demo,
    "contaminate": contaminate,
    "unlearn": unlearn,
    "sweep": sweep,
    "krs": krs,
    "figures": figures,
    "queries": queries,
}


def main(args: Sequence[str] | None = None) -> None:
    """Run a command. A person's mistake is one sentence on standard error and exit code 2."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            tyro.extras.subcommand_cli_from_dict(
                COMMANDS,
                prog="interp",
                description="How much forgotten knowledge returns when parts of the original "
                "model are put back, per layer and language.",
                args=args,
                config=(OmitSubcommandPrefixes,),
            )
        except (ValueError, LookupError, ImportError, OSError) as error:
            print(f"interp: {_sentence(error)}", file=sys.stderr)
            sys.exit(2)
        except KeyboardInterrupt:
            print("interp: stopped; the same command goes on where it was", file=sys.stderr)
            sys.exit(130)


def _changed(config: T, changes: Mapping[str, object]) -> T:
    """Settings with those changes that a person asked for."""
    asked = {key: value for key, value in changes.items() if value is not None}
    valid = [field.name for field in fields(config)]  # pyright: ignore[reportArgumentType]
    for name in asked:
        if name not in valid:
            raise ValueError(f"no setting {name!r}; valid: {', '.join(valid)}")
    return replace(config, **asked)  # pyright: ignore[reportArgumentType, reportCallIssue]


def _stop(text: str) -> Stop:
    found = re.fullmatch(r"\s*([^<>\s]+)\s*([<>])\s*([\d.]+)(%?)\s*", text)
    try:
        metric, sign, number, percent = found.groups() if found else ("", "", "", "")
        value = float(number) / (100 if percent else 1)
    except ValueError:
        raise ValueError(
            f"a stop must be METRIC<VALUE or METRIC>VALUE, such as forget_ce>8, not {text!r}"
        ) from None
    from interp.unlearning.config import Stop

    bound = {"below": value} if sign == "<" else {"above": value}
    return Stop(metric=metric, relative=bool(percent), **bound)


def _settings(pairs: Sequence[str]) -> dict[str, float]:
    found = {}
    for pair in pairs:
        name, _, value = pair.partition("=")
        try:
            found[name] = float(value)
        except ValueError:
            raise ValueError(
                f"a setting must be NAME=VALUE with a number, such as beta=0.1, not {pair!r}"
            ) from None
    return found


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


def _shard(text: str) -> tuple[int, int]:
    index, slash, count = text.partition("/")
    if not (slash and index.isdigit() and count.isdigit()):
        raise ValueError(f"shard must be I/N, such as 1/4, not {text!r}")
    return int(index), int(count)


def _sentence(error: BaseException) -> str:
    text = str(error) or type(error).__name__
    return " ".join(text.split())


def _show_warning(message: Warning | str, *_rest: object, **_more: object) -> None:
    print(f"interp: note: {' '.join(str(message).split())}", file=sys.stderr)


if __name__ == "__main__":
    main()
