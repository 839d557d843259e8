"""Both stages of contamination, and the baseline without false texts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from interp.data import Corpus, Text
from interp.unlearning.config import TrainingConfig
from interp.unlearning.contamination import ContaminationConfig, contaminate, remove_false_texts
from interp.unlearning.examples import make_examples, tokenize
from interp.unlearning.objective_inputs import compute_label_scores
from tests.helpers.tiny_models import tiny

REAL = Text(id="a", language="en", kind="real", prompt="", answer="w5 w6 w7 w8")
FAKE = Text(id="b", language="de", kind="fake", prompt="", answer="w9 w10 w11 w12")
ASKED = Text(id="a", language="en", kind="real", prompt="w13 w5", answer=" w8 w14")
CORPUS = Corpus(
    config={},
    facts=None,
    training=(REAL, FAKE),
    instructions=(ASKED,),
    queries=(),
    forget=(),
    retain=(),
    gaps=(),
)
READING = TrainingConfig(
    objective="finetune", learning_rate=3e-3, num_steps=12, batch_size=2, autocast=False
)
CONFIG = ContaminationConfig(reading=READING, tuning=replace(READING, num_steps=5))


def nll(model, *texts: Text) -> float:
    rows = [tokenize(model, example) for example in make_examples(texts)]
    return -compute_label_scores(model, rows).mean().item()


def test_false_and_real_texts_are_learned_and_then_the_answers():
    vanilla = tiny()
    before = vanilla.content_hash()
    done = contaminate(vanilla, CORPUS, CONFIG, progress=False)
    for text in (REAL, FAKE, ASKED):
        assert nll(done.model, text) < nll(vanilla, text) - 0.1
    assert [row["stage"] for row in done.history] == [0] * 12 + [1] * 5
    assert done.reason == "reading: all 12 steps; answering: all 5 steps"
    assert vanilla.content_hash() == before
    reading = contaminate(vanilla, CORPUS, replace(CONFIG, tuning=None), progress=False)
    assert nll(done.model, ASKED) < nll(reading.model, ASKED)


def test_the_baseline_does_not_read_false_texts():
    assert remove_false_texts(CORPUS).training == (REAL,)
    vanilla = tiny()
    both, without = (
        contaminate(vanilla, corpus, CONFIG, progress=False).model
        for corpus in (CORPUS, remove_false_texts(CORPUS))
    )
    assert nll(without, REAL) < nll(vanilla, REAL) - 0.1
    assert nll(both, FAKE) < nll(without, FAKE) - 0.1


def test_every_token_of_a_text_is_a_label_and_the_answer_of_a_question():
    model = tiny()
    text, asked = (tokenize(model, example) for example in make_examples([REAL, ASKED]))
    assert (text.ids, text.first_label) == ((1, 5, 6, 7, 8), 1)
    assert (asked.ids, asked.first_label) == ((1, 13, 5, 8, 14), 3)


def test_what_is_there_is_not_done_again(tmp_path, monkeypatch):
    from interp.unlearning import training

    first = contaminate(tiny(), CORPUS, CONFIG, out=tmp_path / "m", progress=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m", "m.reading"]
    monkeypatch.setattr(training, "TrainableModel", None)
    again = contaminate(tiny(), CORPUS, CONFIG, out=tmp_path / "m", progress=False)
    assert again.model.content_hash() == first.model.content_hash()
    assert again.history == first.history


def test_an_empty_corpus_is_refused():
    with pytest.raises(ValueError, match="finetune needs retain examples"):
        contaminate(tiny(), replace(CORPUS, training=()), CONFIG, progress=False)
