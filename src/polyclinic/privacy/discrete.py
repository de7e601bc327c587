"""Discrete Gaussian noise: whole numbers x with probabilities ∝ exp(−x² / 2σ²), drawn exactly, and sums of them.

No number with a fraction is drawn or compared: all choices are comparisons of whole numbers that are equally likely.
They have the probabilities that they should, but for a table of 159 binary digits: so the noise is not its distribution
with a probability of less than 2^-150 for each number, and there are no last digits from which anything could be read.

Sources: Karney, Sampling exactly from the normal distribution, ACM TOMS 2016, algorithm D, here for whole σ; Canonne,
Kamath and Steinke, The discrete Gaussian for differential privacy, NeurIPS 2020, algorithm 1 (choices with probability
exp(−γ)) and theorem 4 (what it costs).
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable
from decimal import Decimal, localcontext
from functools import cache
from typing import TYPE_CHECKING

from polyclinic.privacy.draws import DIGITS, Draws

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Whole = NDArray[np.int64]
    Chosen = NDArray[np.bool_]

#: Numbers that are drawn at once, to bound memory.
_AT_ONCE = 1 << 18
#: Of so many proposals one becomes a number, on average; a few more are made.
_TRIES = 1.42
#: So many words of `DIGITS` binary digits each edge of the table has.
_WORDS = 3
#: No deviation is larger, so that products of it with small numbers have fewer digits than what is drawn.
MOST_DEVIATION = 2**40


def discrete_gaussian(count: int, deviation: int, draws: Draws) -> Whole:
    """Independent numbers of the discrete Gaussian distribution, int64 ``[count]``.

    Args:
        count: how many.
        deviation: σ, a whole number from 1 to `MOST_DEVIATION`.
        draws: where random numbers come from.
    """
    import numpy as np

    if not 1 <= deviation <= MOST_DEVIATION:
        raise ValueError(f"got a deviation of {deviation}; expected a whole number from 1 to {MOST_DEVIATION}")
    found, done = np.empty(count, dtype=np.int64), 0
    while done < count:
        left = min(count - done, _AT_ONCE)
        drawn = _proposed(math.ceil(_TRIES * left) + 16, deviation, draws)[:left]
        found[done : done + len(drawn)] = drawn
        done += len(drawn)
    return found


def excess(deviation: int, summands: int, size: int) -> float:
    """What a sum of discrete Gaussians costs more than one with their variance: τ √d.

    Where each of n summands has deviation σ in each of d coordinates, and the sensitivity in the L2 norm is Δ, the sum
    is ½ ε²-zero-concentrated differentially private with ε = Δ / (√n σ) + τ √d and τ = 10 Σ exp(−2π² σ² k / (k + 1)),
    over k from 1 to n − 1.

    Source: Kairouz, Liu and Steinke, The distributed discrete Gaussian mechanism for federated learning with secure
    aggregation, ICML 2021, proposition 14 (for σ from ½ on).
    """
    least = math.exp(-((math.pi * deviation) ** 2))  # of k = 1, the greatest of the terms
    return 10 * (summands - 1) * least * math.sqrt(size)


def _proposed(count: int, deviation: int, draws: Draws) -> Whole:
    """Those of so many proposals that are accepted: ± (k σ + j) with 0 ≤ j < σ."""
    import numpy as np

    level, rest, negative = _levels(count, draws), whole(count, deviation, draws), _coins(count, draws)
    kept = ~(negative & (level == 0) & (rest == 0))  # 0 has one sign

    def half_square(where: Whole, divisor: int) -> Chosen:
        """With probability (j / σ)² / 2 / divisor."""
        found = whole(len(where), 2 * divisor * deviation, draws) < rest[where]
        found[found] = whole(int(found.sum()), deviation, draws) < rest[where[found]]
        return found

    def product(where: Whole, divisor: int) -> Chosen:
        """With probability j / σ / divisor."""
        return whole(len(where), divisor * deviation, draws) < rest[where]

    left = np.flatnonzero(kept)
    left = left[_decay(left, half_square)]  # exp(−½ (j / σ)²)
    failed, trials, number = np.zeros(count, dtype=bool), left[level[left] > 0], 0
    while len(trials):  # exp(−j / σ), k times
        passed = _decay(trials, product)
        failed[trials[~passed]] = True
        number += 1
        trials = trials[passed & (level[trials] > number)]
    left = left[~failed[left]]
    signs: Whole = np.where(negative[left], -1, 1)
    return signs * (level[left] * deviation + rest[left])


def _levels(count: int, draws: Draws) -> Whole:
    """Numbers k ≥ 0 with probabilities ∝ exp(−½ k²), int64 ``[count]``."""
    import numpy as np

    table, below = _table(), DIGITS * (_WORDS - 1)
    edges, drawn = np.array([edge >> below for edge in table]), _digits(count, draws)
    found: Whole = np.searchsorted(edges, drawn)
    for place in np.flatnonzero(np.isin(drawn, edges)):  # only further digits tell
        number = int(drawn[place])
        for digits in _digits(_WORDS - 1, draws).tolist():
            number = number << DIGITS | digits
        found[place] = bisect_right(table, number)
    return found


@cache
def _table() -> list[int]:
    """P(k ≤ 0), P(k ≤ 1), ... in units of 2^-159, rounded down; what is beyond k = 17 has less than one."""
    with localcontext(prec=80):
        weights = [(-Decimal(k * k) / 2).exp() for k in range(18)]
        return [int(sum(weights[: k + 1]) / sum(weights) * 2 ** (DIGITS * _WORDS)) for k in range(17)]


def _decay(where: Whole, chance: Callable[[Whole, int], Chosen]) -> Chosen:
    """Chosen with probability exp(−γ), for γ ≤ 1 of which only choices with probability γ / divisor are needed.

    Args:
        where: places ``[n]``, each with its own γ.
        chance: ``(places, divisor)`` -> chosen with probability γ / divisor.
    """
    import numpy as np

    found, active, divisor = np.zeros(len(where), dtype=bool), np.arange(len(where)), 1
    while len(active):
        further = chance(where[active], divisor)
        if divisor % 2:
            found[active[~further]] = True
        active, divisor = active[further], divisor + 1
    return found


def whole(count: int, below: int, draws: Draws) -> Whole:
    """Whole numbers from 0 to ``below`` − 1, all equally likely, int64 ``[count]``; ``below`` is 2^53 at most."""
    import numpy as np

    limit = (1 << DIGITS) - (1 << DIGITS) % below
    found = _digits(count, draws)
    while len(again := np.flatnonzero(found >= limit)):
        found[again] = _digits(len(again), draws)
    return found % below


def _coins(count: int, draws: Draws) -> Chosen:
    """True or false, equally likely, ``[count]``."""
    import numpy as np

    found = _digits(-(-count // DIGITS), draws)[:, None] >> np.arange(DIGITS)
    heads: Chosen = (found.ravel()[:count] & 1) == 1
    return heads


def _digits(count: int, draws: Draws) -> Whole:
    """Whole numbers of 53 binary digits: uniform numbers are multiples of 2⁻⁵³."""
    import numpy as np

    found: Whole = (draws.uniform(count).numpy() * 2.0**DIGITS).astype(np.int64)
    return found
