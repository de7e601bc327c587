"""Artificial sites, for data sets that have none of their own."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

from polyclinic.errors import DataError
from polyclinic.seeds import derive_seed

#: Ways to make sites up -> what they do. Every entry of the catalogue takes them.
SCHEMES = {
    "dirichlet": "artificial: each class is spread over the sites in shares drawn from a Dirichlet distribution (Hsu "
    "et al., arXiv:1909.06335), so that sites differ in how frequent the classes are",
    "quantity": "artificial: subjects are spread at random over sites whose sizes are drawn from a Dirichlet "
    "distribution (Li et al., ICDE 2022), so that sites differ in size only",
}
#: A draw that leaves a site with fewer subjects is repeated.
LEAST_SUBJECTS = 5
_MOST_DRAWS = 1000


def artificial_sites(
    subjects: pd.Series[str], classes: pd.Series[str], scheme: str, sites: int, alpha: float, seed: int
) -> pd.Series[str]:
    """The made-up site of each case; all cases of a subject are at one site.

    Args:
        subjects: the subject of each case, ``[N]``.
        classes: the class of each case, ``[N]`` (``dirichlet``); the first one counts for a subject with several.
        scheme: one of ``SCHEMES``.
        sites: number of sites.
        alpha: concentration of the Dirichlet distribution, > 0; the smaller, the more unlike the sites.
        seed: of the draw.

    Returns:
        names ``artificial-1``, ``artificial-2``, ... with the index of ``subjects``.

    Raises:
        DataError: P206 when no draw gives each site ``LEAST_SUBJECTS`` subjects.
    """
    first = classes.groupby(subjects, sort=True).first()
    if scheme == "quantity":
        first[:] = ""
    width = len(str(sites))
    rng = np.random.default_rng(derive_seed("artificial sites", scheme, seed))
    for _ in range(_MOST_DRAWS if len(first) >= LEAST_SUBJECTS * sites else 0):
        drawn = np.empty(len(first), dtype=np.int64)
        for name in sorted(first.unique()):
            here = np.flatnonzero(first == name)
            drawn[rng.permutation(here)] = _shares(rng.dirichlet([alpha] * sites), len(here))
        if np.bincount(drawn, minlength=sites).min() >= LEAST_SUBJECTS:
            names = pd.Series([f"artificial-{site + 1:0{width}}" for site in drawn], index=first.index)
            return subjects.map(names)
    raise DataError(
        "P206",
        f"{len(first)} subjects can't be spread over {sites} artificial sites with {LEAST_SUBJECTS} subjects or more "
        f"each (alpha {alpha:g}).",
        "Take fewer sites (--sites) or a larger --alpha.",
    )


def _shares(shares: npt.NDArray[np.float64], number: int) -> npt.NDArray[np.int64]:
    """Site of each of ``number`` subjects in a row, so that sites get their shares up to rounding."""
    ends = np.round(np.cumsum(shares) * number).astype(np.int64)
    return np.searchsorted(ends, np.arange(number), side="right").clip(max=len(shares) - 1)
