"""From what an entry found in a folder to a manifest and a starter study file, with every case accounted for."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from polyclinic.data.cases import Counts
from polyclinic.data.catalogue.artificial import SCHEMES, artificial_sites
from polyclinic.data.catalogue.entry import Choices, Draft, Entry, Label, Prepared, Request
from polyclinic.data.catalogue.layout import LayoutError, reject_repeated
from polyclinic.data.catalogue.studies import starter_study, study_text
from polyclinic.data.pseudonyms import find_salt, keep_salt, pseudonym
from polyclinic.errors import DataError, ResultsError, nearest
from polyclinic.files import write_atomic

MANIFEST, STUDY = "manifest.csv", "study.yaml"
#: Site of cases that name none, in counts.
NO_SITE = "(no site)"
#: Marks an image that was converted: its path is relative to the folder of the manifest.
CONVERTED = "out:"


def prepare(
    entry: Entry,
    source: Path,
    out: Path,
    choices: Choices = Choices(),  # noqa: B008 - frozen
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Prepared:
    """Write ``manifest.csv`` and ``study.yaml`` into ``out``. Images stay where they are unless they need converting.

    Subjects get the names that ``out/manifest.salt`` makes of them; the salt is made at the first call. Doing the same
    again gives the same files.

    Args:
        entry: of the catalogue.
        source: the data set's folder as ``entry.layout`` shows it, or its file.
        out: folder for the manifest, which is made.
        choices: label, classes, sites and sessions.
        progress: called with the number of images converted and of all.

    Raises:
        DataError: P201 when the folder is not as the layout says, P203 for an unknown class, P205 when no case can be
            used, P206 when artificial sites can't be made, P208 for an unknown label or way to tell sites.
        ResultsError: P501 when ``out`` can't be used.
    """
    label_name = _chosen("label", choices.label, list(entry.labels), entry)
    label = entry.labels[label_name]
    # Without classes the first of the artificial ways can't be the default.
    schemes = SCHEMES if label.task == "classification" else reversed(SCHEMES)
    sites_by = _chosen("way to tell sites", choices.sites_by, [*entry.sites_by, *schemes], entry)
    if sites_by == "dirichlet" and label.task != "classification":
        raise DataError(
            "P208", f"Dirichlet sites need classes, and {label_name!r} has none ({label.task}).", "Use quantity."
        )
    if not source.exists():
        raise DataError("P201", f"There is no {source}.", "Give with --from the folder that holds the data set.")
    if out.absolute() == source.absolute():
        raise ResultsError("P501", "--out is the data set's own folder.", "Choose another folder for the manifest.")
    try:
        draft = entry.draft(Request(source, out, label_name, sites_by, progress))
    except LayoutError as error:
        raise DataError(
            "P201",
            f"{source} is not {entry.title} as the catalogue knows it. {error}",
            f"`polyclinic data describe {entry.name}` shows the layout that is expected.",
        ) from None
    rows = draft.rows.reset_index(drop=True)
    if not len(rows):
        raise DataError("P201", f"No case of {entry.title} was found in {source}.",
                        f"`polyclinic data describe {entry.name}` shows the layout that is expected.")  # fmt: skip
    _reject_missing(rows, draft, label, source, out, natural=sites_by not in SCHEMES)
    _reject_repeated(rows, draft, label, natural=sites_by not in SCHEMES)
    positive = _reject_classes(rows, label, choices)
    notes = [*draft.notes, *_reject_sessions(rows, choices)]
    _require_usable(rows)
    if sites_by in SCHEMES:
        used = rows[rows["reason"] == ""]
        rows["site"] = ""
        classes = used[label.column] if label.task == "classification" else used["subject"]
        drawn = artificial_sites(used["subject"], classes, sites_by, choices.sites, choices.alpha, choices.seed)
        rows.loc[used.index, "site"] = drawn
        notes.append(f"The sites are artificial ({sites_by}, {choices.sites} sites, alpha {choices.alpha:g}, "
                     f"seed {choices.seed}).")  # fmt: skip
    return _write(entry, draft, label, rows, positive, notes, source, out)


def _chosen(what: str, wanted: str | None, valid: list[str], entry: Entry) -> str:
    if wanted is None:
        return valid[0]
    if wanted not in valid:
        hint = nearest(wanted, valid)
        raise DataError("P208", f"{entry.title} has no {what} {wanted!r}.", hint)
    return wanted


def _reject(rows: pd.DataFrame, where: pd.Series[bool], reason: str) -> None:
    """Give the rows a reason, unless they have one."""
    rows.loc[where & (rows["reason"] == ""), "reason"] = reason


def _reject_missing(rows: pd.DataFrame, draft: Draft, label: Label, source: Path, out: Path, *, natural: bool) -> None:
    """Reject rows without a subject, site, label or image file."""
    _reject(rows, rows["subject"] == "", "subject is missing")
    if natural:
        _reject(rows, rows["site"] == "", "site is unknown")
    if label.findings:
        _reject(rows, (rows[list(label.findings)] == "").all(axis=1), "every finding is missing")
    else:
        for column in label.columns:
            _reject(rows, rows[column] == "", f"{column} is missing")
    numbers = pd.to_numeric(rows[label.column], errors="coerce")
    if label.task == "regression":
        _reject(rows, numbers.isna(), f"{label.column} is not a number")
    if label.task == "survival":
        _reject(rows, ~numbers.gt(0), f"{label.column} is not above 0")
    if draft.kind == "table":
        return
    root = source if source.is_dir() else source.parent
    for column in [*draft.images, *([draft.mask] if draft.mask and label.task == "segmentation" else [])]:
        _reject(rows, rows[column] == "", f"{column} is missing")
        used = rows[rows["reason"] == ""]
        absent = [not _on_disk(cell, root, out).exists() for cell in used[column]]
        rows.loc[used.index[absent], "reason"] = f"{column} file is missing"


def _reject_repeated(rows: pd.DataFrame, draft: Draft, label: Label, *, natural: bool) -> None:
    """Count an image, or a visit in a table, once; not at all if its rows contradict each other."""
    if draft.kind == "table":
        if "session" in rows and "bag" not in draft.data:
            others = rows.columns.difference(["subject", "session", "reason"])
            reject_repeated(rows, ["subject", "session"], list(others), "visit")
        return
    # One image may have several masks, of several readers.
    key = [*draft.images, draft.mask] if draft.mask and label.task == "segmentation" else draft.images
    told = [name for name in ("subject", *(["site"] if natural else []), *label.columns) if name not in key]
    reject_repeated(rows, key, told, "image")


def _on_disk(cell: str, root: Path, out: Path) -> Path:
    return out / cell.removeprefix(CONVERTED) if cell.startswith(CONVERTED) else root / cell


def _reject_classes(rows: pd.DataFrame, label: Label, choices: Choices) -> tuple[str, ...]:
    """Reject rows of classes that were not asked for, and return the positive classes."""
    if label.task != "classification":
        if choices.positive or choices.against:
            raise DataError("P208", f"{label.column!r} has no classes ({label.task}).",
                            "Leave --positive and --against out.")  # fmt: skip
        return ()
    positive = choices.positive or label.positive
    against = choices.against or (() if choices.positive else label.against)
    found = sorted(set(rows[label.column]) - {""})
    for name in (*choices.positive, *choices.against):
        if name not in found:
            raise DataError("P203", f"No case has the {label.column} {name!r}.", nearest(name, found))
    if not positive and not against:
        return ()
    if not positive:
        positive = tuple(name for name in found if name not in against)
    if set(positive) & set(against):
        raise DataError("P203", "--positive and --against name the same class.", "Name each class once.")
    if against:
        others = ~rows[label.column].isin([*positive, *against])
        _reject(rows, others, f"{label.column} is neither {' or '.join(positive)} nor {' or '.join(against)}")
    return tuple(name for name in positive if name in found)


def _reject_sessions(rows: pd.DataFrame, choices: Choices) -> list[str]:
    """Keep the first usable session of each subject, unless all are asked for."""
    if "session" not in rows or choices.sessions == "all":
        return []
    used = rows[rows["reason"] == ""]
    later = used.index[used.duplicated("subject")]
    rows.loc[later, "reason"] = "a later session of the same subject"
    return ["Only the first session of each subject is used; `--sessions all` takes all."] if len(later) else []


def _require_usable(rows: pd.DataFrame) -> None:
    if (rows["reason"] == "").any():
        return
    reasons = "; ".join(f"{reason}: {number}" for reason, number in Counter(rows["reason"]).most_common(4))
    raise DataError("P205", f"None of the {len(rows)} cases found can be used ({reasons}).",
                    "Compare the folder with the layout that `polyclinic data describe` shows.")  # fmt: skip


def _write(
    entry: Entry, draft: Draft, label: Label, rows: pd.DataFrame, positive: tuple[str, ...], notes: list[str],
    source: Path, out: Path,
) -> Prepared:  # fmt: skip
    used = rows[rows["reason"] == ""]
    columns = [name for name in rows.columns if name not in {"site", "subject", "reason"}]
    manifest = used[["site", "subject", *columns]].copy()
    root = _relocate(manifest, draft, source, out)
    salt = find_salt(out / MANIFEST, None)
    keep_salt(out / MANIFEST, salt)
    manifest["subject"] = [pseudonym(subject, salt, "sub") for subject in manifest["subject"]]
    manifest = manifest.sort_values("site", kind="stable")
    sites = sorted(manifest["site"].unique())
    if len(sites) == 1:
        notes = [*notes, "All cases are of one site; `--sites-by` offers other ways."]
    classes = {site: Counter(manifest.loc[manifest["site"] == site, label.column]) for site in sites}
    if label.task != "classification":
        classes = {}
    found_classes = 2 if positive else len({name for here in classes.values() for name in here})
    content = starter_study(entry, draft, label, positive, found_classes, len(sites), root)
    text = study_text(entry, content, notes)
    path = out / STUDY
    if path.is_file() and path.read_text(encoding="utf-8") != text:
        raise ResultsError("P501", f"{out} has another {STUDY} already.", "Delete it, or choose another --out.")
    write_atomic(out / MANIFEST, manifest.to_csv(index=False, lineterminator="\n"))
    write_atomic(path, text)
    subjects = {site: int(manifest.loc[manifest["site"] == site, "subject"].nunique()) for site in sites}
    return Prepared(out / MANIFEST, path, _counts(rows), classes, subjects, notes)


def _relocate(manifest: pd.DataFrame, draft: Draft, source: Path, out: Path) -> str | None:
    """Make all image paths relative to one folder, and return it relative to ``out``; None: ``out`` itself."""
    columns = [
        name for name in (*draft.images, *draft.further_images, draft.mask) if name is not None and name in manifest
    ]
    cells = [cell for name in columns for cell in manifest[name] if cell]
    if not cells:
        return None
    if all(cell.startswith(CONVERTED) for cell in cells):
        for name in columns:
            manifest[name] = manifest[name].str.removeprefix(CONVERTED)
        return None
    # Without resolving links: the study's reader joins paths in the same way.
    root = source.absolute() if source.is_dir() else source.absolute().parent
    to_out = _relative(out.absolute(), root)
    for name in columns:
        converted = manifest[name].str.startswith(CONVERTED)
        manifest[name] = np.where(converted, to_out + "/" + manifest[name].str.removeprefix(CONVERTED), manifest[name])
    return _relative(root, out.absolute())


def _relative(path: Path, start: Path) -> str:
    try:
        return Path(os.path.relpath(path, start)).as_posix()
    except ValueError:  # another drive
        return path.as_posix()


def _counts(rows: pd.DataFrame) -> dict[str, Counts]:
    counts = {}
    sites = rows["site"].where(rows["site"] != "", NO_SITE)
    for site in sorted(sites.unique()):
        reasons = rows.loc[sites == site, "reason"]
        rejected = Counter(reason for reason in reasons if reason)
        counts[site] = Counts(len(reasons), int((reasons == "").sum()), rejected)
    return counts
