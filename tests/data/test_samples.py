"""Texts that a model writes itself: drawn from its own distribution, the same every time, kept."""

from __future__ import annotations

import json

import pytest

from interp import LanguageModel
from interp.data import sample_texts, sample_tokens
from interp.data import samples as module
from tests.helpers.tiny_models import CONTEXT, tiny


def write(model, folder, **options):
    settings = {"num_texts": 5, "num_tokens": 4, "progress": False, **options}
    return sample_texts(model, ["en", "de"], folder=folder, **settings)


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
    with monkeypatch.context() as patch:
        patch.setattr(module, "generate_continuations", None)
        assert write(model, tmp_path) == first
        # A file per language.
        assert sample_texts(model, ["de"], folder=tmp_path, num_texts=5, num_tokens=4) == first[5:]
    assert len(list(tmp_path.iterdir())) == 2
    assert write(tiny(seed=1), tmp_path) != first
    assert len(list(tmp_path.iterdir())) == 4
    # What is damaged is written anew.
    for file in tmp_path.iterdir():
        held = json.loads(file.read_text())
        held["samples"][0]["text"] = "other"
        file.write_text(json.dumps(held))
    assert write(model, tmp_path) == first
    for file in tmp_path.iterdir():
        file.write_text("[")
    assert write(model, tmp_path) == first


def count_tokens(samples):
    return sum(len(sample.token_ids) for sample in samples)


def test_texts_are_written_until_they_have_the_tokens(tmp_path):
    model = tiny()
    # The tiny model's openings leave room for the text.
    settings = {"text_length": 6, "folder": tmp_path, "progress": False}
    samples = sample_tokens(model, ["en", "de"], num_tokens=301, **settings)
    for code in ("en", "de"):
        own = [sample for sample in samples if sample.language == code]
        # Half of 301, rounded up, and less than one more text.
        assert 151 <= count_tokens(own) < 151 + 6
        assert max(len(sample.token_ids) for sample in own) == 6
        # Some end early, so that more are asked for than 151 / 6.
        assert len(own) > 26
    few = sample_texts(model, ["en"], num_texts=4, num_tokens=3, folder=tmp_path, progress=False)
    for short, long in zip(few, samples, strict=False):
        assert long.token_ids[:3] == short.token_ids


def test_a_killed_run_goes_on_with_its_language(tmp_path, monkeypatch):
    model, asked = tiny(), []
    settings = {"num_tokens": 60, "text_length": 6, "progress": False}
    whole = sample_tokens(model, ["en", "de"], folder=tmp_path / "whole", **settings)
    openings = module._make_openings

    def killed(language, numbers):
        asked.append(language)
        if language == "de":
            raise KeyboardInterrupt
        return openings(language, numbers)

    with monkeypatch.context() as patch:
        patch.setattr(module, "_make_openings", killed)
        with pytest.raises(KeyboardInterrupt):
            sample_tokens(model, ["en", "de"], folder=tmp_path / "killed", **settings)
    generate = module.generate_continuations

    def watched(model, prompts, **options):
        asked.append(len(prompts))
        return generate(model, prompts, **options)

    asked.clear()
    monkeypatch.setattr(module, "generate_continuations", watched)
    assert sample_tokens(model, ["en", "de"], folder=tmp_path / "killed", **settings) == whole
    # German alone, thirty tokens in texts of six.
    assert asked[0] == 5


def test_texts_end_where_the_context_does(tmp_path):
    model = tiny()
    samples = sample_tokens(
        model, ["en"], num_tokens=200, text_length=500, folder=tmp_path, progress=False
    )
    longest = max(len(sample.prompt_ids) + len(sample.token_ids) for sample in samples)
    assert longest <= CONTEXT


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
