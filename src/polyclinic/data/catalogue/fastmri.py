"""fastMRI: raw data of scanners; the images that were reconstructed from all of it."""

from __future__ import annotations

import re
from typing import Any
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt
import pandas as pd

from polyclinic.data.catalogue.arrays import open_hdf5
from polyclinic.data.catalogue.convert import write_png
from polyclinic.data.catalogue.entry import Draft, Entry, Label, Request
from polyclinic.data.catalogue.layout import LayoutError, walk_files, what_is_there

_NAMESPACE = "{http://www.ismrm.org/ISMRMRD}"
#: The image from all coils, and from the one of the single-coil track.
_IMAGES = ("reconstruction_rss", "reconstruction_esc")
_PARTS = {"train": "train", "val": "validation", "test": "test"}
_SITE_COLUMNS = {"scanner": "scanner", "field": "field_strength", "acquisition": "acquisition"}


def read_scanner(header: bytes) -> tuple[str, str]:
    """Model of the scanner and field strength (such as ``3 T``) from an ISMRMRD header; empty where it has none."""
    if b"<!DOCTYPE" in header or b"<!ENTITY" in header:  # could make a small header a very large one
        return "", ""
    try:
        root = ElementTree.fromstring(header)  # noqa: S314 - without a document type there are no entities
    except ElementTree.ParseError:
        return "", ""
    system = f"{_NAMESPACE}acquisitionSystemInformation/{_NAMESPACE}"
    model = root.findtext(f"{system}systemModel", "").strip()
    try:
        field = round(2 * float(root.findtext(f"{system}systemFieldStrength_T", "")), 0) / 2  # 2.8936 is called 3
    except ValueError:
        return model, ""
    return model, f"{field:g} T"


def _middle(slices: int) -> range:
    """The middle half of the slices: those at the ends show little."""
    return range(slices // 4, max(slices - slices // 4, slices // 4 + 1))


def _grey(image: npt.NDArray[np.floating], largest: float) -> npt.NDArray[np.uint8]:
    return np.asarray(np.rint(np.clip(image / largest, 0, 1) * 255), dtype=np.uint8)


def _slices(request: Request, path: str) -> list[dict[str, str]]:
    """Write the slices of one file, and give a row for each; one row with a reason where there are none.

    Raises:
        OSError, ValueError: when the file is damaged.
    """
    folders = {name.lower() for name in path.split("/")[:-1]}
    common = {"split": next((part for name, part in _PARTS.items() if any(f.endswith(name) for f in folders)), "")}
    with open_hdf5(request.source / path) as file:
        name = next((name for name in _IMAGES if name in file), None)
        header = file["ismrmrd_header"][()] if "ismrmrd_header" in file else b""
        model, field = read_scanner(header if isinstance(header, bytes) else str(header).encode())
        common |= {
            "subject": str(file.attrs.get("patient_id", "")),
            "acquisition": str(file.attrs.get("acquisition", "")),
            "scanner": " ".join(filter(None, (model, field))),
            "field_strength": field,
        }
        if name is None:
            return [common | {"image": "", "reason": "no reconstructed image (test set)"}]
        volume = np.asarray(file[name], dtype=np.float64)
    if volume.ndim != 3 or not np.isfinite(volume).all() or volume.max() <= 0:
        raise ValueError("no images")
    whole = re.sub(r"\.h5$", "", path, flags=re.IGNORECASE)
    common["volume"] = whole.rsplit("/", 1)[-1]
    rows = []
    for number in _middle(len(volume)):
        # With the folders: names come again, and what is there already is not written again.
        target = f"images/{whole.replace('/', '_')}_{number:03}.png"
        write_png(request.out / target, _grey(volume[number], float(volume.max())))
        rows.append(common | {"image": f"out:{target}", "slice": str(number), "reason": ""})
    return rows


def _draft(request: Request) -> Draft:
    paths = walk_files(request.source, (".h5",))
    if not paths:
        raise LayoutError(f"No file1000001.h5 or the like was found; {what_is_there(request.source)}.")
    rows: list[dict[str, str]] = []
    for number, path in enumerate(paths):
        try:
            rows += _slices(request, path)
        except (OSError, ValueError, KeyError):
            rows.append({"image": "", "reason": "file is damaged"})
        request.progress(number + 1, len(paths))
    table = pd.DataFrame(rows).reindex(
        columns=["subject", "image", "acquisition", "scanner", "field_strength", "split", "volume", "slice", "reason"]
    )
    table = table.fillna("")
    # A file that does not name its patient is a patient of its own.
    unnamed = (table["subject"] == "") & (table["image"] != "")
    table.loc[unnamed, "subject"] = table["volume"]
    again = table.duplicated(["subject", "volume", "slice"]) & (table["reason"] == "")
    table.loc[again, "reason"] = "the same volume in another folder (from one coil and from several)"
    table = table.drop(columns=["volume", "slice"])
    table.insert(0, "site", table[_SITE_COLUMNS.get(request.sites_by, "scanner")])
    data: dict[str, Any] = {"size": [320, 320], "channels": "grey", "augmentation": []}
    if request.label == "image":
        data["undersampling"] = {"acceleration": 4, "center": 0.08}
    return Draft(table, "image", images=["image"], data=data)


ENTRY = Entry(
    name="fastmri",
    title="fastMRI (reconstruction of knees and brains)",
    about="Raw data (k-space) of MRI of the knee and the brain, with the images that were reconstructed from all of "
    "it. What is learnt is to reconstruct an image from part of its k-space, so that scans take less time.",
    modality="MRI (slices, reconstructed from complete k-space)",
    sites="Scanners of NYU Langone Health (model and field strength in the ISMRMRD header of each file), or the field "
    "strength, or the contrast (attribute `acquisition`).",
    subjects="Knee: 1,594 volumes; brain: 6,970. The training and validation parts have images.",
    access="https://fastmri.med.nyu.edu",
    licence="agreement",
    terms="NYU fastMRI data sharing agreement after an application: research and education, no passing on.",
    citation="Zbontar J et al. fastMRI: an open dataset and benchmarks for accelerated MRI. arXiv:1811.08839. Knoll F "
    "et al. Radiol Artif Intell 2020;2:e190007.",
    layout="""\
fastmri/
  singlecoil_train/file1000001.h5        kspace, reconstruction_esc, reconstruction_rss, ismrmrd_header;
                                         attributes acquisition (CORPD_FBK), patient_id
  multicoil_train/file_brain_AXT2_200_2000019.h5        kspace, reconstruction_rss, ismrmrd_header
  multicoil_val/..., multicoil_test/...  the test part has no images
""",
    labels={
        "image": Label("image", "the image, from a quarter of its k-space", task="reconstruction"),
        "acquisition": Label("acquisition", "the contrast: CORPD_FBK, CORPDFS_FBK, AXT1, AXT2, AXFLAIR, ..."),
    },
    sites_by={
        "scanner": "model and field strength of the scanner",
        "field": "field strength",
        "acquisition": "the contrast",
    },
    draft=_draft,
    assumed=(
        "The middle half of the slices of each volume is written as PNG of 8 bits next to the manifest, with the "
        "largest value of the volume as white. Raw data are not used: a study makes its k-space from these magnitude "
        "images, which is easier than what a scanner gives. It compares methods and is no benchmark of fastMRI.",
        "Files are HDF5: `pip install 'polyclinic[hdf5]'`.",
        "All volumes of a `patient_id` stay together; a file without one is a patient of its own. Of files of one name "
        "and patient in two folders (knees are given out from one coil and from several) the first counts.",
        "The names of the scanners in the headers could not be confirmed; they are taken as they stand there.",
    ),
)
