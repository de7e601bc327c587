"""Carries messages to sites in other processes, over FLARE's connections."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any

from polyclinic.communication.message import Message
from polyclinic.engine.base import Engine, Reply
from polyclinic.errors import PolyclinicError, SiteError
from polyclinic.federation.wire import answer_from_bytes

#: Seconds within which a site must answer.
DEADLINE = 24 * 3600.0


class FlareEngine(Engine):
    """Sites that are asked by calls of a function that they publish, all at once; answers come in site order.

    Args:
        parties: site -> what calls its functions: a proxy of ``nvflare.collab``.
        deadline: seconds within which each must answer.
    """

    def __init__(self, parties: Mapping[str, Any], deadline: float = DEADLINE) -> None:
        self.sites, self.parties, self.deadline = sorted(parties), dict(parties), deadline
        self._pool = ThreadPoolExecutor(max(1, len(parties)), thread_name_prefix="site")
        self._arrived = SimpleQueue[tuple[str, "Future[Message | PolyclinicError]"]]()
        self._missing = 0

    def call(self, function: str, requests: Mapping[str, Message]) -> Iterator[Reply]:
        """See `Engine.call`."""
        asked = [site for site in self.sites if site in requests]
        going = [self._pool.submit(self._ask, site, function, requests[site]) for site in asked]
        for site, answer in zip(asked, going, strict=True):
            yield site, answer.result()

    def post(self, site: str, function: str, request: Message) -> None:
        """See `Engine.post`."""
        self._missing += 1
        going = self._pool.submit(self._ask, site, function, request)
        going.add_done_callback(lambda done: self._arrived.put((site, done)))

    def replies(self) -> Iterator[Reply]:
        """See `Engine.replies`."""
        while self._missing:
            site, done = self._arrived.get()
            self._missing -= 1
            yield site, done.result()

    def _ask(self, site: str, function: str, request: Message) -> Message | PolyclinicError:
        from nvflare.collab.api import CollabCallError

        try:
            data = self.parties[site](timeout=self.deadline).answer(function=function, message=request.to_bytes())
        except CollabCallError as error:
            late = isinstance(error.__cause__, TimeoutError) or "timed out" in str(error)
            what = f"did not answer within {self.deadline:g} s" if late else "can't be reached"
            return SiteError("P402", f"Site {site} {what} when asked to {function}.",
                             "Look at the site's log, and at its connection.", site=site)  # fmt: skip
        return answer_from_bytes(site, data)

    def close(self) -> None:
        """See `Engine.close`."""
        self._pool.shutdown(wait=False, cancel_futures=True)
