"""What holds for every entry, the choices, and what ``prepare`` writes."""

import os
import re
from pathlib import Path

import pytest

from polyclinic.data.catalogue import ENTRIES, Choices, find_entry, prepare
from polyclinic.data.catalogue.artificial import SCHEMES
from polyclinic.data.catalogue.page import entry_page
from polyclinic.data.pseudonyms import find_salt, pseudonym
from polyclinic.errors import DataError, ResultsError
from polyclinic.study.declaration import Declaration


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=list(ENTRIES))
def test_every_entry_says_everything(entry):
    assert re.fullmatch(r"[a-z0-9-]+", entry.name)
    for text in (entry.title, entry.about, entry.modality, entry.sites, entry.subjects, entry.terms, entry.citation):
        assert len(text) > 5
    assert 2 < len(entry.licence) <= 16
    named = re.findall(r"CC0|CC BY(?:-[A-Z-]+)?(?: \d\.\d)?", entry.licence)
    assert all(name in entry.terms for name in named), "as the terms have it"
    assert re.match(r"https?://", entry.access)
    assert entry.labels
    assert all(len(line) <= 120 for line in entry.layout.splitlines())
    assert not set(entry.sites_by) & set(SCHEMES)
    for label in entry.labels.values():
        assert not set(label.positive) & set(label.against)
        assert not label.positive or label.task == "classification"
    page = entry_page(entry)
    assert all(f"`{name}`" in page for name in (*entry.labels, *entry.sites_by, *SCHEMES))
    assert entry.layout.strip() in page


def test_an_unknown_data_set_gets_the_nearest_name():
    with pytest.raises(DataError, match=r"P208 The catalogue has no data set 'ham1000'\. Did you mean 'ham10000'\?"):
        find_entry("ham1000")
    assert find_entry("ADNI").name == "adni"


@pytest.fixture
def heart(tree):
    """40 patients of two of the four hospitals."""
    for number, hospital in enumerate(("cleveland", "va")):
        rows = [f"{40 + i + number},{i % 2},{i % 4 + 1},130,2{i:02},0,1,150,0,1.{i},?,?,?,{i % 3}" for i in range(20)]
        tree.text(f"processed.{hospital}.data", "\n".join(rows) + "\n")
    return tree


def test_what_is_written(heart, prepared):
    result = prepared("heart-disease")
    assert list(result.manifest.columns[:3]) == ["site", "subject", "age"]
    assert result.sites == {"cleveland": 20, "va": 20}
    assert any("processed.hungarian.data, processed.switzerland.data" in note for note in result.prepared.notes)
    declaration = Declaration.check(result.study)
    assert declaration.task == "classification"
    salt = find_salt(result.out / "manifest.csv", None)
    assert result.manifest["subject"][0] == pseudonym("cleveland 1", salt, "sub")
    text = (result.out / "study.yaml").read_text()
    assert "# Terms: CC BY 4.0" in text
    assert "# Citation: Janosi A" in text
    assert all(len(line) <= 120 for line in text.splitlines())


def test_the_same_again_gives_the_same_files(heart, prepared):
    files = ("manifest.csv", "study.yaml", "manifest.salt")
    first = prepared("heart-disease")
    before = [(first.out / name).read_bytes() for name in files]
    prepared("heart-disease")
    assert [(first.out / name).read_bytes() for name in files] == before


def test_a_study_file_that_was_changed_is_never_overwritten(heart, prepared):
    result = prepared("heart-disease")
    (result.out / "study.yaml").write_text("study: mine\n")
    with pytest.raises(ResultsError, match=r"P501 .* has another study\.yaml already"):
        prepared("heart-disease")
    assert (result.out / "study.yaml").read_text() == "study: mine\n"


def test_the_folder_of_the_data_is_left_alone(heart):
    with pytest.raises(ResultsError, match="P501 --out is the data set's own folder"):
        prepare(find_entry("heart-disease"), heart.folder, heart.folder)
    assert {path.name for path in heart.folder.iterdir()} == {"processed.cleveland.data", "processed.va.data"}


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match="P201 There is no "):
        prepare(find_entry("heart-disease"), tmp_path / "nowhere", tmp_path / "out")


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"label": "diseas"}, "P208 .* has no label 'diseas'. Did you mean 'disease'"),
        ({"sites_by": "hospitals"}, "P208 .* has no way to tell sites 'hospitals'. Did you mean 'hospital'"),
        ({"positive": ("maybe",)}, "P203 No case has the disease 'maybe'"),
        ({"positive": ("no",), "against": ("no",)}, "P203 --positive and --against name the same class"),
        ({"sites_by": "dirichlet", "sites": 30}, "P206 40 subjects can't be spread over 30 artificial sites"),
    ],
)
def test_choices_that_can_not_be_met(heart, prepared, choices, message):
    with pytest.raises(DataError, match=message):
        prepared("heart-disease", **choices)


def test_classes_can_be_chosen(heart, prepared):
    turned = prepared("heart-disease", positive=("no",))
    assert (turned.study["data"]["positive"], turned.prepared.used) == ("no", 40)
    stage = prepared("heart-disease", out="stage", label="num", against=("0", "1"))
    assert (stage.study["data"]["positive"], stage.prepared.used) == ("2", 40)
    pair = prepared("heart-disease", out="pair", label="num", positive=("2",), against=("0",))
    assert pair.reasons == {"num is neither 2 nor 0": 14}


def test_dirichlet_needs_classes(tree, prepared):
    tree.touch("HK/Case00.nii.gz", "HK/Case00_segmentation.nii.gz")
    with pytest.raises(DataError, match="P208 Dirichlet sites need classes"):
        prepared("prostate", sites_by="dirichlet")
    with pytest.raises(DataError, match=r"P208 'mask' has no classes \(segmentation\)"):
        prepared("prostate", positive=("1",))


def test_nothing_usable_is_told_with_reasons(tree, prepared):
    tree.touch("HK/Case00.nii.gz", "UCL/Case01.nii.gz")
    with pytest.raises(DataError, match=r"P205 None of the 2 cases found can be used \(mask is missing: 2\)"):
        prepared("prostate")


def test_paths_reach_the_images_from_anywhere(tree, tmp_path, monkeypatch):
    tree.touch("HK/Case00.nii.gz", "HK/Case00_segmentation.nii.gz")
    monkeypatch.chdir(tmp_path)
    for source, out in ((tree.folder, tmp_path / "deep/er/out"), (tree.folder, tree.folder / "inside")):
        relative = Path(os.path.relpath(source))
        done = prepare(find_entry("prostate"), relative, Path(os.path.relpath(out)), Choices())
        import pandas as pd
        import yaml

        root = yaml.safe_load(done.study.read_text())["data"]["root"]
        cell = pd.read_csv(done.manifest)["image"][0]
        assert not Path(root).is_absolute()
        assert (out / root / cell).resolve() == (tree.folder / "HK/Case00.nii.gz").resolve()


def test_a_table_that_can_not_be_read(tree, prepared):
    tree.text("IXI.xls", "not an Excel file")
    tree.touch("IXI002-Guys-0828-T1.nii.gz")
    with pytest.raises(DataError, match=r"P503 IXI\.xls is an Excel file.*pip install xlrd|P201 .* no Excel file"):
        prepared("ixi")
    tree.table("IXI.csv", "IXI_ID,AGE", "2,35")
    with pytest.raises(DataError, match=r"There are 2 files IXI\*\.xls or IXI\*\.xlsx or IXI\*\.csv"):
        prepared("ixi")
    (tree.folder / "IXI.xls").unlink()
    with pytest.raises(DataError, match=r"The table IXI\.csv has no column 'SEX_ID \(1=m, 2=f\)'"):
        prepared("ixi")


def test_what_is_there_names_no_patient(tree, prepared):
    tree.touch(*(f"0{number}_S_0413/scan.txt" for number in range(20, 31)), "list7.docx")
    with pytest.raises(DataError, match=r"it holds #_S_#/ \(11 times\), list#\.docx\."):
        prepared("ixi")
