"""Masks as DICOM segmentation objects (SEG): one a case, of the same patient and study as the series that it is of.

DICOM PS3.3 A.51. Each slice of the series with a structure gives a frame of that structure's segment, which lies where
the slice lies and refers to it. The object holds the patient's name and numbers as the series does: it is for the
hospital's own archive, and must not leave the site.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from polyclinic.data.readers.dicom.places import normal_of
from polyclinic.data.readers.dicom.series import Series
from polyclinic.data.readers.volume import UnreadableError
from polyclinic.errors import ModelError, PolyclinicError, nearest
from polyclinic.study.final_model.description import Description
from polyclinic.study.provenance import machine
from polyclinic.study.reading import read_yaml

if TYPE_CHECKING:
    from pydicom import Dataset

#: Ending of the files.
SEG = ".dcm"
#: Elements that a SEG takes over from the series, which DICOM lets be empty, but not be missing.
_TAKEN_OVER = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate",
    "StudyTime", "ReferringPhysicianName",
)  # fmt: skip
#: Elements without which nothing can refer to a series.
_NEEDED = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID", "FrameOfReferenceUID")
#: Longest texts of the value representations LO and SH.
_LONG, _SHORT = 64, 16
#: Numbers of the new series begin here, so that they come after those of scanners.
_FIRST_NUMBER = 9000


class Concept(NamedTuple):
    """A coded concept.

    Attributes:
        value: the code.
        scheme: who defines it: ``SCT`` (SNOMED CT), ``DCM``, ...
        meaning: in words.
    """

    value: str
    scheme: str
    meaning: str


@dataclass(frozen=True)
class Meaning:
    """What a segment is.

    Attributes:
        category: kind of structure, such as an organ or a morphological abnormality (CID 7150).
        kind: the structure itself.
        anatomy: where it lies, for structures that may lie anywhere.
    """

    category: Concept
    kind: Concept
    anatomy: Concept | None = None

    def to_json(self) -> list[list[str]]:
        """As JSON values."""
        return [list(one) for one in (self.category, self.kind, self.anatomy) if one is not None]


#: What a structure is of which nobody says more.
TISSUE = Concept("85756007", "SCT", "Tissue")
UNKNOWN = Meaning(TISSUE, TISSUE)


def read_meanings(path: Path, structures: Sequence[str]) -> dict[str, Meaning]:
    """What segments are, from a file: ``NAME: {category: [value, scheme, meaning], type: [...], anatomy: [...]}``.

    Raises:
        ModelError: P702, it is about other structures than the model's, or an entry is none.
        StudyError: P101, the file can't be read.
    """
    content, _ = read_yaml(path)
    found = {}
    for name, entry in content.items():
        if str(name) not in structures:
            raise ModelError("P702", f"{path.name} tells of {str(name)[:80]!r}, which the model does not find.",
                             nearest(str(name), list(structures)))  # fmt: skip
        keys = set(entry) if isinstance(entry, dict) else set()
        if not {"category", "type"} <= keys <= {"category", "type", "anatomy"}:
            raise ModelError("P702", f"{path.name}: {name} has no `category` and `type`, or other entries.",
                             "Give it {category: [value, scheme, meaning], type: [value, scheme, meaning]}, and "
                             "perhaps `anatomy`.")  # fmt: skip
        read = {key: _concept(entry[key], f"{path.name}, {name}: {key}") for key in entry}
        found[str(name)] = Meaning(read["category"], read["type"], read.get("anatomy"))
    return found


def _concept(given: Any, where: str) -> Concept:
    texts = [str(one) for one in given] if isinstance(given, list) else []
    if len(texts) != 3 or not all(texts) or max(map(len, texts[:2])) > _SHORT or len(texts[2]) > _LONG:
        raise ModelError("P702", f"{where} is {str(given)[:80]}; expected three texts: code, scheme (up to {_SHORT} "
                         f"characters each) and meaning (up to {_LONG}).",
                         "Such as [108369006, SCT, Neoplasm].")  # fmt: skip
    return Concept(*texts)


class SegWriter:
    """Writes the masks of a model as DICOM SEG.

    Args:
        description: of the model, which is named as the algorithm.
        meanings: what segments are, by name; others are `UNKNOWN`.

    Raises:
        PolyclinicError: P503, highdicom is not there.
        ModelError: P702, the model gives no masks of volumes, or its structures have names that don't fit.
    """

    def __init__(self, description: Description, meanings: Mapping[str, Meaning] | None = None) -> None:
        if find_spec("highdicom") is None:
            raise PolyclinicError("P503", "DICOM SEG needs the package highdicom, which is not installed.",
                                  "pip install 'polyclinic[dicom-seg]'")  # fmt: skip
        if description.target != "masks" or description.data.preprocessing is None:
            raise ModelError("P702", "DICOM SEG is for masks of volumes, and this model gives none.",
                             "Leave out `--masks`.")  # fmt: skip
        self.description = description
        self.meanings = {name: (meanings or {}).get(name, UNKNOWN) for name in description.classes[1:]}
        long = next((name for name in self.meanings if len(name) > _LONG or "\\" in name), None)
        if long is not None:
            raise ModelError("P702", f"The name {long[:80]!r} can't be the label of a segment: DICOM takes {_LONG} "
                             "characters, and no backslash.", "Leave out `--masks`.")  # fmt: skip

    def write(self, path: Path, mask: npt.NDArray[np.uint8], series: Series) -> None:
        """Write a mask.

        Without any voxel of a structure all its frames are written, empty.

        Args:
            path: of the file.
            mask: class indices ``[X, Y, Z]`` (columns, rows, slices), as the series is read.
            series: that it is of.

        Raises:
            UnreadableError: no SEG can refer to this series, and why.
        """
        sources, order = _sources(series)
        frames = np.ascontiguousarray(mask.transpose(2, 1, 0)[order])
        try:
            made = self._made(sources, frames, series)
        except (AttributeError, KeyError, TypeError, ValueError) as error:  # the message may quote the header
            raise UnreadableError(f"DICOM headers do not fit a SEG ({type(error).__name__})") from None
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.stem}.tmp{SEG}")
        made.save_as(draft, enforce_file_format=True)
        draft.replace(path)

    def _made(self, sources: list[Dataset], frames: npt.NDArray[np.uint8], series: Series) -> Any:
        import highdicom
        from highdicom.seg import Segmentation, SegmentationTypeValues

        title = f"{self.description.study}: {self.description.method}".replace("\\", "/")[:_LONG]
        first, empty = sources[0], not frames.any()
        return Segmentation(
            source_images=sources,
            pixel_array=frames,
            segmentation_type=SegmentationTypeValues.BINARY,
            segment_descriptions=self._segments(title),
            series_instance_uid=highdicom.UID(),
            series_number=_FIRST_NUMBER + int(first.get("SeriesNumber") or 0) % 1000,
            sop_instance_uid=highdicom.UID(),
            instance_number=1,
            manufacturer="Polyclinic",
            manufacturer_model_name=title,
            software_versions=str(machine()["versions"]["polyclinic"]),
            device_serial_number=self.description.number[:_LONG],
            content_label="SEGMENTATION",
            content_description=title,
            content_creator_name="Polyclinic^",  # a name of one part
            series_description=title,
            pixel_measures=_measures(series),
            omit_empty_frames=not empty,
        )

    def _segments(self, title: str) -> list[Any]:
        from highdicom import AlgorithmIdentificationSequence
        from highdicom.seg import SegmentAlgorithmTypeValues, SegmentDescription
        from highdicom.sr import CodedConcept
        from pydicom.sr.codedict import codes

        def coded(one: Concept) -> Any:
            return CodedConcept(one.value, one.scheme, one.meaning)

        parameters = {"threshold": f"{self.description.threshold:g}"} if len(self.meanings) == 1 else None
        algorithm = AlgorithmIdentificationSequence(
            name=title, version=self.description.number[:_LONG], family=codes.DCM.ArtificialIntelligence,
            source="Polyclinic", parameters=parameters,
        )  # fmt: skip
        return [
            SegmentDescription(
                segment_number=number,
                segment_label=name,
                segmented_property_category=coded(meaning.category),
                segmented_property_type=coded(meaning.kind),
                algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
                algorithm_identification=algorithm,
                anatomic_regions=None if meaning.anatomy is None else [coded(meaning.anatomy)],
            )
            for number, (name, meaning) in enumerate(self.meanings.items(), start=1)
        ]


def _sources(series: Series) -> tuple[list[Dataset], list[int]]:
    """Headers of the files to refer to, and which slice of the mask is the first, second, ... frame.

    Raises:
        UnreadableError: no SEG can refer to them, and why.
    """
    import pydicom

    first = series.planes[0][0]
    if first.position is None or first.orientation is None:
        raise UnreadableError("DICOM image has no place in space")
    if first.header.tiles:
        raise UnreadableError("slices are tiles of a mosaic")
    planes, order = [column[0] for column in series.planes], list(range(len(series.planes)))
    if first.header.frames > 1:
        frames = [plane.index for plane in planes]
        if len(series.files) > 1 or sorted(frames) != list(range(first.header.frames)):
            raise UnreadableError("frames of the DICOM file are not one for each slice")
        order, planes = np.argsort(frames).tolist(), [first]
    found = [pydicom.dcmread(plane.header.path, stop_before_pixels=True, force=True) for plane in planes]
    for data in found:
        lacking = [name for name in _NEEDED if not data.get(name)]
        if lacking:
            raise UnreadableError(f"DICOM headers have no {lacking[0]}")
        for name in _TAKEN_OVER:
            if name not in data:
                setattr(data, name, "")
        _share_geometry(data, found[0], single=first.header.frames == 1)
    if len({(data.StudyInstanceUID, data.FrameOfReferenceUID) for data in found}) > 1:
        raise UnreadableError("slices have several frames of reference")
    return found, order


def _share_geometry(data: Dataset, first: Dataset, *, single: bool) -> None:
    """Say once for all slices what the reader knows to be the same: highdicom compares headers to the last digit, and
    looks for what frames share in one place only. Nothing is written to the file."""
    if single:
        data.ImageOrientationPatient = first.ImageOrientationPatient
        if not data.get("SliceThickness"):
            data.SliceThickness = 1  # `_measures` has the right one
        return
    shared, frame = data.SharedFunctionalGroupsSequence[0], data.PerFrameFunctionalGroupsSequence[0]
    for name in ("PixelMeasuresSequence", "PlaneOrientationSequence"):
        if name not in shared and name in frame:
            setattr(shared, name, frame[name].value)


def _measures(series: Series) -> Any:
    """Sizes of the voxels; between slices the distance along their normal, which is not that of a tilted stack."""
    from highdicom import PixelMeasuresSequence

    columns, rows = np.linalg.norm(series.affine[:3, :2], axis=0).tolist()
    steps = np.array(series.planes[-1][0].position) - np.array(series.planes[0][0].position)
    apart = abs(float(normal_of(series.planes[0][0]) @ steps)) / max(len(series.planes) - 1, 1)
    apart = apart or float(np.linalg.norm(series.affine[:3, 2]))
    thickness = series.planes[0][0].gap or apart
    return PixelMeasuresSequence([rows, columns], slice_thickness=thickness, spacing_between_slices=apart)
