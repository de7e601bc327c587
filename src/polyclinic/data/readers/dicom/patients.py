"""Who is one patient, where numbers of patients can't be trusted.

A PatientID may be missing or a placeholder (``ANONYMOUS``), stand for many persons (an anonymiser's setting, a
scanner's test number), or be spelt in several ways.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Protocol

from polyclinic.data.pseudonyms import pseudonym
from polyclinic.data.readers.dicom.person import Person
from polyclinic.notes import Note

_MANY_VISITS = 5

Place = tuple[str, str, str]
"""Subject, study and owner: what one person's files of one visit share."""


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


def place_of(header: Imaged) -> Place:
    """The header's key in what `settle_patients` gives."""
    return header.subject, header.study, header.person.owner


def settle_patients(headers: Sequence[Imaged], salt: str, home: str = "") -> tuple[dict[Place, str], list[Note]]:
    """Who each study's patient is.

    Rather two names for one person than one for two: the second puts one person's images into training and test data.

    Args:
        headers: of one hospital's files.
        salt: of the study.
        home: as in `subject_of`.

    Returns:
        `place_of` the headers -> pseudonym of the patient, for all that have a number or a study; and notes on numbers
        that can't be trusted, whose cases are pseudonyms.
    """
    people: dict[Place, Person] = {}
    for header in headers:
        people.setdefault(place_of(header), header.person)
    numbered = {place: person for place, person in people.items() if place[0]}
    settled = {place: place[0] for place in numbered}
    shared = _part_persons(numbered, settled, salt)
    joined, apart = _join_spellings(numbered, settled, shared)
    notes = _note_unnumbered(_settle_unnumbered(people, settled, salt, home))
    notes += _note_shared(shared) + _note_spellings(joined, apart)
    studies, names = len({place[1] for place in people}), sorted(set(settled.values()))
    nameless = not any(person.names or person.birth for person in people.values())
    if nameless and studies >= _MANY_VISITS and len(names) == 1:
        text = (
            f"All {studies} DICOM studies have the same PatientID, and neither name, birth date nor sex tells "
            "whether they are one person: they are taken for visits of one patient. If they are not, export them with "
            "a number for each."
        )
        notes.append(Note("N524", text, names))
    return settled, notes


def _settle_unnumbered(people: dict[Place, Person], settled: dict[Place, str], salt: str, home: str) -> list[str]:
    """Name the patients of files without a number; the names that are new.

    They belong to the one patient whom other files of their study name, else to one of their own.
    """
    studies: dict[str, list[Place]] = defaultdict(list)
    for place in settled:
        studies[place[1]].append(place)
    unnumbered = Counter(study for subject, study, _ in people if not subject)
    new = []
    for place in [place for place in people if place not in settled and place[1]]:
        known = studies[place[1]]
        names = {settled[other] for other in known}
        if len(names) == 1 and not any(_differ(people[place], people[other]) for other in known):
            settled[place] = names.pop()
            continue
        own = place[1] if unnumbered[place[1]] == 1 else _order(place, people)
        settled[place] = pseudonym(f"{home}/{own}" if home else own, salt, "sub")
        new.append(settled[place])
    return sorted(set(new))


def _note_unnumbered(names: list[str]) -> list[Note]:
    if not names:
        return []
    text = (
        f"{_studies(len(names))} without a PatientID, or with a placeholder such as ANONYMOUS or 0: each is taken for "
        "a patient of its own. Several visits of one person would be several patients, in training and test data: "
        "export them with a number for each."
    )
    return [Note("N520", text, names)]


def _part_persons(people: dict[Place, Person], settled: dict[Place, str], salt: str) -> dict[str, list[str]]:
    """Give the persons who share a number names of their own; number's pseudonym -> those names."""
    by_number: dict[str, list[Place]] = defaultdict(list)
    for place in people:
        by_number[place[0]].append(place)
    shared: dict[str, list[str]] = defaultdict(list)
    for subject, places in by_number.items():
        persons = _persons({place: people[place] for place in sorted(places, key=lambda place: _order(place, people))})
        if len(persons) == 1:
            continue
        for person in persons:
            name = pseudonym(f"{subject}|{min(_order(place, people) for place in person)}", salt, "sub")
            settled.update(dict.fromkeys(person, name))
            shared[subject].append(name)
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
    known: dict[str, list[int]] = defaultdict(list)
    for kind, places in kinds.items():
        words = [word for word in (*sorted(kind.names), kind.birth) if word]
        if not words:  # could be any of them
            persons.extend(([kind], [place]) for place in places)
            continue
        found = sorted({number for word in words for number in known[word]})
        mine = next((n for n in found if not any(_differ(kind, other) for other in persons[n][0])), len(persons))
        if mine == len(persons):
            persons.append(([], []))
        persons[mine][0].append(kind)
        persons[mine][1].extend(places)
        for word in words:
            known[word].append(mine)
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


def _join_spellings(
    people: dict[Place, Person], settled: dict[Place, str], shared: Iterable[str]
) -> tuple[list[list[str]], list[list[str]]]:
    """Give one name to a number in several spellings; names of those joined, and of those kept apart."""
    by_count: dict[str, dict[str, Person]] = defaultdict(dict)
    for (subject, _, _), person in people.items():
        if subject not in shared:
            by_count[person.counted].setdefault(subject, person)
    joined: list[list[str]] = []
    apart: list[list[str]] = []
    for subjects in by_count.values():
        if len(subjects) == 1:
            continue
        pairs = [(one, other) for one in subjects.values() for other in subjects.values() if one is not other]
        # Case and blanks mean nothing; zeros may: 001 and 1 are one person only if something else says so, too.
        if all(not _differ(*pair) and (pair[0].spelt == pair[1].spelt or _agree(*pair)) for pair in pairs):
            name = min(subjects)
            joined.append([name])
            settled.update({place: name for place in settled if place[0] in subjects})
        else:
            apart.append(sorted(subjects))
    return joined, apart


def _note_shared(shared: dict[str, list[str]]) -> list[Note]:
    if not shared:
        return []
    numbers, persons = len(shared), sum(map(len, shared.values()))
    text = (
        f"{numbers} PatientID{'s stand' if numbers > 1 else ' stands'} for {persons} persons (their names, birth dates "
        "or sexes differ): each of them is taken for a patient of its own. Look at the numbers: a birth date corrected "
        "between two visits parts a patient's visits, too."
    )
    return [Note("N521", text, chain.from_iterable(shared.values()))]


def _note_spellings(joined: list[list[str]], apart: list[list[str]]) -> list[Note]:
    notes = []
    if joined:
        text = (
            f"{_patients(len(joined))} a PatientID in several spellings (capital letters, blanks, leading zeros): each "
            "is taken for one patient."
        )
        notes.append(Note("N522", text, chain.from_iterable(joined)))
    if apart:
        text = (
            f"{_patients(len(apart), 'PatientID', 'PatientIDs')} more than one spelling (capital letters, blanks, "
            "leading zeros), and nothing says that they are one person: the spellings are taken for different "
            "patients. Mend the numbers if they are not."
        )
        notes.append(Note("N523", text, chain.from_iterable(apart)))
    return notes


def _studies(count: int) -> str:
    return f"{count} DICOM {'study is' if count == 1 else 'studies are'}"


def _patients(count: int, one: str = "patient", several: str = "patients") -> str:
    return f"{count} {one} has" if count == 1 else f"{count} {several} have"
