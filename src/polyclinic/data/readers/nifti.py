"""Volumes from NIfTI files (https://nifti.nimh.nih.gov/nifti-1)."""

from __future__ import annotations

import gzip
import json
import logging
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from polyclinic.data.readers.volume import UnreadableError, Volume
from polyclinic.notes import Note

if TYPE_CHECKING:
    import nibabel as nib

ENDINGS = (".nii", ".nii.gz")
_HEADER_BYTES = 540  # NIfTI-2's; NIfTI-1's has 348
_MOST_BYTES = 8 * 2**30
_VENDORS = {
    "siemens": "Siemens", "ge": "GE", "philips": "Philips", "canon": "Canon",
    "toshiba": "Canon", "uih": "United Imaging",
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class NiftiHeader:
    """What a NIfTI header says.

    Attributes:
        shape: as stored, one to seven axes.
        affine: float64 ``[4, 4]`` to RAS+ millimetres, by nibabel's rules (sform, else qform, else pixel sizes).
        spacing: voxel sizes in millimetres.
        orientation: code such as ``RAS``: towards which side of the body each axis runs.
        dtype: type of the stored voxels.
        notes: as in ``Volume``.
    """

    shape: tuple[int, ...]
    affine: npt.NDArray[np.float64]
    spacing: tuple[float, float, float]
    orientation: str
    dtype: np.dtype[Any]
    notes: tuple[Note, ...] = ()


def is_nifti(path: Path) -> bool:
    """Whether the file's name ends as NIfTI names do (``my.nifti.image.nii`` too)."""
    return path.name.lower().endswith(ENDINGS)


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
    image = _open(path)
    _check_length(path, image)
    return _describe(image)


def header_findings(path: Path) -> tuple[str, tuple[Note, ...]]:
    """Why the file can't be used as far as its header tells ("" where it can), and what should be known of it."""
    try:
        return "", nifti_header(path).notes
    except UnreadableError as error:
        return str(error), ()


def read_nifti(path: Path) -> Volume:
    """The image with its scale (scl_slope, scl_inter) applied.

    Integers stay integers where the header asks for no scale; otherwise float32. Axes of length one at the end are
    dropped, a fourth axis stays; ``about`` is what an accompanying JSON file (BIDS) says of the scanner.

    Args:
        path: a ``.nii`` or ``.nii.gz`` file.

    Raises:
        UnreadableError: the file is missing, empty, no NIfTI, truncated or damaged; its voxels are complex numbers or
            colours; it has more than four axes; its affine or spacing is no usable number.
    """
    image = _open(path)
    header = _describe(image)
    if int(np.prod(header.shape)) * max(header.dtype.itemsize, 4) > _MOST_BYTES:
        raise UnreadableError("image is larger than 8 GiB")
    slope, intercept = image.dataobj.slope, image.dataobj.inter
    if not (np.isfinite(slope) and np.isfinite(intercept)):
        raise UnreadableError("scale in the NIfTI header is no number")
    try:
        values = np.asarray(image.dataobj.get_unscaled())
    except MemoryError:
        raise UnreadableError("image is too large for the memory") from None
    except (EOFError, ValueError) as error:
        logger.debug("%s", error)
        raise UnreadableError("NIfTI file is truncated") from None
    except OSError as error:
        raise UnreadableError(_os_reason(error)) from None
    except Exception:  # zlib.error and others on damaged files
        raise UnreadableError("NIfTI file is damaged") from None
    if slope != 1 or intercept != 0:
        with np.errstate(all="ignore"):
            values = (values.astype(np.float64) * slope + intercept).astype(np.float32)
    values = values.astype(values.dtype.newbyteorder("="), copy=False)
    if values.dtype.kind == "f" and not np.isfinite(values).any():
        raise UnreadableError("image has no finite value")
    return Volume(_three_axes(values), header.affine, scanner_facts(path), header.notes)


logger = logging.getLogger(__name__)


def _three_axes(values: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    while values.ndim > 3 and values.shape[-1] == 1:
        values = values[..., 0]
    return values.reshape(*values.shape, *(1,) * (3 - values.ndim))


def _open(path: Path) -> nib.Nifti1Image:
    import nibabel as nib
    from nibabel.filebasedimages import ImageFileError

    try:
        start = _first_bytes(path)
        if not start:
            raise UnreadableError("file is empty")
        if start[344:348] not in (b"n+1\0", b"ni1\0") and start[4:8] not in (b"n+2\0", b"ni2\0"):
            raise UnreadableError("file is no NIfTI" if len(start) >= 348 else "NIfTI file is truncated")
        kind = nib.Nifti2Image if start[4:8] in (b"n+2\0", b"ni2\0") else nib.Nifti1Image
        logging.getLogger("nibabel.global").disabled = True
        return kind.from_filename(str(path), mmap=False)
    except UnreadableError:
        raise
    except FileNotFoundError:
        raise UnreadableError("file is missing") from None
    except (EOFError, ImageFileError):
        raise UnreadableError("NIfTI file is damaged") from None
    except OSError as error:
        raise UnreadableError(_os_reason(error)) from None
    except Exception:  # header fields without sense raise many types
        raise UnreadableError("NIfTI header is damaged") from None
    finally:
        logging.getLogger("nibabel.global").disabled = False


def _first_bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        if not packed:
            if path.name.lower().endswith(".gz") and file.read(1):
                raise UnreadableError("file ends in .gz but is not compressed by gzip")
            file.seek(0)
            return file.read(_HEADER_BYTES)
        if not path.name.lower().endswith(".gz"):
            raise UnreadableError("file is compressed by gzip but its name does not end in .gz")
        try:
            with gzip.GzipFile(fileobj=file) as unpacked:
                return unpacked.read(_HEADER_BYTES)
        except EOFError:
            raise UnreadableError("NIfTI file is truncated") from None
        except (zlib.error, OSError):
            raise UnreadableError("NIfTI file is damaged") from None


def _describe(image: nib.Nifti1Image) -> NiftiHeader:
    import nibabel as nib

    shape = tuple(int(length) for length in image.shape)
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if not shape or min(shape) < 1:
        raise UnreadableError("image has no voxels")
    if len(shape) > 4:
        raise UnreadableError(f"image has {len(shape)} axes, at most 4 can be read")
    dtype = image.get_data_dtype()
    if dtype.kind == "c":
        raise UnreadableError("voxels are complex numbers")
    if dtype.kind == "V":
        raise UnreadableError("voxels are colours (RGB)")
    affine = np.asarray(image.affine, dtype=np.float64)
    if not np.isfinite(affine).all():
        raise UnreadableError("affine is not finite")
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if spacing.min() <= 0:
        raise UnreadableError("voxel size is zero")
    if abs(np.linalg.det(affine[:3, :3] / spacing)) < 1e-4:
        raise UnreadableError("affine is singular")
    x, y, z = spacing.tolist()
    try:
        orientation = "".join(code or "?" for code in nib.aff2axcodes(affine))
    except Exception:
        raise UnreadableError("affine is singular") from None
    notes = []
    if not image.header["sform_code"] and not image.header["qform_code"]:
        notes.append(Note("N610", "without a place in space (both codes are 0): axes and sides are a guess."))
    return NiftiHeader(shape, affine, (x, y, z), orientation, dtype, tuple(notes))


def _check_length(path: Path, image: nib.Nifti1Image) -> None:
    """Compare the bytes that the voxels need with those that are there."""
    needed = int(image.dataobj.offset) + int(np.prod(image.shape)) * image.get_data_dtype().itemsize
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            if file.seek(0) == 0 and file.read(2) != b"\x1f\x8b":
                if size < needed:
                    raise UnreadableError("NIfTI file is truncated")
                return
            file.seek(-4, 2)
            # gzip ends with the unpacked length modulo 2^32 (RFC 1952), unless the file has several parts.
            if int.from_bytes(file.read(4), "little") == needed % 2**32:
                return
        _unpack_all(path, needed)
    except OSError as error:
        raise UnreadableError(_os_reason(error)) from None


def _unpack_all(path: Path, needed: int) -> None:
    found = 0
    try:
        with gzip.open(path) as file:
            while chunk := file.read(2**20):
                found += len(chunk)
                if found >= needed:
                    return
    except EOFError:
        raise UnreadableError("NIfTI file is truncated") from None
    except (zlib.error, gzip.BadGzipFile):
        raise UnreadableError("NIfTI file is damaged") from None
    raise UnreadableError("NIfTI file is truncated")


def _os_reason(error: OSError) -> str:
    if isinstance(error, PermissionError | IsADirectoryError):
        return "file may not be read"
    text = str(error)
    return "NIfTI file is truncated" if "Expected" in text or "end of" in text else "NIfTI file is damaged"


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
