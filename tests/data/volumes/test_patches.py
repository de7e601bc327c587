"""Boxes cut from volumes for training."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from polyclinic.data.corruption import change_cases
from polyclinic.data.spec import Patch
from polyclinic.data.volumes.patches import patch_corners
from polyclinic.data.volumes.store import Volumes
from polyclinic.ignored import IGNORED

SHAPE = (10, 12, 9)


@pytest.fixture(scope="module")
def masks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("masks")
    mask = np.zeros((1, *SHAPE), np.uint8)
    mask[0, 7, 2, 8] = 1  # one voxel of class 1 in a corner, many of class 2
    mask[0, :3, 6:, :4] = 2
    np.save(folder / "0.npy", mask)
    np.save(folder / "1.npy", np.zeros((1, *SHAPE), np.uint8))
    counts = [np.bincount(mask.reshape(-1)).tolist(), [int(np.prod(SHAPE))]]
    return Volumes([folder / "0.npy", folder / "1.npy"], [{"labels": found} for found in counts])


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), share=st.sampled_from([0.0, 0.5, 1.0]), side=st.integers(1, 9))
def test_boxes_lie_within(masks, seed, share, side):
    patch = Patch(size=(side, side, side), foreground=share)
    for corner in patch_corners(masks, torch.tensor([0, 1, 0]), patch, seed):
        assert all(0 <= start <= whole - side for start, whole in zip(corner, SHAPE, strict=True))


def test_a_rare_class_is_seen_as_often_as_a_frequent_one(masks):
    patch = Patch(size=(3, 3, 3), foreground=1.0)
    corners = patch_corners(masks, torch.zeros(400, dtype=torch.int64), patch, 7)
    boxes = masks.crop(torch.zeros(400, dtype=torch.int64), corners, patch.size)
    rare, frequent = ((boxes == number).flatten(1).any(1).float().mean().item() for number in (1, 2))
    # Half each; four standard errors of 400 draws are 0.1.
    assert abs(rare - 0.5) < 0.1
    assert abs(frequent - 0.5) < 0.1


def test_boxes_anywhere_cover_everything(masks):
    patch = Patch(size=(9, 11, 8), foreground=0.0)
    corners = patch_corners(masks, torch.ones(200, dtype=torch.int64), patch, 1)
    assert set(corners) == {(a, b, c) for a in range(2) for b in range(2) for c in range(2)}


def test_the_same_seed_gives_the_same_boxes(masks):
    patch = Patch(size=(4, 4, 4))
    index = torch.tensor([0, 1, 0, 1])
    assert patch_corners(masks, index, patch, 5) == patch_corners(masks, index, patch, 5)
    assert patch_corners(masks, index, patch, 5) != patch_corners(masks, index, patch, 6)


def test_ignored_voxels_are_no_class_to_cut_boxes_around(tmp_path):
    mask = np.full((1, *SHAPE), IGNORED, np.uint8)
    mask[0, 7, 2, 8], mask[0, 0] = 1, 0
    np.save(tmp_path / "0.npy", mask)
    masks = Volumes([tmp_path / "0.npy"], [{"labels": [108, 1]}])
    patch = Patch(size=(3, 3, 3), foreground=1.0)
    assert set(patch_corners(masks, torch.zeros(50, dtype=torch.int64), patch, 3)) == {(6, 1, 6)}
    # Masks that an attack changes are counted anew, without them.
    changed = change_cases(masks, [0], lambda case: case.clone())
    assert changed.about[0]["labels"] == [108, 1]
