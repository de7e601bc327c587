"""`style_generator` in studies: who is asked what and when, other engines, sites that fail, what is refused."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from client.test_style_generator import CNN, close, images, style, told_of
from elsewhere import alike_elsewhere
from helpers import Federation, image_sites, recorded, table_sites
from plugin_helpers import plugged_in
from polyclinic import Study
from polyclinic.client.domain_shift.style_generator import StyleCurves, generated
from polyclinic.engine import CheckedEngine
from polyclinic.errors import PolyclinicError, SiteError, StudyError
from polyclinic.options import EntryError
from polyclinic.rounds import run_rounds
from polyclinic.running.progress import Checkpoint
from polyclinic.shapes import Misfit
from polyclinic.study.job import Job
from test_one_bad_site import BAD, Bad, filled, tensor_of, without

# In a study -----------------------------------------------------------------------------------------------------------


def test_all_are_shown_the_same_images_also_a_site_that_does_not_train():
    data = image_sites({"Aachen": 24, "Bonn": 20, "Celle": 22}, part=None)
    made = images(style(), data=data, evaluation={"folds": 2, "validation": 0.2, "best_round": "loss"})
    trained = made.runner.train(Job((made.method(),), 0, 0, without="Celle"), made.fold)
    told = trained.progress.needed["style_curves"]
    for member in made.engine.members.values():
        index = torch.arange(10)
        raw, seen = member.dataset.batch(index)[0], member.run.dataset.batch(index)[0]
        assert (seen - raw).abs().max() > 1e-3
        close(seen, generated(raw, **told), 1e-5)


def test_sites_are_asked_before_the_first_round_and_never_again():
    made = images(style(3), training={"rounds": 3})
    with recorded(made.engine) as said:
        made.rounds()
    asked = [function for function, site, *_ in said if site == "Bonn" and "/" in function]
    assert asked == ["style_curves/look", *["style_curves/learn"] * 3, "style_curves/tell"]
    told = {name for function, _, asked, answer in said if function == "train" for name in asked.tensors}
    assert not [name for name in told if name.startswith("style_curves")]


def test_several_models_are_shown_the_same_images():
    """Each model has an end at the server that asks the sites; these compute nothing twice, and are told the same."""
    method = {"fedavg": {"local": [{"style_curves": {"style_rounds": 3}}], "topology": {"clusters": {"number": 3}}}}
    with plugged_in():
        made = images(method, data=image_sites({"Aachen": 12, "Bonn": 14, "Celle": 10}))
        with recorded(made.engine) as said:
            progress, _ = made.rounds()
    assert len(progress.models) == 3
    assert sum(function == "style_curves/learn" for function, *_ in said) == 3 * 3 * 3
    for member in made.engine.members.values():
        assert len(member.run.ends["style_curves"]._answered) == 3


def test_sites_without_labels_have_a_style_too():
    """One that is trained on cases without labels alone looks at these."""
    data = image_sites({"Aachen": 16, "Bonn": 12})
    data["Bonn"].labelled = torch.zeros(12, dtype=torch.bool)
    method = {"fedmoco": {"pretraining_rounds": 1, "local": [{"style_curves": {"style_rounds": 2}}], "label": "style"}}
    made = images(method, data=data)
    progress, _ = made.rounds()
    values = {name: site.inputs.float().flatten(1) / 255 for name, site in data.items()}
    mean = (16 * values["Aachen"].mean() + 12 * values["Bonn"].mean()) / 28
    close(progress.needed["style_curves"]["common"], mean[None], 1e-5)


@pytest.mark.parametrize("options", [{"stacked": True}, {"serialise": True}])
def test_engines_agree(options):
    close(images(style(), **options).state(), images(style()).state(), 1e-5)


def test_outlines_are_of_images_in_the_common_style():
    data = image_sites({"Aachen": 12, "Bonn": 10}, masks=True)
    model = {"unet": {"channels": [2, 4], "residual_units": 0}}
    states = [
        Federation(data, [style(5)], task="segmentation", model=model, **options).state()
        for options in ({}, {"serialise": True})
    ]
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], Federation(data, ["fedavg"], task="segmentation", model=model).state())


@pytest.mark.parametrize("kill", ["style_curves/learn", "train", None])
def test_a_resumed_run_ends_with_the_same_bytes(tmp_path, kill):
    """Killed while the generator is learned, in the first round, or after it; then it is not learned again."""

    class Killed(BaseException):
        pass

    def train(folder, stop=False):
        made = images(style(), training={"rounds": 3}, folder=folder / "sites")
        plan, asked = made.plan(), []
        call = made.engine.call

        def counting(function, requests):
            asked.append(function)
            if stop and function == kill and asked.count(function) == 2:
                raise Killed
            return call(function, requests)

        def report(done, total):
            if stop and kill is None:
                raise Killed

        made.engine.call = counting
        engine = CheckedEngine(made.engine, plan.known)
        progress, _ = run_rounds(plan, engine, checkpoint=Checkpoint(folder / "job"), report=report)
        return progress.model("federation"), progress.needed["style_curves"], asked

    whole, told, _ = train(tmp_path / "whole")
    with pytest.raises(Killed):
        train(tmp_path / "again", stop=True)
    state, again, asked = train(tmp_path / "again")
    assert torch.equal(state, whole)
    assert all(torch.equal(told[name], again[name]) for name in told)
    assert asked.count("style_curves/learn") == (3 if kill == "style_curves/learn" else 0)
    assert "style_curves/tell" in asked


def pictures(folder, sites, cases):
    """A study of pictures, whose files lie in a folder for each site."""
    rng, rows = np.random.default_rng(0), []
    for place, site in enumerate(sites):
        (folder / site).mkdir()
        for number in range(cases):
            pixels = rng.integers(20, 80, (8, 8)) + 40 * place + 60 * (number % 2)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / site / f"{number}.png")
            rows.append({"site": site, "image": f"{site}/{number}.png", "label": number % 2})
    pd.DataFrame(rows).to_csv(folder / "cases.csv", index=False)
    return {
        "data": {"table": "cases.csv", "site": "site", "image": "image", "label": "label", "size": [8, 8]},
        "model": CNN, "training": {"rounds": 2, "batch_size": 8}, "evaluation": {"folds": 2},
        "methods": ["fedavg", style(4)], "engine": {"mode": "sequential", "threads": 1},
    }  # fmt: skip


@pytest.fixture
def without_report(monkeypatch):
    monkeypatch.setattr("polyclinic.study.runner.write_report", lambda folder, out=None: folder / "report.html")


@pytest.mark.usefixtures("without_report")
def test_sites_elsewhere_give_the_same(tmp_path):
    content = pictures(tmp_path, "ABC", 16)
    content["evaluation"] |= {"predictions": "coordinator"}
    alike_elsewhere(content, tmp_path, ("predictions.csv", "exchanged.csv"))
    assert "style_curves/gradient" in (tmp_path / "here" / "exchanged.csv").read_text()


# What is not as it should be ------------------------------------------------------------------------------------------


BAD_ANSWERS = {
    "start": ("mean", "square"), "style_curves/look": ("shares",), "style_curves/learn": ("gradient",),
}  # fmt: skip


@pytest.mark.parametrize(("function", "name"), [(f, name) for f, names in BAD_ANSWERS.items() for name in names])
def test_answers_of_another_kind_are_the_failure_of_their_site(function, name):
    there = name if "/" in function else f"style_curves/{name}"
    for change in (
        tensor_of(there, torch.zeros(3, 2)), tensor_of(there, torch.zeros(1).int()), without(there),
        filled(there, float("nan")),
    ):  # fmt: skip
        made = images(style(2), data=image_sites({BAD: 8, "Dresden": 6}))
        plan = made.plan()
        engine = CheckedEngine(Bad(made.engine, function, change), plan.known)
        with pytest.raises(PolyclinicError, match=rf"P[34]01 .*site {BAD}.*{name}"):
            run_rounds(plan, engine)


def test_with_a_quorum_a_silent_site_is_left_out_and_named():
    data = image_sites({BAD: 8, "Dresden": 6, "Essen": 7})
    for function in ("style_curves/look", "style_curves/learn"):
        made = images(style(2), data=data, training={"quorum": 2})
        plan = made.plan()
        engine = CheckedEngine(Bad(made.engine, function, None, silent=True), plan.known)
        progress, _ = run_rounds(plan, engine)
        assert [note for note in progress.failures if f"When asked to {function}, {BAD} did not answer" in note]
        assert progress.needed["style_curves"]["curves"].isfinite().all()


def test_a_target_that_says_nothing_ends_the_training():
    made = images(style(2, target=BAD), data=image_sites({BAD: 8, "Dresden": 6, "Essen": 7}), training={"quorum": 2})
    plan = made.plan()
    engine = CheckedEngine(Bad(made.engine, "style_curves/look", None, silent=True), plan.known)
    with pytest.raises(SiteError, match=rf"P402 style_curves is to give all images the style of {BAD}"):
        run_rounds(plan, engine)


def test_what_has_no_style_is_refused():
    with pytest.raises(EntryError, match="P104 style_curves is for images, and the cases are rows"):
        Federation(table_sites(), [style()])
    with pytest.raises(EntryError, match="P104 style_curves learns from images as they are, and mean_style changes"):
        images({"style_transfer": {"local": ["style_curves"]}})
    view = SimpleNamespace(count=lambda: 1, cases=lambda index: (torch.zeros(1, 1, 8, 8, 8), None),
                           input_shape=(1, 4, 4, 4))  # fmt: skip
    end = StyleCurves().at_site()
    end.name = "style_curves"
    with pytest.raises(StudyError, match="P104 style_curves is about the style of whole images"):
        end.meet(view)
    told = told_of(3)
    assert torch.equal(StyleCurves().shown(told, (3, 8, 8))(torch.ones(1, 3, 8, 8)), torch.ones(1, 3, 8, 8))
    for wrong in (told_of(2), {**told, "low": torch.zeros(2)}, {n: t for n, t in told.items() if n != "curves"}):
        with pytest.raises(Misfit):
            StyleCurves().shown(wrong, (3, 8, 8))


@pytest.mark.parametrize(
    ("target", "unseen", "words"),
    [("Nowhere", False, "P103 .*'Nowhere'"), ("A", True, "P104 style_curves .* needs A in every training")],
)
def test_a_target_must_be_there_in_every_training(tmp_path, target, unseen, words):
    content = pictures(tmp_path, "AB", 12) | {"methods": [style(2, target=target)]}
    content["evaluation"] |= {"unseen_sites": unseen}
    with pytest.raises(StudyError, match=words):
        Study.of(content, tmp_path).run(tmp_path / "out")
