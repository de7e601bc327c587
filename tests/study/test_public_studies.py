"""Studies with a public set: what is read, compared, counted, noted and refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from helpers import image_site, table_site, write_image_study, write_table_study
from polyclinic import Study
from polyclinic.data.opening.public import PublicFacts, check_alike
from polyclinic.engine.cases import cases_received, cases_sent
from polyclinic.errors import DataError, PolyclinicError, StudyError
from polyclinic.models import build_model
from polyclinic.study import runner
from polyclinic.study.final_model.folder import CARD_TEXT
from polyclinic.study.folds import Folds
from polyclinic.study.opening import ask_agree, ask_open, local_engine

SIZES = {"north": 24, "south": 20, "east": 18}
METHODS: list[Any] = [
    "fedavg", {"fedmd": {"label": "fedmd"}}, {"feddf": {"steps": 4, "label": "feddf"}},
]  # fmt: skip


def table_study(folder: Path, **changes: Any) -> dict[str, Any]:
    """Three sites and a public file with 16 rows of a fourth, in another order of the columns."""
    content = write_table_study(folder, SIZES | {"away": 16})
    table = pd.read_csv(folder / "cases.csv", dtype=str)
    table[table["site"] == "away"][["x2", "x0", "x1"]].to_csv(folder / "public.csv", index=False)
    table.to_csv(folder / "all.csv", index=False)
    table[table["site"] != "away"].to_csv(folder / "cases.csv", index=False)
    content["data"] |= {"public": "public.csv"}
    content["training"] |= {"rounds": 2}
    content["methods"] = METHODS
    return content | changes


def cohort_of(content: dict[str, Any], folder: Path) -> Any:
    study = Study.of(content, folder)
    engine = local_engine(study)
    return ask_agree(ask_open(study, engine), engine)


def bytes_of(folder: Path) -> dict[str, bytes]:
    names = ("results.csv", "predictions.csv", "flow.csv")
    kept = [path for path in folder.rglob("*") if path.name in names or path.suffix == ".safetensors"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in kept if path.name != "checkpoint.safetensors"}


# What is read ---------------------------------------------------------------------------------------------------------


def test_features_come_in_the_agreed_order_and_rows_that_cannot_be_used_are_counted(tmp_path: Path) -> None:
    content = table_study(tmp_path)
    content["data"] |= {"categorical": ["kind"], "divide_by": "volume", "features": "x*", "imputation": "mean"}
    for name in ("cases.csv", "public.csv"):
        table = pd.read_csv(tmp_path / name)
        table["kind"], table["volume"] = np.where(np.arange(len(table)) % 2, "a", "b"), 2
        table.to_csv(tmp_path / name, index=False)
    table["kind"] = table["kind"].astype(object)
    table.loc[0, "kind"], table.loc[1, "volume"], table.loc[2, "x1"] = "other", 0, np.nan
    table.to_csv(tmp_path / "public.csv", index=False)
    cohort = cohort_of(content, tmp_path)
    found, inputs = cohort.public, cohort.public_inputs
    assert (found.found, found.used) == (16, 14)
    assert sum(found.rejected.values()) == 2
    assert "volume is not positive" in found.rejected
    names = cohort.features
    kept = table.drop(index=[0, 1])
    assert inputs.shape == (14, len(names))
    for name in ("x0", "x1", "x2"):
        np.testing.assert_allclose(inputs[:, names.index(name)].numpy(), kept[name] / 2, rtol=1e-6)
    assert inputs[:, names.index("kind=a")].tolist() == (kept["kind"] == "a").astype(float).tolist()
    (note,) = [str(note) for note in cohort.notes if note.number == "N271"]
    assert note.startswith("2 of 16 cases of the public set can't be used (")


def test_features_that_no_case_has_are_named(tmp_path: Path) -> None:
    content = table_study(tmp_path)
    content["data"] |= {"imputation": "mean"}
    assert not [note for note in cohort_of(content, tmp_path).notes if note.number == "N272"]
    table = pd.read_csv(tmp_path / "public.csv", dtype=str)
    table["x1"] = ""
    table.to_csv(tmp_path / "public.csv", index=False)
    (note,) = [str(note) for note in cohort_of(content, tmp_path).notes if note.number == "N272"]
    assert note.startswith("No case of the public set has the feature x1: ")


def test_a_public_set_of_all_sites_leaves_none(tmp_path: Path) -> None:
    content = table_study(tmp_path)
    content["data"] |= {"public": {"sites": list(SIZES)}}
    with pytest.raises(DataError, match="P205 No row can be used: none is left of any site"):
        cohort_of(content, tmp_path)


def test_a_fingerprint_is_of_what_is_used_in_its_order(tmp_path: Path) -> None:
    content = table_study(tmp_path)
    first = cohort_of(content, tmp_path)
    table = pd.read_csv(tmp_path / "public.csv", dtype=str)
    table["comment"] = "not used"
    table[["comment", "x0", "x1", "x2"]].to_csv(tmp_path / "public.csv", index=False)
    again = cohort_of(content, tmp_path)
    assert again.public == first.public
    assert again.fingerprint == first.fingerprint
    table["x0"] = table["x0"].astype(float).map("{:.8e}".format)
    table.to_csv(tmp_path / "public.csv", index=False)
    assert cohort_of(content, tmp_path).public == first.public
    table.iloc[::-1].to_csv(tmp_path / "public.csv", index=False)
    turned = cohort_of(content, tmp_path)
    assert turned.public.fingerprint != first.public.fingerprint
    assert turned.fingerprint != first.fingerprint


@pytest.mark.parametrize("scaling", ["per_site", "federated", "none"])
def test_it_is_scaled_as_the_study_says(tmp_path: Path, scaling: str) -> None:
    content = table_study(tmp_path, methods=["fedmd"])
    content["data"] |= {"scaling": scaling}
    study = Study.of(content, tmp_path)
    engine = local_engine(study)
    cohort = ask_agree(ask_open(study, engine), engine)
    folds = Folds(study.declaration, cohort, engine, engine)
    folds.count()
    found, raw = folds.public(), cohort.public_inputs
    assert found is not None
    values = found.batch(torch.arange(16))[0]
    for site in engine.members.values():
        assert site.public is not None
        assert torch.equal(site.public.batch(torch.arange(16))[0], values)
    if scaling == "none":
        assert torch.equal(values, raw)
    elif scaling == "per_site":
        torch.testing.assert_close(values, (raw - raw.mean(0)) / raw.std(0, correction=0))
    else:
        merged = folds.merged[0]
        deviation = (merged["m2"] / merged["count"]).sqrt()
        torch.testing.assert_close(values, ((raw.double() - merged["mean"]) / deviation).float())


def test_a_site_of_the_study_can_be_the_public_set(tmp_path: Path) -> None:
    content = table_study(tmp_path)
    file = cohort_of(content, tmp_path)
    content["data"] |= {"table": "all.csv", "public": {"sites": ["away"]}}
    site = cohort_of(content, tmp_path)
    assert site.sites == file.sites == ["east", "north", "south"]
    assert site.public == file.public
    table = pd.read_csv(tmp_path / "all.csv", dtype=str)
    table.loc[table["site"] == "away", "diagnosis"] = "never looked at"
    table.loc[table.index[-1], "diagnosis"] = np.nan
    table.to_csv(tmp_path / "all.csv", index=False)
    assert cohort_of(content, tmp_path).public == file.public
    assert cohort_of(content, tmp_path).classes == file.classes
    content["data"]["public"] = {"sites": ["awya"]}
    with pytest.raises(DataError, match=r"P203.*'awya'.*away"):
        cohort_of(content, tmp_path)


def test_pictures(tmp_path: Path) -> None:
    content = write_image_study(tmp_path, {"north": 8, "south": 7})
    (tmp_path / "public").mkdir()
    site, rows = image_site("Celle", 9, size=16, masks=True), []
    for case in range(9):
        Image.fromarray(site.inputs[case, 0].numpy()).save(tmp_path / "public" / f"{case}.png")
        rows.append(f"{case}.png")
    (tmp_path / "public" / "3.png").write_bytes(b"no picture")
    pd.DataFrame({"image": rows}).to_csv(tmp_path / "public" / "cases.csv", index=False)
    content["data"] |= {"public": {"table": "public/cases.csv"}, "max_unreadable": 0.2}
    content["methods"] = [{"fedmd": {"label": "fedmd"}}, {"feddf": {"steps": 2, "label": "feddf"}}]
    cohort = cohort_of(content, tmp_path)
    assert (cohort.public.found, cohort.public.used) == (9, 8)
    assert torch.equal(cohort.public_inputs[:3], site.inputs[:3])
    Study.of(content, tmp_path).run(tmp_path / "out")
    assert pd.read_csv(tmp_path / "out" / "results.csv")["value"].notna().all()


def test_features_in_another_unit_are_noted_where_all_are_scaled_alike(tmp_path: Path) -> None:
    content = table_study(tmp_path, methods=["fedmd"])
    rng = np.random.default_rng(0)
    for name in ("cases.csv", "public.csv"):
        table = pd.read_csv(tmp_path / name)
        table["x0"] = 170 + 10 * rng.normal(size=len(table))
        table["x1"] = rng.normal(size=len(table)) + (30 if name == "public.csv" else 0)
        table["x2"] = np.arange(len(table)) % 2  # a code, of which the public set has one more
        table.to_csv(tmp_path / name, index=False)
    table["x0"] /= 100
    table["x2"] = 7
    table.to_csv(tmp_path / "public.csv", index=False)

    def noted(**data: Any) -> list[str]:
        study = Study.of(content | {"data": content["data"] | data}, tmp_path)
        engine = local_engine(study)
        folds = Folds(study.declaration, ask_agree(ask_open(study, engine), engine), engine, engine)
        folds.count()
        return [str(note) for note in folds.notes if note.number == "N273"]

    (note,) = noted(scaling="federated")
    assert note.startswith("2 of 3 features of the public set have another range than the sites' training cases")
    assert "x0 (about 0.01 times)" in note
    assert "x1 (mean 2" in note or "x1 (mean 3" in note
    assert noted(scaling="per_site") == noted(scaling="none") == []
    table["x0"], table["x1"] = table["x0"] * 100, table["x1"] - 30
    table.to_csv(tmp_path / "public.csv", index=False)
    assert noted(scaling="federated") == []


# What is compared and counted -----------------------------------------------------------------------------------------


def test_all_must_have_the_same() -> None:
    one = PublicFacts(found=9, used=8, fingerprint="a")
    other = PublicFacts(found=9, used=9, fingerprint="b")
    assert check_alike({"A": one, "B": one}) == one
    with pytest.raises(DataError, match=r"P211.*site A uses 8 of 9.*B \(9 of 9 cases used\)\. .*same order"):
        check_alike({"A": one, "B": other, "C": one})
    with pytest.raises(DataError, match=r"P211.*the coordinator uses 9.*A \(8 of 9.*C"):
        check_alike({"A": one, "B": other, "C": one}, other)


def test_test_cases_that_stand_in_it_are_counted(tmp_path: Path) -> None:
    content = table_study(tmp_path)
    table = pd.read_csv(tmp_path / "cases.csv", dtype=str)
    public = pd.read_csv(tmp_path / "public.csv", dtype=str)
    copies = table[table["site"] == "north"][:3][["x2", "x0", "x1"]]
    pd.concat([public, copies]).to_csv(tmp_path / "public.csv", index=False)
    (note,) = [str(note) for note in cohort_of(content, tmp_path).notes if note.number == "N270"]
    assert note.startswith(
        "3 cases on which methods are tested stand in the public set, too, with the same inputs (north"
    )
    assert "north 3 of 24" in note
    table["part"] = np.where(table.index % 2, "train", "test")
    table.to_csv(tmp_path / "cases.csv", index=False)
    content["evaluation"] = {"split": "part", "bootstrap": 0}
    expected = int((table[table["site"] == "north"][:3]["part"] == "test").sum())
    (note,) = [str(note) for note in cohort_of(content, tmp_path).notes if note.number == "N270"]
    assert f"north {expected} of 12" in note


def test_a_whole_study(tmp_path: Path) -> None:
    content = table_study(tmp_path, final_model="feddf")
    Study.of(content, tmp_path).run(tmp_path / "out")
    flow = pd.read_csv(tmp_path / "out" / "flow.csv")
    rows = flow[flow["site"] == "public set"]
    assert rows["stage"].tolist() == ["found", "used"]
    assert rows["cases"].tolist() == [16, 16]
    for name in ("results.csv", "sites.csv", "predictions.csv"):
        assert "public set" not in (tmp_path / "out" / name).read_text()
    report = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "public set" in report
    assert "62 of 62" in report  # of the sites alone
    text = (tmp_path / "out" / "model" / CARD_TEXT).read_text()
    assert "a public set of 16 cases, of which no label was used (fingerprint " in text
    assert "public.csv" not in (tmp_path / "out" / "model" / "model.yaml").read_text()
    rounds = pd.read_csv(tmp_path / "out" / "rounds.csv")
    logits = 16 * 2 * 4
    sent = rounds[rounds["method"] == "fedmd"]["bytes_up"]
    assert sent.between(logits, logits + 800).all()
    exchanged = pd.read_csv(tmp_path / "out" / "exchanged.csv").set_index("method").loc[["fedmd"]]
    assert set(exchanged["payload"]) == {"public_consensus/logits", "public_consensus/consensus"}
    assert "which classes the site knows" in exchanged["reveals"].iloc[0]


def test_the_data_sheet_names_it(tmp_path: Path) -> None:
    content = table_study(tmp_path)
    Study.of(content, tmp_path).check(out=tmp_path / "sheet")
    page = (tmp_path / "sheet" / "data-sheet.html").read_text(encoding="utf-8")
    assert "16 of 16 cases used, without labels; fingerprint " in page


def test_cases_go_to_other_processes_with_it() -> None:
    data = table_site("Aachen", 4)
    data.public = torch.randn(3, 5)
    again = cases_received("Aachen", *cases_sent(data))
    assert again.public is not None
    assert torch.equal(again.public, data.public)
    assert cases_received("Bonn", *cases_sent(table_site("Bonn", 4))).public is None


@pytest.mark.parametrize("way", ["side by side", pytest.param("processes", marks=pytest.mark.long)])
def test_other_ways_to_run_give_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    monkeypatch.setattr(runner, "write_report", lambda folder: None)
    content = table_study(tmp_path, methods=METHODS[1:])
    content["evaluation"] = {"holdout": 0.3, "bootstrap": 0}
    Study.of(content, tmp_path).run(tmp_path / "one")
    if way == "processes":
        content["engine"] = content["engine"] | {"mode": "processes", "workers": 2}
    Study.of(content, tmp_path).run(tmp_path / way, jobs=2 if way == "side by side" else None)
    one, other = bytes_of(tmp_path / "one"), bytes_of(tmp_path / way)
    assert one.keys() == other.keys()
    assert [name for name in one if one[name] != other[name]] == []


def test_the_teacher_of_a_study_is_read_beside_it(tmp_path: Path) -> None:
    content = table_study(tmp_path)
    content["methods"] = ["fedavg", {"public_teacher": {"weights": "teacher.safetensors", "label": "taught"}}]
    study = Study.of(content, tmp_path)
    with pytest.raises(StudyError, match=r"P102.*no file with the teacher's weights: teacher\.safetensors"):
        study.run(tmp_path / "first")
    name, options = study.declaration.model_part
    state = build_model(name, options, (3,), 2, seed=4).module.state_dict()
    save_file({key: value.clone() for key, value in state.items()}, tmp_path / "teacher.safetensors")
    study.run(tmp_path / "second")
    said = (tmp_path / "second" / "notes.json").read_text()
    assert "taught learns from the network in teacher.safetensors." in said
    assert "must have had the 2 classes" in said
    assert "the 3 features x0, x1, x2, in this order" in said
    assert set(pd.read_csv(tmp_path / "second" / "results.csv")["method"]) == {"fedavg", "taught"}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(content))
    for path in ("../teacher.safetensors", "/teacher.safetensors"):
        content["methods"] = [{"public_teacher": {"weights": path}}]
        (tmp_path / "study.yaml").write_text(yaml.safe_dump(content))
        with pytest.raises(StudyError, match=r"P104.*outside the coordinator's folder"):
            Study.read(tmp_path / "study.yaml", named=True)


def test_a_filled_study_is_the_same_study(tmp_path: Path) -> None:
    study = Study.of(table_study(tmp_path), tmp_path)
    again = Study.of(study.declaration.filled(), tmp_path)
    assert [one.method.text for one in again.declaration.study_methods] == [
        one.method.text for one in study.declaration.study_methods
    ]
    content = table_study(tmp_path, methods=[{"fedavg": {"share": "none"}}])
    with pytest.raises(StudyError, match=r"P103.*'none' can't be shared"):
        Study.of(content, tmp_path)


# What is refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"public": {}}, "P102.*give either `table`"),
        ({"public": {"table": "public.csv", "sites": ["away"]}}, "P102.*give either `table`"),
        ({"public": {"sites": ["away"], "where": {"x0": 1}}}, "P102.*`sites` are read as the others"),
        ({"public": {"table": "nowhere.csv"}}, "P201.*The public set"),
        ({"harmonisation": "combat"}, "P104.*a public set is of no site"),
        ({"image": "image", "features": None, "preprocessing": {"size": [8, 8, 8]}}, "P104.*this study has volumes"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    content = table_study(tmp_path)
    content["data"] = {key: value for key, value in (content["data"] | changes).items() if value is not None}
    with pytest.raises(PolyclinicError, match=words):
        cohort_of(content, tmp_path)


def test_a_public_set_without_the_features_or_with_one_case_is_refused(tmp_path: Path) -> None:
    content = table_study(tmp_path)
    table = pd.read_csv(tmp_path / "public.csv")
    table[:1].to_csv(tmp_path / "public.csv", index=False)
    with pytest.raises(DataError, match=r"P205.*1 of its 1 rows can be used; expected 2"):
        cohort_of(content, tmp_path)
    table.drop(columns="x1").to_csv(tmp_path / "public.csv", index=False)
    with pytest.raises(DataError, match=r"The public set.*x1"):
        cohort_of(content, tmp_path)
    table.assign(x1="much").to_csv(tmp_path / "public.csv", index=False)
    with pytest.raises(DataError, match=r"P203.*The public set"):
        cohort_of(content, tmp_path)


def test_more_cases_than_there_are_can_not_be_drawn(tmp_path: Path) -> None:
    content = table_study(tmp_path, methods=[{"fedmd": {"cases": 17}}])
    with pytest.raises(StudyError, match=r"P104.*draws 17 cases.*it has 16"):
        Study.of(content, tmp_path).run(tmp_path / "out")


def test_no_site_can_have_its_name(tmp_path: Path) -> None:
    content = table_study(tmp_path)
    table = pd.read_csv(tmp_path / "cases.csv", dtype=str)
    table["site"] = table["site"].replace("north", "public set")
    table.to_csv(tmp_path / "cases.csv", index=False)
    with pytest.raises(DataError, match=r"P203.*'public set'"):
        cohort_of(content, tmp_path)


def test_a_method_that_shares_nothing_makes_no_model_of_all(tmp_path: Path) -> None:
    content = table_study(tmp_path, final_model="fedmd")
    with pytest.raises(StudyError, match=r"P104.*trains a model at each site"):
        Study.of(content, tmp_path)
