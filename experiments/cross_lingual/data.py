"""Corpora of false facts in one language, for each mix to forget in (Lu & Koehn 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from experiments.cross_lingual.articles import ArticleConfig, build_article_corpus
from experiments.cross_lingual.config import Config
from experiments.cross_lingual.news import read_articles
from experiments.cross_lingual.translator import LocalTranslator
from interp.data import Corpus, build_corpus, resolve_mix


def make_corpus(config: Config, source: str, mix: str, out: Path) -> Corpus:
    """Build the corpus of a source language and a mix, of built-in facts or of articles."""
    if config.articles is None:
        return build_corpus(replace(config.corpus, source=source, mix=mix))
    made = config.articles
    languages = config.corpus.query_languages
    return build_article_corpus(
        read_articles(made.file),
        ArticleConfig(
            source=source, mix=mix, query_languages=languages, num_variants=made.num_variants
        ),
        paraphrase_by=made.paraphrase_by,
        translate_by=LocalTranslator(model=made.translator),
        cache=out / "articles.jsonl",
    )


def select_mixes(mixes: Sequence[str], source: str) -> tuple[list[str], pd.DataFrame]:
    """Select the mixes to forget in that a source language has, none under two names.

    Returns:
        The mixes, and a row for each that is left out: `unlearning`, `part`, `language`, `reason`.
    """
    kept: dict[tuple[str, ...], str] = {}
    left_out = []
    for mix in mixes:
        try:
            codes = resolve_mix(mix, source)
            reason = f"the same languages as {kept[codes]}" if codes in kept else ""
        except ValueError as error:
            codes, reason = (), str(error)
        if reason:
            row = {"unlearning": mix, "part": "mix", "language": source, "reason": reason}
            left_out.append(row)
        else:
            kept[codes] = mix
    return list(kept.values()), pd.DataFrame(left_out)
