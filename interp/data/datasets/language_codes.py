"""Language codes of the data sets as BCP-47.

BMLAMA-53 and the FLORES-200 files of Choi et al. use codes that are BCP-47 already. FLORES-200's
own (`deu_Latn`) are an ISO 639-3 code and a script. Their macrolanguage and two-letter code is
CLDR's (`swh` is `sw`, `ayr` is `ay`, `pes` is `fa`), except where that would merge two languages
of FLORES-200, which then keep theirs (Dari `prs`, South Levantine `ajp`, Tagalog `tl`, Twi `tw`,
Southwestern Dinka `dik`).
"""

import re
import reprlib

_TAG = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})*")
_FLORES = re.compile(r"([a-z]{3})_([A-Z][a-z]{3})")

_WITHDRAWN = {"iw": "he", "in": "id", "ji": "yi", "jw": "jv", "mo": "ro"}
"""Two-letter codes that older files use for languages renamed since."""

_PAIRS = (
    "afr=af aka=ak als=sq amh=am arb=ar asm=as ayr=ay azj=az bak=ba bam=bm bel=be ben=bn "
    "bod=bo bos=bs bul=bg cat=ca ces=cs cym=cy dan=da deu=de dzo=dz ell=el eng=en epo=eo "
    "est=et eus=eu ewe=ee fao=fo fij=fj fin=fi fra=fr gaz=om gla=gd gle=ga glg=gl grn=gn "
    "guj=gu hat=ht hau=ha heb=he hin=hi hrv=hr hun=hu hye=hy ibo=ig ind=id isl=is ita=it "
    "jav=jv jpn=ja kan=kn kas=ks kat=ka kaz=kk khk=mn khm=km kik=ki kin=rw kir=ky kmr=ku "
    "knc=kr kon=kg kor=ko lao=lo lim=li lin=ln lit=lt ltz=lb lug=lg lvs=lv mal=ml mar=mr "
    "mkd=mk mlt=mt mri=mi mya=my nld=nl nno=nn nob=nb npi=ne nya=ny oci=oc ory=or pan=pa "
    "pes=fa plt=mg pol=pl por=pt ron=ro run=rn rus=ru sag=sg san=sa sin=si slk=sk slv=sl "
    "smo=sm sna=sn snd=sd som=so sot=st spa=es srd=sc srp=sr ssw=ss sun=su swe=sv swh=sw "
    "tam=ta tat=tt tel=te tgk=tg tgl=tl tha=th tir=ti tsn=tn tso=ts tuk=tk tur=tr twi=tw "
    "uig=ug ukr=uk urd=ur uzn=uz vie=vi wol=wo xho=xh ydd=yi yor=yo zho=zh zsm=ms zul=zu"
)
_SHORTER = {pair[:3]: pair[4:] for pair in _PAIRS.split()}

_SECOND_SCRIPT = frozenset(
    "ace_Arab arb_Latn bjn_Arab kas_Deva knc_Arab min_Arab taq_Tfng zho_Hant".split()  # noqa: SIM905
)
"""Languages that FLORES-200 has in two scripts, with the script that the code must name."""


def normalize_code(code: str) -> str:
    """Convert a data set's language code to BCP-47.

    `deu_Latn` is `de`, `zho_Hans` is `zh`, `zho_Hant` is `zh-Hant`; what is BCP-47 stays.

    Raises:
        ValueError: It is neither a BCP-47 code nor one in the manner of FLORES-200.
    """
    if flores := _FLORES.fullmatch(code):
        language, script = flores.groups()
        shorter = _SHORTER.get(language, language)
        return f"{shorter}-{script}" if code in _SECOND_SCRIPT else shorter
    if not _TAG.fullmatch(code):
        raise ValueError(
            f"{reprlib.repr(code)} is not a language code; valid: BCP-47 codes such as 'de' or "
            "'zh-Hant', and those of FLORES-200 such as 'deu_Latn'"
        )
    return _WITHDRAWN.get(code, code)
