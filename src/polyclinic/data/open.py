"""From a study file's ``data:`` part to the usable cases of each site, with every case found accounted for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from polyclinic.data.opening.agreement import agree
from polyclinic.data.opening.cohort import Cohort, Opened
from polyclinic.data.opening.entries import check_entries
from polyclinic.data.opening.holder import Holder, Progress
from polyclinic.data.opening.subgroups import Subgroup
from polyclinic.data.spec import DataSpec, Target


def open_data(
    spec: DataSpec, folder: Path, target: Target, split: str | None = None, progress: Progress | None = None,
    subgroups: Sequence[Subgroup] = (),
    until: float | None = None,
) -> Opened:  # fmt: skip
    """Open the data of all sites in one place: what each says, what they agree on, and their cases.

    Args:
        spec: the ``data:`` part of the study file, environment variables expanded.
        folder: the study file's folder.
        target: what is to be predicted of each case.
        split: column that fixes the part of each case: train, validation (val, valid, dev) or test.
        progress: called with the number of images decoded and the number of all images, after each image.
        subgroups: by what patients are grouped; see `polyclinic.data.opening.subgroups`.
        until: up to when survival is asked for.

    Returns:
        the cases of each site, with counts and notes; see `Holder` for which are used.

    Raises:
        StudyError: P102 or P104 when the entries of ``spec`` do not go together.
        DataError: P201 to P207 and P503, when a file, a column, a value, an image or a site is not as ``spec`` says.
    """
    check_entries(spec, target)
    holder = Holder(spec, folder, target, split, progress, subgroups=subgroups, until=until)
    agreement = agree({site: holder.census(site) for site in holder.sites}, spec, target, subgroups)
    found = {site: holder.open(site, agreement) for site in holder.sites}
    facts = {site: holder.facts(site) for site in holder.sites}
    cohort = Cohort.of(facts, agreement, spec, target, holder.notes())
    sites = {site: data for site, data in found.items() if data is not None}
    return Opened(sites, cohort, {site: holder.counts(site) for site in cohort.left_out})
