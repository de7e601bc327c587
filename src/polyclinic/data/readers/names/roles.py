"""What words with a meaning of their own say in all paths of a folder, and the rows of words that are left."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace

from polyclinic.data.readers.names.named import Named, visit_key
from polyclinic.data.readers.names.words import Role, Word

_STEM = -1
_GROUPS = ("patients", "subjects", "cases", "participants")
_ENDED = re.compile(r"(.*\d)([LR]|[A-Da-d]|[A-Za-z]{1,2}\d{1,2})", re.I)


def _places(file: Named) -> Iterable[tuple[int, int, tuple[Word, ...]]]:
    """(level, depth by which levels of several files are compared, words)."""
    last = len(file.words) - 1
    for level, words in enumerate(file.words):
        yield level, _STEM if level == last else level, words


def _change(file: Named, level: int, old: Word, role: Role) -> None:
    new = Word(old.text, old.start, old.end, role, "", old.glued)
    file.words[level] = tuple(new if word is old else word for word in file.words[level])


def unmake_dates(files: Sequence[Named]) -> None:
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


def find_time_points(files: Sequence[Named]) -> None:
    """Folders ``T0``, ``T1``, ``T2`` are time points where ``T0`` or ``T3`` is among them or files say what they show.

    ``patients`` is a group where ``controls`` stands beside it. ``pre`` and ``post`` are visits as folders side by
    side, ``test`` and ``retest`` wherever both stand.
    """
    alone: dict[int, set[str]] = defaultdict(set)
    for file in files:
        for _, depth, words in _places(file):
            if depth != _STEM and len(words) == 1:
                alone[depth].add(words[0].text.lower())
    unknown = {depth for file in files for _, depth, words in _places(file) if len(words) == 1 and not words[0].role}
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
                if key in _GROUPS and depth in unknown and len(words) == 1:
                    _change(file, level, word, Role.NONE)  # beside ``controls``
                elif (timed and depth != _STEM and beside) or paired or tested:
                    _change(file, level, word, Role.VISIT)


def cut_endings(files: Sequence[Named]) -> bool:
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


def find_channels(files: Sequence[Named]) -> None:
    """``_0000`` at the end of names in ``imagesTr`` is a channel, but not if the masks' names have it, too.

    Where there is no mask, it is one if there are not more such numbers than names without them.
    """
    masks = {file.levels[-1].lower() for file in files if any(w.role == Role.MASK for ws in file.words for w in ws)}
    ending = []
    for file in files:
        words = file.words[-1]
        inside = {"imagestr", "imagests", "imagesva"} & {name.lower() for name in file.levels}
        if inside and len(words) > 1 and not words[-1].role and re.fullmatch(r"\d{4}", words[-1].text):
            ending.append((file, file.levels[-1][: words[-1].start - 1].lower()))
    bare = sum(stem in masks for _, stem in ending)
    whole = sum(file.levels[-1].lower() in masks for file, _ in ending)
    names, numbers = {stem for _, stem in ending}, {file.words[-1][-1].text for file, _ in ending}
    if bare > whole or (bare == whole and len(numbers) <= len(names)):
        for file, _ in ending:
            word = file.words[-1][-1]
            channel = replace(word, role=Role.CONTRAST, value=f"channel_{int(word.text)}")
            file.words[-1] = (*file.words[-1][:-1], channel)


def read_roles(file: Named) -> None:
    """Take what words with a meaning of their own say, and leave the others in ``file.row``."""
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


def restore_names(files: Sequence[Named]) -> None:
    """A folder among many that are patients is a patient, too, though its name has a meaning (``PD``, ``Norm``)."""
    images = [file for file in files if not file.is_mask]
    for folder in range(max((len(file.levels) for file in images), default=0) - 1):
        named = [file for file in images if any(level == folder for level, _ in file.row)]
        for file in images:
            if file.row or folder >= len(file.words) - 1 or len(named) < 0.8 * len(images):
                continue
            words = file.words[folder]
            own = any(word.role == Role.CONTRAST for word in file.words[-1])
            if len(words) == 1 and (words[0].role == Role.DETAIL or (words[0].role == Role.CONTRAST and own)):
                _change(file, folder, words[0], Role.NONE)
                file.row = ((folder, file.words[folder][0]),)
                file.labels.pop((folder, words[0].start), None)
                file.details = [word for word in file.details if word != words[0].text]


def dates_alone(files: Sequence[Named]) -> bool:
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


def drop_repeated(files: Sequence[Named]) -> None:
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
