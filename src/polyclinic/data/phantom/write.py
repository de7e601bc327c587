"""A folder of phantoms: images as BIDS, NIfTI or DICOM, tables, atlas and study files."""

from __future__ import annotations

import errno
import json
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import nibabel
import numpy as np
import pandas as pd

from polyclinic.data.phantom.dicom import write_series
from polyclinic.data.phantom.phantom import Phantom, PhantomSubject, atlas
from polyclinic.data.phantom.scanner import Scanner
from polyclinic.data.phantom.studies import image_studies, table_studies
from polyclinic.data.phantom.template import load_template, region_names
from polyclinic.data.readers.volume import Volume
from polyclinic.errors import ResultsError

Form = Literal["bids", "nifti", "dicom"]
FORMS: tuple[Form, ...] = ("bids", "nifti", "dicom")
#: From this many subjects on a second process saves more time than its start costs.
PROCESSES_FROM = 24
#: More processes gain little: writing files becomes the bottleneck.
MOST_PROCESSES = 4
#: Files beside the BIDS data set, which its validator is to ignore.
_NOT_BIDS = ("manifest.csv", "regions.csv", "truth.csv", "scanners.csv", "atlas.*", "study-*.yaml", "maps")


@dataclass(frozen=True)
class Wanted:
    """What to write for each subject.

    Attributes:
        form: of the images; None writes tables alone.
        maps: also write each subject's grey-matter map in MNI space.
    """

    form: Form | None
    maps: bool = False


def write_phantom(
    phantom: Phantom,
    subjects: int,
    out: Path,
    wanted: Wanted,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write phantoms of all sites into a folder.

    Written are ``manifest.csv`` (with images or maps), ``regions.csv`` (grey matter of 90 regions as measured in the
    images), ``truth.csv`` (the same from the true tissues), ``scanners.csv``, ``atlas.nii.gz`` with ``atlas.csv``, and
    study files.

    Args:
        phantom: the source.
        subjects: number of people at each site.
        out: folder to write into; it is made, and must be empty if it exists.
        wanted: form of the images.
        progress: called with the number of subjects done and the number of all, after each.

    Returns:
        the manifest, or the table of regions where no images are asked for.

    Raises:
        DataError: P503 if nilearn is not installed.
        ResultsError: P501 if ``out`` holds files already or can't be written, P502 if the disk is full.
    """
    _make(out)
    load_template(phantom.spacing)  # what is wrong with it is told before processes start
    try:
        return _write(phantom, subjects, out, wanted, progress)
    except OSError as error:
        raise _write_error(out, error) from error


def _write(
    phantom: Phantom, subjects: int, out: Path, wanted: Wanted, progress: Callable[[int, int], None] | None
) -> Path:
    jobs = [(site, number) for site in range(len(phantom.sites)) for number in range(subjects)]
    rows = []
    for row in _rows(phantom, out, wanted, jobs):
        rows.append(row)
        if progress is not None:
            progress(len(rows), len(jobs))
    people = [row["person"] for row in rows]
    for name in ("regions", "truth"):
        table = pd.DataFrame([person | row[name] for person, row in zip(people, rows, strict=True)])
        table.round(3).to_csv(out / f"{name}.csv", index=False, lineterminator="\n")
    _write_scanners(phantom, out)
    _write_atlas(out)
    studies = table_studies()
    if wanted.form is not None:
        studies |= image_studies(phantom.spacing)
    if wanted.form is not None or wanted.maps:
        files = pd.DataFrame([_manifest_row(row) for row in rows])
        files.to_csv(out / "manifest.csv", index=False, lineterminator="\n")
    if wanted.form == "bids":
        _write_bids(out, people)
    for name, content in studies.items():
        (out / name).write_text(content, encoding="utf-8")
    return out / ("regions.csv" if wanted.form is None else "manifest.csv")


def _make(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        taken = any(out.iterdir())
    except OSError as error:
        raise ResultsError("P501", f"The folder {out} can't be used: {error.strerror}.", "Choose another.") from None
    if taken:
        raise ResultsError("P501", f"The folder {out} holds files already.", "Choose another with --out, or empty it.")


def _write_error(out: Path, error: OSError) -> ResultsError:
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        hint = "Free some space, empty the folder and run the command again; --table-only needs little."
        return ResultsError("P502", f"The disk is full: not all phantoms could be written to {out}.", hint)
    why = error.strerror or type(error).__name__
    return ResultsError("P501", f"The folder {out} can't be written: {why}.", "Choose another with --out.")


def _rows(phantom: Phantom, out: Path, wanted: Wanted, jobs: list[tuple[int, int]]) -> Iterator[dict[str, Any]]:
    """What became of each subject, in order; in several processes where that is quicker."""
    processes = min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1, MOST_PROCESSES)
    if len(jobs) < PROCESSES_FROM or processes == 1:
        _start(phantom, out, wanted)
        yield from map(_write_subject, jobs)
        return
    with ProcessPoolExecutor(processes, get_context("spawn"), _start_process, (phantom, out, wanted)) as pool:
        yield from pool.map(_write_subject, jobs, chunksize=4)


_work: dict[str, Any] = {}


def _start(phantom: Phantom, out: Path, wanted: Wanted) -> None:
    """Give a process its work."""
    _work.update(phantom=phantom, out=out, wanted=wanted)


def _start_process(phantom: Phantom, out: Path, wanted: Wanted) -> None:
    """Give a process of its own its work; an interrupt is the main process's affair."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _start(phantom, out, wanted)


def _write_subject(job: tuple[int, int]) -> dict[str, Any]:
    """Make and write one subject; gives its rows of the tables."""
    phantom, out, wanted = _work["phantom"], _work["out"], _work["wanted"]
    site, number = job
    subject: PhantomSubject = phantom.subject(site, number)
    files: dict[str, str] = {}
    if wanted.form is not None:
        files = _write_images(subject, phantom.scanners[site], out, wanted.form, phantom.seed)
    if wanted.maps:
        files["map"] = f"maps/{subject.name}_grey.nii.gz"
        _write_nifti(subject.grey_map(), out / files["map"], "mni")
    person = {
        "site": subject.site,
        "subject": subject.name,
        "diagnosis": subject.diagnosis,
        "age": subject.age,
        "sex": subject.sex,
        "brain_volume": round(subject.brain_volume, 3),
    }
    truth = {"ventricle_volume": subject.ventricle_volume} | subject.truth
    return {"person": person, "files": files, "regions": subject.regions, "truth": truth}


def _manifest_row(row: dict[str, Any]) -> dict[str, Any]:
    person, files = row["person"], row["files"]
    return {
        "site": person["site"],
        "subject": person["subject"],
        **files,
        **{name: person[name] for name in ("diagnosis", "age", "sex")},
    }


def _write_images(subject: PhantomSubject, scanner: Scanner, out: Path, form: Form, seed: int) -> dict[str, str]:
    """Write image and masks; gives the manifest's columns with their paths."""
    name = subject.name
    if form == "bids":
        anat = f"sub-{name}/anat/sub-{name}"
        files = {
            "image": f"{anat}_T1w.nii.gz",
            "mask": f"derivatives/phantom/{anat}_dseg.nii.gz",
            "hippocampus": f"derivatives/phantom/{anat}_label-hippocampus_mask.nii.gz",
        }
    else:
        files = {
            "image": f"images/{subject.site}/{name}" + ("_T1w.nii.gz" if form == "nifti" else ""),
            "mask": f"masks/{subject.site}/{name}_tissue.nii.gz",
            "hippocampus": f"masks/{subject.site}/{name}_hippocampus.nii.gz",
        }
    if form == "dicom":
        write_series(subject, scanner, out / files["image"], seed)
    else:
        _write_nifti(subject.image, out / files["image"])
    _write_nifti(subject.tissue, out / files["mask"])
    _write_nifti(subject.hippocampus, out / files["hippocampus"])
    if form == "bids":
        sidecar = out / files["image"].replace(".nii.gz", ".json")
        sidecar.write_text(json.dumps(_sidecar(scanner), indent=2) + "\n", encoding="utf-8")
    return files


def _sidecar(scanner: Scanner) -> dict[str, object]:
    sequence = scanner.sequence
    found: dict[str, object] = {
        "Modality": "MR",
        "Manufacturer": scanner.manufacturer,
        "ManufacturersModelName": scanner.about["model"],
        "MagneticFieldStrength": scanner.field_strength,
        "FlipAngle": sequence.flip_angle,
        "RepetitionTime": (sequence.repetition_time or sequence.echo_spacing) / 1000,
        "SkullStripped": True,
    }
    if sequence.excitations:
        found["InversionTime"] = sequence.inversion_time / 1000
    return found


def _write_nifti(volume: Volume, path: Path, space: Literal["scanner", "mni"] = "scanner") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(volume.values, volume.affine)
    image.set_sform(volume.affine, space)
    image.set_qform(volume.affine, space)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)


def _write_scanners(phantom: Phantom, out: Path) -> None:
    rows = []
    for site, scanner in zip(phantom.sites, phantom.scanners, strict=True):
        row = {"site": site}
        for name, value in asdict(scanner).items():
            row[name] = json.dumps(value) if isinstance(value, dict | tuple | list) else value
        rows.append(row)
    pd.DataFrame(rows).to_csv(out / "scanners.csv", index=False, lineterminator="\n")


def _write_atlas(out: Path) -> None:
    volume = atlas()
    _write_nifti(volume, out / "atlas.nii.gz", "mni")
    rows = []
    for number, name in enumerate(region_names(), 1):
        middle = np.argwhere(volume.values == number).mean(axis=0) @ volume.affine[:3, :3] + volume.affine[:3, 3]
        rows.append((number, name, *np.round(middle, 1)))
    table = pd.DataFrame(rows, columns=["label", "name", "x", "y", "z"])
    table.to_csv(out / "atlas.csv", index=False, lineterminator="\n")


def _write_bids(out: Path, people: list[dict[str, Any]]) -> None:
    """The files that make the folder a BIDS data set."""

    def write(path: str, content: Mapping[str, object]) -> None:
        (out / path).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    about = {"Name": "Polyclinic phantoms", "BIDSVersion": "1.9.0", "GeneratedBy": [{"Name": "polyclinic phantom"}]}
    write("dataset_description.json", about | {"DatasetType": "raw"})
    write("derivatives/phantom/dataset_description.json", about | {"DatasetType": "derivative"})
    write(
        "participants.json",
        {
            "site": {"Description": "where the person was scanned"},
            "age": {"Description": "age", "Units": "years"},
            "sex": {"Description": "sex", "Levels": {"F": "female", "M": "male"}},
            "diagnosis": {"Description": "made with or without disease", "Levels": {"control": "no", "disease": "yes"}},
        },
    )
    table = pd.DataFrame(people)
    table.insert(0, "participant_id", "sub-" + table["subject"])
    columns = ["participant_id", "site", "age", "sex", "diagnosis"]
    table[columns].to_csv(out / "participants.tsv", sep="\t", index=False, lineterminator="\n")
    levels = "index\tname\tabbreviation\n1\tcerebrospinal fluid\tCSF\n2\tgrey matter\tGM\n3\twhite matter\tWM\n"
    (out / "derivatives" / "phantom" / "dseg.tsv").write_text(levels, encoding="utf-8")
    (out / "README").write_text(
        "Brain images made by `polyclinic phantom`: no real people. Site, diagnosis, age and sex are in "
        "participants.tsv, true tissues in derivatives/phantom.\n",
        encoding="utf-8",
    )
    (out / ".bidsignore").write_text("\n".join(_NOT_BIDS) + "\n", encoding="utf-8")
