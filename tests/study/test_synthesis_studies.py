"""A study whose method makes cases: what is told of them, and when pictures of them are shown."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from elsewhere import Elsewhere, split_table
from helpers import write_image_study
from polyclinic import Study
from polyclinic.client.synthesis import made_cases, site_end
from polyclinic.errors import StudyError
from polyclinic.parts import Made
from polyclinic.study.columns import MEMORISATION
from polyclinic.study.pictures import structure_colour
from polyclinic.study.runner import run_study
from polyclinic.study.synthesis import contact_sheet

OPTIONS = {"generator_rounds": 1, "steps": 3, "network_steps": 3, "batch_size": 8, "width": 4, "latent": 4,
           "checked": 40, "label": "made"}  # fmt: skip
both = pytest.mark.parametrize("method", ["asyndgan", "fed_gan"])


def write(folder, sites="AB", cases=24, method="asyndgan"):
    """Noisy images of two classes, a patient each."""
    rng, rows = np.random.default_rng(3), []
    for site in sites:
        for case in range(cases):
            path = f"{site}-secret-{case}.png"
            Image.fromarray(rng.integers(0, 256, size=(12, 12, 3)).astype(np.uint8)).save(folder / path)
            rows.append([site, f"MRN-{site}{case}-secret", path, f"kind {case % 2}"])
    pd.DataFrame(rows, columns=["site", "patient", "image", "kind"]).to_csv(folder / "cases.csv", index=False)
    data = {"table": "cases.csv", "site": "site", "subject": "patient", "image": "image", "label": "kind",
            "size": [12, 12]}  # fmt: skip
    return {"study": "Made", "data": data, "task": "classification", "model": {"cnn": {"channels": [4]}},
            "training": {"rounds": 2, "batch_size": 8},
            "evaluation": {"holdout": 0.3, "validation": 0.3, "bootstrap": 10},
            "methods": [{method: OPTIONS}], "engine": {"mode": "sequential"}}  # fmt: skip


def run(folder, entries):
    out = Study.of(entries, folder).run(folder / "out").folder
    notes = json.loads((out / "notes.json").read_text(encoding="utf-8"))
    return out, [note for note in notes if note["number"] in ("N278", "N279", "N280")]


@both
def test_a_generator_that_copies_nothing(tmp_path, method):
    out, notes = run(tmp_path, write(tmp_path, method=method))
    table = pd.read_csv(out / "memorisation.csv")
    assert list(table.columns) == MEMORISATION
    assert table[["method", "fold", "site"]].values.tolist() == [["made", 0, s] for s in "AB"]
    assert (table["made"] == 40).all()
    assert table["passed"].all()
    assert not notes
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "Cases that were made" in page
    assert "none found" in page
    assert page.count("data:image/png") == 1
    assert (out / "made.safetensors").is_file()
    exchanged = pd.read_csv(out / "exchanged.csv")
    told = set(exchanged[exchanged["method"] == "made"]["payload"])
    expected = {"asyndgan": {"synthetic_cases/images", "synthetic_cases/gradient", "synthetic_cases/counts"},
                "fed_gan": {"federated_gan/generator", "federated_gan/discriminator"}}  # fmt: skip
    assert expected[method] <= told
    for name in ("memorisation.csv", "notes.json", "report.html"):
        assert "secret" not in (out / name).read_text(encoding="utf-8")


@both
def test_a_generator_that_copies_a_site_is_found_and_shows_nothing(tmp_path, monkeypatch, method):
    """It gives training images of A, a little changed: at A they are found, at B they are not."""
    entries = write(tmp_path, method=method)
    learned = []

    def copying(self, numbers, labels):
        chosen = torch.randint(len(learned[-1]), (len(numbers),), generator=torch.Generator().manual_seed(0))
        return learned[-1][chosen] + 0.01 * torch.randn(len(numbers), *self.generator.shape)

    answer = site_end.MadeCasesEnd.answer

    def answering(self, verb, asked, view):
        if (verb, view.name) == ("begin", "A"):
            learned.append(view.cases()[0])
        return answer(self, verb, asked, view)

    monkeypatch.setattr(site_end.MadeCasesEnd, "answer", answering)
    monkeypatch.setattr(made_cases.Maker, "inputs", copying)
    out, notes = run(tmp_path, entries)
    table = pd.read_csv(out / "memorisation.csv").set_index("site")
    assert table.loc["A", ["passed", "nearer"]].tolist() == [0, 40]
    assert table.loc["B", "passed"] == 1
    assert [note["number"] for note in notes] == ["N278"]
    assert "at site A 40 of 40 made cases" in notes[0]["text"]
    assert not (out / "made.safetensors").exists()
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "<strong>suspected</strong> in 1" in page
    assert "data:image/png" not in page


def test_without_held_out_cases_it_is_said_that_nothing_was_compared(tmp_path):
    entries = write(tmp_path)
    entries["evaluation"] |= {"validation": 0, "best_round": "last"}
    out, notes = run(tmp_path, entries)
    assert [note["number"] for note in notes] == ["N279"]
    assert all("not looked at at A, B" in note["text"] for note in notes)
    assert not (out / "memorisation.csv").exists()
    assert not (out / "made.safetensors").exists()


def test_several_images_of_a_patient_count_once(tmp_path):
    """Ten nearly equal images a patient: the nearest other held-out one would be the same patient's."""
    entries = write(tmp_path, cases=120)
    table, rng = pd.read_csv(tmp_path / "cases.csv"), np.random.default_rng(1)
    for place, row in table.iterrows():
        first = table.loc[place - place % 10, "image"]
        pixels = np.asarray(Image.open(tmp_path / first)).astype(int) + rng.integers(-3, 4, size=(12, 12, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(tmp_path / row["image"])
    table["patient"] = [f"patient {place // 10}" for place in range(len(table))]
    table.to_csv(tmp_path / "cases.csv", index=False)
    out, notes = run(tmp_path, entries)
    table = pd.read_csv(out / "memorisation.csv")
    assert (table["held_out"] <= 4).all()
    assert table["passed"].all()
    assert not notes


def write_masks(folder, method="asyndgan", sizes=None, **options):
    """Images with a bright square, a patient each, and their masks."""
    entries = write_image_study(folder, sizes or {"A": 26, "B": 16})
    made = {**OPTIONS, "masks": 16, **options}
    training = {"rounds": 2, "batch_size": 8}
    return entries | {"methods": [{method: made}], "training": training,
                      "evaluation": {"holdout": 0.2, "validation": 0.1, "bootstrap": 10}}  # fmt: skip


@both
def test_images_of_masks_are_told_of_and_shown_above_them(tmp_path, method):
    out, notes = run(tmp_path, write_masks(tmp_path, method))
    table = pd.read_csv(out / "memorisation.csv").set_index("site")
    assert table["masks"].to_dict() == {"A": 16, "B": 12}
    assert table[["made", "held_out"]].sum(axis=1).to_dict() == {"A": 16, "B": 12}, "of each mask one counts"
    assert table["held_out"].to_dict() == {"A": 4, "B": 3}
    assert [note["number"] for note in notes] == ["N280"]
    assert "masks of patients, from which images were made: A 16, B 12" in notes[0]["text"]
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "each above the mask of a patient" in page
    assert "Masks given<br>to the server" in page
    assert (out / "made.safetensors").is_file()
    exchanged = pd.read_csv(out / "exchanged.csv")
    part = {"asyndgan": "synthetic_cases", "fed_gan": "federated_gan"}[method]
    told = exchanged[exchanged["payload"] == f"{part}/masks"]
    assert told["reveals"].str.contains("masks of patients of the site").all()
    assert len(told)
    for name in ("memorisation.csv", "notes.json", "report.html"):
        assert "secret" not in (out / name).read_text(encoding="utf-8")


def test_masks_are_not_shown_where_no_pictures_of_patients_are_asked_for(tmp_path):
    out, notes = run(tmp_path, write_masks(tmp_path) | {"report": {"overlays": False}})
    assert [note["number"] for note in notes] == ["N280"]
    assert not (out / "made.safetensors").exists()
    assert "only with <code>report: {overlays: true}</code>" in (out / "report.html").read_text(encoding="utf-8")


def test_a_final_model_of_made_images_says_it_too(tmp_path):
    entries = write_masks(tmp_path) | {"final_model": {"method": "made", "rounds": 2}}
    out, notes = run(tmp_path, entries)
    assert [note["number"] for note in notes] == ["N280", "N280"]
    assert notes[0] != notes[1], "it is trained on other cases"
    assert (out / "model").is_dir()
    entries["final_model"] |= {"rounds": 1}
    with pytest.raises(StudyError, match="the model is trained after 1 rounds, and of 1 in all none is left"):
        Study.of(entries, tmp_path)


def test_few_masks_are_not_compared_and_it_is_said_why(tmp_path):
    out, notes = run(tmp_path, write_masks(tmp_path, masks=8))
    assert [note["number"] for note in notes] == ["N280", "N279"]
    assert "fewer than two patients with a structure were kept aside" in notes[1]["text"]
    assert not (out / "memorisation.csv").exists()
    assert not (out / "made.safetensors").exists()


@both
def test_masks_of_sites_elsewhere_give_the_same_study(tmp_path, method):
    entries = write_masks(tmp_path, method) | {"report": {"overlays": False}}
    entries["evaluation"]["predictions"] = "coordinator"
    Study.of(entries, tmp_path).run(tmp_path / "here")
    folders = split_table(tmp_path)
    for site, folder in folders.items():
        (folder / site).symlink_to(tmp_path / site)
    engine = Elsewhere(folders, tmp_path / "sites")
    run_study(Study.of(entries, tmp_path), tmp_path / "there", engine=engine)
    for name in ("predictions.csv", "memorisation.csv"):
        assert (tmp_path / "here" / name).read_bytes() == (tmp_path / "there" / name).read_bytes(), name


def test_masks_stand_below_their_images_in_the_colours_of_their_structures():
    masks = torch.zeros(9, 1, 4, 5, dtype=torch.uint8)
    masks[0, 0, 1, 2], masks[8, 0, 3, 4] = 1, 2
    picture = contact_sheet(Made(torch.rand(9, 1, 4, 5), masks, {}, {"A": 9}), 3)
    assert picture.shape == (3, 4 * 5, 8 * 6)
    for (row, column), structure in (((5 + 1, 2), 0), ((15 + 3, 4), 1)):
        assert bytes(picture[:, row, column].tolist()).hex() == structure_colour(structure)[1:].lower()
    assert not picture[:, 5, 0].any()
    assert (picture[:, 10:14, 6:] == 255).all(), "the second row has one image"
    many = Made(torch.rand(90, 3, 4, 5), masks[:1].repeat(90, 1, 1, 1), {}, {"A": 90})
    assert contact_sheet(many, 3).shape == (3, 6 * 5, 8 * 6)
