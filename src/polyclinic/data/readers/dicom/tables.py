"""Look-up tables of DICOM: colours of palettes (PS3.3, C.7.6.3.1.5 and C.7.9), and the modality's table (C.11.1).

Both are looked up by stored value: values below the first that is mapped take the first entry, values beyond the last
one the last.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from polyclinic.data.readers.volume import UnreadableError

if TYPE_CHECKING:
    from pydicom import Dataset

_COLOURS = ("Red", "Green", "Blue")
_PALETTE_DAMAGED = "colour table is missing or damaged"
_TABLE_DAMAGED = "modality table is damaged"


def apply_palette(pixels: npt.NDArray[np.generic], data: Dataset, *, signed: bool) -> npt.NDArray[np.generic]:
    """Colours from 0 to 255, of shape ``[..., 3]``: uint8 where the palette has no finer levels, else float32.

    Entries of 16 bits that are all below 256, or below 4,096, are taken for numbers of 8 or 12 bits, as they are met.
    """
    table, first = _palette(data, signed)
    if table.max(initial=0) < 256:
        table = table.astype(np.uint8)
    elif not (table % 257).any() or not (table & 255).any():  # 8 bits, repeated or moved up
        table = (table >> 8).astype(np.uint8)
    else:
        table = (table * (255.0 / (4095 if table.max() < 4096 else 65535))).astype(np.float32)
    return _look_up(pixels, table, first)


def apply_modality_table(
    pixels: npt.NDArray[np.generic], data: Dataset, *, signed: bool
) -> tuple[npt.NDArray[np.generic], int]:
    """The modality's values, and how many bits they may have."""
    item = data.ModalityLUTSequence[0]
    entries, first, bits = _descriptor(item.get("LUTDescriptor"), signed, _TABLE_DAMAGED)
    if not 1 <= bits <= 16:
        raise UnreadableError(_TABLE_DAMAGED)
    table = _entries(item.get("LUTData"), entries, _is_little(data), _TABLE_DAMAGED)
    return _look_up(pixels, table.astype(np.uint16), first), bits


def _palette(data: Dataset, signed: bool) -> tuple[npt.NDArray[np.int64], int]:
    """Entries ``[N, 3]``, and the stored value of the first."""
    key = "{}PaletteColorLookupTable"
    entries, first, bits = _descriptor(data.get(f"{key.format('Red')}Descriptor"), signed, _PALETTE_DAMAGED)
    if all(f"{key.format(colour)}Data" in data for colour in _COLOURS):
        columns = [
            _entries(data.get(f"{key.format(colour)}Data"), entries, _is_little(data), _PALETTE_DAMAGED)
            for colour in _COLOURS
        ]
        return np.stack(columns, axis=-1), first
    if bits != 16 or not all(f"Segmented{key.format(colour)}Data" in data for colour in _COLOURS):
        raise UnreadableError(_PALETTE_DAMAGED)
    from pydicom.pixels import apply_color_lut

    # What pydicom makes of each stored value is the table, written out.
    whole = apply_color_lut(np.arange(first, first + entries), data)
    return np.asarray(whole)[..., :3].astype(np.int64), first


def _descriptor(found: Any, signed: bool, damaged: str) -> tuple[int, int, int]:
    """Number of entries, first stored value, bits of an entry."""
    if found is None or isinstance(found, bytes | str) or len(found) != 3:
        raise UnreadableError(damaged)
    entries, first, bits = (int(number) for number in found)
    # The first value has the sign of the pixels, whatever type the element was given.
    first = (first & 0xFFFF) - (0x10000 if signed and first & 0x8000 else 0)
    return entries & 0xFFFF or 2**16, first, bits


def _entries(found: Any, entries: int, little: bool, damaged: str) -> npt.NDArray[np.int64]:
    """Numbers of 8 or 16 bits, told apart by how many bytes there are, since descriptors often say 16 for both."""
    if found is None:
        raise UnreadableError(damaged)
    if not isinstance(found, bytes):
        numbers = np.atleast_1d(np.asarray(found, dtype=np.int64)) & 0xFFFF
    elif len(found) >= 2 * entries:
        numbers = np.frombuffer(found, "<u2" if little else ">u2", entries).astype(np.int64)
    elif len(found) >= entries:
        numbers = np.frombuffer(found, np.uint8, entries).astype(np.int64)
    else:
        raise UnreadableError(damaged)
    if len(numbers) < entries:
        raise UnreadableError(damaged)
    return numbers[:entries]


def _look_up(pixels: npt.NDArray[np.generic], table: npt.NDArray[Any], first: int) -> npt.NDArray[Any]:
    return table[np.clip(pixels.astype(np.int64) - first, 0, len(table) - 1)]


def _is_little(data: Dataset) -> bool:
    return data.original_encoding[1] is not False
