import random

import numpy as np
import pytest
import torch

from polyclinic.data.augmentation import INTENSITY, SPATIAL, Augmentation
from polyclinic.errors import StudyError

NEEDED = {
    "RandRotate": {"range_x": 0.5},
    "RandZoom": {"min_zoom": 1.2, "max_zoom": 1.5},
    "RandAffine": {"rotate_range": [0.5], "translate_range": [3, 3]},
    "Rand2DElastic": {"spacing": [5, 5], "magnitude_range": [1, 2]},
    "RandGridDistortion": {"distort_limit": [-0.3, 0.3]},
    "RandScaleIntensity": {"factors": 0.5},
    "RandShiftIntensity": {"offsets": 0.3},
    "RandStdShiftIntensity": {"factors": 0.9},
    "RandBiasField": {"coeff_range": [0.3, 0.5]},
    "RandCoarseDropout": {"holes": 2, "spatial_size": 4},
    "RandCoarseShuffle": {"holes": 2, "spatial_size": 4},
}


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(4, 3, 16, 16, generator=generator)
    return images, (torch.rand(4, 1, 16, 16, generator=generator) > 0.6).to(torch.uint8)


FLAT = [name for name in SPATIAL if name != "Rand3DElastic"]


@pytest.mark.parametrize("name", [*FLAT, *INTENSITY])
def test_every_transform(name, batch):
    images, masks = batch
    before = images.clone()
    augmentation = Augmentation([{name: {"prob": 1.0, **NEEDED.get(name, {})}}], (16, 16))
    new_images, new_masks = augmentation(images, masks, 3)
    assert torch.equal(images, before)
    assert type(new_images) is torch.Tensor
    assert (new_images.shape, new_images.dtype) == (images.shape, torch.float32)
    assert (new_masks.shape, new_masks.dtype) == (masks.shape, torch.uint8)
    assert new_images.min() >= 0
    assert new_images.max() <= 1
    assert set(new_masks.unique().tolist()) <= {0, 1}
    assert not torch.equal(new_images, images)
    assert torch.equal(new_masks, masks) == (name in INTENSITY)
    again, again_masks = augmentation(images, masks, 3)
    assert torch.equal(new_images, again)
    assert torch.equal(new_masks, again_masks)
    alone, nothing = augmentation(images, None, 3)
    assert alone.shape == images.shape
    assert nothing is None


@pytest.mark.parametrize("name", ["RandFlip", "RandRotate90", "RandAffine", "Rand3DElastic", "RandGaussianNoise"])
def test_transforms_of_volumes(name):
    source = torch.Generator().manual_seed(0)
    volumes = torch.randn(2, 2, 12, 12, 12, generator=source) * 5
    masks = torch.randint(0, 4, (2, 1, 12, 12, 12), generator=source, dtype=torch.uint8)
    needed = {**NEEDED, "Rand3DElastic": {"sigma_range": [2, 3], "magnitude_range": [50, 80]}}
    augmentation = Augmentation([{name: {"prob": 1.0, **needed.get(name, {})}}], (12, 12, 12))
    changed, new_masks = augmentation(volumes, masks, 3)
    assert changed.shape == volumes.shape
    assert not torch.equal(changed, volumes)
    # Volumes are of any range: nothing is cut to 0 and 1.
    assert changed.min() < 0
    assert changed.max() > 1
    assert set(new_masks.unique().tolist()) <= {0, 1, 2, 3}
    assert torch.equal(new_masks, masks) == (name in INTENSITY)
    assert torch.equal(changed, augmentation(volumes, masks, 3)[0])


@pytest.mark.parametrize("name", FLAT)
def test_mask_moves_with_its_image(name, batch):
    _, masks = batch
    images = masks.float().expand(4, 3, 16, 16)
    interpolates = name not in ("RandFlip", "RandAxisFlip", "RandRotate90")
    nearest = {"mode": "nearest"} if interpolates else {}
    augmentation = Augmentation([{name: {"prob": 0.7, **NEEDED.get(name, {}), **nearest}}])
    new_images, new_masks = augmentation(images, masks, 1)
    assert not torch.equal(new_masks, masks)
    assert torch.equal(new_images[:, :1], new_masks.float())


def test_flip_by_hand():
    image = torch.tensor([[[[0.0, 0.25], [0.5, 1.0]]]])
    flipped, _ = Augmentation([{"RandFlip": {"prob": 1.0, "spatial_axis": 1}}])(image, None, 0)
    assert flipped.tolist() == [[[[0.25, 0.0], [1.0, 0.5]]]]


def test_seeds(batch):
    augmentation = Augmentation([{"RandGaussianNoise": {"prob": 1.0}}, {"RandShiftIntensity": {"offsets": 0.1}}])
    images = torch.full((4, 1, 8, 8), 0.5)
    first, other = augmentation(images, None, 1)[0], augmentation(images, None, 2)[0]
    assert not torch.equal(first, other)
    assert not torch.equal(first[0], first[1])


def test_no_global_random_state_is_touched(batch):
    from monai.data.meta_obj import get_track_meta

    tracked = get_track_meta()
    states = torch.random.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    Augmentation([{name: {"prob": 1.0, **NEEDED.get(name, {})}} for name in (*FLAT, *INTENSITY)])(*batch, 0)
    assert torch.equal(states[0], torch.random.get_rng_state())
    assert (states[1] == np.random.get_state()[1]).all()  # noqa: NPY002
    assert states[2] == random.getstate()
    assert get_track_meta() == tracked


def test_nothing_to_do(batch):
    images, masks = Augmentation([])(*batch, 0)
    assert torch.equal(images, batch[0])
    assert torch.equal(masks, batch[1])


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("RandFlop", r"P103 'RandFlop' is no image augmentation. Did you mean 'RandFlip'\?"),
        ("Spacing", "P103 'Spacing' is no image augmentation"),
        ({"RandFlip": {"pob": 0.5}}, r"P102 RandFlip has no argument 'pob'. Did you mean 'prob'\?"),
        ({"RandFlip": {"keys": "image"}}, "P102 RandFlip has no argument 'keys'"),
        ({"RandFlip": {"prob": 50}}, "P102 RandFlip has `prob` 50. Give a probability from 0 to 1"),
        ({"RandFlip": {"prob": 0.5, "spatial_axis": 7}}, "P102 RandFlip with `spatial_axis` 7 does not work: "),
        ({"RandAffine": {"rotate_range": [0.1], "mode": "cubicle"}}, "P102 RandAffine with `mode` 'cubicle' does not"),
        ("RandScaleIntensity", "P102 RandScaleIntensity needs the argument 'factors'"),
        ({"RandAffine": {"spatial_size": [8, 8]}}, "it turns images of 24 x 32 pixels into 8 x 8"),
        (
            {"RandRotate90": {"prob": 0.1}},
            "P102 RandRotate90 does not work: it turns images of 24 x 32 pixels into 32 x",
        ),
    ],
)
def test_mistakes_are_found_at_once(entry, message):
    with pytest.raises(StudyError, match=message):
        Augmentation([entry], (24, 32))
