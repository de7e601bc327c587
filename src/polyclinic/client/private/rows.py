"""The gradients of some patients, a row each: measured, clipped and added up without rounding that adds up."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from polyclinic.client.private.layers import Seen
from polyclinic.state import Entry, FlatModule, Selection

#: Numbers whose squares are added in float32; sums of such pieces are added in float64.
_PIECE = 256
#: By how much the norm of a piece can be wrong: half of what 256 additions of rounding to 24 digits make at worst if 8
#: are done at a time, and the rounding of a row that is made shorter. A bound smaller by this much holds in all digits.
_MARGIN = 2.0**-18
#: Coordinates that are made float64 at once.
_AT_ONCE = 1 << 14


def factors(norms: Tensor, largest: float) -> Tensor:
    """By what gradients are multiplied to be no longer than ``largest``: min(1, C / norm), float64 ``[P]``."""
    return (largest * (1 - _MARGIN) / norms.clamp_min(1e-300)).clamp_max(1.0)


def length(vector: Tensor) -> Tensor:
    """Euclidean norm over the last axis, to about the last digit of float32 and never infinite for finite numbers.

    Args:
        vector: float32 ``[..., Q]``.

    Returns:
        float64 ``[...]``.
    """
    whole = vector.shape[-1] // _PIECE * _PIECE
    pieces = torch.linalg.vector_norm(vector[..., :whole].unflatten(-1, (-1, _PIECE)), dim=-1)
    rest = torch.linalg.vector_norm(vector[..., whole:], dim=-1, keepdim=True)
    found: Tensor = torch.cat([pieces, rest], dim=-1).double().square_().sum(-1).sqrt_()
    wide = ~found.isfinite()
    if wide.any():  # numbers whose squares float32 does not have
        found[wide] = vector[wide].double().norm(dim=-1)
    return found


@dataclass(frozen=True)
class Places:
    """Where the trained tensors' gradients stand in rows.

    Attributes:
        entries: the trained tensors; those whose gradients can be outer products come last.
        columns: where each begins in a row, by name.
        inner: how many columns there are before the first that can be an outer product.
        size: Q, how many there are.
        total: T, of the flat gradient.
    """

    entries: tuple[Entry, ...]
    columns: dict[str, int]
    inner: int
    size: int
    total: int

    @classmethod
    def of(cls, model: FlatModule, trained: Selection | None, outer: set[str]) -> Places:
        """The places of ``trained`` tensors, or of all for None; ``outer`` are names of tensors."""
        total = model.layout.trainable
        slices = ((0, total),) if trained is None else trained.within(total).slices
        chosen = [e for e in model.layout.entries if e.trainable and any(a <= e.offset < b for a, b in slices)]
        if trained is not None and sum(entry.size for entry in chosen) != trained.within(total).size:
            raise ValueError("a selection of trained coordinates must consist of whole tensors")
        entries = tuple(sorted(chosen, key=lambda entry: entry.name in outer))
        columns, position, inner = {}, 0, 0
        for entry in entries:
            columns[entry.name] = position
            position += entry.size
            inner += 0 if entry.name in outer else entry.size
        return cls(entries, columns, inner, position, total)


class Rows:
    """Gradients of some patients ``[P, Q]``.

    Args:
        places: of the trained tensors.
        memory: float32, where the rows are; it may have held others before.
        members: the row of each case ``[B]``.
        patients: P.
        outer: whether outer products are kept as their two factors: only where every patient has one case.
    """

    def __init__(self, places: Places, memory: Tensor, members: Tensor, patients: int, *, outer: bool) -> None:
        self.places, self.members, self.patients = places, members, patients
        self.width = places.inner if outer else places.size
        self.values = memory[: patients * self.width].view(patients, self.width)
        self._single = patients == len(members)
        self._outer: dict[str, tuple[Tensor, Tensor]] | None = {} if outer else None
        self._filled: set[str] = set()

    def add(self, seen: Seen) -> None:
        """Put what a layer left into the rows of its cases' patients."""
        weight = f"{seen.name}.weight" if seen.name else "weight"
        if self._outer is not None and self.places.columns.get(weight, -1) >= self.width:
            if weight in self._outer or not seen.outer(len(self.members)):
                raise ValueError(f"the layer {seen.name} did not work as in its trial")
            self._outer[weight] = (seen.gradient.float(), seen.inputs.detach().float())
            if isinstance(seen.layer, nn.Linear) and seen.layer.bias is not None:
                self.put(f"{seen.name}.bias" if seen.name else "bias", seen.gradient.float())
            return
        for name, found in seen.gradients(len(self.members)):
            self.put(f"{seen.name}.{name}" if seen.name else name, found)

    def put(self, name: str, found: Tensor) -> None:
        """Add the gradients of a tensor for each case ``[B, ...]``; a tensor that is not trained is left out."""
        start = self.places.columns.get(name)
        if start is None:
            return
        found = found.reshape(len(self.members), -1)
        part = self.values[:, start : start + found.shape[1]]
        if name not in self._filled:
            self._filled.add(name)
            if self._single:
                part.copy_(found)
                return
            part.zero_()
        if self._single:
            part.add_(found)
        else:
            part.index_add_(0, self.members, found)

    def complete(self) -> None:
        """Parameters that had no part in the loss have gradient 0."""
        for entry in self.places.entries:
            start = self.places.columns[entry.name]
            if start < self.width and entry.name not in self._filled:
                self.values[:, start : start + entry.size] = 0.0

    def norms(self) -> Tensor:
        """Euclidean norm of each patient's gradient over all tensors, float64 ``[P]``."""
        squares = length(self.values).square_()
        for gradient, inputs in (self._outer or {}).values():
            squares += (length(gradient) * length(inputs)).square_()
        return squares.sqrt_()

    def leave_out(self, which: Tensor) -> None:
        """Put 0 in the place of some patients' gradients ``[P]``, whatever they are."""
        self.values[which] = 0.0
        for parts in (self._outer or {}).values():
            for part in parts:
                part[which] = 0.0

    def add_to(self, total: Tensor, by: Tensor) -> None:
        """Add the sum of the rows, multiplied ``by`` a number each ``[P]``, to ``total``, both float64."""
        for entry, start in self._inside():
            for first in range(0, entry.size, _AT_ONCE):
                size = min(_AT_ONCE, entry.size - first)
                part = self.values[:, start + first : start + first + size].double()
                total[entry.offset + first : entry.offset + first + size].addmv_(part.t(), by)
        for name, (gradient, inputs) in (self._outer or {}).items():
            entry = next(entry for entry in self.places.entries if entry.name == name)
            place = total[entry.offset : entry.offset + entry.size].view(entry.shape)
            place.addmm_((gradient.double() * by[:, None]).t(), inputs.double())

    def _inside(self) -> Iterator[tuple[Entry, int]]:
        for entry in self.places.entries:
            if self.places.columns[entry.name] < self.width:
                yield entry, self.places.columns[entry.name]
