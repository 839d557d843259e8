"""`interp evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import arg

from interp.cli.options import ALL_FORMATS, Format, OptionalCodes, OptionalName

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

    from interp.data.corpus import Text
    from interp.data.endpoints import Endpoint
    from interp.models.language_model import LanguageModel


def evaluate(
    *,
    models: Annotated[tuple[str, ...], arg(metavar="SPEC [SPEC ...]")],
    out: Annotated[Path, arg(metavar="DIR")],
    metrics: Annotated[tuple[str, ...], arg(metavar="NAME [NAME ...]")] = ("accuracy", "alias"),
    queries: Annotated[str | None, arg(metavar="FILE|NAME")] = None,
    languages: OptionalCodes = None,
    limit: Annotated[int | None, arg(metavar="INT")] = None,
    vanilla: Annotated[str | None, arg(metavar="SPEC")] = None,
    baseline: Annotated[str | None, arg(metavar="SPEC")] = None,
    taught: Annotated[str | None, arg(metavar="CODE")] = None,
    forget: Annotated[str | None, arg(metavar="FILE|NAME")] = None,
    num_tokens: int = 30,
    judge: Annotated[str | None, arg(metavar="SPEC|URL")] = None,
    judge_model: OptionalName = None,
    judge_key: Annotated[str | None, arg(metavar="VARIABLE")] = None,
    formats: tuple[Format, ...] = ALL_FORMATS,
    device: OptionalName = None,
    dtype: OptionalName = None,
) -> None:
    """Measure what models still say, per query language.

    Of what they say: alias (does the answer contain the expected one), o_f and q_r (a chat model
    judges), rouge_l, overlap (BLEU and chrF against the vanilla model's answers), consistency and
    answer_language, diversity. Of what they know: accuracy (the expected answer ranks first),
    memorization (MA, perplexity, extraction strength), probability. How firmly: prompts,
    quantisation, relearning. How deep: logit_lens, uds, drift.

    Args:
        models: The models: directories, .gguf files, Hub ids or gemma-3-270m.
        out: Directory for the table (measures.csv), the answers and the figures; what it holds
            already is not measured again.
        metrics: What is measured; see above.
        queries: A .jsonl file, a built-in name such as `capitals`, or a data set; by default the
            questions on false and true facts that the first model was contaminated with.
        languages: BCP-47 codes of the query languages; all that the queries have by default.
        limit: At most this many queries per language; all by default.
        vanilla: The model before unlearning, for metrics that compare with it.
        baseline: A model that never saw what was to be forgotten, for uds.
        taught: BCP-47 code of the language in which false facts were taught, for answer_language;
            by default that of the first model.
        forget: Texts that state what was to be forgotten, for relearning; by default those that
            the first model was contaminated with, in the language taught.
        num_tokens: Longest answer, in tokens.
        judge: A chat model for o_f and q_r: one that is loaded here, or the address of an
            OpenAI-compatible endpoint, such as http://localhost:8000/v1.
        judge_model: The model's name at that endpoint.
        judge_key: The environment variable that holds the endpoint's API key.
        formats: Figure formats; all but html need the extra `export` and a Chrome.
        device: cpu, cuda, cuda:1; a GPU if there is one.
        dtype: float32, bfloat16 or float16; float32 on a CPU, else the checkpoint's own.
    """
    import interp
    from interp.data.selection import in_languages, limited
    from interp.data.texts import texts
    from interp.evaluation import check_metrics
    from interp.runs import corpus_of

    stated: Sequence[Text] = ()
    if queries is None:
        corpus = corpus_of(models[0], mix="same")
        asked = limited(in_languages(corpus.queries, languages, models[0]), limit)
        taught = taught or str(corpus.config["source"])
        stated = [text for text in corpus.forget if text.language == taught]
    else:
        asked = interp.queries(queries, languages=languages, limit=limit)
    if forget is not None:
        stated = texts(forget)
    others = {"vanilla": vanilla, "baseline": baseline, "taught": taught, "forget": stated or None}
    others["judge"] = judge
    check_metrics(metrics, [name for name, spec in others.items() if spec is not None])
    if len(set(models)) < len(models):
        raise ValueError(f"{max(models, key=models.count)!r} is named twice in --models")
    first = interp.load(vanilla or models[0], device=device, dtype=dtype)
    table = interp.evaluate(
        (first if spec == first.name else interp.load(spec, like=first) for spec in models),
        asked,
        metrics,
        vanilla=None if vanilla is None else first,
        baseline=None if baseline is None else interp.load(baseline, like=first),
        taught=taught,
        forget=stated,
        judge=None if judge is None else _judge(judge, judge_model, judge_key),
        num_tokens=num_tokens,
        out=out,
    )
    _report(table, out, formats)


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
    from interp.figures import export, measures

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
    figures = {out / "figures" / name: figure for name, figure in measures(table).items()}
    print("", out / "measures.csv", *export(figures, formats=formats), sep="\n")
