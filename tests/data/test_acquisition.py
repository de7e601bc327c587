"""k-space made from images, and which of its lines are measured."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from helpers import LINES, measured_site
from polyclinic.data.acquisition import acquire, acquisition_notes, case_seeds, measured_lines
from polyclinic.data.augmentation import Augmentation
from polyclinic.data.dataset import Dataset
from polyclinic.data.datasets import dataset_of
from polyclinic.data.scaling import Scaler
from polyclinic.data.spec import Undersampling
from polyclinic.kspace import of_inputs, to_images, to_kspace

SIDES = st.integers(1, 12)


@given(SIDES, SIDES)
@settings(max_examples=30, deadline=None)
def test_the_transform_is_centred_and_orthonormal_whatever_the_sides(height, width):
    image = np.random.default_rng(height * 20 + width).normal(size=(height, width))
    rows, columns = (np.arange(side) - side // 2 for side in (height, width))
    waves = [np.exp(-2j * np.pi * np.outer(n, n) / len(n)) / np.sqrt(len(n)) for n in (rows, columns)]
    found = to_kspace(torch.from_numpy(image))
    np.testing.assert_allclose(found.numpy(), waves[0] @ image @ waves[1].T, atol=1e-12)
    np.testing.assert_allclose(to_images(found).numpy(), image, atol=1e-12)


@given(
    st.integers(8, 200), st.floats(1, 12), st.floats(0, 1), st.sampled_from(["random", "equispaced"]), st.integers(0, 9)
)
@settings(max_examples=60, deadline=None)
def test_there_are_as_many_lines_as_asked_for_and_the_middle_ones_among_them(width, speed, share, lines, seed):
    asked = Undersampling(acceleration=speed, center=share / speed, lines=lines)
    mask = measured_lines(width, asked, seed)
    middle = round(width * asked.center)
    assert set(mask.tolist()) <= {0.0, 1.0}
    assert mask.sum() == max(round(width / speed), middle, 1)
    start = (width - middle + 1) // 2
    assert mask[start : start + middle].all()
    assert torch.equal(mask, measured_lines(width, asked, seed))


def test_lines_far_apart_are_equally_far():
    mask = measured_lines(64, Undersampling(acceleration=4, center=0, lines="equispaced"), 3)
    assert np.diff(mask.nonzero().flatten().numpy()).tolist() == [4] * 15


def test_more_middle_lines_than_lines_are_refused():
    with pytest.raises(ValidationError, match=r"at most 0\.25"):
        Undersampling(acceleration=4, center=0.3)


def test_what_is_acquired_by_hand():
    """Of two columns only the mean is measured: both become it, and the scale is the largest mean."""
    image = torch.tensor([[[[4.0, 2.0], [1.0, 1.0]]]])
    inputs, targets = acquire(image, torch.tensor([[0.0, 1.0]]))  # the lowest frequency lies at 2 // 2
    torch.testing.assert_close(targets[0, 1] * 3, torch.tensor([[3.0, 3.0], [1.0, 1.0]]))
    torch.testing.assert_close(targets[0, 0] * 3, image[0, 0])
    zero_filled, measured = of_inputs(inputs)
    torch.testing.assert_close(zero_filled.abs(), targets[:, 1:])
    assert measured[0, 0].tolist() == [[0.0, 1.0], [0.0, 1.0]]


@pytest.mark.parametrize("shape", [(9, 14), (3, 8, 11)])
def test_all_lines_give_the_image_and_units_play_no_part(shape):
    images = torch.rand(2, 1, *shape) * 4095
    lines = torch.ones(2, shape[-1])
    _, targets = acquire(images, lines)
    torch.testing.assert_close(targets[:, 0], targets[:, 1], rtol=1e-4, atol=1e-5)
    some = torch.stack([measured_lines(shape[-1], LINES, seed) for seed in range(2)])
    for one, other in zip(acquire(images, some), acquire(images / 1000, some), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_a_black_image_stays_black():
    inputs, targets = acquire(torch.zeros(1, 1, 8, 8), torch.ones(1, 8))
    assert inputs[:, :2].abs().sum() == targets.abs().sum() == 0


@pytest.mark.parametrize(("shape", "value"), [((16, 16), 77.0), ((9, 13), 4095.0), ((2, 17, 33), 1e6)])
def test_an_image_of_which_nothing_was_measured_is_in_its_own_unit(shape, value):
    """One value everywhere is in the middle line alone; of the others there is only rounding."""
    lines = torch.ones(1, shape[-1])
    lines[0, shape[-1] // 2] = 0
    inputs, targets = acquire(torch.full((1, 1, *shape), value), lines)
    assert targets[:, 0].unique().tolist() == [1.0]
    assert inputs[:, :2].abs().max() < 1e-5


def test_constant_and_negative_images_are_counted():
    images = torch.zeros(3, 1, 2, 2)
    images[0], images[1, 0, 0] = 7.0, torch.tensor([-1.0, 2.0])
    notes = acquisition_notes("A", images, ["x", "y", "z"])
    assert [(note.number, note.cases) for note in notes] == [("N290", ("x", "z")), ("N291", ("y",))]
    assert notes[0].startswith("Site A: 2 of 3 images")


def dataset(data):
    return dataset_of(data, Scaler.identity(1))


def test_lines_of_a_case_follow_from_its_image_alone():
    data = measured_site("A", 7)
    order = torch.tensor([4, 2, 6, 0, 1, 3, 5])
    names = [f"renamed {place}" for place in range(7)]
    other = replace(data, site="B", inputs=data.inputs[order], targets=data.inputs[order], subjects=names, cases=names)
    one, moved = dataset(data).batch(torch.arange(7)), dataset(other).batch(order.argsort())
    for mine, theirs in zip(one, moved, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)
    assert len({tuple(line.tolist()) for line in one[0][:, 2, 0]}) > 1
    assert case_seeds(data.inputs, 0) != case_seeds(data.inputs, 1)


def test_in_training_lines_are_drawn_anew_and_can_be_repeated():
    found, index = dataset(measured_site("A", 6)), torch.arange(6)
    first, again, other = (found.batch(index, augment=seed)[0][:, 2] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, found.batch(index)[0][:, 2])
    torch.testing.assert_close(found.batch(index)[0], found.batch(index)[0], rtol=0, atol=0)


def test_images_are_changed_before_they_are_measured():
    data = measured_site("A", 4)
    flips = Augmentation([{"RandFlip": {"prob": 1.0, "spatial_axis": 1}}], (16, 16))
    _, targets = dataset_of(data, Scaler.identity(1), flips).batch(torch.arange(4), augment=5)
    shown = targets[:, 0] / targets[:, 0].amax((1, 2), keepdim=True)
    wanted = data.inputs[:, 0].flip(2).float()
    torch.testing.assert_close(shown, wanted / wanted.amax((1, 2), keepdim=True))


def test_a_pool_has_the_cases_of_its_sites():
    sites = [dataset(measured_site(name, cases)) for name, cases in (("A", 4), ("B", 3))]
    pool = Dataset.pool(sites, "pool")
    inputs, targets = pool.batch(torch.tensor([5, 0, 6]))
    assert (pool.shape, len(pool)) == ((3, 16, 16), 7)
    torch.testing.assert_close(inputs[0], sites[1].batch(torch.tensor([1]))[0][0])
    torch.testing.assert_close(targets[1], sites[0].batch(torch.tensor([0]))[1][0])
    assert not torch.equal(pool.batch(torch.tensor([5]), augment=1)[0], pool.batch(torch.tensor([5]))[0])
