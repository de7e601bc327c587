"""Notes on single images, and how many of a site have them.

A reader that finds something odd about an image, which is no reason to refuse it, gives the volume a `Note`. Its text
goes on where "3 images" stops: ``Note("N610", "without a place in space: which side is left is a guess.")``. Equal
notes of a site's images become one note that counts them, with the names of their cases.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from polyclinic.data.cases import SiteData
from polyclinic.data.volumes.store import Volumes
from polyclinic.notes import Note


def count_notes(
    found: Iterable[tuple[str, Iterable[Note]]], *, site: str = "", things: tuple[str, str] = ("image", "images")
) -> list[Note]:
    """One note for all images that have the same one, in the order of numbers and texts.

    >>> note = Note("N501", "mended: doubled slices dropped.")
    >>> count_notes([("a.dcm", [note]), ("b.dcm", []), ("c.dcm", [note])], site="north")[0]
    'Site north: 2 images mended: doubled slices dropped.'

    Args:
        found: name of each image's case, and its notes; the same note twice counts once.
        site: name of the site that is put first; "" for none.
        things: what is counted, one and several.
    """
    cases: dict[tuple[str, str], list[str]] = defaultdict(list)
    for case, notes in found:
        for key in dict.fromkeys((note.number, str(note)) for note in notes):
            cases[key].append(case)
    start = f"Site {site}: " if site else ""
    return [
        Note(number, f"{start}{len(named)} {things[len(named) > 1]} {text}", cases=named)
        for (number, text), named in sorted(cases.items())
    ]


def volume_notes(sites: dict[str, SiteData]) -> list[Note]:
    """What readers noted on the volumes of each site, images first, then masks."""
    notes = []
    for site, data in sites.items():
        if not isinstance(data.inputs, Volumes):
            continue
        for kind in ("image", "mask"):
            found = [
                (case, [Note.from_json(note) for note in record["notes"] if note["of"] == kind])
                for case, record in zip(data.cases, data.inputs.about, strict=True)
            ]
            notes += count_notes(found, site=site, things=(kind, f"{kind}s"))
    return notes
