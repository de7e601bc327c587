"""The few header elements of a DICOM file that are on a list, and nothing else of it.

A PACS export has tens of thousands of files with hundreds of elements each. Here the elements are stepped over by
their lengths, and only the bytes of wanted ones are taken, which is several times faster than building a data set of
each file. Whatever is not plain little endian, or looks odd, is left to pydicom.
"""

from __future__ import annotations

import logging
import struct
import threading
import warnings
from collections.abc import Collection
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from polyclinic.data.readers.volume import UnreadableError

IMPLICIT, EXPLICIT = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"
DEFLATED, BIG_ENDIAN = "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2"
PIXELS = (0x7FE00008, 0x7FE00009, 0x7FE00010)
"""Float, double float and integer pixel data."""

NO_DICOM = "file is no DICOM: neither the preamble nor a data set is at its start"

_FIRST_BYTES = 32 * 1024
_UNDEFINED = 0xFFFFFFFF
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_DEEPEST = 32
_LONG_VRS = frozenset((b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"))
_SHORT_VRS = frozenset((
    b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FL", b"FD", b"IS", b"LO", b"LT", b"PN", b"SH", b"SL", b"SS",
    b"ST", b"TM", b"UI", b"UL", b"US",
))  # fmt: skip
_SYNTAX = 0x00020010
_INTEGER_PIXELS = 0x7FE00010
_IS_THERE = b"sequence"
_NO_ITEM = b"\xfe\xff\xdd\xe0"
"""What ends a sequence, as it is stored."""
_SEQUENCES = frozenset((0x00283000, 0x52009229, 0x52009230))
"""Modality LUT, shared and per-frame functional groups: it is only told that they are there and not empty."""
_EXPLICIT_ELEMENT = struct.Struct("<I2sH").unpack_from
_LENGTH = struct.Struct("<I").unpack_from


@dataclass(frozen=True, slots=True)
class Elements:
    """What was taken from a file.

    Attributes:
        values: tag (group × 65536 + element) -> the element's bytes as stored; for a sequence of undefined length, and
            for functional groups, only that it is there.
        syntax: transfer syntax UID as the file states it, "" where it states none.
        little_endian: byte order of ``values``.
        pixels: whether the file has pixel data.
        pixel_start: where the integers of native (not compressed) pixel data begin; -1 where that is not known.
        pixel_bytes: how many bytes of native pixel data there are; -1 where that is not known.
    """

    values: dict[int, bytes]
    syntax: str
    little_endian: bool
    pixels: bool
    pixel_start: int = -1
    pixel_bytes: int = -1


class _ShortError(Exception):
    """More bytes of the file are needed."""


class _UnusualError(Exception):
    """Not for this reader."""


def is_dicom(start: bytes) -> bool:
    """Whether a file that begins with ``start`` (132 bytes or more) is DICOM, with or without the preamble."""
    return start[128:132] == b"DICM" or _bare_syntax(start) is not None


def read_elements(path: Path, wanted: Collection[int]) -> Elements:
    """The bytes of the ``wanted`` elements of the file's top level.

    Raises:
        UnreadableError: the file is missing, can't be opened, is no DICOM file, or its header is damaged.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            buffer, take = file.read(_FIRST_BYTES), _FIRST_BYTES
            if not is_dicom(buffer):
                raise UnreadableError("file is empty" if size == 0 else NO_DICOM)
            while True:
                try:
                    return _walk_file(buffer, size, wanted)
                except _ShortError:
                    if len(buffer) >= size:
                        raise UnreadableError("DICOM header is truncated") from None
                    take *= 8
                    buffer += file.read(take)
    except _UnusualError:
        return _read_with_pydicom(path, wanted)
    except FileNotFoundError:
        raise UnreadableError("file is missing") from None
    except OSError:
        raise UnreadableError("file may not be read") from None


class _Quiet:
    """Switches pydicom's messages off while anyone in the process is inside; threads may overlap."""

    def __init__(self) -> None:
        self.lock, self.inside, self.was = threading.Lock(), 0, ExitStack()

    def __enter__(self) -> None:
        with self.lock:
            self.inside += 1
            if self.inside == 1:
                logger = logging.getLogger("pydicom")
                self.was.callback(setattr, logger, "disabled", logger.disabled)
                logger.disabled = True
                self.was.enter_context(warnings.catch_warnings())
                warnings.simplefilter("ignore")

    def __exit__(self, *exception: object) -> None:
        with self.lock:
            self.inside -= 1
            if not self.inside:
                self.was.close()


quiet = _Quiet()
"""``with quiet:`` around pydicom and nibabel: their warnings quote values of headers, and none may reach a screen."""


def _bare_syntax(start: bytes) -> str | None:
    """Explicit or implicit, for a data set without preamble that begins with a group 2 or 8 element; else None."""
    if len(start) < 16:
        return None
    group, element, length = struct.unpack_from("<HHI", start, 0)
    if group not in (0x0002, 0x0008) or element > 0x3000:
        return None
    if start[4:6] in _SHORT_VRS or start[4:6] in _LONG_VRS:
        return EXPLICIT
    return IMPLICIT if length < 1024 else None


def _walk_file(buffer: bytes, size: int, wanted: Collection[int]) -> Elements:
    offset = 132 if buffer[128:132] == b"DICM" else 0
    syntax, offset = _walk_meta(buffer, offset)
    if syntax in (DEFLATED, BIG_ENDIAN):
        raise _UnusualError
    explicit = syntax != IMPLICIT
    if not syntax:  # the file does not say: the second element's type letters do
        explicit = buffer[offset + 4 : offset + 6] in _SHORT_VRS | _LONG_VRS
    values: dict[int, bytes] = {}
    # This loop runs hundreds of times a file: it is written out, and compares tags as they are stored.
    stored = _as_stored(frozenset(wanted))
    try:
        while offset < size:
            tag, kind, length = _EXPLICIT_ELEMENT(buffer, offset)
            body, nested_explicit = offset + 8, explicit
            if not explicit:
                length = length << 16 | int.from_bytes(kind, "little")
            elif kind in _LONG_VRS:
                (length,) = _LENGTH(buffer, body)
                body, nested_explicit = offset + 12, kind != b"UN"
            elif kind not in _SHORT_VRS:
                raise _UnusualError
            if tag in stored and stored[tag] in PIXELS:
                if syntax not in ("", IMPLICIT, EXPLICIT) or length == _UNDEFINED:
                    return Elements(values, syntax, True, True)
                start = body if stored[tag] == _INTEGER_PIXELS else -1
                return Elements(values, syntax, True, True, start, min(size - body, length))
            if length == _UNDEFINED:
                if tag in stored and buffer[body : body + 4] != _NO_ITEM:
                    values[stored[tag]] = _IS_THERE
                offset = _skip_sequence(buffer, body, nested_explicit, 0)
                continue
            offset = body + length
            if tag in stored:
                if stored[tag] in _SEQUENCES:
                    if length:
                        values[stored[tag]] = _IS_THERE
                    continue
                if offset > len(buffer):
                    raise _ShortError
                values[stored[tag]] = buffer[body:offset]
    except struct.error:
        raise _ShortError from None
    if offset > size:
        raise UnreadableError("DICOM header is truncated")
    return Elements(values, syntax, True, False)


@lru_cache(maxsize=8)
def _as_stored(wanted: frozenset[int]) -> dict[int, int]:
    """Tags as a little endian file has them -> tags, pixels' own among them."""
    return {_swapped(tag): tag for tag in (*wanted, *PIXELS)}


def _swapped(tag: int) -> int:
    """Group and element in the order in which a little endian file has them."""
    return (tag & 0xFFFF) << 16 | tag >> 16


def _walk_meta(buffer: bytes, offset: int) -> tuple[str, int]:
    """The transfer syntax, and where the group of file meta information ends; it is always explicit."""
    syntax = ""
    while buffer[offset : offset + 2] == b"\x02\x00":
        tag, length, body, _ = _element(buffer, offset, explicit=True)
        if length == _UNDEFINED:
            raise _UnusualError
        offset = body + length
        if tag == _SYNTAX:
            syntax = buffer[body:offset].rstrip(b"\0 ").decode("ascii", "replace")
    return syntax, offset


def _element(buffer: bytes, offset: int, explicit: bool) -> tuple[int, int, int, bool]:
    """Tag, length, start of the value, and whether elements nested in it are explicit."""
    try:
        if not explicit:
            group, element, length = struct.unpack_from("<HHI", buffer, offset)
            return group << 16 | element, length, offset + 8, False
        group, element, kind, length = struct.unpack_from("<HH2sH", buffer, offset)
        if kind in _SHORT_VRS:
            return group << 16 | element, length, offset + 8, True
        if kind in _LONG_VRS:
            (length,) = struct.unpack_from("<I", buffer, offset + 8)
            return group << 16 | element, length, offset + 12, kind != b"UN"
    except struct.error:
        raise _ShortError from None
    raise _UnusualError


def _skip_sequence(buffer: bytes, offset: int, explicit: bool, depth: int) -> int:
    """Where a sequence of undefined length ends."""
    if depth > _DEEPEST:
        raise _UnusualError
    while True:
        tag, length, offset, _ = _element(buffer, offset, explicit=False)
        if tag == _SEQUENCE_END:
            return offset
        if tag != _ITEM:
            raise _UnusualError
        offset = _skip_item(buffer, offset, explicit, depth) if length == _UNDEFINED else offset + length


def _skip_item(buffer: bytes, offset: int, explicit: bool, depth: int) -> int:
    while True:
        tag, length, body, _ = _element(buffer, offset, explicit=False)
        if tag == _ITEM_END:
            return body
        _, length, body, nested_explicit = _element(buffer, offset, explicit)
        nested = length == _UNDEFINED
        offset = _skip_sequence(buffer, body, nested_explicit, depth + 1) if nested else body + length


def _read_with_pydicom(path: Path, wanted: Collection[int]) -> Elements:
    import pydicom
    from pydicom.dataelem import RawDataElement

    with quiet:
        try:
            with path.open("rb") as file:
                data = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=list(wanted), force=True)
                syntax = str(data.file_meta.get("TransferSyntaxUID", ""))
                here = file.tell()
                size = file.seek(0, 2)
            pixels = here < size
            if syntax == DEFLATED:  # the file position says nothing there
                pixels = any(tag in pydicom.dcmread(path, specific_tags=list(PIXELS)) for tag in PIXELS)
            values = {}
            for tag in wanted:
                element = data.get_item(tag) if tag in data else None
                if element is not None and tag in _SEQUENCES:
                    if not data[tag].value:
                        continue
                    values[tag] = _IS_THERE
                elif isinstance(element, RawDataElement) and isinstance(element.value, bytes):
                    values[tag] = element.value
        except UnreadableError:
            raise
        except PermissionError:
            raise UnreadableError("file may not be read") from None
        except Exception:  # pydicom raises many types on damaged files
            raise UnreadableError("DICOM header is damaged") from None
    if not values:
        raise UnreadableError("DICOM file has no image header")
    little = bool(data.original_encoding[1]) if data.original_encoding[1] is not None else syntax != BIG_ENDIAN
    return Elements(values, syntax, little, pixels)
