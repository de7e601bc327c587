"""Numbers in fewer bytes: how the values of an update are written, one after another, whatever they are of."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import ClassVar, Literal

import torch
from torch import Tensor

from polyclinic.parts import Memory
from polyclinic.shapes import Misfit, Shaped

#: How many numbers have a common scale.
BLOCK = 1024
#: So many are worked on at a time, to stay in the processor's cache; a multiple of every block.
CHUNK = 2**18


class Coding(ABC):
    """Writes numbers ``[n]`` as tensors by name, of which one is called ``change``, and reads them.

    Attributes:
        reveals: what the others could reveal.
        unbiased: whether what is read is what was written in the mean over its random numbers.
        random: whether it draws any.
    """

    reveals: ClassVar[dict[str, str]] = {}
    unbiased: ClassVar[bool] = False
    random: ClassVar[bool] = False

    @abstractmethod
    def shapes(self, count: int) -> dict[str, Shaped]:
        """The tensors for so many numbers."""

    @abstractmethod
    def write(self, numbers: Tensor, source: torch.Generator | None) -> Memory:
        """Numbers ``[n]`` as tensors; ``source`` of random numbers."""

    @abstractmethod
    def pieces(self, codes: Memory, count: int) -> Iterator[tuple[int, Tensor]]:
        """So many numbers from what ``write`` gave, some at a time, each time with their place.

        Raises:
            Misfit: ``write`` can't have given it.
        """

    def read(self, codes: Memory, count: int) -> Tensor:
        """All of them ``[n]``, a tensor of its own."""
        found = torch.empty(count)
        for place, numbers in self.pieces(codes, count):
            found[place : place + len(numbers)] = numbers
        return found

    def take_off(self, numbers: Tensor, codes: Memory) -> Tensor:
        """What ``codes`` say less of ``numbers [n]`` than these are, which are written to."""
        for place, own in self.pieces(codes, len(numbers)):
            numbers[place : place + len(own)].sub_(own)
        return numbers


class Float32(Coding):
    """As they are."""

    def shapes(self, count: int) -> dict[str, Shaped]:
        """Four bytes each."""
        return {"change": Shaped("float32", count)}

    def write(self, numbers: Tensor, source: torch.Generator | None) -> Memory:
        """See `Coding`."""
        return {"change": numbers.clone()}

    def pieces(self, codes: Memory, count: int) -> Iterator[tuple[int, Tensor]]:
        """See `Coding`."""
        yield 0, codes["change"]


class BFloat16(Coding):
    """The first 16 bits: the range of 32 bits, and 8 binary digits."""

    def shapes(self, count: int) -> dict[str, Shaped]:
        """Two bytes each. The largest numbers of 32 bits are rounded to infinity."""
        return {"change": Shaped("bfloat16", count, finite=True)}

    def write(self, numbers: Tensor, source: torch.Generator | None) -> Memory:
        """See `Coding`."""
        return {"change": numbers.bfloat16()}

    def pieces(self, codes: Memory, count: int) -> Iterator[tuple[int, Tensor]]:
        """See `Coding`."""
        for place in range(0, count, CHUNK):
            yield place, codes["change"][place : place + CHUNK].float()


class Float16(Coding):
    """11 binary digits, times a power of two for each block, so that neither large nor small changes are lost."""

    reveals: ClassVar = {"exponents": "the size of the largest change in each block of weights"}

    def shapes(self, count: int) -> dict[str, Shaped]:
        """Two bytes each, and one for each block."""
        return {"change": Shaped("float16", count), "exponents": Shaped("int8", math.ceil(count / BLOCK))}

    def write(self, numbers: Tensor, source: torch.Generator | None) -> Memory:
        """See `Coding`."""
        change = torch.empty(len(numbers), dtype=torch.float16)
        exponents = torch.empty(math.ceil(len(numbers) / BLOCK), dtype=torch.int8)
        for place, blocks in _blocks(numbers):
            largest = blocks.abs().amax(1)
            exponent = 15 - torch.frexp(largest).exponent.clamp(-110, 128)  # then the largest is from 2^14 to 2^15
            _put(change, place, blocks * _power(exponent)[:, None])
            exponents[place // BLOCK : place // BLOCK + len(blocks)] = exponent
        return {"change": change, "exponents": exponents}

    def pieces(self, codes: Memory, count: int) -> Iterator[tuple[int, Tensor]]:
        """See `Coding`."""
        for place, blocks in _blocks(codes["change"]):
            exponent = codes["exponents"][place // BLOCK : place // BLOCK + len(blocks)].int()
            yield place, (blocks.float() * _power(-exponent)[:, None]).flatten()[: count - place]


class Int8(Coding):
    """Each block as whole numbers from −127 to 127 times the largest of the block / 127."""

    reveals: ClassVar = {"scales": "the size of the largest change in each block of weights"}

    def shapes(self, count: int) -> dict[str, Shaped]:
        """A byte each, and four for each block."""
        blocks = math.ceil(count / BLOCK)
        return {"change": Shaped("int8", count, least=-127), "scales": Shaped("float32", blocks, least=0.0)}

    def write(self, numbers: Tensor, source: torch.Generator | None) -> Memory:
        """See `Coding`."""
        change = torch.empty(len(numbers), dtype=torch.int8)
        scales = torch.empty(math.ceil(len(numbers) / BLOCK))
        for place, blocks in _blocks(numbers):
            scale = blocks.abs().amax(1) / 127
            _put(change, place, (blocks / _divisor(scale)[:, None]).round_().clamp_(-127, 127))
            scales[place // BLOCK : place // BLOCK + len(blocks)] = scale
        return {"change": change, "scales": scales}

    def pieces(self, codes: Memory, count: int) -> Iterator[tuple[int, Tensor]]:
        """See `Coding`."""
        for place, blocks in _blocks(codes["change"]):
            scale = codes["scales"][place // BLOCK : place // BLOCK + len(blocks)]
            yield place, (blocks * scale[:, None]).flatten()[: count - place]


class Quantised(Coding):
    """QSGD: of each number its sign and one of s levels of its share of the block's norm, rounded at random so that the
    mean is right: with ``bits`` b it is s = 2^(b − 1) − 1.

    A number's variance is at most that of QSGD with blocks of d: min(d / s², √d / s) ‖v‖² for a block v.

    Source: Alistarh et al., QSGD: communication-efficient SGD via gradient quantization and encoding, NeurIPS 2017,
    section 3.1 (with blocks, and numbers of one length instead of Elias's).
    """

    reveals: ClassVar = {"norms": "the length of the change of each block of weights"}
    unbiased: ClassVar = True
    random: ClassVar = True

    def __init__(self, bits: Literal[2, 4, 8] = 4, block: int = 512) -> None:
        self.bits, self.block, self.levels = bits, block, 2 ** (bits - 1) - 1

    def shapes(self, count: int) -> dict[str, Shaped]:
        """``bits`` each, and four bytes for each block."""
        packed, blocks = math.ceil(count * self.bits / 8), math.ceil(count / self.block)
        return {"change": Shaped("uint8", packed), "norms": Shaped("float32", blocks, least=0.0)}

    def write(self, numbers: Tensor, source: torch.Generator | None) -> Memory:
        """See `Coding`."""
        levels = torch.empty(len(numbers), dtype=torch.uint8)
        norms = torch.empty(math.ceil(len(numbers) / self.block))
        for place, blocks in _blocks(numbers, self.block):
            norm = blocks.double().square().sum(1).sqrt().float()  # squares of large changes are more than 32 bits hold
            share = blocks.abs() / _divisor(norm)[:, None] * self.levels
            drawn = torch.rand(share.shape, generator=source)
            level = (share.floor() + (drawn < share.frac())).clamp_(max=self.levels)
            _put(levels, place, level.copysign(blocks) + self.levels)
            norms[place // self.block : place // self.block + len(blocks)] = norm
        return {"change": _pack(levels, self.bits), "norms": norms}

    def pieces(self, codes: Memory, count: int) -> Iterator[tuple[int, Tensor]]:
        """See `Coding`."""
        levels = _unpack(codes["change"], self.bits, count)
        largest = int(levels.max()) if count else 0
        if largest > 2 * self.levels:
            raise Misfit(f"change: got a level of {largest}, expected {2 * self.levels} or less")
        for place, blocks in _blocks(levels, self.block):
            norm = codes["norms"][place // self.block : place // self.block + len(blocks)]
            yield place, ((blocks.float() - self.levels) * (norm / self.levels)[:, None]).flatten()[: count - place]


#: Name in a study file -> coding of the values that steps send. QSGD is none of them: what its random numbers lose can
#: be more than there is, so that what is kept for the next round would grow for ever.
CODINGS: dict[str, Callable[[], Coding]] = {
    "float32": Float32, "float16": Float16, "bfloat16": BFloat16, "int8": Int8,
}  # fmt: skip
Values = Literal["float32", "float16", "bfloat16", "int8"]


def _blocks(numbers: Tensor, block: int = BLOCK) -> list[tuple[int, Tensor]]:
    """Numbers ``[n]`` as ``(place, [B, block])``, the last ones with zeros behind them."""
    whole = len(numbers) // block * block
    found = [(place, numbers[place : min(place + CHUNK, whole)].view(-1, block)) for place in range(0, whole, CHUNK)]
    if whole < len(numbers):
        last = torch.zeros(1, block, dtype=numbers.dtype)
        last[0, : len(numbers) - whole] = numbers[whole:]
        found.append((whole, last))
    return found


def _put(vector: Tensor, place: int, blocks: Tensor) -> None:
    """Undo `_blocks`."""
    part = vector[place : place + blocks.numel()]
    part.copy_(blocks.flatten()[: len(part)])


def _divisor(scale: Tensor) -> Tensor:
    """What to divide a block by: where all of it is zero, or too small for 32 bits, by anything."""
    return torch.where(scale > 0, scale, 1.0)


def _power(exponent: Tensor) -> Tensor:
    """2^exponent, exactly."""
    return torch.ldexp(torch.ones(len(exponent)), exponent)


def _pack(codes: Tensor, bits: int) -> Tensor:
    """Codes uint8 ``[n]`` below 2^bits as bytes ``[n bits / 8]``."""
    each = 8 // bits
    if each == 1:
        return codes
    padded = torch.zeros(math.ceil(len(codes) / each) * each, dtype=torch.uint8)
    padded[: len(codes)] = codes
    columns = padded.view(-1, each)
    packed = columns[:, 0].clone()
    for place in range(1, each):
        packed |= columns[:, place] << (bits * place)
    return packed


def _unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """Undo `_pack`."""
    each = 8 // bits
    if each == 1:
        return packed
    columns = torch.stack([(packed >> (bits * place)) & (2**bits - 1) for place in range(each)], dim=1)
    return columns.flatten()[:count]
