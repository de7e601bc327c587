"""From stored to real values: what DICOM headers and functional groups say of slope and intercept.

Philips MR has two scales. RescaleSlope and RescaleIntercept make the numbers that a screen shows, which differ from
scan to scan; with the private scale slope, values of different scans can be compared (Chenevert et al., Translational
Oncology 7:65-71, 2014):

    real value = (stored · slope + intercept) / (slope · scale slope)
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from polyclinic.data.readers.volume import UnreadableError
from polyclinic.notes import Note

if TYPE_CHECKING:
    from pydicom import Dataset

_PHILIPS = "Philips MR Imaging DD 001"
_PHILIPS_FRAME = "Philips MR Imaging DD 005"
_BLOCKS = range(0x10, 0x20)
"""Private blocks of group 2005 in which the elements may be: each exporting program numbers them anew."""
TAGS = {f"philips_creator_{block:x}": 0x20050000 | block for block in _BLOCKS} | {
    f"philips_scale_{block:x}": 0x2005000E | block << 8 for block in _BLOCKS
}
"""Further elements of the allow-list of ``dicom_header``."""

_NO_SCALE = Note("N615", "of Philips MR without the scanner's own scale: values of different scans can't be compared.")
_SLOPE_OF_ZERO = Note("N614", "with a rescale slope of 0, which was taken for 1.")
_NO_UNIT = Note("N617", "of CT without RescaleIntercept: the values may not be Hounsfield units.")
_NO_SIGN = Note("N618", "whose header does not say whether values have a sign: they were read as if not.")


class Scale(NamedTuple):
    """From stored to real values, and what should be known of them.

    Attributes:
        slope, intercept: real value = stored · slope + intercept.
        scanner: Philips' scale slope; None where there is none.
        notes: as in ``Volume``.
    """

    slope: float
    intercept: float
    scanner: float | None
    notes: tuple[Note, ...]


class Texts(Protocol):
    """How elements of a header are looked up by name."""

    order: str

    def text(self, name: str) -> str:
        """The element as text, "" where it is missing."""

    def short(self, name: str) -> int:
        """A whole number of two bytes, 0 where the element is missing."""

    def raw(self, name: str) -> bytes | None:
        """The bytes of the element, None where it is missing."""


def header_scale(texts: Texts, modality: str, vendor: str, *, grouped: bool) -> Scale:
    """The scale of a file with one set of values for all its pixels (``grouped``: with functional groups instead).

    Raises:
        UnreadableError: slope or intercept is there, but is no number.
    """
    slope, intercept = _number(texts.text("slope")), _number(texts.text("intercept"))
    table = texts.raw("modality_table") is not None
    scanner = None
    if modality == "MR":
        scanner = next(filter(None, (_classic_scale(texts, block) for block in _BLOCKS)), None)
    grey = texts.short("samples") <= 1
    notes = (_NO_SIGN,) if grey and texts.raw("signed") is None and texts.short("bits_allocated") > 8 else ()
    if table:  # which stands instead of a slope
        return Scale(1.0, 0.0, scanner, notes)
    if grouped:  # whose own slope counts, where they have one
        return Scale(slope or 1.0, intercept or 0.0, scanner, notes)
    scale = _combined(slope, intercept, scanner, modality, vendor)
    return scale._replace(notes=(*notes, *scale.notes) if grey else ())


def frame_scale(
    find: Callable[[str, str], Any], groups: Iterable[Dataset | None], modality: str, vendor: str, outer: Scale
) -> Scale:
    """The scale of one frame of an object with functional groups.

    Args:
        find: looks up an attribute in a functional group, first in the frame's own.
        groups: the frame's functional groups, then those that all frames share.
        modality, vendor: of the object.
        outer: what stands outside of the groups, for what they leave open.
    """
    kind = "PixelValueTransformationSequence"
    slope, intercept = (_number(_text(find(kind, f"Rescale{name}"))) for name in ("Slope", "Intercept"))
    if slope is None and intercept is None and find("RealWorldValueMappingSequence", "RealWorldValueSlope") is not None:
        # Parametric maps have no other scale: their unit stands beside this one.
        kind = "RealWorldValueMappingSequence"
        slope, intercept = (_number(_text(find(kind, f"RealWorldValue{name}"))) for name in ("Slope", "Intercept"))
    elif slope is None and intercept is None and find("RealWorldValueMappingSequence", "RealWorldValueLUTData"):
        raise UnreadableError("real world values are in a table")
    if slope is None and intercept is None and (outer.slope, outer.intercept) != (1.0, 0.0):
        slope, intercept = outer.slope, outer.intercept
    own = None
    if modality == "MR":
        own = next(filter(None, map(_frame_scale, filter(None, groups))), outer.scanner)
    return _combined(slope, intercept, own, modality, vendor)


def _combined(slope: float | None, intercept: float | None, scanner: float | None, modality: str, vendor: str) -> Scale:
    notes = []
    if slope == 0:
        notes.append(_SLOPE_OF_ZERO)
    if modality == "CT" and intercept is None:
        notes.append(_NO_UNIT)
    if modality == "MR" and vendor == "Philips" and scanner is None:
        notes.append(_NO_SCALE)
    slope, intercept = slope or 1.0, intercept or 0.0
    if scanner is not None:
        slope, intercept = 1.0 / scanner, intercept / (slope * scanner)
    return Scale(slope, intercept, scanner, tuple(notes))


def _classic_scale(texts: Texts, block: int) -> float | None:
    found = texts.raw(f"philips_scale_{block:x}")
    if found is None or texts.text(f"philips_creator_{block:x}") != _PHILIPS:
        return None
    return _usable(found, texts.order)


def _frame_scale(group: Dataset) -> float | None:
    """The scale slope in a functional group: in Philips' own sequence, or among what a classic image had."""
    places = [_private(group, _PHILIPS_FRAME, 0x0F)]
    places += [group.get(f"Unassigned{name}ConvertedAttributesSequence") for name in ("PerFrame", "Shared")]
    for items in places:
        for item in items or ():
            found = _usable(_private(item, _PHILIPS, 0x0E))
            if found is not None:
                return found
    return _usable(_private(group, _PHILIPS, 0x0E))


def _private(data: Dataset, creator: str, element: int) -> Any:
    try:
        return data.private_block(0x2005, creator)[element].value
    except KeyError:
        return None


def _usable(value: Any, order: str = "<") -> float | None:
    """A number above zero, stored as a binary one, as its bytes or in digits; else None."""
    if isinstance(value, bytes) and len(value) == 4:
        (value,) = struct.unpack(order + "f", value)
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) and number > 0 else None


def _text(value: object) -> str:
    return "" if value is None else str(value)


def _number(text: str) -> float | None:
    """The number, None where there is no text.

    Raises:
        UnreadableError: it is none.
    """
    if not text:
        return None
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise UnreadableError("slope or intercept in the DICOM header is no number")
    return number
