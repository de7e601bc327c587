"""Slides as bags of tiles: barcodes, hospitals told by numbers, and features in the files that tools write."""

import builtins

import numpy as np
import pandas as pd
import pytest

from polyclinic.data.catalogue.slides import FEATURES, MOST_TILES
from polyclinic.errors import DataError


def features(tree, name, tiles=6, width=8, kind=np.float32):
    path = tree.folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(sum(map(ord, name))).standard_normal((tiles, width)).astype(kind)
    np.save(path, values)
    return values


@pytest.fixture
def camelyon(tree):
    names = [f"{kind}_{number:03}" for kind in ("normal", "tumor") for number in (1, 2, 3, 105, 106, 107)]
    for name in (*names, "normal_086", "test_001", "test_002", "test_003", "test_049"):
        features(tree, f"features/{name}.tif.npy")
    tree.text("features/tumor_004.tif.npy", "no array")
    features(tree, "features/tumor_005.tif.npy", width=9)
    tree.text(
        "testing/reference.csv", "test_001,Tumor,IDC,Macro\ntest_002,Normal,DCIS,None\ntest_049,Normal,None,None\n"
    )
    tree.table(
        "metadata.csv", "label,tumorp1000,hospital,hospital_corrected,slide_name",
        "0,,0.0,0.0,normal_001.tif", "1,,1.0,1.0,test_001.tif", "0,,1.0,0.0,test_002.tif", "0,,1.0,1.0,test_003.tif",
    )  # fmt: skip
    return tree


def test_camelyon16(camelyon, prepared):
    result = prepared("camelyon16")
    slides = result.manifest.drop_duplicates("slide").set_index("slide")
    assert slides["site"].value_counts().to_dict() == {"RUMC": 7, "UMCU": 7}
    assert slides.loc["test_001", ["site", "tumour", "split"]].tolist() == ["UMCU", "yes", "test"]
    assert slides.loc["test_002", ["site", "tumour"]].tolist() == ["RUMC", "no"]
    assert result.reasons == {
        "removed from the set by its makers": 2, "features can't be read": 1, "tumour is missing": 6,
        "another number of features than other slides": 1,
    }  # fmt: skip
    assert result.study["data"]["bag"] == "slide"
    assert result.study["model"] == {"gated_attention": {"encoder": {"mlp": {"hidden": [128]}}}}
    assert "attention_mil" in result.study["methods"]
    assert result.check()[:2] == [14, 14]  # bags, not tiles


def test_the_slide_that_was_normal_086(tree, prepared):
    """It came from RUMC with the first hundred, whatever number it has now."""
    for name in ("normal_001", "normal_160", "tumor_110", "tumor_111"):
        features(tree, f"features/{name}.npy")
    slides = prepared("camelyon16").manifest.drop_duplicates("slide").set_index("slide")["site"]
    assert slides.to_dict() == {"normal_001": "RUMC", "normal_160": "UMCU", "tumor_110": "UMCU", "tumor_111": "RUMC"}


def test_few_features_are_kept_as_they_are(tree, prepared):
    values = features(tree, "features/normal_001.npy", tiles=4)
    features(tree, "features/tumor_001.npy", tiles=4)
    manifest = prepared("camelyon16").manifest
    names = [name for name in manifest if name.startswith("f0")]
    rows = manifest[manifest["slide"] == "normal_001"]
    assert np.allclose(rows[names].astype(float), values, atol=6e-5)


def test_many_tiles_and_features_become_fewer(tree, prepared):
    for name in ("normal_001", "tumor_001"):
        features(tree, f"features/{name}.npy", tiles=MOST_TILES + 50, width=FEATURES * 8)
    first = prepared("camelyon16").manifest
    assert first["slide"].value_counts().to_dict() == {"normal_001": MOST_TILES, "tumor_001": MOST_TILES}
    names = [name for name in first if name.startswith("f0")]
    assert len(names) == FEATURES
    # Lengths are kept about as they are: 512 independent features of deviation 1, so about sqrt(512).
    lengths = np.linalg.norm(first[names].astype(float), axis=1)
    assert abs(lengths.mean() / np.sqrt(FEATURES * 8) - 1) < 0.05
    # The same slide gives the same rows wherever it is prepared.
    (tree.folder / "features/tumor_001.npy").unlink()
    features(tree, "features/tumor_002.npy", tiles=5, width=FEATURES * 8)
    second = prepared("camelyon16", out="other").manifest
    same = [table[table["slide"] == "normal_001"][names].reset_index(drop=True) for table in (first, second)]
    pd.testing.assert_frame_equal(*same)


def test_features_in_hdf5(tree, prepared):
    h5py = pytest.importorskip("h5py")
    values = np.random.default_rng(0).standard_normal((5, 8)).astype(np.float32)
    (tree.folder / "h5_files").mkdir()
    for name, stored in (("normal_001", values), ("tumor_001", values[None]), ("tumor_002", None)):
        with h5py.File(tree.folder / f"h5_files/{name}.h5", "w") as file:
            file["coords"] = np.zeros((5, 2))
            if stored is not None:
                file["features"] = stored
    result = prepared("camelyon16")
    assert result.manifest["slide"].value_counts().to_dict() == {"normal_001": 5, "tumor_001": 5}
    assert result.reasons == {"features can't be read": 1}


def test_hdf5_without_its_package(tree, prepared, monkeypatch):
    imported = builtins.__import__

    def without(name, *rest, **options):
        if name == "h5py":
            raise ImportError(name)
        return imported(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    tree.touch("h5_files/normal_001.h5")
    with pytest.raises(DataError, match=r"P503 \.h5 files are HDF5.*polyclinic\[hdf5\]"):
        prepared("camelyon16")


@pytest.fixture
def tcga(tree):
    """Twelve patients each of the codes A7 and NA, two of AO; the first of A7 has two slides."""
    slides = [f"TCGA-{code}-A{number:03}-01Z-00-DX1.{'0' * 8}"
              for code, many in (("A7", 12), ("NA", 12), ("AO", 2)) for number in range(many)]  # fmt: skip
    slides.append("TCGA-A7-A000-11A-01-TS1.1")
    rows = [f"{slide}.svs,{('IDC', 'ILC')[number % 2]}" for number, slide in enumerate(slides)]
    tree.table("brca_labels.csv", "slide_id,label", *rows, rows[0], "TCGA-A7-B999-01Z-00-DX1.X,IDC", "slide_1,IDC")
    for slide in slides:
        features(tree, f"features/{slide}.npy", tiles=3)
    tree.text("tissueSourceSite.tsv", "TSS Code\tSource Site\tStudy Name\tBCR\nA7\tChristiana\tBreast\tNCH\n"
              "NA\tWashington University\tBreast\tNCH\nAO\tMSKCC\tBreast\tNCH\n")  # fmt: skip
    return tree


def test_tcga(tcga, prepared):
    result = prepared("tcga-slides")
    slides = result.manifest.drop_duplicates("slide")
    assert slides["site"].value_counts().to_dict() == {"TSS-A7": 13, "TSS-NA": 12, "others": 2}
    assert result.prepared.subjects == {"TSS-A7": 12, "TSS-NA": 12, "others": 2}
    assert result.reasons == {
        "features file is missing": 1, "slide's name is no barcode of TCGA": 1, "a second row of the same slide": 1,
    }  # fmt: skip
    assert slides.query("sample == '11'")["site"].tolist() == ["TSS-A7"]
    assert any(note.startswith("1 sites with fewer") for note in result.prepared.notes)
    assert result.check()[:2] == [27, 27]


def test_tcga_by_institution(tcga, prepared):
    result = prepared("tcga-slides", sites_by="institution")
    assert set(result.sites) == {"Christiana", "Washington University", "others"}
    (tcga.folder / "tissueSourceSite.tsv").unlink()
    with pytest.raises(DataError, match=r"tissueSourceSite\.tsv was not found"):
        prepared("tcga-slides", out="none", sites_by="institution")
