"""Pictures of more than eight bits keep their levels, and those that are too large are named so."""

import numpy as np
import pytest
from PIL import Image

from polyclinic.data.open import open_data
from polyclinic.data.pictures.decode import ImageFiles, decode_images
from polyclinic.data.spec import DataSpec

RAMP = np.linspace(0, 1, 256).reshape(16, 16)


def opened(folder, pictures, **data):
    rows = ["site,image,label"]
    for name, picture in pictures.items():
        Image.fromarray(picture).save(folder / name)
        rows.append(f"{name[0]},{name},{len(rows) % 2}")
    (folder / "t.csv").write_text("\n".join(rows) + "\n")
    base = {"table": "t.csv", "site": "site", "image": "image", "label": "label", "size": (16, 16), "channels": "grey",
            "classes": [0, 1]}  # fmt: skip
    found = open_data(DataSpec.model_validate(base | data), folder, "labels")
    return found.sites, [(note.number, str(note)) for note in found.notes if note.number in ("N419", "N420")]


@pytest.mark.parametrize("ending", ["png", "tif"])
@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_levels_are_kept(tmp_path, bits, ending):
    white = (1 << bits) - 1
    sites, notes = opened(tmp_path, {f"A1.{ending}": np.rint(RAMP * white).astype(np.uint16)})
    found = sites["A"].inputs[0, 0].double().numpy()
    assert np.abs(found - 255 * RAMP).max() <= 1
    assert len(np.unique(found)) >= 250
    expected = f"Site A: 1 of 1 pictures of 16 bits hold {bits} bits: {white} is white. Say `bits: {bits}`."
    assert notes == ([] if bits == 16 else [("N419", expected)])


def test_all_pictures_of_a_site_have_one_white(tmp_path):
    bright, dim = np.rint(RAMP * 4095).astype(np.uint16), np.rint(RAMP * 1023).astype(np.uint16)
    sites, notes = opened(tmp_path, {"A1.png": bright, "A2.png": dim, "B1.png": dim})
    assert [int(picture.max()) for picture in sites["A"].inputs] == [255, 64]
    assert int(sites["B"].inputs.max()) == 255
    assert [number for number, _ in notes] == ["N419", "N419"]
    sites, notes = opened(tmp_path, {"A1.png": bright, "A2.png": dim, "B1.png": dim}, bits=12)
    assert int(sites["B"].inputs.max()) == 64
    assert notes == []


def test_a_bright_mark_does_not_go_unseen(tmp_path):
    marked = np.rint(RAMP * 4095).astype(np.uint16)
    plain = marked.copy()
    marked[0, 0] = 65535
    sites, notes = opened(tmp_path, {"A1.png": marked, "A2.png": plain})
    assert int(sites["A"].inputs[1].max()) == 15
    dark = "are almost black, because 65535 is white: if they hold fewer bits, say `bits`."
    assert notes == [("N420", f"Site A: 1 of 2 pictures of 16 bits {dark}")]
    sites, notes = opened(tmp_path, {"A1.png": marked, "A2.png": plain}, bits=12)
    assert int(sites["A"].inputs[1].max()) == 255
    assert notes == [
        ("N420", "Site A: 1 of 2 pictures of 16 bits have values above `bits`, which become white (4095).")
    ]


def failure(folder, name, mask=None):
    files = ImageFiles([name], None if mask is None else [mask], [folder])
    return decode_images(files, (8, 8), "rgb")[2].get(0)


def test_pictures_that_can_not_keep_their_levels(tmp_path):
    Image.fromarray(np.full((4, 4), -5, np.int32)).save(tmp_path / "negative.tif")
    assert failure(tmp_path, "negative.tif") == "image file has negative pixels"
    Image.fromarray(np.full((4, 4), 70_000, np.int32)).save(tmp_path / "wide.tif")
    assert failure(tmp_path, "wide.tif") == "image file has 32-bit pixels"
    deep = _png48(np.rint(RAMP * 4095).astype(">u2"))
    (tmp_path / "deep.png").write_bytes(deep)
    reason = "image file has 16 bits a colour of which the upper ones are empty: save it with 8 bits"
    assert failure(tmp_path, "deep.png") == reason
    (tmp_path / "full.png").write_bytes(_png48(np.rint(RAMP * 65535).astype(">u2")))
    assert failure(tmp_path, "full.png") is None
    assert failure(tmp_path, "full.png", "full.png") == "mask has 16 bits a colour: save it with one number a pixel"


def _png48(values):
    """A PNG file of 16 bits a colour, which Pillow reads but does not write."""
    import struct
    import zlib

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width = values.shape
    lines = b"".join(b"\0" + np.repeat(row, 3).tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


def test_a_very_large_picture_is_too_large_and_not_damaged(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2_000_000)
    Image.new("L", (3000, 2000)).save(tmp_path / "slide.png")
    Image.new("1", (3000, 2000)).save(tmp_path / "slide.tif")
    for name in ("slide.png", "slide.tif"):
        reason = (
            "image file is too large (6 million pixels, and up to 4 are read): make a smaller copy or cut it into tiles"
        )
        assert failure(tmp_path, name) == reason


def test_too_little_memory_is_not_damage(tmp_path, monkeypatch):
    Image.new("L", (8, 8)).save(tmp_path / "i.png")

    def none_left(*_):
        raise MemoryError

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", none_left)
    assert failure(tmp_path, "i.png") == "image file is too large for the memory"
