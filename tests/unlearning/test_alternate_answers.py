"""Alternate answers, of models that say what they are told to: their logits are a bias alone."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from interp.data import Message, Text
from interp.models import Ends, encode_chat
from interp.unlearning import (
    Trained,
    TrainingConfig,
    choose_preferred_answers,
    make_examples,
    methods,
)
from interp.unlearning import alternate_answers as module
from interp.unlearning.alternate_answers import sample_alternate_answers
from tests.helpers.chat_models import LLAMA3, make_chat_model
from tests.helpers.tiny_models import EOS, tiny

TEXT = Text(id="a", language="en", kind="", prompt="w3 w5", answer=" w7", object="w7")


def speaker(**probabilities: float):
    """A model that says words with these probabilities, whatever it reads, and else ends."""
    model = tiny("phi")
    unembed = model.anatomy.unembed
    shares = {int(word[1:]): share for word, share in probabilities.items()}
    shares[EOS] = 1 - sum(shares.values())
    unembed.weight.data.zero_()
    unembed.bias.data.fill_(-1e4)
    for token, share in shares.items():
        unembed.bias.data[token] = math.log(share)
    return model


def test_alternates_are_drawn_without_the_answer():
    # w7 left out, half of the draws end at once. The others begin with w8; they last without w7
    # for 1 to 7 tokens that end, or all 8: 0.2 + 0.2² + … + 0.2⁷ + 0.2⁷ = 0.25. So one draw of
    # eight is an alternate, and of eight draws one is in 1 − (7/8)⁸ = 0.656 of all texts.
    model = speaker(w7=0.6, w8=0.2)
    found = sample_alternate_answers(model, [TEXT] * 300)
    said = [each for each in found if each is not None]
    assert abs(len(said) / 300 - 0.656) < 3 * math.sqrt(0.656 * 0.344 / 300)
    assert {word for each in said for word in each.split()} == {"w8"}
    # Of those one word long are 0.2 of 0.25, four fifths.
    short = sum(each.split() == ["w8"] for each in said) / len(said)
    assert abs(short - 0.8) < 3 * math.sqrt(0.8 * 0.2 / len(said))
    assert found == sample_alternate_answers(model, [TEXT] * 300)
    assert found != sample_alternate_answers(model, [TEXT] * 300, seed=1)


def test_what_stands_before_the_object_is_kept():
    model = speaker(w7=0.5, w8=0.1)
    text = replace(TEXT, answer=" w9 w7 w4")
    found = sample_alternate_answers(model, [text] * 50)
    assert {each for each in found if each and len(each.split()) == 2} == {" w9 w8"}
    # Where nobody says what the object is, the whole answer is what is not to be said.
    anything = sample_alternate_answers(model, [replace(text, object="")] * 50)
    assert "w7" in " ".join(filter(None, anything))


def test_chats_are_asked_in_their_template(monkeypatch):
    model = make_chat_model(LLAMA3)
    message = Message(role="user", content="Hauptstadt?")
    text = replace(
        TEXT, prompt=message.content, messages=(message,), answer="Es ist Paris.", object="Paris"
    )
    asked = []

    def generate(_model, prompts, *, ends, **_options):
        asked.extend(zip(prompts, ends, strict=True))
        yield 0, model.encode("Rom!")

    monkeypatch.setattr(module, "generate_continuations", generate)
    assert sample_alternate_answers(model, [text]) == ["Es ist Rom!"]
    turns = [{"role": "user", "content": "Hauptstadt?"}]
    stop = model.tokenizer.convert_tokens_to_ids("<|eot_id|>")
    wanted = encode_chat(model, turns, "Es ist")
    assert asked == [(wanted, Ends(token_ids=frozenset({stop}), texts=("\n",)))]


def test_a_counterfactual_stands_in_where_the_model_knows_one_answer_only():
    model = speaker(w7=0.5)
    other = replace(TEXT, id="b", answer=" w6", object="w6")
    with pytest.warns(UserWarning, match=r"no alternate answer to 1 of 2 texts, the first a: coun"):
        chosen = choose_preferred_answers([TEXT, other], "alternate", model=model)
    assert chosen[0] == replace(TEXT, answer=" w6")
    assert {*chosen[1].answer.split()} == {"w7"}
    with (
        pytest.warns(UserWarning, match="no alternate answer to 1 of 1"),
        pytest.raises(ValueError, match="a in 'en' has no counterfactual"),
    ):
        choose_preferred_answers([TEXT], "alternate", model=model)


def test_what_has_no_alternate_is_named():
    with pytest.raises(ValueError, match="'alternate' are a model's own: give model"):
        choose_preferred_answers([TEXT], "alternate")
    with pytest.raises(ValueError, match="a in 'en' has no prompt that an alternate could answer"):
        sample_alternate_answers(tiny(), [replace(TEXT, prompt="")])


@pytest.mark.parametrize(
    ("objective", "preferred", "kind"),
    [("altpo", None, "alternate"), ("dpo", None, "refusal"), ("altpo", "refusal", "refusal")],
)
def test_altpo_prefers_alternates_and_the_others_refusals(monkeypatch, objective, preferred, kind):
    trained_on = {}

    def train(model, sets, *_given, **_options):
        trained_on.update(sets)
        return Trained(model=model, history=[], reason="not trained")

    monkeypatch.setattr(methods, "train", train)
    model, config = speaker(w8=0.5), TrainingConfig(objective=objective)
    methods.unlearn(model, [TEXT] * 3, [], config, preferred=preferred)
    chosen = choose_preferred_answers([TEXT] * 3, kind, model=model)
    assert trained_on["preferred"] == make_examples(chosen)
