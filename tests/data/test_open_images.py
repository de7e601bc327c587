import logging
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from polyclinic.data.open import open_data
from polyclinic.data.pictures.decode import ImageFiles, decode_images
from polyclinic.data.readers.files import resolve
from polyclinic.data.spec import DataSpec
from polyclinic.errors import DataError

TABLE = "site,who,file,outline,dx\nA,p1,i/1.png,m/1.png,0\nA,p2,i/2.png,m/2.png,1\nB,p3,i/3.png,m/3.png,1\n"
RED, DARK = np.full((4, 6, 3), (255, 0, 0), np.uint8), np.full((4, 6, 3), 20, np.uint8)
HALF = np.zeros((4, 6), np.uint8)
HALF[:, :3] = 200


def opened(folder: Path, target="labels", **entries):
    base = {"table": "t.csv", "site": "site", "subject": "who", "image": "file", "mask": "outline", "size": [4, 6]}
    progress = entries.pop("progress", None)
    spec = DataSpec.model_validate(base | ({"label": "dx"} if target == "labels" else {}) | entries)
    return open_data(spec, folder, target, progress=progress)


@pytest.fixture
def study(write_table, write_image):
    folder = write_table(TABLE, "t.csv")
    for number, pixels in ((1, RED), (2, DARK), (3, DARK + 1)):
        write_image(f"i/{number}.png", pixels)
        write_image(f"m/{number}.png", HALF)
    return folder


def one(folder, name, size=(4, 6), channels="rgb", mask=None):
    files = ImageFiles([name], None if mask is None else [mask], [folder])
    return decode_images(files, size, channels)


def test_images_and_labels(study):
    calls = []
    result = opened(study, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(1, 3), (2, 3), (3, 3)]
    assert result.features == ["red", "green", "blue"]
    a = result.sites["A"]
    assert a.inputs.dtype == torch.uint8
    assert a.inputs.shape == (2, 3, 4, 6)
    assert a.inputs[0].flatten(1).unique(dim=1).tolist() == [[255], [0], [0]]
    assert a.inputs[1].unique().tolist() == [20]
    assert a.targets.tolist() == [0, 1]
    assert a.cases == ["i/1.png", "i/2.png"]
    assert a.subjects == ["p1", "p2"]


def test_masks(study):
    result = opened(study, "masks", channels="grey")
    assert result.features == ["grey"]
    assert result.classes == ["background", "foreground"]
    targets = result.sites["B"].targets
    assert targets.dtype == torch.uint8
    assert targets.shape == (1, 1, 4, 6)
    assert targets[0, 0].tolist() == [[1, 1, 1, 0, 0, 0]] * 4
    assert result.sites["A"].inputs[0].unique().tolist() == [76]  # luma of pure red: 0.299 x 255


def test_a_mask_without_foreground_is_told(study, write_image):
    write_image("m/2.png", np.zeros((4, 6), np.uint8))
    assert opened(study, "masks").notes == ["Site A: 1 mask has no foreground."]


def test_resizing(tmp_path, write_image):
    board = np.indices((8, 12)).sum(0) % 2 * 254
    write_image("board.png", board.astype(np.uint8))
    write_image("mask.png", np.kron(HALF, np.ones((2, 2), np.uint8)))
    images, masks, failures = one(tmp_path, "board.png", (4, 6), "grey", "mask.png")
    assert failures == {}
    assert (images.int() - 127).abs().max() <= 15  # antialiased: every output pixel sees black and white
    assert masks[0, 0].tolist() == [[1, 1, 1, 0, 0, 0]] * 4
    images, _, _ = one(tmp_path, "board.png", (16, 24), "grey")
    assert images.shape == (1, 1, 16, 24)


@pytest.mark.parametrize("ending", ["png", "tif"])
@pytest.mark.parametrize("white", [255, 65535])
def test_exif_orientation(tmp_path, ending, white):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter: the left column is shown on top
    pixels = np.zeros((6, 4), np.uint8 if white == 255 else np.uint16)
    pixels[:, 0] = white
    Image.fromarray(pixels).save(tmp_path / f"turned.{ending}", exif=exif)
    images, _, _ = one(tmp_path, f"turned.{ending}", (4, 6), "grey")
    assert images[0, 0].tolist() == [[255] * 6] + [[0] * 6] * 3


def test_sixteen_bits(tmp_path, write_image):
    write_image("deep.png", np.array([[0, 257, 65535], [256, 32896, 513]], np.uint16))
    images, _, _ = one(tmp_path, "deep.png", (2, 3), "grey")
    assert images[0, 0].tolist() == [[0, 1, 255], [0, 128, 1]]
    write_image("label.png", np.array([[0, 1, 256], [0, 0, 65535]], np.uint16))
    _, masks, _ = one(tmp_path, "deep.png", (2, 3), "grey", "label.png")
    assert masks[0, 0].tolist() == [[0, 1, 1], [0, 0, 1]]


def test_kinds_of_masks(tmp_path, write_image):
    write_image("i.png", np.zeros((2, 2, 3), np.uint8))
    expected = [[0, 1], [1, 0]]
    array = np.array(expected, np.uint8)
    palette = Image.fromarray(array, "P")
    palette.putpalette([0, 0, 0, 9, 9, 200])
    palette.save(tmp_path / "palette.png")
    Image.fromarray(array.astype(bool)).save(tmp_path / "bit.png")
    opaque = np.full((2, 2), 255, np.uint8)
    Image.fromarray(np.stack([0 * array, 0 * array, array, opaque], axis=2)).save(tmp_path / "alpha.png")
    for name in ("palette.png", "bit.png", "alpha.png"):
        _, masks, failures = one(tmp_path, "i.png", (2, 2), "rgb", name)
        assert failures == {}, name
        assert masks[0, 0].tolist() == expected, name


def test_what_can_not_be_read(tmp_path, write_image):
    write_image("good.png", RED)
    write_image("small.png", HALF[:2])
    write_image("noise.png", np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8))
    data = (tmp_path / "noise.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    (tmp_path / "note.png").write_text("no image")
    (tmp_path / "folder.png").mkdir()
    frames = [Image.fromarray(HALF), Image.fromarray(HALF + 1)]
    frames[0].save(tmp_path / "film.tif", save_all=True, append_images=frames[1:])
    Image.fromarray(HALF.astype(np.float32)).save(tmp_path / "float.tif")
    expected = {
        "gone.png": "image file is missing",
        "folder.png": "image file is missing",
        "good.png/x": "image file is missing",
        "cut.png": "image file is damaged",
        "note.png": "image file is no PNG, JPEG, TIFF, BMP or GIF",
        "film.tif": "image file has several frames",
        "float.tif": "image file has 32-bit pixels",
        "../good.png": "image path lies outside the image folder",
        "/etc/passwd": "image path lies outside the image folder",
        "nul\0.png": "image file is damaged",
    }
    files = ImageFiles([*expected, "good.png"], None, [tmp_path] * (len(expected) + 1))
    _, _, failures = decode_images(files, (4, 6), "rgb")
    assert failures == dict(enumerate(expected.values()))
    _, _, failures = one(tmp_path, "good.png", mask="small.png")
    assert failures == {0: "mask and image differ in size"}


def test_paths_stay_in_their_folders(tmp_path):
    root = tmp_path / "images"
    assert resolve("a/b.png", root) == root / "a/b.png"
    assert resolve("a/../b.png", root) == root / "b.png"
    assert resolve(str(root / "b.png"), root) == root / "b.png"
    assert resolve("../b.png", root) is None
    assert resolve("../images2/b.png", root) is None
    assert resolve("../b.png", root, [tmp_path]) == tmp_path / "b.png"
    assert resolve("../../b.png", root, [tmp_path]) is None


def test_root(study, tmp_path):
    (tmp_path / "tables").mkdir()
    (tmp_path / "t.csv").rename(tmp_path / "tables/t.csv")
    assert opened(study, table="tables/t.csv", root=".").classes == ["0", "1"]
    with pytest.raises(DataError, match=r"P204 Site A: 2 of 2 .*image file is missing"):
        opened(study, table="tables/t.csv")


def test_unreadable_images_stop_a_site_unless_allowed(study, caplog):
    (study / "i/2.png").unlink()
    with caplog.at_level(logging.DEBUG), pytest.raises(DataError, match="P204") as caught:
        opened(study)
    expected = "P204 Site A: 1 of 2 cases can't be read: image file is missing (1). `max_unreadable` allows 0 %."
    assert str(caught.value).startswith(expected)
    assert "2.png" not in str(caught.value)
    assert "2.png" in caplog.text
    with pytest.raises(DataError, match="P204"):
        opened(study, max_unreadable=0.49)
    data = opened(study, max_unreadable=0.5).sites["A"]
    assert data.counts.found == 2
    assert data.counts.used == len(data) == len(data.inputs) == len(data.targets) == len(data.cases) == 1
    assert data.counts.rejected == Counter({"image file is missing": 1})
    assert data.inputs[0, 0, 0, 0] == 255


def test_sites_without_any_image(study):
    (study / "i/3.png").unlink()
    result = opened(study, max_unreadable=1.0)
    assert list(result.sites) == ["A"]
    left_out = "Site B is left out: none of its 1 cases can be used (image file is missing (1))."
    assert result.notes == [left_out]
    (study / "i/1.png").unlink()
    (study / "i/2.png").unlink()
    with pytest.raises(DataError, match="P205 No site has a usable case"):
        opened(study, max_unreadable=1.0)


def test_empty_cells_are_no_unreadable_files(study, write_table):
    write_table(TABLE.replace("i/2.png", ""), "t.csv")
    assert opened(study).sites["A"].counts.rejected == Counter({"file is missing": 1})
    write_table(TABLE.replace("m/2.png", "NA"), "t.csv")
    assert opened(study, "masks").sites["A"].counts.rejected == Counter({"outline is missing": 1})


def test_copies_are_told(study, write_image):
    for number in (2, 3):
        write_image(f"i/{number}.png", RED)
    assert opened(study).notes == [
        "Site A: 1 image repeats an earlier one of the same site under another patient's name: "
        "both may be in training and test data.",
        "1 image is the same, pixel for pixel, at more than one site.",
        "1 image that stands several times has different labels: one of them is wrong, or they are different cases.",
    ]
