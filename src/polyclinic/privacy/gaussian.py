"""Gaussian steps together are one Gaussian step, whose ε and δ are known exactly.

With μ² = Σ 1/σ² it is δ(ε) = Φ(μ/2 − ε/μ) − exp(ε) Φ(−μ/2 − ε/μ). Sampling is left out, which only makes δ greater.

Source: Balle and Wang, Improving the Gaussian mechanism for differential privacy: analytical calibration and optimal
denoising, ICML 2018, theorem 8.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from polyclinic.privacy.events import Event, merged


def epsilon(events: Iterable[Event], delta: float) -> float:
    """The least ε >= 0 for which (ε, ``delta``) is guaranteed.

    Raises:
        ValueError: not all events are Gaussian.
    """
    from scipy.special import ndtri

    shift = shift_of(events)
    if not math.isfinite(shift):
        return math.inf
    low, high = 0.0, max(shift * shift / 2 - shift * float(ndtri(delta)), 0.0)  # there the first term alone is δ
    while high - low > 1e-10 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if _delta(shift, middle) <= delta else (middle, high)
    return high


def delta(events: Iterable[Event], epsilon: float) -> float:
    """The least δ for which (``epsilon``, δ) is guaranteed.

    Raises:
        ValueError: not all events are Gaussian.
    """
    shift = shift_of(events)
    return _delta(shift, epsilon) if math.isfinite(shift) else 1.0


def shift_of(events: Iterable[Event]) -> float:
    """μ, how many standard deviations the two neighbours are apart.

    Raises:
        ValueError: not all events are Gaussian.
    """
    together = merged(events)
    if any(event.mechanism != "gaussian" for event in together):
        raise ValueError("not all steps have Gaussian noise")
    return math.hypot(*(math.sqrt(event.count) / event.parameter for event in together))


def _delta(shift: float, epsilon: float) -> float:
    """δ at ε: with a = ε/μ − μ/2 and b = ε/μ + μ/2, exp(ε − b²/2) is exp(−a²/2), so nothing overflows."""
    from scipy.special import erfcx, ndtr

    near, far = epsilon / shift - shift / 2, epsilon / shift + shift / 2
    weight = math.exp(-near * near / 2) / 2
    if near < 0:
        return max(float(ndtr(-near)) - weight * float(erfcx(far / math.sqrt(2))), 0.0)
    return weight * float(erfcx(near / math.sqrt(2)) - erfcx(far / math.sqrt(2)))
