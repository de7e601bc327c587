"""Whether a model's probabilities can be believed at a site, and whether acting on them does more good than harm."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from polyclinic.statistics.intervals import Floats

#: Probabilities are kept so far from 0 and 1, where their logarithm has no end.
NEAR = 1e-6
#: From a chance of these on one would act, in decision curves.
THRESHOLDS = tuple(round(0.05 * step, 2) for step in range(1, 20))
#: With fewer cases of either class nothing is said of calibration.
LEAST_CASES = 5
_STEPS = 100


@dataclass(frozen=True)
class Line:
    """A number and the variance of its error; both NaN where it can't be found."""

    value: float
    variance: float


NOTHING = Line(math.nan, math.nan)


@dataclass(frozen=True)
class Trust:
    """What a site says of the probabilities of one method, over all its test cases.

    Attributes:
        cases, positive: how many there are.
        intercept, slope: calibration, means over the seeds; see `calibration_line`.
        benefit, everybody: net benefit of acting by the method, mean over the seeds, and of acting on all, [T]; see
            `net_benefit`.
    """

    cases: int
    positive: int
    intercept: Line
    slope: Line
    benefit: Floats
    everybody: Floats


def calibration_line(labels: ArrayLike, probabilities: ArrayLike, patients: ArrayLike) -> tuple[Line, Line]:
    """Calibration intercept and slope.

    The slope is that of a logistic regression of the outcome on the log odds that were predicted: 1 where they are
    right, below 1 where they are too extreme. The intercept is that of such a regression with the slope held at 1
    (calibration in the large): 0 where as many cases are positive as predicted, above 0 where more are. Van Calster et
    al. 2019, "Calibration: the Achilles heel of predictive analytics", BMC Medicine 17. Errors are those of a sandwich
    over patients, of whom some may have several cases.

    Args:
        labels: [n] of 0 and 1.
        probabilities: [n] of class 1.
        patients: [n] whose case it is.

    Returns:
        Intercept and slope; the slope is not there where a cut parts the classes without a fault, or all probabilities
        are equal.
    """
    labels = np.asarray(labels, dtype=np.float64)
    odds = _log_odds(np.asarray(probabilities, dtype=np.float64))
    if min((labels == 1).sum(), (labels == 0).sum()) < LEAST_CASES or not np.isfinite(odds).all():
        return NOTHING, NOTHING
    groups = pd.factorize(np.asarray(patients))[0]
    one = np.ones((len(labels), 1))
    intercept = _logistic(one, labels, odds, groups)
    positive, negative = odds[labels == 1], odds[labels == 0]
    if positive.min() >= negative.max() or negative.min() >= positive.max():
        return intercept, NOTHING
    return intercept, _logistic(np.column_stack([one, odds]), labels, np.zeros(len(labels)), groups)


def recalibration(labels: ArrayLike, probabilities: ArrayLike) -> tuple[float, float]:
    """Intercept and slope of a logistic regression of the outcome on the log odds that were predicted.

    The inverse logit of ``intercept + slope x log odds`` is the recalibrated probability (Steyerberg 2019, "Clinical
    prediction models", chapter 20).

    Args:
        labels: [n] of 0 and 1.
        probabilities: [n] of class 1.

    Returns:
        NaN for both where there are fewer than `LEAST_CASES` of either class, or a cut parts them without a fault.
    """
    labels = np.asarray(labels, dtype=np.float64)
    odds = _log_odds(np.asarray(probabilities, dtype=np.float64))
    positive, negative = odds[labels == 1], odds[labels == 0]
    if min(len(positive), len(negative)) < LEAST_CASES or not np.isfinite(odds).all():
        return math.nan, math.nan
    if positive.min() >= negative.max() or negative.min() >= positive.max():
        return math.nan, math.nan
    found = _newton(np.column_stack([np.ones(len(odds)), odds]), labels, np.zeros(len(odds)))
    return (math.nan, math.nan) if found is None else (float(found[0][0]), float(found[0][1]))


def recalibrated(probabilities: ArrayLike, intercept: float, slope: float) -> Floats:
    """Probabilities [n] after `recalibration`."""
    found: Floats = 1 / (1 + np.exp(-(intercept + slope * _log_odds(np.asarray(probabilities, dtype=np.float64)))))
    return found


def _log_odds(probabilities: Floats) -> Floats:
    kept = np.clip(probabilities, NEAR, 1 - NEAR)
    odds: Floats = np.log(kept) - np.log1p(-kept)
    return odds


def _logistic(design: Floats, labels: Floats, offset: Floats, groups: np.ndarray) -> Line:
    """The last coefficient of a logistic regression."""
    found = _newton(design, labels, offset)
    if found is None:
        return NOTHING
    coefficients, information = found
    each = design * (labels - 1 / (1 + np.exp(-(design @ coefficients + offset))))[:, None]
    of_patients = np.zeros((groups.max() + 1, design.shape[1]))
    np.add.at(of_patients, groups, each)
    inverse = np.linalg.inv(information)
    variance = (inverse @ (of_patients.T @ of_patients) @ inverse)[-1, -1]
    return Line(float(coefficients[-1]), float(variance))


def _newton(design: Floats, labels: Floats, offset: Floats) -> tuple[Floats, Floats] | None:
    """Coefficients of a logistic regression by Newton's method with halved steps, and the information; None where they
    are not found."""
    coefficients = np.zeros(design.shape[1])

    def loss(at: Floats) -> float:
        linear = design @ at + offset
        return float(np.logaddexp(0, linear).sum() - labels @ linear)

    for _ in range(_STEPS):
        expected = 1 / (1 + np.exp(-(design @ coefficients + offset)))
        score = design.T @ (labels - expected)
        information = (design * (expected * (1 - expected))[:, None]).T @ design
        try:
            step = np.linalg.solve(information, score)
        except np.linalg.LinAlgError:
            return None
        now, size = loss(coefficients), 1.0
        while loss(coefficients + size * step) > now + 1e-12 * abs(now) and size > 1e-6:
            size /= 2
        coefficients = coefficients + size * step
        if np.abs(size * step).max() < 1e-9 * (1 + np.abs(coefficients).max()):
            return coefficients, information
    return None


def net_benefit(labels: ArrayLike, probabilities: ArrayLike, thresholds: Sequence[float] = THRESHOLDS) -> Floats:
    """Net benefit [T] of acting where the probability is at least a threshold t: (TP - FP t / (1 - t)) / n.

    Vickers & Elkin 2006, "Decision curve analysis", Medical Decision Making 26(6). Acting on nobody has 0.
    """
    labels, probabilities = np.asarray(labels), np.asarray(probabilities, dtype=np.float64)
    found = []
    for threshold in thresholds:
        acted = labels[probabilities >= threshold]
        found.append(((acted == 1).sum() - (acted == 0).sum() * threshold / (1 - threshold)) / len(labels))
    return np.array(found, dtype=np.float64)


def site_trust(predictions: pd.DataFrame) -> dict[str, Trust | None]:
    """Calibration and net benefit of each method at one site; None where a case has several predictions.

    All folds of a seed are taken together, since each patient is tested in one of them; numbers are means over the
    seeds. Predictions of the models of other sites are several: no one would act on these.

    Args:
        predictions: of one site and one kind of run: method, seed, fold, case, subject, label (0 or 1) and score
            (probability of class 1).
    """
    known = predictions[predictions["score"].notna()]
    return {str(method): _of_method(mine) for method, mine in known.groupby("method", sort=False)}


def _of_method(mine: pd.DataFrame) -> Trust | None:
    if mine.duplicated(["seed", "fold", "case"]).any():
        return None
    each = [
        (*calibration_line(of.label, of.score, of.subject), net_benefit(of.label, of.score))
        for _, of in mine.groupby("seed")
    ]
    intercepts, slopes, benefits = zip(*each, strict=True)
    first = mine[mine["seed"] == mine["seed"].iloc[0]]
    return Trust(
        len(first), int((first["label"] == 1).sum()), _mean(intercepts), _mean(slopes), np.mean(benefits, axis=0),
        net_benefit(first["label"], np.ones(len(first))),
    )  # fmt: skip


def _mean(lines: Sequence[Line]) -> Line:
    values = np.array([(one.value, one.variance) for one in lines])
    return Line(*map(float, values.mean(axis=0)))
