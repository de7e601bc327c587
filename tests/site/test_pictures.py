"""Images and masks as pictures."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from polyclinic.site.pictures import case_pictures, window


def volume(*size):
    return torch.zeros(size, dtype=torch.uint8)


def test_images_are_shown_as_they_are():
    image, mask = torch.randint(0, 256, (3, 5, 6), dtype=torch.uint8), volume(5, 6)
    found = case_pictures(image, mask, mask + 1)
    assert list(found) == ["image", "mask", "prediction"]
    assert torch.equal(found["image"], image)
    assert torch.equal(found["prediction"], mask + 1)


def test_numbers_are_windowed_by_percentiles():
    values = torch.linspace(-50, 50, 1001).view(7, 143)
    values[0, 0] = 1e6  # an outlier must not make the rest black
    grey = window(values)
    assert grey.dtype == torch.uint8
    assert (grey == 0).float().mean() < 0.03
    assert abs(float(grey.float().mean()) - 127.5) < 3
    assert window(torch.full((4, 4), 7.0)).tolist() == [[0] * 4] * 4
    spot = torch.zeros(100, 100)
    spot[5, 5] = 3.0
    assert window(spot)[5, 5] == 255
    assert window(torch.tensor([[float("nan"), 1.0], [2.0, 3.0]])).dtype == torch.uint8
    floats = case_pictures(torch.rand(1, 5, 6), volume(5, 6), volume(5, 6))
    assert floats["image"].dtype == torch.uint8
    assert floats["image"].shape == (1, 5, 6)


def test_three_slices_stand_side_by_side_as_radiologists_see_them():
    # 8 voxels from left to right, 10 from back to front, 6 from bottom to top; a mark at the right, front and top.
    mask = volume(8, 10, 6)
    mask[7, 9, 5] = 1
    found = case_pictures(torch.rand(2, 8, 10, 6), mask, volume(8, 10, 6))
    assert found["planes"].tolist() == [8, 8, 10]
    assert found["image"].shape == (1, 10, 26)
    assert found["mask"].shape == found["prediction"].shape == (10, 26)
    marks = found["mask"].nonzero().tolist()
    # Axial: front up, right on the left. Coronal and sagittal are 6 high, in the middle of 10: top up; the front of
    # the sagittal slice is on its left.
    assert marks == [[0, 0], [2, 8], [2, 16]]


def test_slices_go_through_the_largest_disagreement_else_the_mask_else_the_middle():
    mask, prediction = volume(9, 9, 9), volume(9, 9, 9)
    image = torch.zeros(1, 9, 9, 9)
    image[0, :, :, 4], image[0, :, :, 2], image[0, :, :, 7] = 40.0, 20.0, 70.0
    middle = case_pictures(image, mask, prediction)["image"][0, :, :9]
    mask[1:4, 1:4, 2] = prediction[1:4, 1:4, 2] = 1
    of_mask = case_pictures(image, mask, prediction)
    assert int(of_mask["mask"][:, :9].sum()) == 9
    prediction[6:8, 6:8, 7] = 2
    differs = case_pictures(image, mask, prediction)
    assert int((differs["prediction"][:, :9] == 2).sum()) == 4
    shades = [int(one.max()) for one in (of_mask["image"][0, :, :9], middle, differs["image"][0, :, :9])]
    assert shades[0] < shades[1] < shades[2]


def test_voxels_that_are_no_cubes_are_stretched():
    mask = volume(10, 12, 5)
    found = case_pictures(torch.rand(1, 10, 12, 5), mask, mask, (1.0, 1.0, 3.0))
    assert found["planes"].tolist() == [10, 10, 12]
    assert found["mask"].shape == (15, 32)  # 5 slices of 3 mm


@given(st.tuples(*[st.integers(1, 12)] * 3), st.tuples(*[st.sampled_from([0.5, 1.0, 2.5])] * 3))
def test_every_volume_gives_pictures_of_one_size(size, spacing):
    random = np.random.default_rng(0)
    mask, prediction = (torch.from_numpy(random.integers(0, 3, size, dtype=np.uint8)) for _ in range(2))
    found = case_pictures(torch.rand(1, *size), mask, prediction, spacing)
    assert found["image"].shape[1:] == found["mask"].shape == found["prediction"].shape
    assert int(found["planes"].sum()) == found["mask"].shape[1]
    assert {*found["mask"].unique().tolist()} <= {*mask.unique().tolist(), 0}


def test_the_pictures_are_the_same_whatever_the_axes_point_to():
    source = torch.Generator().manual_seed(0)
    image = torch.rand(1, 6, 8, 10, generator=source)
    mask, prediction = (torch.randint(0, 2, (6, 8, 10), generator=source, dtype=torch.uint8) for _ in range(2))
    as_ras = case_pictures(image, mask, prediction, (1.0, 2.0, 3.0))
    # The same volume stored with axes to superior, left and posterior.
    turned = [one.permute(2, 0, 1).flip(1, 2) for one in (image[0], mask, prediction)]
    again = case_pictures(turned[0][None], turned[1], turned[2], (3.0, 1.0, 2.0), "SLP")
    for name, picture in as_ras.items():
        torch.testing.assert_close(again[name], picture)
