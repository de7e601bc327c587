"""Structures that some sites did not outline: unknown there, and no background."""

import numpy as np
import pandas as pd
import pytest
import torch

from helpers import Federation, site_of, write_image_study
from polyclinic import Study
from polyclinic.candidates import code_of
from polyclinic.data.dataset import Dataset
from polyclinic.data.scaling import Scaler
from polyclinic.errors import StudyError
from polyclinic.ignored import IGNORED
from polyclinic.tasks import build_task
from polyclinic.tasks.base import Asked, Batch

EITHER = code_of([2])


def close(actual, expected, tolerance=1e-5):
    torch.testing.assert_close(torch.as_tensor(actual), torch.as_tensor(expected), rtol=0, atol=tolerance)


def row(*values, dtype=torch.uint8):
    return torch.tensor(values, dtype=dtype).view(1, 1, 1, len(values))


@pytest.mark.parametrize("loss", ["cross_entropy", "dice", "dice_cross_entropy", "dice_focal"])
def test_the_loss_is_that_of_the_classes_merged(loss):
    """With one structure unknown everywhere, three classes are as two whose background is both."""
    source = torch.Generator().manual_seed(0)
    outputs = torch.randn(2, 3, 4, 4, generator=source, requires_grad=True)
    targets = torch.randint(0, 2, (2, 1, 4, 4), generator=source).to(torch.uint8)
    partial = torch.where(targets == 0, torch.full_like(targets, EITHER), targets)
    three = build_task("segmentation", 3, ("cross_entropy", {}))
    probabilities = outputs.softmax(1)
    marginal = torch.where(partial[:, 0] == 1, probabilities[:, 1], probabilities[:, 0] + probabilities[:, 2])
    close(three.loss(outputs, partial), -marginal.log().flatten(1).mean(1))
    found = build_task("segmentation", 3, (loss, {})).loss(outputs, partial)
    (gradient,) = torch.autograd.grad(found.sum(), outputs)
    assert found.isfinite().all()
    assert gradient.isfinite().all()


def test_where_it_may_be_nothing_pushes_it_away():
    """Logits 0, 0, 5 at a pixel of background or structure 2: −log(1 − 1 / (2 + e⁵)) is 0.006670, and no 5.01."""
    task = build_task("segmentation", 3, ("cross_entropy", {}))
    outputs = torch.tensor([0.0, 0.0, 5.0]).view(1, 3, 1, 1).requires_grad_()
    close(task.loss(outputs, row(EITHER)), [0.006670])
    close(task.loss(outputs, row(0)), [5.013386])
    (gradient,) = torch.autograd.grad(task.loss(outputs, row(EITHER)).sum(), outputs)
    assert gradient[0, 2, 0, 0] < 0, "it goes up, if anywhere"
    close(task.loss(outputs, row(EITHER, IGNORED)[..., :1]), [0.006670])


def test_nothing_changes_where_all_is_known():
    outputs = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    targets = torch.randint(0, 3, (2, 1, 4, 4), generator=torch.Generator().manual_seed(2)).to(torch.uint8)
    task = build_task("segmentation", 3)
    merged = task._merged(outputs, targets)
    assert merged[0] is outputs
    assert merged[1] is targets


def test_metrics_leave_out_what_is_unknown():
    """Structure 1 is found in one of its two pixels, and marked once beside: Dice 2 / 4. Where 2 may be, 2 is right."""
    task = build_task("segmentation", 3)
    asked = Asked(["dice", "sen"], ["background", "one", "two"], tolerance=2.0)
    targets, found = row(1, 1, EITHER, EITHER, EITHER), torch.tensor([[[1, 2, 1, 2, 0]]], dtype=torch.uint8)
    fields, tensors = task.rows([Batch(found, targets, None)], 0.5, asked)
    values = dict(zip(fields["metrics"], tensors["values"][0].tolist(), strict=True))
    assert values["dice"] == values["dice[one]"] == 0.5
    assert values["sen[one]"] == 0.5
    assert np.isnan(values["dice[two]"])
    close(task._overlap(found, targets), [0.5])
    close(task._overlap(torch.cat([found, found]), torch.cat([targets, row(1, 1, 0, 2, 2)])), [0.5, (0.5 + 0.5) / 2])


def test_masks_of_a_site_say_it():
    masks = row(0, 1, 2, IGNORED)
    data = site_of("north", torch.zeros(1, 1, 1, 4, dtype=torch.uint8), masks)
    dataset = Dataset(data, Scaler.identity(1))
    index = torch.tensor([0])
    assert dataset.batch(index)[1].flatten().tolist() == [0, 1, 2, IGNORED]
    partial = dataset.without_structures([2])
    assert partial.batch(index)[1].flatten().tolist() == [EITHER, 1, EITHER, IGNORED]
    pooled = Dataset.pool([partial, dataset], "pool")
    assert pooled.batch(torch.tensor([0, 1]))[1].flatten().tolist() == [EITHER, 1, EITHER, IGNORED, 0, 1, 2, IGNORED]
    hidden = partial.without_labels(index, "box")
    both = code_of([1, 2])
    assert hidden.batch(index, hints=True)[1].flatten().tolist() == [EITHER, both, EITHER, IGNORED]


# Studies --------------------------------------------------------------------------------------------------------------


def study(folder, **data):
    content = write_image_study(folder, {"north": 8, "south": 8})
    content["data"] |= {"mask_classes": {"one": 255, "two": 7}, "structures": {"north": ["one"]}} | data
    return content | {"methods": ["fedavg", "mix"]}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"structures": {"nort": ["one"]}}, "P103 .*nort"), ({"structures": {"north": ["three"]}}, "P103 .*'three'"),
        ({"structures": {"north": []}}, "P102"), ({"mask_classes": None}, "P104 .*mask_classes"),
        ({"structures": {"north": ["one"], "south": ["one"]}}, "P104 .*No site outlines 'two'"),
    ],
)  # fmt: skip
def test_lists_that_do_not_fit_are_refused(tmp_path, data, words):
    with pytest.raises(StudyError, match=words):
        Study.of(study(tmp_path, **data), tmp_path).check()


@pytest.mark.parametrize("engine", [{}, {"mode": "processes", "workers": 2}, {"mode": "stacked"}], ids=str)
def test_a_study_scores_what_sites_outline(tmp_path, monkeypatch, engine):
    monkeypatch.setattr("polyclinic.study.runner.write_report", lambda folder, out=None: folder / "report.html")
    content = study(tmp_path)
    content["engine"] |= engine
    content["training"] |= {"rounds": 1}
    result = Study.of(content, tmp_path).run(tmp_path / "out")
    known = result.predictions.groupby("site")["dice[two]"].count()
    assert known["north"] == 0
    assert known["south"] > 0
    assert (result.predictions.groupby("site")["dice[one]"].count() > 0).all()
    (note,) = [str(note) for note in result.notes if note.number == "N295"]
    assert "north (two)" in note
    rows = pd.read_csv(tmp_path / "out" / "results.csv")
    assert rows.query("metric == 'dice[two]' and tested_on == 'north'")["value"].isna().all()


# Benefit --------------------------------------------------------------------------------------------------------------


def blocks(name, cases, seed, both):
    """Images of two squares, a bright and a dark one; a site outlines one of them alone."""
    rng = np.random.default_rng(100 * seed + len(name))
    pixels, masks = rng.normal(120, 8, (cases, 1, 16, 16)), np.zeros((cases, 1, 16, 16), np.uint8)
    for image, mask in zip(pixels[:, 0], masks[:, 0], strict=True):
        for structure, (level, left) in enumerate(((90, 1), (-90, 9)), start=1):
            top = rng.integers(1, 10)
            image[top : top + 5, left : left + 5] += level
            if structure in both:
                mask[top : top + 5, left : left + 5] = structure
    return site_of(name, torch.from_numpy(pixels.clip(0, 255).astype(np.uint8)), torch.from_numpy(masks))


def test_what_a_site_did_not_outline_is_not_unlearned_there():
    """A certain case: of three sites one outlines the dark square. Where the others' is taken for background, two of
    three say that it is none."""
    gains = []
    for seed in range(2):
        sites = {"Aa": blocks("Aa", 6, seed, (1, 2))}
        sites |= {name: blocks(name, 12, seed, (1,)) for name in ("Bbb", "Cccc")}
        test = blocks("Tests", 8, 50 + seed, (1, 2))
        scores = []
        for partial in ({}, {"Bbb": [2], "Cccc": [2]}):
            federation = Federation(
                sites, ["fedavg"], task="segmentation", classes=3, preparation={"partial": partial},
                model={"unet": {"channels": [4, 8], "residual_units": 0}},
                training={"rounds": 8, "batch_size": 4, "local_steps": 10, "optimizer": {"adam": {"lr": 0.02}}},
            )  # fmt: skip
            model = federation.network(0)
            model.load(federation.state())
            model.module.eval()
            with torch.no_grad():
                found = model.module(test.inputs.float() / 255).argmax(1)
            truth = test.targets[:, 0]
            scores.append(float(2 * ((found == 2) & (truth == 2)).sum() / ((found == 2).sum() + (truth == 2).sum())))
        gains.append(scores[1] - scores[0])
    assert min(gains) > 0.1, gains
