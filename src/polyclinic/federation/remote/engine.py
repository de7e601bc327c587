"""Carries messages to sites in other processes, over connections that may fail."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Protocol

from polyclinic.communication.message import Message
from polyclinic.engine.base import Engine, Reply
from polyclinic.errors import PolyclinicError, SiteError
from polyclinic.federation.remote.calls import Alive, Asked, Pieces, digest, is_message, opened, size
from polyclinic.federation.remote.wire import MOST_BYTES, answer_from_pieces, misfit

#: How often an answer that was damaged on the way is asked for again.
MOST_REPEATS = 5


class Unreachable(Exception):  # noqa: N818 - of a connection, which may come back
    """Nobody is there, or nobody said anything in time."""


class Gone(Unreachable):
    """Nobody is there, and nobody will be in this run of the study: the site's process has ended."""


class Party(Protocol):
    """A site as the coordinator reaches it."""

    def answer(self, envelope: str, message: Pieces, seconds: float) -> tuple[object, object]:
        """Envelope and message of the answer to a call; see `polyclinic.federation.remote.calls`.

        Raises:
            Unreachable: there is none.
            TimeoutError: there is none within ``seconds``.
        """
        ...

    def alive(self, seconds: float) -> Alive:
        """What the site is doing, told also while it is at work.

        Raises:
            Unreachable: nobody is there.
            TimeoutError: nobody said anything within ``seconds``.
        """
        ...


@dataclass(frozen=True)
class Patience:
    """How long a coordinator waits, in seconds.

    Attributes:
        deadline: for an answer.
        silence: for a sign of life from a site that is connected and at work.
        absence: for a site that is not connected.
        look: between two looks whether a site at work is alive.
        pause: before the first repetition; the next ones take longer.
    """

    deadline: float = 24 * 3600.0
    silence: float = 60.0
    absence: float = 60.0
    look: float = 5.0
    pause: float = 0.5


@dataclass
class Line:
    """What is known of the connection to a site.

    Attributes:
        number: of the last call.
        lost: whether it did not answer when it should have.
        heard: when it last said something, in seconds since 1970; 0 for never.
        asked: what it is asked just now, and since when.
        sent, received: bytes of all messages.
    """

    number: int = 0
    lost: bool = False
    heard: float = 0.0
    asked: tuple[str, float] = ("", 0.0)
    sent: int = 0
    received: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


class RemoteEngine(Engine):
    """Sites that are asked by calls, all at once; answers come in site order.

    A call that gets lost on the way is repeated, and answered once all the same. A site that does not answer, whatever
    the reason, is named; at each further call it is looked for, and goes on where it is.

    Args:
        parties: site -> how it is reached.
        session: of this run of the study.
        patience: how long to wait.
        answered: is told of each answer: site, function, answer.
    """

    real = True

    def __init__(
        self, parties: Mapping[str, Party], session: str, patience: Patience | None = None,
        answered: Callable[[str, str, Message], None] = lambda site, function, answer: None,
    ) -> None:  # fmt: skip
        self.sites, self.parties, self.session = sorted(parties), dict(parties), session
        self.patience, self.answered = patience or Patience(), answered
        self.lines = {site: Line() for site in self.sites}
        self._pool = ThreadPoolExecutor(max(1, len(parties)), thread_name_prefix="site")
        self._arrived = SimpleQueue[tuple[str, "Future[Message | PolyclinicError]"]]()
        self._missing = 0
        self._calls = set[Future[tuple[object, object]]]()

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

    def rename(self, names: Mapping[str, str]) -> None:
        """Give sites the names that they have in studies.

        Args:
            names: how they were called so far -> name.
        """
        self.parties = {names[site]: party for site, party in self.parties.items()}
        self.lines = {names[site]: line for site, line in self.lines.items()}
        self.sites = sorted(self.parties)

    @property
    def lost(self) -> list[str]:
        """Sites that did not answer when they were asked last."""
        return [site for site in self.sites if self.lines[site].lost]

    @property
    def is_held_up(self) -> bool:
        """Whether calls are going on whose answers nobody waits for any longer."""
        return bool(self._calls)

    def _ask(self, site: str, function: str, request: Message) -> Message | PolyclinicError:
        line = self.lines[site]
        with line.lock:  # a site does one thing at a time
            line.asked = function, time.time()
            try:
                found = self._answer(site, line, function, request)
                if isinstance(found, Message):
                    self.answered(site, function, found)
                return found
            except SiteError as error:
                line.lost = error.code == "P402"
                return error
            finally:
                line.asked = "", 0.0

    def _answer(self, site: str, line: Line, function: str, request: Message) -> Message | PolyclinicError:
        """Ask until there is an answer.

        Raises:
            SiteError: P402, there is none in time; P401, none that belongs to the call.
        """
        if line.lost:
            self._look(site, line)
        message, line.number = request.to_pieces(), line.number + 1
        if size(message) > MOST_BYTES:
            text = f"A message of {size(message) / 1e9:.1f} GB is too large to be sent to site {site}."
            raise SiteError("P401", text, "Use a smaller network.", site=site)
        asked = Asked(session=self.session, number=line.number, function=function, sha256=digest(message))
        until, pause, damaged = time.monotonic() + self.patience.deadline, self.patience.pause, 0
        absent: float | None = None
        while True:
            try:
                line.sent += size(message)
                envelope, data = self._waited(site, line, asked, message, until)
            except Unreachable as error:
                now = time.monotonic()
                absent = absent or now
                if isinstance(error, Gone) or now - absent >= self.patience.absence:
                    raise _absent(site, function) from None
                time.sleep(pause)
                pause = min(2 * pause, self.patience.look)
                continue
            absent, line.lost, line.heard = None, False, time.time()
            line.received += size(data) if is_message(data) else 0
            state = opened(envelope, data, asked)
            if state == "answered":
                return answer_from_pieces(site, data)
            damaged += 1
            if state == "refused" or damaged > MOST_REPEATS:
                raise misfit(site)

    def _look(self, site: str, line: Line) -> None:
        """Whether a site that was lost is there again.

        Raises:
            SiteError: P402, it is not.
        """
        try:
            self.parties[site].alive(self.patience.look)
        except (Unreachable, TimeoutError):
            text = f"Site {site} has not been there since it last did not answer."
            raise SiteError("P402", text, "Look at the site's log, and at its connection.", site=site) from None
        line.heard = time.time()

    def _waited(self, site: str, line: Line, asked: Asked, message: Pieces, until: float) -> tuple[object, object]:
        """An answer, waited for as long as its site is alive.

        Raises:
            Unreachable: nobody is there.
            SiteError: P402, it takes too long, or the site says nothing any longer.
        """
        party, going = self.parties[site], Future[tuple[object, object]]()
        self._calls.add(going)
        going.add_done_callback(self._calls.discard)
        threading.Thread(
            target=_run, args=(going, party, asked, message, until - time.monotonic()), name=site, daemon=True
        ).start()
        heard, look = time.monotonic(), self.patience.look
        while True:
            try:
                return going.result(timeout=max(0.0, min(look, until - time.monotonic())))
            except TimeoutError:
                ended = going.done() and isinstance(going.exception(), TimeoutError)
                if ended or time.monotonic() >= until:
                    raise _late(site, asked.function, self.patience.deadline) from None
                if going.done():
                    continue
            try:
                party.alive(look)
                heard, line.heard = time.monotonic(), time.time()
            except Unreachable as error:
                if isinstance(error, Gone) or time.monotonic() - heard > self.patience.absence:
                    raise _absent(site, asked.function) from None
            except TimeoutError:
                if time.monotonic() - heard > self.patience.silence:
                    raise _late(site, asked.function, self.patience.silence) from None

    def close(self) -> None:
        """See `Engine.close`."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def _run(going: Future[tuple[object, object]], party: Party, asked: Asked, message: Pieces, seconds: float) -> None:
    try:
        going.set_result(party.answer(asked.model_dump_json(), message, seconds))
    except BaseException as error:  # whatever it is, who waits is told
        going.set_exception(error)


def _late(site: str, function: str, seconds: float) -> SiteError:
    return SiteError(
        "P402", f"Site {site} did not answer within {seconds:g} s when asked to {function}.",
        "Look at the site's log, and at its connection.", site=site,
    )  # fmt: skip


def _absent(site: str, function: str) -> SiteError:
    return SiteError(
        "P402", f"Site {site} can't be reached when asked to {function}.",
        "Look at the site's log, and at its connection.", site=site,
    )  # fmt: skip
