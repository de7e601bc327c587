"""What sites may tell of their values before training: counts, moments, histograms and quantiles of many cases at once.

Everything here is a sum over cases, so the summary of a federation is put together from those of its sites, in site
order. Nothing is said of fewer than ``LEAST_CASES`` cases, and nothing that was held back follows from what was said.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from polyclinic.data.scaling import Summary

#: A number that a site sends describes at least so many cases.
LEAST_CASES = 5
#: Cells of the grid of a `Sketch`, and how far it reaches on both sides of the mean, in deviations.
CELLS, REACH = 64, 5.0


def withhold(summary: Summary, least: int = LEAST_CASES) -> Summary:
    """The summary without the features that have fewer than ``least`` values: they look as if there were none.

    A merged summary then holds nothing of them, so subtracting the other sites gives nothing back.
    """
    kept = summary.count >= least
    return Summary(*(torch.where(kept, part, 0.0) for part in (summary.count, summary.mean, summary.m2)))


def withhold_counts(counts: Sequence[int], least: int = LEAST_CASES) -> list[int | None]:
    """Numbers of cases in categories, None where a number is held back.

    Held back are the numbers from 1 to ``least - 1``. Where the total is known and what is held back adds up to fewer
    than ``least`` cases, or is one category only, the next larger number is held back as well (complementary
    suppression), so that the total gives none of them back. Zero says nothing of anybody and stays, unless it is the
    only other number there is.

    Source: A. Hundepool et al., Statistical Disclosure Control, Wiley 2012, section 4.

    >>> withhold_counts([40, 3, 12, 0])
    [40, None, None, 0]
    """
    hidden = [place for place, count in enumerate(counts) if 0 < count < least]
    if hidden:
        rest = sorted(
            set(range(len(counts))) - set(hidden), key=lambda place: (counts[place] == 0, counts[place], place)
        )
        while rest and (len(hidden) < 2 or sum(counts[place] for place in hidden) < least):
            hidden.append(rest.pop(0))
    return [None if place in hidden else count for place, count in enumerate(counts)]


@dataclass(frozen=True, eq=False)
class Sketch:
    """How the values of each feature are distributed over a grid that all sites agreed on.

    ``rank[f, e]`` is the number of values of feature ``f`` below ``edges[f, e]``, or NaN where the site does not say:
    between two ranks that it gives there are at least ``LEAST_CASES`` values, or none. The first and the last edge are
    minus and plus infinity, so that the last rank is the number of all values. The size depends on the grid only.

    *Error.* At an edge where all merged sites give their rank, the rank is exact. Elsewhere each site's rank is
    interpolated within its cell and is off by less than the number of values in this cell: so the merged rank is off by
    less than the sum of these numbers, at most ``slack``. A quantile is off by no more than the distance between the
    two edges, with ranks given by all sites, around it.

    Attributes:
        edges: float64 ``[F, E]``, increasing along each row.
        rank: float64 ``[F, E]``, NaN where not given; after `merge_sketches` without NaN.
        slack: float64 ``[F, E]``, greatest error of ``rank``.
    """

    edges: Tensor
    rank: Tensor
    slack: Tensor

    def to_tensors(self) -> dict[str, Tensor]:
        """What a site sends: the edges are known to all."""
        return {"rank": self.rank}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor], edges: Tensor) -> Sketch:
        """The inverse of ``to_tensors``."""
        rank = tensors["rank"]
        return cls(edges, rank, torch.where(rank.isnan(), torch.nan, 0.0))

    @property
    def count(self) -> Tensor:
        """Number of values of each feature, float64 ``[F]``; 0 where the site says nothing."""
        return self.rank[:, -1].nan_to_num(0.0)

    def histogram(self) -> Tensor:
        """Number of values in each cell between two edges, float64 ``[F, E - 1]``; estimates where a rank is one."""
        return torch.from_numpy(np.diff(_interpolated(self)[0], axis=1))

    def quantiles(self, shares: Sequence[float]) -> Tensor:
        """Values below which the ``shares`` of the cases lie, float64 ``[F, Q]``, NaN for features without values.

        Within a cell the cases are taken to lie at even distances. Outside the grid the outermost finite edge is given.
        """
        ranks, edges = _interpolated(self)[0], self.edges.numpy()
        found = np.full((len(edges), len(shares)), np.nan)
        for feature, (rank, edge) in enumerate(zip(ranks, edges, strict=True)):
            if not rank[-1] > 0:
                continue
            for column, share in enumerate(shares):
                wanted = share * rank[-1]
                upper = int(np.searchsorted(rank[1:], wanted, side="left")) + 1
                low, high = edge[upper - 1], edge[upper]
                part = (wanted - rank[upper - 1]) / max(rank[upper] - rank[upper - 1], 1e-300)
                inside = np.isfinite([low, high]).all()
                found[feature, column] = low + part * (high - low) if inside else (high if np.isfinite(high) else low)
        return torch.from_numpy(found)


def agreed_edges(summary: Summary, cells: int = CELLS, reach: float = REACH) -> Tensor:
    """A grid for each feature from the merged summary of all sites, so that no site must tell its extreme values.

    ``cells`` equal cells cover the mean ± ``reach`` deviations; of any distribution at most ``1 / reach²`` lies outside
    (Chebyshev), and goes into the two outermost cells, which are open.

    Returns:
        float64 ``[F, cells + 3]``: minus infinity, ``cells + 1`` finite edges, infinity.
    """
    deviation = (summary.m2 / summary.count.clamp(min=1.0)).sqrt()
    # A constant feature still needs cells with a width.
    width = torch.where(deviation > 0, deviation, torch.maximum(summary.mean.abs(), torch.ones(())) * 1e-6)
    steps = torch.linspace(-reach, reach, cells + 1, dtype=torch.float64)
    finite = summary.mean[:, None] + width[:, None] * steps
    ends = torch.full((len(finite), 1), torch.inf, dtype=torch.float64)
    return torch.cat([-ends, finite, ends], dim=1)


def sketch(inputs: Tensor, index: Tensor, edges: Tensor, least: int = LEAST_CASES) -> Sketch:
    """The sketch of some cases of a site; no other case is read.

    Cells with fewer than ``least`` values are joined with their neighbours until they have enough. A feature with fewer
    values than that has no rank at all.

    Args:
        inputs: float ``[N, F]`` with NaN where missing.
        index: int64 ``[B]``.
        edges: float64 ``[F, E]`` from `agreed_edges`.
        least: least number of values in a cell.
    """
    values = inputs.index_select(0, index).double().numpy()
    grid = edges.numpy()
    rank = np.full(grid.shape, np.nan)
    for feature, row in enumerate(grid):
        there = np.sort(values[:, feature][~np.isnan(values[:, feature])])
        rank[feature] = _given(np.searchsorted(there, row, side="left").astype(np.float64), least)
    return Sketch.from_tensors({"rank": torch.from_numpy(rank)}, edges)


def _given(rank: npt.NDArray[np.float64], least: int) -> npt.NDArray[np.float64]:
    """The ranks that may be told: each differs from the one told before it by 0 or by ``least`` or more."""
    total = rank[-1]
    if total < least:
        return np.full_like(rank, np.nan)
    told, last = np.full_like(rank, np.nan), 0.0
    for edge, below in enumerate(rank):
        cell, left = below - last, total - below
        # What is left above must also be enough for a cell, or nothing.
        if (cell == 0 or cell >= least) and (left == 0 or left >= least):
            told[edge], last = below, below
    return told


def merge_sketches(sketches: Sequence[Sketch]) -> Sketch:
    """The sketch of all cases together, from those of the sites; the sum of their (interpolated) ranks.

    Raises:
        ValueError: the sites did not use one grid.
    """
    edges = sketches[0].edges
    if any(not torch.equal(one.edges, edges) for one in sketches):
        raise ValueError("sketches of different grids can't be merged")
    parts = [_interpolated(one) for one in sketches]
    rank = np.sum([part[0] for part in parts], axis=0)
    slack = np.sum([part[1] for part in parts], axis=0)
    return Sketch(edges, torch.from_numpy(rank), torch.from_numpy(slack))


def _interpolated(one: Sketch) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Ranks and their greatest errors, with the gaps filled in evenly; 0 for features of which nothing is known."""
    rank, slack = one.rank.numpy().copy(), one.slack.numpy().copy()
    for feature in range(len(rank)):
        known = ~np.isnan(rank[feature])
        if not known.any():
            rank[feature], slack[feature] = 0.0, 0.0
            continue
        places = np.flatnonzero(known)
        gaps = np.flatnonzero(~known)
        rank[feature] = np.interp(np.arange(len(known)), places, rank[feature][known])
        after = np.searchsorted(places, gaps)
        slack[feature][gaps] = rank[feature][places[after]] - rank[feature][places[after - 1]]
    return rank, slack
