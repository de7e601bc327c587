"""PROMISE12 in MetaImage files, and KiTS in its layouts."""

import json
import zlib

import nibabel
import numpy as np
import pytest

from polyclinic.data.catalogue.metaimage import read_metaimage
from polyclinic.errors import DataError

HEADER = """ObjectType = Image
NDims = 3
BinaryData = True
BinaryDataByteOrderMSB = {msb}
CompressedData = {packed}
TransformMatrix = 1 0 0 0 0.8 0.6 0 -0.6 0.8
Offset = -30 -20 {z}
AnatomicalOrientation = RAI
ElementSpacing = 1.5 1.5 4
DimSize = {shape}
ElementType = {kind}
ElementDataFile = {file}
"""


def metaimage(tree, name, voxels, msb=False, packed=False, local=False):
    kind = {"int16": "MET_SHORT", "uint8": "MET_UCHAR", "float32": "MET_FLOAT"}[voxels.dtype.name]
    content = voxels.astype(voxels.dtype.newbyteorder(">" if msb else "<")).tobytes(order="F")
    content = zlib.compress(content) if packed else content
    path = tree.folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    raw = path.with_suffix(".zraw" if packed else ".raw")
    file = "LOCAL" if local else raw.name
    shape = " ".join(map(str, voxels.shape))
    header = HEADER.format(msb=msb, packed=packed, z=-12.5, shape=shape, kind=kind, file=file).encode()
    path.write_bytes(header + (content if local else b""))
    if not local:
        raw.write_bytes(content)
    return path


@pytest.mark.parametrize("how", [{}, {"msb": True}, {"packed": True}, {"local": True}])
def test_metaimage_is_read_as_simpleitk_reads_it(tree, how):
    """Voxels, and the place of each corner in space, with axes that lie obliquely."""
    simpleitk = pytest.importorskip("SimpleITK")
    voxels = np.random.default_rng(0).integers(-500, 500, (7, 6, 5)).astype(np.int16)
    path = metaimage(tree, "a.mha" if how.get("local") else "a.mhd", voxels, **how)
    found, affine = read_metaimage(path)
    image = simpleitk.ReadImage(str(path))
    assert np.array_equal(found, voxels)
    assert np.array_equal(found, simpleitk.GetArrayFromImage(image).transpose(2, 1, 0))
    for corner in ((0, 0, 0), (6, 0, 0), (0, 5, 0), (0, 0, 4), (6, 5, 4)):
        x, y, z = image.TransformIndexToPhysicalPoint(corner)
        assert np.allclose((affine @ [*corner, 1])[:3], [-x, -y, z])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("DimSize = 7 6 5", "DimSize = 7 6 6"), "shorter or longer"),
        (("DimSize = 7 6 5", "DimSize = 7 6"), "no volume"),
        (("MET_SHORT", "MET_OTHER"), "no volume"),
        (("ElementDataFile = a.raw", "Comment = none"), "no MetaImage header"),
        (("ElementDataFile = a.raw", "ElementDataFile = ../../a.raw"), None),  # what lies beside the header counts
    ],
)
def test_metaimage_with_faults(tree, change, reason):
    path = metaimage(tree, "a.mhd", np.zeros((7, 6, 5), dtype=np.int16))
    path.write_text(path.read_text().replace(*change))
    if reason is None:
        assert read_metaimage(path)[0].shape == (7, 6, 5)
    else:
        with pytest.raises(ValueError, match=reason):
            read_metaimage(path)


def gland(tree, folder, case, outlined=True, **how):
    rng = np.random.default_rng(case)
    image = rng.integers(0, 400, (48, 44, 12)).astype(np.int16)
    mask = np.zeros(image.shape, dtype=np.uint8)
    mask[16:32, 14:30, 3:9] = 1
    metaimage(tree, f"{folder}/Case{case:02}.mhd", image, **how)
    if outlined:
        metaimage(tree, f"{folder}/Case{case:02}_segmentation.mhd", mask, **how)
    return image


def test_promise12(tree, prepared):
    images = {case: gland(tree, "training_data", case) for case in range(12)}
    gland(tree, "test_data", 0, outlined=False)  # another patient of the same name
    (tree.folder / "training_data/Case11.raw").write_bytes(b"short")
    (tree.folder / "training_data/Case10_segmentation.raw").unlink()
    result = prepared("promise12", sites=2, alpha=20.0)
    assert result.reasons == {"mask is missing": 1, "image file is damaged, or its voxels are missing": 1,
                              "mask file is damaged, or its voxels are missing": 1}  # fmt: skip
    assert result.prepared.used == 10
    row = result.manifest.query("image == 'images/training_data_case00.nii.gz'").iloc[0]
    assert np.array_equal(np.asarray(nibabel.load(result.out / row["image"]).dataobj), images[0])
    assert result.check() == [10, 10, 0]


def kidney(tree, folder, cysts=False):
    """Voxels in the order of KiTS: the first axis goes from head to feet."""
    mask = np.zeros((12, 40, 40), dtype=np.uint8)
    mask[3:9, 10:20, 10:20], mask[4:8, 12:16, 12:16] = 1, 2
    if cysts:
        mask[3:5, 18:20, 18:20] = 3
    affine = np.array([[0, 0, -2, 0], [0, -2, 0, 0], [-3, 0, 0, 0], [0, 0, 0, 1.0]])
    path = tree.folder / folder
    path.mkdir(parents=True)
    image = np.random.default_rng(0).integers(-100, 300, mask.shape).astype(np.int16)
    for name, voxels in (("imaging", image), ("segmentation", mask)):
        nibabel.save(nibabel.Nifti1Image(voxels, affine), path / f"{name}.nii.gz")


@pytest.fixture
def kits19(tree):
    """24 cases, ten of each of two hospitals; one is not outlined."""
    for case in range(24):
        kidney(tree, f"data/case_{case:05}")
    (tree.folder / "data/case_00023/segmentation.nii.gz").unlink()
    known = [{"case_id": f"case_{case:05}", "malignant": case % 3 > 0, "gender": "male", "age_at_nephrectomy": 49}
             for case in range(20)]  # fmt: skip
    tree.text("data/kits.json", json.dumps([*known, {"case_id": "case_00020", "malignant": None}]))
    tree.table("anony_sites.csv", "case,site_id", *(f"case_{case:05},{case // 10}" for case in range(24)))
    return tree


def test_kits19(kits19, prepared):
    result = prepared("kits")
    assert result.sites == {"hospital-0": 10, "hospital-1": 10, "others": 3}
    assert result.reasons == {"mask is missing": 1}
    assert result.study["data"]["mask_classes"] == {"kidney": 1, "tumour": 2}
    assert result.check() == [23, 23, 0]
    malignant = prepared("kits", out="malignant", label="malignant")
    assert malignant.prepared.classes["hospital-0"] == {"yes": 6, "no": 4}
    assert malignant.reasons == {"malignant is missing": 4}
    (kits19.folder / "anony_sites.csv").unlink()
    with pytest.raises(DataError, match="Nothing tells the hospitals"):
        prepared("kits", out="none")


def test_kits23(tree, prepared):
    for case in range(10):
        kidney(tree, f"dataset/case_{case:05}", cysts=True)
    tree.touch("dataset/case_00000/instances/kidney_instance-1_annotation-1.nii.gz")
    result = prepared("kits", sites_by="quantity", sites=2, alpha=20.0)
    assert result.study["data"]["mask_classes"] == {"kidney": 1, "tumour": 2, "cyst": 3}
    assert result.check() == [10, 10, 0]
