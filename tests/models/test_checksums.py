"""Checksums tell every write into a model, and loading beside a model proves that it made none."""

from __future__ import annotations

import re

import pytest
import torch

import interp
from interp.models.checksums import COLUMNS, check_unchanged, compute_checksums
from tests.helpers.tiny_models import save, tiny


def changed(model, change) -> set[str]:
    """Names whose checksums another write changes."""
    before = compute_checksums(model)
    with torch.no_grad():
        change(model.model)
    after = compute_checksums(model)
    assert before.keys() == after.keys()
    return {name for name in before if before[name] != after[name]}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("place", [0, 1, 4095, 4096 * 8 + 3, -1])
def test_a_single_bit_anywhere(dtype, place):
    """Rows and remainder: the embedding has 2 * 8 * 4096 bytes and 96 more in float32."""
    model = tiny(num_layers=1, vocab_size=2049)
    model.model.to(dtype)
    name = "model.embed_tokens.weight"

    def flip(module):
        words = module.get_parameter(name).data.view(-1).view(torch.uint8)
        words[place] ^= 1

    assert model.model.get_parameter(name).nbytes > 8 * COLUMNS
    assert changed(model, flip) == {name}


def test_changes_that_a_plain_sum_does_not_see():
    model = tiny(num_layers=1, vocab_size=2049)
    name = "model.embed_tokens.weight"

    def swap(module):
        weight = module.get_parameter(name).data
        weight[[0, 1]] = weight[[1, 0]]

    def negate(module):
        module.get_parameter(name).data.neg_()

    def trade(module):
        words = module.get_parameter(name).data.view(-1).view(torch.int64)
        words[0] += 1
        words[1] -= 1

    for change in (swap, negate, trade):
        assert changed(model, change) == {name}


def test_tied_weights_are_named_twice_and_untied_ones_differ():
    model = tiny(num_layers=1, tie_word_embeddings=True)
    embedding, unembedding = "model.embed_tokens.weight", "lm_head.weight"
    assert changed(model, lambda m: m.lm_head.weight.add_(1)) == {embedding, unembedding}

    def untie(module):
        module.lm_head.weight = torch.nn.Parameter(module.lm_head.weight.detach().clone())

    assert changed(model, untie) == {unembedding}


def test_buffers_that_are_not_saved_and_shapes_and_precisions():
    model = tiny(num_layers=1)
    table = "model.rotary_emb.inv_freq"
    assert changed(model, lambda m: m.get_buffer(table).mul_(2)) == {table}
    name = "model.norm.weight"
    weight = model.model.get_parameter(name)

    def put(tensor):
        model.model.model.norm.weight = torch.nn.Parameter(tensor, requires_grad=False)

    assert changed(model, lambda _: put(weight.data.clone())) == set()
    assert changed(model, lambda _: put(weight.data.view(4, 4))) == {name}
    assert changed(model, lambda _: put(weight.data.view(torch.int32))) == {name}
    assert changed(model, lambda _: put(weight.data[:0])) == {name}


def test_a_block_that_changes_a_model_is_refused_however_it_ends():
    model = tiny(num_layers=1)
    with check_unchanged(model, "looking"):
        pass
    with pytest.raises(ValueError, match=r"^other$"), check_unchanged(model, "looking"):
        raise ValueError("other")
    said = "^writing has changed model.norm.weight of 'V': load both anew"
    with pytest.raises(ValueError, match=said), check_unchanged(model, "writing"):
        model.model.model.norm.weight.data[3] = 7.0

    def write_and_fail():
        with check_unchanged(model, "writing"):
            model.model.model.norm.weight.data[3] = 8.0
            raise ValueError("other")

    with pytest.raises(ValueError, match=said):
        write_and_fail()
    with check_unchanged(None, "writing"):
        pass


@pytest.mark.parametrize("step", ["match_vocabulary", "read_tokenizer", "share_identical_tensors"])
def test_loading_beside_a_model_proves_that_it_stayed(step, tmp_path, monkeypatch):
    """A step of loading that writes into the memory that both share is found out."""
    vanilla = interp.load(save(tiny(num_layers=1), tmp_path / "V"))
    save(tiny(num_layers=1, seed=1), tmp_path / "U")
    interp.load(tmp_path / "U", like=vanilla)
    real = getattr(interp.models.loading, step)

    def write(*arguments, **settings):
        vanilla.model.lm_head.weight.data[0, 0] += 1
        return real(*arguments, **settings)

    monkeypatch.setattr(f"interp.models.loading.{step}", write)
    said = f"^loading {re.escape(repr(str(tmp_path / 'U')))} has changed lm_head.weight of "
    with pytest.raises(ValueError, match=said):
        interp.load(tmp_path / "U", like=vanilla)


def test_an_adapter_that_writes_into_its_base_is_found_out(tmp_path, monkeypatch):
    peft = pytest.importorskip("peft")
    vanilla = tiny(num_layers=1)
    with pytest.warns(FutureWarning):
        live = peft.get_peft_model(tiny(num_layers=1).model, peft.LoraConfig(r=2))
    live.save_pretrained(tmp_path)
    from peft.tuners.lora import LoraModel

    real = LoraModel.merge_and_unload

    def write(self, **settings):
        self.model.model.norm.weight.data.mul_(2)
        return real(self, **settings)

    monkeypatch.setattr(LoraModel, "merge_and_unload", write)
    with pytest.raises(ValueError, match=r"has changed model\.norm\.weight of 'V'"):
        interp.load(tmp_path, like=vanilla)


@pytest.mark.parametrize(
    "change", [lambda m: m.train(), lambda m: m.lm_head.to_empty(device="meta")]
)
def test_a_vanilla_model_that_cannot_run_is_refused_first(change, tmp_path):
    """Nothing is read beside a model of which no checksum, or no sense, can be made."""
    vanilla = tiny(num_layers=1)
    change(vanilla.model)
    with pytest.raises(
        ValueError, match=r"'V' (is in training mode|has weights that are offloaded)"
    ):
        interp.load(tmp_path, like=vanilla)
