"""Studies of several labels, of which a site may lack some: what is scored where, and what `multi_task` gains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from elsewhere import Elsewhere, split_table
from helpers import Federation, finding_site, write_table_study
from polyclinic import Model, Study
from polyclinic.composition import METHODS
from polyclinic.errors import StudyError
from polyclinic.running.progress import Checkpoint
from polyclinic.study.job import Job
from polyclinic.study.runner import run_study


def write_findings(folder: Path, sites: dict[str, tuple[int, str]]) -> dict[str, Any]:
    """A table for each site with the findings that it has, by their first letters, and a study of a second or two."""
    for number, (name, (cases, has)) in enumerate(sites.items()):
        rng = np.random.default_rng(number)
        inputs = rng.normal(size=(cases, 4)).round(4)
        table = pd.DataFrame(inputs, columns=[f"x{column}" for column in range(4)])
        table.insert(0, "patient", [f"MRN-{name}{case:03d}-secret" for case in range(cases)])
        known = {"tb": inputs[:, 0] > 0, "edema": inputs[:, 1] > 0, "grade": np.digitize(inputs[:, 2], [-0.4, 0.4])}
        for finding, values in known.items():
            if finding[0] in has:
                table[finding] = np.asarray(values).astype(int)
        table.to_csv(folder / f"{name}.csv", index=False)
    return {
        "study": "Several labels",
        "task": "multi_label",
        "data": {
            "tables": {name: f"{name}.csv" for name in sites}, "subject": "patient", "features": "x*",
            "scaling": "none", "findings": {"tb": {}, "edema": {}, "grade": {"classes": [0, 1, 2]}},
        },
        "model": "logistic",
        "training": {"rounds": 4, "batch_size": 8, "optimizer": {"sgd": {"lr": 0.5}}},
        "evaluation": {"folds": 2, "bootstrap": 0, "metrics": ["auc", "acc", "brier"], "best_round": "last"},
        "methods": ["single", "cross", "fedavg", "multi_task"],
        "engine": {"threads": 1, "mode": "sequential"},
    }  # fmt: skip


SITES = {"A": (36, "te"), "B": (30, "eg"), "C": (24, "teg")}


def values(results: pd.DataFrame, method: str, metric: str, site: str) -> pd.Series[float]:
    rows = results[(results["method"] == method) & (results["metric"] == metric) & (results["tested_on"] == site)]
    return rows["value"]


def test_sites_are_scored_for_what_they_have_and_never_by_zero(tmp_path: Path) -> None:
    content = write_findings(tmp_path, SITES)
    done = Study.of(content, tmp_path).run(tmp_path / "out")
    found, rows = done.results, done.predictions
    for site, (cases, has) in SITES.items():
        for finding in ("tb", "edema", "grade"):
            scores = values(found, "fedavg", f"auc[{finding}]", site)
            assert scores.notna().tolist() == [finding[0] in has] * 2, (site, finding)
            labels = rows[(rows["site"] == site) & (rows["method"] == "fedavg")][f"label[{finding}]"]
            assert labels.notna().sum() == (cases if finding[0] in has else 0)
        each = [values(found, "fedavg", f"auc[{one}]", site).to_numpy() for one in ("tb", "edema", "grade")]
        assert values(found, "fedavg", "auc", site).to_numpy() == pytest.approx(np.nanmean(each, axis=0))
    flow = pd.read_csv(tmp_path / "out" / "flow.csv", keep_default_na=False)
    tested = flow[(flow["site"] == "A") & (flow["stage"] == "test") & (flow["fold"].astype(str) == "0")]
    counts = dict(zip(tested["what"], tested["cases"].astype(int), strict=True))
    assert counts["tb=0"] + counts["tb=1"] == counts[""] == 18
    assert counts["grade=0"] + counts["grade=1"] + counts["grade=2"] == 0
    sites = pd.read_csv(tmp_path / "out" / "sites.csv", keep_default_na=False)
    assert sites["scored"].tolist() == [True] * 3
    assert "of grade" in sites["note"][0]
    assert "of tb" in sites["note"][1]
    assert not sites["note"][2]
    report = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "Finding by finding" in report
    assert "secret" not in report
    notes = (tmp_path / "out" / "notes.json").read_text(encoding="utf-8")
    assert "N285" in notes
    assert "N286" in notes
    assert "N287" in notes
    assert "tb in the models of B alone (cross)" in notes
    assert "`unseen_sites`" not in notes


def test_a_finding_of_one_site_is_not_learned_without_that_site(tmp_path: Path) -> None:
    content = write_findings(tmp_path, {"A": (24, "t"), "B": (24, "te")}) | {"methods": ["fedavg"]}
    content["data"]["findings"] = ["tb", "edema"]
    content["evaluation"] |= {"unseen_sites": True}
    done = Study.of(content | {"training": {"rounds": 1}}, tmp_path).run(tmp_path / "out")
    (note,) = [str(note) for note in done.notes if note.number == "N287"]
    assert ": edema without B (fedavg, `unseen_sites`). " in note


def test_one_label_that_all_have_is_classification(tmp_path: Path) -> None:
    content = write_table_study(tmp_path, {"north": 31, "south": 24}) | {"methods": ["single", "fedavg"]}
    content["evaluation"] |= {"metrics": ["auc", "acc", "brier"]}
    content["training"] |= {"rounds": 2}
    one = Study.of(content, tmp_path).run(tmp_path / "one")
    data = {name: value for name, value in content["data"].items() if name != "label"}
    data["findings"] = {"diagnosis": {"positive": "kind 1", "weight": 5}}
    content |= {"task": "multi_label", "data": data, "methods": ["single", {"multi_task": {"label": "fedavg"}}]}
    other = Study.of(content, tmp_path).run(tmp_path / "several")
    pd.testing.assert_frame_equal(other.results, one.results, rtol=1e-12)
    rows = other.predictions
    assert rows["score[diagnosis]"].equals(one.predictions["score"])
    assert rows["threshold[diagnosis]"].equals(one.predictions["threshold"])
    assert (rows["label[diagnosis]"] == one.predictions["label"]).all()
    for path in sorted((tmp_path / "one" / "models").iterdir()):
        mine, theirs = load_file(tmp_path / "several" / "models" / path.name), load_file(path)
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_each_site_has_one_label_and_multi_task_knows_both(seed: int, tmp_path: Path) -> None:
    content = write_findings(tmp_path, {"A": (60, "t"), "B": (60, "e")})
    content |= {"seed": seed}
    content["data"]["findings"] = ["tb", "edema"]
    found = Study.of(content, tmp_path).run(tmp_path / "out").results

    def brier(method: str, finding: str, site: str) -> float:
        return float(values(found, method, f"brier[{finding}]", site).mean())

    for finding, site in (("tb", "A"), ("edema", "B")):
        alone, together, diluted = (brier(name, finding, site) for name in ("cross", "multi_task", "fedavg"))
        assert together < 0.13 < 0.2 < alone, "the other site's model knows nothing of what it has no label of"
        assert together < diluted - 0.02, "half of each step is lost where sites without labels count"
    one = finding_site("A", 40, (0,)), finding_site("B", 40, (1,))
    federation = Federation({site.site: site for site in one}, ["fedavg", "multi_task"], task="multi_label", classes=4)
    start = federation.initial(0)
    moved = {name: (federation.state(name, seed) - federation.initial(seed)) for name in ("fedavg", "multi_task")}
    assert torch.equal(start, federation.initial(0))
    assert torch.allclose(moved["multi_task"], 2 * moved["fedavg"], atol=1e-6)  # a logistic model is heads alone


def test_engines_give_the_same(tmp_path: Path) -> None:
    data = {
        name: finding_site(name, cases, has)
        for name, cases, has in (("A", 20, (0,)), ("B", 13, (1,)), ("C", 9, (0, 1)))
    }
    kind: dict[str, Any] = {"task": "multi_label", "classes": 4, "model": {"mlp": {"hidden": [5]}}}
    training = {"rounds": 2}
    plain = Federation(data, ["multi_task"], training=training, **kind).state()
    assert torch.equal(Federation(data, ["multi_task"], training=training, serialise=True, **kind).state(), plain)
    stacked = Federation(data, ["multi_task"], training=training, stacked=True, **kind).state()
    assert torch.allclose(stacked, plain, atol=1e-5)


def test_every_method_learns_several_labels_or_says_why_not() -> None:
    has = dict(zip("ABCDEFGH", [(0, 1), (0,), (1,), (0, 1), (0,), (1,), (0, 1), (0, 1)], strict=True))
    sites = {name: finding_site(name, 16, own, part=None) for name, own in has.items()}
    refused = set[tuple[str, str]]()
    given = {"fltrust": {"trusted": "A"}, "fedmoco": {"pretraining_rounds": 1, "training": {"rounds": 2}}}
    for name in METHODS:
        try:
            federation = Federation(
                sites, [{name: given.get(name, {})}], task="multi_label", classes=4,
                model={"mlp": {"hidden": [4]}}, evaluation={"folds": 2, "validation": 0.2, "best_round": "loss"},
            )  # fmt: skip
        except StudyError as error:
            refused.add((name, error.code))
            continue
        found = pd.concat(federation.outcome().predictions)
        assert np.isfinite(found[["score[tb]", "score[edema]"]].to_numpy()).all(), name
    # They ask for one label, for views of cases without a label, for images, for bags, or for subgroups.
    assert {code for _, code in refused} <= {"P102", "P104"}
    assert {name for name, _ in refused} >= {"fedsld", "fixmatch", "harmofl", "elcfs"}
    learned = {"single", "mix", "fedavg", "fedbn", "scaffold", "multi_task", "mean_teacher", "dynamic_fusion", "ditto"}
    learned |= {"fedmoco"}
    assert not learned & {name for name, _ in refused}


def test_a_run_that_was_killed_ends_with_the_same_bytes(tmp_path: Path) -> None:
    class Killed(BaseException):
        pass

    def federation(folder: Path) -> Federation:
        data = {name: finding_site(name, 24, has, part=None) for name, has in (("A", (0,)), ("B", (1,)), ("C", (0, 1)))}
        return Federation(
            data, ["multi_task"], task="multi_label", classes=4, model={"mlp": {"hidden": [5], "norm": "batch"}},
            training={"rounds": 4, "optimizer": {"sgd": {"lr": 0.1, "momentum": 0.9}}}, folder=folder / "sites",
            evaluation={"folds": 2, "validation": 0.3, "best_round": "loss"},
        )  # fmt: skip

    def outcome(folder: Path, stop: int | None = None) -> Any:
        def report(done: int, _: int) -> None:
            if done == stop:
                raise Killed

        one = federation(folder)
        job = Job((one.method(),), 0, 0)
        found = one.runner.run(job, one.fold, checkpoint=Checkpoint(folder / "job"), report=report)
        (tensors,) = found.models.values()
        rows = [frame.to_csv() for frame in found.predictions]
        return rows, {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}

    unbroken = outcome(tmp_path / "unbroken")
    for rounds in (1, 3):
        with pytest.raises(Killed):
            outcome(tmp_path / str(rounds), rounds)
        assert outcome(tmp_path / str(rounds)) == unbroken


def test_predictions_may_stay_at_the_sites(tmp_path: Path) -> None:
    content = write_findings(tmp_path, SITES) | {"methods": ["fedavg", "multi_task"]}
    here = Study.of(content, tmp_path).run(tmp_path / "here")
    content["evaluation"] |= {"predictions": "sites", "disclosure_floor": 1}
    there = Study.of(content, tmp_path).run(tmp_path / "there")
    columns = ["method", "fold", "tested_on", "metric"]
    mine, theirs = (run.results.set_index(columns)["value"].sort_index() for run in (there, here))
    assert mine.index.equals(theirs.index)
    near = mine.index.get_level_values("metric").str.startswith("auc") & (mine.index.get_level_values(2) == "all")
    assert mine[~near].to_numpy() == pytest.approx(theirs[~near].to_numpy(), nan_ok=True, abs=1e-12)
    assert mine[near].to_numpy() == pytest.approx(theirs[near].to_numpy(), abs=0.02)
    limits = pd.read_csv(tmp_path / "there" / "thresholds.csv")
    assert set(limits["finding"]) == {"tb", "edema", "grade"}
    rows = here.predictions
    for fold in (0, 1):
        own = limits[(limits["method"] == "multi_task") & (limits["fold"] == fold)].set_index("finding")["threshold"]
        first = rows[(rows["method"] == "multi_task") & (rows["fold"] == fold)].iloc[0]
        assert first["threshold[tb]"] == own["tb"]
        assert first["threshold[edema]"] == own["edema"]


def test_sites_elsewhere_give_the_same_and_may_lack_columns(tmp_path: Path) -> None:
    content = write_findings(tmp_path, SITES) | {"methods": ["single", "multi_task"]}
    every = pd.concat([pd.read_csv(tmp_path / f"{name}.csv", dtype=str).assign(site=name) for name in SITES])
    every.to_csv(tmp_path / "cases.csv", index=False)
    del content["data"]["tables"]
    content["data"] |= {"table": "cases.csv", "site": "site"}
    content["evaluation"] |= {"predictions": "coordinator"}
    Study.of(content, tmp_path).run(tmp_path / "here")
    folders = split_table(tmp_path)
    for name, folder in folders.items():
        own = pd.read_csv(folder / "cases.csv", dtype=str, keep_default_na=False)
        own.loc[:, (own != "").any()].to_csv(folder / "cases.csv", index=False)
        assert ("tb" in pd.read_csv(folder / "cases.csv")) == (name != "B")
    run_study(Study.of(content, tmp_path), tmp_path / "there", engine=Elsewhere(folders, tmp_path / "sites"))
    for name in ("results.csv", "predictions.csv", "sites.csv", "flow.csv", "summary.csv"):
        assert (tmp_path / "here" / name).read_bytes() == (tmp_path / "there" / name).read_bytes(), name
    notes = [(tmp_path / place / "notes.json").read_text(encoding="utf-8") for place in ("here", "there")]
    assert [note.count("N285") for note in notes] == [0, 2]
    assert "secret" not in notes[1]


def test_thresholds_from_sums_are_those_from_counts(tmp_path: Path) -> None:
    pytest.importorskip("cryptography")
    content = write_findings(tmp_path, SITES) | {"methods": ["fedavg"]}
    clear = Study.of(content, tmp_path).run(tmp_path / "clear").predictions
    content["privacy"] = {"summaries": "secure_sum"}
    hidden = Study.of(content, tmp_path).run(tmp_path / "hidden").predictions
    pd.testing.assert_frame_equal(clear, hidden)


@pytest.mark.parametrize("alone", [False, True])
def test_the_final_model_gives_all_labels(alone: bool, tmp_path: Path) -> None:
    content = write_findings(tmp_path, SITES) | {"methods": ["multi_task"]}
    content["evaluation"] |= {"best_round": "loss"}
    content["final_model"] = {"method": "multi_task", "alone": alone}
    study = Study.of(content, tmp_path)
    if alone:
        model = Model.fit(study, tmp_path / "model")
    else:
        study.run(tmp_path / "out")
        model = Model(tmp_path / "out" / "model")
    table = pd.read_csv(tmp_path / "C.csv", dtype=str)
    found = model.predict(table.drop(columns=["tb", "edema", "grade"]), site="C")
    assert set(found["predicted[tb]"]) == {"tb=0", "tb=1"}
    assert set(found["predicted[grade]"]) <= {"grade=0", "grade=1", "grade=2"}
    assert not [column for column in found if column.startswith("label")]
    limits = model.description.completion
    assert len(limits) == 3
    assert found["threshold[tb]"].unique().tolist() == [limits[0]]
    assert ((found["score[tb]"] >= limits[0]) == (found["predicted[tb]"] == "tb=1")).all()
    assert (found["predicted[tb]"].str[-1] == table["tb"]).mean() > 0.8
    columns = [f"score_{place}[grade]" for place in range(3)]
    assert found[columns].sum(axis=1).to_numpy() == pytest.approx(1.0)
    assert (found["predicted[grade]"].str[-1].astype(int) == found[columns].to_numpy().argmax(axis=1)).all()


def test_hidden_and_missing_labels_are_learned_from_without_labels(tmp_path: Path) -> None:
    content = write_findings(tmp_path, SITES) | {"methods": ["fedavg", "mean_teacher"]}
    content["data"] |= {"labels": {"share": 0.5}}
    found = Study.of(content, tmp_path).run(tmp_path / "out").results
    assert found[found["metric"] == "auc"]["value"].notna().all()
    flow = pd.read_csv(tmp_path / "out" / "flow.csv", keep_default_na=False)
    assert (flow["stage"] == "hidden").any()


def test_a_site_of_one_class_is_not_scored_and_a_site_without_labels_left_out(tmp_path: Path) -> None:
    content = write_findings(tmp_path, SITES) | {"methods": ["fedavg"]}
    table = pd.read_csv(tmp_path / "A.csv")
    table.assign(tb=1, edema=0).to_csv(tmp_path / "A.csv", index=False)
    empty = pd.read_csv(tmp_path / "B.csv").assign(edema="", grade="")
    empty.to_csv(tmp_path / "B.csv", index=False)
    done = Study.of(content, tmp_path).run(tmp_path / "out")
    assert "B" not in set(done.results["tested_on"])
    sites = pd.read_csv(tmp_path / "out" / "sites.csv", keep_default_na=False).set_index("site")
    assert not sites.loc["A", "scored"]
    assert sites.loc["C", "scored"]
    assert values(done.results, "fedavg", "auc", "A").isna().all()
    assert "N208" in (tmp_path / "out" / "notes.json").read_text(encoding="utf-8")
