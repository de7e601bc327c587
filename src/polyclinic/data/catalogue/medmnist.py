"""MedMNIST: small standard images in one .npz file a set, without sites."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
import pandas as pd

from polyclinic.data.catalogue.convert import write_nifti, write_png
from polyclinic.data.catalogue.entry import Draft, Entry, Label, Request
from polyclinic.data.catalogue.layout import LayoutError, what_is_there
from polyclinic.data.catalogue.studies import grid

_PARTS = {"train": "train", "val": "validation", "test": "test"}
_ORGANS = ("bladder", "femur-left", "femur-right", "heart", "kidney-left", "kidney-right", "liver", "lung-left",
           "lung-right", "pancreas", "spleen")  # fmt: skip
FINDINGS = ("atelectasis", "cardiomegaly", "effusion", "infiltration", "mass", "nodule", "pneumonia", "pneumothorax",
            "consolidation", "edema", "emphysema", "fibrosis", "pleural", "hernia")  # fmt: skip
#: Classes of each set in the order of their numbers, as the package medmnist names them.
CLASSES: dict[str, tuple[str, ...]] = {
    "pathmnist": ("adipose", "background", "debris", "lymphocytes", "mucus", "smooth muscle", "normal colon mucosa",
                  "cancer-associated stroma", "colorectal adenocarcinoma epithelium"),
    "dermamnist": ("actinic keratoses", "basal cell carcinoma", "benign keratosis", "dermatofibroma", "melanoma",
                   "melanocytic nevi", "vascular lesions"),
    "octmnist": ("choroidal neovascularization", "diabetic macular edema", "drusen", "normal"),
    "pneumoniamnist": ("normal", "pneumonia"),
    "retinamnist": ("grade 0", "grade 1", "grade 2", "grade 3", "grade 4"),
    "breastmnist": ("malignant", "normal or benign"),
    "bloodmnist": ("basophil", "eosinophil", "erythroblast", "immature granulocyte", "lymphocyte", "monocyte",
                   "neutrophil", "platelet"),
    "tissuemnist": ("collecting duct or connecting tubule", "distal convoluted tubule", "glomerular endothelial cells",
                    "interstitial endothelial cells", "leukocytes", "podocytes", "proximal tubule segments",
                    "thick ascending limb"),
    "organamnist": _ORGANS,
    "organcmnist": _ORGANS,
    "organsmnist": _ORGANS,
    "organmnist3d": ("liver", "kidney-right", "kidney-left", "femur-right", "femur-left", "bladder", "heart",
                     "lung-right", "lung-left", "spleen", "pancreas"),
    "nodulemnist3d": ("benign", "malignant"),
    "adrenalmnist3d": ("normal", "hyperplasia"),
    "fracturemnist3d": ("buckle", "nondisplaced", "displaced"),
    "vesselmnist3d": ("vessel", "aneurysm"),
    "synapsemnist3d": ("inhibitory", "excitatory"),
}  # fmt: skip


class _Archive:
    """Arrays of a ``.npz`` file, read an image at a time: sets of 224 x 224 pixels are larger than memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = zipfile.ZipFile(path)
        except (OSError, zipfile.BadZipFile):
            raise LayoutError(f"{path.name} is no .npz file that can be read; download it again.") from None
        self.names = {name.removesuffix(".npy") for name in self._file.namelist()}

    def shape(self, name: str) -> tuple[int, ...]:
        with self._file.open(f"{name}.npy") as stream:
            return self._header(stream)[0]

    def items(self, name: str) -> Iterator[npt.NDArray[np.generic]]:
        """The array's rows, one after another."""
        with self._file.open(f"{name}.npy") as stream:
            shape, in_columns, dtype = self._header(stream)
            if in_columns or dtype.hasobject:
                raise LayoutError(f"{self.path.name}: {name} is not stored as MedMNIST stores it.")
            size = int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize
            for _ in range(shape[0]):
                try:
                    content = stream.read(size)
                except (EOFError, zipfile.BadZipFile, zlib.error):
                    content = b""
                if len(content) < size:
                    raise LayoutError(f"{self.path.name} is damaged; download it again.")
                yield np.frombuffer(content, dtype).reshape(shape[1:])

    def _header(self, stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[np.generic]]:
        try:
            version = np.lib.format.read_magic(stream)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, in_columns, dtype = read(stream)
        except (ValueError, EOFError):
            raise LayoutError(f"{self.path.name} is damaged; download it again.") from None
        # A file of one row is both in rows and in columns.
        return shape, in_columns and len(shape) > 1, dtype


def _find_archive(source: Path) -> Path:
    found = [source] if source.is_file() else sorted(source.glob("*.npz"))
    if len(found) != 1 or found[0].suffix != ".npz":
        problem = "There are several .npz files" if len(found) > 1 else "No .npz file was found"
        raise LayoutError(f"{problem}; {what_is_there(source)}. Give the file itself with --from.")
    return found[0]


def _draft(request: Request) -> Draft:
    path = _find_archive(request.source)
    archive = _Archive(path)
    missing = [f"{part}_{kind}" for part in _PARTS for kind in ("images", "labels")
               if f"{part}_{kind}" not in archive.names]  # fmt: skip
    if missing:
        raise LayoutError(f"{path.name} lacks {', '.join(missing)}.")
    flag = path.stem.split("_")[0].lower()
    shapes = {part: archive.shape(f"{part}_images") for part in _PARTS}
    total = sum(shape[0] for shape in shapes.values())
    shape = shapes["train"]
    solid = len(shape) == 4 and shape[-1] != 3
    _check_label(request.label, archive.shape("train_labels"), path)
    column = "class" if request.label == "class" else request.label
    rows, done = [], 0
    for part, name in _PARTS.items():
        pairs = zip(archive.items(f"{part}_images"), archive.items(f"{part}_labels"), strict=False)
        for number, (pixels, label) in enumerate(pairs):
            target = f"images/{path.stem}/{part}/{number:06}" + (".nii.gz" if solid else ".png")
            if solid:
                write_nifti(request.out / target, pixels, 1.0)
            else:
                write_png(request.out / target, pixels.astype(np.uint8))
            rows.append([f"{part} {number}", f"out:{target}", _name(flag, request.label, label), name, ""])
            done += 1
            request.progress(done, total)
    table = pd.DataFrame(rows, columns=["subject", "image", column, "split", "reason"])
    table.insert(0, "site", "")
    side = shape[1]
    if solid:
        whole = -(-side // 8) * 8
        data: dict[str, object] = {"preprocessing": grid((whole, whole, whole))}
    else:
        data = {"size": [side, side], "channels": "rgb" if len(shape) == 4 else "grey"}
    return Draft(table, "volume" if solid else "image", images=["image"], data=data, split="split")


def _check_label(label: str, shape: tuple[int, ...], path: Path) -> None:
    several = len(shape) == 2 and shape[1] > 1
    if several and label == "class":
        raise LayoutError(f"{path.name} has {shape[1]} findings an image and no class. Choose one: `--label effusion`.")
    if several and shape[1] != len(FINDINGS):
        raise LayoutError(f"{path.name} has {shape[1]} labels an image; expected the {len(FINDINGS)} of ChestMNIST.")
    if not several and label != "class":
        raise LayoutError(f"{path.name} has one class an image, not findings: leave `--label` out.")


def _name(flag: str, label: str, value: npt.NDArray[np.generic]) -> str:
    if label != "class":
        return "present" if value.ravel()[FINDINGS.index(label)] else "absent"
    number = int(value.ravel()[0])
    names = CLASSES.get(flag, ())
    return names[number] if number < len(names) else str(number)


ENTRY = Entry(
    name="medmnist",
    title="MedMNIST (small standard images)",
    about="Eighteen sets of 2D and 3D medical images brought to 28 pixels (also 64, 128, 224): pathology, chest "
    "X-ray, skin, OCT, fundus, ultrasound, blood cells, CT of organs. For trying methods quickly, not for clinical "
    "conclusions.",
    modality="2D images and 3D volumes of many kinds",
    sites="None: the sites are artificial, made by Dirichlet or quantity.",
    subjects="From 780 (BreastMNIST) to 236,386 images (TissueMNIST); patients are not named.",
    access="https://medmnist.com, https://doi.org/10.5281/zenodo.10519652",
    licence="CC BY(-NC) 4.0",
    terms="CC BY 4.0, DermaMNIST CC BY-NC 4.0; open download.",
    citation="Yang J et al. MedMNIST v2: a large-scale lightweight benchmark for 2D and 3D biomedical image "
    "classification. Sci Data 2023;10:41.",
    layout="""\
bloodmnist.npz (also bloodmnist_64.npz)      the file itself, or a folder with it alone
  train_images, train_labels                 [N, 28, 28], [N, 28, 28, 3] or [N, 28, 28, 28]; [N, 1]
  val_images, val_labels, test_images, test_labels
""",
    labels={
        "class": Label("class", "the class of the image"),
        **{
            name: Label(
                name, f"{name} (ChestMNIST): present against absent", positive=("present",), against=("absent",)
            )
            for name in FINDINGS
        },
    },
    sites_by={},
    draft=_draft,
    assumed=(
        "The images are written as PNG (3D: NIfTI) next to the manifest.",
        "Each image is a subject of its own, and the starter study keeps the official split: the files name no "
        "patients.",
        "Voxels of the 3D sets are taken as 1 mm: their size is not in the file.",
        "Names of classes are those of the package medmnist 2.1, a few shortened.",
    ),
)
