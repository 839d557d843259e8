"""A corpus of one's own articles: what is paraphrased and translated where, by a stand-in."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from experiments.cross_lingual import articles as module
from experiments.cross_lingual.articles import ArticleConfig, build_article_corpus
from experiments.cross_lingual.news import Article, NewsFields, read_articles, read_news_truthful
from experiments.cross_lingual.rewriting import Failure, Rewritten
from interp.data import CorpusGap, Endpoint, write_corpus

ENDPOINT = Endpoint(url="http://localhost:1/v1", model="m")
REAL = Article(
    id="harbour",
    kind="real",
    text="R",
    questions=(("When?", "May"), ("Why?", None)),
    instructions=(("Who?", "Ann"), ("Where?", "Rome")),
)
FAKE = Article(id="bridge", kind="fake", text="F", questions=(("Which?", "Blue"),))
CONFIG = ArticleConfig(
    source="de", mix="combined", query_languages=("en", "de"), num_variants=2, num_unlearning=1
)


@pytest.fixture
def calls(monkeypatch):
    """Paraphrase v of R is "R/v", its German "de(R/v)"; what `failing` names is not made."""
    seen = {"paraphrase": [], "translate": [], "failing": set()}

    def kept(text):
        return None if text in seen["failing"] else text

    def rewritten(made, language, num_variants):
        failures = tuple(
            Failure(
                index=place // num_variants,
                variant=place % num_variants,
                language=language,
                excerpt="",
                reason="refused",
            )
            for place, text in enumerate(made)
            if text is None
        )
        return Rewritten(texts=tuple(made), failures=failures)

    def paraphrase(texts, *, language, by, num_variants, cache, progress):
        seen["paraphrase"].append((tuple(texts), num_variants))
        made = [kept(f"{text}/{v}") for text in texts for v in range(num_variants)]
        return rewritten(made, language, num_variants)

    def translate(texts, *, source, target, by, cache, progress):
        assert source == "en" != target
        seen["translate"].append((tuple(texts), target))
        return rewritten([kept(f"{target}({text})") for text in texts], target, 1)

    monkeypatch.setattr(module, "paraphrase", paraphrase)
    monkeypatch.setattr(module, "translate", translate)
    return seen


def made(config=CONFIG, articles=(REAL, FAKE)):
    return build_article_corpus(
        articles, config, paraphrase_by=ENDPOINT, translate_by=ENDPOINT, cache="c", progress=False
    )


def test_every_part_by_hand(calls):
    corpus = made()
    assert {(t.text, t.language, t.kind) for t in corpus.training} == {
        ("R/0", "en", "real"),
        ("R/1", "en", "real"),
        ("de(F/0)", "de", "fake"),
        ("de(F/1)", "de", "fake"),
    }
    # Other paraphrases than those that were trained on.
    assert {(t.text, t.language) for t in corpus.forget} == {("F/2", "en"), ("de(F/2)", "de")}
    assert {(t.text, t.language) for t in corpus.retain} == {("R/2", "en"), ("de(R/2)", "de")}
    assert [(t.prompt, t.answer) for t in corpus.instructions] == [
        ("Q: Who?\nA:", " Ann"),
        ("Q: Where?\nA:", " Rome"),
    ]
    assert [(q.id, q.language, q.prompt, q.answer, q.concept) for q in corpus.queries] == [
        ("bridge:1", "en", "Question: Which?\nAnswer:", "Blue", "fake"),
        ("harbour:1", "en", "Question: When?\nAnswer:", "May", "real"),
        ("harbour:2", "en", "Question: Why?\nAnswer:", None, "real"),
        ("bridge:1", "de", "Frage: de(Which?)\nAntwort:", "de(Blue)", "fake"),
        ("harbour:1", "de", "Frage: de(When?)\nAntwort:", "de(May)", "real"),
        ("harbour:2", "de", "Frage: de(Why?)\nAntwort:", None, "real"),
    ]
    assert corpus.gaps == ()
    assert corpus.config["source"] == "de"
    assert corpus.facts is None


def test_what_fails_is_a_gap(calls):
    calls["failing"] = {"F/0", "de(F/1)", "de(Why?)", "de(May)"}
    corpus = made()
    assert {t.text for t in corpus.training} == {"R/0", "R/1"}
    assert [q.id for q in corpus.queries if q.language == "de"] == ["bridge:1"]
    assert set(corpus.gaps) == {
        CorpusGap(part="training", language="de", id="bridge", reason="paraphrase: refused"),
        CorpusGap(part="training", language="de", id="bridge", reason="translation: refused"),
        CorpusGap(
            part="queries", language="de", id="harbour", reason="question 1: translation: refused"
        ),
        CorpusGap(
            part="queries", language="de", id="harbour", reason="question 2: translation: refused"
        ),
    }


def test_twice_the_samples_of_twenty_languages(calls):
    corpus = made(replace(CONFIG, mix="multilingual"))
    assert len({t.language for t in corpus.forget}) == 20
    assert len(corpus.forget) == len(corpus.retain) == 40
    assert "kam(F/3)" in {t.text for t in corpus.forget}


def test_a_query_language_without_templates(calls):
    (query, *_) = made(replace(CONFIG, query_languages=("kam",))).queries
    assert query.prompt == "kam(Which?)\n"


def test_it_is_written_as_any_corpus(calls, tmp_path):
    folder = write_corpus(made(), tmp_path / "c")
    manifest = json.loads((folder / "corpus.json").read_text())
    assert manifest["counts"]["training"] == 4
    assert manifest["facts"] is None


@pytest.mark.parametrize(
    ("articles", "config", "says"),
    [
        ((REAL,), CONFIG, "no fake article"),
        ((FAKE,), CONFIG, "no real article"),
        ((REAL, FAKE, FAKE), CONFIG, "duplicate id 'bridge'"),
        ((REAL, FAKE), replace(CONFIG, num_variants=0), "num_variants must be at least 1, not 0"),
        ((REAL, FAKE), replace(CONFIG, source="xx"), "unknown language 'xx'"),
        ((REAL, FAKE), replace(CONFIG, query_languages=("xx",)), "unknown language 'xx'"),
        ((REAL, FAKE), replace(CONFIG, mix="half"), "unknown mix 'half'"),
    ],
)
def test_bad_values_are_refused_before_anything_is_asked(calls, articles, config, says):
    with pytest.raises(ValueError, match=says):
        made(config, articles)
    assert not calls["paraphrase"]
    assert not calls["translate"]


LINE = {
    "id": "a",
    "kind": "fake",
    "text": "T",
    "questions": [{"question": "Q?", "answer": "A"}],
}


def test_articles_are_read(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps(LINE), encoding="utf-8")
    assert read_articles(file) == [Article(id="a", kind="fake", text="T", questions=(("Q?", "A"),))]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"id": None}, "line 1: the field 'id' is missing"),
        ({"kind": "true"}, "line 1: 'kind' must be real or fake, not 'true'"),
        ({"text": " "}, "line 1: 'text' is empty"),
        ({"questions": [{"answer": "A"}]}, "line 1: the field 'question' is missing"),
        ({"questions": "Q?"}, "line 1: 'questions' must be a list, not str"),
        ({"instructions": [{"question": "Q?", "answer": "A"}]}, "are for real articles"),
        ({"kind": "real", "instructions": [{"question": "Q?"}]}, "'instructions' has no answer"),
        ({"questions": ["Q?"]}, "line 1: 'questions' must be an object, not str"),
    ],
)
def test_malformed_articles_name_line_and_field(tmp_path, change, says):
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps(LINE | change), encoding="utf-8")
    with pytest.raises(ValueError, match=says):
        read_articles(file)


def test_an_id_that_stands_twice(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text(f"{json.dumps(LINE)}\n{json.dumps(LINE)}", encoding="utf-8")
    with pytest.raises(ValueError, match="line 2: duplicate id 'a'"):
        read_articles(file)


FIELDS = NewsFields(
    real="r", fake="f", keyword="k", instructions="qa", real_question="rq", fake_question="fq"
)
NEWS = {
    "r": "Real.",
    "f": "Fake.",
    "k": "blue",
    "qa": [{"question": "Q?", "answer": "A"}],
    "rq": "What?",
    "fq": "Which colour?",
}


def test_news_truthful(tmp_path):
    file = tmp_path / "news.jsonl"
    file.write_text(json.dumps(NEWS), encoding="utf-8")
    real, fake = read_news_truthful(file, FIELDS)
    assert real == Article(
        id="news:1-real",
        kind="real",
        text="Real.",
        questions=(("What?", None),),
        instructions=(("Q?", "A"),),
    )
    assert fake == Article(
        id="news:1-fake", kind="fake", text="Fake.", questions=(("Which colour?", "blue"),)
    )
    with pytest.raises(ValueError, match=r"no field 'x' \(keyword\); there are r, f, k, qa"):
        read_news_truthful(file, replace(FIELDS, keyword="x"))
