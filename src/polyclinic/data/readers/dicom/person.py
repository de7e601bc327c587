"""What a DICOM header says of the patient, as keyed hashes.

Name, birth date and sex tell apart persons who share a number. None is kept: they become hashes when the header is
read, which are compared with each other (``dicom_patients``) and written nowhere.
"""

from __future__ import annotations

import re
import secrets
import unicodedata
from hashlib import blake2b
from typing import NamedTuple, Protocol

from polyclinic.data.pseudonyms import pseudonym

PATIENT_TAGS = {"patient_birth": 0x00100030, "patient_sex": 0x00100040}
"""Elements about the patient, besides PatientID and PatientName, that are looked at."""

_NOBODY = frozenset((
    "anonymous", "anonymized", "anonymised", "anonym", "anon", "unknown", "unnamed", "none", "null", "na", "nan", "nil",
    "noid", "noname", "nopatientid", "patient", "patientid", "patientname", "pid", "id", "name", "removed", "deleted",
    "deidentified", "pseudonymized", "pseudonymised", "redacted", "hidden", "masked", "default", "empty", "undefined",
    "notavailable", "notspecified", "unspecified", "unbekannt", "inconnu", "blank", "missing",
))  # fmt: skip
"""What stands where a number or a name was taken out, in small letters without signs."""
_NO_BIRTH = frozenset(("00010101", "17760704", "18000101", "19000101", "19010101", "19700101", "99991231"))
_PROCESS_KEY = secrets.token_bytes(16)
_SIGNS = re.compile(r"[\W_]+")


class Person(NamedTuple):
    """What tells persons apart; keyed hashes alone, "" or empty where the header does not say.

    Attributes:
        owner: tells persons apart within a series, with a key that lives as long as the process.
        spelt: the number without regard to case and blanks.
        counted: the number without regard to leading zeros, either.
        names: parts of the name.
        birth: date of birth.
        sex: M or F.
    """

    owner: str
    spelt: str = ""
    counted: str = ""
    names: frozenset[str] = frozenset()
    birth: str = ""
    sex: str = ""


class Texts(Protocol):
    """How elements are looked up by name."""

    def text(self, name: str) -> str:
        """The element as text, "" where it is missing."""


def subject_of(number: str, salt: str, home: str = "") -> str:
    """Pseudonym of a patient; "" without a salt, without a number, and where the number is a placeholder.

    Args:
        number: PatientID.
        salt: of the study.
        home: the folder of the hospital, where numbers of several stand side by side; else "".
    """
    return pseudonym(f"{home}/{number}" if home else number, salt, "sub") if salt and not is_nobody(number) else ""


def is_nobody(text: str) -> bool:
    """Whether a number or name of a patient says only that there is none.

    >>> [is_nobody(text) for text in ("ANONYMOUS", "0000", "no id", "", "***", "1", "Anon-17")]
    [True, True, True, True, True, False, False]
    """
    letters = _SIGNS.sub("", text.casefold())
    return letters in _NOBODY or set(letters) <= {"0"} or set(letters) == {"x"}


def read_person(texts: Texts, salt: str) -> Person:
    """The hashes of a header; without a salt the owner alone."""
    number, name = texts.text("patient_id"), texts.text("patient_name")
    spelt = "" if is_nobody(number) else re.sub(r"\s+", "", unicodedata.normalize("NFKC", number).casefold())
    owner = _hash(f"{spelt}|{name.casefold()}", _PROCESS_KEY)
    if not salt:
        return Person(owner)
    key = salt.encode()[:64]
    birth, sex = texts.text("patient_birth"), texts.text("patient_sex").upper()
    real_birth = birth.isdecimal() and len(birth) == 8 and birth not in _NO_BIRTH
    return Person(
        owner,
        _hash(spelt, key) if spelt else "",
        _hash(re.sub(r"\.0+$", "", spelt).lstrip("0"), key) if spelt else "",
        frozenset(_hash(part, key) for part in _name_parts(name)),
        _hash(birth, key) if real_birth else "",
        sex if sex in ("M", "F") else "",
    )


def _name_parts(name: str) -> list[str]:
    plain = unicodedata.normalize("NFKD", name.casefold())
    parts = _SIGNS.split("".join(letter for letter in plain if not unicodedata.combining(letter)))
    return [part for part in parts if len(part) > 1 and not is_nobody(part)]


def _hash(text: str, key: bytes) -> str:
    return blake2b(text.encode(), key=key, digest_size=8).hexdigest()
