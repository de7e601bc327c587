"""How sure an area under the ROC curve may be expected to be; for what plans a study as well as for what judges it."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


def expected_variance(area: float, positives: ArrayLike, negatives: ArrayLike) -> Floats:
    """Variance of an area under the curve that a true area and numbers of cases lead to expect.

    Hanley & McNeil 1982, "The meaning and use of the area under a receiver operating characteristic (ROC) curve",
    Radiology 143(1): equation 1 with the negative exponential model. Which class is the spread one is not known, so the
    larger of the two variances is taken.
    """
    both_above, both_below = area / (2 - area) - area**2, 2 * area**2 / (1 + area) - area**2
    most, least = np.maximum(positives, negatives) - 1, np.minimum(positives, negatives) - 1
    spread = most * max(both_above, both_below) + least * min(both_above, both_below)
    variance: Floats = (area * (1 - area) + spread) / np.multiply(positives, negatives)
    return variance
