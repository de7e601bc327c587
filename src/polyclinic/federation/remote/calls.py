"""A call of a site, with what tells it from others: it is answered once, whatever gets lost, late or twice on the way.

The coordinator numbers its calls of a site. A call that got no answer is repeated under its number; the site, which
remembers its last answer, gives that again and does nothing twice. Both sides carry the SHA-256 of what they send, and
an answer says which call it belongs to.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Sequence
from typing import Literal, TypeGuard

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from polyclinic.communication.message import Piece

#: A message as it is carried.
Pieces = Sequence[Piece]
#: Answers a function with a message; what goes wrong is an answer, too.
Answer = Callable[[str, Pieces], Pieces]
_Digest = Field(pattern="^[0-9a-f]{64}$")


class _Envelope(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Asked(_Envelope):
    """What stands on a call.

    Attributes:
        session: of this run of the study.
        number: of the call in it; those of a site go up.
        function: what is asked for.
        sha256: of the message.
    """

    session: str = Field(max_length=100)
    number: int = Field(ge=1)
    function: str = Field(max_length=200)
    sha256: str = _Digest


class Answered(_Envelope):
    """What stands on an answer.

    Attributes:
        asked: what stood on the call.
        state: ``answered``; ``damaged``, the message was not what was sent; or ``refused``, the call belongs to another
            session, came after a later one, or has the number of another.
        sha256: of the message.
    """

    asked: Asked
    state: Literal["answered", "damaged", "refused"]
    sha256: str = _Digest


class Alive(_Envelope):
    """What a site says of itself while it is at work.

    Attributes:
        function: what it answers just now; empty if nothing.
        seconds: for how long.
    """

    function: str = Field(max_length=200)
    seconds: float = Field(ge=0.0)


def _since(start: float) -> float:
    return time.monotonic() - start


def digest(message: Pieces) -> str:
    """SHA-256 of a message."""
    found = hashlib.sha256()
    for piece in message:
        found.update(piece)
    return found.hexdigest()


def size(message: Pieces) -> int:
    """Bytes of a message."""
    return sum(map(len, message))


def is_message(found: object) -> TypeGuard[Pieces]:
    """Whether what came is carried as messages are."""
    return isinstance(found, list | tuple) and all(isinstance(piece, bytes | memoryview) for piece in found)


class AnsweredOnce:
    """The site's side: each call is answered once, one at a time.

    Args:
        session: the only one whose calls are answered.
        answer: does it.
    """

    def __init__(self, session: str, answer: Answer) -> None:
        self.session, self._answer = session, answer
        self._lock = threading.Lock()
        self._last: tuple[Asked, Pieces] | None = None
        self._busy: tuple[str, float] | None = None

    def now(self) -> Alive:
        """What is being answered."""
        busy = self._busy
        return Alive(function="", seconds=0.0) if busy is None else Alive(function=busy[0], seconds=_since(busy[1]))

    def __call__(self, envelope: str, message: object) -> tuple[str, Pieces]:
        """The envelope and message of an answer.

        Raises:
            ValueError: there is no envelope, or what should be a message is carried in another way.
        """
        asked = Asked.model_validate_json(envelope)
        if not is_message(message):
            raise ValueError(f"a {type(message).__name__} for the pieces of a message")
        with self._lock:
            state, found = self._found(asked, message)
        return Answered(asked=asked, state=state, sha256=digest(found)).model_dump_json(), found

    def _found(self, asked: Asked, message: Pieces) -> tuple[Literal["answered", "damaged", "refused"], Pieces]:
        if asked.session != self.session:
            return "refused", []
        if self._last is not None and asked.number <= self._last[0].number:
            return ("answered", self._last[1]) if asked == self._last[0] else ("refused", [])
        if digest(message) != asked.sha256:
            return "damaged", []
        self._last, self._busy = None, (asked.function, time.monotonic())  # not two answers at a time in memory
        try:
            found = self._answer(asked.function, message)
        finally:
            self._busy = None
        self._last = asked, found
        return "answered", found


def opened(envelope: object, message: object, asked: Asked) -> Literal["answered", "damaged", "refused"]:
    """The coordinator's side: what an answer is; one that is not as it was sent, or belongs to another call, is
    damaged."""
    if not isinstance(envelope, str) or not is_message(message):
        return "damaged"
    try:
        found = Answered.model_validate_json(envelope)
    except ValidationError:
        return "damaged"
    if found.asked != asked or found.sha256 != digest(message):
        return "damaged"
    return found.state
