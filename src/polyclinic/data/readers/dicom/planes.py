"""The slices in a DICOM file, each with its place: one in most files, several in mosaics and multi-frame objects."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from polyclinic.data.readers.dicom.elements import quiet
from polyclinic.data.readers.dicom.facts import Facts, frame_facts
from polyclinic.data.readers.dicom.header import ENHANCED, VOLUMES, Header, unit_axes
from polyclinic.data.readers.dicom.ultrasound import REGIONS, ULTRASOUND, region_spacing
from polyclinic.data.readers.dicom.values import Scale, frame_scale
from polyclinic.data.readers.volume import UnreadableError
from polyclinic.notes import Note

if TYPE_CHECKING:
    from pydicom import Dataset

_SHARED, _PER_FRAME = 0x52009229, 0x52009230
_SIEMENS_CREATOR, _SIEMENS_IMAGE = 0x00290010, 0x00291010
_UNITED_CREATOR, _UNITED_FRAMES = 0x00650010, 0x00651051
_SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"
_MOST_FRAMES = 100_000
_OF_DEVICE = Note("N621", "whose place in space is that of the device: which side is left is not known.")
_NO_SIZE = Note("N620", "without a size of their pixels, which was taken for 1 mm.")


@dataclass(frozen=True, slots=True)
class Plane:
    """One two-dimensional image with its place.

    Attributes:
        header: of the file it is in.
        index: number of the frame or tile in the file, from 0.
        orientation, position, spacing, gap: as in ``Header``, of this plane.
        slope, intercept: from stored to real values.
        kind: image type and echo as text, for the image's name.
        facts: what tells it from other planes of its series.
        notes: as in ``Volume``.
    """

    header: Header
    index: int
    orientation: tuple[float, ...] | None
    position: tuple[float, ...] | None
    spacing: tuple[float, ...] | None
    gap: float | None
    slope: float
    intercept: float
    kind: str
    facts: Facts
    notes: tuple[Note, ...] = ()

    @property
    def size(self) -> tuple[int, int]:
        """Columns and rows."""
        across, down = tile_grid(self.header)
        return self.header.columns // across, self.header.rows // down


def tile_grid(header: Header) -> tuple[int, int]:
    """Tiles beside and below each other in a mosaic picture; (1, 1) in other files."""
    if not header.tiles:
        return 1, 1
    across = math.ceil(math.sqrt(header.tiles))
    # United Imaging leaves out rows of the square that would be empty; Siemens does not.
    down = math.ceil(header.tiles / across) if "VFRAME" in header.image_type else across
    return across, down


def find_planes(header: Header) -> list[Plane]:
    """All planes of a file.

    Raises:
        UnreadableError: the places of a mosaic's or a multi-frame object's slices can't be found.
    """
    if header.frames > _MOST_FRAMES:
        raise UnreadableError("more than 100,000 frames")
    if header.truncated:
        raise UnreadableError("pixels are truncated")
    if header.tiles and "VFRAME" in header.image_type:
        return _united_tiles(header)
    if header.tiles:
        return _siemens_tiles(header)
    if header.frames > 1 and header.sop_class == _SLIDE:
        raise UnreadableError("frames are tiles of a slide")
    if header.has_functional_groups:
        return _frames(header)
    if header.frames > 1 and header.modality in ("NM", "PT"):
        raise UnreadableError("frames of nuclear medicine have no positions of their own")
    if header.frames > 1 and (header.modality in ("CT", "MR") or header.sop_class in VOLUMES):
        raise UnreadableError("frames have no positions of their own")
    plain = _sized(_plain(header))
    return [_as_frame(plain, index) for index in range(header.frames)]


def _as_frame(plane: Plane, index: int) -> Plane:
    """The same plane as another frame of its file."""
    return replace(plane, index=index) if index else plane


def _plain(header: Header) -> Plane:
    return Plane(
        header,
        0,
        header.orientation,
        header.position,
        header.spacing,
        header.gap,
        header.slope,
        header.intercept,
        "\\".join((*header.image_type, header.echo)),
        header.facts,
        notes=header.notes,
    )


def _sized(plane: Plane) -> Plane:
    """The plane with the size of its pixels, or with a note that nobody knows it."""
    header = plane.header
    if plane.spacing is None and header.modality in ULTRASOUND:
        data = _dataset(header, [REGIONS])
        try:
            with quiet:
                plane = replace(plane, spacing=region_spacing(data))
        except Exception:  # damaged sequences raise many types
            raise UnreadableError("regions in the header of the ultrasound picture are damaged") from None
    # Photographs have no size in millimetres, and images with a place are refused without one.
    measured = header.samples == 1 or header.modality in ULTRASOUND
    if plane.spacing is None and measured and (plane.position is None or plane.orientation is None):
        plane = replace(plane, notes=(*plane.notes, _NO_SIZE))
    return plane


def _siemens_tiles(header: Header) -> list[Plane]:
    """Slices of a mosaic. The header gives the corner of the whole picture as if it were one slice."""
    normal, tiles = _siemens_header(header)
    header = replace(header, tiles=tiles)
    if header.orientation is None or header.position is None or header.spacing is None or header.gap is None:
        raise UnreadableError("mosaic without position, orientation or spacing")
    across, down = tile_grid(header)
    if header.columns % across or header.rows % down:
        raise UnreadableError("mosaic can't be divided into its slices")
    row, column = np.array(header.orientation[:3]), np.array(header.orientation[3:])
    width, height = header.columns // across, header.rows // down
    first = (
        np.array(header.position)
        + row * header.spacing[1] * (header.columns - width) / 2
        + column * header.spacing[0] * (header.rows - height) / 2
    )
    plain = _plain(header)
    places = [first + normal * header.gap * index for index in range(tiles)]
    return [replace(_as_frame(plain, index), position=tuple(place.tolist())) for index, place in enumerate(places)]


def _siemens_header(header: Header) -> tuple[npt.NDArray[np.float64], int]:
    """The direction in which slices follow each other, and their number, from the vendor's own header (CSA)."""
    data = _dataset(header, [_SIEMENS_CREATOR, _SIEMENS_IMAGE])
    with quiet:  # nibabel warns that its DICOM part is experimental
        from nibabel.nicom import csareader

        try:
            found = csareader.get_csa_header(data, "image")
            normal = None if found is None else csareader.get_slice_normal(found)
            stated = None if found is None else csareader.get_n_mosaic(found)
        except Exception:  # damaged headers raise many types
            raise UnreadableError("Siemens header of the mosaic is damaged") from None
    if header.orientation is None:
        raise UnreadableError("mosaic without position, orientation or spacing")
    across = np.cross(header.orientation[:3], header.orientation[3:])
    tiles = header.tiles if header.tiles > 0 else int(stated or 0)
    if normal is None or not 0 < tiles <= _MOST_FRAMES:
        raise UnreadableError("mosaic without the Siemens header that tells its slices")
    # The vendor's normal is rounded; only its sign is needed.
    return (across if float(np.dot(across, normal)) > 0 else -across), tiles


def _united_tiles(header: Header) -> list[Plane]:
    data = _dataset(header, [_UNITED_CREATOR, _UNITED_FRAMES])
    across, down = tile_grid(header)
    plain, planes = _plain(header), []
    try:
        with quiet:
            for index, item in enumerate(data[_UNITED_FRAMES].value):
                place = _floats(item.get("ImagePositionPatient"), 3)
                planes.append(replace(_as_frame(plain, index), position=place))
    except Exception:
        raise UnreadableError("positions of the frames in the United Imaging header are damaged") from None
    if len(planes) != header.tiles or header.columns % across or header.rows % down:
        raise UnreadableError("frames in the United Imaging header don't fit the picture")
    return planes


def _frames(header: Header) -> list[Plane]:
    """Frames of an enhanced object: what all share stands in one functional group, what differs in one a frame."""
    from pydicom import Dataset

    data = _dataset(header, [_SHARED, _PER_FRAME])
    try:
        with quiet:
            shared = data[_SHARED].value[0] if _SHARED in data and data[_SHARED].value else None
            groups = list(data[_PER_FRAME].value) if _PER_FRAME in data else []
            if not groups and header.sop_class not in ENHANCED:
                groups = [Dataset()] * header.frames
            if len(groups) != header.frames:
                raise UnreadableError("functional groups don't fit the number of frames")
            planes = [_sized(_frame(header, index, shared, group)) for index, group in enumerate(groups)]
            places = [plane.position is not None and plane.orientation is not None for plane in planes]
            if header.frames > 1 and not all(places) and (any(places) or header.sop_class in VOLUMES):
                raise UnreadableError("positions of the frames are missing from the functional groups")
            return planes
    except UnreadableError:
        raise
    except Exception:
        raise UnreadableError("functional groups are damaged") from None


def _frame(header: Header, index: int, shared: Dataset | None, group: Dataset) -> Plane:
    def find(sequence: str, attribute: str) -> object:
        for source in (group, shared):
            items = None if source is None else source.get(sequence)
            if items and attribute in items[0]:
                return items[0].get(attribute)
        return None

    spacing = _floats(find("PixelMeasuresSequence", "PixelSpacing"), 2)
    outer = Scale(header.slope, header.intercept, header.scanner_scale, ())
    scale = frame_scale(find, (group, shared), header.modality, header.vendor, outer)
    orientation = find("PlaneOrientationSequence", "ImageOrientationPatient") or find(
        "PlaneOrientationVolumeSequence", "ImageOrientationVolume"
    )
    position = find("PlanePositionSequence", "ImagePositionPatient")
    notes = header.notes + scale.notes
    if position is None:
        position = find("PlanePositionVolumeSequence", "ImagePositionVolume")
        notes += () if position is None else (_OF_DEVICE,)
    gap = find("PixelMeasuresSequence", "SpacingBetweenSlices") or find("PixelMeasuresSequence", "SliceThickness")
    types = ("MRImageFrameTypeSequence", "CTImageFrameTypeSequence", "PETFrameTypeSequence")
    kinds = [str(kind) for kind in (find(name, "FrameType") for name in types) if kind]
    echo = find("MREchoSequence", "EffectiveEchoTime")
    return Plane(
        header,
        index,
        unit_axes(_floats(orientation, 6)) or (header.orientation if orientation is None else None),
        _floats(position, 3) or (header.position if header.frames == 1 else None),
        spacing if spacing and min(spacing) > 0 else header.spacing,
        float(str(gap)) if gap else None,
        scale.slope,
        scale.intercept,
        "\\".join((*(kinds or header.image_type), f"{echo or ''}")),
        frame_facts(header.facts, find, kinds),
        notes=notes,
    )


def _floats(value: Any, count: int) -> tuple[float, ...] | None:
    """The ``count`` finite numbers of an element's value, else None."""
    if value is None:
        return None
    found = tuple(float(part) for part in (value if hasattr(value, "__iter__") else [value]))
    return found if len(found) == count and all(map(math.isfinite, found)) else None


def _dataset(header: Header, tags: list[int]) -> Dataset:
    import pydicom

    with quiet:
        try:
            return pydicom.dcmread(header.path, stop_before_pixels=True, specific_tags=tags, force=True)
        except Exception:
            raise UnreadableError("DICOM header is damaged") from None
