"""Bags: cases of several instances each, such as the images of a patient or the tiles of a slide."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from polyclinic.seeds import generator

#: What stands in a batch where a bag has no instance: no instance consists of it, since missing features are filled in.
PADDING = float("nan")
#: Numbers that the bags of a batch have when they are predicted, about; a larger bag is predicted alone. 64 MiB.
_TOGETHER = 2**24


@dataclass(frozen=True, eq=False)
class Bags:
    """The instances of N bags, one bag after another.

    Attributes:
        instances: of all bags: float32 features ``[R, F]``, or uint8 images ``[R, C, H, W]``.
        starts: int64 ``[N + 1]``: bag i has the instances from ``starts[i]`` up to before ``starts[i + 1]``, in the
            order of the table's rows.
    """

    instances: Tensor
    starts: Tensor

    @classmethod
    def of(cls, instances: Tensor, counts: Sequence[int]) -> Bags:
        """Bags of so many instances each, which follow one another.

        Raises:
            ValueError: a bag is empty, or the counts are not those of the instances.
        """
        if sum(counts) != len(instances) or min(counts, default=1) < 1:
            raise ValueError(f"{len(instances)} instances can't be {len(counts)} bags of one or more")
        return cls(instances, torch.tensor([0, *counts], dtype=torch.int64).cumsum(0))

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of bags, and the shape of an instance."""
        return (len(self), *self.instances.shape[1:])

    @property
    def ndim(self) -> int:
        """Axes of ``shape``: 2 for bags of features, 4 for bags of images."""
        return self.instances.ndim

    @property
    def counts(self) -> Tensor:
        """Instances of each bag, int64 ``[N]``."""
        return self.starts.diff()

    @property
    def cases(self) -> npt.NDArray[np.int64]:
        """Number of the bag of each instance ``[R]``."""
        return np.repeat(np.arange(len(self)), self.counts.numpy())

    def __getitem__(self, position: int) -> Tensor:
        """The instances of a bag ``[M, ...]``."""
        return self.instances[self.starts[position] : self.starts[position + 1]]

    def places(self, index: Tensor) -> Tensor:
        """Positions of the instances of some bags ``[B]``, one bag after another: int64 ``[R]``."""
        ranges = [torch.arange(int(self.starts[bag]), int(self.starts[bag + 1])) for bag in index.tolist()]
        return torch.cat([torch.empty(0, dtype=torch.int64), *ranges])

    def sampled(self, index: Tensor, most: int | None, seed: int | None) -> tuple[Tensor, list[int]]:
        """Positions of the instances of some bags, and how many there are of each.

        Args:
            index: which bags ``[B]``.
            most: of a bag with more instances so many are drawn, each equally likely, and stay in their order.
            seed: decides which; None takes all.
        """
        if most is None or seed is None:
            return self.places(index), self.counts[index].tolist()
        found = []
        for bag in index.tolist():
            own = torch.arange(int(self.starts[bag]), int(self.starts[bag + 1]))
            if len(own) > most:
                source = generator(seed, "instances", bag)
                own = own[torch.randperm(len(own), generator=source)[:most].sort().values]
            found.append(own)
        return torch.cat(found), [len(own) for own in found]

    def chosen(self, index: Tensor) -> Bags:
        """Some bags ``[n]``."""
        return Bags.of(self.instances.index_select(0, self.places(index)), self.counts[index].tolist())

    def batches(self, index: Tensor, largest: int) -> Iterator[Tensor]:
        """``index [n]`` in pieces of at most ``largest`` bags that together are not large once they are padded; a large
        bag is a piece of its own."""
        numbers = self.instances[0].numel() if len(self.instances) else 1
        piece: list[int] = []
        longest = 0
        for bag, count in zip(index.tolist(), self.counts[index].tolist(), strict=True):
            longest = max(longest, count)
            if piece and (len(piece) == largest or (len(piece) + 1) * longest * numbers > _TOGETHER):
                yield torch.tensor(piece)
                piece, longest = [], count
            piece.append(bag)
        if piece:
            yield torch.tensor(piece)


def padded(instances: Tensor, counts: Sequence[int]) -> Tensor:
    """Bags as a batch: float32 ``[B, M, ...]``, where M is the largest of ``counts``, and `PADDING` behind each bag.

    Args:
        instances: of the bags, one bag after another ``[R, ...]``.
        counts: how many each has, B numbers.
    """
    found = instances.new_full((len(counts), max(counts, default=1), *instances.shape[1:]), PADDING)
    for place, own in enumerate(instances.split(list(counts))):
        found[place, : len(own)] = own
    return found


def joined(batches: Sequence[Tensor]) -> Tensor:
    """Batches of bags as one, padded to the largest of all: ``[B, M, ...]``."""
    most = max(batch.shape[1] for batch in batches)
    found = batches[0].new_full((sum(map(len, batches)), most, *batches[0].shape[2:]), PADDING)
    start = 0
    for batch in batches:
        found[start : start + len(batch), : batch.shape[1]] = batch
        start += len(batch)
    return found
