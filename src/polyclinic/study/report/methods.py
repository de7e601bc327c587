"""What the report says of the methods: what each is, which are references, and which are shown first."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from polyclinic.methods import PLAIN_PARTS, PUBLISHED, Method
from polyclinic.study.kinds import PLAIN
from polyclinic.study.report.folder import Folder
from polyclinic.study.report.tables import plain

#: Figures with a panel a method show so many at first; the others are folded.
SHOWN = 6
#: Methods of the catalogue to compare with, which are among those shown.
COMPARED = ("single", "mix", "fedavg")
#: Where a study file names parts.
_PLACES = ("local", "channel", "personal", "server", "topology", "procedure")


@dataclass(frozen=True)
class MethodLine:
    """What is said of one method.

    Attributes:
        label: its label.
        summary: what the method of this name does; empty where other parts take the place of what makes it this method.
        parts: name, with options, and words for each part that the study file gives it besides.
        citation: where these are from.
        options: those that neither its name nor its label tells.
    """

    label: str
    summary: str
    parts: list[tuple[str, str]]
    citation: str
    options: str


def method_lines(folder: Folder) -> list[MethodLine]:
    """A line a method."""
    return [_line(folder, label) for label in folder.methods]


def _line(folder: Folder, label: str) -> MethodLine:
    name, options = entry(folder, label)
    about = _about_method(folder, name)
    others = _other_parts(name, options)
    said = {place for place, _, _ in others} if name in PUBLISHED else set(_PLACES)
    untold = {key: value for key, value in _untold(label, name, options).items() if key not in said}
    if name in PUBLISHED and not _is_itself(PUBLISHED[name].method, options, others):
        about = Told("", "")
        untold = {key: value for key, value in untold.items() if key in ("share", "training")}  # of the parts it has
    told = [about, *(_about_part(folder, place, part) for place, part, _ in others)]
    return MethodLine(
        label=label,
        summary=about.summary,
        parts=[
            (plain({part: given}) if given else part, words.summary)
            for (_, part, given), words in zip(others, told[1:], strict=True)
        ],
        citation="; ".join(dict.fromkeys(one.source for one in told if one.source)),
        options=plain(untold) if untold else "",
    )


class Told(NamedTuple):
    """What is said of a method or a part: a sentence or two, and the source."""

    summary: str
    source: str


def _about_method(folder: Folder, name: str) -> Told:
    if name in PUBLISHED:
        return Told(PUBLISHED[name].summary, PUBLISHED[name].citation)
    return _described(folder, "methods", name)


def _about_part(folder: Folder, place: str, part: str) -> Told:
    """What the published method says that has this part and nothing else, or the part of itself."""
    for one in PUBLISHED.values():
        if _makes(one.method) == {(place, part)}:
            return Told(one.summary, one.citation)
    return _described(folder, "parts", part)


def _described(folder: Folder, kind: str, name: str) -> Told:
    """What was written down when the study was run, so that parts need not be loaded, nor be there."""
    told = (folder.provenance.get("described") or {}).get(kind, {}).get(name, ("", ""))
    return Told(*map(str, told))


def _makes(method: Method) -> set[tuple[str, str]]:
    """What makes a method differ from fedavg."""
    others = {("share", str(method.share)), ("work", method.work), ("scope", method.scope)}
    return (set(method.named_parts) | others) - PLAIN_PARTS - {
        ("share", "all"), ("work", "train"), ("scope", "federation"),
    }  # fmt: skip


def _is_itself(method: Method, options: dict[str, Any], others: list[tuple[str, str, Any]]) -> bool:
    """Whether a method with ``others`` besides is still what its name says."""
    kept = _makes(method)
    for place in ("server", "personal", "topology", "procedure"):
        if options.get(place) is not None:
            names = {name for name, _ in _entries(options[place])}
            if any(one == place and name not in names for one, name in kept):
                return False
    if options.get("share", method.share) != method.share and ("share", method.share) in kept:
        return False
    # A mean of models is no more where something else puts them together.
    return bool(kept) or not any(place in ("server", "topology", "procedure") for place, _, _ in others)


def _other_parts(name: str, options: dict[str, Any]) -> list[tuple[str, str, Any]]:
    """Place, name and options of the parts that a study file gives a method besides its own."""
    own = PLAIN_PARTS | set(PUBLISHED[name].method.named_parts if name in PUBLISHED else [])
    found = [(place, *one) for place in _PLACES for one in _entries(options.get(place))]
    return [one for one in found if one[:2] not in own]


def _entries(given: Any) -> list[tuple[str, Any]]:
    """Name and options of the parts of an entry: ``star``, ``{krum: {corrupt: 1}}``, or a list of such."""
    if given is None:
        return []
    entries = given if isinstance(given, list) else [given]
    return [next(iter(one.items())) if isinstance(one, dict) and one else (str(one), {}) for one in entries]


def entry(folder: Folder, label: str) -> tuple[str, dict[str, Any]]:
    """Name in the catalogue and options of a method of the study file."""
    return folder.declared.get(label, (folder.name(label), {}))


def is_reference(folder: Folder, label: str) -> bool:
    """Whether a method is there to be compared with (single, ensemble, mix), not a federation."""
    about = PUBLISHED.get(folder.name(label))
    return about is not None and about.place == PUBLISHED["single"].place


def featured(folder: Folder) -> list[str]:
    """Titles of the panels shown at first: all if they are few, else the methods compared and the best of the rest."""
    if len(folder.titles) <= SHOWN + 1:  # to fold a single one would save nothing
        return list(folder.titles.values())

    def merit(label: str) -> float:
        lines = (folder.line(label, folder.primary.name, over) for over in ("sites", "all"))
        sign = 1 if folder.primary.higher_is_better else -1
        return next((sign * float(line["mean"]) for line in lines if line is not None), -np.inf)

    ranked = sorted(folder.methods, key=lambda label: (folder.name(label) not in COMPARED, -merit(label)))
    return [folder.titles[label, PLAIN] for label in folder.methods if label in ranked[:SHOWN]]


def _untold(label: str, name: str, options: dict[str, Any]) -> dict[str, Any]:
    """Options without the parts that the method has anyway, and without those that its label spells out."""
    usual = _usual_parts(name, options)
    told = set(re.split(r"[(),] *", label))

    def is_told(key: str, value: Any) -> bool:
        has_it_anyway = key in usual and usual[key] in (value, [value])
        return value in (None, []) or has_it_anyway or f"{key}={value}" in told

    return {key: value for key, value in options.items() if not is_told(key, value)}


def _usual_parts(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """The parts of a published method with its options, as the study file has them."""
    if name not in PUBLISHED:  # of a plug-in, or of another version
        return {"share": "all"}
    method = PUBLISHED[name].method

    def usual(part: tuple[str, Any], given: Any) -> Any:
        # Options of a method are those of its parts; what the study file says of a part is compared with them.
        own = given.get(part[0], {}) if isinstance(given, dict) else {}
        named = {key: options[key] for key in own if key in options}
        return {part[0]: named} if isinstance(given, dict) else part[0]

    def each(parts: Any, given: Any) -> list[Any]:
        listed = given if isinstance(given, list) else [given]
        return [usual(part, one) for part, one in zip(parts, listed, strict=False)]

    return {
        "share": method.share,
        "personal": None if method.personal is None else usual(method.personal, options.get("personal")),
        "server": each(method.server, options.get("server")),
        "topology": usual(method.topology, options.get("topology")),
        "procedure": usual(method.procedure, options.get("procedure")),
    }
