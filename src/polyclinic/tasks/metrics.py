"""The metrics of all tasks by name, how well a model classifies cases, and the choice of a decision threshold.

Outlines are measured in `polyclinic.tasks.segmentation_metrics`, reconstructed images in
`polyclinic.tasks.reconstruction_metrics`, numbers in `polyclinic.tasks.regression_metrics`, and survival in
`polyclinic.tasks.survival_metrics`.

Every classification metric has one formula, written for weighted cases and many sets of weights at once
(``weighted_metrics``): the metric itself is the formula with weights of one, and the bootstrap of
``polyclinic.statistics.intervals`` is the same formula with the number of times each patient was drawn.
A metric that is not defined (a class is missing, there are no cases) is NaN, never a warning or an exception.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from polyclinic.errors import PartError, StudyError, nearest
from polyclinic.origins import of_module, said

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Booleans = NDArray[np.bool_]

CLASSIFICATION = ("auc", "acc", "bac", "sen", "spe", "f1", "ap", "brier", "ece")
SEGMENTATION = ("dice", "hd95", "assd", "sen", "pre", "nsd", "lesion_sen", "lesion_f1")
REGRESSION = ("mae", "rmse", "r2", "r")
RECONSTRUCTION = ("psnr", "ssim", "nmse")
SURVIVAL = ("concordance", "uno", "brier", "ibs")

#: Equal-width bins of confidence for the calibration error, as in Guo et al. 2017.
CALIBRATION_BINS = 15


class Metric(NamedTuple):
    """What a reader of a report needs to know about a metric."""

    title: str
    meaning: str
    higher_is_better: bool
    unit: str
    """Empty for a number without a unit."""
    range: tuple[float, float] = (0.0, 1.0)
    """Least and largest value."""


_UNBOUNDED = (0.0, float("inf"))


#: The metrics by name; a task of its own adds those it has.
METRICS = {
    "auc": Metric(
        "Area under the ROC curve",
        "Probability that a diseased case gets a higher score than a healthy one; 0.5 is chance, 1 is perfect.",
        True,
        "",
    ),
    "acc": Metric("Accuracy", "Share of all cases that are classified correctly.", True, ""),
    "bac": Metric(
        "Balanced accuracy",
        "Share classified correctly, averaged over the classes so that each counts the same however rare it is.",
        True,
        "",
    ),
    "sen": Metric("Sensitivity", "Share of the diseased cases (or of the lesion's pixels) that is found.", True, ""),
    "spe": Metric("Specificity", "Share of the healthy cases that is called healthy.", True, ""),
    "f1": Metric(
        "F1 score",
        "Balance between finding the diseased cases and not calling healthy cases diseased (harmonic mean).",
        True,
        "",
    ),
    "ap": Metric(
        "Average precision",
        "Share of truly diseased among the cases called diseased, averaged over thresholds; chance is the prevalence.",
        True,
        "",
    ),
    "brier": Metric(
        "Brier score",
        "Mean squared distance between the predicted probabilities and what was true; 0 is perfect.",
        False,
        "",
        (0.0, 2.0),
    ),
    "ece": Metric(
        "Expected calibration error",
        "How far the stated confidence is from the share of correct answers, on average; 0 is perfect.",
        False,
        "",
    ),
    "dice": Metric(
        "Dice overlap", "Overlap of the predicted outline with the reference; 0 is none, 1 is perfect.", True, ""
    ),
    "hd95": Metric(
        "Hausdorff distance, 95th percentile",
        "Distance within which 95 % of either outline lies from the other one; 0 is perfect.",
        False,
        "pixels",
        _UNBOUNDED,
    ),
    "assd": Metric(
        "Average surface distance",
        "How far the outlines are from each other, as the mean over the points of both; 0 is perfect.",
        False,
        "pixels",
        _UNBOUNDED,
    ),
    "pre": Metric("Precision", "Share of the pixels marked by the model that belong to the lesion.", True, ""),
    "nsd": Metric(
        "Surface Dice",
        "Share of both outlines that lies within the tolerance of the other one; 1 is perfect.",
        True,
        "",
    ),
    "lesion_sen": Metric("Lesion sensitivity", "Share of the single lesions that the model touches.", True, ""),
    "lesion_f1": Metric(
        "Lesion F1 score",
        "Balance between finding single lesions and not marking places without one (harmonic mean).",
        True,
        "",
    ),
    "mae": Metric(
        "Mean absolute error",
        "How far a prediction is from the truth, on average; 0 is perfect.",
        False,
        "",
        _UNBOUNDED,
    ),
    "rmse": Metric(
        "Root mean squared error",
        "The same with large errors counted more; never below the mean absolute error.",
        False,
        "",
        _UNBOUNDED,
    ),
    "r2": Metric(
        "Coefficient of determination",
        "Share of the differences between cases that is explained; 0 is what the mean of the cases would reach.",
        True,
        "",
        (float("-inf"), 1.0),
    ),
    "r": Metric(
        "Pearson correlation",
        "How well predictions follow the truth along a straight line; 1 is perfect.",
        True,
        "",
        (-1.0, 1.0),
    ),
    "psnr": Metric(
        "Peak signal-to-noise ratio",
        "How far the largest value of an image lies above the reconstruction’s error, on a logarithmic scale.",
        True,
        "dB",
        (float("-inf"), float("inf")),
    ),
    "ssim": Metric(
        "Structural similarity",
        "How alike reconstruction and image are in means, contrasts and structure of small windows; 1 is perfect.",
        True,
        "",
        (-1.0, 1.0),
    ),
    "nmse": Metric(
        "Normalised mean squared error",
        "Squared error of the reconstruction as a share of the squares of the image; 0 is perfect.",
        False,
        "",
        _UNBOUNDED,
    ),
    "concordance": Metric(
        "Concordance",
        "Probability that of two cases of a site the one with the earlier event was given the higher risk (Harrell’s "
        "C); 0.5 is chance, 1 is perfect.",
        True,
        "",
    ),
    "uno": Metric(
        "Uno’s concordance",
        "The same, corrected for how long cases were seen, up to the last of the study’s times; 0.5 is chance.",
        True,
        "",
    ),
    "ibs": Metric(
        "Integrated Brier score",
        "Squared difference between the predicted probability of survival and what was true, averaged from the first "
        "to the last of the study’s times; 0 is perfect.",
        False,
        "",
    ),
}


class Judged(NamedTuple):
    """Cases that a metric is computed of.

    Attributes:
        labels: ``[n]``, class indices or true numbers.
        predicted: probabilities ``[n, C]``, or predicted numbers ``[n]``.
        decided: predicted class indices ``[n]``; None of numbers.
        weights: ``[n]``, how often each case counts; a bootstrap draws cases several times, or not at all.
    """

    labels: NDArray[Any]
    predicted: Floats
    decided: Integers | None
    weights: Floats


#: A function that gives a metric, NaN where it is not defined: of `Judged`; for segmentation of the predicted and the
#: true mask of one structure of a case (both bool ``[H, W]`` or ``[D, H, W]``) and the sizes of a pixel or None.
MetricFunction = Callable[..., float]
#: Metrics that were entered besides those of the tasks themselves: name -> task and function.
ENTERED: dict[str, tuple[str, MetricFunction]] = {}


def enter_metric(
    name: str, task: str, title: str, meaning: str, *, higher_is_better: bool, unit: str = "",
    range: tuple[float, float] = (0.0, 1.0),  # noqa: A002 - as `Metric` has it
) -> Callable[[MetricFunction], MetricFunction]:  # fmt: skip
    """Decorator that enters a metric of a task under ``name``; see `MetricFunction`, and `Metric` for what is told.

    Raises:
        ValueError: the name is taken or is none, or the task has no metrics of others.
    """

    def enter(function: MetricFunction) -> MetricFunction:
        if name in METRICS:
            raise ValueError(f"there is a metric {name!r} already")
        if not name.isidentifier():
            raise ValueError(f"{name!r} is no name for a metric: it has letters, digits and underscores")
        if task not in ("classification", "regression", "segmentation"):
            raise ValueError(f"metrics can be entered for classification, regression and segmentation, not for {task}")
        METRICS[name] = Metric(title, meaning, higher_is_better, unit, range)
        ENTERED[name] = task, function
        return function

    return enter


def entered_metrics(task: str) -> list[str]:
    """Names of the metrics that were entered for a task besides its own."""
    return [name for name, (of, _) in ENTERED.items() if of == task]


def own_metrics(names: Sequence[str]) -> list[str]:
    """Those of ``names`` that are a task's own."""
    return [name for name in names if name not in ENTERED]


def entered_value(name: str, *given: object) -> float:
    """What the function of an entered metric gives.

    Raises:
        PartError: P304, it fails, or gives no number.
    """
    function = ENTERED[name][1]
    whose = of_module(function.__module__) or "the program that calls Polyclinic"
    try:
        found = float(function(*given))
    except Exception as error:  # it is code of others
        raise PartError("P304", f"The metric {name} of {_lower(whose)} failed: {said(error)}.",
                        "It must give a number, NaN where it is not defined.") from error  # fmt: skip
    return found


def entered_values(names: Sequence[str], cases: Judged, weights: Floats) -> dict[str, Floats]:
    """Entered metrics under B sets of weights ``[n, B]``: name -> ``[B]``."""
    found = {name: np.full(weights.shape[1], np.nan) for name in names}
    for column, own in enumerate(weights.T if len(weights) else []):
        there = own > 0  # a case that was not drawn may not make a class seem to be there
        if not there.any():
            continue
        decided = None if cases.decided is None else cases.decided[there]
        given = Judged(cases.labels[there], cases.predicted[there], decided, own[there])
        if not np.isfinite(given.predicted).all():  # of a model that broke down
            continue
        for name in names:
            found[name][column] = entered_value(name, given)
    return found


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


#: What those mean where there are more than two classes, none of which is the diseased one.
SEVERAL_CLASSES = {
    "auc": "Probability that a case of a class gets a higher score for it than a case of another class, averaged over "
    "the classes; 0.5 is chance, 1 is perfect.",
    "sen": "Share of the cases of a class that is found, averaged over the classes (the same as balanced accuracy).",
    "spe": "Share of the cases of other classes that is not taken for a class, averaged over the classes.",
    "f1": "Balance between finding the cases of a class and not taking others for it (harmonic mean), averaged over "
    "the classes.",
    "ap": "Share of truly its cases among those taken for a class, averaged over thresholds and classes; chance is the "
    "mean share of a class.",
    "brier": "Squared distance between the predicted probabilities and what was true, summed over the classes, as the "
    "mean over the cases; 0 is perfect, 2 the worst.",
}

#: What stands in brackets behind a metric of images without a network, see `polyclinic.tasks.reconstruction`.
ZERO_FILLED = "zero-filled"

#: Metrics that are distances: in millimetres where the size of a voxel is known, else in pixels.
DISTANCES = ("hd95", "assd")


def class_metric(metric: str, name: str) -> str:
    """Name of a metric of one class: ``dice[hippocampus]``."""
    return f"{metric}[{name}]"


def split_metric(name: str) -> tuple[str, str]:
    """``dice[hippocampus]`` as ``("dice", "hippocampus")``, and ``dice`` as ``("dice", "")``."""
    metric, bracket, rest = name.partition("[")
    return (metric, rest.removesuffix("]")) if bracket else (name, "")


def value_range(name: str) -> tuple[float, float]:
    """Least and largest value of a metric."""
    known = METRICS.get(split_metric(name)[0])
    return known.range if known else (0.0, 1.0)


def metric_text(name: str, value: float, places: int = 3) -> str:
    """A value of a metric, or a difference of two, for people: a dash where it is not a number.

    It has ``places`` decimals, and one from ten on. What has no upper end depends on a unit, so small values of it keep
    their first digits: an error of 0.00004 litres is not 0.000, which would be perfect.

    >>> metric_text("auc", 0.00004), metric_text("mae", 0.00004123), metric_text("mae", 12.34)
    ('0.000', '4.12e-05', '12.3')
    """
    if not np.isfinite(value):
        return "–"
    if 0 < abs(value) < 10 ** (1 - places) and np.isinf(value_range(name)[1]):
        return f"{value:.{places}g}"
    return f"{value:.{places}f}" if abs(value) < 10 else f"{value:.1f}"


def auc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Area under the ROC curve: the share of (negative, positive) pairs in the right order, ties counted half.

    This is the Mann-Whitney statistic, exact to the last bit, in O(n log n).

    Args:
        labels: [n] of 0 and 1.
        scores: [n], higher for the positive class.

    Returns:
        A number in [0, 1], or NaN when a class is missing or a score is NaN.
    """
    labels, scores = np.asarray(labels), np.asarray(scores)
    positive = scores[labels == 1]
    negative = np.sort(scores[labels == 0])
    pairs = len(positive) * len(negative)
    if pairs == 0 or np.isnan(scores).any():
        return float("nan")
    below, below_or_equal = negative.searchsorted(positive, "left"), negative.searchsorted(positive, "right")
    return float(int(below.sum()) + int(below_or_equal.sum())) / (2 * pairs)


def classification_metrics(
    labels: ArrayLike, probabilities: ArrayLike, names: Sequence[str], threshold: float | Floats = 0.5
) -> dict[str, float]:
    """The metrics ``names`` of a classifier's predictions; ``weighted_metrics`` with every case counted once.

    Args:
        labels: [n] class indices.
        probabilities: [n, C] with rows that sum to one.
        names: out of ``CLASSIFICATION``.
        threshold: in binary tasks, the probability of class 1 from which a case is called positive, or one for
            each case, [n].

    Returns:
        Name -> value, NaN where it is not defined.

    Raises:
        StudyError: P103, a name is not a classification metric.
    """
    probabilities = np.asarray(probabilities, dtype=np.float64)
    values = weighted_metrics(labels, probabilities, np.ones((len(probabilities), 1)), names, threshold)
    return {name: float(value[0]) for name, value in values.items()}


def weighted_metrics(
    labels: ArrayLike,
    probabilities: ArrayLike,
    weights: Floats,
    names: Sequence[str],
    threshold: float | Floats = 0.5,
) -> dict[str, Floats]:
    """Classification metrics under B sets of case weights; an integer weight is a case that occurs that often.

    With two classes, class 1 is positive and a case is called positive when its probability is at least the
    threshold. With more, a case is given the class with the highest probability.

    ========= ============================================ =====================================================
    name      two classes                                  more classes
    ========= ============================================ =====================================================
    ``auc``   Mann-Whitney, ties half                      mean over one class against the rest, classes with both
    ``acc``   share correct                                the same
    ``bac``   mean recall over the classes present         the same
    ``sen``   recall of class 1                            mean recall over the classes present (equals ``bac``)
    ``spe``   recall of class 0                            mean, over the classes present, of one against the rest
    ``f1``    2 TP / (2 TP + FP + FN) of class 1           mean over the classes present or predicted
    ``ap``    sum of precision times step of recall        mean over one class against the rest, classes present
    ``brier`` mean of (p1 - y)^2, in [0, 1]                mean of the *sum* over classes of (p - y)^2, in [0, 2]
    ``ece``   Guo et al. 2017, "On calibration of modern neural networks": confidence is the highest probability,
              in 15 equal bins (a, b]; mean over cases of |share correct - mean confidence| of their bin. It judges
              probabilities, so the threshold plays no part (two classes: 0.5 counts as class 1).
    ========= ============================================ =====================================================

    Of cases of one class ``auc``, ``bac``, ``f1``, ``ap`` and, with more than two classes, ``sen`` and ``spe`` are not
    defined: an F1 of 0, an average precision of 1 or the recall of one class as ``bac`` would say nothing of the model,
    and must not enter a mean over folds or sites (Forman & Scholz 2010, "Apples-to-apples in cross-validation studies",
    SIGKDD Explorations 12(1)).

    Args:
        labels: [n] class indices.
        probabilities: [n, C].
        weights: [n, B], not negative.
        names: out of ``CLASSIFICATION``.
        threshold: see ``classification_metrics``.

    Returns:
        Name -> [B] values, NaN where it is not defined; all of them where a probability is NaN.

    Raises:
        StudyError: P103, a name is not a classification metric.
    """
    check_names(names, CLASSIFICATION)
    labels, probabilities = np.asarray(labels), np.asarray(probabilities, dtype=np.float64)
    if len(labels) == 0:
        return {name: np.full(weights.shape[1], np.nan) for name in names}
    classes = np.arange(probabilities.shape[1])
    truth = labels[:, None] == classes
    values: dict[str, Floats] = {}
    with np.errstate(divide="ignore", invalid="ignore"):
        if not {"auc", "ap"}.isdisjoint(names):
            values |= _ranking_metrics(truth, probabilities, weights)
        if not {"acc", "bac", "sen", "spe", "f1"}.isdisjoint(names):
            if np.isnan(probabilities).any():  # of a model that broke down: it has called no case anything
                values |= dict.fromkeys(("acc", "bac", "sen", "spe", "f1"), np.full(weights.shape[1], np.nan))
            else:
                values |= _decision_metrics(truth, decide(probabilities, threshold)[:, None] == classes, weights)
        if "brier" in names:
            values["brier"] = _mean(brier_scores(labels, probabilities), weights)
        if "ece" in names:
            values["ece"] = _calibration_error(labels, probabilities, weights)
    return {name: values[name] for name in names}


def brier_scores(labels: Integers, probabilities: Floats) -> Floats:
    """Squared distance of each case, [n], as ``weighted_metrics`` has it."""
    squares = (probabilities - (labels[:, None] == np.arange(probabilities.shape[1]))) ** 2
    scores: Floats = squares[:, 1] if probabilities.shape[1] == 2 else squares.sum(axis=1)
    return scores


def check_names(names: Sequence[str], valid: Sequence[str]) -> None:
    """Stop where a name is not among the ``valid`` ones.

    Raises:
        StudyError: P103 with the nearest name.
    """
    for name in names:
        if name not in valid:
            raise StudyError("P103", f"There is no metric {name!r} for this task.", nearest(name, list(valid)))


def decide(probabilities: Floats, threshold: float | Floats) -> Integers:
    """The class given to each case, [n]."""
    binary = probabilities.shape[1] == 2
    decided: Integers = (probabilities[:, 1] >= threshold).astype(np.int64) if binary else probabilities.argmax(axis=1)
    return decided


def _mean(values: Floats, weights: Floats) -> Floats:
    """Weighted mean of [n] values: [B]."""
    mean: Floats = (values @ weights) / weights.sum(axis=0)
    return mean


def _mean_defined(values: Floats, defined: Booleans) -> Floats:
    """Mean over the first axis of the entries where ``defined``, NaN where there are none: [C, B] -> [B]."""
    mean: Floats = np.where(defined, values, 0.0).sum(axis=0) / defined.sum(axis=0)
    return mean


def _decision_metrics(truth: Booleans, decided: Booleans, weights: Floats) -> dict[str, Floats]:
    """Metrics of the confusion table, from one-hot classes [n, C]."""
    support, called, hits = (mark.T.astype(np.float64) @ weights for mark in (truth, decided, truth & decided))
    return decision_metrics(weights.sum(axis=0), support, called, hits)


def decision_metrics(total: Floats, support: Floats, called: Floats, hits: Floats) -> dict[str, Floats]:
    """``acc``, ``bac``, ``sen``, ``spe`` and ``f1``, see ``weighted_metrics``.

    Args:
        total: cases, [B].
        support, called, hits: of each class the cases that are of it, that are called it, and both, [C, B].
    """
    present = support > 0
    several = present.sum(axis=0) > 1
    recall = hits / support
    specificity = (total - support - called + hits) / (total - support)
    overlap = 2 * hits / (support + called)
    balanced = np.where(several, _mean_defined(recall, present), np.nan)
    shared = {"acc": hits.sum(axis=0) / total, "bac": balanced}
    if len(support) == 2:
        return shared | {"sen": recall[1], "spe": recall[0], "f1": np.where(several, overlap[1], np.nan)}
    return shared | {
        "sen": balanced,
        "spe": _mean_defined(specificity, present & (support < total)),
        "f1": np.where(several, _mean_defined(overlap, support + called > 0), np.nan),
    }


def _ranking_metrics(truth: Booleans, probabilities: Floats, weights: Floats) -> dict[str, Floats]:
    """Area under the ROC curve and average precision, of class 1 or as the mean over one class against the rest."""
    classes = [1] if truth.shape[1] == 2 else range(truth.shape[1])
    pairs = [area_and_precision(truth[:, k], probabilities[:, k], weights) for k in classes]
    area, precision = (np.stack(values) for values in zip(*pairs, strict=True))
    return {"auc": mean_known(area), "ap": mean_known(precision)}


def mean_known(values: Floats) -> Floats:
    """Mean over the first axis, leaving out NaN; NaN where all are: [C, B] -> [B]."""
    return _mean_defined(values, ~np.isnan(values))


def area_and_precision(positive: Booleans, scores: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """Area under the ROC curve [B] and average precision [B] of one class, [n] against the rest, with weights [n, B].

    The weight of positives (hits) and of negatives (alarms) is summed down the list of cases from the highest score
    and read where the score changes, so that tied cases are passed together.
    """
    if np.isnan(scores).any():
        undefined = np.full(weights.shape[1], np.nan)
        return undefined, undefined
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    last_of_ties = np.append(np.flatnonzero(ordered[1:] != ordered[:-1]), len(ordered) - 1)
    ranked = weights[order]
    passed = np.cumsum(ranked, axis=0)[last_of_ties]
    hits = np.cumsum(ranked * positive[order][:, None], axis=0)[last_of_ties]
    alarms = passed - hits
    positives, negatives = hits[-1], alarms[-1]
    new_hits = np.diff(hits, axis=0, prepend=0)
    new_alarms = np.diff(alarms, axis=0, prepend=0)
    area = (new_alarms * (hits - new_hits / 2)).sum(axis=0) / (positives * negatives)
    # Nothing passed means no hits either: the step is nought whatever the precision.
    precision = hits / np.where(passed > 0, passed, 1.0)
    return area, np.where(negatives > 0, (new_hits * precision).sum(axis=0) / positives, np.nan)


def _calibration_error(labels: Integers, probabilities: Floats, weights: Floats) -> Floats:
    error: Floats = np.abs(calibration_gaps(labels, probabilities, weights)).sum(axis=0) / weights.sum(axis=0)
    return error


def calibration_gaps(labels: Integers, probabilities: Floats, weights: Floats) -> Floats:
    """In each bin of confidence the cases that are right minus the sum of their confidence, [bins, B]."""
    bins, gaps = calibration_cases(labels, probabilities)
    found: Floats = ((bins[:, None] == np.arange(CALIBRATION_BINS)) * gaps[:, None]).T @ weights
    return found


def calibration_cases(labels: Integers, probabilities: Floats) -> tuple[Integers, Floats]:
    """The bin of confidence of each case [n], and 1 or 0 for right or wrong minus its confidence [n]."""
    confidence = probabilities.max(axis=1)
    bins = np.clip(np.ceil(confidence * CALIBRATION_BINS) - 1, 0, CALIBRATION_BINS - 1).astype(np.int64)
    return bins, (decide(probabilities, 0.5) == labels) - confidence


@cache
def threshold_grid() -> Floats:
    """The thresholds among which ``choose_threshold`` chooses: [T] probabilities, evenly spaced on the logit scale.

    They are the sigmoid of -8 to 8 in steps of 1/40, the same at every site, so that counts can be added. Read-only.
    """
    grid: Floats = 1 / (1 + np.exp(-np.linspace(-8, 8, 641)))
    grid.flags.writeable = False
    return grid


def threshold_counts(labels: ArrayLike, scores: ArrayLike) -> Integers:
    """How many negatives and positives fall between the thresholds of the grid: what a site sends, instead of scores.

    Counts of several sites may be added.

    Args:
        labels: [n] of 0 and 1.
        scores: [n] probabilities of class 1.

    Returns:
        [2, T + 1]; entry [y, t] counts the cases of class y whose score reaches exactly t of the T thresholds.
    """
    columns = len(threshold_grid()) + 1
    reached = threshold_grid().searchsorted(np.asarray(scores, dtype=np.float64), "right")
    flat = np.bincount(np.asarray(labels, dtype=np.int64) * columns + reached, minlength=2 * columns)
    return flat.reshape(2, columns).astype(np.int64)


def choose_threshold(counts: Integers) -> float:
    """The threshold of the grid with the highest balanced accuracy (Youden's index).

    Where neighbouring thresholds are equally good, the middle one of them is taken; where there are several such
    plateaus, the one whose middle is nearest to 0.5 on the logit scale.

    Args:
        counts: [2, T + 1] from ``threshold_counts``, of one site or added over sites.

    Returns:
        A probability; 0.5 when a class is missing.
    """
    negatives, positives = (int(total) for total in counts.sum(axis=1))
    if negatives == 0 or positives == 0:
        return 0.5
    called_negative = counts.cumsum(axis=1)[:, :-1]
    # Sensitivity + specificity, times both class sizes: whole numbers, so that ties are exact.
    merit = called_negative[0] * positives + (positives - called_negative[1]) * negatives
    best = np.flatnonzero(merit == merit.max())
    plateaus = np.split(best, np.flatnonzero(np.diff(best) > 1) + 1)
    middles = np.array([(plateau[0] + plateau[-1]) // 2 for plateau in plateaus])
    centre = (len(threshold_grid()) - 1) // 2
    return float(threshold_grid()[middles[np.abs(middles - centre).argmin()]])
