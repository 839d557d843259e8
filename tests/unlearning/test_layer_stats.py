"""Second moments against a forward per text, the update against least squares, the cache."""

import pytest
import torch

from interp.unlearning.memit import layer_stats
from interp.unlearning.memit.layer_stats import (
    count_coefficients,
    measure_second_moments,
    solve_least_squares,
)
from tests.helpers.tiny_models import question, tiny

TEXTS = [question(number, words=2 + number % 7).prompt for number in range(40)]


def moments(model, layers, texts=TEXTS, **settings):
    return measure_second_moments(model, layers, texts, progress=False, **settings)


def count_forwards(model):
    """A list that grows with every forward of the model's body."""
    runs = []
    model.anatomy.body.register_forward_pre_hook(lambda *_: runs.append(1))
    return runs


def test_the_update_solves_the_regularised_least_squares_problem():
    torch.manual_seed(0)
    keys, changes, text = torch.randn(5, 12), torch.randn(5, 7), torch.randn(300, 12)
    keys, changes, text = keys.double(), changes.double(), text.double()
    for regularisation in (1e-3, 1.0, 15000.0):
        update = solve_least_squares(
            keys, changes, text.T @ text / 300, regularisation=regularisation
        )
        # min ‖ΔK − R‖² + (λ / N)·‖ΔM‖², stacked.
        left = torch.cat([keys, (regularisation / 300) ** 0.5 * text])
        right = torch.cat([changes, torch.zeros(300, 7, dtype=torch.float64)])
        expected = torch.linalg.lstsq(left, right).solution.T
        assert torch.allclose(update, expected, rtol=1e-9, atol=1e-12)


def test_the_update_by_hand():
    one = torch.ones(1, 1)
    # Δ = r·k / (λ·C + k²) = 3·2 / (2·1 + 4) = 1.
    update = solve_least_squares(2 * one, 3 * one, one, regularisation=2.0)
    assert update.item() == pytest.approx(1.0, rel=1e-14)


def test_a_dead_coefficient_keeps_its_value_vector():
    keys, changes = torch.tensor([[1.0, 0.0, 2.0]]), torch.tensor([[1.0, -1.0]])
    update = solve_least_squares(
        keys, changes, torch.diag(torch.tensor([1.0, 0.0, 1.0])), regularisation=1.0
    )
    # Without it: Δ = r kᵀ / (1 + ‖k‖²), as C is the identity.
    expected = torch.tensor([[1.0, 0.0, 2.0], [-1.0, 0.0, -2.0]], dtype=torch.float64) / 6
    assert torch.allclose(update, expected)


def test_a_system_without_inverse_is_refused():
    with pytest.raises(ValueError, match=r"\(3 coefficients\) has no inverse"):
        solve_least_squares(
            torch.ones(1, 3), torch.ones(1, 2), -torch.ones(3, 3), regularisation=0.5
        )


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "gemma3"])
def test_second_moments_are_those_of_one_text_at_a_time(name):
    model = tiny(name)
    before = model.content_hash()
    found = moments(model, [1, 3], batch_size=7)
    seen = {1: [], 3: []}
    handles = [
        model.anatomy.layers[layer].values.register_forward_pre_hook(
            lambda _m, args, layer=layer: seen[layer].append(args[0].flatten(0, -2))
        )
        for layer in seen
    ]
    with torch.no_grad():
        for text in TEXTS:
            model.model(torch.tensor([model.encode(text)]))
    for handle in handles:
        handle.remove()
    for layer, states in seen.items():
        inputs = torch.cat(states).double()
        assert len(inputs) == sum(len(model.encode(text)) for text in TEXTS)
        expected = inputs.T @ inputs / len(inputs)
        assert found[layer].dtype == torch.float64
        assert torch.allclose(found[layer], expected, rtol=1e-4, atol=1e-7)
    assert model.content_hash() == before
    assert not any(
        module._forward_hooks or module._forward_pre_hooks for module in model.model.modules()
    )


def test_token_ids_are_as_good_as_texts():
    model = tiny()
    ids = [model.encode(text) for text in TEXTS]
    assert torch.equal(moments(model, [2], ids)[2], moments(model, [2])[2])


def test_few_tokens_have_moments_where_they_are_to_be_added():
    model = tiny()
    (found,) = moments(model, [1], ["w3"], few=True).values()
    assert torch.linalg.matrix_rank(found, tol=1e-9) == 2


def test_texts_are_cut():
    model = tiny()
    long = [question(number, words=30).prompt for number in range(10)]
    short = [" ".join(text.split()[:7]) for text in long]
    assert torch.equal(moments(model, [2], long, max_length=8)[2], moments(model, [2], short)[2])


def test_the_pass_ends_at_the_highest_layer_that_is_wanted():
    model, ran = tiny(), []
    for layer, parts in enumerate(model.anatomy.layers):
        parts.layer.register_forward_pre_hook(lambda *_, layer=layer: ran.append(layer))
    moments(model, [0, 1])
    assert set(ran) == {0, 1}


def test_what_is_cached_is_not_computed_again(tmp_path):
    model = tiny()
    first = moments(model, [0, 2], cache=tmp_path / "new")
    runs = count_forwards(model)
    again = moments(model, [2, 0], cache=tmp_path / "new")
    assert runs == []
    assert list(again) == [2, 0]
    assert all(torch.equal(first[layer], again[layer]) for layer in (0, 2))


def test_a_pass_computes_the_missing_layers_only(tmp_path, monkeypatch):
    model, asked = tiny(), []
    whole = moments(model, [0, 1, 2])
    moments(model, [1], cache=tmp_path)
    accumulate = layer_stats._accumulate

    def watched(model, layers, *rest, **settings):
        asked.append(list(layers))
        return accumulate(model, layers, *rest, **settings)

    monkeypatch.setattr(layer_stats, "_accumulate", watched)
    resumed = moments(model, [0, 1, 2], cache=tmp_path)
    assert asked == [[0, 2]]
    assert all(torch.equal(whole[layer], resumed[layer]) for layer in whole)


def test_another_model_or_text_is_another_entry(tmp_path):
    model = tiny()
    moments(model, [1], cache=tmp_path)
    other = tiny(seed=1)
    for changed, texts in ((model, TEXTS[:-1]), (other, TEXTS)):
        fresh = moments(changed, [1], texts)[1]
        assert torch.equal(moments(changed, [1], texts, cache=tmp_path)[1], fresh)
    assert len(list(tmp_path.iterdir())) == 3


def test_a_killed_run_leaves_no_half_file(tmp_path, monkeypatch):
    model, save_file, calls = tiny(), layer_stats.save_file, []

    def killed(tensors, path):
        calls.append(path)
        if len(calls) == 2:
            path.write_bytes(b"half")
            raise KeyboardInterrupt
        save_file(tensors, path)

    monkeypatch.setattr(layer_stats, "save_file", killed)
    with pytest.raises(KeyboardInterrupt):
        moments(model, [0, 1, 2], cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    monkeypatch.undo()
    whole, resumed = moments(model, [0, 1, 2]), moments(model, [0, 1, 2], cache=tmp_path)
    assert all(torch.equal(whole[layer], resumed[layer]) for layer in whole)
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".safetensors"] * 3


def test_the_number_of_coefficients_in_either_orientation():
    # d_mlp of the tiny models: 24, and four times 16 in GPT-2, whose weights are transposed.
    for name, expected in (("llama", 24), ("gpt2", 64), ("opt", 24)):
        assert count_coefficients(tiny(name).anatomy.layers[0].values) == expected


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="layer 5 is out of range 0 to 4"):
        moments(tiny(), [1, 5])
    # <s> and one word.
    with pytest.raises(ValueError, match="2 tokens for 24 coefficients"):
        moments(tiny(), [1], ["w3"])
