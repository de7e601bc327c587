"""Images of all sites in one style: brightness and contrast of each channel, the light kind of style transfer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from polyclinic.client.domain_shift.spectra import trained_on_boxes
from polyclinic.client.telling import Telling, Told
from polyclinic.errors import StudyError
from polyclinic.parts import LOCAL_PARTS, Memory, Part, ServerEnd, SiteEnd, SiteView
from polyclinic.shapes import Shaped
from polyclinic.state import FlatModule

#: Images looked at together.
_AT_ONCE = 32
#: A channel that deviates by less than this share of its largest value is flat but for rounding.
_FLAT = 1e-6


@LOCAL_PARTS.add("mean_style")
class MeanStyle(Part):
    """Style transfer by statistics: each channel of each image gets the mean and deviation that images have on average.

    x ← (x − μ(x)) S / σ(x) + M for each channel, with mean μ and deviation σ over the places of the image, and M and S
    their means over the training cases of all sites, before any round. It is the last step before the network, after
    scaling and augmentation, at every site, in validation and tests, too, also at sites that did not train. A scanner
    or stain that makes each channel of an image brighter or of more contrast leaves no trace. One site has its own M
    and S. Of a flat channel M is left.

    Source: Reinhard et al., Color transfer between images, IEEE Computer Graphics and Applications 21 (2001), which
    matches mean and deviation of each channel to those of a reference image, in a space in which colours hardly
    depend on each other; here channels are those of the study, and the reference is the mean of all sites. Between
    sites style is transferred by networks in Ke et al., Style normalization in histology with federated learning, ISBI
    2021; of that only the aim is taken, and nothing is generated.
    """

    reveals: ClassVar = {
        "means": "the summed means of each channel of the site's training images: how bright they are on average, and "
                 "of a single image how bright it is",
        "deviations": "the summed deviations of each channel: how much contrast they have",
        "count": "the number of training cases",
        "mean": "the mean brightness of all sites' images",
        "deviation": "the mean contrast of all sites' images",
    }  # fmt: skip
    images_only = True
    no_bags = True

    def shapes_for(self, model: FlatModule) -> Mapping[str, Shaped]:
        """Of images with so many channels."""
        channels = model.shape[0]
        return {
            "means": Shaped("float64", channels, always="start"),
            "deviations": Shaped("float64", channels, least=0, always="start"),
            "count": Shaped("float64", least=0, always="start"),
            "mean": Shaped("float32", channels),
            "deviation": Shaped("float32", channels, least=0),
        }

    def shown(self, needed: Memory, shape: Sequence[int]) -> Callable[[Tensor], Tensor]:
        """(x − μ) S / σ + M."""
        nothing = torch.empty(0)
        mean, deviation = needed.get("mean", nothing), needed.get("deviation", nothing)
        for one in (mean, deviation):
            Shaped("float32", shape[0]).check(one, {})
        return partial(styled, mean=mean, deviation=deviation)

    def at_site(self) -> SiteEnd:
        """Changes images."""
        return _Styling()

    def at_server(self) -> ServerEnd:
        """Knows M and S."""
        return _MeanStyle()


class _Styling(Told):
    looks = "mean styles"

    def meet(self, view: SiteView) -> Memory:
        """Σ μ(x) and Σ σ(x) of the site's training cases ``[C]``."""
        if trained_on_boxes(view):
            raise StudyError("P104", f"{self.name} is about the style of whole images, and the network is trained on "
                             "boxes of volumes.", f"Leave {self.name} out, or train on whole volumes (no `patch`).",
                             )  # fmt: skip
        self.site = view.name
        means, deviations = torch.zeros(2, view.input_shape[0], dtype=torch.float64)
        for index in torch.arange(view.count()).split(_AT_ONCE):
            for total, found in zip((means, deviations), _statistics(view.cases(index)[0].double()), strict=True):
                total += found.flatten(1).sum(0)
        return {"means": means, "deviations": deviations, "count": torch.tensor(view.count(), dtype=torch.float64)}

    def images(self, images: Tensor) -> Tensor:
        """(x − μ) S / σ + M."""
        return styled(images, **self.told)


class _MeanStyle(Telling):
    def meet(self, announced: Mapping[str, Memory], everyone: Mapping[str, float]) -> None:
        """M = Σ_k Σ μ / Σ_k n_k, and S likewise; all sites are told."""
        count = sum(float(told["count"]) for told in announced.values())
        mean, deviation = (
            (torch.stack([told[name] for told in announced.values()]).sum(0) / count).float()
            for name in ("means", "deviations")
        )
        self._style = {"mean": mean, "deviation": deviation}
        self.tell(dict.fromkeys((*everyone, *self.others), self._style))

    def needed(self) -> Memory:
        """M and S."""
        return self._style


def styled(images: Tensor, *, mean: Tensor, deviation: Tensor) -> Tensor:
    """Images ``[B, C, ...]`` whose channels have another ``mean [C]`` and ``deviation [C]`` over their places."""
    own, spread = _statistics(images)
    shape = (1, -1, *[1] * (images.dim() - 2))
    flat = spread <= _FLAT * images.abs().amax(list(range(2, images.dim())), keepdim=True)
    factor = torch.where(flat, 0.0, deviation.view(shape) / torch.where(flat, 1.0, spread))
    return (images - own) * factor + mean.view(shape)


def _statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each channel over its places, ``[B, C, 1, ...]``."""
    axes = list(range(2, images.dim()))
    return images.mean(axes, keepdim=True), images.std(axes, correction=0, keepdim=True)
