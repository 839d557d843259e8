"""The logit lens: the last layer is the model's own word, the others what plain modules read."""

from __future__ import annotations

import math

import pandas as pd
import pytest
import torch

from interp import Query
from interp.behaviour import logit_lens as module
from interp.behaviour.logit_lens import (
    COLUMNS,
    apply_logit_lens,
    average_by_layer,
    find_readable_layers,
)
from tests.helpers.tiny_models import ARCHITECTURES, NUM_LAYERS, tiny


def asked(number: int, prompt: str, answer: str | None, *, language="en") -> Query:
    return Query(id=f"q{number}", language=language, prompt=prompt, answer=answer, concept="c")


QUERIES = [
    asked(0, "w5 w9 w13 w7 w40 w22 w8", "w3"),
    asked(1, "w11", "w4 w5 w6 w7 w8"),
    asked(2, "w30 w31 w32 w33", "w9 w9"),
    asked(3, "w7 w7", "w12 w45"),
]


def plain(model, query: Query, logits: torch.Tensor) -> tuple[float, int]:
    """Mean log-probability and the first token's rank from logits [pos vocab] of the whole text."""
    prompt = len(model.encode(query.prompt))
    ids = model.encode(f"{query.prompt} {query.answer}")
    log = logits.double().log_softmax(-1)
    said = [log[place - 1, ids[place]].item() for place in range(prompt, len(ids))]
    order = log[prompt - 1].argsort(descending=True).tolist()
    return sum(said) / len(said), 1 + order.index(ids[prompt])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_last_layer_is_what_the_model_says(name):
    model = tiny(name)
    table = apply_logit_lens(model, QUERIES, progress=False)
    assert list(table.columns) == list(COLUMNS)
    assert table["layer"].tolist() == list(range(-1, NUM_LAYERS)) * len(QUERIES)
    last = table[table["layer"] == NUM_LAYERS - 1].to_dict("records")
    for row, query in zip(last, QUERIES, strict=True):
        ids = torch.tensor([model.encode(f"{query.prompt} {query.answer}")])
        with torch.no_grad():
            logprob, rank = plain(model, query, model.model(ids).logits[0])
        assert (row["query_id"], row["rank"]) == (query.id, rank)
        assert row["logprob"] == pytest.approx(logprob, abs=1e-5)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.model.modules())


def cap(logits: torch.Tensor) -> torch.Tensor:
    return 3 * torch.tanh(logits / 3)


READOUTS = {
    "llama": lambda m, h: m.lm_head(m.model.norm(h)),
    "gemma2": lambda m, h: cap(m.lm_head(m.model.norm(h))),
    "gemma3": lambda m, h: m.lm_head(m.model.norm(h)),
    "phi": lambda m, h: m.lm_head(m.model.final_layernorm(h)),
    "gpt2": lambda m, h: m.lm_head(m.transformer.ln_f(h)),
    "bloom": lambda m, h: m.lm_head(m.transformer.ln_f(h)),
    "opt": lambda m, h: m.lm_head(m.model.decoder.final_layer_norm(h)),
    "opt_post_norm": lambda m, h: m.lm_head(m.model.decoder.project_out(h)),
}


@pytest.mark.parametrize("name", READOUTS)
def test_the_layers_below_are_read_through_the_final_norm(name):
    """Transformers' hidden states are the residual stream, but for the last, which is normed."""
    model = tiny(name)
    table = apply_logit_lens(model, QUERIES, progress=False)
    for query in QUERIES:
        ids = torch.tensor([model.encode(f"{query.prompt} {query.answer}")])
        rows = table[table["query_id"] == query.id].to_dict("records")
        with torch.no_grad():
            states = model.model(ids, output_hidden_states=True).hidden_states
            for row, state in zip(rows[:-1], states[:-1], strict=True):
                logprob, rank = plain(model, query, READOUTS[name](model.model, state)[0])
                assert row["rank"] == rank
                assert row["logprob"] == pytest.approx(logprob, abs=2e-5)


def counting_model():
    """Whatever it reads, token k has a probability in proportion to k + 1, but w7 to 20."""
    model = tiny("phi")
    sizes = torch.arange(1.0, 51.0)
    sizes[7] = 20
    model.model.lm_head.weight.zero_()
    model.model.lm_head.bias.copy_(sizes.log())
    return model, sizes.sum().item()


@pytest.mark.parametrize(("rows", "block"), [(1, 1), (3, 7), (256, 8192)])
def test_a_reading_by_hand(monkeypatch, rows, block):
    """1 + 2 + … + 50 = 1275, and 12 more for w7, which is as likely as w19."""
    monkeypatch.setattr(module, "ROWS", rows)
    monkeypatch.setattr(module, "BLOCK", block)
    model, total = counting_model()
    assert total == 1287
    table = apply_logit_lens(
        model, [asked(0, "w3", "w49 w4"), asked(1, "w5", "w19"), asked(2, "w5", "w7")]
    )
    for _, at_layer in table.groupby("layer"):
        # w49 is the likeliest, 30 are likelier than w19 and w7.
        assert at_layer["rank"].tolist() == [1, 31, 31]
        assert at_layer["logprob"].tolist() == pytest.approx(
            [
                (math.log(50 / 1287) + math.log(5 / 1287)) / 2,
                math.log(20 / 1287),
                math.log(20 / 1287),
            ],
            abs=1e-5,
        )


@pytest.mark.parametrize("batch_size", [1, 3])
def test_queries_that_are_run_together_do_not_see_each_other(batch_size):
    """Gemma's sliding window is shorter than the prompts."""
    model = tiny("gemma3")
    together = apply_logit_lens(model, QUERIES)
    apart = apply_logit_lens(model, QUERIES, batch_size=batch_size)
    pd.testing.assert_frame_equal(together, apart, rtol=0, atol=1e-5)


def test_an_answer_follows_as_its_language_has_it():
    """Without a space, w4 and 5 are the one word w45, and its prompt ends before."""
    model = tiny()
    joined = apply_logit_lens(model, [asked(0, "w9 w4", "5", language="zh")])
    logits = model.model(torch.tensor([model.encode("w9 w45")])).logits[0].log_softmax(-1)
    w45 = model.encode("w45")[1]
    assert joined["logprob"].iloc[-1] == pytest.approx(logits[1, w45].item(), abs=1e-5)


def reading(rows) -> pd.DataFrame:
    """One query with ranks by layer, from the embeddings on."""
    return pd.DataFrame(
        [
            ("V", language, "c", query_id, layer - 1, float(-rank), rank)
            for language, query_id, ranks in rows
            for layer, rank in enumerate(ranks)
        ],
        columns=list(COLUMNS),
    )


def test_readable_from_by_hand():
    """At rank 1 for a while and lost again does not count; within two, it is found earlier."""
    table = reading(
        [
            ("en", "a", [90, 1, 3, 1, 1]),
            ("en", "b", [90, 8, 2, 2, 2]),
            ("de", "a", [1, 1, 1, 1, 1]),
            ("de", "b", [5, 5, 5, 5, 1]),
        ]
    ).sample(frac=1, random_state=1)
    found = find_readable_layers(table).set_index(["language", "query_id"])
    assert found["layer"].drop(("en", "b")).to_dict() == {
        ("en", "a"): 2,
        ("de", "a"): -1,
        ("de", "b"): 3,
    }
    assert math.isnan(found.loc[("en", "b"), "layer"])
    assert found.loc[("en", "b"), "reason"] == "rank 2 at the last layer"
    assert found.loc[("en", "a"), "reason"] == ""
    within_two = find_readable_layers(table, top_k=2).set_index(["language", "query_id"])
    assert within_two["layer"].to_dict() == {
        ("en", "a"): 2,
        ("en", "b"): 1,
        ("de", "a"): -1,
        ("de", "b"): 3,
    }


def test_means_by_layer_by_hand():
    table = reading(
        [("en", "a", [4, 1]), ("en", "b", [2, 1]), ("en", "c", [3, 2]), ("de", "a", [5, 5])]
    )
    found = average_by_layer(table)
    assert found[["language", "layer"]].to_numpy().tolist() == [
        ["en", -1],
        ["en", 0],
        ["de", -1],
        ["de", 0],
    ]
    assert found["logprob"].tolist() == pytest.approx([-3, -4 / 3, -5, -5])
    assert found["readable"].tolist() == pytest.approx([0, 2 / 3, 0, 0])
    assert found["num_queries"].tolist() == [3, 3, 1, 1]
    assert average_by_layer(table, top_k=2)["readable"].tolist() == pytest.approx([1 / 3, 1, 0, 0])
    first = found.iloc[1]
    # The interval of a mean of −1, −1, −2 reaches from the least to the greatest of them.
    assert first[["ci_low", "ci_high"]].tolist() == [-2, -1]
    # Wilson's of 2 in 3: (p + z²/6 ± z √(p(1 − p)/3 + z²/36)) / (1 + z²/3).
    assert first[["readable_low", "readable_high"]].tolist() == pytest.approx(
        [0.2077, 0.9385], abs=1e-4
    )
    together = average_by_layer(table, by=("model",))
    assert together["logprob"].tolist() == pytest.approx([-3.5, -2.25])
    assert list(together.columns[:3]) == ["model", "layer", "logprob"]


def test_a_model_that_is_broken_has_no_rank():
    broken = tiny(seed=1)
    broken.model.model.layers[2].mlp.down_proj.weight[0, 0] = math.nan
    with pytest.raises(
        ValueError, match=r"a log-probability of 'q0' \(en\) from 'U' is not finite"
    ):
        apply_logit_lens(broken, QUERIES)


def test_errors_name_what_is_wrong():
    with pytest.raises(ValueError, match="q1 in 'en' has no answer to read"):
        apply_logit_lens(tiny(), [QUERIES[0], asked(1, "w3", None)])
    with pytest.raises(ValueError, match="no queries: give at least one"):
        apply_logit_lens(tiny(), [])
