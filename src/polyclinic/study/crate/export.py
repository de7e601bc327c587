"""Writing a crate: a folder or a zip file."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from tempfile import TemporaryDirectory

from polyclinic.errors import ResultsError
from polyclinic.files import write_atomic, write_error
from polyclinic.study.crate.contents import (
    ABOUT_ATTENTION,
    ABOUT_CHECKLIST,
    ABOUT_MODELS,
    ABOUT_PREDICTIONS,
    ABOUT_REPORT,
    ATTENTION,
    FILES,
    FINAL_MODEL,
    MODELS,
    PREDICTIONS,
    REPORT,
)
from polyclinic.study.crate.metadata import METADATA, About, metadata
from polyclinic.study.ended import is_finished
from polyclinic.study.report.checklists import CHECKLISTS
from polyclinic.study.report.checklists.writing import markdown
from polyclinic.study.report.folder import Folder
from polyclinic.study.report.page import write_report
from polyclinic.study.table_files import has_table, stored

#: A date that zip files can hold, the same for all files: the same results give the same bytes.
_WHEN = (1980, 1, 1, 0, 0, 0)
OVERLAYS = "overlays.safetensors"


@dataclass(frozen=True)
class Crate:
    """What was written.

    Attributes:
        path: folder or zip file.
        files: how many files, without the metadata.
        told: sentences on what was left out, and what to look at before it is given away.
    """

    path: Path
    files: int
    told: list[str] = field(default_factory=list)


def export_crate(
    folder: Path, out: Path, *, authors: Sequence[str] = (), licence: str | None = None, predictions: bool = False,
    models: bool = True,
) -> Crate:  # fmt: skip
    """Write a results folder as an RO-Crate.

    Only files that are known go into it: no folder of a site, no pictures of patients (a report with pictures is
    written anew without them), and no predictions unless they are asked for.

    Args:
        folder: of a finished study.
        out: a folder that is not there yet or is empty, or a new file whose name ends in ``.zip``.
        authors: their names; none leaves a field to fill.
        licence: URL of the licence; None leaves a field to fill.
        predictions: whether predictions of single cases, under pseudonyms, go into it.
        models: whether the trained models do.

    Raises:
        ResultsError: P501, the study is not finished or can't be read, or ``out`` is there already; P502, the disk is
            full.
    """
    found = Folder(folder)
    if not is_finished(folder, found.provenance):
        raise ResultsError("P501", f"The study in {folder} is not finished, so there is nothing to archive.",
                           "Finish it with `polyclinic run STUDY --out DIR --resume`.")  # fmt: skip
    zipped = out.suffix.lower() == ".zip"
    if out.exists() and (zipped or not out.is_dir() or any(out.iterdir())):
        raise ResultsError("P501", f"{out} is there already.", "Give --ro-crate the name of a new folder or .zip file.")
    try:
        with TemporaryDirectory() as made:
            root = Path(made) / "crate"
            files = _gather(found, root, predictions=predictions, models=models)
            about = _about(found, authors, licence)
            content = metadata(root, files, about, found.provenance)
            write_atomic(root / METADATA, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
            if zipped:
                _zip(root, [METADATA, *files], out)
            else:
                shutil.copytree(root, out, dirs_exist_ok=True)
    except OSError as error:
        raise write_error(out, error) from None
    return Crate(out, len(files), list(_told(found, authors, licence, predictions=predictions, models=models)))


def _gather(found: Folder, root: Path, *, predictions: bool, models: bool) -> dict[str, str]:
    """Copy the files and write report and checklists; path within the crate -> description, in a fixed order."""
    known = dict(FILES)
    if predictions:
        known |= {PREDICTIONS: ABOUT_PREDICTIONS, ATTENTION: ABOUT_ATTENTION}
    there = ((stored(found.path / name), words) for name, words in known.items())
    files = {file.name: words for file, words in there if file.is_file()}
    root.mkdir(parents=True)
    for name in files:
        shutil.copyfile(found.path / name, root / name)
    _report(found.path, root / REPORT)
    files[REPORT] = ABOUT_REPORT
    for one in CHECKLISTS.values():
        name = f"checklist-{one.name}.md"
        write_atomic(root / name, markdown(one, found))
        files[name] = f"{one.title}. {ABOUT_CHECKLIST}"
    for name, _ in found.models if models else ():
        path = f"{MODELS}{name}"
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(found.path / path, root / path)
        files[path] = ABOUT_MODELS
    for path, words in FINAL_MODEL.items() if models else ():
        if (found.path / path).is_file():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(found.path / path, root / path)
            files[path] = words
    return files


def _report(folder: Path, out: Path) -> None:
    """The report, without pictures of patients."""
    if not (folder / OVERLAYS).is_file():
        write_report(folder, out)
        return
    with TemporaryDirectory() as made:
        for path in folder.iterdir():
            if path.name != OVERLAYS and path.is_file():
                shutil.copyfile(path, Path(made) / path.name)
        for name, _ in Folder(folder).models:  # the report lists their names and sizes
            place = Path(made) / MODELS / name
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / MODELS / name, place)
        write_report(Path(made), out)


def _about(found: Folder, authors: Sequence[str], licence: str | None) -> About:
    name = str(found.study.get("study") or "Study")
    task = str(found.study.get("task") or "A study")
    words = f"{task.capitalize()} at {len(found.sites)} sites with {len(found.methods)} methods, run with Polyclinic."
    return About(name, words, authors, licence, len(found.sites))


def _zip(root: Path, names: Sequence[str], out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    draft = out.with_name(f".{out.name}.draft")
    try:
        with zipfile.ZipFile(draft, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in names:
                about = zipfile.ZipInfo(name, _WHEN)
                about.compress_type = zipfile.ZIP_DEFLATED
                about.external_attr = 0o644 << 16
                with (root / name).open("rb") as source, archive.open(about, "w", force_zip64=True) as target:
                    shutil.copyfileobj(source, target)
        draft.replace(out)
    finally:
        draft.unlink(missing_ok=True)


def _told(
    found: Folder, authors: Sequence[str], licence: str | None, *, predictions: bool, models: bool
) -> Iterator[str]:  # fmt: skip
    if not predictions and has_table(found.path / PREDICTIONS):
        yield "The predictions are left out: they have a row for each test case, with pseudonym, label and score."
    elif predictions and has_table(found.path / PREDICTIONS):
        yield "The predictions are in it: data about single patients, under pseudonyms. Ask the sites first."
    if (found.path / OVERLAYS).is_file():
        yield "The report in it has no pictures of patients."
    if models and found.models:
        yield "The models are in it: a model can reveal something of the cases that it was trained on."
    paths = sorted(set(_absolute(found.study)))
    if paths:
        count = "1 absolute path" if len(paths) == 1 else f"{len(paths)} absolute paths"
        yield f"study.yaml, which is shown in the report, too, names {count} of your computer, such as {paths[0]!r}."
    blank = [word for word, given in (("authors", authors), ("licence", licence)) if not given]
    if blank:
        yield f"To be filled in {METADATA}: {' and '.join(blank)} (--author, --licence)."


def _absolute(content: object) -> Iterator[str]:
    """Texts of a study file that are absolute paths."""
    if isinstance(content, dict):
        for value in content.values():
            yield from _absolute(value)
    elif isinstance(content, list):
        for value in content:
            yield from _absolute(value)
    elif isinstance(content, str) and (PurePosixPath(content).is_absolute() or PureWindowsPath(content).is_absolute()):
        yield content
