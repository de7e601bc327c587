import numpy as np
import pytest
from PIL import Image

from polyclinic.data.readers.dicom.groups import group_planes
from polyclinic.data.readers.dicom.header import read_header
from polyclinic.data.readers.read import read_volume, series_name
from polyclinic.data.readers.volume import UnreadableError

CUBE = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)
AFFINE = np.diag((1.0, 1, 2, 1))


def rejected(where, root):
    with pytest.raises(UnreadableError) as raised:
        read_volume(where, root)
    return str(raised.value)


def test_folder_file_and_named_series(stack, tmp_path):
    files = stack(tmp_path / "a#b/deep", CUBE, AFFINE)
    (tmp_path / "a#b/notes.txt").write_text("x")
    (group,) = group_planes([read_header(path) for path in files])
    for where in ("a#b", "a#b/deep", str(tmp_path / "a#b"), f"a#b#{series_name(group.key, 'salt')}"):
        assert np.array_equal(read_volume(where, tmp_path).values, CUBE)
    assert read_volume("a#b/deep/im1.dcm", tmp_path).values.shape == (4, 5, 1)
    assert rejected("a#b#12345678-000000000000", tmp_path) == "DICOM series is missing from its folder"
    assert rejected("x\0y", tmp_path) == "file is missing"
    assert rejected("nothing#12345678-000000000000", tmp_path) == "file is missing"


def test_several_series_in_a_folder(stack, tmp_path):
    for number in (1, 2):
        stack(tmp_path / f"{number}", CUBE, AFFINE, SeriesInstanceUID=f"1.{number}")
    assert rejected(".", tmp_path) == "files hold 2 DICOM images, not one"
    (tmp_path / "empty").mkdir()
    assert rejected("empty", tmp_path) == "folder has no DICOM file"


@pytest.mark.parametrize("where", ["../x.nii", "/etc/passwd", "a/../../x", "../x#12345678-000000000000"])
def test_nothing_outside_is_reached(tmp_path, where):
    assert rejected(where, tmp_path / "root") == "path lies outside the image folder"


def test_pictures(tmp_path):
    colours = np.random.default_rng(0).integers(0, 255, (4, 6, 3), dtype=np.uint8)
    Image.fromarray(colours).save(tmp_path / "a.png")
    Image.fromarray(colours[..., 0].copy()).save(tmp_path / "b.png")
    assert np.array_equal(read_volume("a.png", tmp_path).values[:, :, 0], colours.swapaxes(0, 1))
    grey = read_volume("b.png", tmp_path)
    assert np.array_equal(grey.values[:, :, 0], colours[..., 0].T)
    np.testing.assert_array_equal(grey.affine, np.diag((-1, -1, 1, 1)))
    (tmp_path / "c.png").write_bytes((tmp_path / "a.png").read_bytes()[:60])
    assert rejected("c.png", tmp_path) == "picture is damaged"
    (tmp_path / "d.png").write_bytes(b"x")
    assert rejected("d.png", tmp_path).startswith("file is no PNG")
