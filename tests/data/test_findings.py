"""Several labels of a case in tables: columns that sites lack, empty cells, and how patients are dealt out."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import site_of
from polyclinic.data.open import open_data
from polyclinic.data.spec import DataSpec
from polyclinic.data.splits import finding_strata, patient_cases, patient_classes, split
from polyclinic.data.tables.findings import encode_findings, finding_classes, finding_reasons
from polyclinic.errors import DataError, StudyError
from polyclinic.study.declaration import Declaration


def spec_of(findings: Any, **entries: Any) -> DataSpec:
    tables = entries.pop("tables", {"A": "a.csv", "B": "b.csv"})
    return DataSpec.model_validate({"tables": tables, "features": "x*", "findings": findings, **entries})


def write(folder: Path, name: str, **columns: list[Any]) -> None:
    count = len(next(iter(columns.values())))
    pd.DataFrame({"x1": np.arange(count), **columns}).to_csv(folder / name, index=False)


def opened(folder: Path, spec: DataSpec) -> Any:
    return open_data(spec, folder, "findings")


def test_cells_become_classes_of_all_findings(tmp_path: Path) -> None:
    spec = spec_of(
        {"tb": {}, "effusion": {"positive": ["mild", "severe"]}, "grade": {"classes": ["low", "mid", "top"]}}
    )
    assert finding_classes(spec) == {
        "tb": ["tb=0", "tb=1"],
        "effusion": ["effusion not mild/severe", "effusion mild/severe"],
        "grade": ["grade=low", "grade=mid", "grade=top"],
    }
    write(tmp_path, "a.csv", tb=["1", "0.0", "TRUE", "no", ""], effusion=["mild", "none", "", "severe", "?"],
          grade=["low", "top", "mid", "", "top"])  # fmt: skip
    write(tmp_path, "b.csv", effusion=["", "mild", "none"], tb=["", "1", "0"], grade=["", "", "low"])
    found = opened(tmp_path, spec)
    assert found.sites["A"].targets.tolist() == [[1, 3, 4], [0, 2, 6], [1, -1, 5], [0, 3, -1], [-1, -1, 6]]
    assert found.sites["B"].targets.tolist() == [[1, 3, -1], [0, 2, 4]]
    assert found.sites["B"].counts.rejected == {"all findings are missing": 1}
    assert found.classes == [name for names in finding_classes(spec).values() for name in names]
    assert found.cohort.facts["A"].classes == [2, 2, 1, 2, 1, 1, 2]


def test_a_column_may_be_absent_at_a_site_and_is_told_of(tmp_path: Path) -> None:
    write(tmp_path, "a.csv", tb=[1, 0, 1], Edema=[1, 0, 1])
    write(tmp_path, "b.csv", edema=[0, 1, ""], tb=["", "", ""])
    found = opened(tmp_path, spec_of(["tb", "edema"]))
    assert found.sites["A"].targets.tolist() == [[1, -1], [0, -1], [1, -1]]
    assert found.sites["B"].targets.tolist() == [[-1, 2], [-1, 3]]
    (note,) = [note for note in found.notes if note.number == "N285"]
    assert "Site A has no column 'edema'" in str(note)
    assert "Did you mean 'Edema'?" in str(note)


def test_findings_are_no_features(tmp_path: Path) -> None:
    write(tmp_path, "a.csv", tb=[1, 0, 1])
    write(tmp_path, "b.csv", edema=[0, 1, 0], tb=[0, 0, 1])
    found = open_data(spec_of(["tb", "edema"], features="*"), tmp_path, "findings")
    assert found.features == ["x1"]
    with pytest.raises(StudyError, match="'edema', which is to be predicted, is also among the features"):
        open_data(spec_of(["tb", "edema"], features=["x1", "edema"]), tmp_path, "findings")


@pytest.mark.parametrize(
    ("findings", "tb", "code", "words"),
    [
        (["tb", "pneumonia"], [1, 0], "P202", "no column 'pneumonia'"),
        (["tb"], [1, 1], "P203", "All 4 labels of 'tb'"),
        (["tb"], ["", ""], "P205", "all findings are missing"),
        (["tb"], ["pos", "neg"], "P205", "tb is not 1 or 0"),
        ([{"tb": 1}], [1, 0], "", ""),
    ],
)
def test_what_can_not_be_learned_is_refused(
    findings: Any, tb: list[Any], code: str, words: str, tmp_path: Path
) -> None:  # fmt: skip
    write(tmp_path, "a.csv", tb=tb)
    write(tmp_path, "b.csv", tb=tb)
    if not code:
        with pytest.raises(ValueError, match="findings"):
            spec_of(findings)
        return
    with pytest.raises(DataError, match=words) as caught:
        opened(tmp_path, spec_of(findings))
    assert caught.value.code == code


def test_a_finding_without_any_label_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "a.csv", tb=[1, 0], edema=["", ""])
    write(tmp_path, "b.csv", tb=[1, 0])
    with pytest.raises(DataError, match="No site has a label of 'edema'"):
        opened(tmp_path, spec_of(["tb", "edema"]))


def test_values_that_are_no_class_reject_the_row_and_are_counted(tmp_path: Path) -> None:
    write(tmp_path, "a.csv", tb=[1, 0, -1, 1], edema=["", 1, 1, 0])
    write(tmp_path, "b.csv", tb=["", 0, 1, 1], edema=[2, 1, 0, 1])
    found = opened(tmp_path, spec_of(["tb", "edema"]))
    assert found.sites["A"].counts.rejected == {"tb is not 1 or 0": 1}
    assert found.sites["B"].counts.rejected == {"edema is not 1 or 0": 1}
    lenient = opened(tmp_path, spec_of(["tb", "edema"], missing=["-1", "2"]))
    assert lenient.sites["A"].targets.tolist() == [[1, -1], [0, 3], [-1, 3], [1, 2]]
    assert lenient.sites["B"].counts.rejected == {"all findings are missing": 1}


def test_cases_without_any_label_may_be_kept(tmp_path: Path) -> None:
    write(tmp_path, "a.csv", tb=["", 1, 0, 1], edema=["", "", 1, 0])
    write(tmp_path, "b.csv", tb=["", 0, 1, 1])
    found = opened(tmp_path, spec_of(["tb", "edema"], unlabelled="use"))
    site = found.sites["A"]
    assert site.known.tolist() == [True, True, True, False]
    assert site.targets.tolist() == [[1, -1], [0, 3], [1, 2], [-1, -1]]
    assert site.with_labels().findings is not None
    assert site.labels is None
    assert not site.masked


def test_writing_of_a_finding_is_told_as_of_a_label(tmp_path: Path) -> None:
    write(
        tmp_path,
        "a.csv",
        x2=[5, 1, 4, 2] * 2,
        tb=["mild", "Mild", "none", "unknown"] * 2,
        pe=["yes", "no", "", "no"] * 2,
    )
    write(tmp_path, "b.csv", x2=[3, 0, 7, 1] * 2, tb=["mild", "none", "mild", "none"] * 2, pe=[1, 0, 0, 1] * 2)
    data = opened(tmp_path, spec_of({"tb": {"positive": "mild"}, "pe": {}}))
    notes = {note.number: str(note) for note in data.notes}
    assert "'Mild' (2: tb not mild), 'mild' (6: tb mild)" in notes["N226"]
    assert "'unknown' (2: tb not mild)" in notes["N228"]
    assert not any("pe" in text.split() or "'pe'" in text for text in notes.values())


def test_order_of_rows_and_spelling_change_nothing() -> None:
    spec = spec_of({"tb": {}, "grade": {"classes": [1, 2, 3]}})
    cells = pd.DataFrame({"tb": ["1", "0", None, "yes"], "grade": ["1.0", None, "3", "2"]}, dtype="str")
    found = encode_findings(cells, spec)
    shuffled = cells.iloc[[2, 0, 3, 1]]
    assert encode_findings(shuffled, spec).tolist() == found[[2, 0, 3, 1]].tolist()
    assert not any(unfit.any() for unfit in finding_reasons(cells, spec).values())


# Splits ---------------------------------------------------------------------------------------------------------------


def test_patients_are_stratified_by_their_rarest_class() -> None:
    labels = torch.tensor([[0, 2], [0, 3], [1, 2], [0, -1], [0, 2], [-1, 3]])
    names = ["a", "b", "c", "d", "e", "f"]
    # class 0: a b d e; 1: c; 2: a c e; 3: b f
    strata = finding_strata(patient_cases(names), labels)
    assert strata == {"a": 2, "b": 3, "c": 1, "d": 0, "e": 2, "f": 3}


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 2)), min_size=1, max_size=40))
def test_of_one_finding_patients_have_their_class(rows: list[tuple[int, int]]) -> None:
    names, labels = [f"p{name}" for name, _ in rows], torch.tensor([label for _, label in rows])
    positions = patient_cases(names)
    assert patient_classes(positions, labels[:, None]) == patient_classes(positions, labels)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_every_stratum_is_dealt_evenly_to_the_folds(seed: int) -> None:
    random = np.random.default_rng(seed)
    count = int(random.integers(15, 60))
    targets = np.stack([random.choice([-1, 0, 0, 0, 1], count), random.choice([-1, 2, 3, 4], count)], axis=1)
    targets[(targets < 0).all(axis=1), 0] = 0
    site = site_of("A", torch.zeros(count, 2), torch.from_numpy(targets), None)
    parts = [split(site, folds=3, fold=fold, validation=0.2, seed=1) for fold in range(3)]
    assert sorted(torch.cat([part.test for part in parts]).tolist()) == list(range(count))
    strata = finding_strata(patient_cases(site.subjects), torch.from_numpy(targets))
    for stratum in set(strata.values()):
        tested = [Counter(strata[site.subjects[i]] for i in part.test.tolist())[stratum] for part in parts]
        assert max(tested) - min(tested) <= 1


# The study file -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"findings": None}, "'findings' is missing"),
        ({"label": "tb"}, "`label` is for one label"),
        ({"positive": 1}, "`positive` is for one label"),
        ({"findings": ["tb", "tb"]}, "names 'tb' twice"),
        ({"findings": {"tb": {"positive": 1, "classes": [0, 1]}}}, "exclude each other"),
        ({"findings": {"tb": {"classes": [1]}}}, "two or more different values"),
        ({"findings": {"tb": {"classes": [1, 1.0]}}}, "two or more different values"),
        ({"findings": {"tb": {"weight": 0}}}, "a number above 0"),
        ({"findings": {"tb": {"kind": 0}}}, "not permitted|no entry"),
        ({"findings": ["tb[1]"]}, "can't name a finding"),
        ({"findings": {"a": {"classes": ["b=1", 2]}, "a=b": {}}}, "is there twice, of two findings"),
        ({"findings": ["site"]}, "is the `site` of the study"),
        ({"partition": {"sites": 2, "label_skew": {"alpha": 1}}}, "label skew"),
    ],
)
def test_entries_that_do_not_fit(entries: dict[str, Any], words: str) -> None:
    data = {"table": "t.csv", "site": "site", "features": "x*", "findings": ["tb", "edema"], **entries}
    data = {name: value for name, value in data.items() if value is not None}
    with pytest.raises(Exception, match=words.replace("[", r"\[")):
        Declaration.check({"task": "multi_label", "data": data, "model": "logistic"})


def test_findings_are_for_their_task_and_losses_for_their_classes() -> None:
    data = {"table": "t.csv", "site": "site", "features": "x*"}
    with pytest.raises(Exception, match="several labels of a case"):
        Declaration.check({"data": {**data, "label": "tb", "findings": ["tb"]}, "model": "logistic"})
    content = {
        "task": "multi_label", "model": "logistic", "training": {"loss": "binary_cross_entropy"},
        "data": {**data, "findings": {"tb": {}, "grade": {"classes": [1, 2, 3]}}},
    }  # fmt: skip
    with pytest.raises(Exception, match="grade has more"):
        Declaration.check(content)
    content["data"]["findings"] = ["tb", "edema"]
    assert [head.classes for head in Declaration.check(content).heads] == [2, 2]


def test_a_bag_has_the_labels_of_its_rows(tmp_path: Path) -> None:
    slides = ["s1", "s1", "s2", "s2", "s3", "s4"]
    write(tmp_path, "a.csv", slide=slides, tb=[1, "", 0, 0, "", 1], edema=["", 0, 1, 1, 0, 1])
    write(tmp_path, "b.csv", slide=["t1", "t1", "t2", "t3"], tb=[1, 0, 1, 0])
    found = opened(tmp_path, spec_of(["tb", "edema"], bag="slide", features="x1"))
    assert found.sites["A"].targets.tolist() == [[1, 2], [0, 3], [-1, 2], [1, 3]]
    assert found.sites["B"].targets.tolist() == [[1, -1], [0, -1]]  # rows of t1 say two things of tb
    assert found.sites["B"].counts.rejected == {"tb differs within a bag": 1}
