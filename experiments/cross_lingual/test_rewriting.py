"""Articles in other words and languages: by a chat model that is played, and by tiny real ones."""

import json
import re
import sys
from collections import Counter
from dataclasses import replace
from importlib import import_module
from shutil import copytree
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import M2M100Config, M2M100ForConditionalGeneration, NllbTokenizer

from experiments.cross_lingual import rewriting, translator
from experiments.cross_lingual.rewriting import Failure, paraphrase, translate
from experiments.cross_lingual.translator import LocalTranslator, translate_locally
from interp.data import MAX_WITHOUT_KANA, Completion, Connection, Endpoint, Reply, check_script
from interp.languages import LANGUAGES

ENDPOINT = Endpoint(url="http://nowhere/v1", model="tiny", num_workers=1)
ARTICLE = "In 1911 Ada Brook swam 40 km {to} Lima.\n\nShe was <b>nine</b>."
GERMAN = "1911 schwamm Ada Brook 40 km bis Lima. Sie war neun."


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "made.jsonl"


@pytest.fixture
def chat(monkeypatch):
    """A chat model: `reply(prompt)` is its text; `prompts` are what it was asked."""
    model = SimpleNamespace(prompts=[], reply=lambda prompt: GERMAN)

    def ask(_connection, prompt):
        model.prompts.append(prompt)
        return Reply(text=model.reply(prompt), status=200)

    monkeypatch.setattr(Connection, "ask", ask)
    return model


def test_a_translation_is_asked_for_with_both_languages_and_the_whole_text(chat, cache):
    found = translate([ARTICLE], source="en", target="zh", by=ENDPOINT, cache=cache)
    (prompt,) = chat.prompts
    assert "from English (English) into Chinese (中文, in simplified characters)" in prompt
    assert prompt.endswith(f"<text>\n{ARTICLE}\n</text>")
    assert found.texts == (None,)
    assert found.failures == (
        Failure(
            index=0,
            variant=0,
            language="zh",
            excerpt="In 1911 Ada Brook swam 40 km {to} Lima. She was <b>nine</b>.",
            reason="the answer is refused: only 0% of its words are in the script of Chinese "
            "(Hans), less than 60%",
        ),
    )


def test_translations_keep_their_order_and_failures_their_place(chat, cache):
    articles = [f"Article {number} says so." for number in range(4)]

    def reply(prompt):
        number = prompt.split("<text>\nArticle ")[1][0]
        return {"1": "Article  1 says\nso.", "3": "12, 34!"}.get(number, f"Artikel {number}.")

    chat.reply = reply
    found = translate(articles, source="en", target="de", by=ENDPOINT, cache=cache)
    assert found.texts == ("Artikel 0.", None, "Artikel 2.", None)
    assert [(failure.index, failure.reason) for failure in found.failures] == [
        (1, "the answer repeats the original"),
        (3, "the answer is refused: it holds no letters"),
    ]
    # Only what failed is asked again.
    chat.reply = lambda prompt: "Nun doch."
    found = translate(articles, source="en", target="de", by=ENDPOINT, cache=cache)
    assert found.texts == ("Artikel 0.", "Nun doch.", "Artikel 2.", "Nun doch.")
    assert found.failures == ()
    assert len(chat.prompts) == 6


def test_variants_of_a_text_stand_together_and_ask_for_different_things(chat, cache):
    chat.reply = lambda prompt: f"Version {len(chat.prompts)}, ganz anders."
    found = paraphrase(
        ["Erstens.", "Zweitens."], language="de", by=ENDPOINT, num_variants=20, cache=cache
    )
    assert len(found.texts) == 40
    assert found.failures == ()
    for index, article in enumerate(("Erstens.", "Zweitens.")):
        prompts = chat.prompts[20 * index : 20 * index + 20]
        assert len(set(prompts)) == 20
        assert all(f"<text>\n{article}\n</text>" in prompt for prompt in prompts)
        assert all("It is in German (Deutsch)" in prompt for prompt in prompts)
        texts = found.texts[20 * index : 20 * index + 20]
        assert texts == tuple(
            f"Version {20 * index + variant + 1}, ganz anders." for variant in range(20)
        )


def test_more_variants_ask_only_for_what_is_new(chat, cache):
    chat.reply = lambda prompt: f"Version {len(chat.prompts)}."
    few = paraphrase(["Ein Text."], language="de", by=ENDPOINT, num_variants=2, cache=cache)
    more = paraphrase(["Ein Text."], language="de", by=ENDPOINT, num_variants=5, cache=cache)
    assert more.texts[:2] == few.texts
    assert len(chat.prompts) == 5


def test_a_repetition_of_the_original_or_of_a_variant_is_a_failure(chat, cache):
    answers = iter(["Neu.", "Ein  Text.", "Neu.", "Anders.", "Neu.", "Neu.", "Neu."])
    chat.reply = lambda prompt: next(answers)
    found = paraphrase(
        ["Ein Text.", "Noch einer."], language="de", by=ENDPOINT, num_variants=3, cache=cache
    )
    assert found.texts == ("Neu.", None, None, "Anders.", "Neu.", None)
    assert [(failure.index, failure.variant, failure.reason) for failure in found.failures] == [
        (0, 1, "the answer repeats the original"),
        (0, 2, "the answer is the same as variant 0; raise the temperature"),
        (1, 2, "the answer is the same as variant 1; raise the temperature"),
    ]


@pytest.mark.parametrize(
    "prompt",
    [
        rewriting._TRANSLATE.format(source="s", target="t", text="x"),
        rewriting._PARAPHRASE.format(language="l", manner="m", text="x"),
    ],
)
def test_prompts_ask_for_every_claim_and_nothing_else(prompt):
    for words in ("figure", "date", "however wrong", "Correct nothing", "add nothing", "alone"):
        assert words in prompt


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"texts": []}, "no texts: give at least one"),
        ({"texts": ["a", " \n"]}, "text 1: 'text' is empty"),
        ({"texts": ["a \ud83d"]}, "text 0: 'text' holds half of a surrogate pair"),
        ({"source": "xx"}, "unknown language 'xx'; valid: en, de"),
        ({"target": "xx"}, "unknown language 'xx'"),
        ({"target": "en"}, "source and target are both 'en'; give two languages"),
    ],
)
def test_what_cannot_be_translated_is_refused_before_anything_is_asked(chat, cache, change, said):
    settings = {"texts": ["a"], "source": "en", "target": "de"} | change
    with pytest.raises(ValueError, match=re.escape(said)):
        translate(settings.pop("texts"), by=ENDPOINT, cache=cache, **settings)
    assert chat.prompts == []


def test_no_variants_are_refused(chat, cache):
    with pytest.raises(ValueError, match="num_variants must be at least 1, not 0"):
        paraphrase(["a"], language="en", by=ENDPOINT, num_variants=0, cache=cache)


# Scripts.

NEWS = {
    "en": "The mayor of Lima opened a bridge on 3 May.",
    "de": "Die Bürgermeisterin von Lima weihte am 3. Mai eine Brücke ein.",
    "fr": "L'élue de Lima a inauguré un pont le 3 mai.",
    "es": "La alcaldesa de Lima inauguró un puente el 3 de mayo.",
    "zh": "利马市长于5月3日为一座桥梁揭幕。",
    "ru": "Мэр Лимы открыла мост 3 мая.",
    "ja": "リマの市長は5月3日に橋の開通式を行った。",
    "ar": "افتتحت عمدة ليما جسراً في 3 مايو.",
    "hi": "लीमा की महापौर ने 3 मई को एक पुल का उद्घाटन किया।",
    "ur": "لیما کی میئر نے 3 مئی کو ایک پل کا افتتاح کیا۔",
}
SCRIPT_FAMILY = {code: entry.script for code, entry in LANGUAGES.items()}


@pytest.mark.parametrize("code", LANGUAGES)
def test_every_registered_language_has_a_script_that_is_recognised(code):
    assert check_script(LANGUAGES[code].own_name, code) is None
    with_name = f"{NEWS.get(code, LANGUAGES[code].own_name)} 2026, 40 %!"
    assert check_script(with_name, code) is None


@pytest.mark.parametrize("code", NEWS)
@pytest.mark.parametrize("other", NEWS)
def test_a_text_in_another_script_is_refused(code, other):
    refused = check_script(NEWS[other], code) is not None
    # A short text in Chinese characters alone can be Japanese.
    same = SCRIPT_FAMILY[code] == SCRIPT_FAMILY[other] or (code, other) == ("ja", "zh")
    assert refused is not same


@pytest.mark.parametrize(
    ("text", "code", "reason"),
    [
        # Words count, not letters: three of five, two of four.
        ("да да да Massachusetts Philadelphia", "ru", None),
        ("да да Massachusetts Philadelphia", "ru", "only 50% of its words"),
        ("Ты Massachusetts", "ru", "only 50% of its words"),
        # Every Chinese character counts: 4 of 6.
        ("他在Harvard与Yale学", "zh", None),
        ("Harvard, Yale 学", "zh", "only 33% of its words"),
        ("12 – 30 %", "de", "it holds no letters"),
        ("学" * MAX_WITHOUT_KANA, "ja", None),
        ("学" * (MAX_WITHOUT_KANA + 1), "ja", "it is in Chinese characters alone"),
        ("学" * MAX_WITHOUT_KANA + "の", "ja", None),
        # Joiners and vowel signs do not divide a word: one of two is too few.
        ("می\u200cخواهم Yale Lima", "ar", "only 33% of its words"),
        ("कि\u094d\u200dष Yale Lima", "hi", "only 33% of its words"),
        ("ＡＢＣ ﬁne", "en", None),
        ("人々", "zh", None),
    ],
)
def test_the_share_of_words_by_hand(text, code, reason):
    found = check_script(text, code)
    assert found is None if reason is None else str(found).startswith(reason)


@given(st.text())
def test_any_text_has_a_verdict_and_digits_change_nothing(text):
    verdict = check_script(text, "ru")
    assert verdict == check_script(f"12 {text} 34.", "ru")
    assert verdict is None or check_script("да " * (2 * len(text) + 1) + text, "ru") is None


def test_an_unknown_script_is_refused(monkeypatch):
    made = SimpleNamespace(script="Cher", name="Cherokee")
    monkeypatch.setattr("interp.data.writing_systems.get_language", lambda code: made)
    with pytest.raises(ValueError, match="the script 'Cher' of the language 'chr' cannot be recog"):
        check_script("ᏣᎳᎩ", "chr")


# Models on this machine.

LETTERS = "▁abcdefghijklmnopqrstuvwxyz."
VOCAB = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3} | {
    letter: index for index, letter in enumerate(LETTERS, start=4)
}
NLLB = ["eng_Latn", "deu_Latn", "fra_Latn", "zho_Hans", "zho_Hant", "pes_Arab"]
CONTEXT = 30
PARAGRAPHS = "ein haus.\n\nam see\n \nder hund bellt laut.\nein haus.\nx\nzu zweit am teich im mai"


def tiny(vocab_size):
    """A random M2M-100 whose translations differ, have letters only, and end after a few."""
    torch.manual_seed(15)
    model = M2M100ForConditionalGeneration(
        M2M100Config(
            vocab_size=vocab_size,
            d_model=16,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=24,
            decoder_ffn_dim=24,
            max_position_embeddings=CONTEXT,
            pad_token_id=1,
            bos_token_id=0,
            eos_token_id=2,
            decoder_start_token_id=2,
            init_std=0.8,
            tie_word_embeddings=False,
            scale_embedding=False,
        )
    )
    unembed = model.lm_head.weight.data
    unembed[[0, 1, 3, *range(4 + len(LETTERS), vocab_size)]] = 0
    unembed[2] *= 1.5
    # As the Hub's checkpoints have it: a limit of their own, which must not count.
    model.generation_config.max_length = 4
    model.generation_config.forced_eos_token_id = 2
    return model.eval()


@pytest.fixture(scope="module")
def nllb(tmp_path_factory):
    directory = tmp_path_factory.mktemp("nllb")
    tokenizer = NllbTokenizer(vocab=VOCAB, merges=[], extra_special_tokens=NLLB)
    tokenizer.save_pretrained(directory)
    tiny(len(tokenizer)).save_pretrained(directory)
    return directory


@pytest.fixture
def seen(monkeypatch):
    """The keyword arguments of every call of `generate`."""
    calls = []
    generate = M2M100ForConditionalGeneration.generate

    def watched(model, **settings):
        generated = generate(model, **settings)
        calls.append((settings, generated.tolist()))
        return generated

    monkeypatch.setattr(M2M100ForConditionalGeneration, "generate", watched)
    return calls


def by(directory, **settings):
    return LocalTranslator(model=str(directory), **({"max_new_tokens": 80} | settings))


def reference(directory, paragraph, *, source, target, num_beams):
    """One paragraph, by the models' own documentation, alone and without padding."""
    tokenizer = NllbTokenizer.from_pretrained(directory)
    model = M2M100ForConditionalGeneration.from_pretrained(directory).eval()
    tokenizer.src_lang = source
    generated = model.generate(
        **tokenizer(paragraph, return_tensors="pt"),
        forced_bos_token_id=tokenizer.convert_tokens_to_ids(target),
        max_length=200,
        forced_eos_token_id=None,
        num_beams=num_beams,
    )
    assert generated[0, 1] == tokenizer.convert_tokens_to_ids(target)
    return tokenizer.batch_decode(generated, skip_special_tokens=True)[0].strip()


@pytest.mark.parametrize("num_beams", [1, 3])
def test_batches_translate_as_one_at_a_time_does_and_as_documented(nllb, tmp_path, num_beams):
    pieces = re.split(r"(\s*\n\s*)", PARAGRAPHS)
    expected = [
        reference(nllb, piece, source="deu_Latn", target="fra_Latn", num_beams=num_beams)
        for piece in pieces[::2]
    ]
    # The model answers different paragraphs differently, or this would show nothing.
    assert len(set(expected)) == 5
    pieces[::2] = expected
    for batch_size in (1, 2, 8):
        found = translate_locally(
            ["x", PARAGRAPHS],
            by(nllb, batch_size=batch_size, num_beams=num_beams),
            source="de",
            target="fr",
            cache=tmp_path / f"{batch_size}.jsonl",
        )
        assert found == [Completion(text=expected[4]), Completion(text="".join(pieces))]


def test_the_source_is_marked_and_the_target_is_forced(nllb, seen, cache):
    ids = {name: VOCAB["."] + 2 + index for index, name in enumerate(NLLB)}
    for source, target in (("de", "fr"), ("fr", "zh"), ("zh-Hant", "fa")):
        translate_locally(["am see"], by(nllb), source=source, target=target, cache=cache)
    names = [("deu_Latn", "fra_Latn"), ("fra_Latn", "zho_Hans"), ("zho_Hant", "pes_Arab")]
    for (settings, generated), (source, target) in zip(seen, names, strict=True):
        letters = [VOCAB[letter] for letter in "▁am▁see"]
        assert settings["input_ids"].tolist() == [[ids[source], *letters, 2]]
        assert settings["forced_bos_token_id"] == ids[target]
        assert [row[:2] for row in generated] == [[2, ids[target]]]


def test_batches_are_sorted_by_length_and_equal_paragraphs_translated_once(nllb, seen, cache):
    translate_locally(
        [PARAGRAPHS, "x"], by(nllb, batch_size=2), source="de", target="fr", cache=cache
    )
    # Language, word mark, letters and end; "ein haus." stands twice, and so does "x".
    assert [settings["attention_mask"].sum(1).tolist() for settings, _ in seen] == [
        [27, 23],
        [12, 9],
        [4],
    ]


def test_a_second_run_translates_only_what_is_missing(nllb, seen, cache):
    settings = {"source": "de", "target": "fr", "cache": cache}
    first = translate_locally(["ein haus.\nam see"], by(nllb), **settings)
    assert translate_locally(["ein haus.\nam see"], by(nllb), **settings) == first
    assert len(seen) == 1
    # The last line is cut off, as a killed run leaves it: the other is kept.
    cache.write_bytes(cache.read_bytes()[:-3])
    assert translate_locally(["ein haus.\nam see"], by(nllb), **settings) == first
    assert [len(generated) for _, generated in seen] == [2, 1]


@pytest.mark.parametrize(
    ("change", "calls"),
    [
        ({"batch_size": 3, "device": "cpu"}, 0),
        ({"num_beams": 2}, 1),
        ({"max_new_tokens": 79}, 1),
        ({"dtype": "bfloat16"}, 1),
    ],
)
def test_what_determines_a_translation(nllb, seen, cache, change, calls):
    translate_locally(["am see"], by(nllb), source="de", target="fr", cache=cache)
    del seen[:]
    translate_locally(["am see"], by(nllb, **change), source="de", target="fr", cache=cache)
    assert len(seen) == calls


def test_another_model_at_the_same_place_translates_anew(nllb, seen, cache, tmp_path):
    directory = copytree(nllb, tmp_path / "model")
    for _ in range(2):
        translate_locally(["am see"], by(directory), source="de", target="fr", cache=cache)
        assert len(seen) == 1
    model = M2M100ForConditionalGeneration.from_pretrained(directory)
    model.lm_head.weight.data[5] += 1
    model.save_pretrained(directory)
    translate_locally(["am see"], by(directory), source="de", target="fr", cache=cache)
    assert len(seen) == 2


def test_what_is_too_long_or_cut_off_is_a_failure_and_not_kept(nllb, cache):
    length = len(reference(nllb, "x", source="deu_Latn", target="fra_Latn", num_beams=1))
    fits, long = "a" * (CONTEXT - 3), "a" * (CONTEXT - 2)
    settings = {"source": "de", "target": "fr", "cache": cache}
    found = translate_locally([fits, f"x\n{long}", "x"], by(nllb, num_beams=1), **settings)
    assert [completion.text is None for completion in found] == [False, True, False]
    assert found[1].reason == (
        f"a paragraph has {CONTEXT + 1} tokens, and the model reads at most {CONTEXT}; divide it "
        "with line breaks"
    )
    assert len(cache.read_text().splitlines()) == 2
    assert length > 3
    (found,) = translate_locally(["x"], by(nllb, num_beams=1, max_new_tokens=3), **settings)
    assert found == Completion(
        reason="the translation of a paragraph was cut off at 3 tokens; raise max_new_tokens"
    )
    assert len(cache.read_text().splitlines()) == 2


def test_the_limit_counts_the_end_but_not_the_language(nllb, seen, cache):
    settings = {"source": "de", "target": "fr", "cache": cache}
    translate_locally(["x"], by(nllb, num_beams=1), **settings)
    ((_, (row,)),) = seen
    # Start and language are no tokens of the translation.
    for limit, is_cut in ((len(row) - 2, False), (len(row) - 3, True)):
        limited = by(nllb, num_beams=1, max_new_tokens=limit)
        (found,) = translate_locally(["x"], limited, **settings)
        assert (found.text is None) is is_cut


def test_translations_are_checked_like_answers(nllb, cache, monkeypatch):
    found = translate(["am see", "x"], source="de", target="fr", by=by(nllb), cache=cache)
    assert None not in found.texts
    found = translate(["am see", "x"], source="de", target="zh", by=by(nllb), cache=cache)
    assert found.texts == (None, None)
    assert Counter(failure.language for failure in found.failures) == {"zh": 2}
    assert "in the script of Chinese (Hans)" in found.failures[0].reason
    monkeypatch.setattr(
        rewriting, "translate_locally", lambda texts, *_, **__: [Completion(text=t) for t in texts]
    )
    found = translate(["am see"], source="de", target="fr", by=by(nllb), cache=cache)
    assert found.failures[0].reason == "the answer repeats the original"


@pytest.mark.parametrize(("source", "target", "bad"), [("ur", "fr", "ur"), ("de", "ru", "ru")])
def test_a_language_that_the_model_does_not_know(nllb, cache, source, target, bad):
    said = f"does not know the language '{bad}'; it knows de, en, fa, fr, zh, zh-Hant"
    with pytest.raises(ValueError, match=said):
        translate(["a"], source=source, target=target, by=by(nllb), cache=cache)


class Characters:
    """The tokenizer model of M2M-100, in place of the package sentencepiece: characters."""

    def __init__(self, **_settings):
        pass

    def Load(self, _path):
        pass

    def encode(self, text, out_type):
        assert out_type is str
        return list(text.replace(" ", "▁"))

    def decode(self, pieces):
        return "".join(pieces).replace("▁", " ")


def test_m2m100_has_names_and_ids_of_its_own(cache, tmp_path, monkeypatch, seen):
    stub = SimpleNamespace(SentencePieceProcessor=Characters)
    monkeypatch.setitem(sys.modules, "sentencepiece", stub)
    module = "transformers.models.m2m_100.tokenization_m2m_100"
    sys.modules.pop(module, None)
    tokenization = import_module(module)
    # Whoever comes next gets the real one.
    del sys.modules[module]
    (tmp_path / "vocab.json").write_text(json.dumps(VOCAB))
    tokenizer = tokenization.M2M100Tokenizer(str(tmp_path / "vocab.json"), "none.model")
    # The languages follow the vocabulary, in the order of the class's list.
    names = tokenization.FAIRSEQ_LANGUAGE_CODES["m2m100"]
    german, french = (len(VOCAB) + names.index(name) for name in ("de", "fr"))
    model = tiny(len(VOCAB) + len(names) + 8)
    monkeypatch.setattr(translator, "_load_translator", lambda *_: (model, tokenizer))
    model.generation_config.max_length = model.generation_config.forced_eos_token_id = None
    translate_locally(["am see\nx"], by(tmp_path), source="de", target="fr", cache=cache)
    ((settings, generated),) = seen
    assert settings["input_ids"].tolist() == [
        [german, *(VOCAB[letter] for letter in "am▁see"), 2],
        [german, VOCAB["x"], 2, *[1] * 5],
    ]
    assert [row[:2] for row in generated] == [[2, french]] * 2
    with pytest.raises(ValueError, match="does not know the language 'zh-Hant'; it knows af, am,"):
        translate_locally(["x"], by(tmp_path), source="de", target="zh-Hant", cache=cache)


def test_what_is_no_translation_model_is_refused(nllb, cache, tmp_path):
    def refused(directory):
        with pytest.raises(ValueError, match="cannot translate") as caught:
            translate_locally(["a"], by(directory), source="de", target="fr", cache=cache)
        return str(caught.value)

    def copy(name, **config):
        directory = copytree(nllb, tmp_path / name)
        file = directory / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | config))
        return directory

    assert "it holds a 'bart' model, not NLLB-200 or M2M-100" in refused(
        copy("bart", model_type="bart")
    )
    assert "it lacks weights, the first" in refused(copy("deeper", decoder_layers=3))
    weightless = copy("weightless")
    (weightless / "model.safetensors").unlink()
    refused(weightless)
    with pytest.raises(ValueError, match="does not exist"):
        translate_locally(["a"], by(tmp_path / "no"), source="de", target="fr", cache=cache)
    with pytest.raises(ValueError, match="device 'cuda:77' cannot be used here"):
        translate_locally(["a"], by(nllb, device="cuda:77"), source="de", target="fr", cache=cache)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, not 0"),
        ({"num_beams": 0}, "num_beams must be at least 1, not 0"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, not 0"),
        ({"dtype": "int8"}, "dtype 'int8' is not one of float32, bfloat16, float16"),
    ],
)
def test_a_translator_that_cannot_be(change, said):
    with pytest.raises(ValueError, match=said):
        replace(LocalTranslator(model="m"), **change)
