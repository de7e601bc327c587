"""The studies of the folder ``studies``: their data are found and counted as described, and a short version runs."""

from __future__ import annotations

import importlib.metadata
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from rich.console import Console

import phantoms
from helpers import named, script
from polyclinic import Results, Study
from polyclinic.data.phantom.phantom import Phantom
from polyclinic.data.phantom.request import survey_request
from polyclinic.data.phantom.write import Wanted, write_phantom

STUDIES = Path(__file__).resolve().parents[1] / "studies"
#: Study -> sites, cases found, used, patients.
COUNTS = {
    "mri-quality": (17, 1101, 1101, 1101),
    "heart-disease": (4, 920, 740, 740),
    "heart-disease-protocol": (4, 920, 740, 740),
    "corrupt-sites": (4, 920, 740, 740),
    "autism-volumes": (16, 806, 806, 806),
    "sex-volumes": (16, 806, 806, 806),
    "sex-volumes-common-scale": (16, 806, 806, 806),
    "sex-volumes-combat": (16, 806, 806, 806),
    "skin-lesions": (4, 2169, 2169, 1770),
    "retina-vessels": (3, 88, 88, 74),
    "lung-survival": (18, 227, 227, 227),
    "survey-adni": (2, 40, 40, 40),  # of a small table that the tests make
    "phantom-reconstruction": (4, 24, 24, 24),  # of small phantoms that the tests make
}
IMAGES = ("skin-lesions", "retina-vessels", "phantom-reconstruction")
#: Run by default; the others take longer.
FAST = ("heart-disease", "autism-volumes", "survey-adni", "lung-survival")
#: What every comparison needs.
NEEDED = {"single", "cross", "ensemble", "mix", "fedavg", "fedprox"}
#: Studies that compare something else.
OTHERS = {
    "heart-disease-protocol": {
        *("single", "mix", "fedavg", "fedprox", "scaffold", "fedadam", "fedyogi", "fedadagrad", "cyclic"),
    },
    "phantom-reconstruction": {"single", "mix", "fedavg", "fedmri", "fl_mrcm"},
    "corrupt-sites": {"mix", "fedavg", "median", "trimmed_mean", "geometric_median", "dos", "norm_bound", "fltrust"},
}
#: The methods of the survey's own experiment, and no others.
SURVEY = ["single", "cross", "mix", "fedavg", "fedsgd", "fedprox"]


@pytest.fixture
def make_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, writing its page into a folder of its own."""
    module = script(STUDIES / "make_results.py")
    monkeypatch.setattr(module, "PAGE", tmp_path / "results.md")
    return module


def path_of(name: str) -> Path:
    return STUDIES / f"{name}.yaml"


def content_of(name: str, **changes: Any) -> dict[str, Any]:
    """The study, shortened: 2 rounds, 2 folds, one seed, small images."""
    content: dict[str, Any] = yaml.safe_load(path_of(name).read_text(encoding="utf-8"))
    content["training"]["rounds"] = 2
    content["training"].pop("schedule", None)
    content["evaluation"] |= {"folds": 2, "bootstrap": 20, "unseen_sites": False}
    content["engine"] = {"threads": 1}
    for key in ("seeds", "search"):
        content.pop(key, None)
    content["evaluation"].pop("holdout", None)
    if name == "phantom-reconstruction":
        content["data"]["preprocessing"] = {"orientation": "SAR", "spacing": [30, 6, 6], "size": [4, 32, 32]}
        content["training"]["local_epochs"] = 1
    elif name in IMAGES:
        content["data"]["size"] = [32, 32]
    return content | changes


@pytest.fixture(scope="session")
def survey_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The table of the survey's experiment from 20 phantoms a site."""
    pytest.importorskip("nilearn")
    folder = tmp_path_factory.mktemp("survey")
    request = survey_request(20, spacing=5.0)
    write_phantom(request.phantom, request.subjects, folder, request.wanted)
    return folder


@pytest.fixture(scope="session")
def phantoms_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six phantoms of each of four scanners."""
    pytest.importorskip("nilearn")
    folder = tmp_path_factory.mktemp("phantoms")
    write_phantom(Phantom(0, sites=4, spacing=6.0), 6, folder, Wanted("nifti"))
    return folder


@pytest.fixture
def data(name: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The study's data, or the test is skipped."""
    if name == "survey-adni":
        monkeypatch.setenv("POLYCLINIC_SURVEY", str(request.getfixturevalue("survey_folder")))
        return
    if name == "phantom-reconstruction":
        monkeypatch.setenv("POLYCLINIC_PHANTOMS", str(request.getfixturevalue("phantoms_folder")))
        return
    if name == "lung-survival":
        pytest.importorskip("lifelines")
        return
    data_folder = request.getfixturevalue("data_folder")
    if name == "mri-quality":
        try:
            importlib.metadata.distribution("mriqc-learn")
        except importlib.metadata.PackageNotFoundError:
            pytest.skip("pip install mriqc-learn to run this test")
    monkeypatch.setenv("POLYCLINIC_DATA", str(data_folder))


def test_all_studies_are_tested_and_stand_on_the_page(make_results: ModuleType):
    assert {path.stem for path in STUDIES.glob("*.yaml")} == set(COUNTS) == set(make_results.NAMES)


@pytest.mark.parametrize("name", COUNTS)
def test_the_head_of_a_study_says_what_and_where_from(name: str):
    head = re.match(r"(?:#.*\n)+", path_of(name).read_text(encoding="utf-8"))
    assert head is not None
    assert all(f"# {word}: " in head[0] for word in ("Question", "Data", "Citation", "Where", "Licence", "Time"))


@pytest.mark.parametrize("name", COUNTS)
def test_a_study_is_valid_and_compares_what_is_needed(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("POLYCLINIC_DATA", "/data")
    monkeypatch.setenv("POLYCLINIC_SURVEY", "/survey")
    monkeypatch.setenv("POLYCLINIC_PHANTOMS", "/phantoms")
    study = Study.read(path_of(name))
    if name == "survey-adni":
        assert [method.name for method in study.declaration.study_methods] == SURVEY
        assert study.declaration.metrics == ["auc", "acc", "bac", "sen", "spe"]
        return
    assert {method.name for method in study.declaration.study_methods} >= OTHERS.get(name, NEEDED)


def studies(*fast: str) -> list[Any]:
    """All studies; those that are not in ``fast`` are run with the long tests only."""
    return [name if name in fast else pytest.param(name, marks=pytest.mark.long) for name in COUNTS]


@pytest.mark.parametrize("name", studies(*(name for name in COUNTS if name not in IMAGES)))
@pytest.mark.usefixtures("data")
def test_the_data_are_counted_as_described(name: str):
    sites, _ = Study.read(path_of(name)).check()
    assert (len(sites), *sites[["found", "used", "patients"]].sum()) == COUNTS[name]


@pytest.mark.parametrize("name", studies(*FAST))
@pytest.mark.usefixtures("data")
def test_a_short_version_runs_to_its_report(name: str, tmp_path: Path):
    content = content_of(name)
    study = Study.of(content, STUDIES)
    results = study.run(tmp_path / "results")
    labels = [method.label for method in study.declaration.study_methods]
    assert list(results.table().index) == labels
    assert list(results.table(run="attacked").index) == (labels if "attack" in content else [])
    assert (tmp_path / "results" / "report.html").is_file()


@pytest.mark.parametrize("name", ["heart-disease"])
@pytest.mark.usefixtures("data")
def test_the_page_has_the_numbers_of_the_results(name: str, tmp_path: Path, make_results: ModuleType):
    content = content_of(name, methods=["single", "fedavg"])
    results = Study.of(content, STUDIES).run(tmp_path / name)
    page = make_results.page(tmp_path)
    sites, together = results.table(), results.table("all")
    for method in ("single", "fedavg"):
        for mean in (sites.loc[method, "auc"], together.loc[method, "auc"]):
            assert f"| {method} | {mean:.3f} (" in page
    assert "Cases: 920 found, 740 used, 180 rejected" in page
    assert "Not run yet: " + ", ".join(other for other in make_results.NAMES if other != name) in page


@pytest.mark.parametrize("name", ["corrupt-sites"])
@pytest.mark.usefixtures("data")
def test_the_page_says_what_corrupt_sites_did(name: str, tmp_path: Path, make_results: ModuleType):
    content = content_of(name, methods=["mix", "fedavg", "geometric_median"])
    results = Study.of(content, STUDIES).run(tmp_path / name)
    page = make_results.page(tmp_path)
    assert (
        "*(attacked)*: the site hungarian was corrupt. Area under the ROC curve at the honest sites: most was" in page
    )
    values = results.results[lambda rows: (rows["metric"] == "auc") & rows["tested_on"].isin(["cleveland", "va"])]
    means = named(values).groupby("method")["value"].mean()
    rows = page.split("| auc lost at the honest sites |")[1].split("Notes of the run")[0]
    for method in ("mix", "fedavg", "geometric_median"):
        lost = float(re.search(rf"^\| {method} \| (\S+)", rows, re.M)[1].replace("−", "-"))  # type: ignore[index]
        assert lost == pytest.approx(means[method] - means[f"{method} (attacked)"], abs=6e-4)
    assert re.search(r"^\| mix \| .* \| – \|$", rows, re.M)
    assert "| p vs fedavg |" in page
    assert "p vs single |" not in page  # not one of the methods


@pytest.mark.parametrize("name", ["heart-disease"])
@pytest.mark.usefixtures("data")
def test_finished_results_are_taken_and_changed_ones_refused(
    name: str, tmp_path: Path, make_results: ModuleType, monkeypatch: pytest.MonkeyPatch
):
    folder = tmp_path / "studies"
    folder.mkdir()
    monkeypatch.setattr(make_results, "HERE", folder)
    study = folder / f"{name}.yaml"
    content = content_of(name, methods=["fedavg"])
    study.write_text("# Question: one?\n" + yaml.safe_dump(content), encoding="utf-8")
    out = tmp_path / "out"
    make_results.main([name], out)
    first = Results(out / name).provenance["finished"]
    assert "## heart-disease\n\nQuestion: one?" in make_results.PAGE.read_text(encoding="utf-8")
    make_results.main([name], out)
    assert json.loads((out / name / "provenance.json").read_text(encoding="utf-8"))["finished"] == first
    content["training"]["rounds"] = 3
    study.write_text("# Question: one?\n" + yaml.safe_dump(content), encoding="utf-8")
    with pytest.raises(make_results.typer.Exit):
        make_results.main([name], out)
    make_results.run(study, tmp_path / "other", Console(quiet=True))


def test_phantoms_of_a_study_are_made_once(tmp_path: Path):
    pytest.importorskip("nilearn")
    request = survey_request(2, spacing=6.0)
    folder = phantoms.made(request, tmp_path / "survey", Console(quiet=True))
    first = (folder / "regions.csv").stat().st_mtime_ns
    assert phantoms.made(request, folder, Console(quiet=True)) == folder
    assert (folder / "regions.csv").stat().st_mtime_ns == first
