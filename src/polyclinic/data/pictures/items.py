"""Data sets of PyTorch in the place of tables and image files: the same table, and images as PNG, which loses nothing.

An item is ``(input, target)``, or a mapping with ``input`` and ``target`` and further columns, such as ``subject``.
Inputs are features ``[F]`` or pictures ``[C, H, W]`` or ``[H, W]`` of one or three channels; targets are a class, a
number, or a mask ``[H, W]``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from PIL import Image

from polyclinic.data.tables.frames import Frame, keep_frame
from polyclinic.errors import DataError

#: Floats of pictures are taken for these shares of 255 if they are as near as rounding in 32 bits.
_NEAR = 1e-3


@dataclass
class Items:
    """What was found in a site's data set.

    Attributes:
        frame: the table.
        features: names of its columns of features; empty for pictures.
        sizes: heights and widths of the pictures.
        channels: ``grey`` or ``rgb``; empty for features.
        masks: whether the targets are masks.
    """

    frame: Frame
    features: list[str]
    sizes: set[tuple[int, int]]
    channels: str
    masks: bool


def is_dataset(given: object) -> bool:
    """Whether something is a data set of cases by number, and no frame or path."""
    return (
        hasattr(given, "__getitem__") and hasattr(given, "__len__") and not isinstance(given, str | pd.DataFrame | dict)
    )


@dataclass
class _Reading:
    site: str
    folder: TemporaryDirectory[str]
    rows: list[dict[str, Any]] = field(default_factory=list)
    sizes: set[tuple[int, int]] = field(default_factory=set)
    kinds: set[str] = field(default_factory=set)
    digest: Any = field(default_factory=hashlib.sha256)
    masks: bool = False

    def wrong(self, place: int, got: str, expected: str) -> DataError:
        return DataError("P203", f"The data set of {self.site}, item {place}: got {got}, expected {expected}.",
                         "Mend the data set, or give a frame with the paths of images.")  # fmt: skip


def read_items(dataset: Any, site: str) -> Items:
    """Read all items of a site's data set, in order.

    Raises:
        DataError: P201, it has no length or no items; P203, an item is not as it should be.
    """
    if isinstance(dataset, torch.utils.data.IterableDataset) or not len(dataset):
        raise DataError("P201", f"The data set of {site} has no items, or none by number.",
                        "Give a map-style `torch.utils.data.Dataset`.")  # fmt: skip
    reading = _Reading(site, TemporaryDirectory(prefix="polyclinic-"))
    for place in range(len(dataset)):
        reading.rows.append(_row(reading, place, dataset[place]))
    if len(reading.kinds) > 1:
        text = f"The data set of {site} has {' and '.join(sorted(reading.kinds))} inputs."
        raise DataError("P203", text, "Give inputs of one kind.")
    kind = reading.kinds.pop()
    table = pd.DataFrame(reading.rows)
    features = (
        [name for name in map(str, table) if name.startswith("x") and name[1:].isdigit()] if kind == "features" else []
    )
    images = None if kind == "features" else reading.folder
    frame = keep_frame(table, site, images, reading.digest.digest())
    return Items(frame, features, reading.sizes, "" if kind == "features" else kind, reading.masks)


def _row(reading: _Reading, place: int, item: Any) -> dict[str, Any]:
    others: dict[str, Any] = {}
    if isinstance(item, Mapping):
        others = {str(name): value for name, value in item.items() if name not in ("input", "target")}
        if "input" not in item or "target" not in item:
            raise reading.wrong(place, f"a mapping with {', '.join(map(str, item))}", "`input` and `target` among them")
        given, target = item["input"], item["target"]
    elif isinstance(item, tuple | list) and len(item) == 2:
        given, target = item
    else:
        raise reading.wrong(place, f"a {type(item).__name__}", "(input, target), or a mapping with both")
    row = {name: _single(value) for name, value in others.items()}
    pixels = np.asarray(given)
    if pixels.ndim == 1:
        reading.kinds.add("features")
        row |= {f"x{number}": value for number, value in enumerate(pixels.tolist(), start=1)}
    else:
        row["image"] = _store_picture(reading, place, given, pixels)
    marked = np.asarray(target)
    if marked.ndim >= 2:
        row["mask"] = _store_mask(reading, place, marked)
    else:
        row["target"] = _single(target)
    return row


def _single(value: Any) -> Any:
    """What is in an array or tensor of one element."""
    one = isinstance(value, torch.Tensor | np.ndarray) and np.asarray(value).size == 1
    return np.asarray(value).reshape(()).item() if one else value


def _store_picture(reading: _Reading, place: int, given: Any, pixels: npt.NDArray[Any]) -> str:
    if pixels.ndim == 3 and not isinstance(given, Image.Image):
        if pixels.shape[0] not in (1, 3):
            raise reading.wrong(place, f"an input of shape {list(pixels.shape)}", "[F], [1, H, W], [3, H, W] or [H, W]")
        pixels = pixels.transpose(1, 2, 0)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] != 3):
        raise reading.wrong(place, f"an input of shape {list(pixels.shape)}", "[F], [1, H, W], [3, H, W] or [H, W]")
    if pixels.dtype.kind == "f":
        levels = pixels.astype(np.float64) * 255
        whole = np.rint(levels)
        if (
            not np.isfinite(levels).all()
            or np.abs(levels - whole).max() > _NEAR
            or whole.min() < 0
            or whole.max() > 255
        ):
            raise reading.wrong(place, "floats that are not all shares of 255 from 0 to 1",
                                "bytes from 0 to 255, or what torchvision's ToTensor makes of them; values are scaled "
                                "later on (`scaling`)")  # fmt: skip
        pixels = whole.astype(np.uint8)
    elif pixels.dtype != np.uint8 and not (pixels.dtype == np.uint16 and pixels.ndim == 2):
        raise reading.wrong(place, f"values of type {pixels.dtype}", "bytes (uint8)")
    reading.kinds.add("rgb" if pixels.ndim == 3 else "grey")
    reading.sizes.add((pixels.shape[0], pixels.shape[1]))
    return _store(reading, f"image{place:06d}.png", pixels)


def _store_mask(reading: _Reading, place: int, marked: npt.NDArray[Any]) -> str:
    marked = marked[0] if marked.ndim == 3 and marked.shape[0] == 1 else marked
    if marked.ndim != 2 or not np.array_equal(marked, marked.astype(np.uint8)):
        raise reading.wrong(place, f"a mask of shape {list(marked.shape)} and type {marked.dtype}",
                            "[H, W] with numbers from 0 to 255")  # fmt: skip
    reading.masks = True
    return _store(reading, f"mask{place:06d}.png", marked.astype(np.uint8))


def _store(reading: _Reading, name: str, pixels: npt.NDArray[Any]) -> str:
    pixels = np.ascontiguousarray(pixels)
    reading.digest.update(f"{name} {pixels.shape} {pixels.dtype}".encode() + pixels.tobytes())
    Image.fromarray(pixels).save(Path(reading.folder.name) / name, compress_level=1)
    return name
