"""Data sets of 2D images, on small trees of their documented layouts."""

import gzip
import io
import zipfile

import nibabel
import numpy as np
import pytest
from PIL import Image

from polyclinic import Study
from polyclinic.errors import DataError


def opened(result):
    """The study's own reader on the manifest: found, used and rejected over all sites."""
    sites, _ = Study.read(result.out / "study.yaml").check()
    return sites[["found", "used", "rejected"]].sum().tolist()


def picture(seed, shape=(12, 16, 3)):
    return np.random.default_rng(seed).integers(0, 255, shape, dtype=np.uint8)


# Skin -----------------------------------------------------------------------------------------------------------------


def test_ham10000_as_published(tree, prepared):
    tree.table(
        "HAM10000_metadata",
        "lesion_id,image_id,dx,dx_type,age,sex,localization,dataset",
        "HAM_1,ISIC_0024306,mel,histo,50.0,male,back,rosendahl",
        "HAM_1,ISIC_0024307,mel,histo,50.0,male,back,rosendahl",
        "HAM_2,ISIC_0024308,nv,follow_up,30.0,unknown,face,vidir_modern",
        "HAM_3,ISIC_0024309,bkl,histo,,female,face,vidir_modern",
    )
    for number in (6, 7, 8):
        tree.image(f"HAM10000_images_part_1/ISIC_002430{number}.jpg", picture(number))
        outline = (picture(0, (12, 16)) > 127).astype(np.uint8) * 255
        tree.image(f"HAM10000_segmentations_lesion_tschandl/ISIC_002430{number}_segmentation.png", outline)
    result = prepared("ham10000")
    assert result.reasons == {"image is missing": 1}
    assert result.manifest["malignant"].tolist() == ["yes", "yes", "no"]
    assert result.manifest["sex"].tolist() == ["M", "M", ""]
    assert result.prepared.subjects == {"rosendahl": 1, "vidir_modern": 1}
    assert opened(result) == [3, 3, 0]
    lesion = prepared("ham10000", out="lesion", label="lesion")
    assert (lesion.study["task"], lesion.study["data"]["mask"]) == ("segmentation", "mask")
    assert opened(lesion) == [3, 3, 0]
    several = prepared("ham10000", out="several", label="diagnosis")
    assert "positive" not in several.study["data"]


def isic(tree, ham=True):
    classes = ["MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC", "UNK"]
    cases = {
        "ISIC_0000001": ("BCN_0000001", "MEL"),
        "ISIC_0000002_downsampled": ("MSK4_0011169", "NV"),
        "ISIC_0024306": ("HAM_0000550", "NV"),
        "ISIC_0024307": ("HAM_0003577", "SCC"),
        "ISIC_0000005": ("", "NV"),
    }
    tree.table(
        "ISIC_2019_Training_Metadata.csv",
        "image,age_approx,anatom_site_general,lesion_id,sex",
        *(f"{image},55.0,anterior torso,{lesion},female" for image, (lesion, _) in cases.items()),
    )
    rows = [
        f"{image}," + ",".join("1.0" if name == true else "0.0" for name in classes)
        for image, (_, true) in cases.items()
    ]
    tree.table("ISIC_2019_Training_GroundTruth.csv", "image," + ",".join(classes), *rows)
    if ham:
        tree.table(
            "HAM10000_metadata.csv",
            "lesion_id,image_id,dx,dx_type,age,sex,localization,dataset",
            "HAM_0000550,ISIC_0024306,nv,follow_up,45.0,male,trunk,vidir_molemax",
            "HAM_0003577,ISIC_0024307,akiec,histo,50.0,male,face,rosendahl",
        )
    tree.touch(*(f"ISIC_2019_Training_Input/{image}.jpg" for image in cases))


def test_isic_2019(tree, prepared):
    isic(tree)
    result = prepared("isic2019")
    assert result.sites == {"BCN": 1, "MSK": 1, "rosendahl": 1, "vidir_molemax": 1}
    assert result.reasons == {"no lesion_id, so neither centre nor lesion is known": 1}
    by_site = dict(zip(result.manifest["site"], result.manifest["malignant"], strict=True))
    assert by_site == {"BCN": "yes", "MSK": "no", "rosendahl": "yes", "vidir_molemax": "no"}
    assert all(path.is_file() for path in result.files("image"))


def test_isic_2019_without_the_table_of_ham10000(tree, prepared):
    isic(tree, ham=False)
    result = prepared("isic2019", label="diagnosis")
    assert result.sites == {"BCN": 1, "HAM": 2, "MSK": 1}
    assert any("Without HAM10000_metadata" in note for note in result.prepared.notes)


# Retina ---------------------------------------------------------------------------------------------------------------


def ppm(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PPM")
    return buffer.getvalue()


def test_retina_as_published(tree, prepared):
    mask = (picture(1, (12, 16)) > 200).astype(np.uint8) * 255
    tree.image("DRIVE/training/images/21_training.tif", picture(21))
    tree.image("DRIVE/training/1st_manual/21_manual1.gif", mask)
    tree.image("DRIVE/training/mask/21_training_mask.gif", mask)
    tree.image("DRIVE/test/images/01_test.tif", picture(1))
    tree.image("CHASEDB1/Image_01L.jpg", picture(3))
    tree.image("CHASEDB1/Image_01L_1stHO.png", mask)
    tree.image("CHASEDB1/Image_01L_2ndHO.png", mask)
    tree.image("CHASEDB1/Image_01R.jpg", picture(4))
    tree.image("CHASEDB1/Image_01R_1stHO.png", mask)
    (tree.folder / "STARE").mkdir()
    (tree.folder / "STARE/im0001.ppm.gz").write_bytes(gzip.compress(ppm(picture(5))))
    (tree.folder / "STARE/im0001.ah.ppm.gz").write_bytes(gzip.compress(ppm(mask)))
    (tree.folder / "STARE/im0002.ppm.gz").write_bytes(gzip.compress(ppm(picture(6)))[:40])
    (tree.folder / "STARE/im0002.ah.ppm.gz").write_bytes(gzip.compress(ppm(mask)))
    result = prepared("retina-vessels")
    assert result.sites == {"chasedb1": 2, "drive": 1, "stare": 1}
    assert result.reasons == {"mask is missing": 1, "image or mask file is damaged": 1}
    assert result.prepared.subjects["chasedb1"] == 1
    stare = result.manifest.query("site == 'stare'")
    root = result.out / result.study["data"]["root"]
    assert np.array_equal(np.asarray(Image.open(root / stare["image"].item())), picture(5))
    assert np.array_equal(np.asarray(Image.open(root / stare["mask"].item())), mask)
    assert opened(result) == [4, 4, 0]


# Pathology, chest -----------------------------------------------------------------------------------------------------


def test_camelyon17(tree, prepared):
    tree.table(
        "camelyon17_v1.0/metadata.csv",
        ",patient,node,x_coord,y_coord,tumor,slide,center,split",
        "0,004,4,3328,21792,1,0,0,0",
        "1,004,4,3200,22272,0,0,0,0",
        "2,20,2,3168,22272,1,5,1,0",
        "3,099,1,1,2,1,9,4,0",
    )
    folder = "camelyon17_v1.0/patches"
    tree.touch(
        f"{folder}/patient_004_node_4/patch_patient_004_node_4_x_3328_y_21792.png",
        f"{folder}/patient_004_node_4/patch_patient_004_node_4_x_3200_y_22272.png",
        f"{folder}/patient_020_node_2/patch_patient_020_node_2_x_3168_y_22272.png",
    )
    result = prepared("camelyon17")
    assert result.sites == {"center-0": 2, "center-1": 1}
    assert result.reasons == {"image file is missing": 1}
    assert result.prepared.subjects == {"center-0": 1, "center-1": 1}
    inner = prepared("camelyon17", tree.folder / "camelyon17_v1.0", out="inner")
    assert inner.files("image") == result.files("image")


NAMES = ["No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema",
         "Consolidation", "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture",
         "Support Devices"]  # fmt: skip


def findings(**values):
    return ",".join(values.get(name.replace(" ", "_"), "") for name in NAMES)


@pytest.fixture
def chest(tree):
    views = {"patient00001/study1/view1_frontal": ("Frontal", "AP", findings(Pleural_Effusion="1.0")),
             "patient00001/study1/view2_lateral": ("Lateral", "", findings(Pleural_Effusion="1.0")),
             "patient00002/study1/view1_frontal": ("Frontal", "PA", findings(Pleural_Effusion="-1.0")),
             "patient00003/study1/view1_frontal": ("Frontal", "PA", findings(No_Finding="1.0"))}  # fmt: skip
    tree.table(
        "CheXpert-v1.0-small/train.csv",
        "Path,Sex,Age,Frontal/Lateral,AP/PA," + ",".join(NAMES),
        *(f"CheXpert-v1.0-small/train/{name}.jpg,Female,68,{frontal},{beam},{marks}"
          for name, (frontal, beam, marks) in views.items()),
    )  # fmt: skip
    tree.touch(*(f"CheXpert-v1.0-small/train/{name}.jpg" for name in views))
    tree.table(
        "ChestX-ray14/Data_Entry_2017.csv",
        "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
        "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]",
        "00000001_000.png,Cardiomegaly|Effusion,0,1,058Y,M,PA,2682,2749,0.143,0.143",
        "00000002_000.png,No Finding,0,2,081Y,F,AP,2500,2048,0.171,0.171",
    )
    tree.touch(*(f"ChestX-ray14/images_001/images/0000000{number}_000.png" for number in (1, 2)))
    folder = tree.folder / "mimic-cxr-jpg"
    folder.mkdir()
    labels = "subject_id,study_id," + ",".join(sorted(NAMES)) + "\n"
    labels += "10000032,50414267," + ",".join("1.0" if name == "No Finding" else "" for name in sorted(NAMES)) + "\n"
    metadata = "dicom_id,subject_id,study_id,ViewPosition,Rows\n"
    metadata += "02aa804e-bde0afdd,10000032,50414267,PA,3056\n174413ec-4ec4c1f7,10000032,50414267,LATERAL,3056\n"
    metadata += "2a2277a9-b0ded155,10000032,53189527,PA,3056\n"
    (folder / "mimic-cxr-2.0.0-chexpert.csv.gz").write_bytes(gzip.compress(labels.encode()))
    (folder / "mimic-cxr-2.0.0-metadata.csv.gz").write_bytes(gzip.compress(metadata.encode()))
    tree.touch("mimic-cxr-jpg/files/p10/p10000032/s50414267/02aa804e-bde0afdd.jpg")
    return tree


def test_chest_xrays_of_three_sources(chest, prepared):
    result = prepared("chest-xrays")
    assert result.sites == {"ChestX-ray14": 2, "CheXpert": 2, "MIMIC-CXR": 1}
    assert result.reasons == {
        "lateral view": 2,
        "no findings for the study": 1,
        "pleural_effusion is neither present nor absent": 1,
    }
    assert result.prepared.classes["ChestX-ray14"] == {"present": 1, "absent": 1}
    assert result.manifest["age"].tolist() == ["68", "68", "58", "81", ""]
    assert all(path.is_file() for path in result.files("image"))
    assert result.study["data"]["channels"] == "grey"


def test_chest_xrays_with_other_choices(chest, prepared):
    uncertain = prepared("chest-xrays", positive=("present", "uncertain"))
    assert uncertain.sites["CheXpert"] == 3
    assert uncertain.study["data"]["positive"] == ["present", "uncertain"]
    view = prepared("chest-xrays", out="view", sites_by="view", label="cardiomegaly")
    assert view.sites == {
        "ChestX-ray14-AP": 1,
        "ChestX-ray14-PA": 1,
        "CheXpert-AP": 1,
        "CheXpert-PA": 2,
        "MIMIC-CXR-PA": 1,
    }
    alone = prepared("chest-xrays", chest.folder / "CheXpert-v1.0-small", out="alone")
    assert alone.sites == {"CheXpert": 2}
    assert all(path.is_file() for path in alone.files("image"))


def test_montgomery_and_shenzhen(tree, prepared):
    left, right = np.zeros((8, 10), dtype=np.uint8), np.zeros((8, 10), dtype=np.uint8)
    left[2:4, 6:9], right[2:5, 1:4] = 255, 255
    for case in ("MCUCXR_0001_0", "MCUCXR_0104_1"):
        tree.image(f"MontgomerySet/CXR_png/{case}.png", picture(1, (8, 10)))
        tree.image(f"MontgomerySet/ManualMask/leftMask/{case}.png", left)
        tree.image(f"MontgomerySet/ManualMask/rightMask/{case}.png", right)
    tree.text("MontgomerySet/ClinicalReadings/MCUCXR_0001_0.txt", "Patient's Sex: F\nPatient's Age: 027Y\nnormal\n")
    for case in ("CHNCXR_0001_0", "CHNCXR_0327_1"):
        tree.image(f"ChinaSet_AllFiles/CXR_png/{case}.png", picture(2, (8, 10)))
    tree.text("ChinaSet_AllFiles/ClinicalReadings/CHNCXR_0327_1.txt", "male 37yrs\nbilateral PTB\n")
    tree.image("ChinaSet_AllFiles/mask/CHNCXR_0001_0_mask.png", left)
    result = prepared("montgomery-shenzhen")
    assert result.sites == {"Montgomery": 2, "Shenzhen": 2}
    known = {(row.site, row.tuberculosis): (row.age, row.sex) for row in result.manifest.itertuples()}
    assert known["Montgomery", "absent"] == ("27", "F")
    assert known["Shenzhen", "present"] == ("37", "M")
    assert not (result.out / "masks").exists()
    lungs = prepared("montgomery-shenzhen", out="lungs", label="lungs")
    assert lungs.sites == {"Montgomery": 2, "Shenzhen": 1}
    assert lungs.reasons == {"mask is missing": 1}
    mask = np.asarray(Image.open(lungs.files("mask")[0]))
    assert np.array_equal(mask > 0, (left | right) > 0)
    assert opened(lungs) == [3, 3, 0]


def test_masks_of_unlike_size_are_rejected(tree, prepared):
    for case in ("MCUCXR_0001_0", "MCUCXR_0002_0"):
        tree.image(f"CXR_png/{case}.png", picture(1, (8, 10)))
        tree.image(f"ManualMask/leftMask/{case}.png", picture(1, (8, 10)))
        tree.image(f"ManualMask/rightMask/{case}.png", picture(1, (8, 10) if case < "MCUCXR_0002" else (8, 11)))
    result = prepared("montgomery-shenzhen", label="lungs")
    assert result.reasons == {"the masks of the lungs can't be read or differ in size": 1}


# MedMNIST -------------------------------------------------------------------------------------------------------------


def medmnist(folder, name, shape, classes=2, labels=1, numbers=(40, 8, 12)):
    rng = np.random.default_rng(0)
    arrays = {}
    for part, number in zip(("train", "val", "test"), numbers, strict=True):
        arrays[f"{part}_images"] = rng.integers(0, 255, (number, *shape), dtype=np.uint8)
        arrays[f"{part}_labels"] = np.arange(number * labels).reshape(number, labels) % classes
    folder.mkdir(exist_ok=True, parents=True)
    np.savez_compressed(folder / name, **arrays)
    return arrays


def test_medmnist_in_colour(tree, prepared):
    arrays = medmnist(tree.folder, "bloodmnist.npz", (28, 28, 3), classes=8)
    result = prepared("medmnist", sites=3, alpha=5.0)
    assert len(result.manifest) == 60
    assert set(result.sites) == {"artificial-1", "artificial-2", "artificial-3"}
    assert result.manifest["split"].value_counts().to_dict() == {"train": 40, "test": 12, "validation": 8}
    first = result.manifest.query("image == 'images/bloodmnist/val/000003.png'").iloc[0]
    assert first["class"] == "immature granulocyte"
    pixels = np.asarray(Image.open(result.out / first["image"]))
    assert np.array_equal(pixels, arrays["val_images"][3])
    assert result.study["evaluation"]["split"] == "split"
    assert "root" not in result.study["data"]
    assert opened(result) == [60, 60, 0]


def test_medmnist_grey_from_the_file_itself(tree, prepared):
    medmnist(tree.folder, "pneumoniamnist_64.npz", (64, 64))
    medmnist(tree.folder, "breastmnist.npz", (28, 28))
    with pytest.raises(DataError, match=r"There are several \.npz files"):
        prepared("medmnist")
    result = prepared("medmnist", tree.folder / "pneumoniamnist_64.npz", sites_by="quantity", sites=2, alpha=5.0)
    assert set(result.manifest["class"]) == {"normal", "pneumonia"}
    assert (result.study["data"]["size"], result.study["data"]["channels"]) == ([64, 64], "grey")


def test_medmnist_volumes(tree, prepared):
    arrays = medmnist(tree.folder, "nodulemnist3d.npz", (28, 28, 28))
    result = prepared("medmnist", sites=2, alpha=5.0)
    volume = nibabel.load(result.out / "images/nodulemnist3d/train/000005.nii.gz")
    assert np.array_equal(np.asarray(volume.dataobj), arrays["train_images"][5])
    assert result.study["data"]["preprocessing"]["size"] == [32, 32, 32]


def test_chestmnist_needs_a_finding(tree, prepared):
    arrays = medmnist(tree.folder, "chestmnist.npz", (28, 28), labels=14)
    with pytest.raises(DataError, match="has 14 findings an image and no class"):
        prepared("medmnist")
    result = prepared("medmnist", label="effusion", sites=2, alpha=5.0)
    present = result.manifest.set_index("image").loc["images/chestmnist/train/000001.png", "effusion"]
    assert present == ("present" if arrays["train_labels"][1, 2] else "absent")
    medmnist(tree.folder, "chestmnist.npz", (28, 28))
    with pytest.raises(DataError, match="leave `--label` out"):
        prepared("medmnist", label="effusion")


def test_damaged_archives_are_told(tree, prepared):
    path = tree.folder / "bloodmnist.npz"
    path.write_bytes(b"no archive")
    with pytest.raises(DataError, match=r"bloodmnist\.npz is no \.npz file"):
        prepared("medmnist")
    medmnist(tree.folder, "bloodmnist.npz", (28, 28, 3))
    content = bytearray(path.read_bytes())
    content[2000:2400] = bytes(400)
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"bloodmnist\.npz is damaged"):
        prepared("medmnist")
    np.savez(path, train_images=np.zeros((2, 28, 28), dtype=np.uint8))
    with pytest.raises(DataError, match="lacks train_labels, val_images"):
        prepared("medmnist")


def test_archives_with_python_objects_are_refused(tree, prepared):
    """Such arrays are pickles, which could run code."""
    arrays = medmnist(tree.folder, "bloodmnist.npz", (28, 28, 3))
    arrays["train_images"] = np.array([{}] * 40, dtype=object)
    np.savez(tree.folder / "bloodmnist.npz", **arrays)
    with pytest.raises(DataError, match="not stored as MedMNIST stores it"):
        prepared("medmnist")
    assert zipfile.is_zipfile(tree.folder / "bloodmnist.npz")
