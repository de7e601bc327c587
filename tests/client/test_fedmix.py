"""FedMix: masks at some sites, boxes or image labels at others."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from elsewhere import alike_elsewhere
from going_on import study_goes_on
from helpers import Federation, declare, image_sites, write_image_study
from outlines import discs, mean_dice
from polyclinic import Study
from polyclinic.candidates import code_of, possible
from polyclinic.client.few_labels.weak_masks import MixedWeights, WeakMasks, fits, overlap, refined
from polyclinic.data.masks.hinted import Hidden
from polyclinic.errors import StudyError
from polyclinic.ignored import IGNORED
from polyclinic.parts import Batch, Update
from polyclinic.state import FlatModule
from polyclinic.tasks import build_task

UNET = {"unet": {"channels": [2, 4], "residual_units": 0}}
INSIDE = code_of([1])
BOX = {"labels": {"share": 0.5, "leaves": "box"}}
EVERY = {"agreement": 0.0, "filled": 0.0}


def federation(*methods, sites=None, preparation=BOX, **options):
    sites = image_sites({"Aachen": 8, "Bonn": 6}, masks=True) if sites is None else sites
    training = {"rounds": 2, "batch_size": 4} | options.pop("training", {})
    return Federation(sites, methods, task="segmentation", model=UNET, training=training, preparation=preparation,
                      **options)  # fmt: skip


# Exact numbers --------------------------------------------------------------------------------------------------------


def test_a_mask_is_of_the_likeliest_classes_that_are_possible():
    task = build_task("segmentation", 3)
    outputs = torch.tensor([[0.0, 2.0, 1.0], [0.0, -1.0, 3.0], [0.0, 2.0, 3.0], [1.0, 2.0, 3.0]]).T.view(1, 3, 4)
    known = torch.tensor([0, code_of([1]), code_of([1]), code_of([1, 2])], dtype=torch.uint8).view(1, 1, 4)
    assert refined(task, outputs, possible(known, 3)).flatten().tolist() == [0, 0, 1, 2]


def test_agreement_is_the_mean_dice_of_what_is_in_either():
    one = torch.tensor([[1, 1, 0, 0, 2], [0, 0, 0, 0, 0], [1, 0, 0, 0, 0]])[:, None]
    other = torch.tensor([[1, 0, 0, 0, 2], [0, 0, 0, 0, 0], [0, 2, 0, 0, 0]])[:, None]
    assert overlap(one, other, 3).tolist() == pytest.approx([(2 / 3 + 1) / 2, 1, 0])


def test_a_case_fits_if_it_has_what_is_there_and_fills_its_boxes():
    known = torch.tensor([[INSIDE] * 3 + [0], [INSIDE] * 4, [0] * 4, [INSIDE] * 3 + [0]], dtype=torch.uint8)[:, None]
    masks = torch.tensor([[1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [1, 1, 0, 0]])[:, None]
    allowed = possible(known, 2)
    assert fits(masks, allowed, 0.51).tolist() == [False, False, True, True], "Dice with the boxes: 2 / 4 and 4 / 5"
    assert fits(masks, allowed, 0.5).tolist() == [True, False, True, True]


@pytest.mark.parametrize("kind", ["box", "label"])
def test_what_plays_no_part_is_no_place_of_a_structure(kind):
    """A mask that is hidden has structure 1 alone, and pixels that play no part: what it was fits, and they stay so."""
    mask = torch.tensor([1, 1, 0, 0, IGNORED, IGNORED, IGNORED], dtype=torch.uint8).view(1, 1, 1, 7)
    known = Hidden(mask, kind).of(0, (0, 0), mask[0])[None]
    layer = nn.Conv2d(3, 3, 1)
    model = FlatModule(nn.Sequential(layer), [layer])
    model.load(torch.cat([torch.eye(3).flatten(), torch.zeros(3)]))
    rule, task = (
        WeakMasks(strength=0.0, agreement=1.0, filled=1.0),
        build_task("segmentation", 3, ("cross_entropy", {})),
    )
    inputs = 2.0 * nn.functional.one_hot(torch.tensor([[[1, 1, 0, 0, 2, 2, 2]]]), 3).movedim(-1, 1)
    view = SimpleNamespace(task=task, unannotated=(), count=lambda part="train": int(part == "unlabelled"),
                           hints=lambda index, seed: (inputs[index], known[index]))  # fmt: skip
    rule.begin(view, {})
    nothing = torch.empty(0)
    batch = Batch(inputs[:1], nothing, model, model.vector.detach().clone(), 0, nothing, nothing)
    assert rule.loss(batch, {}).item() == pytest.approx(np.log(1 + 2 * np.exp(-2)), abs=1e-5)


def rule_for(inputs, known, **options):
    """A rule at a site of some cases without a mask, and a batch of a network whose logit is its input."""
    layer = nn.Conv2d(1, 1, 1, bias=False)
    model = FlatModule(nn.Sequential(layer), [layer])
    model.load(torch.tensor([1.0]))
    rule = WeakMasks(strength=0.0, **options)
    task = build_task("segmentation", 2, ("cross_entropy", {}))
    view = SimpleNamespace(
        task=task, unannotated=(), count=lambda part="train": len(inputs) if part == "unlabelled" else 0,
        hints=lambda index, seed: (inputs[index], known[index]),
    )  # fmt: skip
    rule.begin(view, {})
    nothing = torch.empty(0)
    return rule, Batch(torch.zeros(1, 1, 1, 4), nothing, model, torch.tensor([1.0]), 0, nothing, nothing)


def test_the_term_by_hand():
    """The first case: its mask is 1 0 0 0 (the last pixel is likely, and outside of the box): the mean over its pixels
    of −log σ(2), −log σ(1), −log σ(3) and −log σ(−4) is (0.126928 + 0.313262 + 0.048587 + 4.018150) / 4. In the second
    the box stays empty, so it is left out."""
    inputs = torch.tensor([[2.0, -1.0, -3.0, 4.0], [-2.0, -1.0, -3.0, 4.0]]).view(2, 1, 1, 4)
    known = torch.tensor([INSIDE, INSIDE, INSIDE, 0], dtype=torch.uint8).expand(2, 1, 1, 4)
    rule, batch = rule_for(inputs, known, weight=3.0, filled=0.5)
    term = rule.loss(batch, {})
    assert term.item() == pytest.approx(3 * (0.126928 + 0.313262 + 0.048587 + 4.018150) / 4, abs=1e-5)
    assert rule.learned() == 1, "one of two"
    assert rule.weak.mean == pytest.approx(term.item() / 3)
    term.backward()
    assert batch.model.gradient.item() == pytest.approx(
        3 / 4 * (2 * (0.880797 - 1) - 0.268941 - 3 * 0.047426 + 4 * 0.982014), abs=1e-5
    )


def test_a_case_of_which_nothing_is_known_needs_to_agree_alone():
    inputs = torch.full((2, 1, 1, 4), -1.0)
    known = torch.tensor([[IGNORED] * 4, [INSIDE] * 4], dtype=torch.uint8).view(2, 1, 1, 4)
    rule, batch = rule_for(inputs, known)
    assert rule.loss(batch, {}).item() == pytest.approx(0.313262, abs=1e-5)
    assert rule.weak.cases == 1, "of the other it is said that there is something"


def test_weights_by_hand():
    """Numbers 10 and 30, losses 4 and 1 with β = 0.5: powers 2 and 1. a = 1/4 + λ 2/3 and 3/4 + λ 1/3."""

    def updates(*pairs):
        return [
            Update(str(place), torch.zeros(1), torch.zeros(0), 1.0,
                   {"mixed_weights": {"cases": torch.tensor(cases), "loss": torch.tensor(loss)}})
            for place, (cases, loss) in enumerate(pairs)
        ]  # fmt: skip

    rule = MixedWeights(quality=0.6, power=0.5)
    rule.name = "mixed_weights"
    assert rule.weights(updates((10.0, 4.0), (30.0, 1.0))).tolist() == pytest.approx([0.65 / 1.6, 0.95 / 1.6])
    assert rule.weights(updates((10.0, 0.0), (30.0, 0.0))).tolist() == pytest.approx([0.25, 0.75])
    assert rule.weights(updates((0.0, 0.0), (0.0, 0.0))).tolist() == pytest.approx([0.5, 0.5])
    assert rule.weights(updates((0.0, 1e30), (0.0, 0.0))).tolist() == pytest.approx([1, 0])


# Identities -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preparation", [BOX, {}])
def test_without_weight_or_weak_cases_it_is_fedavg(preparation):
    found = federation("fedavg", {"fedmix": {"weight": 0.0 if preparation else 1.0, "quality": 0, "label": "new"}},
                       preparation=preparation)  # fmt: skip
    torch.testing.assert_close(found.state("new"), found.state("fedavg"), rtol=0, atol=1e-6)
    rule = federation("fedavg", {"fedavg": {"local": [{"weak_masks": {"weight": 0}}], "label": "new"}})
    assert torch.equal(rule.state("new"), rule.state("fedavg"))


def test_boxes_labels_and_nothing_are_learned_differently():
    states = [
        federation({"fedavg": {"local": [{"weak_masks": {"agreement": 0.0, "filled": filled}}]}},
                   preparation={"labels": {"share": 0.5, "leaves": leaves}},
                   training={"rounds": 3, "local_steps": 6, "optimizer": {"adam": {"lr": 0.1}}}).state()
        for leaves, filled in (("box", 0.0), ("label", 0.0), (None, 0.0), ("box", 1.0))
    ]  # fmt: skip
    assert all(state.isfinite().all() for state in states)
    assert len({tuple(state.tolist()) for state in states}) == 4


@pytest.mark.parametrize("method", [{"fedmix": EVERY | {"label": "own"}}, {"fixmatch": {"label": "own"}}], ids=str)
@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_a_site_may_have_a_single_case_without_a_mask(method, norm):
    """With batch normalisation it stands twice in a step."""
    sites = image_sites({"Aachen": 8, "Bonn": 1}, masks=True)
    hidden = {"labels": {"share": 0.0, "sites": ["Bonn"], "leaves": "box"}}
    model = {"unet": UNET["unet"] | {"norm": norm}}
    made = Federation(sites, ["fedavg", method], task="segmentation", model=model, preparation=hidden,
                      training={"rounds": 2, "batch_size": 4})  # fmt: skip
    progress, rows = made.rounds("own")
    assert [(row["site"], row["examples"], row["steps"]) for row in rows] == [("Aachen", 8, 2), ("Bonn", 1, 1)] * 2
    assert all(model.isfinite().all() for model in progress.models.values())
    assert {row["site"] for row in made.rounds("fedavg")[1]} == {"Aachen"}


def test_ordinary_methods_see_nothing_of_boxes():
    plain = federation("fedavg", preparation={"labels": {"share": 0.5}})
    for leaves in ("box", "label"):
        found = federation("fedavg", preparation={"labels": {"share": 0.5, "leaves": leaves}})
        assert torch.equal(found.state(), plain.state())


def test_it_is_for_masks():
    for task in ("classification", "regression", "survival"):
        with pytest.raises(StudyError, match="P104"):
            declare(task=task, methods=["fedmix"])


# Studies --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def without_report(monkeypatch):
    monkeypatch.setattr("polyclinic.study.runner.write_report", lambda folder, out=None: folder / "report.html")


def study(folder, **entries):
    """Two sites; all of the second, and some of the first, have boxes alone, or names, or nothing."""
    import pandas as pd

    content = write_image_study(folder, {"north": 10, "south": 9})
    table = pd.read_csv(folder / "cases.csv", dtype=str, keep_default_na=False)
    weak = (table["site"] == "south") | (table.index % 4 == 1)
    table["box"] = np.where(weak & (table.index % 3 > 0), "1 1 6 6", "")
    table["seen"] = np.where(weak & (table.index % 3 == 0), "foreground", "")
    table.loc[weak, "mask"] = ""
    table.to_csv(folder / "cases.csv", index=False)
    content["data"] |= {"box": "box", "label": "seen"}
    content["training"] |= {"rounds": 2}
    methods = ["fedavg", {"fedmix": EVERY | {"label": "fedmix"}}]
    return content | {"methods": methods, "evaluation": content["evaluation"] | {"folds": 2}} | entries


@pytest.mark.usefixtures("without_report")
def test_a_study_counts_boxes_and_scores_masks_alone(tmp_path):
    import pandas as pd

    result = Study.of(study(tmp_path), tmp_path).run(tmp_path / "out")
    assert set(result.predictions["site"]) == {"north"}
    flow = pd.read_csv(tmp_path / "out" / "flow.csv").query("fold.isna()").set_index(["site", "stage"])["cases"]
    assert flow["south"].to_dict() == {"found": 9, "used": 9, "unlabelled": 9, "boxed": 6, "named": 3}
    assert flow["north", "unlabelled"] == flow["north", "boxed"] + flow["north"].get("named", 0)
    (note,) = [str(note) for note in result.notes if note.number == "N275"]
    assert "They take part in fedmix." in note
    steps = result.rounds.groupby(["method", "site"])["examples"].max()
    assert steps["fedmix", "south"] == 9
    assert ("fedavg", "south") not in steps.index


@pytest.mark.usefixtures("without_report")
@pytest.mark.parametrize("engine", [{"mode": "processes", "workers": 2}, {"jobs": 2}], ids=str)
def test_every_engine_gives_the_same(tmp_path, engine):
    content = study(tmp_path)
    scores = [
        Study.of(content | {"engine": {"threads": 1, **one}}, tmp_path).run(tmp_path / name).predictions["dice"]
        for name, one in (("here", {"mode": "sequential", "jobs": 1}), ("there", engine))
    ]
    assert scores[0].to_numpy() == pytest.approx(scores[1].to_numpy(), abs=1e-5)


@pytest.mark.usefixtures("without_report")
def test_sites_elsewhere_give_the_same_numbers(tmp_path):
    content = study(tmp_path)
    content["evaluation"] |= {"predictions": "coordinator"}
    alike_elsewhere(content, tmp_path, ("predictions.csv", "flow.csv", "sites.csv"))


@pytest.mark.usefixtures("without_report")
def test_a_study_that_was_stopped_ends_the_same(tmp_path):
    study_goes_on(study(tmp_path, methods=["fedmix"]), tmp_path, after=1)


# Benefit --------------------------------------------------------------------------------------------------------------


def test_boxes_show_what_is_no_part_of_a_structure():
    """A certain case: only the sites with boxes have images of a bright square, which lies outside of all boxes, and
    which the site with masks never saw. FedAvg, which has the masks alone, outlines it, too."""
    gains = []
    training = {"rounds": 12, "batch_size": 4, "local_steps": 8, "optimizer": {"adam": {"lr": 0.015}}}
    for seed in range(3):
        sites = {"Aachen": discs("Aachen", 8, seed, squares=False)}
        sites |= {name: discs(name, 12, seed, squares=True) for name in ("Bonn", "Celle")}
        found = Federation(
            sites, ["fedavg", {"fedmix": {"cases": 8, "label": "fedmix"}}], task="segmentation",
            model={"unet": {"channels": [8, 16], "residual_units": 0}}, training=training,
            preparation={"labels": {"share": 0, "leaves": "box", "sites": ["Bonn", "Celle"]}},
        )  # fmt: skip
        scores = [np.mean([mean_dice(found, label, sites[name]) for name in ("Bonn", "Celle")])
                  for label in ("fedavg", "fedmix")]  # fmt: skip
        gains.append(scores[1] - scores[0])
    assert min(gains) > 0, gains
    assert np.mean(gains) > 0.05, gains
