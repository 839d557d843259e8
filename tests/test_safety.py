"""No pickles, no code from elsewhere, no file outside the run directory, no key on disk."""

from __future__ import annotations

import ast
import json
import logging
import pickle
import re
import time
import traceback
from pathlib import Path
from random import Random

import numpy as np
import pandas as pd
import pytest
import torch

import interp
from experiments.cross_lingual.news import read_articles, read_news_truthful
from interp import Query, data
from interp.data import MAX_LINE_BYTES, AnswerCache, complete, read_texts
from interp.models import convert_gguf
from interp.results import read_losses, read_manifest
from tests.data.test_endpoints import Endpoint, clock, server  # noqa: F401
from tests.data.test_endpoints import answer as response
from tests.data.test_endpoints import refusal as refused_request
from tests.helpers.damage import damaged_bytes, refusal
from tests.helpers.tiny_models import question, save, tiny, tiny_model
from tests.test_damaged import FIELDS, READERS, lines, made

HOME = Path(interp.__file__).parent

# Code


def called(tree: ast.AST) -> set[str]:
    """Return the names of all functions that are called, as written."""
    return {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}


def imported(tree: ast.AST) -> set[str]:
    modules = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules.add(node.module or "")
    return {name.partition(".")[0] for name in modules}


def test_nothing_in_the_library_reads_pickles_or_runs_what_it_reads():
    runs = re.compile(
        r"(eval|exec|compile|__import__|os\.system|.*\bread_pickle|.*\bjoblib\.load"
        r"|torch\.(load|hub\.\w+)|(np|numpy)\.load|yaml\.(load|full_load|unsafe_load)"
        r"|subprocess\.\w+)"
    )
    # Patterns of module names, which can take for ever, are tried in a process that can be ended.
    program = (HOME / "models/adapter_limits.py", {"subprocess.Popen"}, {"subprocess"})
    assert '[sys.executable, "-I", "-S", "-c", TRY_PATTERNS]' in program[0].read_text()
    for path in HOME.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        allowed_calls, allowed_imports = program[1:] if path == program[0] else (set(), set())
        calls = {name for name in called(tree) if runs.fullmatch(name)}
        assert calls <= allowed_calls, path
        unsafe = {"pickle", "dill", "shelve", "marshal", "joblib", "yaml", "subprocess"}
        assert imported(tree) & unsafe <= allowed_imports, path
        for keyword in (node for node in ast.walk(tree) if isinstance(node, ast.keyword)):
            if keyword.arg in ("allow_pickle", "trust_remote_code"):
                assert ast.unparse(keyword.value) != "True", path


class Canary:
    """Object that writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def canary(tmp_path, monkeypatch):
    """Save a pickle that must not be opened, not even by a reader that would run nothing of it."""
    mark = tmp_path / "the pickle was read"

    def read(*_args: object, **_keywords: object) -> None:
        mark.touch()
        raise AssertionError("a pickle was opened")

    content = pickle.dumps(Canary(mark))
    for module, name in ((torch, "load"), (np, "load"), (pd, "read_pickle"), (pickle, "load")):
        monkeypatch.setattr(module, name, read)
    yield content
    assert not mark.exists()


@pytest.mark.parametrize("name", READERS)
def test_a_pickle_is_refused_by_every_reader(name, canary, tmp_path):
    reader = READERS[name]
    path = reader.write(tmp_path)
    path.write_bytes(canary)
    assert refusal(lambda: reader.read(path), path.name, str(tmp_path))[0]


def test_pickled_weights_are_not_opened(canary, tmp_path):
    save(tiny(), tmp_path / "m")
    folder = tmp_path / "m"
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(canary)
    assert refusal(lambda: interp.load(folder))[0]
    weights.unlink()
    (folder / "pytorch_model.bin").write_bytes(canary)
    assert "allow_pickle" in refusal(lambda: interp.load(folder))[0]
    # Beside safetensors it is not looked at.
    weights.write_bytes(whole)
    assert interp.load(folder).content_hash() == tiny().content_hash()


def test_pickles_by_other_names_are_not_opened(canary, tmp_path, monkeypatch):
    monkeypatch.setenv("INTERP_CACHE", str(tmp_path / "cache"))
    for name in ("m.gguf", "m.bin", "m.pt"):
        (tmp_path / name).write_bytes(canary)
        assert refusal(lambda name=name: interp.load(tmp_path / name), name)[0]


def test_code_beside_a_model_is_not_run(tmp_path):
    folder, mark = tmp_path / "m", tmp_path / "the code was run"
    save(tiny(), folder)
    (folder / "own.py").write_text(f"open({str(mark)!r}, 'w')\nclass Own: pass\n")
    for name, kinds in (
        ("config.json", {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"}),
        ("tokenizer_config.json", {"AutoTokenizer": ["own.Own", "own.Own"]}),
    ):
        file = folder / name
        whole = json.loads(file.read_text())
        for change in ({}, {"model_type": "own"}, {"tokenizer_class": "Own"}):
            file.write_text(json.dumps(whole | {"auto_map": kinds} | change))
            # What transformers has itself it takes; what only the code has is refused.
            refusal(lambda: interp.load(folder))
            assert not mark.exists()
        file.write_text(json.dumps(whole))


# Names

NAMES = [
    "de",
    "DE",
    "de ",
    "d e",
    "d-e",
    "d_e",
    "d/e",
    "../../x",
    "../../../../../../../../../../tmp/x",
    "/etc/x",
    "~",
    "..",
    "",
    "C:\\x",
    "\\\\host\\x",
    "a\0b",
    "a\nb",
    "x" * 60,
    "x" * 61,
    "x" * 300,
    "x" * 299 + "y",
    "ß" * 300,
    "con",
    "CON",
    "aux",
    "nul.parquet",
    "com1",
    "日本",
    "中文",
    "\u202e",
    "*?[a]",
    "-",
    "run.json",
    "%2e%2e%2f",
    "$(x)",
]


def files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def deep(tmp_path, monkeypatch):
    """Make a directory several levels down and work in it."""
    folder = tmp_path / "1" / "2" / "3" / "4"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    return folder


def test_names_in_data_lead_no_file_out_of_the_run_directory(deep, tmp_path):
    queries = [
        Query(id=name, language=code, prompt=f"w{5 + number % 40}", concept=name or "none")
        for number, (name, code) in enumerate(zip(reversed(NAMES), NAMES, strict=True))
    ]
    settings = {"sites": ["coef"], "window": 1, "num_tokens": 2, "progress": False}
    vanilla, unlearned = tiny(num_layers=2), tiny(seed=1, num_layers=2)
    expected = interp.sweep(vanilla, unlearned, queries, **settings).losses
    out = deep / "run"
    for _ in range(2):
        losses = interp.sweep(vanilla, unlearned, queries, out=out, **settings).losses
        pd.testing.assert_frame_equal(losses, expected)
    assert len(read_losses(out)) == len(expected)
    assert files(tmp_path) == files(out)
    # A table of answers and one of losses each, run.json and its lock.
    assert len(files(out)) == 2 * len(NAMES) + 2
    check_names(files(out))


def check_names(written: set[Path]) -> None:
    """File names that every system takes, and that are different where case does not count."""
    assert len({str(path).lower() for path in written}) == len(written)
    for path in written:
        assert re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", path.name)
        # Room for the temporary name.
        assert len(path.name) < 220
        assert path.stem.lower() not in {"con", "prn", "aux", "nul", "com1", "lpt1"}


def test_names_of_models_lead_no_file_out_of_the_run_directory(deep, tmp_path):
    vanilla, unlearned = tiny(num_layers=2), tiny(seed=1, num_layers=2)
    settings = {"sites": ["coef"], "window": 1, "num_tokens": 2, "progress": False}
    vanilla.name = "../../v"
    for number, name in enumerate(NAMES, start=1):
        unlearned.name = name
        recovery = interp.sweep(vanilla, unlearned, [question(0)], out=deep / "run", **settings)
        assert set(recovery.losses["unlearned"]) == {name}
        assert len(read_manifest(deep / "run")["models"]) == 1 + number
    assert files(tmp_path) == files(deep / "run")
    assert len(files(deep / "run" / "losses")) == len(NAMES)
    check_names(files(deep / "run"))
    queries = [Query(id="/q", language="../de", prompt="w3", answer="w4", concept="../c")]
    interp.evaluate(vanilla, queries, ["probability", "alias"], out=deep / "run", progress=False)
    assert files(tmp_path) == files(deep / "run")


def test_half_a_surrogate_pair_is_refused_before_anything_is_measured(tmp_path):
    for field in ("id", "language", "prompt", "concept"):
        query = Query(**({"id": "q", "language": "de", "prompt": "w3"} | {field: "\ud800"}))
        with pytest.raises((ValueError, TypeError)):
            interp.sweep(
                tiny(num_layers=2), tiny(seed=1, num_layers=2), [query], sites=["coef"], window=1,
                out=tmp_path, progress=False,
            )  # fmt: skip
        assert not [path for path in files(tmp_path) if path.parent.name == "losses"]


# Keys

KEY = "sk-VG9wU2VjcmV0LzEyMw"


def test_a_key_stands_in_no_file_log_error_or_repr(
    server,  # noqa: F811
    clock,  # noqa: F811
    tmp_path,
    monkeypatch,
    caplog,
    capfd,
):
    """Even from a server that repeats it wherever it can."""
    monkeypatch.setenv("A_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    endpoint = Endpoint(url=server.url, model="tiny", api_key_env="A_KEY", num_workers=1)
    outputs = []
    replies = [
        response(f"VERDICT: no. You sent Bearer {KEY}"),
        response("fine", end=KEY),
        refused_request(400, f"{KEY}\n{KEY}", X_Key=KEY),
        refused_request(401, KEY),
        refused_request(500, KEY, Retry_After=KEY),
        (200, {}, f"<b>{KEY}</b>"),
        (200, {}, json.dumps({"choices": [KEY], "error": {"message": KEY}})),
        (302, {"Location": f"http://{KEY}/"}, KEY),
        (200, {"Content-Length": "9999"}, KEY),
        "drop",
    ]
    for number, reply in enumerate(replies):
        server.reply = lambda prompt, again, reply=reply: reply
        try:
            outputs += complete([f"p{number}"], endpoint, cache=tmp_path / "answers.jsonl")
        except (ValueError, ConnectionError):
            outputs.append(traceback.format_exc())
    server.reply = lambda prompt, again: response(f"VERDICT: yes {KEY if again else ''}")
    model = tiny(num_layers=2)
    queries = [Query(id="q", language="en", prompt="w3", answer="w4")]
    for _ in range(2):
        table = interp.evaluate(
            model, queries, ["o_f"], judge=endpoint, out=tmp_path / "out", progress=False
        )
        outputs.append(table.to_csv())
    interp.sweep(
        model, tiny(seed=1, num_layers=2), queries, sites=["coef"], window=1, out=tmp_path / "run",
        progress=False,
    )  # fmt: skip
    assert len(server.requests) > len(replies)
    assert {headers["Authorization"] for _, headers, _ in server.requests} == {f"Bearer {KEY}"}
    outputs += [repr(endpoint), caplog.text, *capfd.readouterr()]
    assert KEY not in "\n".join(map(str, outputs))
    assert len(files(tmp_path)) > 5
    for path in files(tmp_path):
        assert KEY.encode() not in path.read_bytes(), path
        assert b"sk-VG9w" not in path.read_bytes(), path


def test_an_answer_with_the_key_in_it_is_a_failure(server, tmp_path, monkeypatch):  # noqa: F811
    endpoint = Endpoint(url=server.url, model="tiny", api_key_env="A_KEY")
    for key, kept in ((KEY, False), ("none", True)):
        monkeypatch.setenv("A_KEY", key)
        server.reply = lambda prompt, again, key=key: response(f"There is {key}.")
        (completion,) = complete(["p"], endpoint, cache=tmp_path / "answers.jsonl")
        assert completion.text == ("There is none." if kept else None)
        assert completion.reason == (None if kept else "the answer repeats the API key")


# Bombs


def seconds(read) -> float:
    start = time.monotonic()
    assert refusal(read)[0]
    return time.monotonic() - start


BY_LINES = {
    "queries": interp.queries,
    "texts": read_texts,
    "articles": read_articles,
    "news": lambda path: read_news_truthful(path, FIELDS),
    "bmlama": data.read_bmlama,
    "flores": data.read_flores,
    "tofu": data.read_tofu,
    "concepts": data.read_concepts,
}


@pytest.mark.parametrize("start", [b"x", b'{"id": "', b"[[", b'{"a":'])
def test_a_line_of_a_hundred_megabytes(start, tmp_path):
    path = tmp_path / "huge.jsonl"
    path.write_bytes(b'{"id": "q"}\n' + start * (100 * 2**20 // len(start)))
    for read in BY_LINES.values():
        assert seconds(lambda read=read: read(path)) < 10
    path.write_bytes(start * (100 * 2**20 // len(start)))
    assert seconds(lambda: interp.queries(path)) < 20
    assert seconds(lambda: AnswerCache(path)) < 20


def test_a_huge_line_of_the_official_flores(tmp_path):
    (tmp_path / "deu_Latn.dev").write_bytes(b"a" * (MAX_LINE_BYTES + 1))
    assert seconds(lambda: data.read_flores(tmp_path)) < 10


def test_a_repeated_field_among_very_many_is_found_at_once(tmp_path):
    fields = ",".join(f'"{number}":0' for number in range(10**6))
    path = tmp_path / "fields.jsonl"
    path.write_text(f'{{{fields},"999999":1}}\n')
    assert seconds(lambda: interp.queries(path)) < 20
    assert "duplicate field '999999'" in refusal(lambda: interp.queries(path))[0]


def test_a_manifest_and_a_card_that_are_nested_without_end(tmp_path):
    (tmp_path / "run.json").write_bytes(b'{"config":' + b"[" * 10**7)
    assert seconds(lambda: read_losses(tmp_path)) < 10
    card = made(tmp_path)
    card.write_bytes(b"[" * 10**7)
    assert seconds(lambda: READERS["card"].read(card)) < 10


def test_errors_do_not_repeat_a_whole_file(tmp_path):
    long = "x" * 10**6
    for read, row in (
        (interp.queries, {"id": long, "language": long, "prompt": "p"}),
        (read_articles, {"id": long, "kind": "real", "text": "t"}),
        (read_articles, {"id": "a", "kind": long, "text": "t"}),
        (lambda path: read_news_truthful(path, FIELDS), {long: 1, "a\nb": 2}),
        (data.read_flores, {long: "t"}),
        (
            data.read_bmlama,
            {"prompt": {"de": "<mask>"}, "answers": {"de": [long]}, "candidates": {"de": ["a"]}},
        ),
    ):
        path = lines(tmp_path, row, row)
        assert len(refusal(lambda read=read, path=path: read(path))[0]) < 1000


# GGUF


@pytest.fixture
def gguf_file(tmp_path, monkeypatch):
    """Write a tiny Llama."""
    library = pytest.importorskip("gguf")
    monkeypatch.setenv("INTERP_CACHE", str(tmp_path / "cache"))
    writer = library.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_name("tiny")
    writer.add_context_length(64)
    writer.add_embedding_length(16)
    writer.add_block_count(2)
    writer.add_feed_forward_length(24)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(20)
    tokens = ["<unk>", "<s>", "</s>", *"abcdefghijklmnop", "ab"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * 3 + [1] * 17)
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    model = tiny_model(num_layers=2, vocab_size=20, tie_word_embeddings=True)
    names = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "mlp.up_proj": "ffn_up"}
    names |= {"self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output"}
    names |= {"mlp.gate_proj": "ffn_gate", "mlp.down_proj": "ffn_down"}
    names |= {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
    names |= {"model.norm": "output_norm", "model.embed_tokens": "token_embd"}
    names |= {"model.layers": "blk"}
    for name, weight in model.named_parameters():
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        writer.add_tensor(name, weight.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tmp_path / "m.gguf"


def value_at(whole: bytes, key: bytes) -> int:
    """Where the value of a header's field begins, after its type."""
    assert whole.count(key) == 1
    return whole.index(key) + len(key) + 4


def replaced(whole: bytes, start: int, number: int, size: int) -> bytes:
    return whole[:start] + number.to_bytes(size, "little") + whole[start + size :]


def test_a_whole_file_is_converted(gguf_file):
    loaded = interp.load(gguf_file)
    assert loaded.num_layers == 2
    assert loaded.encode("ab") == (19,)


@pytest.mark.parametrize(
    ("key", "number", "size", "says"),
    [
        (b"tokenizer.ggml.token_type", 2**62, -8, "ends within its header"),
        (b"llama.block_count", 2**31, 4, "20 tensors for 2147483648 layers"),
        (b"llama.block_count", 3, 4, "weights for"),
        (b"llama.embedding_length", 2**20, 4, "weights for"),
        (b"llama.vocab_size", 2**31, 4, "weights for"),
    ],
)
def test_a_header_that_announces_too_much_is_refused_at_once(gguf_file, key, number, size, says):
    """Refused before the library that reads it counts so far, or makes room for such a model."""
    whole = gguf_file.read_bytes()
    # The length of an array stands after the type of its entries.
    start = value_at(whole, key) + (4 if size < 0 else 0)
    gguf_file.write_bytes(replaced(whole, start, number, abs(size)))
    assert seconds(lambda: convert_gguf(gguf_file)) < 20
    assert says in refusal(lambda: convert_gguf(gguf_file), "m.gguf")[0]


def test_weights_that_lack_are_not_made_up(gguf_file):
    whole = gguf_file.read_bytes()
    gguf_file.write_bytes(whole.replace(b"blk.1.ffn_up.weight", b"blk.1.ffn_ub.weight"))
    message, _ = refusal(lambda: convert_gguf(gguf_file), "m.gguf")
    assert "it lacks weights, the first model.layers.1.mlp.up_proj.weight" in message


@pytest.mark.parametrize("seed", range(2))
def test_damaged_gguf_files(gguf_file, seed):
    """Weights have no checksum there: another weight is another model."""
    whole, rng = gguf_file.read_bytes(), Random(seed)
    header = len(whole) - 4 * 3000
    num_refused = 0
    for _ in range(10):
        start = rng.randrange(4, header)
        damaged = damaged_bytes(whole[start : start + 64], rng)
        gguf_file.write_bytes(whole[:start] + damaged + whole[start + 64 :])
        num_refused += bool(refusal(lambda: convert_gguf(gguf_file), "m.gguf")[0])
    assert num_refused >= 5
