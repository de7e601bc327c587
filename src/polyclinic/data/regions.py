"""From grey-matter maps and an atlas to a table of regional volumes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import numpy.typing as npt
import pandas as pd
from nibabel.affines import apply_affine
from nibabel.filebasedimages import ImageFileError

from polyclinic.data.readers.volume import Volume
from polyclinic.data.tables.cells import read_cells
from polyclinic.errors import DataError, nearest

#: Columns of a manifest that may hold the maps, in this order.
MAP_COLUMNS = ("map", "grey_map", "image")
#: Columns of a manifest that the table repeats.
KEPT_COLUMNS = ("site", "subject", "diagnosis", "age", "sex")
#: Modulated maps go above 1 where tissue was compressed, but never far.
MOST_PROBABILITY = 8.0
#: An atlas of which less than this share lies inside a map was made for another space.
LEAST_OVERLAP = 0.5
_ENDINGS = (".nii.gz", ".nii")


@dataclass(frozen=True, eq=False)
class Atlas:
    """Numbered regions in space.

    Attributes:
        labels: whole numbers ``[X, Y, Z]``; 0 belongs to no region.
        affine: ``[4, 4]`` from voxels to millimetres.
        names: number -> name, for every number that occurs in ``labels``.
    """

    labels: npt.NDArray[np.int64]
    affine: npt.NDArray[np.float64]
    names: dict[int, str]


def read_atlas(path: Path, names: Path | None = None) -> Atlas:
    """Read an atlas.

    Args:
        path: NIfTI file with whole numbers.
        names: CSV or TSV with a column of numbers (``label`` or ``index``) and one of names (``name``); without it
            regions are called ``region_1`` and so on.

    Raises:
        DataError: P201 for a file that can't be read, P202 for a missing column, P203 for values that don't fit.
    """
    volume = _read(path, "The atlas")
    numbers = np.unique(volume.values)
    if not np.array_equal(numbers, np.rint(numbers)) or numbers[0] < 0:
        odd = "an atlas holds whole numbers from 0, and this file holds others"
        raise DataError("P203", f"The atlas {path.name} can't be used: {odd}.", "Give a label image, not a map.")
    found = [int(number) for number in numbers if number]
    if not found:
        raise DataError("P203", f"The atlas {path.name} holds no region: every voxel is 0.", "Give another file.")
    given = {number: f"region_{number}" for number in found} if names is None else _read_names(names)
    missing = [number for number in found if number not in given]
    if missing:
        told = (
            f"{names.name if names else ''} names no region {missing[0]}, which the atlas has ({len(missing)} missing)."
        )
        raise DataError("P203", told, "Add the missing rows, or leave out --labels.")
    return Atlas(volume.values.astype(np.int64), volume.affine, {number: given[number] for number in found})


def regional_volumes(grey: Volume, atlas: Atlas) -> dict[str, float]:
    """Grey-matter volume of each region in millilitres.

    The sum over the region's voxels of probability times voxel volume. The atlas is brought to the map's grid through
    both affines: each voxel of the map belongs to the region at its middle (nearest neighbour).

    Args:
        grey: probabilities ``[X, Y, Z]`` between 0 and 1 (modulated maps may go a little above 1).
        atlas: regions in the same space; its grid may differ.

    Raises:
        DataError: P203 if the map does not hold probabilities, or lies elsewhere than the atlas.
    """
    values = np.asarray(grey.values, dtype=np.float64)
    if values.ndim != 3:
        raise DataError("P203", f"A map has {values.ndim} dimensions; expected 3.", "Give one volume for each subject.")
    if not np.isfinite(values).all() or values.min() < -1e-3 or values.max() > MOST_PROBABILITY:
        held = f"A map holds values from {np.nanmin(values):g} to {np.nanmax(values):g}"
        hint = "Give grey-matter probabilities (as SPM's c1 or mwc1, or FSL FAST's pve_1), not an image."
        raise DataError("P203", f"{held}; expected probabilities between 0 and 1.", hint)
    labels = _at(atlas, grey)
    inside = np.count_nonzero(labels) * float(np.prod(grey.spacing))
    whole = np.count_nonzero(atlas.labels) * abs(float(np.linalg.det(atlas.affine[:3, :3])))
    if inside < LEAST_OVERLAP * whole:
        raise DataError(
            "P203",
            f"A map and the atlas lie in different places: the map covers {100 * inside / whole:.0f} % of the atlas.",
            "Bring maps and atlas to the same space first (such as MNI), and check the affines in the headers.",
        )
    most = max(atlas.names)
    sums = np.bincount(labels.ravel(), values.ravel(), most + 1) * float(np.prod(grey.spacing)) / 1000
    return {name: float(sums[number]) for number, name in atlas.names.items()}


def regions_table(maps: Path, atlas: Atlas, progress: Callable[[int, int], None] | None = None) -> pd.DataFrame:
    """One row a subject: who it is, and the volume of each region in millilitres.

    Args:
        maps: a folder of NIfTI files, each named after its subject (``sub-07_grey.nii.gz`` is the subject
            ``sub-07_grey``; an ending that all names share is cut off), or a manifest (CSV, TSV) with a column ``map``,
            ``grey_map`` or ``image`` and paths relative to it. Of a manifest site, subject, diagnosis, age and sex
            are kept.
        atlas: the regions.
        progress: called with the number of maps done and of all, after each.

    Raises:
        DataError: P201 to P203 for what can't be found, read or used, with the number of the map, not its name.
    """
    people, files = _read_manifest(maps) if maps.is_file() else _find_maps(maps)
    rows: list[dict[str, float]] = []
    for number, file in enumerate(files):
        try:
            rows.append(regional_volumes(_read(file, "A map"), atlas))
        except DataError as error:
            # Names of files may name patients.
            place = f"number {number + 1} of {len(files)}"
            which = f"row {place} of the manifest" if maps.is_file() else f"file {place} in the order of names"
            raise DataError(error.code, f"{error.message} This is {which}.", error.hint) from None
        if progress is not None:
            progress(number + 1, len(files))
    return pd.concat([people.reset_index(drop=True), pd.DataFrame(rows)], axis=1)


def _at(atlas: Atlas, grey: Volume) -> npt.NDArray[np.int64]:
    """``[X, Y, Z]`` the atlas's number at each voxel of the map."""
    shape = grey.values.shape
    voxels = np.stack(np.meshgrid(*(np.arange(size) for size in shape), indexing="ij"), axis=-1)
    there = np.rint(apply_affine(np.linalg.inv(atlas.affine) @ grey.affine, voxels)).astype(np.int64)
    inside = np.all((there >= 0) & (there < atlas.labels.shape), axis=-1)
    labels = np.zeros(shape, dtype=np.int64)
    labels[inside] = atlas.labels[tuple(there[inside].T)]
    return labels


def _read(path: Path, what: str) -> Volume:
    """A NIfTI file of three dimensions (trailing ones of length 1 are dropped)."""
    try:
        image = nibabel.load(path)
        values = np.asanyarray(image.dataobj)
    except (OSError, ImageFileError, EOFError, ValueError, IndexError) as error:
        reason = "there is no such file" if isinstance(error, FileNotFoundError) else "it is no readable NIfTI file"
        raise DataError("P201", f"{what} can't be read: {reason}.", "Check the path.") from None
    while values.ndim > 3 and values.shape[-1] == 1:
        values = values[..., 0]
    return Volume(values, np.asarray(image.affine, dtype=np.float64))


def _read_cells(path: Path, what: str) -> pd.DataFrame:
    try:
        cells = read_cells(path)
    except DataError as error:
        hint = f"{error.message} {error.hint}".strip()
        raise DataError("P201", f"{what} {path.name} can't be read as a table.", hint) from None
    if cells.columns.duplicated().any():
        raise DataError("P202", f"{what} {path.name} has a column twice.", "Rename one of them.")
    return cells


def _read_names(path: Path) -> dict[int, str]:
    cells = _read_cells(path, "The list of regions")
    number = next((column for column in ("label", "index") if column in cells), None)
    if number is None or "name" not in cells:
        wanted = "label" if number is None else "name"
        hint = nearest(wanted, list(cells.columns))
        raise DataError("P202", f"The list of regions {path.name} has no column {wanted!r}.", hint)
    try:
        names = dict(zip(cells[number].astype(int), cells["name"], strict=True))
    except ValueError:
        column = f"The column {number!r} of {path.name} holds something that is not a whole number."
        raise DataError("P203", column, "Give the numbers of the atlas.") from None
    if len(set(names.values())) < len(cells):
        raise DataError("P203", f"{path.name} holds a number or a name twice.", "Give every region its own name.")
    return names


def _read_manifest(path: Path) -> tuple[pd.DataFrame, list[Path]]:
    cells = _read_cells(path, "The manifest")
    column = next((name for name in MAP_COLUMNS if name in cells), None)
    if column is None:
        listed = ", ".join(cells.columns)
        hint = f"Add a column `map` with the path of each map. Columns found: {listed}."
        raise DataError("P202", f"The manifest {path.name} has no column with maps.", hint)
    if not len(cells):
        raise DataError("P203", f"The manifest {path.name} has no rows.", "Give a row for each subject.")
    kept = cells[[name for name in KEPT_COLUMNS if name in cells]]
    return kept, [path.parent / cell for cell in cells[column]]


def _find_maps(folder: Path) -> tuple[pd.DataFrame, list[Path]]:
    files = sorted(path for path in folder.rglob("*") if path.name.endswith(_ENDINGS)) if folder.is_dir() else []
    if not files:
        found = "holds no NIfTI file" if folder.is_dir() else "can't be found"
        raise DataError("P201", f"{folder.name} {found}.", "Give a folder of .nii or .nii.gz maps, or a manifest.")
    names = [path.name.removesuffix(".gz").removesuffix(".nii") for path in files]
    shared = _shared_ending(names)
    subjects = [name.removesuffix(shared) for name in names]
    if len(set(subjects)) < len(subjects):
        double = next(name for name in subjects if subjects.count(name) > 1)
        hint = "Give files names that differ, or a manifest with the columns subject and map."
        raise DataError("P203", f"Two maps are called {double!r}.", hint)
    return pd.DataFrame({"subject": subjects}), files


def _shared_ending(names: list[str]) -> str:
    """The ending that all names share, from an underscore on; empty for one name."""
    if len(names) < 2:
        return ""
    endings = ["_" + name.rpartition("_")[2] if "_" in name else "" for name in names]
    return endings[0] if len(set(endings)) == 1 else ""
