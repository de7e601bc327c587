"""Plans made from the fingerprints of sites."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyclinic.data.readers.volume import Volume
from polyclinic.data.spec import Preprocessing
from polyclinic.data.volumes.fingerprint import VOXELS, Measured, SiteFingerprint, fingerprint, make_plan, measure


def test_measuring_finds_the_body():
    values = np.zeros((20, 30, 40), np.float32)
    values[5:15, 3:27, 10:30] = 100.0
    # Stored as left, inferior, posterior: along RAS the sides are 10 x 2 mm, 20 x 4 mm and 24 x 3 mm.
    affine = np.array([[-2.0, 0, 0, 0], [0, 0, -4, 0], [0, -3, 0, 0], [0, 0, 0, 1]])
    spacing, extent, hounsfield = measure(Volume(values, affine), Preprocessing(size="auto"))
    assert not hounsfield
    assert spacing == (2.0, 4.0, 3.0)
    assert extent == (20.0, 80.0, 72.0)


def images(cases, spacing, extent):
    """The fingerprint of so many equal images."""
    return fingerprint([Measured(spacing, extent)] * cases)


def test_a_fingerprint_by_hand():
    rows = [
        ((1, 1, 2), (99, 143.1, 9.52)), ((1, 1, 4), (100, 147, 9.5)), ((3.001, 1, 3), (1003, 145, 9.46)),
    ]  # fmt: skip
    one = fingerprint([Measured(*row) for row in rows])
    assert one == SiteFingerprint(
        cases=3,
        spacings=({"1": 2, "3": 1}, {"1": 3}, {"2": 1, "3": 1, "4": 1}),
        # Up to 5 mm above 100 mm, to 0.5 mm below, to 50 mm above a metre.
        extents=({"99": 1, "100": 1, "1050": 1}, {"145": 2, "150": 1}, {"9.5": 2, "9.55": 1}),
    )
    assert one.covered == (1050.0, 150.0, 9.55)


def test_one_image_in_twenty_may_be_larger():
    many = fingerprint([Measured((1, 1, 1), (100, 100, 100))] * 19 + [Measured((1, 1, 1), (400, 100, 100))])
    assert many.covered == (100.0, 100.0, 100.0)
    few = fingerprint([Measured((1, 1, 1), (100, 100, 100))] * 18 + [Measured((1, 1, 1), (400, 100, 100))])
    assert few.covered[0] == 400.0


@settings(max_examples=60, deadline=None)
@given(
    spacings=st.lists(
        st.tuples(*[st.sampled_from([0.0004, 0.5, 0.9375, 1.0, 1.2, 3.0, 5.0])] * 3), min_size=1, max_size=30
    ),
    cut=st.integers(0, 30),
    stretch=st.sampled_from([1.0, 3.7]),
)
def test_sites_together_say_what_all_images_in_one_place_say(spacings, cut, stretch):
    measured = [Measured([stretch * size for size in spacing], (150.0, 150.0, 150.0)) for spacing in spacings]
    parts = [part for part in (measured[:cut], measured[cut:]) if part]
    assert (
        make_plan([fingerprint(part) for part in parts], "masks", "cpu").spacing
        == make_plan([fingerprint(measured)], "masks", "cpu").spacing
    )


def test_a_plan_by_hand():
    small = images(10, (1, 1, 1), (120, 150, 100))
    large = images(30, (2, 2, 4), (160, 190, 160))
    plan = make_plan([small, large], "masks", "cpu")
    # The median of all images is that of the larger site; the grid holds its body: 80 x 95 x 40 voxels, in eights.
    assert plan.spacing == (2.0, 2.0, 4.0)
    assert plan.size == (80, 96, 40)
    # 64³ voxels: the two long sides become sqrt(64³ / 40) = 80.9, so only the second is cut, to eights.
    assert plan.patch == (80, 80, 40)
    assert plan.model == {"unet": {"channels": [16, 32, 64, 128]}}
    assert "40 images of 2 sites" in plan.reason
    assert make_plan([small, large], "masks", "cuda").patch is None
    assert make_plan([small, large], "masks", "cpu", (4, 4, 4)).spacing == (4.0, 4.0, 4.0)


@settings(max_examples=60, deadline=None)
@given(
    sites=st.lists(
        st.builds(
            images,
            st.integers(1, 50),
            st.tuples(*[st.floats(0.4, 6)] * 3),
            st.tuples(*[st.floats(20, 400)] * 3),
        ),
        min_size=1,
        max_size=5,
    ),
    task=st.sampled_from(["masks", "labels", "numbers"]),
)
def test_plans_fit(sites, task):
    plan = make_plan(sites, task, "cpu")
    channels = next(iter(plan.model.values()))["channels"]
    unit = 2 ** (len(channels) - 1)
    sides = plan.patch or plan.size
    assert all(side % unit == 0 for side in (*plan.size, *sides))
    assert all(side <= whole for side, whole in zip(sides, plan.size, strict=True))
    for axis in range(3):
        assert plan.size[axis] * plan.spacing[axis] >= max(site.covered[axis] for site in sites) - 1e-6
    # Rounding up to whole units is all that goes beyond the limit.
    assert np.prod([side - unit for side in sides]) <= VOXELS["cpu"]
    # The order of the sites makes no difference.
    assert make_plan(sites[::-1], task, "cpu") == plan


def test_one_scanner_with_odd_images_does_not_decide():
    usual = [images(20, (1, 1, 1), (160, 190, 150))] * 4
    odd = images(5, (0.4, 0.4, 6), (160, 190, 150))
    assert make_plan([*usual, odd], "masks", "cpu").spacing == (1.0, 1.0, 1.0)


@pytest.mark.parametrize("task", ["labels", "numbers"])
def test_a_label_of_the_whole_image_gets_larger_voxels(task):
    plan = make_plan([images(10, (1, 1, 1), (160, 190, 150))], task, "cpu")
    assert plan.patch is None
    assert plan.spacing[0] > 2.5
    assert len(set(plan.spacing)) == 1


def scan(place, *, air=-1000.0):
    """Air around a body whose values go evenly from 0 to 100 units more than ``place``."""
    values = np.full((20, 20, 20), air, np.float32)
    values[5:15, 5:15, 5:15] = place + np.linspace(0, 100, 1000, dtype=np.float32).reshape(10, 10, 10)
    return measure(Volume(values, np.eye(4)), Preprocessing(size="auto"))


def test_the_window_of_all_ct_images():
    low, high = fingerprint([scan(0)] * 3), fingerprint([scan(200)])
    assert (low.cases, low.hounsfield) == (3, 3)
    assert sum(low.values.values()) == 3 * sum(high.values.values()) == 30_000
    plan = make_plan([low, high], "masks", "cpu")
    # 0.5 % of the lower values, which are three quarters, and 99.5 % of all: in the bins of 10 units that hold these.
    assert plan.intensity == {"window": {"lower": 0.0, "upper": 300.0}}
    assert "all are CT" in plan.reason
    assert make_plan([fingerprint([scan(0)] * 3 + [scan(200)])], "masks", "cpu").intensity == plan.intensity


def test_what_is_no_ct_is_scaled_by_its_own_values():
    assert make_plan([fingerprint([scan(100, air=0.0)])], "masks", "cpu").intensity == "zscore"
    assert make_plan([fingerprint([scan(0), scan(100, air=0.0)])], "masks", "cpu").intensity == ""
