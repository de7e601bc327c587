"""Steps of the channel that send some weights only."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from polyclinic.channel.codings import CODINGS, Float16, Int8, Values
from polyclinic.channel.lossy import Lossy, Restoring
from polyclinic.parts import CHANNEL_PARTS, Memory, ServerEnd
from polyclinic.seeds import derive_seed
from polyclinic.shapes import Misfit, Shaped

#: Fewer numbers than these are looked through whole for the largest; of more, so many tell where these begin.
SAMPLE = 2**16
_VALUES = {**Float16.reveals, **Int8.reveals}
SendShare = Annotated[float, Field(gt=0, le=1)]


class _Sparse(Lossy):
    """Some weights, with their values in a coding.

    What they write has the places as ``sent``, too, which stay at the site.

    Args:
        share: of the weights that are sent.
        values: how.
        feedback: see `Lossy`.
    """

    def __init__(self, *, share: float, values: Values, feedback: bool) -> None:
        super().__init__(feedback=feedback)
        self.share, self.coding = share, CODINGS[values]()

    def number(self, count: int) -> int:
        """How many of so many weights are sent: one at least."""
        return min(count, max(1, math.ceil(self.share * count - 1e-9)))

    def left(self, change: Tensor, codes: Memory) -> Tensor:
        """See `Lossy`."""
        number = self.number(len(change))
        if number == len(change):
            return super().left(change, codes)
        places = codes["sent"] if "sent" in codes else self.places(codes, len(change))
        left = change[places].sub_(self.values(codes, number))
        return change.index_copy_(0, places, left)

    @abstractmethod
    def places(self, codes: Memory, count: int) -> Tensor:
        """Which weights are sent, in order ``[k]``.

        Raises:
            Misfit: the codes say none that can be.
        """

    def values(self, codes: Memory, number: int) -> Tensor:
        """The values that are sent ``[k]``."""
        return self.coding.read(codes, number)

    def read(self, codes: Memory, count: int) -> Tensor:
        """See `Lossy`."""
        values = self.values(codes, self.number(count))
        if self.number(count) == count:
            return values.clone()
        return torch.zeros(count).index_copy_(0, self.places(codes, count), values)


@CHANNEL_PARTS.add("top_k")
class TopK(_Sparse):
    """Each site sends the largest changes of weights, and which these are; the others it keeps for its next change.

    Where two are equal, the first one is taken. Places cost a byte for each, or a bit for each weight if that is less.
    With a share of 1 all is sent as it is. Where the server sees sums alone, all other changes are sent as zeros, which
    saves no bytes (`random_k` does).

    Source: Stich et al., Sparsified SGD with memory, NeurIPS 2018; values with fewer bits: Basu et al.,
    Qsparse-local-SGD, NeurIPS 2019.

    Args:
        share: of the weights that are sent.
        values: how their values are sent.
        feedback: whether what was not sent is kept for the next round.
    """

    reveals: ClassVar = {"places": "which weights changed most", **_VALUES}

    def __init__(self, *, share: SendShare = 0.1, values: Values = "float32", feedback: bool = True) -> None:
        super().__init__(share=share, values=values, feedback=feedback)

    def sent(self, count: int) -> dict[str, Shaped]:
        """The values, and where they belong: one byte for each and for each 255 weights that are passed by, or bits."""
        number = self.number(count)
        if number == count:
            return self.coding.shapes(count)
        length = math.ceil(count / 8) if _as_bits(number, count) else None
        return {**self.coding.shapes(number), "places": Shaped("uint8", length if length else "N places")}

    def write(self, change: Tensor, given: Memory, source: torch.Generator) -> Memory:
        """See `Lossy`."""
        number, count = self.number(len(change)), len(change)
        if number == count:
            return self.coding.write(change, source)
        places = largest(change, number)
        written = _write_bits(places, count) if _as_bits(number, count) else _write_gaps(places)
        return {**self.coding.write(change[places], source), "places": written, "sent": places}

    def places(self, codes: Memory, count: int) -> Tensor:
        """See `_Sparse`."""
        number = self.number(count)
        if number == count:
            return torch.arange(count)
        written = codes["places"]
        return _read_bits(written, number, count) if _as_bits(number, count) else _read_gaps(written, number, count)


def largest(numbers: Tensor, count: int) -> Tensor:
    """Places of the ``count`` numbers ``[n]`` that are farthest from zero, in order; of equal ones the first.

    A sample tells a size that some more than these have, so that few numbers have to be compared with each other.
    """
    sizes = numbers.abs()
    if len(sizes) > 4 * SAMPLE and count < len(sizes) / 2:
        step = len(sizes) // SAMPLE
        sample = sizes[:: step | 1]  # an odd step does not fall in with rows of weights
        expected = count / len(sizes) * len(sample)
        rank = min(len(sample), math.ceil(expected + 4 * math.sqrt(expected) + 8))
        candidates = (sizes >= sample.topk(rank, sorted=False).values.min()).nonzero()[:, 0]
        if len(candidates) >= count:
            return candidates[_largest(sizes[candidates], count)]
    return _largest(sizes, count)


def _largest(sizes: Tensor, count: int) -> Tensor:
    least = sizes.topk(count, sorted=False).values.min()
    chosen = sizes > least
    missing = count - int(chosen.sum())
    chosen[(sizes == least).nonzero()[:missing, 0]] = True
    return chosen.nonzero()[:, 0]


def _as_bits(number: int, count: int) -> bool:
    """Whether a bit for each of ``count`` weights takes less than a byte for each of ``number`` and 255 passed by."""
    return count / 8 < number + count / 255


def _write_bits(places: Tensor, count: int) -> Tensor:
    bits = torch.zeros(math.ceil(count / 8) * 8, dtype=torch.uint8)
    bits[places] = 1
    columns = bits.view(-1, 8)
    return torch.stack([columns[:, place] << place for place in range(8)]).sum(0, dtype=torch.uint8)


def _read_bits(written: Tensor, number: int, count: int) -> Tensor:
    bits = torch.stack([(written >> place) & 1 for place in range(8)], dim=1).flatten()
    places = bits.nonzero()[:, 0]
    if len(places) != number or (number and int(places[-1]) >= count):
        raise Misfit(f"places: got {len(places)} of {len(bits)}, expected {number} of {count}")
    return places


def _write_gaps(places: Tensor) -> Tensor:
    """How many weights lie between each place and the one before, in bytes: 255 means that more come."""
    gaps = torch.diff(places, prepend=places.new_full((1,), -1)) - 1
    ends = (gaps // 255 + 1).cumsum(0) - 1
    written = torch.full((int(ends[-1]) + 1,), 255, dtype=torch.uint8)
    written[ends] = (gaps % 255).to(torch.uint8)
    return written


def _read_gaps(written: Tensor, number: int, count: int) -> Tensor:
    ends = (written != 255).nonzero()[:, 0]
    if len(ends) != number or int(ends[-1]) != len(written) - 1:
        raise Misfit(f"places: got {len(ends)}, expected {number}")
    places = written.long().cumsum(0)[ends] + torch.arange(number)
    if int(places[-1]) >= count:
        raise Misfit(f"places: got one of {int(places[-1])}, expected less than {count}")
    return places


@CHANNEL_PARTS.add("random_k")
class RandomK(_Sparse):
    """Each site sends weights chosen at random, which the server knows from a seed: the weights in their order are
    divided into as many runs, and one is taken from each.

    Without feedback what is sent counts as often as its run is long, so that the mean is right. Where the server sees
    sums alone, all sites send the same weights.

    Source: Konečný et al., Federated learning: strategies for improving communication efficiency, 2016 (random masks);
    Stich et al., Sparsified SGD with memory, NeurIPS 2018.

    Args:
        share: of the weights that are sent.
        values: how their values are sent.
        places: whether each site sends ``own`` weights, or all the same ones (``common``).
        feedback: whether what was not sent is kept for the next round.
    """

    adds: ClassVar = True
    reveals: ClassVar = {"seed": "which weights were chosen by lot", **_VALUES}

    def __init__(
        self, *, share: SendShare = 0.1, values: Values = "float32", places: Literal["own", "common"] = "own",
        feedback: bool = True,
    ) -> None:  # fmt: skip
        super().__init__(share=share, values=values, feedback=feedback)
        self.common = places == "common"

    def at_server(self) -> ServerEnd:
        """Draws the seeds."""
        return _Drawing(self)

    def sent(self, count: int) -> dict[str, Shaped]:
        """The values, and the seed."""
        number = self.number(count)
        if self.summed:
            return {"change": Shaped("float32", number)}
        return {**self.coding.shapes(number), "seed": Shaped("int64", 1, least=0)}

    def write(self, change: Tensor, given: Memory, source: torch.Generator) -> Memory:
        """See `Lossy`."""
        places, lengths = _lots(given["seed"], self.number(len(change)), len(change))
        values = change[places] if self.feedback else change[places] * lengths
        codes = self.coding.write(values, source)
        if self.summed:  # sums are of numbers: what the coding loses is lost before
            codes = {"change": self.coding.read(codes, len(values))}
        return {**codes, "seed": given["seed"], "sent": places}

    def values(self, codes: Memory, number: int) -> Tensor:
        """See `_Sparse`."""
        return codes["change"] if self.summed else super().values(codes, number)

    def places(self, codes: Memory, count: int) -> Tensor:
        """See `_Sparse`."""
        return _lots(codes["seed"], self.number(count), count)[0]


def _lots(seed: Tensor, number: int, count: int) -> tuple[Tensor, Tensor]:
    """One place of each of ``number`` runs of ``count`` weights ``[k]``, and how long these are.

    Whole numbers only: the same on every processor.
    """
    starts = torch.arange(number + 1) * count // number
    lengths = starts.diff()
    drawn = torch.randint(2**62, (number,), generator=torch.Generator().manual_seed(int(seed)))
    return starts[:-1] + drawn % lengths, lengths


class _Drawing(Restoring):
    part: RandomK

    def send(self, site: str) -> Memory:
        """The seed of the round."""
        return {"seed": self._seed(site)}

    def _seed(self, site: str) -> Tensor:
        whose = "" if self.part.common or self.part.summed else site
        return torch.tensor([derive_seed(self.name, self.now.seed, self.now.number, whose)])

    def open(self, packed: Memory) -> Memory:
        """The seed that a site names is the one that it was sent."""
        if self.part.summed:
            return super().open({**packed, f"{self.name}/seed": self._seed("")})
        if self.part.common and not torch.equal(packed[f"{self.name}/seed"], self._seed("")):
            raise Misfit("seed: got another one than was sent")
        return super().open(packed)
