"""The data sheet: one HTML file with what was read, for a person to look at before anything is trained.

It holds no scripts and loads nothing, so it opens offline. It shows patients' images and names: it is for the site
alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from polyclinic.data.opening.cohort import Opened
from polyclinic.errors import ResultsError
from polyclinic.files import write_atomic
from polyclinic.notes import TITLES, Note
from polyclinic.study.checked import CheckedStudy
from polyclinic.study.pictures import structure_colour
from polyclinic.study.provenance import machine, now
from polyclinic.study.report import page as report
from polyclinic.study.report.tables import nested_rows, plain
from polyclinic.study.sheet import tables, values
from polyclinic.study.sheet.montage import Shown, montage
from polyclinic.study.sheet.roles import roles
from polyclinic.study.sheet.sources import Sources
from polyclinic.study.sheet.tables import Names
from polyclinic.study.table_files import has_table, write_table

TEMPLATES = Path(__file__).parent / "templates"
PAGE, NOTES, SITES = "data-sheet.html", "notes.json", "sites.csv"
#: Sections in the order of the page; one without anything to show is left out.
SECTIONS = {
    "notes": "Notes",
    "sites": "Sites and cases",
    "roles": "What was taken for what",
    "pictures": "Pictures",
    "labels": "Numbers to predict",
    "structures": "Structures",
    "intensity": "Intensities",
    "features": "Features",
    "read": "Images as they were read",
    "patients": "Patients",
    "preparation": "How the data is prepared",
    "made": "When and from what",
}


def check_out(out: Path) -> None:
    """Whether the data sheet can be written to a folder; writes nothing.

    Raises:
        ResultsError: P501, it is a file, a results folder, or holds a file that would be lost.
    """
    hint = "Choose another folder with --out."
    if out.exists() and not out.is_dir():
        raise ResultsError("P501", f"{out} is a file, not a folder.", hint)
    if (out / "provenance.json").is_file() or has_table(out / "results.csv"):
        raise ResultsError("P501", f"{out} is a results folder, and a data sheet must stay at the site.", hint)
    others = [name for name in (NOTES, SITES) if (out / name).exists()]
    if others and not (out / PAGE).is_file():
        raise ResultsError("P501", f"{out} has a file {others[0]} that is of no data sheet.", hint)


def write_sheet(study: CheckedStudy, opened: Opened, sites: pd.DataFrame, notes: Sequence[Note], out: Path) -> Path:
    """Write the data sheet, and its notes and counts for other programs (without names of cases).

    Args:
        study: with everything planned.
        opened: its data.
        sites: a row a site, as ``polyclinic check`` prints it.
        notes: all notes.
        out: the folder; it is made. An earlier data sheet is replaced.

    Returns:
        The page.

    Raises:
        ResultsError: P501, the folder can't be used; P502, the disk is full.
    """
    check_out(out)
    page = render(study, opened, sites, notes)
    if not out.exists() or not any(out.iterdir()):
        # Images of patients must not end up in a repository.
        write_atomic(out / ".gitignore", "*\n", durable=False)
    write_atomic(out / PAGE, page, durable=False)
    write_table(out / SITES, sites)
    told = [{**note.to_json(), "title": TITLES[note.number], "cases": len(note.cases)} for note in notes]
    write_atomic(out / NOTES, json.dumps(told, indent=2, ensure_ascii=False) + "\n")
    return out / PAGE


def render(study: CheckedStudy, opened: Opened, sites: pd.DataFrame, notes: Sequence[Note]) -> str:
    """The page as text."""
    environment = Environment(
        loader=FileSystemLoader([TEMPLATES, report.TEMPLATES]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["marked"] = _marked
    content = _content(study, opened, sites, notes)
    styles = report.TEMPLATES / "report.css", TEMPLATES / "sheet.css"
    style = "".join(path.read_text(encoding="utf-8") for path in styles)
    return environment.get_template("sheet.html.j2").render(
        title=study.declaration.study,
        style=Markup(style),  # noqa: S704
        sections={name: title for name, title in SECTIONS.items() if content[name]},
        **content,
    )


def _marked(text: str) -> Markup:
    """Text in which what stands between backticks is code."""
    parts = [escape(part) if place % 2 == 0 else Markup("<code>{}</code>").format(part)
             for place, part in enumerate(str(text).split("`"))]  # fmt: skip
    return Markup("").join(parts)


def _content(study: CheckedStudy, opened: Opened, sites: pd.DataFrame, notes: Sequence[Note]) -> dict[str, Any]:
    sources = Sources.read(study)
    spec, machinery = study.declaration.data, machine()
    content: dict[str, Any] = dict.fromkeys(SECTIONS)
    shown = opened.by_instance()
    if spec.image is None:
        content["features"] = values.feature_panels(shown)
    else:
        found = {site: values.image_values(data) for site, data in shown.sites.items()}
        content["intensity"] = values.intensity_panels(shown, found)
        content["pictures"] = montage(shown, values.windows(found))
    masked = study.declaration.target == "masks"
    colours = [(name, structure_colour(index)) for index, name in enumerate(opened.classes[1:])] if masked else []
    return content | {
        "notes": [(note, TITLES[note.number], Names.of("", list(note.cases))) for note in notes],
        "sites": tables.case_rows(sites, opened, [head.classes for head in study.declaration.heads]),
        "classes": [] if masked else opened.classes,
        "rejected": tables.rejected(opened),
        "roles": roles(study, opened, sources),
        "patients": tables.patients(opened) if spec.subject else None,
        "colours": colours,
        "volumes": spec.preprocessing is not None,
        "ignored": _any_ignored(content["pictures"] or {}),
        "structures": tables.structures(opened),
        "labels": values.number_panel(opened, str(spec.label)),
        "numbers": tables.numbers(opened),
        "all_features": None if spec.image else tables.features(shown),
        "far": None if spec.image else tables.far_values(shown),
        "read": tables.as_read(study, shown, sites, sources),
        "preparation": _preparation(study),
        "plan": "" if study.plan is None else study.plan.reason,
        "made": tables.facts(study, opened, sources, f"{now()[:16].replace('T', ' ')} UTC"),
        "versions": nested_rows(machinery),
        "text": study.text,
        "short": _short(study, opened, sites),
    }


def _any_ignored(pictures: Mapping[str, Sequence[Shown]]) -> bool:
    """Whether a picture shows voxels that play no part."""
    return any(picture.ignored for cases in pictures.values() for one in cases for _, picture in one.layers)


def _short(study: CheckedStudy, opened: Opened, sites: pd.DataFrame) -> str:
    total = sites[["found", "used", "rejected", "patients"]].sum()
    without = sites["unlabelled"].sum() if "unlabelled" in sites else 0
    less = f" ({without} of them without a label)" if without else ""
    people = f" of {total['patients']} patients" if study.declaration.data.subject else ""
    count = "1 site" if len(opened.sites) == 1 else f"{len(opened.sites)} sites"
    return f"{count}, {total['used']} cases{people} used{less}, {total['rejected']} rejected · {study.declaration.task}"


def _preparation(study: CheckedStudy) -> list[tuple[str, str]]:
    """Entries of the study that say what becomes of the data."""
    spec = study.declaration.data
    names = ("preprocessing", "patch", "size", "channels", "scaling", "imputation", "harmonisation", "augmentation")
    content = spec.model_dump(mode="json")
    shown = [name for name in names if content[name] not in (None, [], "none", {})]
    if spec.image is None:
        shown = [name for name in shown if name not in ("size", "channels")]
    else:
        shown = [name for name in shown if name != "imputation" and (name != "channels" or spec.size)]
    return [(name.capitalize(), plain(content[name])) for name in shown]
