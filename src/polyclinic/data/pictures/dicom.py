"""Single DICOM images as pictures: radiographs, and colours of ultrasound, skin, endoscopy, fundus or slide overviews.

Grey values become 8 bits as a screen would show them: by the window (or the table of grey values, VOI LUT) that the
header gives, the first of several; where there is none, by the whole range of the bits that the header says are stored.

Source: DICOM PS3.3, C.11.2.1 (VOI LUT and window).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from polyclinic.data.readers.dicom.elements import quiet
from polyclinic.data.readers.dicom.header import Header
from polyclinic.data.readers.dicom.pixels import read_pixels
from polyclinic.data.readers.dicom.series import Series
from polyclinic.data.readers.nifti.read import is_nifti
from polyclinic.data.readers.read import READERS, find_series, read_with, reader_of
from polyclinic.data.readers.volume import UnreadableError, Volume
from polyclinic.notes import Note
from polyclinic.origins import of_module

if TYPE_CHECKING:
    from pydicom import Dataset

Floats = npt.NDArray[np.float64]

_PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif")
_DICOM = (".dcm", ".dicom", ".ima")
#: First bytes of a DICOM file without preamble: an element of group 0002 or 0008.
_STARTS = (b"\x02\x00", b"\x08\x00")
#: Modalities whose values have a unit.
_UNITS = ("CT", "PT")
_LEVEL_TAGS = [
    "WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence", "ModalityLUTSequence", "PixelRepresentation",
]  # fmt: skip
#: An image that spans so many grey values may not become one of less than half as many.
_FEWEST_LEVELS = 64
_INSTEAD = "use `preprocessing` with `size: [columns, rows, 1]` instead of `size`"


def is_scan(path: Path) -> bool:
    """Whether a table's cell names a DICOM image (a file, a folder, ``FOLDER#SERIES``) or a NIfTI file."""
    suffix = path.suffix.lower()
    if suffix in _PICTURES:
        return False
    if is_entered(path):
        return path.is_file()
    if path.is_dir() or is_nifti(path) or suffix in _DICOM:
        return path.exists()
    if not path.exists():
        return "#" in path.name and path.with_name(path.name.rpartition("#")[0]).is_dir()
    with path.open("rb") as file:
        start = file.read(132)
    return start[128:] == b"DICM" or start[:2] in _STARTS


def is_entered(path: Path) -> bool:
    """Whether a plug-in brings the reader of a file."""
    ending = reader_of(path)
    return bool(ending and of_module(READERS[ending].__module__))


def _of_volume(found: Volume, kind: str) -> Image.Image:
    """What a plug-in read as a picture: values of 8 bits, those of 16 bits, or colours of 8 bits."""
    values = found.values
    if values.shape[2] != 1 or (values.ndim == 4 and not (found.colour and values.shape[3] == 3)):
        raise UnreadableError(f"{kind} is a volume, or has several frames: {_INSTEAD}")
    pixels = np.ascontiguousarray(values[:, :, 0].swapaxes(0, 1))
    if pixels.dtype not in (np.uint8, np.uint16) or (pixels.ndim == 3 and pixels.dtype != np.uint8):
        raise UnreadableError(f"{kind} has values of type {pixels.dtype}, and pictures have 8 bits, or 16 of grey")
    return Image.fromarray(pixels)


def open_scan(path: Path, kind: Literal["image", "mask"]) -> Image.Image:
    """A single DICOM image as a picture: ``L`` or ``RGB`` with 8 bits, or the stored numbers of a mask.

    Args:
        path: where ``is_scan`` holds.
        kind: an image is brought to 8 bits, a mask keeps its numbers.

    Raises:
        UnreadableError: with the reason: it can't be read, is a volume or a film, or loses its grey values at 8 bits.
    """
    if is_nifti(path):
        raise UnreadableError(f"{kind} is a NIfTI file: {_INSTEAD}")
    if is_entered(path):
        return _of_volume(read_with(reader_of(path), path), kind)
    try:
        series = find_series(path)
        pixels = read_pixels(series)[0] if series.shape[2:] == (1, 1) else np.empty(0)
    except UnreadableError as error:
        raise UnreadableError(f"mask: {error}" if kind == "mask" else str(error)) from None
    _, _, slices, times = series.shape
    if slices > 1:
        raise UnreadableError(f"{kind} has several slices: use `preprocessing` instead of `size`")
    if times > 1:
        raise UnreadableError(f"{kind} has several frames, and `size` is for single pictures")
    header = series.header
    picture = np.ascontiguousarray(pixels[:, :, 0].swapaxes(0, 1))
    if picture.ndim == 3:
        if picture.dtype.kind == "f":  # a palette of more than 256 levels, which is from 0 to 255
            picture = np.rint(picture).astype(np.uint8)
        elif picture.dtype != np.uint8:
            picture = (picture >> max(header.bits_stored - 8, 0)).astype(np.uint8)
        return Image.fromarray(picture)
    if kind == "mask":
        if header.photometric == "MONOCHROME1":
            raise UnreadableError("mask is stored in reverse (MONOCHROME1)")
        return Image.fromarray(picture if picture.dtype == np.uint8 else picture.astype(np.int32))
    if header.bits_stored > 16 or (picture.dtype.kind == "f" and header.bits_allocated > 16):
        raise UnreadableError("image has pixels of more than 16 bits")
    if header.modality in _UNITS and header.bits_stored > 8:
        raise UnreadableError(f"CT and PET have units, which pictures of 8 bits can't hold: {_INSTEAD}")
    return Image.fromarray(_to_bytes(picture.astype(np.float64), series, _levels(header)))


def level_notes(site: str, paths: Sequence[Path | None]) -> list[Note]:
    """A note where a site's grey DICOM pictures come to 8 bits in two ways.

    Args:
        site: its name.
        paths: of its images.
    """
    windowed: list[bool] = []
    for path in paths:
        if path is None or not is_scan(path) or is_nifti(path):
            continue
        try:
            header = find_series(path).header
        except UnreadableError:
            continue
        if header.samples == 1 and header.photometric != "PALETTE COLOR":
            levels = _levels(header)
            windowed.append("VOILUTSequence" in levels or _window(levels) is not None)
    without = windowed.count(False)
    if not 0 < without < len(windowed):
        return []
    text = (
        f"Site {site}: {without} of {len(windowed)} grey DICOM images have no window in their header and are shown by "
        "the whole range of their bits, the others by their window: brightness and contrast differ. Use "
        "`preprocessing: {size: [columns, rows, 1], intensity: percentile}` to treat all alike."
    )
    return [Note("N713", text)]


def _to_bytes(values: Floats, series: Series, levels: Dataset) -> npt.NDArray[np.uint8]:
    """Real values ``[Y, X]``, MONOCHROME1 inverted by the reader, as bytes."""
    header, plane = series.header, series.planes[0][0]
    ends = (-(2 ** (header.bits_stored - 1)), 2 ** (header.bits_stored - 1) - 1)
    low, high = ends if header.signed else (0, 2**header.bits_stored - 1)
    reverse = header.photometric == "MONOCHROME1"
    if reverse and header.modality not in _UNITS:  # windows are for values as they were before
        values = plane.slope * (low + high) + 2 * plane.intercept - values
    first, last = sorted((plane.slope * low + plane.intercept, plane.slope * high + plane.intercept))
    table = levels.get("ModalityLUTSequence")
    if table:
        first, last = 0.0, 2.0 ** int(table[0].LUTDescriptor[2]) - 1
    shares = _shown(values, levels, first, last)
    found = np.rint(255 * (1 - shares if reverse else shares)).astype(np.uint8)
    if values.min() == values.max():
        raise UnreadableError("image is the same everywhere")
    between = float(np.mean((found > 0) & (found < 255)))
    if np.ptp(values) >= _FEWEST_LEVELS and (np.ptp(found) < _FEWEST_LEVELS / 2 or between < 0.01):
        hint = _INSTEAD.replace("1]`", "1]` and `intensity: percentile`")
        raise UnreadableError(f"image loses its grey values at 8 bits, by its window or the range of its bits: {hint}")
    return found


def _shown(values: Floats, levels: Dataset, first: float, last: float) -> Floats:
    """Brightness from 0 to 1: by the table of grey values, the window, or from ``first`` to ``last``."""
    if levels.get("VOILUTSequence"):
        from pydicom.pixels import apply_voi

        with quiet:
            try:
                bits = int(levels.VOILUTSequence[0].LUTDescriptor[2])
                shown: npt.NDArray[Any] = np.asarray(apply_voi(np.rint(values).astype(np.int64), levels, index=0))
            except Exception:  # damaged tables raise many types
                raise UnreadableError("table of grey values (VOI LUT) is damaged") from None
        return np.clip(shown / (2.0**bits - 1), 0.0, 1.0)
    window = _window(levels)
    if window is None:
        return np.clip((values - first) / max(last - first, 1.0), 0.0, 1.0)
    centre, width = window
    function = str(levels.get("VOILUTFunction") or "LINEAR")
    if function == "SIGMOID":
        return np.asarray(1 / (1 + np.exp(np.clip(-4 * (values - centre) / width, -50, 50))))
    if function == "LINEAR_EXACT":
        return np.clip((values - centre) / width + 0.5, 0.0, 1.0)
    return np.clip((values - (centre - 0.5)) / max(width - 1, 1e-9) + 0.5, 0.0, 1.0)


def _window(levels: Dataset) -> tuple[float, float] | None:
    """Centre and width of the first window that the header gives, None without a sound one."""
    found = []
    for name in ("WindowCenter", "WindowWidth"):
        value = levels.get(name)
        if isinstance(value, Sequence) and not isinstance(value, str):
            value = next(iter(value), None)
        try:
            found.append(float(value))
        except (TypeError, ValueError):
            return None
    centre, width = found
    return (centre, width) if math.isfinite(centre) and math.isfinite(width) and width >= 1 else None


def _levels(header: Header) -> Dataset:
    """What the header says of how grey values are shown."""
    import pydicom

    with quiet:
        try:
            return pydicom.dcmread(header.path, stop_before_pixels=True, specific_tags=_LEVEL_TAGS, force=True)
        except Exception:
            raise UnreadableError("DICOM header is damaged") from None
