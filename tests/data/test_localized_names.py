"""Names of one language beside those of all others, worked out by hand."""

import copy

import pytest

from interp.data.localized_names import add_language, add_own_names, normalize_name

CONTENT = {
    "version": 1,
    "names": {
        "country": {"FR": {"en": "France"}, "DE": {"en": "Germany"}},
        "capital": {"FR": {"en": "Paris"}, "DE": {"en": "Berlin"}},
    },
    "aliases": {"capital": {"FR": {"en": ["Paname"]}}},
    "forms": {"en": {"of": {"FR": "of France"}}},
}
TABLE = {
    "country": {"FR": "Francio", "DE": "Germanio"},
    "capital": {"FR": "Parizo", "DE": False},
    "aliases": {"capital": {"FR": ["Paris", "Parizo"], "DE": ["Berlino"]}},
    "form": {"of": {"default": "de {name}", "DE": "de la lando Germanio"}, "in": {"FR": "en F."}},
}


def test_a_language_with_all_its_names():
    before = copy.deepcopy(CONTENT)
    found = add_own_names(CONTENT, "eo", TABLE, "eo.toml")
    assert before == CONTENT
    assert found["version"] == 1
    assert found["names"] == {
        "country": {
            "FR": {"en": "France", "eo": "Francio"},
            "DE": {"en": "Germany", "eo": "Germanio"},
        },
        # No checked name, and so no aliases of it.
        "capital": {"FR": {"en": "Paris", "eo": "Parizo"}, "DE": {"en": "Berlin"}},
    }
    # The name itself is no other spelling of it.
    assert found["aliases"] == {"capital": {"FR": {"en": ["Paname"], "eo": ["Paris"]}}}
    assert found["forms"] == {
        "en": {"of": {"FR": "of France"}},
        "eo": {
            "of": {"FR": "de Francio", "DE": "de la lando Germanio"},
            "in": {"FR": "en F."},
        },
    }


def test_names_come_from_wherever_they_are_known():
    names = {("country", "FR"): "Francio"}
    found = add_language(CONTENT, "eo", {}, lambda kind, key: names.get((kind, key)))
    assert found["names"]["country"]["FR"] == {"en": "France", "eo": "Francio"}
    assert found["names"]["country"]["DE"] == {"en": "Germany"}
    assert found["forms"] == CONTENT["forms"]


def test_names_are_composed_and_without_invisible_characters():
    assert normalize_name("C\u0302ina\u00ad io ") == "Ĉina io"
    assert normalize_name(None) == ""


def test_mistakes_are_named():
    with pytest.raises(
        ValueError, match=r"eo\.toml: unknown kind of names 'river'; valid: country"
    ):
        add_own_names(CONTENT, "eo", {"river": {}}, "eo.toml")
    with pytest.raises(ValueError, match=r"eo\.toml: unknown capital 'XX'; valid: DE, FR"):
        add_own_names(CONTENT, "eo", {"capital": {"XX": "X"}}, "eo.toml")
    with pytest.raises(ValueError, match=r"unknown country 'XX'"):
        add_own_names(CONTENT, "eo", {"aliases": {"country": {"XX": ["X"]}}}, "eo.toml")
