"""Whether the values of a mask are those of a mask, where the study names none."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from polyclinic.data.readers.volume import UnreadableError

Integers = npt.NDArray[np.int64]

#: Values may differ by so much from whole numbers: scales in headers are rounded.
_ROUNDED = 1e-3
#: Values in so small a range are counted without sorting.
_RANGE = 1 << 17
_PART = 1 << 20
#: A mask with more values than this, which are not numbered 1, 2, ..., is no mask of one foreground.
_MOST_VALUES = 16
#: Numbers of structures are below, grey values of a soft mask reach beyond, and the last bytes mark what is unknown.
_NUMBERS, _GREY, _MARKS = 32, 200, 250


@dataclass(frozen=True, eq=False)
class Table:
    """The distinct values of an array.

    Attributes:
        values: int64 ``[V]``, rising.
        counts: int64 ``[V]``, how often each is there.
        places: what each element is: its value less ``low``, or its place in ``values``.
        low: the value that ``places`` count from; None where they are places in ``values``.
    """

    values: Integers
    counts: Integers
    places: npt.NDArray[Any]
    low: int | None

    def spread(self, classes: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """``classes [V]`` of the distinct values, put where the values are."""
        table = classes
        if self.low is not None:
            table = np.zeros(int(self.values[-1]) - self.low + 1, dtype=np.uint8)
            table[self.values - self.low] = classes
        flat = self.places.reshape(-1)
        found = np.empty(len(flat), dtype=np.uint8)
        for part in _parts(len(flat)):
            found[part] = table[flat[part]]
        return found.reshape(self.places.shape)


def whole_numbers(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The values as whole numbers.

    Raises:
        UnreadableError: some are not.
    """
    if values.dtype.kind == "b":
        return np.where(values, np.uint8(1), np.uint8(0))  # Pillow's truth may be another byte than 1
    if values.dtype.kind in "iu":
        return values
    low, high = float(values.min()), float(values.max())
    if not max(-low, high) < 2**53:
        raise UnreadableError("mask has infinite or far too large values")
    whole = np.rint(values)
    if not np.array_equal(whole, values) and np.abs(values - whole).max() > _ROUNDED:
        raise UnreadableError(
            "mask has values that are no whole numbers: probabilities or interpolated edges need `mask: {above: 0.5}`"
        )
    small = np.uint8 if low > -0.5 and high < 255.5 else np.int32 if max(-low, high) < 2**31 - 1 else np.int64
    numbers: npt.NDArray[Any] = whole.astype(small)
    return numbers


def tabulate(values: npt.NDArray[Any]) -> Table:
    """The distinct values and where they are."""
    low, high = int(values.min()), int(values.max())
    if high - low >= _RANGE:
        found, places, counts = np.unique(values, return_inverse=True, return_counts=True)
        return Table(found.astype(np.int64), counts, places.reshape(values.shape), None)
    if values.dtype.kind == "u" and values.dtype.itemsize <= 2:
        low, places = 0, values
    else:
        wide = values.astype(np.int32) if values.dtype.itemsize < 4 else values
        places = (wide - wide.dtype.type(low) if low else wide).astype(np.int32, copy=False)
    flat, counts = places.reshape(-1), np.zeros(high - low + 1, dtype=np.int64)
    for part in _parts(len(flat)):
        counts += np.bincount(flat[part], minlength=len(counts))
    there = np.flatnonzero(counts)
    return Table(there + low, counts[there], places, low)


def _parts(length: int) -> Iterator[slice]:
    """A long array in parts, because NumPy makes eight bytes of each index."""
    return (slice(start, start + _PART) for start in range(0, length, _PART))


def check_foreground(values: Integers, *, background: bool, coloured: bool, lossy: bool) -> None:
    """Stop where values besides the background can hardly be one foreground.

    Args:
        values: int64 ``[V]``, distinct and rising, without those of the background and those that play no part.
        background: whether the mask has any background.
        coloured: whether they are colours, ``0xRRGGBB``.
        lossy: whether the file's format changes values.

    Raises:
        UnreadableError: they are not, with what to say in the study file.
    """
    if not len(values):
        return
    several = len(values) > 1
    if coloured:
        if len(values) > _MOST_VALUES or (lossy and several):
            raise UnreadableError("mask has too many colours: soft edges, or a lossy file format (JPEG)")
    elif lossy:
        if several or values[0] != 255:
            raise UnreadableError(
                "mask is a JPEG file, which changes values: say `mask: {above: 127}` if that is meant"
            )
    elif values[0] < 0:
        raise UnreadableError("mask has values below 0: say `mask: {background: -1}`, or `ignore`, with what they mean")
    elif several:
        _check_numbers(values)
    if several and not background:
        what, example = ("colours", '"#ffffff"') if coloured else ("values", "1")
        raise UnreadableError(
            f"mask has several {what} and none is the background: say which is, as `mask: {{background: {example}}}`"
        )


def _check_numbers(values: Integers) -> None:
    top, others = int(values[-1]), values[:-1]
    if _MARKS <= top <= 255 and others[-1] < _NUMBERS:
        raise UnreadableError(
            f"mask has {top} besides small numbers: say `mask: {{ignore: {top}}}` if it means unknown, or name all "
            "values in `mask_classes`"
        )
    numbered = top == len(values) and values[0] == 1  # single lesions, cells, ...: 1, 2, 3, ...
    if len(values) > 2 and _GREY <= top <= 255:
        raise UnreadableError(
            "mask has grey values (soft edges, probabilities, or structures): say `mask: {above: 127}`, or name them "
            "in `mask_classes`"
        )
    if len(values) > _MOST_VALUES and not numbered:
        raise UnreadableError(
            f"mask has more than {_MOST_VALUES} values: say `mask: {{above: 0}}` if all but 0 are foreground, or name "
            "structures in `mask_classes`"
        )
