"""Which words of NIfTI paths are the patient, the visit, the repetition and the contrast, told from all paths together.

Words with a meaning of their own (``words``) are set aside. What is left of a path is a row of words, outermost first.
The patient is the shortest beginning of these rows that tells persons apart. Reading from the left, each word that splits
the files further is judged: it either makes groups into patients (``north/P1``), or divides a patient (``P1/000``). A word
that comes back under many others (``000`` and ``001`` under every patient) divides; one that stands under one alone, or
that many stand beside under few others, is the patient. Where numbers of both kinds are alike this can't be known: the
result says so, and a pattern (``pattern``) settles it. Nothing depends on the order of the files.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from polyclinic.data.readers.words import SPLITS, Role, Word, cut, patient_word, site_word, weak_visit

Levels = tuple[str, ...]
"""A path's folders and, last, its file name without ending."""
_STEM = -1
_ENDED = re.compile(r"(.*\d)([LR]|[A-Da-d]|[A-Za-z]{1,2}\d{1,2})", re.I)
_RECUR = 0.5
"""Share of words that come back under several others from which on they divide patients."""


@dataclass
class Named:
    """What the name of one file says.

    Attributes:
        levels: its path.
        words: for each level.
        is_mask: whether voxels are labels.
        shows: what it shows, as far as a word says it.
        parts: words of the visit.
        run: word of the repetition.
        details: further words of the contrast, or of what a mask marks.
        row: words without a meaning of their own, outermost first.
        subject: words of the patient.
        labels: (level, start) of a word -> what it was taken for.
        matched: whether an image has the mask's patient.
    """

    levels: Levels
    words: list[tuple[Word, ...]]
    is_mask: bool = False
    shows: str = ""
    parts: list[str] = field(default_factory=list)
    run: str = ""
    details: list[str] = field(default_factory=list)
    row: tuple[tuple[int, Word], ...] = ()
    subject: tuple[str, ...] = ()
    labels: dict[tuple[int, int], str] = field(default_factory=dict)
    matched: bool = True

    @property
    def texts(self) -> tuple[str, ...]:
        """The words of ``row``."""
        return tuple(word.text for _, word in self.row)

    @property
    def signature(self) -> tuple[str, ...]:
        """What words with a meaning say, but for dates: two images of one patient that differ in it need no other word.

        Dates are left out, since all images of a hospital may differ in them.
        """
        parts = (visit_key(part) for part in self.parts if not re.search(r"\d{4}", part))
        return (*parts, "|", self.run, self.shows, *self.details)

    def label(self, level: int, word: Word, what: str) -> None:
        """Remember what a word was taken for."""
        self.labels[level, word.start] = what


@dataclass(frozen=True)
class Told:
    """What was told from the paths.

    Attributes:
        files: one a path, in the same order.
        certain: whether nothing had to be guessed.
        split: number of patients whose name stands in two parts of a challenge (``train`` and ``test``).
    """

    files: list[Named]
    certain: bool
    split: int


def tell(paths: Sequence[Levels]) -> Told:
    """Find patients, visits, repetitions and contrasts."""
    files = [Named(path, [cut(level) for level in path]) for path in paths]
    _unmake_dates(files)
    _find_time_points(files)
    certain = not _cut_endings(files)
    for file in files:
        _read_roles(file)
    if files and all(file.is_mask for file in files):
        for file in files:  # nothing but masks: what they mark can't be told from what an image shows
            file.is_mask = False
    certain &= _dates_alone(files)
    _drop_repeated(files)
    images = [file for file in files if not file.is_mask]
    patient = _find_patient(images)
    for file in images:
        file.subject = patient.of(file.texts)
    _read_rest(images, patient)
    _match_masks([file for file in files if file.is_mask], images, patient)
    return Told(files, certain and patient.certain, _keep_splits_apart(files))


def visit_key(part: str) -> str:
    """``ses-01`` and ``ses_1`` are one visit, ``2019-03-01`` and ``20190301`` as well."""
    plain = re.sub(r"[-_.\s]", "", part.lower())
    return plain if re.fullmatch(r"\d{8}", plain) else re.sub(r"(?<!\d)0+(?=\d)", "", plain)


# Roles


def _places(file: Named) -> Iterable[tuple[int, int, tuple[Word, ...]]]:
    """(level, depth by which levels of several files are compared, words)."""
    last = len(file.words) - 1
    for level, words in enumerate(file.words):
        yield level, _STEM if level == last else level, words


def _change(file: Named, level: int, old: Word, role: Role) -> None:
    new = Word(old.text, old.start, old.end, role, "", old.glued)
    file.words[level] = tuple(new if word is old else word for word in file.words[level])


def _unmake_dates(files: Sequence[Named]) -> None:
    """Eight digits are dates where all eight-digit words at that level are: else they are patients' numbers."""
    numbers = {
        depth
        for file in files
        for _, depth, words in _places(file)
        for word in words
        if not word.role and re.fullmatch(r"\d{8}", word.text)
    }
    for file in files:
        for level, depth, words in list(_places(file)):
            for word in words:
                if word.glued and depth in numbers:
                    _change(file, level, word, Role.NONE)


def _find_time_points(files: Sequence[Named]) -> None:
    """Folders ``T0``, ``T1``, ``T2`` are time points where ``T0`` or ``T3`` is among them or files say what they show.

    ``pre`` and ``post`` are visits as folders side by side, ``test`` and ``retest`` wherever both stand.
    """
    alone: dict[int, set[str]] = defaultdict(set)
    for file in files:
        for _, depth, words in _places(file):
            if depth != _STEM and len(words) == 1:
                alone[depth].add(words[0].text.lower())
    every = {word.text.lower() for file in files for _, _, words in _places(file) for word in words}
    for file in files:
        own = any(word.role == Role.CONTRAST for word in file.words[-1])
        for level, depth, words in list(_places(file)):
            for word in words:
                key = word.text.lower()
                beside = alone[depth] if len(words) == 1 else set()
                timed = re.fullmatch(r"t\d", key) and (own or any(re.fullmatch(r"t[03-9]", name) for name in beside))
                paired = key in ("pre", "post") and {"pre", "post"} <= beside
                tested = key in ("test", "retest") and {"test", "retest"} <= every
                if (timed and depth != _STEM and beside) or paired or tested:
                    _change(file, level, word, Role.VISIT)


def _cut_endings(files: Sequence[Named]) -> bool:
    """Cut ``P01L`` and ``P01R``, or ``P01V1`` and ``P01V2``, where most numbers come with several of few endings.

    Returns whether words were cut: twins may be called so, too.
    """
    endings: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for file in files:
        for _, depth, words in _places(file):
            for word in words:
                if not word.role and (match := _ENDED.fullmatch(word.text)):
                    kind = re.sub(r"\d", "", match[2]).lower() if match[2][-1].isdigit() else "letter"
                    endings[f"{depth} {kind}"][match[1]].add(match[2])
    cut_kinds = set()
    for kind, found in endings.items():
        several = sum(len(here) > 1 for here in found.values())
        if 1 < len(found) <= 2 * several and len(set().union(*found.values())) <= max(4, len(found) // 2):
            cut_kinds.add(kind)
    for file in files:
        for level, depth, words in list(_places(file)):
            new: list[Word] = []
            for word in words:
                match = None if word.role else _ENDED.fullmatch(word.text)
                kind = re.sub(r"\d", "", match[2]).lower() if match and match[2][-1].isdigit() else "letter"
                if match and f"{depth} {kind}" in cut_kinds:
                    middle = word.start + len(match[1])
                    new += [Word(match[1], word.start, middle), Word(match[2], middle, word.end)]
                else:
                    new.append(word)
            file.words[level] = tuple(new)
    return bool(cut_kinds)


def _read_roles(file: Named) -> None:
    last = len(file.words) - 1
    row = []
    for level, words in enumerate(file.words):
        for word in words:
            if word.role == Role.MASK:
                file.is_mask = True
                if level == last:
                    file.label(level, word, "mask")
                file.details += [word.value] if word.value else []
            elif word.role == Role.VISIT:
                part = _date_of(word.text)
                if visit_key(part) not in map(visit_key, file.parts):
                    file.parts.append(part)
                file.label(level, word, "session")
            elif word.role == Role.RUN:
                file.run = word.text
                file.label(level, word, "run")
            elif word.role == Role.DETAIL:
                file.details.append(word.text)
                file.label(level, word, "contrast")
            elif not word.role:
                channel = re.fullmatch(r"\d{4}", word.text) and level == last and word is words[-1] and len(words) > 1
                if channel and {"imagestr", "imagests"} & {name.lower() for name in file.levels}:
                    file.shows = f"channel_{int(word.text)}"
                    file.label(level, word, "contrast")
                else:
                    row.append((level, word))
    file.row = tuple(sorted(row, key=lambda item: not item[1].patient))
    _read_contrast(file)


def _read_contrast(file: Named) -> None:
    """The file name's first word for a contrast, else the nearest folder's."""
    for level in range(len(file.words) - 1, -1, -1):
        found = [word for word in file.words[level] if word.role == Role.CONTRAST]
        if found and not file.shows:
            file.shows = found[0].value
            file.details += [word.text for word in found[1:]]
            for word in found:
                file.label(level, word, "contrast")


def _date_of(text: str) -> str:
    """A date without the time of day: series of one visit begin at different times."""
    if re.match(r"(19|20)\d{6}(?!\d\d?$)", text) and len(text) > 8:
        return text[:8]
    long = re.match(r"(?:19|20)\d\d[-_.]\d\d[-_.]\d\d|\d\d?[-_.]\d\d?[-_.](?:19|20)\d\d", text)
    return long[0] if long else text


def _dates_alone(files: Sequence[Named]) -> bool:
    """Where nothing but dates tells files apart, each date is a patient's name; that is a guess."""
    if any(file.row for file in files) or not files:
        return True
    dates = {part for file in files for part in file.parts if re.search(r"\d{4}", part)}
    if len(dates) < 2:
        return True
    for file in files:
        for level, words in enumerate(file.words):
            for word in words:
                if word.role == Role.VISIT and _date_of(word.text) in dates and not file.row:
                    file.parts.remove(_date_of(word.text))
                    file.labels.pop((level, word.start))
                    file.row = ((level, word),)
    return False


def _drop_repeated(files: Sequence[Named]) -> None:
    """Words that a file name repeats from its folder (``P1/P1_T1``) count once, if all names do so."""
    depth = max((len(file.levels) for file in files), default=0)
    for folder in range(depth - 1):
        pairs = []
        for file in files:
            outer = tuple(word.text.lower() for level, word in file.row if level == folder)
            inner = tuple(word.text.lower() for level, word in file.row if level > folder)
            if outer and inner and not file.is_mask:
                pairs.append((outer, inner))
        if pairs and all(_find(outer, inner) is not None for outer, inner in pairs):
            for file in files:
                _drop_from(file, folder)


def _drop_from(file: Named, folder: int) -> None:
    outer = tuple(word.text.lower() for level, word in file.row if level == folder)
    head = [item for item in file.row if item[0] <= folder]
    tail = [item for item in file.row if item[0] > folder]
    while outer and (place := _find(outer, tuple(word.text.lower() for _, word in tail))) is not None:
        del tail[place : place + len(outer)]
    file.row = (*head, *tail)


def _find(wanted: tuple[str, ...], words: tuple[str, ...]) -> int | None:
    size = len(wanted)
    return next((place for place in range(len(words) - size + 1) if words[place : place + size] == wanted), None)


# The patient


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


def _find_patient(images: Sequence[Named]) -> Patient:
    rows = [image.texts for image in images]
    if images and all(image.row and image.row[0][1].patient for image in images):
        return Patient(1)
    longest = max(map(len, rows), default=0)
    patient, split_by = Patient(), []
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
    return next((place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


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
    outer_numbered, inner_numbered = _numbered(outer), _numbered(several)
    children = sum(map(len, groups.values())) / count
    recurring = sum(inner.count(word) > 1 for word in several) / len(several)
    if _speaks(images, split_by[-1], site_word):
        return "finer", True
    if recurring == 1 and children >= 2 * count and not outer_numbered and not any(image.shows for image in images):
        return "outer shows", False
    people = _speaks(images, split_by[-1], patient_word), _speaks(images, place, patient_word)
    if people == (False, True):
        return "finer", True
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
    if inner_numbered and outer_numbered and weak and count == children:
        return "divides", False
    return "finer", False


def _speaks(images: Sequence[Named], place: int, says: Callable[[str], bool]) -> bool:
    """Whether words at ``place``, or those before them in the same name, say what they are (``site1``, ``hospital-a``)."""
    for image in images:
        if place < len(image.row):
            level, word = image.row[place]
            before = [other.text for own, other in image.row[:place] if own == level][-1:]
            if any(map(says, [word.text, *before])):
                return True
    return False


def _numbered(words: Iterable[str]) -> bool:
    """Whether most of the words have a digit."""
    found = [any(letter.isdigit() for letter in word) for word in set(words)]
    return 2 * sum(found) > len(found)


def _has_visit_below(image: Named, place: int) -> bool:
    if place >= len(image.row):
        return True
    return any(what == "session" and level > image.row[place][0] for (level, _), what in image.labels.items())


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
    if not _numbered(words):
        return "contrast"
    here = [image for image in images if place < len(image.row)]
    if all(re.fullmatch(r"00\d\d", word) for word in words) and all(
        image.row[place][0] == len(image.levels) - 1 for image in here
    ):
        return "channel"
    if all(_follows_contrast(image, place) for image in here):
        return "series"  # T1_1 and T1_2
    seen = Counter((image.subject, image.signature, tuple(image.parts)) for image in images)
    if sum(seen.values()) - len(seen) <= 0.05 * len(images) and all(image.shows for image in images):
        return "series"  # numbers that part nothing
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
    elif not image.shows and not word.numbered and level == len(image.levels) - 1:
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
    """(patient, begin, end) of the longest run of words that is a patient's name; letters' case is the last to differ."""
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
