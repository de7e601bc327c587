"""A results folder as an RO-Crate: read back by the library of its makers, checked by rules of the specification."""

import json
import zipfile
from pathlib import Path
from shutil import copytree
from urllib.parse import unquote

import numpy as np
import pytest
from rocrate.rocrate import ROCrate
from safetensors.numpy import save_file

from polyclinic import cli
from polyclinic.errors import ResultsError
from polyclinic.study.crate import export_crate
from polyclinic.study.crate.metadata import CONTEXT, METADATA, PROFILE, digest


def graph_of(folder):
    content = json.loads((folder / METADATA).read_text(encoding="utf-8"))
    assert content["@context"] == CONTEXT
    found = {one["@id"]: one for one in content["@graph"]}
    assert len(found) == len(content["@graph"])  # no entity is there twice
    return found


def references(value):
    if isinstance(value, dict):
        yield from (
            [value["@id"]] if set(value) == {"@id"} else [one for own in value.values() for one in references(own)]
        )
    elif isinstance(value, list):
        yield from (one for own in value for one in references(own))


@pytest.fixture
def quick_report(monkeypatch):
    """A page that stands for the report, which takes longer than the rest of a crate."""

    def write(folder, out):
        out.write_text("a report")

    monkeypatch.setattr("polyclinic.study.crate.export.write_report", write)


@pytest.fixture(scope="module")
def crate(finished_study, tmp_path_factory):
    out = tmp_path_factory.mktemp("crate") / "crate"
    return out, export_crate(finished_study, out, authors=["Ada", "Bo"], licence="https://example.org/licence")


def test_every_file_is_described_and_nothing_else_is_there(crate):
    out, made = crate
    graph = graph_of(out)
    files = {unquote(name): one for name, one in graph.items() if one["@type"] == "File"}
    there = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()} - {METADATA}
    assert set(files) == there
    assert made.files == len(files)
    for name, one in files.items():
        assert one["contentSize"] == str((out / name).stat().st_size)
        assert one["sha256"] == digest(out / name)
        assert one["description"]
        assert one["encodingFormat"]


def test_nothing_of_single_patients_is_in_it(crate, finished_study):
    out, made = crate
    names = {path.name for path in out.rglob("*")}
    assert not names & {"predictions.csv", "subjects.csv", "sites", "site.log", "overlays.safetensors", "jobs"}
    assert (finished_study / "predictions.csv").is_file()
    assert any("predictions are left out" in sentence for sentence in made.told)
    secrets = b"secret", b"P00001-1"
    for path in out.rglob("*"):
        assert path.is_dir() or not any(secret in path.read_bytes() for secret in secrets), path.name


def test_the_graph_keeps_to_the_rules_of_the_specification(crate):
    """RO-Crate 1.1, sections 4 to 6, and Process Run Crate 0.5: what they say with MUST."""
    out, _ = crate
    graph = graph_of(out)
    descriptor, root = graph[METADATA], graph["./"]
    assert descriptor["@type"] == "CreativeWork"
    assert descriptor["about"] == {"@id": "./"}
    assert descriptor["conformsTo"] == {"@id": "https://w3id.org/ro/crate/1.1"}
    assert root["@type"] == "Dataset"
    assert all(root[name] for name in ("name", "description", "datePublished", "license"))
    assert len(root["datePublished"]) == len("2026-01-01")
    outside = {"https://w3id.org/ro/crate/1.1"}
    for one in graph.values():
        assert {"@id", "@type"} <= set(one)
        assert set(references({key: value for key, value in one.items() if key != "@id"})) <= set(graph) | outside
    held = {one for name in ("./", "models/") for one in references(graph[name]["hasPart"])}
    assert held == {name for name, one in graph.items() if one["@type"] in ("File", "Dataset") and name != "./"}
    assert root["conformsTo"] == {"@id": PROFILE}
    run = graph[root["mentions"]["@id"]]
    assert run["@type"] == "CreateAction"
    assert graph[run["instrument"]["@id"]]["@type"] == "SoftwareApplication"
    assert {"@id": "study.yaml"} in run["object"]
    assert {"@id": "results.csv"} in run["result"]
    assert {"@id": "study.yaml"} not in run["result"]
    assert run["startTime"] <= run["endTime"]
    assert graph["#data"]["identifier"].startswith("sha256:")
    assert [graph[one["@id"]]["name"] for one in root["author"]] == ["Ada", "Bo"]


def test_the_library_of_its_makers_reads_it(crate, tmp_path):
    out, made = crate
    read = ROCrate(out)
    assert len([one for one in read.data_entities if one.type == "File"]) == made.files
    assert read.root_dataset["license"]["@id"] == "https://example.org/licence"
    read.write(tmp_path / "again")
    for path in (tmp_path / "again").rglob("*"):
        assert (
            path.is_dir()
            or path.name == METADATA
            or path.read_bytes() == (out / path.relative_to(tmp_path / "again")).read_bytes()
        )


@pytest.mark.usefixtures("quick_report")
def test_the_same_results_give_the_same_zip_file(finished_study, tmp_path):
    made = [export_crate(finished_study, tmp_path / name, models=False).path for name in ("a.zip", "deep/b.zip")]
    assert made[0].read_bytes() == made[1].read_bytes()
    with zipfile.ZipFile(made[0]) as archive:
        assert archive.testzip() is None
        assert METADATA in archive.namelist()
        assert not any(name.startswith("models/") for name in archive.namelist())
    assert {path.name for path in tmp_path.rglob("*")} == {"a.zip", "deep", "b.zip"}  # no draft is left


@pytest.mark.usefixtures("quick_report")
def test_what_is_not_given_is_left_to_fill(finished_study, tmp_path):
    made = export_crate(finished_study, tmp_path / "out", models=False)
    graph = graph_of(tmp_path / "out")
    assert graph[graph["./"]["license"]["@id"]]["name"] == "To be filled in by the authors"
    assert graph[graph["./"]["author"]["@id"]]["name"] == "To be filled in by the authors"
    assert any("authors and licence" in sentence for sentence in made.told)


@pytest.mark.usefixtures("quick_report")
def test_predictions_are_in_it_only_when_asked_for(finished_study, tmp_path):
    made = export_crate(finished_study, tmp_path / "out", predictions=True, models=False)
    assert (tmp_path / "out" / "predictions.csv").is_file()
    assert any("Ask the sites" in sentence for sentence in made.told)


def test_pictures_of_patients_never_are(finished_study, tmp_path):
    copytree(finished_study, tmp_path / "with")
    picture = np.zeros((1, 8, 8), np.uint8)
    names = [f"fedavg/Aachen/worst/{name}" for name in ("image", "mask", "prediction")]
    tensors = dict(zip(names, (picture, picture[0], picture[0]), strict=True))
    dice = {"dice": '{"fedavg/Aachen/worst": "0.5"}'}
    save_file(tensors, tmp_path / "with" / "overlays.safetensors", metadata=dice)
    from polyclinic.study.report.page import write_report

    assert "data:image/jpeg" in write_report(tmp_path / "with").read_text()
    made = export_crate(tmp_path / "with", tmp_path / "out")
    assert "data:image" not in (tmp_path / "out" / "report.html").read_text()
    assert "trained model" in (tmp_path / "out" / "report.html").read_text()
    assert any("no pictures of patients" in sentence for sentence in made.told)


@pytest.mark.usefixtures("quick_report")
def test_absolute_paths_of_the_study_file_are_told(finished_study, tmp_path):
    copytree(finished_study, tmp_path / "with")
    study = tmp_path / "with" / "study.yaml"
    study.write_text(study.read_text().replace("table: cases.csv", "table: /home/me/cases.csv"))
    made = export_crate(tmp_path / "with", tmp_path / "out", models=False)
    assert any("'/home/me/cases.csv'" in sentence for sentence in made.told)


@pytest.mark.parametrize("out", ["there", "there.zip"])
def test_nothing_is_overwritten(finished_study, tmp_path, out):
    place = tmp_path / out
    if place.suffix:
        place.write_text("mine")
    else:
        place.mkdir()
        (place / "mine").write_text("mine")
    with pytest.raises(ResultsError, match="is there already") as error:
        export_crate(finished_study, place)
    assert error.value.code == "P501"


def test_a_study_that_is_not_finished_is_no_archive(finished_study, tmp_path):
    copytree(finished_study, tmp_path / "with")
    record = json.loads((tmp_path / "with" / "provenance.json").read_text())
    (tmp_path / "with" / "provenance.json").write_text(json.dumps(record | {"status": "running"}))
    with pytest.raises(ResultsError, match="not finished"):
        export_crate(tmp_path / "with", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("quick_report")
def test_names_with_blanks_and_letters_are_addresses(finished_study, tmp_path):
    copytree(finished_study, tmp_path / "with")
    model = next((tmp_path / "with" / "models").glob("*.safetensors"))
    model.rename(model.with_name("größe 1 (a=b).safetensors"))
    export_crate(tmp_path / "with", tmp_path / "out")
    graph = graph_of(tmp_path / "out")
    assert "models/gr%C3%B6%C3%9Fe%201%20%28a%3Db%29.safetensors" in graph
    assert (tmp_path / "out" / "models" / "größe 1 (a=b).safetensors").is_file()


@pytest.mark.usefixtures("quick_report")
def test_the_command_says_what_is_left_out(finished_study, tmp_path, capsys, monkeypatch):
    out = tmp_path / "archive.zip"
    words = ["polyclinic", "export", str(finished_study), "--ro-crate", str(out), "--author", "Ada", "--without-models"]
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 0
    told = capsys.readouterr()
    assert Path(told.out.strip()) == out
    assert "predictions are left out" in " ".join(told.err.split())
