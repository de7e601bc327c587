"""From the values of a mask file to class indices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from polyclinic.data.readers.volume import UnreadableError
from polyclinic.data.spec import DataSpec
from polyclinic.errors import StudyError

#: Class indices are bytes.
MOST_STRUCTURES = 255


@dataclass(frozen=True)
class MaskClasses:
    """Which values of a mask are which structure.

    Attributes:
        names: of the classes, background first.
        values: values of each structure, in the order of ``names[1:]``; None: everything that is not zero.
        complete: whether a value that belongs to no structure makes the mask unusable; else it is background.
    """

    names: tuple[str, ...] = ("background", "foreground")
    values: tuple[tuple[int, ...], ...] | None = None
    complete: bool = False

    @classmethod
    def of(cls, spec: DataSpec) -> MaskClasses:
        """The structures that ``mask_classes`` of a study names.

        With a list of names the structures are the values 1, 2, ... and another value is a mistake; with
        ``{name: values}`` values that are not named are background, because atlases mark far more than a study needs.

        Raises:
            StudyError: P102 when names or values are missing, there twice, or out of range.
        """
        given = spec.mask_classes
        if given is None:
            return cls()
        values: list[tuple[int, ...]]
        if isinstance(given, list):
            names, values = given, [(number,) for number in range(1, len(given) + 1)]
        else:
            names = list(given)
            values = [(value,) if isinstance(value, int) else tuple(value) for value in given.values()]
        _check(names, values)
        return cls(("background", *names), tuple(values), complete=isinstance(given, list))

    @property
    def several(self) -> bool:
        """Whether there is more than one structure besides the background."""
        return len(self.names) > 2

    def encode(self, values: npt.NDArray[np.generic]) -> npt.NDArray[np.uint8]:
        """Class index of each pixel or voxel, in the shape of ``values``.

        Raises:
            UnreadableError: the values are no whole numbers, or one of them belongs to no structure and must.
        """
        if self.values is None:
            return np.asarray(values != 0).astype(np.uint8)
        whole: npt.NDArray[Any] = values
        if not np.issubdtype(values.dtype, np.integer):
            numbers: npt.NDArray[np.float64] = values.astype(np.float64)
            whole = np.rint(numbers)
            if not np.isfinite(numbers).all() or np.abs(numbers - whole).max(initial=0) > 1e-3:
                raise UnreadableError("mask has values that are no whole numbers")
        indices = np.zeros(values.shape, dtype=np.uint8)
        for index, wanted in enumerate(self.values, start=1):
            indices[np.isin(whole, wanted)] = index
        if self.complete and ((indices == 0) & (whole != 0)).any():
            raise UnreadableError("mask has a value that is none of `mask_classes`")
        return indices


def _check(names: list[str], values: list[tuple[int, ...]]) -> None:
    def need(fulfilled: object, message: str, hint: str) -> None:
        if not fulfilled:
            raise StudyError("P102", message, hint)

    need(names and all(values), "`mask_classes` names no structure or one without a value.", "Give at least one each.")
    need(len(names) <= MOST_STRUCTURES, f"`mask_classes` has {len(names)} structures.", f"Up to {MOST_STRUCTURES}.")
    for name in names:
        plain = name.strip() and not set("[],\n") & set(name) and name != "background"
        need(plain, f"`mask_classes` has the name {name!r}.", "Give a name without brackets and commas.")
        need(names.count(name) == 1, f"`mask_classes` has {name!r} twice.", "Give each structure a name of its own.")
    every = [value for own in values for value in own]
    for value in every:
        need(value > 0, f"`mask_classes` has the value {value}.", "Values are above 0, which is the background.")
        need(every.count(value) == 1, f"`mask_classes` has the value {value} twice.", "A value is one structure.")
