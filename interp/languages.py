"""Language registry of multilingual unlearning research: names, script, branch, resources.

`LANGUAGES` maps BCP-47 codes to `Language`; `LU_LANGUAGES`, `LU_TWENTY` and `CHOI_LANGUAGES` are
the selections of the papers. Chinese is Simplified under `zh`, Traditional under `zh-Hant`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, TypeAlias

Tier: TypeAlias = Literal["high", "low"]

WEB_SHARE_SOURCE = (
    "Common Crawl, Statistics of Monthly Archives, crawl CC-MAIN-2024-42 (October 2024): primary "
    "language of HTML pages by CLD2, https://github.com/commoncrawl/cc-crawl-statistics, "
    "plots/languages.csv"
)
"""Where every `Language.web_share` is from."""

TIER_SOURCE = (
    "NLLB Team 2022, No Language Left Behind, Table 1 (FLORES-200): high with at least one million "
    "public sentence pairs, low with fewer; counts in https://github.com/facebookresearch/fairseq, "
    "commit 26d62ae, examples/nllb/modeling/evaluation/train_example_count/flores200_public.py"
)
"""Rule and source of every `Language.tier`; Lu & Koehn's own tiers agree with it."""


@dataclass(frozen=True, kw_only=True)
class Language:
    """One language of the registry.

    Args:
        code: BCP-47 code, such as `de`.
        name: Its English name.
        own_name: Its name in the language itself.
        script: ISO 15924 code of the script that it is written in, such as `Latn`.
        right_to_left: Whether that script runs from right to left.
        family: Its branch, under the customary name, where handbooks split a large phylum
            (Indo-European, Afro-Asiatic, Niger-Congo, Nilo-Saharan, Austronesian, Sino-Tibetan):
            Germanic, Semitic, Bantu. The whole family elsewhere: Turkic, Dravidian.
        tier: High- or low-resource, by the rule in `TIER_SOURCE`.
        web_share: Percent of web pages in this language, to the four decimals of
            `WEB_SHARE_SOURCE`; a stand-in for its share of pretraining text. None where the source
            does not list it. The source counts both Chinese scripts as one, here under `zh`, and
            Bhojpuri only within Bihari.
        relative: Code of the close relative that Lu & Koehn 2024 unlearn in in its place; only
            their training languages other than English have one.
    """

    code: str
    name: str
    own_name: str
    script: str
    right_to_left: bool = False
    family: str
    tier: Tier
    web_share: float | None = None
    relative: str | None = None


_RIGHT_TO_LEFT = {"Arab", "Hebr"}

_RELATIVES = {
    "de": "nl",
    "fr": "es",
    "zh": "zh-Hant",
    "ru": "uk",
    "jv": "ms",
    "ur": "hi",
    "ha": "so",
    "hy": "el",
}

# code, name, own_name, script, family, tier, web_share
_ROWS: tuple[tuple[str, str, str, str, str, Tier, float | None], ...] = (
    ("en", "English", "English", "Latn", "Germanic", "high", 43.4241),
    ("de", "German", "Deutsch", "Latn", "Germanic", "high", 5.3038),
    ("fr", "French", "français", "Latn", "Romance", "high", 4.3960),
    ("zh", "Chinese", "中文", "Hans", "Sinitic", "high", 4.8129),
    ("ru", "Russian", "русский", "Cyrl", "Slavic", "high", 6.0444),
    ("ja", "Japanese", "日本語", "Jpan", "Japonic", "high", 5.0419),
    ("ar", "Arabic", "العربية", "Arab", "Semitic", "high", 0.6709),
    ("hi", "Hindi", "हिन्दी", "Deva", "Indo-Aryan", "high", 0.2089),
    ("ur", "Urdu", "اردو", "Arab", "Indo-Aryan", "low", 0.0306),
    ("es", "Spanish", "español", "Latn", "Romance", "high", 4.5387),
    ("jv", "Javanese", "Basa Jawa", "Latn", "Malayo-Polynesian", "low", 0.0022),
    ("ha", "Hausa", "Hausa", "Latn", "Chadic", "low", 0.0027),
    ("hy", "Armenian", "հայերեն", "Armn", "Armenian", "low", 0.0340),
    ("nl", "Dutch", "Nederlands", "Latn", "Germanic", "high", 1.8145),
    ("zh-Hant", "Traditional Chinese", "繁體中文", "Hant", "Sinitic", "high", None),
    ("uk", "Ukrainian", "українська", "Cyrl", "Slavic", "high", 0.6037),
    ("ms", "Malay", "Bahasa Melayu", "Latn", "Malayo-Polynesian", "high", 0.0787),
    ("so", "Somali", "Soomaali", "Latn", "Cushitic", "low", 0.0050),
    ("el", "Greek", "Ελληνικά", "Grek", "Hellenic", "high", 0.5728),
    ("pt", "Portuguese", "português", "Latn", "Romance", "high", 2.3146),
    ("it", "Italian", "italiano", "Latn", "Romance", "high", 2.5282),
    ("sv", "Swedish", "svenska", "Latn", "Germanic", "high", 0.6649),
    ("bn", "Bengali", "বাংলা", "Beng", "Indo-Aryan", "high", 0.1186),
    ("pl", "Polish", "polski", "Latn", "Slavic", "high", 1.8065),
    ("ti", "Tigrinya", "ትግርኛ", "Ethi", "Semitic", "low", 0.0007),
    ("kam", "Kamba", "Kikamba", "Latn", "Bantu", "low", None),
    ("luo", "Luo", "Dholuo", "Latn", "Nilotic", "low", None),
    ("ay", "Aymara", "Aymar aru", "Latn", "Aymaran", "low", 0.0001),
    ("awa", "Awadhi", "अवधी", "Deva", "Indo-Aryan", "low", None),
    ("bho", "Bhojpuri", "भोजपुरी", "Deva", "Indo-Aryan", "low", None),
    ("dyu", "Dyula", "Julakan", "Latn", "Mande", "low", None),
    ("fur", "Friulian", "furlan", "Latn", "Romance", "low", None),
    ("kab", "Kabyle", "Taqbaylit", "Latn", "Berber", "low", None),
    ("ln", "Lingala", "lingála", "Latn", "Bantu", "low", 0.0003),
    ("vi", "Vietnamese", "Tiếng Việt", "Latn", "Austroasiatic", "high", 1.0454),
    ("eu", "Basque", "euskara", "Latn", "Basque", "high", 0.0401),
    ("te", "Telugu", "తెలుగు", "Telu", "Dravidian", "low", 0.0220),
    ("sw", "Swahili", "Kiswahili", "Latn", "Bantu", "high", 0.0096),
    ("ca", "Catalan", "català", "Latn", "Romance", "high", 0.2085),
    ("id", "Indonesian", "Bahasa Indonesia", "Latn", "Malayo-Polynesian", "high", 1.1235),
    ("ko", "Korean", "한국어", "Kore", "Koreanic", "high", 0.7388),
    ("tr", "Turkish", "Türkçe", "Latn", "Turkic", "high", 1.2422),
    ("fa", "Persian", "فارسی", "Arab", "Iranian", "high", 0.7051),
    ("yo", "Yoruba", "Èdè Yorùbá", "Latn", "Volta-Niger", "low", 0.0010),
    ("th", "Thai", "ไทย", "Thai", "Kra-Dai", "high", 0.4071),
    ("ta", "Tamil", "தமிழ்", "Taml", "Dravidian", "low", 0.0473),
    ("he", "Hebrew", "עברית", "Hebr", "Semitic", "high", 0.2473),
    ("ro", "Romanian", "română", "Latn", "Romance", "high", 0.5978),
    ("cs", "Czech", "čeština", "Latn", "Slavic", "high", 1.0630),
    ("da", "Danish", "dansk", "Latn", "Germanic", "high", 0.4640),
    ("fi", "Finnish", "suomi", "Latn", "Uralic", "high", 0.3444),
    ("hu", "Hungarian", "magyar", "Latn", "Uralic", "high", 0.5649),
)

LANGUAGES: Mapping[str, Language] = MappingProxyType(
    {
        code: Language(
            code=code,
            name=name,
            own_name=own_name,
            script=script,
            right_to_left=script in _RIGHT_TO_LEFT,
            family=family,
            tier=tier,
            web_share=web_share,
            relative=_RELATIVES.get(code),
        )
        for code, name, own_name, script, family, tier, web_share in _ROWS
    }
)
"""Every known language by its code, in a fixed order."""

LU_LANGUAGES = ("en", "de", "fr", "zh", "ru", "jv", "ur", "ha", "hy")
"""Training and query languages of Lu & Koehn 2024: English, four high-, four low-resource."""

LU_TWENTY = (
    *("es", "pt", "ja", "it", "nl", "sv", "ar", "hi", "bn", "pl"),
    *("ti", "kam", "luo", "ay", "awa", "bho", "dyu", "fur", "kab", "ln"),
)
"""Languages of multilingual unlearning in Lu & Koehn 2024; by `tier` ten high, ten low."""

CHOI_LANGUAGES = (
    *("en", "fr", "es", "zh", "ar", "vi", "eu", "ur", "te", "sw"),
    *("pt", "ca", "hi", "bn", "id"),
)
"""Choi, Min & Choo 2024: the ten languages of their FLORES-200, then BMLAMA-53's further five."""


def get_language(code: str) -> Language:
    """Look a language up by its BCP-47 code.

    Raises:
        ValueError: The code is not registered; the message names the valid ones.
    """
    if code not in LANGUAGES:
        raise ValueError(f"unknown language {code!r}; valid: {', '.join(LANGUAGES)}")
    return LANGUAGES[code]
