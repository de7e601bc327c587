"""Quality checks: what a person should know about the data before training on it."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from polyclinic.data.bags import Bags
from polyclinic.data.cases import SiteData
from polyclinic.data.masks.notes import mask_notes
from polyclinic.data.quality.copies import equal_by_chance
from polyclinic.data.quality.leaks import Column
from polyclinic.data.volumes.notes import grid_notes
from polyclinic.data.volumes.store import Volumes
from polyclinic.ignored import IGNORED
from polyclinic.notes import Note

_MOST_NAMES = 5
#: A mask may lose this share of its foreground before a person is told.
_LOST = 0.01


def quality_notes(
    sites: dict[str, SiteData],
    features: list[str],
    classes: list[str],
    *,
    subjects_named: bool,
    columns: Sequence[Column] = (),
) -> list[Note]:
    """What looks wrong in the data but does not stop a study.

    Args:
        sites: the usable cases.
        features: names of the feature columns or image channels.
        classes: names of the classes.
        subjects_named: whether a column names the patients, so that equal names mean the same person.
        columns: which of the features are one column of the table; by default each is.
    """
    notes: list[Note] = []
    if subjects_named:
        homes = Counter(subject for data in sites.values() for subject in set(data.subjects))
        shared = sum(count > 1 for count in homes.values())
        if shared:
            are = "patient name stands" if shared == 1 else "patient names stand"
            text = (
                f"{shared} {are} at more than one site: the same person may be in training and test data. If these are "
                "different people (each site counts from 1), put the site in front of the names."
            )
            notes.append(Note("N201", text, [name for name, count in homes.items() if count > 1]))
    columns = columns or [Column(name, [place]) for place, name in enumerate(features)]
    notes += _copies(sites, columns, subjects_named=subjects_named)
    for site, data in sites.items():
        if isinstance(data.inputs, Volumes):
            notes += grid_notes(site, data.inputs.about, data.cases)
    first = next(iter(sites.values()))
    if first.inputs.ndim == 2:
        notes += _poor_features(sites, columns)
    known = {site: data.with_labels() for site, data in sites.items()}
    labels = [found[found >= 0] if data.findings is not None else found for data in known.values()
              if (found := data.labels_or_findings) is not None]  # fmt: skip
    if labels and classes:
        counts = [class_counts(found, len(classes)) for found in labels]
        empty = [name for name, of_sites in zip(classes, zip(*counts, strict=True), strict=True) if not any(of_sites)]
        if empty:
            notes.append(Note("N205", f"No case of class {_some(empty)}."))
    elif all(data.masked for data in known.values()):
        for site, data in known.items():
            shares, gone = enumerate(foreground_shares(data.targets)), _vanished(data)
            blank = [data.cases[position] for position, share in shares if share == 0 and position not in gone]
            if blank:
                have = "mask has" if len(blank) == 1 else "masks have"
                notes.append(Note("N401", f"Site {site}: {len(blank)} {have} no foreground.", blank))
            notes += _cut_off(data)
            notes += _too_small(data, classes, gone)
            there = _classes_there(data.targets).union(*gone.values())
            elsewhere = [name for index, name in enumerate(classes) if index and index not in there]
            if elsewhere and len(classes) > 2:
                notes.append(Note("N402", f"Site {site}: no mask has {_some(elsewhere)}."))
        notes += mask_notes(known, named=classes[1:] != ["foreground"])
    return notes


def class_counts(labels: Tensor, classes: int) -> list[int]:
    """Number of cases of each class, from int64 ``[N]``."""
    counts: list[int] = torch.bincount(labels, minlength=classes).tolist()
    return counts


def copies(data: SiteData) -> int:
    """How many cases have the same inputs as an earlier one."""
    return sum(count - 1 for count in Counter(_digests(data)).values())


def foreground_shares(masks: Tensor | Volumes) -> list[float]:
    """Share of each mask that is foreground, of what counts."""
    if isinstance(masks, Volumes):
        return [sum(record["labels"][1:]) / sum(record["labels"]) for record in masks.about]
    known = (masks != IGNORED).flatten(1).sum(1)
    shares: list[float] = (((masks != 0) & (masks != IGNORED)).flatten(1).sum(1) / known).tolist()
    return shares


def _classes_there(masks: Tensor | Volumes) -> set[int]:
    """The classes that some mask has."""
    if isinstance(masks, Volumes):
        return {index for record in masks.about for index, count in enumerate(record["labels"]) if count}
    return set(masks.unique().tolist()) - {IGNORED}


def _vanished(data: SiteData) -> dict[int, Sequence[int]]:
    """Positions of cases of whose mask file a class is not left in the mask that is used, with these classes."""
    return {position: facts.vanished for position, facts in enumerate(data.mask_facts or []) if facts.vanished}


def _too_small(data: SiteData, classes: list[str], gone: dict[int, Sequence[int]]) -> list[Note]:
    """A note where something that masks mark is not left at the size in which images are used."""
    if not gone:
        return []
    volumes = isinstance(data.targets, Volumes)
    what = _some([classes[index] for index in sorted({index for found in gone.values() for index in found})])
    where = "on the grid: it is smaller than the voxels, or outside" if volumes else "in `size`: it is too small"
    do = "a smaller `spacing`, or a larger `size`" if volumes else "a larger `size`"
    text = f"Site {data.site}: in {len(gone)} of {len(data)} cases nothing of {what} is left {where}. Use {do}."
    return [Note("N702", text, [data.cases[position] for position in gone])]


def _cut_off(data: SiteData) -> list[Note]:
    """A note where the grid of volumes leaves out a part of what is to be found."""
    if not isinstance(data.targets, Volumes):
        return []
    records = zip(data.cases, data.targets.about, strict=True)
    lost = {case: record["lost"] for case, record in records if record["lost"] > _LOST}
    if not lost:
        return []
    text = (
        f"Site {data.site}: in {len(lost)} of {len(data)} cases a part of the mask lies outside `size` (up to "
        f"{100 * max(lost.values()):.0f} % of the foreground): use a larger `size`, or `centre: foreground`."
    )
    return [Note("N701", text, lost)]


def _copies(sites: dict[str, SiteData], columns: Sequence[Column], *, subjects_named: bool) -> list[Note]:
    """Notes on cases with the same inputs, within a site and (images) at several sites."""
    notes: list[Note] = []
    homes: dict[bytes, set[str]] = defaultdict(set)
    for site, data in sites.items():
        digests = _digests(data)
        owners: dict[bytes, set[str]] = defaultdict(set)
        for digest, subject in zip(digests, data.subjects, strict=True):
            homes[digest].add(site)
            owners[digest].add(subject)
        copies = len(digests) - len(owners)
        if not copies or (data.inputs.ndim == 2 and equal_by_chance(data.table.numpy(), columns)):
            continue
        what = "row repeats" if data.inputs.ndim == 2 else "image repeats"
        what = what if copies == 1 else what.replace(" repeats", "s repeat")
        apart = subjects_named and any(len(people) > 1 for people in owners.values())
        risk = " under another patient's name: both may be in training and test data" if apart else ""
        text = f"Site {site}: {copies} {what} an earlier one of the same site{risk}."
        notes.append(Note("N202", text, _repeated(data.cases, digests)))
    if next(iter(sites.values())).inputs.ndim > 2:
        travelled = sum(len(names) > 1 for names in homes.values())
        if travelled:
            are = "image is" if travelled == 1 else "images are"
            notes.append(Note("N203", f"{travelled} {are} the same, pixel for pixel, at more than one site."))
    return notes


def _repeated(cases: list[str], digests: list[bytes]) -> list[str]:
    """The cases whose digest stands at others, too."""
    counts = Counter(digests)
    return [case for case, digest in zip(cases, digests, strict=True) if counts[digest] > 1]


def _poor_features(sites: dict[str, SiteData], columns: Sequence[Column]) -> list[Note]:
    """Notes on features that are constant or wholly missing, everywhere or at a site."""
    notes: list[Note] = []
    features = [column.name for column in columns]
    together = _feature_states(torch.cat([data.table for data in sites.values()]).numpy(), columns)
    everywhere = "constant over all sites" if len(sites) > 1 else "constant"
    for state, word in (("missing", "missing in every case"), ("constant", everywhere)):
        names = [name for name, found in zip(features, together, strict=True) if found == state]
        if names:
            notes.append(Note("N204", f"{_of_features(names)} {word}: {_some(names)}."))
    if len(sites) == 1:
        return notes
    constant: dict[str, list[str]] = {}
    for site, data in sites.items():
        states = _feature_states(data.table.numpy(), columns)
        here = [state if state != everywhere else "" for state, everywhere in zip(states, together, strict=True)]
        names = [name for name, state in zip(features, here, strict=True) if state == "missing"]
        if names:
            notes.append(Note("N204", f"Site {site}: {_of_features(names)} missing in every case: {_some(names)}."))
        if "constant" in here:
            constant[site] = [name for name, state in zip(features, here, strict=True) if state == "constant"]
    if constant:
        # Names where they fit into a line; many sites or features are counted.
        few = sum(map(len, constant.values())) <= _MOST_NAMES
        listed = ", ".join(f"{site} ({', '.join(names) if few else len(names)})" for site, names in constant.items())
        notes.append(Note("N204", f"Features that are constant within a site, though not over all: {listed}."))
    return notes


def _feature_states(values: np.ndarray[tuple[int, int], np.dtype[np.float32]], columns: Sequence[Column]) -> list[str]:
    """``missing``, ``constant`` or "" for each column of the table that ``[N, F]`` comes from.

    One case alone makes no constant. A group that a site does not have is nothing to be told: a column of groups is
    constant where all have the same.
    """
    different = pd.DataFrame(values).nunique().to_numpy()
    most = [int(different[column.places].max()) for column in columns]
    return ["missing" if count == 0 else "constant" if count == 1 and len(values) > 1 else "" for count in most]


def _digests(data: SiteData) -> list[bytes]:
    """A digest of the inputs of each case; equal inputs have equal digests, missing values included."""
    if isinstance(data.inputs, Volumes):  # the key of a prepared volume comes from what its files contain
        return [bytes.fromhex(record["content"]) for record in data.inputs.about]
    return digests(data.inputs)


def digests(inputs: Tensor | Bags) -> list[bytes]:
    """The same of inputs in memory."""
    cases = (inputs[place] for place in range(len(inputs)))
    return [hashlib.blake2b(case.numpy().tobytes(), digest_size=16).digest() for case in cases]


def _of_features(names: list[str]) -> str:
    return "1 feature is" if len(names) == 1 else f"{len(names)} features are"


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    more = f" and {len(listed) - _MOST_NAMES} more" if len(listed) > _MOST_NAMES else ""
    return ", ".join(listed[:_MOST_NAMES]) + more
