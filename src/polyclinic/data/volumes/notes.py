"""What a person should know of how images and the study's grid go together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from polyclinic.notes import Note

#: Less of an image's foreground than this in the grid, or less of the grid in the image, is told.
LEAST_INSIDE = 0.5
LEAST_FILLED = 0.2


def grid_notes(site: str, about: Sequence[dict[str, Any]], cases: Sequence[str]) -> list[Note]:
    """Notes on one site's prepared volumes.

    Args:
        site: its name.
        about: one record a case, see `Prepared`.
        cases: the cases' names, in the same order.
    """
    every, notes = len(about), []

    def named(chosen: Sequence[int]) -> list[str]:
        return [cases[position] for position in chosen]

    sheared = [position for position, record in enumerate(about) if record["sheared"] > 0]
    if sheared:
        most = max(about[position]["sheared"] for position in sheared)
        text = (
            f"Site {site}: the axes of {len(sheared)} of {every} images are not at right angles, by up to {most:.3g} "
            "degrees (a tilted gantry, or a shear): they were brought to a grid with right angles, and spacings are "
            "the true distances of the slices."
        )
        notes.append(Note("N710", text, named(sheared)))
    outside = [position for position, record in enumerate(about) if record["inside"] < LEAST_INSIDE]
    if outside:
        least = min(about[position]["inside"] for position in outside)
        text = (
            f"Site {site}: in {len(outside)} of {every} cases less than {100 * LEAST_INSIDE:.0f} % of what the image "
            f"shows lies inside the grid (the least: {100 * least:.0f} %): use a larger `size` or `spacing`, or "
            "`centre: foreground`."
        )
        notes.append(Note("N711", text, named(outside)))
    empty = [position for position, record in enumerate(about) if record["filled"] < LEAST_FILLED]
    if empty:
        least = min(about[position]["filled"] for position in empty)
        text = (
            f"Site {site}: in {len(empty)} of {every} cases the image fills less than {100 * LEAST_FILLED:.0f} % of "
            f"the grid (the least: {100 * least:.2g} %), and the rest is padding: use a smaller `size` or `spacing`, "
            "or leave out images of a few slices."
        )
        notes.append(Note("N712", text, named(empty)))
    return notes
