"""How near a reconstructed image is to the fully sampled one, as fastMRI measures it.

The range of values is the largest value of the true image; of a volume that of all its slices, and structural
similarity is the mean over slices. All three stay the same where both images are multiplied by a number.

Source: Zbontar et al., fastMRI: an open dataset and benchmarks for accelerated MRI, 2018, section 5; windows and
constants of the structural similarity are those of scikit-image, which fastMRI uses.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from polyclinic.tasks.metrics import RECONSTRUCTION, check_names

Floats = NDArray[np.float64]
#: Side of the windows of the structural similarity, and its two constants (Wang 2004).
WINDOW, K1, K2 = 7, 0.01, 0.03


def reconstruction_case(found: ArrayLike, truth: ArrayLike, names: Sequence[str]) -> dict[str, float]:
    """The metrics ``names`` of one reconstructed image.

    ``nmse`` is |y - x|² / |x|², ``psnr`` 10 log10(max(x)² / mean((y - x)²)), ``ssim`` see `structural_similarity`. None
    is defined where the true image has one value everywhere, or the reconstruction is not finite; and ``psnr`` is
    infinite, which has no mean, where there is no error at all. Then they are NaN.

    Args:
        found: y, [H, W] or [D, H, W].
        truth: x, same shape.
        names: out of ``RECONSTRUCTION``.

    Raises:
        StudyError: P103, a name is none of its metrics.
        ValueError: the shapes differ.
    """
    check_names(names, RECONSTRUCTION)
    y, x = np.asarray(found, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    if y.shape != x.shape:
        raise ValueError(f"the reconstruction has shape {y.shape}, but the image has {x.shape}")
    if x.min() == x.max() or not np.isfinite(y).all():
        return dict.fromkeys(names, float("nan"))
    error, largest = float(np.square(y - x).sum()), float(x.max())
    values = {"nmse": error / float(np.square(x).sum()), "psnr": float("nan")}
    if error:
        values["psnr"] = 10 * float(np.log10(largest**2 * x.size / error))
    if "ssim" in names:
        slices = zip(y.reshape(-1, *y.shape[-2:]), x.reshape(-1, *x.shape[-2:]), strict=True)
        values["ssim"] = float(np.mean([structural_similarity(*pair, largest) for pair in slices]))
    return {name: values[name] for name in names}


def structural_similarity(found: Floats, truth: Floats, largest: float) -> float:
    """Mean over all 7 × 7 windows of (2 μx μy + C1)(2 σxy + C2) / ((μx² + μy² + C1)(σx² + σy² + C2)).

    Variances are those of samples (49 / 48 of the mean square), C1 = (0.01 R)² and C2 = (0.03 R)² with the range R.

    Source: Wang et al., Image quality assessment: from error visibility to structural similarity, IEEE TIP 2004,
    equation 13.

    Args:
        found: [H, W], both sides 7 or more.
        truth: same shape.
        largest: R.
    """
    from scipy.ndimage import uniform_filter

    def means(values: Floats) -> Floats:
        inside = slice(WINDOW // 2, -(WINDOW // 2))
        averaged: Floats = uniform_filter(values, WINDOW)[inside, inside]
        return averaged

    mean, other = means(found), means(truth)
    sample = WINDOW**2 / (WINDOW**2 - 1)
    spread = sample * (means(found * found) - mean * mean)
    other_spread = sample * (means(truth * truth) - other * other)
    together = sample * (means(found * truth) - mean * other)
    c1, c2 = (K1 * largest) ** 2, (K2 * largest) ** 2
    similarity = (2 * mean * other + c1) * (2 * together + c2)
    return float((similarity / ((mean**2 + other**2 + c1) * (spread + other_spread + c2))).mean())
