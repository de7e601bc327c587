"""The files of a folder, and those that a table names."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from polyclinic.data.readers.dicom.header import natural_key
from polyclinic.data.readers.nifti.read import is_nifti

if TYPE_CHECKING:
    from PIL import Image

#: Other formats of Pillow are left out: some of them run outside programs on the file.
FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF")

_OTHERS = frozenset((
    ".bmp", ".bval", ".bvec", ".csv", ".gif", ".gz", ".html", ".htm", ".ini", ".jpeg", ".jpg", ".js", ".json", ".log",
    ".m", ".mat", ".md", ".npy", ".npz", ".pdf", ".png", ".py", ".rst", ".salt", ".sh", ".tar", ".tif", ".tiff",
    ".tsv", ".txt", ".xls", ".xlsx", ".xml", ".yaml", ".yml", ".zip",
))  # fmt: skip
"""Endings of files that are no DICOM; all others are looked into."""


def open_picture(path: Path) -> Image.Image:
    """A picture file, as `PIL.Image.open` gives it.

    Pillow is given what is in the file: it would map a grey TIFF file that it opens itself into memory with the sides
    of the picture as it is to be turned, which tears it.

    Raises:
        OSError: it can't be read, or is of none of ``FORMATS``.
    """
    from PIL import Image

    return Image.open(io.BytesIO(path.read_bytes()), formats=FORMATS)


def resolve(name: str, root: Path, allowed: Sequence[Path] = ()) -> Path | None:
    """The file that a table's cell names, or None where it lies outside ``root`` and all ``allowed`` folders.

    Relative paths start at ``root``; absolute ones are fine under one of the folders. A table thus reaches nothing that
    the study file doesn't name (``../../etc``), while a link inside the folder, which its owner made, is followed.
    """
    path = Path(os.path.normpath(root.absolute() / name))
    inside = any(path.is_relative_to(os.path.normpath(folder.absolute())) for folder in (root, *allowed))
    return path if inside else None


def list_files(folder: Path) -> Iterator[Path]:
    """All files below ``folder`` in natural order, without hidden ones; links to folders are not followed."""
    for place, folders, files in os.walk(folder):
        folders[:] = sorted((name for name in folders if not _hidden(name)), key=natural_key)
        for name in sorted(files, key=natural_key):
            if not _hidden(name):
                yield Path(place) / name


def maybe_dicom(path: Path) -> bool:
    """Whether the file's name does not say that it is something else than DICOM."""
    return path.suffix.lower() not in _OTHERS and not is_nifti(path) and path.name.upper() != "DICOMDIR"


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"
