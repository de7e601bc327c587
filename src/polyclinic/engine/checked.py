"""The coordinator's end of the schema of messages: an answer that is not as it should be is its site's failure."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping

from polyclinic.communication.message import Message
from polyclinic.engine.base import Engine, Reply
from polyclinic.errors import PolyclinicError
from polyclinic.notes import Note
from polyclinic.site.schema import Answers, Known


class CheckedEngine(Engine):
    """An engine whose answers are as the schema says; any other becomes an error in its place.

    The error is P301 where values are not finite numbers, as when a site finds that itself, and else P401. So nothing
    that a single site sends reaches the rest of the coordinator unless it has the right names, types and shapes, and
    finite values.

    Args:
        inner: who runs the sites.
        known: what is known of the messages.
    """

    def __init__(self, inner: Engine, known: Known) -> None:
        self.inner, self.known, self.sites, self.holds_all = inner, known, inner.sites, inner.holds_all
        self.real = inner.real
        self.verifier = inner.verifier
        self._asked: dict[str, deque[tuple[str, Message]]] = {site: deque() for site in inner.sites}

    def call(self, function: str, requests: Mapping[str, Message]) -> Iterator[Reply]:
        """See `Engine.call`."""
        answers = dict[int, Answers]()
        for site, reply in self.inner.call(function, requests):
            known = self.known.at(site, function)
            if id(known) not in answers:
                answers[id(known)] = Answers(function, known)
            yield site, _checked(answers[id(known)], site, requests[site], reply)

    def post(self, site: str, function: str, request: Message) -> None:
        """See `Engine.post`."""
        self._asked[site].append((function, request))
        self.inner.post(site, function, request)

    def replies(self) -> Iterator[Reply]:
        """See `Engine.replies`; a site answers what it was asked first, first."""
        for site, reply in self.inner.replies():
            function, request = self._asked[site].popleft()
            yield site, _checked(Answers(function, self.known.at(site, function)), site, request, reply)

    def keep(self, sites: list[str]) -> None:
        """See `Engine.keep`."""
        self.inner.keep(sites)
        super().keep(sites)

    def compared(self) -> list[Note] | None:
        """See `Engine.compared`."""
        return self.inner.compared()

    @property
    def notes(self) -> list[Note]:
        """See `Engine.notes`."""
        return self.inner.notes

    def close(self) -> None:
        """See `Engine.close`."""
        self.inner.close()


def _checked(
    answers: Answers, site: str, asked: Message, reply: Message | PolyclinicError
) -> Message | PolyclinicError:
    if isinstance(reply, PolyclinicError):
        return reply
    return answers.check(site, asked, reply) or reply
