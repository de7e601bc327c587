"""Losses and metrics of reconstructed images."""

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate

from polyclinic.errors import StudyError
from polyclinic.tasks import build_task
from polyclinic.tasks.base import Asked, Batch
from polyclinic.tasks.reconstruction_metrics import reconstruction_case

NAMES = ("psnr", "ssim", "nmse")


def pair(*shape, seed=0):
    rng = np.random.default_rng(seed)
    truth = rng.uniform(0, 200, size=shape)
    return truth + rng.normal(scale=20, size=shape), truth


def similarity(y, x, largest):
    """Window by window, with NumPy's own covariance."""
    found = []
    for row in range(y.shape[0] - 6):
        for column in range(y.shape[1] - 6):
            one, other = (image[row : row + 7, column : column + 7].ravel() for image in (y, x))
            covariance = np.cov(one, other)
            c1, c2 = (0.01 * largest) ** 2, (0.03 * largest) ** 2
            upper = (2 * one.mean() * other.mean() + c1) * (2 * covariance[0, 1] + c2)
            found.append(upper / ((one.mean() ** 2 + other.mean() ** 2 + c1) * (np.trace(covariance) + c2)))
    return np.mean(found)


@pytest.mark.parametrize("shape", [(9, 13), (7, 7)])
def test_metrics_by_another_way(shape):
    y, x = pair(*shape)
    found = reconstruction_case(y, x, NAMES)
    assert found["nmse"] == pytest.approx(np.linalg.norm(y - x) ** 2 / np.linalg.norm(x) ** 2)
    assert found["psnr"] == pytest.approx(20 * np.log10(x.max()) - 10 * np.log10(np.mean((y - x) ** 2)))
    assert found["ssim"] == pytest.approx(similarity(y, x, x.max()), abs=1e-12)


def test_numbers_worked_by_hand():
    truth = np.zeros((8, 8))
    truth[0, 0], truth[0, 1] = 8.0, 6.0
    found = reconstruction_case(truth + 1.0, truth, NAMES)
    assert found["nmse"] == pytest.approx(64 / 100)
    assert found["psnr"] == pytest.approx(10 * np.log10(64))


def test_a_volume_has_one_range_and_the_mean_over_its_slices():
    y, x = pair(3, 8, 9)
    x[1] *= 3
    found = reconstruction_case(y, x, NAMES)
    assert found["ssim"] == pytest.approx(np.mean([similarity(*both, x.max()) for both in zip(y, x, strict=True)]))
    assert found["psnr"] == pytest.approx(10 * np.log10(x.max() ** 2 / np.mean((y - x) ** 2)))


@pytest.mark.parametrize("unit", [1 / 4095, 16.0, 1e6])
def test_units_play_no_part(unit):
    y, x = pair(10, 8)
    assert reconstruction_case(unit * y, unit * x, NAMES) == pytest.approx(reconstruction_case(y, x, NAMES), rel=1e-9)


def test_what_is_not_defined_is_no_number():
    y, x = pair(8, 8)
    for truth in (np.zeros((8, 8)), np.full((8, 8), 3.0)):
        assert np.isnan(list(reconstruction_case(y, truth, NAMES).values())).all()
    exact = reconstruction_case(x, x, NAMES)
    assert np.isnan(exact["psnr"])
    assert (exact["ssim"], exact["nmse"]) == (pytest.approx(1), 0)
    y[0, 0] = np.inf
    assert np.isnan(list(reconstruction_case(y, x, NAMES).values())).all()


def test_mistakes_are_told():
    y, x = pair(8, 8)
    with pytest.raises(ValueError, match="shape"):
        reconstruction_case(y[:7], x, NAMES)
    with pytest.raises(StudyError, match="dice"):
        reconstruction_case(y, x, ["dice"])


@pytest.mark.parametrize("shape", [(10, 12), (2, 9, 8)])
def test_the_loss_of_structural_similarity_by_another_way(shape):
    y, x = (torch.from_numpy(one).float() for one in pair(2, 1, *shape))
    found = build_task("reconstruction", 0, "ssim").loss(y, torch.cat([x, x], 1))
    for case in range(2):
        slices = [one[case, 0].reshape(-1, *shape[-2:]).double().numpy() for one in (y, x)]
        largest, values = slices[1].max(), []
        for one, other in zip(*slices, strict=True):
            window = np.ones((7, 7)) / 49

            def mean(image, window=window):
                return correlate(image, window)[3:-3, 3:-3]

            spread = mean(one**2) - mean(one) ** 2 + mean(other**2) - mean(other) ** 2
            together = mean(one * other) - mean(one) * mean(other)
            c1, c2 = (0.01 * largest) ** 2, (0.03 * largest) ** 2
            upper = (2 * mean(one) * mean(other) + c1) * (2 * together + c2)
            values.append(upper / ((mean(one) ** 2 + mean(other) ** 2 + c1) * (spread + c2)))
        assert float(found[case]) == pytest.approx(1 - np.mean(values), abs=1e-4)


def test_the_loss_of_a_black_image_is_a_number():
    found = torch.rand(2, 1, 8, 9, generator=torch.Generator().manual_seed(0)).requires_grad_()
    truth = torch.stack([torch.zeros(2, 8, 9), found[1].detach().expand(2, -1, -1)])
    losses = build_task("reconstruction", 0, "ssim").loss(found, truth)
    losses.sum().backward()
    assert found.grad.isfinite().all()
    assert 0.9 < losses[0].item() <= 1
    assert losses[1].item() == pytest.approx(0, abs=1e-5)


def test_losses_of_each_case():
    truth, found = torch.tensor([[1.0, 3.0], [0.0, 0.0]]), torch.tensor([[2.0, 1.0], [0.5, 0.5]])
    targets = torch.stack([truth, torch.full_like(truth, 9)], 1)[:, :, None]
    assert build_task("reconstruction", 0, "l1").loss(found[:, None, None], targets).tolist() == [1.5, 0.5]
    assert build_task("reconstruction", 0, "mse").loss(found[:, None, None], targets).tolist() == [2.5, 0.25]


def test_rows_have_what_the_network_adds_and_means_leave_undefined_cases_out():
    task, asked = build_task("reconstruction", 0), Asked(["psnr", "nmse"], [], 2.0)
    y, x = (torch.from_numpy(one).float() for one in pair(3, 1, 8, 8))
    x[1] = 0
    fields, tensors = task.rows([Batch(y, torch.cat([x, y], 1))], 0.5, asked)
    assert fields == {"metrics": ["psnr", "nmse", "psnr[zero-filled]", "nmse[zero-filled]"]}
    values = tensors["values"]
    assert values[1].isnan().all()
    torch.testing.assert_close(values[:, :2], values[:, 2:], equal_nan=True)
    score = task.score([Batch(y, torch.cat([x, y], 1))], "psnr")
    assert score.value == pytest.approx(values[[0, 2], 0].mean().item())
    assert task.misfit(fields, tensors, asked) == ""
    assert "expected psnr" in task.misfit({"metrics": ["psnr"]}, tensors, asked)
    empty = task.rows([], 0.5, asked)[1]["values"]
    assert empty.shape == (0, 4)
