"""Images of all sites with one look: the rule of HarmoFL against scanners that differ."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from polyclinic.client.domain_shift.spectra import Window, total_amplitudes, whole_images
from polyclinic.client.telling import Telling, Told
from polyclinic.parts import LOCAL_PARTS, Memory, Part, ServerEnd, SiteEnd, SiteView
from polyclinic.shapes import Shaped
from polyclinic.state import FlatModule


@LOCAL_PARTS.add("mean_amplitude")
class AmplitudeNormalisation(Part):
    """HarmoFL's images: each is rebuilt from its own phase and the mean Fourier amplitude of all sites' images.

    x ← F⁻¹(Ā e^{i φ(F x)}) for each channel, with Ā = Σ |F x| / n over the training cases of all sites, before any
    round. It is the last step before the network, after scaling and augmentation, at every site, in validation and
    tests, too, also at sites that did not train. A scanner that makes frequencies stronger or weaker, and shifts none,
    leaves no trace. One site has its own mean amplitude. Images that are not changed at random are rebuilt once.

    Source: Jiang, Wang, Dou, HarmoFL: harmonizing local and global drifts in federated learning on heterogeneous
    medical images, AAAI 2022, and the authors' code. There amplitudes are a running mean over the batches of the first
    round, averaged with the same weight for each site; here all cases count the same, and the mean is exact from the
    start. The code calls its function with a window of 0, the mean brightness alone (`window: 0` here).

    Args:
        window: the frequencies, as a share of the number of pixels along each axis; 0.5 for all.
    """

    reveals: ClassVar = {
        "sum": "the summed Fourier amplitudes of the site's training images: how they look on average, and of a single "
               "image nearly what is in it",
        "count": "the number of training cases",
        "mean": "the mean amplitude of all sites' images: with two sites, the other's",
    }  # fmt: skip
    images_only = True
    no_bags = True

    def __init__(self, *, window: Annotated[float, Field(ge=0, le=0.5)] = 0.5) -> None:
        self.window = window

    def shapes_for(self, model: FlatModule) -> Mapping[str, Shaped]:
        """Of amplitudes of images of this size."""
        amplitudes = model.shape[0], *Window(model.shape[1:], self.window).shape
        return {
            "sum": Shaped("float64", *amplitudes, least=0, always="start"),
            "count": Shaped("float64", least=0, always="start"),
            "mean": Shaped("float32", *amplitudes, least=0),
        }

    def shown(self, needed: Memory, shape: Sequence[int]) -> Callable[[Tensor], Tensor]:
        """F⁻¹(Ā e^{i φ})."""
        window, mean = Window(shape[1:], self.window), needed.get("mean", torch.empty(0))
        Shaped("float32", shape[0], *window.shape, least=0).check(mean, {})
        return partial(window.rebuilt, amplitudes=mean)

    def at_site(self) -> SiteEnd:
        """Rebuilds images."""
        return _Rebuilding(self.window)

    def at_server(self) -> ServerEnd:
        """Knows the mean amplitude."""
        return _MeanAmplitude()


class _Rebuilding(Told):
    looks = "mean amplitudes"

    def __init__(self, window: float) -> None:
        self.share = window

    def meet(self, view: SiteView) -> Memory:
        """Σ |F x| of the site's training cases."""
        self._window, self.site = Window(whole_images(view, self.name), self.share), view.name
        count = torch.tensor(float(view.count()), dtype=torch.float64)
        return {"sum": total_amplitudes(view, self._window), "count": count}

    def images(self, images: Tensor) -> Tensor:
        """F⁻¹(Ā e^{i φ})."""
        return self._window.rebuilt(images, self.told["mean"])


class _MeanAmplitude(Telling):
    def meet(self, announced: Mapping[str, Memory], everyone: Mapping[str, float]) -> None:
        """Ā = Σ_k Σ |F x| / Σ_k n_k; all sites are told."""
        total = torch.stack([told["sum"] for told in announced.values()]).sum(0)
        self._mean = (total / sum(float(told["count"]) for told in announced.values())).float()
        self.tell({site: {"mean": self._mean} for site in (*everyone, *self.others)})

    def needed(self) -> Memory:
        """Ā."""
        return {"mean": self._mean}
