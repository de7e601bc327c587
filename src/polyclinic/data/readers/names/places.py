"""From what names say to the cells of a manifest: columns for contrasts, rows for visits, masks beside their images."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from polyclinic.data.readers.names.named import Named, visit_key
from polyclinic.data.readers.names.words import Word

AMBIGUOUS = "mask may belong to several images of its patient"


@dataclass
class Place:
    """Where one file stands in the manifest.

    Attributes:
        subject: name of the patient as written.
        session: name of the visit, "" where no word says it.
        run: which of several images of one kind in a visit.
        column: what it shows, or what it marks.
        is_mask: whether voxels are labels.
        reason: why it can't be used.
        layout: its path with ``{subject}``, ``{session}``, ``{run}``, ``{contrast}`` and ``{mask}`` for what was told,
            and ``*`` for words that say nothing.
        example: its path with ``***`` for the patient and ``#`` for letters and digits of visits.
    """

    subject: str
    session: str
    run: str
    column: str
    is_mask: bool
    reason: str
    layout: str
    example: str


@dataclass
class Placed:
    """Places of all files, and what has to be said of them.

    Attributes:
        places: one a file, in the files' order.
        crowded: number of visits with several images that no word tells apart.
        strangers: number of masks whose patient or visit has no image.
    """

    places: list[Place]
    crowded: int = 0
    strangers: int = 0


@dataclass
class _Row:
    named: Named
    session: tuple[str, ...]
    run: str
    order: int
    column: str = ""
    reason: str = ""
    rivals: list[_Row] = field(default_factory=list)


def place(files: Sequence[Named]) -> Placed:
    """Sessions, repetitions and columns of files."""
    order = {file.levels: number for number, file in enumerate(sorted(files, key=lambda file: file.levels))}
    rows = [_Row(file, tuple(map(visit_key, file.parts)), file.run, order[file.levels]) for file in files]
    images = [row for row in rows if not row.named.is_mask]
    masks = [row for row in rows if row.named.is_mask]
    strangers = _find_visits(masks, images)
    _name_images(images)
    crowded = _number_images(images)
    _find_runs(masks, images)
    _name_masks(masks)
    texts = _session_texts(files)
    places = [
        Place(
            subject="_".join(row.named.subject),
            session="_".join(texts[key] for key in row.session),
            run=row.run,
            column=row.column,
            is_mask=row.named.is_mask,
            reason=row.reason,
            layout=_layout(row.named),
            example=_layout(row.named, shown=True),
        )
        for row in rows
    ]
    return Placed(places, crowded, strangers)


def _session_texts(files: Sequence[Named]) -> dict[str, str]:
    texts: dict[str, str] = {}
    for part in sorted({part for file in files for part in file.parts}):
        texts.setdefault(visit_key(part), part)
    return texts


def _find_visits(masks: Sequence[_Row], images: Sequence[_Row]) -> int:
    """Give masks whose name tells less, or more, than images' the only visit that fits; count those that fit none."""
    visits: dict[tuple[str, ...], set[tuple[str, ...]]] = defaultdict(set)
    for image in images:
        visits[image.named.subject].add(image.session)
    strangers = 0
    for mask in masks:
        known = visits[mask.named.subject]
        own = set(mask.session)
        finer = [visit for visit in known if own <= set(visit)]
        coarser = [visit for visit in known if own > set(visit)]
        if mask.session in known:
            continue
        if len(finer) == 1 or (not finer and len(coarser) == 1):
            mask.session = (finer or coarser)[0]
        elif finer:
            mask.reason = AMBIGUOUS
        else:
            strangers += 1
    return strangers


def _name_images(images: Sequence[_Row]) -> None:
    """What a word says alone, where that tells a visit's images apart, else with further words of the name."""
    known = any(image.named.shows for image in images)
    for image in images:
        # Beside contrasts that are known, an image of another kind is not just an image.
        image.column = image.named.shows or "_".join(dict.fromkeys(image.named.details * known))
    for base in _clashing(images):
        mine = [image for image in images if image.column == base and (not base or image.named.shows)]
        if not mine:
            continue
        same = set.intersection(*({*image.named.details} for image in mine))
        for image in mine:
            apart = [word for word in image.named.details if not base or word not in same]
            image.column = "_".join(dict.fromkeys([base, *apart] if base else apart))
    for image in images:
        image.column = image.column or "image"


def _visit(row: _Row) -> tuple[object, ...]:
    return row.named.subject, row.session


def _clashing(rows: Sequence[_Row], *, runs: bool = True) -> list[str]:
    counts = Counter((*_visit(row), row.run if runs else "", row.column) for row in rows if not row.reason)
    return sorted({str(key[-1]) for key, count in counts.items() if count > 1})


def _number_images(images: Sequence[_Row]) -> int:
    """Repetitions count where a visit has several images of a column; where no word counts them, their order does."""
    several = Counter((*_visit(image), image.column) for image in images)
    repeated = [image for image in images if several[*_visit(image), image.column] > 1]
    counted = {(*_visit(image), image.run) for image in repeated}
    alike: dict[tuple[object, ...], list[_Row]] = defaultdict(list)
    for image in repeated:
        alike[*_visit(image), image.run, image.column].append(image)
    for image in images:
        if (*_visit(image), image.run) not in counted:
            image.run = ""
    crowded = set()
    for found in alike.values():
        if len(found) > 1:
            crowded.add(_visit(found[0]))
            for number, image in enumerate(sorted(found, key=lambda image: image.order), 1):
                image.run, image.rivals = f"{image.run}#{number}", found
    return len(crowded)


def _find_runs(masks: Sequence[_Row], images: Sequence[_Row]) -> None:
    """A mask goes with the repetition that its name tells, or with the image whose whole name it begins with."""
    visits: dict[tuple[object, ...], list[_Row]] = defaultdict(list)
    for image in images:
        visits[_visit(image)].append(image)
    for mask in masks:
        beside = visits[_visit(mask)]
        runs = {image.run for image in beside}
        if mask.reason or not beside:
            continue
        if runs == {""}:
            mask.run = ""
        elif any(image.rivals for image in beside) or mask.run not in runs:
            _find_rival(mask, beside)
        elif not mask.run and not any(not i.run and i.named.shows == mask.named.shows for i in beside):
            mask.reason = AMBIGUOUS


def _find_rival(mask: _Row, beside: Sequence[_Row]) -> None:
    levels = mask.named.levels
    named = [image for image in beside if levels[-1].lower().startswith(image.named.levels[-1].lower())]
    longest = max((len(image.named.levels[-1]) for image in named), default=0)
    found = [image for image in named if len(image.named.levels[-1]) == longest]
    if len({image.run for image in found}) > 1:
        found = [image for image in found if image.named.levels[:-1] == levels[:-1]]
    runs = {image.run for image in found} or {image.run for image in beside if image.column == mask.named.shows}
    if len(runs) == 1:
        mask.run = runs.pop()
    else:
        mask.reason = AMBIGUOUS


def _name_masks(masks: Sequence[_Row]) -> None:
    """``mask`` where each visit has one, else what the mask belongs to or marks."""
    if not _clashing(masks):
        for mask in masks:
            mask.column = "mask"
        return
    for mask in masks:
        mask.column = mask.named.shows or "_".join(mask.named.details)
    for base in _clashing(masks):
        for mask in masks:
            if mask.column == base and mask.named.details and mask.named.shows:
                mask.column = "_".join(dict.fromkeys([base, *mask.named.details]))
    for mask in masks:
        mask.column = f"{mask.column}_mask".lstrip("_")


def _layout(file: Named, *, shown: bool = False) -> str:
    """The path with what its words were taken for; ``shown``: with the words themselves, but for those of patients."""
    first = {
        word.text.lower(): file.labels[level, word.start]
        for level in range(len(file.levels) - 1, -1, -1)
        for word in file.words[level]
        if (level, word.start) in file.labels
    }
    levels = []
    for level, text in enumerate(file.levels):
        pieces: list[tuple[str, str]] = []  # (what, text)
        end = 0
        for word in sorted(file.words[level], key=lambda word: word.start):
            what = file.labels.get((level, word.start)) or ("" if word.role else first.get(word.text.lower(), "*"))
            written = _shown(what, word) if shown else f"{{{what}}}" if what.strip("*") else what or word.text
            if pieces and pieces[-1][0] == what and what:
                between = text[end : word.start] + written if shown and what != "subject" else ""
                pieces[-1] = (what, pieces[-1][1] + between)
            else:
                pieces += [("", text[end : word.start]), (what, written)]
            end = word.end
        pieces.append(("", text[end:]))
        levels.append("".join(piece for _, piece in pieces))
    return "/".join(levels)


def _shown(what: str, word: Word) -> str:
    if what in ("subject", "*"):
        return "***"
    if what in ("session", "run"):
        return re.sub(r"\d" if word.role else r"\w", "#", word.text)
    return word.text if word.role or not what else "***"
