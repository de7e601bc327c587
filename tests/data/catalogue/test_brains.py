"""Brain data sets, on small trees of their documented layouts."""

import nibabel
import numpy as np
import pytest

from polyclinic.errors import DataError

SERIES = "MPR__GradWarp__B1_Correction__N3__Scaled"
MERGE = "RID,COLPROT,ORIGPROT,PTID,SITE,VISCODE,EXAMDATE,DX_bl,AGE,PTGENDER,FLDSTRENG,IMAGEUID,Ventricles,Hippocampus,"
MERGE += "WholeBrain,Entorhinal,Fusiform,MidTemp,ICV,DX,Years_bl"


def scan(subject, date, image_id, series=SERIES, ending="nii"):
    return f"ADNI/{subject}/{series}/{date}_12_31_52.0/{image_id}/ADNI_{subject}_MR_{series}_S13_{image_id}.{ending}"


def visit(phase, subject, code, date, age, sex, field, image, dx, years, volumes="1,2,3,4,5,6,1500000"):
    return f"1,{phase},{phase},{subject},9,{code},{date},CN,{age},{sex},{field},{image},{volumes},{dx},{years}"


@pytest.fixture
def adni(tree):
    tree.touch(
        scan("002_S_0413", "2006-05-02", "I45112"),
        scan("002_S_0413", "2006-05-02", "I40000", series="MP-RAGE"),
        scan("002_S_0413", "2007-05-10", "I60000"),
        scan("002_S_0413", "2006-05-02", "I45000", series="B1-calibration_Body"),
        scan("011_S_0002", "2005-08-26", "I32210"),
        scan("031_S_4021", "2011-05-17", "I240000", series="MPRAGE", ending="dcm"),
        scan("031_S_4021", "2011-05-17", "I240000", series="MPRAGE", ending="dcm").replace(".dcm", "_2.dcm"),
        scan("099_S_6001", "2018-01-01", "I900000"),
        scan("100_S_0001", "2006-01-01", "I10"),
    )
    tree.table(
        "ADNIMERGE_18Feb2025.csv",
        MERGE,
        visit("ADNI1", "002_S_0413", "bl", "2006-05-03", "76.3", "Female", "1.5 Tesla MRI", "45112", "CN", "0"),
        visit("ADNI1", "002_S_0413", "m12", "2007-05-10", "76.3", "Female", "1.5 Tesla MRI", "", "MCI", "1.02"),
        visit("ADNI1", "011_S_0002", "bl", "2005-09-08", "74.3", "Male", "1.5 Tesla MRI", "", "Dementia", "0"),
        visit("ADNI2", "031_S_4021", "bl", "2011-05-20", "66.5", "Male", "3 Tesla MRI", "240000.0", "CN", "0"),
        visit("ADNI3", "099_S_6001", "bl", "2015-01-01", "70", "Male", "", "", "AD", "0"),
        visit("ADNI1", "100_S_0001", "bl", "2006-01-01", "70", "Male", "1.5 Tesla MRI", "", "MCI", "0"),
    )
    return tree


def test_adni_by_phase(adni, prepared):
    result = prepared("adni")
    assert result.sites == {"ADNI1": 2, "ADNI2": 1}
    assert result.reasons == {
        "another series of the same session": 1,
        "series is not T1-weighted by its name": 1,
        "site is unknown": 1,  # its only examination is three years away
        "diagnosis is neither AD nor CN": 2,  # 100_S_0001, and the later session of 002_S_0413
    }
    rows = {row.diagnosis + row.phase: row for row in result.manifest.itertuples()}
    assert (rows["ADADNI1"].age, rows["ADADNI1"].sex, rows["ADADNI1"].field_strength) == ("74.3", "M", "1.5")
    assert rows["CNADNI1"].t1.split("/")[-2] == "I45112"  # the corrected series before the raw one
    assert rows["CNADNI2"].t1.endswith("2011-05-17_12_31_52.0/I240000")  # a DICOM series is its folder
    assert all(path.exists() for path in result.files("t1"))
    data = result.study["data"]
    assert (data["image"], data["label"], data["positive"]) == ("t1", "diagnosis", "AD")
    assert data["preprocessing"]["orientation"] == "RAS"
    text = (result.out / "manifest.csv").read_text()
    assert not any(subject in text.replace("ADNI/" + subject, "").replace("ADNI_" + subject, "")
                   for subject in ("002_S_0413", "011_S_0002"))  # fmt: skip


def test_adni_with_other_sites_classes_and_sessions(adni, prepared):
    result = prepared("adni", sites_by="center", against=("CN", "MCI"), sessions="all")
    assert result.sites == {"002": 2, "011": 1, "031": 1, "100": 1}
    mine = result.manifest[result.manifest["site"] == "002"]
    assert list(zip(mine["session"], mine["visit"], mine["age"], strict=True)) == [
        ("1", "bl", "76.3"),
        ("2", "m12", "77.3"),
    ]
    field = prepared("adni", out="field", sites_by="field")
    assert field.sites == {"1.5 T": 2, "3 T": 1}


def test_adni_with_the_collections_table_alone(tree, prepared):
    tree.touch(scan("002_S_0413", "2006-05-02", "I45112"), scan("011_S_0002", "2005-08-26", "I32210"))
    tree.table(
        "My_Collection_2_18_2025.csv",
        '"Image Data ID","Subject","Group","Sex","Age","Visit","Modality","Description","Type","Acq Date"',
        '"I45112","002_S_0413","CN","F","76","sc","MRI","MPR","Processed","5/02/2006"',
        '"I32210","011_S_0002","AD","M","74","sc","MRI","MPR","Processed","8/26/2005"',
    )
    with pytest.raises(DataError, match="Sites by phase need ADNIMERGE"):
        prepared("adni")
    assert prepared("adni", sites_by="center").sites == {"002": 1, "011": 1}


def test_adni_table_alone(adni, prepared, tmp_path):
    source = tmp_path / "tables"
    source.mkdir()
    (source / "ADNIMERGE.csv").write_text((adni.folder / "ADNIMERGE_18Feb2025.csv").read_text())
    result = prepared("adni", source)
    assert result.study["data"]["divide_by"] == "ICV"
    assert result.sites == {"ADNI1": 2, "ADNI2": 1, "ADNI3": 1}
    assert any("six volumes" in note for note in result.prepared.notes)


def test_adni_without_any_table(tree, prepared):
    tree.touch(scan("002_S_0413", "2006-05-02", "I45112"))
    with pytest.raises(DataError, match="The images are there, but no table"):
        prepared("adni")


def test_oasis_images(tree, prepared):
    header = "ID,M/F,Hand,Age,Educ,SES,MMSE,CDR,eTIV,nWBV,ASF,Delay"
    tree.table(
        "oasis_cross-sectional.csv",
        header,
        "OAS1_0001_MR1,F,R,74,2,3,29,0,1344,0.743,1.306,N/A",
        "OAS1_0002_MR1,F,R,55,4,1,29,0.5,1147,0.81,1.531,N/A",
        "OAS1_0003_MR1,M,R,21,,,,,1454,0.8,1.2,N/A",
        "OAS1_0004_MR1,M,R,80,2,2,25,1,1454,0.7,1.2,N/A",
    )
    for number, count in ((1, 4), (2, 3), (3, 4)):
        folder = (
            f"disc{number}/OAS1_000{number}_MR1/PROCESSED/MPRAGE/T88_111/OAS1_000{number}_MR1_mpr_n{count}_anon_111_t88"
        )
        tree.analyze(f"{folder}_masked_gfc.img", number)
        tree.touch(f"{folder}_gfc.img")
    result = prepared("oasis-1")
    assert result.manifest["dementia"].tolist() == ["no", "yes"]
    assert result.reasons == {"dementia is missing": 1, "t1 is missing": 1}
    assert result.study["data"]["image"] == "t1"
    first = nibabel.load(result.files("t1")[0])
    assert first.shape == (4, 5, 6)
    assert np.array_equal(np.asarray(first.dataobj), np.full((4, 5, 6), 1))
    assert nibabel.aff2axcodes(first.affine) == ("L", "A", "S")
    assert len(list((result.out / "images").iterdir())) == 2  # nothing is written for a session that is not rated
    age = prepared("oasis-1", out="age", label="age")
    assert (age.study["task"], age.prepared.used) == ("regression", 3)
    next(tree.folder.glob("disc1/**/*_masked_gfc.hdr")).unlink()
    damaged = prepared("oasis-1", out="damaged")
    assert damaged.reasons["t1 file is damaged, or its .hdr is missing"] == 1


def test_oasis_two_images(tree, prepared):
    header = "Subject ID,MRI ID,Group,Visit,MR Delay,M/F,Hand,Age,EDUC,SES,MMSE,CDR,eTIV,nWBV,ASF"
    rows = [
        f"OAS2_0001,OAS2_0001_MR{n},Nondemented,{n},0,M,R,8{n},14,2,27,{cdr},1987,0.7,0.9"
        for n, cdr in ((1, 0), (2, 0.5))
    ]
    tree.table("oasis_longitudinal.csv", header, *rows)
    for visit_number in (1, 2):
        for repeat in (1, 2):
            tree.analyze(
                f"OAS2_RAW_PART1/OAS2_0001_MR{visit_number}/RAW/mpr-{repeat}.nifti.img", 10 * visit_number + repeat
            )
    result = prepared("oasis-2", sessions="all")
    assert [int(nibabel.load(path).dataobj[0, 0, 0]) for path in result.files("t1")] == [11, 21]
    assert result.manifest["session"].tolist() == ["MR1", "MR2"]


PHENOTYPE = "X,SUB_ID,SITE_ID,FILE_ID,DX_GROUP,AGE_AT_SCAN,SEX"


def test_abide_preprocessed(tree, prepared):
    tree.table(
        "Phenotypic_V1_0b_preprocessed1.csv",
        PHENOTYPE,
        "1,50003,PITT,Pitt_0050003,1,24.45,1",
        "2,50004,PITT,no_filename,1,19.09,1",
        "3,51201,UM_1,UM_1_0051201,2,12,2",
        "4,51301,UM_2,UM_2_0051301,2,13,2",
    )
    tree.touch(
        "cpac/nofilt_noglobal/Pitt_0050003_reho.nii.gz",
        "cpac/nofilt_noglobal/UM_1_0051201_reho.nii.gz",
        "cpac/nofilt_noglobal/UM_1_0051201_func_preproc.nii.gz",
        "cpac/nofilt_noglobal/UM_2_0051301_func_preproc.nii.gz",
    )
    result = prepared("abide")
    assert result.sites == {"PITT": 1, "UM_1": 1}
    assert result.reasons == {"reho is missing": 2}
    assert result.manifest["diagnosis"].tolist() == ["autism", "control"]
    assert result.study["data"]["image"] == "reho"
    assert prepared("abide", out="institution", sites_by="institution").sites == {"PITT": 1, "UM": 1}


def test_abide_raw(tree, prepared):
    tree.table(
        "Phenotypic_V1_0b.csv", "SITE_ID,SUB_ID,DX_GROUP,AGE_AT_SCAN,SEX", "NYU,50952,1,22.7,1", "NYU,50953,2,20,2"
    )
    tree.touch(*(f"NYU_a/00{number}/session_1/anat_1/mprage.nii.gz" for number in (50952, 50953)))
    assert prepared("abide", label="sex").manifest["sex"].tolist() == ["M", "F"]


def test_ixi(tree, prepared):
    tree.table(
        "IXI.csv",
        'IXI_ID,"SEX_ID (1=m, 2=f)",HEIGHT,WEIGHT,AGE',
        "2,2,164,58,35.8",
        "12,1,175,70,38.78",
        "15,1,170,70,24.2",
        "15,1,170,70,44.2",
        "16,2,170,70,",
    )
    tree.touch(
        "IXI-T1/IXI002-Guys-0828-T1.nii.gz", "IXI-T2/IXI002-Guys-0828-T2.nii.gz", "IXI-T1/IXI012-HH-1211-T1.nii.gz",
        "IXI-T1/IXI015-HH-1258-T1.nii.gz", "IXI-T1/IXI016-Guys-0697-T1.nii.gz", "IXI-T1/IXI050-IOP-0780-T1.nii.gz",
        "IXI-DTI/IXI002-Guys-0828-DTI-00.nii.gz", "IXI-T2/IXI060-Guys-0709-T2.nii.gz",
    )  # fmt: skip
    result = prepared("ixi")
    assert result.sites == {"Guys": 1, "HH": 1}
    assert result.reasons == {"age is missing": 1, "its rows in the table disagree": 1, "not in the table": 2}
    assert result.manifest["field_strength"].tolist() == ["1.5", "3"]
    assert result.manifest["t2"].tolist() == ["IXI-T2/IXI002-Guys-0828-T2.nii.gz", ""]
    assert (result.study["task"], result.study["data"]["label"], result.study["data"]["image"]) == (
        "regression",
        "age",
        "t1",
    )


def brats_case(tree, folder, name=None, kinds=("t1", "t1ce", "t2", "flair", "seg"), joint="_"):
    name = name or folder.split("/")[-1]
    tree.touch(*(f"{folder}/{name}{joint}{kind}.nii.gz" for kind in kinds))


def test_fets(tree, prepared):
    for number in range(3):
        brats_case(tree, f"FeTS2022_0000{number}")
    brats_case(tree, "FeTS2022_00003", kinds=("t1", "t1ce", "t2", "seg"))
    brats_case(tree, "FeTS2022_00004")
    rows = ["1,FeTS2022_00000", "1,FeTS2022_00001", "18,FeTS2022_00002", "18,FeTS2022_00003"]
    tree.table("partitioning_1.csv", "Partition_ID,Subject_ID", *rows)
    result = prepared("brats")
    assert result.sites == {"institution-01": 2, "institution-18": 1}
    assert result.reasons == {"flair is missing": 1, "site is unknown": 1}
    data = result.study["data"]
    assert (data["image"], data["mask"], result.study["task"]) == (
        ["t1", "t1ce", "t2", "flair"],
        "mask",
        "segmentation",
    )
    assert all(path.is_file() for path in result.files("flair") + result.files("mask"))
    with pytest.raises(DataError, match=r"No partitioning_2\.csv was found"):
        prepared("brats", out="two", sites_by="partitioning_2")


def test_brats_2019_and_2020(tree, prepared, tmp_path):
    brats_case(tree, "HGG/BraTS19_TCIA01_131_1")
    brats_case(tree, "HGG/BraTS19_2013_2_1")
    brats_case(tree, "LGG/BraTS19_CBICA_AAB_1")
    result = prepared("brats", label="grade")
    assert result.sites == {"2013": 1, "CBICA": 1, "TCIA": 1}
    assert sorted(result.manifest["grade"]) == ["HGG", "HGG", "LGG"]
    later = type(tree)(tmp_path / "2020")
    brats_case(later, "BraTS20_Training_001")
    brats_case(later, "BraTS20_Training_002")
    later.table(
        "name_mapping.csv",
        "Grade,BraTS_2017_subject_ID,BraTS_2018_subject_ID,TCGA_TCIA_subject_ID,BraTS_2019_subject_ID,BraTS_2020_subject_ID",
        "HGG,Brats17_CBICA_AAB_1,Brats18_CBICA_AAB_1,NA,BraTS19_CBICA_AAB_1,BraTS20_Training_001",
        "LGG,NA,NA,NA,NA,BraTS20_Training_002",
    )
    second = prepared("brats", later.folder, out="2020out")
    assert (second.sites, second.reasons) == ({"CBICA": 1}, {"site is unknown": 1})


def test_brats_2023_names_no_institution(tree, prepared):
    for number in range(10):
        for point in ("000", "001"):
            brats_case(tree, f"BraTS-GLI-{number:05}-{point}", kinds=("t1n", "t1c", "t2w", "t2f", "seg"), joint="-")
    with pytest.raises(DataError, match=r"Nothing names the institutions.*--sites-by quantity"):
        prepared("brats")
    result = prepared("brats", sites_by="quantity", sites=2, alpha=10.0)
    assert sum(result.sites.values()) == 10
    assert result.reasons == {"a later session of the same subject": 10}
    together = prepared("brats", out="all", sites_by="quantity", sites=2, alpha=10.0, sessions="all").manifest
    assert (together.groupby("subject")["site"].nunique() == 1).all()


def test_prostate(tree, prepared):
    tree.touch("BIDMC/Case00.nii.gz", "BIDMC/Case00_segmentation.nii.gz", "RUNMC/Case00.nii.gz",
               "RUNMC/Case00_Segmentation.nii.gz", "ucl/Case05.nii.gz", "notes/Case09.nii.gz")  # fmt: skip
    result = prepared("prostate")
    assert result.sites == {"BIDMC": 1, "RUNMC": 1}
    assert result.reasons == {"mask is missing": 1}
    assert result.manifest["subject"].nunique() == 2
    assert all(path.is_file() for path in result.files("mask"))


@pytest.mark.parametrize("name", ["ixi", "brats", "prostate", "abide", "adni"])
def test_a_wrong_folder_says_what_is_there(tree, prepared, name):
    tree.touch("pictures/a.png", "notes.txt")
    with pytest.raises(DataError, match=r"P201 .*(it holds notes\.txt, pictures/)"):
        prepared(name)


def test_volumes_are_not_opened(tree, prepared):
    """Empty files are enough: reading is left to ``polyclinic check``, which says what can't be read."""
    tree.touch("HK/Case00.nii.gz", "HK/Case00_segmentation.nii.gz")
    assert np.all(prepared("prostate").manifest["site"] == "HK")
