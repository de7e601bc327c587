"""What steps of the channel have in common that send less than all of an update."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from polyclinic.parts import Memory, Part, ServerEnd, SiteEnd, SiteView
from polyclinic.shapes import Shaped


class Lossy(Part):
    """Sends something near the change of the weights. Statistics of normalisation layers are sent as they are.

    What a site did not send it keeps and adds to its next change (error feedback: Seide et al., 1-bit stochastic
    gradient descent, Interspeech 2014; Stich et al., Sparsified SGD with memory, NeurIPS 2018). Where the server sees
    sums alone, each site adds what it would have sent: that saves no bytes, unless all sites send the same weights.

    Args:
        feedback: whether what was not sent is kept for the next round.

    Attributes:
        adds: whether sums of what it sends mean something, so that it is short where the server sees sums alone, too.
    """

    encodes: ClassVar[bool] = True
    adds: ClassVar[bool] = False

    def __init__(self, *, feedback: bool) -> None:
        self.feedback = feedback

    @property
    def shortens(self) -> bool:
        """Whether what leaves a site is short."""
        return self.adds or not self.summed

    def begin(self, shapes: Sequence[tuple[int, ...]]) -> None:
        """A round begins at a site, or an update is opened at the server, with shared weights of these shapes."""

    @abstractmethod
    def sent(self, count: int) -> dict[str, Shaped]:
        """The tensors of an update with so many weights: ``change``, and others by keys of ``reveals``."""

    @abstractmethod
    def write(self, change: Tensor, given: Memory, source: torch.Generator) -> Memory:
        """These tensors for a change ``[T]``.

        Args:
            change: not written to.
            given: what the end at the site has kept, and was sent.
            source: of random numbers.
        """

    @abstractmethod
    def read(self, codes: Memory, count: int) -> Tensor:
        """A change ``[T]`` from what ``write`` gave, for so many weights; a tensor of its own.

        Raises:
            Misfit: ``write`` can't have given it.
        """

    def left(self, change: Tensor, codes: Memory) -> Tensor:
        """What was not sent of a change ``[T]``, which may be written to."""
        return change.sub_(self.read(codes, len(change)))

    def remember(self) -> Memory:
        """What a site keeps of the round besides."""
        return {}

    def at_site(self) -> SiteEnd:
        """Shortens."""
        return _Shortening(self)

    def at_server(self) -> ServerEnd:
        """Restores."""
        return Restoring(self)

    def leaves(self, before: Mapping[str, Shaped], sizes: Mapping[str, int]) -> Mapping[str, Shaped]:
        """See `Part`."""
        if not self.shortens:
            return before
        return {**before, **_called(self.sent(sizes["T"]), self.name)}


class _Shortening(SiteEnd):
    def __init__(self, part: Lossy) -> None:
        self.part = part

    def begin(self, view: SiteView, received: Memory) -> Memory:
        """The round's random numbers."""
        self._source, self._given = view.generator(self.name), {**self.kept, **received}
        self.part.begin(view.shapes)
        return {}

    def close(self, packed: Memory) -> Memory:
        """Send something near the change and what was not sent before."""
        part, change = self.part, packed["change"]
        if part.feedback and "left" in self.kept:
            change = change + self.kept["left"]
        codes = part.write(change, self._given, self._source)
        if part.shortens:
            declared = part.sent(len(change))
            sent = _called({key: tensor for key, tensor in codes.items() if key in declared}, self.name)
        else:
            sent = {"change": part.read(codes, len(change))}
        kept = part.remember()
        if part.feedback:
            own = change if change is not packed["change"] else change.clone()
            kept["left"] = part.left(own, codes)
        self.kept = kept
        return {**packed, **sent}


class Restoring(ServerEnd):
    """Puts what a site sent where it belongs.

    Args:
        part: whose end it is.
    """

    def __init__(self, part: Lossy) -> None:
        self.part = part

    def open(self, packed: Memory) -> Memory:
        """See `ServerEnd`."""
        if not self.part.shortens:
            return packed
        self.part.begin(self.now.shapes)
        named = {key.removeprefix(f"{self.name}/"): tensor for key, tensor in packed.items()}
        others = {key: tensor for key, tensor in packed.items() if not key.startswith(f"{self.name}/")}
        return {**others, "change": self.part.read(named, len(self.now.weights))}


Found = TypeVar("Found")


def _called(found: Mapping[str, Found], part: str) -> dict[str, Found]:
    """Tensors as an update has them."""
    return {key if key == "change" else f"{part}/{key}": tensor for key, tensor in found.items()}
