"""Folders of phantoms: readable by everyone's tools, the same for the same seed, and told where they can't be made."""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pydicom
import pytest
import yaml
from typer.main import get_command
from typer.testing import CliRunner

from polyclinic import Study, cli
from polyclinic.data.phantom import EFFECTS, Phantom, PhantomSubject
from polyclinic.data.phantom.phantom import atlas
from polyclinic.data.phantom.template import region_names
from polyclinic.data.phantom.write import Wanted, write_phantom
from polyclinic.errors import PolyclinicError, ResultsError

pytest.importorskip("nilearn")
SITES, SUBJECTS = 3, 2


def phantom() -> Phantom:
    return Phantom(5, sites=SITES, spacing=5.0)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A folder of phantoms in a form, made once."""
    folders: dict[str, Path] = {}

    def make(form: str) -> Path:
        if form not in folders:
            folders[form] = tmp_path_factory.mktemp(form)
            write_phantom(phantom(), SUBJECTS, folders[form], Wanted(form, maps=form == "nifti"))  # type: ignore[arg-type]
        return folders[form]

    return make


def manifest(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "manifest.csv")


@pytest.mark.parametrize("form", ["nifti", "bids", "dicom"])
def test_the_manifest_names_every_file_and_person(form: str, made: Callable[[str], Path]):
    found = manifest(made(form))
    columns = ["site", "subject", "image", "mask", "hippocampus", "diagnosis", "age", "sex"]
    assert [name for name in found.columns if name != "map"] == columns
    assert len(found) == SITES * SUBJECTS
    assert found["subject"].is_unique
    for column in ("image", "mask", "hippocampus"):
        assert all((made(form) / path).exists() for path in found[column])


@pytest.mark.parametrize("form", ["nifti", "bids"])
def test_nifti_holds_the_subject(form: str, made: Callable[[str], Path]):
    for number, row in enumerate(manifest(made(form)).itertuples()):
        expected = phantom().subject(number // SUBJECTS, number % SUBJECTS)
        for path, volume in ((row.image, expected.image), (row.mask, expected.tissue),
                             (row.hippocampus, expected.hippocampus)):  # fmt: skip
            image = nibabel.load(made(form) / path)
            assert np.array_equal(np.asanyarray(image.dataobj), volume.values)
            assert np.allclose(image.affine, volume.affine)
        assert (row.subject, row.diagnosis, row.sex) == (expected.name, expected.diagnosis, expected.sex)


def test_dicom_holds_the_subject(made: Callable[[str], Path]):
    """Voxels at the places that the headers give them are those of the volume."""
    identifiers = set()
    for number, row in enumerate(manifest(made("dicom")).itertuples()):
        expected = phantom().subject(number // SUBJECTS, number % SUBJECTS).image
        files = sorted((made("dicom") / row.image).glob("*.dcm"))
        assert len(files) == expected.values.shape[2]
        for k, file in enumerate(files):
            data = pydicom.dcmread(file)
            across, down = (np.array(data.ImageOrientationPatient[part], float) for part in (slice(3), slice(3, 6)))
            assert np.linalg.norm(across) == pytest.approx(1)
            assert across @ down == pytest.approx(0)
            rows, columns = (float(value) for value in data.PixelSpacing)
            corner = np.array(data.ImagePositionPatient, float)
            for i, j in ((0, 0), (3, 5), (10, 2)):
                place = (corner + i * columns * across + j * rows * down) * (-1, -1, 1)
                assert np.allclose(place, (expected.affine @ (i, j, k, 1))[:3], atol=1e-3)
            assert np.array_equal(data.pixel_array, expected.values[:, :, k].T)
            scanner = phantom().scanners[number // SUBJECTS]
            assert (data.Manufacturer, data.MagneticFieldStrength) == (scanner.manufacturer, scanner.field_strength)
            identifiers |= {data.SOPInstanceUID}
            assert data.SOPInstanceUID.is_valid
            assert data.file_meta.MediaStorageSOPInstanceUID == data.SOPInstanceUID
        assert len({pydicom.dcmread(file, stop_before_pixels=True).SeriesInstanceUID for file in files}) == 1
        assert "PHANTOM" in str(data.PatientName)
        assert not data.PatientBirthDate
    assert len(identifiers) == sum(
        phantom().subject(site, n).image.values.shape[2] for site in range(SITES) for n in range(SUBJECTS)
    )


def test_bids_is_laid_out_as_bids(made: Callable[[str], Path]):
    folder = made("bids")
    people = pd.read_csv(folder / "participants.tsv", sep="\t")
    assert people.columns.tolist() == ["participant_id", "site", "age", "sex", "diagnosis"]
    for name in people["participant_id"]:
        assert (folder / name / "anat" / f"{name}_T1w.nii.gz").is_file()
        sidecar = json.loads((folder / name / "anat" / f"{name}_T1w.json").read_text(encoding="utf-8"))
        assert sidecar["Manufacturer"] in {"SIEMENS", "GE MEDICAL SYSTEMS", "Philips"}
        assert sidecar["MagneticFieldStrength"] in {1.5, 3.0}
        assert (folder / "derivatives" / "phantom" / name / "anat" / f"{name}_dseg.nii.gz").is_file()
    for path in ("", "derivatives/phantom"):
        about = json.loads((folder / path / "dataset_description.json").read_text(encoding="utf-8"))
        assert {"Name", "BIDSVersion", "DatasetType", "GeneratedBy"} <= set(about)


def test_tables_hold_ninety_regions(made: Callable[[str], Path]):
    for name, extra in (("regions", []), ("truth", ["ventricle_volume"])):
        table = pd.read_csv(made("nifti") / f"{name}.csv")
        head = ["site", "subject", "diagnosis", "age", "sex", "brain_volume", *extra]
        assert table.columns.tolist() == head + region_names()
        expected = phantom().subject(1, 1)
        values = expected.regions if name == "regions" else expected.truth
        row = table[table["subject"] == expected.name].iloc[0]
        assert row[region_names()].tolist() == pytest.approx([values[region] for region in region_names()], abs=6e-4)


def test_the_atlas_is_written(made: Callable[[str], Path]):
    names = pd.read_csv(made("nifti") / "atlas.csv")
    assert names["name"].tolist() == region_names()
    image = nibabel.load(made("nifti") / "atlas.nii.gz")
    assert np.array_equal(np.asanyarray(image.dataobj), atlas().values)
    assert (names["x"] < 0).sum() == 45


def test_the_same_seed_gives_the_same_bytes(made: Callable[[str], Path], tmp_path: Path):
    for form in ("nifti", "dicom"):
        write_phantom(phantom(), SUBJECTS, tmp_path / form, Wanted(form, maps=form == "nifti"))  # type: ignore[arg-type]
        first = {path.relative_to(made(form)): path for path in made(form).rglob("*") if path.is_file()}
        second = {path.relative_to(tmp_path / form): path for path in (tmp_path / form).rglob("*") if path.is_file()}
        assert first.keys() == second.keys()
        assert all(first[name].read_bytes() == second[name].read_bytes() for name in first)


@pytest.mark.long
def test_processes_give_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from polyclinic.data.phantom import write

    for name, least in (("one", 1000), ("several", 1)):
        monkeypatch.setattr(write, "PROCESSES_FROM", least)
        seen: list[tuple[int, int]] = []
        write_phantom(phantom(), 1, tmp_path / name, Wanted("nifti"), lambda *counts, seen=seen: seen.append(counts))
        assert seen == [(1, 3), (2, 3), (3, 3)]
    for path in (tmp_path / "one").rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (tmp_path / "several" / path.relative_to(tmp_path / "one")).read_bytes()


def test_study_files_are_yaml_and_the_table_study_runs(made: Callable[[str], Path], tmp_path: Path):
    folder = made("nifti")
    found = {path.name: yaml.safe_load(path.read_text(encoding="utf-8")) for path in folder.glob("study-*.yaml")}
    assert found.keys() == {"study-tissue.yaml", "study-diagnosis.yaml", "study-age.yaml", "study-regions.yaml"}
    assert {content["task"] for content in found.values()} == {"segmentation", "classification", "regression"}
    for name in ("study-tissue.yaml", "study-diagnosis.yaml", "study-age.yaml"):
        data = found[name]["data"]
        assert {data[key] for key in ("site", "subject", "image")} <= set(manifest(folder).columns)
        assert data["preprocessing"]["size"] == [38, 45, 38]
    sites, _ = Study.read(folder / "study-regions.yaml").check()
    assert sites["used"].tolist() == [SUBJECTS] * SITES


# The command ----------------------------------------------------------------------------------------------------------


def call(*arguments: str) -> str:
    result = CliRunner().invoke(cli.app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_the_command_makes_images(tmp_path: Path):
    printed = call(
        "phantom", "--sites", "2", "--subjects", "1", "--as", "nifti", "--spacing", "6", "--effects", "contrast,noise",
        "--prevalence", "1,0", "--dose", "0.5", "--seed", "7", "--out", str(tmp_path / "out"),
    )  # fmt: skip
    assert "manifest.csv" in printed
    found = manifest(tmp_path / "out")
    assert found["diagnosis"].tolist() == ["disease", "control"]
    image = nibabel.load(tmp_path / "out" / found["image"][0])
    expected = Phantom(7, sites=2, spacing=6.0, dose=0.5, prevalence=(1.0, 0.0), effects=("contrast", "noise"))
    assert np.array_equal(np.asanyarray(image.dataobj), expected.subject(0, 0).image.values)


def test_maps_without_images_have_a_manifest(tmp_path: Path):
    write_phantom(Phantom(sites=1, spacing=6.0), 1, tmp_path / "out", Wanted(None, maps=True))
    found = manifest(tmp_path / "out")
    assert found.columns.tolist() == ["site", "subject", "map", "diagnosis", "age", "sex"]
    image = nibabel.load(tmp_path / "out" / found["map"][0])
    assert (int(image.header["sform_code"]), int(image.header["qform_code"])) == (4, 4)


def test_tables_alone(tmp_path: Path):
    call("phantom", "--sites", "2", "--subjects", "2", "--spacing", "6", "--table-only", "--out", str(tmp_path / "out"))
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"regions.csv", "truth.csv", "scanners.csv", "atlas.nii.gz", "atlas.csv", "study-regions.yaml"}


def test_the_survey_has_two_generations_of_scanners(tmp_path: Path):
    call("phantom", "--survey", "--subjects", "1", "--out", str(tmp_path / "out"))
    scanners = pd.read_csv(tmp_path / "out" / "scanners.csv")
    assert scanners[["site", "field_strength"]].values.tolist() == [["1.5T", 1.5], ["3T", 3.0]]
    assert len(pd.read_csv(tmp_path / "out" / "regions.csv")) == 2


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--as", "nifty"], "P103 'nifty' is no form of images. Did you mean 'nifti'?"),
        (["--effects", "noise,bais"], "P103 'bais' is no effect of a scanner. Did you mean 'bias'?"),
        (["--prevalence", "half"], "P102 --prevalence 'half' is not a list of numbers."),
        (["--prevalence", "0.5,0.5"], "P102 2 prevalences for 6 sites."),
        (["--spacing", "0.1"], "P102 The spacing is 0.1 mm"),
        (["--dose", "9"], "P102 The dose is 9; expected 0 (no disease) to 4."),
    ],
)
def test_wrong_options_are_told(arguments: list[str], sentence: str, tmp_path: Path):
    with pytest.raises(PolyclinicError) as raised:
        CliRunner().invoke(cli.app, ["phantom", "--out", str(tmp_path / "out"), *arguments], catch_exceptions=False)
    assert sentence in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_a_folder_with_files_is_not_touched(tmp_path: Path):
    (tmp_path / "mine.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(ResultsError, match="P501") as raised:
        write_phantom(phantom(), 1, tmp_path, Wanted(None))
    assert "holds files already" in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_file_in_place_of_the_folder_is_told(tmp_path: Path):
    (tmp_path / "out").write_text("a file", encoding="utf-8")
    with pytest.raises(ResultsError, match="P501"):
        write_phantom(phantom(), 1, tmp_path / "out", Wanted(None))


@pytest.mark.parametrize(
    ("number", "sentence"),
    [(errno.ENOSPC, "P502 The disk is full: not all phantoms could be written to"), (errno.EACCES, "P501 The folder")],
)
def test_a_failed_write_is_told(number: int, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from polyclinic.data.phantom import write

    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(write.nibabel, "save", fail)
    with pytest.raises(ResultsError) as raised:
        write_phantom(phantom(), 1, tmp_path / "out", Wanted("nifti"))
    assert sentence in str(raised.value)


# The page -------------------------------------------------------------------------------------------------------------


def test_the_page_names_every_option_and_effect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    page = (Path(__file__).resolve().parents[3] / "docs" / "phantom.md").read_text(encoding="utf-8")
    command = get_command(cli.app)
    for name in ("phantom", "regions"):
        options = [option for parameter in command.commands[name].params for option in parameter.opts]  # type: ignore[attr-defined]
        assert not [option for option in options if option not in page and option not in {"--help", "--out"}]
    assert not [effect for effect in EFFECTS if f"| `{effect}` |" not in page]
    code, grey_matter = re.findall(r"^```python\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
    found: dict[str, object] = {}
    exec(code, found)  # noqa: S102
    assert isinstance(found["subject"], PhantomSubject)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "survey").mkdir()
    people = "site,diagnosis,brain_volume,left_01,right_01\nA,control,9,1,2\nA,control,9,3,4\nA,disease,9,90,90\n"
    for table in ("regions", "truth"):
        (tmp_path / "survey" / f"{table}.csv").write_text(people, encoding="utf-8")
    exec(grey_matter, {})  # noqa: S102
    assert re.findall(r"^A +(\S+)$", capsys.readouterr().out, re.MULTILINE) == ["5.0", "5.0"]
