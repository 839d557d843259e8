"""Language registry: spot values from reference works, papers' selections, scripts and shares."""

import unicodedata
from dataclasses import FrozenInstanceError, fields

import pytest

from interp.languages import (
    CHOI_LANGUAGES,
    LANGUAGES,
    LU_LANGUAGES,
    LU_TWENTY,
    TIER_SOURCE,
    WEB_SHARE_SOURCE,
    Language,
    get_language,
)

# First words of the Unicode names of a script's letters, by ISO 15924 code.
LETTERS = {
    "Arab": {"ARABIC"},
    "Armn": {"ARMENIAN"},
    "Beng": {"BENGALI"},
    "Cyrl": {"CYRILLIC"},
    "Deva": {"DEVANAGARI"},
    "Ethi": {"ETHIOPIC"},
    "Grek": {"GREEK"},
    "Hans": {"CJK"},
    "Hant": {"CJK"},
    "Hebr": {"HEBREW"},
    "Jpan": {"CJK", "HIRAGANA", "KATAKANA"},
    "Kore": {"HANGUL"},
    "Latn": {"LATIN"},
    "Taml": {"TAMIL"},
    "Telu": {"TELUGU"},
    "Thai": {"THAI"},
}

SPOT_VALUES = [
    ("zh", "Chinese", "中文", "Hans", "Sinitic"),
    ("zh-Hant", "Traditional Chinese", "繁體中文", "Hant", "Sinitic"),
    ("hy", "Armenian", "հայերեն", "Armn", "Armenian"),
    ("ha", "Hausa", "Hausa", "Latn", "Chadic"),
    ("so", "Somali", "Soomaali", "Latn", "Cushitic"),
    ("ti", "Tigrinya", "ትግርኛ", "Ethi", "Semitic"),
    ("he", "Hebrew", "עברית", "Hebr", "Semitic"),
    ("kab", "Kabyle", "Taqbaylit", "Latn", "Berber"),
    ("kam", "Kamba", "Kikamba", "Latn", "Bantu"),
    ("luo", "Luo", "Dholuo", "Latn", "Nilotic"),
    ("dyu", "Dyula", "Julakan", "Latn", "Mande"),
    ("fa", "Persian", "فارسی", "Arab", "Iranian"),
    ("ur", "Urdu", "اردو", "Arab", "Indo-Aryan"),
    ("fur", "Friulian", "furlan", "Latn", "Romance"),
    ("jv", "Javanese", "Basa Jawa", "Latn", "Malayo-Polynesian"),
    ("te", "Telugu", "తెలుగు", "Telu", "Dravidian"),
    ("vi", "Vietnamese", "Tiếng Việt", "Latn", "Austroasiatic"),
    ("eu", "Basque", "euskara", "Latn", "Basque"),
    ("ko", "Korean", "한국어", "Kore", "Koreanic"),
]

# Public sentence pairs in thousands, as NLLB counts them (the file that TIER_SOURCE names).
PAIRS = """
en 161186 de 45488 fr 53244 zh 16221 ru 49520 ja 3815 ar 43135 hi 1403 ur 220 es 68479 jv 72 ha 527
hy 186 nl 60690 zh-Hant 1090 uk 2115 ms 1251 so 63 el 55543 pt 58097 it 73875 sv 20107 bn 1093
pl 55246 ti 159 kam 68 luo 223 ay 69 awa 8 bho 6 dyu 77 fur 6 kab 79 ln 802 vi 4642 eu 1003 te 227
sw 2176 ca 1073 id 8362 ko 3442 tr 58268 fa 5073 yo 559 th 4932 ta 608 he 25508 ro 56172 cs 46102
da 21655 fi 36938 hu 38008
"""

# Pages of CC-MAIN-2024-42 (the file that WEB_SHARE_SOURCE names).
PAGES = """
en 1083513299 de 132338944 fr 109687926 zh 120090598 ru 150820146 ja 125805829 ar 16741132
hi 5211550 ur 763665 es 113249321 jv 55212 ha 68262 hy 849092 nl 45275645 uk 15063301 ms 1963309
so 124950 el 14293044 pt 57754152 it 63082635 sv 16590009 bn 2959065 pl 45076434 ti 17881 ay 2268
ln 7514 vi 26084993 eu 999461 te 548086 sw 240410 ca 5202242 id 28033891 ko 18435212 tr 30995273
fa 17594396 yo 24547 th 10158510 ta 1179123 he 6169483 ro 14916026 cs 26523613 da 11578641
fi 8593516 hu 14096256
"""


def counts_of(table):
    """Parse a table of codes and counts."""
    words = table.split()
    return dict(zip(words[::2], map(int, words[1::2]), strict=True))


def scripts_of(text):
    """First words of the Unicode names of all letters and marks: their scripts."""
    letters = (char for char in text if unicodedata.category(char)[0] in "LM")
    return {unicodedata.name(char).split()[0] for char in letters}


@pytest.mark.parametrize(("code", "name", "own_name", "script", "family"), SPOT_VALUES)
def test_names_scripts_and_branches_are_those_of_a_handbook(code, name, own_name, script, family):
    entry = get_language(code)
    assert (entry.name, entry.own_name) == (name, own_name)
    assert (entry.script, entry.family) == (script, family)


def test_the_registry_is_fixed_in_order_and_content():
    assert list(LANGUAGES)[:10] == ["en", "de", "fr", "zh", "ru", "ja", "ar", "hi", "ur", "es"]
    assert all(entry.code == code for code, entry in LANGUAGES.items())
    for field in ("name", "own_name"):
        values = [getattr(entry, field) for entry in LANGUAGES.values()]
        assert len(set(values)) == len(values) == 52
    with pytest.raises(TypeError):
        LANGUAGES["en"] = get_language("de")  # pyright: ignore[reportIndexIssue]
    with pytest.raises(FrozenInstanceError):
        get_language("en").name = "other"  # pyright: ignore[reportAttributeAccessIssue]
    assert all(field.kw_only for field in fields(Language))


def test_an_unknown_code_is_refused_with_the_valid_ones():
    with pytest.raises(ValueError, match=r"'xx'; valid: en, de, fr, .*, hu$"):
        get_language("xx")


@pytest.mark.parametrize("code", LANGUAGES)
def test_an_own_name_is_written_in_the_language_s_script(code):
    entry = get_language(code)
    assert scripts_of(entry.own_name) <= LETTERS[entry.script]
    assert all(char == " " or unicodedata.category(char)[0] in "LM" for char in entry.own_name)
    assert entry.own_name == unicodedata.normalize("NFC", entry.own_name)


def test_arabic_and_hebrew_script_run_from_right_to_left():
    for entry in LANGUAGES.values():
        assert entry.right_to_left == (entry.script in {"Arab", "Hebr"})
        first = next(char for char in entry.own_name if unicodedata.category(char)[0] == "L")
        assert entry.right_to_left == (unicodedata.bidirectional(first) in {"R", "AL"})
    assert [code for code in LANGUAGES if get_language(code).right_to_left] == [
        "ar",
        "ur",
        "fa",
        "he",
    ]


def test_selections_are_those_of_the_papers():
    assert " ".join(LU_LANGUAGES) == "en de fr zh ru jv ur ha hy"
    assert " ".join(LU_TWENTY) == (
        "es pt ja it nl sv ar hi bn pl ti kam luo ay awa bho dyu fur kab ln"
    )
    assert not set(LU_TWENTY) & set(LU_LANGUAGES)
    flores = "en fr es zh ar vi eu ur te sw".split()  # noqa: SIM905
    bmlama = "ar bn ca en es eu fr hi id pt ur vi".split()  # noqa: SIM905
    assert set(CHOI_LANGUAGES) == {*flores, *bmlama}
    assert list(CHOI_LANGUAGES[:10]) == flores
    for selection in (LU_LANGUAGES, LU_TWENTY, CHOI_LANGUAGES):
        assert len(set(selection)) == len(selection)
        assert set(selection) <= set(LANGUAGES)


def test_relatives_are_those_of_lu_and_koehn():
    pairs = "de-nl fr-es zh-zh-Hant ru-uk jv-ms ur-hi ha-so hy-el"
    relatives = {code: entry.relative for code, entry in LANGUAGES.items() if entry.relative}
    assert " ".join(f"{code}-{relatives[code]}" for code in LU_LANGUAGES[1:]) == pairs
    assert set(relatives) == set(LU_LANGUAGES) - {"en"}
    # Related only at a distance: both Afro-Asiatic, both Indo-European.
    distant = {"ha", "hy"}
    for code, relative in relatives.items():
        assert (get_language(code).family == get_language(relative).family) == (code not in distant)


def test_tiers_follow_nllb_s_counts_and_agree_with_lu():
    counts = counts_of(PAIRS)
    assert list(counts) == list(LANGUAGES)
    tiers = {code: entry.tier for code, entry in LANGUAGES.items()}
    assert tiers == {code: "high" if n >= 1000 else "low" for code, n in counts.items()}
    assert [tiers[code] for code in LU_LANGUAGES] == ["high"] * 5 + ["low"] * 4
    assert [tiers[code] for code in LU_TWENTY] == ["high"] * 10 + ["low"] * 10
    assert "NLLB Team 2022" in TIER_SOURCE


def test_web_shares_are_positive_parts_of_one_crawl():
    shares = {code: entry.web_share for code, entry in LANGUAGES.items()}
    missing = [code for code, share in shares.items() if share is None]
    assert " ".join(missing) == "zh-Hant kam luo awa bho dyu fur kab"
    listed = [share for share in shares.values() if share is not None]
    assert min(listed) > 0
    assert max(listed) == shares["en"] == 43.4241
    assert 90 < sum(listed) < 100
    assert "CC-MAIN-2024-42" in WEB_SHARE_SOURCE


def test_web_shares_are_in_proportion_to_the_pages():
    pages = counts_of(PAGES)
    shares = {code: entry.web_share for code, entry in LANGUAGES.items() if entry.web_share}
    expected = {code: 43.4241 * count / pages["en"] for code, count in pages.items()}
    assert shares == pytest.approx(expected, abs=6e-5)


# Where CLDR's name is not the one that the papers or the speakers use.
OTHER_NAMES = {"bn": "Bangla"}
OTHER_OWN_NAMES = {"jv": "Jawa", "ms": "Melayu", "id": "Indonesia"}
NO_OWN_NAME = {"ay", "awa", "dyu"}


def test_names_and_scripts_are_those_of_cldr():
    core = pytest.importorskip("babel.core", reason="babel is not installed (extra `facts`)")
    english = core.Locale("en").languages
    likely = core.get_global("likely_subtags")
    without = set()
    for code, entry in LANGUAGES.items():
        tag = code.replace("-", "_")
        assert OTHER_NAMES.get(code, entry.name) == english[tag]
        script = "Hans" if code == "zh" else tag.partition("_")[2] or likely[tag].split("_")[1]
        assert entry.script == script, code
        try:
            locale = core.Locale.parse(tag)
        except core.UnknownLocaleError:
            without.add(code)
            continue
        assert OTHER_OWN_NAMES.get(code, entry.own_name) == locale.languages[tag]
        assert entry.right_to_left == (locale.text_direction == "rtl")
    assert without == NO_OWN_NAME
