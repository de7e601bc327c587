"""Predicted masks as DICOM SEG, read back by highdicom, pydicom and SimpleITK, which know nothing of Polyclinic."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
import pydicom
import pytest
import torch
from pydicom.uid import generate_uid
from typer.testing import CliRunner

from dicom_files import NAME, NUMBER, write_enhanced, write_stack
from polyclinic import Study
from polyclinic.cli import app
from polyclinic.data.readers.read import find_series, read_volume
from polyclinic.data.readers.volume import UnreadableError
from polyclinic.deployment import prediction
from polyclinic.deployment.dicom_seg import SegWriter, read_meanings
from polyclinic.deployment.inputs import open_table
from polyclinic.deployment.prediction import Predictor
from polyclinic.deployment.run import predict_into
from polyclinic.errors import ModelError, PolyclinicError
from polyclinic.study.final_model.description import Description
from polyclinic.study.final_model.fit import Wanted, fit_model
from polyclinic.study.final_model.folder import read_model

highdicom = pytest.importorskip("highdicom")
sitk = pytest.importorskip("SimpleITK")

LPS_TO_RAS = np.diag((-1.0, -1.0, 1.0, 1.0))
TURN = nibabel.eulerangles.euler2mat(0.3, -0.2, 0.4)
DIRECTIONS = {
    "axial": np.diag((-1.0, -1.0, 1.0)),
    "feet last": np.diag((-1.0, -1.0, -1.0)),
    "sagittal": np.array([[0, 0, 1.0], [-1, 0, 0], [0, -1, 0]]),
    "oblique": TURN @ np.diag((-1.0, -1.0, 1.0)),
    "tilted": np.array([[-1, 0, 0], [0, -1.0, np.sin(0.3)], [0, 0, np.cos(0.3)]]),
}
#: What a hospital's series has, and a SEG refers to.
SERIES = {
    "FrameOfReferenceUID": "1.2.3.9", "SeriesInstanceUID": "1.2.3.4", "SeriesNumber": 7, "AccessionNumber": "A17",
    "StudyDate": "20250102", "StudyTime": "101112", "StudyID": "S1", "PatientSex": "O",
}  # fmt: skip


def affine_of(direction: str, spacing: tuple[float, ...] = (0.9, 1.3, 2.5)) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = DIRECTIONS[direction] @ np.diag(spacing), (12.5, -30.0, 7.25)
    return affine


def description(*structures: str, **changes: Any) -> Description:
    """Of a model of volumes, as far as a SEG needs it."""
    data = {"table": "t.csv", "image": "image", "mask": "mask", "preprocessing": {"size": [8, 8, 8]}}
    made: dict[str, Any] = {
        "number": "abc123", "study": "A study", "method": "fedavg", "task": "segmentation", "threshold": 0.35,
        "classes": ["background", *structures], "data": data,
    }  # fmt: skip
    from polyclinic.data.spec import DataSpec

    return Description.model_construct(**{**made, "data": DataSpec(**data), **changes})


def written(folder: Path, mask: np.ndarray, affine: np.ndarray, writer: SegWriter, **elements: Any) -> Any:
    """The SEG of a series with the voxels of the mask."""
    values = (100 * mask + np.arange(mask.size).reshape(mask.shape) % 50).astype(np.int16)
    write_stack(folder / "series", values, affine, **{**SERIES, **elements})
    series = find_series(folder / "series")  # slices follow each other along their normal
    as_read = mask if np.allclose(series.affine, affine, atol=1e-5) else mask[:, :, ::-1]
    writer.write(folder / "mask.dcm", as_read, series)
    return highdicom.seg.segread(folder / "mask.dcm")


def by_positions(path: Path, shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    """By pydicom alone: each frame is put where its position says, in a volume with this affine to RAS."""
    data = pydicom.dcmread(path)
    pixels = data.pixel_array.reshape(-1, data.Rows, data.Columns)
    found = np.zeros(shape, dtype=np.uint8)
    shared = data.SharedFunctionalGroupsSequence[0]
    rows, columns = map(float, shared.PixelMeasuresSequence[0].PixelSpacing)
    directions = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, dtype=float).reshape(2, 3)
    lps = LPS_TO_RAS @ affine
    assert np.allclose(directions[0] * columns, lps[:3, 0], atol=1e-5)
    assert np.allclose(directions[1] * rows, lps[:3, 1], atol=1e-5)
    for frame, group in zip(pixels, data.PerFrameFunctionalGroupsSequence, strict=True):
        place = np.array(group.PlanePositionSequence[0].ImagePositionPatient, dtype=float)
        index = np.linalg.inv(lps) @ [*place, 1]
        assert np.allclose(index, np.rint(index), atol=1e-4)
        assert np.allclose(index[:2], 0, atol=1e-4)
        said = group if "SegmentIdentificationSequence" in group else shared
        number = said.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        found[:, :, round(index[2])][frame.T > 0] = number
    return found


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_every_voxel_lies_where_it_lies_in_the_series(tmp_path: Path, direction: str) -> None:
    mask = np.zeros((7, 9, 6), dtype=np.uint8)
    mask[1:4, 2:7, 1:4], mask[2, 3, 2], mask[6, 8, 5] = 1, 2, 2
    affine = affine_of(direction)
    seg = written(tmp_path, mask, affine, SegWriter(description("liver", "tumour")))
    assert by_positions(tmp_path / "mask.dcm", mask.shape, affine).tolist() == mask.tolist()
    files = sorted((tmp_path / "series").glob("*.dcm"))
    sources = {pydicom.dcmread(file).SOPInstanceUID: pydicom.dcmread(file) for file in files}
    series = find_series(tmp_path / "series")
    order = [column[0].header.sop_instance for column in series.planes]
    by_source = seg.get_pixels_by_source_instance(order, combine_segments=True)
    as_read = mask if np.allclose(series.affine, affine, atol=1e-5) else mask[:, :, ::-1]
    assert by_source.transpose(2, 1, 0).tolist() == as_read.tolist()
    referred = {
        image.ReferencedSOPInstanceUID for group in seg.PerFrameFunctionalGroupsSequence
        for derived in group.DerivationImageSequence for image in derived.SourceImageSequence
    }  # fmt: skip
    assert referred <= set(sources)
    if direction != "tilted":  # which is no volume to either
        volume = seg.get_volume(combine_segments=True)
        places = np.argwhere(volume.array > 0)
        assert len(places) == np.count_nonzero(mask)
        ours = np.linalg.inv(LPS_TO_RAS @ affine) @ volume.affine @ np.column_stack([places, np.ones(len(places))]).T
        found = np.rint(ours[:3]).astype(int)
        assert np.allclose(ours[:3], found, atol=1e-3)
        assert volume.array[tuple(places.T)].tolist() == mask[tuple(found)].tolist()


def test_it_belongs_to_the_patient_and_study_of_the_series(tmp_path: Path) -> None:
    (tmp_path / "codes.yaml").write_text(
        "tumour:\n  category: [49755003, SCT, Morphologically Altered Structure]\n"
        "  type: ['108369006', SCT, Neoplasm]\n  anatomy: ['10200004', SCT, Liver]\n"
    )
    meanings = read_meanings(tmp_path / "codes.yaml", ["liver", "tumour"])
    mask = np.zeros((5, 4, 3), dtype=np.uint8)
    mask[1:3, 1:3, 1] = 2
    seg = written(tmp_path, mask, affine_of("oblique"), SegWriter(description("liver", "tumour"), meanings))
    source = pydicom.dcmread(next((tmp_path / "series").glob("*.dcm")))
    for name in ("StudyInstanceUID", "FrameOfReferenceUID", "PatientName", "PatientID", "PatientBirthDate",
                 "AccessionNumber", "StudyDate", "StudyTime", "StudyID"):  # fmt: skip
        assert seg.get(name) == source.get(name), name
    assert (str(seg.PatientName), seg.PatientID) == (NAME, NUMBER)
    assert seg.SeriesInstanceUID != source.SeriesInstanceUID
    assert seg.ReferencedSeriesSequence[0].SeriesInstanceUID == source.SeriesInstanceUID
    assert seg.SeriesNumber == 9007
    liver, tumour = seg.SegmentSequence
    assert [liver.SegmentLabel, tumour.SegmentLabel] == ["liver", "tumour"]
    assert liver.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Tissue"
    kind, region = tumour.SegmentedPropertyTypeCodeSequence[0], tumour.AnatomicRegionSequence[0]
    assert (kind.CodeValue, kind.CodingSchemeDesignator, region.CodeMeaning) == ("108369006", "SCT", "Liver")
    algorithm = tumour.SegmentationAlgorithmIdentificationSequence[0]
    assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("A study: fedavg", "abc123")
    assert tumour.SegmentAlgorithmType == "AUTOMATIC"
    again = written(tmp_path, mask, affine_of("oblique"), SegWriter(description("liver", "tumour")))
    assert again.SOPInstanceUID != seg.SOPInstanceUID


def test_an_empty_mask_is_a_seg_with_empty_frames(tmp_path: Path) -> None:
    mask = np.zeros((5, 4, 3), dtype=np.uint8)
    seg = written(tmp_path, mask, affine_of("sagittal"), SegWriter(description("lesion")))
    assert seg.NumberOfFrames == 3
    assert not seg.pixel_array.any()
    assert by_positions(tmp_path / "mask.dcm", mask.shape, affine_of("sagittal")).tolist() == mask.tolist()


@pytest.mark.parametrize("shared", [True, False])
def test_a_file_of_many_frames(tmp_path: Path, shared: bool) -> None:
    """Of an enhanced object whose frames are in another order than their places."""
    frames = np.random.default_rng(0).integers(0, 900, (5, 6, 7)).astype(np.uint16)
    places = [([0.0, 0.0, 3.0 * place], 1) for place in (3, 0, 4, 1, 2)]
    write_enhanced(tmp_path / "image.dcm", frames, places, **SERIES)
    if not shared:  # as Siemens and Philips do
        data = pydicom.dcmread(tmp_path / "image.dcm")
        common = data.SharedFunctionalGroupsSequence[0]
        for group in data.PerFrameFunctionalGroupsSequence:
            group.PixelMeasuresSequence = common.PixelMeasuresSequence
            group.PlaneOrientationSequence = common.PlaneOrientationSequence
        data.SharedFunctionalGroupsSequence = [pydicom.Dataset()]
        data.save_as(tmp_path / "image.dcm")
    series, volume = find_series(tmp_path / "image.dcm"), read_volume("image.dcm", tmp_path)
    mask = np.zeros(volume.values.shape[:3], dtype=np.uint8)
    mask[2:4, 1:3, 0], mask[5, 5, 3] = 1, 1
    SegWriter(description("lesion")).write(tmp_path / "mask.dcm", mask, series)
    assert by_positions(tmp_path / "mask.dcm", mask.shape, volume.affine).tolist() == mask.tolist()


@pytest.mark.parametrize(
    ("elements", "words"),
    [
        ({"FrameOfReferenceUID": None}, "FrameOfReferenceUID"),
        ({"StudyInstanceUID": None}, "StudyInstanceUID"),
        ({"PatientSex": "unknown to all"}, "do not fit a SEG"),
        (
            {"PatientID": None, "PatientName": None, "AccessionNumber": None, "StudyID": None, "SeriesNumber": None},
            None,
        ),
        ({"StudyDate": None, "StudyTime": "", "SliceThickness": None}, None),
        ({"SpecificCharacterSet": "ISO_IR 192", "PatientName": "Müller^Jürgen"}, None),
    ],
)
def test_series_that_lack_something(tmp_path: Path, elements: dict[str, Any], words: str | None) -> None:
    mask = np.zeros((5, 4, 3), dtype=np.uint8)
    mask[1, 1, 1] = 1
    writer = SegWriter(description("lesion"))
    if words:
        with pytest.raises(UnreadableError, match=words) as caught:
            written(tmp_path, mask, affine_of("axial"), writer, **elements)
        assert "unknown" not in str(caught.value)
        assert not (tmp_path / "mask.dcm").exists()
        return
    seg = written(tmp_path, mask, affine_of("axial"), writer, **elements)
    assert by_positions(tmp_path / "mask.dcm", mask.shape, affine_of("axial")).tolist() == mask.tolist()
    assert str(seg.PatientName) == str(elements.get("PatientName", NAME) or "")


def test_orientations_that_differ_in_the_last_digit_are_one(tmp_path: Path) -> None:
    mask = np.zeros((5, 4, 3), dtype=np.uint8)
    mask[1:3, 1, 1:] = 1
    affine = affine_of("oblique")
    write_stack(tmp_path / "series", mask.astype(np.int16) * 100 + np.arange(3, dtype=np.int16), affine, **SERIES)
    for number, file in enumerate((tmp_path / "series").glob("*.dcm")):
        data = pydicom.dcmread(file)
        data.ImageOrientationPatient = [f"{float(one) + 1e-7 * number:.9f}" for one in data.ImageOrientationPatient]
        data.save_as(file)
    series = find_series(tmp_path / "series")
    SegWriter(description("lesion")).write(tmp_path / "mask.dcm", mask, series)
    assert by_positions(tmp_path / "mask.dcm", mask.shape, series.affine).tolist() == mask.tolist()


def test_slices_of_several_frames_of_reference_are_refused(tmp_path: Path) -> None:
    mask = np.ones((5, 4, 3), dtype=np.uint8)
    write_stack(tmp_path / "series", mask.astype(np.int16) * np.arange(3, dtype=np.int16), affine_of("axial"), **SERIES)
    file = next((tmp_path / "series").glob("*.dcm"))
    data = pydicom.dcmread(file)
    data.FrameOfReferenceUID = generate_uid()
    data.save_as(file)
    with pytest.raises(UnreadableError, match="several frames of reference"):
        SegWriter(description("lesion")).write(tmp_path / "mask.dcm", mask, find_series(tmp_path / "series"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("tumor: {category: [1, SCT, a], type: [1, SCT, a]}", "tumor"),
        ("tumour: {category: [1, SCT, a]}", "category"),
        ("tumour: {category: [1, SCT], type: [1, SCT, a]}", "three texts"),
        ("tumour: {category: [1, SCT, a], type: [12345678901234567, SCT, a]}", "three texts"),
        ("tumour: [1, SCT, a]", "category"),
        ("tumour: {category: [1, SCT, a], type: [1, SCT, a], colour: red}", "category"),
    ],
)
def test_codes_that_are_none_are_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "codes.yaml").write_text(text)
    with pytest.raises(ModelError, match=words):
        read_meanings(tmp_path / "codes.yaml", ["tumour"])


def test_what_gives_no_masks_of_volumes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from polyclinic.data.spec import DataSpec

    pictures = DataSpec(table="t.csv", image="image", mask="mask", size=(8, 8))
    for wrong in (description("lesion", task="classification"), description("lesion", data=pictures)):
        with pytest.raises(ModelError, match="masks of volumes"):
            SegWriter(wrong)
    with pytest.raises(ModelError, match="label of a segment"):
        SegWriter(description("x" * 65))
    monkeypatch.setattr("polyclinic.deployment.dicom_seg.find_spec", lambda name: None)
    with pytest.raises(PolyclinicError, match=r"highdicom") as caught:
        SegWriter(description("lesion"))
    assert "polyclinic[dicom-seg]" in str(caught.value.hint)


# From a folder of series to masks, as a user does it ------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    """A model, and a folder with series of boxes of all directions; with the boxes, as each series is read."""
    folder, boxes = tmp_path_factory.mktemp("series"), dict[str, np.ndarray]()
    rows = []
    for number, direction in enumerate(DIRECTIONS):
        box = np.zeros((14, 12, 9), dtype=np.int16)
        box[3 : 9 + number % 2, 4:9, 2:7] = 1
        box[4:7, 5:7, 3:5] = 2
        affine = affine_of(direction, (1.0, 1.3, 2.0))
        uids = {
            name: f"1.2.{number + 3}.{place}" for place, name in enumerate(("StudyInstanceUID", "SeriesInstanceUID"))
        }
        write_stack(folder / "new" / direction, box * 200 + 10, affine, **{**SERIES, **uids})
        series = find_series(folder / "new" / direction)
        boxes[direction] = box if np.allclose(series.affine, affine, atol=1e-4) else box[:, :, ::-1]
        nibabel.save(nibabel.Nifti1Image(boxes[direction], series.affine), folder / f"{direction}.nii.gz")
        rows.append(f"{'AB'[number % 2]},new/{direction},{direction}.nii.gz")
    (folder / "manifest.csv").write_text("\n".join(["site,image,mask", *rows]) + "\n")
    study = {
        "task": "segmentation", "methods": ["fedavg"], "engine": {"threads": 1},
        "data": {"table": "manifest.csv", "site": "site", "image": "image", "mask": "mask",
                 "mask_classes": {"rim": 1, "core": 2},
                 "preprocessing": {"spacing": 1, "size": [24, 24, 24], "intensity": "none"}},
        "model": {"unet": {"channels": [4, 8], "norm": "instance"}}, "training": {"rounds": 1, "batch_size": 2},
    }  # fmt: skip
    fit_model(Study.of(study, folder), folder / "model", Wanted(rounds=1))
    return folder, boxes


@pytest.fixture
def perfect(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that says of each voxel what the image does: 10, 210, 410."""

    def told(ready: Any, vectors: Any, index: torch.Tensor) -> tuple[torch.Tensor, None]:
        images = ready.dataset.batch(index)[0]
        return torch.cat([1 / (1 + (images - level).abs()) for level in (10.0, 210.0, 410.0)], dim=1), None

    monkeypatch.setattr(prediction.evaluation, "probabilities", told)


def by_simpleitk(folder: Path) -> Any:
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return reader.Execute()


@pytest.mark.usefixtures("perfect")
def test_masks_lie_on_series_as_simpleitk_reads_them(made: tuple[Path, dict[str, np.ndarray]], tmp_path: Path) -> None:
    """NIfTI and SEG of series with shuffled slices, of all directions: the same voxels, in the same places."""
    folder, boxes = made
    tables = {}
    for form in ("nifti", "dicom-seg"):
        arguments = ["predict", folder / "model", "--images", folder / "new", "--out", tmp_path / form, "--masks", form]
        assert CliRunner().invoke(app, [str(one) for one in arguments]).exit_code == 0
        tables[form] = pd.read_csv(tmp_path / form / "predictions.csv")
    assert not [note for note in json.loads((tmp_path / "dicom-seg" / "prediction.json").read_text())["notes"]
                if note["number"] == "N908"]  # fmt: skip
    assert tables["nifti"].drop(columns="mask").equals(tables["dicom-seg"].drop(columns="mask"))
    for case, name, seg_name in zip(tables["nifti"]["case"], tables["nifti"]["mask"], tables["dicom-seg"]["mask"],
                                    strict=True):  # fmt: skip
        mask, image = sitk.ReadImage(str(tmp_path / "nifti" / name)), by_simpleitk(folder / "new" / case)
        found = sitk.GetArrayFromImage(mask)
        written = nibabel.load(tmp_path / "nifti" / name)
        values = np.asarray(written.dataobj)
        assert by_positions(tmp_path / "dicom-seg" / seg_name, values.shape, written.affine).tolist() == values.tolist()
        truth = boxes[case]
        for structure in (1, 2):
            both = np.count_nonzero((values == structure) & (truth == structure))
            assert 2 * both / (np.count_nonzero(values == structure) + np.count_nonzero(truth == structure)) > 0.75
        if case == "tilted":  # no image of SimpleITK has axes like these
            continue
        assert mask.GetSize() == image.GetSize()
        for what in ("Spacing", "Origin", "Direction"):
            assert np.allclose(getattr(mask, f"Get{what}")(), getattr(image, f"Get{what}")(), atol=1e-4), what
        grey = sitk.GetArrayFromImage(image)
        assert grey[found == 0].mean() < 60 < grey[found == 1].mean() < grey[found == 2].mean()
        assert values.tolist() == found.transpose(2, 1, 0).tolist()


@pytest.mark.usefixtures("perfect")
def test_images_that_no_seg_can_refer_to_get_nifti_and_a_note(
    made: tuple[Path, dict[str, np.ndarray]], tmp_path: Path
) -> None:
    folder, _ = made
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "axial").symlink_to(folder / "new" / "axial")
    nibabel.save(nibabel.load(folder / "axial.nii.gz"), tmp_path / "new" / "other.nii.gz")
    files = write_stack(tmp_path / "new" / "lost", np.arange(14 * 12 * 9, dtype=np.int16).reshape(14, 12, 9) % 430,
                        affine_of("axial", (1.0, 1.3, 2.0)), **{**SERIES, "FrameOfReferenceUID": None})  # fmt: skip
    assert len(files) == 9
    manifest = tmp_path / "manifest.csv"
    manifest.write_text("image\nnew/axial\nnew/other.nii.gz\nnew/lost\n")
    predictor = Predictor(read_model(folder / "model"))
    cases = open_table(predictor.description, manifest, None)
    done = predict_into(tmp_path / "out", predictor, cases, seg=SegWriter(predictor.description))
    assert [name.split(".", 1)[1] for name in done.predictions["mask"]] == ["dcm", "nii.gz", "nii.gz"]
    (note,) = [note for note in done.notes if note.number == "N908"]
    assert note.startswith("2 of 3 masks")
    assert "FrameOfReferenceUID" in note
    with pytest.raises(PolyclinicError, match="dicom_seg"):
        predict_into(tmp_path / "out", predictor, cases, resume=True)
    arguments = ["predict", folder / "model", "--images", manifest, "--out", tmp_path / "no", "--segments", manifest]
    assert CliRunner().invoke(app, [str(one) for one in arguments]).exit_code == 2
