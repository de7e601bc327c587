"""Measures of outlines against MONAI, scikit-learn, and numbers worked by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.ndimage import gaussian_filter
from sklearn import metrics as sklearn_metrics

from polyclinic.errors import StudyError
from polyclinic.tasks.metrics import SEGMENTATION, split_metric
from polyclinic.tasks.segmentation_metrics import (
    hausdorff95,
    lesion_detection,
    metric_columns,
    segmentation_case,
    segmentation_classes,
    surface_dice,
    surface_distance,
)

BASIC = ["dice", "hd95", "sen", "pre"]


def exactly(value, expected):
    """Equal to 1e-12, or both NaN."""
    return value == pytest.approx(expected, abs=1e-12, nan_ok=True)


def square(top, left, size, shape=(20, 20)):
    area = np.zeros(shape, dtype=bool)
    area[top : top + size, left : left + size] = True
    return area


def smooth(seed, shape, level=0.02):
    rng = np.random.default_rng(seed)
    return [gaussian_filter(rng.normal(size=shape), 2) > level for _ in range(2)]


def test_segmentation_by_hand():
    prediction, mask = square(2, 2, 4), square(2, 4, 4)  # 16 pixels each, 8 shared, moved by two columns
    values = segmentation_case(prediction, mask, BASIC)
    assert values == {"dice": 0.5, "hd95": 2.0, "sen": 0.5, "pre": 0.5}
    assert segmentation_case(prediction, mask, ["hd95"], spacing=(1.0, 0.25)) == {"hd95": 0.5}


def test_only_what_is_asked_for_is_given_in_its_order():
    prediction, mask = square(2, 2, 4), square(2, 4, 4)
    for names in (["pre", "dice"], ["nsd"], ["lesion_f1", "hd95"], list(SEGMENTATION)):
        assert list(segmentation_case(prediction, mask, names)) == names


def test_empty_masks():
    nothing, something = square(0, 0, 0), square(3, 3, 5)
    both = segmentation_case(nothing, nothing, SEGMENTATION)
    assert (both["dice"], both["hd95"], both["pre"], both["nsd"], both["lesion_f1"]) == (1.0, 0.0, 1.0, 1.0, 1.0)
    assert math.isnan(both["sen"])
    assert math.isnan(both["lesion_sen"])
    missed = segmentation_case(nothing, something, SEGMENTATION, spacing=(3.0, 4.0))
    worst = {"dice": 0.0, "sen": 0.0, "pre": 0.0, "nsd": 0.0, "lesion_sen": 0.0, "lesion_f1": 0.0}
    assert missed == {**worst, "hd95": 100.0, "assd": 100.0}  # the diagonal of 60 by 80
    invented = segmentation_case(something, nothing, SEGMENTATION)
    assert (invented["dice"], invented["pre"], invented["nsd"], invented["lesion_f1"]) == (0.0, 0.0, 0.0, 0.0)
    assert invented["hd95"] == invented["assd"] == pytest.approx(20 * math.sqrt(2))
    assert both["assd"] == 0.0
    assert math.isnan(invented["sen"])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("shape", [(24, 30), (8, 12, 10)])
@pytest.mark.parametrize("seed", range(4))
def test_hausdorff_is_that_of_monai(shape, seed):
    from monai.metrics import compute_hausdorff_distance

    prediction, mask = smooth(seed, shape)
    spacing = [0.5, 2.0, 1.25][: len(shape)]
    theirs = compute_hausdorff_distance(
        prediction[None, None], mask[None, None], include_background=True, percentile=95, spacing=spacing
    )
    assert hausdorff95(prediction, mask, spacing) == pytest.approx(float(theirs), rel=1e-6)
    assert hausdorff95(mask, prediction, spacing) == hausdorff95(prediction, mask, spacing)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("shape", [(24, 30), (8, 12, 10)])
@pytest.mark.parametrize("tolerance", [0.4, 1.0, 2.0])
def test_surface_dice_is_that_of_monai(shape, tolerance):
    import torch
    from monai.metrics import compute_surface_dice

    for seed in range(3):
        prediction, mask = smooth(seed, shape)
        spacing = [0.5, 2.0, 1.25][: len(shape)]
        pair = [torch.from_numpy(area[None, None]) for area in (prediction, mask)]
        theirs = compute_surface_dice(*pair, [tolerance], include_background=True, spacing=spacing)
        assert surface_dice(prediction, mask, tolerance, spacing) == pytest.approx(float(theirs), abs=1e-6)
        both = segmentation_case(prediction, mask, ["hd95", "nsd"], spacing, tolerance)
        assert both == {
            "hd95": hausdorff95(prediction, mask, spacing), "nsd": surface_dice(prediction, mask, tolerance, spacing),
        }  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("shape", [(24, 30), (8, 12, 10)])
@pytest.mark.parametrize("seed", range(4))
def test_surface_distance_is_that_of_monai(shape, seed):
    from monai.metrics import compute_average_surface_distance

    prediction, mask = smooth(seed, shape)
    spacing = [0.5, 2.0, 1.25][: len(shape)]
    theirs = compute_average_surface_distance(
        prediction[None, None], mask[None, None], include_background=True, symmetric=True, spacing=spacing
    )
    assert surface_distance(prediction, mask, spacing) == pytest.approx(float(theirs), rel=1e-6)
    assert segmentation_case(prediction, mask, ["assd"], spacing) == {
        "assd": pytest.approx(surface_distance(mask, prediction, spacing), rel=1e-12)
    }


def test_surface_distance_by_hand():
    # One row of four pixels and one of two, 3 apart in rows of 2 mm: columns 0 to 3 against 1 to 2, of 1 mm each.
    prediction, mask = np.zeros((6, 6), dtype=bool), np.zeros((6, 6), dtype=bool)
    prediction[1, 0:4], mask[4, 1:3] = True, True
    assert surface_distance(prediction, mask, (2.0, 1.0)) == pytest.approx((4 * 6 + 2 * math.sqrt(37)) / 6)


def test_surface_dice_by_hand():
    # Two squares of 4 by 4 pixels, three columns apart: outlines of 12 pixels each. With a tolerance of 1 pixel the
    # right column of the one (4 pixels) meets the left column of the other, and its neighbours are within 1.
    prediction, mask = square(2, 2, 4), square(2, 5, 4)
    near = [sum(min(abs(c - d) for d in columns) <= 1 for c in (2, 3, 4, 5)) for columns in ((5, 6, 7, 8),)]
    assert near == [2]  # columns 4 and 5 of the prediction
    # Column 5: 4 pixels on the outline, all at distance 0. Column 4: 2 pixels (top and bottom), at distance 1.
    assert surface_dice(prediction, mask, 1.0) == (6 + 6) / 24
    assert surface_dice(prediction, mask, 0.0) == (4 + 4) / 24
    assert surface_dice(prediction, mask, 3.0) == 1.0
    assert surface_dice(prediction, mask, 1.0, spacing=(1.0, 2.0)) == (4 + 4) / 24


def test_surface_dice_of_a_cube_moved_along_one_axis():
    mask, prediction = np.zeros((12, 12, 12), dtype=bool), np.zeros((12, 12, 12), dtype=bool)
    mask[2:8, 2:8, 2:8] = prediction[4:10, 2:8, 2:8] = True
    assert hausdorff95(prediction, mask, (1.5, 1.0, 1.0)) == 3.0
    assert surface_dice(prediction, mask, 3.0, (1.5, 1.0, 1.0)) == 1.0
    assert surface_dice(prediction, mask, 2.9, (1.5, 1.0, 1.0)) < 1.0


@given(arrays(bool, (2, 6, 7)))
def test_dice_is_the_f1_of_the_pixels(areas):
    prediction, mask = areas
    values = segmentation_case(prediction, mask, ["dice", "sen", "pre"])
    if mask.any() or prediction.any():
        assert exactly(values["dice"], sklearn_metrics.f1_score(mask.ravel(), prediction.ravel()))
    if mask.any():
        assert exactly(values["sen"], sklearn_metrics.recall_score(mask.ravel(), prediction.ravel()))
    if prediction.any():
        assert exactly(values["pre"], sklearn_metrics.precision_score(mask.ravel(), prediction.ravel()))


def test_lesions_by_hand():
    mask = square(0, 0, 3) | square(0, 10, 3) | square(10, 0, 3)  # three lesions
    prediction = square(2, 2, 2) | square(1, 11, 1) | square(15, 15, 2) | square(18, 0, 2)  # two touch one, two do not
    lesions = lesion_detection(prediction, mask)
    assert lesions == (3, 2, 4, 2)
    assert lesions.sensitivity == 2 / 3
    assert lesions.f1 == pytest.approx(2 * (2 / 3) * (1 / 2) / (2 / 3 + 1 / 2))


def test_lesions_that_meet_at_an_edge_are_one_but_not_at_a_corner():
    mask = np.zeros((4, 4, 4), dtype=bool)
    mask[0, 0, 0] = mask[0, 1, 1] = True  # share an edge
    assert lesion_detection(mask, mask) == (1, 1, 1, 1)
    mask[1, 2, 2] = True  # shares a corner only
    assert lesion_detection(mask, mask) == (2, 2, 2, 2)


@given(arrays(bool, (2, 8, 8)))
def test_lesion_measures_are_shares_and_one_for_the_reference_itself(areas):
    prediction, mask = areas
    lesions = lesion_detection(prediction, mask)
    assert 0 <= lesions.found <= lesions.there
    assert 0 <= lesions.right <= lesions.marked
    assert 0 <= lesions.f1 <= 1
    assert lesion_detection(mask, mask).f1 == 1.0


# --- several structures

NAMES = ["background", "grey", "white", "fluid"]


def test_columns_of_several_structures():
    assert metric_columns(["dice", "hd95"], NAMES[:2]) == ["dice", "hd95"]
    several = metric_columns(["dice", "hd95"], NAMES[:3])
    assert several == ["dice", "hd95", "dice[grey]", "dice[white]", "hd95[grey]", "hd95[white]"]
    assert [split_metric(name) for name in several[1:3]] == [("hd95", ""), ("dice", "grey")]


def test_several_structures_by_hand():
    prediction, mask = np.zeros((2, 10, 10), dtype=np.uint8)
    mask[:4, :4], mask[6:, 6:] = 1, 2
    prediction[:4, 2:6] = 1  # half of the grey square; no white; no fluid in either
    values = segmentation_classes(prediction, mask, ["dice", "sen"], NAMES)
    assert values["dice[grey]"] == 0.5
    assert values["dice[white]"] == 0.0
    assert values["dice[fluid]"] == 1.0
    assert values["dice"] == pytest.approx(0.5)
    assert values["sen"] == pytest.approx((0.5 + 0.0) / 2)  # not defined for fluid
    assert math.isnan(values["sen[fluid]"])
    assert list(values) == metric_columns(["dice", "sen"], NAMES)


@given(arrays(np.uint8, (2, 5, 6), elements=st.integers(0, 2)))
def test_a_structure_is_scored_as_if_it_were_alone(areas):
    prediction, mask = areas
    values = segmentation_classes(prediction, mask, ["dice", "nsd"], NAMES[:3], (1.0, 2.0), 1.0)
    alone = segmentation_case(prediction == 2, mask == 2, ["dice", "nsd"], (1.0, 2.0), 1.0)
    assert {name: values[f"{name}[white]"] for name in alone} == alone


def test_segmentation_bad_input():
    with pytest.raises(ValueError, match=r"prediction has shape \(20, 20\), but the mask has \(10, 10\)"):
        segmentation_case(square(0, 0, 2), square(0, 0, 2, (10, 10)), ["dice"])
    with pytest.raises(StudyError, match=r"P103 There is no metric 'dise' for this task. Did you mean 'dice'\?"):
        segmentation_case(square(0, 0, 2), square(0, 0, 2), ["dise"])


@pytest.mark.parametrize(("spacing", "tolerance"), [(1.0, 3.0), (0.1, 0.3), (0.7, 2.1), (float(np.float32(0.4)), 1.2)])
def test_what_is_just_at_the_tolerance_is_forgiven_in_any_unit(spacing, tolerance):
    """Of squares three pixels apart no pixel of an outline is further than three from the other outline."""
    mask = np.zeros((20, 20), bool)
    mask[5:8, 5:8] = True
    moved = np.roll(mask, 3, axis=0)
    assert surface_dice(moved, mask, tolerance, [spacing, spacing]) == 1.0
    assert surface_dice(moved, mask, 0.999 * tolerance, [spacing, spacing]) == 0.625  # 6 of 16 are three pixels away
