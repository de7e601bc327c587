"""What an engine is: it carries messages to sites and answers back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping

from polyclinic.communication.message import Message
from polyclinic.errors import PolyclinicError
from polyclinic.notes import Note

#: A site's name and its answer, or why it could not answer.
Reply = tuple[str, Message | PolyclinicError]


class Engine(ABC):
    """Carries messages between the coordinator and the sites.

    Attributes:
        sites: names of all sites, in the order in which answers come.
    """

    sites: list[str]

    @abstractmethod
    def call(self, function: str, requests: Mapping[str, Message]) -> Iterator[Reply]:
        """Ask each site named in ``requests``; answers come in site order, one at a time.

        A site's failure is an answer, too: it is for the caller to decide whether the others suffice.
        """

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

    @property
    def notes(self) -> list[Note]:
        """What a person should know of how messages went."""
        return []

    def close(self) -> None:  # noqa: B027 - most engines have nothing to end
        """End processes and connections."""
