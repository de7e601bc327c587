"""Whole studies on bags: counts, what is told of instances and where it stays, models in use, other engines."""

import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from polyclinic.deployment.export.bundle import export_bundle
from polyclinic.deployment.export.onnx import export_onnx
from polyclinic.deployment.loaded import Model
from polyclinic.errors import ModelError
from polyclinic.study.final_model.folder import read_model
from polyclinic.study.report.page import write_report
from polyclinic.study.study import Study

SIZES = {"Aachen": 20, "Bonn": 18, "Celle": 22}


def write_bags(folder, **changes):
    """Two slides a patient of one to nine tiles, in an order by chance; one tile of those of class 1 lies far out."""
    rng, rows = np.random.default_rng(3), []
    for site, patients in SIZES.items():
        for number in range(patients):
            for slide in range(2):
                tiles = rng.normal(size=(rng.integers(1, 10), 4))
                tiles[0, 0] += 5 * (number % 2)
                name = f"MRN-{site[0]}{number:03}-secret"
                rows += [(site, name, f"{name}.{slide}", number % 2, *np.round(tile, 4)) for tile in tiles]
    table = pd.DataFrame(rows, columns=["site", "patient", "slide", "label", "f0", "f1", "f2", "f3"])
    table.loc[[0], "f1"] = np.nan
    table.sample(frac=1, random_state=1).to_csv(folder / "tiles.csv", index=False)
    data = {"table": "tiles.csv", "site": "site", "subject": "patient", "bag": {"column": "slide", "most": 4},
            "label": "label", "features": "f*"}  # fmt: skip
    entries = {
        "study": "Tiles", "data": data,
        "model": {"gated_attention": {"encoder": {"mlp": {"hidden": [6]}}, "hidden": 4}},
        "training": {"rounds": 2, "batch_size": 8, "optimizer": {"adam": {"lr": 0.02}}},
        "evaluation": {"folds": 2, "bootstrap": 100, "metrics": ["auc", "acc"]},
        "methods": ["attention_mil"], "seed": 0, "engine": {"threads": 1},
    }  # fmt: skip
    return entries | changes


def run(folder, entries, out="out", **options):
    Study.of(entries, folder).run(folder / out, **options)
    return folder / out


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bags")
    entries = write_bags(folder, methods=["attention_mil", "mix"], final_model="attention_mil")
    return folder, entries, run(folder, entries)


def test_bags_and_instances_are_counted(finished):
    folder, _, out = finished
    table = pd.read_csv(folder / "tiles.csv")
    flow = pd.read_csv(out / "flow.csv").query("site == 'Bonn'").set_index("stage")
    mine = table[table["site"] == "Bonn"]
    for stage, count in (("found", 36), ("used", 36), ("instances found", len(mine)), ("instances", len(mine))):
        assert flow.loc[stage, "cases"] == count
    assert flow.loc["used", "patients"] == 18
    parts = pd.read_csv(out / "flow.csv").query("fold == 0 and what.isna() and site == 'Bonn'")
    assert parts["cases"].sum() == 36
    report = (out / "report.html").read_text(encoding="utf-8")
    assert "instances" in report
    assert "Which instances count" in report


def test_attention_is_kept_with_predictions_under_pseudonyms(finished):
    folder, _, out = finished
    attention, predictions = pd.read_csv(out / "attention.csv"), pd.read_csv(out / "predictions.csv")
    assert "secret" not in (out / "attention.csv").read_text(encoding="utf-8")
    keys = ["method", "seed", "fold", "site", "subject", "case", "trained_on"]
    bags = attention.groupby(keys, sort=False)
    assert len(bags) == len(predictions)
    np.testing.assert_allclose(bags["weight"].sum(), 1, atol=1e-5)
    counts = bags["instance"].max().reset_index(name="count").drop_duplicates(["site", "case"])
    people = pd.read_csv(folder / "tiles.csv").groupby(["site", "slide"]).size()
    for site in SIZES:
        assert sorted(counts.query("site == @site")["count"]) == sorted(people[site])


def test_the_model_predicts_bags_as_the_study_would(finished):
    folder, _, out = finished
    table = pd.read_csv(folder / "tiles.csv").drop(columns="label")
    some = table[table["site"] == "Bonn"]
    loaded = Model(out / "model", out / "model-sites")
    found = loaded.predict(some).set_index("case")["score"]
    assert len(found) == some["slide"].nunique()
    shuffled = loaded.predict(some.sample(frac=1, random_state=2)).set_index("case")["score"]
    np.testing.assert_allclose(shuffled[found.index], found, atol=1e-6)
    alone = some[some["slide"] == found.index[0]]
    np.testing.assert_allclose(loaded.predict(alone)["score"], found.iloc[:1], atol=1e-6)
    with pytest.raises(ModelError, match=r"P702 .* has no 'slide'"):
        loaded.predict(some.drop(columns="slide"))


def test_a_model_of_bags_is_not_exported(finished, tmp_path):
    model = read_model(finished[2] / "model")
    with pytest.raises(ModelError, match="P704 A case of this model is a bag"):
        export_onnx(model, tmp_path / "onnx")
    with pytest.raises(ModelError, match="P704"):
        export_bundle(model, tmp_path / "bundle")


def test_where_predictions_stay_at_the_sites_attention_does_too(finished, tmp_path):
    folder, entries, out = finished
    changed = {name: value for name, value in entries.items() if name != "final_model"}
    changed |= {"evaluation": {**entries["evaluation"], "predictions": "sites"}, "methods": ["attention_mil"]}
    at_sites = run(folder, changed, tmp_path / "at")
    assert not (at_sites / "attention.csv").exists()
    kept = [pd.read_csv(path) for path in sorted((at_sites / "sites").rglob("*.attention.csv"))]
    assert len(kept) == 6
    one = pd.read_csv(out / "attention.csv").query("method == 'attention_mil'")
    joined = pd.concat(kept).sort_values(["fold", "site", "case", "instance"])
    pd.testing.assert_frame_equal(
        joined.reset_index(drop=True),
        one.sort_values(["fold", "site", "case", "instance"]).reset_index(drop=True), check_exact=True,
    )  # fmt: skip
    assert "Which instances count" not in (at_sites / "report.html").read_text(encoding="utf-8")


def test_trainings_in_other_processes_give_the_same_bytes(finished, tmp_path):
    folder, entries, out = finished
    changed = {name: value for name, value in entries.items() if name != "final_model"} | {"methods": ["attention_mil"]}
    there = run(folder, changed, tmp_path / "beside", jobs=2)
    for name in ("predictions.csv", "attention.csv"):
        one = pd.read_csv(out / name, dtype=str).query("method == 'attention_mil'").reset_index(drop=True)
        pd.testing.assert_frame_equal(pd.read_csv(there / name, dtype=str), one)


def test_images_of_patients_with_augmentation(tmp_path):
    rng, rows = np.random.default_rng(0), []
    for site in ("Aachen", "Bonn"):
        for patient in range(8):
            for number in range(rng.integers(1, 4)):
                name = f"{site}{patient}-{number}.png"
                level = 60 + 120 * (patient % 2) * (number == 0)
                Image.fromarray((rng.integers(0, 40, size=(8, 8)) + level).astype(np.uint8)).save(tmp_path / name)
                rows.append((site, f"p{patient}", name, patient % 2))
    pd.DataFrame(rows, columns=["site", "who", "image", "label"]).to_csv(tmp_path / "images.csv", index=False)
    entries = {
        "data": {"table": "images.csv", "site": "site", "subject": "who", "bag": {}, "label": "label", "image": "image",
                 "size": [8, 8], "channels": "grey", "augmentation": [{"RandFlip": {"prob": 0.5, "spatial_axis": 0}}],
                 "scaling": "federated"},
        "model": {"gated_attention": {"encoder": {"cnn": {"channels": [4], "norm": "group"}}, "hidden": 4}},
        "training": {"rounds": 1, "batch_size": 4, "optimizer": "adam"},
        "evaluation": {"folds": 2, "bootstrap": 0, "metrics": ["auc"]}, "methods": ["attention_mil"],
    }  # fmt: skip
    out = run(tmp_path, entries)
    attention = pd.read_csv(out / "attention.csv")
    assert len(attention) == len(rows)
    assert write_report(out).is_file()


def test_rows_that_do_not_agree_are_noted_and_counted(tmp_path):
    entries = write_bags(tmp_path)
    table = pd.read_csv(tmp_path / "tiles.csv")
    sizes = table.groupby("slide").size()
    torn = sizes[sizes > 1].index[:3]
    first = table[table["slide"].isin(torn)].drop_duplicates("slide").index
    table.loc[first, "label"] = 1 - table.loc[first, "label"]
    table.to_csv(tmp_path / "tiles.csv", index=False)
    out = run(tmp_path, entries)
    notes = json.loads((out / "notes.json").read_text(encoding="utf-8"))
    assert [note["text"][:20] for note in notes if note["number"] == "N260"] == ["3 bags are left out,"]
    flow = pd.read_csv(out / "flow.csv")
    assert flow.query("stage == 'rejected'")["cases"].sum() == 3
    assert set(flow.query("stage == 'rejected'")["what"]) == {"label differs within a bag"}
