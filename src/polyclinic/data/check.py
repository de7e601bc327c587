"""Quality checks: what a person should know about the data before training on it."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable

import numpy as np
import pandas as pd
import torch

from polyclinic.data.cases import Opened, SiteData
from polyclinic.data.spec import DataSpec

_MOST_NAMES = 5


def check_frame(opened: Opened, spec: DataSpec) -> pd.DataFrame:
    """A row for each site, for ``polyclinic check`` and the report.

    Columns: ``site``; ``found``, ``used`` and ``rejected`` cases with ``reasons`` (text); ``patients`` among the used
    cases; a column ``class: NAME`` with the number of cases of each class, ``foreground`` with the mean share of
    foreground pixels (0 to 1) for segmentation, or ``label mean`` and ``label deviation`` for regression; ``missing``
    (percent of all feature values); ``duplicates`` (cases whose inputs repeat those of an earlier case of the site).

    Args:
        opened: the data.
        spec: the ``data:`` part of the study file. Without ``subject`` each case counts as a patient.
    """
    rows = []
    for site, data in opened.sites.items():
        row: dict[str, object] = {
            "site": site,
            "found": data.counts.found,
            "used": data.counts.used,
            "rejected": data.counts.rejected.total(),
            "reasons": reasons_text(data.counts.rejected),
            "patients": len(set(data.subjects)) if spec.subject else len(data),
        }
        if data.targets.is_floating_point():
            numbers = data.targets.double()
            row |= {"label mean": numbers.mean().item(), "label deviation": numbers.std(correction=0).item()}
        elif data.targets.ndim == 1:
            counts = torch.bincount(data.targets, minlength=len(opened.classes)).tolist()
            row |= {f"class: {name}": count for name, count in zip(opened.classes, counts, strict=True)}
        else:
            row["foreground"] = (data.targets > 0).to(torch.uint8).mean(dtype=torch.float64).item()
        is_table = data.inputs.ndim == 2
        row["missing"] = 100.0 * data.inputs.isnan().double().mean().item() if is_table else 0.0
        row["duplicates"] = sum(count - 1 for count in Counter(_digests(data)).values())
        rows.append(row)
    return pd.DataFrame(rows)


def reasons_text(rejected: Counter[str]) -> str:
    """``"label is missing (3), image file is damaged (1)"``, the most frequent reason first."""
    ordered = sorted(rejected.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{reason} ({count})" for reason, count in ordered)


def quality_warnings(
    sites: dict[str, SiteData], features: list[str], classes: list[str], *, subjects_named: bool
) -> list[str]:
    """Sentences about what looks wrong in the data but does not stop a study. They hold counts, never identifiers.

    Args:
        sites: the usable cases.
        features: names of the feature columns or image channels.
        classes: names of the classes.
        subjects_named: whether a column names the patients, so that equal names mean the same person.
    """
    warnings: list[str] = []
    if subjects_named:
        homes = Counter(subject for data in sites.values() for subject in set(data.subjects))
        shared = sum(count > 1 for count in homes.values())
        if shared:
            are = "patient name stands" if shared == 1 else "patient names stand"
            warnings.append(f"{shared} {are} at more than one site: the same person may be in training and test data.")
    warnings += _copies(sites, subjects_named=subjects_named)
    first = next(iter(sites.values()))
    if first.inputs.ndim == 2:
        warnings += _poor_features(sites, features)
    if first.targets.ndim == 1 and classes:
        counts = sum(torch.bincount(data.targets, minlength=len(classes)) for data in sites.values())
        empty = [name for name, count in zip(classes, counts, strict=True) if count == 0]  # type: ignore[arg-type]
        if empty:
            warnings.append(f"No case of class {_some(empty)}.")
    elif first.targets.ndim > 1:
        for site, data in sites.items():
            blank = int((data.targets.flatten(1).amax(dim=1) == 0).sum())
            if blank:
                warnings.append(f"Site {site}: {blank} {'mask has' if blank == 1 else 'masks have'} no foreground.")
            elsewhere = [name for index, name in enumerate(classes) if index and not (data.targets == index).any()]
            if elsewhere and len(classes) > 2:
                warnings.append(f"Site {site}: no mask has {_some(elsewhere)}.")
    return warnings


def _copies(sites: dict[str, SiteData], *, subjects_named: bool) -> list[str]:
    """Warnings about cases with the same inputs, within a site and (images) at several sites."""
    warnings: list[str] = []
    homes: dict[bytes, set[str]] = defaultdict(set)
    for site, data in sites.items():
        digests = _digests(data)
        owners: dict[bytes, set[str]] = defaultdict(set)
        for digest, subject in zip(digests, data.subjects, strict=True):
            homes[digest].add(site)
            owners[digest].add(subject)
        copies = len(digests) - len(owners)
        if not copies:
            continue
        what = "row repeats" if data.inputs.ndim == 2 else "image repeats"
        what = what if copies == 1 else what.replace(" repeats", "s repeat")
        apart = subjects_named and any(len(people) > 1 for people in owners.values())
        risk = " under another patient's name: both may be in training and test data" if apart else ""
        warnings.append(f"Site {site}: {copies} {what} an earlier one of the same site{risk}.")
    if next(iter(sites.values())).inputs.ndim == 4:
        travelled = sum(len(names) > 1 for names in homes.values())
        if travelled:
            are = "image is" if travelled == 1 else "images are"
            warnings.append(f"{travelled} {are} the same, pixel for pixel, at more than one site.")
    return warnings


def _poor_features(sites: dict[str, SiteData], features: list[str]) -> list[str]:
    """Warnings about features that are constant or wholly missing, everywhere or at a site."""
    warnings: list[str] = []
    together = _feature_states(torch.cat([data.inputs for data in sites.values()]).numpy())
    for state, word in (("missing", "missing in every case"), ("constant", "constant over all sites")):
        names = [name for name, found in zip(features, together, strict=True) if found == state]
        if names:
            warnings.append(f"{_of_features(names)} {word}: {_some(names)}.")
    if len(sites) == 1:
        return warnings
    constant: dict[str, int] = {}
    for site, data in sites.items():
        states = _feature_states(data.inputs.numpy())
        here = [state if state != everywhere else "" for state, everywhere in zip(states, together, strict=True)]
        names = [name for name, state in zip(features, here, strict=True) if state == "missing"]
        if names:
            warnings.append(f"Site {site}: {_of_features(names)} missing in every case: {_some(names)}.")
        if "constant" in here:
            constant[site] = here.count("constant")
    if constant:
        listed = ", ".join(f"{site} {count}" for site, count in constant.items())
        warnings.append(f"Features that are constant within a site, though not over all: {listed}.")
    return warnings


def _feature_states(values: np.ndarray[tuple[int, int], np.dtype[np.float32]]) -> list[str]:
    """``missing``, ``constant`` or "" for each column of ``[N, F]``; one case alone makes no constant."""
    different = pd.DataFrame(values).nunique()
    return ["missing" if count == 0 else "constant" if count == 1 and len(values) > 1 else "" for count in different]


def _digests(data: SiteData) -> list[bytes]:
    """A digest of the inputs of each case; equal inputs have equal digests, missing values included."""
    return [hashlib.blake2b(case.tobytes(), digest_size=16).digest() for case in data.inputs.numpy()]


def _of_features(names: list[str]) -> str:
    return "1 feature is" if len(names) == 1 else f"{len(names)} features are"


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    more = f" and {len(listed) - _MOST_NAMES} more" if len(listed) > _MOST_NAMES else ""
    return ", ".join(listed[:_MOST_NAMES]) + more
