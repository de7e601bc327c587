"""Who holds tables and images of one or several sites, and opens each site's cases from them.

A hospital holds those of its own site. An engine that simulates sites on one machine holds those of all; only it can
share patients out among simulated sites, pool cases, and compare the sites' cases with each other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from polyclinic.data.acquisition import acquisition_notes
from polyclinic.data.bags import Bags
from polyclinic.data.cases import NO_CLASS, Counts, SiteData, reasons_text
from polyclinic.data.check import quality_notes
from polyclinic.data.image_notes import volume_notes
from polyclinic.data.masks.classes import MaskFacts
from polyclinic.data.opening.agreement import Agreement, agree
from polyclinic.data.opening.census import Census, take_census
from polyclinic.data.opening.facts import SiteFacts
from polyclinic.data.opening.images import Pixels, image_files, read_images
from polyclinic.data.opening.public import PublicCases, open_public
from polyclinic.data.opening.subgroups import Subgroup, assign_groups, common_groups
from polyclinic.data.originals import Original
from polyclinic.data.partition import partition_rows, site_names
from polyclinic.data.quality.classes import label_notes
from polyclinic.data.quality.doubts import column_notes
from polyclinic.data.quality.leaks import columns_of
from polyclinic.data.quality.patients import check_site_names, patient_notes, torn_notes
from polyclinic.data.quality.tables import image_notes, table_notes
from polyclinic.data.quality.times import time_notes
from polyclinic.data.quality.words import some
from polyclinic.data.spec import PUBLIC, DataSpec, Target
from polyclinic.data.tables.bags import bag_numbers
from polyclinic.data.tables.features import Codes, encode_covariates, encode_features
from polyclinic.data.tables.findings import encode_findings, finding_classes
from polyclinic.data.tables.hints import hint_kinds
from polyclinic.data.tables.labels import encode_labels, encode_numbers
from polyclinic.data.tables.rows import (
    Rows,
    missing_target,
    read_rows,
    reject_rows,
    reject_strangers,
)
from polyclinic.data.tables.times import encode_times
from polyclinic.data.volumes.fingerprint import SiteFingerprint
from polyclinic.data.volumes.prepare import fingerprint_volumes
from polyclinic.data.volumes.store import Volumes
from polyclinic.errors import DataError, nearest
from polyclinic.notes import Note

Labels = npt.NDArray[np.int64] | npt.NDArray[np.float32]
Number = TypeVar("Number", np.float32, np.float64)
Progress = Callable[[int, int], None]

#: Names with another meaning in the results.
RESERVED_SITES = ("all", "pool", "federation", PUBLIC)


class Holder:
    """Tables and images in one place.

    Rows that ``where`` does not select are not part of the study and are not counted. Every other row is used or
    rejected with a reason: a missing patient or label (unless ``unlabelled: use`` keeps cases without a label, or there
    are boxes or names of structures in the place of a mask; such cases come after the others of their site), a label
    outside ``classes``, a code outside ``categories``, an unknown part in the split column, a ``divide_by`` that is
    missing or not positive, a missing feature (only with ``imputation: drop``), an image that is missing or can't be
    read. Rows that name no site belong to none: a warning counts them. An empty cell is always missing. Where
    ``subject_pattern`` does not fit, the whole cell is the patient, and a warning counts such rows. Without ``site`` a
    table is one site with the name of its file. With ``partition`` the patients are shared out among simulated sites
    before any image is read; see `polyclinic.data.partition`. Image paths are relative to ``root`` and may not leave it
    or the study file's folder. Sites that are the public set (``public: {sites: ...}``) are no sites.

    Args:
        spec: the ``data:`` part of the study file, environment variables expanded.
        folder: the study file's folder.
        target: what is to be predicted of each case.
        split: column that fixes the part of each case: train, validation (val, valid, dev) or test.
        progress: called with the number of images read and the number of all images, after each image.
        only: the one site whose rows are held; None takes those of all that the tables name.
        subgroups: by what patients are grouped.
        until: up to when survival is asked for, so that it is counted who was seen longer, and who had the event.

    Attributes:
        sites: names of the sites, sorted (tables: study file order).
        public: the public set, once it is agreed; None without one.

    Raises:
        DataError: P201 to P203, P205, P206 and P503, when a file, a column, a value or a site is not as ``spec`` says.
    """

    def __init__(
        self, spec: DataSpec, folder: Path, target: Target, split: str | None = None, progress: Progress | None = None,
        only: str | None = None, subgroups: Sequence[Subgroup] = (), until: float | None = None,
    ) -> None:  # fmt: skip
        if only is not None and spec.tables is not None:
            spec = spec.model_copy(
                update={"tables": {site: file for site, file in spec.tables.items() if site == only}}
            )
        self.spec, self.folder, self.target, self.split, self.progress = spec, folder, target, split, progress
        self._only, self.subgroups, self.until = only, subgroups, until
        self._rows = read_rows(spec, folder, split, [one.column for one in subgroups], may_be_none=only is not None)
        if only is not None:
            mine = (self._rows.origin["site"] == only).to_numpy()
            if len(mine) and not mine.any():
                raise DataError("P203", f"The table has no row of the site {only!r}.",
                                "Compare the name of the site with the column `site`.")  # fmt: skip
            self._rows = self._rows.where(mine)
        if spec.public is not None and spec.public.sites is not None:
            self._take_out(spec.public.sites)
        self._noted = reject_rows(self._rows, spec, target, split)
        if only is None:  # else other sites may have rows
            self._check_usable()
        self._origin = self._rows.origin["site"].copy()  # as the tables name the sites
        self._dealt: list[Note] = []
        if spec.partition is not None:
            self._share_out()
        self.sites = self._names()
        self._agreement: Agreement | None = None
        self.public: PublicCases | None = None
        self._found: dict[str, tuple[SiteData | None, list[Note]]] = {}

    # Before anything is agreed ----------------------------------------------------------------------------------------

    def census(self, site: str, *, plan: bool = False, floor: int = 1) -> Census:
        """What a site says of its rows.

        Args:
            site: its name.
            plan: whether its images are measured, for a plan. Cases without a label or mask have no part in it.
            floor: values of fewer cases are not named.
        """
        here = (self._rows.origin["site"] == site).to_numpy()
        mine = self._rows.where(here & self._rows.usable)
        volumes = self._fingerprint(mine) if plan and len(mine) else None
        found = len(self._rows.where(here).cases())
        return take_census(mine, found, self.spec, self.target, floor, volumes, self.subgroups)

    def patients(self, site: str) -> int:
        """How many patients a site has among its rows that can be used; without names of patients each case is one."""
        here = (self._rows.origin["site"] == site).to_numpy() & self._rows.usable
        return int(self._rows.origin["subject"][here].nunique())

    def _fingerprint(self, rows: Rows) -> SiteFingerprint | None:
        known = rows.where(rows.labelled)
        files = image_files(known, self.spec, self.folder, self.target)
        total = int((self._rows.usable & self._rows.labelled).sum())
        tick = self._ticker("measured", total)
        return fingerprint_volumes(files, self.spec, self.folder / self.spec.cache, tick) if len(known) else None

    def _check_usable(self) -> None:
        rows = self._rows
        kept = rows.usable & rows.origin["site"].notna().to_numpy()
        if not (kept & rows.labelled).any():
            rows.reject(~rows.labelled, missing_target(self.spec, self.target))
            reasons = np.where(rows.origin["site"].isna(), "site is missing", rows.reasons)
            why = reasons_text(Counter(reasons.tolist())) or "none is left of any site"
            raise DataError("P205", f"No row can be used: {why}.", "Mend the table or the `data:` part.")

    def _names(self) -> list[str]:
        if self.spec.partition is not None:
            return site_names(self.spec.partition)
        found = self._rows.origin["site"].dropna().unique().tolist()
        names = list(self.spec.tables) if self.spec.tables is not None else sorted(found)
        if self.spec.public is not None and self.spec.public.sites is not None:
            names = [name for name in names if name not in (self.spec.public.sites or ())]
        if self._only is not None:
            names = [self._only]
        check_site_names(names)
        for name in names:
            if name in RESERVED_SITES:
                raise DataError("P203", f"A site can't be called {name!r}: the results use this name.",
                                "Rename the site.")  # fmt: skip
        return names

    def _take_out(self, public: Sequence[str]) -> None:
        """Leave out the rows of sites that are the public set.

        Raises:
            DataError: P203, there is no such site.
        """
        home = self._rows.origin["site"]
        there = home.dropna().unique().tolist()
        for name in public:
            if name not in there:
                raise DataError("P203", f"`public: {{sites: ...}}` names {name!r}, which is none of the sites.",
                                nearest(name, there))  # fmt: skip
        self._rows = self._rows.where(~home.isin(public).to_numpy())

    def _share_out(self) -> None:
        """Give every row a simulated site: what the real ones would agree on says of which class a patient is."""
        spec, rows = self.spec, self._rows
        if spec.partition is None:
            raise ValueError("no partition")
        placed = rows.origin["site"].notna().to_numpy()
        mine = rows.where(placed & rows.usable)
        agreement = agree({"": take_census(mine, len(rows), spec, self.target)}, spec, self.target)
        reject_strangers(rows, agreement.spellings)
        kept = placed & rows.usable
        labels = None if self.target in ("masks", "images") else self._labels(rows.where(kept), agreement)
        if self.target == "times" and labels is not None:
            labels = labels[:, 1].astype(np.int64)
        self._dealt = partition_rows(rows, kept, labels, spec.partition, subjects_named=spec.subject is not None)

    # Once it is agreed ------------------------------------------------------------------------------------------------

    def open(self, site: str, agreement: Agreement) -> SiteData | None:
        """A site's cases, as all sites agreed; None without any that can be used. What became of all of them is in
        ``facts``.

        Raises:
            DataError: P203 or P204, values or images are not as they should be.
        """
        if self._agreement != agreement:
            self._agree(agreement)
        if site not in self._found:
            self._found[site] = self._open(site)
        return self._found[site][0]

    def facts(self, site: str, *, notes: bool = False, usual: bool = False) -> SiteFacts:
        """What is said of a site's opened cases.

        Args:
            site: its name.
            notes: whether what was noted of the data goes with it; see ``notes``.
            usual: whether usual values do.
        """
        data = self._found[site][0]
        public = None if self.public is None else self.public.facts_at(data)
        if data is None or self._agreement is None:
            return SiteFacts.nothing(self._counts[site])
        named = self.spec.subject is not None
        said = self.notes() if notes else None
        found = SiteFacts.of(
            data, len(self._agreement.classes), subjects_named=named, notes=said, until=self.until, usual=usual
        )
        return found.model_copy(update={"public": public})

    def counts(self, site: str) -> Counts:
        """What became of every case of a site that was opened."""
        return self._counts[site]

    def notes(self) -> list[Note]:
        """What a person should know of the cases of all sites that were opened, which are compared with each other."""
        if self._agreement is None:
            raise ValueError("nothing was opened")
        sites = {site: data.by_instance() for site, (data, _) in self._found.items() if data is not None}
        spec, used, classes = self.spec, self._used, self._agreement.classes
        notes = [*self._dealt, *self._noted, *self._row_notes(classes), *self._grouped]
        notes += [note for _, (_, found) in self._found.items() for note in found]
        notes += column_notes(used.cells, spec, self.target, self._features, self._matrix, used.counting)
        columns = columns_of(self._features, used.chosen, spec.categorical)
        if sites:
            named = spec.subject is not None
            notes += quality_notes(sites, self._features, classes, subjects_named=named, columns=columns)
            notes += volume_notes(sites)
            if self.target == "times":
                notes += time_notes(used.cells, used.origin, sites, self._features, spec)
            notes += image_notes(sites) if spec.image else table_notes(sites, self._features, used.chosen, spec)
        return notes

    def _row_notes(self, classes: list[str]) -> list[Note]:
        """Notes on patients and labels of the rows that can be used, by the sites that the tables name."""
        named, spec = self.spec.subject is not None, self.spec
        origin = self._used.origin.assign(site=self._origin_used)
        first = np.ones(len(origin), dtype=np.bool_)
        if spec.bags is not None:  # rows of a bag are no cases
            first = ~origin.duplicated(["site", "bag"]).to_numpy()
        notes = patient_notes(origin[first].reset_index(drop=True), named=named)
        if self.target == "findings":
            return notes + self._finding_notes(origin["site"], first)
        if self.target != "labels" or spec.label is None:
            return notes
        known = self._used.labelled & first
        found = self._targets[known].astype(np.int64)
        notes += torn_notes(origin[known].reset_index(drop=True), found, named=named)
        cells = self._used.cells[spec.label][known].reset_index(drop=True)
        return notes + label_notes(cells, found, origin["site"][known].reset_index(drop=True), spec, classes)

    def _finding_notes(self, sites: pd.Series[str], first: npt.NDArray[np.bool_]) -> list[Note]:
        """What is said of the writing of each finding, as of the label of a classification."""
        notes, start = list[Note](), 0
        for place, (name, names) in enumerate(finding_classes(self.spec).items()):
            found = self._targets[:, place].astype(np.int64)
            known, one = first & (found >= 0), (self.spec.findings or {})[name]
            positive = True if one.positive is None and one.classes is None else one.positive
            spec = self.spec.model_copy(update={"label": name, "positive": positive, "classes": one.classes})
            cells, own = self._used.cells[name][known], sites[known].reset_index(drop=True)
            notes += label_notes(cells.reset_index(drop=True), found[known] - start, own, spec, names)
            start += len(names)
        return notes

    def _agree(self, agreement: Agreement) -> None:
        """Rows, features and labels of all sites that are held, as all agreed."""
        self._agreement, self._found, self._counts = agreement, {}, dict[str, Counts]()
        self._prepared = agreement.prepared(self.spec)
        self.public = open_public(self.spec, self.folder, agreement)
        rows = self._rows
        rows.chosen = list(agreement.features) if self.spec.image is None else rows.chosen
        reject_strangers(rows, agreement.spellings)
        kept = rows.usable & rows.origin["site"].notna().to_numpy()
        self._used, self._origin_used = rows.where(kept), self._origin[kept].reset_index(drop=True)
        self._kept = np.flatnonzero(kept)
        codes: Codes = (agreement.values, agreement.spellings)
        self._matrix, self._features = np.empty(0, dtype=np.float32), agreement.features_encoded(self.spec)
        combat = self.spec.harmonisation.combat
        if self.spec.image is None:
            self._matrix = self._at_sites(lambda mine: encode_features(mine, agreement.features, codes, self.spec)[0])
        self._covariates = None
        if combat is not None:
            self._covariates = self._at_sites(lambda mine: encode_covariates(mine, codes, combat)[0])
        self._targets = self._labels(self._used, agreement)
        self._groups, self._grouped = dict[str, npt.NDArray[np.object_]](), list[Note]()
        for one in self.subgroups:
            texts, spellings = self._used.cells[one.column], agreement.subgroups.get(one.column, {})
            groups, notes = assign_groups(one, texts, spellings)
            if self.spec.bags is not None:
                groups, torn = common_groups(one.column, groups, bag_numbers(self._used.origin))
                notes = [*notes, *torn]
            self._groups[one.column] = groups
            self._grouped += notes
        self._tick = self._ticker("opened", len(self._used))

    def _at_sites(self, encode: Callable[[pd.DataFrame], npt.NDArray[Number]]) -> npt.NDArray[Number]:
        """What ``encode`` makes of the cells of all usable rows; where it can't, the sites are named that are to blame.

        Raises:
            DataError: what ``encode`` raises.
        """
        cells, home = self._used.cells, self._used.origin["site"]
        try:
            return encode(cells)
        except DataError as error:
            blamed = []
            for site in self.sites:
                try:
                    encode(cells[home == site])
                except DataError as own:
                    blamed += [site] if own.code == error.code else []
            if not blamed or (len(blamed) == len(self.sites) and len(blamed) > 1):
                raise
            text = f"{error.message} (Site{'s' * (len(blamed) > 1)} {some(blamed)}.)"
            raise DataError(error.code, text, error.hint) from None

    def _labels(self, rows: Rows, agreement: Agreement) -> Labels:
        """Class, number, time and event, or classes of all findings of each row, `NO_CLASS` or NaN without a label;
        nothing for masks and images."""
        if self.target == "times":
            return encode_times(rows.cells, self.spec)
        if self.target == "findings":
            return encode_findings(rows.cells, self.spec)
        if self.target in ("masks", "images") or self.spec.label is None:
            return np.empty(0, dtype=np.int64)
        cells = rows.cells[self.spec.label][rows.labelled].reset_index(drop=True)
        labels: Labels
        if self.target == "labels":
            labels = np.full(len(rows), NO_CLASS, dtype=np.int64)
            labels[rows.labelled] = encode_labels(cells, self.spec, agreement.labels)
        else:
            labels = np.full(len(rows), np.nan, dtype=np.float32)
            labels[rows.labelled] = encode_numbers(cells)
        return labels

    def _open(self, site: str) -> tuple[SiteData | None, list[Note]]:
        used, counts = self._used, self._rows.counts(site)
        self._counts[site] = counts
        here = np.flatnonzero(used.origin["site"] == site)
        here = here[np.argsort(~used.labelled[here], kind="stable")]
        if self.spec.bags is not None:
            here = here[np.argsort(self._bags(here), kind="stable")]
        pixels: Pixels | None = None
        masks: Pixels | None = None
        facts: list[MaskFacts] | None = None
        depth: int | None = None
        originals: list[Original] | None = None
        notes: list[Note] = []
        if self.spec.image is None:
            pixels = torch.from_numpy(self._matrix[here])
        elif len(here):
            rows = used.at(here)
            pixels, masks, failures, facts, depth, notes, originals = read_images(
                site, rows, self._prepared, self.folder, self.target, self._tick
            )
            unread = {int(self._kept[here[place]]): reason for place, reason in failures.items()}
            self._counts[site] = counts = self._rows.counts(site, unread)
            here = here[np.setdiff1d(np.arange(len(here)), list(failures))]
        inputs: Tensor | Volumes | Bags | None = pixels
        if self.spec.bags is not None and isinstance(pixels, Tensor):
            numbers = self._bags(here)
            inputs = Bags.of(pixels, np.bincount(numbers).tolist())
            here = here[np.unique(numbers, return_index=True)[1]]  # of each bag the first row
        known = used.labelled[here]
        if inputs is None or not len(here):
            return None, notes
        counts.unlabelled = int(len(here) - known.sum())
        if self.target == "masks" and self.spec.hint_columns:
            kinds = hint_kinds(used.cells.iloc[here], self.spec)
            counts.boxed, counts.named = int((kinds == "box").sum()), int((kinds == "label").sum())
        if self.target == "images" and not isinstance(inputs, Bags):
            targets = inputs
            notes = [*notes, *acquisition_notes(site, inputs, used.origin["case"].iloc[here].tolist())]
        else:
            targets = torch.from_numpy(self._targets[here]) if masks is None else masks
        name = "case" if self.spec.bags is None else "bag"
        subjects, cases, parts = (used.origin[column].iloc[here].tolist() for column in ("subject", name, "part"))
        own = None if self._covariates is None else torch.from_numpy(self._covariates[here])
        fixed = parts if self.split is not None else None
        data = SiteData(site, inputs, targets, subjects, cases, fixed, counts, _spacings(inputs), own, depth=depth)
        data.originals, data.undersampling = originals, self.spec.undersampling
        data.public = None if self.public is None else self.public.inputs
        if facts is not None:
            data.mask_facts = [*facts, *[MaskFacts()] * counts.unlabelled]
        if counts.unlabelled:
            data.labelled = torch.from_numpy(known)
        if self._groups:
            data.groups = {name: own[here].tolist() for name, own in self._groups.items()}
        return data, notes

    def _bags(self, here: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
        """Number of the bag of each of these rows of a site ``[n]``, in the order in which bags appear."""
        return pd.factorize(self._used.origin["bag"].iloc[here])[0]

    def _ticker(self, kind: str, total: int) -> Callable[[], None]:
        """Counts images; one count for all sites."""
        if getattr(self, "_counting", None) != kind:
            self._counting, self._done = kind, 0

        def tick() -> None:
            self._done += 1
            if self.progress is not None:
                self.progress(self._done, total)

        return tick


def _spacings(pixels: Pixels | Bags) -> list[tuple[float, ...]] | None:
    """Voxel sizes of each volume, in mm: images may keep their own."""
    return [tuple(record["grid_spacing"]) for record in pixels.about] if isinstance(pixels, Volumes) else None
