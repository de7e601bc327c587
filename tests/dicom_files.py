"""Makes DICOM series with known voxels and places."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

#: Must never be seen outside a DICOM file.
NAME, NUMBER, BIRTH = "Quixote^Alonso", "MRN-7731902", "19470923"


def make_dataset(pixels: np.ndarray, **elements: object) -> FileDataset:
    """A data set with pixels ``[Y, X]``, ``[F, Y, X]``, or bytes ``[Y, X, 3]``; an element that is None is left out."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    colour = pixels.shape[-1] == 3 and pixels.ndim > 2 and pixels.dtype == np.uint8
    shape = pixels.shape[:-1] if colour else pixels.shape
    bits = 8 * pixels.dtype.itemsize
    defaults = {
        "SOPClassUID": MRImageStorage, "SOPInstanceUID": generate_uid(), "Modality": "MR",
        "StudyInstanceUID": "1.2.3", "SeriesInstanceUID": "1.2.3.4", "Manufacturer": "SIEMENS",
        "ManufacturerModelName": "Prisma", "MagneticFieldStrength": "3", "PatientName": NAME, "PatientID": NUMBER,
        "PatientBirthDate": BIRTH, "SeriesDescription": "t1_mprage", "BodyPartExamined": "HEAD",
        "ImageType": ["ORIGINAL", "PRIMARY", "M"], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "ImagePositionPatient": [0, 0, 0], "PixelSpacing": [1, 1], "SliceThickness": "1", "InstanceNumber": 1,
        "SamplesPerPixel": 3 if colour else 1, "PhotometricInterpretation": "RGB" if colour else "MONOCHROME2",
        "Rows": shape[-2], "Columns": shape[-1], "BitsAllocated": bits, "BitsStored": bits, "HighBit": bits - 1,
        "PixelRepresentation": int(pixels.dtype.kind == "i"),
    }  # fmt: skip
    if colour:
        defaults["PlanarConfiguration"] = 0
    if len(shape) == 3:
        defaults["NumberOfFrames"] = shape[0]
    for keyword, value in (defaults | elements).items():
        if value is not None:
            setattr(data, keyword, value)
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = data.SOPClassUID, data.SOPInstanceUID
    data.PixelData = pixels.tobytes()
    data["PixelData"].VR = "OW" if bits == 16 else "OB"
    return data


def write_dicom(path: Path, pixels: np.ndarray, **elements: object) -> Path:
    """Write ``make_dataset(pixels, **elements)``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    make_dataset(pixels, **elements).save_as(path, enforce_file_format=True)
    return path


def write_stack(folder: Path, values: np.ndarray, affine: np.ndarray, **elements: object) -> list[Path]:
    """A file for each slice of ``values`` ``[X, Y, Z]`` or ``[X, Y, Z, T]`` with a RAS+ affine; slices in odd order."""
    lps = np.diag((-1.0, -1.0, 1.0, 1.0)) @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    row, column = lps[:3, 0] / spacing[0], lps[:3, 1] / spacing[1]
    volumes = values[..., None] if values.ndim == 3 else values
    files, number = [], 0
    for time in range(volumes.shape[3]):
        for z in np.random.default_rng(z_seed := volumes.shape[2]).permutation(z_seed).tolist():
            number += 1
            place = lps[:3, 3] + z * lps[:3, 2]
            files.append(
                write_dicom(
                    folder / f"im{number}.dcm",
                    np.ascontiguousarray(volumes[:, :, z, time].T),
                    **{
                        "ImageOrientationPatient": [f"{value:.9f}" for value in [*row, *column]],
                        "ImagePositionPatient": [f"{value:.7f}" for value in place],
                        "PixelSpacing": [f"{spacing[1]:.9f}", f"{spacing[0]:.9f}"],
                        "SliceThickness": f"{spacing[2]:.6f}",
                        "InstanceNumber": number,
                    }
                    | elements,
                )
            )
    return files


def write_enhanced(path: Path, frames: np.ndarray, places: list, **elements: object) -> Path:
    """An enhanced MR object: frames ``[F, Y, X]``; ``places`` gives each frame's position and time index."""
    data = make_dataset(
        frames,
        **{
            "SOPClassUID": "1.2.840.10008.5.1.4.1.1.4.1",
            "ImageOrientationPatient": None,
            "ImagePositionPatient": None,
            "PixelSpacing": None,
            "SliceThickness": None,
        }
        | {key: value for key, value in elements.items() if key != "slopes"},
    )
    measures, orientation, shared = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [2, 1.5], "3"
    orientation.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    data.SharedFunctionalGroupsSequence = [shared]
    groups = []
    for number, (position, time) in enumerate(places):
        group, place, content, transform = Dataset(), Dataset(), Dataset(), Dataset()
        place.ImagePositionPatient, content.TemporalPositionIndex = position, time
        group.PlanePositionSequence, group.FrameContentSequence = [place], [content]
        if "slopes" in elements:
            transform.RescaleSlope, transform.RescaleIntercept = elements["slopes"][number], "0"
            transform.RescaleType = "US"
            group.PixelValueTransformationSequence = [transform]
        groups.append(group)
    data.PerFrameFunctionalGroupsSequence = groups
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)
    return path
