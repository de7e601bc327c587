"""Which sites have a mask in common and hold shares of each other's secrets: all, or for many sites a sparse graph.

In the sparse graph each site has k neighbours: the k / 2 before it and the k / 2 after it on a circle on which the
sites stand in random order (Harary's graph). Three things must hold, whichever c sites are corrupt, as long as they
were so before the order was known:

1. In no honest site's neighbourhood are t corrupt sites: they could rebuild its secrets. Their number among the k
   neighbours is hypergeometric.
2. Honest sites that survive are connected: a group of them that has masks with none of the others would be a sum of
   its own. Without some sites a circle falls apart only where two stretches of k / 2 neighbours are without any. Here
   up to d sites are missing wherever the server likes, so the two must have k - d corrupt sites.
3. At least t of each neighbourhood are left when d sites drop out by chance, so that the sum can be had.

1 and 2 fail with a probability of at most 2^-security, 3 of at most 2^-30, by union bounds over exact tails.

Source: Bell, Bonawitz, Gascón, Lepoint, Raykova, Secure single-server aggregation with (poly)logarithmic overhead, CCS
2020, sections 3 and 4. There each site draws neighbours of its own where the server may lie; here the order comes
from a hash of all sites' keys of the round, and sites sign one list of survivors. See `fit_shape` for what remains.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache
from math import comb

from polyclinic.errors import StudyError

#: With so many sites or fewer each has a mask in common with every other.
COMPLETE_UP_TO = 30
#: A round whose drop-outs were not too many fails in one of 2^30 cases.
FAILURE_BITS = 30


@dataclass(frozen=True)
class Shape:
    """How many of how many.

    Attributes:
        sites: n, of the federation.
        degree: k, neighbours of each site; n - 1 in a complete graph.
        threshold: t, so many shares rebuild a secret; the k + 1 sites of a neighbourhood hold one each, its own too.
        agreement: so many sites must be left, and sign the same list of survivors.

    Raises:
        StudyError: P102, a number can't be.
    """

    sites: int
    degree: int
    threshold: int
    agreement: int

    def __post_init__(self) -> None:
        n, k = self.sites, self.degree
        if n < 2 or not (k == n - 1 or (2 <= k < n - 1 and k % 2 == 0)):
            raise StudyError("P102", f"A secure sum of {n} sites can't have {k} neighbours for each.",
                             f"Give {n - 1}, or an even number below.")  # fmt: skip
        for what, value, of in (("threshold", self.threshold, k + 1), ("agreement", self.agreement, n)):
            if not of < 2 * value <= 2 * of:
                raise StudyError(
                    "P102", f"The {what} of a secure sum is {value}; expected more than half of {of}, at most {of}.",
                    "With half or fewer, a server that tells one half that a site dropped out and the other half that "
                    "it did not would get both of its secrets, and with them its values.",
                )  # fmt: skip

    @property
    def complete(self) -> bool:
        """Whether all sites are neighbours."""
        return self.degree == self.sites - 1


def fit_shape(
    sites: int, *, threshold: int | None = None, dropout: float = 0.2, corrupt: float = 0.1, security: int = 100
) -> Shape:
    """The graph and the thresholds for a number of sites.

    Up to 30 sites the graph is complete, and ``threshold`` t is both how many shares rebuild a secret and how many
    sites must be left. A server that wants both secrets of a site tells some sites that it dropped out and others that
    it did not. Honest sites give one of them each, c corrupt sites give both, so it needs 2 t ≤ n + c. With the
    default, t = ⌊2 n / 3⌋ + 1, it fails for all c < n / 3; with any t > n / 2 for c = 0.

    Beyond, k and t are the least that hold against ``corrupt`` and ``dropout``, or the graph is complete if there are
    none. Security is 100 bits by default, since a server in league with a site can choose that site's keys, and with
    them try many graphs: after 2^60 tries 2^-40 remains.

    Args:
        sites: n, at least 2.
        threshold: t of up to 30 sites; more than n / 2.
        dropout: share of the sites that may drop out in a round of more than 30 sites.
        corrupt: share of the sites that may be in league with the server, of more than 30 sites.
        security: bits, for more than 30 sites.

    Raises:
        StudyError: P102, nothing holds against so much, or a threshold is too low or too high.
    """
    if sites <= COMPLETE_UP_TO:
        threshold = 2 * sites // 3 + 1 if threshold is None else threshold
        return Shape(sites, sites - 1, threshold, threshold)
    if threshold is not None:
        raise StudyError("P102", f"With {sites} sites the threshold of a secure sum is computed; got {threshold}.",
                         "Leave `threshold` out, and give `dropout` and `corrupt`.")  # fmt: skip
    if not (0 <= dropout < 1 and 0 <= corrupt < 1 and 1 <= security <= 256):
        raise StudyError("P102", f"Got dropout {dropout}, corrupt {corrupt} and security {security}; expected shares "
                         "from 0 to below 1, and 1 to 256 bits.", "Give such numbers.")  # fmt: skip
    missing, bad = _count(dropout, sites), _count(corrupt, sites)
    left = sites - missing
    if 2 * left <= sites + bad:
        raise StudyError(
            "P102",
            f"Of {sites} sites {missing} may drop out ({dropout:g}) and {bad} may be corrupt ({corrupt:g}): {left} are "
            f"left, and {(sites + bad) // 2 + 1} are needed, so that no two lists of survivors are both signed.",
            "Give a smaller `dropout` or `corrupt`: 2 · dropout + corrupt must be below 1.",
        )
    degree, threshold = _least(sites, missing, bad, security) or (sites - 1, left)
    return Shape(sites, degree, threshold, left)


def _count(share: float, sites: int) -> int:
    return int(share * sites + 1e-9)  # 0.29 of 100 is 29


@lru_cache(maxsize=64)
def _least(sites: int, missing: int, bad: int, security: int) -> tuple[int, int] | None:
    """The least even number of neighbours below n - 1, and the least threshold for it, if there are any."""
    for degree in range(2, sites - 1, 2):
        if not _rare(sites * (sites - 1) // 2, tail(sites, bad, degree, degree - missing), sites, degree, security + 1):
            continue
        for threshold in range((degree + 1) // 2 + 1, degree + 2):
            held = _rare(sites - bad, tail(sites - 1, bad, degree, threshold), sites - 1, degree, security + 1)
            if held:  # more shares are only harder to have
                if _reached(sites, missing, degree, threshold):
                    return degree, threshold
                break
    return None


def tail(population: int, marked: int, drawn: int, least: int) -> int:
    """In how many of the draws of ``drawn`` from a population at least ``least`` are marked."""
    most = min(drawn, marked)
    lowest = max(least, 0, drawn - (population - marked))
    return sum(comb(marked, x) * comb(population - marked, drawn - x) for x in range(lowest, most + 1))


def _rare(times: int, ways: int, population: int, drawn: int, bits: int) -> bool:
    """Whether ``times`` · ``ways`` / (draws) ≤ 2^-bits, exactly: all sites must find the same graph."""
    return times * ways << bits <= comb(population, drawn)


def _reached(sites: int, missing: int, degree: int, threshold: int) -> bool:
    """Whether t holders of shares of each site are left: of a site that is left it is one itself."""
    others, every = sites - 1, comb(sites - 1, degree)
    kept = every - tail(others, sites - missing - 1, degree, threshold - 1)
    gone = every - tail(others, sites - missing, degree, threshold)
    return (sites - missing) * kept + missing * gone << FAILURE_BITS <= every


class Graph:
    """The neighbours of each site of a round.

    Args:
        shape: how many of how many.
        seed: public randomness of the round, the same at all parties; of a complete graph nothing depends on it.
    """

    def __init__(self, shape: Shape, seed: bytes) -> None:
        drawn = [hashlib.sha256(seed + place.to_bytes(8, "little")).digest() for place in range(shape.sites)]
        self._circle = sorted(range(shape.sites), key=drawn.__getitem__)
        self._place = {site: place for place, site in enumerate(self._circle)}
        self.shape = shape

    def neighbours(self, site: int) -> list[int]:
        """Numbers of the neighbours of a site, in rising order."""
        if self.shape.complete:
            return [other for other in range(self.shape.sites) if other != site]
        reach, place = self.shape.degree // 2, self._place[site]
        steps = [*range(-reach, 0), *range(1, reach + 1)]
        return sorted(self._circle[(place + step) % len(self._circle)] for step in steps)

    def connected(self, sites: Collection[int]) -> bool:
        """Whether a path between neighbours leads from each of these sites to each other."""
        if self.shape.complete:
            return True
        places = sorted(self._place[site] for site in sites)
        gaps = [
            second - first for first, second in zip(places, [*places[1:], places[0] + self.shape.sites], strict=True)
        ]
        return sum(gap > self.shape.degree // 2 for gap in gaps) <= 1
