"""What a tensor of a message must be: type, shape and limits, with the names of dimensions that docstrings use."""

from __future__ import annotations

import math
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

#: More numbers than these has no tensor of a message whose shape is not known beforehand.
MOST_NUMBERS = 2**28

_TYPES = {
    name: getattr(torch, name)
    for name in ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
}


class Misfit(ValueError):  # noqa: N818 - a word says it
    """A tensor is not what it must be; the text says what was got and what was expected."""


class NotFinite(Misfit):
    """Only its values are not finite numbers."""


@dataclass(frozen=True, init=False)
class Shaped:
    """What a tensor of a message must be.

    Args:
        kind: its type, or several with ``|`` between them; "" for any type that messages have.
        shape: of each dimension its length, or a name. A name that the receiver knows has that length; any other has
            one length in all of a message. None for any shape.
        finite: whether all numbers must be finite.
        least: the least number that there may be; None for any.
        most: the largest number that there may be, likewise.
        group: tensors of a group are all there or all missing; those of none must be there.
        always: of a tensor that a part sends: the function, ``train`` or ``start``, whose answers all have it.
        filled: whether there must be a number in it, so that no length is 0.
    """

    kinds: tuple[str, ...]
    shape: tuple[int | str, ...] | None
    finite: bool
    least: float | None
    most: float | None
    group: str
    always: str
    filled: bool

    def __init__(
        self, kind: str, *shape: int | str | None, finite: bool = True, least: float | None = None,
        most: float | None = None, group: str = "", always: str = "", filled: bool = False,
    ) -> None:  # fmt: skip
        known = None if shape == (None,) else tuple(length for length in shape if length is not None)
        kinds = tuple(filter(None, kind.split("|"))) or tuple(_TYPES)
        values = (kinds, known, finite, least, most, group, always, filled)
        names = ("kinds", "shape", "finite", "least", "most", "group", "always", "filled")
        for name, value in zip(names, values, strict=True):
            object.__setattr__(self, name, value)

    @cached_property
    def types(self) -> frozenset[torch.dtype]:
        """The types that the tensor may have."""
        return frozenset(_TYPES[name] for name in self.kinds)

    def check(self, tensor: Tensor, sizes: MutableMapping[str, int], most: int = MOST_NUMBERS) -> None:
        """Whether a tensor is what it must be.

        Args:
            tensor: to be checked.
            sizes: lengths of dimensions that are known; those that the tensor tells are added.
            most: of so many numbers at most, where the shape is not known.

        Raises:
            Misfit: it is not.
        """
        if tensor.dtype not in self.types:
            raise Misfit(f"got {_name(tensor.dtype)}, expected {' or '.join(self.kinds)}")
        if not self._fits(tuple(tensor.shape), sizes):
            raise Misfit(f"got {_of(tuple(tensor.shape))}, expected {self._expected(sizes)}")
        if self.filled and not tensor.numel():
            raise Misfit(f"got {_of(tuple(tensor.shape))}, expected at least one number")
        if tensor.numel() > most and not self._is_known(sizes):
            raise Misfit(f"got {tensor.numel()} numbers, expected {most} at most")
        if self.finite and not finite(tensor):
            raise NotFinite("got values that are not finite numbers")
        if not self.reaches(tensor):
            if self.least is not None and float(tensor.min()) < self.least:
                raise Misfit(f"got {float(tensor.min()):g}, expected {self.least:g} or more")
            raise Misfit(f"got {float(tensor.max()):g}, expected {self.most:g} or less")

    def reaches(self, tensor: Tensor) -> bool:
        """Whether all numbers of a tensor are between the least and the largest that there may be."""
        if not tensor.numel():
            return True
        low = self.least is None or float(tensor.min()) >= self.least
        return low and (self.most is None or float(tensor.max()) <= self.most)

    def _fits(self, found: tuple[int, ...], sizes: MutableMapping[str, int]) -> bool:
        if self.shape is None:
            return True
        if len(found) != len(self.shape):
            return False
        return all(
            length == (sizes.setdefault(wanted, length) if isinstance(wanted, str) else wanted)
            for length, wanted in zip(found, self.shape, strict=True)
        )

    def _is_known(self, sizes: Mapping[str, int]) -> bool:
        return self.shape is not None and all(isinstance(one, int) or one in "PQTS" for one in self.shape)

    def _expected(self, sizes: Mapping[str, int]) -> str:
        lengths = [str(sizes.get(one, one)) if isinstance(one, str) else str(one) for one in self.shape or ()]
        named = any(isinstance(one, str) for one in self.shape or ())
        return f"{self} = [{', '.join(lengths)}]" if named else str(self)

    def __str__(self) -> str:
        return "[...]" if self.shape is None else f"[{', '.join(map(str, self.shape))}]"


def finite(tensor: Tensor) -> bool:
    """Whether all values of a tensor are finite numbers."""
    if not tensor.dtype.is_floating_point or not tensor.numel():
        return True
    # The sum is not finite if any value is not; it is one pass without a temporary tensor. Large values may overflow.
    return math.isfinite(tensor.sum().item()) or bool(tensor.isfinite().all())


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _of(shape: tuple[int, ...]) -> str:
    return f"[{', '.join(map(str, shape))}]"
