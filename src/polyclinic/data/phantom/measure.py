"""Grey matter as software finds it in an image: where scanners differ, so do the volumes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from polyclinic.data.phantom.template import Array

#: Voxels used to find the classes and the bias field.
SAMPLE = 6_000
STEPS = 20


def grey_matter(image: Array, brain: npt.NDArray[np.bool_]) -> Array:
    """Probability of grey matter in each voxel.

    A mixture of three Gaussians (fluid, grey, white) of the logarithm of brightness and a bias field that is a
    polynomial of second degree, found in turns by expectation maximisation: Wells et al., Adaptive segmentation of MRI
    data, IEEE TMI 15 (1996) 429-442; Van Leemput et al., IEEE TMI 18 (1999) 885-896. There is no spatial prior: noise,
    blur and contrast change what is found, as with real software.

    Args:
        image: ``[X, Y, Z]`` brightness.
        brain: ``[X, Y, Z]`` where to look; it is 0 elsewhere.
    """
    logs = np.log(np.maximum(image[brain], np.float32(1e-3) * image.max()))
    basis = _polynomials(brain)
    step = max(1, len(logs) // SAMPLE)
    basis -= basis[::step].mean(axis=0)
    means, deviations, shares, bias = _fit(logs[::step].astype(np.float64), basis[::step].astype(np.float64))
    corrected = logs - basis @ bias.astype(np.float32)
    probability = np.zeros(image.shape, dtype=np.float32)
    parameters = (each.astype(np.float32) for each in (means, deviations, shares))
    probability[brain] = _memberships(corrected, *parameters)[1]
    return probability


def _polynomials(brain: npt.NDArray[np.bool_]) -> Array:
    """``[N, 9]`` products of coordinates between -1 and 1 of the voxels of the brain."""
    x, y, z = (
        (2 * index / size - 1).astype(np.float32) for index, size in zip(np.nonzero(brain), brain.shape, strict=True)
    )
    return np.stack([x, y, z, x * y, y * z, z * x, x * x, y * y, z * z], axis=1)


def _fit(
    logs: npt.NDArray[np.float64], basis: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Means, deviations and shares of the three classes, and the weights of the bias field."""
    means = np.quantile(logs, [0.05, 0.4, 0.85])
    deviations = np.full(3, (means[2] - means[1]) / 2 + 1e-3)
    shares = np.array([0.1, 0.5, 0.4])
    bias = np.zeros(basis.shape[1])
    for _ in range(STEPS):
        corrected = logs - basis @ bias
        members = _memberships(corrected, means, deviations, shares)
        total = members.sum(axis=1) + 1e-9
        means = members @ corrected / total
        deviations = np.sqrt((members * (corrected - means[:, None]) ** 2).sum(axis=1) / total) + 1e-3
        shares = total / total.sum()
        precision = members / deviations[:, None] ** 2
        weight = precision.sum(axis=0)
        residual = logs - (precision * means[:, None]).sum(axis=0) / weight
        normal = (basis.T * weight) @ basis
        bias = np.linalg.solve(normal + 1e-6 * np.trace(normal) * np.eye(len(bias)), (basis.T * weight) @ residual)
    return means, deviations, shares, bias


def _memberships(
    logs: npt.NDArray[np.floating],
    means: npt.NDArray[np.floating],
    deviations: npt.NDArray[np.floating],
    shares: npt.NDArray[np.floating],
) -> npt.NDArray[np.floating]:
    """``[3, N]`` probability of each class."""
    distance = (logs - means[:, None]) / deviations[:, None]
    likelihood = (shares / deviations)[:, None] * np.exp(-0.5 * np.minimum(distance**2, 80))
    members: npt.NDArray[np.floating] = likelihood / likelihood.sum(axis=0)
    return members
