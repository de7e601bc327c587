"""Sums of numbers over sites, outside of training: what both ends know before one begins.

Everything that is told of a site's data, and of which only the sum over sites is needed, can go this way: each number
becomes a whole one of 512 bits (`polyclinic.secure.exact`), and the sites' vectors are added by the rounds of a secure
sum. So the sum is exact, no bound of the values is agreed on, and the coordinator sees masks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from polyclinic.errors import SiteError
from polyclinic.secure.binding import UnfitError, digest
from polyclinic.secure.exact import BITS
from polyclinic.secure.graph import fit_shape
from polyclinic.secure.terms import TRAINING_BYTES, Terms

#: A sum of fewer sites is refused: of a sum of two, each of the two knows the other's part.
LEAST = 3
#: More numbers are in no sum: 512 MiB of them.
MOST = 2**23


@dataclass(frozen=True)
class SumTerms:
    """What the coordinator tells the sites of a sum.

    Attributes:
        session: 32 random bytes, of this sum alone.
        function: what sites are asked.
        sites: that take part, in the order of the federation.
        length: how many numbers each gives.
    """

    session: bytes
    function: str
    sites: tuple[str, ...]
    length: int

    def told(self) -> dict[str, Any]:
        """As a message has it."""
        return {"session": self.session, "function": self.function, "sites": self.sites, "length": self.length}

    @classmethod
    def read(cls, told: object) -> SumTerms:
        """From a message.

        Raises:
            UnfitError: it is something else.
        """
        if not isinstance(told, dict) or told.keys() != {"session", "function", "sites", "length"}:
            raise UnfitError("The terms of a sum are not as they should be.")
        session, function, sites, length = (told[name] for name in ("session", "function", "sites", "length"))
        named = isinstance(sites, list) and all(isinstance(site, str) for site in sites) and len({*sites}) == len(sites)
        counted = type(length) is int and 0 < length <= MOST
        whole = isinstance(session, bytes) and len(session) == TRAINING_BYTES
        if not (named and counted and whole and isinstance(function, str)):
            raise UnfitError("The terms of a sum are not as they should be.")
        return cls(session, function, tuple(sites), length)

    def terms(self) -> Terms:
        """Those of the round, the same at all parties. What is asked is part of them.

        Raises:
            SiteError: P402, too few sites take part.
        """
        check_enough(len(self.sites))
        training = digest("sum", self.session, self.function)
        return Terms(training, 1, 0, self.sites, fit_shape(len(self.sites)), BITS, self.length, LEAST)


def check_enough(sites: int) -> None:
    """Whether there are enough for a sum.

    Raises:
        SiteError: P402, there are not.
    """
    if sites < LEAST:
        raise SiteError(
            "P402", "`privacy: {summaries: secure_sum}` hides what sites say of their cases in sums of "
            f"{LEAST} sites or more, and {sites} take part: of a sum of two, each of the two knows the other's part.",
            "Let more sites take part (`unseen_sites` leaves one out), or leave `summaries` out.",
        )  # fmt: skip
