"""Fourier spectra of images: the amplitude is how an image looks (scanner, staining), the phase what is in it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from polyclinic.errors import StudyError
from polyclinic.parts import SiteView

#: A frequency this much weaker than an image's strongest is rounding, and has no phase.
_ROUNDING = 1e-6
#: Images looked at together.
_AT_ONCE = 32


class Window:
    """The low frequencies of images of one size, up to a share of the number of pixels along each axis.

    Spectra are those of `torch.fft.rfftn`, whose last axis has half of the frequencies: those of real images are
    symmetric. They are neither shifted nor normalised.

    Args:
        sizes: pixels along each axis, ``(H, W)`` or ``(D, H, W)``.
        share: from 0, the mean brightness alone, to 0.5, all frequencies.
    """

    def __init__(self, sizes: Sequence[int], share: float) -> None:
        self.sizes, self._axes = tuple(sizes), tuple(range(-len(sizes), 0))
        reach = [int(size * share) for size in sizes]
        lasting = sorted({abs(k) for k in range(-reach[-1], reach[-1] + 1)})
        others = [
            sorted({k % size for k in range(-far, far + 1)}) for size, far in zip(sizes[:-1], reach[:-1], strict=True)
        ]
        self._places = [torch.tensor(places) for places in (*others, lasting)]
        self.shape = tuple(len(places) for places in self._places)

    def amplitudes(self, images: Tensor) -> Tensor:
        """How strong each frequency of the window is, of images ``[..., H, W]``: ``[..., *shape]``."""
        return self._take(torch.fft.rfftn(images, dim=self._axes)).abs()

    def rebuilt(self, images: Tensor, amplitudes: Tensor) -> Tensor:
        """Images ``[..., H, W]`` with other ``amplitudes [..., *shape]`` in the window, and their own phase.

        A frequency that an image does not have has the phase 0.
        """
        spectra = torch.fft.rfftn(images, dim=self._axes)
        low, strongest = self._take(spectra), spectra.abs().amax(self._axes, keepdim=True)
        turned = torch.where(low.abs() > _ROUNDING * strongest, low.sgn() * amplitudes, amplitudes.to(low.dtype))
        grid = torch.meshgrid(*(places.to(images.device) for places in self._places), indexing="ij")
        spectra[(..., *grid)] = turned
        images = torch.fft.irfftn(spectra, s=self.sizes, dim=self._axes)
        return images

    def mixed(self, images: Tensor, others: Tensor, shares: Tensor) -> Tensor:
        """Images ``[B, C, H, W]`` whose amplitudes A in the window are (1 − λ) A + λ A'.

        Args:
            images: ``[B, C, H, W]``.
            others: A' ``[B, C, *shape]``.
            shares: λ of each image ``[B]``.
        """
        shares = shares.view(-1, *[1] * (images.dim() - 1))
        return self.rebuilt(images, self.amplitudes(images).lerp(others, shares))

    def _take(self, spectra: Tensor) -> Tensor:
        for axis, places in zip(self._axes, self._places, strict=True):
            spectra = spectra.index_select(axis, places.to(spectra.device))
        return spectra


def trained_on_boxes(view: SiteView) -> bool:
    """Whether a site's network is trained on boxes of its volumes."""
    return bool(view.count()) and tuple(view.cases(torch.tensor([0]))[0].shape[1:]) != tuple(view.input_shape)


def whole_images(view: SiteView, part: str) -> Sequence[int]:
    """Pixels along each axis of the images that a site's network is trained on.

    Raises:
        StudyError: P104, it is trained on boxes, whose spectra are not those of the images.
    """
    if trained_on_boxes(view):
        raise StudyError("P104", f"{part} is about the frequencies of whole images, and the network is trained on "
                         "boxes of volumes.", f"Leave {part} out, or train on whole volumes (no `patch`).")  # fmt: skip
    return view.input_shape[1:]


def total_amplitudes(view: SiteView, window: Window) -> Tensor:
    """The sum of the amplitudes of a site's training cases: float64 ``[C, *shape]``."""
    total = torch.zeros(view.input_shape[0], *window.shape, dtype=torch.float64)
    for index in torch.arange(view.count()).split(_AT_ONCE):
        total += window.amplitudes(view.cases(index)[0]).double().sum(0)
    return total
