"""Bringing the histograms of volumes to a standard when they are used."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from polyclinic.data.volumes.store import Volumes


def landmarks(volumes: Tensor | Volumes) -> Tensor:
    """The histogram landmarks of each volume, noted when it was prepared: float64 ``[N, C, L]``.

    Raises:
        ValueError: the cases are no volumes, or were prepared without landmarks.
    """
    if not isinstance(volumes, Volumes) or not volumes.about[0]["landmarks"]:
        raise ValueError("no landmarks were noted")
    return torch.tensor([record["landmarks"] for record in volumes.about], dtype=torch.float64)


def standardise(images: Tensor, own: Tensor, standard: Tensor) -> Tensor:
    """Map intensities so that each volume's landmarks come to lie at the standard ones.

    Between landmarks the map is linear; beyond the first and the last it goes on with the slope of the last piece.

    Args:
        images: float32 ``[B, C, D, H, W]``.
        own: landmarks of these volumes, float64 ``[B, C, L]``.
        standard: float64 ``[C, L]``.

    Returns:
        float32, same shape.
    """
    mapped = torch.empty_like(images)
    for case in range(images.shape[0]):
        for channel in range(images.shape[1]):
            source, target = _increasing(own[case, channel].numpy()), standard[channel].numpy()
            values = images[case, channel].numpy()
            found = np.interp(values, source, target)
            for end, inner, beyond in ((0, 1, values < source[0]), (-1, -2, values > source[-1])):
                slope = (target[end] - target[inner]) / (source[end] - source[inner])
                found[beyond] = target[end] + slope * (values[beyond] - source[end])
            mapped[case, channel] = torch.from_numpy(found)
    return mapped


def _increasing(marks: np.ndarray[tuple[int], np.dtype[np.float64]]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """The landmarks, pulled apart by a little where several are the same (an image of few grey values)."""
    pulled: np.ndarray[tuple[int], np.dtype[np.float64]] = np.maximum.accumulate(marks) + 1e-6 * np.arange(len(marks))
    return pulled
