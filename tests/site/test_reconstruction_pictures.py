"""Pictures of reconstructed cases, from a site's cases to the report."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from polyclinic.site import evaluation
from polyclinic.site.messages import MetricNames, Pictured
from polyclinic.site.pictures import reconstruction_pictures
from polyclinic.state import FlatModule
from polyclinic.study.report.reconstructions import reconstruction
from polyclinic.tasks import build_task


def test_grey_values_and_errors_by_hand():
    """White is the 99th percentile of the reference, 200 of most pixels; errors are 10 and 50 of at most 50."""
    truth = torch.full((20, 20), 200.0)
    truth[0, 0] = 250.0
    found, zero_filled = truth - 10, truth.clone()
    zero_filled[9, 9] -= 50
    shown = reconstruction_pictures(found, truth, zero_filled)
    assert shown["reference"].unique().tolist() == [255]
    assert shown["reconstruction"][1, 1] == round(190 / 200 * 255)
    assert shown["zero_filled"][9, 9] == round(150 / 200 * 255)
    assert shown["error"].unique().tolist() == [10 * 255 // 50]
    assert shown["zero_filled_error"].sum() == 255
    assert shown["span"].tolist() == [50 / 250]


def test_a_perfect_a_black_and_a_huge_image_are_shown():
    truth = torch.arange(100.0).view(10, 10)
    assert reconstruction_pictures(truth, truth, truth)["span"].tolist() == [0.0]
    assert not reconstruction_pictures(truth, truth, truth)["error"].any()
    black = torch.zeros(10, 10)
    assert not any(one.any() for one in reconstruction_pictures(black, black, black).values())
    spot = black.clone()
    spot[3, 4] = 2.0  # less than one of a hundred: the percentile is 0
    assert reconstruction_pictures(black, spot, black)["reference"][3, 4] == 255
    shown = reconstruction_pictures(truth + 3e38, truth, truth)
    assert shown["reconstruction"].unique().tolist() == [255]
    assert torch.isfinite(shown["span"]).all()


@pytest.mark.parametrize(
    ("orientation", "expected"),
    [
        # A slice is [[1, 2, 3], [4, 5, 6]], rows along the second axis of the volume, columns along the third.
        ("SAR", [[6, 5, 4], [3, 2, 1]]),  # more to the front is up, more to the right is left
        ("SPL", [[1, 2, 3], [4, 5, 6]]),
        ("SRA", [[6, 3], [5, 2], [4, 1]]),
        ("RSA", [[6, 5, 4], [3, 2, 1]]),  # sagittal: up is up, the front is left
        ("ASR", [[6, 5, 4], [3, 2, 1]]),  # coronal
    ],
)
def test_one_slice_of_a_volume_is_turned_as_radiologists_see_it(orientation, expected):
    truth = torch.zeros(3, 2, 3)
    truth[1] = torch.tensor([[1.0, 2, 3], [4, 5, 6]])
    found = truth.clone()
    found[1, 0, 0] += 0.5
    shown = reconstruction_pictures(found, truth, truth, (7.0, 1.0, 1.0), orientation)["reference"]
    white = np.percentile(truth[1], 99)
    assert shown.tolist() == [[round(min(value / white, 1) * 255) for value in row] for row in expected]


def test_pixels_of_a_slice_are_to_scale_whatever_is_between_slices():
    truth = torch.rand(3, 4, 5)
    for spacing, shape in (((9.0, 2.0, 1.0), (8, 5)), ((0.1, 3.0, 3.0), (4, 5)), ((1.0, 1.0, 2.0), (4, 10))):
        assert tuple(reconstruction_pictures(truth, truth, truth, spacing, "SAR")["error"].shape) == shape


class _Images:
    """Images whose reconstruction is the first channel of the inputs."""

    patch, spacings, orientation = None, None, ""
    shape = (3, 8, 8)

    def __init__(self, errors):
        truth = torch.rand(len(errors), 1, 8, 8, generator=torch.Generator().manual_seed(1))
        found = truth + torch.tensor(errors).view(-1, 1, 1, 1)
        if any(error == 0 for error in errors):
            truth[[error == 0 for error in errors]] = 1.0  # one value everywhere: no metric is defined
        self.targets = torch.cat([truth, truth * 0.5], 1)
        self.inputs = torch.cat([found, found, found], 1)

    def pieces(self, index, size):
        return index.split(size)

    def batch(self, index, *, augment=None):
        return self.inputs[index], self.targets[index]


def a_run(errors):
    layer = torch.nn.Conv2d(3, 1, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1))
    run = SimpleNamespace(
        task=build_task("reconstruction", 0, "l1"), model=FlatModule(layer, [layer]), dataset=_Images(errors),
        batch_size=1, declared=SimpleNamespace(metrics=MetricNames(names=["psnr"], classes=[], tolerance=0.0)),
    )  # fmt: skip
    return run, [run.model.vector.clone()], torch.arange(len(errors))


def test_the_best_the_median_and_the_worst_case_are_shown():
    run, vectors, index = a_run([0.3, 0.1, 0.2])
    said, shown = evaluation.overlays(run, vectors, index, 0.5)
    values = evaluation.predict(run, vectors, index, 0.5)[1]["values"][:, 0].tolist()
    assert [said.worst, said.median, said.best] == [values[0], values[2], values[1]] == sorted(values)
    for rank, place, error in (("worst", 0, 0.3), ("best", 1, 0.1)):
        truth, zero_filled = run.dataset.targets[place]
        wanted = max(error, float((truth - zero_filled).max())) / float(truth.max())
        assert float(shown[f"{rank}/span"]) == pytest.approx(wanted, rel=1e-5)


def test_cases_without_a_metric_are_not_shown():
    run, vectors, index = a_run([0.0, 0.1, 0.0])
    said, shown = evaluation.overlays(run, vectors, index, 0.5)
    assert said.worst == said.median == said.best
    assert torch.equal(shown["worst/reference"], shown["best/reference"])
    assert evaluation.overlays(run, vectors, index[:1], 0.5) == (Pictured(), {})
    vectors = [torch.full_like(vectors[0], torch.nan)]  # a model that broke down
    assert evaluation.overlays(run, vectors, index, 0.5) == (Pictured(), {})


def test_a_panel_says_in_words_what_it_shows():
    parts = {name: np.full((40, 30), 51, np.uint8)
             for name in ("zero_filled", "reconstruction", "reference", "zero_filled_error", "error")}  # fmt: skip
    panel = reconstruction("Worst, PSNR 20.0 dB", "A <b> by fedavg", {**parts, "span": np.array([0.5])})
    assert panel.words.replace("\u00a0", " ").endswith("10 % zero-filled and 10 % reconstructed.")
    assert "Worst test case of A &lt;b&gt; by fedavg: zero-filled, reconstructed, reference" in panel.picture
