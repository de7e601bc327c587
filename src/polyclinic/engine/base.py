"""What an engine is: it carries messages to sites and answers back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path

from torch import Tensor

from polyclinic.communication.message import Message
from polyclinic.errors import PolyclinicError
from polyclinic.notes import Note
from polyclinic.secure import Verifier

#: A site's name and its answer, or why it could not answer.
Reply = tuple[str, Message | PolyclinicError]


class SitesLost(Exception):  # noqa: N818 - it is no site's failure, and nobody's mistake
    """A process that ran sites has ended, and what they had in memory is gone; see `polyclinic.engine.reloading`.

    Args:
        sites: that it ran.
        epitaph: how it ended.
    """

    def __init__(self, sites: Sequence[str], epitaph: str) -> None:
        self.was_killed = "signal 9" in epitaph
        noun = "site" if len(sites) == 1 else "sites"
        super().__init__(f"The worker process of {noun} {', '.join(sites)} ended unexpectedly ({epitaph}).")


class Engine(ABC):
    """Carries messages between the coordinator and the sites.

    Attributes:
        sites: names of all sites, in the order in which answers come.
        holds_all: whether the data of all sites are in one place: only there can cases be pooled, sites be simulated,
            and cases of several sites be compared.
        real: whether sites are hospitals, whose patients are to be protected, and not simulated.
        verifier: knows the sites' signatures; None where sites have no certificates.
        folder_here: where sites are elsewhere, the folder with the coordinator's own copies of files that a study
            names; None takes the study's.
    """

    sites: list[str]
    holds_all: bool = False
    real: bool = False
    verifier: Verifier | None = None
    folder_here: Path | None = None

    @abstractmethod
    def call(self, function: str, requests: Mapping[str, Message]) -> Iterator[Reply]:
        """Ask each site named in ``requests``; answers come in site order, one at a time.

        A site's failure is an answer, too: it is for the caller to decide whether the others suffice.

        Raises:
            SitesLost: a process of this machine that runs sites has ended; `reload` them, and begin again.
        """

    def post(self, site: str, function: str, request: Message) -> None:
        """Ask one site without waiting; the answer is one of `replies`, until which the tensors may not be changed."""
        self._posted.append((site, function, request))

    def replies(self) -> Iterator[Reply]:
        """Answers to all that was posted, also while this goes on; it ends when none is missing.

        They come in the order in which they are there: where sites are simulated one after another, that in which they
        were asked.
        """
        while self._posted:
            site, function, request = self._posted.popleft()
            yield from self.call(function, {site: request})

    @cached_property
    def _posted(self) -> deque[tuple[str, str, Message]]:
        return deque()

    def ask(self, function: str, requests: Mapping[str, Message]) -> dict[str, Message]:
        """Like ``call``, where every site must answer.

        Raises:
            PolyclinicError: the first failure.
        """
        answers = {}
        for site, reply in self.call(function, requests):
            if isinstance(reply, PolyclinicError):
                raise reply
            answers[site] = reply
        return answers

    def keep(self, sites: list[str]) -> None:
        """Go on with these sites only."""
        self.sites = [site for site in self.sites if site in sites]

    def compared(self) -> list[Note] | None:
        """What is to be said of the opened cases of all sites, compared with each other; None where they are not in one
        place."""
        return None

    def public(self) -> Tensor | None:
        """Inputs of the public set ``[M, ...]``, once the sites have opened their cases; None without one, or where
        each has a copy of its own."""
        return None

    @property
    def notes(self) -> list[Note]:
        """What a person should know of how messages went."""
        return []

    def reload(self) -> None:  # noqa: B027 - most engines lose no sites
        """Load sites that were lost again, as they were opened: they are prepared for no fold, and know of no training.

        Raises:
            SitesLost: that did not go well either.
        """

    def close(self) -> None:  # noqa: B027 - most engines have nothing to end
        """End processes and connections."""
