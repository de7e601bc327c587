"""The privacy losses of one step."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from polyclinic.privacy.events import Event
from polyclinic.privacy.losses import FINE, MOST, Losses, grid, trimmed

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]
    #: Values of losses ``[N]`` -> probabilities ``[N + 1]`` under P and Q that the loss is up to the first, in between,
    #: and above the last.
    Curve = Callable[[Array], tuple[Array, Array]]

#: Standard deviations of a normal distribution beyond which there is less than `losses.TAIL`.
REACH = 8.8
#: A loss of a single step above this is left to other accountants.
GREATEST_LOSS = 300.0
#: With noise below this they always are.
LEAST_NOISE = 1e-3
#: Noise above this counts as this much: less noise is less private, and numbers keep their digits.
MOST_NOISE = 1e5
#: Rates below this count as this much, for the same reason.
LEAST_RATE = 1e-9
#: And so do steps with an ε of their own below this.
LEAST_PURE = 1e-15


def single(event: Event, removed: bool) -> Losses:
    """The losses of one step with noise, between the data with the unit (P) and without it (Q), or the other way round.

    With a sampling rate q, P is Q itself with probability 1 − q.
    """
    if event.mechanism == "pure":
        return _two_losses(event.parameter)
    if event.mechanism == "concentrated":
        raise ValueError("of concentrated steps the Rényi divergences are known, and no losses")
    least, greatest, curve = {"gaussian": _gaussian, "laplace": _laplace}[event.mechanism](event.parameter, event.rate)
    if max(greatest, -least) > GREATEST_LOSS:
        raise ValueError(f"its losses reach {max(greatest, -least):.0f}, more than {GREATEST_LOSS:.0f}")
    look = _between(least, greatest, math.ceil(math.log2((greatest - least) / MOST)), curve, removed)
    low, high = math.ldexp(look.first, look.step), math.ldexp(look.first + len(look.masses), look.step)
    return _between(*((low, high) if removed else (-high, -low)), grid(look), curve, removed)


def _between(least: float, greatest: float, step: int, curve: Curve, removed: bool) -> Losses:
    """Losses on a grid, from the probabilities of all losses up to its points.

    Args:
        least, greatest: between which almost all losses are.
        step: of the grid.
        curve: of the probabilities of losses.
        removed: whether P is the data with the unit.
    """
    import numpy as np

    first, last = math.floor(math.ldexp(least, -step)) - 1, math.ceil(math.ldexp(greatest, -step)) + 1
    under_p, under_q = curve(np.ldexp(np.arange(first, last + 1, dtype=np.float64), step))
    if not removed:
        first, last = -last, -first
        under_p, under_q = under_q[::-1], under_p[::-1]
    values = np.ldexp(np.arange(first, last + 1, dtype=np.float64), step)
    inner, width = under_p[1:-1], math.ldexp(1.0, step)
    kept = under_q[1:-1] * np.exp(values[:-1]) - inner * math.exp(-width)
    down = np.clip(kept / -math.expm1(-width), 0, inner)  # so that Q keeps the mass between the two points, too
    masses = np.zeros(len(values))
    masses[:-1] += down
    masses[1:] += inner - down
    masses[0] += under_p[0]
    return trimmed(Losses(step, first, masses, float(under_p[-1])))


def _gaussian(noise: float, rate: float) -> tuple[float, float, Curve]:
    """P = (1 − q) N(0, σ²) + q N(1, σ²), Q = N(0, σ²): the least and the greatest loss, and the curve of losses."""
    import numpy as np
    from scipy.special import ndtr

    def loss(place: float) -> float:
        return float(np.logaddexp(np.log1p(-rate) if rate < 1 else -np.inf, np.log(rate) + (place - 0.5) / noise**2))

    def probabilities(edges: Array) -> Array:
        inner = np.where(edges[:-1] > 0, ndtr(-edges[:-1]) - ndtr(-edges[1:]), ndtr(edges[1:]) - ndtr(edges[:-1]))
        return np.concatenate([[ndtr(edges[0])], inner, [ndtr(-edges[-1])]])

    def curve(values: Array) -> tuple[Array, Array]:
        places = 0.5 + noise**2 * _unmixed(values, rate)
        one, other = probabilities((places - 1) / noise), probabilities(places / noise)
        return (1 - rate) * other + rate * one, other

    return loss(-REACH * noise), loss(1 + REACH * noise), curve


def _laplace(scale: float, rate: float) -> tuple[float, float, Curve]:
    """The same with Laplace noise: losses are the least at all outcomes below 0, and the greatest at all above 1."""
    import numpy as np

    def loss(inner: float) -> float:
        return float(np.logaddexp(np.log1p(-rate) if rate < 1 else -np.inf, np.log(rate) + inner))

    def probabilities(edges: Array) -> Array:
        """Of a Laplace distribution between edges, from the side on which no digits are lost."""
        outer = np.exp(-np.abs(edges)) / 2
        below, above = np.where(edges < 0, outer, 1 - outer), np.where(edges < 0, 1 - outer, outer)
        inner = np.where(edges[:-1] > 0, above[:-1] - above[1:], below[1:] - below[:-1])
        return np.concatenate([below[:1], inner, above[-1:]])

    def curve(values: Array) -> tuple[Array, Array]:
        unmixed = _unmixed(values, rate) * scale
        places = np.where(unmixed < -1, -np.inf, np.where(unmixed >= 1, np.inf, (unmixed + 1) / 2))
        one, other = probabilities((places - 1) / scale), probabilities(places / scale)
        return (1 - rate) * other + rate * one, other

    return loss(-1 / scale), loss(1 / scale), curve


def _unmixed(values: Array, rate: float) -> Array:
    """The losses without sampling to which ``values`` belong: ln(1 + (exp(l) − 1) / q), −∞ below ln(1 − q)."""
    import numpy as np

    if rate == 1:
        return values
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        found = np.where(values > 1, values - math.log(rate) + np.log1p((rate - 1) * np.exp(-values)),
                         np.log1p(np.expm1(values) / rate))  # fmt: skip
    return np.where(np.isnan(found), -np.inf, found)


def _two_losses(epsilon: float) -> Losses:
    """The losses of randomised response, which no ε-private step exceeds: ε, and −ε.

    Source: Kairouz, Oh and Viswanath, The composition theorem for differential privacy, ICML 2015.
    """
    import numpy as np

    if epsilon > GREATEST_LOSS:
        raise ValueError(f"its losses reach {epsilon:.0f}, more than {GREATEST_LOSS:.0f}")
    step = math.floor(math.log2(epsilon / FINE))
    high = 1 / (1 + math.exp(-epsilon))
    index = math.ldexp(epsilon, -step)
    top = math.ceil(index)
    masses = np.zeros(2 * top + 1)
    for loss, mass in ((index, high), (-index, high * math.exp(-epsilon))):
        low = math.floor(loss)
        part = math.expm1(math.ldexp(low + 1 - loss, step)) / math.expm1(math.ldexp(1.0, step))
        masses[low + top] += part * mass
        if part < 1:
            masses[low + top + 1] += (1 - part) * mass
    return trimmed(Losses(step, -top, masses, 0.0))


def plain(event: Event) -> Event:
    """One step, with noise and rate in the range that can be computed; steps that are equally private as one.

    A pure step on a sample is one with less: both ratios of the probabilities are at most 1 + q (exp(ε) − 1) (Balle,
    Barthe and Gaboardi, Privacy amplification by subsampling, NeurIPS 2018, theorem 8).
    """
    rate = max(event.rate, LEAST_RATE)
    if event.mechanism == "pure":
        return Event.pure(max(amplified(event.parameter, rate), LEAST_PURE))
    if event.parameter < LEAST_NOISE:
        raise ValueError(f"its losses reach more than {GREATEST_LOSS:.0f}")
    return Event(event.mechanism, min(event.parameter, MOST_NOISE), rate)


def amplified(epsilon: float, rate: float) -> float:
    """ln(1 + q (exp(ε) − 1)), the ε of a pure step of which each unit takes part with probability q."""
    if rate == 1:
        return epsilon
    if epsilon < 1:
        return math.log1p(rate * math.expm1(epsilon))
    return epsilon + math.log(rate - (rate - 1) * math.exp(-epsilon))
