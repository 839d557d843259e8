"""Tokens drawn by inversion: with their probabilities, the same whatever the batch."""

import math

import pytest
import torch

from interp.models import sampling
from interp.models.sampling import make_sampler

SHARES = torch.tensor([0.5, 0.3, 0.15, 0.05, 0.0])


def spread(vocabulary):
    """The five shares, far apart in a vocabulary; all else is impossible."""
    logits = torch.full((vocabulary,), -math.inf)
    places = torch.arange(5) * (vocabulary // 5)
    logits[places] = SHARES.log()
    return logits, places


@pytest.mark.parametrize("vocabulary", [5, 512, 3000])
def test_tokens_are_drawn_with_their_probabilities(vocabulary):
    """Of 4,000 draws, shares are within three standard errors."""
    logits, places = spread(vocabulary)
    pick = make_sampler([f"text {number}" for number in range(4000)])
    drawn = pick(logits.expand(4000, -1), range(4000), 0)
    found = (drawn[:, None] == places).float().mean(0)
    assert found[4] == 0
    assert found.sum() == 1
    assert ((found - SHARES).abs() <= 3 * (SHARES * (1 - SHARES) / 4000).sqrt()).all()


def test_draws_depend_on_name_and_place_and_not_on_the_batch():
    logits, _ = spread(3000)
    names = [f"text {number}" for number in range(100)]
    whole = make_sampler(names)(logits.expand(100, -1), range(100), 3)
    alone = [make_sampler(names)(logits[None], [number], 3) for number in range(100)]
    assert torch.equal(whole, torch.cat(alone))
    backwards = make_sampler(names)(logits.expand(100, -1), range(99, -1, -1), 3)
    assert torch.equal(whole, backwards.flip(0))
    assert not torch.equal(whole, make_sampler(names)(logits.expand(100, -1), range(100), 4))


@pytest.mark.parametrize(
    ("number", "token"),
    # Sums of 0.1, 0.2, 0.3, 0.4: 0.1, 0.3, 0.6, 1.
    [(0.0, 0), (0.09, 0), (0.11, 1), (0.29, 1), (0.31, 2), (0.59, 2), (0.61, 3), (1 - 2**-53, 3)],
)
def test_the_first_sum_above_the_number_by_hand(monkeypatch, number, token):
    monkeypatch.setattr(sampling, "_draw_number", lambda name: number)
    for block in (1, 2, 3, 512):
        monkeypatch.setattr(sampling, "BLOCK", block)
        logits = torch.tensor([[0.1, 0.2, 0.3, 0.4]]).log()
        assert make_sampler(["a"])(logits, [0], 0).tolist() == [token]


def test_impossible_tokens_are_never_drawn(monkeypatch):
    logits = torch.tensor([[-math.inf, 0.0, -math.inf, 0.0, -math.inf]])
    monkeypatch.setattr(sampling, "BLOCK", 2)
    for number, token in ((0.0, 1), (0.49, 1), (0.5, 3), (1 - 2**-53, 3)):
        monkeypatch.setattr(sampling, "_draw_number", lambda name, number=number: number)
        assert make_sampler(["a"])(logits, [0], 0).tolist() == [token]


def test_temperature_and_nucleus_by_hand():
    """Temperature ½ squares: 4 / 5 and 1 / 5 of 2 / 3 and 1 / 3; top_p 0.6 leaves 5 and 3 of 8."""
    names = [f"text {number}" for number in range(4000)]
    logits = torch.tensor([[2 / 3, 1 / 3]]).log().expand(4000, -1)
    cold = make_sampler(names, temperature=0.5)(logits, range(4000), 0)
    assert cold.double().mean().item() == pytest.approx(0.2, abs=3 * (0.2 * 0.8 / 4000) ** 0.5)
    logits, places = spread(3000)
    likely = make_sampler(names, top_p=0.6)(logits.expand(4000, -1), range(4000), 0)
    assert set(likely.tolist()) == set(places[:2].tolist())
    share = (likely == places[1]).double().mean().item()
    assert share == pytest.approx(3 / 8, abs=3 * (3 / 8 * 5 / 8 / 4000) ** 0.5)


def test_the_number_is_below_one():
    numbers = [sampling._draw_number(f"name {number}") for number in range(2000)]
    assert 0 <= min(numbers) < 0.01
    assert 0.99 < max(numbers) < 1
