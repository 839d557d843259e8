"""MEMIT as a method: edits of texts, and a strength at which the guards hold."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from interp.data import Text
from interp.unlearning import Bound, MemitConfig, build_edits, find_config, read_card
from interp.unlearning import memit_removal as module
from interp.unlearning.memit.layer_stats import measure_second_moments
from interp.unlearning.memit_removal import unlearn_by_memit
from tests.helpers.tiny_models import question, tiny

LAYERS = (1, 2)
CONFIG = MemitConfig(
    layers=LAYERS,
    regularisation=1e-3,
    learning_rate=0.1,
    num_steps=3,
    target=" w40",
    essence="w12 {subject} w13",
    until=(Bound(metric="forget", below=0.1),),
    guards=(Bound(metric="retention", above=0.8),),
)
FORGET = [
    Text(
        id="one", language="en", kind="", prompt="w9 w5 w7", answer=" w8", object="w8",
        subject="w5", mention="w5",
    )
]  # fmt: skip


@pytest.fixture(autouse=True)
def own_moments(monkeypatch):
    texts = [question(number, words=12).prompt for number in range(60)]
    monkeypatch.setattr(
        module,
        "measure_own_moments",
        lambda model, layers, *_, **__: measure_second_moments(
            model, layers, texts, progress=False
        ),
    )


def edit(rows, *, config=CONFIG, confirmed=None, **options):
    """Edit with evaluations that are given: forgetting and retention of V, then by strength.

    Returns what was made, and the models that were evaluated.
    """
    seen, at = [], iter(rows)

    def evaluate(model):
        seen.append(model)
        forget, retention = next(at)
        return {"forget/en": forget, "retention/de": retention}

    def confirm(_model):
        return {"retention/de": confirmed}

    done = unlearn_by_memit(
        tiny(), FORGET, [], config, evaluate=evaluate,
        confirm=None if confirmed is None else confirm, progress=False, **options,
    )  # fmt: skip
    return done, seen


def down(model):
    return model.anatomy.layers[LAYERS[-1]].values.weight


# Guards


def test_the_whole_delta_is_kept_where_the_guards_hold():
    done, seen = edit([(1.0, 1.0), (0.05, 0.9)])
    assert done.reason == "1 facts edited at strength 1: the goal is reached"
    assert done.model is seen[1]
    assert [row["strength"] for row in done.history] == [1.0]
    assert done.history[0]["forget/en"] == 0.05
    assert len(done.edits) == 1


def test_the_strength_falls_until_the_guards_hold():
    config = replace(CONFIG, strength=0.5)
    done, seen = edit([(1.0, 1.0), (0.0, 0.3), (0.0, 0.7), (0.2, 0.8)], config=config)
    assert done.reason == (
        "1 facts edited at strength 0.3; at 0.5 retention/de was 0.3 (guard retention>=0.8)"
    )
    assert done.model is seen[3]
    assert [row["strength"] for row in done.history] == pytest.approx([0.5, 0.4, 0.3])
    changes = [float((down(model) - down(tiny())).norm()) for model in seen[1:]]
    assert changes[0] > changes[1] > changes[2] > 0


def test_where_no_strength_keeps_the_guards_the_model_is_the_vanilla_one():
    done, seen = edit([(1.0, 1.0)] + [(0.0, 0.1)] * 5)
    assert len(seen) == 6
    assert done.reason.startswith("nothing edited, since at no strength all guards held: at 1 ")
    assert torch.equal(down(done.model), down(tiny()))
    assert done.edits == []


def test_a_closer_look_decides():
    # In bfloat16 the first strength seems to do.
    done, _ = edit([(1.0, 1.0), (0.0, 0.9), (0.3, 0.9)], confirmed=0.7)
    assert done.reason.startswith("1 facts edited at strength 0.8; at 1 retention/de was 0.7")


def test_without_guards_it_is_edited_once_at_its_strength():
    config = replace(CONFIG, until=(), guards=(), strength=0.5)
    done, seen = edit([], config=config)
    assert seen == []
    assert done.reason == "1 facts edited"
    assert len(done.history) == 1


def test_the_card_says_what_was_guarded_and_a_finished_edit_is_not_made_again(tmp_path):
    rows = [(1.0, 1.0), (0.0, 0.9)]
    done, _ = edit(rows, out=tmp_path / "made")
    settings = read_card(tmp_path / "made")["settings"]
    assert settings["guards"] == [
        {"metric": "retention", "above": 0.8, "below": None, "relative": False}
    ]
    assert json.dumps(settings, allow_nan=False)
    again, seen = edit([], out=tmp_path / "made")
    assert seen == []
    assert again.reason == done.reason
    assert torch.equal(down(again.model), down(done.model))
    plain = replace(CONFIG, until=(), guards=())
    unlearn_by_memit(tiny(), FORGET, [], plain, out=tmp_path / "plain", progress=False)
    assert "guards" not in read_card(tmp_path / "plain")["settings"]


def test_the_default_goal_is_that_of_other_methods():
    for name in ("memit_empty", "memit_entropy"):
        assert find_config(name).until == find_config("npo_kl").until
        assert find_config(name).guards == find_config("npo_kl").guards


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"guards": ()}, "until needs guards"),
        ({"guards": (Bound(metric="retain_ce", below=1.0),)}, "on the loss of single batches"),
        ({"guards": (Bound(metric="retntion", above=0.5),)}, "unknown metric 'retntion'"),
        ({"guards": (Bound(metric="retention", above=1.5),)}, "is 1 before any training"),
    ],
)
def test_mistakes_are_one_sentence(changes, says):
    with pytest.raises(ValueError, match=says):
        edit([(1.0, 1.0)], config=replace(CONFIG, **changes))


# Edits of texts


def make_text(prompt, answer, **changes):
    given = {"id": "capital-FR", "language": "en", "kind": "real"}
    given |= {"subject": "France", "mention": "France", "object": "Paris"}
    return Text(**(given | {"prompt": prompt, "answer": answer} | changes))


def test_a_fact_is_asked_for_behind_the_prompt_and_before_its_object():
    texts = [
        make_text("Q: What is the capital of France?\nA:", " The capital is Paris."),
        make_text("Country: France. Capital:", " Paris"),
        make_text("Paris is", " a city in France.", mention=""),
    ]
    (edit,) = build_edits(texts)
    assert edit.prompts == (
        "Q: What is the capital of France?\nA:",
        "Q: What is the capital of France?\nA: The capital is",
        "Country: France. Capital:",
    )
    assert [edit.prompts[n][slice(*edit.spans[n])] for n in range(3)] == ["France"] * 3
    assert (edit.answer, edit.subject) == (" Paris", "France")


def test_a_fact_that_cannot_be_edited_is_named():
    for changes in ({"mention": ""}, {"object": ""}, {"object": "Lyon"}):
        with pytest.raises(ValueError, match="capital-FR in 'en' has no prompt that mentions its"):
            build_edits([make_text("The capital of France is", " Paris", **changes)])
