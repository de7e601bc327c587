"""The words of file and folder names, and which of them say what an image shows, marks, or when it was taken.

A name is cut at ``_``, ``-``, ``.`` and blanks. Words of fixed lists say what is shown (``t1``), that voxels are labels
(``seg``), which visit (dates, ``week-000``, ``ses-1``) or repetition (``run2``) it is, or nothing (``images``). All
other words have no role: ``layout`` finds out from all files together which of them are the patient.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from datetime import date
from enum import StrEnum
from functools import lru_cache

SHOWS = {
    "t1": "T1w", "t1w": "T1w", "t1wi": "T1w", "t1n": "T1w", "mprage": "T1w", "t1ce": "T1ce", "t1c": "T1ce",
    "t1gd": "T1ce", "t1gad": "T1ce", "t1km": "T1ce", "t2": "T2w", "t2w": "T2w", "t2wi": "T2w", "flair": "FLAIR",
    "t2f": "FLAIR", "t2flair": "FLAIR", "pd": "PDw", "pdw": "PDw", "t2s": "T2star", "t2star": "T2star",
    "t2starw": "T2star", "dwi": "DWI", "dti": "DWI", "adc": "ADC", "swi": "SWI", "bold": "bold", "fmri": "bold",
    "mra": "angio", "tof": "angio", "ct": "CT", "cta": "CT", "ncct": "CT", "pet": "PET", "mpr": "mpr", "stir": "STIR",
    "asl": "asl", "dce": "DCE", "dsc": "DSC",
}  # fmt: skip
"""Word -> what an image shows."""
_ENHANCED = ("ce", "gd", "gad", "km", "gado")
MARKS = frozenset((
    "annotation", "annotations", "contour", "contours", "dseg", "gt", "groundtruth", "label", "labels", "labelstr",
    "labelsts", "labelsva", "groundtruths", "lesion", "lesions", "manual", "mask", "masks", "msk", "roi", "rois", "seg",
    "segs", "segm", "segmentation", "segmentations", "truth", "wmh", "aparc",
))  # fmt: skip
SPLITS = frozenset((
    "train", "training", "test", "testing", "val", "valid", "validation", "imagestr", "imagests", "imagesva",
))  # fmt: skip
"""Words for the parts of a challenge: masks keep them apart as images do (``imagesTr`` and ``labelsTr``)."""
_GENERIC = frozenset((
    "anat", "data", "dataset", "derivatives", "func", "image", "images", "imaging", "img", "imgs", "mr", "mri", "nifti",
    "nii", "rawdata", "scan", "scans", "sourcedata", "vol", "volume", "volumes", "patients", "subjects", "cases",
    "participants", "gz",
))  # fmt: skip
_DETAILS = frozenset((
    "anon", "anonymized", "anonymised", "ax", "axial", "bet", "bias", "brain", "centered", "cor", "coreg", "coronal",
    "corrected", "cropped", "deface", "defaced", "denoised", "flirt", "iso", "left", "masked", "mni", "mni152", "n3",
    "n4", "native", "norm", "normalised", "normalized", "orig", "original", "padded", "pp", "preproc", "preprocessed",
    "processed", "raw", "reg", "registered", "reoriented", "resampled", "right", "sag", "sagittal", "skullstripped",
    "smoothed", "strip", "stripped", "tra", "transversal", "uncropped", "unstripped", "warped", "lh", "rh", "od", "os",
    "contrast", "native", "gfc", "t88", "2d", "3d", "4d",
))  # fmt: skip
_PHASES = ("pre", "post", "postcontrast", "precontrast", "arterial", "venous", "portal", "delayed", "nativ")
_VISITS = frozenset((
    "baseline", "bl", "followup", "fup", "screening", "preop", "postop", "intraop", "pretreatment", "posttreatment",
    "pretx", "posttx", "prert", "postrt", "prechemo", "postchemo", "before", "after", "initial", "retest",
))  # fmt: skip
_NUMBERED_VISITS = (
    "session", "ses", "visit", "timepoint", "time", "tp", "followup", "fup", "fu", "month", "mon", "week", "wk", "day",
    "year", "yr", "wave", "exam", "baseline", "bl", "frame",
)  # fmt: skip
_RUNS = ("run", "rep", "repeat", "repetition", "acq", "acquisition", "take")
_SITES = re.compile(
    r"(site|hospital|hosp|clinic|klinik|center|centre|zentrum|institut\w*|cohort|vendor|scanner|ward|university|uni)\d*",
    re.I,
)
_PATIENTS = re.compile(r"(p|pat|patient|pt|sub|subj|subject|case|participant|proband|id|mrn)\d*", re.I)
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_DATE = re.compile(
    r"(?<![0-9A-Za-z])(?:"
    r"(?P<y>(?:19|20)\d\d)(?P<s>[-_.]?)(?P<m>\d\d)(?P=s)(?P<d>\d\d)"
    r"|(?P<d2>\d\d?)(?P<s2>[-_.])(?P<m2>\d\d?)(?P=s2)(?P<y2>(?:19|20)\d\d)"
    r"|(?P<d3>\d\d?)[-_.]?(?P<m3>jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*[-_.]?(?P<y3>(?:19|20)\d\d)"
    r"|(?P<y4>(?:19|20)\d\d)[-_.]?(?P<m4>jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*[-_.]?(?P<d4>\d\d?)"
    r")(?P<time>[-_T. ]?\d\d[-_.]?[0-5]\d[-_.]?[0-5]\d(?:\.?\d+)?)?(?![0-9A-Za-z])",
    re.I,
)
#: Patients' numbers of archives whose separators stand within the number.
_NUMBERS = re.compile(r"(?<![0-9A-Za-z])(?:\d{3}_S_\d{4,5}|TCGA-\w\w-\w{4})(?![0-9A-Za-z])", re.I)
#: UK Biobank: participant, field, instance (visit), array.
_BIOBANK = re.compile(r"(?<![0-9A-Za-z])(\d{7})_(202\d\d)_([0-9])_(\d+)(?![0-9A-Za-z])")
_FIELDS = {"20252": "T1w", "20253": "FLAIR", "20251": "SWI", "20250": "DWI", "20249": "bold", "20227": "bold"}
#: Numbers that are unique in the world, as names: of DICOM, and of computers.
_UNIQUE = re.compile(
    r"(?<![0-9A-Za-z.])(?:\d+(?:\.\d+){4,}|[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})(?![0-9A-Za-z])",
    re.I,
)
_WORD = re.compile(r"[^-_.\s+~@,;=()\[\]{}]+")
_COUNTED = re.compile(r"(mpr|mprage|flair|bold|dwi|t1w|t2w)(\d{1,2})", re.I)
_PHASED = re.compile(r"(t1|t1w|t2|t2w|flair)[-+]?(pre|post)(?:contrast)?")
_COUNTED_MARK = re.compile(r"(mask|seg|label|roi|lesion|annotation|gt)\d{1,2}")
_GLUED_MARK = re.compile(r"([a-z]{0,8}?)(seg|masks?|segmentation)")
_VISIT = re.compile(
    rf"\d+(months?|mths?|mo|weeks?|wks?|days?|years?|yrs?)|({'|'.join(_NUMBERED_VISITS)})\d{{1,4}}[a-z]?"
    r"|(session|ses|visit|timepoint)[a-e]"
)
_RUN = re.compile(rf"({'|'.join(_RUNS)})\d{{1,4}}")
_ECHO = re.compile(r"echo\d{1,2}")
_WEAK_VISIT = re.compile(r"(?:v|m|w|d|y|mr|tp|t|s|e|scan|mri|pre|post|bl|fu)\d{1,4}|\d{1,3}", re.I)


class Role(StrEnum):
    """What a word says."""

    NONE = ""
    CONTRAST = "contrast"
    MASK = "mask"
    VISIT = "session"
    RUN = "run"
    DETAIL = "detail"
    GENERIC = "generic"
    SITE = "site"


@dataclass(frozen=True)
class Word:
    """A word of a name.

    Attributes:
        text: as written.
        start, end: its place in the name.
        role: what it says, as far as one word can tell.
        value: what an image shows (``T1w``), or what a mask marks (``brain`` of ``brainmask``).
        glued: whether it is a date without separators, which may be a number as well.
        patient: whether it is a patient's number by the rules of a known archive.
    """

    text: str
    start: int
    end: int
    role: Role = Role.NONE
    value: str = ""
    glued: bool = False
    patient: bool = False

    @property
    def numbered(self) -> bool:
        """Whether it has a digit."""
        return any(letter.isdigit() for letter in self.text)


@lru_cache(maxsize=65536)
def cut(name: str) -> tuple[Word, ...]:
    """The words of one file's or folder's name (without ending), with roles."""
    unique = [Word(match[0], *match.span()) for match in _UNIQUE.finditer(name)]
    found = [*unique, *_archive_numbers(name), *_dates(name)]
    taken = sorted(
        (word for number, word in enumerate(found) if not any(_overlap(word, other) for other in found[:number])),
        key=lambda word: word.start,
    )
    words: list[Word] = []
    place = 0
    for word in [*taken, None]:
        end = len(name) if word is None else word.start
        words += _join(name, [part for found in _WORD.finditer(name, place, end) for part in _parts(found)])
        if word is not None:
            words.append(word)
            place = word.end
    if len(words) == 1 and words[0].text.lower() in ("n3", "n4"):
        return tuple(words)  # a patient: corrections of the bias field stand behind other words
    return tuple(word if word.role or word in taken else _with_role(word) for word in words)


def _overlap(word: Word, other: Word) -> bool:
    return word.start < other.end and other.start < word.end


def weak_visit(text: str) -> bool:
    """Whether a word such as ``V01``, ``m12``, ``MR1`` or ``001`` may count visits, or patients as well."""
    return _WEAK_VISIT.fullmatch(text) is not None


def site_word(text: str) -> bool:
    """Whether a word says that a folder is a hospital or a group (``site1``, ``hospital``)."""
    return _SITES.fullmatch(text) is not None


def patient_word(text: str) -> bool:
    """Whether a word says that a number is a patient's (``P001``, ``sub``, ``case12``)."""
    return _PATIENTS.fullmatch(text) is not None


def _dates(name: str) -> list[Word]:
    found = []
    for match in _DATE.finditer(name):
        for number in ("", "2", "3", "4"):
            year, month, day = (match.group(f"{part}{number}") for part in "ymd")
            if year and _is_date(year, month, day):
                text = match[0]
                found.append(
                    Word(text, match.start(), match.end(), Role.VISIT, glued=text.isdigit() and len(text) == 8)
                )
    return found


def _is_date(year: str, month: str, day: str) -> bool:
    number = _MONTHS.index(month[:3].lower()) + 1 if month[0].isalpha() else int(month)
    for one, other in ((number, int(day)), (int(day), number)):  # the day or the month first
        try:
            date(int(year), one, other)
        except ValueError:
            continue
        return True
    return False


def _archive_numbers(name: str) -> list[Word]:
    words = [Word(match[0], *match.span(), patient=True) for match in _NUMBERS.finditer(name)]
    for match in _BIOBANK.finditer(name):
        words += [
            Word(match[1], *match.span(1), patient=True),
            Word(match[2], *match.span(2), Role.CONTRAST, _FIELDS.get(match[2], f"field-{match[2]}")),
            Word(match[3], *match.span(3), Role.VISIT),
            Word(match[4], *match.span(4), Role.RUN),
        ]
    return words


def _join(name: str, words: list[Word]) -> list[Word]:
    """Words that mean something together: ``week-000``, ``run_1``, ``follow-up``, ``T2_FLAIR``."""
    joined: list[Word] = []
    for word in words:
        before = joined[-1] if joined else None
        key, last = word.text.lower(), before.text.lower() if before else ""
        role, value = Role.NONE, ""
        if before is not None and key in ("fu", "bl"):  # by themselves they may be a name
            word = replace(word, role=Role.VISIT)
        elif before is None or before.role:
            pass
        elif _counts_visit(last, key):
            role = Role.VISIT
        elif last in _RUNS and re.fullmatch(r"\d{1,4}", key):
            role = Role.RUN
        elif last in ("follow", "pre", "post") and key in ("up", "op", "treatment", "tx", "rt", "chemo", "surgery"):
            role = Role.VISIT
        elif last in ("t2", "t2w") and key == "flair":
            role, value = Role.CONTRAST, "FLAIR"
        elif last in ("t1", "t1w") and key in _ENHANCED:
            role, value = Role.CONTRAST, "T1ce"
        elif last == "echo" and key.isdigit():
            role = Role.DETAIL
        if role and before is not None:
            joined[-1] = Word(name[before.start : word.end], before.start, word.end, role, value)
        else:
            joined.append(word)
    return joined


def _parts(found: re.Match[str]) -> list[Word]:
    """A word; a contrast with the number of its repetition (``MPR1``, ``bold2``) is two."""
    counted = _COUNTED.fullmatch(found[0])
    if not counted:
        return [Word(found[0], *found.span())]
    middle = found.start() + len(counted[1])
    return [Word(counted[1], found.start(), middle), Word(counted[2], middle, found.end(), Role.RUN)]


def _counts_visit(word: str, number: str) -> bool:
    """Whether two words count a visit: ``week 12``, ``ses M06``, ``visit B``; ``baseline T1`` do not."""
    if number in SHOWS or word in ("baseline", "bl"):
        return False
    if word in ("ses", "session", "visit", "timepoint", "tp"):
        return re.fullmatch(r"[a-z]{0,2}\d{1,4}[a-z]?|[a-z]", number) is not None or number in _VISITS
    return word in _NUMBERED_VISITS and re.fullmatch(r"\d{1,4}[a-z]?", number) is not None


def _with_role(word: Word) -> Word:
    role, value = _meaning(word.text.lower())
    return Word(word.text, word.start, word.end, role, value) if role else word


@lru_cache(maxsize=65536)
def _meaning(key: str) -> tuple[Role, str]:
    """What a word in small letters says by itself."""
    if key in SHOWS:
        return Role.CONTRAST, SHOWS[key]
    if glued := _PHASED.fullmatch(key):
        return Role.CONTRAST, f"{SHOWS[glued[1]]}_{glued[2]}"
    if key in MARKS or _COUNTED_MARK.fullmatch(key):
        return Role.MASK, key if key[-1].isdigit() else ""
    if (glued := _GLUED_MARK.fullmatch(key)) and not key.startswith(("un", "no")):
        return Role.MASK, glued[1] if len(glued[1]) > 1 else key
    if key in _VISITS or _VISIT.fullmatch(key):
        return Role.VISIT, ""
    if _RUN.fullmatch(key):
        return Role.RUN, ""
    if key in _DETAILS or key in _PHASES or _ECHO.fullmatch(key):
        return Role.DETAIL, ""
    if key in _GENERIC or key in SPLITS:
        return Role.GENERIC, ""
    return Role.NONE, ""
