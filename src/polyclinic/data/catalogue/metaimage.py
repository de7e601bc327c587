"""MetaImage files (``.mhd`` with ``.raw`` or ``.zraw``, ``.mha``) written as NIfTI.

Source: the MetaIO documentation of ITK (https://itk.org/Wiki/ITK/MetaIO/Documentation); positions are in LPS there.
"""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from polyclinic.data.catalogue.convert import write_volume

_TYPES = {
    "MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4", "MET_UINT": "u4",
    "MET_FLOAT": "f4", "MET_DOUBLE": "f8",
}  # fmt: skip
_HEADER = 64 * 1024


def _header(path: Path) -> tuple[dict[str, str], int]:
    """Entries of the header, and where it ends; ``ElementDataFile`` is its last line."""
    with path.open("rb") as file:
        start = file.read(_HEADER)
    entries: dict[str, str] = {}
    offset = 0
    for line in start.splitlines(keepends=True):
        offset += len(line)
        name, _, value = line.decode("latin-1").partition("=")
        entries[name.strip()] = value.strip()
        if name.strip() == "ElementDataFile":
            return entries, offset
    raise ValueError("no MetaImage header")


def _numbers(entries: dict[str, str], names: tuple[str, ...], default: str) -> npt.NDArray[np.float64]:
    text = next((entries[name] for name in names if name in entries), default)
    return np.array([float(word) for word in text.split()])


def read_metaimage(path: Path) -> tuple[npt.NDArray[np.generic], npt.NDArray[np.float64]]:
    """Voxels ``[X, Y, Z]`` and their affine ``[4, 4]`` to millimetres in RAS+.

    Raises:
        OSError, ValueError: when a file is missing or damaged, or holds something else than a volume.
    """
    entries, offset = _header(path)
    shape = [int(word) for word in entries.get("DimSize", "").split()]
    kind = _TYPES.get(entries.get("ElementType", ""))
    if len(shape) != 3 or min(shape) < 1 or kind is None or entries.get("ElementNumberOfChannels", "1") != "1":
        raise ValueError("no volume of single numbers")
    name = entries["ElementDataFile"]
    if name == "LOCAL":
        content = path.read_bytes()[offset:]
    else:  # beside the header, wherever the name points to
        content = (path.parent / Path(name.replace("\\", "/")).name).read_bytes()
    if entries.get("CompressedData", "False").lower() == "true":
        try:
            content = zlib.decompress(content)
        except zlib.error as error:
            raise ValueError(str(error)) from None
    most_significant = entries.get("BinaryDataByteOrderMSB", entries.get("ElementByteOrderMSB", "False"))
    dtype = np.dtype(kind).newbyteorder(">" if most_significant.lower() == "true" else "<")
    if len(content) != int(np.prod(shape)) * dtype.itemsize:
        raise ValueError("the data are shorter or longer than the header says")
    voxels = np.frombuffer(content, dtype).reshape(shape, order="F").astype(dtype.newbyteorder("="))
    # Each triple is the direction of an axis.
    directions = _numbers(entries, ("TransformMatrix", "Rotation", "Orientation"), "1 0 0 0 1 0 0 0 1").reshape(3, 3).T
    affine = np.eye(4)
    affine[:3, :3] = directions * _numbers(entries, ("ElementSpacing", "ElementSize"), "1 1 1")
    affine[:3, 3] = _numbers(entries, ("Offset", "Position", "Origin"), "0 0 0")
    return voxels, np.diag((-1.0, -1.0, 1.0, 1.0)) @ affine


def metaimage_to_nifti(source: Path, path: Path) -> None:
    """Write a MetaImage file as ``.nii.gz``, unless the file is there already; errors as `read_metaimage`."""
    if not path.exists():
        voxels, affine = read_metaimage(source)
        write_volume(path, voxels, affine)
