"""Sites with unequal computers: each trains as much of the network's width as it can afford."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from polyclinic.models.slices import Slice, slice_of
from polyclinic.models.variant import Variant
from polyclinic.parts import SERVER_PARTS, Aggregation, Memory, Now, ServerPart, SiteEnd, SiteView, Step, Update
from polyclinic.state import FlatModule

Width = Annotated[float, Field(gt=0, le=1)]


@SERVER_PARTS.add("heterofl")
class HeteroFL(ServerPart, Aggregation):
    """Each site trains the first share of the channels of every hidden layer; each weight is the mean over the sites
    that have it, by their numbers of cases.

    A narrow site is sent, computes and sends its own small network alone, in which what a layer gives is divided by the
    width (the paper's scaler). All sites are validated and tested with the whole network, as the global model of the
    paper is. A weight that no site of a round has stays as it is.

    In the loss, outputs for classes that a site has no training case of are 0 (masked cross entropy).

    Source: Diao et al., HeteroFL: computation and communication efficient federated learning for heterogeneous clients,
    ICLR 2021. Differs: sites count by their cases, as elsewhere here, and not all the same (`training: {weights:
    uniform}`). Running statistics of normalisation layers are averaged over the sites that train the whole network, in
    each round: those of a narrow one, of fewer inputs and scaled, are not of what the whole one computes. The paper
    takes none in training, and asks all sites for those of the final model. Weights of an output whose class a site has
    not are averaged over all sites.

    Args:
        widths: site -> share of the channels that it trains.
        default: of sites that are not named.
        mask_classes: whether outputs for classes that a site has not are left out of its loss.
    """

    def __init__(
        self, *, widths: dict[str, Width] = {}, default: Width = 1.0, mask_classes: bool = True  # noqa: B006 - read only
    ) -> None:  # fmt: skip
        self.widths, self.default, self.mask_classes = widths, default, mask_classes
        self.named = list(widths)

    def variant(self, site: str, whole: FlatModule, seed: Sequence[str | int]) -> Variant | None:
        """The slice of a narrow site."""
        width = self.widths.get(site, self.default)
        return None if width == 1 else slice_of(whole, width)

    def at_site(self) -> SiteEnd:
        """Masks outputs."""
        return _Masking() if self.mask_classes else _Alone()

    def begin(self, now: Now) -> None:
        """Begin with sums of nothing."""
        super().begin(now)
        self._sums = torch.zeros_like(now.weights), torch.zeros_like(now.statistics)
        self._present = tuple(torch.zeros(len(one), dtype=torch.float64) for one in self._sums)
        self._weights: dict[str, float] = {}

    def add(self, update: Update) -> None:
        """Add ``weight / total_weight`` of the update, where the site has a weight."""
        share, variant = update.weight / self.now.total_weight, self.now.variants.get(update.site)
        for place, values in enumerate((update.change, update.statistics)):
            if not isinstance(variant, Slice):
                self._sums[place].add_(values, alpha=share)
                self._present[place].add_(update.weight)
            elif place == 0:  # statistics are not those of the whole network
                mine = variant.places[: variant.shared.trainable]
                self._sums[place].index_add_(0, mine, values[mine], alpha=share)
                self._present[place][mine] += update.weight
        self._weights[update.site] = self._weights.get(update.site, 0.0) + update.weight

    def done(self) -> Step:
        """The means; what no site has does not change."""
        means = [
            torch.where(present > 0, total * (self.now.total_weight / present.clamp_min(1e-300)).float(), before)
            for total, present, before in zip(
                self._sums, self._present, (torch.zeros(()), self.now.statistics), strict=True
            )
        ]
        added = sum(self._weights.values())
        return Step(means[0], means[1], {site: weight / added for site, weight in self._weights.items()})


class _Alone(SiteEnd):
    alone = "sites train networks of different widths"


class _Masking(_Alone):
    """Sets outputs for absent classes to 0, so that nothing is learned of them."""

    def begin(self, view: SiteView, received: Memory) -> Memory:
        """Which classes the site has ``[C]``; nothing where it has all."""
        counts = view.class_counts
        return {} if counts is None or bool((counts > 0).all()) else {"present": (counts > 0).float()}

    def outputs(self, outputs: Tensor, given: Memory) -> Tensor:
        """With one output for two classes there is none to leave out."""
        present = given.get("present")
        return outputs if present is None or outputs.shape[1] != len(present) else outputs * present
