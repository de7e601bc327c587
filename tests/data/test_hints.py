"""Boxes and names of structures in the place of masks: how cells are read, drawn, changed with images, and counted."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import nibabel
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from PIL import Image

from helpers import site_of
from polyclinic.candidates import code_of, possible, undecided
from polyclinic.data.augmentation import Augmentation
from polyclinic.data.cases import Counts, SiteData
from polyclinic.data.dataset import Dataset
from polyclinic.data.masks.hinted import Hidden, draw_hint
from polyclinic.data.open import open_data
from polyclinic.data.opening.cohort import Opened
from polyclinic.data.opening.facts import facts_frame
from polyclinic.data.readers.volume import UnreadableError
from polyclinic.data.scaling import Scaler
from polyclinic.data.spec import DataSpec, Patch
from polyclinic.data.tables.hints import Hint, HintError, hint_of
from polyclinic.data.volumes.store import Volumes
from polyclinic.errors import DataError, StudyError
from polyclinic.ignored import IGNORED

BASE: dict[str, Any] = {"table": "cases.csv", "site": "site", "image": "image", "mask": "mask", "box": "box",
                        "label": "seen", "size": [8, 8], "channels": "grey", "scaling": "none"}  # fmt: skip
TWO = {"cyst": 1, "tumour": 2}
CYST, TUMOUR, BOTH = code_of([1]), code_of([2]), code_of([1, 2])


# Numbers of candidates ------------------------------------------------------------------------------------------------


def test_numbers_say_which_classes_a_pixel_may_be_of() -> None:
    targets = torch.tensor([0, 2, CYST, BOTH, IGNORED], dtype=torch.uint8).view(1, 1, 5)
    wanted = [[1, 0, 0], [0, 0, 1], [1, 1, 0], [1, 1, 1], [1, 1, 1]]
    assert possible(targets, 3)[0].T.int().tolist() == wanted
    assert undecided(targets, 3).flatten().tolist() == [False, False, True, True, False]
    assert not undecided(torch.tensor([129, 200]), 220).any(), "with so many structures they are class indices"


# Cells ----------------------------------------------------------------------------------------------------------------


def read(box: str | None = None, seen: str | None = None, **entries: Any) -> Hint:
    spec = DataSpec.model_validate(BASE | {"mask_classes": TWO} | entries)
    return hint_of(pd.Series({"box": box, "seen": seen}), spec)


def test_cells_are_read() -> None:
    assert read("cyst 1 2 3 4; tumour 0,0,2.5,8") == Hint(((1, 1, 2, 3, 4), (2, 0, 0, 2.5, 8)))
    assert read("cyst -1e-9 0.3333333 16.0000001 8") == Hint(((1, 0, 0.333, 16, 8),)), "rounding is no place beyond"
    assert read("none") == read(seen="none") == Hint()
    assert read(seen="tumour, cyst") == Hint(anywhere=frozenset({1, 2}))
    assert read("cyst 1 2 3 4", "cyst;tumour") == Hint(((1, 1, 2, 3, 4),), frozenset({2}))
    assert read("1 2 3 4", mask_classes=None) == Hint(((1, 1, 2, 3, 4),))
    assert read(seen="foreground", mask_classes=None) == Hint(anywhere=frozenset({1}))


@pytest.mark.parametrize(
    ("box", "seen", "words"),
    [
        ("cyst 1 2 3", None, "not x0 y0 x1 y1"), ("cyst 1 2 3 x", None, "not x0 y0 x1 y1"), (";", None, "no box"),
        ("cyst 1 2 nan 4", None, "not x0 y0 x1 y1"), ("cyst 1 2 1e999 4", None, "not x0 y0 x1 y1"),
        ("cyst 3 2 1 4", None, "ends before it begins.*two corners"), ("1 2 3 4", None, "of which structure"),
        ("cyst 0.1 0.2 0.5 0.9", None, "shares of the image"), ("wen 1 2 3 4", None, "another structure"),
        (None, "wen", "names no structure"), (None, ";", "names no structure"),
        ("cyst 1 2 3 4", "tumour", "does not name"), ("none", "cyst", "says that there is none"),
    ],
)  # fmt: skip
def test_cells_that_mean_nothing_say_why_without_their_text(box: Any, seen: Any, words: str) -> None:
    with pytest.raises(HintError, match=words) as error:
        read(box, seen)
    assert "wen" not in str(error.value)


# Drawing --------------------------------------------------------------------------------------------------------------


def test_a_box_has_its_first_pixel_and_not_its_last() -> None:
    found = draw_hint(Hint(((1, 1, 0, 3, 2), (2, 2, 1, 4, 3))), (4, 3), (3, 4))
    assert found.tolist() == [[0, CYST, CYST, 0], [0, CYST, BOTH, TUMOUR], [0, 0, TUMOUR, TUMOUR]]
    somewhere = draw_hint(Hint(((1, 0, 0, 1, 1),), frozenset({2})), (2, 1), (1, 2))
    assert somewhere.tolist() == [[BOTH, TUMOUR]]


@pytest.mark.parametrize(
    ("box", "words"), [((1, 0, 0, 5, 3), "beyond"), ((1, -1, 0, 3, 3), "beyond"), ((1, 0, 0, 4, 4), "beyond")]
)
def test_a_box_lies_in_the_image(box: Any, words: str) -> None:
    with pytest.raises(UnreadableError, match=words):
        draw_hint(Hint((box,)), (4, 3), (3, 4))


def test_a_box_that_the_grid_loses_is_no_empty_image() -> None:
    with pytest.raises(UnreadableError, match="no pixel left"):
        draw_hint(Hint(((1, 1, 1, 2, 2),)), (100, 100), (8, 8))


def test_none_of_several_boxes_is_lost() -> None:
    with pytest.raises(UnreadableError, match="no pixel left"):
        draw_hint(Hint(((1, 20, 20, 80, 80), (1, 1, 1, 2, 2))), (100, 100), (8, 8))


@given(st.data())
def test_what_is_in_a_box_stays_in_it_at_any_size(data: Any) -> None:
    width, height = (data.draw(st.integers(8, 40)) for _ in range(2))
    left, top = data.draw(st.integers(0, width - 2)), data.draw(st.integers(0, height - 2))
    right, bottom = data.draw(st.integers(left + 2, width)), data.draw(st.integers(top + 2, height))
    size = data.draw(st.integers(8, 40)), data.draw(st.integers(8, 40))
    mask = np.zeros((height, width), dtype=np.uint8)
    mask[top:bottom, left:right] = 1
    small = np.asarray(Image.fromarray(mask).resize(size[::-1], Image.Resampling.NEAREST))
    try:
        drawn = draw_hint(Hint(((1, left, top, right, bottom),)), (width, height), size)
    except UnreadableError:
        assert not small.any()
    else:
        assert ((drawn == CYST) == (small == 1)).all()


# Tables and files -----------------------------------------------------------------------------------------------------


def write(folder: Path, rows: list[dict[str, Any]]) -> None:
    """Pictures of 16 x 12 pixels, with masks where ``mask`` is true: the pixels that a box of 4 2 12 8 has."""
    table = []
    for number, row in enumerate(rows):
        Image.fromarray(np.full((12, 16), 10 * number, dtype=np.uint8)).save(folder / f"image{number}.png")
        mask = np.zeros((12, 16), dtype=np.uint8)
        mask[2:8, 4:12] = 1
        Image.fromarray(mask).save(folder / f"mask{number}.png")
        table.append({"site": "north", "mask": "", "box": "", "seen": "", "image": f"image{number}.png"} | row)
        table[-1]["mask"] = f"mask{number}.png" if row.get("mask") else ""
    pd.DataFrame(table).to_csv(folder / "cases.csv", index=False)


def opened(folder: Path, **entries: Any) -> Opened:
    return open_data(DataSpec.model_validate(BASE | entries), folder, "masks", None)


ROWS = [
    {"mask": True}, {"box": "4 2 12 8"}, {"seen": "foreground"}, {"box": "none"}, {}, {"box": "1 2 3"},
    {"box": "4 2 17 8"}, {"mask": True, "box": "nonsense"},
]  # fmt: skip


def test_rows_with_a_hint_come_after_those_with_a_mask_and_are_counted(tmp_path: Path) -> None:
    write(tmp_path, ROWS)
    found = opened(tmp_path, max_unreadable=0.5)
    data = found.sites["north"]
    assert data.cases == [f"image{number}.png" for number in (0, 7, 1, 2, 3)]
    assert data.labelled is not None
    assert data.labelled.tolist() == [True, True, False, False, False]
    assert isinstance(data.targets, torch.Tensor)
    inside = data.targets[0, 0] == 1
    assert ((data.targets[2, 0] == CYST) == inside).all()
    assert (data.targets[3] == CYST).all()
    assert not data.targets[4].any()
    assert data.counts.rejected == Counter(
        {"mask, box and seen are missing": 1, "box is not x0 y0 x1 y1": 1, "box reaches beyond the image": 1}
    )
    frame = facts_frame(found.cohort.facts, found.classes)
    assert frame.loc[0, ["found", "used", "unlabelled", "boxed", "named", "rejected"]].tolist() == [8, 5, 3, 2, 1, 3]
    (note,) = [note for note in found.notes if note.number == "N209"]
    assert note.startswith("3 of 5 cases used have no mask (north 3).")
    assert note.endswith("2 of them have boxes (north 2). 1 of them have names of structures alone (north 1).")


def test_a_case_of_which_nothing_is_known_stays_where_the_study_wants_it(tmp_path: Path) -> None:
    write(tmp_path, ROWS[:5])
    data = opened(tmp_path, unlabelled="use").sites["north"]
    assert isinstance(data.targets, torch.Tensor)
    assert (data.targets[-1] == IGNORED).all()
    assert (data.counts.unlabelled, data.counts.boxed, data.counts.named) == (4, 2, 1)


def test_a_site_may_lack_the_column_of_masks(tmp_path: Path) -> None:
    write(tmp_path, [{"mask": True}, {"box": "4 2 12 8"}])
    table = pd.read_csv(tmp_path / "cases.csv")
    table[:1][["image", "mask"]].to_csv(tmp_path / "north.csv", index=False)
    table[1:][["image", "box"]].to_csv(tmp_path / "south.csv", index=False)
    tables = {"tables": {"north": "north.csv", "south": "south.csv"}, "table": None, "site": None, "label": None}
    found = opened(tmp_path, **tables)
    assert [len(data) for data in found.sites.values()] == [1, 1]
    with pytest.raises(DataError, match="P202"):
        opened(tmp_path, **tables, box="boxes")


def test_a_row_with_a_box_lacks_its_mask_alone(tmp_path: Path) -> None:
    write(tmp_path, [{"box": "4 2 12 8"}, {"seen": "foreground"}, {}])
    with pytest.raises(DataError, match=r"P205 .*: mask is missing \(2\), mask, box and seen are missing \(1\)"):
        opened(tmp_path)
    write(tmp_path, [{"mask": True, "part": "train"}, {"box": "4 2 12 8", "part": "test"}])
    found = open_data(DataSpec.model_validate(BASE), tmp_path, "masks", "part").sites["north"]
    assert found.counts.rejected == Counter({"mask is missing": 1})


def test_another_box_is_other_data(tmp_path: Path) -> None:
    write(tmp_path, [{"mask": True}, {"box": "4 2 12 8"}])
    before = opened(tmp_path).fingerprint
    write(tmp_path, [{"mask": True}, {"box": "4 2 12 9"}])
    assert opened(tmp_path).fingerprint != before


def test_names_of_structures_go_for_volumes_too(tmp_path: Path) -> None:
    for number in range(3):
        image = np.random.default_rng(number).normal(size=(6, 6, 6)).astype(np.float32)
        nibabel.Nifti1Image(image, np.eye(4)).to_filename(tmp_path / f"{number}.nii")
    nibabel.Nifti1Image((image > 0).astype(np.uint8), np.eye(4)).to_filename(tmp_path / "mask.nii")
    rows = {"site": "north", "image": [f"{number}.nii" for number in range(3)], "mask": ["mask.nii", "", ""]}
    spec = {"box": None, "size": None, "channels": "rgb", "preprocessing": {"size": [6, 6, 6]}}
    prints = []
    for seen in ("foreground", "none"):
        pd.DataFrame(rows | {"seen": ["", "foreground", seen]}).to_csv(tmp_path / "cases.csv", index=False)
        found = opened(tmp_path, **spec)
        targets = found.sites["north"].targets
        assert isinstance(targets, Volumes)
        assert targets[1].unique().tolist() == [CYST]
        assert targets[2].unique().tolist() == [CYST if seen == "foreground" else 0]
        prints.append(found.fingerprint)
    assert prints[0] != prints[1]


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"preprocessing": {"size": [8, 8, 8]}, "size": None}, "P104 .*these are volumes"),
        ({"mask_classes": [f"s{number}" for number in range(7)]}, "P104 .*up to 6 structures; got 7"),
        ({"mask_classes": ["a;b"]}, "P104 .*`;` divides"),
    ],
)  # fmt: skip
def test_what_does_not_go_is_refused(tmp_path: Path, entries: dict[str, Any], words: str) -> None:
    write(tmp_path, ROWS[:2])
    with pytest.raises(StudyError, match=words):
        opened(tmp_path, **entries)


# Masks that are hidden, and changes of images -------------------------------------------------------------------------


def marked() -> SiteData:
    """Two images that are their masks: an L of structure 1, and one pixel of structure 2."""
    masks = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    masks[:, 0, 1:5, 2] = masks[:, 0, 4, 2:6] = 1
    masks[0, 0, 7, 7] = 2
    masks[1, 0, 0, 0] = IGNORED
    return site_of("north", masks.float().mul(10).to(torch.uint8), masks)


def test_of_hidden_masks_boxes_or_names_are_left() -> None:
    data = marked()
    boxes, names = (Hidden(data.targets, kind) for kind in ("box", "label"))
    mask = data.targets[0]
    found = boxes.of(0, (0, 0), mask)
    wanted = torch.zeros(1, 8, 8, dtype=torch.uint8)
    wanted[0, 1:5, 2:6] = CYST
    wanted[0, 7, 7] = TUMOUR
    assert torch.equal(found, wanted)
    assert torch.equal(boxes.of(0, (3, 3), mask[:, 3:, 3:]), wanted[:, 3:, 3:]), "a part of it has that part of the box"
    assert torch.equal(boxes.of(0, (5, 0), mask[:, 5:7, :]), torch.zeros(1, 2, 8, dtype=torch.uint8))
    assert (names.of(0, (0, 0), mask) == BOTH).all()
    assert names.of(1, (0, 0), data.targets[1]).unique().tolist() == [CYST, IGNORED]


def test_hidden_masks_are_seen_by_nobody_else() -> None:
    dataset = Dataset(marked(), Scaler.identity(1))
    index = torch.tensor([0, 1])
    for leaves in (None, "box", "label"):
        other = dataset.without_labels(torch.tensor([0]), leaves)  # type: ignore[arg-type]
        plain, hinted = other.batch(index)[1], other.batch(index, hints=True)[1]
        assert (plain[0] == IGNORED).all()
        assert torch.equal(plain[1], dataset.targets[1])
        assert torch.equal(hinted[1], plain[1])
        assert hinted[0].unique().tolist() == {None: [255], "box": [0, CYST, TUMOUR], "label": [BOTH]}[leaves]
    assert torch.equal(dataset.batch(index)[1], marked().targets), "nothing is written to"


@pytest.mark.parametrize(
    "transform",
    [{"RandFlip": {"prob": 1.0, "spatial_axis": 0}}, {"RandRotate90": {"prob": 1.0, "max_k": 3}},
     {"RandAffine": {"prob": 1.0, "rotate_range": 0.6, "translate_range": 2, "padding_mode": "zeros"}},
     {"RandZoom": {"prob": 1.0, "min_zoom": 0.7, "max_zoom": 0.8}}],
)  # fmt: skip
def test_boxes_go_with_the_image(transform: dict[str, Any]) -> None:
    """An image whose bright part is its box, and a mask that is: all three are moved alike."""
    box = np.zeros((8, 8), dtype=np.uint8)
    box[1:5, 2:7] = 1
    drawn = torch.from_numpy(draw_hint(Hint(((1, 2, 1, 7, 5),)), (8, 8), (8, 8)).copy())
    targets = torch.stack([torch.from_numpy(box), drawn, torch.full((8, 8), CYST, dtype=torch.uint8)])[:, None]
    images = torch.from_numpy(box * 255)[None, None].repeat(3, 1, 1, 1)
    change = Augmentation([transform], (8, 8))
    masked, boxed = (Dataset(_some(images[place], targets[place], known), Scaler.identity(1), change)
                     for place, known in ((slice(0, 1), True), (slice(1, 3), False)))  # fmt: skip
    moved = 0
    for seed in range(6):
        image, mask = masked.batch(torch.tensor([0]), augment=seed, hints=True)
        other, hint = boxed.batch(torch.tensor([0, 1]), augment=seed, hints=True)
        assert torch.equal(image[0], other[0])
        assert torch.equal(mask[0] == 1, hint[0] == CYST)
        assert hint[0].unique().tolist() == [0, CYST]
        assert (hint[1] == CYST).all(), "what is known of all pixels is so wherever they come from"
        moved += not torch.equal(mask[0, 0], torch.from_numpy(box))
    assert moved


def test_what_may_be_anywhere_may_be_in_what_is_moved_in() -> None:
    """A box of a cyst, a tumour somewhere, and a column that plays no part."""
    targets = torch.full((1, 1, 8, 8), TUMOUR, dtype=torch.uint8)
    targets[..., 2:4, 2:4], targets[..., 0] = BOTH, IGNORED
    zoom = {"prob": 1.0, "min_zoom": 0.5, "max_zoom": 0.6, "padding_mode": "constant"}
    change = Augmentation([{"RandZoom": zoom}], (8, 8))
    dataset = Dataset(_some(torch.zeros(1, 1, 8, 8, dtype=torch.uint8), targets, False), Scaler.identity(1), change)
    for seed in range(3):
        hint = dataset.batch(torch.tensor([0]), augment=seed, hints=True)[1]
        assert hint.unique().tolist() == [TUMOUR, BOTH, IGNORED]


def _some(images: torch.Tensor, targets: torch.Tensor, known: bool) -> SiteData:
    data = site_of("north", images, targets)
    data.counts = Counts(len(images), len(images))
    data.labelled = None if known else torch.zeros(len(images), dtype=torch.bool)
    return data


def test_boxes_of_volumes_are_cut_with_them(tmp_path: Path) -> None:
    mask = np.zeros((1, 6, 6, 6), dtype=np.uint8)
    mask[0, 1:4, 2:5, 1:3] = 1
    mask[0, 2, 3, 1] = 0
    np.save(tmp_path / "mask.npy", mask)
    np.save(tmp_path / "image.npy", mask.astype(np.float32))
    record = [{"labels": [198, 17], "grid_spacing": [1, 1, 1], "grid_orientation": "RAS"}]
    data = site_of("north", torch.zeros(1, 1), torch.zeros(1))
    data.inputs = Volumes([tmp_path / "image.npy"], record)  # type: ignore[assignment]
    data.targets = Volumes([tmp_path / "mask.npy"], record)
    patch = Patch(size=(3, 3, 3), foreground=0)
    dataset = Dataset(data, Scaler.identity(1), None, patch).without_labels(torch.tensor([0]), "box")
    whole = torch.from_numpy(mask.copy())
    whole[0, 2, 3, 1] = 1
    seen = set()
    for seed in range(12):
        image, hint = dataset.batch(torch.tensor([0]), augment=seed, hints=True)
        assert ((hint[0] == CYST) | (image[0] == 0)).all(), "what is bright lies in the box"
        seen.add(int((hint == CYST).sum()))
    assert torch.equal(dataset.batch(torch.tensor([0]), hints=True)[1][0] == CYST, whole == 1)
    assert len(seen) > 2
