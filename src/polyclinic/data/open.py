"""From a study file's ``data:`` part to the usable cases of each site, with every case found accounted for."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from polyclinic.data.cases import NO_CLASS, Counts, Opened, SiteData, reasons_text
from polyclinic.data.check import quality_notes
from polyclinic.data.image_notes import volume_notes
from polyclinic.data.masks.classes import MaskClasses, MaskFacts
from polyclinic.data.partition import check_partition, partition_rows, site_names
from polyclinic.data.pictures.decode import ImageFiles, Seen, decode_images
from polyclinic.data.pictures.depth import DeepPictures
from polyclinic.data.pictures.dicom import level_notes
from polyclinic.data.quality.classes import label_notes
from polyclinic.data.quality.doubts import column_notes
from polyclinic.data.quality.leaks import columns_of
from polyclinic.data.quality.patients import check_site_names, patient_notes, torn_notes
from polyclinic.data.quality.tables import image_notes, table_notes
from polyclinic.data.quality.times import time_notes
from polyclinic.data.readers.files import resolve
from polyclinic.data.spec import DataSpec, Target
from polyclinic.data.tables.features import encode_covariates, encode_features
from polyclinic.data.tables.labels import encode_labels, encode_numbers
from polyclinic.data.tables.rows import Rows, missing_target, read_rows, reject_alone, reject_rows
from polyclinic.data.tables.times import EVENT_CLASSES, encode_times
from polyclinic.data.volumes.fingerprint import SiteFingerprint
from polyclinic.data.volumes.prepare import VolumeFiles, check_volumes, fingerprint_volumes, prepare_volumes
from polyclinic.data.volumes.store import Volumes
from polyclinic.errors import DataError, StudyError, nearest
from polyclinic.notes import Note

Pixels = Tensor | Volumes
#: Classes, numbers, or times and events ``[N, 2]``.
Labels = npt.NDArray[np.int64] | npt.NDArray[np.float32]

#: What is to be predicted -> what that is called, and what a column has.
_KINDS = {
    "labels": ("Classification", "class"), "numbers": ("Regression", "number"),
    "times": ("Survival", "the time of the event and whether it happened"),
}  # fmt: skip
#: Names with another meaning in the results.
RESERVED_SITES = ("all", "pool", "federation")


def open_data(
    spec: DataSpec,
    folder: Path,
    target: Target,
    split: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Opened:
    """Read tables and images, and keep what can be used.

    Rows that ``where`` does not select are not part of the study and are not counted. Every other row is used or
    rejected with a reason: a missing patient or label (unless ``unlabelled: use`` keeps cases without a label, which
    then come after the others of their site), a label outside ``classes``, an unknown part in the split column, a
    ``divide_by`` that is missing or not positive, a missing feature (only with ``imputation: drop``), an image that is
    missing or can't be read. Rows that name no site belong to none: a warning counts them. An empty cell is always
    missing. Where ``subject_pattern`` does not fit, the whole cell is the patient, and a warning counts such rows.
    Without ``site`` a table is one site with the name of its file. With ``partition`` the patients are shared out among
    simulated sites before any image is read; see `polyclinic.data.partition`. Image paths are relative to ``root`` and
    may not leave it or the study file's folder.

    Args:
        spec: the ``data:`` part of the study file, environment variables expanded.
        folder: the study file's folder.
        target: what is to be predicted of each case.
        split: column that fixes the part of each case: train, validation (val, valid, dev) or test.
        progress: called with the number of images decoded and the number of all images, after each image.

    Returns:
        the cases of each site, with counts and notes.

    Raises:
        StudyError: P102 or P104 when the entries of ``spec`` do not go together.
        DataError: P201 to P206 and P503, when a file, a column, a value, an image or a site is not as ``spec`` says.
    """
    rows, used, labels, classes, notes = _rows_of_sites(spec, folder, target, split)
    matrix, features = np.empty(0, dtype=np.float32), _channels(spec)
    if spec.image is None:
        matrix, features = encode_features(used.cells, used.chosen, spec)
    covariates, covariate_names = None, dict[str, list[str]]()
    if spec.harmonisation.combat is not None:
        covariates, covariate_names = encode_covariates(used.cells, spec.harmonisation.combat)
    tick = _ticker(progress, len(used))
    sites: dict[str, SiteData] = {}
    left_out: dict[str, Counts] = {}
    for site in _site_names(rows, spec):
        here = np.flatnonzero(used.origin["site"] == site)
        here = here[np.argsort(~used.labelled[here], kind="stable")]
        counts = rows.counts(site)
        if spec.image is None:
            pixels: Pixels | None = torch.from_numpy(matrix[here])
            masks: Pixels | None = None
            seen = Seen()
        else:
            pixels, masks, here, seen = _read_images(site, used, here, spec, folder, target, counts, tick)
            notes += seen.notes
            notes += _picture_notes(site, _files(used, here, spec, folder, target), spec)
        known = used.labelled[here]
        if pixels is None or not known.any():
            for case in used.origin["case"].iloc[here]:
                counts.reject(str(case), missing_target(spec, target))
            left_out[site] = counts
            alone = spec.unlabelled == "use" and missing_target(spec, target) in counts.rejected
            notes.append(_left_out_note(site, counts, alone=alone))
            continue
        counts.unlabelled = int(len(here) - known.sum())
        targets = torch.from_numpy(labels[here]) if masks is None else masks
        subjects, cases, parts = (used.origin[column].iloc[here].tolist() for column in ("subject", "case", "part"))
        split_parts, steps = None if split is None else parts, _spacings(pixels)
        own = None if covariates is None else torch.from_numpy(covariates[here])
        sites[site] = SiteData(site, pixels, targets, subjects, cases, split_parts, counts, steps, own)
        if seen.mask_facts is not None:
            sites[site].mask_facts = [*seen.mask_facts, *[MaskFacts()] * counts.unlabelled]
        if counts.unlabelled:
            sites[site].labelled = torch.from_numpy(known)
    if not sites:
        raise DataError("P205", "No site has a usable case. " + " ".join(notes), "Mend the images or their paths.")
    notes += _unlabelled_notes(sites)
    notes += column_notes(used.cells, spec, target, features, matrix, used.counting)
    notes += quality_notes(
        sites,
        features,
        classes,
        subjects_named=spec.subject is not None,
        columns=columns_of(features, used.chosen, spec.categorical),
    )
    notes += volume_notes(sites)
    notes += image_notes(sites) if spec.image else table_notes(sites, features, used.chosen, spec)
    if target == "times":
        notes += time_notes(used.cells, used.origin, sites, features, spec)
    _check_reference(spec, list(sites))
    fingerprint = _fingerprint(sites, features, classes)
    return Opened(sites, features, classes, notes, fingerprint, covariate_names, left_out)


def _rows_of_sites(
    spec: DataSpec, folder: Path, target: Target, split: str | None
) -> tuple[Rows, Rows, Labels, list[str], list[Note]]:
    """All rows and those that are used, each with its site; the labels of the latter, names of classes, and notes.

    Raises:
        StudyError: P102 or P104 when the entries of ``spec`` do not go together.
        DataError: P201 to P203, P205, P206 and P503, when a file, a column or a value is not as ``spec`` says.
    """
    _check_spec(spec, target)
    rows = read_rows(spec, folder, split)
    notes = reject_rows(rows, spec, target, split)
    if spec.unlabelled == "use":
        reject_alone(rows, spec, target)
    kept = rows.usable & rows.origin["site"].notna().to_numpy()
    if not (kept & rows.labelled).any():
        rows.reject(~rows.labelled, missing_target(spec, target))
        raise DataError("P205", f"No row can be used: {_all_reasons(rows)}.", "Mend the table or the `data:` part.")
    used = rows.where(kept)
    labels: Labels = np.empty(0, dtype=np.int64)
    classes = list(MaskClasses.of(spec).names)
    if target == "times":
        labels, classes = encode_times(used.cells, spec), list(EVENT_CLASSES)
    elif target != "masks" and spec.label is not None:
        cells = used.cells[spec.label][used.labelled].reset_index(drop=True)
        found: Labels
        if target == "labels":
            found, classes = encode_labels(cells, spec)
            labels = np.full(len(used), NO_CLASS, dtype=found.dtype)
        else:
            found, classes = encode_numbers(cells, spec), []
            labels = np.full(len(used), np.nan, dtype=found.dtype)
        labels[used.labelled] = found
    notes += _row_notes(used, labels, classes, spec, target)
    if spec.partition is not None:
        known = None if target == "masks" else labels[:, 1].astype(np.int64) if target == "times" else labels
        told = partition_rows(rows, kept, known, spec.partition, subjects_named=spec.subject is not None)
        return rows, rows.where(kept), labels, classes, told + notes
    return rows, used, labels, classes, notes


def _row_notes(used: Rows, labels: Labels, classes: list[str], spec: DataSpec, target: Target) -> list[Note]:
    """Notes on patients and labels of the used rows, by the sites that the tables name."""
    named = spec.subject is not None
    notes = patient_notes(used.origin, named=named)
    if target != "labels" or spec.label is None:
        return notes
    known, found = used.where(used.labelled), labels[used.labelled].astype(np.int64)
    notes += torn_notes(known.origin, found, named=named)
    return notes + label_notes(known.cells[spec.label], found, known.origin["site"], spec, classes)


def _left_out_note(site: str, counts: Counts, *, alone: bool) -> Note:
    """Why a site has no part in the study; ``alone``: it has cases without a label, and no other that can be used."""
    why = reasons_text(counts.rejected) or "it has no rows"
    text = f"Site {site} is left out: none of its {counts.found} cases can be used ({why})."
    if alone:
        text += " Cases without a label or mask are used only at sites where other cases have one."
    return Note("N208", text)


def _unlabelled_notes(sites: dict[str, SiteData]) -> list[Note]:
    """A note that counts the cases without a label."""
    found = {site: data.counts.unlabelled for site, data in sites.items() if data.counts.unlabelled}
    if not found:
        return []
    total = sum(data.counts.used for data in sites.values())
    masks = all(data.labels is None for data in sites.values())
    text = (
        f"{sum(found.values())} of {total} cases used have no {'mask' if masks else 'label'} "
        f"({', '.join(f'{site} {count}' for site, count in found.items())}). Only methods that learn without labels "
        "train on them; nothing is fitted, validated or tested on them."
    )
    return [Note("N209", text)]


def _read_images(
    site: str,
    rows: Rows,
    here: npt.NDArray[np.intp],
    spec: DataSpec,
    folder: Path,
    target: Target,
    counts: Counts,
    tick: Callable[[], None],
) -> tuple[Pixels | None, Pixels | None, npt.NDArray[np.intp], Seen]:
    """Pixels of the rows ``here``, their masks (segmentation), and the rows that could be read; None without any. And
    what was seen in them.

    Raises:
        DataError: P204 when more than ``max_unreadable`` of the site's cases can't be read.
    """
    mine = rows.cells.iloc[here]
    files = _files(rows, here, spec, folder, target)
    images: Pixels | None
    masks: Pixels | None
    seen = Seen(deep=DeepPictures(spec.bits))
    if spec.preprocessing is not None:
        images, masks, failures = prepare_volumes(files, spec, folder / spec.cache, tick)
        if isinstance(masks, Volumes):
            noted = enumerate(record.get("mask") for record in masks.about)
            seen.masks = {position: MaskFacts(**facts) for position, facts in noted if facts is not None}
    else:
        pictures = ImageFiles([cells[0] for cells in files.images], files.masks, files.roots, files.allowed)
        size, classes = spec.size or (0, 0), MaskClasses.of(spec)
        images, masks, failures = decode_images(pictures, size, spec.channels, tick, classes, seen)
    seen.notes = seen.deep.notes(site, rows.origin["case"].iloc[here].tolist())
    if failures and len(failures) / len(mine) > spec.max_unreadable:
        reasons = reasons_text(Counter(failures.values()))
        raise DataError(
            "P204",
            f"Site {site}: {len(failures)} of {len(mine)} cases can't be read: {reasons}. "
            f"`max_unreadable` allows {100 * spec.max_unreadable:g} %.",
            "Mend the files or their paths (`root`), or raise `max_unreadable`. "
            "`polyclinic check --verbose` names them.",
        )
    if failures:
        cases = rows.origin["case"].iloc[here].tolist()
        for place, reason in failures.items():
            counts.reject(str(cases[place]), reason)
        keep = np.setdiff1d(np.arange(len(mine)), list(failures))
        here = here[keep]
        if isinstance(images, Tensor):  # volumes that can't be used are left out already
            images, masks = images[keep], masks[keep] if isinstance(masks, Tensor) else None
    return images, masks, here, seen


def _picture_notes(site: str, files: VolumeFiles, spec: DataSpec) -> list[Note]:
    """Notes on the pictures of a site; none on volumes, which have their own."""
    if spec.preprocessing is not None:
        return []
    return level_notes(
        site, [resolve(cell[0], root, files.allowed) for cell, root in zip(files.images, files.roots, strict=True)]
    )


def _files(rows: Rows, here: npt.NDArray[np.intp], spec: DataSpec, folder: Path, target: Target) -> VolumeFiles:
    """Where the images and masks of the rows ``here`` are."""
    mine = rows.cells.iloc[here]
    roots = [Path(table) if spec.root is None else folder / spec.root for table in rows.origin["folder"].iloc[here]]
    masks = None
    if target == "masks":
        cells = mine[spec.mask_column].tolist()
        masks = [cell if known else None for cell, known in zip(cells, rows.labelled[here], strict=True)]
    return VolumeFiles(mine[spec.image_columns].to_numpy().tolist(), masks, roots, allowed=(folder,))


def fingerprint_data(
    spec: DataSpec, folder: Path, target: Target, split: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, SiteFingerprint]:  # fmt: skip
    """What each site says of its volumes, for a plan; see ``open_data`` for the arguments and errors.

    Cases without a label or mask have no part in the plan.
    """
    rows, used, *_ = _rows_of_sites(spec, folder, target, split)
    used = used.where(used.labelled)
    tick = _ticker(progress, len(used))
    found = {}
    for site in _site_names(rows, spec):
        here = np.flatnonzero(used.origin["site"] == site)
        if len(here):
            found[site] = fingerprint_volumes(_files(used, here, spec, folder, target), spec, folder / spec.cache, tick)
    known = {site: one for site, one in found.items() if one is not None}
    if not known:
        raise DataError("P205", "No image can be read, so that nothing can be planned.", "Mend the images' paths.")
    return known


def _channels(spec: DataSpec) -> list[str]:
    if spec.preprocessing is not None:
        return spec.image_columns
    return ["red", "green", "blue"] if spec.channels == "rgb" else ["grey"]


def _spacings(pixels: Pixels) -> list[tuple[float, ...]] | None:
    """Voxel sizes of each volume, in mm: images may keep their own."""
    return [tuple(record["grid_spacing"]) for record in pixels.about] if isinstance(pixels, Volumes) else None


def _check_spec(spec: DataSpec, target: Target) -> None:
    """Stop where entries of the ``data:`` part contradict each other or what is to be predicted."""

    def need(fulfilled: object, message: str, hint: str, code: str = "P102") -> None:
        if not fulfilled:
            raise StudyError(code, message, hint)

    need((spec.table is None) != (spec.tables is None), "`data` needs one of `table` and `tables`.", "Give just one.")
    need(spec.tables is None or spec.tables, "`tables` is empty.", "Give one file for each site.")
    if spec.tables is not None:
        need(spec.site is None, "`tables` names the sites already.", "Take out `site`, or use `table`.", "P104")
    if spec.image is not None:
        inputs = "`image` and feature columns can't be used together."
        need(not (spec.features or spec.categorical), inputs, "Use either images or table columns.", "P104")
        if spec.preprocessing is None:
            need(isinstance(spec.image, str), "Several image columns are channels of volumes.",
                 "Name one column, or say with `preprocessing` how volumes are to be prepared.")  # fmt: skip
            need(spec.size and min(spec.size) > 0, "Images need a `size`.",
                 "Give height and width: size: [128, 128]; or `preprocessing` for NIfTI and DICOM.")  # fmt: skip
    check_volumes(spec, target)
    check_partition(spec, target)
    if target == "masks":
        need(spec.image and spec.mask, "Segmentation needs `image` and `mask`.", "Name the columns with their paths.")
    else:
        kind, goal = _KINDS[target]
        if target == "times":
            need(spec.time and spec.event, f"{kind} needs `time` and `event`.", f"Name the columns with {goal}.")
        else:
            need(spec.label, f"{kind} needs a `label`.", f"Name the column with the {goal} to predict.")
        hint = 'Name the feature columns (features: "*" takes all that have no other part) or the image column.'
        need(spec.image or spec.features or spec.categorical, f"{kind} needs `features` or `image`.", hint)
        need(spec.mask_classes is None, "`mask_classes` is for segmentation.", "Take it out.", "P104")
    if target == "numbers":
        need(spec.positive is None and spec.classes is None, "A number has no classes.",
             "Take out `positive` and `classes`, or use `task: classification`.", "P104")  # fmt: skip
    if spec.subject_pattern is not None:
        need(spec.subject, "`subject_pattern` needs `subject`.", "Name the column in which to look for the patient.")
        try:
            groups = re.compile(spec.subject_pattern).groups
        except re.error as error:
            raise StudyError("P102", f"`subject_pattern` is no regular expression: {error}.", "Mend it.") from None
        need(groups, "`subject_pattern` has no group.", r"Put the patient's part in brackets: (Image_\d+)[LR].")


def _site_names(rows: Rows, spec: DataSpec) -> list[str]:
    if spec.partition is not None:
        return site_names(spec.partition)
    names = list(spec.tables) if spec.tables is not None else sorted(rows.origin["site"].dropna().unique().tolist())
    check_site_names(names)
    for name in names:
        if name in RESERVED_SITES:
            raise DataError("P203", f"A site can't be called {name!r}: the results use this name.", "Rename the site.")
    return names


def _check_reference(spec: DataSpec, sites: list[str]) -> None:
    combat = spec.harmonisation.combat
    if combat is not None and combat.reference_site is not None and combat.reference_site not in sites:
        raise DataError(
            "P207", f"The reference site {combat.reference_site!r} is not among the sites.",
            nearest(combat.reference_site, sites),
        )  # fmt: skip


def _all_reasons(rows: Rows) -> str:
    reasons = np.where(rows.origin["site"].isna(), "site is missing", rows.reasons)
    return reasons_text(Counter(reasons.tolist()))


def _ticker(progress: Callable[[int, int], None] | None, total: int) -> Callable[[], None]:
    done = 0

    def tick() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    return tick


def _fingerprint(sites: dict[str, SiteData], features: list[str], classes: list[str]) -> str:
    """SHA-256 of all tensors and names; every text is preceded by its length, so that no two contents look alike."""
    digest = hashlib.sha256()

    def add(*texts: str) -> None:
        for text in texts:
            encoded = text.encode()
            digest.update(len(encoded).to_bytes(8, "little") + encoded)

    add("features", *features, "classes", *classes)
    for site, data in sites.items():
        add("site", site, *data.subjects, *data.cases, *(data.parts or []))
        for pixels in (data.inputs, data.targets, *(() if data.covariates is None else (data.covariates,))):
            add(str(pixels.dtype), str(tuple(pixels.shape)))
            if isinstance(pixels, Volumes):
                add(*(record["key"] for record in pixels.about))
            else:
                digest.update(pixels.numpy().data)
    return digest.hexdigest()
