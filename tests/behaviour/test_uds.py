"""The unlearning depth score: against plain hooks, its ends, and the formula by hand."""

from __future__ import annotations

import math

import pandas as pd
import pytest
import torch

from interp import Query, evaluate
from interp.behaviour import uds as module
from interp.behaviour.uds import (
    COLUMNS,
    average_scores,
    compute_erasure,
    measure_falls,
    score_queries,
    tokenize_entity,
)
from interp.data import EntityQuestion, make_queries
from tests.helpers.every_architecture import make_tiny
from tests.helpers.tiny_models import ARCHITECTURES, NUM_LAYERS, tiny, wrap


def asked(number: int, prompt: str, answer: str | None, *, language="en") -> Query:
    return Query(id=f"q{number}", language=language, prompt=prompt, answer=answer, concept="c")


# Two prompts of the same length, with answers of one and of four tokens; a prompt of <s> alone.
QUERIES = [
    asked(0, "w5 w9 w13 w7 w40 w22 w8", "w3"),
    asked(1, "w11 w4", "w4 w5 w6 w7"),
    asked(2, "w30 w31", "w9"),
    asked(3, "", "w12 w45"),
    asked(4, "w7 w8 w9 w10 w11 w12 w13", "w44 w5 w20"),
]


def plain_logprob(model, ids: list[int], start: int, hook=None, layer: int = 0) -> float:
    """Mean log-probability of the tokens from `start` on, with a hook on a layer's output."""
    handle = None
    if hook is not None:
        handle = model.anatomy.layers[layer].layer.register_forward_hook(hook)
    with torch.no_grad():
        log = model.model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    if handle is not None:
        handle.remove()
    said = [log[place - 1, ids[place]].item() for place in range(start, len(ids))]
    return sum(said) / len(said)


def plain_fall(vanilla, donor, query: Query, layer: int) -> float:
    """One forward of the donor and one of V, on one query alone, full logits."""
    ids = list(vanilla.encode(f"{query.prompt} {query.answer}"))
    start = len(vanilla.encode(query.prompt))
    kept = []

    def keep(_layer, _args, output):
        kept.append((output[0] if isinstance(output, tuple) else output).clone())

    def put(_layer, _args, output):
        changed = (output[0] if isinstance(output, tuple) else output).clone()
        changed[:, start - 1 : -1] = kept[0][:, start - 1 : -1]
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    plain_logprob(donor, ids, start, keep, layer)
    return plain_logprob(vanilla, ids, start) - plain_logprob(vanilla, ids, start, put, layer)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_falls_are_those_of_plain_hooks(name):
    """Prompts longer than the sliding windows."""
    vanilla, unlearned, baseline = (tiny(name, seed=seed) for seed in range(3))
    table = measure_falls(vanilla, unlearned, baseline, QUERIES, progress=False)
    assert list(table.columns) == list(COLUMNS)
    assert table["layer"].tolist() == list(range(NUM_LAYERS)) * len(QUERIES)
    rows = iter(table.to_dict("records"))
    for query in QUERIES:
        ids = list(vanilla.encode(f"{query.prompt} {query.answer}"))
        own = plain_logprob(vanilla, ids, len(vanilla.encode(query.prompt)))
        for layer in range(NUM_LAYERS):
            row = next(rows)
            assert (row["unlearned"], row["query_id"], row["layer"]) == ("U", query.id, layer)
            assert row["logprob"] == pytest.approx(own, abs=1e-5)
            for donor, column in ((unlearned, "fall_unlearned"), (baseline, "fall_baseline")):
                fall = plain_fall(vanilla, donor, query, layer)
                assert row[column] == pytest.approx(fall, abs=1e-5)


@pytest.mark.parametrize("name", ["Qwen3_5ForCausalLM", "BambaForCausalLM"])
def test_falls_of_hybrids_are_those_of_plain_hooks(name):
    """Recurrent states of what stands before are repeated for every run, as keys and values are."""
    vanilla, unlearned, baseline = (wrap(make_tiny(name, seed=seed)) for seed in range(3))
    table = measure_falls(vanilla, unlearned, baseline, QUERIES[:3], progress=False)
    rows = iter(table.to_dict("records"))
    for query in QUERIES[:3]:
        for layer in range(vanilla.num_layers):
            fall = plain_fall(vanilla, unlearned, query, layer)
            assert next(rows)["fall_unlearned"] == pytest.approx(fall, abs=1e-5)


def test_a_model_that_needs_a_cache_of_its_own_is_refused():
    models = [wrap(make_tiny("RecurrentGemmaForCausalLM", seed=seed)) for seed in range(3)]
    with pytest.raises(ValueError, match="a DynamicCache does not hold all that RecurrentGemma"):
        measure_falls(*models, QUERIES, progress=False)


def test_the_ends_of_the_scale():
    """U = V has lost nothing, U = B all, in every layer."""
    vanilla, baseline = tiny(), tiny(seed=1)
    for unlearned, expected in ((vanilla, 0), (baseline, 1)):
        table = measure_falls(vanilla, unlearned, baseline, QUERIES, progress=False)
        share = compute_erasure(table)["erased"].dropna()
        assert len(share) > 10
        assert share.tolist() == pytest.approx([expected] * len(share), abs=1e-4)
        found = score_queries(table)["uds"].dropna()
        assert found.tolist() == pytest.approx([expected] * len(found), abs=1e-5)


@pytest.mark.parametrize("rows", [1, 2 * (2 * NUM_LAYERS + 1)])
def test_queries_that_are_run_together_do_not_see_each_other(monkeypatch, rows):
    models = [tiny("gemma3", seed=seed) for seed in range(3)]
    queries = [
        asked(n, f"w{n} w{n + 1} w{n + 2}", "w9 w8" if n % 2 else "w3") for n in range(5, 12)
    ]
    together = measure_falls(*models, queries)
    monkeypatch.setattr(module, "MAX_ROWS", rows)
    pd.testing.assert_frame_equal(together, measure_falls(*models, queries), rtol=0, atol=1e-5)


def table_of(rows) -> pd.DataFrame:
    """Rows of language, query, and the falls for U and for the baseline by layer."""
    return pd.DataFrame(
        [
            ("U", language, "c", query_id, layer, -1.0, *both)
            for language, query_id, by_layer in rows
            for layer, both in enumerate(by_layer)
        ],
        columns=list(COLUMNS),
    )


TABLE = table_of(
    [
        # Below the threshold; below 0; half; more than all.
        ("en", "a", [(9.0, 0.05), (-0.5, 0.5), (0.5, 1.0), (4.0, 2.5)]),
        ("en", "b", [(0.0, -3.0), (0.0, 0.0), (1.0, 0.04), (0.0, 0.01)]),
        ("en", "c", [(0.0, 0.0), (0.25, 1.0), (0.0, 0.0), (0.0, 0.0)]),
        ("de", "a", [(0.0, 0.0), (0.0, 0.0), (0.1, 0.1), (0.0, 0.3)]),
    ]
)


def test_the_formula_by_hand():
    found = score_queries(TABLE)
    assert found["query_id"].tolist() == ["a", "b", "c", "a"]
    # (0.5 · 0 + 1 · 0.5 + 2.5 · 1) / (0.5 + 1 + 2.5), and (0.1 · 1 + 0.3 · 0) / 0.4.
    assert found["uds"].drop(1).tolist() == pytest.approx([3 / 4, 1 / 4, 1 / 4])
    assert math.isnan(found["uds"][1])
    assert found["num_layers"].tolist() == [3, 0, 1, 2]
    none = "no state of the baseline costs more than 0.05 nats"
    assert found["reason"].tolist() == ["", none, "", ""]
    # With a lower threshold, query a's first layer counts: all of 0.05.
    lower = score_queries(TABLE, threshold=0.03)
    assert lower["uds"].tolist() == pytest.approx([3.05 / 4.05, 1, 1 / 4, 1 / 4])


def test_shares_by_layer_by_hand():
    found = compute_erasure(TABLE)
    assert found["erased"].iloc[1:4].tolist() == [0, 0.5, 1]
    assert found["erased"].isna().tolist()[:1] == [True]
    assert found["reason"].iloc[:2].tolist() == [
        "the baseline's state costs no more than 0.05 nats",
        "",
    ]
    means = average_scores(found, "erased", by=("language", "layer"))
    assert means["layer"].tolist() == [0, 1, 2, 3] * 2
    assert means["erased"].iloc[1] == pytest.approx((0 + 0.25) / 2)
    assert means["num_queries"].tolist() == [0, 2, 1, 1, 0, 0, 1, 1]
    assert math.isnan(means["erased"].iloc[0])


def test_averages_leave_out_what_has_no_score_and_say_so():
    found = average_scores(score_queries(TABLE), "uds")
    assert found[["unlearned", "language"]].to_numpy().tolist() == [["U", "en"], ["U", "de"]]
    assert found["uds"].tolist() == pytest.approx([(3 / 4 + 1 / 4) / 2, 1 / 4])
    assert found["num_queries"].tolist() == [2, 1]
    assert found["reason"].tolist() == [
        "1 of 3 items have no value",
        "one item: no interval",
    ]
    assert found.loc[0, ["ci_low", "ci_high"]].tolist() == pytest.approx([1 / 4, 3 / 4])


def test_errors_name_what_is_wrong():
    with pytest.raises(ValueError, match="q1 in 'en' has no answer to read"):
        measure_falls(tiny(), tiny(seed=1), tiny(seed=2), [asked(1, "w3", None)])
    for models in ((tiny(num_layers=4), tiny(seed=2)), (tiny(seed=2), tiny(num_layers=4))):
        with pytest.raises(ValueError, match="num_hidden_layers is 4"):
            measure_falls(tiny(), *models, QUERIES)
    broken = tiny(seed=1)
    broken.model.model.layers[2].mlp.down_proj.weight[0, 0] = math.nan
    for donors in ((broken, tiny(seed=2)), (tiny(seed=2), broken)):
        with pytest.raises(ValueError, match=r"of 'q0' \(en\) from 'U' is not finite"):
            measure_falls(tiny(), *donors, QUERIES)


def entity_question(number: int, question: str, prefix: str, rest: str, entity: str):
    return EntityQuestion(
        id=f"uds-{number}",
        language="en",
        question=question,
        answer=prefix + rest,
        prefix=prefix,
        entity=entity,
        concept="uds",
    )


# An entity right after its prefix; one in the middle of the rest; no prefix; a prefix that ends in
# a quotation mark, after which the released code puts a space; one that is followed by a full stop.
ENTITY_QUESTIONS = [
    entity_question(0, "w5 w9", "w13 w7", " w40 w22 w8", "w40 w22"),
    entity_question(1, "w11 w4", "w4", " w5 w6 w7 w30", "w7"),
    entity_question(2, "w30", "", "w9, w8 w3", "w9"),
    entity_question(3, "w12", "w45 w3 '", "w14 w15' w2", "w14 w15"),
    entity_question(4, "w6 w6", "w2 w1", " w33.", "w33"),
]


def released_falls(full, source, item: EntityQuestion, *, hidden_states: bool):
    """The released description, from the texts on: what each layer's state costs the entity.

    Prompt and reference are tokenized apart; a space is restored where neither side has one; the
    entity's tokens are those that overlap its first occurrence; states are put in at the positions
    that predict them, one layer at a time, and their mean log-probability is read there.
    """
    tokenizer = full.tokenizer
    prompt = "Question: " + item.question + "\nAnswer: " + item.prefix
    reference = item.answer[len(item.prefix) :]
    if not reference[0].isspace() and not prompt[-1].isspace():
        reference = " " + reference
    coded = tokenizer(reference, add_special_tokens=False, return_offsets_mapping=True)
    begin = reference.find(item.entity)
    end = begin + len(item.entity)
    inside = [i for i, (a, b) in enumerate(coded["offset_mapping"]) if b > begin and a < end]
    prompt_ids = tokenizer(prompt)["input_ids"]
    ids = torch.tensor([prompt_ids + coded["input_ids"]])
    first, last = len(prompt_ids) - 1 + inside[0], len(prompt_ids) + inside[-1]
    labels = ids[0, first + 1 : last + 1]

    def read() -> float:
        log = full.model(ids).logits[0, first:last].log_softmax(-1)
        return log.gather(1, labels[:, None]).mean().item()

    falls = []
    with torch.no_grad():
        states = source.model(ids, output_hidden_states=True).hidden_states
        own = read()
        for layer, block in enumerate(full.model.model.layers):
            state = states[layer + 1]
            if layer == full.num_layers - 1 and not hidden_states:
                kept = []
                norm = source.model.model.norm
                handle = norm.register_forward_pre_hook(
                    lambda _m, args, kept=kept: kept.append(args[0])
                )
                source.model(ids)
                handle.remove()
                (state,) = kept

            def put(_block, _args, output, state=state):
                changed = (output[0] if isinstance(output, tuple) else output).clone()
                changed[:, first:last] = state[:, first:last]
                return (changed, *output[1:]) if isinstance(output, tuple) else changed

            handle = block.register_forward_hook(put)
            falls.append(own - read())
            handle.remove()
    return falls


@pytest.mark.parametrize("final_norm", [False, True])
def test_falls_of_entities_are_those_of_the_released_description(final_norm):
    vanilla, unlearned, baseline = (tiny("llama", seed=seed) for seed in range(3))
    table = measure_falls(
        vanilla, unlearned, baseline, ENTITY_QUESTIONS, final_norm=final_norm, progress=False
    )
    for item in ENTITY_QUESTIONS:
        rows = table.query("query_id == @item.id")
        for donor, column in ((unlearned, "fall_unlearned"), (baseline, "fall_baseline")):
            expected = released_falls(vanilla, donor, item, hidden_states=final_norm)
            assert rows[column].tolist() == pytest.approx(expected, abs=1e-4)
            assert max(map(abs, expected)) > 0.01


def test_the_last_state_after_the_norm_is_not_the_residual_stream():
    vanilla, unlearned, baseline = (tiny("llama", seed=seed) for seed in range(3))
    both = [
        measure_falls(
            vanilla, unlearned, baseline, ENTITY_QUESTIONS, final_norm=normed, progress=False
        )
        for normed in (False, True)
    ]
    moved = (both[0]["fall_unlearned"] - both[1]["fall_unlearned"]).abs()
    last = both[0]["layer"] == NUM_LAYERS - 1
    assert moved[~last].max() < 1e-6
    assert moved[last].min() > 1e-4


def test_an_entity_alone_is_scored_and_what_comes_after_it_is_not_read():
    vanilla = tiny("llama")
    tokens = tokenize_entity(vanilla, ENTITY_QUESTIONS[1])
    assert vanilla.decode(tokens.ids[tokens.first_label :]).strip() == "w7"
    assert "w30" not in vanilla.decode(tokens.ids)


def test_a_tokenizer_without_offsets_is_refused(monkeypatch):
    vanilla = tiny("llama")

    def slow(*_args, **_settings):
        raise NotImplementedError

    class Slow:
        __call__ = slow

    with monkeypatch.context() as patch:
        patch.setattr(vanilla, "_tokenizer", Slow(), raising=False)
        patch.setattr(vanilla, "tokenizer", Slow(), raising=False)
        with pytest.raises(ValueError, match="needs a fast tokenizer"):
            tokenize_entity(vanilla, ENTITY_QUESTIONS[0])


def test_the_metric_scores_entities_where_it_has_their_records(tmp_path):
    """Kept tables of the same queries without records are not taken for it."""
    vanilla, unlearned, baseline = (tiny("llama", seed=seed) for seed in range(3))
    queries = make_queries(ENTITY_QUESTIONS)
    found = []
    for records in ((), ENTITY_QUESTIONS):
        table = evaluate(
            unlearned,
            queries,
            ["uds"],
            vanilla=vanilla,
            baseline=baseline,
            records=records,
            out=tmp_path,
            progress=False,
        )
        found.append(table["value"].item())
    falls = measure_falls(vanilla, unlearned, baseline, ENTITY_QUESTIONS, progress=False)
    assert found[1] == pytest.approx(score_queries(falls)["uds"].mean())
    assert found[0] != pytest.approx(found[1], abs=1e-6)
