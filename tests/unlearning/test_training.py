"""The loop: what it draws, what it computes for an objective, where it stops, how it goes on."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace

import pytest
import torch

from interp import LanguageModel, load
from interp.models import are_identical
from interp.unlearning.checkpoints import read_progress, save
from interp.unlearning.config import Bound, TrainingConfig
from interp.unlearning.examples import Draws, Example, make_batch, tokenize
from interp.unlearning.model_card import make_training_card
from interp.unlearning.objective_inputs import ObjectiveInputs, Reference, compute_label_scores
from interp.unlearning.registry import OBJECTIVES, find_sets
from interp.unlearning.trainable_model import TrainableModel
from interp.unlearning.training import train
from tests.helpers import ROOT
from tests.helpers.tiny_models import ARCHITECTURES, tiny

FORGET = [Example(prompt="w3 w4", answer=" w5"), Example(prompt="w6 w7 w8", answer=" w9 w10")]
RETAIN = [Example(prompt="w11 w12", answer=" w13"), Example(prompt="w14", answer=" w15 w16")]
PREFERRED = [Example(prompt="w3 w4", answer=" w20 w21"), Example(prompt="w6 w7 w8", answer=" w22")]
SETS = {"forget": FORGET, "retain": RETAIN, "preferred": PREFERRED}
CONFIG = TrainingConfig(learning_rate=1e-3, num_steps=8, batch_size=2, autocast=False, layer=1)


def trained(vanilla=None, sets=SETS, **changes):
    evaluate, out = changes.pop("evaluate", None), changes.pop("out", None)
    return train(
        vanilla or tiny(), sets, replace(CONFIG, **changes), evaluate=evaluate, out=out,
        progress=False,
    )  # fmt: skip


@torch.no_grad()
def ce(model, examples) -> float:
    """The mean over label tokens, from plain forwards over single examples."""
    values = []
    for example in examples:
        prompt = len(model.encode(example.prompt))
        whole = model.encode(example.prompt + example.answer)
        logs = model.model(torch.tensor([whole])).logits[0].log_softmax(-1)
        values += [-logs[i - 1, whole[i]].item() for i in range(prompt, len(whole))]
    return sum(values) / len(values)


# Examples


def test_labels_are_the_answers_tokens():
    model = tiny()
    assert tokenize(model, FORGET[1]).ids == (1, 6, 7, 8, 9, 10)
    assert tokenize(model, FORGET[1]).first_label == 4
    # Nothing predicts the first token.
    assert tokenize(model, Example(prompt="", answer="w5 w6")).first_label == 1
    with pytest.raises(ValueError, match="'w5' has no token to learn from"):
        tokenize(model, Example(prompt="w5", answer=""))


def test_a_batch_by_hand():
    model = tiny()
    batch = make_batch([tokenize(model, example) for example in FORGET], torch.device("cpu"))
    assert batch.input_ids.tolist() == [[1, 3, 4, 5, 5, 5], [1, 6, 7, 8, 9, 10]]
    assert batch.positions.tolist() == [[True] * 4 + [False] * 2, [True] * 6]
    assert batch.mask.tolist() == [[True, False], [True, True]]
    assert batch.targets.tolist() == [5, 9, 10]
    assert batch.table(torch.tensor([1.0, 2.0, 3.0])).tolist() == [[1, 0], [2, 3]]


def test_every_epoch_has_every_example_in_another_order():
    draws = Draws(
        [Example(prompt="w3", answer=f" w{n}") for n in range(3, 13)], seed=0, purpose="f"
    )
    epochs = [
        [number for step in range(5 * epoch, 5 * epoch + 5) for number in draws.indices(step, 2)]
        for epoch in range(3)
    ]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_a_draw_depends_on_seed_and_step_alone():
    examples = [Example(prompt="w3", answer=f" w{n}") for n in range(3, 13)]

    def steps(seed, purpose, order):
        draws = Draws(examples, seed=seed, purpose=purpose)
        return {step: draws.indices(step, 3) for step in order}

    forwards = steps(0, "f", range(20))
    assert steps(0, "f", [17, 3, 19, 0]).items() <= forwards.items()
    assert forwards != steps(1, "f", range(20))
    assert forwards != steps(0, "r", range(20))
    assert len(Draws(examples, seed=0, purpose="f").indices(0, 99)) == 10


def test_a_sequence_in_several_languages_is_drawn_once_in_a_language_drawn_anew():
    examples = [
        Example(prompt="", answer=f"w{n}", language=code, group=f"{n}")
        for n in range(4)
        for code in ("en", "de", "zh")
    ]
    draws = Draws(examples, seed=0, purpose="f")
    assert len(draws) == 4
    seen = Counter()
    for step in range(100):
        drawn = [examples[number] for number in draws.indices(step, 4)]
        assert sorted(example.group for example in drawn) == ["0", "1", "2", "3"]
        seen.update(example.language for example in drawn)
    assert all(100 < count < 170 for count in seen.values())


# What an objective needs


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_scores_are_those_of_plain_forwards(name):
    model, before = tiny(name, seed=1), tiny(name)
    inputs = ObjectiveInputs(model, Reference(before), SETS, layer=2)
    needs = ["forget_logprobs", "forget_mask", "forget_reference_logprobs", "retain_kl",
             "retain_states", "retain_reference_states", "retain_positions", "forget_log_odds",
             "forget_reference_log_odds", "forget_others_kl", "forget_logit_margin"]  # fmt: skip
    for _ in range(2):
        # The second time, what θ₀ says is remembered.
        found = inputs.compute(needs, {"forget": [1, 0], "retain": [0, 1]})
        for row, example in enumerate((FORGET[1], FORGET[0])):
            for scored, m in (("forget_logprobs", model), ("forget_reference_logprobs", before)):
                expected = compute_label_scores(m, [tokenize(m, example)])
                mask = found["forget_mask"][row]
                torch.testing.assert_close(found[scored][row][mask], expected)
                log_odds = found[scored.replace("logprobs", "log_odds")][row][mask]
                torch.testing.assert_close(log_odds.sigmoid(), expected.exp())
            ids = model.encode(example.prompt + example.answer)
            start = len(model.encode(example.prompt))
            z, z0 = (
                m.model(torch.tensor([ids])).logits[0, start - 1 : -1] for m in (model, before)
            )
            margin = z.amax(-1) - z.mean(-1)
            torch.testing.assert_close(
                found["forget_logit_margin"][row][mask], margin, atol=1e-5, rtol=1e-4
            )
            for place, token in enumerate(ids[start:]):
                others = [n for n in range(z.shape[-1]) if n != token]
                q, p = (logits[place, others].log_softmax(-1) for logits in (z0, z))
                kl = found["forget_others_kl"][row, place]
                torch.testing.assert_close(kl, (q.exp() * (q - p)).sum(), atol=1e-5, rtol=1e-4)
        assert -found["forget_logprobs"].sum().item() / 3 == pytest.approx(
            ce(model, FORGET), abs=1e-5
        )
        for row, example in enumerate(RETAIN):
            ids = torch.tensor([model.encode(example.prompt + example.answer)])
            start = len(model.encode(example.prompt)) - 1
            q, p = (m.model(ids).logits[0, start:-1].log_softmax(-1) for m in (before, model))
            kl = (q.exp() * (q - p)).sum(-1)
            torch.testing.assert_close(found["retain_kl"][row][: len(kl)], kl, atol=1e-5, rtol=1e-4)
            for key, m in (("retain_states", model), ("retain_reference_states", before)):
                states = m.model(ids, output_hidden_states=True).hidden_states[3][0]
                real = found["retain_positions"][row]
                assert not real[0]
                torch.testing.assert_close(found[key][row][real], states[1:], atol=1e-5, rtol=1e-4)


# The loop


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_does_what_it_says(name):
    vanilla = tiny()
    before = vanilla.content_hash()
    # With the source's weight on R, F moves little in eight steps.
    done = trained(vanilla, objective=name, settings={"alpha": 1.0} if name == "rmu" else {})
    assert vanilla.content_hash() == before
    assert not any(p.requires_grad or p.grad is not None for p in vanilla.model.parameters())
    assert not done.model.model.training
    assert done.reason == "all 8 steps"
    assert [row["step"] for row in done.history] == list(range(8))
    if name == "rmu":
        assert done.history[-1]["loss"] < done.history[0]["loss"] - 0.01
    elif "forget" in find_sets(name):
        assert ce(done.model, FORGET) > ce(vanilla, FORGET) + 0.001
    if "preferred" in find_sets(name):
        assert ce(done.model, PREFERRED) < ce(vanilla, PREFERRED)
    if name in ("finetune", "gd", "npo_rt", "simnpo", "idk"):
        assert ce(done.model, RETAIN) < ce(vanilla, RETAIN)
        assert done.history[0]["retain_ce"] == pytest.approx(ce(vanilla, RETAIN), rel=1e-5)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_embedding_and_unembedding_are_the_vanilla_models_memory(name):
    vanilla = tiny(name)
    unlearned = trained(vanilla).model
    for get in ("get_input_embeddings", "get_output_embeddings"):
        one, other = (getattr(m.model, get)().weight for m in (vanilla, unlearned))
        assert one.data_ptr() == other.data_ptr()
    assert not are_identical(vanilla, unlearned)


@pytest.mark.parametrize(
    ("parameters", "layers", "moved"),
    [
        ("mlp", None, {".mlp."}),
        ("attn", (1, 3), {".1.self_attn.", ".3.self_attn."}),
        ("layers", (2,), {".layers.2.", "model.norm."}),
        ("lora", (0,), {".0.mlp.", ".0.self_attn."}),
    ],
)
def test_only_what_is_chosen_moves(parameters, layers, moved):
    vanilla = tiny()
    untouched = vanilla.content_hash()
    unlearned = trained(vanilla, parameters=parameters, layers=layers, lora_rank=2).model
    assert vanilla.content_hash() == untouched == tiny().content_hash()
    before = dict(vanilla.model.named_parameters())
    after = dict(unlearned.model.named_parameters())
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(any(part in name for part in moved) for name in changed)
    assert all(any(part in name for name in changed) for part in moved)
    if parameters != "lora":
        for name in before.keys() - changed:
            assert before[name].data_ptr() == after[name].data_ptr()


def test_without_its_adapters_the_model_is_the_vanilla_one():
    """θ₀ under LoRA is the same memory with the adapters off."""
    vanilla = tiny()
    trainable = TrainableModel(vanilla, "lora", lora_rank=2)
    rows = [tokenize(vanilla, example) for example in RETAIN]
    for name, parameter in trainable.trained.items():
        assert "lora_" in name
        parameter.data.normal_()
    moved = compute_label_scores(trainable.model, rows)
    assert (moved - compute_label_scores(vanilla, rows)).abs().max() > 0.01
    inputs = ObjectiveInputs(trainable.model, trainable.reference, {"retain": RETAIN})
    found = inputs.compute(["retain_reference_logprobs", "retain_mask"], {"retain": [0, 1]})
    flat = found["retain_reference_logprobs"][found["retain_mask"]]
    torch.testing.assert_close(flat, compute_label_scores(vanilla, rows))
    shared = {p.data_ptr() for p in vanilla.model.parameters()}
    own = [p for n, p in trainable.model.model.named_parameters() if "lora_" not in n]
    assert {p.data_ptr() for p in own} <= shared
    merged = trainable.finish()
    torch.testing.assert_close(compute_label_scores(merged, rows), moved, atol=1e-5, rtol=1e-5)


SAME_LENGTH = [Example(prompt=f"w{n} w4", answer=f" w{n + 1}") for n in range(3, 11)]


@pytest.mark.parametrize("change", [{"accumulation": 2}, {"gradient_checkpointing": True}])
def test_saving_memory_moves_no_number(change):
    sets = {"forget": SAME_LENGTH[:4], "retain": SAME_LENGTH[4:]}
    plain = trained(sets=sets, batch_size=4)
    thrifty = trained(sets=sets, batch_size=4, **change)
    for one, other in zip(plain.history, thrifty.history, strict=True):
        assert one == pytest.approx(other, rel=1e-4)
    pairs = zip(plain.model.model.parameters(), thrifty.model.model.parameters(), strict=True)
    assert all(torch.allclose(one, other, atol=1e-4) for one, other in pairs)


def test_the_learning_rate_warms_up_and_gradients_are_clipped():
    slow = trained(num_steps=1, warmup_steps=9).model
    fast = trained(num_steps=1).model
    vanilla = tiny()
    name = "model.layers.0.mlp.up_proj.weight"
    moves = [
        (dict(m.model.named_parameters())[name] - dict(vanilla.model.named_parameters())[name])
        for m in (slow, fast)
    ]
    # AdamW's first step is the learning rate in every direction.
    torch.testing.assert_close(moves[0] * 10, moves[1], atol=1e-6, rtol=1e-3)
    assert trained(num_steps=1, max_grad_norm=1e-9).history[0]["grad_norm"] > 1e-3


def test_the_learning_rate_falls_in_a_line_behind_the_warm_up():
    config = TrainingConfig(learning_rate=8.0, num_steps=5, warmup_steps=1, schedule="linear")
    assert [config.compute_learning_rate(step) for step in range(5)] == [4, 8, 6, 4, 2]
    constant = replace(config, schedule="constant")
    assert [constant.compute_learning_rate(step) for step in range(5)] == [4, 8, 8, 8, 8]
    # AdamW moves a weight by about its learning rate; of four steps the last ones move it less.
    moves = []
    for schedule in ("constant", "linear"):
        model = trained(num_steps=4, schedule=schedule).model
        name = "model.layers.0.mlp.up_proj.weight"
        before, after = (dict(m.model.named_parameters())[name] for m in (tiny(), model))
        moves.append((after - before).abs().mean())
    assert 0.4 < moves[1] / moves[0] < 0.8


def test_a_large_epsilon_moves_weights_by_their_gradient():
    """AdamW's first step is lr · g / (|g| + ε), nearly lr · g / ε where ε is far larger.

    So all moves together have the norm of the clipped gradient, 1e-2, times lr / ε = 50.
    """
    model = trained(num_steps=1, max_grad_norm=1e-2, adam_epsilon=10.0, learning_rate=500.0).model
    pairs = zip(model.model.parameters(), tiny().model.parameters(), strict=True)
    moves = torch.cat([(one - other).detach().flatten() for one, other in pairs])
    assert moves.norm().item() == pytest.approx(0.5, rel=1e-2)
    with pytest.raises(ValueError, match="adam_epsilon must be above 0, not 0"):
        trained(adam_epsilon=0.0)


def test_the_same_seed_gives_the_same_weights():
    sets = {"forget": SAME_LENGTH[:4], "retain": SAME_LENGTH[4:]}
    hashes = [trained(sets=sets, seed=seed).model.content_hash() for seed in (0, 0, 1)]
    assert hashes[0] == hashes[1] != hashes[2]


# Where it stops


def test_it_stops_before_a_step_that_is_not_needed():
    done = trained(stops=(Bound(metric="forget_ce", above=0.0),), num_steps=50)
    assert len(done.history) == 1
    assert done.reason.startswith("forget_ce reached ")
    assert are_identical(tiny(), done.model)


def test_it_stops_on_what_is_evaluated_relative_to_the_value_before():
    values = iter([10.0, 9.0, 8.1, 7.9, 1.0])
    done = trained(
        evaluate=lambda model: {"quality": next(values)},
        evaluate_every=2,
        num_steps=50,
        stops=(Bound(metric="quality", below=0.8, relative=True),),
    )
    assert len(done.history) == 6
    assert [row["quality"] for row in done.history if "quality" in row] == [9.0, 8.1, 7.9]
    assert done.reason == "quality reached 7.9 (stop at quality<=80%)"


def test_a_model_is_evaluated_in_evaluation_mode_and_trained_on():
    seen = []

    def evaluate(model):
        seen.append((model.model.training, torch.is_grad_enabled(), ce(model, FORGET)))
        return {}

    trained(evaluate=evaluate, evaluate_every=4)
    assert [entry[:2] for entry in seen] == [(False, False)] * 2
    assert ce(tiny(), FORGET) < seen[0][2] < seen[1][2]


def test_a_stop_on_a_metric_that_is_not_there_is_refused_before_training():
    stop = Bound(metric="qualty", below=1.0)
    with pytest.raises(
        match="unknown metric 'qualty' in 'qualty<=1'; valid: forget_ce, retain_ce, quality",
    ):
        trained(stops=(stop,), evaluate=lambda model: {"quality": 1.0}, evaluate_every=4)


def test_a_loss_that_is_not_finite_leaves_the_vanilla_weights():
    broken = tiny()
    broken.model.get_output_embeddings().weight.data[3] = math.nan
    done = trained(broken)
    assert done.reason.startswith("diverged at step 0: the loss is not finite")
    before = dict(broken.model.named_parameters())
    for name, parameter in done.model.model.named_parameters():
        assert torch.equal(parameter, before[name]) or "lm_head" in name or "embed" in name


def test_after_divergence_the_weights_are_those_of_the_last_evaluation():
    kept = []

    def evaluate(model):
        kept.append({n: p.detach().clone() for n, p in model.model.named_parameters()})
        return {}

    done = trained(
        settings={"gamma": 50.0, "alpha": 1e-3}, learning_rate=0.05, num_steps=200,
        evaluate=evaluate, evaluate_every=3,
    )  # fmt: skip
    assert "worse than guessing" in done.reason
    assert len(kept) >= 2
    assert all(torch.equal(p, kept[-1][n]) for n, p in done.model.model.named_parameters())


def test_the_multiplier_of_pdu_rises_by_what_the_retain_loss_exceeds_its_bound():
    settings = {"tolerance": -0.5, "multiplier": 10.0, "dual_step_size": 2.0, "dual_warmup": 2.0}
    history = trained(objective="pdu", settings=settings, num_steps=5).history
    assert [row["dual_warmup"] for row in history] == [1, 0, 0, 0, 0]
    assert [row["multiplier"] for row in history[:2]] == [10, 10]
    # Every step has all of R: the bound is half of the loss before.
    bound, multiplier = history[0]["retain_ce"] / 2, 10.0
    for row in history[2:]:
        multiplier += 2 * (row["retain_ce"] - bound)
        assert row["multiplier"] == pytest.approx(multiplier, rel=1e-5)
    # Each row's loss is of the multiplier before: what is left of it are the squared margins.
    given = {"retain": RETAIN, "forget": FORGET}
    inputs = ObjectiveInputs(tiny(), Reference(tiny()), given)
    found = inputs.compute(["forget_logit_margin", "forget_mask"], {"forget": [0, 1]})
    one, two = (row[mask] for row, mask in zip(*found.values(), strict=True))
    flat = (one.square().mean() + two.square().mean()).item() / 2
    assert history[0]["loss"] == pytest.approx(flat + 10 * bound, rel=1e-5)


def test_parts_of_a_step_change_settings_once():
    sets = {"forget": SAME_LENGTH[:4], "retain": SAME_LENGTH[4:]}
    settings = {"tolerance": -0.5, "dual_warmup": 3.0}
    given = {"objective": "pdu", "settings": settings, "sets": sets, "batch_size": 4}
    plain, thrifty = (trained(**given, accumulation=n).history for n in (1, 4))
    assert [row["dual_warmup"] for row in thrifty] == [2, 1, 0, 0, 0, 0, 0, 0]
    for one, other in zip(plain, thrifty, strict=True):
        assert one == pytest.approx(other, rel=1e-4)


@pytest.mark.parametrize("objective", ["ceu", "undial"])
def test_losses_are_told_where_an_objective_has_log_odds(objective):
    history = trained(objective=objective).history
    assert history[0]["forget_ce"] == pytest.approx(ce(tiny(), FORGET), rel=1e-5)
    assert (
        trained(objective=objective, stops=(Bound(metric="forget_ce", above=0),)).history[1:] == []
    )


def test_a_task_vector_is_what_learning_did_negated():
    vanilla = tiny()
    learned = trained(vanilla, {"retain": FORGET}, objective="finetune").model
    negated = trained(vanilla, objective="task_vector", settings={"alpha": 0.5}).model
    before = dict(vanilla.model.named_parameters())
    after = dict(negated.model.named_parameters())
    for name, parameter in learned.model.named_parameters():
        expected = before[name] - 0.5 * (parameter - before[name])
        torch.testing.assert_close(after[name], expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("changes", [{}, {"parameters": "lora", "lora_rank": 2}])
def test_a_task_vector_is_evaluated_as_it_will_be_made(changes):
    found = []

    def evaluate(model):
        found.append(ce(model, FORGET))
        return {}

    done = trained(objective="task_vector", evaluate=evaluate, evaluate_every=4, **changes)
    assert ce(tiny(), FORGET) < found[0] < found[1]
    assert found[1] == pytest.approx(ce(done.model, FORGET), rel=1e-4)
    # What learns is not disturbed by it.
    assert done.history[-1]["forget_ce"] < done.history[0]["forget_ce"]


def test_the_turns_of_lingteas_code_are_epochs():
    sets = {"forget": SAME_LENGTH[:3], "retain": SAME_LENGTH[3:8]}
    history = trained(sets=sets, objective="lingtea_code", batch_size=2, num_steps=12).history
    turns = ["forget" if "forget_ce" in row else "retain" for row in history]
    # Two steps see three examples, three steps see five.
    assert turns == [*["forget"] * 2, *["retain"] * 3] * 2 + ["forget"] * 2


# What is kept


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_an_adapter_is_kept_as_an_adapter(tmp_path):
    peft = pytest.importorskip("peft")
    vanilla = tiny()
    save(vanilla, tmp_path / "v", card={})
    vanilla = load(str(tmp_path / "v"))
    done = trained(vanilla, out=tmp_path / "m", parameters="lora", lora_rank=2)
    names = {path.name for path in (tmp_path / "m").iterdir()}
    assert names >= {"adapter_config.json", "adapter_model.safetensors", "unlearning.json"}
    assert "model.safetensors" not in names
    for again in (load(str(tmp_path / "m"), like=vanilla), load(str(tmp_path / "m"))):
        assert again.content_hash() == done.model.content_hash()
    theirs = peft.PeftModel.from_pretrained(tiny().model, str(tmp_path / "m"))
    ids = torch.tensor([[1, 5, 6, 7]])
    logits = done.model.model(ids).logits
    torch.testing.assert_close(theirs(ids).logits, logits, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("parameters", ["layers", "lora"])
@pytest.mark.parametrize("objective", ["gd", "task_vector"])
def test_checkpoints_are_what_a_shorter_run_would_have_made(tmp_path, parameters, objective):
    vanilla = tiny()
    changes = {"parameters": parameters, "lora_rank": 2, "objective": objective}
    trained(vanilla, out=tmp_path / "m", checkpoint_every=3, **changes)
    folder = tmp_path / "m.checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["step-00003", "step-00006"]
    kept = load(str(folder / "step-00003"), like=vanilla)
    shorter = trained(vanilla, num_steps=3, **changes).model
    for one, other in zip(kept.model.parameters(), shorter.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)
    card = json.loads((folder / "step-00003" / "unlearning.json").read_text(encoding="utf-8"))
    assert (len(card["history"]), card["reason"]) == (3, "checkpoint after step 3")


@pytest.mark.parametrize("accumulation", [1, 2])
def test_adapters_of_a_model_in_bfloat16_are_float32(accumulation):
    model = tiny()
    lowered = LanguageModel(model.model.to(torch.bfloat16), model.tokenizer, name="V")
    with pytest.raises(ValueError, match="'V' has bfloat16 weights, in which small steps are lost"):
        trained(lowered)
    done = trained(
        lowered, parameters="lora", lora_rank=2, objective="npo_kl", accumulation=accumulation
    )
    assert done.model.dtype == torch.bfloat16
    assert done.history[-1]["forget_ce"] > done.history[0]["forget_ce"]


# Going on


class Killed(BaseException):
    """Something that no code catches."""


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"parameters": "lora", "lora_rank": 2, "objective": "npo_kl"},
        {"objective": "task_vector"},
        {"objective": "lingtea_code"},
        {"objective": "pdu", "settings": {"tolerance": -0.5, "dual_warmup": 1}, "batch_size": 1},
    ],
)
def test_a_killed_run_goes_on_bit_for_bit(tmp_path, changes):
    sets = {"forget": SAME_LENGTH[:4], "retain": SAME_LENGTH[4:]}
    changes = {"num_steps": 9, "evaluate_every": 2, **changes}
    count = iter(range(100))

    def until_killed(model):
        if next(count) == 2:
            raise Killed
        return {"metric": ce(model, FORGET)}

    with pytest.raises(Killed):
        trained(sets=sets, evaluate=until_killed, out=tmp_path / "m", **changes)
    assert [path.name for path in tmp_path.iterdir()] == ["m.training_state.safetensors"]
    steps = []

    def evaluate(model):
        steps.append(1)
        return {"metric": ce(model, FORGET)}

    again = trained(sets=sets, evaluate=evaluate, out=tmp_path / "m", **changes)
    # Killed in the evaluation after step 6, stored after step 4: 6 and 8 are left.
    assert len(steps) == 2
    undisturbed = trained(
        sets=sets, evaluate=lambda model: {"metric": ce(model, FORGET)}, **changes
    )
    assert again.history == undisturbed.history
    assert again.model.content_hash() == undisturbed.model.content_hash()
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


SCRIPT = """
import sys
sys.path.insert(0, {here!r})
from tests.unlearning.test_training import *
changes = {{"num_steps": 400, "evaluate_every": 20, "objective": "npo_kl", "learning_rate": 1e-4}}
sets = {{"forget": SAME_LENGTH[:4], "retain": SAME_LENGTH[4:]}}
done = trained(sets=sets, out={out!r}, **changes)
print(done.model.content_hash(), len(done.history))
"""


@pytest.fixture
def full_disk():
    """No file can grow beyond 4 KiB: how a write fails where there is no room."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("changes", [{}, {"evaluate_every": 2}])
def test_a_full_disk_is_one_sentence_and_leaves_nothing_half_written(tmp_path, full_disk, changes):
    with pytest.raises(OSError, match=r"could not be written: .*too large"):
        trained(out=tmp_path / "m", evaluate=lambda _model: {"x": 1.0}, **changes)
    assert not (tmp_path / "m").exists()
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith(".partial")]


@pytest.mark.slow
def test_a_process_that_is_killed_goes_on_bit_for_bit(tmp_path):
    def start(out):
        script = SCRIPT.format(here=str(ROOT), out=str(tmp_path / out))
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen([sys.executable, "-W", "ignore", "-c", script], env=environment,
                                stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)  # fmt: skip

    undisturbed = start("a")
    killed = start("b")
    state = tmp_path / "b.training_state.safetensors"
    deadline = time.monotonic() + 120
    while not state.exists():
        assert killed.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "b").exists()
    assert 0 < len(read_progress(state)["history"]) < 400
    again = start("b")
    printed = [process.communicate(timeout=120)[0] for process in (undisturbed, again)]
    assert printed[0] == printed[1]
    assert printed[0].endswith(b" 400\n")
    assert not state.exists()


def test_a_finished_run_is_not_done_again(tmp_path, monkeypatch):
    vanilla = tiny()
    first = trained(vanilla, out=tmp_path / "m")
    from interp.unlearning import training

    monkeypatch.setattr(training, "TrainableModel", None)
    again = trained(vanilla, out=tmp_path / "m")
    assert again.model.content_hash() == first.model.content_hash()
    assert (again.history, again.reason) == (first.history, first.reason)
    assert load(str(tmp_path / "m"), like=vanilla).content_hash() == first.model.content_hash()
    card = json.loads((tmp_path / "m" / "unlearning.json").read_text(encoding="utf-8"))
    assert card["parent_hash"] == vanilla.content_hash()
    assert card["method"] == "gd"
    assert card["settings"]["settings"] == {"gamma": 1.0, "alpha": 1.0}
    assert card["data"]["forget"]["examples"] == 2
    assert card["data"]["retain"]["languages"] == {"": 2}
    for change, says in [
        ({"learning_rate": 2e-3}, "learning_rate 0.001 instead of 0.002"),
        ({"objective": "ga"}, "method 'gd' instead of 'ga'"),
        ({"sets": {**SETS, "retain": RETAIN[:1]}}, "other retain examples"),
    ]:
        with pytest.raises(ValueError, match=f"of another run \\({says}\\)"):
            trained(vanilla, out=tmp_path / "m", **change)


def test_equal_cards_are_equal_runs():
    vanilla, given = tiny(), {"forget": FORGET}
    card = make_training_card(vanilla, given, CONFIG)
    assert card == make_training_card(tiny(), given, replace(CONFIG, settings={"alpha": 1.0}))
    assert card != make_training_card(tiny(seed=1), given, CONFIG)
    assert card == json.loads(json.dumps(card))
    stop = replace(CONFIG, stops=(Bound(metric="forget_ce", above=8.0),))
    assert json.dumps(make_training_card(vanilla, given, stop), allow_nan=False)


# Mistakes


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"sets": {**SETS, "forget": []}}, "gd needs forget examples"),
        ({"sets": {"forget": FORGET}}, "gd needs retain examples"),
        ({"objective": "dpo", "sets": {"forget": FORGET}}, "dpo needs preferred examples"),
        ({"sets": {**SETS, "preferred": PREFERRED[:1]}, "objective": "dpo"}, "1 preferred answers"),
        (
            {"objective": "forget"},
            "unknown objective 'forget'; valid: dpo, dpo_kl, altpo, ceu, finetune",
        ),
        (
            {"objective": "lingtea_code", "settings": {"alpha": 2.0}},
            "no setting 'alpha'; valid: none",
        ),
        ({"settings": {"beta": 1.0}}, "gd has no setting 'beta'; valid: gamma, alpha"),
        ({"parameters": "heads"}, "unknown parameter group 'heads'; valid: layers, mlp"),
        ({"parameters": "lora", "lora_rank": 0}, "lora_rank must be at least 1, not 0"),
        ({"layers": (9,)}, r"layer 9 is out of range 0 to 4 \('V'\)"),
        ({"layers": ()}, "layers is empty"),
        ({"objective": "rmu", "layer": 7}, r"layer 7 of rmu is out of range 0 to 4 \('V'\)"),
        ({"num_steps": 0}, "num_steps must be at least 1, not 0"),
        ({"batch_size": {"forget": 2}}, "batch_size has no entry for the retain examples"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0"),
        ({"stops": (Bound(metric="quality", below=1.0),)}, "the bound 'quality<=1' needs evaluate"),
    ],
)
def test_mistakes_are_one_sentence_before_any_training(changes, says):
    with pytest.raises(ValueError, match=says) as caught:
        trained(**changes)
    assert "\n" not in str(caught.value)
