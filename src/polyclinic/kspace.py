"""Images and their k-space: what networks and cases of accelerated MRI have in common.

The Fourier transform is centred (the lowest frequency lies in the middle) and orthonormal, over the last two axes; of
a volume each slice by itself. Lines of k-space are its columns: the last axis is the direction of phase encoding.

A network is given three channels: real and imaginary part of the zero-filled image, and which lines were measured.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: Channels of what a network is given: real part, imaginary part, measured lines.
CHANNELS = 3
_AXES = (-2, -1)


def to_kspace(images: Tensor) -> Tensor:
    """Centred, orthonormal Fourier transform of images ``[..., H, W]``, complex64 of float32."""
    shifted = torch.fft.ifftshift(images, dim=_AXES)
    found: Tensor = torch.fft.fftshift(torch.fft.fft2(shifted, dim=_AXES, norm="ortho"), dim=_AXES)
    return found


def to_images(kspace: Tensor) -> Tensor:
    """The inverse of `to_kspace`: complex images ``[..., H, W]``."""
    shifted = torch.fft.ifftshift(kspace, dim=_AXES)
    found: Tensor = torch.fft.fftshift(torch.fft.ifft2(shifted, dim=_AXES, norm="ortho"), dim=_AXES)
    return found


def as_inputs(zero_filled: Tensor, measured: Tensor) -> Tensor:
    """What a network is given, float32 ``[B, 3, ..., H, W]``.

    Args:
        zero_filled: complex ``[B, 1, ..., H, W]``.
        measured: 1 where a line was measured and 0 elsewhere, broadcastable to that.
    """
    return torch.cat([zero_filled.real, zero_filled.imag, measured.expand(zero_filled.shape)], dim=1)


def of_inputs(inputs: Tensor) -> tuple[Tensor, Tensor]:
    """The other way round: the zero-filled image, complex ``[B, 1, ...]``, and the measured lines, float32 likewise."""
    real, imaginary, measured = inputs.float().split(1, dim=1)
    return torch.complex(real, imaginary), measured
