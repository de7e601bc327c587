"""A rule that exchanges statistics of the sites' inputs, and changes batches."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from polyclinic.parts import LOCAL_PARTS, Batch, Memory, Part, ServerEnd, SiteEnd, SiteView


@LOCAL_PARTS.add("common_statistics")
class CommonStatistics(Part):
    """Moves each training batch towards the mean and deviation that inputs have at all sites together.

    x ← x + s ((x − m_k) σ / σ_k + m − x) for each feature or channel, with m_k and σ_k of the site and m and σ of all.

    Args:
        strength: s; 0 changes nothing.
    """

    reveals: ClassVar = {
        "mean": "the mean of each feature or channel over the site's training cases; sent back, over all sites'",
        "deviation": "their deviation; sent back, that of all sites'",
    }

    def __init__(self, *, strength: Annotated[float, Field(ge=0, le=1)] = 0.5) -> None:
        self.strength = strength

    def at_site(self) -> SiteEnd:
        """Tells the site's statistics once, and changes batches."""
        return _Moving(self.strength)

    def at_server(self) -> ServerEnd:
        """Puts them together."""
        return _Merging()


class _Moving(SiteEnd):
    def __init__(self, strength: float) -> None:
        self.strength = strength

    def meet(self, view: SiteView) -> Memory:
        count, total, squares = 0, 0.0, 0.0
        for index in torch.arange(view.count()).split(64):
            values = view.cases(index)[0].double().transpose(0, 1).flatten(1)  # [C, n ...]
            count, total, squares = count + values.shape[1], total + values.sum(1), squares + values.square().sum(1)
        mean = total / count
        self._own = {"mean": mean, "deviation": (squares / count - mean.square()).clamp_min(0).sqrt()}
        return self._own

    def begin(self, view: SiteView, received: Memory) -> Memory:
        scale = received["deviation"] / self._own["deviation"].clamp_min(1e-12)
        shift = received["mean"] - self._own["mean"] * scale
        return {"scale": scale.float(), "shift": shift.float()}

    def batch(self, batch: Batch, given: Memory) -> Batch:
        inputs = batch.inputs
        scale, shift = (given[name].view(-1, *[1] * (inputs.dim() - 2)) for name in ("scale", "shift"))
        return replace(batch, inputs=torch.lerp(inputs, inputs * scale + shift, self.strength))


class _Merging(ServerEnd):
    def meet(self, announced: Mapping[str, Memory], everyone: Mapping[str, float]) -> None:
        def over_sites(name: str) -> Tensor:
            return torch.stack([told[name] for told in announced.values()])

        shares = torch.tensor([everyone[site] for site in announced], dtype=torch.float64)[:, None]
        shares /= shares.sum()
        mean = (shares * over_sites("mean")).sum(0)
        variance = (shares * (over_sites("deviation").square() + (over_sites("mean") - mean).square())).sum(0)
        self._all = {"mean": mean, "deviation": variance.sqrt()}

    def send(self, site: str) -> Memory:
        return self._all
