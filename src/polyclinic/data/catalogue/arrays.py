"""Arrays in the files in which features of tiles and raw data of scanners are shared: ``.npy`` and HDF5."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from polyclinic.errors import DataError


def open_hdf5(path: Path) -> Any:
    """An open HDF5 file, to be used with ``with``.

    Raises:
        DataError: P503 when the package that reads it is not installed.
        OSError: when it is damaged.
    """
    try:
        import h5py
    except ImportError:
        raise DataError(
            "P503",
            f"{path.suffix} files are HDF5, and the package h5py that reads them is not installed.",
            "Run: pip install 'polyclinic[hdf5]'.",
        ) from None
    return h5py.File(path, "r")


def read_features(path: Path) -> npt.NDArray[np.float32]:
    """Features of a slide's tiles, ``[N, F]``: an ``.npy`` file, or the dataset ``features`` of an HDF5 file.

    A first axis of length 1 (``[1, N, F]``) is taken off.

    Raises:
        DataError: P503 when a package is not installed.
        OSError, ValueError: when the file is damaged, or holds something else.
    """
    if path.suffix.lower() == ".npy":
        with path.open("rb") as file:
            found = np.lib.format.read_array(file, allow_pickle=False)
    else:
        with open_hdf5(path) as file:
            if "features" not in file:
                raise ValueError("no dataset `features`")
            found = np.asarray(file["features"])
    if found.ndim == 3 and found.shape[0] == 1:
        found = found[0]
    if found.ndim != 2 or found.dtype.kind != "f" or not found.size:
        raise ValueError(f"features of shape {found.shape} and type {found.dtype}")
    return np.asarray(found, dtype=np.float32)
