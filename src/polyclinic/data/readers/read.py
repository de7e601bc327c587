"""One way to read any image that a manifest names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import nibabel
import numpy as np

from polyclinic.data.images import resolve
from polyclinic.data.readers.volume import UnreadableError, Volume


def split_series(cell: str) -> tuple[str, str]:
    """A manifest cell ``FOLDER#SERIES`` as folder and series; a plain path has no series."""
    path, _, series = cell.partition("#")
    return path, series


def read_volume(cell: str, root: Path, allowed: Sequence[Path] = ()) -> Volume:
    """The image that a manifest cell names."""
    path = resolve(split_series(cell)[0], root, allowed)
    if path is None or not path.exists():
        raise UnreadableError("image file is missing")
    try:
        image = nibabel.load(path)
        return Volume(np.asanyarray(image.dataobj), np.asarray(image.affine, dtype=np.float64))
    except Exception:
        raise UnreadableError("image file is damaged") from None
