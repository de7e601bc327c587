"""Pixels of DICOM files as arrays of real values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from polyclinic.data.readers.dicom.elements import BIG_ENDIAN, DEFLATED, EXPLICIT, IMPLICIT, quiet
from polyclinic.data.readers.dicom.header import Header
from polyclinic.data.readers.dicom.planes import tile_grid
from polyclinic.data.readers.dicom.series import Series
from polyclinic.data.readers.dicom.tables import apply_modality_table, apply_palette
from polyclinic.data.readers.volume import UnreadableError
from polyclinic.notes import Note

if TYPE_CHECKING:
    from pydicom import Dataset

_PIXEL_TAGS = [
    "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames", "Rows", "Columns",
    "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "ModalityLUTSequence",
    "RedPaletteColorLookupTableDescriptor", "GreenPaletteColorLookupTableDescriptor",
    "BluePaletteColorLookupTableDescriptor", "RedPaletteColorLookupTableData", "GreenPaletteColorLookupTableData",
    "BluePaletteColorLookupTableData", "SegmentedRedPaletteColorLookupTableData",
    "SegmentedGreenPaletteColorLookupTableData", "SegmentedBluePaletteColorLookupTableData",
    "ExtendedOffsetTable", "ExtendedOffsetTableLengths", "PixelData", "FloatPixelData", "DoubleFloatPixelData",
]  # fmt: skip
_OVERLAY_TAGS = [0x60000102 | group << 16 for group in range(0, 32, 2)]
_MOST_BYTES = 8 * 2**30
_RLE = "1.2.840.10008.1.2.5"
_FORMS = ("", "MONOCHROME1", "MONOCHROME2", "PALETTE COLOR", "RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
"""What PhotometricInterpretation may say; older forms (YBR_PARTIAL_422, HSV, ARGB, CMYK) are not decoded right."""
_UNUSED_BITS = Note(
    "N619", "whose pixels use bits beyond those that the header says are stored: these bits were left out."
)
_JPEG_EXTENDED = "1.2.840.10008.1.2.4.51"
_TWELVE_BITS = "12-bit lossy JPEG can't be decoded: unpack the file first (for example with DCMTK's dcmdjpeg)"
_LUMINANCE = np.array((0.299, 0.587, 0.114))
"""ITU-R BT.601."""
_PHYSICAL = ("CT", "PT")
"""Modalities whose values have a unit: MONOCHROME1 there only says how a screen should show them."""


def missing_decoder(header: Header) -> str:
    """Why the pixels of a file can't be decoded here, "" where they can."""
    if not header.syntax:
        return ""
    from pydicom.pixels import get_decoder
    from pydicom.uid import UID

    with quiet:
        syntax = UID(header.syntax)
        try:
            decoder = get_decoder(syntax)
        except NotImplementedError:
            return "transfer syntax is none for images, or is damaged"
        if not decoder.is_available:
            return f"compression {syntax.name} needs a decoder: pip install 'polyclinic[dicom]'"
        if syntax == _JPEG_EXTENDED and header.bits_stored > 8 and "pylibjpeg" not in decoder.available_plugins:
            return _TWELVE_BITS
    return ""


def read_pixels(series: Series) -> tuple[npt.NDArray[np.generic], tuple[Note, ...]]:
    """Values of a series, ``[X, Y, Z]``, ``[X, Y, Z, T]``, or ``[X, Y, Z, 3]`` (red, green, blue), and notes on them.

    Integers stay integers where slope and intercept are whole (8 bits as stored, else the narrowest of int16, int32 and
    int64 that holds them); otherwise float32.
    Frames in colour of a film become luminance, so that the fourth axis has one meaning. Colours are as stored (8 bits
    in most files); those of finer palettes are float32 from 0 to 255.

    Raises:
        UnreadableError: pixels are missing, truncated, damaged or too many, or a decoder is missing.
    """
    colour = _is_colour(series.header)
    width, height, slices, times = series.shape
    if colour and slices > 1:
        raise UnreadableError("several slices in colour")
    planes = [plane for column in series.planes for plane in column]
    whole = all(_whole(plane.slope) and _whole(plane.intercept) for plane in planes)
    plain = all(plane.slope == 1 and plane.intercept == 0 for plane in planes)
    decoded: dict[object, npt.NDArray[np.generic]] = {}
    notes: dict[Note, None] = {}
    remaining: dict[object, int] = {}
    for plane in planes:
        remaining[plane.header.path] = remaining.get(plane.header.path, 0) + 1
    out: npt.NDArray[np.generic] | None = None
    for number, plane in enumerate(planes):
        path = plane.header.path
        if path not in decoded:
            decoded[path] = _decode(plane.header, notes)
        picture = _tile(decoded[path], plane.header, plane.index)
        remaining[path] -= 1
        if not remaining[path]:
            del decoded[path]
        if colour and times > 1:
            picture = (picture @ _LUMINANCE).astype(np.float32)
        elif not colour:
            picture = _rescaled(picture, plane.slope, plane.intercept, whole=whole)
        if picture.shape[:2] != (height, width):
            raise UnreadableError("pixels don't fit the size in the header")
        if out is None:
            channels = picture.shape[2:]
            if width * height * slices * times * 4 > _MOST_BYTES:
                raise UnreadableError("image is larger than 8 GiB")
            kind = picture.dtype if plain or picture.dtype.kind == "f" or colour else np.dtype(np.int64)
            out = np.zeros((len(planes), height, width, *channels), dtype=kind)
        if not np.can_cast(picture.dtype, out.dtype):  # files of one series may differ in sign and width
            out = out.astype(np.result_type(picture.dtype, out.dtype))
        out[number] = picture
    if out is None:
        raise UnreadableError("DICOM object has no image")
    return _arrange(out, slices, times), tuple(notes)


def _arrange(out: npt.NDArray[np.generic], slices: int, times: int) -> npt.NDArray[np.generic]:
    """From ``[Z·T, Y, X(, 3)]`` to ``[X, Y, Z]`` or ``[X, Y, Z, T]``, in the narrowest usual type."""
    if out.ndim == 4:
        return np.ascontiguousarray(out.transpose(2, 1, 0, 3))
    if out.dtype.kind in "iu" and out.dtype.itemsize > 1 and out.size:
        lowest, highest = int(out.min()), int(out.max())
        out = out.astype(next(kind for kind in (np.int16, np.int32, np.int64) if _fits(lowest, highest, kind)))
    stacked = out.reshape(slices, times, *out.shape[1:]).transpose(3, 2, 0, 1)
    return np.ascontiguousarray(stacked[..., 0] if times == 1 else stacked)


def _fits(lowest: int, highest: int, kind: type[np.signedinteger[Any]]) -> bool:
    limits = np.iinfo(kind)
    return int(limits.min) <= lowest and highest <= int(limits.max)


def _is_colour(header: Header) -> bool:
    return header.samples == 3 or header.photometric == "PALETTE COLOR"


def _decode(header: Header, notes: dict[Note, None]) -> npt.NDArray[np.generic]:
    """Values ``[F, Y, X]`` of all frames before slope and intercept, or colours ``[F, Y, X, 3]``."""
    if header.photometric not in _FORMS:
        raise UnreadableError("colours are in a form that is not read (PhotometricInterpretation)")
    size = header.rows * header.columns * header.frames * header.samples * max(header.bits_allocated // 8, 1)
    if size > _MOST_BYTES:
        raise UnreadableError("image is larger than 8 GiB")
    bits = header.bits_stored
    if header.pixel_start >= 0:
        pixels = _stored_bits(_plain(header), header, notes)
    else:
        pixels, bits = _decoded(header, notes)
    channels = (3,) if _is_colour(header) else ()
    if pixels.size != header.frames * header.rows * header.columns * (3 if channels else 1):
        raise UnreadableError("pixels don't fit the size in the header")
    pixels = pixels.reshape(header.frames, header.rows, header.columns, *channels)
    if header.photometric == "MONOCHROME1" and header.modality not in _PHYSICAL and pixels.dtype.kind != "f":
        # Bright and dark are swapped within the range that the bits can hold.
        ends = -1 if pixels.dtype.kind == "i" else 2**bits - 1
        pixels = ends - pixels.astype(np.int64)
    return pixels.astype(pixels.dtype.newbyteorder("="), copy=False)


def _plain(header: Header) -> npt.NDArray[np.generic]:
    """Numbers that are not compressed, without building a data set of the header: several times faster."""
    kind = np.dtype(f"<{'i' if header.signed else 'u'}{header.bits_allocated // 8}")
    count = header.frames * header.rows * header.columns
    try:
        pixels: npt.NDArray[np.generic] = np.fromfile(header.path, kind, count, offset=header.pixel_start)
    except OSError:
        raise UnreadableError("file may not be read") from None
    if pixels.size < count:
        raise UnreadableError("pixels are truncated")
    return pixels


def _stored_bits(pixels: npt.NDArray[Any], header: Header, notes: dict[Note, None]) -> npt.NDArray[np.generic]:
    """The numbers in the bits from HighBit down; the others may hold overlays, and are noted where they don't."""
    pixels = pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
    low, width = header.high_bit + 1 - header.bits_stored, 8 * pixels.dtype.itemsize
    above = width - 1 - header.high_bit
    if above < 0 or (low == 0 and (above == 0 or not pixels.size or _within(pixels, header.bits_stored))):
        return pixels
    numbers: npt.NDArray[Any] = (pixels << above) >> (above + low)  # to the right repeats the sign
    if above:
        # Zeros there are as good as the sign repeated.
        used = (pixels.view(f"u{width // 8}") >> (header.high_bit + 1) != 0) & (numbers != pixels >> low)
        if used.any() and not _has_overlay(header):
            notes[_UNUSED_BITS] = None
    return numbers


def _within(pixels: npt.NDArray[np.generic], bits: int) -> bool:
    signed = pixels.dtype.kind == "i"
    lowest, highest = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    return lowest <= int(pixels.min()) and int(pixels.max()) <= highest


def _has_overlay(header: Header) -> bool:
    """Whether the header says that an overlay lies in bits of the pixels (OverlayBitPosition)."""
    import pydicom

    with quiet:
        try:
            data = pydicom.dcmread(header.path, stop_before_pixels=True, specific_tags=_OVERLAY_TAGS, force=True)
            return any(data[tag].value for tag in _OVERLAY_TAGS if tag in data)
        except Exception:
            raise UnreadableError("DICOM file is damaged") from None


def _decoded(header: Header, notes: dict[Note, None]) -> tuple[npt.NDArray[np.generic], int]:
    """Pixels decoded by pydicom and its plug-ins, through the tables of the file; and the bits that they may have."""
    reason = missing_decoder(header)
    if reason:
        raise UnreadableError(reason)
    packed = header.syntax not in (IMPLICIT, EXPLICIT, BIG_ENDIAN, DEFLATED, _RLE, "")
    if packed and header.high_bit != header.bits_stored - 1 and header.samples == 1:
        raise UnreadableError("compressed pixels whose stored bits are not the lowest")
    data = _with_pixels(header)
    with quiet:
        try:
            pixels = np.asarray(data.pixel_array)
            if header.samples == 1 and pixels.dtype.kind in "iu":
                pixels = _stored_bits(pixels, header, notes)
            if header.photometric == "PALETTE COLOR":
                return apply_palette(pixels, data, signed=header.signed), header.bits_stored
            if data.get("ModalityLUTSequence"):
                return apply_modality_table(pixels, data, signed=header.signed)
        except UnreadableError:
            raise
        except Exception as error:
            raise UnreadableError(_true_reason(header, error)) from None
    return pixels, header.bits_stored


def _with_pixels(header: Header) -> Dataset:
    import pydicom

    with quiet:
        try:
            data = pydicom.dcmread(header.path, specific_tags=_PIXEL_TAGS, force=True)
            if "TransferSyntaxUID" not in data.file_meta:
                data.file_meta.TransferSyntaxUID = IMPLICIT if data.original_encoding[0] else EXPLICIT
            if "PixelRepresentation" not in data:
                data.PixelRepresentation = int(header.signed)
            data.pixel_array_options(correct_unused_bits=False)  # done here, with HighBit
        except PermissionError:
            raise UnreadableError("file may not be read") from None
        except Exception:
            raise UnreadableError("DICOM file is damaged") from None
    return data


def _true_reason(header: Header, error: Exception) -> str:
    """A sentence of our own: the library's may quote header values."""
    text = str(error)
    if "less than expected" in text or "ended early" in text or "truncated" in text:
        return "pixels are truncated"
    if "12-bit precision" in text:
        return _TWELVE_BITS
    if isinstance(error, MemoryError):
        return "image is too large for the memory"
    return "pixels are damaged"


def _tile(pixels: npt.NDArray[np.generic], header: Header, index: int) -> npt.NDArray[np.generic]:
    if not header.tiles:
        picture: npt.NDArray[np.generic] = pixels[index]
        return picture
    across, down = tile_grid(header)
    width, height = header.columns // across, header.rows // down
    row, column = divmod(index, across)
    return pixels[0, row * height : (row + 1) * height, column * width : (column + 1) * width]


def _rescaled(
    picture: npt.NDArray[np.generic], slope: float, intercept: float, *, whole: bool
) -> npt.NDArray[np.generic]:
    if slope == 1 and intercept == 0 and whole:
        return picture if picture.dtype.kind in "iu" else picture.astype(np.float32)
    if not whole or picture.dtype.kind == "f":
        return (picture.astype(np.float64) * slope + intercept).astype(np.float32)
    return picture.astype(np.int64) * int(slope) + int(intercept)


def _whole(number: float) -> bool:
    return number.is_integer() and abs(number) < 2**31
