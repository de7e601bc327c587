"""Which words of the rows that paths leave are the patient.

The patient is the shortest beginning of these rows that tells persons apart. Reading from the left, each word that
splits the files further is judged: it either makes groups into patients (``north/P1``), or divides a patient
(``P1/000``). A word that comes back under many others (``000`` and ``001`` under every patient) divides; one that
stands under one alone, or that many stand beside under few others, is the patient. Where numbers of both kinds are
alike this can't be known: the result says so. Nothing depends on the order of the files.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from polyclinic.data.readers.names.named import Named
from polyclinic.data.readers.names.words import patient_word, site_word, weak_visit

_RECUR = 0.5
"""Share of words that come back under several others from which on they divide patients."""


@dataclass
class Patient:
    """Where in a row of words the patient is.

    Attributes:
        end: number of words at the beginning of a row that belong to groups and the patient.
        without: places among them that say something else (the contrast, in ``axial/P1``).
        certain: whether nothing had to be guessed.
    """

    end: int = 0
    without: frozenset[int] = frozenset()
    certain: bool = True

    def of(self, row: tuple[str, ...]) -> tuple[str, ...]:
        """The patient's words."""
        return tuple(word for place, word in enumerate(row[: self.end]) if place not in self.without)


def find_patient(images: Sequence[Named]) -> Patient:
    """Where the patient is in the rows of words that images' paths leave."""
    rows = [image.texts for image in images]
    if images and all(image.row and image.row[0][1].patient for image in images):
        return Patient(1)
    longest = max(map(len, rows), default=0)
    patient = Patient()
    split_by: list[int] = []
    for place in range(longest):
        groups: dict[tuple[str, ...], dict[str, list[Named]]] = defaultdict(lambda: defaultdict(list))
        for image, row in zip(images, rows, strict=True):
            groups[patient.of(row)][row[place] if place < len(row) else ""].append(image)
        if all(len(inner) == 1 for inner in groups.values()):
            continue
        verdict, certain = _judge(groups, images, split_by, place)
        patient.certain &= certain
        if verdict == "divides":
            break
        if verdict == "outer shows":
            patient.without = frozenset((*patient.without, split_by[-1]))
        patient.end = place + 1
        split_by.append(place)
    if not split_by:  # one patient
        patient.end = min((_common(one, other) for one, other in pairwise(rows)), default=longest)
    return patient


def _common(one: tuple[str, ...], other: tuple[str, ...]) -> int:
    return next(
        (place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )


def _needless(groups: dict[tuple[str, ...], dict[str, list[Named]]]) -> bool:
    """Whether images of each group differ in contrast or visit anyway, so that the word at hand need not part them."""
    total = clashing = 0
    for inner in groups.values():
        images = [image for found in inner.values() for image in found]
        if not all(image.shows for image in images):
            return False
        total += len(images)
        clashing += len(images) - len({image.signature for image in images})
    return clashing <= 0.05 * total


def _judge(
    groups: dict[tuple[str, ...], dict[str, list[Named]]],
    images: Sequence[Named],
    split_by: Sequence[int],
    place: int,
) -> tuple[str, bool]:
    """Whether the word at ``place`` makes patients ("finer") or "divides" them, or the one before was a contrast
    ("outer shows"), and whether that is certain."""
    inner = [word for found in groups.values() for word in found if word]
    several, count = set(inner), len(groups)
    needless = _needless(groups)
    if count == 1:
        ended = any("" in found for found in groups.values())
        return ("divides" if needless and ended else "finer"), True
    if needless:
        return "divides", True
    outer = [image.texts[split_by[-1]] for image in images if len(image.texts) > split_by[-1]]
    outer_numbered, inner_numbered = numbered(outer), numbered(several)
    children = sum(map(len, groups.values())) / count
    recurring = sum(inner.count(word) > 1 for word in several) / len(several)
    if _speaks(images, split_by[-1], site_word):
        return "finer", True
    if recurring == 1 and children >= 2 * count and not outer_numbered and not _counted_anew(several):
        return "outer shows", False
    people = _speaks(images, split_by[-1], patient_word), _speaks(images, place, patient_word)
    if people == (False, True):
        return "finer", recurring < _RECUR
    if recurring < _RECUR:
        if not inner_numbered or not outer_numbered:
            return "finer", not (outer_numbered and not inner_numbered)
        below = all(_has_visit_below(image, place) for image in images)
        return ("divides" if count > children and not below else "finer"), below
    if people == (True, False):
        return "divides", True
    if not inner_numbered and (outer_numbered or children < 2 * count):
        return "divides", True
    weak = all(weak_visit(word) for word in several)
    if inner_numbered and count > children:
        return "divides", weak or count >= 2 * children
    if (
        inner_numbered
        and outer_numbered
        and ((weak and count == children) or _files_in_folders(images, split_by[-1], place))
    ):
        return "divides", False
    return "finer", False


def _speaks(images: Sequence[Named], place: int, says: Callable[[str], bool]) -> bool:
    """Whether words at ``place``, or those before them in a name, say what they are (``site1``, ``hospital-a``)."""
    for image in images:
        if place < len(image.row):
            level, word = image.row[place]
            before = [other.text for own, other in image.row[:place] if own == level][-1:]
            if any(map(says, [word.text, *before])):
                return True
    return False


def _counted_anew(words: Iterable[str]) -> bool:
    """Whether words count from 0 or 1 without a gap: two folders may have the same without having the same patients."""
    numbers = sorted(int(found[0]) for found in (re.findall(r"\d+$", word) for word in set(words)) if found)
    return len(numbers) == len(set(words)) and numbers in (list(range(len(numbers))), list(range(1, len(numbers) + 1)))


def _files_in_folders(images: Sequence[Named], outer: int, inner: int) -> bool:
    """Whether words at ``outer`` stand in folders, and those at ``inner`` in names of files."""
    return all(
        image.row[outer][0] < len(image.levels) - 1 == image.row[inner][0] for image in images if inner < len(image.row)
    )


def numbered(words: Iterable[str]) -> bool:
    """Whether most of the words have a digit."""
    found = [any(letter.isdigit() for letter in word) for word in set(words)]
    return 2 * sum(found) > len(found)


def _has_visit_below(image: Named, place: int) -> bool:
    if place >= len(image.row):
        return True
    return any(what == "session" and level > image.row[place][0] for (level, _), what in image.labels.items())
