"""Cohorts with a table a measure or a column a field: AIBL and UK Biobank."""

import nibabel
import numpy as np
import pytest

from polyclinic.data.catalogue.ukbiobank import parse_field
from polyclinic.errors import DataError


def scan(tree, name, seed):
    voxels = np.random.default_rng(seed).integers(0, 300, (40, 48, 40)).astype(np.int16)
    path = tree.folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([4.0, 4.0, 4.0, 1])), path)


@pytest.fixture
def aibl(tree):
    """Twelve subjects at two sites; subject 2 came three times, the last after nine years."""
    dx = [f"{rid},{1 + rid % 2},bl,{1 if rid % 3 else 3}" for rid in range(1, 13)]
    dx += ["2,1,m18,1", "2,1,m108,3", "5,2,m18,-4", "6,1,m18,7"]
    tree.table("Data_extract_3.3.0/aibl_pdxconv_01-Jun-2018.csv", "RID,SITEID,VISCODE,DXCURREN", *dx, "2,1,m18,1")
    tree.table("Data_extract_3.3.0/aibl_mmse_01-Jun-2018.csv", "RID,SITEID,VISCODE,EXAMDATE,MMSCORE", "2,1,bl,x,29",
               "2,1,m18,x,-4")  # fmt: skip
    tree.table("Data_extract_3.3.0/aibl_mrimeta_01-Jun-2018.csv", "RID,SITEID,VISCODE,EXAMDATE,MMCONDCT",
               *(f"{rid},1,bl,x,1" for rid in range(1, 8)), "8,1,bl,x,0")  # fmt: skip
    tree.table("Data_extract_3.3.0/aibl_mri3meta_01-Jun-2018.csv", "RID,SITEID,VISCODE,EXAMDATE,MMCONDCT",
               *(f"{rid},1,bl,x,1" for rid in range(7, 13)))  # fmt: skip
    visits = [(rid, "Base") for rid in range(1, 13)] + [(2, "18 Mo"), (2, "108 Mo"), (5, "18 Mo"), (6, "18 Mo")]
    rows = []
    for number, (rid, visit) in enumerate(visits):
        name = f"I{230500 + number}"
        rows.append(f"{name},{rid},NC,{'MF'[rid % 2]},70,{visit},MRI,MPRAGE,Original,1/1/2007,NiFTI,")
        scan(
            tree, f"AIBL/{rid}/MPRAGE_ADNI_confirmed/2007-01-{number + 1:02}_10_00_00.0/{name}/scan_{name}.nii", number
        )
    scan(tree, "AIBL/1/Axial_PD-T2/2007-01-01_10_00_00.0/I1/scan_I1.nii", 0)
    scan(tree, "AIBL/3/MPRAGE/2007-01-01_10_00_00.0/I2/scan_I2.nii", 0)
    header = "Image Data ID,Subject,Group,Sex,Age,Visit,Modality,Description,Type,Acq Date,Format,Downloaded"
    tree.table("AIBL_4_27_2020.csv", header, *rows, "1,1,NC,M,70,Base,MRI,PD,Original,1/1/2007,NiFTI,")
    return tree


def test_aibl(aibl, prepared):
    result = prepared("aibl")
    assert result.sites == {"site-1": 6, "site-2": 6}
    assert result.reasons == {
        "series is not T1-weighted by its name": 1, "image is not in the collection's table": 1,
        "diagnosis is missing": 2, "a later session of the same subject": 2,
    }  # fmt: skip
    everyone = prepared("aibl", out="all", sessions="all")
    two = everyone.manifest.query("mmse == '29'")["subject"].item()
    visits = everyone.manifest[everyone.manifest["subject"] == two]
    assert visits["session"].tolist() == ["bl", "m18", "m108"]
    assert visits["diagnosis"].tolist() == ["CN", "CN", "AD"]
    assert visits["mmse"].tolist() == ["29", "", ""]
    assert everyone.check() == [14, 14, 0]


def test_aibl_with_contradictions(aibl, prepared):
    """A visit with two diagnoses has none, an image with two visits none; M00 is the first visit."""
    table = aibl.folder / "Data_extract_3.3.0/aibl_pdxconv_01-Jun-2018.csv"
    table.write_text(table.read_text() + "3,2,bl,1\n")
    collection = aibl.folder / "AIBL_4_27_2020.csv"
    text = collection.read_text().replace("I230500,1,NC,F,70,Base", "I230500,1,NC,F,70,M00")
    text = text.replace("I230500,1,NC,M,70,Base", "I230500,1,NC,M,70,M00")
    collection.write_text(text + text.splitlines()[4].replace("Base", "18 Mo") + "\n")
    result = prepared("aibl")
    assert "M00" in text
    assert result.sites == {"site-1": 5, "site-2": 5}
    assert result.reasons["image is not in the collection's table"] == 2


def test_aibl_by_field_strength(aibl, prepared):
    result = prepared("aibl", sites_by="field")
    assert result.sites == {"1.5 T": 6, "3 T": 5}
    assert result.reasons["site is unknown"] == 5  # a visit with both, and four later ones with neither
    (aibl.folder / "AIBL_4_27_2020.csv").unlink()
    with pytest.raises(DataError, match="The collection's table"):
        prepared("aibl", out="none")


def test_names_of_fields():
    assert [parse_field(name) for name in ("25010-2.0", "f.25010.2.0", "p25010_i2", "participant.p31", "p31")] == [
        (25010, 2), (25010, 2), (25010, 2), (31, 0), (31, 0),
    ]  # fmt: skip
    assert [parse_field(name) for name in ("25010-2.1", "p20252_i2_a1", "eid", "25010", "f.eid")] == [None] * 5


def biobank(tree, columns, decoded=False):
    """40 participants at two centres; three of them imaged twice, two not at all."""
    rng = np.random.default_rng(0)
    sex = ("Female", "Male") if decoded else ("0", "1")
    centre = ("Cheadle (imaging)", "Reading (imaging)") if decoded else ("11025", "11026")
    rows = []
    for number in range(40):
        volumes = [f"{value:.0f}" for value in rng.normal(1e6, 1e5, 4)] if number > 1 else [""] * 4
        again = ["70", centre[0], "1100000"] if number > 36 else [""] * 3
        rows.append(",".join([f"{1000000 + number}", sex[number % 2], str(50 + number % 20), centre[number // 20],
                              *volumes, *again]))  # fmt: skip
    rows.append(f"-1,{sex[0]},50,{centre[0]},1,2,3,4,,,")
    rows.append(f"2000000,{sex[0]},-3,{centre[0]},1000000,2,3,4,,,")
    tree.table("ukb12345.csv", ",".join(columns), *rows)


COLUMNS = ["eid", "31-0.0", "21003-2.0", "54-2.0", "25010-2.0", "25011-2.0", "25782-2.0", "25742-2.0", "21003-3.0",
           "54-3.0", "25010-3.0"]  # fmt: skip


def test_uk_biobank(tree, prepared):
    biobank(tree, COLUMNS)
    tree.text("w12345_20230425.csv", "1000005\n1000006\n9999999\n")
    result = prepared("uk-biobank")
    assert result.sites == {"Cheadle": 17, "Reading": 20}
    assert result.reasons == {
        "no volumes at this visit": 2, "participant withdrew": 2, "a later session of the same subject": 3,
        "subject is missing": 1,
    }  # fmt: skip
    assert result.study["data"]["features"] == ["f25010", "f25011", "f25782"]  # 25742 is no volume
    assert result.study["data"]["harmonisation"] == {"combat": {"covariates": ["age"]}}
    assert result.prepared.notes[0].startswith("Of 3 participants who withdrew 2 are in the table")
    assert result.prepared.notes[1].startswith("Only the first session")
    age = prepared("uk-biobank", out="age", label="age", sessions="all")
    assert age.reasons["age is missing"] == 1
    assert sum(age.sites.values()) == 39


def test_uk_biobank_in_other_writings(tree, prepared):
    names = ["f.eid", *("f." + name.replace("-", ".") for name in COLUMNS[1:])]
    biobank(tree, names, decoded=True)
    result = prepared("uk-biobank")
    assert result.sites == {"Cheadle": 19, "Reading": 20}
    assert any(note.startswith("No list of participants who withdrew") for note in result.prepared.notes)
    assert result.check()[1] == 38  # one has no age, which ComBat keeps the effect of
    cloud = [
        name.replace("-0.0", "") if name.startswith("31") else name.replace("-", "_i").removesuffix(".0")
        for name in COLUMNS
    ]
    other = tree.folder / "cloud"
    (tree.folder / "ukb12345.csv").unlink()
    biobank(type(tree)(other), [name if name == "eid" else "p" + name for name in cloud])
    assert prepared("uk-biobank", other, out="cloud").manifest["f25010"].tolist() == result.manifest["f25010"].tolist()
