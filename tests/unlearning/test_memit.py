"""MEMIT for removal: δ, the closed form on models of every architecture, subjects in any script."""

import math

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from interp import LanguageModel
from interp.unlearning.memit import compute_z as module
from interp.unlearning.memit import memit_main
from interp.unlearning.memit.layer_stats import measure_second_moments
from interp.unlearning.memit.memit_main import edit_at_strengths, memit
from interp.unlearning.memit.post_norm import PostNorm, project_onto_ellipsoid
from interp.unlearning.memit.requests import (
    Edit,
    MemitConfig,
    default_edit_layers,
    find_last_subject_token,
    make_rows,
)
from tests.helpers.tiny_models import ARCHITECTURES, question, tiny, tiny_model, wrap

TEXTS = [question(number, words=12).prompt for number in range(60)]
TWO = Edit(
    id="two", subject="w5 w6", prompts=("w9 w5 w6 w7", "w10 w11 w5 w6"), answer=" w8", language="de"
)
ONE = Edit(id="one", subject="w20", prompts=("w30 w20 w7",), answer=" w21 w22")
LAYERS = (1, 2, 3)


def config(**changes):
    """Little regularisation, so that the edit reaches what it aims at."""
    settings = {"layers": LAYERS, "regularisation": 1e-3, "learning_rate": 0.1}
    words = {"target": " w40", "essence": "w12 {subject} w13"}
    return MemitConfig(**(settings | words | changes))


def run(model, edits=(TWO, ONE), batch_size=16, **changes):
    settings = config(**changes)
    moments = measure_second_moments(model, settings.layers, TEXTS, progress=False)
    return memit(model, edits, moments, settings, batch_size=batch_size, progress=False)


def double(name="llama"):
    """A tiny model in float64, in which an edit is not rounded."""
    return wrap(tiny_model(name).double(), name="V")


def weight(model, layer):
    """A down projection as [d_model, d_mlp], whatever its orientation."""
    values = model.anatomy.layers[layer].values
    return values.weight.T if type(values).__name__ == "Conv1D" else values.weight


def key_of(model, text, place, layer):
    """The down projection's input at one token."""
    seen = []
    values = model.anatomy.layers[layer].values
    handle = values.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    with torch.no_grad():
        model.model(torch.tensor([model.encode(text)]))
    handle.remove()
    return seen[0].reshape(-1, seen[0].shape[-1])[place]


# The edit


@pytest.mark.parametrize("name", ["llama", "gpt2", "llama_biases"])
@pytest.mark.parametrize("regularisation", [1e-3, 20.0])
def test_one_key_in_one_layer_by_the_normal_equations(name, regularisation):
    model = double(name)
    edited, table = run(model, [ONE], layers=(2,), regularisation=regularisation)
    update = weight(edited, 2) - weight(model, 2)
    # <s> w30 w20 w7: the subject is the token at place 2.
    key = key_of(model, ONE.prompts[0], 2, 2)
    moment = measure_second_moments(model, [2], TEXTS, progress=False)[2]
    system = regularisation * moment + torch.outer(key, key)
    # Δ(λC + kkᵀ) = r kᵀ with ‖r‖ = ‖δ‖.
    change = update @ system @ key / (key @ key)
    assert torch.allclose(update @ system, torch.outer(change, key), rtol=1e-6, atol=1e-9)
    assert change.norm().item() == pytest.approx(table["delta_norm"][0], rel=1e-6)
    # Δk = r·s / (1 + s), s = kᵀC⁻¹k / λ: so much of δ is reached.
    share = (key @ torch.linalg.solve(moment, key) / regularisation).item()
    assert table["reached"][0] == pytest.approx(share / (1 + share), rel=1e-6)
    assert (share > 100) == (regularisation < 1)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_moves_to_the_state_aimed_at(name):
    model = tiny(name)
    before = model.content_hash()
    edited, table = run(model)
    assert model.content_hash() == before
    post_norms = {"gemma2", "gemma3", "olmo2", "opt_post_norm"}
    # A layer behind a norm cannot go anywhere.
    assert (table["reached"] > (0.5 if name in post_norms else 0.98)).all()
    assert (table["objective_delta"] < table["objective_before"]).all()
    assert table["objective_after"].sum() < table["objective_before"].sum()
    own, theirs = dict(edited.model.named_parameters()), dict(model.model.named_parameters())
    changed = {key for key in own if own[key].data_ptr() != theirs[key].data_ptr()}
    values = {id(edited.anatomy.layers[layer].values.weight) for layer in LAYERS}
    assert {id(own[key]) for key in changed} == values
    assert not any(torch.equal(own[key], theirs[key]) for key in changed)
    assert not any(
        part._forward_hooks or part._forward_pre_hooks
        for wrapped in (model, edited)
        for part in wrapped.model.modules()
    )


@pytest.mark.parametrize("name", ["gemma3", "olmo2"])
def test_behind_a_norm_the_state_is_reached_where_one_layer_is_edited(name):
    """What one layer is asked for lies on its own ellipsoid: nothing is missed."""
    _, table = run(double(name), [ONE], layers=(2,), regularisation=1e-9)
    assert table["reached"][0] == pytest.approx(1, abs=1e-4)
    assert table["objective_delta"][0] < table["objective_before"][0] - 1e-3


def test_the_layers_share_the_way():
    """Of three layers the first takes a third, the next half of the rest (λ → 0)."""
    model = double("llama")
    edited, table = run(model, [ONE], regularisation=1e-9)
    key = key_of(model, ONE.prompts[0], 2, 1)
    first = ((weight(edited, 1) - weight(model, 1)) @ key).norm()
    assert first.item() == pytest.approx(table["delta_norm"][0] / 3, rel=1e-4)
    assert table["reached"][0] == pytest.approx(1, abs=1e-4)


def test_facts_optimised_together_do_not_see_each_other():
    together, one_table = run(double())
    alone, other_table = run(double(), batch_size=1)
    for layer in LAYERS:
        assert torch.allclose(weight(together, layer), weight(alone, layer), rtol=1e-8, atol=1e-10)
    numbers = one_table.select_dtypes("number").columns
    assert len(numbers) == 9
    for column in numbers:
        assert one_table[column].tolist() == pytest.approx(other_table[column].tolist(), rel=1e-6)


def test_prompts_of_a_fact_share_one_change():
    edited, table = run(double("llama"), [TWO], layers=(2,), regularisation=1e-9)
    model = double("llama")
    update = weight(edited, 2) - weight(model, 2)
    # <s> w9 w5 w6 w7 and <s> w10 w11 w5 w6.
    changes = [
        update @ key_of(model, text, place, 2)
        for text, place in zip(TWO.prompts, (3, 4), strict=True)
    ]
    assert torch.allclose(*changes, rtol=1e-5, atol=1e-7)
    assert changes[0].norm().item() == pytest.approx(table["delta_norm"][0], rel=1e-5)


# Strength, and what is retained


@pytest.mark.parametrize("strength", [0.25, 1.0, 3.0])
def test_the_strength_multiplies_delta(strength):
    """One layer, one key: Δk = σ·δ·s / (1 + s), s = kᵀC⁻¹k / λ."""
    model = double("llama")
    settings = {"layers": (2,), "regularisation": 2.0}
    edited, table = run(model, [ONE], strength=strength, **settings)
    key = key_of(model, ONE.prompts[0], 2, 2)
    change = (weight(edited, 2) - weight(model, 2)) @ key
    moment = measure_second_moments(model, [2], TEXTS, progress=False)[2]
    share = (key @ torch.linalg.solve(moment, key) / 2).item()
    expected = strength * table["delta_norm"][0] * share / (1 + share)
    assert change.norm().item() == pytest.approx(expected, rel=1e-6)
    assert table["reached"][0] == pytest.approx(share / (1 + share), rel=1e-6)


@pytest.mark.parametrize("name", ["llama", "gemma3"])
@pytest.mark.parametrize("objective", ["empty", "entropy"])
def test_three_strengths_forget_three_amounts(name, objective):
    tables = [run(double(name), objective=objective, strength=s)[1] for s in (0.2, 0.5, 1.0)]
    reached = [table["objective_after"].sum() for table in tables]
    before = tables[0]["objective_before"].sum()
    # Each lowers the objective by at least a tenth of the whole way more than the one before.
    step = (before - reached[-1]) / 10
    assert step > 0
    assert before > reached[0] + step > reached[1] + 2 * step > reached[2] + 3 * step


def test_strengths_share_one_delta_and_are_those_of_single_runs(monkeypatch):
    model, calls = double("gemma3"), []
    optimize = memit_main.optimize_z
    monkeypatch.setattr(
        memit_main, "optimize_z", lambda *args: calls.append(args) or optimize(*args)
    )
    settings = config()
    moments = measure_second_moments(model, LAYERS, TEXTS, progress=False)
    edited = edit_at_strengths(
        model, [TWO, ONE], moments, settings, strengths=[0.5, 1.0], progress=False
    )
    for strength, at_strength, table in edited:
        assert len(calls) == 1
        alone, same_table = run(double("gemma3"), strength=strength)
        assert at_strength.content_hash() == alone.content_hash()
        assert table.equals(same_table)
        calls.pop()
    bad = edit_at_strengths(model, [ONE], moments, settings, strengths=[-1.0], progress=False)
    with pytest.raises(ValueError, match=r"strength must be positive and finite, not -1\.0"):
        next(bad)


def test_what_is_retained_counts_by_the_normal_equations():
    """Δ(λC + λ_r C_r + kkᵀ) = r kᵀ."""
    model = double("llama")
    kept = measure_second_moments(model, [2], ["w9 w20 w11"], few=True, progress=False)
    moments = measure_second_moments(model, [2], TEXTS, progress=False)
    settings = config(layers=(2,), regularisation=0.5, retain_regularisation=30.0)
    free, _ = memit(model, [ONE], moments, settings, progress=False)
    edited, table = memit(model, [ONE], moments, settings, retained=kept, progress=False)
    update = weight(edited, 2) - weight(model, 2)
    key = key_of(model, ONE.prompts[0], 2, 2)
    system = 0.5 * moments[2] + 30 * kept[2] + torch.outer(key, key)
    change = update @ system @ key / (key @ key)
    assert torch.allclose(update @ system, torch.outer(change, key), rtol=1e-6, atol=1e-9)
    assert change.norm().item() == pytest.approx(table["delta_norm"][0], rel=1e-6)
    other = key_of(model, "w9 w20 w11", 2, 2)
    freely = ((weight(free, 2) - weight(model, 2)) @ other).norm()
    assert (update @ other).norm() < freely / 2


def test_the_same_edit_gives_the_same_weights():
    assert run(tiny())[0].content_hash() == run(tiny())[0].content_hash()


# The objectives


def test_entropy_is_softmax_of_the_normed_state_once():
    model = double()
    _, table = run(model, entropy_layers=(3, 4))
    for edit, measured in zip((TWO, ONE), table["objective_before"], strict=True):
        entropies = []
        for text in edit.prompts:
            with torch.no_grad():
                states = model.model(
                    torch.tensor([model.encode(text)]), output_hidden_states=True
                ).hidden_states
            # The last of `hidden_states` is normed already.
            for state in (model.model.model.norm(states[4][0, -1]), states[5][0, -1]):
                logs = model.model.lm_head(state).log_softmax(-1)
                entropies.append(-(logs.exp() * logs).sum().item())
        assert measured == pytest.approx(-sum(entropies) / len(entropies), rel=1e-9)


def test_empty_is_the_mean_nll_of_the_targets_tokens():
    model = double()
    _, table = run(model, [ONE], objective="empty", target=" w40 w41")
    ids = model.encode("w30 w20 w7 w40 w41")
    with torch.no_grad():
        logs = model.model(torch.tensor([ids])).logits[0].log_softmax(-1)
    expected = -(logs[3, 40] + logs[4, 41]).item() / 2
    assert table["objective_before"][0] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("objective", ["empty", "entropy"])
def test_the_edited_model_gives_the_tables_numbers(objective):
    model = double()
    edited, table = run(model, objective=objective)
    for wrapped, column in ((model, "answer_logprob_before"), (edited, "answer_logprob_after")):
        with torch.no_grad():
            logs = wrapped.model(torch.tensor([wrapped.encode("w30 w20 w7 w21 w22")])).logits[0]
        logs = logs.log_softmax(-1)
        assert table[column][1] == pytest.approx((logs[3, 21] + logs[4, 22]).item(), rel=1e-9)
    fresh = memit(
        edited,
        [TWO, ONE],
        measure_second_moments(edited, LAYERS, TEXTS, progress=False),
        config(objective=objective, num_steps=1),
        progress=False,
    )[1]
    assert fresh["objective_before"].tolist() == pytest.approx(
        table["objective_after"].tolist(), rel=1e-9
    )


def test_delta_is_added_after_the_top_edit_layer_at_the_subject():
    model = double()
    task = module.optimize_z(model, [ONE], LAYERS, (4,), config())
    move = task.compute_target(1.0) - task.start

    def add(_module, _args, output):
        return torch.cat([output[:, :2], output[:, 2:3] + move, output[:, 3:]], 1)

    handle = model.anatomy.layers[3].layer.register_forward_hook(add)
    with torch.no_grad():
        logits = model.model(torch.tensor([model.encode(ONE.prompts[0])])).logits[0, -1]
    handle.remove()
    logs = logits.log_softmax(-1)
    expected = (logs.exp() * logs).sum().item()
    assert task.measures[0]["objective_delta"] == pytest.approx(expected, rel=1e-9)
    assert move.norm().item() == pytest.approx(task.measures[0]["delta_norm"], rel=1e-9)


def test_without_an_answer_nothing_is_measured():
    nameless = Edit(id="x", subject="w20", prompts=("w20 w7",))
    _, table = run(tiny(), [TWO, nameless])
    assert table["answer_logprob_before"].isna().tolist() == [False, True]
    assert run(tiny(), [nameless])[1]["answer_logprob_after"].isna().all()


def test_delta_lowers_the_loss_more_with_more_steps():
    losses = [run(double(), num_steps=n)[1]["objective_delta"].sum() for n in (1, 5, 25)]
    assert losses[0] > losses[1] > losses[2]


def test_delta_respects_the_clamp():
    _, free = run(tiny(), learning_rate=0.5)
    _, table = run(tiny(), learning_rate=0.5, clamp=0.25)
    assert (free["delta_norm"] > 0.3 * free["state_norm"]).all()
    ratio = table["delta_norm"] / table["state_norm"]
    assert ratio.tolist() == pytest.approx([0.25, 0.25], rel=1e-5)


def test_weight_decay_keeps_delta_small():
    assert (
        run(tiny(), weight_decay=10.0)[1]["delta_norm"]
        < 0.5 * run(tiny(), weight_decay=0.0)[1]["delta_norm"]
    ).all()


def test_the_kl_term_keeps_the_essence():
    settings = {"objective": "empty", "num_steps": 50}
    free, kept = (run(double(), kl_weight=w, **settings)[1]["kl"] for w in (0.0, 100.0))
    assert (free > 5e-4).all()
    assert (kept < free / 2).all()


def test_kl_is_of_the_model_before_from_the_one_after(monkeypatch):
    """KL(before ‖ after) = Σ p_before·log(p_before / p_after) at the essence's last token."""
    seen = []
    measure = module.measure_objective

    def watched(*arguments):
        found = measure(*arguments)
        seen.append(found[1].detach())
        return found

    monkeypatch.setattr(module, "measure_objective", watched)
    model = double()
    _, table = run(model, [ONE], objective="empty")
    with torch.no_grad():
        before = model.model(torch.tensor([model.encode("w12 w20 w13")])).logits[0, -1]
    before = before.log_softmax(-1)
    assert torch.allclose(seen[0][0], before)
    # The last is with the final δ.
    after = seen[-1][0]
    forward = (before.exp() * (before - after)).sum().item()
    assert table["kl"][0] == pytest.approx(forward, rel=1e-9)
    assert abs(forward - (after.exp() * (after - before)).sum().item()) > 1e-6 * forward


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "opt_post_norm"])
@pytest.mark.parametrize("objective", ["empty", "entropy"])
def test_the_gradient_of_the_objective_and_the_essence(name, objective):
    model = double(name)
    model.model.requires_grad_(False)
    target = " w40" if objective == "empty" else ""
    texts = [(0, "w30 w20 w7", (4, 7), target), (0, "w12 w20 w13", (4, 7), "")]
    rows = make_rows(model, texts)
    norm = module.observe_states(model, rows, [1]).norms[1]
    read_out = (1, 4) if objective == "entropy" else ()
    assert (norm is None) == (name in {"llama", "gpt2"})

    def of_delta(delta):
        shift = delta.expand(2, -1)
        shift = shift if norm is None else norm.displacement(shift)
        value, essence = module.measure_objective(model, rows, 1, shift, 1, read_out)
        return value, essence

    torch.manual_seed(0)
    delta = torch.randn(1, 16, dtype=torch.float64, requires_grad=True)
    # The RMSNorms compute in float32.
    step = 1e-6 if name == "gpt2" else 1e-3
    assert torch.autograd.gradcheck(of_delta, (delta,), eps=step, rtol=1e-2, atol=20 * step**1.5)


# Norms after the down projection


def norm_of(gain, left, entered=None):
    left = torch.tensor([left], dtype=torch.float64)
    return PostNorm(
        gain=torch.tensor(gain, dtype=torch.float64),
        bias=torch.zeros(len(gain), dtype=torch.float64),
        entered=left if entered is None else torch.tensor([entered], dtype=torch.float64),
        left=left,
    )


def test_the_nearest_point_of_a_circle_by_hand():
    # g = 1: the point of the circle of radius 5 in the target's direction.
    ones, target = torch.ones(2).double(), torch.tensor([[6.0, 8.0], [0.3, 0.4]]).double()
    found = project_onto_ellipsoid(ones, target, torch.full((2, 1), 5.0).double())
    assert torch.allclose(found, torch.tensor([[3.0, 4.0], [3.0, 4.0]]).double())


@pytest.mark.parametrize("target", [[0.5, 0.1], [9.0, -7.0], [-0.2, 3.0], [0.0, 2.0], [1e-9, 1e-9]])
def test_the_nearest_point_of_an_ellipse_by_trying_all(target):
    gain, target = torch.tensor([3.0, -0.5]).double(), torch.tensor([target]).double()
    angle = torch.linspace(0, 2 * math.pi, 1_000_001, dtype=torch.float64)
    points = 2 * torch.stack([angle.cos(), angle.sin()], 1)
    best = (gain * points - target).norm(dim=1).min().item()
    found = project_onto_ellipsoid(gain, target, torch.full((1, 1), 2.0).double())
    assert found.norm().item() == pytest.approx(2, rel=1e-9)
    assert (gain * found - target).norm().item() == pytest.approx(best, rel=1e-6, abs=1e-9)


def test_a_gain_of_zero_moves_nothing_and_costs_nothing():
    gain = torch.tensor([2.0, 0.0, 1.0]).double()
    target = torch.tensor([[1.0, 50.0, 2.0]]).double()
    found = project_onto_ellipsoid(gain, target, torch.ones(1, 1).double())
    without = project_onto_ellipsoid(gain[[0, 2]], target[:, [0, 2]], torch.ones(1, 1).double())
    assert found[0, 1] == 0
    assert torch.allclose(found[:, [0, 2]], without)


def test_the_nearest_point_has_the_numerical_gradient():
    torch.manual_seed(0)
    gain = torch.randn(6).double()
    target = (3 * torch.randn(4, 6)).double().requires_grad_()
    radius = torch.full((4, 1), 6**0.5).double()
    assert torch.autograd.gradcheck(lambda t: project_onto_ellipsoid(gain, t, radius), (target,))


def test_no_change_wanted_is_no_change_made():
    norm = norm_of([3.0, 0.5, 1.0], [3.0, 0.5, -1.0])
    nothing = torch.zeros(1, 3).double()
    assert torch.allclose(norm.displacement(nothing), nothing)
    assert torch.allclose(norm.entering(nothing), nothing)


@pytest.mark.parametrize("name", ["gemma2", "gemma3", "olmo2", "opt_post_norm"])
def test_what_enters_the_norm_comes_out_as_solved_for(name):
    model = double(name)
    rows = make_rows(model, [(0, "w30 w20 w7", (4, 7), "")])
    norm = module.observe_states(model, rows, [2]).norms[2]
    parts = model.anatomy.layers[2]
    last = parts.norms[-1]
    torch.manual_seed(0)
    with torch.no_grad():
        assert torch.allclose(last(norm.entered), norm.left, atol=1e-6)
        # A wanted state that a norm can give is met, any other is not overshot.
        possible = last(norm.entered + torch.randn(1, 16).double()) - norm.left
        made = last(norm.entered + norm.entering(possible)) - norm.left
        assert torch.allclose(made, possible, atol=1e-3 * possible.norm().item())
        wild = 100 * torch.randn(1, 16).double()
        made = last(norm.entered + norm.entering(wild)) - norm.left
        tolerance = 0.2 if name == "opt_post_norm" else 1e-3
        assert torch.allclose(made, norm.displacement(wild), atol=tolerance)
        assert (wild - made).norm() < wild.norm()


# The subject


SENTENCES = {
    "latin": ("Die Hauptstadt von Österreich heißt", "Österreich"),
    "start": ("Österreich hat eine Hauptstadt", "Österreich"),
    "end": ("Die Hauptstadt von Österreich", "Österreich"),
    "chinese": ("奥地利共和国的首都是", "奥地利"),
    "rare": ("的首都𠮷野家是", "𠮷"),
    "arabic": ("عاصمة النمسا هي", "النمسا"),
    "vowelled": ("عَاصِمَةُ النِّمْسَا هِيَ", "النِّمْسَا"),
    "hindi": ("ऑस्ट्रिया की राजधानी", "ऑस्ट्रिया"),
    "emoji": ("the flag 🇦🇹 of", "🇦🇹"),
}


def trained(kind):
    """A tokenizer of 300 tokens, trained on the sentences: bytes, or characters with bytes."""
    if kind == "bytes":
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=300, initial_alphabet=alphabet, show_progress=False
        )
    else:
        tokens = [f"<0x{byte:02X}>" for byte in range(256)]
        backend = Tokenizer(models.BPE(byte_fallback=True, unk_token=tokens[0]))
        backend.normalizer = normalizers.NFC()
        backend.pre_tokenizer = pre_tokenizers.Metaspace()
        backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
        trainer = trainers.BpeTrainer(
            vocab_size=340, special_tokens=tokens, limit_alphabet=40, show_progress=False
        )
    backend.train_from_iterator([text for text, _ in SENTENCES.values()] * 4, trainer)
    model = tiny_model(vocab_size=backend.get_vocab_size())
    return LanguageModel(model, PreTrainedTokenizerFast(tokenizer_object=backend))


def subject_place(model, text, subject):
    start = text.index(subject)
    return find_last_subject_token(model, text, (start, start + len(subject)))


@pytest.mark.parametrize("case", SENTENCES)
def test_the_last_subject_token_by_counting_bytes(case):
    model, (text, subject) = trained("bytes"), SENTENCES[case]
    pieces = model.tokenizer.convert_ids_to_tokens(model.encode(text))
    # A byte-level token has as many characters as it stands for bytes.
    end = len(text[: text.index(subject) + len(subject)].encode())
    covered, expected = 0, -1
    while covered < end:
        expected += 1
        covered += len(pieces[expected])
    assert subject_place(model, text, subject) == expected


@pytest.mark.parametrize("case", SENTENCES)
def test_the_last_subject_token_by_reading_on(case):
    model, (text, subject) = trained("characters"), SENTENCES[case]
    ids, place = model.encode(text), subject_place(model, text, subject)
    up_to = text[: text.index(subject) + len(subject)]
    assert model.decode(ids[: place + 1]).strip().startswith(up_to)
    assert not model.decode(ids[:place]).strip().startswith(up_to)


def test_special_tokens_and_repeats_are_no_subject():
    model = tiny()
    assert subject_place(model, "w3 w4 w5", "w3") == 1
    assert find_last_subject_token(model, "w3 w4 w3 w5", (6, 8)) == 3
    # A blank at the subject's end has no token.
    assert find_last_subject_token(model, "w3 w4", (0, 3)) == 1
    with pytest.raises(ValueError, match="no token covers ' ' in 'w3 w4'"):
        find_last_subject_token(model, "w3 w4", (2, 3))


def test_several_languages_at_once():
    tokenizer = trained("bytes").tokenizer
    model = LanguageModel(tiny_model(vocab_size=len(tokenizer)), tokenizer, name="V")
    edits = [
        Edit(id="AT", language=language, subject=subject, prompts=(text,), answer=" Wien")
        for language in ("latin", "chinese", "arabic", "hindi")
        for text, subject in [SENTENCES[language]]
    ]
    settings = config(essence="{subject} is a")
    texts = [text for text, _ in SENTENCES.values()]
    moments = measure_second_moments(model, LAYERS, texts, progress=False)
    _, table = memit(model, edits, moments, settings, progress=False)
    assert table["language"].tolist() == ["latin", "chinese", "arabic", "hindi"]
    assert (table["reached"] > 0.9).all()
    assert (table["objective_delta"] < table["objective_before"]).all()


def test_a_target_that_joins_the_prompts_end_is_labelled_where_it_differs():
    model = trained("bytes")
    text, following = "Die Haupt", "stadt"
    whole, alone = model.encode(text + following), model.encode(text)
    shared = next((i for i, (a, b) in enumerate(zip(alone, whole)) if a != b), len(alone))  # noqa: B905
    rows = make_rows(model, [(0, text, (0, 3), following)])
    assert rows.label_place.tolist() == list(range(shared, len(whole)))
    assert rows.last.tolist() == [shared - 1]


# Settings and mistakes


def test_the_rule_for_the_edit_layers():
    assert default_edit_layers(32) == (4, 5, 6, 7, 8)
    assert default_edit_layers(18) == (0, 1, 2, 3, 4)
    assert default_edit_layers(5) == (0, 1)
    assert default_edit_layers(1) == (0,)


def test_the_layers_are_those_of_the_rule_unless_given():
    model = tiny()
    moments = measure_second_moments(model, (0, 1), TEXTS, progress=False)
    edited, _ = memit(model, [ONE], moments, config(layers=None), progress=False)
    changed = [i for i in range(5) if not torch.equal(weight(edited, i), weight(model, i))]
    assert changed == [0, 1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": "forget"}, "unknown objective 'forget'; valid: empty, entropy"),
        ({"layers": (3, 2)}, r"layers must be ascending, distinct and not empty, not \(3, 2\)"),
        ({"entropy_layers": ()}, "entropy_layers must be ascending"),
        ({"num_steps": 0}, "num_steps must be at least 1, not 0"),
        ({"learning_rate": 0.0}, "learning_rate must be positive and finite, not 0.0"),
        ({"clamp": -1.0}, "clamp must be positive"),
        ({"regularisation": math.inf}, "regularisation must be positive and finite, not inf"),
        ({"kl_weight": -0.1}, "kl_weight must be finite and not negative"),
        ({"weight_decay": math.nan}, "weight_decay must be finite"),
        ({"essence": "it is a"}, r"essence must contain \{subject\} once"),
        ({"target": " "}, "target is blank"),
        ({"strength": 0.0}, "strength must be positive and finite, not 0.0"),
        ({"retain_regularisation": -1.0}, "retain_regularisation must be finite and not negative"),
        ({"moment_tokens": 0}, "moment_tokens must be at least 1, not 0"),
        ({"moment_languages": ()}, "moment_languages names no language"),
    ],
)
def test_wrong_settings_are_named(changes, message, unchecked):
    with pytest.raises(ValueError, match=message):
        MemitConfig(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"subject": " "}, "x needs a subject and at least one prompt"),
        ({"prompts": ()}, "x needs a subject and at least one prompt"),
        ({"subject": "w4"}, "'w3 w5 w3' contains 'w4' 0 times, not once; give the subject's spans"),
        ({"subject": "w3"}, "contains 'w3' 2 times"),
        ({"spans": ((0, 2), (3, 5))}, "x has 1 prompts and 2 spans"),
        ({"spans": ((3, 99),)}, "'w3 w5 w3' has no characters 3 to 99"),
    ],
)
def test_wrong_edits_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        Edit(**({"id": "x", "subject": "w5", "prompts": ("w3 w5 w3",)} | changes))


def test_a_span_says_which_of_two():
    repeated = Edit(id="x", subject="w3", prompts=("w3 w5 w3",), spans=((0, 2),))
    assert repeated.subject_spans == ((0, 2),)


def test_mistakes_are_named(monkeypatch):
    model = tiny()
    moments = measure_second_moments(model, LAYERS, TEXTS, progress=False)

    def refused(message, edits=(ONE,), moments=moments, model=model, **changes):
        with pytest.raises(ValueError, match=message):
            memit(model, edits, moments, config(**changes), progress=False)

    refused("give at least one fact", edits=[])
    refused("layer 5 is out of range 0 to 4", layers=(4, 5))
    refused("layer 7 is out of range 0 to 4", entropy_layers=(7,))
    refused("read out at layer 2, below the top edit layer 3", entropy_layers=(2, 3))
    refused("C of the edit layer 3, 24 × 24; they hold", moments={1: moments[1], 2: moments[2]})
    refused("C of the edit layer 1, 24 × 24", moments=moments | {1: torch.eye(3)})
    with pytest.raises(ValueError, match="C of the edit layer 2, 24 × 24"):
        memit(model, [ONE], moments, config(), retained={1: moments[1]}, progress=False)
    broken = tiny()
    broken.model.get_output_embeddings().weight.data[3] = math.nan
    refused("not finite at step 0", model=broken)
    packed = tiny()
    packed.model.config.quantization_config = {}
    refused("'V' has packed weights", model=packed)
    monkeypatch.setattr(PreTrainedTokenizerFast, "is_fast", False)
    refused("gives no character offsets")
