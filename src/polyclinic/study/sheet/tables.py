"""The tables of the data sheet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from polyclinic.data.cases import Counts, SiteData, reasons_text
from polyclinic.data.opening.cohort import Opened
from polyclinic.data.opening.public import PublicFacts
from polyclinic.study.checked import CheckedStudy
from polyclinic.study.drawing import Numbers
from polyclinic.study.report.tables import SiteRow, count_text, rows_of_sites
from polyclinic.study.sheet.choice import class_voxels
from polyclinic.study.sheet.montage import voxel_volume
from polyclinic.study.sheet.sources import Sources

#: Columns of the sites' table that tell what volumes were like as they were read.
AS_READ = ("shapes", "spacing", "orientations", "intensity", "vendors", "field strengths")
#: Names listed at most in one place of the page.
MOST_NAMES = 500
#: A value is far out beyond so many times the middle half of its site's values.
FAR, MOST_FAR = 4.0, 15


@dataclass(frozen=True)
class Table:
    """Heads and rows of texts; the first cell of a row names it."""

    heads: list[str]
    rows: list[list[str]]


@dataclass(frozen=True)
class Names:
    """Some cases by name."""

    title: str
    names: list[str]
    more: int

    @property
    def count(self) -> int:
        """How many cases there are."""
        return len(self.names) + self.more

    @classmethod
    def of(cls, title: str, names: list[str]) -> Names:
        """The first `MOST_NAMES`, and how many there are besides."""
        return cls(title, names[:MOST_NAMES], max(len(names) - MOST_NAMES, 0))


def case_rows(sites: pd.DataFrame, opened: Opened, sizes: Sequence[int] = ()) -> list[SiteRow]:
    """A row a site, those that are left out as well, and one for all sites; ``sizes`` as in `rows_of_sites`."""
    lost = [_left_out(site, counts) for site, counts in opened.left_out.items()]
    table = pd.concat([sites, pd.DataFrame(lost)], ignore_index=True) if lost else sites
    labelled = not any(data.masked for data in opened.sites.values())
    return rows_of_sites(table, opened.classes if labelled else [], sites["site"][sites["scored"]].tolist(), sizes)


def _left_out(site: str, counts: Counts) -> dict[str, object]:
    return {"site": site, "found": counts.found, "used": 0, "rejected": counts.rejected.total(),
            "reasons": reasons_text(counts.rejected), "note": "left out: no case can be used"}  # fmt: skip


def rejected(opened: Opened) -> dict[str, list[Names]]:
    """Site -> its rejected cases by reason, the most frequent reason first."""
    every = {site: data.counts for site, data in opened.sites.items()} | opened.left_out
    return {
        site: [
            Names.of(reason, counts.cases[reason])
            for reason in sorted(counts.cases, key=lambda r: -len(counts.cases[r]))
        ]
        for site, counts in every.items()
        if counts.cases
    }


def patients(opened: Opened) -> Table:
    """How many cases each patient has."""
    rows = []
    for site, data in opened.sites.items():
        each = Counter(Counter(data.subjects).values())
        texts = [f"{count_text(people)} with {cases}" for cases, people in sorted(each.items())]
        names = list(dict.fromkeys(data.subjects))
        rows.append([site, count_text(len(names)), ", ".join(texts), ", ".join(names[:3])])
    return Table(["Site", "Patients", "Cases each", "Such as"], rows)


def structures(opened: Opened) -> Table | None:
    """In how many masks each structure is, and how large it is there; None without masks."""
    names, rows = opened.classes[1:], []
    for site, every in opened.sites.items():
        data = every.with_labels()
        if not data.masked:
            return None
        sizes, unit = _sizes(data, len(opened.classes))
        rows.append([site, count_text(len(data)), *(_spread(sizes[:, place], unit) for place in range(len(names)))])
    return Table(["Site", "Masks", *names], rows)


def _sizes(data: SiteData, classes: int) -> tuple[Numbers, str]:
    """Size of each structure in each mask ``[N, classes - 1]``, and the unit."""
    rows, unit = [], "%"
    for place in range(len(data)):
        counts, voxel = class_voxels(data, place, classes), voxel_volume(data, place)
        unit = "%" if voxel is None else "ml"
        rows.append(counts[1:] * (100 / max(counts.sum(), 1) if voxel is None else voxel))
    return np.array(rows), unit


def _spread(sizes: Numbers, unit: str) -> str:
    there = sizes[sizes > 0]
    if not len(there):
        return "in no mask"
    low, middle, high = there.min(), np.median(there), there.max()
    where = "" if len(there) == len(sizes) else f"in {len(there)}: "
    ends = f" ({low:.3g}–{high:.3g})" if high > low else ""
    return f"{where}{middle:.3g}{ends}\u00a0{unit}"


def as_read(study: CheckedStudy, opened: Opened, sites: pd.DataFrame, sources: Sources) -> Table | None:
    """What the images of each site were like as they were read; None for tables."""
    spec = study.declaration.data
    if spec.image is None:
        return None
    shown = [name for name in AS_READ if name in sites]
    if shown:
        heads = {"spacing": "spacing in mm", "intensity": "intensity: 1 % / median / 99 %"}
        rows = [[str(row[name]) for name in ("site", *shown)] for _, row in sites.iterrows()]
        return Table(["Site", *(heads.get(name, name).capitalize() for name in shown)], rows)
    column, simulated = spec.image_columns[0], spec.partition is not None
    found = {site: sources.headers(data, column, simulated=simulated) for site, data in opened.sites.items()}
    names = [name.capitalize() for name in next(iter(found.values()))]
    return Table(["Site", *names], [[site, *one.values()] for site, one in found.items()])


def numbers(opened: Opened) -> Table | None:
    """The numbers to be predicted; None where there are none."""
    rows = []
    for site, data in opened.sites.items():
        labels = data.with_labels().labels
        if labels is None or not labels.is_floating_point():
            return None
        values = labels.double().numpy()
        ends = (values.min(), *np.percentile(values, (25, 50, 75)), values.max())
        rows.append([site, count_text(len(values)), *(f"{value:.4g}" for value in ends)])
    return Table(["Site", "Cases", "Least", "25 %", "Median", "75 %", "Greatest"], rows)


def features(opened: Opened) -> Table:
    """Every feature over all sites."""
    values = np.concatenate([data.table.double().numpy() for data in opened.sites.values()])
    rows = []
    for name, column in zip(opened.features, values.T, strict=True):
        known = column[np.isfinite(column)]
        ends = (known.min(), *np.percentile(known, (25, 50, 75)), known.max()) if len(known) else ()
        missing = f"{100 * (1 - len(known) / len(column)):.3g}\u00a0%"
        rows.append([name, *(f"{value:.4g}" for value in ends), *[""] * (5 - len(ends)), missing])
    return Table(["Feature", "Least", "25 %", "Median", "75 %", "Greatest", "Missing"], rows)


def far_values(opened: Opened) -> Table | None:
    """The values that lie farthest from their site's others; None where none lies far.

    Distance is from the median, in widths of the middle half of the site's values, or in deviations where that has no
    width. Features with two values have none far.
    """
    found: list[tuple[float, list[str]]] = []
    for site, data in opened.sites.items():
        values = data.table.double().numpy()
        frame = pd.DataFrame(values)
        low, middle, high = frame.quantile([0.25, 0.5, 0.75]).to_numpy()
        several = ((frame > frame.min()) & (frame < frame.max())).any().to_numpy()
        width = np.where(high > low, high - low, frame.std(ddof=0))
        reach = np.nan_to_num(np.abs(values - middle) / np.where(several & (width > 0), width, np.nan))
        for place in np.argsort(-reach, axis=None, kind="stable")[:MOST_FAR].tolist():
            case, feature = divmod(place, values.shape[1])
            if reach[case, feature] > FAR:
                half = f"{low[feature]:.4g} to {high[feature]:.4g}"
                row = [opened.features[feature], site, data.cases[case], data.subjects[case]]
                found.append((float(reach[case, feature]), [*row, f"{values[case, feature]:.6g}", half]))
    found.sort(key=lambda item: -item[0])
    rows = [row for _, row in found[:MOST_FAR]]
    heads = ["Feature", "Site", "Case", "Patient", "Value", "Half of the site's values"]
    if all(row[2] == row[3] for row in rows):  # no column names the patients
        rows, heads = [[*row[:3], *row[4:]] for row in rows], [*heads[:3], *heads[4:]]
    return Table(heads, rows) if rows else None


def _public(facts: PublicFacts | None) -> str:
    if facts is None:
        return ""
    return f"{facts.used} of {facts.found} cases used, without labels; fingerprint {facts.fingerprint}"


def facts(study: CheckedStudy, opened: Opened, sources: Sources, made: str) -> list[tuple[str, str]]:
    """When the page was made, by what, from which files."""
    spec = study.declaration.data
    days = sources.changed(spec.image_columns)
    lines = [
        ("Made", made),
        ("Study file", study.name),
        ("Tables", ", ".join(table.name for table in sources.tables)),
        ("Files last changed", "" if days is None else days[0] if days[0] == days[1] else f"{days[0]} to {days[1]}"),
        ("Fingerprint of the data", opened.fingerprint),
        ("Public set", _public(opened.cohort.public)),
    ]
    return [(name, text) for name, text in lines if text]
