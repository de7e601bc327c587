"""A step of the channel that shortens changes to a length that follows how long they are."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, ClassVar

import torch
from pydantic import Field, Strict

from polyclinic.channel.clip import length_of, shortened
from polyclinic.errors import SiteError
from polyclinic.limits import AboveZero
from polyclinic.parts import CHANNEL_PARTS, Memory, Now, Part, ServerEnd, SiteEnd, SiteView, Step, Update
from polyclinic.shapes import Shaped

#: The length stays between 2^-100 and 2^100, which 32-bit numbers hold, whatever noise does to it.
FURTHEST = 100 * math.log(2)


@CHANNEL_PARTS.add("adaptive_clip")
class AdaptiveClip(Part):
    """Each site shortens the change of the weights to a length C that follows a quantile γ of how long the sites'
    changes are. Beside its change each tells whether that was within C, b = [‖Δ‖ ≤ C], and after each round
    C ← C exp(−η (b̄ − γ)), where b̄ is the mean, weighted as the mean of the changes is.

    With `central_noise` directly after it a share of a round's cost is for b̄. Where the round costs as much as noise σ
    on changes of a length that is known, b̄ has noise σ_b = σ / (2 √share) and the mean of the changes
    (σ^-2 − (2 σ_b)^-2)^(-1/2) = σ / √(1 − share), both times the largest share that a site has in the mean: another
    site's data move the changes by 2 C and b by 1. Where training is private at the sites (`dp_sgd`), b follows from
    the change, and needs no noise. Without either, b is told as it is.

    Source: Andrew et al., Differentially private learning with adaptive clipping, NeurIPS 2021, algorithm 1 and
    theorem 1 (where σ_b is given, and units are added or taken away).

    Args:
        norm: C in the first round, of all shared weights together (Euclidean norm).
        quantile: γ.
        rate: η.
        share: of what a round costs with `central_noise`.
    """

    reveals: ClassVar = {
        "norm": "to what length changes are shortened: how long those of the sites were in rounds before",
        "within": "whether the site's change is no longer than that",
    }
    shapes: ClassVar = {
        "norm": Shaped("float64"),
        # Sums of encrypted numbers have a little noise.
        "within": Shaped("float32", least=-0.01, most=1.01),
    }
    means: ClassVar = frozenset({"within"})
    retells: ClassVar = True

    def __init__(
        self, *, norm: AboveZero = 0.1, quantile: Annotated[float, Strict(), Field(gt=0, le=1)] = 0.5,
        rate: AboveZero = 0.2, share: Annotated[float, Strict(), Field(gt=0, lt=1)] = 0.1,
    ) -> None:  # fmt: skip
        self.length, self.quantile, self.rate, self.beside = norm, quantile, rate, share

    def at_site(self) -> SiteEnd:
        """Shortens."""
        return _Shortening(self)

    def at_server(self) -> ServerEnd:
        """Moves the length."""
        return _Following(self)

    def bounds(self) -> float:
        """C of the round."""
        return self.length

    @property
    def alike(self) -> str:
        """C: of sites that were told next to nothing, next to nothing would be in a sum."""
        return self.length.hex()

    def leaves(self, before: Mapping[str, Shaped], sizes: Mapping[str, int]) -> Mapping[str, Shaped]:
        """The same, and whether the change was within C."""
        return {**before, f"{self.name}/within": self.shapes["within"]}


class _Shortening(SiteEnd):
    def __init__(self, part: AdaptiveClip) -> None:
        self.part = part

    def begin(self, view: SiteView, received: Memory) -> Memory:
        """C of the round."""
        found = received.get("norm")
        length = math.nan if found is None or found.numel() != 1 else float(found)
        if not 0 < length < math.inf:
            raise SiteError(
                "P401", f"Site {view.name} was told a length of {length:g} for {self.name}; expected a number above 0.",
                "Let all sites and the server run the same version of Polyclinic.", site=view.name,
            )  # fmt: skip
        self.part.length = length
        return {}

    def close(self, packed: Memory) -> Memory:
        """Shorten, and tell whether there was need to."""
        change, length = packed["change"], self.part.length
        within = torch.tensor(float(length_of(change) <= length))
        return {**packed, "change": shortened(change, length), f"{self.name}/within": within}


class _Following(ServerEnd):
    def __init__(self, part: AdaptiveClip) -> None:
        self.part = part

    def begin(self, now: Now) -> None:
        """Begin with a mean of nothing, and no noise."""
        super().begin(now)
        self._within = self._weight = self.part.hidden = 0.0

    def send(self, site: str) -> Memory:
        """C."""
        return {"norm": torch.tensor(self.part.length, dtype=torch.float64)}

    def take(self, update: Update) -> Update:
        """Add, by weight."""
        self._within += update.weight * float(self.sent(update)["within"])
        self._weight += update.weight
        return update

    def finish(self, step: Step) -> Step:
        """Move C."""
        found = self._within / self._weight + self.part.hidden
        moved = math.log(self.part.length) - self.part.rate * (found - self.part.quantile)
        self.part.length = math.exp(max(-FURTHEST, min(moved, FURTHEST)))
        return step

    def memory(self) -> Memory:
        """C."""
        return {"norm": torch.tensor(self.part.length, dtype=torch.float64)}

    def restore(self, memory: Memory) -> None:
        """Take it back."""
        self.part.length = float(memory["norm"])
