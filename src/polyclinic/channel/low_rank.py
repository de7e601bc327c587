"""A step of the channel that sends each matrix of weights as a product of two thin ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from polyclinic.channel.codings import CODINGS, Float16, Int8, Values
from polyclinic.channel.lossy import Lossy
from polyclinic.parts import CHANNEL_PARTS, Memory
from polyclinic.shapes import Misfit, Shaped


@dataclass(frozen=True)
class _Piece:
    """A tensor of weights as a matrix.

    Attributes:
        rows, columns: of it.
        rank: of the product that stands for it; 0 where it is sent as it is.
    """

    rows: int
    columns: int
    rank: int

    @classmethod
    def of(cls, shape: tuple[int, ...], rank: int) -> _Piece:
        """With a row for each number of the first dimension."""
        rows, columns = (shape[0], math.prod(shape[1:])) if len(shape) > 1 else (1, math.prod(shape))
        return cls(rows, columns, rank if (rows + columns) * rank < rows * columns else 0)

    @property
    def size(self) -> int:
        """Its numbers."""
        return self.rows * self.columns

    @property
    def sent(self) -> int:
        """The numbers that are sent for it."""
        return (self.rows + self.columns) * self.rank if self.rank else self.size


@CHANNEL_PARTS.add("power_sgd")
class PowerSGD(Lossy):
    """Each site sends the change of each matrix M as P Qᵀ of a small rank: a step of the power method from the Q of the
    round before, P = orthonormal M Q, Q = Mᵀ P.

    A convolution is a matrix with a row for each channel that it gives. What is no matrix, or has fewer numbers than P
    and Q would have, is sent as it is; so with a high rank nothing is lost. In the paper the servers' mean of P is made
    orthonormal before Q; here each site sends its own P and Q, in one message.

    Source: Vogels et al., PowerSGD: practical low-rank gradient compression for distributed optimization, NeurIPS 2019,
    algorithm 1.

    Args:
        rank: of P and Q.
        values: how their numbers are sent.
        feedback: whether what was not sent is kept for the next round.
    """

    reveals: ClassVar = {**Float16.reveals, **Int8.reveals}

    def __init__(
        self, *, rank: Annotated[int, Field(ge=1)] = 2, values: Values = "float32", feedback: bool = True
    ) -> None:
        super().__init__(feedback=feedback)
        self.rank, self.coding = rank, CODINGS[values]()

    def begin(self, shapes: Sequence[tuple[int, ...]]) -> None:
        """See `Lossy`."""
        self._pieces = [_Piece.of(shape, self.rank) for shape in shapes]

    def sent(self, count: int) -> dict[str, Shaped]:
        """The numbers of P and Q, and what is sent as it is: how many, only who knows the shapes can say."""
        coded = self.coding.shapes(count)
        return {
            name: Shaped("|".join(one.kinds), f"N {name}", finite=one.finite, least=one.least)
            for name, one in coded.items()
        }

    def write(self, change: Tensor, given: Memory, source: torch.Generator) -> Memory:
        """See `Lossy`."""
        widths = [piece.columns * piece.rank for piece in self._pieces if piece.rank]
        before = given["factors"].split(widths) if "factors" in given else ()
        found, factors, place = list[Tensor](), list[Tensor](), 0
        for piece in self._pieces:
            values, place = change[place : place + piece.size], place + piece.size
            if not piece.rank:
                found.append(values)
                continue
            matrix = values.view(piece.rows, piece.columns)
            start = before[len(factors)] if before else torch.randn(piece.columns * self.rank, generator=source)
            left = torch.linalg.qr(matrix @ start.view(piece.columns, self.rank)).Q
            right = matrix.T @ left
            factors.append(right.flatten())
            found += [left.flatten(), factors[-1]]
        self._factors = torch.cat(factors) if factors else None
        return self.coding.write(torch.cat(found) if found else change, source)

    def remember(self) -> Memory:
        """Q of each matrix, where the next round begins; where it is zero, nothing would come of that."""
        if self._factors is None or not self._factors.any():
            return {}
        return {"factors": self._factors}

    def read(self, codes: Memory, count: int) -> Tensor:
        """See `Lossy`."""
        number = sum(piece.sent for piece in self._pieces)
        for name, expected in self.coding.shapes(number).items():
            if codes[name].shape != expected.shape:
                raise Misfit(f"{name}: got {len(codes[name])} values, expected {expected}")
        numbers = self.coding.read(codes, number)
        found, place, into = torch.empty(count), 0, 0
        for piece in self._pieces:
            values, place = numbers[place : place + piece.sent], place + piece.sent
            if piece.rank:
                left, right = values.split([piece.rows * self.rank, piece.columns * self.rank])
                values = (left.view(piece.rows, self.rank) @ right.view(piece.columns, self.rank).T).flatten()
            found[into : into + piece.size] = values
            into += piece.size
        return found
