"""Notes: what a person should know of the data or of a run, though nothing was stopped.

Every kind of note has a number, as errors have, and the number has a section in ``docs/notes.md`` that says what it
means and what to do. A note is its sentence; number and cases go with it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

#: Number -> title. The hundreds tell where to look: 1 the study, 2 tables, patients and labels, 3 folders and names of
#: files, 4 masks, 5 DICOM series, 6 values and units, 7 the grid of volumes, 8 training and sites, 9 models in use.
TITLES: dict[str, str] = {
    "N101": "Volumes were planned",
    "N102": "Sites are simulated",
    "N103": "A part of a method has nothing to work on",
    "N104": "An attack does not reach a method, or does nothing",
    "N105": "Mixed precision was not used",
    "N106": "Shared memory could not be had",
    "N107": "A plug-in could not be loaded",
    "N108": "Sites were not compared with each other",
    "N109": "A worker process ended unexpectedly",
    "N110": "A privacy budget of the study leaves trainings out",
    "N111": "Labels of training cases are hidden",
    "N112": "A tracker was not told of everything",
    "N113": "The nodes of a cluster have different processors",
    "N201": "A patient's name stands at more than one site",
    "N202": "Cases repeat within a site",
    "N203": "Cases repeat at several sites",
    "N204": "Features are constant or missing",
    "N205": "A class has no case",
    "N206": "Rows name no site",
    "N207": "A pattern does not fit the patients' names",
    "N208": "A site is left out",
    "N209": "Cases have no label",
    "N211": "A column of numbers is written like codes",
    "N212": "One value seems to be spelt in several ways",
    "N213": "Codes seem to be rounded by a spreadsheet program",
    "N220": "Columns that number the rows were left out",
    "N221": "A feature may number the rows",
    "N222": "One feature alone separates the classes",
    "N223": "A feature is the label in other words",
    "N224": "Sites have different values of the label",
    "N225": "A site has cases of one class only",
    "N226": "Values of the label differ only in their writing",
    "N227": "The label has numbers beside words",
    "N228": "Values of the label look as if they meant that it is missing",
    "N229": "Copies of a case have different labels",
    "N230": "Patients' names differ only in their writing",
    "N231": "Many rows have one patient's name",
    "N232": "Patients' names look like visits or sides of a patient",
    "N233": "A patient has different labels",
    "N234": "Values are extreme",
    "N235": "A feature has another unit at a site",
    "N236": "Numbers look as if they meant that the value is missing",
    "N237": "Rows of a table are the same at several sites",
    "N238": "A column may name patients, and no subject is given",
    "N239": "Values that the study names stand in no row, or in other writing",
    "N240": "Values belong to no group of a subgroup",
    "N250": "The event happens at a site always, or never",
    "N251": "Other events count as the end of observation",
    "N252": "A patient has several times",
    "N253": "Times have another unit at a site",
    "N254": "Times have more digits than are kept",
    "N255": "A feature follows the time of the event",
    "N260": "Rows of a bag do not agree",
    "N261": "A bag's name stands at more than one site",
    "N265": "A frozen network starts from random weights",
    "N266": "Sites vote and do not train",
    "N270": "Test cases stand in the public set",
    "N271": "Cases of the public set can't be used",
    "N272": "The public set lacks a feature",
    "N273": "The public set has another range than the sites",
    "N274": "What a file of weights means was not checked",
    "N275": "A site has no label",
    "N278": "Made cases may be copies",
    "N279": "Made cases were not compared with a site's own",
    "N280": "Masks of patients were given to the server",
    "N285": "A site has no column of a finding",
    "N286": "Several labels are not judged in every way",
    "N287": "Models are asked for findings that they did not learn",
    "N290": "Images have one value everywhere",
    "N291": "Images have values below zero",
    "N295": "Sites did not outline all structures",
    "N296": "Features are changed as if they were scaled",
    "N301": "Columns of participants.tsv were left out",
    "N302": "participants.tsv was not used",
    "N303": "Patients' names or numbers stand in paths",
    "N304": "Text may be burnt into pictures",
    "N305": "Faces can be seen",
    "N310": "Names do not tell the patients for certain",
    "N311": "Patients' names stand in two parts of a data set",
    "N312": "Images of a visit can't be told apart",
    "N313": "Masks belong to no image",
    "N314": "Files do not fit the pattern",
    "N320": "Names in a table are written in another way",
    "N321": "Patients or visits have no row in a table",
    "N322": "Rows of a table have no image",
    "N323": "A table contradicts itself",
    "N324": "A table of a data set was not used",
    "N325": "Tables have a column of the same name",
    "N326": "Data sets share names of patients",
    "N401": "Masks have no foreground",
    "N402": "A structure is missing at a site",
    "N410": "Masks have several values",
    "N411": "Masks cover everything",
    "N412": "Masks cover more than half of every image",
    "N413": "Masks are written differently",
    "N414": "Transparency has a part in masks",
    "N415": "Image and mask were turned differently",
    "N416": "Masks run another way than their images",
    "N417": "Masks have other voxels than their images",
    "N419": "Pictures hold fewer bits than their files",
    "N420": "Pictures are dark, or have values above white",
    "N501": "DICOM images were mended",
    "N510": "Slices with different headers were joined",
    "N511": "A series was taken apart into passes",
    "N512": "Slices lie further apart than they are thick",
    "N513": "There are fewer slices than the header says",
    "N514": "The first slices may be missing",
    "N515": "A single slice was found",
    "N516": "Instance numbers have gaps",
    "N517": "An image may be a part of a stack",
    "N520": "DICOM studies have no patient's number",
    "N521": "One PatientID stands for several persons",
    "N522": "A PatientID has several spellings",
    "N523": "Patients' numbers look alike",
    "N524": "All studies have the same PatientID",
    "N610": "Images have no place in space",
    "N611": "Two places in space disagree",
    "N612": "Lengths were turned into millimetres",
    "N613": "Voxel sizes are unusual",
    "N614": "A scale of the values was left out",
    "N615": "Philips MR images lack the scanner's own scale",
    "N616": "Voxel sizes are below zero",
    "N617": "CT values may not be Hounsfield units",
    "N618": "A header does not say whether values have a sign",
    "N619": "Pixels use more bits than their header says",
    "N620": "The size of pixels is not known",
    "N621": "A place in space is that of the device",
    "N701": "A part of the mask lies outside the grid",
    "N702": "Structures are too small for the grid",
    "N710": "Axes are not at right angles",
    "N711": "Little of the image lies inside the grid",
    "N712": "The image fills little of the grid",
    "N713": "Grey values of DICOM pictures come from windows in part",
    "N801": "A site is too small for the split",
    "N802": "Harmonisation has few cases to go by",
    "N803": "A round went wrong",
    "N804": "Training diverged",
    "N805": "Metrics over all sites follow from counts",
    "N806": "A site has too few patients to say more",
    "N807": "Some sites did not answer when methods were compared",
    "N808": "A site says nothing of small groups of patients",
    "N809": "Batches have few events",
    "N810": "A site was not tested",
    "N811": "Sites kept updates back",
    "N812": "Summaries were told in sums",
    "N813": "Noise takes rows for patients",
    "N814": "Distances in sheared images are rough",
    "N901": "A site's part of a model was not found",
    "N902": "A site's cases were scaled by themselves",
    "N903": "Cases are unlike all that a model has seen",
    "N904": "Cases were not predicted",
    "N905": "The positive class has another name than in the model",
    "N906": "A model is evaluated at sites that trained it",
    "N907": "The final model is not calibrated",
    "N908": "Masks are not DICOM SEG",
    "N909": "Reconstructed from k-space that was made of images",
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
