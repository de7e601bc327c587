"""Notes: what a person should know of the data or of a run, though nothing was stopped.

Every kind of note has a number, as errors have, and the number has a section in ``docs/notes.md`` that says what it
means and what to do. A note is its sentence; number and cases go with it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

#: Number -> title. The hundreds tell where to look: 1 the study, 2 tables, patients and labels, 3 folders and names of
#: files, 4 masks, 5 DICOM series, 6 values and units, 7 the grid of volumes, 8 training and sites.
TITLES: dict[str, str] = {
    "N101": "Volumes were planned",
    "N102": "Sites are simulated",
    "N103": "A part of a method has nothing to work on",
    "N104": "An attack does not reach a method, or does nothing",
    "N105": "Mixed precision was not used",
    "N201": "A patient's name stands at more than one site",
    "N202": "Cases repeat within a site",
    "N203": "Cases repeat at several sites",
    "N204": "Features are constant or missing",
    "N205": "A class has no case",
    "N206": "Rows name no site",
    "N207": "A pattern does not fit the patients' names",
    "N208": "A site is left out",
    "N301": "Columns of participants.tsv were left out",
    "N302": "participants.tsv was not used",
    "N303": "Patients' names or numbers stand in paths",
    "N304": "Text may be burnt into pictures",
    "N305": "Faces can be seen",
    "N401": "Masks have no foreground",
    "N402": "A structure is missing at a site",
    "N501": "DICOM images were mended",
    "N701": "A part of the mask lies outside the grid",
    "N710": "Axes are not at right angles",
    "N711": "Little of the image lies inside the grid",
    "N712": "The image fills little of the grid",
    "N713": "Grey values of DICOM pictures come from windows in part",
    "N801": "A site is too small for the split",
    "N802": "Harmonisation has few cases to go by",
    "N803": "A round went wrong",
    "N804": "Training diverged",
}


class Note(str):
    """A sentence for a person, which is equal to its text.

    Args:
        number: one of ``TITLES``.
        text: what was found, with counts, and what to do; it names no patient, file or value of a patient, since it may
            leave the site.
        cases: which cases it is about (rows of the table or image files). They are shown at the site alone.

    Raises:
        ValueError: there is no such number.
    """

    number: str
    cases: tuple[str, ...]

    __slots__ = ("cases", "number")

    def __new__(cls, number: str, text: str, cases: Iterable[str] = ()) -> Note:
        """See the class."""
        if number not in TITLES:
            raise ValueError(f"unknown note number {number!r}")
        note = super().__new__(cls, text)
        note.number, note.cases = number, tuple(cases)
        return note

    def __reduce__(self) -> tuple[type[Note], tuple[str, str, tuple[str, ...]]]:
        return type(self), (self.number, str(self), self.cases)

    def to_json(self) -> dict[str, str]:
        """What is written to results: number and text, no cases."""
        return {"number": self.number, "text": str(self)}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Note:
        """What ``to_json`` wrote."""
        return cls(content["number"], content["text"])
