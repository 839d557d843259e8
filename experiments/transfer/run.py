"""Training a behaviour away in English (Neplenbroek, Bisazza & Fernández 2025), and its price.

    python -m experiments.transfer.run quick --out runs/transfer-quick

1. The model is trained in English alone: fine-tuned on wanted text, and by DPO on pairs.
2. For each language, the reduction of the behaviour is compared with the language's share of web
   text; language consistency, diversity and perplexity are measured.
3. A sweep measures the recovery of the vanilla answers, layer by layer.

`quick` and `full` train the embedded model to say that it does not know, asked for capitals.
`paper` reads the authors' data from files. Models, answers and losses are kept under the output
directory: a run that was killed goes on.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import tyro

import interp
from experiments.runner import run_preset, start_command
from experiments.study import Study
from experiments.transfer.config import LIMITS, NAMES, PRESETS, VANILLA, Config
from experiments.transfer.data import (
    METHODS,
    AnswerPair,
    BehaviourTask,
    make_task,
    select_questions,
)
from experiments.transfer.figures import make_figures
from experiments.transfer.findings import make_findings
from experiments.transfer.tables import BEHAVIOUR, CONSISTENCY, DIVERSITY, MARGIN, NLL, make_tables
from interp import LanguageModel, Query, sweep
from interp.behaviour import (
    Answer,
    compute_distinct,
    generate,
    measure_consistency,
    measure_memorization,
    score_labels,
)
from interp.data import list_fields, make_key
from interp.evaluation import evaluate
from interp.models import compute_text_hash
from interp.results import read_table, write_table
from interp.unlearning import train

ITEM_COLUMNS = ("model", "language", "item", "measure", "value", "weight")


def main(
    preset: tyro.conf.Positional[str] = "quick",
    *,
    out: Path | None = None,
    model: str | None = None,
) -> None:
    """Train a behaviour away in English by two methods; measure it, and its price, everywhere.

    Args:
        preset: quick (minutes, two cores), full (an hour), or paper (the authors' data and models).
        out: directory of models, tables, figures and findings; runs/transfer-PRESET if not given.
        model: another vanilla model than the preset's: a directory, a .gguf file or a Hub id.
    """
    run_preset("transfer", run, PRESETS, preset, out, model=model)


def run(config: Config, out: Path, *, progress: bool = True) -> Study:
    """Make and measure every model, and make the study of them.

    Args:
        config: the settings.
        out: the run directory; what it holds is not made again.
        progress: show progress on standard error.

    Raises:
        ValueError: settings or data that do not fit.
    """
    measurements = measure(config, out, progress=progress)
    tables = make_tables(measurements, config)
    return Study(
        name="transfer",
        title="A behaviour trained away in English: transfer and price",
        limits=LIMITS,
        config=asdict(config),
        tables=tables,
        figures=make_figures(measurements, tables, config),
        findings=make_findings(measurements, tables, config),
    )


def measure(config: Config, out: Path, *, progress: bool = True) -> dict[str, pd.DataFrame]:
    """Train by both methods, and measure the models.

    Args:
        config: the settings.
        out: the run directory; what it holds is not made again.
        progress: show progress on standard error.

    Returns:
        The tables of `measure_models`.

    Raises:
        ValueError: settings or data that do not fit.
    """
    task = make_task(config)
    vanilla = interp.load(config.model, dtype=config.dtype)
    models = {VANILLA: vanilla}
    for method, settings in (("finetune", config.finetune), ("dpo", config.dpo)):
        if progress:
            print(f"{NAMES[method]} in English", file=sys.stderr)
        trained = train(
            vanilla,
            task.make_examples(method),
            settings,
            out=out / "models" / method,
            progress=progress,
        )
        models[method] = trained.model
    if progress:
        print("the behaviour, its price and its recovery in every language", file=sys.stderr)
    return measure_models(
        models,
        task,
        out=out,
        num_tokens=config.num_tokens,
        swept=select_questions(task, config),
        sites=config.sites,
        progress=progress,
    )


def measure_models(
    models: Mapping[str, LanguageModel],
    task: BehaviourTask,
    *,
    out: Path,
    num_tokens: int = 30,
    swept: Sequence[Query] = (),
    sites: Sequence[str] = ("coef", "attn", "coef+attn", "value"),
    progress: bool = True,
) -> dict[str, pd.DataFrame]:
    """Measure the behaviour, its price and its recovery; what `out` has is not measured again.

    Args:
        models: `VANILLA` and one of each method, by these names.
        task: what is measured.
        out: folder for answers, measures and losses.
        num_tokens: the longest answer.
        swept: questions of the sweep.
        sites: what the sweep restores.
        progress: show progress bars.

    Returns:
        `items`, see `measure_items`; `measures`, see `interp.evaluate`, by the models' names here,
        with the column `of`: answers to `questions`, or continuations of `texts`; `answers`, a
        column per model; `losses` of the sweep, with the column `method`.
    """
    own = {model.name: name for name, model in models.items()}
    about: dict[str, tuple[Sequence[Query], list[str]]] = {
        "texts": (task.prompts, ["consistency", "diversity"])
    }
    if all(query.answer for query in task.questions):
        about["questions"] = (task.questions, ["alias", "consistency"])
    measures, answers = [], []
    for of, (queries, metrics) in about.items():
        table = evaluate(
            list(models.values()),
            queries,
            metrics,
            num_tokens=num_tokens,
            out=out / of,
            progress=progress,
        )
        measures.append(table.assign(of=of, model=[own[name] for name in table["model"]]))
        answers.append(_tabulate_answers(models, queries, num_tokens, out / of))
    scored = measure_items(
        models, task, num_tokens=num_tokens, out=out / "texts", progress=progress
    )
    recovery = sweep(
        models[VANILLA],
        [models[method] for method in METHODS],
        list(swept),
        sites=sites,
        num_tokens=num_tokens,
        out=out / "sweep",
        progress=progress,
    )
    losses = recovery.losses
    return {
        "items": scored,
        "measures": pd.concat(measures, ignore_index=True),
        "answers": pd.concat(answers, ignore_index=True),
        "losses": losses.assign(method=[own[name] for name in losses["unlearned"]]),
    }


def measure_items(
    models: Mapping[str, LanguageModel],
    task: BehaviourTask,
    *,
    num_tokens: int = 30,
    out: Path | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Take all measures of all models, item by item.

    Args:
        models: by the name that they get in the table.
        task: what is measured.
        num_tokens: the longest continuation.
        out: a folder that keeps answers and each model's rows; what it has is not done again.
        progress: show progress bars.

    Returns:
        `ITEM_COLUMNS`: values that have no weight are NaN.

    Raises:
        ValueError: a text that does not fit a model's context.
        ImportError: py3langid is not installed.
    """
    parts = []
    for name, model in models.items():
        key = make_key(
            kind="transfer items",
            model=model.content_hash(),
            text=compute_text_hash(model),
            asked=repr([asdict(pair) for pair in task.asked]),
            prompts=repr([list_fields(query) for query in task.prompts]),
            held_out=repr([list_fields(text) for text in task.held_out]),
            per_token=task.per_token,
            num_tokens=num_tokens,
        )
        file = None if out is None else out / "items" / f"{key[:16]}.parquet"
        if file is not None and file.is_file():
            table = read_table(file, of=key)
        else:
            cache = None if out is None else out / "answers.jsonl"
            answers = generate(
                model, task.prompts, num_tokens=num_tokens, cache=cache, progress=progress
            )
            rows = [
                *score_preferences(model, task.asked, per_token=task.per_token, progress=progress),
                *score_continuations(answers),
                *score_held_out(model, task, progress=progress),
            ]
            table = pd.DataFrame(rows)
            if file is not None:
                write_table(file, table, of=key)
        parts.append(table.assign(model=name))
    return pd.concat(parts, ignore_index=True).reindex(columns=list(ITEM_COLUMNS))


def score_preferences(
    model: LanguageModel,
    pairs: Sequence[AnswerPair],
    *,
    per_token: bool = False,
    progress: bool = True,
) -> list[dict[str, object]]:
    """Score which answer of each pair a model prefers: rows of `behaviour` and `margin`.

    Args:
        model: the model.
        pairs: of answers.
        per_token: see `Task`; the margin is then in nats per token.
        progress: show a progress bar.
    """
    examples = [example for pair in pairs for example in pair.make_examples()]
    logprobs = [
        scores.logprobs.double() for scores in score_labels(model, examples, progress=progress)
    ]
    likelihoods = [(each.mean() if per_token else each.sum()).item() for each in logprobs]
    rows = []
    for pair, chosen, rejected in zip(pairs, likelihoods[::2], likelihoods[1::2], strict=True):
        about = {"language": pair.language, "item": pair.id, "weight": 1.0}
        rows.append(about | {"measure": BEHAVIOUR, "value": float(rejected > chosen)})
        rows.append(about | {"measure": MARGIN, "value": rejected - chosen})
    return rows


def score_continuations(answers: Sequence[Answer]) -> list[dict[str, object]]:
    """Score continuations: rows of `consistency` and `distinct-2`."""
    rows = []
    for answer in answers:
        query = answer.query
        consistency = measure_consistency([answer], progress=False)["consistency"].iloc[0]
        varied = compute_distinct([answer.text], query.language, order=2).value
        for measure, value in ((CONSISTENCY, consistency), (DIVERSITY, varied)):
            about = {"language": query.language, "item": query.id, "measure": measure}
            rows.append(about | {"value": float(value), "weight": float(not math.isnan(value))})
    return rows


def score_held_out(
    model: LanguageModel, task: BehaviourTask, *, progress: bool = True
) -> list[dict[str, object]]:
    """Score how likely held-out texts are: rows of `nll`."""
    table = measure_memorization(model, task.held_out, progress=progress)
    return [
        {
            "language": row["language"],
            "item": row["text_id"],
            "measure": NLL,
            "value": row["nll"],
            "weight": float(row["num_tokens"]),
        }
        for row in table.to_dict("records")
    ]


def _tabulate_answers(
    models: Mapping[str, LanguageModel], queries: Sequence[Query], num_tokens: int, folder: Path
) -> pd.DataFrame:
    """Tabulate the answers that an evaluation kept, a column per model."""
    table = pd.DataFrame(
        {
            "language": [query.language for query in queries],
            "query_id": [query.id for query in queries],
            "concept": [query.concept for query in queries],
            "prompt": [query.prompt for query in queries],
        }
    )
    for name, model in models.items():
        answers = generate(
            model, queries, num_tokens=num_tokens, cache=folder / "answers.jsonl", progress=False
        )
        table[name] = [answer.text for answer in answers]
    return table


if __name__ == "__main__":
    start_command("transfer", main)
