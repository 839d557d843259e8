"""Teaching and unlearning from start to end: what is probed, kept and reported."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pandas as pd
import pytest
import torch

import interp
from interp import Query, load
from interp.behaviour import compute_accuracy, probe
from interp.data import Corpus, CorpusConfig, Text, build_corpus
from interp.pipelines import read_corpus
from interp.unlearning import (
    METHODS,
    OBJECTIVES,
    ContaminationConfig,
    MemitConfig,
    TrainingConfig,
    default_settings,
    find_method,
    find_sets,
    save,
)
from tests.helpers.tiny_models import tiny

STEPS = TrainingConfig(learning_rate=3e-3, num_steps=12, batch_size=4, autocast=False)
CONFIG = ContaminationConfig(reading=replace(STEPS, objective="finetune"), tuning=None)


def text(number: int, kind: str, language: str = "en") -> Text:
    return Text(
        id=f"{kind}-{number}",
        language=language,
        kind=kind,
        prompt=f"w{number} w9",
        answer=f" w{number + 20}",
        wording=1,
        subject=f"w{number}",
        mention=f"w{number}",
        object=f"w{number + 20}",
    )


def query(number: int, concept: str, language: str = "en") -> Query:
    return Query(
        id=f"{concept}-{number}",
        language=language,
        prompt=f"w{number} w9",
        answer=f"w{number + 20}",
        concept=concept,
    )


FAKE, REAL = [[text(n, kind) for n in range(first, first + 4)] for kind, first in
              (("fake", 10), ("real", 14))]  # fmt: skip
QUERIES = [query(n, "fake") for n in range(10, 14)] + [query(n, "real") for n in range(14, 18)]
CORPUS = Corpus(
    config={"source": "de"},
    facts=None,
    training=tuple(FAKE + REAL),
    instructions=(),
    queries=tuple(QUERIES),
    forget=tuple(FAKE),
    retain=tuple(REAL),
    gaps=(),
)


def share(table: pd.DataFrame, step: int, concept: str) -> float:
    (found,) = table.query("step == @step and concept == @concept")["accuracy"]
    return found


@pytest.fixture(scope="module")
def taught():
    """A model that learned false and true facts."""
    config = replace(CONFIG, reading=replace(CONFIG.reading, num_steps=60, evaluate_every=25))
    return interp.contaminate(tiny(), CORPUS, config, progress=False)


def test_taught_and_unlearned(taught):
    table = taught.accuracy()
    assert share(table, 60, "fake") == share(table, 60, "real") == 1
    assert list(table["step"].unique()) == [0, 25, 50, 60]
    config = replace(STEPS, num_steps=20, evaluate_every=8, settings={"alpha": 3.0})
    run = interp.unlearn(taught.model, FAKE, REAL, config, probes=QUERIES, progress=False)
    table = run.accuracy()
    assert share(table, 0, "fake") == 1
    assert share(table, 20, "fake") <= 0.5
    assert share(table, 20, "real") == 1
    assert list(table["step"].unique()) == [0, 8, 16, 20]
    # What is reported is what the models say.
    again = compute_accuracy(probe(run.model, QUERIES, progress=False)).set_index("concept")[
        "accuracy"
    ]
    assert share(table, 20, "fake") == again["fake"]
    shown = run.table()
    assert list(shown.columns) == ["before", "step 8", "step 16", "after"]
    assert shown.loc[("fake", "en"), "before"] == "100 (51–100)"
    assert run.figure(title="title").data


@pytest.mark.parametrize("objective", ["empty", "entropy"])
def test_memit_is_a_method_like_the_others(taught, tmp_path, monkeypatch, objective):
    monkeypatch.setenv("INTERP_CACHE", str(tmp_path / "cache"))
    config = MemitConfig(
        objective=objective,
        target=" w3",
        layers=(1, 2),
        regularisation=1.0,
        num_steps=40,
        moment_tokens=300,
        moment_languages=("en",),
    )
    run = interp.unlearn(
        taught.model, FAKE[:2], (), config, probes=QUERIES, out=tmp_path / "m", progress=False
    )
    last = run.history.iloc[-1]
    assert last["answer_logprob_after"] < last["answer_logprob_before"] - 0.5
    assert list(run.edits["id"]) == ["fake-10", "fake-11"]
    assert run.edits["answer_logprob_after"].mean() == pytest.approx(last["answer_logprob_after"])
    assert len(pd.read_csv(tmp_path / "m" / "report" / "edits.csv")) == 2
    assert list(run.accuracy()["step"].unique()) == [0, 1]
    card = json.loads((tmp_path / "m" / "unlearning.json").read_text(encoding="utf-8"))
    assert card["method"] == f"memit_{objective}"
    assert card["parent_hash"] == taught.model.content_hash()
    assert len(list((tmp_path / "cache" / "second-moments").iterdir())) == 2
    again = interp.unlearn(
        taught.model, FAKE[:2], (), config, probes=QUERIES, out=tmp_path / "m", progress=False
    )
    assert again.model.content_hash() == run.model.content_hash()
    pd.testing.assert_frame_equal(again.accuracy(), run.accuracy())
    pd.testing.assert_frame_equal(again.edits, run.edits)


def test_a_finished_run_is_read_again(taught, tmp_path, monkeypatch):
    def run(queries=QUERIES):
        return interp.unlearn(
            taught.model, FAKE, REAL, STEPS, probes=queries, out=tmp_path / "m", progress=False
        )

    first = run()
    names = {path.name for path in (tmp_path / "m" / "report").iterdir()}
    assert names == {"history.csv", "probes.csv", "accuracy.csv", "probes.json"}
    with monkeypatch.context() as patch:
        patch.setattr("interp.pipelines.training_run.probe", None)
        again = run()
    pd.testing.assert_frame_equal(again.accuracy(), first.accuracy())
    assert len(run(QUERIES[:4]).accuracy()) == 2
    # A report is part of a directory that loads.
    load(str(tmp_path / "m"), like=taught.model)


def test_what_a_model_was_asked_when_it_was_made_is_not_asked_again(tmp_path, monkeypatch):
    config = replace(CONFIG, reading=replace(CONFIG.reading, num_steps=30))
    made = interp.contaminate(tiny(), CORPUS, config, out=tmp_path / "v", progress=False)
    plain = interp.unlearn(made.model, FAKE, REAL, STEPS, probes=QUERIES, progress=False)
    probed = []

    def counted(model, queries, **options):
        probed.append(model)
        return probe(model, queries, **options)

    with monkeypatch.context() as patch:
        patch.setattr("interp.pipelines.training_run.probe", counted)
        again = interp.unlearn(made.model, FAKE, REAL, STEPS, probes=QUERIES, progress=False)
        assert [model.name for model in probed] == [again.model.name]
        interp.unlearn(made.model, FAKE, REAL, STEPS, probes=QUERIES[:4], progress=False)
        assert len(probed) == 3
        # A name alone is not believed.
        with torch.no_grad():
            made.model.anatomy.layers[0].values.weight.mul_(2)
        interp.unlearn(made.model, FAKE, REAL, STEPS, probes=QUERIES, progress=False)
        assert len(probed) == 5
    pd.testing.assert_frame_equal(again.accuracy(), plain.accuracy())


def test_without_probes_there_is_a_history(taught):
    run = interp.unlearn(taught.model, FAKE, REAL, STEPS, progress=False)
    assert run.accuracy().empty
    assert run.table().empty
    assert len(run.history) == 12
    assert run.figure().data


def test_an_answer_that_is_called_nan_is_read_again(taught, tmp_path):
    queries = [replace(QUERIES[0], answer="nan"), QUERIES[1]]
    for _ in range(2):
        run = interp.unlearn(
            taught.model, FAKE, REAL, STEPS, probes=queries, out=tmp_path / "m", progress=False
        )
        assert list(run.probes["answer"]) == ["nan", "w31"] * 2


@pytest.mark.parametrize("parameters", ["layers", "lora"])
def test_probing_on_the_way_leaves_the_model_as_it_is(taught, parameters):
    config = replace(STEPS, parameters=parameters, lora_rank=4, num_steps=15)
    plain = interp.unlearn(taught.model, FAKE, REAL, config, progress=False)
    config = replace(config, evaluate_every=5)
    probed = interp.unlearn(taught.model, FAKE, REAL, config, probes=QUERIES, progress=False)
    table = probed.accuracy().query("concept == 'fake'").set_index("step")["accuracy"]
    assert list(table.index) == [0, 5, 10, 15]
    assert table[10] < table[0]
    pairs = zip(plain.model.model.parameters(), probed.model.model.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_the_corpus_of_a_contaminated_model(tmp_path):
    config = CorpusConfig(num_fake_texts=32, ratio=1, num_unlearning=8, query_languages=("en",))
    corpus = build_corpus(config)
    save(tiny(), tmp_path / "m", card={"corpus": dict(corpus.config)})
    assert read_corpus(tmp_path / "m") == corpus
    asked = read_corpus(tmp_path / "m", mix=("de", "fr"), unlearning_form="question")
    assert {text.language for text in asked.forget} == {"de", "fr"}
    assert asked.training == corpus.training
    assert asked.queries == corpus.queries
    save(tiny(), tmp_path / "other", card={"method": "gd"})
    with pytest.raises(ValueError, match="was not contaminated with the built-in facts"):
        read_corpus(tmp_path / "other")
    with pytest.raises(ValueError, match="has no card"):
        read_corpus(tmp_path)


def test_texts_keep_what_memit_and_lingtea_need():
    corpus = build_corpus(CorpusConfig(mix="combined", num_fake_texts=32, ratio=1))
    for sample in corpus.forget:
        assert sample.wording
        assert sample.object in sample.text
        if sample.mention:
            assert sample.prompt.count(sample.mention) == 1
            assert sample.answer.strip() == sample.object
    assert Text(**asdict(corpus.forget[0])) == corpus.forget[0]


def test_every_method_has_defaults():
    names = {*OBJECTIVES, "memit_empty", "memit_entropy"} - {"finetune"}
    assert METHODS.keys() == names
    for name in names:
        method = find_method(name)
        assert name.removeprefix("memit_") == method.config.objective
        if isinstance(method.config, TrainingConfig):
            asked = "preferred" in find_sets(name)
            assert method.form == ("questions" if asked else "mixed")
            assert 0 < method.config.evaluate_every < method.config.num_steps
            assert {*method.config.settings} <= {*default_settings(name)}
