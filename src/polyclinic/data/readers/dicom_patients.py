"""Who is one patient, where numbers of patients can't be trusted.

A PatientID may be a placeholder (``ANONYMOUS``), stand for many persons (an anonymiser's setting, a scanner's test
number), or be spelt in several ways. Name, birth date and sex tell, but none is kept: they become keyed hashes when the
header is read, which are compared with each other and written nowhere.
"""

from __future__ import annotations

import re
import secrets
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import NamedTuple, Protocol

from polyclinic.data.pseudonyms import pseudonym
from polyclinic.notes import Note

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
_MANY_VISITS = 5
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


Place = tuple[str, str, str]
"""Subject, study and owner: what one person's files of one visit share."""


class Texts(Protocol):
    """How elements are looked up by name."""

    def text(self, name: str) -> str:
        """The element as text, "" where it is missing."""


class Imaged(Protocol):
    """A file's header, as far as it is about the patient."""

    @property
    def subject(self) -> str:
        """Pseudonym, "" without a number."""

    @property
    def study(self) -> str:
        """UID of the study."""

    @property
    def person(self) -> Person:
        """Hashes."""


def subject_of(number: str, salt: str) -> str:
    """Pseudonym of a patient; "" without a salt, without a number, and where the number is a placeholder."""
    return pseudonym(number, salt, "sub") if salt and not is_nobody(number) else ""


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


def place_of(header: Imaged) -> Place:
    """The header's key in what `settle_patients` gives."""
    return header.subject, header.study, header.person.owner


def settle_patients(headers: Sequence[Imaged], salt: str) -> tuple[dict[Place, str], list[Note]]:
    """Who each study's patient is.

    Rather two names for one person than one for two: the second puts one person's images into training and test data.

    Returns:
        `place_of` the headers -> pseudonym of the patient, for all that have a number; and notes on numbers that can't
        be trusted.
    """
    people: dict[Place, Person] = {}
    for header in headers:
        people.setdefault(place_of(header), header.person)
    numbered = {place: person for place, person in people.items() if place[0]}
    settled = {place: place[0] for place in numbered}
    shared = _part_persons(numbered, settled, salt)
    joined, apart = _join_spellings(numbered, settled, shared)
    for place in people.keys() - numbered.keys():
        _find_number(place, people, settled)
    studies = len({place[1] for place in people})
    notes = _note_unnumbered(len({place[1:] for place in people.keys() - settled.keys()}))
    notes += _note_shared(shared) + _note_spellings(joined, apart)
    nameless = not any(person.names or person.birth for person in people.values())
    if nameless and studies >= _MANY_VISITS and len(settled) == len(people) and len(set(settled.values())) == 1:
        text = (
            f"All {studies} DICOM studies have the same PatientID, and neither name, birth date nor sex tells "
            "whether they are one person: they are taken for visits of one patient. If they are not, export them with "
            "a number for each."
        )
        notes.append(Note("N524", text))
    return settled, notes


def _find_number(place: Place, people: dict[Place, Person], settled: dict[Place, str]) -> None:
    """Give files without a number to the one patient whom other files of their study name."""
    study = {other: name for other, name in settled.items() if place[1] and other[1] == place[1]}
    if len(set(study.values())) == 1 and not any(_differ(people[place], people[other]) for other in study):
        settled[place] = next(iter(study.values()))


def _note_unnumbered(studies: int) -> list[Note]:
    if not studies:
        return []
    text = (
        f"{_studies(studies)} without a PatientID, or with a placeholder such as ANONYMOUS or 0: each is taken for a "
        "patient of its own. Several visits of one person would be several patients, in training and test data: export "
        "them with a number for each."
    )
    return [Note("N520", text)]


def _part_persons(people: dict[Place, Person], settled: dict[Place, str], salt: str) -> dict[str, int]:
    """Give the persons who share a number names of their own; number's pseudonym -> how many they are."""
    by_number: dict[str, list[Place]] = defaultdict(list)
    for place in people:
        by_number[place[0]].append(place)
    shared = {}
    for subject, places in by_number.items():
        persons = _persons({place: people[place] for place in sorted(places, key=lambda place: _order(place, people))})
        if len(persons) == 1:
            continue
        shared[subject] = len(persons)
        for person in persons:
            first = min(_order(place, people) for place in person)
            settled.update(dict.fromkeys(person, pseudonym(f"{subject}|{first}", salt, "sub")))
    return shared


def _order(place: Place, people: dict[Place, Person]) -> str:
    """The same in each process, unlike the owner."""
    return f"{place[1]}|{people[place].birth}|{sorted(people[place].names)}"


def _persons(people: dict[Place, Person]) -> list[list[Place]]:
    """The studies of each person; all of them for one where nothing contradicts it."""
    kinds: dict[Person, list[Place]] = defaultdict(list)
    for place, person in people.items():
        kinds[person._replace(owner="")].append(place)
    if not any(_differ(one, other) for one in kinds for other in kinds):
        return [list(people)]
    persons: list[tuple[list[Person], list[Place]]] = []
    for kind, places in kinds.items():
        known = bool(kind.names or kind.birth)
        fitting = [
            entry
            for entry in persons
            if known and all(_agree(kind, other) and not _differ(kind, other) for other in entry[0])
        ]
        if fitting:
            fitting[0][0].append(kind)
            fitting[0][1].extend(places)
        elif known:
            persons.append(([kind], list(places)))
        else:  # neither name nor birth date: could be any of them
            persons.extend(([kind], [place]) for place in places)
    return [places for _, places in persons]


def _differ(one: Person, other: Person) -> bool:
    """Whether they can't be one person. A name may change with marriage, if the birth date is the same."""
    if one.birth and other.birth and one.birth != other.birth:
        return True
    if one.sex and other.sex and one.sex != other.sex:
        return True
    same_birth = bool(one.birth) and one.birth == other.birth
    return bool(one.names and other.names) and not one.names & other.names and not same_birth


def _agree(one: Person, other: Person) -> bool:
    return bool(one.names & other.names) or (bool(one.birth) and one.birth == other.birth)


def _join_spellings(people: dict[Place, Person], settled: dict[Place, str], shared: Iterable[str]) -> tuple[int, int]:
    """Give one name to a number in several spellings; how many patients were joined, and how many kept apart."""
    by_count: dict[str, dict[str, Person]] = defaultdict(dict)
    for (subject, _, _), person in people.items():
        if subject not in shared:
            by_count[person.counted].setdefault(subject, person)
    joined = apart = 0
    for subjects in by_count.values():
        if len(subjects) == 1:
            continue
        pairs = [(one, other) for one in subjects.values() for other in subjects.values() if one is not other]
        # Case and blanks mean nothing; zeros may: 001 and 1 are one person only if something else says so, too.
        if all(not _differ(*pair) and (pair[0].spelt == pair[1].spelt or _agree(*pair)) for pair in pairs):
            joined += 1
            name = min(subjects)
            settled.update({place: name for place in settled if place[0] in subjects})
        else:
            apart += 1
    return joined, apart


def _note_shared(shared: dict[str, int]) -> list[Note]:
    if not shared:
        return []
    numbers, persons = len(shared), sum(shared.values())
    text = (
        f"{numbers} PatientID{'s stand' if numbers > 1 else ' stands'} for {persons} persons (their names, birth dates "
        "or sexes differ): each of them is taken for a patient of its own. Look at the numbers: a birth date corrected "
        "between two visits parts a patient's visits, too."
    )
    return [Note("N521", text)]


def _note_spellings(joined: int, apart: int) -> list[Note]:
    notes = []
    if joined:
        text = (
            f"{_patients(joined)} a PatientID in several spellings (capital letters, blanks, leading zeros): each is "
            "taken for one patient."
        )
        notes.append(Note("N522", text))
    if apart:
        text = (
            f"{_patients(apart, 'PatientID', 'PatientIDs')} more than one spelling (capital letters, blanks, leading "
            "zeros), and nothing says that they are one person: the spellings are taken for different patients. Mend "
            "the numbers if they are not."
        )
        notes.append(Note("N523", text))
    return notes


def _studies(count: int) -> str:
    return f"{count} DICOM {'study is' if count == 1 else 'studies are'}"


def _patients(count: int, one: str = "patient", several: str = "patients") -> str:
    return f"{count} {one} has" if count == 1 else f"{count} {several} have"
