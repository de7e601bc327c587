"""A step of the channel: only the largest changes are sent."""

from math import ceil
from typing import Annotated, ClassVar

import torch
from pydantic import Field

from polyclinic.parts import CHANNEL_PARTS, Memory, Part, ServerEnd, SiteEnd


@CHANNEL_PARTS.add("largest")
class Largest(Part):
    """Each site sends the largest changes of weights only; what it does not send it adds to its next change.

    Source: Stich et al., Sparsified SGD with memory, NeurIPS 2018.

    Args:
        share: of the weights that are sent; with 1 nothing is left out.
    """

    encodes: ClassVar = True
    reveals: ClassVar = {"places": "which weights changed most"}

    def __init__(self, *, share: Annotated[float, Field(gt=0, le=1)] = 0.1) -> None:
        self.share = share

    def at_site(self) -> SiteEnd:
        """Keeps what it did not send."""
        return _Choosing(self.share)

    def at_server(self) -> ServerEnd:
        """Puts the changes where they belong."""
        return _Spreading()


class _Choosing(SiteEnd):
    def __init__(self, share: float) -> None:
        self.share = share

    def close(self, packed: Memory) -> Memory:
        change = packed["change"]
        if "left" in self.kept:
            change = change + self.kept["left"]
        places = change.abs().topk(ceil(self.share * len(change))).indices
        self.kept = {"left": change.index_fill(0, places, 0.0)}
        return {**packed, "change": change[places], f"{self.name}/places": places.int()}


class _Spreading(ServerEnd):
    needs_each = True  # each site's places

    def open(self, packed: Memory) -> Memory:
        change = torch.zeros_like(self.now.weights)
        change[packed[f"{self.name}/places"].long()] = packed["change"]
        return {**packed, "change": change}
