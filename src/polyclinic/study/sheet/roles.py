"""What each column of the tables was taken for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from polyclinic.data.opening.cohort import Opened
from polyclinic.data.tables.findings import finding_classes
from polyclinic.study.checked import CheckedStudy
from polyclinic.study.report.tables import count_text, plain
from polyclinic.study.sheet.sources import Sources, example, frequent, is_visit


@dataclass(frozen=True)
class Role:
    """One line: what is meant, the columns it was taken from, and what that gave."""

    name: str
    columns: list[str]
    words: str


def roles(study: CheckedStudy, opened: Opened, sources: Sources) -> list[Role]:
    """What was taken for site, patient, visit, contrast, unit, label and so on, and which columns have no part."""
    found = [*_people(study, opened, sources), *_targets(study, opened, sources), *_inputs(study, opened)]
    used = {column for role in found for column in role.columns}
    visits = [column for column in sources.columns if column not in used and is_visit(column)]
    if visits:
        together = "visits of a patient stay together in all splits" if study.declaration.data.subject else ""
        found.append(Role("Visit", visits, together or "without `subject` each visit is taken for another patient"))
    left = [column for column in sources.columns if column not in {*used, *visits}]
    words = f"{count_text(len(left))} of {count_text(len(sources.columns))} columns have no part in the study."
    return [*found, Role("Left out", left, words if left else "Every column has a part in the study.")]


def _people(study: CheckedStudy, opened: Opened, sources: Sources) -> Iterator[Role]:
    spec, cells = study.declaration.data, sources.cells
    sites = "1 site" if len(opened.sites) == 1 else f"{len(opened.sites)} sites"
    if spec.where:
        yield Role("Rows", list(spec.where), f"only those with {plain(spec.where)}")
    if spec.partition is not None:
        yield Role("Site", [spec.site] if spec.site else [], f"simulated: patients were shared out among {sites}")
    elif spec.site is not None:
        yield Role("Site", [spec.site], sites)
    else:
        yield Role("Site", [], "each table is a site" if spec.tables else "the table is one site")
    if spec.subject is None:
        yield Role("Patient", [], "no column: every row is taken for a patient of its own")
    else:
        people = sum(len(set(data.subjects)) for data in opened.sites.values())
        pattern = ""
        if spec.subject_pattern is not None:
            shown = example(cells[spec.subject], cells["_subject"])
            pattern = f"; the part that {spec.subject_pattern} finds" + (f", such as {shown}" if shown else "")
        first = cells["_subject"].dropna().unique()[:3]
        yield Role("Patient", [spec.subject], f"{count_text(people)}, such as {', '.join(first)}{pattern}")
    if study.declaration.evaluation.split is not None:
        parts = Counter(part for data in opened.sites.values() for part in data.parts or [])
        yield Role("Part of the study", [study.declaration.evaluation.split], frequent(parts))


def _targets(study: CheckedStudy, opened: Opened, sources: Sources) -> Iterator[Role]:
    spec, target = study.declaration.data, study.declaration.target
    if target == "masks":
        given = spec.model_dump(mode="json")
        mask, named = given["mask"], given["mask_classes"]
        meaning = {"column": mask} if isinstance(mask, str) else {**mask}
        column = meaning.pop("column")
        said = {name: value for name, value in meaning.items() if value not in (None, [])}
        words = "what is not background is foreground" if named is None else _structures(named)
        yield Role("Mask", [column], "; ".join(filter(None, (words, plain(said)))))
        return
    if target == "times":
        yield Role("Time", [str(spec.time)], f"of the event, or until when it was not seen, in {spec.time_unit}")
        means = "1 where it happened" if spec.positive is None else f"it happened: {plain(spec.positive)}"
        texts = Counter(str(cell) for cell in sources.cells[str(spec.event)].dropna())
        yield Role("Event", [str(spec.event)], f"{means}. In the table: {frequent(texts, 8)}")
        return
    if target == "findings":
        for name, classes in finding_classes(spec).items():
            texts = Counter(str(cell) for cell in sources.cells[name].dropna())
            yield Role("Finding", [name], f"{', '.join(classes)}. In the table: {frequent(texts, 8)}")
        return
    if target == "images":
        asked = spec.undersampling.model_dump() if spec.undersampling else {}
        yield Role("Image to reconstruct", spec.image_columns, f"from part of its k-space: {plain(asked)}")
        return
    label = [spec.label] if spec.label else []
    if target == "numbers":
        yield Role("Number to predict", label, "in the unit of its column")
        return
    words = ", ".join(opened.classes)
    if spec.positive is not None:
        values = spec.positive if isinstance(spec.positive, list) else [spec.positive]
        words = f"positive: {', '.join(map(str, values))}; all others negative"
    texts = Counter(str(cell) for cell in sources.cells[spec.label].dropna()) if spec.label else Counter[str]()
    yield Role("Label", label, f"{words}. In the table: {frequent(texts, 8)}")


def _structures(named: dict[str, Any] | list[str]) -> str:
    pairs = named.items() if isinstance(named, dict) else zip(named, range(1, len(named) + 1), strict=True)
    return "; ".join(f"{name} = {plain(value)}" for name, value in pairs)


def _inputs(study: CheckedStudy, opened: Opened) -> Iterator[Role]:
    spec = study.declaration.data
    if spec.image is not None:
        if spec.preprocessing is not None:
            several = "each column is a contrast and becomes a channel, in this order"
            yield Role("Contrast", spec.image_columns, several if len(spec.image_columns) > 1 else "one image a case")
            yield Role("Unit", [], "voxel sizes are in millimetres, as the images' headers tell them")
        else:
            colour = "red, green and blue" if spec.channels == "rgb" else "grey"
            yield Role("Picture", spec.image_columns, f"brought to {_by(spec.size)} pixels, {colour}")
            yield Role("Unit", [], "pictures tell no size in millimetres: distances are in pixels")
        return
    columns = list(dict.fromkeys(_column(name, spec.categorical) for name in opened.features))
    words = f"{count_text(len(columns))} column{'' if len(columns) == 1 else 's'}"
    if spec.categorical:
        are = "is" if len(spec.categorical) == 1 else "are"
        words += f", of which {count_text(len(spec.categorical))} {are} encoded by value"
    yield Role("Features", columns, words)
    if spec.divide_by is not None:
        yield Role("Divided by", [spec.divide_by], "every feature that is a number is divided by this column")
    if opened.covariates:
        yield Role("Covariates", list(opened.covariates), "for harmonisation")


def _column(feature: str, categorical: list[str]) -> str:
    """The column of the table that a feature was made of."""
    return next((name for name in categorical if feature.startswith(f"{name}=")), feature)


def _by(size: tuple[int, int] | None) -> str:
    return "×".join(map(str, size or ()))
