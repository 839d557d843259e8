"""Texts that a model writes itself: drawn from its own distribution, the same every time, kept."""

from __future__ import annotations

import json

import pytest
import torch

from interp import LanguageModel
from interp.data import sample_texts
from interp.data import samples as module
from interp.data.samples import TokenDraw
from tests.helpers.tiny_models import tiny


def write(model, folder, **options):
    settings = {"num_texts": 5, "num_tokens": 4, "progress": False, **options}
    return sample_texts(model, ["en", "de"], folder=folder, **settings)


def test_tokens_are_drawn_with_their_probabilities():
    """Of 4,000 draws, shares are within three standard errors."""
    shares = torch.tensor([0.5, 0.3, 0.15, 0.05, 0.0])
    draw = TokenDraw([f"0/samples/en/{n}" for n in range(4000)])
    drawn = torch.cat([draw(shares.log()[None], [number], 0) for number in range(4000)])
    found = torch.bincount(drawn, minlength=5) / 4000
    assert found[4] == 0
    assert ((found - shares).abs() <= 3 * (shares * (1 - shares) / 4000).sqrt()).all()


def test_draws_do_not_depend_on_batches_but_on_the_seed(tmp_path):
    model = tiny()
    first = write(model, tmp_path / "a")
    assert [sample.language for sample in first] == ["en"] * 5 + ["de"] * 5
    assert all(1 <= len(sample.token_ids) <= 4 for sample in first)
    assert write(model, tmp_path / "b", batch_size=2) == first
    assert write(model, tmp_path / "a", seed=1) != first
    # The opening is prompt and no part of the text.
    assert first[0].prompt_ids == model.encode("This week's country portrait: France.")
    assert model.decode(first[0].token_ids) == first[0].text


def test_what_was_written_is_kept_under_the_models_hash(tmp_path, monkeypatch):
    model = tiny()
    first = write(model, tmp_path)
    (file,) = tmp_path.iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(module, "generate_continuations", None)
        assert write(model, tmp_path) == first
    assert write(tiny(seed=1), tmp_path) != first
    assert len(list(tmp_path.iterdir())) == 2
    # What is damaged is written anew.
    held = json.loads(file.read_text())
    held["samples"][0]["text"] = "other"
    file.write_text(json.dumps(held))
    assert write(model, tmp_path) == first
    file.write_text("[")
    assert write(model, tmp_path) == first


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path):
    (tmp_path / "file").write_text("")
    assert len(write(tiny(), tmp_path / "file")) == 10


def test_mistakes_are_one_sentence(tmp_path):
    model = tiny()
    with pytest.raises(ValueError, match="no languages to write in"):
        sample_texts(model, [], folder=tmp_path)
    with pytest.raises(ValueError, match="num_texts must be at least 1, not 0"):
        write(model, tmp_path, num_texts=0)
    with pytest.raises(ValueError, match="'xx'"):
        sample_texts(model, ["xx"], folder=tmp_path)


def test_a_model_that_ends_every_text_at_once_is_named(tmp_path):
    model = tiny()
    ends = LanguageModel(model.model, model.tokenizer, name="mute")
    ends.model.generation_config.eos_token_id = list(range(ends.anatomy.unembed.out_features))
    try:
        with pytest.raises(ValueError, match="'mute' ends every text in 'en' before it begins"):
            write(ends, tmp_path)
    finally:
        ends.model.generation_config.eos_token_id = None
