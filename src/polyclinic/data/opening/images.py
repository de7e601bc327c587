"""The pictures or volumes of a site's rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

from polyclinic.data.cases import reasons_text
from polyclinic.data.masks.classes import MaskClasses, MaskFacts
from polyclinic.data.originals import Original
from polyclinic.data.pictures.decode import ImageFiles, Seen, decode_images
from polyclinic.data.pictures.depth import DeepPictures
from polyclinic.data.pictures.dicom import level_notes
from polyclinic.data.readers.files import resolve
from polyclinic.data.spec import DataSpec, Target
from polyclinic.data.tables.hints import hints_of
from polyclinic.data.tables.rows import Rows
from polyclinic.data.volumes.prepare import VolumeFiles, prepare_volumes
from polyclinic.data.volumes.store import Volumes
from polyclinic.errors import DataError
from polyclinic.notes import Note

Pixels = Tensor | Volumes


class Images(NamedTuple):
    """What could be read of a site's images.

    Attributes:
        pixels, masks: of the cases that can be used, in order; None without any, and masks only for segmentation.
        failures: position of each case that can't be used -> the reason.
        mask_facts: what was seen in each mask, or None.
        depth: how many bits white has in pictures of 16 bits, where these tell it themselves; else None.
        notes: what a person should know.
        originals: where the images and masks of these cases lie; None where there are no masks.
    """

    pixels: Pixels | None
    masks: Pixels | None
    failures: dict[int, str]
    mask_facts: list[MaskFacts] | None
    depth: int | None
    notes: list[Note]
    originals: list[Original] | None = None


def read_images(
    site: str, rows: Rows, spec: DataSpec, folder: Path, target: Target, tick: Callable[[], None], *,
    complete: bool = True,
) -> Images:  # fmt: skip
    """Read or prepare the images of a site.

    Args:
        site: its name.
        rows: its rows that can be used.
        spec: the ``data:`` part of the study file, with what was planned.
        folder: the study file's folder.
        target: what is to be predicted of each case.
        tick: called after each case.
        complete: whether these are all images of the site; else pictures of 16 bits can't be used without ``bits``.

    Raises:
        DataError: P204 when more than ``max_unreadable`` of the cases can't be read.
    """
    files = image_files(rows, spec, folder, target)
    images: Pixels | None
    masks: Pixels | None
    seen = Seen(deep=DeepPictures(spec.bits, complete=complete))
    if spec.preprocessing is not None:
        images, masks, failures = prepare_volumes(files, spec, folder / spec.cache, tick)
        if isinstance(masks, Volumes):
            noted = enumerate(record.get("mask") for record in masks.about)
            seen.masks = {position: MaskFacts(**facts) for position, facts in noted if facts is not None}
    else:
        pictures = ImageFiles(
            [cells[0] for cells in files.images], files.masks, files.roots, files.allowed, files.hints
        )  # fmt: skip
        size, classes = spec.size or (0, 0), MaskClasses.of(spec)
        images, masks, failures = decode_images(pictures, size, spec.channels, tick, classes, seen)
    notes = seen.deep.notes(site, rows.origin["case"].tolist())
    if failures and len(failures) / len(rows) > spec.max_unreadable:
        raise DataError(
            "P204",
            f"Site {site}: {len(failures)} of {len(rows)} cases can't be read: "
            f"{reasons_text(Counter(failures.values()))}. `max_unreadable` allows {100 * spec.max_unreadable:g} %.",
            "Mend the files or their paths (`root`), or raise `max_unreadable`. "
            "`polyclinic check --verbose` names them.",
        )
    if failures and isinstance(images, Tensor):  # volumes that can't be used are left out already
        keep: npt.NDArray[np.intp] = np.setdiff1d(np.arange(len(rows)), list(failures))
        images, masks = images[keep], masks[keep] if isinstance(masks, Tensor) else None
    if spec.preprocessing is None:
        used = [(cells[0], root) for place, (cells, root) in enumerate(zip(files.images, files.roots, strict=True))
                if place not in failures]  # fmt: skip
        notes += level_notes(site, [resolve(cell, root, files.allowed) for cell, root in used])
    depth = seen.deep.depth if seen.deep.highest and spec.bits is None else None
    return Images(images, masks, failures, seen.mask_facts, depth, notes, _originals(files, spec, failures))


def _originals(files: VolumeFiles, spec: DataSpec, failures: Container[int]) -> list[Original] | None:
    """Where the cases that can be used lie."""
    if files.masks is None:
        return None
    cases = enumerate(zip(files.images, files.masks, files.roots, strict=True))
    return [
        Original.opened(images[0], mask, root, files.allowed, spec)
        for place, (images, mask, root) in cases
        if place not in failures
    ]


def image_files(rows: Rows, spec: DataSpec, folder: Path, target: Target) -> VolumeFiles:
    """Where the images and masks of rows are."""
    roots = [Path(table) if spec.root is None else folder / spec.root for table in rows.origin["folder"]]
    masks, hints = None, None
    if target == "masks":
        cells = rows.cells[spec.mask_column].tolist()
        masks = [cell if known else None for cell, known in zip(cells, rows.labelled, strict=True)]
        hints = hints_of(rows.cells, spec) if spec.hint_columns else None
    images = rows.cells[spec.image_columns].to_numpy().tolist()
    return VolumeFiles(images, masks, roots, allowed=(folder,), hints=hints)
