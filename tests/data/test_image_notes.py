"""Notes on single images: counted for a site, in the scan and when a study is opened."""

from pathlib import Path

import nibabel
import numpy as np
import pandas as pd

from polyclinic.data.image_notes import count_notes
from polyclinic.data.open import open_data
from polyclinic.data.readers.scan import scan_folder
from polyclinic.data.spec import DataSpec
from polyclinic.notes import Note

ODD = Note("N610", "without a place.")
OTHER = Note("N501", "mended: doubled slices dropped.")


def test_equal_notes_are_counted_once_an_image_with_their_cases():
    found = count_notes([("a", [ODD, ODD]), ("b", [OTHER]), ("c", [ODD])])
    assert found == ["1 image mended: doubled slices dropped.", "2 images without a place."]
    assert [note.number for note in found] == ["N501", "N610"]
    assert [note.cases for note in found] == [("b",), ("a", "c")]
    assert count_notes([("a", [ODD])], site="north", things=("mask", "masks")) == [
        "Site north: 1 mask without a place."
    ]
    assert count_notes([]) == []


def write(path: Path, affine: np.ndarray | None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(len(str(path))).normal(100, 10, (6, 6, 6)).astype(np.float32)
    image = nibabel.Nifti1Image(values, affine)
    if affine is None:
        image.header.set_zooms((1, 1, 1))
    nibabel.save(image, path)


def numbered(notes: list[str], number: str) -> list[Note]:
    return [note for note in notes if isinstance(note, Note) and note.number == number]


def test_an_opened_study_counts_them_a_site_whether_prepared_now_or_before(tmp_path):
    names = {"A": ["p1", "p2", "p3"], "B": ["p4", "p5"]}
    for site, patients in names.items():
        for number, patient in enumerate(patients):
            write(tmp_path / site / f"{patient}.nii.gz", np.eye(4) if number == 0 else None)
    rows = [(s, p, f"{s}/{p}.nii.gz", p[1] in "24") for s, patients in names.items() for p in patients]
    pd.DataFrame(rows, columns=["site", "subject", "image", "label"]).to_csv(tmp_path / "t.csv", index=False)
    spec = DataSpec.model_validate(
        {
            "table": "t.csv", "site": "site", "subject": "subject", "image": "image", "label": "label",
            "preprocessing": {"size": [4, 4, 4], "spacing": 1.0},
        }
    )  # fmt: skip
    for _ in ("prepared", "from the cache"):
        opened = open_data(spec, tmp_path, "labels")
        found = numbered(opened.notes, "N610")
        assert [str(note).split(" without")[0] for note in found] == ["Site A: 2 images", "Site B: 1 image"]
        assert found[0].cases == tuple(opened.sites["A"].cases[1:])
        assert "p2" not in found[0]


def test_a_scan_counts_them_and_names_sites_where_there_are_several(tmp_path):
    write(tmp_path / "A" / "p1.nii.gz", None)
    write(tmp_path / "B" / "p2.nii.gz", None)
    write(tmp_path / "B" / "p2_mask.nii.gz", None)
    found = numbered(scan_folder(tmp_path, site_from="folder", salt="s").notes, "N610")
    assert [str(note).split(" without")[0] for note in found] == [
        "Site A: 1 image",
        "Site B: 1 image",
        "Site B: 1 mask",
    ]
    assert found[2].cases == ("B/p2_mask.nii.gz",)
    one = numbered(scan_folder(tmp_path / "A", site="A", salt="s").notes, "N610")
    assert str(one[0]).startswith("1 image without")
