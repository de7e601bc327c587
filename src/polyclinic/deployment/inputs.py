"""Cases that a model is to predict: a table, a manifest of images, or a folder of them; nothing of a label is read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from polyclinic.data.bags import Bags
from polyclinic.data.cases import NO_CLASS, Counts, SiteData
from polyclinic.data.opening.images import read_images
from polyclinic.data.readers.files import list_files, maybe_dicom
from polyclinic.data.readers.nifti.read import is_nifti, pair_of
from polyclinic.data.readers.read import reader_of
from polyclinic.data.spec import DataSpec
from polyclinic.data.tables.bags import bag_numbers
from polyclinic.data.tables.codes import one_text_each
from polyclinic.data.tables.features import encode_covariates, encode_features
from polyclinic.data.tables.frames import Frame
from polyclinic.data.tables.rows import Rows, read_rows, reject_rows
from polyclinic.data.tables.table import open_table as read_table
from polyclinic.data.volumes.store import Volumes
from polyclinic.errors import DataError, ModelError, nearest
from polyclinic.notes import Note
from polyclinic.study.final_model.description import Description

#: Cases that are read at once: pictures, volumes, and bags of pictures.
PICTURES_AT_ONCE, VOLUMES_AT_ONCE, BAGS_AT_ONCE = 256, 4, 8
#: What a site is called where nobody names it.
NAMELESS = "new"
_PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".gif")


@dataclass
class Cases:
    """Cases of one or several sites, read when they are needed.

    Where cases are bags, the position of a case is that of its first row that can be used.

    Attributes:
        rows: all rows, those that can't be used with the reason.
        spec: how they are read; paths are those of the new cases.
        folder: to which paths are relative.
        features: of tables, float32 ``[N, F]``; empty for images.
        covariates: float64 ``[N, K]``, or None.
        failures: position -> why an image could not be read; grows while images are.
        notes: what a person should know.
        depths: site -> how many bits white has in its pictures of 16 bits, where its part of the model tells it.
    """

    rows: Rows
    spec: DataSpec
    folder: Path
    features: npt.NDArray[np.float32]
    covariates: npt.NDArray[np.float64] | None
    failures: dict[int, str] = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)
    depths: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rows.cases())

    @cached_property
    def bags(self) -> dict[int, npt.NDArray[np.intp]]:
        """Position of each case that is a bag -> positions of its usable rows; empty where cases are rows."""
        if "bag" not in self.rows.origin:
            return {}
        usable, numbers = np.flatnonzero(self.rows.usable), bag_numbers(self.rows.origin)
        places = pd.Series(usable).groupby(numbers[usable], sort=False)
        return {int(own.iloc[0]): own.to_numpy() for _, own in places}

    @property
    def usable(self) -> npt.NDArray[np.intp]:
        """Positions of the cases that can be used, as far as their cells tell."""
        if self.spec.bags is not None:
            return np.array(list(self.bags), dtype=np.intp)
        return np.flatnonzero(self.rows.usable)

    @property
    def sites(self) -> list[str]:
        """Names of the sites, in order."""
        return list(dict.fromkeys(self.rows.origin["site"].iloc[self.usable].tolist()))

    def of(self, site: str) -> npt.NDArray[np.intp]:
        """Positions of the usable rows of a site."""
        return self.usable[(self.rows.origin["site"] == site).to_numpy()[self.usable]]

    def read(self, site: str, positions: npt.NDArray[np.intp], cache: Path) -> tuple[SiteData | None, list[int]]:
        """Some cases of a site, and their positions; images that can't be read are counted among the ``failures``.

        Args:
            site: its name.
            positions: which cases.
            cache: folder for prepared volumes.
        """
        inputs: Tensor | Volumes | Bags | None
        if self.spec.bags is None:
            inputs, there, unread = self._rows(site, positions, cache)
            self.failures |= unread
        else:
            inputs, there = self._bags(site, positions, cache)
        if inputs is None or not there:
            return None, []
        origin = self.rows.origin.iloc[there]
        spacings = [tuple(one["grid_spacing"]) for one in inputs.about] if isinstance(inputs, Volumes) else None
        own = None if self.covariates is None else torch.from_numpy(self.covariates[there])
        targets = torch.full((len(there),), NO_CLASS, dtype=torch.int64)
        name = "case" if self.spec.bags is None else "bag"
        return SiteData(
            site, inputs, targets, origin["subject"].tolist(), origin[name].tolist(), None,
            Counts(len(there), len(there)), spacings, own, undersampling=self.spec.undersampling,
        ), there  # fmt: skip

    def _rows(
        self, site: str, positions: npt.NDArray[np.intp], cache: Path
    ) -> tuple[Tensor | Volumes | None, list[int], dict[int, str]]:  # fmt: skip
        """What is in some rows, positions of those that could be read, and why the others could not."""
        if self.spec.image is None:
            return torch.from_numpy(self.features[positions]), list(map(int, positions)), {}
        changes = {"cache": str(cache), "max_unreadable": 1.0, "bits": self.spec.bits or self.depths.get(site)}
        spec = self.spec.model_copy(update=changes)
        found = read_images(site, self.rows.at(positions), spec, self.folder, "labels", lambda: None, complete=False)
        self.notes += found.notes
        there = [int(one) for place, one in enumerate(positions) if place not in found.failures]
        return found.pixels, there, {int(positions[place]): why for place, why in found.failures.items()}

    def _bags(self, site: str, positions: npt.NDArray[np.intp], cache: Path) -> tuple[Bags | None, list[int]]:
        """Some bags, with those of their instances that could be read, and the positions of those that have any."""
        rows = np.concatenate([positions[:0], *(self.bags[case] for case in positions.tolist())])
        found, there, unread = self._rows(site, rows, cache)
        counts = {case: int(np.isin(self.bags[case], there).sum()) for case in positions.tolist()}
        self.failures |= {case: unread[case] for case, count in counts.items() if not count}
        if not isinstance(found, Tensor):
            return None, []
        used = {case: count for case, count in counts.items() if count}
        return Bags.of(found, list(used.values())), list(used)

    def rejected(self) -> dict[int, str]:
        """Position -> why a case was not predicted."""
        reasons = self.rows.reasons
        found = {int(place): str(reason) for place, reason in enumerate(reasons) if reason}
        if self.spec.bags is not None:  # a bag is not predicted where none of its rows can be used
            numbers = bag_numbers(self.rows.origin)
            used = set(numbers[self.rows.usable].tolist())
            again = pd.Series(numbers).duplicated() & (numbers >= 0)
            found = {place: why for place, why in found.items() if numbers[place] not in used and not again[place]}
        return dict(sorted({**found, **self.failures}.items()))

    def reasons(self) -> Counter[str]:
        """Reason -> cases."""
        return Counter(self.rejected().values())


def open_table(description: Description, table: Path | Frame, site: str | None) -> Cases:
    """The rows of a table, or of a manifest of images.

    Args:
        description: of the model, which says which columns are read.
        table: the file; or a table of a Python program, whose paths of images are relative to the working folder.
        site: whose cases they are; None takes the column that named the sites of the study, if the table has it.

    Raises:
        DataError: P201 to P203, the file can't be read, a column is missing, or a value is none.
        ModelError: P702, no case can be used.
    """
    entry, folder = (table.entry, Path()) if isinstance(table, Frame) else (Path(table).name, Path(table).parent)
    spec = _spec(description, entry, folder, site)
    rows = read_rows(spec, folder, None, may_be_none=True)
    if not len(rows):
        raise ModelError("P702", f"The table {table.name!r} has no rows.", "Give a table with a row for each case.")
    return _cases(description, spec, rows, folder, site)


def open_images(description: Description, folder: Path, site: str | None) -> Cases:
    """The images below a folder: files, and folders with one DICOM series; a case and a patient each.

    Raises:
        ModelError: P702, the model needs several images a case, or the folder has none.
    """
    folder = Path(folder)
    if description.is_table:
        raise ModelError("P702", "The model predicts rows of a table, not images.", "Give the table with --table.")
    columns = description.data.image_columns
    if description.data.bags is not None:
        raise ModelError("P702", "A case of this model is a bag of images, and a folder does not say which belong "
                         "together.", "Give a table that names the bag of each image: --images TABLE.")  # fmt: skip
    if len(columns) > 1 or description.agreement.values or description.covariates:
        text = (
            f"A case of this model has the columns {', '.join(columns)} and others, and a folder does not have these."
        )
        raise ModelError("P702", text, "Give a table with them: --images TABLE.")
    if not folder.is_dir():
        raise DataError("P201", f"The folder {folder.name!r} can't be found.", "Give a folder with images, or a table.")
    found = _image_paths(folder, volumes=description.data.preprocessing is not None)
    if not found:
        raise ModelError("P702", f"The folder {folder.name!r} has no image that this model could predict.",
                         "Volumes are NIfTI or DICOM, pictures PNG, JPEG or TIFF.")  # fmt: skip
    cells = pd.DataFrame({columns[0]: pd.Series(found, dtype="str")})
    origin = pd.DataFrame({"case": found, "subject": found, "folder": str(folder), "site": site or NAMELESS})
    origin["part"] = None
    rows = Rows(cells, origin, np.full(len(found), "", dtype=object), np.ones(len(found), dtype=np.bool_), [], columns)
    spec = description.data.model_copy(update={"root": None, "subject": None, "site": None})
    return Cases(rows, spec, folder, np.empty((len(found), 0), dtype=np.float32), None)


def _spec(description: Description, entry: str, folder: Path, site: str | None) -> DataSpec:
    """How the new table is read: as the study's, but without labels."""
    data = description.data
    table = read_table(entry, folder, data.columns)
    available = table.cells.columns.tolist()
    _check_columns(description, available, table.title)
    truth = (
        "label", "labels", "time", "event", "mask", "box", "structures", "mask_classes", "positive", "classes",
        "findings",
    )  # fmt: skip
    changes: dict[str, object] = {**dict.fromkeys(truth), "unlabelled": "reject", "max_unreadable": 1.0}
    changes |= {"table": entry, "tables": None, "root": None}
    if data.site in available and site is not None:
        _check_site(table.cells[str(data.site)], data, site, table.title)
    if site is not None or data.site not in available:
        changes["site"] = None
    if data.subject is not None and data.subject not in available:
        changes["subject"] = changes["subject_pattern"] = None
    if description.is_table:
        changes["features"], changes["exclude"] = list(description.agreement.features), []
    return data.model_copy(update=changes)


def _check_site(cells: pd.Series[str], data: DataSpec, site: str, title: str) -> None:
    """The table's own column of sites must not name others than the site that is given.

    Raises:
        ModelError: P702 with the other sites.
    """
    others = cells[(cells != site) & ~cells.isin(data.missing)]
    if others.empty:
        return
    named = list(dict.fromkeys(others))
    more = f" and {len(named) - 3} more" if len(named) > 3 else ""
    text = (
        f"{title} names the site {', '.join(map(repr, named[:3]))}{more} in {len(others)} rows (column {data.site!r})"
    )
    raise ModelError("P702", f"{text}, and not {site!r}.",
                     "Leave out --site, or take the other rows or the column out of the table.")  # fmt: skip


def _check_columns(description: Description, available: Sequence[str], title: str) -> None:
    """All that the model reads must be there.

    Raises:
        ModelError: P702 with what is missing.
    """
    data = description.data
    needed = dict.fromkeys(description.agreement.features if description.is_table else data.image_columns)
    needed |= dict.fromkeys([data.bags.column or str(data.subject)] if data.bags else [])
    needed |= dict.fromkeys([*description.covariates, *([data.divide_by] if data.divide_by else [])])
    lacking = [name for name in needed if name not in available]
    if lacking:
        more = f" and {len(lacking) - 5} more" if len(lacking) > 5 else ""
        text = f"{title} has no {', '.join(map(repr, lacking[:5]))}{more}, which the model needs."
        raise ModelError("P702", text, nearest(lacking[0], [name for name in available if name not in needed]))


def _cases(description: Description, spec: DataSpec, rows: Rows, folder: Path, site: str | None) -> Cases:
    rows.chosen = list(description.agreement.features) if description.is_table else []
    notes = reject_rows(rows, spec, "labels", None)
    if spec.site is None:
        rows.origin["site"] = site or NAMELESS
    _reject_unknown(rows, description)
    codes = (description.agreement.values, description.agreement.spellings)
    features, covariates = np.empty((len(rows), 0), dtype=np.float32), None
    if description.is_table:
        kept = rows.usable  # what others hold need not be a number
        encoded = encode_features(rows.cells[kept], description.agreement.features, codes, spec)[0]
        features = np.full((len(rows), encoded.shape[1]), np.nan, dtype=np.float32)
        features[kept] = encoded
    combat = spec.harmonisation.combat
    if combat is not None:
        cells = rows.cells.copy()
        kept = rows.usable
        covariates = np.zeros((len(rows), sum(map(len, description.covariates.values()))))
        covariates[kept] = encode_covariates(cells[kept], codes, combat)[0]
    return Cases(rows, spec, folder, features, covariates, notes=notes)


def _reject_unknown(rows: Rows, description: Description) -> None:
    """Rows with a code that no site had: the model has no weight for it."""
    for column, spellings in description.agreement.spellings.items():
        if column not in rows.cells:
            continue
        texts = one_text_each({*spellings, *rows.cells[column].dropna()})
        known = {texts[spelling]: spelling for spelling in spellings}
        other = {text: known[same] for text, same in texts.items() if same in known and text not in spellings}
        cells = rows.cells[column] = rows.cells[column].replace(other)  # 1.0 where the sites wrote 1
        strange = (cells.notna() & ~cells.isin(list(spellings))).to_numpy()
        for value in dict.fromkeys(cells[strange].tolist()):
            text = f"{column} is {str(value)[:40]!r}, which no site that trained had"
            rows.reject(strange & (cells == value).to_numpy(), text)


def _image_paths(folder: Path, *, volumes: bool) -> list[str]:
    """Images below a folder, as paths relative to it; a folder of DICOM files is one image."""
    found: dict[str, None] = {}
    for path in list_files(folder):
        relative = path.relative_to(folder)
        if volumes and (is_nifti(path) or reader_of(path)):
            found[str(relative)] = None
        elif volumes and len(pair_of(path)) == 2:  # its header is the image
            continue
        elif volumes and maybe_dicom(path):
            found[str(relative.parent)] = None
        elif not volumes and (path.suffix.lower() in _PICTURES or maybe_dicom(path)):
            found[str(relative)] = None
    return list(found)


def evenly(positions: npt.NDArray[np.intp], most: int) -> npt.NDArray[np.intp]:
    """At most so many of the positions, spread evenly."""
    if len(positions) <= most:
        return positions
    return positions[np.linspace(0, len(positions) - 1, most).round().astype(np.intp)]
