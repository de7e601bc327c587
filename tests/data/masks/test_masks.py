"""Which values of a mask are which structure."""

import numpy as np
import pytest
from PIL import Image

from polyclinic.data.masks.classes import MaskClasses
from polyclinic.data.pictures.decode import ImageFiles, decode_images
from polyclinic.data.readers.volume import UnreadableError
from polyclinic.data.spec import DataSpec
from polyclinic.errors import StudyError


def classes(given):
    return MaskClasses.of(DataSpec(mask_classes=given))


def test_without_names_one_number_besides_zero_is_foreground():
    plain = MaskClasses.of(DataSpec())
    assert plain.names == ("background", "foreground")
    assert not plain.several
    assert plain.encode(np.array([0.0, 255.0, 0.0004])).tolist() == [0, 1, 0]
    assert plain.encode(np.array([True, False])).tolist() == [1, 0]


def test_values_named_are_structures_and_others_background():
    atlas = classes({"hippocampus": [17, 53], "amygdala": 18})
    assert atlas.names == ("background", "hippocampus", "amygdala")
    assert atlas.several
    assert atlas.encode(np.array([[0, 17, 53], [18, 1000, -1]])).tolist() == [[0, 1, 1], [2, 0, 0]]
    assert atlas.encode(np.array([17.0, 18.0004])).tolist() == [1, 2]


def test_names_alone_are_the_values_from_one_and_no_other_value_may_be_there():
    tissue = classes(["fluid", "grey", "white"])
    assert tissue.encode(np.array([3, 0, 1, 2], dtype=np.uint8)).tolist() == [3, 0, 1, 2]
    with pytest.raises(UnreadableError, match="mask has a value that is none of `mask_classes`"):
        tissue.encode(np.array([0, 4]))
    with pytest.raises(UnreadableError, match="mask has values that are no whole numbers"):
        tissue.encode(np.array([0.0, 0.5]))
    with pytest.raises(UnreadableError, match="mask has values that are no whole numbers"):
        tissue.encode(np.array([0.0, np.nan]))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "`mask_classes` names no structure or one without a value. Give at least one each."),
        ({"a": []}, "`mask_classes` names no structure or one without a value. Give at least one each."),
        (["a", "a"], "`mask_classes` has 'a' twice. Give each structure a name of its own."),
        ({"a": 1, "b": [2, 1]}, "`mask_classes` has the value 1 twice. A value is one structure."),
        ({"a": 0}, "`mask_classes` has the value 0. Values are above 0, which is the background."),
        (["a[1]"], "`mask_classes` has the name 'a[1]'. Give a name without brackets and commas."),
        (["background"], "`mask_classes` has the name 'background'. Give a name without brackets and commas."),
        ([str(n) for n in range(255)], "`mask_classes` has 255 structures. Up to 254."),
    ],
)
def test_mistakes(given, message):
    with pytest.raises(StudyError) as caught:
        classes(given)
    assert str(caught.value) == f"P102 {message}"


def test_masks_of_image_files(tmp_path):
    values = np.zeros((8, 8), dtype=np.uint8)
    values[:4], values[4:, 4:] = 1, 2
    for name, mask in {
        "grey.png": Image.fromarray(values),
        "deep.png": Image.fromarray(values.astype(np.uint16)),
        "rgb.png": Image.fromarray(np.stack([values] * 3, axis=2)),
        "colour.png": Image.fromarray(np.stack([values, values * 0, values], axis=2)),
        "other.png": Image.fromarray(values + 1),
    }.items():
        mask.save(tmp_path / name)
    Image.new("L", (8, 8)).save(tmp_path / "image.png")
    names = ["grey.png", "deep.png", "rgb.png", "colour.png", "other.png"]
    files = ImageFiles(["image.png"] * 5, names, [tmp_path] * 5)
    _, masks, failures = decode_images(files, (8, 8), "grey", classes=classes(["up", "down"]))
    assert failures == {
        3: "mask has colours, not one value for each structure", 4: "mask has a value that is none of `mask_classes`",
    }  # fmt: skip
    for position in range(3):
        assert np.array_equal(masks[position, 0].numpy(), values)
    _, smaller, _ = decode_images(files, (16, 16), "grey", classes=classes(["up", "down"]))
    assert set(smaller[0].unique().tolist()) == {0, 1, 2}  # no values between classes
