"""Measures of how well a model outlines structures, in two or three dimensions.

A measure of one case is a number for each structure. A metric that is not defined is NaN.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from polyclinic.tasks.metrics import ENTERED, SEGMENTATION, check_names, class_metric, entered_metrics, entered_value

Floats = NDArray[np.float64]
Booleans = NDArray[np.bool_]

#: Largest distance between outlines that surface Dice forgives, in the unit of the spacing.
TOLERANCE = 2.0
#: Distances that exceed the tolerance by this share of it do so by rounding: headers of images have voxel sizes of 32
#: bits, in which five voxels of 0.4 mm are 2.00000003 mm.
_ROUNDING = 1e-6


def metric_columns(names: Sequence[str], classes: Sequence[str]) -> list[str]:
    """Names of the numbers of a case: the metrics and, with several structures, each metric of each structure.

    Args:
        names: metrics.
        classes: names of the classes, background first.

    >>> metric_columns(["dice"], ["background", "grey", "white"])
    ['dice', 'dice[grey]', 'dice[white]']
    """
    if len(classes) <= 2:
        return list(names)
    return [*names, *(class_metric(metric, name) for metric in names for name in classes[1:])]


def segmentation_classes(
    prediction: ArrayLike,
    mask: ArrayLike,
    names: Sequence[str],
    classes: Sequence[str],
    spacing: Sequence[float] | None = None,
    tolerance: float = TOLERANCE,
    unknown: Collection[int] = (),
) -> dict[str, float]:
    """The metrics ``names`` of one case with several structures: each structure by itself, and their mean.

    The mean leaves out structures for which the metric is not defined.

    Args:
        prediction: class indices, [H, W] or [D, H, W].
        mask: the reference, same shape.
        names: out of ``SEGMENTATION``.
        classes: names of the classes, background first.
        spacing: see ``segmentation_case``.
        tolerance: see ``segmentation_case``.
        unknown: indices of structures that nobody looked for; their metrics are NaN.

    Returns:
        ``metric_columns`` -> value.
    """
    prediction, mask = np.asarray(prediction), np.asarray(mask)
    found = {
        name: dict.fromkeys(names, float("nan"))
        if index in unknown
        else segmentation_case(prediction == index, mask == index, names, spacing, tolerance)
        for index, name in enumerate(classes)
        if index
    }
    values: dict[str, float] = {}
    for metric in names:
        known = [case[metric] for case in found.values() if not np.isnan(case[metric])]
        values[metric] = float(np.mean(known)) if known else float("nan")
    for metric in names:
        values |= {class_metric(metric, name): case[metric] for name, case in found.items()}
    return values


def segmentation_case(
    prediction: ArrayLike,
    mask: ArrayLike,
    names: Sequence[str],
    spacing: Sequence[float] | None = None,
    tolerance: float = TOLERANCE,
) -> dict[str, float]:
    """The metrics ``names`` of one predicted mask; only these are computed.

    ``dice`` is 2 |P and M| / (|P| + |M|), and 1 when both are empty. ``sen`` is |P and M| / |M|, NaN when there is
    nothing to find. ``pre`` is |P and M| / |P|; a prediction that marks nothing gets 1 when there is nothing to find
    and 0 otherwise, so that marking nothing never pays. For ``hd95`` see ``hausdorff95``, for ``assd``
    ``surface_distance``, for ``nsd`` ``surface_dice``, for ``lesion_sen`` and ``lesion_f1`` ``lesion_detection``.

    Args:
        prediction: [H, W] or [D, H, W], true on the foreground.
        mask: the reference, same shape.
        names: out of ``SEGMENTATION``.
        spacing: size of a pixel along each axis; distances are in its unit. Default: pixels.
        tolerance: of ``nsd``, in the unit of ``spacing``.

    Returns:
        Name -> value.

    Raises:
        StudyError: P103, a name is not a segmentation metric.
        ValueError: the shapes differ.
    """
    check_names(names, [*SEGMENTATION, *entered_metrics("segmentation")])
    prediction, mask = np.asarray(prediction, dtype=bool), np.asarray(mask, dtype=bool)
    if prediction.shape != mask.shape:
        raise ValueError(f"prediction has shape {prediction.shape}, but the mask has {mask.shape}")
    marked, there, both = (int(np.count_nonzero(area)) for area in (prediction, mask, prediction & mask))
    values = {
        "dice": 2 * both / (marked + there) if marked + there else 1.0,
        "sen": both / there if there else float("nan"),
        "pre": both / marked if marked else float(there == 0),
    }
    if {"hd95", "assd", "nsd"} & set(names):
        distances = outline_distances(prediction, mask, spacing) if marked and there else None
        worst = _worst(mask, spacing) if marked or there else 0.0
        values["hd95"] = _percentile95(distances, worst)
        values["assd"] = _average(distances, worst)
        values["nsd"] = _within(distances, tolerance, empty=marked + there == 0)
    if "lesion_sen" in names or "lesion_f1" in names:
        lesions = lesion_detection(prediction, mask)
        values |= {"lesion_sen": lesions.sensitivity, "lesion_f1": lesions.f1}
    given = prediction, mask, None if spacing is None else tuple(spacing)
    return {name: entered_value(name, *given) if name in ENTERED else values[name] for name in names}


class Distances(NamedTuple):
    """How far each pixel of an outline is from the nearest one of the other outline.

    Attributes:
        prediction: [p], of the pixels of the prediction's outline.
        mask: [m], of the pixels of the reference's outline.
    """

    prediction: Floats
    mask: Floats


def outline_distances(prediction: Booleans, mask: Booleans, spacing: Sequence[float] | None = None) -> Distances:
    """Distances between the outlines of two masks, neither of them empty.

    The outline of a mask is its foreground pixels with a neighbour (4 in 2-D, 6 in 3-D) outside.
    """
    from scipy import ndimage

    size = np.ones(mask.ndim) if spacing is None else np.asarray(spacing, dtype=np.float64)
    # Outside the box around both masks there is no outline, and nothing to measure.
    box = ndimage.find_objects((prediction | mask).astype(np.int8))[0]
    outlines = [area[box] & ~ndimage.binary_erosion(area[box]) for area in (prediction, mask)]
    to_prediction, to_mask = (ndimage.distance_transform_edt(~outline, sampling=size) for outline in outlines)
    return Distances(to_mask[outlines[0]], to_prediction[outlines[1]])


def hausdorff95(prediction: Booleans, mask: Booleans, spacing: Sequence[float] | None = None) -> float:
    """Hausdorff distance at the 95th percentile, the larger of the two directions.

    This equals MONAI's ``compute_hausdorff_distance(percentile=95)``, in double precision.

    Args:
        prediction: [H, W] or [D, H, W].
        mask: same shape.
        spacing: size of a pixel along each axis, default one.

    Returns:
        A distance in the unit of ``spacing``: 0 when both are empty, and the diagonal of the image when one is.
    """
    return _percentile95(*_measured(prediction, mask, spacing))


def surface_distance(prediction: Booleans, mask: Booleans, spacing: Sequence[float] | None = None) -> float:
    """Average symmetric surface distance: the mean over the pixels of both outlines.

    This equals MONAI's ``compute_average_surface_distance(symmetric=True)``, in double precision.

    Args:
        prediction: [H, W] or [D, H, W].
        mask: same shape.
        spacing: size of a pixel along each axis, default one.

    Returns:
        A distance in the unit of ``spacing``: 0 when both are empty, and the diagonal of the image when one is.

    Source: T. Heimann et al., Comparison and evaluation of methods for liver segmentation from CT datasets, IEEE TMI
    2009.
    """
    return _average(*_measured(prediction, mask, spacing))


def surface_dice(
    prediction: Booleans, mask: Booleans, tolerance: float = TOLERANCE, spacing: Sequence[float] | None = None
) -> float:
    """Share of the pixels of both outlines that lie within ``tolerance`` of the other outline.

    Source: S. Nikolov et al., Clinically applicable segmentation of head and neck anatomy for radiotherapy, JMIR 2021;
    here with pixels of the outline, as in MONAI's ``compute_surface_dice`` without subvoxels, in place of surface
    elements weighted by their area.

    Args:
        prediction: [H, W] or [D, H, W].
        mask: same shape.
        tolerance: in the unit of ``spacing``.
        spacing: size of a pixel along each axis, default one.

    Returns:
        A share: 1 when both are empty, 0 when one is.
    """
    both = prediction.any() and mask.any()
    empty = not (prediction.any() or mask.any())
    return _within(outline_distances(prediction, mask, spacing) if both else None, tolerance, empty=empty)


class Lesions(NamedTuple):
    """How many single lesions there are, and how many were found.

    Attributes:
        there: lesions of the reference.
        found: those of them that the prediction touches.
        marked: lesions of the prediction.
        right: those of them that touch the reference.
    """

    there: int
    found: int
    marked: int
    right: int

    @property
    def sensitivity(self) -> float:
        """Share found, NaN when there is none."""
        return self.found / self.there if self.there else float("nan")

    @property
    def f1(self) -> float:
        """Harmonic mean of the share found and the share of marked ones that are right; 1 when there is no lesion
        and none is marked, 0 when just one of them is so.
        """
        if not self.there or not self.marked:
            return float(self.there == self.marked)
        found, right = self.found / self.there, self.right / self.marked
        return 2 * found * right / (found + right) if found + right else 0.0


def lesion_detection(prediction: Booleans, mask: Booleans) -> Lesions:
    """Single lesions found: a lesion is found when at least one of its pixels is marked.

    A lesion is a connected component; pixels are connected that share a side or an edge (8 neighbours in 2-D, 18 in
    3-D). The share found is the lesion true positive rate, and 1 - ``right / marked`` the lesion false positive rate of
    A. Carass et al., Longitudinal multiple sclerosis lesion segmentation: resource and challenge, NeuroImage 2017.

    Args:
        prediction: [H, W] or [D, H, W].
        mask: same shape.
    """
    from scipy import ndimage

    neighbours = ndimage.generate_binary_structure(mask.ndim, 2)
    both = prediction & mask
    counts = []
    for area in (mask, prediction):
        labels, count = ndimage.label(area, structure=neighbours)
        counts += [int(count), len(np.unique(labels[both]))]
    return Lesions(*counts)


def _measured(
    prediction: Booleans, mask: Booleans, spacing: Sequence[float] | None
) -> tuple[Distances | None, float]:  # fmt: skip
    """Distances between two outlines; where one is missing, what stands for them."""
    if prediction.any() and mask.any():
        return outline_distances(prediction, mask, spacing), 0.0
    return None, _worst(mask, spacing) if prediction.any() or mask.any() else 0.0


def _worst(mask: Booleans, spacing: Sequence[float] | None) -> float:
    """Diagonal of the image."""
    size = np.ones(mask.ndim) if spacing is None else np.asarray(spacing, dtype=np.float64)
    return float(np.linalg.norm(size * mask.shape))


def _average(distances: Distances | None, otherwise: float) -> float:
    return otherwise if distances is None else float(np.concatenate(distances).mean())


def _percentile95(distances: Distances | None, otherwise: float) -> float:
    if distances is None:
        return otherwise
    return float(max(np.percentile(distances.prediction, 95), np.percentile(distances.mask, 95)))


def _within(distances: Distances | None, tolerance: float, *, empty: bool) -> float:
    if distances is None:
        return float(empty)
    near = sum(int(np.count_nonzero(one <= tolerance * (1 + _ROUNDING))) for one in distances)
    return near / sum(map(len, distances))
