"""Damaged tokenizers are a sentence, whatever their library raises."""

from __future__ import annotations

import pytest
from transformers import AutoTokenizer

from interp.models.tokenizers import read_tokenizer
from tests.helpers.tiny_models import tokenizer


class PanicException(BaseException):
    """As Rust code raises it."""


def read(folder):
    return read_tokenizer("U", folder, base=None, trust_remote_code=False)


@pytest.mark.parametrize("error", [PanicException, Exception, RuntimeError, KeyError])
def test_an_error_of_the_library_is_a_sentence(tmp_path, monkeypatch, error):
    def fail(*_, **__):
        raise error("no such token\nbacktrace")

    tokenizer().save_pretrained(tmp_path)
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", fail)
    with pytest.raises(
        ValueError, match=r"^the tokenizer in 'U' could not be read: .*token[^\n]*$"
    ):
        read(tmp_path)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_a_person_who_stops_it_is_heard(tmp_path, monkeypatch, error):
    def fail(*_, **__):
        raise error

    tokenizer().save_pretrained(tmp_path)
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", fail)
    with pytest.raises(error):
        read(tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_cut_file_is_a_sentence(tmp_path, share):
    tokenizer().save_pretrained(tmp_path)
    file = tmp_path / "tokenizer.json"
    raw = file.read_bytes()
    file.write_bytes(raw[: int(len(raw) * share)])
    with pytest.raises(ValueError, match="the tokenizer in 'U' could not be read"):
        read(tmp_path)
