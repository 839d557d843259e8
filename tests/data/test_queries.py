"""Queries from JSON Lines and built in; every malformed line is named by its number."""

from __future__ import annotations

import json

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from interp.data.queries import BUILT_IN, queries
from interp.data.query import Query, read_queries, write_queries
from interp.tables import write_csv

GOOD = '{"id": "1", "language": "de", "prompt": "Hauptstadt?"}'


def refusal(call) -> str:
    with pytest.raises(ValueError, match=r".") as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message


def file_of(tmp_path, content: str | bytes):
    file = tmp_path / "q.jsonl"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


def test_a_file_by_hand(tmp_path):
    file = file_of(
        tmp_path,
        '{"id": "FR", "language": "de", "prompt": "Frage: …\\nAntwort:", "answer": "Paris", '
        '"concept": "capitals", "more": 1}\n\n' + GOOD + "\r\n",
    )
    assert read_queries(file) == [
        Query(
            id="FR",
            language="de",
            prompt="Frage: …\nAntwort:",
            answer="Paris",
            concept="capitals",
        ),
        Query(id="1", language="de", prompt="Hauptstadt?", answer=None, concept=""),
    ]
    assert queries(str(file)) == queries(file) == read_queries(file)


def test_a_folder_that_is_not_there_is_made_and_nothing_else_left(tmp_path):
    query = Query(id="1", language="de", prompt="Hauptstadt?")
    write_queries([query], tmp_path / "new" / "q.jsonl")
    assert read_queries(tmp_path / "new" / "q.jsonl") == [query]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["q.jsonl"]


def test_a_byte_order_mark_is_no_text(tmp_path):
    assert read_queries(file_of(tmp_path, b"\xef\xbb\xbf" + GOOD.encode()))[0].id == "1"


text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)


# Not yet queries: beartype looks at an item of a tuple at random, which a strategy may not do.
fields = st.fixed_dictionaries(
    {
        "id": text,
        "language": st.sampled_from(["de", "zh-Hans"]),
        "prompt": text,
        "answer": st.none() | text,
        "aliases": st.lists(text, max_size=3).map(tuple),
        "concept": st.just("") | text,
    }
)


@given(rows=st.lists(fields, min_size=1, unique_by=lambda row: (row["id"], row["language"])))
def test_what_is_written_is_read(tmp_path_factory, rows):
    file = tmp_path_factory.mktemp("queries") / "q.jsonl"
    written = [Query(**row) for row in rows]
    write_queries(written, file)
    assert read_queries(file) == written
    assert len(file.read_bytes().split(b"\n")) == len(rows) + 1


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "not valid JSON"),
        ("nonsense", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[1]", "a JSON object is needed, not list"),
        ('"text"', "a JSON object is needed, not str"),
        ("null", "a JSON object is needed, not nothing"),
        ('{"language": "de", "prompt": "p"}', "'id' is missing"),
        ('{"id": "1", "prompt": "p"}', "'language' is missing"),
        ('{"id": "1", "language": "de"}', "'prompt' is missing"),
        ('{"id": 1, "language": "de", "prompt": "p"}', "'id' must be text, not int"),
        ('{"id": "2", "language": "de", "prompt": ["p"]}', "'prompt' must be text, not list"),
        ('{"id": "2", "language": "de", "prompt": "  "}', "'prompt' is empty"),
        ('{"id": "2", "language": null, "prompt": "p"}', "'language' is missing"),
        ('{"id": "2", "language": "de", "prompt": "p", "answer": 3}', "'answer' must be text"),
        (
            '{"id": "2", "language": "de", "prompt": "p", "aliases": "x"}',
            "'aliases' must be a list",
        ),
        (
            '{"id": "2", "language": "de", "prompt": "p", "aliases": [1]}',
            "'aliases' must be a list",
        ),
        (GOOD, "duplicate id '1' in language 'de' (first in "),
        (b'{"id": "\xff"}', "not UTF-8 text (byte 8)"),
    ],
)
def test_malformed_lines(tmp_path, line, says):
    raw = line if isinstance(line, bytes) else line.encode()
    file = file_of(tmp_path, GOOD.encode() + b"\n\n" + raw + b"\n")
    message = refusal(lambda: read_queries(file))
    assert says in message
    assert f"{file}, line 3" in message


def test_the_same_id_in_two_languages_is_no_mistake(tmp_path):
    other = json.dumps({"id": "1", "language": "fr", "prompt": "Capitale ?"})
    assert [q.language for q in read_queries(file_of(tmp_path, f"{GOOD}\n{other}"))] == ["de", "fr"]


@pytest.mark.parametrize("content", ["", "\n\n  \n"])
def test_an_empty_file(tmp_path, content):
    file = file_of(tmp_path, content)
    assert f"{file} holds no entries" in refusal(lambda: read_queries(file))


def test_what_is_no_file(tmp_path):
    for path in (tmp_path / "none.jsonl", tmp_path):
        message = refusal(lambda path=path: queries(path))
        assert str(path) in message
        assert "capitals" in message
    assert "'capital'" in refusal(lambda: queries("capital"))


# What is kept


@pytest.fixture
def three_languages(tmp_path):
    file = tmp_path / "q.jsonl"
    found = [
        Query(id=f"q{n}", language=code, prompt=f"{n}?")
        for n in range(4)
        for code in ("en", "de", "zh")
    ]
    write_queries(found, file)
    return file


def test_languages_in_the_order_asked_for(three_languages):
    found = queries(three_languages, languages=["zh", "en", "zh"])
    assert [query.language for query in found] == ["zh"] * 4 + ["en"] * 4
    assert [query.id for query in found[:4]] == ["q0", "q1", "q2", "q3"]


def test_a_language_that_is_not_there(three_languages):
    message = refusal(lambda: queries(three_languages, languages=["en", "xx"]))
    assert "has nothing in the language 'xx'; it has en, de, zh" in message


def test_limit_is_per_language(three_languages):
    found = queries(three_languages, limit=2)
    assert [(q.id, q.language) for q in found] == [
        (f"q{n}", code) for n in range(2) for code in ("en", "de", "zh")
    ]
    assert len(queries(three_languages, limit=100)) == 12
    assert "limit must be at least 1" in refusal(lambda: queries(three_languages, limit=0))


def test_ids(three_languages):
    found = queries(three_languages, ids=["q3", "q1"], languages=["de"])
    assert [query.id for query in found] == ["q1", "q3"]
    assert "the id 'q9'" in refusal(lambda: queries(three_languages, ids=["q1", "q9"]))


def test_built_in_capitals():
    found = queries("capitals", languages=["en", "de"], limit=3)
    assert [query.language for query in found] == ["en"] * 3 + ["de"] * 3
    assert [q.id for q in found[:3]] == [q.id for q in found[3:]]
    assert {query.concept for query in found} == {"capitals"}
    france = queries("capitals", languages=["de"], ids=["capital-FR"])
    assert [query.answer for query in france] == ["Paris"]
    assert "Frankreich" in france[0].prompt
    languages = {query.language for query in queries("capitals")}
    assert {"en", "de", "fr", "zh", "ru", "ja", "ar", "hi", "ur"} <= languages
    assert "'xx'" in refusal(lambda: queries("capitals", languages=["xx"]))


def test_built_in_sets_forms_and_wordings():
    """One fact in each set, as worded in the language's file."""
    found = {
        (name, form): queries(name, languages=["en"], ids=[f"{relation}-AU"], form=form)[0]
        for name, relation in [
            ("capitals", "capital"),
            ("currencies", "currency"),
            ("official-languages", "official-language"),
            ("continents", "continent"),
        ]
        for form in ("question", "cloze")
    }
    asked = "Question: Which currency is used in Australia?\nAnswer:"
    assert found["currencies", "question"].prompt == asked
    assert found["currencies", "question"].answer == "dollar"
    ended = "In Australia, the city that serves as the capital is"
    assert found["capitals", "cloze"].prompt == ended
    assert found["official-languages", "cloze"].answer == "English"
    assert {query.concept for query in found.values()} == set(BUILT_IN)
    other = queries("continents", languages=["en"], ids=["continent-AU"], wording=2)[0]
    assert other.prompt == (
        "Question: I am looking for Australia on the globe. Which continent should I look at?\n"
        "Answer:"
    )


def test_aliases_are_those_of_the_language():
    china = {q.language: q for q in queries("capitals", ids=["capital-CN"], languages=["en", "de"])}
    assert china["en"].answer == "Beijing"
    assert "Peking" in china["en"].aliases
    assert china["de"].answer == "Peking"
    assert "Beijing" in china["de"].aliases


def test_forms_and_wordings_that_are_not_there(three_languages):
    assert "valid: question, cloze" in refusal(lambda: queries("capitals", form="essay"))
    assert "out of range 1 to 3" in refusal(
        lambda: queries("capitals", languages=["en"], wording=4)
    )
    assert "no questions in 'xx'" in refusal(lambda: queries("capitals", languages=["xx"]))
    assert "wording 2 is for built-in" in refusal(lambda: queries(three_languages, wording=2))


CLOZE = {
    "prompt": {"en": "Paris is in <mask>.", "de": "In <mask> liegt Paris."},
    "answers": {"en": ["France"], "de": ["Frankreich"]},
    "candidates": {"en": ["France", "Italy"], "de": ["Frankreich", "Italien"]},
}


@pytest.fixture
def bmlama(tmp_path):
    file = tmp_path / "forget.jsonl"
    file.write_text(json.dumps(CLOZE), encoding="utf-8")
    return f"bmlama:{file}"


def test_a_data_set_by_its_reader(bmlama):
    found = queries(bmlama, languages=["de"])
    assert [(q.id, q.language, q.answer) for q in found] == [
        ("bmlama53-forget:1", "de", "Frankreich")
    ]
    assert found[0].prompt == "In ___ liegt Paris.\n___ ="
    with pytest.warns(UserWarning, match="1 of 2 facts are left out, as words follow their blank"):
        (cloze,) = queries(bmlama, form="cloze")
    assert (cloze.language, cloze.prompt) == ("en", "Paris is in")


def test_what_a_data_set_lacks_is_said(tmp_path):
    file = tmp_path / "flores.jsonl"
    file.write_text('{"en": "One two.", "de": "Eins zwei."}\n{"en": "Three four."}\n')
    with pytest.warns(UserWarning, match="lacks entries: de 1"):
        found = queries(f"flores:{file}")
    assert [query.language for query in found] == ["en", "en", "de"]


def test_a_reader_that_is_not_there(tmp_path):
    message = refusal(lambda: queries(f"lama:{tmp_path / 'x.jsonl'}"))
    assert "bmlama:PATH" in message
    assert "continents" in message


ROW = {"id": "007", "language": "en", "prompt": "Which, then?\rNow", "answer": "NA"}
TABLE = '{}\n007{}en{}"Which, then?\rNow"{}NA\n'


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("q.csv", TABLE.format("id,language,prompt,answer", *",,,")),
        ("q.tsv", TABLE.format("id\tlanguage\tprompt\tanswer", *"\t\t\t")),
        ("bom.csv", "\ufeff" + TABLE.format("id,language,prompt,answer", *",,,")),
        ("pretty.json", json.dumps(ROW, indent=2)),
        ("wrapped.json", json.dumps({"version": 1, "data": [ROW]})),
        ("wrapped-pretty.json", json.dumps({"data": [ROW]}, indent=2)),
        ("array.json", json.dumps([ROW], indent=2)),
    ],
)
def test_tables_and_json_hold_the_same_question(tmp_path, name, content):
    (tmp_path / name).write_bytes(content.encode())
    assert read_queries(tmp_path / name) == [Query(**ROW)]


def test_parquet_and_aliases_of_tables(tmp_path):
    row = ROW | {"aliases": ["1e3", "nan"]}
    wanted = [Query(**row | {"aliases": ("1e3", "nan")})]
    pd.DataFrame([row]).to_parquet(tmp_path / "q.parquet")
    assert read_queries(tmp_path / "q.parquet") == wanted
    write_csv(tmp_path / "q.csv", pd.DataFrame([row | {"aliases": '["1e3", "nan"]'}]))
    assert read_queries(tmp_path / "q.csv") == wanted


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("q.jsonl.gz", b"\x1f\x8b\x08rest", "is compressed: unpack it first"),
        ("q.xlsx", b"PK\x03\x04rest", "export the sheet as CSV"),
        ("q.json", GOOD.encode("utf-16"), "is UTF-16 text: save it as UTF-8"),
        ("q.csv", b"id;language;prompt\n1;en;w5\n", "separated by ';'"),
        ("q.csv", b"id,language,prompt\n1,en\n", "line 2: 2 cells, and the header has 3"),
        ("q.csv", b"id,id,prompt\n1,en,x\n", "duplicate column 'id'"),
        ("q.csv", b"id,language\n1,en\n", "line 2: the field 'prompt' is missing"),
        ("q.csv", b"id,language,prompt\n1,en,\n", "line 2: the field 'prompt' is missing"),
        ("q.csv", b"id,language,prompt\n", "holds no entries"),
        ("q.parquet", b"PAR1 and no more", "is no readable Parquet file"),
        ("q.json", b'{"data": []}', "holds no entries"),
        ("q.json", b'{"data": [1]}', "a JSON object is needed, not int"),
    ],
)
def test_what_is_no_table_of_questions_is_said(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    assert says in refusal(lambda: read_queries(tmp_path / name))
