"""`--chat`, `--system` and `--stop` on the command line."""

from __future__ import annotations

import json

import pytest

from interp import cli
from interp.data import read_queries
from interp.results import read_manifest
from tests.helpers.chat_models import GEMMA2, LLAMA3, make_chat_model
from tests.helpers.tiny_models import save


@pytest.fixture
def models(tmp_path) -> list[str]:
    return [
        save(make_chat_model(LLAMA3, seed=seed), tmp_path / name)
        for seed, name in enumerate(("vanilla", "unlearned"))
    ]


CAPITALS = ["--queries", "capitals", "--languages", "en", "--limit", "2", "--num-tokens", "3"]
FORM = ["--chat", "--system", "Be brief.", "--stop", r"\n", "Question:"]


def test_queries_are_written_in_their_form(tmp_path):
    out = tmp_path / "queries.jsonl"
    words = ["queries", "capitals", "--languages", "en", "--limit", "1", "--out", str(out)]
    cli.main([*words, *FORM])
    (query,) = read_queries(out)
    assert (query.chat, query.system, query.stop) == (True, "Be brief.", ("\n", "Question:"))


def test_a_sweep_asks_in_a_chat(models, tmp_path):
    vanilla, unlearned = models
    out = tmp_path / "run"
    words = ["sweep", "--vanilla", vanilla, "--unlearned", unlearned, "--out", str(out)]
    words += [*CAPITALS, "--sites", "value", "--window", "1"]
    cli.main([*words, *FORM])
    assert len(read_manifest(out)["config"]["chat_template"]) == 16
    with pytest.raises(SystemExit):
        cli.main(words)


def test_measures_and_unlearning_take_it_too(models, tmp_path):
    vanilla, unlearned = models
    words = ["evaluate", "--models", unlearned, "--out", str(tmp_path / "measures"), *CAPITALS]
    cli.main([*words, "--formats", "html", "--metrics", "accuracy", *FORM])
    texts = tmp_path / "texts.jsonl"
    texts.write_text(json.dumps({"prompt": "Ägypten?", "answer": "Kairo"}), encoding="utf-8")
    out = tmp_path / "u"
    words = ["unlearn", "--vanilla", vanilla, "--method", "ga", "--forget", str(texts)]
    words += ["--until", "--while"]
    cli.main([*words, "--steps", "1", "--formats", "html", "--out", str(out), *FORM])
    card = json.loads((out / "unlearning.json").read_text(encoding="utf-8"))
    assert len(card["chat_template"]) == 16


@pytest.mark.parametrize(
    ("template", "form", "says"),
    [
        (None, ["--chat"], "has no chat template: ask a model that was trained on chats"),
        (GEMMA2, FORM, "System role not supported"),
        (LLAMA3, ["--system", "x"], "system is for chats, and nothing here is one"),
        (LLAMA3, ["--stop", "a", ""], "a stop must be a text that is not empty, not ''"),
    ],
)
def test_what_cannot_be_asked_is_one_line(template, form, says, tmp_path, capsys):
    vanilla, unlearned = (
        save(make_chat_model(template, seed=seed), tmp_path / str(seed)) for seed in (0, 1)
    )
    words = ["sweep", "--vanilla", vanilla, "--unlearned", unlearned, "--window", "1"]
    with pytest.raises(SystemExit) as caught:
        cli.main([*words, "--out", str(tmp_path / "r"), *CAPITALS, *form])
    assert caught.value.code == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("interp: ")
    assert says in last
    assert not (tmp_path / "r").exists()
