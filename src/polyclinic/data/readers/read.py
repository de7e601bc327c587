"""One way from a manifest's cell to a volume."""

from __future__ import annotations

import hashlib
import hmac
import logging
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from polyclinic.data.readers.dicom.groups import Group, group_planes
from polyclinic.data.readers.dicom.header import Header, read_header
from polyclinic.data.readers.dicom.read import find_one, read_built_series
from polyclinic.data.readers.dicom.series import Series, build_series
from polyclinic.data.readers.files import FORMATS, list_files, maybe_dicom, open_picture, resolve
from polyclinic.data.readers.nifti.read import is_nifti, pair_of, read_nifti
from polyclinic.data.readers.volume import UnreadableError, Volume
from polyclinic.options import Catalogue
from polyclinic.origins import of_module

logger = logging.getLogger(__name__)

#: Readers of image files by the ending of their names, in small letters: a function of the path gives a `Volume`, or
#: raises `UnreadableError`. What has no ending of these is taken for DICOM.
READERS: Catalogue[Callable[[Path], Volume]] = Catalogue("reader of image files")


def reader_of(path: Path) -> str:
    """The ending of a file's name for which there is a reader, the longest of several; empty for none."""
    name = path.name.lower()
    return max((ending for ending in READERS if name.endswith(ending)), key=len, default="")


def read_with(ending: str, path: Path) -> Volume:
    """Read a file with the reader for ``ending``.

    Raises:
        UnreadableError: with the reason, which names no file.
    """
    reader = READERS[ending]
    try:
        found = reader(path)
    except (UnreadableError, OSError):
        raise
    except Exception as error:
        whose = of_module(reader.__module__)
        if not whose:
            raise
        logger.debug("%s: the reader of %s failed", path, whose, exc_info=True)
        raise UnreadableError(f"{whose} failed to read it: {type(error).__name__}") from None
    _check(found, ending)
    return found


def _check(found: object, ending: str) -> None:
    """Whether a reader gave what it must."""
    if not isinstance(found, Volume) or found.values.ndim not in (3, 4) or found.affine.shape != (4, 4):
        raise UnreadableError(f"the reader of {ending} files gave no volume [X, Y, Z] with an affine [4, 4]")


def read_volume(where: str, root: Path, allowed: Sequence[Path] = ()) -> Volume:
    """Read what a manifest's cell names.

    Args:
        where: a NIfTI file, a DICOM file, a folder with one DICOM image (in any nesting), ``FOLDER#SERIES`` with the
            name that ``polyclinic data scan`` gave to one of several, a picture (PNG, JPEG, TIFF, BMP; Z is 1), or a
            file with the ending of another of `READERS`.
        root: folder to which ``where`` is relative.
        allowed: other folders in which the file may lie.

    Raises:
        UnreadableError: with the reason, which names no file.
    """
    path, name = _inside(where, root, allowed), ""
    if not path.exists() and "#" in where:
        place, _, name = where.rpartition("#")
        path = _inside(place, root, allowed)
    if not path.exists():
        raise UnreadableError("file is missing")
    if path.is_file() and (is_nifti(path) or len(pair_of(path)) == 2):
        return read_nifti(path)
    ending = reader_of(path)
    if path.is_file() and ending:
        return read_with(ending, path)
    return read_built_series(_series(path, name))


def find_series(path: Path) -> Series:
    """The DICOM image that a path names (a file, a folder with one image, ``FOLDER#SERIES``), without its voxels.

    Raises:
        UnreadableError: with the reason, which names no file.
    """
    place, name = place_and_series(path)
    if not place.exists():
        raise UnreadableError("file is missing")
    return _series(place, name)


def _series(path: Path, name: str) -> Series:
    if name:
        return _named_series(path, name)
    if path.is_dir():
        return find_one(file for file in list_files(path) if maybe_dicom(file))
    return find_one([path])


def _inside(where: str, root: Path, allowed: Sequence[Path]) -> Path:
    path = resolve(where, root, allowed)
    if path is None:
        raise UnreadableError("path lies outside the image folder")
    return path


def place_and_series(path: Path) -> tuple[Path, str]:
    """``FOLDER#SERIES`` as folder and series; a path without a series has an empty one."""
    if path.exists() or "#" not in path.name:
        return path, ""
    folder, _, name = path.name.rpartition("#")
    return path.with_name(folder), name


def series_name(key: str, salt: str) -> str:
    """Name of one image among others in a folder: eight digits for the study, and twelve for the image.

    The first part depends on the salt alone, and the second can be found again from it and from the series' UID, so
    that reading needs no salt, while equal series have different names in different studies.

    >>> series_name("1.2.3", "salt") == series_name("1.2.3", "another salt")
    False
    """
    study = hmac.new(salt.encode(), b"series", hashlib.sha256).hexdigest()[:8]
    return f"{study}-{_within(key, study)}"


def _within(key: str, study: str) -> str:
    return hmac.new(study.encode(), key.encode(), hashlib.sha256).hexdigest()[:12]


def _named_series(folder: Path, name: str) -> Series:
    study, _, wanted = name.partition("-")
    if not folder.is_dir():
        raise UnreadableError("file is missing")
    for group in _folder_groups(folder, folder.stat().st_mtime):
        if _within(group.key, study) == wanted:
            return build_series(group)
    raise UnreadableError("DICOM series is missing from its folder")


@lru_cache(maxsize=8)
def _folder_groups(folder: Path, changed: float) -> tuple[Group, ...]:
    """All groups of a folder: looked up once, because a folder of many series is named by many cells."""
    headers: list[Header] = []
    for path in list_files(folder):
        if maybe_dicom(path):
            try:
                headers.append(read_header(path))
            except UnreadableError as error:
                logger.debug("%s: %s", path, error)
    return tuple(group_planes(headers))


def _read_picture(path: Path) -> Volume:
    """``[X, Y, 1]`` grey or ``[X, Y, 1, 3]`` colours; a picture has no place in space: voxels of one millimetre."""
    from PIL import UnidentifiedImageError

    try:
        with open_picture(path) as image:
            pixels = np.asarray(image if image.mode in ("L", "I", "I;16", "F") else image.convert("RGB"))
    except UnidentifiedImageError:
        raise UnreadableError(f"file is no {', '.join(FORMATS[:-1])} or {FORMATS[-1]}") from None
    except PermissionError:
        raise UnreadableError("file may not be read") from None
    except Exception:  # Pillow's decoders raise many types on damaged files
        raise UnreadableError("picture is damaged") from None
    values = pixels.swapaxes(0, 1)[:, :, None]
    return Volume(np.ascontiguousarray(values), np.diag((-1.0, -1.0, 1.0, 1.0)), colour=values.ndim == 4)


for _ending in (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"):
    READERS.add(_ending)(_read_picture)
for _ending in (".nii", ".nii.gz"):
    READERS.add(_ending)(read_nifti)
