"""Rényi differential privacy: a bound of ε for any mechanism here, however great ε is.

A step has the Rényi divergence D(α) at most, for each order α; those of several steps add up.

Sources: Mironov, Rényi differential privacy, CSF 2017 (Gaussian, Laplace); Bun and Steinke, Concentrated differential
privacy: simplifications, extensions, and lower bounds, TCC 2016 (concentrated; sampling counts for nothing there);
Mironov, Talwar and Zhang, Rényi differential privacy of the sampled Gaussian mechanism, 2019; Balle et al., Hypothesis
testing interpretations and Rényi differential privacy, AISTATS 2020, theorem 21 (from D to ε and δ).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING

from polyclinic.privacy.events import Event, merged
from polyclinic.privacy.steps import LEAST_RATE, amplified

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

#: Orders that are no whole numbers; they matter where ε is great.
FRACTIONS = (1.001, 1.003, 1.01, 1.02, 1.05, *(order / 10 for order in range(11, 110) if order % 10))
#: Whole orders; the great ones matter where ε is small. The last is that of pure differential privacy.
WHOLE = (*range(2, 65), *(round(64 * 2 ** (power / 4)) for power in range(1, 41)))
ORDERS = (*FRACTIONS, *WHOLE, math.inf)
#: What rounding can take away from (α − 1) D(α) of a step: of one that is computed as an integral, and of others for
#: each unit of it.
SLACK, ROUNDING = 1e-13, 1e-15
#: Noise above this counts as this much, so that its square is a number.
MOST_NOISE = 1e150
#: Noise below which that integral needs too many points; then sampling counts for nothing in orders that are fractions.
LEAST_NOISE = 0.05


def epsilon(events: Iterable[Event], delta: float) -> float:
    """The least ε >= 0 for which (ε, ``delta``) is guaranteed: D + ln(1 − 1/α) − (ln δ + ln α) / (α − 1)."""
    import numpy as np

    spent = composed(events)
    found = spent[:-1] + conversion(delta)
    return max(float(np.min(found)), 0.0) if spent[-1] > np.min(found) else float(spent[-1])


def conversion(delta: float) -> Array:
    """What ε is more than D, for each of `ORDERS` but the last."""
    import numpy as np

    orders = np.array(ORDERS[:-1])
    found: Array = np.log1p(-1 / orders) - (math.log(delta) + np.log(orders)) / (orders - 1)
    return found


def delta(events: Iterable[Event], epsilon: float) -> float:
    """The least δ for which (``epsilon``, δ) is guaranteed: exp((α − 1) (D − ε)) (1 − 1/α)^(α − 1) / α."""
    import numpy as np

    spent, orders = composed(events), np.array(ORDERS[:-1])
    if spent[-1] <= epsilon:
        return 0.0
    logarithm = (orders - 1) * (spent[:-1] - epsilon + np.log1p(-1 / orders)) - np.log(orders)
    return math.exp(min(float(np.min(logarithm)), 0.0))


def composed(events: Iterable[Event]) -> Array:
    """D of all steps, for each of `ORDERS`."""
    import numpy as np

    total = np.zeros(len(ORDERS))
    with np.errstate(over="ignore"):
        for event in merged(events):
            total = total + event.count * divergence(event.times(1))
    return total


@lru_cache(maxsize=256)
def divergence(event: Event) -> Array:
    """D of one step, for each of `ORDERS`."""
    import numpy as np

    orders, rate = np.array(ORDERS[:-1]), max(event.rate, LEAST_RATE)
    with np.errstate(over="ignore", divide="ignore"):
        if event.mechanism == "pure":
            return _pure(orders, amplified(event.parameter, rate))
        if event.mechanism == "laplace":
            epsilon = amplified(float(1 / np.float64(event.parameter)), rate)
            return np.minimum(_pure(orders, epsilon), _laplace(orders, event.parameter))
        noise = min(event.parameter, MOST_NOISE)
        whole = orders / 2 / np.float64(noise) / noise
        if rate < 1 and event.mechanism == "gaussian":
            whole = np.minimum(whole, _sampled_gaussian(noise, rate))
        return np.append(whole, np.inf)


def _pure(orders: Array, epsilon: float) -> Array:
    """D of randomised response, which has the greatest of all steps with this ε; as great as that at the order ∞."""
    import numpy as np

    if not math.isfinite(epsilon):
        return np.full(len(ORDERS), np.inf)
    moment = np.logaddexp((orders - 1) * epsilon, -orders * epsilon) - math.log1p(math.exp(-epsilon))
    return _limited(moment, orders, epsilon)


def _laplace(orders: Array, scale: float) -> Array:
    """D of Laplace noise without sampling."""
    import numpy as np

    if not math.isfinite(1 / scale):
        return np.full(len(ORDERS), np.inf)
    great = np.log(orders / (2 * orders - 1)) + (orders - 1) / scale
    small = np.log((orders - 1) / (2 * orders - 1)) - orders / scale
    return _limited(np.logaddexp(great, small), orders, 1 / scale)


def _limited(moment: Array, orders: Array, greatest: float) -> Array:
    """D from (α − 1) D, which is the greatest at the order ∞."""
    import numpy as np

    rounded = np.maximum(moment, 0) + ROUNDING * (1 + np.abs(moment))
    return np.append(np.minimum(rounded / (orders - 1), greatest), greatest)


def _sampled_gaussian(noise: float, rate: float) -> Array:
    """D of Gaussian noise on a sample, between the data with the unit and those without, which is the greater one."""
    import numpy as np

    return np.array(
        [_by_integral(noise, rate, order) for order in FRACTIONS] + [_by_sum(noise, rate, order) for order in WHOLE]
    )


def _by_sum(noise: float, rate: float, order: int) -> float:
    """Whole α: ln(1 + Σ C(α, k) (1 − q)^(α − k) q^k (exp(k (k − 1) / 2σ²) − 1)) / (α − 1), the sum from 2 to α.

    All terms are positive, so no digits are lost where D is small.
    """
    import numpy as np
    from scipy.special import gammaln, logsumexp

    k = np.arange(2, order + 1, dtype=np.float64)
    grown = k * (k - 1) / 2 / np.float64(noise) / noise
    choose = gammaln(order + 1) - gammaln(k + 1) - gammaln(order - k + 1)
    mixed = choose + (order - k) * math.log1p(-rate) + k * math.log(rate)
    terms = mixed + np.where(grown > 1, grown + np.log1p(-np.exp(-grown)), np.log(np.expm1(np.minimum(grown, 1))))
    return float(np.logaddexp(0, logsumexp(terms))) / (order - 1)


def _by_integral(noise: float, rate: float, order: float) -> float:
    """Any α: ln ∫ N(x; 0, σ²) (1 − q + q exp((2x − 1) / 2σ²))^α dx / (α − 1), by the trapezoid rule.

    For a function that is analytic in a strip around the real axis its error falls exponentially with the number of
    points.
    """
    import numpy as np
    from scipy.special import logsumexp

    if noise < LEAST_NOISE:
        return math.inf
    step = min(noise / 4, noise**2 / 2)
    places = np.arange(-12 * noise, order + 12 * noise, step)
    ratio = np.logaddexp(math.log1p(-rate), math.log(rate) + (places - 0.5) / noise**2)
    normal = -((places / noise) ** 2) / 2 - math.log(noise * math.sqrt(2 * math.pi))
    moment = float(logsumexp(normal + order * ratio)) + math.log(step)
    return (max(moment, 0.0) + SLACK) / (order - 1)
