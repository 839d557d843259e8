"""MA, PPL and extraction strength: by hand, and against what a model says by itself."""

from __future__ import annotations

import math
from dataclasses import replace

import pandas as pd
import pytest
import torch

from interp.behaviour.memorization import (
    compute_extraction_strength,
    estimate_memorization,
    measure_memorization,
)
from interp.data import Text
from interp.models import generate_continuations
from tests.helpers.tiny_models import tiny


def text_of(answer: str, *, prompt: str = "", number: int = 0, language: str = "en") -> Text:
    return Text(id=f"t{number}", language=language, kind="fake", prompt=prompt, answer=answer)


def spoken_texts(model, *, count=4) -> list[Text]:
    """Texts that the model knows in parts: it has said them itself, but for a word here and there.

    Greedy decoding runs into special tokens from some prompts; those are passed over.
    """
    prompts = [[1, first, 9, 13 + first] for first in range(3, 33)]
    said = dict(generate_continuations(model, prompts, num_tokens=8))
    known = [(prompts[n], said[n]) for n in sorted(said) if len(said[n]) == 8 and min(said[n]) > 2]
    assert len(known) >= count
    found = []
    for number, (prompt, answer) in enumerate(known[:count]):
        words = [f"w{token}" for token in answer]
        changed = {0: [], 1: [2], 2: [1, 5], 3: [7]}[number % 4]
        for place in changed:
            words[place] = "w3" if words[place] != "w3" else "w4"
        start = " ".join(f"w{token}" for token in prompt[1:])
        # The prompt is labelled too in half of them.
        if number % 2:
            found.append(text_of(f"{start} {' '.join(words)}", number=number))
        else:
            found.append(text_of(f" {' '.join(words)}", prompt=start, number=number))
    return found


@pytest.fixture(scope="module", params=["llama", "gemma2", "gpt_neox"])
def spoken(request):
    model = tiny(request.param)
    texts = spoken_texts(model)
    table = measure_memorization(model, texts, progress=False)
    return model, texts, table.to_dict("records")


def ids_of(model, text: Text) -> tuple[tuple[int, ...], int]:
    """Its tokens, and where its labels begin."""
    return model.encode(text.text), len(model.encode(text.prompt))


def test_accuracy_is_that_of_one_token_said_after_each_prefix(spoken):
    model, texts, rows = spoken
    for text, row in zip(texts, rows, strict=True):
        ids, first = ids_of(model, text)
        prefixes = [ids[:place] for place in range(first, len(ids))]
        said = dict(generate_continuations(model, prefixes, num_tokens=1))
        right = [said[n] == (ids[first + n],) for n in range(len(prefixes))]
        assert row["num_tokens"] == len(right)
        assert row["num_right"] == sum(right)
    assert {row["num_right"] == row["num_tokens"] for row in rows} == {True, False}


def test_extraction_strength_is_that_of_greedy_decoding(spoken):
    """The shortest prefix after which the model says all the rest by itself."""
    model, texts, rows = spoken
    for text, row in zip(texts, rows, strict=True):
        ids, first = ids_of(model, text)
        length = len(ids) - first
        for k in range(length):
            said = dict(generate_continuations(model, [ids[: first + k]], num_tokens=length - k))[0]
            if said == ids[first + k :]:
                break
        else:
            k = length
        assert row["extraction_strength"] == pytest.approx(1 - k / length)
    assert len({row["extraction_strength"] for row in rows}) >= 3


def test_extraction_strength_by_hand():
    def strength(*flags: int) -> float:
        return compute_extraction_strength(torch.tensor(flags, dtype=torch.bool))

    assert strength(1, 1, 1, 1) == 1
    assert strength(0, 1, 0, 1) == 1 / 4
    assert strength(0, 0, 1, 1, 1) == pytest.approx(3 / 5)
    # Right tokens before the last wrong one count for nothing.
    assert strength(1, 1, 1, 0) == 0
    assert strength(0) == 0


def test_likelihood_is_summed_over_labels(spoken):
    model, texts, rows = spoken
    for text, row in zip(texts, rows, strict=True):
        ids, first = ids_of(model, text)
        logits = model.model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        nll = -sum(logits[place - 1, ids[place]].item() for place in range(first, len(ids)))
        assert row["nll"] == pytest.approx(nll, abs=2e-5)


def row_of(language, concept, tokens, right, nll, strength):
    return {
        "language": language,
        "concept": concept,
        "text_id": "t",
        "num_tokens": tokens,
        "num_right": right,
        "nll": nll,
        "extraction_strength": strength,
    }


def test_measures_by_hand():
    table = pd.DataFrame(
        [
            row_of("en", "fake", 4, 3, 4 * math.log(2), 0.5),
            row_of("de", "fake", 10, 10, 10 * math.log(3), 1.0),
            row_of("en", "fake", 12, 1, 12 * math.log(8), 0.0),
            row_of("en", "real", 2, 1, 2 * math.log(5), 0.5),
        ]
    )
    found = estimate_memorization(table).set_index(["language", "concept", "metric"])
    assert list(dict.fromkeys(index[:2] for index in found.index)) == [
        ("en", "fake"),
        ("de", "fake"),
        ("en", "real"),
    ]
    value = found["value"]
    # Four of sixteen tokens; the mean of the texts' shares would be (3/4 + 1/12)/2.
    assert value["en", "fake", "memorization_accuracy"] == pytest.approx(4 / 16)
    # (4·log 2 + 12·log 8)/16 = 2.5·log 2; the mean of 2 and 8 would be 5.
    assert value["en", "fake", "perplexity"] == pytest.approx(2**2.5)
    assert value["en", "fake", "extraction_strength"] == 0.25
    assert value["de", "fake", "perplexity"] == pytest.approx(3)
    assert value["en", "real", "memorization_accuracy"] == 0.5
    # Resamples of two texts: the one twice, the other twice, or both.
    ends = found.loc[("en", "fake", "perplexity"), ["ci_low", "ci_high", "n"]].tolist()
    assert ends == pytest.approx([2, 8, 2])
    assert math.isnan(found.loc[("de", "fake", "perplexity"), "ci_low"])


def test_measures_of_several_models():
    table = pd.DataFrame([row_of("en", "fake", 4, 3, 1.0, 0.5), row_of("en", "fake", 4, 1, 1.0, 0)])
    table["model"] = ["V", "U"]
    found = estimate_memorization(table, by=["model", "language"])
    assert found["model"].tolist() == ["V"] * 3 + ["U"] * 3
    assert found["value"].tolist() == pytest.approx(
        [0.75, math.exp(1 / 4), 0.5, 0.25, math.exp(1 / 4), 0]
    )


def test_a_model_past_all_help():
    table = pd.DataFrame([row_of("en", "a", 1, 0, 800.0, 0), row_of("en", "b", 1, 0, math.nan, 0)])
    found = estimate_memorization(table).set_index(["concept", "metric"])
    assert found.loc[("a", "perplexity"), "value"] == math.inf
    broken = found.loc[("b", "perplexity")]
    assert math.isnan(broken["value"])
    assert broken["reason"] == "the log-likelihood of 1 of 1 texts is no number"


def test_an_empty_text_is_refused():
    with pytest.raises(ValueError, match="its answer is empty"):
        measure_memorization(tiny(), [replace(text_of("w3"), answer="")], progress=False)
