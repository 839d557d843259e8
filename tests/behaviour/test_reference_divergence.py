"""Divergence from V on V's own texts: against full logits, by hand, and as a metric."""

from __future__ import annotations

import math

import pandas as pd
import pytest
import torch

from interp import Query, evaluate
from interp.behaviour import estimate_divergence, measure_divergence
from interp.behaviour.reference_divergence import compute_divergence
from interp.data import sample_texts
from tests.helpers.tiny_models import tiny


@pytest.fixture
def samples(tmp_path):
    return sample_texts(
        tiny(), ["en", "de"], num_texts=4, num_tokens=5, folder=tmp_path, progress=False
    )


def plain(vanilla, model, sample) -> tuple[float, float, float]:
    """KL and negative log-likelihoods of one text, with all logits."""
    ids = torch.tensor([sample.prompt_ids + sample.token_ids])
    first = len(sample.prompt_ids)
    with torch.no_grad():
        before, after = (
            each.model(ids).logits[0, first - 1 : -1].double().log_softmax(-1)
            for each in (vanilla, model)
        )
    drawn = ids[0, first:, None]
    return (
        float((before.exp() * (before - after)).sum()),
        -float(after.gather(1, drawn).sum()),
        -float(before.gather(1, drawn).sum()),
    )


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt2"])
def test_it_is_that_of_full_logits(architecture, tmp_path):
    vanilla, model = tiny(architecture), tiny(architecture, seed=1)
    texts = sample_texts(
        vanilla, ["en", "de"], num_texts=4, num_tokens=5, folder=tmp_path, progress=False
    )
    table = measure_divergence(vanilla, model, texts, batch_size=3, progress=False)
    assert table["text"].tolist() == [0, 1, 2, 3] * 2
    for row, sample in zip(table.to_dict("records"), texts, strict=True):
        expected = plain(vanilla, model, sample)
        assert (row["kl"], row["nll"], row["nll_vanilla"]) == pytest.approx(expected, abs=1e-4)
        assert row["num_tokens"] == len(sample.token_ids)


def test_states_of_v_may_be_kept(samples):
    vanilla, kept = tiny(), {}
    for seed in (1, 2):
        model = tiny(seed=seed)
        plain = measure_divergence(vanilla, model, samples, batch_size=3, progress=False)
        found = compute_divergence(vanilla, model, samples, batch_size=3, kept=kept, progress=False)
        pd.testing.assert_frame_equal(found, plain)
    # Eight texts in batches of three; a V that is not asked again.
    assert len(kept) == 3
    again = compute_divergence(
        tiny(seed=5), model, samples, batch_size=3, kept=kept, progress=False
    )
    assert again["kl"].tolist() != plain["kl"].tolist()
    kept_only = [again["nll"].tolist(), again["num_tokens"].tolist()]
    assert kept_only == [plain["nll"].tolist(), plain["num_tokens"].tolist()]


def test_a_model_has_not_moved_from_itself(samples):
    table = measure_divergence(tiny(), tiny(), samples, progress=False)
    assert table["kl"].abs().max() < 1e-5
    assert table["nll"].tolist() == pytest.approx(table["nll_vanilla"].tolist())


def test_estimates_by_hand():
    """Means are over tokens: (1 + 5) / (2 + 4), not the mean of 0.5 and 1.25."""
    table = pd.DataFrame(
        {
            "model": "U",
            "language": "en",
            "text": [0, 1],
            "num_tokens": [2, 4],
            "kl": [1.0, 5.0],
            "nll": [2.0, 10.0],
            "nll_vanilla": [1.0, 2.0],
        }
    )
    found = estimate_divergence(table).set_index("metric")
    assert found.loc["reference_kl", "value"] == pytest.approx(1.0)
    assert found.loc["reference_perplexity", "value"] == pytest.approx(math.exp(2))
    assert found.loc["vanilla_perplexity", "value"] == pytest.approx(math.exp(0.5))
    # Resamples of one text alone are the ends.
    ends = found.loc["reference_kl", ["ci_low", "ci_high"]].tolist()
    assert ends == pytest.approx([0.5, 1.25])


def test_as_a_metric_it_is_of_the_queries_languages(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    asked = [Query(id="q", language="de", prompt="w5", answer="w6")]
    vanilla, model = tiny(), tiny(seed=1)
    table = evaluate(model, asked, ["reference_kl"], vanilla=vanilla, progress=False)
    assert table["metric"].tolist() == [
        "reference_kl",
        "reference_perplexity",
        "vanilla_perplexity",
    ]
    assert set(table["language"]) == {"de"}
    assert table["value"].iloc[0] > 0
    assert len(list((tmp_path / "interp" / "samples").iterdir())) == 1


def test_no_samples_are_refused():
    with pytest.raises(ValueError, match="no samples"):
        measure_divergence(tiny(), tiny(seed=1), [], progress=False)
