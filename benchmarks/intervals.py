"""How often the 95 % intervals of an area under the ROC curve, and of a sensitivity, hold the truth, and their width.

    python benchmarks/intervals.py [--runs 2000]

Scores are drawn from two models: *binormal* (both classes normal with the same deviation) and *skewed* (both classes
exponential, the positives with the longer tail). For each true area and numbers of positives and negatives it prints
the share of intervals that hold the true area and their mean width, without folds and as the mean over five folds; in
brackets the same for the interval that was used before (DeLong's variance on the logit scale). The least allowed is
93 %. The sensitivity is that of a threshold, by the bootstrap over patients where it is far from its ends and by
the exact interval where it is near.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, NamedTuple

import numpy as np
import typer
from numpy.typing import NDArray
from scipy.special import expit, logit
from scipy.stats import norm

from polyclinic.statistics.intervals import (
    Z95,
    Area,
    area_interval,
    bootstrap_interval,
    combine,
    delong,
    share_interval,
    touches_end,
)

Floats = NDArray[np.float64]

AREAS = (0.7, 0.8, 0.9, 0.95, 0.99)
#: Positives and negatives.
CASES = ((8, 8), (10, 10), (20, 20), (30, 30), (50, 50), (100, 100), (8, 50), (50, 8), (20, 100), (100, 20))
LEAST = 0.93


class Found(NamedTuple):
    """Coverage and mean width of one kind of interval."""

    coverage: float
    width: float


def draw(model: str, area: float, positives: int, negatives: int, random: np.random.Generator) -> tuple[Floats, Floats]:
    """Scores of positives and negatives with this true area under the curve."""
    if model == "binormal":
        return random.normal(norm.ppf(area) * np.sqrt(2), 1, positives), random.normal(0, 1, negatives)
    return random.exponential(area / (1 - area), positives), random.exponential(1, negatives)


def areas(
    model: str, area: float, positives: int, negatives: int, folds: int, random: np.random.Generator
) -> list[Area]:
    """The areas found in folds, whose patients are shared out evenly."""
    found = []
    for fold in range(folds):
        m, n = ((count + fold) // folds for count in (positives, negatives))
        labels = np.repeat([1, 0], [m, n])
        found.append(Area(0, *delong(labels, np.concatenate(draw(model, area, m, n, random))), m, n))
    return found


def by_logit(found: list[Area]) -> tuple[float, float]:
    """DeLong's variance on the logit scale; a perfect area is a point."""
    mean, variance = combine([one[:3] for one in found])
    if not 0 < mean < 1 or np.isnan(variance):
        return mean, mean
    half = Z95 * np.sqrt(variance) / (mean * (1 - mean))
    return float(expit(logit(mean) - half)), float(expit(logit(mean) + half))


def coverage(
    model: str, area: float, positives: int, negatives: int, folds: int, runs: int, seed: int = 0
) -> tuple[Found, Found]:
    """Of the interval of the product, and of the one before."""
    random = np.random.default_rng([seed, round(1000 * area), positives, negatives, folds])
    samples = [areas(model, area, positives, negatives, folds, random) for _ in range(runs)]
    return _found([area_interval(one) for one in samples], area), _found([by_logit(one) for one in samples], area)


def of_sensitivity(share: float, positives: int, runs: int, seed: int = 0) -> tuple[Found, Found]:
    """Of the product's interval of a sensitivity, and of the bootstrap alone."""
    random = np.random.default_rng([seed, round(1000 * share), positives])
    mine, alone = [], []
    for _ in range(runs):
        value = random.binomial(positives, share) / positives
        draws = random.binomial(positives, value, 400) / positives
        low, high = bootstrap_interval(value, draws, 1.0)
        alone.append((low, high))
        if touches_end(draws):
            inside = 0 < value < 1 and draws.var() > 0
            low, high = share_interval(value, value * (1 - value) / draws.var() if inside else positives)
        mine.append((low, high))
    return _found(mine, share), _found(alone, share)


def _found(intervals: list[tuple[float, float]], truth: float) -> Found:
    low, high = np.array(intervals).T
    return Found(float(np.mean((low <= truth) & (truth <= high))), float(np.mean(high - low)))


def table(runs: int) -> Iterator[tuple[str, Found, Found]]:
    """Every case: what it is, the product's interval and the one to compare with."""
    for folds in (1, 5):
        for model in ("binormal", "skewed"):
            for area in AREAS:
                for positives, negatives in CASES:
                    name = f"{model:9} area {area:<5} {positives:3} + {negatives:<3} folds {folds}"
                    yield name, *coverage(model, area, positives, negatives, folds, runs)
    for share in AREAS:
        for positives in (8, 10, 20, 30, 50, 100):
            yield f"sensitivity {share:<5} {positives:3} positives", *of_sensitivity(share, positives, runs)


def main(runs: Annotated[int, typer.Option(min=100, help="Simulated studies of each kind.")] = 2000) -> None:
    """Print the table, and whether all coverages reach what they must."""
    worst = ("", 1.0)
    for name, mine, other in table(runs):
        mark = "" if mine.coverage >= LEAST else "  too low"
        print(f"{name:45} {mine.coverage:.3f} width {mine.width:.3f}   ({other.coverage:.3f}, {other.width:.3f}){mark}")
        worst = min(worst, (name, mine.coverage), key=lambda one: one[1])
    chance = (0.05 * 0.95 / runs) ** 0.5
    print(f"Lowest: {worst[1]:.3f} ({worst[0].strip()}); {LEAST} is needed. Binomial deviation: {chance:.3f}.")


if __name__ == "__main__":
    typer.run(main)
