"""What the report says of the methods: what each is, which are references, and which are shown first."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from polyclinic.methods import PUBLISHED
from polyclinic.study.kinds import PLAIN
from polyclinic.study.report.folder import Folder
from polyclinic.study.report.tables import plain

#: Figures with a panel a method show so many at first; the others are folded.
SHOWN = 6
#: Methods of the catalogue to compare with, which are among those shown.
COMPARED = ("single", "mix", "fedavg")


@dataclass(frozen=True)
class MethodLine:
    """What is said of one method: its options are those that neither its name nor its label tells."""

    label: str
    summary: str
    citation: str
    options: str


def method_lines(folder: Folder) -> list[MethodLine]:
    """A line a method."""
    lines = []
    for label in folder.methods:
        name, options = entry(folder, label)
        about = PUBLISHED.get(name)
        untold = _untold(label, name, options)
        lines.append(
            MethodLine(
                label=label,
                summary=about.summary if about else "",
                citation=about.citation if about else "",
                options=plain(untold) if untold else "",
            )
        )
    return lines


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
        lines = (folder.line(label, folder.primary.name, over) for over in ("all", "sites"))
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
    if name not in PUBLISHED:  # of another version
        return {}
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
