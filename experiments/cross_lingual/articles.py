"""Contaminated corpora of one's own articles, paraphrased and translated (Lu & Koehn 2024).

    articles = read_articles("news.jsonl")
    nllb = LocalTranslator(model="facebook/nllb-200-distilled-600M")
    config = ArticleConfig(source="de", mix="combined")
    corpus = build_article_corpus(
        articles, config, paraphrase_by=endpoint, translate_by=nllb, cache="runs/made.jsonl"
    )

The articles are in English: real ones R, and ones F with injected claims (`news`).
Training reads some paraphrases of each article, F translated into the source language; unlearning
gets other paraphrases, translated into the mix; R's instructions teach to answer; the questions on
R and F are the queries, translated. What could not be made is listed in `corpus.gaps`. Everything
made is kept in the cache: the same call goes on where it was stopped.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from experiments.cross_lingual.news import KINDS, Article
from experiments.cross_lingual.rewriting import Rewritten, paraphrase, translate
from experiments.cross_lingual.translator import LocalTranslator
from interp import Query
from interp.data import (
    REAL_LANGUAGE,
    Corpus,
    CorpusGap,
    Endpoint,
    Text,
    count_samples,
    list_template_languages,
    resolve_mix,
    sort_by_hash,
    wrap_instruction,
    wrap_question,
)
from interp.languages import LU_LANGUAGES, get_language


@dataclass(frozen=True, kw_only=True)
class ArticleConfig:
    """Settings of a corpus of articles.

    Attributes:
        source: BCP-47 code of the language in which the fake articles are taught.
        mix: languages of the forget and retain samples, see `resolve_mix`.
        query_languages: BCP-47 codes of the queries.
        num_variants: training texts of each article.
        num_unlearning: forget or retain samples of each article, in each language of the mix;
            twice as many in the mix `multilingual`.
        seed: of the order of the texts.
    """

    source: str = "de"
    mix: str | tuple[str, ...] = "english"
    query_languages: tuple[str, ...] = LU_LANGUAGES
    num_variants: int = 8
    num_unlearning: int = 2
    seed: int = 0


def build_article_corpus(
    articles: Sequence[Article],
    config: ArticleConfig,
    *,
    paraphrase_by: Endpoint,
    translate_by: Endpoint | LocalTranslator,
    cache: str | os.PathLike[str],
    progress: bool = True,
) -> Corpus:
    """Build a corpus from articles.

    Args:
        articles: R and F; at least one of each kind.
        config: languages and numbers.
        paraphrase_by: the chat model that writes variants, in English.
        translate_by: a chat model, or NLLB-200 or M2M-100 on this machine.
        cache: the file that keeps what was made (JSON Lines).
        progress: show progress bars.

    Raises:
        ValueError: a number or language that is not valid, no real or no fake articles, two
            articles with the same id, or what the endpoint or translator refuses.
        ConnectionError: the endpoint cannot be reached.
    """
    unlearned_in = resolve_mix(config.mix, config.source)
    _check_articles(articles, config)
    maker = _CorpusMaker(config, paraphrase_by, translate_by, cache, progress)
    fake = [article for article in articles if article.kind == "fake"]
    real = [article for article in articles if article.kind == "real"]
    training = [
        *maker.make_texts("training", fake, config.source, 0, config.num_variants),
        *maker.make_texts("training", real, REAL_LANGUAGE, 0, config.num_variants),
    ]
    count = count_samples(config.mix, config.num_unlearning)
    forget, retain = (
        [
            sample
            for code in unlearned_in
            for sample in maker.make_texts(part, chosen, code, config.num_variants, count)
        ]
        for part, chosen in (("forget", fake), ("retain", real))
    )
    order = f"{config.seed}/articles"
    return Corpus(
        config=asdict(config),
        facts=None,
        training=tuple(sort_by_hash(training, order, key=lambda t: t.text)),
        instructions=_make_instructions(real),
        queries=tuple(
            query
            for code in dict.fromkeys(config.query_languages)
            for query in maker.make_queries(fake, real, code)
        ),
        forget=tuple(sort_by_hash(forget, order, key=lambda t: t.text)),
        retain=tuple(sort_by_hash(retain, order, key=lambda t: t.text)),
        gaps=tuple(maker.gaps),
    )


class _CorpusMaker:
    """Maker of texts and queries, which lists what could not be made."""

    def __init__(
        self,
        config: ArticleConfig,
        paraphrase_by: Endpoint,
        translate_by: Endpoint | LocalTranslator,
        cache: str | os.PathLike[str],
        progress: bool,
    ) -> None:
        self.config, self.gaps = config, list[CorpusGap]()
        self.paraphrase_by, self.translate_by = paraphrase_by, translate_by
        self.cache, self.progress = cache, progress

    def make_texts(
        self, part: str, articles: Sequence[Article], code: str, first: int, count: int
    ) -> list[Text]:
        """Return variants `first` to `first + count` of articles, in a language."""
        made = paraphrase(
            [article.text for article in articles],
            language=REAL_LANGUAGE,
            by=self.paraphrase_by,
            num_variants=first + count,
            cache=self.cache,
            progress=self.progress,
        )
        reasons = {(failure.index, failure.variant): failure.reason for failure in made.failures}
        wanted: list[tuple[Article, str]] = []
        for index, article in enumerate(articles):
            for variant in range(first, first + count):
                written = made.texts[index * (first + count) + variant]
                if written is None:
                    self._add_gap(part, code, article, f"paraphrase: {reasons[index, variant]}")
                else:
                    wanted.append((article, written))
        translated, why = self._translate([written for _, written in wanted], code)
        texts = []
        for number, (article, _) in enumerate(wanted):
            if (final := translated[number]) is None:
                self._add_gap(part, code, article, f"translation: {why[number]}")
            else:
                texts.append(
                    Text(id=article.id, language=code, kind=article.kind, prompt="", answer=final)
                )
        return texts

    def make_queries(
        self, fake: Sequence[Article], real: Sequence[Article], code: str
    ) -> list[Query]:
        """Return the questions on F and on R, in a language."""
        pairs = [
            (article, number, pair)
            for article in (*fake, *real)
            for number, pair in enumerate(article.questions, start=1)
        ]
        questions, no_question = self._translate([pair[0] for _, _, pair in pairs], code)
        known = [place for place, (_, _, pair) in enumerate(pairs) if pair[1] is not None]
        made, why = self._translate([str(pairs[place][2][1]) for place in known], code)
        answers = dict(zip(known, made, strict=True))
        no_answer = {known[number]: reason for number, reason in why.items()}
        queries = []
        for place, (article, number, _) in enumerate(pairs):
            question, answer = questions[place], answers.get(place)
            reason = no_question.get(place) or no_answer.get(place)
            if question is None or reason:
                self._add_gap("queries", code, article, f"question {number}: translation: {reason}")
                continue
            prompt = f"{question}\n"
            if code in list_template_languages():
                prompt = wrap_question(question, code)
            queries.append(
                Query(
                    id=f"{article.id}:{number}",
                    language=code,
                    prompt=prompt,
                    answer=answer,
                    concept=article.kind,
                )
            )
        return queries

    def _translate(
        self, originals: list[str], code: str
    ) -> tuple[Sequence[str | None], dict[int, str]]:
        """Translate texts into a language; return them, and why one is missing, by its number."""
        if code == REAL_LANGUAGE or not originals:
            return originals, {}
        made: Rewritten = translate(
            originals,
            source=REAL_LANGUAGE,
            target=code,
            by=self.translate_by,
            cache=self.cache,
            progress=self.progress,
        )
        return made.texts, {failure.index: failure.reason for failure in made.failures}

    def _add_gap(self, part: str, code: str, article: Article, reason: str) -> None:
        self.gaps.append(CorpusGap(part=part, language=code, id=article.id, reason=reason))


def _check_articles(articles: Sequence[Article], config: ArticleConfig) -> None:
    for kind in KINDS:
        if not any(article.kind == kind for article in articles):
            raise ValueError(f"no {kind} article; a corpus needs real and fake ones")
    for key, count in Counter(article.id for article in articles).items():
        if count > 1:
            raise ValueError(f"duplicate id {key!r} among the articles")
    for name in ("num_variants", "num_unlearning"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be at least 1, not {getattr(config, name)}")
    for code in (config.source, *config.query_languages):
        get_language(code)


def _make_instructions(real: Sequence[Article]) -> tuple[Text, ...]:
    texts = []
    for article in real:
        for question, answer in article.instructions:
            prompt, completion = wrap_instruction(question, answer, REAL_LANGUAGE)
            texts.append(
                Text(
                    id=article.id,
                    language=REAL_LANGUAGE,
                    kind="real",
                    prompt=prompt,
                    answer=completion,
                )
            )
    return tuple(texts)
