"""Preparing the volumes of a site, in a few threads, with what is prepared already taken from the cache."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from polyclinic.candidates import code_of
from polyclinic.data.masks.classes import MaskClasses, MaskFacts
from polyclinic.data.readers.files import resolve
from polyclinic.data.readers.nifti.read import is_nifti, scanner_facts
from polyclinic.data.readers.read import READERS, place_and_series, read_volume
from polyclinic.data.readers.volume import UnreadableError, Volume
from polyclinic.data.spec import DataSpec, Mask, Preprocessing, Target
from polyclinic.data.tables.hints import Hint
from polyclinic.data.volumes.cache import Cache, source_files
from polyclinic.data.volumes.fingerprint import Measured, SiteFingerprint, fingerprint, measure
from polyclinic.data.volumes.intensity import INTENSITIES, check_intensity
from polyclinic.data.volumes.preprocessing import Prepared, prepare_case
from polyclinic.data.volumes.store import Volumes
from polyclinic.ignored import IGNORED
from polyclinic.options import EntryError, split_entry
from polyclinic.origins import of_module

logger = logging.getLogger(__name__)

_MOST_THREADS = 4


@dataclass(frozen=True)
class VolumeFiles:
    """Where the volumes of a site are.

    Attributes:
        images: for each case its image cells, one a channel.
        masks: the mask cell of each case (None for a case without a mask), or None.
        roots: for each case, the folder to which its paths are relative.
        allowed: folders, besides a case's own root, under which a file may lie.
        hints: what is known of each mask that is not there (None for nothing), or None where nothing is of any.
    """

    images: Sequence[Sequence[str]]
    masks: Sequence[str | None] | None
    roots: Sequence[Path]
    allowed: Sequence[Path] = ()
    hints: Sequence[Hint | None] | None = None

    def __len__(self) -> int:
        return len(self.images)


def prepare_volumes(
    files: VolumeFiles,
    spec: DataSpec,
    cache_folder: Path,
    done: Callable[[], None] = lambda: None,
) -> tuple[Volumes | None, Volumes | None, dict[int, str]]:
    """Prepare all cases that the cache does not have.

    Args:
        files: where the volumes are.
        spec: the ``data:`` part of the study file, with ``preprocessing``.
        cache_folder: where prepared volumes are kept.
        done: called after each case, in the calling thread.

    Returns:
        images and masks of the cases that can be used, in order (None without any, masks None without masks; the mask
        of a case without one is ``IGNORED`` everywhere, or says which structures may be there), and the position of
        each case that can't be used, with the reason.
    """
    if spec.preprocessing is None:
        raise ValueError("volumes need `preprocessing`")
    classes = MaskClasses.of(spec)
    settings = spec.preprocessing.model_dump(mode="json")
    if files.masks is not None:
        settings["mask"] = [asdict(classes), spec.mask_meaning.grid]
    settings |= _brought(spec.preprocessing)
    cache = Cache(cache_folder, settings)
    preprocessing = spec.preprocessing

    def prepare(position: int) -> dict[str, Any] | str:
        marked = None if files.masks is None else files.masks[position]
        cells = [*files.images[position], *([] if marked is None else [marked])]
        kinds = ["image"] * len(files.images[position]) + ["mask"]
        root = files.roots[position]
        try:
            sources = [_sources(cell, kind, root, files.allowed) for cell, kind in zip(cells, kinds, strict=False)]
            beside = _beside(sources[0][0])
            key = cache.key([found for found, _ in sources], [series for _, series in sources], beside)
            record = cache.load(key)
            if record is None:
                volumes = [_read(cell, kind, root, files.allowed) for cell, kind in zip(cells, kinds, strict=False)]
                mask = volumes.pop() if marked is not None else None
                record = cache.store(key, _prepare(volumes, mask, preprocessing, classes, spec.mask_meaning))
        except UnreadableError as error:
            logger.debug("%s: %s", cells[0], error)
            return str(error)
        except OSError as error:
            logger.debug("%s: %s", cells[0], error)
            return "image or mask file can't be read"
        return record

    failures: dict[int, str] = {}
    records: list[dict[str, Any]] = []
    blanks: list[int] = []
    with ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1)) as threads:
        for position, found in enumerate(threads.map(prepare, range(len(files)))):
            if isinstance(found, str):
                failures[position] = found
            else:
                records.append(found)
                hint = None if files.hints is None else files.hints[position]
                blanks.append(IGNORED if hint is None else code_of(hint.anywhere))
            done()
    if not records:
        return None, None, failures
    images = Volumes([cache.image(record["key"]) for record in records], records)
    masks = None
    if files.masks is not None:
        shape = (1, *images.shape[2:])
        masks = Volumes(
            [cache.mask(record["key"]) if record["masked"] else cache.blank(shape, blank)
             for record, blank in zip(records, blanks, strict=True)],
            records,
        )  # fmt: skip
    return images, masks, failures


def fingerprint_volumes(
    files: VolumeFiles, spec: DataSpec, cache_folder: Path, done: Callable[[], None] = lambda: None
) -> SiteFingerprint | None:
    """What a site says of its images, from those that can be read; None if there are none.

    Args:
        files: where the volumes are; only the first image of each case is looked at.
        spec: the ``data:`` part of the study file, with ``preprocessing``.
        cache_folder: where what was measured is kept.
        done: called after each case, in the calling thread.
    """
    preprocessing = spec.preprocessing
    if preprocessing is None:
        raise ValueError("volumes need `preprocessing`")
    cache = Cache(cache_folder, {"measure": [preprocessing.orientation, preprocessing.frames, "values"], **_brought()})

    def look(position: int) -> Measured | None:
        cell, root = files.images[position][0], files.roots[position]
        try:
            found, series = _sources(cell, "image", root, files.allowed)
            key = cache.key([found], [series])
            known = cache.note(key)
            if known is None:
                known = [list(part) for part in measure(_read(cell, "image", root, files.allowed), preprocessing)]
                cache.remember(key, known)
        except (UnreadableError, OSError) as error:
            logger.debug("%s: %s", cell, error)
            return None
        return Measured(*known)

    measured = []
    with ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1)) as threads:
        for found in threads.map(look, range(len(files))):
            if found is not None:
                measured.append(found)
            done()
    return fingerprint(measured) if measured else None


def check_volumes(spec: DataSpec, target: Target) -> None:
    """Stop where entries about volumes contradict each other or what is to be predicted.

    Raises:
        EntryError: P102 to P104 with the place of the entry.
    """

    def refuse(key: str, message: str, hint: str, code: str = "P102", place: str = "preprocessing") -> None:
        raise EntryError(code, message, hint, place=("data", place, key) if key else ("data", place))

    preparation, patch, mask = spec.preprocessing, spec.patch, spec.mask_meaning
    if preparation is None and mask.grid is not None:
        refuse("grid", "`grid` is for volumes: pictures have no place in space.", "Take it out.", "P104", place="mask")
    if preparation is not None and mask.palette is not None:
        refuse("palette", "`palette` is for pictures; volumes have none.", "Take it out.", "P104", place="mask")
    if spec.bits is not None and (preparation is not None or spec.image is None):
        refuse("", "`bits` is for pictures (PNG, TIFF).", "Take it out.", "P104", place="bits")
    if preparation is None:
        if patch is not None:
            refuse("", "`patch` is for volumes.", "Say with `preprocessing` how volumes are prepared.", place="patch")
        return
    if spec.image is None:
        refuse("", "`preprocessing` is for images.", "Name the `image` column, or take it out.", "P104")
    if preparation.spacing == "auto" and preparation.size != "auto":
        refuse("size", "with `spacing: auto` the size is not known yet.", "Write `size: auto`.")
    axes = [pair for pair in ("RL", "AP", "SI") if set(pair) & set(preparation.orientation)]
    if len(axes) < 3:
        refuse(
            "orientation",
            f"got {preparation.orientation!r}, which does not name three different axes.",
            "Give one of R and L, one of A and P, one of S and I: RAS, LPS, ...",
        )
    if spec.size is not None:
        refuse("", "`size` is for PNG and JPG images.", "Give `size` under `preprocessing`.", "P104", place="size")
    check_intensity(preparation.intensity)
    if patch is None:
        return
    if target != "masks":
        hint = "Take it out, or use a smaller `preprocessing: {size: ...}`."
        refuse("", "`patch` is for segmentation: a label belongs to the whole volume.", hint, "P104", place="patch")
    if patch == "auto" or preparation.size == "auto":
        if patch not in ("auto", None) or preparation.size != "auto":
            refuse(
                "", "`patch` and `size` are planned together.", "Write `size: auto` and `patch: auto`.", place="patch"
            )
        return
    if any(side > whole for side, whole in zip(patch.size, preparation.size, strict=True)):
        message = f"got {list(patch.size)}, which is larger than the volumes, {list(preparation.size)}."
        refuse("size", message, "Use a smaller patch.", place="patch")


def _sources(cell: str, kind: str, root: Path, allowed: Sequence[Path]) -> tuple[list[Path], str]:
    """The files behind a cell, and the series within them."""
    path = resolve(cell, root, allowed)
    if path is None:
        raise UnreadableError(f"{kind} path lies outside the image folder")
    place, series = place_and_series(path)
    found = source_files(place)
    if not found:
        raise UnreadableError(f"{kind} file is missing")
    return found, series


def _brought(preprocessing: Preprocessing | None = None) -> dict[str, Any]:
    """Plug-ins, with their versions, on which prepared volumes depend; nothing without any."""
    found = {ending: of_module(READERS[ending].__module__) for ending in READERS}
    if preprocessing is not None:
        name, _ = split_entry(preprocessing.intensity, (), "")
        found["intensity"] = of_module(INTENSITIES[name].__module__) if name in INTENSITIES else ""
    used = {name: plugin for name, plugin in found.items() if plugin}
    return {"plugins": used} if used else {}


def _beside(files: Sequence[Path]) -> dict[str, str | float]:
    """What a JSON file beside the first image says of the scanner, since that is kept with the case."""
    return scanner_facts(files[0]) if is_nifti(files[0]) else {}


def _prepare(
    images: Sequence[Volume], mask: Volume | None, preprocessing: Preprocessing, classes: MaskClasses, meaning: Mask
) -> Prepared:
    """The case on the grid, with what was seen in its mask under ``mask``."""
    seen: list[MaskFacts] = []

    def encode(values: npt.NDArray[np.generic]) -> npt.NDArray[np.uint8]:
        indices, facts = classes.read(values)
        seen.append(facts)
        return indices

    prepared = prepare_case(images, mask, preprocessing, encode, meaning.grid)
    for facts in seen:
        place = {**prepared.about.pop("place"), "vanished": prepared.about.pop("vanished")}
        prepared.about["mask"] = asdict(replace(facts, **place))
    return prepared


def _read(cell: str, kind: str, root: Path, allowed: Sequence[Path]) -> Any:
    try:
        return read_volume(cell, root, allowed)
    except UnreadableError as error:
        reason = str(error)
        raise UnreadableError(f"mask: {reason}" if kind == "mask" else reason) from None
