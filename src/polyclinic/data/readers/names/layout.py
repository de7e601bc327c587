"""Which words of NIfTI paths are the patient, the visit, the repetition and the contrast, told from all paths together.

Words with a meaning of their own are set aside (``roles``). What is left of a path is a row of words, outermost first,
in which ``patients`` finds the patient from all rows. What then is left of a row is a visit, a repetition, or a part of
the contrast. Masks are joined to the image whose patient's words stand in their names.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from polyclinic.data.readers.names.named import Levels, Named, visit_key
from polyclinic.data.readers.names.patients import Patient, find_patient, numbered
from polyclinic.data.readers.names.roles import (
    cut_endings,
    dates_alone,
    drop_repeated,
    find_channels,
    find_time_points,
    read_roles,
    restore_names,
    unmake_dates,
)
from polyclinic.data.readers.names.words import SPLITS, Role, Word, cut, weak_visit


@dataclass(frozen=True)
class Told:
    """What was told from the paths.

    Attributes:
        files: one a path, in the same order.
        certain: whether nothing had to be guessed.
        split: number of patients whose name stands in two parts of a challenge (``train`` and ``test``).
        only_masks: all names are those of masks, and were read as if they were images.
    """

    files: list[Named]
    certain: bool
    split: int
    only_masks: bool


def tell(paths: Sequence[Levels]) -> Told:
    """Find patients, visits, repetitions and contrasts."""
    files = [Named(path, [cut(level) for level in path]) for path in paths]
    unmake_dates(files)
    find_time_points(files)
    certain = not cut_endings(files)
    find_channels(files)
    for file in files:
        read_roles(file)
    restore_names(files)
    only_masks = bool(files) and all(file.is_mask for file in files)
    if only_masks:
        for file in files:  # nothing but masks: what they mark can't be told from what an image shows
            file.is_mask = False
    certain &= dates_alone(files)
    drop_repeated(files)
    images = [file for file in files if not file.is_mask]
    patient = find_patient(images)
    for file in images:
        file.subject = patient.of(file.texts)
    _read_rest(images, patient)
    _match_masks([file for file in files if file.is_mask], images, patient)
    return Told(files, certain and patient.certain, _keep_splits_apart(files), only_masks)


# What is left of the row


def _read_rest(images: Sequence[Named], patient: Patient) -> None:
    """Words beside the patient's: numbers are visits or series, other words belong to the contrast."""
    places = [*sorted(patient.without), *range(patient.end, max((len(image.row) for image in images), default=0))]
    for image in images:
        for place, (level, word) in enumerate(image.row):
            image.label(level, word, "subject" if place < patient.end and place not in patient.without else "*")
    people: dict[tuple[str, ...], list[Named]] = defaultdict(list)
    for image in images:
        people[image.subject].append(image)
    for place in places:
        values = {
            person: {image.texts[place] if place < len(image.row) else "" for image in mine}
            for person, mine in people.items()
        }
        words = {word for found in values.values() for word in found if word}
        owners = {word: sum(word in found for found in values.values()) for word in words}
        varies = any(len(found) > 1 for found in values.values())
        role = _rest_role(images, place, words) if varies else "constant"
        for image in images:
            if place < len(image.row):
                level, word = image.row[place]
                _take_rest(image, level, word, role, rare=len(people) > 1 and owners[word.text] < 2)


def _rest_role(images: Sequence[Named], place: int, words: set[str]) -> str:
    if not numbered(words):
        return "contrast"
    here = [image for image in images if place < len(image.row)]
    in_file = all(image.row[place][0] == len(image.levels) - 1 for image in here)
    if in_file and all(re.fullmatch(r"00\d\d", word) for word in words) and all(len(i.words[-1]) > 1 for i in here):
        return "channel"
    if all(_follows_contrast(image, place) for image in here):
        return "series"  # T1_1 and T1_2
    seen = Counter((image.subject, image.signature, tuple(image.parts)) for image in images)
    if sum(seen.values()) - len(seen) <= 0.05 * len(images) and all(image.shows for image in images):
        return "series"  # numbers that part nothing
    if in_file and not all(weak_visit(word) or re.fullmatch(r"[\d.]+", word) for word in words):
        return "contrast"  # c1T1
    each: dict[tuple[object, ...], set[str]] = defaultdict(set)
    for image in here:
        each[image.subject, tuple(image.parts), image.texts[place]].add(image.shows)
    several = len({image.shows for image in here}) > 1
    if several and sum(len(shown) > 1 for shown in each.values()) <= 0.05 * len(each):
        return "series"  # numbers that never hold two contrasts count series, not visits
    return "session"


def _follows_contrast(image: Named, place: int) -> bool:
    level, word = image.row[place]
    words = image.words[level]
    before = words[words.index(word) - 1] if words.index(word) else None
    return level == len(image.levels) - 1 and before is not None and before.role == Role.CONTRAST


def _take_rest(image: Named, level: int, word: Word, role: str, *, rare: bool) -> None:
    if role == "session":
        image.parts.append(word.text)
        image.label(level, word, "session")
    elif role == "series":
        image.run = image.run or word.text
        image.label(level, word, "run")
    elif role == "channel":
        image.shows = image.shows or f"channel_{int(word.text)}"
        image.label(level, word, "contrast")
    elif role == "contrast":
        # A word that one patient alone has may be a name, and columns are shown.
        image.details.append("other" if rare else word.text)
        image.label(level, word, "contrast")
    elif not image.shows and not rare and not word.numbered and level == len(image.levels) - 1:
        image.details.append(word.text)


# Masks


def _match_masks(masks: Sequence[Named], images: Sequence[Named], patient: Patient) -> None:
    """A mask's patient is an image's whose words stand in the mask's name; what is left says what it marks."""
    people = {image.subject for image in images}
    folded: dict[tuple[str, ...], set[tuple[str, ...]]] = defaultdict(set)
    for person in people:
        folded[tuple(word.lower() for word in person)].add(person)
    short = _distinguishing(people)
    visits: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for image in images:
        visits[image.subject] |= {visit_key(part) for part in image.parts}
    for mask in masks:
        taken = _match(mask.texts, people, folded, short)
        if taken is None:
            mask.subject, mask.matched = patient.of(mask.texts), patient.of(mask.texts) in people
            begin, end = 0, min(patient.end, len(mask.row))
        else:
            mask.subject, begin, end = taken
        for place, (level, word) in enumerate(mask.row):
            if begin <= place < end:
                mask.label(level, word, "subject")
            elif visit_key(word.text) in visits[mask.subject]:
                if visit_key(word.text) not in map(visit_key, mask.parts):
                    mask.parts.append(word.text)
                mask.label(level, word, "session")
            else:
                mask.details.append(word.text)
                mask.label(level, word, "mask" if level == len(mask.levels) - 1 else "*")
    _hide_rare(masks)


def _hide_rare(masks: Sequence[Named]) -> None:
    """A word that the masks of one patient alone have may be a name, and columns are shown: it becomes ``other``."""
    owners: dict[str, set[tuple[str, ...]]] = defaultdict(set)
    for mask in masks:
        for word in mask.details:
            owners[word].add(mask.subject)
    several = len({mask.subject for mask in masks}) > 1
    for mask in masks:
        known = {word.text for words in mask.words for word in words if word.role} | {
            word.value for words in mask.words for word in words
        }
        mask.details = [
            word if word in known or len(owners[word]) > 1 or not several else "other" for word in mask.details
        ]


def _match(
    row: tuple[str, ...],
    people: set[tuple[str, ...]],
    folded: dict[tuple[str, ...], set[tuple[str, ...]]],
    short: dict[tuple[str, ...], tuple[str, ...]],
) -> tuple[tuple[str, ...], int, int] | None:
    """(patient, begin, end) of the longest run of words that is a patient's name, in capital letters or not."""
    spans = sorted(
        ((begin, end) for begin in range(len(row) + 1) for end in range(begin, len(row) + 1)),
        key=lambda span: (span[0] - span[1], span[0]),
    )
    for begin, end in spans:
        words = row[begin:end]
        alike = folded.get(tuple(word.lower() for word in words), set())
        if words in people:
            return words, begin, end
        if len(alike) == 1:
            return next(iter(alike)), begin, end
    for begin, end in spans:
        if row[begin:end] in short and end > begin:
            return short[row[begin:end]], begin, end
    return None


def _distinguishing(people: set[tuple[str, ...]]) -> dict[tuple[str, ...], tuple[str, ...]]:
    """Patients' names without the words that all of them have (``case`` of ``case_001``), where these still differ."""
    sizes = {len(person) for person in people}
    if len(people) < 2 or len(sizes) > 1:
        return {}
    varying = [place for place in range(sizes.pop()) if len({person[place] for person in people}) > 1]
    found = {tuple(person[place] for place in varying): person for person in people}
    return found if len(found) == len(people) else {}


def _keep_splits_apart(files: Sequence[Named]) -> int:
    """Patients ``001`` of ``train`` and of ``test`` are two if both have the same image; returns how many there are."""
    seen: dict[tuple[str, ...], dict[tuple[str, ...], set[str]]] = defaultdict(lambda: defaultdict(set))
    for file in files:
        if not file.is_mask:
            seen[file.subject][file.signature].add(_split(file))
    torn = {person for person, found in seen.items() if any(len(splits - {""}) > 1 for splits in found.values())}
    for file in files:
        if file.subject in torn and _split(file):
            file.subject = (_split(file), *file.subject)
    return len(torn)


def _split(file: Named) -> str:
    """``train``, ``test`` or ``val``, or "" where no folder says it."""
    names = {name.lower() for name in file.levels[:-1]}
    endings = {"tr": "train", "ts": "test", "va": "val"}
    for name in sorted(names & (SPLITS | {"labelstr", "labelsts", "labelsva"})):
        return endings.get(name[-2:], "test" if name.startswith("test") else name[:5] if name[0] == "t" else "val")
    return ""
