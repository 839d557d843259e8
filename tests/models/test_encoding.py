"""Special tokens around a prompt: none behind it, and those before it once."""

from __future__ import annotations

import warnings

import pytest
from tokenizers import processors

import interp
from interp import LanguageModel, Query
from interp.unlearning import Example, tokenize
from tests.helpers.tiny_models import tiny_model, tokenizer


def model(template: str, **special: str) -> LanguageModel:
    """V whose tokenizer puts a text into a template."""
    made = tokenizer(**special)
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return LanguageModel(tiny_model(num_layers=2), made, name="V")


@pytest.mark.parametrize(
    ("template", "text", "token_ids"),
    [
        ("<s> $A </s>", "w5 w9", (1, 5, 9)),
        ("$A </s>", "w5 w9", (5, 9)),
        # What a person wrote stays.
        ("<s> $A </s>", "w5 </s>", (1, 5, 2)),
        ("<s> $A", "w5 </s>", (1, 5, 2)),
        ("<s> $A", "<s> w5", (1, 5)),
        ("<s> $A </s>", "<s> w5", (1, 5)),
        ("</s> $A", "</s> w5", (2, 5)),
        ("</s> <s> $A", "</s> <s> w5", (2, 1, 5)),
        ("<s> $A", "w5 <s> w6", (1, 5, 1, 6)),
        ("$A", "<s> w5", (1, 5)),
        ("</s> $A", "w5", (2, 5)),
        ("</s> $A", "", (2,)),
        ("<s> $A </s>", "", (1,)),
    ],
)
@pytest.mark.filterwarnings("ignore:.*(ends every text|puts before every text)")
def test_a_text_begins_once_and_does_not_end(template, text, token_ids):
    assert model(template).encode(text) == token_ids


def test_it_is_said_once():
    ending = model("<s> $A </s>")
    with pytest.warns(UserWarning, match="ends every text with '</s>'"):
        ending.encode("w5")
    with pytest.warns(UserWarning, match="begins with '<s>'"):
        ending.encode("<s> w5")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ending.encode("<s> w6")


@pytest.mark.filterwarnings("ignore:.*ends every text")
def test_answers_and_training_examples_are_those_of_the_usual_tokenizer():
    usual, ending = model("<s> $A"), model("<s> $A </s>")
    questions = [Query(id="q", language="en", prompt="w5 w9 w12")]
    one, other = (
        interp.trajectories(each, questions, num_tokens=5, progress=False)
        for each in (usual, ending)
    )
    assert one == other
    example = Example(prompt="w5 w6", answer=" w7")
    assert tokenize(ending, example) == tokenize(usual, example)
    assert tokenize(ending, example).ids == (1, 5, 6, 7)


def test_tokens_beyond_the_vocabulary_are_a_sentence():
    wide = LanguageModel(tiny_model(num_layers=2), tokenizer(60), name="V")
    with pytest.raises(
        ValueError, match=r"token 55 \('w55'\) is out of range: 'V' has tokens 0 to 49"
    ):
        wide.encode("w5 w55")
    with pytest.raises(ValueError, match="token 999 is out of range"):
        list(interp.models.generate_continuations(wide, [[1, 999]], num_tokens=2))
