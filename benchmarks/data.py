"""How fast data is found and read. Numbers are rates. Run it on a machine that does nothing else:

python benchmarks/data.py [NAME ...]
"""

from __future__ import annotations

import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from pydantic import TypeAdapter
from pydicom.dataset import Dataset as Header
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage

from polyclinic.data.cases import Counts, SiteData
from polyclinic.data.dataset import Dataset
from polyclinic.data.readers.scan import scan_folder
from polyclinic.data.scaling import Scaler
from polyclinic.data.spec import DataSpec
from polyclinic.data.volumes.cache import Cache
from polyclinic.data.volumes.prepare import VolumeFiles, prepare_volumes
from polyclinic.data.volumes.store import Volumes

SERIES, SLICES = 100, 100


def slice_template() -> bytes:
    """A 128 x 128 MR slice whose header has, like those of scanners, sequences and hundreds of elements.

    Runs of six equal digits, and <contrast>, stand for what differs from file to file.
    """
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = MRImageStorage, "1.2.999999.888888"
    data.StudyInstanceUID, data.SeriesInstanceUID = "1.3.777777", "1.4.999999"
    data.PatientName, data.PatientID, data.Modality = "Benchmark^Patient", "B777777", "MR"
    data.Manufacturer, data.ManufacturerModelName, data.MagneticFieldStrength = "SIEMENS", "Prisma", "3"
    data.SeriesDescription, data.ImageType = "<contrast>", ["ORIGINAL", "M"]
    data.ImageOrientationPatient, data.ImagePositionPatient = [1, 0, 0, 0, 1, 0], ["-64", "-64", "888888"]
    data.PixelSpacing, data.SliceThickness, data.InstanceNumber = [1, 1], "1", "888888"
    data.EchoTime, data.EchoNumbers = "2.5", 1
    data.Rows = data.Columns = 128
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PixelRepresentation = 1, "MONOCHROME2", 0
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, 12, 11
    reference = Header()
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = MRImageStorage, "1.2.3"
    data.ReferencedImageSequence = [reference] * 3
    for number in range(200):
        data.add_new((0x0051, 0x1000 + number), "LO", "value of a private element")
    data.private_block(0x0029, "SIEMENS CSA HEADER", create=True).add_new(0x10, "OB", bytes(11_548))
    data.PixelData = np.random.default_rng(0).integers(0, 4096, (128, 128), dtype=np.uint16).tobytes()
    data["PixelData"].VR = "OW"
    file = BytesIO()
    data.save_as(file, enforce_file_format=True)
    return file.getvalue()


def write_export(folder: Path) -> None:
    """100 series of 100 slices, four series a patient, in a folder each."""
    template = slice_template()
    for series in range(SERIES):
        home = folder / f"{series // 4:03}" / f"{series:03}"
        home.mkdir(parents=True)
        one = template.replace(b"999999", b"%d" % (100_000 + series)).replace(
            b"777777", b"%d" % (100_000 + series // 4)
        )
        one = one.replace(b"<contrast>", (b"t1_mprage ", b"t2_tse_cor", b"flair_tra ", b"dwi_b1000 ")[series % 4])
        for z in range(SLICES):
            (home / f"{z}.dcm").write_bytes(one.replace(b"888888", b"%d" % (100_000 + z)))


def scan() -> None:
    """Headers of 10,000 DICOM slices: what `polyclinic data scan` does with them, without the start of Python."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_export(folder)
        began, used = time.perf_counter(), time.process_time()
        found = scan_folder(folder, salt="benchmark")
        seconds, busy = time.perf_counter() - began, time.process_time() - used
    assert len(found.manifest) == SERIES // 4
    assert found.manifest.notna().all(axis=None)
    files = SERIES * SLICES
    print(
        f"scan: {files / seconds:.0f} DICOM files a second (goal 1,000); {files / busy:.0f} a second of processor time"
    )


def check() -> None:
    """What knowing files by their content adds to opening a study: all volumes are hashed, then read and prepared."""
    cases, shape = 12, (160, 192, 160)
    source = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for case in range(cases):
            image = nib.Nifti1Image(source.integers(0, 4000, shape).astype(np.int16), np.eye(4))
            nib.save(image, folder / f"{case}.nii.gz")
        spec = TypeAdapter(DataSpec).validate_python({"image": "image", "preprocessing": {"size": [96, 96, 96]}})
        files = VolumeFiles([[f"{case}.nii.gz"] for case in range(cases)], None, [folder] * cases)

        def hashing() -> None:
            cache = Cache(folder / "unused", {})
            for case in range(cases):
                cache.key([[folder / f"{case}.nii.gz"]], [""])

        def preparing() -> None:
            shutil.rmtree(folder / "cache", ignore_errors=True)
            prepare_volumes(files, spec, folder / "cache")

        times: dict[Callable[[], None], list[float]] = {hashing: [], preparing: []}
        for _ in range(5):
            for function, found in times.items():
                began = time.perf_counter()
                function()
                found.append(time.perf_counter() - began)
    hashed, prepared = (statistics.median(found) for found in times.values())
    share, size = 100 * hashed / prepared, np.prod(shape) * 2e-6
    print(f"check: hashing takes {share:.1f} % of preparing {cases} volumes of {size:.0f} MB (goal 10 %)")


def epoch() -> None:
    """An epoch over prepared volumes from the cache on disk against one over tensors in memory, both in batches."""
    cases, shape, batch = 60, (1, 96, 112, 96), 4
    source = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        files = [Path(name) / f"{case}.npy" for case in range(cases)]
        for file in files:
            np.save(file, source.normal(size=shape).astype(np.float16))
        volumes = Volumes(files, [{}] * cases)
        names = [str(case) for case in range(cases)]
        labels = torch.zeros(cases, dtype=torch.int64)
        data = SiteData("site", volumes, labels, names, names, None, Counts(cases, cases))
        cached = Dataset(data, Scaler.identity(1))
        memory = torch.stack([volumes[case] for case in range(cases)]).float()
        order = torch.randperm(cases)

        def from_cache() -> None:
            for index in order.split(batch):
                cached.batch(index)[0].sum()

        def from_memory() -> None:
            for index in order.split(batch):
                memory[index].sum()

        times: dict[Callable[[], None], list[float]] = {from_cache: [], from_memory: []}
        for _ in range(9):
            for function, found in times.items():
                began = time.perf_counter()
                function()
                found.append(time.perf_counter() - began)
    ours, best = (statistics.median(times[function]) for function in (from_cache, from_memory))
    print(
        f"epoch: {1000 * ours:.0f} ms from the cache, {1000 * best:.0f} ms from memory: "
        f"ratio {ours / best:.2f} (goal 1.10)"
    )


BENCHMARKS: dict[str, Callable[[], None]] = {"scan": scan, "check": check, "epoch": epoch}


def main(names: list[str]) -> None:
    """Run the named benchmarks, or all."""
    unknown = [name for name in names if name not in BENCHMARKS]
    if unknown:
        sys.exit(f"There is no benchmark {unknown[0]!r}; there are: {', '.join(BENCHMARKS)}.")
    for name in names or BENCHMARKS:
        BENCHMARKS[name]()


if __name__ == "__main__":
    main(sys.argv[1:])
