"""FixMatch and mean teacher: parts that learn from cases without a label."""

import math
from types import SimpleNamespace

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from torch import nn

from going_on import study_goes_on
from helpers import Federation, declare, image_sites, number_site, site_of, table_sites
from polyclinic import Study
from polyclinic.client.few_labels.consistency import MeanTeacher, PseudoLabels
from polyclinic.client.few_labels.views import strong_view, weak_view
from polyclinic.errors import StudyError
from polyclinic.parts import Batch
from polyclinic.state import FlatModule
from polyclinic.study.notes import unscaled
from polyclinic.tasks import build_task

DROPOUT = {"mlp": {"hidden": [6], "norm": "batch", "dropout": 0.3}}
HALF = {"labels": {"share": 0.4}}


def close(actual, expected, tolerance=1e-6):
    torch.testing.assert_close(torch.as_tensor(actual).double(), torch.as_tensor(expected).double(), rtol=0,
                               atol=tolerance)  # fmt: skip


def linear():
    """One input, two outputs: 0 and w x."""
    layer = nn.Linear(1, 2, bias=False)
    model = FlatModule(nn.Sequential(layer), [layer])
    model.load(torch.tensor([0.0, 1.0]))
    return model


def batch_of(model):
    nothing = torch.empty(0)
    return Batch(torch.zeros(1, 1), torch.tensor([0]), model, nothing, 0, nothing, nothing)


def seen(weak, strong):
    """Two views of cases, as a step is given them."""
    return {"weak": torch.tensor(weak), "strong": torch.tensor(strong)}


# Exact numbers --------------------------------------------------------------------------------------------------------


def test_the_term_of_fixmatch_by_hand():
    """q = σ(4) = 0.982 and σ(1) = 0.731: one is sure. −log σ(2) = 0.126928, over two cases 0.063464, times λ = 3."""
    rule = PseudoLabels(weight=3.0)
    rule._task = build_task("classification", 2)
    model = linear()
    term = rule.loss(batch_of(model), seen([[4.0], [1.0]], [[2.0], [-9.0]]))
    close(term, 3 * 0.5 * math.log(1 + math.exp(-2.0)))
    close(term, 0.190392, 1e-6)
    term.backward()
    close(model.gradient, [1.5 * 2 * (1 - 0.880797), -1.5 * 2 * (1 - 0.880797)], 1e-5)  # nothing through the weak view


def test_one_logit_and_outlines_have_a_background():
    rule = PseudoLabels(threshold=0.9)
    rule._task = build_task("classification", 2, ("binary_cross_entropy", {}))
    layer = nn.Linear(1, 1, bias=False)
    one = FlatModule(nn.Sequential(layer), [layer])
    one.load(torch.tensor([1.0]))
    close(rule.loss(batch_of(one), seen([[-4.0]], [[-2.0]])), math.log(1 + math.exp(-2.0)))
    rule._task = build_task("segmentation", 2)
    convolution = nn.Conv2d(1, 1, 1, bias=False)
    outlines = FlatModule(nn.Sequential(convolution), [convolution])
    outlines.load(torch.tensor([1.0]))
    given = seen([[[[-4.0, 4.0, 0.0]]]], [[[[-2.0, -1.0, 5.0]]]])
    close(rule.loss(batch_of(outlines), given), (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(1))) / 3)


def test_the_teacher_is_a_running_mean():
    """The mean of all, (0 + 2) / 2 and (0 + 2 + 4) / 3, until α is reached; then 0.7 of it and 0.3 of the weights."""
    rule = MeanTeacher(decay=0.7, ramp=0)
    rule.kept = {"teacher": torch.zeros(1), "steps": torch.zeros(())}
    rule.begin(SimpleNamespace(number=0, task=None), {})
    found = []
    for weight in (2.0, 4.0, 6.0, 8.0):
        rule.gradient(torch.zeros(1), torch.tensor([weight]), torch.zeros(1), {})
        found.append(float(rule._teacher))
    assert found == pytest.approx([1.0, 2.0, 3.2, 4.64])
    rule.end(None, {})
    assert float(rule.kept["steps"]) == 4


def test_the_term_of_the_teacher_by_hand():
    """Teacher (0, 2), model (0, 1): σ(2 · 1) − σ(1 · 0.5) = 0.258338 for both classes. In round 0 of a ramp of 2 it
    counts e^−5, in round 1 e^−1.25, then 1."""
    difference = 1 / (1 + math.exp(-2)) - 1 / (1 + math.exp(-0.5))
    for number, share in ((0, math.exp(-5)), (1, math.exp(-1.25)), (2, 1.0), (9, 1.0)):
        rule = MeanTeacher(weight=4.0, ramp=2)
        rule.kept = {"teacher": torch.tensor([0.0, 2.0]), "steps": torch.ones(())}
        rule.begin(SimpleNamespace(number=number, task=build_task("classification", 2)), {})
        given = seen([[1.0]], [[0.5]]) | {"teacher": rule._teacher}
        close(rule.loss(batch_of(linear()), given), 4 * share * difference**2)


# Identities -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["fixmatch", "mean_teacher"])
@pytest.mark.parametrize("hidden", [True, False])
def test_without_weight_or_unlabelled_cases_it_is_fedavg_to_the_bit(method, hidden):
    options = {"weight": 0, "label": "new"} if hidden else {"label": "new"}
    federation = Federation(
        table_sites(), ["fedavg", {method: options}], model=DROPOUT, training={"rounds": 2},
        preparation={"labels": {"share": 0.5}} if hidden else {},
    )  # fmt: skip
    assert torch.equal(federation.state("new"), federation.state("fedavg"))


@pytest.mark.parametrize("method", ["fixmatch", "mean_teacher"])
def test_with_them_it_is_another(method):
    options = {"label": "new", **({"threshold": 0.5} if method == "fixmatch" else {"ramp": 0})}
    federation = Federation(table_sites(), ["fedavg", {method: options}], preparation={"labels": {"share": 0.5}})
    assert not torch.allclose(federation.state("new"), federation.state("fedavg"))


@pytest.mark.parametrize("method", [{"fixmatch": {"threshold": 0.5}}, {"mean_teacher": {"ramp": 0}}])
def test_outlines_are_learnt_so_too(method):
    sites = image_sites({"Aachen": 8, "Bonn": 6}, masks=True)
    for model in ({"unet": {"channels": [2, 4], "residual_units": 0}},):
        found = [
            Federation(sites, [one], model=model, task="segmentation", training={"rounds": 2, "batch_size": 4},
                       preparation={"labels": {"share": 0.5}}).state()
            for one in ("fedavg", method)
        ]  # fmt: skip
        assert found[1].isfinite().all()
        assert not torch.equal(*found)


def test_numbers_have_a_teacher_and_no_pseudo_labels():
    sites = {name: number_site(name, 12) for name in ("Aachen", "Bonn")}
    methods = ["fedavg", {"mean_teacher": {"ramp": 0, "label": "mean_teacher"}}]
    federation = Federation(sites, methods, task="regression", training={"rounds": 2},
                            preparation={"labels": {"share": 0.5}})  # fmt: skip
    assert not torch.equal(federation.state("mean_teacher"), federation.state("fedavg"))
    for method, task in (("fixmatch", "regression"), ("fixmatch", "survival"), ("mean_teacher", "survival")):
        with pytest.raises(StudyError, match="P104"):
            declare(task=task, methods=[method])


# Views ----------------------------------------------------------------------------------------------------------------


def source(seed=0):
    return torch.Generator().manual_seed(seed)


@given(seed=st.integers(0, 99), side=st.integers(4, 20), volume=st.booleans())
def test_a_weak_view_is_a_piece_of_the_image(seed, side, volume):
    shape = (side,) * (3 if volume else 2)
    image = torch.arange(math.prod(shape), dtype=torch.float32).view(1, 1, *shape)
    moved = weak_view(image, shape, source(seed))
    assert moved.shape == image.shape
    steps = moved.diff(dim=-1)
    assert set(steps.unique().tolist()) <= {0.0, 1.0}, "its order is kept: nothing is mirrored"
    cut = weak_view(image, tuple(side // 2 for _ in shape), source(seed))
    assert cut.shape[2:] == tuple(side // 2 for _ in shape)
    if side // 2 > 1:
        assert (cut.diff(dim=-1) == 1).all(), "a box lies within the image"


def test_a_strong_view_moves_nothing():
    images = torch.rand(4, 2, 16, 16, generator=source())
    assert torch.allclose(strong_view(images, source(), 0.0, cut=False), images, atol=1e-6)
    hard = strong_view(images, source(), 0.5, cut=False)
    for one, other in zip(images.flatten(1), hard.flatten(1), strict=True):
        assert np.corrcoef(one, other)[0, 1] > 0.5
    cut = strong_view(images, source(), 0.0, cut=True)
    gone = ((cut - images).abs() > 1e-6).any(1)
    assert all(4 * 4 * 0.8 <= int(one.sum()) <= 8 * 8 for one in gone)
    table = torch.ones(2000, 8)
    missing = strong_view(table, source(), 1.0, cut=True) == 0
    assert 0.23 < float(missing.float().mean()) < 0.27


@pytest.mark.parametrize("scale", [1e-4, 1.0, 3e4])
def test_views_know_no_unit(scale):
    """Of images that are not scaled (CT in Hounsfield units) and of ones that are."""
    images = torch.rand(2, 1, 8, 8, generator=source()) - 0.3
    found = strong_view(images * scale, source(), 0.5, cut=True)
    torch.testing.assert_close(found / scale, strong_view(images, source(), 0.5, cut=True), rtol=1e-4, atol=1e-4)


# Benefit --------------------------------------------------------------------------------------------------------------


def clouds(seed):
    """Two clouds that are 3 deviations apart in one of ten features; of eight cases the labels are known."""
    rng, sites = np.random.default_rng(seed), {}
    for name in ("Aachen", "Bonn"):
        label = np.arange(120) % 2
        cases = rng.normal(size=(120, 10))
        cases[:, 0] += np.where(label == 1, 1.5, -1.5)
        sites[name] = site_of(name, torch.from_numpy(cases).float(), torch.from_numpy(label))
        sites[name].labelled = torch.arange(120) < 4
    return sites


@pytest.mark.parametrize("method", [
    {"fixmatch": {"threshold": 0.9, "weight": 3.0}}, {"mean_teacher": {"ramp": 10, "decay": 0.9}}
])  # fmt: skip
def test_where_classes_are_clouds_their_cases_show_where(method):
    """A certain case: eight labels tell roughly which way the clouds lie, and 232 cases more tell it well. Nothing is
    better than Φ(1.5) = 0.933."""
    gains, best = [], []
    for seed in range(5):
        sites, found = clouds(seed), []
        for one in ("fedavg", method):
            federation = Federation(sites, [one], training={"rounds": 20, "batch_size": 4, "local_epochs": 8})
            model = federation.network(0)
            model.load(federation.state())
            with torch.no_grad():
                right = [model.module(site.inputs).argmax(1) == site.targets for site in sites.values()]
            found.append(float(torch.cat(right).float().mean()))
        gains.append(found[1] - found[0])
        best.append(found[1])
    assert min(gains) > 0.01, gains
    assert np.mean(gains) > 0.03, gains
    assert np.mean(best) > 0.92, best


# In a study -----------------------------------------------------------------------------------------------------------


def study(folder, **entries):
    from helpers import write_table_study

    content = write_table_study(folder, {"north": 30, "south": 24})
    content |= {"methods": [{"mean_teacher": {"ramp": 1}}, {"fixmatch": {"threshold": 0.6}}]} | entries
    content["training"] |= {"rounds": 3}
    content["data"] |= {"labels": {"share": 0.3}}
    content["engine"] = {"mode": "sequential", "threads": 1, "jobs": 1}
    content["evaluation"] = {"holdout": 0.3, "bootstrap": 0}
    return content


def test_a_teacher_goes_on_after_an_interruption(tmp_path):
    whole = study_goes_on(study(tmp_path), tmp_path, after=2)
    assert not [note for note in whole.notes if note.number == "N103"]


@pytest.mark.parametrize(
    ("method", "scaling", "told"),
    [
        ("mean_teacher", "none", True), ("fixmatch", "none", True), ("fedmoco", "none", True), ("fedvss", "none", True),
        ("iop_fl", "none", True), ("fedavg", "none", False), ("mean_teacher", "per_site", False),
        ("fixmatch", "federated", False),
    ],
)  # fmt: skip
def test_features_that_are_not_scaled_are_noted(method, scaling, told):
    """Noise of 0.1 is nothing to a volume in mm³, and hides a share."""
    data = {"table": "cases.csv", "site": "site", "label": "label", "features": "x*", "scaling": scaling}
    notes = unscaled(declare(methods=[method], model=DROPOUT, data=data))
    assert [note.number for note in notes] == ["N296"] * told
    assert all(note.startswith(f"{method} looks at cases") for note in notes)


def test_pictures_have_no_such_note_and_a_study_says_it(tmp_path):
    pictures = {"table": "cases.csv", "site": "site", "label": "label", "image": "image", "size": [8, 8]}
    assert unscaled(declare(methods=["fixmatch"], model="cnn", data=pictures | {"scaling": "none"})) == []
    content = study(tmp_path, methods=["fixmatch"])
    content["data"] |= {"scaling": "none"}
    content["training"] |= {"rounds": 1}
    notes = Study.of(content, tmp_path).run(tmp_path / "out").notes
    assert [note.number for note in notes if note.number == "N296"] == ["N296"]


def test_it_is_said_that_a_study_has_no_such_cases(tmp_path):
    content = study(tmp_path, methods=["fixmatch"])
    del content["data"]["labels"]
    notes = Study.of(content, tmp_path).run(tmp_path / "out").notes
    assert [str(note) for note in notes if note.number == "N103"] == [
        "fixmatch is the same as without its rule pseudo_labels here: the study keeps no cases without a label "
        "(`data: {unlabelled: use}` does)."
    ]
