"""Volumes from NIfTI files (https://nifti.nimh.nih.gov/nifti-1)."""

from __future__ import annotations

import gzip
import json
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from polyclinic.data.readers.nifti.header import HEADER_BYTES, NiftiHeader, is_nifti_start, parse_header
from polyclinic.data.readers.volume import UnreadableError, Volume
from polyclinic.notes import Note

ENDINGS = (".nii", ".nii.gz")
_PAIR = (".hdr", ".img")
_MOST_BYTES = 8 * 2**30
_CHUNK = 2**24
_VENDORS = {
    "siemens": "Siemens", "ge": "GE", "philips": "Philips", "canon": "Canon",
    "toshiba": "Canon", "uih": "United Imaging",
}  # fmt: skip


def is_nifti(path: Path) -> bool:
    """Whether the file's name ends as NIfTI names do (``my.nifti.image.nii`` too), or it is the header of a pair."""
    name = path.name.lower()
    if not name.endswith(_PAIR[0]):
        return name.endswith(ENDINGS)
    try:
        with path.open("rb") as file:
            return is_nifti_start(file.read(HEADER_BYTES))
    except OSError:
        return False


def pair_of(path: Path) -> tuple[Path, ...]:
    """Header and voxels of the pair (``.hdr`` and ``.img``) to which a file belongs; the file alone if to none."""
    if path.suffix.lower() not in _PAIR:
        return (path,)
    found = []
    for ending in _PAIR:
        endings = (ending, ending.upper())
        found += [place for place in map(path.with_suffix, endings) if place.is_file()][:1]
    return tuple(found) if len(found) == 2 else (path,)


def stem(path: Path) -> str:
    """File name without ``.nii`` or ``.nii.gz``."""
    name = path.name
    for ending in reversed(ENDINGS):
        if name.lower().endswith(ending):
            return name[: -len(ending)]
    return path.stem


def nifti_header(path: Path) -> NiftiHeader:
    """Read the header alone, and compare the file's size with what it needs.

    Raises:
        UnreadableError: as for ``read_nifti``, as far as it shows without reading the voxels.
    """
    header = _header(path)
    place = _voxel_file(path, header)
    try:
        _check_length(place, _start(place, header) + header.voxel_bytes)
    except OSError as error:
        raise UnreadableError(_os_reason(error)) from None
    return header


def header_findings(path: Path) -> tuple[str, tuple[Note, ...]]:
    """Why the file can't be used as far as its header tells ("" where it can), and what should be known of it."""
    try:
        return "", nifti_header(path).notes
    except UnreadableError as error:
        return str(error), ()


def read_nifti(path: Path) -> Volume:
    """The image with its scale (scl_slope, scl_inter) applied, and its place in millimetres.

    Integers stay integers where the header asks for no scale; otherwise float32. Axes of length one at the end are
    dropped, a fourth axis stays; ``about`` is what an accompanying JSON file (BIDS) says of the scanner.

    Args:
        path: a ``.nii`` or ``.nii.gz`` file, or one of a pair (``.hdr`` and ``.img``).

    Raises:
        UnreadableError: the file is missing, empty, no NIfTI, truncated or damaged; its voxels are complex numbers or
            colours; it has more than four axes; its affine or spacing is no usable number.
    """
    header = _header(path)
    values = _voxels(_voxel_file(path, header), header)
    if header.slope != 1 or header.intercept != 0:
        with np.errstate(all="ignore"):
            values = (values.astype(np.float64) * header.slope + header.intercept).astype(np.float32)
    values = values.astype(values.dtype.newbyteorder("="), copy=False)
    if values.dtype.kind == "f" and not np.isfinite(values).any():
        raise UnreadableError("image has no finite value")
    solid = values.reshape(*values.shape, *(1,) * (3 - values.ndim))
    return Volume(solid, header.affine, scanner_facts(path), header.notes)


def _header(path: Path) -> NiftiHeader:
    try:
        start = _first_bytes(pair_of(path)[0])
    except FileNotFoundError:
        raise UnreadableError("file is missing") from None
    except OSError as error:
        raise UnreadableError(_os_reason(error)) from None
    if not start:
        raise UnreadableError("file is empty")
    return parse_header(start)


def _voxel_file(path: Path, header: NiftiHeader) -> Path:
    place = pair_of(path)[-1]
    if header.pair == (place.suffix.lower() == _PAIR[1]):
        return place
    if header.pair:
        raise UnreadableError("NIfTI header says that the voxels are in another file (.img), which is not beside it")
    raise UnreadableError("NIfTI header does not belong to a pair of .hdr and .img files")


def _start(path: Path, header: NiftiHeader) -> int:
    """Where the voxels begin. A header that does not say it means: behind the header, which ends at 352 (or 544).

    Some programs leave out the last four bytes, which tell of extensions: then the file is just so much shorter.
    """
    if header.offset or header.pair:
        return header.offset
    behind = 352 if header.version == 1 else 544
    if _length(path) == (behind - 4 + header.voxel_bytes) % 2**32:
        return behind - 4
    if header.extended:  # and nothing says where the extensions end
        raise UnreadableError("NIfTI header does not say where the voxels begin")
    return behind


def _length(path: Path) -> int:
    """Bytes of the file as it is unpacked, modulo 2^32: gzip ends with this number (RFC 1952), of its last part."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        if not _is_packed(file):
            return size % 2**32
        file.seek(max(size - 4, 0))
        return int.from_bytes(file.read(4), "little")


def _voxels(path: Path, header: NiftiHeader) -> npt.NDArray[np.generic]:
    """The stored numbers. A packed file is read to its end, where its checksum is."""
    if header.voxel_bytes * max(4 / header.dtype.itemsize, 1) > _MOST_BYTES:
        raise UnreadableError("image is larger than 8 GiB")
    try:
        start = _start(path, header)
        buffer = np.empty(header.voxel_bytes, dtype=np.uint8)
        with path.open("rb") as file:
            if _is_packed(file):
                _unpack(file, start, buffer)
            else:
                file.seek(start)
                if file.readinto(buffer.data) < len(buffer):
                    raise UnreadableError("NIfTI file is truncated")
    except MemoryError:
        raise UnreadableError("image is too large for the memory") from None
    except OSError as error:
        raise UnreadableError(_os_reason(error)) from None
    return buffer.view(header.dtype).reshape(header.shape, order="F")


def _unpack(file: BinaryIO, start: int, buffer: npt.NDArray[np.uint8] | int) -> None:
    """Fill the buffer (or step over so many bytes) from ``start`` on, and go to the end.

    Raises:
        UnreadableError: the file ends before, or its checksum tells of changed bytes.
    """
    found, wanted = 0, buffer if isinstance(buffer, int) else len(buffer)
    try:
        with gzip.GzipFile(fileobj=file) as unpacked:
            while start and (passed := len(unpacked.read(min(start, _CHUNK)))):
                start -= passed
            while found < wanted and (part := unpacked.read(min(wanted - found, _CHUNK))):
                if not isinstance(buffer, int):
                    buffer[found : found + len(part)] = np.frombuffer(part, dtype=np.uint8)
                found += len(part)
            while unpacked.read(_CHUNK):
                pass
    except EOFError:
        raise UnreadableError("NIfTI file is truncated") from None
    except (zlib.error, gzip.BadGzipFile) as error:
        # What follows the last part and is no further one was appended by others: gzip itself ignores it.
        if found < wanted or not str(error).startswith("Not a gzipped file"):
            raise UnreadableError("NIfTI file is damaged") from None
    if found < wanted:
        raise UnreadableError("NIfTI file is truncated")


def _is_packed(file: BinaryIO) -> bool:
    file.seek(0)
    packed = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    return packed


def _first_bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        if not _is_packed(file):
            if path.name.lower().endswith(".gz") and file.read(1):
                raise UnreadableError("file ends in .gz but is not compressed by gzip")
            file.seek(0)
            return file.read(HEADER_BYTES)
        if not path.name.lower().endswith(".gz"):
            raise UnreadableError("file is compressed by gzip but its name does not end in .gz")
        try:
            with gzip.GzipFile(fileobj=file) as unpacked:
                return unpacked.read(HEADER_BYTES)
        except EOFError:
            raise UnreadableError("NIfTI file is truncated") from None
        except (zlib.error, OSError):
            raise UnreadableError("NIfTI file is damaged") from None


def _check_length(path: Path, needed: int) -> None:
    """Compare the bytes that are needed with those that are there, without unpacking where that can be helped."""
    with path.open("rb") as file:
        if not _is_packed(file):
            if file.seek(0, 2) < needed:
                raise UnreadableError("NIfTI file is truncated")
        elif _length(path) != needed % 2**32:
            file.seek(0)
            _unpack(file, 0, needed)


def _os_reason(error: OSError) -> str:
    return "file may not be read" if isinstance(error, PermissionError | IsADirectoryError) else "NIfTI file is damaged"


def scanner_facts(path: Path) -> dict[str, str | float]:
    """Scanner facts from the JSON file beside the image, by an allow-list."""
    sidecar = _sidecar(path)
    about: dict[str, str | float] = {}
    for name, key in (("modality", "Modality"), ("vendor", "Manufacturer"), ("model", "ManufacturersModelName")):
        text = sidecar.get(key)
        if isinstance(text, str) and text.strip():
            about[name] = text.strip()
    if "vendor" in about:
        first = str(about["vendor"]).lower().split()[0]
        about["vendor"] = _VENDORS.get(first, about["vendor"])
    tesla = sidecar.get("MagneticFieldStrength")
    if isinstance(tesla, int | float) and not isinstance(tesla, bool) and 0 < tesla < 100:
        about["field_strength"] = float(tesla)
    return about


def names_patient(path: Path) -> bool:
    """Whether the JSON file beside the image has a field of the patient that converters leave out when asked to."""
    return any(_sidecar(path).get(key) for key in ("PatientName", "PatientID", "PatientBirthDate"))


def _sidecar(path: Path) -> dict[str, object]:
    try:
        found = json.loads(path.with_name(stem(path) + ".json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
