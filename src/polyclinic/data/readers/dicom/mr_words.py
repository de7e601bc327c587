"""What descriptions of MR series say, by whole words in English, German and French, of Siemens, GE and Philips.

Descriptions are free texts: only words of these lists are looked at, and none is kept. Words are told apart from parts
of words: EPI is not in "epilepsy", and a protocol "with and without contrast" says nothing of one of its series.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from typing import NamedTuple


def _words(*lines: str) -> frozenset[str]:
    return frozenset(" ".join(lines).split())


_TECHNIQUES = (
    (
        "localizer",
        _words(
            "localizer localiser loc scout aahscout survey topogram surview lokalisierer lokalizer localisateur",
            "reperage smartbrain",
        ),
    ),
    (  # what shows no tissue, or none of the weightings below
        "",
        _words(
            "b0map b1 b1map cal calib calibration cbv cine colfa csi eadc elastography evecs fieldmap filtpha inv1",
            "inv2 lge mapping molli mre mrs mtt pha phasemap press prescan psir qmap qsm r2map r2star rcbf rcbv",
            "refscan relcbf relcbv screensave shim shmolli soustraction spectro spectroscopy spektroskopie sub",
            "subtraction subtraktion svs t1map t2map t2starmap tensor tmax ttp velocity",
        ),
    ),
    ("ADC", _words("adc dadc")),
    ("asl", _words("asl pasl pcasl casl 3dasl tgse")),
    ("", _words("cbf")),
    (
        "DWI",
        _words(
            "diff diffusion diffusionsgewichtet diffusionsgewichtung dsi dti dwi dwibs hardi isodwi muse noddi resolve",
            "ssdwi trace tracew",
        ),
    ),
    ("perfusion", _words("dsc perf perfusion pwi")),
    ("SWI", _words("sw susc susceptibility suszeptibilitat suszeptibilitaet swan swi swip venobold")),
    (
        "angio",
        _words(
            "angio angiographie angiography angioirm angiorm cemra inhance mra mrv pca phasecontrast phlebo tof trance",
            "venographie venography",
        ),
    ),
    ("bold", _words("bold fmri irmf rfmri rsfmri tfmri")),
)
"""In order: the first that has a word of the text counts. The name "" stands for images that belong to none."""
_WEIGHTINGS = {
    "T1w": _words(
        "bravo efgre3d ethrive fspgr irfspgr irspgr lava mempr memprage mprage ravd spgr starvibe t1 t1w t1wi tfl3d",
        "thrive vibe",
    ),
    "T2w": _words("ciss fiestac haste mrcp ssfse t2 t2w t2wi"),
    "PDw": _words("densite dp pd pdw pdwi proton protonen protonendichte"),
}
_T2_STAR = _words("haemo haemoflash hemo hemoflash hemosiderin medic merge mffe t2s t2star t2starw")
_FLAIR = _words("flair darkfluid fluidattenuated")
_GRADIENT = _words("ffe fl2d fl3d flash gradient gre")
_REST = _words("rest resting restingstate rs task")
_POST = _words(
    "ce contrast contraste dotarem enhanced gad gado gadolinium gadovist gd injecte injectee injection km kontrast",
    "kontrastmittel magnevist mitkm nachkm pdc post postcon postcontrast postgad postgado postgd postkm primovist",
)
_PRE = _words("nativ native natif noncontrast ohnekm pre precon precontrast pregad pregd unenhanced vorkm wo")

_AGENT = r"[\s._-]*(?:iv\s+)?(?:contraste?|kontrast(?:mittel)?|km|gd|gad|gado|gadolinium|inj|injection|iv|ic|pdc|c)\b"
_EVENT = (
    r"(?:op\b|oper|surg|treat|tx\b|rt\b|rtx\b|crt\b|radi|chemo|ther|biops|ictal|process|mortem|partum|trauma|resec|void"
    r"|exercis|stress|transplant|embol|interv)"
)
_WITH, _WITHOUT = r"(?:w/?|with|mit|avec)", r"(?:w\s*/?\s*o|without|ohne|sans)"
_REPLACED = tuple(
    (re.compile(pattern), word)
    for pattern, word in (
        (r"\bpost(?:erior)?\.?\s+fossa", " "),
        # After something else than an agent.
        (rf"\b(?:pre|post)[\s.-]*{_EVENT}\w*", " "),
        (r"\bexponential apparent diffusion coeff\w*", " eadc "),
        (r"\bapparent diffusion coeff\w*", " adc "),
        (r"\bfractional aniso\w*", " colfa "),
        (r"\bphase[ -]?contrast|\bcontraste?[ -]de[ -]phase|\bphasenkontrast", " phasecontrast "),
        # With and without an agent: the whole examination, not the series.
        (rf"(?:\b{_WITH}\s*(?:and|und|et|or|&|/|\+)?\s*{_WITHOUT}\b|\+/-)(?:{_AGENT})?", " "),
        (rf"\b{_WITHOUT}\s*(?:and|und|et|&|/|\+)\s*{_WITH}(?:{_AGENT})?", " "),
        (rf"\b(?:{_WITHOUT}|non?|vor|avant){_AGENT}", " pre "),
        (rf"\b(?:{_WITH}|nach|after|apres|post){_AGENT}", " post "),
        (r"\+\s*(?:c|k|km|gd|gad|gado)\b|\b(?:c|gd|km|gad|gado)\s*\+", " post "),
        (r"\bt2w?\s*(?:\*|[ -]?star\b)", " t2star "),
        (r"\bdark[ -]?fluid", " darkfluid "),
        (r"\bfluid[ -]?attenuat\w*", " fluidattenuated "),
        (r"\btime[ -]?of[ -]?flight", " tof "),
        (r"\b(?:gre\s+)?field[ -]?map\w*", " fieldmap "),
        (r"\bb[01][ -]?map\w*", " b1map "),
        (r"\b(?:t1|t2|t2star|r2|pd)[ -]?(?:maps?|mapping|images)\b", " mapping "),
        (r"\b(?:3|three|drei|trois)[ -]?(?:plane|pl|ebenen|plans?)\b", " localizer "),
        (r"\b(?:delayed|late)[ -](?:gad\w*[ -])?enhancement", " lge "),
        (r"\b(?:sense[ -]?|coil[ -]?)?ref(?:erence)?[ -]?scan|\bsense[ -]?ref\b", " refscan "),
        (r"\bfiesta[ -]?c\b", " fiestac "),
        (r"\bb\s?=?\s?\d{2,4}\b", " diff "),
    )
)
_PART = (
    r"(?:t1wi?|t2wi?|pdwi?|t1|t2|pd|flair|stir|star|frfse|tse|fse|ffe|gre|tfe|spir|spair|fatsat|space|cube|vista|blade|tirm"
    r"|vibe|lava|thrive|mprage|mpr|fspgr|spgr|flash|post|pre|gado|gad|gd|km|nativ|dwi|swi|adc|sag|axial|ax|cor|tra|obl|3d"
    r"|2d|fs|ce|se|c)"
)
_GLUED, _PARTS = re.compile(f"{_PART}+"), re.compile(_PART)


class Words(NamedTuple):
    """What a description says.

    Attributes:
        technique: a kind of image that has its own name (``localizer``, ``DWI``, ...), "" for one that has none, None
            where no word tells it.
        weighting: ``T1w``, ``T2w``, ``T2star``, ``PDw``, ``FLAIR``, ``STIR``; "" where words say two of them, None
            where they say none.
        inverted: whether it names an inversion that suppresses water or fat.
        agent: True after a contrast agent, False before it, None where the words don't say it, or say both.
        resting: whether it names a task or rest, which only means something of a fast series.
    """

    technique: str | None
    weighting: str | None
    inverted: bool
    agent: bool | None
    resting: bool


@lru_cache(maxsize=64)  # the slices of a series have one text
def read_words(text: str) -> Words:
    """Look for words that tell what an image shows."""
    tokens = _tokens(text)
    technique = next((name for name, words in _TECHNIQUES if words & tokens), None)
    if technique is None and "pilot" in tokens and not tokens & frozenset.union(*_WEIGHTINGS.values()):
        technique = "localizer"
    if technique is None and "mp2rage" in tokens:
        technique, tokens = (None, tokens | {"t1"}) if "uni" in tokens else ("", tokens)
    no_tissue = {"DWI": {"fa", "mip"}, "SWI": {"phase"}}.get(technique or "", set())
    post, pre = bool(tokens & _POST), bool(tokens & _PRE)
    return Words(
        "" if tokens & no_tissue else technique,
        _weighting(tokens),
        bool(tokens & (_FLAIR | {"stir", "tirm"})),
        None if post == pre else post,
        bool(tokens & _REST),
    )


def _weighting(tokens: frozenset[str]) -> str | None:
    named = {name for name, words in _WEIGHTINGS.items() if words & tokens}
    if tokens & _T2_STAR or (named == {"T2w"} and tokens & _GRADIENT):
        return "T2star" if named <= {"T2w"} else ""
    if tokens & _FLAIR:
        # "T1 FLAIR" suppresses water by a shorter inversion, and is weighted by T1.
        return "FLAIR" if named <= {"T2w"} else "T1w" if named == {"T1w"} else ""
    if "stir" in tokens:
        return "STIR" if named <= {"T2w"} else ""
    if "tirm" in tokens or len(named) > 1:  # an inversion that suppresses water or fat
        return ""
    return next(iter(named), None)


def _tokens(text: str) -> frozenset[str]:
    plain = unicodedata.normalize("NFKD", _decoded(text).lower())
    plain = "".join(letter for letter in plain if not unicodedata.combining(letter)).replace("_", " ")
    for pattern, word in _REPLACED:
        plain = pattern.sub(word, plain)
    found: set[str] = set()
    for token in re.split(r"[^a-z0-9]+", plain):
        found.add(token)
        if _GLUED.fullmatch(token):  # "axT1fs", "t2flair", "T1c"
            parts = _PARTS.findall(token)
            found |= {*parts, *(["t2star"] if {"t2", "t2w"} & {*parts} and "star" in parts else [])}
            found |= {"post"} if len(parts) > 1 and parts[-1] == "c" else set()
    return frozenset(found - {""})


def _decoded(text: str) -> str:
    """Headers are taken for Latin-1, and many are UTF-8."""
    try:
        return text.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return text
