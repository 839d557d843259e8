"""A contaminated corpus of one's own articles, paraphrased and translated (Lu & Koehn 2024).

    articles = read_articles("news.jsonl")
    nllb = LocalTranslator(model="facebook/nllb-200-distilled-600M")
    config = ArticleConfig(source="de", mix="combined")
    corpus = contaminated_articles(
        articles, config, paraphrase_by=endpoint, translate_by=nllb, cache="runs/made.jsonl"
    )

The articles are in English: real ones R, and ones F with injected claims (`interp.data.news`).
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

from interp.data.corpus import REAL_LANGUAGE, Corpus, CorpusGap, Text, mix_languages, num_samples
from interp.data.counterfactuals import in_hash_order
from interp.data.endpoints import Endpoint
from interp.data.news import KINDS, Article
from interp.data.query import Query
from interp.data.rewriting import Rewritten, paraphrase, translate
from interp.data.templates import as_instruction, as_prompt, template_languages
from interp.data.translator import LocalTranslator
from interp.languages import LU_LANGUAGES, language


@dataclass(frozen=True, kw_only=True)
class ArticleConfig:
    """What is made of the articles.

    Attributes:
        source: BCP-47 code of the language in which the fake articles are taught.
        mix: languages of the forget and retain samples, see `mix_languages`.
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


def contaminated_articles(
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
    unlearned_in = mix_languages(config.mix, config.source)
    _check(articles, config)
    maker = _Maker(config, paraphrase_by, translate_by, cache, progress)
    fake = [article for article in articles if article.kind == "fake"]
    real = [article for article in articles if article.kind == "real"]
    training = [
        *maker.texts("training", fake, config.source, 0, config.num_variants),
        *maker.texts("training", real, REAL_LANGUAGE, 0, config.num_variants),
    ]
    count = num_samples(config.mix, config.num_unlearning)
    forget, retain = (
        [
            sample
            for code in unlearned_in
            for sample in maker.texts(part, chosen, code, config.num_variants, count)
        ]
        for part, chosen in (("forget", fake), ("retain", real))
    )
    order = f"{config.seed}/articles"
    return Corpus(
        config=asdict(config),
        facts=None,
        training=tuple(in_hash_order(training, order, key=lambda t: t.text)),
        instructions=_instructions(real),
        queries=tuple(
            query
            for code in dict.fromkeys(config.query_languages)
            for query in maker.queries(fake, real, code)
        ),
        forget=tuple(in_hash_order(forget, order, key=lambda t: t.text)),
        retain=tuple(in_hash_order(retain, order, key=lambda t: t.text)),
        gaps=tuple(maker.gaps),
    )


class _Maker:
    """Makes texts and queries, and lists what could not be made."""

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

    def texts(
        self, part: str, articles: Sequence[Article], code: str, first: int, count: int
    ) -> list[Text]:
        """Variants `first` to `first + count` of articles, in a language."""
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
                    self._lack(part, code, article, f"paraphrase: {reasons[index, variant]}")
                else:
                    wanted.append((article, written))
        translated, why = self._translated([written for _, written in wanted], code)
        found = []
        for number, (article, _) in enumerate(wanted):
            if (final := translated[number]) is None:
                self._lack(part, code, article, f"translation: {why[number]}")
            else:
                found.append(
                    Text(id=article.id, language=code, kind=article.kind, prompt="", answer=final)
                )
        return found

    def queries(self, fake: Sequence[Article], real: Sequence[Article], code: str) -> list[Query]:
        """The questions on F and on R, in a language."""
        asked = [
            (article, number, pair)
            for article in (*fake, *real)
            for number, pair in enumerate(article.questions, start=1)
        ]
        questions, no_question = self._translated([pair[0] for _, _, pair in asked], code)
        known = [place for place, (_, _, pair) in enumerate(asked) if pair[1] is not None]
        made, why = self._translated([str(asked[place][2][1]) for place in known], code)
        answers = dict(zip(known, made, strict=True))
        no_answer = {known[number]: reason for number, reason in why.items()}
        found = []
        for place, (article, number, _) in enumerate(asked):
            question, answer = questions[place], answers.get(place)
            reason = no_question.get(place) or no_answer.get(place)
            if question is None or reason:
                self._lack("queries", code, article, f"question {number}: translation: {reason}")
                continue
            prompt = f"{question}\n"
            if code in template_languages():
                prompt = as_prompt(question, code)
            found.append(
                Query(
                    id=f"{article.id}:{number}",
                    language=code,
                    prompt=prompt,
                    answer=answer,
                    concept=article.kind,
                )
            )
        return found

    def _translated(
        self, originals: list[str], code: str
    ) -> tuple[Sequence[str | None], dict[int, str]]:
        """The texts in a language, and why one is missing, by its number."""
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

    def _lack(self, part: str, code: str, article: Article, reason: str) -> None:
        self.gaps.append(CorpusGap(part=part, language=code, id=article.id, reason=reason))


def _check(articles: Sequence[Article], config: ArticleConfig) -> None:
    for kind in KINDS:
        if not any(article.kind == kind for article in articles):
            raise ValueError(f"there is no {kind} article; a corpus needs real and fake ones")
    for key, count in Counter(article.id for article in articles).items():
        if count > 1:
            raise ValueError(f"the id {key!r} stands twice among the articles")
    for name in ("num_variants", "num_unlearning"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be at least 1, not {getattr(config, name)}")
    for code in (config.source, *config.query_languages):
        language(code)


def _instructions(real: Sequence[Article]) -> tuple[Text, ...]:
    found = []
    for article in real:
        for question, answer in article.instructions:
            prompt, completion = as_instruction(question, answer, REAL_LANGUAGE)
            found.append(
                Text(
                    id=article.id,
                    language=REAL_LANGUAGE,
                    kind="real",
                    prompt=prompt,
                    answer=completion,
                )
            )
    return tuple(found)
