"""What tests ask of the notes on opened data."""

from __future__ import annotations

from polyclinic.data.opening.cohort import Opened
from polyclinic.notes import Note


def numbers(found: Opened) -> list[str]:
    """The numbers of the notes."""
    return [note.number for note in found.notes]


def note(found: Opened, number: str) -> Note:
    """The one note with this number."""
    (one,) = [note for note in found.notes if note.number == number]
    return one
