"""Whether the entries about masks that are not there, or are hidden, fit the study."""

from __future__ import annotations

from collections.abc import Sequence

from polyclinic.candidates import MOST_CANDIDATES
from polyclinic.data.masks.classes import MaskClasses
from polyclinic.data.spec import DataSpec, Target
from polyclinic.errors import StudyError, nearest
from polyclinic.notes import Note
from polyclinic.options import EntryError


def check_hints(spec: DataSpec, target: Target) -> None:
    """Stop where boxes and names of structures, or what a study leaves of masks, can't be read or mean nothing.

    Raises:
        EntryError: P102 or P104 with the place of the entry.
    """

    def refuse(key: str, message: str, hint: str) -> None:
        raise EntryError("P104", message, hint, place=("data", key))

    if spec.structures is not None:
        _check_structures(spec, target)
    leaves = spec.labels.leaves if spec.labels is not None else None
    if target != "masks":
        if spec.box is not None:
            refuse("box", "`box` is for segmentation.", "Take it out.")
        if leaves is not None:
            refuse("labels", "`leaves` is for segmentation: it says what stays of a mask.", "Take it out.")
        return
    if spec.mask is None or not (spec.hint_columns or leaves):
        return
    if spec.box is not None and spec.preprocessing is not None:
        refuse("box", "Boxes are read for pictures, and these are volumes.",
               "Give masks, or names of the structures that a volume shows (`label`). To try boxes of volumes, hide "
               "masks: `labels: {leaves: box, sites: [...]}`.")  # fmt: skip
    names = MaskClasses.of(spec).names[1:]
    if len(names) > MOST_CANDIDATES:
        refuse("labels" if leaves else "box" if spec.box else "label",
               f"Boxes and names of structures can be used for up to {MOST_CANDIDATES} structures; got {len(names)}.",
               "Name fewer in `mask_classes`.")  # fmt: skip
    unfit = next((name for name in names if ";" in name), None)
    if unfit is not None:
        refuse("mask_classes", f"`;` divides boxes and names of structures, and the name {unfit!r} has one.",
               "Give another name.")  # fmt: skip


def unannotated(spec: DataSpec) -> dict[str, list[int]]:
    """Site -> numbers of the structures that it did not outline; sites that outlined all are not there."""
    names = MaskClasses.of(spec).names[1:]
    found = {
        site: [number for number, name in enumerate(names, start=1) if name not in own]
        for site, own in (spec.structures or {}).items()
    }
    return {site: numbers for site, numbers in found.items() if numbers}


def _check_structures(spec: DataSpec, target: Target) -> None:
    def refuse(message: str, hint: str, code: str = "P104") -> None:
        raise EntryError(code, message, hint, place=("data", "structures"))

    if target != "masks" or not spec.mask_classes:
        refuse("`structures` says which of several structures a site outlines.", "Name them in `mask_classes`.")
    names = MaskClasses.of(spec).names[1:]
    if len(names) > MOST_CANDIDATES:
        refuse(f"Sites may outline different structures where there are up to {MOST_CANDIDATES}; got {len(names)}.",
               "Name fewer in `mask_classes`.")  # fmt: skip
    for site, own in (spec.structures or {}).items():
        for name in own:
            if name not in names:
                refuse(f"`structures` of {site} names {name!r}, which is none of `mask_classes`.",
                       nearest(name, list(names)), "P103")  # fmt: skip


def structure_notes(spec: DataSpec, sites: Sequence[str]) -> list[Note]:
    """A note on sites that did not outline all structures.

    Args:
        spec: the ``data:`` part of the study file.
        sites: names of all sites that have cases.

    Raises:
        StudyError: P103, there is no such site; P104, no site outlines a structure.
    """
    if spec.structures is None:
        return []
    for site in spec.structures:
        if site not in sites:
            raise StudyError("P103", f"`structures` names the site {site!r}, which is not there.",
                             nearest(site, list(sites)))  # fmt: skip
    lacking, names = unannotated(spec), MaskClasses.of(spec).names
    for number in range(1, len(names)):
        if all(number in lacking.get(site, []) for site in sites):
            raise StudyError("P104", f"No site outlines {names[number]!r}.", "Take it out of `mask_classes`.")
    if not lacking:
        return []
    each = "; ".join(f"{site} ({', '.join(names[number] for number in own)})" for site, own in lacking.items())
    text = f"Some sites did not outline all structures: {each}. There these are unknown, neither there nor background: "
    return [Note("N295", text + "nothing is learned of where they are not, and they are not scored.")]
