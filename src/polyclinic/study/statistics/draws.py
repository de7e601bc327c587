"""Metrics of the cases of all sites together under resamples of their patients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np

from polyclinic.statistics.intervals import Floats, patient_weights
from polyclinic.statistics.samples import BLOCK, Cases, Group, Parts, cell_means, mean_of_known


@dataclass(frozen=True)
class Draws:
    """Metrics of the cases as they are, then of each resample of their patients, [M, 1 + B].

    Attributes:
        values: method -> mean over seeds and folds.
        differences: (method, other) -> the mean over seeds and folds of the difference between the two, on the cases of
            all sites that both scored.
        by_seed: (method, other) -> the same for each seed, of the cases as they are, [S, M].
    """

    values: dict[str, Floats] = field(default_factory=dict)
    differences: dict[tuple[str, str], Floats] = field(default_factory=dict)
    by_seed: dict[tuple[str, str], Floats] = field(default_factory=dict)


def draw(cases: Cases, others: Sequence[str], seed: int, bootstrap: int) -> Draws:
    """Resample the patients.

    Args:
        cases: what was predicted.
        others: the methods that all are compared with.
        seed: of the draws.
        bootstrap: number of resamples B.
    """
    if not cases.names:
        return Draws()
    pairs = [(method, other) for other in others for method in cases.rows if other in cases.rows and method != other]
    samples = _samples(cases, pairs)
    largest = max(len(group.rows) for groups in samples.values() for group in groups)
    plain = np.ones((len(cases.patients), 1))
    resamples = patient_weights(cases.patients, bootstrap, seed, block=max(1, BLOCK // largest))
    values: dict[str, list[Floats]] = {method: [] for method in cases.rows}
    differences: dict[tuple[str, str], list[Floats]] = {pair: [] for pair in pairs}
    by_seed: dict[tuple[str, str], Floats] = {}
    for weights in chain([plain], resamples):
        parts = {key: cell_means(cases, groups, weights) for key, groups in samples.items()}
        shape = (len(cases.names), weights.shape[1])
        for method, kept in values.items():
            kept.append(mean_of_known(_stacked(parts[method, "all"].values(), shape)))
        for pair, kept in differences.items():
            found = _differences(parts, *pair)
            kept.append(mean_of_known(_stacked(found.values(), shape)))
            if weights is plain:
                by_seed[pair] = _seed_means(found, len(cases.names))
    return Draws(
        {method: np.concatenate(kept, axis=1) for method, kept in values.items()},
        {pair: np.concatenate(kept, axis=1) for pair, kept in differences.items()},
        by_seed,
    )


def _samples(cases: Cases, pairs: Sequence[tuple[str, str]]) -> Mapping[tuple[str, ...], list[Group]]:
    """What to measure: (method, ``all``), and (method, other, ``shared``) where two did not score the same cases."""
    samples: dict[tuple[str, ...], list[Group]] = {}
    for method, rows in cases.rows.items():
        samples[method, "all"] = cases.groups(rows)
    for a, b in pairs:
        rows, others = cases.shared(a, b)
        if [len(rows), len(others)] != [len(cases.rows[a]), len(cases.rows[b])]:
            samples[a, b, "shared"] = cases.groups(rows)
            samples[b, a, "shared"] = cases.groups(others)
    return samples


def _differences(parts: Mapping[tuple[str, ...], Parts], a: str, b: str) -> Parts:
    """One method minus another in each seed and fold."""
    of_a, of_b = (parts.get((*pair, "shared"), parts[pair[0], "all"]) for pair in ((a, b), (b, a)))
    return {key: part - of_b[key] for key, part in of_a.items() if key in of_b}


def _seed_means(parts: Parts, metrics: int) -> Floats:
    """Mean over the folds of each seed [S, M], of parts with one resample."""
    seeds = sorted({seed for seed, _ in parts})
    means = [mean_of_known(np.stack([part for (one, _), part in parts.items() if one == seed]))[:, 0] for seed in seeds]
    return np.stack(means) if means else np.empty((0, metrics))


def _stacked(parts: Any, shape: tuple[int, int]) -> Floats:
    parts = list(parts)
    return np.stack(parts) if parts else np.full((1, *shape), np.nan)
