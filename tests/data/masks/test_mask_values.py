"""What the values of masks mean: refused where they are no mask's, and what a study can say instead."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from polyclinic.data.masks.classes import MaskClasses
from polyclinic.data.readers.volume import UnreadableError
from polyclinic.data.spec import DataSpec
from polyclinic.errors import StudyError
from polyclinic.ignored import IGNORED
from polyclinic.study.declaration import Declaration

BALL = np.linalg.norm(np.indices((16, 16, 16)) - 7.5, axis=0) <= 5
SOFT = ndimage.gaussian_filter(BALL.astype(np.float32), 1.5)
RIM = (SOFT > 0.05) & ~BALL


def meaning(mask_classes=None, preprocessing=None, **mask):
    return MaskClasses.of(
        DataSpec(mask={"column": "m", **mask}, mask_classes=mask_classes, preprocessing=preprocessing)
    )


MASKS = {
    "nan": (np.where(BALL, 1, np.nan).astype(np.float32), r"NaN.*background: nan", {"background": "nan"}),
    "interpolated": (np.where(SOFT > 1e-3, SOFT, 0), r"no whole numbers.*above: 0.5", {"above": 0.5}),
    "probability": (np.clip(SOFT + 1e-6, 0, 1), r"no whole numbers.*above: 0.5", {"above": 0.5}),
    "minus one": (np.where(BALL, 1, -1).astype(np.int16), r"below 0.*background: -1", {"background": -1}),
    "one and two": (np.where(BALL, 2, 1).astype(np.uint8), r"none is the background.*background: 1", {"background": 1}),
    "soft bytes": ((SOFT * 255).astype(np.uint8), r"grey values.*above: 127", {"above": 127}),
    "many values": (BALL * (7 * np.arange(16**3).reshape(16, 16, 16) + 1000), r"more than 16.*above: 0", {"above": 0}),
}


@pytest.mark.parametrize(("values", "reason", "said"), MASKS.values(), ids=MASKS)
def test_values_that_are_no_mask_s_are_refused_until_the_study_says_what_they_mean(values, reason, said):
    with pytest.raises(UnreadableError, match=f"(?s){reason}"):
        meaning().encode(values)
    found = meaning(**said).encode(values)
    if "above" in said and said["above"] in (0.5, 127):
        assert np.array_equal(found == 1, np.asarray(values, np.float64) > said["above"])
    else:
        assert np.array_equal(found, BALL)


@pytest.mark.parametrize("mark", [255, 254])
def test_ignored_values(mark):
    values = (BALL + mark * RIM).astype(np.uint8)
    with pytest.raises(UnreadableError, match=f"ignore: {mark}"):
        meaning().encode(values)
    found, facts = meaning(ignore=mark).read(values)
    assert np.array_equal(found, np.where(RIM, IGNORED, BALL))
    assert facts.share == pytest.approx(BALL.sum() / (~RIM).sum())
    named = meaning(["ball"], ignore=mark).encode(values)
    assert np.array_equal(named, found)
    with pytest.raises(UnreadableError, match="leaves out everything"):
        meaning(ignore=mark).encode(np.full((2, 2), mark))


def test_what_is_no_number_may_be_ignored_or_background():
    values = np.array([np.nan, 0.0, 1.0])
    assert meaning(ignore="nan").encode(values).tolist() == [IGNORED, 0, 1]
    assert meaning(ignore=float("nan")).encode(values).tolist() == [IGNORED, 0, 1]
    assert meaning(background=["nan", -1]).encode(np.array([np.nan, -1.0, 3.0])).tolist() == [0, 0, 1]
    assert meaning(above=0.5).encode(values).tolist() == [0, 0, 1]
    assert meaning(above=0.5, ignore=["nan", 2]).encode(np.array([np.nan, 0, 1, 2])).tolist() == [
        IGNORED,
        0,
        1,
        IGNORED,
    ]
    assert meaning({"a": 1}, background="nan").encode(values).tolist() == [0, 0, 1]
    for above in (None, 0.5):
        with pytest.raises(UnreadableError, match="infinite"):
            meaning(above=above).encode(np.array([np.inf, 0.0]))


def test_an_inverted_mask():
    assert meaning(background=255).encode(np.array([255, 0, 0], np.uint8)).tolist() == [0, 1, 1]
    assert meaning({"a": 0}, background=255).encode(np.array([255, 0, 7], np.uint8)).tolist() == [0, 1, 0]


@pytest.mark.parametrize("value", [1, 2, 128, 255, 1000, 65535])
@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.uint16, np.int64, np.float32])
def test_one_number_besides_zero_is_the_foreground(value, kind):
    if value > (np.iinfo(kind).max if np.issubdtype(kind, np.integer) else value):
        return
    found, facts = meaning().read((BALL * value).astype(kind))
    assert np.array_equal(found, BALL)
    assert (facts.values, facts.count, facts.share) == ((value,), 1, pytest.approx(BALL.mean()))


@pytest.mark.parametrize("kind", ["int8", "int16", "uint16", "int32", "uint32", "int64", "uint64"])
def test_all_types_of_numbers(kind):
    ends = np.iinfo(kind)
    values = np.array([0, 1, ends.max, max(ends.min, -7)], dtype=kind)
    found = meaning({"a": [1, 7], "b": int(min(ends.max, 2**62))}, ignore=-7).encode(values)
    assert found.tolist() == [0, 1, 2 if ends.max < 2**62 else 0, IGNORED if ends.min else 0]
    with pytest.raises(UnreadableError, match="not of plain numbers"):
        meaning(above=0.5).encode(np.zeros(3, complex))


def test_large_masks_are_read_in_parts():
    values = (np.arange(3_000_001) % 3).astype(np.int16)[::-1]
    assert np.array_equal(meaning(["a", "b"]).encode(values), values)


def test_several_numbers_are_foreground_and_are_told():
    found, facts = meaning().read(np.array([0, 1, 2, 4], np.uint8))
    assert found.tolist() == [0, 1, 1, 1]
    assert (facts.values, facts.count) == ((1, 2, 4), 3)
    cells = np.arange(100, dtype=np.int32)  # single lesions or cells, numbered
    assert meaning().read(cells)[1].count == 99


@given(st.lists(st.integers(-300_000, 300_000), min_size=1, max_size=30), st.sampled_from(["int32", "float64"]))
def test_named_values_are_found_whatever_the_others_are(values, kind):
    array = np.array(values, dtype=kind)
    atlas = meaning({"a": [1, 7], "b": 200_000}, ignore=[-2])
    expected = [{1: 1, 7: 1, 200_000: 2, -2: IGNORED}.get(value, 0) for value in values]
    if all(value == -2 for value in values):
        return
    assert atlas.encode(array).tolist() == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"mask_classes": ["a"], "mask": {"above": 1}}, "`above` of `mask` makes two classes"),
        ({"mask": {"above": 1, "background": -1}}, "`above` of `mask` makes two classes"),
        ({"mask": {"ignore": 0}}, "has the value 0 of the background"),
        ({"mask_classes": {"a": 3}, "mask": {"ignore": 3}}, "which `mask_classes` names"),
        ({"mask_classes": {"a": 3}, "mask": {"background": 3}}, "`mask_classes` has the value 3"),
        ({"mask": {"ignore": "lots"}}, "`ignore` of `mask` has the value 'lots'"),
        ({"mask_classes": {"a": "#ff0000", "b": 3}}, "Values of masks are numbers and colours"),
        ({"mask_classes": ["a"], "mask": {"ignore": "white"}}, "Values of masks are numbers and colours"),
        ({"mask_classes": {"a": "red"}, "mask": {"background": "nan"}}, "A colour is always a number"),
        ({"mask_classes": {"a": "red"}, "mask": {"palette": "index"}}, "`palette: index` means numbers"),
        ({"mask_classes": {"a": "red"}, "preprocessing": {"size": [4, 4, 4]}}, "Masks of volumes have numbers"),
    ],
)
def test_mistakes_in_the_study_file(given, message):
    with pytest.raises(StudyError, match=message):
        MaskClasses.of(DataSpec(**given))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"mask": {"above": "x"}}, "expected a number"),
        ({"mask": {"abov": 1}}, "abov"),
        ({"mask": {"column": "m", "grid": "voxels"}}, "`grid` is for volumes"),
        ({"mask": {"ignore": 0}}, "of the background"),
        ({"mask": "m", "bits": 17}, "at most 16"),
        ({"mask": "m", "size": None, "preprocessing": {"size": [4, 4, 4]}, "bits": 12}, "`bits` is for pictures"),
        (
            {"mask": {"palette": "index"}, "size": None, "preprocessing": {"size": [4, 4, 4]}},
            "`palette` is for pictures",
        ),
    ],
)
def test_mistakes_get_their_place(data, message):
    base = {"table": "t.csv", "site": "s", "image": "i", "size": [8, 8]}
    study = {"study": "x", "task": "segmentation", "data": base | data, "model": "unet", "methods": ["mix"]}
    with pytest.raises(StudyError, match=message):
        Declaration.check(study)
