import json
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from polyclinic.cli import app
from polyclinic.data.readers.read import read_volume
from polyclinic.data.readers.scan import scan_folder, write_manifest
from polyclinic.errors import DataError

CUBE = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)
AFFINE = np.diag((1.0, 1, 2, 1))


def nifti(path, values=CUBE):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(values, AFFINE), path)
    return path


def text(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def manifest(folder, **options):
    return scan_folder(folder, salt="salt", **options).manifest


def cells(frame, *columns):
    return frame[list(columns)].to_numpy().tolist()


# DICOM


def test_nested_export_of_several_patients_and_series(stack, ct, tmp_path):
    stack(tmp_path / "A/1", CUBE, AFFINE, PatientID="1", SeriesInstanceUID="1.1", StudyInstanceUID="1.8")
    stack(
        tmp_path / "A/2/deeper", CUBE, AFFINE, PatientID="1", SeriesInstanceUID="1.2", StudyInstanceUID="1.8",
        SeriesDescription="FLAIR tra",
    )  # fmt: skip
    stack(tmp_path / "B", CUBE, AFFINE, PatientID="2", SeriesInstanceUID="2.1", StudyInstanceUID="2.8")
    frame = manifest(tmp_path, site="north")
    assert list(frame.columns) == ["site", "subject", "FLAIR", "T1w", "vendor", "model", "field_strength"]
    assert sorted(cells(frame, "site", "T1w", "FLAIR")) == [["north", "A/1", "A/2/deeper"], ["north", "B", ""]]
    assert frame["subject"].str.fullmatch(r"sub-[0-9a-f]{12}").all()
    assert frame["subject"].nunique() == 2
    assert frame["field_strength"].tolist() == ["3", "3"]


def test_series_mixed_in_one_folder_are_named(stack, tmp_path):
    for number in (1, 2):
        for path in stack(tmp_path / f"s{number}", CUBE * number, AFFINE, SeriesInstanceUID=f"1.{number}"):
            path.rename(tmp_path / f"{number}-{path.name}")
    frame = manifest(tmp_path)
    assert len(frame) == 2  # one kind of image, so one column, and a row for each
    assert frame["image"].str.fullmatch(r"\.#[0-9a-f]{8}-[0-9a-f]{12}").all()
    read = {int(read_volume(cell, tmp_path).values.max()) for cell in frame["image"]}
    assert read == {119, 238}
    assert manifest(tmp_path, site="x")["image"].tolist() == frame["image"].tolist()
    other = scan_folder(tmp_path, salt="other").manifest
    assert not set(other["image"]) & set(frame["image"])
    assert not set(other["subject"]) & set(frame["subject"])


@pytest.mark.parametrize("left", [300, 0])
def test_a_slice_too_damaged_to_tell_its_series_is_not_done_without(stack, tmp_path, left):
    """Neither where it lies beside a stack, nor where other stacks lie below."""
    last = max(stack(tmp_path / "a", CUBE, AFFINE), key=lambda path: read_volume(path.name, path.parent).affine[2, 3])
    last.write_bytes(last.read_bytes()[:left])
    stack(tmp_path / "a" / "deeper", CUBE, AFFINE, SeriesInstanceUID="1.2")
    stack(tmp_path / "b", CUBE, AFFINE, SeriesInstanceUID="1.3")
    scan = scan_folder(tmp_path, site="s", salt="salt")
    reason = "DICOM header is truncated" if left else "file is empty"
    assert scan.counts()["s"].rejected == {reason: 2}
    assert sorted(scan.manifest["image"]) == ["a/deeper", "b"]


def test_files_that_name_no_series_are_images_of_their_own(stack, tmp_path):
    stack(tmp_path, CUBE, AFFINE, SeriesInstanceUID=None)
    frame = manifest(tmp_path)
    assert sorted(frame["image"]) == sorted(path.name for path in tmp_path.iterdir())


def test_nifti_masks_of_dicom_images_are_masks(stack, tmp_path):
    for number in ("P1", "P2"):
        uids = {"SeriesInstanceUID": f"1.{number[1]}", "StudyInstanceUID": f"2.{number[1]}"}
        for site in ("north", "south"):
            stack(tmp_path / site / number, CUBE, AFFINE, PatientID=number, **uids)
            nib.save(nib.Nifti1Image((CUBE > 60).astype(np.uint8), AFFINE), tmp_path / site / f"{number}_seg.nii.gz")
    frame = manifest(tmp_path, site_from="folder")
    expected = [[site, f"{site}/{n}", f"{site}/{n}_seg.nii.gz"] for site in ("north", "south") for n in ("P1", "P2")]
    assert sorted(cells(frame, "site", "image", "mask")) == expected
    assert frame["subject"].nunique() == 4


def test_visits_of_a_patient(stack, tmp_path):
    for visit in (1, 2):
        stack(tmp_path / f"{visit}", CUBE, AFFINE, StudyInstanceUID=f"1.{visit}", SeriesInstanceUID=f"2.{visit}")
    frame = manifest(tmp_path)
    assert frame["subject"].nunique() == 1
    assert frame["session"].nunique() == 2
    assert frame["session"].str.fullmatch("ses-[0-9a-f]{12}").all()


def inner(files):
    """A slice that is neither the first nor the last."""
    places = {path: read_volume(path.name, path.parent).affine[2, 3] for path in files}
    return sorted(files, key=places.__getitem__)[3]


def test_rejected_series_and_other_files_are_counted(stack, dicom, tmp_path):
    inner(stack(tmp_path / "gap", CUBE, AFFINE, SeriesInstanceUID="1.1")).unlink()
    stack(tmp_path / "good", CUBE, AFFINE, SeriesInstanceUID="1.2")
    cut = stack(tmp_path / "cut", CUBE, AFFINE, SeriesInstanceUID="1.3")[0]
    cut.write_bytes(cut.read_bytes()[:-4])
    stack(tmp_path / "scout", CUBE, AFFINE, SeriesInstanceUID="1.4", SeriesDescription="Localizer")
    dicom(tmp_path / "dose", CUBE[:, :, 0].copy(), SOPClassUID="1.2.840.10008.5.1.4.1.1.481.2", Modality="RTDOSE")
    (tmp_path / "DICOMDIR").write_bytes(b"x")
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "unknown").write_bytes(b"x" * 300)
    scan = scan_folder(tmp_path, site="s", salt="salt")
    counts = scan.counts()["s"]
    assert (counts.found, counts.used) == (5, 1)
    assert counts.rejected == {
        "slices are missing": 1,
        "pixels are truncated": 1,
        "image is a localizer": 1,
        "DICOM object is an RT dose, not an image": 1,
    }
    assert scan.manifest["image"].tolist() == ["good"]
    assert scan.others == {".txt": 1, "no ending": 2}
    assert scan.files == 6 * 4 - 1 + 4


def test_progress_ends_at_the_number_of_files(stack, tmp_path):
    stack(tmp_path, CUBE, AFFINE)
    (tmp_path / "a.txt").write_text("x")
    seen = []
    scan_folder(tmp_path, salt="s", progress=lambda done, total: seen.append((done, total)))
    assert seen == [(done, 7) for done in range(1, 8)]


def test_identity_warnings(stack, dicom, tmp_path):
    dicom(tmp_path / "us.dcm", CUBE[:, :, 0].copy(), Modality="US", PatientName="Doe", SeriesInstanceUID="1")
    stack(tmp_path / "Quixote", CUBE, AFFINE, SeriesInstanceUID="2")
    stack(tmp_path / "mrn-7731902 scans", CUBE, AFFINE, SeriesInstanceUID="3", PatientName="Doe")
    stack(tmp_path / "clean", CUBE, AFFINE, SeriesInstanceUID="4", BurnedInAnnotation="YES")
    dicom(tmp_path / "no.dcm", CUBE[:, :, 0].copy(), Modality="US", BurnedInAnnotation="NO", SeriesInstanceUID="5")
    warnings = scan_folder(tmp_path, salt="salt").notes
    assert len(warnings) == 2
    assert warnings[0].startswith("2 images with the patient's name or number in a file or folder name")
    assert warnings[1].startswith("2 images that may have text burnt into the picture")


def head(face):
    """A ball of tissue with, or without, a nose and chin in front of it; RAS."""
    x, y, z = np.indices((48, 56, 56)) - 24
    skull = (x / 17) ** 2 + (y / 20) ** 2 + ((z - 6) / 20) ** 2 < 1
    front = (abs(x) < 14) & (y > 5) & (y < 24) & (z > -22) & (z < 2)
    air = np.random.default_rng(0).integers(0, 30, x.shape)
    values = np.where(skull | front, 800, air)
    return np.where(front, 800 if face else 0, values).astype(np.int16)


def test_faces_in_head_mri(stack, tmp_path):
    # Stored as scanners do: to the left, to the back.
    turned = np.diag((-4.0, -4, 4, 1))
    for number, face in ((1, True), (2, False)):
        stack(tmp_path / f"dicom/{number}", head(face)[::-1, ::-1], turned, SeriesInstanceUID=f"{number}")
    (warning,) = scan_folder(tmp_path / "dicom", salt="salt").notes
    assert warning.startswith("1 of 2 head MRI looked at (of 2) seem to show a face")


def test_faces_in_bids(tmp_path):
    for number, face in ((1, True), (2, False)):
        path = nifti(tmp_path / f"sub-{number}/anat/sub-{number}_T1w.nii.gz", head(face))
        image = nib.load(path)
        turned = image.as_reoriented(nib.orientations.axcodes2ornt("PIR"))
        nib.save(turned, path)
    (warning,) = scan_folder(tmp_path, salt="salt").notes
    assert warning.startswith("1 of 2 head MRI looked at (of 2) seem to show a face")


# NIfTI folders


def test_one_file_a_subject(tmp_path):
    for name in ("P1", "P2", "my.dotted.name"):
        nifti(tmp_path / f"{name}.nii.gz")
        nifti(tmp_path / f"{name}_mask.nii.gz")
    frame = manifest(tmp_path)
    assert list(frame.columns) == ["site", "subject", "image", "mask"]
    assert sorted(cells(frame, "image", "mask")) == [
        [f"{name}.nii.gz", f"{name}_mask.nii.gz"] for name in ("P1", "P2", "my.dotted.name")
    ]


def test_brats_layout(tmp_path):
    for name in ("BraTS20_001", "BraTS20_002"):
        for kind in ("t1", "t1ce", "t2", "flair", "seg"):
            nifti(tmp_path / name / f"{name}_{kind}.nii.gz")
    frame = manifest(tmp_path)
    assert list(frame.columns) == ["site", "subject", "FLAIR", "T1ce", "T1w", "T2w", "mask"]
    assert sorted(frame["T1ce"]) == [f"BraTS20_00{n}/BraTS20_00{n}_t1ce.nii.gz" for n in (1, 2)]
    assert sorted(frame["mask"]) == [f"BraTS20_00{n}/BraTS20_00{n}_seg.nii.gz" for n in (1, 2)]


def test_decathlon_and_nnunet_layouts(tmp_path):
    for n in (1, 2):
        nifti(tmp_path / f"one/imagesTr/hip_{n:03}.nii.gz")
        nifti(tmp_path / f"one/labelsTr/hip_{n:03}.nii.gz")
        nifti(tmp_path / f"two/labelsTr/BRATS_{n:03}.nii.gz")
        for channel in (0, 1):
            nifti(tmp_path / f"two/imagesTr/BRATS_{n:03}_{channel:04}.nii.gz")
    one, two = manifest(tmp_path / "one"), manifest(tmp_path / "two")
    assert sorted(cells(one, "image", "mask")) == [
        [f"imagesTr/hip_00{n}.nii.gz", f"labelsTr/hip_00{n}.nii.gz"] for n in (1, 2)
    ]
    assert list(two.columns) == ["site", "subject", "channel_0", "channel_1", "mask"]
    assert len(two) == 2


def test_several_masks_of_a_subject(tmp_path):
    for name in ("s_01", "s_02"):
        nifti(tmp_path / f"images/{name}_T1w.nii.gz")
        nifti(tmp_path / f"masks/{name}_hippocampus.nii.gz")
        nifti(tmp_path / f"masks/{name}_grey_matter.nii.gz")
    frame = manifest(tmp_path)
    assert list(frame.columns) == ["site", "subject", "image", "grey_matter_mask", "hippocampus_mask"]
    assert sorted(frame["hippocampus_mask"]) == ["masks/s_01_hippocampus.nii.gz", "masks/s_02_hippocampus.nii.gz"]


def test_folder_a_subject_with_the_same_names(tmp_path):
    for name in ("P1", "P2"):
        nifti(tmp_path / name / "T1.nii")
        nifti(tmp_path / name / "lesion_mask.nii")
    frame = manifest(tmp_path)
    assert sorted(cells(frame, "image", "mask")) == [[f"{p}/T1.nii", f"{p}/lesion_mask.nii"] for p in ("P1", "P2")]
    for name in ("Q1", "Q2"):
        for visit in ("ses-1", "ses-2"):
            nifti(tmp_path / "other" / name / visit / "scan.nii")
    frame = manifest(tmp_path / "other")
    assert frame["subject"].nunique() == 2
    assert frame["session"].tolist() == ["ses-1", "ses-2"] * 2


def test_kind_in_front_of_the_subject(tmp_path):
    for name in ("001", "002"):
        nifti(tmp_path / f"T1_{name}.nii")
    assert manifest(tmp_path)["subject"].nunique() == 2


def test_folder_a_kind(tmp_path):
    for name in ("P1", "P2"):
        nifti(tmp_path / "T1" / f"{name}.nii")
        nifti(tmp_path / "FLAIR" / f"{name}.nii")
    frame = manifest(tmp_path)
    assert sorted(cells(frame, "T1w", "FLAIR")) == [[f"T1/{p}.nii", f"FLAIR/{p}.nii"] for p in ("P1", "P2")]


def test_real_folder(data_folder):
    frame = manifest(data_folder / "nifti-spine")
    assert cells(frame, "T1w", "T1w_mask", "T2star_mask") == [
        ["t1w.nii.gz", "t1w_seg-manual.nii.gz", "t2s_uncropped_gmseg_manual.nii.gz"]
    ]


def test_folders_as_sites(tmp_path):
    nifti(tmp_path / "north/P1.nii")
    nifti(tmp_path / "south/sub-1/anat/sub-1_T1w.nii")
    frame = manifest(tmp_path, site_from="folder")
    assert sorted(frame["site"]) == ["north", "south"]


def test_a_mask_stands_in_the_row_of_its_image(tmp_path):
    for name in ("P1", "P2", "P3"):
        for run in (1, 2):
            nifti(tmp_path / f"{name}/T1_run{run}.nii")
        nifti(tmp_path / f"{name}/T1_run2_seg.nii")
        nifti(tmp_path / f"{name}/FLAIR.nii")
    frame = manifest(tmp_path)
    assert frame["subject"].nunique() == 3
    assert sorted(cells(frame, "T1w", "FLAIR", "mask")) == [
        [f"{p}/T1_run{run}.nii", f"{p}/FLAIR.nii" * (run == 1), f"{p}/T1_run2_seg.nii" * (run == 2)]
        for p in ("P1", "P2", "P3")
        for run in (1, 2)
    ]


def test_two_hospitals_with_the_same_names(tmp_path):
    for home in ("a", "b"):
        nifti(tmp_path / f"plain/{home}/P1/T1.nii")
        nifti(tmp_path / f"plain/{home}/P2/T1.nii")
        nifti(tmp_path / f"bids/{home}/sub-01/anat/sub-01_T1w.nii")
    for kind in ("plain", "bids"):
        frame = manifest(tmp_path / kind, site_from="folder")
        assert frame["subject"].nunique() == len(frame) == (4 if kind == "plain" else 2)
    text(tmp_path / "bids/a/dataset_description.json", "{}")
    text(tmp_path / "bids/b/dataset_description.json", "{}")
    scan = scan_folder(tmp_path / "bids", salt="salt")
    assert scan.manifest["subject"].nunique() == 2
    assert "N326" in {note.number for note in scan.notes}


def test_pseudonyms_stay_when_data_sets_are_added(tmp_path):
    text(tmp_path / "one/dataset_description.json", "{}")
    nifti(tmp_path / "one/sub-01/anat/sub-01_T1w.nii")
    before = manifest(tmp_path)
    text(tmp_path / "two/dataset_description.json", "{}")
    nifti(tmp_path / "two/sub-02/anat/sub-02_T1w.nii")
    after = manifest(tmp_path)
    assert set(before["subject"]) < set(after["subject"])
    alone = manifest(tmp_path / "one", site="north")
    assert set(alone["subject"]) == set(manifest(tmp_path / "one", site="south")["subject"])


def test_derivatives_beside_the_data_set_are_of_the_same_people(tmp_path):
    text(tmp_path / "raw/dataset_description.json", "{}")
    nifti(tmp_path / "raw/sub-01/anat/sub-01_T1w.nii")
    text(tmp_path / "made/dataset_description.json", json.dumps({"DatasetType": "derivative"}))
    nifti(tmp_path / "made/sub-01/anat/sub-01_label-lesion_mask.nii")
    assert cells(manifest(tmp_path), "image", "mask") == [
        ["raw/sub-01/anat/sub-01_T1w.nii", "made/sub-01/anat/sub-01_label-lesion_mask.nii"]
    ]


def test_pattern(tmp_path):
    for home, patient, visit in (("n", "1", "9"), ("n", "2", "9"), ("s", "1", "8"), ("s", "1", "9")):
        nifti(tmp_path / f"{visit}/x{home}{patient}/{home}-{patient}-t1.nii.gz")
        nifti(tmp_path / f"{visit}/x{home}{patient}/{home}-{patient}-t1-seg.nii.gz")
    nifti(tmp_path / "atlas.nii")
    scan = scan_folder(
        tmp_path,
        salt="salt",
        patterns=["{session}/*/{site}-{subject}-t1.nii.gz", "{session}/*/{site}-{subject}-t1-{mask}.nii.gz"],
    )
    frame = scan.manifest
    assert frame["subject"].nunique() == 3
    assert sorted(cells(frame, "site", "session")) == [["n", "9"], ["n", "9"], ["s", "8"], ["s", "9"]]
    assert all(mask == image.replace(".nii", "-seg.nii") for image, mask in cells(frame, "image", "mask"))
    assert scan.counts()["(no site)"].rejected == {"path does not fit the pattern": 1}
    (note,) = (note for note in scan.notes if note.number == "N314")
    assert note.startswith("1 NIfTI file of 9 do not fit the pattern")
    with pytest.raises(DataError, match=r"P203 `--pattern` fits none of 9 NIfTI files"):
        scan_folder(tmp_path, salt="salt", patterns=["{subject}/x.nii"])
    with pytest.raises(DataError, match=r"P203 `--pattern` has {site}"):
        scan_folder(tmp_path, salt="salt", site="n", patterns=["{site}/{subject}.nii"])


def test_participants_of_a_plain_folder(tmp_path):
    for name in ("sub-01", "sub-02"):
        nifti(tmp_path / f"{name}_T1.nii")
    text(tmp_path / "participants.tsv", "participant_id\tage\tsite\n1\t61\tnorth\n2\t62\tsouth\n")
    assert sorted(cells(manifest(tmp_path), "site", "age")) == [["north", "61"], ["south", "62"]]


def test_what_was_taken_is_shown(stack, tmp_path):
    for name in ("Quixote", "Sancho", "Panza"):
        for day in ("20190301", "20200411"):
            nifti(tmp_path / f"in/{name}/{day}/{name}_{day}_T1.nii.gz")
        nifti(tmp_path / f"in/{name}/20190301/{name}_lesion_seg.nii.gz")
    stack(tmp_path / "in/Panza/pacs", CUBE, AFFINE, SeriesDescription="FLAIR tra")
    arguments = ["data", "scan", str(tmp_path / "in"), "--out", str(tmp_path / "m.csv"), "--site", "north"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert [word for word in ("Quixote", "Sancho", "Panza", "2019", "0411") if word in result.output] == []
    lines = [re.sub(r"\s+", " ", line).strip() for line in result.output.splitlines()]
    assert lines[lines.index("What was taken for patient, visit and contrast:") + 2].startswith("names images masks")
    assert "1 6 0 3 6 T1w (6)" in lines
    assert "2 0 3 3 3 mask (3)" in lines
    assert "names 1: {subject}/{session}/{subject}_{session}_{contrast}.nii.gz" in lines
    assert "such as ***/########/***_########_T1.nii.gz" in lines
    assert "names 3: DICOM, told by headers" in lines
    result = CliRunner().invoke(app, [*arguments, "--pattern", "{subject}/{session}/*_{contrast}.nii.gz"])
    assert "names 1: {subject}/{session}/*_{contrast}.nii.gz" in result.output
    result = CliRunner().invoke(app, [*arguments, "--pattern", "{patient}.nii"])
    assert isinstance(result.exception, DataError)


# BIDS


@pytest.fixture
def bids(tmp_path):
    for subject in ("01", "02"):
        for session in ("a", "b"):
            anat = tmp_path / f"sub-{subject}/ses-{session}/anat/sub-{subject}_ses-{session}"
            nifti(Path(f"{anat}_T1w.nii.gz"))
            nifti(Path(f"{anat}_run-1_bold.nii.gz"))
            nifti(Path(f"{anat}_run-2_bold.nii.gz"))
            text(Path(f"{anat}_T1w.json"), json.dumps({"Manufacturer": "Siemens", "MagneticFieldStrength": 3}))
            derived = tmp_path / f"derivatives/fmriprep/sub-{subject}/ses-{session}/anat/sub-{subject}_ses-{session}"
            nifti(Path(f"{derived}_desc-brain_mask.nii.gz"))
            nifti(Path(f"{derived}_label-lesion_mask.nii.gz"))
            nifti(Path(f"{derived}_dseg.nii.gz"))
            nifti(Path(f"{derived}_space-MNI_desc-preproc_T1w.nii.gz"))
        text(tmp_path / f"sub-{subject}/sub-{subject}_sessions.tsv", "session_id\tage\nses-a\t60\nses-b\t61\n")
    nifti(tmp_path / "sourcedata/sub-01/anat/sub-01_T1w.nii.gz")
    text(tmp_path / "dataset_description.json", "{}")
    text(
        tmp_path / "participants.tsv",
        "participant_id\tsex\tsite\tname\nsub-01\tF\tnorth\tAnn\nsub-02\tn/a\tsouth\tBo\n",
    )
    return tmp_path


def test_bids(bids):
    scan = scan_folder(bids, salt="salt")
    frame = scan.manifest
    masks = ["brain_mask", "dseg", "lesion_mask"]
    images = ["T1w", "run-1_bold", "run-2_bold", "space-MNI_desc-preproc_T1w"]
    scanner = ["vendor", "field_strength"]
    assert list(frame.columns) == ["site", "subject", "session", *images, *masks, "sex", "age", *scanner]
    assert sorted(cells(frame, "site", "session", "sex", "age", "vendor")) == [
        ["north", "ses-a", "F", "60", "Siemens"],
        ["north", "ses-b", "F", "61", "Siemens"],
        ["south", "ses-a", "", "60", "Siemens"],
        ["south", "ses-b", "", "61", "Siemens"],
    ]
    assert "1 column is left out of participants.tsv" in scan.notes[0]
    assert "Ann" not in frame.to_csv()
    for cell in frame[images + masks].to_numpy().flatten():
        assert np.array_equal(read_volume(cell, bids).values, CUBE)


def test_bids_sites(bids):
    assert set(manifest(bids, site="x")["site"]) == {"x"}
    assert set(manifest(bids, site_from="column")["site"]) == {"north", "south"}
    (bids / "participants.tsv").write_text("participant_id\tsite\nsub-01\tnorth\n")
    scan = scan_folder(bids, salt="salt", site_from="column")
    assert scan.counts()["(no site)"].rejected == {"participants.tsv tells no site": 14}
    assert set(scan.manifest["site"]) == {"north"}
    (bids / "participants.tsv").write_text("participant_id\tsex\nsub-01\tF\n")
    assert set(manifest(bids)["site"]) == {bids.name}
    with pytest.raises(DataError, match=r"P202 No participants.tsv has a column that tells the site"):
        manifest(bids, site_from="column")


def test_plain_bids_names_one_image_and_one_mask(tmp_path):
    nifti(tmp_path / "sub-1/anat/sub-1_T1w.nii")
    nifti(tmp_path / "derivatives/manual/sub-1/anat/sub-1_label-lesion_mask.nii")
    frame = manifest(tmp_path)
    assert list(frame.columns) == ["site", "subject", "image", "mask"]


def test_identifying_columns_are_left_out(tmp_path):
    nifti(tmp_path / "sub-1/anat/sub-1_T1w.nii")
    lines = ["participant_id\tage\tpatient_name\tscanned\tcode\tgroup"]
    lines += [f"sub-{n}\t{50 + n}\tAnn{n}\t2020-01-0{n}\tX{n}Y\tcontrol" for n in range(1, 7)]
    text(tmp_path / "participants.tsv", "\n".join(lines) + "\n")
    scan = scan_folder(tmp_path, salt="salt")
    assert list(scan.manifest.columns) == ["site", "subject", "image", "age", "group"]
    assert scan.notes[0].startswith("3 columns are left out")


def test_damaged_participants_table(tmp_path):
    nifti(tmp_path / "sub-1/anat/sub-1_T1w.nii")
    text(tmp_path / "participants.tsv", "a\tb\n1\t2\t3\n")
    scan = scan_folder(tmp_path, salt="salt")
    assert len(scan.manifest) == 1
    assert scan.notes[0] == "participants.tsv can't be read: its covariates and sites are missing."


# Writing, the command, privacy


def test_mistakes(tmp_path):
    with pytest.raises(DataError, match="P201 The folder 'nothing' can't be found"):
        scan_folder(tmp_path / "nothing", salt="s")
    with pytest.raises(DataError, match="has no DICOM or NIfTI file"):
        scan_folder(tmp_path, salt="s")
    nifti(tmp_path / "a.nii")
    with pytest.raises(DataError, match="P203 `--site` and `--site-from` were both given"):
        scan_folder(tmp_path, salt="s", site="x", site_from="folder")


def test_a_failed_scan_leaves_no_salt(tmp_path):
    result = CliRunner().invoke(app, ["data", "scan", str(tmp_path / "none"), "--out", str(tmp_path / "m.csv")])
    assert isinstance(result.exception, DataError)
    assert not list(tmp_path.iterdir())


def test_manifest_is_a_plain_table(bids, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "deep/manifest.csv"
    scan = scan_folder(bids, salt="salt")
    write_manifest(scan, out)
    again = pd.read_csv(out, dtype="str", keep_default_na=False)
    pd.testing.assert_frame_equal(again, scan.manifest)


def test_nothing_of_the_patient_is_seen(stack, dicom, patient, tmp_path, caplog):
    caplog.set_level("DEBUG")
    folder, out = tmp_path / "export", tmp_path / "out/manifest.csv"
    stack(folder / "one", CUBE, AFFINE, SeriesInstanceUID="1.1")
    inner(stack(folder / "gap", CUBE, AFFINE, SeriesInstanceUID="1.2")).unlink()
    bad = dicom(folder / "bad.dcm", CUBE[:, :, 0].copy(), Rows=900, SeriesDescription="Quixote head t1", Modality="US")
    for content in (bad.read_bytes()[:700], bad.read_bytes().replace(b"IS", b"ZZ")):
        (folder / f"{len(content)}.dcm").write_bytes(content)
    result = CliRunner().invoke(app, ["data", "scan", str(folder), "--out", str(out), "--site", "north"])
    assert result.exit_code == 0, result.output
    seen = result.output + result.stderr + caplog.text + out.read_text() + (out.with_suffix(".salt")).read_text()
    assert [text for text in (*patient, "1.2.3.4", "1.1\n") if text in seen] == []
    assert "one" in out.read_text()
    flat = re.sub(r"\s+", " ", result.output)
    assert "Rejected at north: " in flat
    assert "slices are missing (1)" in flat
    assert "must stay at this site" in flat


def test_one_patient_missing_from_participants(bids):
    text(bids / "participants.tsv", "participant_id\tsite\nsub-01\tnorth\n")
    scan = scan_folder(bids, salt="salt")
    assert set(scan.manifest["site"]) == {"north"}
    assert "N321" in {note.number for note in scan.notes}


def test_covariates_do_not_hide_images(tmp_path):
    for name in ("1", "2"):
        nifti(tmp_path / f"sub-{name}/anat/sub-{name}_T1w.nii")
    nifti(tmp_path / "sub-1/anat/sub-1_T2w.nii")
    text(tmp_path / "participants.tsv", "participant_id\tT2w\tage\nsub-1\tyes\t60\nsub-2\tno\t61\n")
    frame = manifest(tmp_path)
    assert sorted(cells(frame, "T2w", "T2w_covariate", "age")) == [
        ["", "no", "61"],
        ["sub-1/anat/sub-1_T2w.nii", "yes", "60"],
    ]


def test_a_derived_mask_without_the_only_visit(tmp_path):
    nifti(tmp_path / "sub-1/ses-a/anat/sub-1_ses-a_T1w.nii")
    nifti(tmp_path / "derivatives/manual/sub-1/sub-1_label-lesion_mask.nii")
    assert len(manifest(tmp_path)) == 1
