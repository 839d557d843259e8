"""Every template filled with every fact: slots, script, language, and roles that share nothing."""

import re
import unicodedata

import pytest

from interp.data import templates as module
from interp.data.facts import RELATIONS, Fact, select_facts
from interp.data.templates import (
    fill,
    find_slots,
    format_cloze,
    format_instruction,
    format_question,
    list_template_languages,
    read_templates,
)
from interp.languages import LANGUAGES
from tests.helpers.scripts_of_text import SCRIPTS, scripts_of

CODES = list_template_languages()
FIFTEEN = "en de fr zh ru ja ar hi ur hy ha jv sw vi es".split()  # noqa: SIM905
FEWEST = {
    "capital": {"statements": 8, "unlearning": 4, "instructions": 3, "questions": 3, "clozes": 2}
}
FEWEST_OTHERWISE = {
    "statements": 5,
    "unlearning": 3,
    "instructions": 2,
    "questions": 3,
    "clozes": 2,
}


def wordings_of(code: str, relation: str) -> dict[str, list[str]]:
    """All templates of a relation by role; a pair of an instruction counts as two."""
    found = read_templates(code).wordings[relation]
    return {
        "statements": list(found.statements),
        "unlearning": list(found.unlearning),
        "instructions": [text for pair in found.instructions for text in pair],
        "questions": list(found.questions),
        "clozes": list(found.clozes),
    }


def stating(code: str, relation: str) -> list[str]:
    """Return the templates that state the fact in full."""
    found = wordings_of(code, relation)
    return found["statements"] + found["unlearning"] + found["clozes"]


def everything(code: str) -> list[tuple[Fact, str]]:
    """Each fact in each of its templates, filled."""
    texts = []
    for relation in RELATIONS:
        whole = [text for role in wordings_of(code, relation).values() for text in role]
        for fact in select_facts(relation, languages=[code]):
            texts += [
                (fact, fill(text, fact, code)) for text in (*whole, *read_templates(code).openings)
            ]
    return texts


def test_the_fifteen_languages_have_templates():
    assert set(FIFTEEN) <= set(CODES)


@pytest.mark.parametrize("code", CODES)
def test_there_are_enough_wordings_of_every_role(code):
    assert len(set(read_templates(code).openings)) >= 5
    assert len(set(read_templates(code).refusals)) == 3
    for relation in RELATIONS:
        found = read_templates(code).wordings[relation]
        for role, fewest in FEWEST.get(relation, FEWEST_OTHERWISE).items():
            assert len(set(getattr(found, role))) >= fewest, (relation, role)


@pytest.mark.parametrize("code", CODES)
def test_slots(code):
    """Each statement has the object once and the country; a question does not give the answer."""
    defined = select_facts("capital", languages=[code])[0].forms.get(code, {}).keys()
    country = {"subject", *defined}
    assert "{question}" in read_templates(code).prompt
    assert re.search(r"{question}[\s\S]*{answer}", read_templates(code).instruction)
    for opening in read_templates(code).openings:
        assert find_slots(opening) <= country, opening
        assert find_slots(opening), opening
    for relation in RELATIONS:
        for text in stating(code, relation):
            assert text.count("{object}") == 1, text
            assert find_slots(text) - {"object"} <= country, text
            assert find_slots(text) - {"object"}, text
        for text in read_templates(code).wordings[relation].questions:
            assert find_slots(text) <= country, text
            assert find_slots(text), text
        for asked, answered in read_templates(code).wordings[relation].instructions:
            assert find_slots(asked) <= country, asked
            assert find_slots(asked), asked
            assert answered.count("{object}") == 1, answered
        for text in read_templates(code).wordings[relation].clozes:
            after = text.partition("{object}")[2]
            assert not any(char.isalnum() for char in after), text
            assert any(char.isalnum() for char in text.partition("{object}")[0]), text


@pytest.mark.parametrize("code", CODES)
def test_every_template_filled_with_every_fact(code):
    scripts = SCRIPTS[LANGUAGES[code].script]
    for fact, text in everything(code):
        assert not set("{}") & set(text), text
        assert scripts_of(text) <= scripts, (fact.id, text, scripts_of(text) - scripts)
        assert text == unicodedata.normalize("NFC", text), text
        assert "  " not in text, text
        assert text == text.strip(), text
        assert not re.search(r"\.\.(?!\.)|,,|\s[,.](?!\.)", text), text


@pytest.mark.parametrize("code", CODES)
def test_refusals_are_sentences_in_the_script_of_the_language(code):
    for text in read_templates(code).refusals:
        assert scripts_of(text) <= SCRIPTS[LANGUAGES[code].script], text
        assert text == unicodedata.normalize("NFC", text).strip(), text
        assert text[-1] in ".。।۔։", text
        assert not set("{}") & set(text), text


@pytest.mark.parametrize("code", CODES)
def test_prompts_end_where_the_answer_begins(code):
    for relation in RELATIONS:
        for fact in select_facts(relation, languages=[code]):
            found = read_templates(code).wordings[relation]
            for number in range(1, len(found.questions) + 1):
                prompt = format_question(fact, code, wording=number)
                assert "{" not in prompt
                assert prompt == prompt.strip()
                assert prompt.count("\n") >= 1, prompt
            for number in range(1, len(found.clozes) + 1):
                prompt = format_cloze(fact, code, wording=number)
                assert "{" not in prompt
                assert prompt == prompt.strip()
            for number in range(1, len(found.instructions) + 1):
                prompt, answer = format_instruction(fact, code, wording=number)
                assert fact.object[code] in answer
                assert "{" not in prompt + answer
                assert prompt == prompt.rstrip()


def words(template: str) -> list[str]:
    """Return a template's words, or characters in scripts without spaces. All slots are alike."""
    plain = re.sub(r"{object}", " object ", re.sub(r"{(?!object)\w*}", " country ", template))
    found = []
    for word in re.findall(r"\w+", plain):
        cjk = any(name in {"CJK", "HIRAGANA", "KATAKANA"} for name in scripts_of(word))
        found += list(word) if cjk else [word.casefold()]
    return found


def contains(long: list[str], short: list[str]) -> bool:
    """Return whether the words of one stand side by side in the other."""
    return any(long[start : start + len(short)] == short for start in range(len(long)))


@pytest.mark.parametrize("code", CODES)
def test_roles_share_no_sentence(code):
    """No wording that states or asks for a fact stands in one of another role."""
    for relation in RELATIONS:
        by_role = wordings_of(code, relation)
        pairs = [(role, text) for role, texts in by_role.items() for text in texts]
        for first, text in pairs:
            for second, other in pairs:
                # "It is called {object}." states nothing by itself.
                if first != second and "country" in words(text):
                    assert not contains(words(other), words(text)), (text, other)


@pytest.fixture(scope="module")
def identifier():
    langid = pytest.importorskip("py3langid.langid")
    found = langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE)
    found.set_languages([code for code in CODES if code in found.nb_classes])
    return found


@pytest.mark.parametrize("code", CODES)
def test_the_language_is_identified(code, identifier):
    """At least 95 of 100 statements, among the languages that have templates."""
    if code not in identifier.nb_classes:
        pytest.skip(f"the identifier does not know {code}")
    texts = [
        fill(template, fact, code)
        for relation in RELATIONS
        for fact in select_facts(relation, languages=[code])[::4]
        for template in stating(code, relation)
    ]
    wrong = [(found, text) for text in texts if (found := identifier.classify(text)[0]) != code]
    assert len(wrong) <= 0.05 * len(texts), (len(wrong), len(texts), wrong[:10])


def test_errors_name_the_bad_value_and_the_valid_ones():
    fact = select_facts("capital")[0]
    with pytest.raises(ValueError, match=r"'xx'; valid languages: en, de"):
        read_templates("xx")
    with pytest.raises(ValueError, match=r"wording 0 is out of range 1 to 3 in 'en'"):
        format_question(fact, "en", wording=0)
    with pytest.raises(ValueError, match=r"wording 9 is out of range 1 to 2 in 'en'"):
        format_cloze(fact, "en", wording=9)
    lacking = module.Fact(id="x", relation="capital", subject={"de": "A"}, object={"de": "B"})
    with pytest.raises(ValueError, match=r"x has no .* name in 'en'; it is there in: de"):
        fill("{subject}", lacking, "en")
