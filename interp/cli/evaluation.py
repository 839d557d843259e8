"""`interp evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import arg

from interp.cli.commands import OptionSet, has_options
from interp.cli.options import (
    ChatOptions,
    FigureOptions,
    Format,
    ModelOptions,
    QueryOptions,
    read_chat_options,
    select_load_options,
)
from interp.files import check_folder
from interp.launch.options import AnswerOptions

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

    from interp.data.corpus import Text
    from interp.data.endpoints import Endpoint
    from interp.models.language_model import LanguageModel


_OPTIONS = OptionSet(
    configs=(QueryOptions, ChatOptions, AnswerOptions, FigureOptions, ModelOptions)
)


@has_options(lambda _args: _OPTIONS)
def evaluate(
    *,
    models: Annotated[tuple[str, ...], arg(metavar="SPEC [SPEC ...]")],
    out: Annotated[Path, arg(metavar="DIR")],
    metrics: Annotated[tuple[str, ...], arg(metavar="NAME [NAME ...]")] = ("accuracy", "alias"),
    queries: Annotated[str | None, arg(metavar="FILE|NAME")] = None,
    vanilla: Annotated[str | None, arg(metavar="SPEC")] = None,
    baseline: Annotated[str | None, arg(metavar="SPEC")] = None,
    taught: Annotated[str | None, arg(metavar="CODE")] = None,
    forget: Annotated[str | None, arg(metavar="FILE|NAME")] = None,
    holdout: Annotated[str | None, arg(metavar="FILE|NAME")] = None,
    records: Annotated[str | None, arg(metavar="FILE")] = None,
    judge: Annotated[str | None, arg(metavar="SPEC|URL")] = None,
    judge_model: str | None = None,
    judge_key: Annotated[str | None, arg(metavar="VARIABLE")] = None,
    **options: Any,
) -> None:
    """Measure what models still say, per query language.

    Of what they say: alias (does the answer contain the expected one), o_f and q_r (a chat model
    judges), rouge_l, overlap (BLEU and chrF against the vanilla model's answers), consistency and
    answer_language, diversity. Of what they know: accuracy (the expected answer ranks first),
    memorization (MA, perplexity, extraction strength), probability. What else it
    lost: reference_kl. How firmly: prompts, quantisation, relearning, membership. How deep:
    logit_lens, uds, drift. On TOFU: tofu, forget_quality, model_utility.

    Args:
        models: the models: directories, .gguf files, Hub ids or gemma-3-270m.
        out: directory for the table (measures.csv), the answers and the figures; what it holds
            already is not measured again.
        metrics: what is measured; see above.
        queries: a .jsonl file, a built-in name such as `capitals`, or a data set; by default the
            questions on false and true facts that the first model was contaminated with.
        vanilla: the model before unlearning, for metrics that compare with it.
        baseline: a model that never saw what was to be forgotten, for uds and forget_quality.
        taught: BCP-47 code of the language in which false facts were taught, for answer_language;
            by default that of the first model.
        forget: texts that state what was to be forgotten, for relearning and membership; by
            default those that the first model was contaminated with, in the language taught.
        holdout: texts like those to forget that no model was trained on, for membership.
        records: TOFU's file of the queries (forget10_perturbed.json), for tofu, forget_quality and
            model_utility. Queries uds:FILE bring their own, for uds on entities.
        judge: a chat model for o_f and q_r: one that is loaded here, or the address of an
            OpenAI-compatible endpoint, such as http://localhost:8000/v1.
        judge_model: the model's name at that endpoint.
        judge_key: the environment variable that holds the endpoint's API key.
    """
    import interp
    from interp.data.datasets.questions import read_tofu, read_uds
    from interp.data.datasets.records import EntityQuestion, QuestionAnswer
    from interp.data.filters import filter_languages, limit_per_language
    from interp.data.query import change_form
    from interp.data.texts import change_text_form, load_texts
    from interp.evaluation import check_metrics
    from interp.pipelines import read_corpus

    check_folder(out)
    stated: Sequence[Text] = ()
    asked = read_chat_options(options)
    form = {name: asked[name] for name in ("chat", "system")}
    if queries is None:
        corpus = read_corpus(models[0], mix="same")
        loaded_queries = limit_per_language(
            filter_languages(corpus.queries, options["languages"], models[0]), options["limit"]
        )
        taught = taught or str(corpus.config["source"])
        loaded_queries = change_form(loaded_queries, **asked)
        stated = [text for text in corpus.forget if text.language == taught]
        stated = change_text_form(stated, **form)
    else:
        loaded_queries = interp.queries(
            queries, languages=options["languages"], limit=options["limit"], **asked
        )
    if forget is not None:
        stated = load_texts(forget, **form)
    held_out = [] if holdout is None else load_texts(holdout, **form)
    others = {"vanilla": vanilla, "baseline": baseline, "taught": taught, "forget": stated or None}
    others |= {"holdout": held_out or None, "records": records, "judge": judge}
    check_metrics(metrics, [name for name, spec in others.items() if spec is not None])
    of_queries: Sequence[QuestionAnswer | EntityQuestion] = ()
    if records is not None:
        of_queries = read_tofu(records).records
    elif queries is not None and queries.startswith("uds:"):
        of_queries = read_uds(queries.removeprefix("uds:")).records
    if len(set(models)) < len(models):
        raise ValueError(f"{max(models, key=models.count)!r} is named twice in --models")
    first = interp.load(vanilla or models[0], **select_load_options(options))
    table = interp.evaluate(
        (first if spec == first.name else interp.load(spec, like=first) for spec in models),
        loaded_queries,
        metrics,
        vanilla=None if vanilla is None else first,
        baseline=None if baseline is None else interp.load(baseline, like=first),
        taught=taught,
        forget=stated,
        holdout=held_out,
        records=of_queries,
        judge=None if judge is None else _judge(judge, judge_model, judge_key),
        num_tokens=options["num_tokens"],
        out=out,
    )
    _report(table, out, options["formats"])


def _judge(spec: str, model: str | None, key: str | None) -> Endpoint | LanguageModel:
    import interp
    from interp.data.endpoints import Endpoint

    if spec.startswith(("http://", "https://")):
        if model is None:
            raise ValueError("a judge behind an address needs --judge-model, its name there")
        return Endpoint(url=spec, model=model, api_key_env=key)
    return interp.load(spec)


def _report(table: pd.DataFrame, out: Path, formats: tuple[Format, ...]) -> None:
    """Print a table per metric, models by languages, and draw everything."""
    from interp.figures import export, plot_measures

    whole = table.query("layer.isna()")
    for name in dict.fromkeys(whole["metric"]):
        rows = whole.query("metric == @name")
        wide = rows.pivot(index=["concept", "model"], columns="language", values="value")
        wide = wide[list(dict.fromkeys(rows["language"]))].map(lambda value: f"{value:.3g}")
        print(f"\n{name}\n{wide.to_string()}")
        notes: dict[str, dict[str, None]] = {}
        cells = {}
        for row in rows.to_dict("records"):
            cell = f"{row['language']} {row['concept']}".strip()
            cells[cell] = None
            if row["reason"]:
                notes.setdefault(row["reason"], {})[cell] = None
        for reason, where in notes.items():
            print(f"  note: {reason}" + (f" ({', '.join(where)})" if where != cells else ""))
    figures = {out / "figures" / name: figure for name, figure in plot_measures(table).items()}
    print("", out / "measures.csv", *export(figures, formats=formats), sep="\n")
