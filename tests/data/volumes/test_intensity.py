"""Normalised intensities."""

import numpy as np
import pytest

from polyclinic.data.volumes.intensity import (
    INTENSITIES,
    LANDMARKS,
    Nyul,
    Percentile,
    Window,
    ZScore,
    check_intensity,
    foreground_of,
    landmarks_of,
    otsu_threshold,
)
from polyclinic.options import EntryError, split_entry


def test_zscore_by_hand():
    values = np.array([[[0.0, 2.0, 4.0]]], dtype=np.float32)
    scaled = ZScore(foreground="nonzero")(values, foreground_of(values, "nonzero"))
    # Foreground 2 and 4: mean 3, deviation 1; what is zero stays zero.
    np.testing.assert_allclose(scaled, [[[0.0, -1.0, 1.0]]])
    every = ZScore(foreground="all")(values, foreground_of(values, "all"))
    np.testing.assert_allclose(every, [[[-np.sqrt(1.5), 0.0, np.sqrt(1.5)]]], rtol=1e-6)


def test_a_constant_foreground_becomes_zero():
    values = np.full((2, 2, 2), 7.0, dtype=np.float32)
    assert not ZScore(foreground="all")(values, np.ones(values.shape, bool)).any()


def test_window_by_hand():
    values = np.array([[[-1000.0, -160.0, 40.0, 240.0, 900.0]]], dtype=np.float32)
    np.testing.assert_allclose(Window()(values, values > 0), [[[0.0, 0.0, 0.5, 1.0, 1.0]]])


def test_percentile_by_hand():
    values = np.arange(101, dtype=np.float32).reshape(1, 1, 101)
    scaled = Percentile(lower=10, upper=90)(values, np.ones(values.shape, bool))
    np.testing.assert_allclose(scaled[0, 0, [0, 10, 50, 90, 100]], [0, 0, 0.5, 1, 1], atol=1e-6)


def test_otsu_parts_two_groups():
    source = np.random.default_rng(0)
    values = np.concatenate([source.normal(10, 2, 4000), source.normal(100, 10, 1000)]).astype(np.float32)
    assert 20 < otsu_threshold(values) < 70
    assert otsu_threshold(np.full(5, 3.0, dtype=np.float32)) == 3.0


def test_nyul_puts_its_ends_at_nought_and_one():
    source = np.random.default_rng(0)
    values = source.gamma(2.0, 50.0, (8, 8, 8)).astype(np.float32)
    inside = np.ones(values.shape, bool)
    marks = landmarks_of(Nyul(foreground="all")(values, inside), inside)
    assert len(marks) == len(LANDMARKS)
    np.testing.assert_allclose([marks[0], marks[-1]], [0.0, 1.0], atol=1e-5)
    assert marks == sorted(marks)
    # Another scanner's gain and offset make no difference.
    again = landmarks_of(Nyul(foreground="all")(values * 3 + 11, inside), inside)
    np.testing.assert_allclose(marks, again, atol=1e-5)


@pytest.mark.parametrize("name", list(INTENSITIES))
def test_every_normalisation_keeps_shape_and_gives_numbers(name):
    values = np.random.default_rng(1).normal(100, 30, (4, 5, 6)).astype(np.float32)
    normalise = INTENSITIES[name]()
    where = foreground_of(values, "all")
    found = normalise(values, where)
    assert found.shape == values.shape
    assert found.dtype == np.float32
    assert np.isfinite(found).all()


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        ("zscor", "'zscor' is no intensity normalisation"),
        ({"window": {"lower": 100, "upper": 0}}, "`lower` is 100 and `upper` 0"),
        ({"percentile": {"lower": -1}}, "got -1; expected a number of at least 0"),
        ({"zscore": {"mask": "otsu"}}, "mask"),
    ],
)
def test_a_wrong_entry_gets_its_sentence(entry, sentence):
    with pytest.raises(EntryError, match=sentence):
        check_intensity(entry)


#: Values that are not round in 32 bits, of which one fills the volume: masks as images, saturated and painted images.
FLAT = {
    "two values": [1000.1, 0.0],
    "large": [60_000.7, -60_000.3],
    "tiny difference": [1000.1, 1000.1001],
    "one voxel": [0.1, 3e8],
    "one value": [70_000.1],
}


@pytest.mark.parametrize("entry", [
    *INTENSITIES, *({name: {"foreground": how}} for name in ("zscore", "percentile", "nyul")
                    for how in ("otsu", "nonzero", "all")),
])  # fmt: skip
@pytest.mark.parametrize("values", FLAT.values(), ids=FLAT)
@pytest.mark.parametrize("rare", [0, 1])
def test_a_foreground_of_one_value_stays_finite(entry, values, rare):
    name, options = split_entry(entry, (), "")
    if name == "none":  # kept in 32 bits
        return
    volume = np.full((11, 12, 13), values[rare % len(values)], dtype=np.float32)
    volume[5, 5:8, 5] = values[0 if rare else -1]
    normalise = INTENSITIES[name](**options)
    inside = foreground_of(volume, normalise.foreground)
    found = normalise(volume, inside)
    assert np.isfinite(found.astype(np.float16)).all()
    assert np.isfinite(landmarks_of(found, inside)).all()
    emptied = name == "window" or entry == {"zscore": {"foreground": "nonzero"}}
    if abs(values[0] - values[-1]) > 1 and not emptied:
        assert found.max() > found.min()  # what differs still does


def test_what_is_not_flat_is_normalised_as_before():
    volume = np.random.default_rng(0).normal(1000, 1, (8, 8, 8)).astype(np.float32)
    volume[0, 0, 0] = 0
    scaled = ZScore(foreground="nonzero")(volume, foreground_of(volume, "nonzero"))
    inside = scaled[volume != 0]
    assert abs(inside.mean()) < 1e-3
    assert inside.std() == pytest.approx(1, rel=1e-3)


@pytest.mark.parametrize("name", ["percentile", "nyul"])
def test_a_hot_voxel_does_not_flatten_an_image(name):
    """Percentiles are there for this: the others are spread as they are without it."""
    values = np.random.default_rng(2).normal(500, 100, (20, 20, 20)).astype(np.float32)
    hot = values.copy()
    hot[3, 4, 5] = 1e9
    scaled, expected = (INTENSITIES[name]()(image, np.ones(image.shape, dtype=bool)) for image in (hot, values))
    others = hot != 1e9
    np.testing.assert_allclose(scaled[others], expected[others], atol=0.01)
