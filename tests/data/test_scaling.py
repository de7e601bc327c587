from itertools import pairwise

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis.extra.numpy import arrays

from polyclinic.data.scaling import Scaler, Summary, merge, summarise

NAN = float("nan")
TABLE = torch.tensor([[1.0, 10.0, NAN], [2.0, NAN, NAN], [6.0, 30.0, NAN], [99.0, 99.0, 99.0]])
TRAIN = torch.tensor([0, 1, 2])


def test_summary_by_hand():
    summary = summarise(TABLE, TRAIN)
    assert summary.count.tolist() == [3.0, 2.0, 0.0]
    assert summary.mean.tolist() == [3.0, 20.0, 0.0]
    assert summary.m2.tolist() == [14.0, 200.0, 0.0]  # 4 + 1 + 9; 100 + 100
    assert all(tensor.dtype == torch.float64 for tensor in summary.to_tensors().values())


def test_merge_by_hand():
    # 1, 2, 6 and 3, 8: mean of all 4; squared deviations 9 + 4 + 4 + 1 + 16 = 34.
    both = merge([summarise(TABLE[:, :1], TRAIN), summarise(torch.tensor([[3.0], [8.0]]), torch.tensor([0, 1]))])
    assert (both.count.item(), both.mean.item()) == (5.0, 4.0)
    assert both.m2.item() == pytest.approx(34.0, rel=1e-15)


@given(
    arrays(np.float32, (24, 3), elements=st.floats(-1000, 1000, width=32) | st.just(np.float32("nan"))),
    st.lists(st.integers(0, 24), min_size=1, max_size=4),
)
def test_merged_sites_equal_the_pool(values, cuts):
    inputs = torch.from_numpy(values)
    edges = [0, *sorted(cuts), 24]
    sites = [summarise(inputs, torch.arange(a, b)) for a, b in pairwise(edges)]
    merged, pooled = merge(sites), summarise(inputs, torch.arange(24))
    assert torch.equal(merged.count, pooled.count)
    torch.testing.assert_close(merged.mean, pooled.mean, rtol=1e-12, atol=1e-10)
    torch.testing.assert_close(merged.m2, pooled.m2, rtol=1e-12, atol=1e-7)


def test_merged_equals_pooled_to_twelve_digits():
    inputs = torch.randn(500, 8, generator=torch.Generator().manual_seed(0)) * 5 + 3
    merged = merge([summarise(inputs, torch.arange(a, b)) for a, b in ((0, 7), (7, 300), (300, 500))])
    pooled = summarise(inputs, torch.arange(500))
    for name, tensor in merged.to_tensors().items():
        torch.testing.assert_close(tensor, pooled.to_tensors()[name], rtol=1e-12, atol=0)


def test_images_are_summarised_by_channel():
    images = torch.randint(0, 256, (300, 2, 5, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    index = torch.arange(0, 300, 1)[10:290]
    pixels = images[index].double().transpose(0, 1).flatten(1) / 255
    summary = summarise(images, index)
    assert summary.count.tolist() == [280 * 20] * 2
    torch.testing.assert_close(summary.mean, pixels.mean(dim=1), rtol=1e-12, atol=0)
    torch.testing.assert_close(summary.m2, pixels.var(dim=1, correction=0) * 280 * 20, rtol=1e-12, atol=0)


def test_summary_survives_the_journey():
    summary = summarise(TABLE, TRAIN)
    again = Summary.from_tensors(summary.to_tensors())
    assert all(
        torch.equal(a, b) for a, b in zip(summary.to_tensors().values(), again.to_tensors().values(), strict=True)
    )


def test_scaler_by_hand():
    scaler = Scaler.from_summary(summarise(TABLE, TRAIN))
    assert scaler.mean.tolist() == [3.0, 20.0, 0.0]
    assert scaler.deviation.tolist() == pytest.approx([(14 / 3) ** 0.5, 10.0, 1.0])
    scaled = scaler.apply(TABLE)
    assert scaled.dtype == torch.float32
    assert scaled[:, 1].tolist() == pytest.approx([-1.0, 0.0, 1.0, 7.9])
    assert scaled[:, 2].tolist() == [0.0, 0.0, 0.0, 99.0]
    assert TABLE[1].isnan().tolist() == [False, True, True]  # the inputs stay as they are


def test_training_part_has_mean_0_and_deviation_1():
    inputs = torch.randn(200, 5, generator=torch.Generator().manual_seed(0)) * 40 + 1000
    train = torch.arange(150)
    scaled = Scaler.from_summary(summarise(inputs, train)).apply(inputs)[train].double()
    assert scaled.mean(dim=0).abs().max() < 1e-5
    assert (scaled.std(dim=0, correction=0) - 1).abs().max() < 1e-5


def test_no_other_case_is_read():
    changed = TABLE.clone()
    changed[3] = torch.tensor([-5e8, NAN, 3.0])
    for inputs in (TABLE, changed):
        summary = summarise(inputs, TRAIN)
        assert summary.mean.tolist() == [3.0, 20.0, 0.0]
        scaler = Scaler.from_summary(summary).with_median(inputs, TRAIN)
        assert scaler.fill.tolist() == [2.0, 20.0, 0.0]


@pytest.mark.parametrize("value", [0.0, 0.1, -3.3e7, 1e-20])
def test_constant_features_do_not_blow_up(value):
    inputs = torch.full((1000, 1), value)
    scaler = Scaler.from_summary(summarise(inputs, torch.arange(1000)))
    assert scaler.deviation.item() == 1.0
    assert scaler.apply(inputs).abs().max() < 1e-6 * max(1.0, abs(value))


def test_median():
    inputs = torch.tensor([[1.0], [2.0], [4.0], [1000.0], [NAN]])
    train = torch.arange(5)
    scaler = Scaler.from_summary(summarise(inputs, train)).with_median(inputs, train)
    assert scaler.fill.item() == 3.0
    assert scaler.mean.item() == 251.75
    assert scaler.apply(inputs)[4].item() == pytest.approx((3.0 - 251.75) / scaler.deviation.item())


def test_no_scaling_still_fills_in():
    plain = Scaler.identity(3)
    assert plain.apply(TABLE)[1].tolist() == [2.0, 0.0, 0.0]
    assert plain.with_mean(summarise(TABLE, TRAIN)).apply(TABLE)[1].tolist() == [2.0, 20.0, 0.0]
    assert plain.with_median(TABLE, torch.tensor([1, 2])).apply(TABLE)[1].tolist() == [2.0, 30.0, 0.0]


def test_a_feature_missing_at_a_site_takes_the_federation_s_mean():
    federated = merge([summarise(TABLE, TRAIN), summarise(TABLE, torch.tensor([3]))])
    scaler = Scaler.from_summary(federated).with_median(TABLE, TRAIN)
    assert scaler.fill.tolist() == [2.0, 20.0, 99.0]


def test_images_are_scaled_by_channel():
    scaler = Scaler(torch.tensor([0.5, 0.0]), torch.tensor([0.25, 2.0]), torch.zeros(2))
    scaled = scaler.apply(torch.ones(3, 2, 4, 5))
    assert scaled.shape == (3, 2, 4, 5)
    assert scaled[:, 0].unique().tolist() == [2.0]
    assert scaled[:, 1].unique().tolist() == [0.5]
