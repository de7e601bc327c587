"""Masks whose header puts them elsewhere than their image, and masks of other voxels."""

import nibabel
import numpy as np
import pytest

from polyclinic.data.open import open_data
from polyclinic.data.readers.volume import UnreadableError, Volume
from polyclinic.data.spec import DataSpec, Preprocessing
from polyclinic.data.volumes.preprocessing import prepare_case
from polyclinic.errors import DataError

SHAPE = (32, 32, 24)
AFFINE = np.array([[1.2, 0, 0, -19], [0, 1.2, 0, -19], [0, 0, 1.5, -18], [0, 0, 0, 1.0]])
BALL = np.linalg.norm((np.moveaxis(np.indices(SHAPE), 0, -1) - (9, 20, 10)), axis=-1) <= 6
REVERSED = AFFINE @ np.array([[1, 0, 0, 0], [0, -1, 0, 31], [0, 0, 1, 0], [0, 0, 0, 1.0]])


def moved(x):
    shifted = AFFINE.copy()
    shifted[0, 3] += x
    return shifted


HEADERS = {
    "identity": np.eye(4),
    "lps as ras": np.diag([-1, -1, 1, 1]) @ AFFINE,
    "origin lost": np.diag([1.2, 1.2, 1.5, 1]),
    "shifted by 8 mm": moved(8),
    "shifted by a voxel": moved(1.2),
    "scale lost": np.array([[1, 0, 0, -19], [0, 1, 0, -19], [0, 0, 1, -18], [0, 0, 0, 1.0]]),
}
SAME = {
    "right": AFFINE,
    "rounded": np.round(AFFINE, 2) + 1e-4,
    "a third of a voxel": moved(0.4),
    "float32": AFFINE * (1 + 1e-7),
}


def image(affine=AFFINE):
    noise = np.random.default_rng(0).normal(100, 10, SHAPE)
    return Volume((noise + 300 * BALL).astype(np.float32), affine)


def prepared(mask, affine, grid=None, own=AFFINE):
    spec = Preprocessing(size=SHAPE, intensity="none")
    encode = lambda values: (values != 0).astype(np.uint8)  # noqa: E731
    return prepare_case([image(own)], Volume(mask.astype(np.uint8), affine), spec, encode, grid)


def dice(case):
    bright = case.image[0] > 250
    return 2 * (bright & (case.mask[0] > 0)).sum() / (bright.sum() + case.mask.sum())


@pytest.mark.parametrize("affine", SAME.values(), ids=SAME)
@pytest.mark.parametrize("grid", [None, "voxels", "header"])
def test_headers_that_agree_but_for_rounding(affine, grid):
    case = prepared(BALL, affine, grid)
    assert dice(case) == 1.0
    assert case.about["place"] == {"turned": "", "resampled": False, "inside": 1.0}


@pytest.mark.parametrize("affine", HEADERS.values(), ids=HEADERS)
def test_the_same_voxels_elsewhere_are_refused_until_the_study_says_what_counts(affine):
    with pytest.raises(UnreadableError, match=r"mask and image lie apart .* but have the same voxels.*grid: voxels"):
        prepared(BALL, affine)
    assert dice(prepared(BALL, affine, "voxels")) == 1.0
    with pytest.raises(UnreadableError, match="lie apart"):  # and the other way round: the image's header was lost
        prepared(BALL, AFFINE, own=affine)
    assert dice(prepared(BALL, AFFINE, "voxels", own=affine)) == 1.0


def test_headers_that_are_trusted():
    shifted = np.roll(BALL, -2, axis=0)
    case = prepared(shifted, moved(2.4), "header")
    assert dice(case) == 1.0
    assert case.about["place"] == {"turned": "", "resampled": True, "inside": 1.0}
    with pytest.raises(UnreadableError, match="mask and image lie apart in space"):
        prepared(BALL, moved(500.0), "header")
    with pytest.raises(UnreadableError, match="most of the mask lies outside of the image"):
        prepared(BALL, moved(-19.0), "header")


def test_rows_that_run_another_way_in_the_same_place_go_by_the_header():
    case = prepared(BALL[:, ::-1], REVERSED)
    assert dice(case) == 1.0
    assert case.about["place"]["turned"] == "axes"
    assert prepared(BALL[:, ::-1], REVERSED, "header").about["place"]["turned"] == ""
    assert dice(prepared(BALL, REVERSED, "voxels")) == 1.0
    swapped = prepared(BALL.swapaxes(0, 1), AFFINE @ np.eye(4)[[1, 0, 2, 3]])
    assert dice(swapped) == 1.0
    assert swapped.about["place"]["turned"] == "axes"
    # Axes in another order: other numbers of voxels, so that only the header can be meant.
    turned = nibabel.Nifti1Image(BALL.astype(np.uint8), AFFINE).as_reoriented([[2, 1], [0, -1], [1, 1]])
    case = prepared(np.asarray(turned.dataobj), turned.affine)
    assert dice(case) == 1.0
    assert case.about["place"] == {"turned": "", "resampled": False, "inside": 1.0}


def test_masks_of_other_voxels():
    fine = np.kron(BALL, np.ones((2, 2, 2), bool))
    affine = AFFINE @ np.array([[0.5, 0, 0, -0.25], [0, 0.5, 0, -0.25], [0, 0, 0.5, -0.25], [0, 0, 0, 1]])
    case = prepared(fine, affine)
    assert dice(case) == 1.0
    assert case.about["place"] == {"turned": "", "resampled": True, "inside": 1.0}
    with pytest.raises(UnreadableError, match="mask and image differ in size"):
        prepared(fine, affine, "voxels")
    with pytest.raises(UnreadableError, match="no place in space"):
        prepared(fine, np.eye(4))
    far = affine.copy()
    far[0, 3] -= 16.0
    with pytest.raises(UnreadableError, match="most of the mask lies outside"):
        prepared(fine, far)


# Studies --------------------------------------------------------------------------------------------------------------


def opened(folder, masks, **data):
    """A site with an image for each ``(mask, affine)``; the notes on its masks."""
    rows = ["site,image,mask"]
    for number, (mask, affine) in enumerate(masks):
        nibabel.save(nibabel.Nifti1Image(image().values + number, AFFINE), folder / f"i{number}.nii.gz")
        nibabel.save(nibabel.Nifti1Image(mask, affine), folder / f"m{number}.nii.gz")
        rows.append(f"A,i{number}.nii.gz,m{number}.nii.gz")
    (folder / "t.csv").write_text("\n".join(rows) + "\n")
    base = {"table": "t.csv", "site": "site", "image": "image", "mask": "mask", "preprocessing": {"size": SHAPE}}
    found = open_data(DataSpec.model_validate(base | data), folder, "masks")
    return found.sites["A"], [(note.number, str(note), note.cases) for note in found.notes if note.number[:2] == "N4"]


def test_notes_tell_how_masks_lie(tmp_path):
    mask = BALL.astype(np.uint8)
    fine = np.kron(mask, np.ones((2, 2, 2), np.uint8))
    affine = AFFINE @ np.array([[0.5, 0, 0, -0.25], [0, 0.5, 0, -0.25], [0, 0, 0.5, -0.25], [0, 0, 0, 1]])
    _, notes = opened(tmp_path, [(mask, AFFINE), (mask[:, ::-1], REVERSED), (fine, affine)])
    assert [number for number, _, _ in notes] == ["N416", "N417"]
    assert notes[0][1].startswith(
        "Site A: 1 of 3 masks has rows or columns that run another way than those of the image"
    )
    assert notes[1][1] == (
        "Site A: 1 of 3 masks has other voxels than the image, to which headers brought them; at least 100 % of the "
        "foreground lies in the image."
    )
    assert notes[1][2] == ("i2.nii.gz",)


def test_ignored_voxels_are_no_class(tmp_path):
    mask = BALL.astype(np.uint8)
    mask[:, :, 15:] = 255
    with pytest.raises(DataError, match="ignore: 255"):
        opened(tmp_path, [(mask, AFFINE)])
    site, notes = opened(tmp_path, [(mask, AFFINE)], mask={"ignore": 255})
    assert notes == []
    (record,) = site.targets.about
    assert record["labels"] == [int((mask == 0).sum()), int((mask == 1).sum())]
    assert set(np.unique(site.targets[0])) == {0, 1, 255}
    with pytest.raises(DataError, match="leaves out everything in the grid"):
        opened(
            tmp_path, [(np.where(np.arange(32)[:, None, None] < 1, BALL, 255).astype(np.uint8) , AFFINE)],
            mask={"ignore": 255}, preprocessing={"size": (16, 16, 16)},
        )  # fmt: skip


@pytest.mark.parametrize("kind", ["nan", "soft"])
def test_masks_of_statistical_tools(tmp_path, kind):
    values = np.where(BALL, 1, np.nan) if kind == "nan" else np.clip(BALL * 0.9 + 1e-6, 0, 1)
    with pytest.raises(DataError, match=r"Site A: 2 of 2 cases can't be read: .*no whole numbers"):
        opened(tmp_path, [(values.astype(np.float32), AFFINE)] * 2)
    said = {"background": "nan"} if kind == "nan" else {"above": 0.5}
    site, notes = opened(tmp_path, [(values.astype(np.float32), AFFINE)] * 2, mask=said)
    assert notes == []
    assert np.array_equal(site.targets[0][0], BALL)


TURNED = AFFINE @ np.array([[0.8, -0.6, 0, 3], [0.6, 0.8, 0, -4], [0, 0, 1, 2], [0, 0, 0, 1.0]])


@pytest.mark.parametrize("lost", ["identity", "lps as ras", "origin lost"])
def test_a_second_contrast_without_its_header_is_refused(lost):
    spec = Preprocessing(size=SHAPE, intensity="none")
    encode = lambda values: values.astype(np.uint8)  # noqa: E731
    for own, other in ((AFFINE, HEADERS[lost]), (HEADERS[lost], AFFINE)):
        with pytest.raises(UnreadableError, match="images of the case have the same voxels, but lie apart"):
            prepare_case([image(own), image(other)], None, spec, encode)


@pytest.mark.parametrize("affine", [*SAME.values(), REVERSED, moved(-8), TURNED])
def test_a_second_contrast_that_was_taken_elsewhere_lies_where_its_header_says(affine):
    spec = Preprocessing(size=SHAPE, intensity="none")
    x, y, z = np.linalg.inv(affine)[:3] @ AFFINE @ (9, 20, 10, 1)  # where the ball of the first image is
    ball = np.linalg.norm(np.moveaxis(np.indices(SHAPE), 0, -1) - (x, y, z), axis=-1) <= 6
    second = Volume((100 + 300 * ball).astype(np.float32), affine)
    case = prepare_case([image(), second], None, spec, lambda values: values.astype(np.uint8))
    first, other = case.image > 250
    assert 2 * (first & other).sum() / (first.sum() + other.sum()) > 0.9


def test_a_structure_thinner_than_a_step_of_the_grid_is_told(tmp_path):
    rows = ["site,image,mask"]
    for number in range(3):
        speck = np.zeros(SHAPE, np.uint8)
        speck[10:12, 11:13, 9] = number != 2
        nibabel.save(nibabel.Nifti1Image(image().values + 10 * number, AFFINE), tmp_path / f"{number}.nii")
        nibabel.save(nibabel.Nifti1Image(speck, AFFINE), tmp_path / f"{number}m.nii")
        rows.append(f"A,{number}.nii,{number}m.nii")
    (tmp_path / "t.csv").write_text("\n".join(rows) + "\n")
    spec = DataSpec(
        table="t.csv", site="site", image="image", mask="mask", preprocessing=Preprocessing(spacing=6, size=(8, 8, 8))
    )
    for _ in range(2):  # the second time from the cache
        notes = {note.number: note for note in open_data(spec, tmp_path, "masks").notes}
        assert str(notes["N702"]).startswith("Site A: in 2 of 3 cases nothing of foreground is left on the grid")
        assert notes["N702"].cases == ("0.nii", "1.nii")
        assert (str(notes["N401"]), notes["N401"].cases) == ("Site A: 1 mask has no foreground.", ("2.nii",))


@pytest.mark.parametrize("codes", ["RAS", "LPS", "ASR"])
def test_a_mask_of_an_image_at_45_degrees_is_turned_as_its_image(codes):
    """Which axis points most to the right is decided by the last digit of a header there."""
    side, half = (20, 20, 8), np.sqrt(0.5)
    own = np.array([[half, -half, 0, 3], [half, half, 0, -4], [0, 0, 2, 5], [0, 0, 0, 1.0]])
    box = np.zeros(side, dtype=np.uint8)
    box[2:9, 4:16, 2:5] = 1
    values = np.random.default_rng(0).normal(100, 10, side) + 300.0 * box
    spec = Preprocessing(size=side, intensity="none", orientation=codes)
    for digit in (-1e-7, 0.0, 1e-7):
        header = own + np.array([[digit, -digit, 0, 0], [-digit, digit, 0, 0], [0] * 4, [0] * 4])
        case = prepare_case([Volume(values, own)], Volume(box, header), spec, lambda one: (one != 0).astype(np.uint8))
        assert dice(case) > 0.99
