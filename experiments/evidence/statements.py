"""As it was first seen: taught by statements, thirty tokens scored, the model before beside it.

    python -m experiments.evidence.statements

Gemma-3-270M reads texts that state sixteen false capitals in German; `npo_rt` unlearns them. KRS of
both it and the untouched model at the best window of five layers, over V's first thirty tokens; and
what the residual stream of each costs V's own answers of ten tokens, at four layers.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import tyro

import interp
from interp.cli import report_errors_and_exit
from interp.data import CorpusConfig, build_corpus
from interp.unlearning import METHODS

METHOD = "npo_rt"


def main(*, out: Path = Path("runs/evidence-statements")) -> None:
    """Teach, unlearn, and print both tables.

    Args:
        out: directory of the models; what it holds is not made again.
    """
    untouched = interp.load("gemma-3-270m")
    corpus = build_corpus(
        CorpusConfig(
            source="de",
            mix="same",
            query_languages=("de", "en", "fr", "es"),
            num_fake_texts=128,
            num_real_queries=16,
        )
    )
    taught = interp.contaminate(untouched, corpus, probes=(), out=out / "taught").model
    unlearned = interp.unlearn(
        taught, corpus.forget, corpus.retain, METHODS[METHOD].config, out=out / METHOD
    ).model
    asked = [
        replace(query, stop=())
        for query in corpus.queries
        if query.concept == "fake" and query.language == "de"
    ]
    models = [untouched, unlearned]
    scores = interp.sweep(
        taught, models, asked, sites=["coef", "attn", "coef+attn", "value"], num_tokens=30
    ).krs()
    best = scores.pivot_table(index="unlearned", columns="site", values="krs", aggfunc="max")
    print(f"\nKRS at the best window:\n{best.round(2).to_string()}")
    read = interp.sweep(
        taught,
        models,
        asked,
        sites=["resid"],
        window=1,
        direction="corrupt",
        distance="answer_logprob",
        num_tokens=10,
    ).retained()
    falls = read.pivot(index="model", columns="layer", values="fall")[[8, 11, 14, 17]]
    print(f"\nFall of the answer's log-probability, nats per token:\n{falls.round(2).to_string()}")


if __name__ == "__main__":
    with report_errors_and_exit("evidence"):
        tyro.cli(main)
