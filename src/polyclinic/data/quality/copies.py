"""The same cases at several sites under other names, and copies of a case with another label."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from polyclinic.data.cases import SiteData
from polyclinic.data.quality.leaks import Column
from polyclinic.data.quality.words import counted, some
from polyclinic.notes import Note

Codes = npt.NDArray[np.uint64]

#: Into so many parts the features are put, to see how often cases agree in all but one of them.
_PARTS = 16
#: Fewer rows of a site than this tell nothing of chance.
_LEAST = 20


def copied_rows(sites: dict[str, SiteData], columns: Sequence[Column]) -> list[Note]:
    """A note where rows of a table stand at several sites with the same value in every feature.

    In a table of few features with few values, such as age and sex, different people have equal rows. Where that
    happens, far more rows are equal in all features but one; copies are equal in all, and no others are near them. So
    nothing is said where rows that agree in all but a sixteenth of the features (one feature, where there are few) are
    more than half as many as rows that agree in all.

    Args:
        sites: the usable cases.
        columns: the columns of the table that are features.
    """
    if len(sites) < 2:
        return []
    values = np.concatenate([data.table.numpy() for data in sites.values()])
    home = np.repeat(np.arange(len(sites)), [len(data) for data in sites.values()])
    parts = _part_codes(values, columns)
    whole = parts.sum(axis=0, dtype=np.uint64)
    equal = _others(whole, home)
    twins = (equal > 0) & ~np.isnan(values).all(axis=1)
    if not twins.any():
        return []
    near = np.zeros(len(home), dtype=bool)
    for part in parts:
        near |= _others(whole - part, home) > equal
    if near.sum() > twins.sum() / 2:
        return []
    names, cases = list(sites), [case for data in sites.values() for case in data.cases]
    counts = [f"{names[site]} {count}" for site, count in sorted(Counter(home[twins].tolist()).items())]
    text = (
        f"{len(np.unique(whole[twins]))} rows are the same in all {len(columns)} features at more than one site (rows: "
        f"{some(counts)}): the same person may be in training and test data."
    )
    where = [f"{names[home[row]]}: {cases[row]}" for row in np.flatnonzero(twins)]
    notes = [Note("N237", text, where)]
    labels = [label for data in sites.values() if data.labels is not None for label in data.labels.tolist()]
    if not labels:  # of several findings, any of which may be missing
        return notes
    known = np.flatnonzero(twins & np.concatenate([data.known.numpy() for data in sites.values()]))
    torn = _torn(whole[known].tolist(), [labels[row] for row in known])
    if torn:
        notes.append(Note("N229", _torn_text(torn, "row")))
    return notes


def equal_by_chance(values: npt.NDArray[np.float32], columns: Sequence[Column]) -> bool:
    """Whether equal rows of a site may be different people, by the rule of ``copied_rows``.

    Args:
        values: the features of the site, ``[N, F]``.
        columns: the columns of the table that they come from.
    """
    if len(values) < _LEAST:
        return False
    parts = _part_codes(values, columns)
    whole = parts.sum(axis=0, dtype=np.uint64)
    own = np.arange(len(whole))
    equal = _others(whole, own)
    near = np.zeros(len(whole), dtype=bool)
    for part in parts:
        near |= _others(whole - part, own) > equal
    return bool(near.sum() > (equal > 0).sum() / 2)


def copied_images(sites: dict[str, SiteData], digests: dict[str, list[bytes]]) -> list[Note]:
    """A note where the same image stands with different labels, at one site or at several.

    Args:
        sites: the usable cases.
        digests: equal for images that are equal, a list for each site.
    """
    known = {site: data.with_labels().labels for site, data in sites.items()}
    labels = [label for found in known.values() if found is not None for label in found.tolist()]
    flat = [
        digest
        for site, data in sites.items()
        for digest, labelled in zip(digests[site], data.known.tolist(), strict=True)
        if labelled
    ]
    torn = _torn(flat, labels) if len(labels) == len(flat) else 0
    return [Note("N229", _torn_text(torn, "image"))] if torn else []


def _torn_text(torn: int, what: str) -> str:
    return (
        f"{counted(torn, f'{what} that stands', f'{what}s that stand')} several times {'has' if torn == 1 else 'have'} "
        "different labels: one of them is wrong, or they are different cases."
    )


def _torn(keys: Sequence[object], labels: Sequence[float]) -> int:
    """How many keys have different labels."""
    found: dict[object, set[float]] = defaultdict(set)
    for key, label in zip(keys, labels, strict=True):
        found[key].add(label)
    return sum(len(several) > 1 for several in found.values())


def _part_codes(values: npt.NDArray[np.float32], columns: Sequence[Column]) -> Codes:
    """For each part of the features and each row a code, uint64 ``[parts, N]``; equal values have equal codes."""
    bits = np.where(np.isnan(values), np.float32(np.nan), values + np.float32(0.0))  # one NaN, and no -0.0
    words = np.ascontiguousarray(bits, dtype=np.float32).view(np.uint32).astype(np.uint64)
    codes = np.zeros((min(_PARTS, len(columns)), len(values)), dtype=np.uint64)
    for number, column in enumerate(columns):
        for place in column.places:
            codes[number % len(codes)] += _mixed(words[:, place] + np.uint64(place << 32))
    return codes


def _mixed(words: Codes) -> Codes:
    """A well mixed 64-bit number for each; the finaliser of SplitMix64 (Steele et al., OOPSLA 2014)."""
    words = words + np.uint64(0x9E3779B97F4A7C15)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def _others(codes: Codes, home: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """For each row the number of rows of other sites with the same code."""
    _, group, size = np.unique(codes, return_inverse=True, return_counts=True)
    _, mine, own = np.unique(group * (home.max() + 1) + home, return_inverse=True, return_counts=True)
    return np.asarray(size[group] - own[mine])
