"""Phantom images as DICOM series, a file a slice, with headers like a scanner's and nothing of a real patient."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import PYDICOM_ROOT_UID, ExplicitVRLittleEndian, MRImageStorage, generate_uid

from polyclinic.data.phantom.phantom import PhantomSubject
from polyclinic.data.phantom.scanner import Scanner

#: From nibabel's axes (right, anterior, superior) to DICOM's (left, posterior, superior).
_TO_DICOM = np.array([-1.0, -1.0, 1.0])


def write_series(subject: PhantomSubject, scanner: Scanner, folder: Path, seed: int) -> None:
    """Write the image of a subject into ``folder``, which is made.

    The first array axis runs along the rows of a slice, the second along its columns, the third over slices. All
    unique identifiers follow from seed, subject and slice, under pydicom's root.
    """
    folder.mkdir(parents=True)
    volume = subject.image
    data = _header(subject, scanner, seed)
    across, down, through = (volume.affine[:3, :3] / np.array(volume.spacing) * _TO_DICOM[:, None]).T
    data.ImageOrientationPatient = _decimals([*across, *down])
    data.PixelSpacing = _decimals([volume.spacing[1], volume.spacing[0]])
    data.SliceThickness, data.SpacingBetweenSlices = (*_decimals([volume.spacing[2]]), *_decimals([volume.spacing[2]]))
    data.Columns, data.Rows = volume.values.shape[:2]
    slices = volume.values.astype("<u2")
    for number in range(slices.shape[2]):
        data.SOPInstanceUID = _uid(seed, subject.name, "slice", number)
        data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
        data.InstanceNumber = number + 1
        position = (volume.affine[:3, 3] + number * volume.affine[:3, 2]) * _TO_DICOM
        data.ImagePositionPatient = _decimals(position.tolist())
        data.SliceLocation = _decimals([float(position @ through)])[0]
        data.PixelData = np.ascontiguousarray(slices[:, :, number].T).tobytes()
        data.save_as(folder / f"IM{number + 1:04d}.dcm", enforce_file_format=True)


def _header(subject: PhantomSubject, scanner: Scanner, seed: int) -> FileDataset:
    """Everything that all slices share."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = MRImageStorage
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    data.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND"]
    data.SOPClassUID = MRImageStorage
    data.StudyInstanceUID = _uid(seed, subject.name, "study")
    data.SeriesInstanceUID = _uid(seed, subject.name, "series")
    data.FrameOfReferenceUID = _uid(seed, subject.name, "frame")
    data.PatientName, data.PatientID = f"PHANTOM^{subject.name.upper()}", subject.name
    data.PatientSex, data.PatientAge, data.PatientBirthDate = subject.sex, f"{int(subject.age):03d}Y", ""
    data.StudyDate = data.StudyTime = data.AccessionNumber = data.ReferringPhysicianName = data.StudyID = ""
    data.Modality, data.SeriesNumber, data.SeriesDescription = "MR", 1, "T1w phantom"
    data.Manufacturer = scanner.manufacturer
    data.ManufacturerModelName = str(scanner.about["model"])
    data.InstitutionName = subject.site
    data.MagneticFieldStrength = scanner.field_strength
    data.BodyPartExamined, data.PatientPosition = "BRAIN", "HFS"
    data.BurnedInAnnotation, data.ContentQualification = "NO", "RESEARCH"
    sequence = scanner.sequence
    data.ScanningSequence = ["GR", "IR"] if sequence.excitations else "GR"
    data.SequenceVariant, data.ScanOptions, data.MRAcquisitionType = "SP", "", "3D"
    data.FlipAngle, data.EchoTrainLength, data.EchoTime = sequence.flip_angle, 1, 3
    data.RepetitionTime = sequence.repetition_time or sequence.echo_spacing
    if sequence.excitations:
        data.InversionTime = sequence.inversion_time
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 0
    data.WindowCenter, data.WindowWidth = round(scanner.scale * 0.6), round(scanner.scale * 1.2)
    return data


def _uid(seed: int, *names: str | int) -> str:
    return str(generate_uid(PYDICOM_ROOT_UID, [str(seed), *map(str, names)]))


def _decimals(values: list[float]) -> list[str]:
    """Decimal strings of at most 16 characters, as DICOM wants them."""
    return [f"{value + 0.0:.8g}" for value in values]
