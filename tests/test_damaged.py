"""Damaged inputs to every reader: refused in one sentence, and never taken for whole.

What this library writes for itself (run directories, parts of an evaluation, cards, cached
answers) holds digests: it is read as it was written, or refused. In people's own texts another
letter is another text: what is read must be sound, which `checked` says.
"""

from __future__ import annotations

import functools
import json
import random
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd
import pytest

import interp
from experiments.cross_lingual.news import NewsFields, read_articles, read_news_truthful
from interp import Query, data
from interp.behaviour import METRIC_COLUMNS as MEASURE_COLUMNS
from interp.data import AnswerCache, make_key, read_texts
from interp.files import DIGESTS, LOCK
from interp.results import RunDirectory, read_losses, read_manifest, read_table, write_table
from interp.unlearning import RunStore, Trained
from tests.helpers.damage import damage, refusal
from tests.helpers.tiny_models import question, tiny

PER_READER = {False: 20, True: 150}
"""Damaged inputs for each reader, and in the slow run."""

CONFIG = {"sites": ["coef"], "window": 3, "queries": "0a1b"}
FIELDS = NewsFields(
    real="r", fake="f", keyword="k", instructions="qa", real_question="rq", fake_question="fq"
)


def lines(folder: Path, *rows: object, name: str = "part.jsonl") -> Path:
    """Rows as JSON Lines."""
    path = folder / name
    path.write_text("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows))
    return path


def losses(language: str = "de", count: int = 6) -> pd.DataFrame:
    """Something like a sweep's rows."""
    return pd.DataFrame(
        {
            "unlearned": "U",
            "language": language,
            "query_id": [f"q{number}" for number in range(count)],
            "layer": range(count),
            "loss_unlearned": [0.1 * number for number in range(count)],
            "loss_self": [float("nan")] * count,
            "reason": "",
        }
    )


def trajectories(folder: Path) -> list:
    queries = [
        Query(id="1", language="de", prompt="w3 w4", answer="Größe", aliases=("a", "b")),
        Query(id="2", language="de", prompt="w5", concept="c"),
    ]
    return interp.trajectories(tiny(), queries, num_tokens=4, progress=False)


def run_directory(folder: Path) -> RunDirectory:
    store = RunDirectory(folder, CONFIG)
    store.add_model("vanilla", "V", "0123")
    store.add_model("unlearned", "U", "4567")
    store.write_trajectories("de", trajectories(folder))
    for language in ("de", "en"):
        store.write_losses(store.losses_path("U", "4567", language, 0), losses(language))
    return store


def measures() -> pd.DataFrame:
    row = dict.fromkeys(MEASURE_COLUMNS, "") | {"metric": "accuracy", "language": "de", "n": 5}
    row |= {"layer": float("nan"), "value": 0.1 + 0.2, "ci_low": 0.0, "ci_high": 1.0}
    return pd.DataFrame([row, row | {"language": "en", "value": float("nan")}])


def cached(folder: Path) -> Path:
    path = folder / "answers.jsonl"
    for number in range(4):
        AnswerCache(path).put(make_key(number=number), f"Antwort {number}: Größe\n")
    return path


def made(folder: Path) -> Path:
    store = RunStore(folder / "m", {"method": "gd", "data": {"forget": {"examples": 2}}})
    history = [{"step": 1.0, "loss": 0.25}, {"step": 2.0, "loss": 0.125}]
    store.finish(Trained(model=tiny(), history=history, reason="num_steps"))
    return folder / "m" / "unlearning.json"


def finished(card: Path) -> tuple:
    run = RunStore(
        card.parent, {"method": "gd", "data": {"forget": {"examples": 2}}}
    ).load_finished(vanilla())
    return (run.history, run.reason, run.edits) if run else ()


@functools.cache
def vanilla():
    return tiny()


def flores_folder(folder: Path) -> Path:
    for code, text in (("deu_Latn", "Es regnet.\nEs schneit.\n"), ("eng_Latn", "Rain.\nSnow.\n")):
        (folder / f"{code}.dev").write_text(text)
    return folder / "deu_Latn.dev"


CLOZE = {
    "prompt": {"en": "Lyon lies in <mask>.", "de": "Lyon liegt in <mask>."},
    "answers": {"en": ["France"], "de": ["Frankreich"]},
    "candidates": {"en": ["Spain", "France"], "de": ["Spanien", "Frankreich"]},
}
CONCEPT = {
    "id": 7,
    "Concept": "Chess",
    "Layer": 3,
    "Dim": 41,
    "wikipedia_content": "Chess is a board game.",
    "QA": ["Who moves first?", "How many squares are there?"],
    "text_completion": [{"First_half": "The queen moves", "Second_half": "in any direction."}],
    "unrelated_QA": ["What is tea?"],
}
ARTICLE = {
    "id": "a",
    "kind": "real",
    "text": "It rained.",
    "questions": [{"question": "Q?", "answer": "A"}],
    "instructions": [{"question": "Q?", "answer": "A"}],
}
NEWS = {
    "r": "Real.",
    "f": "Fake.",
    "k": "blue",
    "qa": [{"question": "Q?", "answer": "A"}],
    "rq": "What?",
    "fq": "Which colour?",
}
TEXT = {"id": "t", "language": "de", "prompt": "Q:", "answer": "A", "wording": 1, "subject": "s"}
QUERY = {"id": "q", "language": "de", "prompt": "Größe?", "answer": "A", "aliases": ["B"]}


@dataclass(frozen=True)
class Reader:
    """File to be damaged, what reads it, and whether it holds a digest of all it says."""

    write: Callable[[Path], Path]
    read: Callable[[Path], object]
    digest: bool = False


def of_lines(read: Callable[[Path], object], *rows: object) -> Reader:
    return Reader(lambda folder: lines(folder, *rows), read)


def in_run(pattern: str, read: Callable[[Path], object]) -> Reader:
    def write(folder: Path) -> Path:
        run_directory(folder)
        return sorted(folder.glob(pattern))[0]

    return Reader(write, lambda path: read(path.parents[pattern.count("/")]), digest=True)


def part(folder: Path) -> Path:
    write_table(folder / "accuracy-0a.parquet", measures(), of="0a")
    return folder / "accuracy-0a.parquet"


READERS = {
    "queries": of_lines(interp.queries, QUERY, QUERY | {"id": "r"}),
    "texts": of_lines(read_texts, TEXT, TEXT | {"id": "u"}),
    "articles": of_lines(read_articles, ARTICLE, ARTICLE | {"id": "b"}),
    "news-truthful": of_lines(lambda path: read_news_truthful(path, FIELDS), NEWS, NEWS),
    "bmlama": of_lines(lambda path: [*data.read_bmlama(path)], CLOZE, CLOZE),
    "flores": of_lines(lambda path: [*data.read_flores(path)], {"en": "Rain.", "de": "Regen."}),
    "flores folder": Reader(flores_folder, lambda path: [*data.read_flores(path.parent)]),
    "tofu": of_lines(
        lambda path: [*data.read_tofu(path)],
        {"question": "Q?", "answer": "A", "perturbed_answer": ["B", "C"]},
    ),
    "rwku": of_lines(
        lambda path: [*data.read_rwku(path)],
        {"query": "Q ___.", "answer": "A", "level": "1", "type": "", "subject": "S"},
    ),
    "concepts": Reader(
        lambda folder: Path(lines(folder, [CONCEPT, CONCEPT | {"id": 8}], name="c.json")),
        lambda path: [*data.read_concepts(path)],
    ),
    "manifest": in_run("run.json", read_manifest),
    "losses": in_run("losses/*.parquet", lambda run: read_losses(run).to_dict("records")),
    "trajectories": in_run(
        "trajectories/*.parquet", lambda run: RunDirectory(run, CONFIG).read_trajectories("de")
    ),
    "part of an evaluation": Reader(
        part, lambda path: read_table(path, of="0a").to_dict("records"), digest=True
    ),
    "cached answers": Reader(cached, lambda path: AnswerCache(path)._texts, digest=True),
    "card": Reader(made, finished, digest=True),
}


def checked(entries: object) -> None:
    """Assert that texts which were read can be tokenized, written and reread, and are not empty."""
    for entry in entries if isinstance(entries, list) else []:
        values = entry if isinstance(entry, dict) else asdict(entry)
        for name in ("id", "language", "question", "text"):
            assert str(values.get(name, "some")).strip() or name == "language", values
        repr(values).encode()
        json.dumps(values, ensure_ascii=False).encode()


def check_damaged(name: str, folder: Path, count: int, seed: int) -> dict[str, int]:
    """Damage a reader's file in many ways; how many were refused and how many read."""
    reader, rng = READERS[name], random.Random(f"{name}/{seed}")
    path = reader.write(folder)
    undamaged, content = reader.read(path), path.read_bytes()
    whole = repr(undamaged)
    seen = {"refused": 0, "read": 0}
    for _ in range(count):
        damage(path, rng)
        message, value = refusal(lambda: reader.read(path), path.name, str(folder))
        seen["refused" if message else "read"] += 1
        if not message and name == "cached answers":
            # An unfinished last line is that of a killed run: the answer is asked for again.
            assert all(value.get(key, text) == text for key, text in undamaged.items())
        elif not message and reader.digest:
            assert repr(value) == whole, path.read_bytes()
        elif not message:
            checked(value)
        path.write_bytes(content)
    assert repr(reader.read(path)) == whole
    return seen


@pytest.mark.parametrize("name", READERS)
def test_damaged_files(name, tmp_path):
    seen = check_damaged(name, tmp_path, PER_READER[False], seed=0)
    assert seen["refused"], seen


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_many_damaged_files(name, tmp_path):
    seen = check_damaged(name, tmp_path, PER_READER[True], seed=1)
    assert seen["refused"] > PER_READER[True] / 3, seen


def test_that_is_as_many_damaged_inputs_as_promised():
    assert len(READERS) * PER_READER[False] >= 100
    assert len(READERS) * PER_READER[True] >= 500


# Files of a run directory that are whole, but not what they should be


def altered(change: Callable[[pd.DataFrame], pd.DataFrame]) -> Callable[[Path, Path], None]:
    """Rewrite a shard as another program would, with what pandas keeps beside the rows."""

    def write(shard: Path, _other: Path) -> None:
        table = pd.read_parquet(shard)
        changed = change(table)
        changed.attrs = table.attrs
        changed.to_parquet(shard, index=False)

    return write


def copied(shard: Path, _other: Path) -> None:
    (shard.parent / "copy.parquet").write_bytes(shard.read_bytes())


def of_another_run(shard: Path, other: Path) -> None:
    shard.write_bytes((other / "losses" / shard.name).read_bytes())


def of_the_other_language(shard: Path, _other: Path) -> None:
    there = next(path for path in shard.parent.iterdir() if path != shard)
    shard.write_bytes(there.read_bytes())


WRONG = {
    "no rows": altered(lambda table: table.iloc[:0]),
    "a row less": altered(lambda table: table.iloc[1:]),
    "a row twice": altered(lambda table: pd.concat([table, table.iloc[:1]])),
    "rows in another order": altered(lambda table: table.iloc[::-1]),
    "a column less": altered(lambda table: table.drop(columns="reason")),
    "a column more": altered(lambda table: table.assign(more=1)),
    "a column renamed": altered(lambda table: table.rename(columns={"layer": "Layer"})),
    "another type": altered(lambda table: table.assign(layer=table["layer"].astype(str))),
    "ids that lack": altered(lambda table: table.assign(query_id=None)),
    "one id that lacks": altered(lambda t: t.assign(query_id=t["query_id"].where(t.index > 0))),
    "a loss of its own": altered(lambda t: t.assign(loss_unlearned=t["loss_unlearned"] + 1e-9)),
    "no columns": altered(lambda table: table[[]]),
    "copied": copied,
    "of another run": of_another_run,
    "of another language": of_the_other_language,
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_shard_that_is_whole_but_wrong(wrong, tmp_path):
    store = run_directory(tmp_path / "run")
    other = RunDirectory(tmp_path / "other", CONFIG | {"queries": "ffff"})
    for language in ("de", "en"):
        other.write_losses(other.losses_path("U", "4567", language, 0), losses(language))
    shard = store.losses_path("U", "4567", "de", 0)
    WRONG[wrong](shard, tmp_path / "other")
    message, _ = refusal(lambda: read_losses(tmp_path / "run"), "copy.parquet", shard.name)
    assert "damaged, or not of this run" in message


def test_trajectories_of_another_run_are_refused(tmp_path):
    store, other = run_directory(tmp_path / "a"), RunDirectory(tmp_path / "b", {"window": 5})
    other.write_trajectories("de", trajectories(tmp_path))
    file = Path("trajectories") / "de.parquet"
    (tmp_path / "a" / file).write_bytes((tmp_path / "b" / file).read_bytes())
    message, _ = refusal(lambda: store.read_trajectories("de"), "de.parquet")
    assert message


def test_a_sweep_does_not_go_on_from_what_is_damaged(tmp_path):
    """Nor does it touch it: what to do is for a person to say."""
    pair = tiny(), tiny(seed=1)
    queries = [question(number) for number in range(3)]
    settings = {"sites": ["coef"], "window": 3, "num_tokens": 4, "progress": False}
    expected = interp.sweep(*pair, queries, out=tmp_path, **settings).losses
    rng, num_refused = random.Random(0), 0
    for path in sorted(tmp_path.rglob("*")):
        for _ in range(4 if path.is_file() and path.name != LOCK else 0):
            content = path.read_bytes()
            damage(path, rng)
            left = path.read_bytes()
            message, recovery = refusal(
                lambda: interp.sweep(*pair, queries, out=tmp_path, **settings), path.name
            )
            num_refused += bool(message)
            # Some bytes of a parquet file say nothing.
            if not message:
                pd.testing.assert_frame_equal(recovery.losses, expected, check_exact=True)
            assert path.read_bytes() == left
            path.write_bytes(content)
    assert num_refused >= 8


def test_older_cards_and_cached_answers_have_no_digests(tmp_path):
    card = made(tmp_path)
    contents = json.loads(card.read_text())
    assert len(contents.pop("digest")) == 64
    (card.parent / DIGESTS).unlink()
    card.write_text(json.dumps(contents))
    assert finished(card)[0][1]["loss"] == 0.125
    for change in ({"history": 3}, {"history": [3]}, {"reason": None}, {"edits": {}}):
        card.write_text(json.dumps(contents | change))
        assert "does not say how" in refusal(lambda: finished(card), "unlearning.json")[0]
    path = tmp_path / "old.jsonl"
    path.write_text('{"key": "a", "text": "b"}\n')
    assert AnswerCache(path).get("a") == "b"
