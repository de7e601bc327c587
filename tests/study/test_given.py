"""Frames, data sets, networks and losses that a program gives: the same numbers as from files, or a sentence."""

import functools
import json

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

from polyclinic.data.pictures.items import read_items
from polyclinic.data.tables.cells import read_cells
from polyclinic.data.tables.frames import find_frame, keep_frame
from polyclinic.errors import DataError, ResultsError, StudyError
from polyclinic.models import MODELS
from polyclinic.study.given.functions import fingerprint
from polyclinic.study.reading import read_yaml
from polyclinic.study.runner import run_study
from polyclinic.study.study import Study

ENTRIES = {
    "data": {"label": "kind", "features": ["x", "y"], "subject": "patient"},
    "model": "logistic",
    "training": {"rounds": 2},
    "evaluation": {"holdout": 0.3, "bootstrap": 20, "metrics": ["auc", "bac"]},
    "methods": ["fedavg"],
}


def hospitals(cases=30):
    random = np.random.default_rng(0)
    found = {}
    for site in ("Aachen", "Bonn"):
        kind = random.integers(0, 2, cases)
        found[site] = pd.DataFrame({
            "patient": [f"{site} {number // 2:03d}" for number in range(cases)],
            "x": random.normal(kind, 0.7), "y": random.normal(0, 1, cases).astype(np.float32),
            "kind": pd.Categorical(np.where(kind, "ill", "well")),
        })  # fmt: skip
    return found


def changed(**entries):
    return {**ENTRIES, **entries}


class Net(nn.Module):
    def __init__(self, shape, outputs, width=3):
        super().__init__()
        self.body, self.head = nn.Linear(shape[0], width), nn.Linear(width, outputs)

    def forward(self, inputs):
        return self.head(self.body(inputs).tanh())


def with_head(shape, outputs):
    net = Net(shape, outputs)
    return net, [net.head]


def weighted(outputs, targets):
    return nn.functional.cross_entropy(outputs, targets, reduction="none") * (1 + targets)


# Frames ---------------------------------------------------------------------------------------------------------------


def test_frames_give_the_bytes_that_files_give(tmp_path):
    frames = hospitals()
    frames["Bonn"].loc[3, "x"] = np.nan
    for site, frame in frames.items():
        frame.to_csv(tmp_path / f"{site}.csv", index=False)
    tables = {site: f"{site}.csv" for site in frames}
    Study.of(changed(data={**ENTRIES["data"], "tables": tables}), tmp_path).run(tmp_path / "files")
    Study.of(ENTRIES, data=frames).run(tmp_path / "frames")
    for name in ("results.csv", "predictions.csv", "sites.csv", "summary.csv"):
        assert (tmp_path / "files" / name).read_bytes() == (tmp_path / "frames" / name).read_bytes(), name
    records = [json.loads((tmp_path / one / "provenance.json").read_text()) for one in ("files", "frames")]
    assert records[0]["data_sha256"] == records[1]["data_sha256"]
    files, given = (Study.of(ENTRIES, data=frames).run(), Study.of(changed(
        data={**ENTRIES["data"], "table": pd.concat(frames, names=["site"]).reset_index("site"), "site": "site"}
    )).run())  # fmt: skip
    assert files.results.equals(given.results)


def test_cells_are_those_of_a_file(tmp_path):
    frame = pd.DataFrame({
        "text": ["a, b", ' "c"', "", "NA"], "whole": pd.array([1, None, 3, 4], dtype="Int64"),
        "number": [0.1 + 0.2, 1e-300, float("inf"), np.nan], "small": np.array([0.1, 1, 2, 3], dtype=np.float32),
        "yes": [True, False, True, True],
        "day": pd.to_datetime(["2020-01-02", None, "2020-01-02 03:04", "2021-01-01"], format="ISO8601"),
        "code": ["007", "08", "1", "2"],
    })  # fmt: skip
    cells = keep_frame(frame, "A").cells
    assert cells["number"].tolist() == ["0.30000000000000004", "1e-300", "inf", ""]
    assert cells["small"].tolist() == ["0.1", "1.0", "2.0", "3.0"]
    assert cells["whole"].tolist() == ["1", "", "3", "4"]
    assert cells["code"].tolist() == ["007", "08", "1", "2"]
    assert cells["day"].tolist() == ["2020-01-02", "", "2020-01-02T03:04:00", "2021-01-01"]
    assert cells["text"].tolist() == ["a, b", '"c"', "", "NA"]
    frame.drop(columns="day").to_csv(tmp_path / "a.csv", index=False)
    other = read_cells(tmp_path / "a.csv")
    assert other.drop(columns="small").equals(cells.drop(columns=["day", "small"]))


@pytest.mark.parametrize(("frame", "why"), [
    (pd.DataFrame({"x": [[1, 2]]}), "P203 The frame 'A', column 'x': got a cell of type list"),
    (pd.DataFrame(), "P201 The frame 'A' has no columns"),
    (pd.DataFrame({"x": ["mm", "1", "2", "3", "4"], "y": ["kg", "1", "2", "3", "4"]}), "P201 The table 'A'"),
])  # fmt: skip
def test_frames_that_are_no_tables(frame, why):
    with pytest.raises(DataError, match=why):
        keep_frame(frame, "A")


def test_an_index_with_a_name_is_a_column():
    frame = pd.DataFrame({"x": [1]}, index=pd.Index(["a"], name="patient"))
    assert keep_frame(frame, "A").cells.columns.tolist() == ["patient", "x"]
    assert keep_frame(frame.rename_axis(None), "A").cells.columns.tolist() == ["x"]


def test_mistakes_are_told_as_for_files():
    frames = hospitals()
    frames["Bonn"] = frames["Bonn"].rename(columns={"y": "z"})
    with pytest.raises(DataError, match="P202 The table 'Bonn' has no column 'y'"):
        Study.of(ENTRIES, data=frames).check()
    frames = hospitals()
    frames["Bonn"].loc[:3, "patient"] = frames["Aachen"].loc[0, "patient"]
    _, notes = Study.of(ENTRIES, data=frames).check()
    assert any(str(note).startswith("1 patient name stands at more than one site") for note in notes)


@pytest.mark.parametrize(("entries", "data", "why"), [
    ({"data": {"tables": {"A": "a.csv"}}}, {"A": pd.DataFrame({"x": [1]})}, "give one"),
    ({}, [pd.DataFrame({"x": [1]})], "got a list; expected a frame or data set for each site"),
    ({}, {"A": 3}, "got a int; expected a frame, a data set or a path"),
    ({"data": {"columns": ["a"], "features": "x", "label": "k"}}, {"A": pd.DataFrame({"x": [1]})}, "P202 `columns`"),
])  # fmt: skip
def test_data_that_do_not_fit(entries, data, why):
    with pytest.raises((StudyError, DataError), match=why):
        Study.of(changed(**entries), data=data).check()


def test_a_study_goes_on_with_the_same_frames_alone(tmp_path):
    frames = hospitals()
    stopped = Study.of(ENTRIES, data=frames)
    from polyclinic.study.display import Display

    class Stopping(Display):
        def round(self, done, total):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped.run(tmp_path / "out", display=Stopping())
    other = {**frames, "Bonn": frames["Bonn"].assign(x=0.5)}
    with pytest.raises(ResultsError, match=r"P501 The study in .* is not this one: it differs in `data`"):
        Study.of(ENTRIES, data=other).run(tmp_path / "out", resume=True)
    resumed = Study.of(ENTRIES, data=hospitals()).run(tmp_path / "out", resume=True)
    assert resumed.results.equals(Study.of(ENTRIES, data=frames).run().results)


def test_the_file_of_a_study_alone_has_no_frames(tmp_path):
    Study.of(ENTRIES, data=hospitals()).run(tmp_path / "out")
    content, _ = read_yaml(tmp_path / "out" / "study.yaml")
    with pytest.raises(DataError, match=r"P201 .* is a frame of a Python program, and is not here"):
        Study.of(content).check()


def test_frames_are_gone_with_their_study():
    study = Study.of(ENTRIES, data=hospitals())
    entry = study.declaration.data.tables["Aachen"]
    assert find_frame(entry).name == "Aachen"
    del study
    with pytest.raises(DataError, match="P201"):
        find_frame(entry)


# Data sets ------------------------------------------------------------------------------------------------------------


def pictures(count=24, dtype=torch.uint8, channels=1, seed=0):
    random = torch.Generator().manual_seed(seed)
    found = []
    for number in range(count):
        picture = torch.randint(0, 100, (channels, 12, 10), generator=random, dtype=torch.uint8)
        picture[:, :6] += 120 * (number % 2)
        found.append((picture if dtype == torch.uint8 else picture.float() / 255, number % 2))
    return found


def test_pictures_of_a_data_set_keep_their_pixels():
    for channels, word in ((1, "grey"), (3, "rgb")):
        given = pictures(4, channels=channels)
        found = read_items(given, "A")
        assert (found.channels, found.sizes) == (word, {(12, 10)})
        for cell, (picture, _) in zip(found.frame.cells["image"], given, strict=True):
            with Image.open(f"{found.frame.images.name}/{cell}") as stored:
                pixels = np.asarray(stored)
            assert np.array_equal(pixels if channels == 3 else pixels[:, :, None], picture.numpy().transpose(1, 2, 0))


def test_a_study_of_data_sets_is_the_same_for_bytes_and_for_shares_of_255():
    entries = {"model": "cnn", "training": {"rounds": 1}, "methods": ["fedavg"], "evaluation": ENTRIES["evaluation"]}
    found = []
    for dtype in (torch.uint8, torch.float32):
        study = Study.of(entries, data={"A": pictures(dtype=dtype), "B": pictures(dtype=dtype, seed=1)})
        assert study.declaration.data.size == (12, 10)
        found.append(study.run().results)
    assert found[0].equals(found[1])


def test_features_and_masks_of_data_sets():
    rows = [{"input": torch.tensor([1.5, float(n)]), "target": n % 2, "subject": f"p{n}"} for n in range(4)]
    found = read_items(rows, "A")
    assert found.features == ["x1", "x2"]
    assert found.frame.cells["subject"].tolist() == ["p0", "p1", "p2", "p3"]
    assert found.frame.cells["x2"].tolist() == ["0.0", "1.0", "2.0", "3.0"]
    masked = read_items([(torch.zeros(3, 8, 8, dtype=torch.uint8), torch.ones(8, 8))], "A")
    assert masked.masks
    assert masked.frame.cells["mask"].tolist() == ["mask000000.png"]


@pytest.mark.parametrize(("items", "why"), [
    ([], "has no items"),
    ([(torch.rand(1, 8, 8), 0)], "floats that are not all shares of 255"),
    ([(torch.full((1, 8, 8), float("nan")), 0)], "floats that are not all shares of 255"),
    ([(torch.zeros(1, 8, 8) - 1, 0)], "floats that are not all shares of 255"),
    ([(torch.zeros(2, 8, 8, dtype=torch.uint8), 0)], r"an input of shape \[2, 8, 8\]"),
    ([(torch.zeros(8, 8, dtype=torch.int64), 0)], "values of type int64"),
    ([torch.zeros(3)], "got a Tensor"),
    ([{"image": torch.zeros(3), "target": 1}], "a mapping with image, target"),
    ([(torch.zeros(8, 8, dtype=torch.uint8), torch.full((8, 8), 0.5))], "a mask of shape"),
    ([(torch.zeros(3), 0), (torch.zeros(8, 8, dtype=torch.uint8), 0)], "has features and grey inputs"),
])  # fmt: skip
def test_items_that_do_not_fit(items, why):
    with pytest.raises(DataError, match=why):
        read_items(items, "A")


# Networks and losses --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [
    Net, with_head, functools.partial(Net, width=2), lambda: nn.Linear(2, 2), lambda shape, outputs: Net(shape, 2),
])  # fmt: skip
def test_networks_that_are_given(model):
    found = Study.of(changed(model=model), data=hospitals()).run()
    assert found.results["value"].notna().all()


def test_a_given_network_has_the_numbers_of_the_same_one_in_the_catalogue():
    def logistic(shape, outputs):
        layer = nn.Linear(shape[0], outputs)
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
        return layer, [layer]

    mine, theirs = (Study.of(changed(model=model), data=hospitals()).run() for model in (logistic, "logistic"))
    assert mine.results.equals(theirs.results)


def test_what_is_given_is_listed_nowhere():
    name = Study.of(changed(model=Net), data=hospitals()).declaration.model_part[0]
    assert name in MODELS
    assert name not in list(MODELS)


def test_a_head_is_said_or_there_is_none():
    entries = changed(methods=[{"fedavg": {"share": "head"}}])
    with pytest.raises(
        StudyError, match=r"P104 .* shares the head of the model, and there are no weights of it in python:Net"
    ):
        Study.of({**entries, "model": Net}, data=hospitals()).run()
    Study.of({**entries, "model": with_head}, data=hospitals()).run()


@pytest.mark.parametrize(("entries", "why"), [
    ({"model": nn.Linear(2, 2)}, "P102 study, model: got a network that is there already"),
    ({"model": lambda a, b, c: None}, "got a network that needs a, b, c"),
    ({"training": {"loss": nn.CrossEntropyLoss()}}, r"gave a tensor \[\]; expected the loss of each case"),
    ({"training": {"loss": nn.CrossEntropyLoss}}, "got the class CrossEntropyLoss, expected a function"),
    ({"engine": {"mode": "processes"}, "model": Net}, "P104 `engine: {mode: processes}`"),
    ({"model": lambda shape, outputs: 3}, "P302 .* got a int, expected an nn.Module"),
])  # fmt: skip
def test_networks_and_losses_that_do_not_fit(entries, why):
    with pytest.raises(Exception, match=why):
        Study.of(changed(**entries), data=hospitals()).run()


def test_a_loss_is_given_for_all_methods_or_for_one():
    study = Study.of(
        changed(training={"loss": weighted}, methods=["fedavg", {"fedavg": {"label": "plain", "training": {
            "loss": nn.CrossEntropyLoss(reduction="none")}}}]),
        data=hospitals(),
    )  # fmt: skip
    names = [study.declaration.loss_of(one.training)[0] for one in study.declaration.study_methods]
    assert [name.split(":")[1] for name in names] == ["weighted", "CrossEntropyLoss"]
    assert study.run().results["value"].notna().all()


def test_what_counts_as_the_same_function():
    def scaled(factor):
        def loss(outputs, targets):
            return weighted(outputs, targets) * factor

        return loss

    assert fingerprint(scaled(2)) == fingerprint(scaled(2)) != fingerprint(scaled(3))
    assert fingerprint(Net) == fingerprint(Net) != fingerprint(with_head)
    assert fingerprint(functools.partial(Net, width=2)) != fingerprint(functools.partial(Net, width=3))
    smooth = nn.CrossEntropyLoss(reduction="none", label_smoothing=0.1)
    assert fingerprint(smooth) != fingerprint(nn.CrossEntropyLoss(reduction="none", label_smoothing=0.2))
    assert fingerprint(nn.CrossEntropyLoss(torch.tensor([1.0, 2.0]))) != fingerprint(
        nn.CrossEntropyLoss(torch.tensor([1.0, 3.0]))
    )
    assert fingerprint(scaled(object())) == ""  # nothing tells
    assert fingerprint(eval("lambda shape, outputs: None")) == ""  # noqa: S307 - a function without source


def test_a_function_that_nothing_tells_of_is_not_resumed(tmp_path):
    model = eval("lambda shape, outputs: nn.Linear(shape[0], outputs)", {"nn": nn})  # noqa: S307
    Study.of(changed(model=model), data=hospitals()).run(tmp_path / "out")
    with pytest.raises(ResultsError, match=r"differs in `model` \(a function is the same if"):
        Study.of(changed(model=model), data=hospitals()).run(tmp_path / "out", resume=True)


def test_nothing_of_a_program_goes_to_hospitals(tmp_path):
    class Elsewhere:
        holds_all = False

    for study in (Study.of(ENTRIES, data=hospitals()), Study.of(changed(
        data={**ENTRIES["data"], "tables": {"A": "a.csv"}}, model=Net)
    )):  # fmt: skip
        with pytest.raises(StudyError, match=r"P104 .* don't travel: no code goes to sites.*polyclinic plugin new"):
            run_study(study, tmp_path / "out", engine=Elsewhere())
