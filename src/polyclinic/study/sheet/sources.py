"""The tables and files behind a study's cases: what the page needs to know of them besides the cases themselves."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd

from polyclinic.data.cases import SiteData
from polyclinic.data.readers.files import FORMATS, resolve
from polyclinic.data.readers.read import place_and_series
from polyclinic.data.tables.frames import FRAME
from polyclinic.data.tables.rows import read_rows, reject_rows
from polyclinic.data.tables.table import locate
from polyclinic.study.checked import CheckedStudy

#: Of how many pictures of a site the header is read.
MOST_HEADERS = 200


@dataclass(frozen=True)
class Sources:
    """Where the cases come from.

    Attributes:
        tables: the files with the tables.
        columns: names of all their columns, in order.
        cells: texts of the columns that the study uses, a row a case found, with ``_site``, ``_case``, ``_subject`` and
            ``_folder`` (to which paths are relative).
        allowed: the study file's folder, in which images may lie as well.
    """

    tables: list[Path]
    columns: list[str]
    cells: pd.DataFrame
    allowed: Path

    @classmethod
    def read(cls, study: CheckedStudy) -> Sources:
        """Read the tables of a study whose data could be opened."""
        spec = study.declaration.data
        names = list(spec.tables.values()) if spec.tables is not None else [str(spec.table)]
        tables = [locate(name, study.folder) for name in names if not name.startswith(FRAME)]
        rows = read_rows(spec, study.folder, study.declaration.evaluation.split)
        reject_rows(rows, spec, study.declaration.target, study.declaration.evaluation.split)
        about = {f"_{name}": rows.origin[name] for name in ("site", "case", "subject", "folder")}
        if spec.root is not None:
            about["_folder"] = pd.Series(str(study.folder / spec.root), index=rows.origin.index)
        return cls(tables, rows.available, rows.cells.assign(**about), study.folder)

    def images(self, column: str) -> Iterator[Path]:
        """The files or folders of a column of images; cells that lead nowhere are left out."""
        for cell, folder in zip(self.cells[column], self.cells["_folder"], strict=True):
            path = resolve(cell, Path(folder), (self.allowed,)) if isinstance(cell, str) else None
            if path is not None:
                yield place_and_series(path)[0]

    def changed(self, columns: list[str]) -> tuple[str, str] | None:
        """The days on which the oldest and the newest of the files was last changed."""
        times = []
        for path in [*self.tables, *(path for column in columns for path in self.images(column))]:
            try:
                times.append(path.stat().st_mtime)
            except OSError:
                continue
        if not times:  # frames of a program, without images
            return None
        days = [datetime.fromtimestamp(time, UTC).date().isoformat() for time in (min(times), max(times))]
        return days[0], days[1]

    def headers(self, data: SiteData, column: str, *, simulated: bool) -> dict[str, str]:
        """What pictures of a site were like as they were read: sizes and kinds with counts, the most frequent first."""
        from PIL import Image

        mine = self.cells if simulated else self.cells[self.cells["_site"] == data.site]
        mine = mine[mine["_case"].isin(data.cases)]
        few = Sources(self.tables, self.columns, mine.iloc[:: -(-len(mine) // MOST_HEADERS) or 1], self.allowed)
        sizes, kinds = Counter[str](), Counter[str]()
        for path in few.images(column):
            try:
                with Image.open(path, formats=FORMATS) as image:
                    sizes[f"{image.size[0]}×{image.size[1]}"] += 1
                    kinds[f"{image.format}, {MODES.get(image.mode, image.mode)}"] += 1
            except Exception:  # not a picture file (DICOM), or one that changed since
                kinds["other"] += 1
        return {"width × height": frequent(sizes), "kind": frequent(kinds)}


MODES = {"L": "grey", "RGB": "colour", "RGBA": "colour with transparency", "LA": "grey with transparency",
         "P": "palette", "1": "black and white", "I;16": "grey, 16 bits", "I;16B": "grey, 16 bits",
         "I": "grey, 32 bits"}  # fmt: skip


def frequent(counts: Counter[str], most: int = 4) -> str:
    """``"565×584 (40), 605×700 (20)"``; of many kinds the most frequent ones."""
    shown = [f"{text} ({count})" for text, count in counts.most_common(most)]
    return ", ".join(shown + [f"{len(counts) - most} more"] * (len(counts) > most))


def example(cells: pd.Series[str], subjects: pd.Series[str]) -> str:
    """The first cell that is not the patient itself, with the patient in it; "" where a cell is the patient."""
    for cell, subject in zip(cells, subjects, strict=True):
        if isinstance(cell, str) and isinstance(subject, str) and cell != subject:
            return f"{cell} → {subject}"
    return ""


def is_visit(column: str) -> bool:
    """Whether a column's name is one of those that tell visits apart."""
    return re.fullmatch(r"(session|visit|ses|time_?point)(_?(id|name|number))?", column.lower()) is not None
