"""A step of the channel that shortens changes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from polyclinic.limits import AboveZero
from polyclinic.parts import CHANNEL_PARTS, Memory, SitePart
from polyclinic.shapes import Shaped


@CHANNEL_PARTS.add("clip")
class Clip(SitePart):
    """Each site shortens the change of the weights to a length: Δ ← Δ min(1, C / ‖Δ‖). It is what noise is measured by,
    and bounds what one site can do; by itself it hides nothing.

    Source: McMahan et al., Learning differentially private recurrent language models, ICLR 2018, algorithm 1.

    Args:
        norm: C, of all shared weights together (Euclidean norm).
    """

    def __init__(self, *, norm: AboveZero = 1.0) -> None:
        self.length = norm

    def close(self, packed: Memory) -> Memory:
        """Shorten."""
        return {**packed, "change": shortened(packed["change"], self.length)}

    def bounds(self) -> float:
        """C."""
        return self.length

    def leaves(self, before: Mapping[str, Shaped], sizes: Mapping[str, int]) -> Mapping[str, Shaped]:
        """The same."""
        return before


def shortened(change: Tensor, length: float) -> Tensor:
    """A change ``[T]`` of at most a length, which rounding does not exceed; the same one if it is no longer."""
    found = length_of(change)
    if found <= length:
        return change
    short = change * (length / found)
    while length_of(short) > length:
        short = short * (1 - 2.0**-22)
    return short


def length_of(change: Tensor) -> float:
    """Of a change ``[T]``, found in 64 bits: the squares of large numbers are more than 32 bits hold."""
    return float(torch.linalg.vector_norm(change, dtype=torch.float64))
