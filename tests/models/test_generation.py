"""Answers, greedy and sampled: alike whatever the batch, kept as they come."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

import pytest
import torch
from tokenizers import decoders, normalizers, processors
from transformers import PreTrainedTokenizer

from interp import LanguageModel, Query
from interp.behaviour import Answer, generate
from interp.models.generation import compute_text_hash, generate_continuations
from interp.statistics import bootstrap, estimate_mean, estimate_share
from tests.helpers.tiny_models import ARCHITECTURES, tiny, tokenizer

PROMPTS = ["w5", "w6 w7 w8", "w9 w10 w11 w12 w13 w14", "w20 w21", "w30 w31 w32 w33"]
QUERIES = [Query(id=str(n), language="en", prompt=prompt) for n, prompt in enumerate(PROMPTS)]


@torch.no_grad()
def one_at_a_time(model, prompt: str, num_tokens: int) -> str:
    """Greedy decoding, the whole text anew for every token."""
    ids = list(model.encode(prompt))
    token_ids: list[int] = []
    for _ in range(num_tokens):
        token = int(model.model(torch.tensor([ids + token_ids])).logits[0, -1].argmax())
        if token == model.tokenizer.eos_token_id:
            break
        token_ids.append(token)
    return model.decode(token_ids, skip_special_tokens=True)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_batched_answers_are_those_of_one_prompt_alone(name):
    model = tiny(name)
    wanted = [one_at_a_time(model, prompt, 7) for prompt in PROMPTS]
    for size in (2, 64):
        answers = generate(model, QUERIES, num_tokens=7, batch_size=size, progress=False)
        assert [answer.text for answer in answers] == wanted


def test_samples_depend_on_seed_prompt_and_number_alone():
    model = tiny()
    options = {"num_tokens": 6, "temperature": 1.5, "num_samples": 3, "progress": False}
    answers = generate(model, QUERIES, **options)
    assert [answer.sample for answer in answers] == [0, 1, 2] * 5
    assert len({answer.text for answer in answers}) > 10
    assert answers[3:6] == generate(model, QUERIES[1:2], batch_size=1, **options)
    assert answers != generate(model, QUERIES, seed=1, **options)
    # A nucleus of one token, and a temperature of nearly nothing, are greedy.
    greedy = [answer.text for answer in generate(model, QUERIES, num_tokens=6, progress=False)]
    for narrow in ({"top_p": 1e-9, "temperature": 1.0}, {"temperature": 1e-4}):
        texts = [a.text for a in generate(model, QUERIES, num_tokens=6, progress=False, **narrow)]
        assert texts == greedy


def test_samples_are_distributed_as_the_model_says():
    """First tokens of 2,000 samples against the model's own probabilities."""
    model = tiny()
    with torch.no_grad():
        logits = model.model(torch.tensor([model.encode("w5")])).logits[0, -1].double()
    for top_p in (1.0, 0.6):
        answers = generate(
            model, QUERIES[:1], num_tokens=1, temperature=1.0, top_p=top_p, num_samples=2000,
            batch_size=500, progress=False,
        )  # fmt: skip
        chances, order = logits.softmax(-1).sort(descending=True)
        kept = (chances.cumsum(-1) - chances) < top_p
        chances = chances * kept / (chances * kept).sum()
        counts = dict.fromkeys(order.tolist(), 0)
        by_text = {model.decode([t], skip_special_tokens=True): t for t in order.tolist()[::-1]}
        for answer in answers:
            counts[by_text[answer.text]] += 1
        for token, chance in list(zip(order.tolist(), chances.tolist(), strict=True))[:5]:
            spread = math.sqrt(chance * (1 - chance) / 2000)
            assert abs(counts[token] / 2000 - chance) < 5 * spread + 1e-9


def test_a_killed_run_asks_only_for_the_rest(tmp_path, monkeypatch):
    model, cache = tiny(), tmp_path / "answers.jsonl"
    wanted = generate(model, QUERIES, num_tokens=6, progress=False)
    prompt_counts = []

    def killed_after_three(model, prompts, **options):
        prompt_counts.append(len(prompts))
        for place, continuation in enumerate(generate_continuations(model, prompts, **options)):
            if len(prompt_counts) == 1 and place == 3:
                raise KeyboardInterrupt
            yield continuation

    monkeypatch.setattr("interp.behaviour.answers.generate_continuations", killed_after_three)
    with pytest.raises(KeyboardInterrupt):
        generate(model, QUERIES, num_tokens=6, cache=cache, progress=False)
    assert generate(model, QUERIES, num_tokens=6, cache=cache, progress=False) == wanted
    assert generate(model, QUERIES, num_tokens=6, cache=cache, progress=False) == wanted
    # Another model is not answered for.
    generate(tiny(seed=1), QUERIES, num_tokens=6, cache=cache, progress=False)
    assert prompt_counts == [5, 2, 0, 5]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"num_tokens": 0}, "num_tokens must be at least 1"),
        ({"temperature": -1.0}, "temperature must be a number from 0"),
        ({"temperature": 1.0, "top_p": 0.0}, "top_p must lie above 0"),
        ({"num_samples": 2}, "several samples need a temperature"),
        ({"num_tokens": 100}, "more than the model's context of 64"),
    ],
)
def test_settings_that_are_not_valid(settings, says):
    with pytest.raises(ValueError, match=says):
        generate(tiny(), QUERIES, progress=False, **settings)


def test_the_first_line():
    query = QUERIES[0]
    assert Answer(query=query, text="\n Paris \nQuestion: …").first_line == "Paris"
    assert Answer(query=query, text=" ").first_line == ""


def test_measures_by_hand():
    estimate = estimate_share([True, True, False, False])
    assert (estimate.value, estimate.n) == (0.5, 4)
    assert (estimate.ci_low, estimate.ci_high) == pytest.approx((0.15004, 0.84996), abs=1e-4)
    assert math.isnan(estimate_share([]).value)
    assert estimate_share([]).reason == "no items"
    estimate = estimate_mean([1.0, 3.0, math.nan])
    assert (estimate.value, estimate.n) == (2.0, 2)
    assert (estimate.ci_low, estimate.ci_high) == (1.0, 3.0)
    assert estimate.reason == "1 of 3 items have no value"
    assert math.isnan(estimate_mean([5.0]).ci_low)
    estimate = estimate_mean([1.0, -math.inf, math.nan])
    assert math.isnan(estimate.value)
    assert estimate.reason == "1 of 3 items have no value; 1 of 3 items are infinite"
    # The bootstrap's spread is that of the mean.
    values = [float(n % 10) for n in range(400)]
    estimate = estimate_mean(values)
    half = 1.96 * math.sqrt(8.25 / 400)
    assert estimate.ci_high - estimate.value == pytest.approx(half, rel=0.1)
    estimate = bootstrap(3, lambda items: float(len(items)))
    assert (estimate.value, estimate.ci_low, estimate.ci_high) == (3, 3, 3)


def wrapped(change=lambda tok: None, **special: str) -> LanguageModel:
    """V with a tokenizer that something is done to."""
    made = tokenizer(**special)
    change(made)
    return LanguageModel(tiny().model, made, name="V")


def set_template(tok, single: str) -> None:
    tok.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=[("<s>", 1), ("</s>", 2)]
    )


CHANGES = [
    lambda tok: set_template(tok, "$A"),
    lambda tok: set_template(tok, "<s> $A </s>"),
    lambda tok: setattr(tok, "eos_token", "w40"),
    lambda tok: tok.add_special_tokens({"additional_special_tokens": ["w41"]}),
    lambda tok: setattr(tok, "split_special_tokens", True),
    lambda tok: setattr(tok.backend_tokenizer, "normalizer", normalizers.Lowercase()),
    lambda tok: setattr(tok.backend_tokenizer, "decoder", decoders.Fuse()),
]

NO_CHANGES = [
    lambda tok: tok("w5", max_length=2, truncation=True),
    lambda tok: tok.backend_tokenizer.enable_truncation(2),
    lambda tok: setattr(tok, "chat_template", "{{ messages }}"),
    lambda tok: setattr(tok, "name_or_path", "elsewhere"),
    lambda tok: setattr(tok, "padding_side", "left"),
]


def test_answers_are_known_by_tokenizer_and_end_tokens_too():
    usual = compute_text_hash(wrapped())
    hashes = [compute_text_hash(wrapped(change)) for change in CHANGES]
    ending = wrapped()
    ending.model.generation_config.eos_token_id = [2, 40]
    hashes.append(compute_text_hash(ending))
    assert len({usual, *hashes}) == len(CHANGES) + 2
    assert {compute_text_hash(wrapped(change)) for change in NO_CHANGES} == {usual}
    # What was hashed before a change is not taken for what it is after it.
    for change in (*CHANGES, *NO_CHANGES):
        model = wrapped()
        assert compute_text_hash(model) == usual
        change(model.tokenizer)
        assert compute_text_hash(model) == compute_text_hash(wrapped(change))
    limited = wrapped(lambda tok: tok.backend_tokenizer.enable_truncation(2))
    assert limited.encode("w5 w6 w7 w8") == (1, 5, 6, 7, 8)


def test_the_hash_is_that_of_a_list_in_json():
    model = wrapped()
    rules = json.loads(model.tokenizer.backend_tokenizer.to_str())
    rules = {key: value for key, value in rules.items() if key not in ("padding", "truncation")}
    special = sorted({*model.tokenizer.all_special_ids})
    parts = [rules, model.tokenizer("a")["input_ids"], special, False, False, [2]]
    text = json.dumps(parts, sort_keys=True)
    assert compute_text_hash(model) == hashlib.sha256(text.encode()).hexdigest()


def test_a_tokenizer_in_python_is_known_by_its_files():
    class Words(PreTrainedTokenizer):
        """Words in the order of a file."""

        def __init__(self, words, **settings):
            self.words = words
            super().__init__(unk_token="a", **settings)

        vocab_size = property(lambda self: len(self.words))

        def get_vocab(self):
            return {word: number for number, word in enumerate(sorted(self.words))}

        def _tokenize(self, text):
            return text.split()

        def _convert_token_to_id(self, token):
            return self.words.index(token) if token in self.words else 0

        def _convert_id_to_token(self, index):
            return self.words[index]

        def save_vocabulary(self, save_directory, filename_prefix=None):
            file = Path(save_directory) / "vocab.txt"
            file.write_text("\n".join(self.words))
            return (str(file),)

    hashes = [
        compute_text_hash(LanguageModel(tiny().model, Words(words)))
        for words in (["a", "b", "c"], ["a", "b", "c"], ["a", "c", "b"])
    ]
    assert hashes[0] == hashes[1] != hashes[2]


def test_stored_answers_of_another_tokenizer_are_not_used(tmp_path):
    usual, other = wrapped(), wrapped(lambda tok: set_template(tok, "$A"))
    for model in (usual, other, usual):
        stored = generate(
            model, QUERIES, num_tokens=5, cache=tmp_path / "answers.jsonl", progress=False
        )
        assert stored == generate(model, QUERIES, num_tokens=5, progress=False)
    assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == 2 * len(QUERIES)
