"""Steps of the channel that send all weights with fewer bits."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from polyclinic.channel.codings import BFloat16, Coding, Float16, Int8, Quantised
from polyclinic.channel.lossy import Lossy
from polyclinic.parts import CHANNEL_PARTS, Memory
from polyclinic.shapes import Shaped


class _Coded(Lossy):
    """All weights in a coding."""

    coding: Coding

    def __init__(self, *, feedback: bool = True) -> None:
        super().__init__(feedback=feedback)

    def sent(self, count: int) -> dict[str, Shaped]:
        """See `Lossy`."""
        return self.coding.shapes(count)

    def write(self, change: Tensor, given: Memory, source: torch.Generator) -> Memory:
        """See `Lossy`."""
        return self.coding.write(change, source)

    def read(self, codes: Memory, count: int) -> Tensor:
        """See `Lossy`."""
        return self.coding.read(codes, count)

    def left(self, change: Tensor, codes: Memory) -> Tensor:
        """See `Lossy`."""
        return self.coding.take_off(change, codes)


@CHANNEL_PARTS.add("float16")
class HalfPrecision(_Coded):
    """Each site sends numbers of 16 bits, with 11 binary digits, times a power of two for each block of 1024 weights.

    So neither a large change becomes infinite, nor a small one zero.

    Args:
        feedback: whether what was lost is kept for the next round.
    """

    reveals: ClassVar = Float16.reveals
    coding = Float16()


@CHANNEL_PARTS.add("bfloat16")
class BrainFloat(_Coded):
    """Each site sends the first 16 bits of each number: the range of 32 bits, with 8 binary digits.

    Args:
        feedback: whether what was lost is kept for the next round.
    """

    coding = BFloat16()


@CHANNEL_PARTS.add("int8")
class EightBits(_Coded):
    """Each site sends whole numbers from −127 to 127, and for each block of 1024 weights what 127 stands for.

    Args:
        feedback: whether what was lost is kept for the next round.
    """

    reveals: ClassVar = Int8.reveals
    coding = Int8()


@CHANNEL_PARTS.add("qsgd")
class QSGD(_Coded):
    """Each site sends the sign of each change and its share of the length of its block, rounded at random to one of a
    few levels, so that it is right in the mean: of b bits they are 2^(b − 1) − 1 beside zero. Nothing is kept for the
    next round: what is lost can be more than there is, and would grow for ever.

    Source: Alistarh et al., QSGD: communication-efficient SGD via gradient quantization and encoding, NeurIPS 2017,
    section 3.1, with numbers of one length in place of Elias's.

    Args:
        bits: of a number.
        block: how many weights have a common length. The larger, the fewer bytes, and the more noise.
    """

    reveals: ClassVar = Quantised.reveals

    def __init__(self, *, bits: Literal[2, 4, 8] = 4, block: Literal[128, 512, 2048, 8192] = 512) -> None:
        super().__init__(feedback=False)
        self.coding = Quantised(bits, block)
