"""The data sheet: what it shows of each site, that it shows it at the right place, and that it stays at the site."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from helpers import write_image_study, write_number_study, write_table_study
from polyclinic import Study
from polyclinic.errors import ResultsError
from polyclinic.study.pictures import STRUCTURE_COLOURS
from polyclinic.study.sheet.choice import cases_of_each, choose
from polyclinic.study.sheet.outlines import outlines
from polyclinic.study.sheet.ridges import ridges
from polyclinic.study.sheet.values import explained

BLUE, YELLOW = ((*(int(colour[i : i + 2], 16) for i in (1, 3, 5)), 255) for colour in STRUCTURE_COLOURS[:2])


class Page(HTMLParser):
    """A page: its text by section, its pictures, and everything that could leave it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.source, self.images, self.outlines, self.tags = text, [], [], []
        self.sections: dict[str, str] = {}
        self._section = ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.tags.append((tag, found))
        if tag == "h2":
            self._section = found["id"]
        if tag == "img":
            (self.outlines if found.get("class") == "outlines" else self.images).append(found["src"])

    def handle_data(self, data):
        self.sections[self._section] = self.sections.get(self._section, "") + " " + data

    def text(self, section: str) -> str:
        return " ".join(self.sections[section].split())


def sheet(content, folder: Path, out: str = "sheet") -> Page:
    Study.of(content, folder).check(out=folder / out)
    return Page((folder / out / "data-sheet.html").read_text(encoding="utf-8"))


def pixels(source: str) -> np.ndarray:
    kind, data = source.removeprefix("data:image/").split(";base64,")
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        assert image.format == kind.upper()
        return np.asarray(image)


# The pictures ---------------------------------------------------------------------------------------------------------


def test_outlines_lie_on_the_edge_of_their_structure_and_nowhere_else():
    mask = np.zeros((9, 10), dtype=np.uint8)
    mask[2:7, 2:7] = 1
    mask[4, 4] = 2
    mask[8, 9] = 1  # in the corner of the image
    drawn = outlines(mask, 2)
    one, two = ({(int(r), int(c)) for r, c in np.argwhere((drawn == colour).all(axis=2))} for colour in (BLUE, YELLOW))
    ring = {(r, c) for r in range(2, 7) for c in range(2, 7) if r in (2, 6) or c in (2, 6)}
    assert one == ring | {(3, 4), (5, 4), (4, 3), (4, 5)} | {(8, 9)}
    assert two == {(4, 4)}
    rim = {(int(r), int(c)) for r, c in np.argwhere((drawn == (0, 0, 0, 130)).all(axis=2))}
    assert rim == {
        *((r, c) for r in range(2, 7) for c in (1, 7)), *((r, c) for r in (1, 7) for c in range(2, 7)), (7, 9), (8, 8)
    }  # fmt: skip
    assert not drawn[(drawn[..., 3] == 0)].any()
    assert (drawn[..., 3] > 0).sum() == len(one) + len(two) + len(rim)


def test_outlines_of_enlarged_pictures_stay_with_their_voxels():
    mask = np.zeros((4, 4), dtype=np.uint8)
    mask[1, 2] = 1
    drawn = outlines(mask, 1, 100)
    line = (drawn == BLUE).all(axis=2)
    inside = np.zeros((400, 400), dtype=bool)
    inside[100:200, 200:300] = True
    middle = np.zeros_like(inside)
    middle[102:198, 202:298] = True
    assert (line == (inside & ~middle)).all()


def test_voxels_to_be_ignored_are_hatched_in_grey_not_outlined():
    mask = np.zeros((12, 12), dtype=np.uint8)
    mask[:, 6:] = 255
    drawn = outlines(mask, 1)
    grey = (drawn == (150, 150, 150, 190)).all(axis=2)
    assert 0.3 < grey[:, 6:].mean() < 0.7
    assert not grey[:, :6].any()
    assert not (drawn == BLUE).all(axis=2).any()


def test_extreme_cases_are_among_those_chosen_and_the_rest_is_spread():
    values = np.full(100, 50.0)
    values[[7, 93]] = 3.0, 99.0
    chosen = choose({("darkest", "brightest"): values}, 100, 12)
    assert len(chosen) == 12
    assert (chosen[7], chosen[93]) == (["darkest"], ["brightest"])
    assert list(chosen) == sorted(chosen)
    assert {0, 99} <= set(chosen)
    assert np.diff(list(chosen)).max() < 20
    assert chosen == choose({("darkest", "brightest"): values}, 100, 12)
    assert list(choose({("a", "b"): np.full(3, 1.0)}, 3, 12)) == [0, 1, 2]
    assert list(choose({("a", "b"): np.array([np.nan, 1.0, 2.0])}, 3, 12).values()) == [[], ["a"], ["b"]]


def test_many_sites_show_fewer_cases_each():
    assert [cases_of_each(sites) for sites in (1, 3, 20, 500)] == [12, 12, 6, 4]


# Whole pages ----------------------------------------------------------------------------------------------------------


def test_pictures_with_masks(tmp_path):
    content = write_image_study(tmp_path, {"Aachen": 20, "Bonn & <Köln>": 5})
    small = np.zeros((16, 16), dtype=np.uint8)
    small[3, 3:5] = 255
    Image.fromarray(small).save(tmp_path / "Aachen" / "mask-secret-13.png")
    page = sheet(content, tmp_path)
    assert (len(page.images), len(page.outlines)) == (17, 17)
    assert "Aachen" in page.text("pictures")
    assert "Bonn & <Köln>" in page.text("pictures")
    assert "<Köln>" not in page.source
    for tag in ("darkest", "brightest", "smallest mask", "largest mask"):
        assert tag in page.text("pictures")
    # What is shown is what was read: the outline of each case lies on the border of its mask.
    data = Study.of(content, tmp_path).open().sites["Bonn & <Köln>"]
    for case in range(5):
        image, outline = pixels(page.images[12 + case]), pixels(page.outlines[12 + case])
        assert image.shape[:2] == outline.shape[:2] == (400, 400)
        large = data.inputs[case, 0].numpy().repeat(25, 0).repeat(25, 1)
        assert np.abs(image.astype(int) - large).mean() < 4  # a JPEG
        mask = data.targets[case, 0].numpy().repeat(25, 0).repeat(25, 1) > 0
        line = (outline == BLUE).all(axis=2)
        assert line.any()
        assert not (line & ~mask).any()
        assert (line | ~mask)[np.pad(~mask, 1)[:-2, 1:-1] | np.pad(~mask, 1)[2:, 1:-1]].all()


def test_the_page_needs_nothing_and_says_that_it_stays(tmp_path):
    page = sheet(write_image_study(tmp_path, {"Aachen": 4}), tmp_path)
    assert "This page stays at the site." in page.source
    assert "default-src 'none'" in page.source
    assert not [tag for tag, _ in page.tags if tag in ("script", "link", "iframe")]
    for _, attributes in page.tags:
        for name in ("src", "href"):
            assert attributes.get(name, "#").startswith(("data:image/", "#"))
    links = {attributes["href"].removeprefix("#") for tag, attributes in page.tags if tag == "a"}
    assert links <= {attributes.get("id") for _, attributes in page.tags}
    assert (tmp_path / "sheet" / ".gitignore").read_text() == "*\n"


def test_a_table_of_several_sites(tmp_path):
    content = write_table_study(tmp_path, {"Aachen": 30, "Bonn": 12})
    table = pd.read_csv(tmp_path / "cases.csv")
    table.loc[table["site"] == "Bonn", "x1"] *= 1000  # another unit
    table["x2"] = table["x2"].astype(object)
    table.loc[3, "x2"] = 1e6
    table["note"] = "not used"
    table.loc[5, "diagnosis"] = None
    table.loc[9, "diagnosis"] = None
    table.to_csv(tmp_path / "cases.csv", index=False)
    page = sheet(content, tmp_path)
    assert page.images == []
    assert "diagnosis is missing (2)" in page.text("sites")
    assert "row 6 row 10" in page.text("sites")
    assert re.search(r"Aachen 30 28 2", page.text("sites"))
    roles = page.text("roles")
    assert "Label diagnosis kind 0, kind 1" in roles
    assert "Features x0 x1 x2 3 columns" in roles
    assert "Left out note 1 of 7 columns" in roles
    assert "Patient patient 40, such as MRN-A0000-secret" in roles
    features = page.text("features")
    assert features.index("x1") < features.index("x0")
    assert "x2 Aachen row 4 MRN-A0003-secret 1e+06" in features
    assert "1 of 40 values lie beyond the axis" in features


def test_what_a_pattern_takes_for_the_patient_is_shown(tmp_path):
    content = write_table_study(tmp_path, {"Aachen": 12})
    table = pd.read_csv(tmp_path / "cases.csv")
    table["patient"] = [f"p{case // 2:02}{'LR'[case % 2]}" for case in range(12)]
    table["visit"], table["where"] = "baseline", "ward"
    table.to_csv(tmp_path / "cases.csv", index=False)
    content["data"] |= {"subject_pattern": r"(p\d+)[LR]", "where": {"where": "ward"}}
    page = sheet(content, tmp_path)
    assert r"Patient patient 6, such as p00, p01, p02; the part that (p\d+)[LR] finds, such as p00L → p00" in page.text(
        "roles"
    )
    assert "Visit visit visits of a patient stay together in all splits" in page.text("roles")
    assert "Rows where only those with where: ward" in page.text("roles")
    assert "Aachen 6 6 with 2 p00, p01, p02" in page.text("patients")


def test_numbers_to_predict(tmp_path):
    page = sheet(write_number_study(tmp_path, {"Aachen": 12, "Bonn": 9}), tmp_path)
    table = pd.read_csv(tmp_path / "cases.csv").query("site == 'Bonn'")["age"]
    assert "Bonn 9 " + f"{table.astype('float32').min():.4g}" in page.text("labels")
    assert "Number to predict age" in page.text("roles")
    assert "Median: from" in page.source


def test_notes_stand_with_number_and_cases_which_stay_on_the_page(tmp_path):
    content = write_image_study(tmp_path, {"Aachen": 6, "Bonn": 6})
    blank = Image.fromarray(np.zeros((16, 16), dtype=np.uint8))
    blank.save(tmp_path / "Bonn" / "mask-secret-2.png")
    page = sheet(content, tmp_path)
    notes = page.text("notes")
    assert "N401 Masks have no foreground" in notes
    assert "Bonn/scan-secret-2.png" in notes
    told = json.loads((tmp_path / "sheet" / "notes.json").read_text())
    assert [{"number": one["number"], "cases": one["cases"]} for one in told] == [{"number": "N401", "cases": 1}]
    for name in ("notes.json", "sites.csv"):
        assert "secret" not in (tmp_path / "sheet" / name).read_text()
    sites = pd.read_csv(tmp_path / "sheet" / "sites.csv")
    assert sites["used"].tolist() == [6, 6]


def test_a_site_without_a_usable_case_and_one_with_rejected_ones(tmp_path):
    content = write_image_study(tmp_path, {"Aachen": 6, "Bonn": 3})
    for case in range(3):
        (tmp_path / "Bonn" / f"scan-secret-{case}.png").write_bytes(b"no image")
    (tmp_path / "Aachen" / "scan-secret-4.png").unlink()
    content["data"]["max_unreadable"] = 1.0
    page = sheet(content, tmp_path)
    assert len(page.images) == 5
    assert "left out: no case can be used" in page.text("sites")
    assert "Aachen: 1 by name image file is missing (1) Aachen/scan-secret-4.png" in page.text("sites")
    assert "Bonn: 3 by name" in page.text("sites")
    assert "N208" in page.text("notes")
    assert "Bonn" not in page.text("pictures")


def test_nothing_to_note(tmp_path):
    page = sheet(write_table_study(tmp_path, {"Aachen": 12}), tmp_path)
    assert "Nothing unusual was found" in page.text("notes")
    assert json.loads((tmp_path / "sheet" / "notes.json").read_text()) == []


def test_names_are_never_markup(tmp_path):
    content = write_table_study(tmp_path, {"<script>alert(1)</script>": 12, "B": 12})
    table = pd.read_csv(tmp_path / "cases.csv").rename(columns={"x0": "x<img src=y>"})
    table["patient"] = [f"<b>{name}" for name in table["patient"]]
    table.loc[1, "diagnosis"] = None
    table.loc[0, "x1"] = 1e5
    table.to_csv(tmp_path / "cases.csv", index=False)
    content["study"] = "A & <i>B</i>"
    page = sheet(content, tmp_path)
    assert not [tag for tag, _ in page.tags if tag in ("script", "i")]
    assert page.images == []
    assert "<b>MRN" not in page.source
    assert "<b>MRN-<0000-secret" in page.text("patients")


def volumes(folder: Path, *, contrasts: int = 1) -> dict:
    """Two sites with volumes whose mask is a box near the patient's right and top."""
    rows = []
    for site, cases in (("Aachen", 3), ("Bonn", 2)):
        for case in range(cases):
            rng = np.random.default_rng(case)
            mask = np.zeros((12, 14, 10), dtype=np.uint8)
            mask[8:11, 4:8, 6:9] = 1
            mask[9, 5, 7] = 2
            names = []
            for contrast in range(contrasts):
                values = rng.normal(100 * (contrast + 1), 5, mask.shape) + 80 * (mask > 0)
                names.append(f"{site}-{case}-c{contrast}.nii.gz")
                nib.save(nib.Nifti1Image(values.astype(np.float32), np.diag([2, 2, 2, 1])), folder / names[-1])
            names.append(f"{site}-{case}-mask.nii.gz")
            nib.save(nib.Nifti1Image(mask, np.diag([2, 2, 2, 1])), folder / names[-1])
            rows.append([site, f"P{case}{site}", "ses-1", *names])
    columns = ["site", "patient", "session", *(f"c{contrast}" for contrast in range(contrasts)), "mask"]
    pd.DataFrame(rows, columns=columns).to_csv(folder / "cases.csv", index=False)
    return {
        "task": "segmentation",
        "data": {
            "table": "cases.csv", "site": "site", "subject": "patient", "mask": "mask",
            "image": "c0" if contrasts == 1 else [f"c{contrast}" for contrast in range(contrasts)],
            "mask_classes": ["shell", "core"], "preprocessing": {"spacing": 2.0, "size": [12, 14, 10]},
        },
        "model": {"unet": {"channels": [4, 8]}},
        "methods": ["fedavg"],
    }  # fmt: skip


def test_volumes_in_three_planes_with_several_structures(tmp_path):
    page = sheet(volumes(tmp_path), tmp_path)
    assert (len(page.images), len(page.outlines)) == (5, 5)
    assert "axial R coronal R sagittal A" in page.text("pictures")
    assert "shell 0.28 ml, core 0.008 ml" in page.text("pictures")
    assert "Aachen 3 0.28 ml 0.008 ml" in page.text("structures")
    drawn = pixels(page.outlines[0])
    factor = drawn.shape[0] // 14
    assert drawn.shape[:2] == (14 * factor, (12 + 12 + 14) * factor)
    # Axial slice: right is left, front is up. The box spans x 8 to 10 of 12, so columns 1 to 3; y 4 to 7, rows 6 to 9.
    line = (drawn == BLUE).all(axis=2)[:, : 12 * factor]
    rows, columns = np.nonzero(line)
    assert (rows.min() // factor, rows.max() // factor) == (6, 9)
    assert (columns.min() // factor, columns.max() // factor) == (1, 3)
    assert (drawn == YELLOW).all(axis=2).any()
    assert "12×14×10 (3)" in page.text("read")
    assert "RAS (3)" in page.text("read")
    assert "Visit session" in page.text("roles")
    assert "shell = 1; core = 2" in page.text("roles")


def test_voxels_that_play_no_part_are_in_the_legend_and_not_in_sizes(tmp_path, monkeypatch):
    content = write_image_study(tmp_path, {"Aachen": 3})
    study = Study.of(content, tmp_path)
    opened = study.open()
    opened.sites["Aachen"].targets[:, :, :8] = 255
    opened.sites["Aachen"].targets[:, :, 8:] = 0
    opened.sites["Aachen"].targets[:, :, 8, :4] = 1
    monkeypatch.setattr(Study, "open", lambda *_: opened)
    page = sheet(content, tmp_path)
    assert "foreground ignored" in page.text("pictures")
    assert "foreground 3.1 %" in page.text("pictures")
    assert "Aachen 3 3.12 %" in page.text("structures")


def test_every_contrast_of_a_volume_is_shown(tmp_path):
    page = sheet(volumes(tmp_path, contrasts=2), tmp_path)
    assert len(page.images) == 10
    assert page.text("pictures").count("c1") == 5
    assert "each column is a contrast" in page.text("roles")
    assert page.source.count("<svg viewBox") >= 2


def test_planned_volumes_say_the_plan(tmp_path):
    content = volumes(tmp_path)
    content["data"]["preprocessing"] = {"spacing": "auto", "size": "auto"}
    content["model"] = "auto"
    page = sheet(content, tmp_path)
    assert "N101 Volumes were planned" in page.text("notes")
    assert "Planned 5 images of 2 sites" in page.text("preparation")


def test_simulated_sites(tmp_path):
    content = write_image_study(tmp_path, {"Aachen": 12, "Bonn": 12})
    content["data"] |= {"partition": {"sites": 2, "even": None, "least": 3}}
    page = sheet(content, tmp_path)
    assert "simulated: patients were shared out among 2 sites" in page.text("roles")
    assert "16×16 (12)" in page.text("read")
    assert len(page.images) == 24


# Where it is written --------------------------------------------------------------------------------------------------


def test_an_earlier_data_sheet_is_replaced_and_nothing_else(tmp_path):
    content = write_table_study(tmp_path, {"Aachen": 12})
    sheet(content, tmp_path)
    (tmp_path / "sheet" / "mine.txt").write_text("keep")
    content["study"] = "Another title"
    page = sheet(content, tmp_path)
    assert "Another title" in page.source
    assert (tmp_path / "sheet" / "mine.txt").read_text() == "keep"


def test_folders_that_hold_something_else_are_refused_before_anything_is_read(tmp_path, monkeypatch):
    study = Study.of(write_table_study(tmp_path, {"Aachen": 12}), tmp_path)
    monkeypatch.setattr(Study, "open", lambda *_: pytest.fail("read"))
    (tmp_path / "file").write_text("")
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "provenance.json").write_text("{}")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "sites.csv").write_text("mine")
    for name, words in (("file", "is a file"), ("results", "is a results folder"), ("other", "sites.csv")):
        with pytest.raises(ResultsError, match=words) as caught:
            study.check(out=tmp_path / name)
        assert caught.value.code == "P501"
    assert (tmp_path / "other" / "sites.csv").read_text() == "mine"


def test_a_folder_with_other_files_gets_no_gitignore(tmp_path):
    content = write_table_study(tmp_path, {"Aachen": 12})
    sheet(content, tmp_path, out=".")
    assert not (tmp_path / ".gitignore").exists()


def test_the_same_data_gives_the_same_page(tmp_path):
    content = write_image_study(tmp_path, {"Aachen": 14})
    first, again = (sheet(content, tmp_path).source for _ in range(2))
    made = r"<dt>Made</dt><dd>[^<]*</dd>"
    assert re.sub(made, "", first) == re.sub(made, "", again)


# Figures --------------------------------------------------------------------------------------------------------------


def test_another_unit_explains_a_feature_whatever_its_outliers():
    home = np.repeat([0, 1], 50)
    rng = np.random.default_rng(0)
    same, other = rng.normal(size=100), rng.normal(size=100) + 10 * home
    other[3] = 1e9
    assert explained(same, home) < 0.1
    assert explained(other, home) > 0.6
    assert explained(same * (1 + 999 * home), home) > 0.6
    assert np.isnan(explained(np.ones(100), home))
    assert np.isnan(explained(np.full(100, np.nan), home))


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ({"A": [0, 0, 1, 1], "B": [1, 1, 1, 0]}, "Share of the value 1: from 50.0% (A) to 75.0% (B)."),
        ({"A": [1.0, 2.0, 9.0], "B": []}, "Median: 2. B: no value."),
        ({"A": [3.0, 3.0], "B": [3.0]}, "Median: from 3 (A) to 3 (A)."),
        ({"A": [*np.linspace(0, 1, 200), 1e9]}, "Median: 0.5025. 1 of 201 values lie beyond the axis."),
        ({"A": np.linspace(0, 1, 201), "B": np.linspace(0, 1000, 9)}, "Median: from 0.5 (A) to 500 (B)."),
        ({"A": [], "B": [np.nan]}, "A, B: no value."),
    ],
)
def test_histograms_say_what_they_show(rows, words):
    panel = ridges("x", {site: np.array(values, dtype=float) for site, values in rows.items()}, kind="test")
    assert panel.words == words
    assert panel.picture.startswith("<svg")


def test_the_command_writes_the_sheet_or_says_how(tmp_path, capfd):
    import sys

    from polyclinic import cli

    content = write_table_study(tmp_path, {"Aachen": 12})
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(content))
    for options in (["--out", str(tmp_path / "sheet")], []):
        sys.argv = ["polyclinic", "check", str(tmp_path / "study.yaml"), *options]
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code in (0, None)
        out, err = capfd.readouterr()
        if options:
            assert out.splitlines()[-1] == f"Data sheet: {tmp_path / 'sheet' / 'data-sheet.html'}"
        else:
            assert out.splitlines()[-1].endswith("0 rejected.")
            assert "--out" in err
