"""Everything that can go wrong between a coordinator and its sites, drawn from one seed.

Sites are objects whose memory is gone when they are killed, and whose files stay. Calls are delayed, lost, repeated,
put out of order, damaged and replayed on their way; sites and coordinator are killed at calls and at writes, writes are
torn or find the disk full, and the clock jumps.
"""

from __future__ import annotations

import builtins
import errno
import pathlib
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

from polyclinic.federation.remote.calls import Alive, Answer, AnsweredOnce, Pieces
from polyclinic.federation.remote.engine import Patience, Unreachable

#: So that a call that gets lost costs little time.
PATIENCE = Patience(deadline=20.0, silence=20.0, absence=0.08, look=5.0, pause=0.001)


class Killed(BaseException):
    """A process was killed: nothing that it does after this is seen."""


def drawing(seed: int) -> random.Random:
    """What decides, the same in each run of a seed."""
    return random.Random(seed)  # noqa: S311 - nothing secret


@dataclass
class Faults:
    """Which faults there are, and how many are left.

    Attributes:
        random: decides.
        kinds: names of the faults that may happen.
        left: how many more.
        happened: those that did, for a message.
    """

    random: random.Random
    kinds: list[str]
    left: int
    happened: list[str] = field(default_factory=list)

    def draw(self, *kinds: str, chance: float = 0.15) -> str:
        """One of some kinds, or none."""
        possible = [kind for kind in kinds if kind in self.kinds]
        if not possible or self.left <= 0 or self.random.random() > chance:
            return ""
        self.left -= 1
        kind = self.random.choice(possible)
        self.happened.append(kind)
        return kind


class SiteProcess:
    """A site's process for one run of a study.

    Args:
        name: of the site.
        session: of the run.
        start: makes what answers, from the site's files.
    """

    def __init__(self, name: str, session: str, start: Callable[[], Answer]) -> None:
        self.name, self.dead = name, False
        self._answers: Answer | None = None
        self._start = start
        self.once = AnsweredOnce(session, self._answer)

    def _answer(self, function: str, message: Pieces) -> Pieces:
        if self._answers is None:
            self._answers = self._start()
        return self._answers(function, message)


class FaultyParty:
    """A site, as a coordinator reaches it over a bad connection.

    Args:
        process: the site's.
        faults: what happens; shared by all sites.
        old: calls and answers of earlier runs and calls, to be replayed.
    """

    def __init__(self, process: SiteProcess, faults: Faults, old: list[tuple[Any, Any]]) -> None:
        self.process, self.faults, self.old = process, faults, old
        self._answers: list[tuple[object, object]] = []

    def alive(self, seconds: float) -> Alive:
        if self.process.dead:
            raise Unreachable
        return self.process.once.now()

    def answer(self, envelope: str, message: Pieces, seconds: float) -> tuple[object, object]:
        fault = self.faults.draw("lose the call", "lose the answer", "duplicate", "replay a call", "replay an answer",
                                 "corrupt the call", "corrupt the answer", "corrupt the envelope", "delay",
                                 "kill before", "kill after", "jump")  # fmt: skip
        if self.process.dead or fault == "lose the call":
            raise Unreachable
        if fault == "kill before":
            return self._die()
        if fault == "replay a call" and self.old:
            self._at_site(*self.faults.random.choice(self.old))
        if fault == "corrupt the call":
            message = self._corrupted(message)
        if fault == "delay":
            time.sleep(0.002)
        if fault == "jump":
            CLOCK.jump(self.faults.random.choice([-1, 1]) * 86400.0)
        found = self._at_site(envelope, message)
        self.old.append((envelope, message))
        if fault == "duplicate":
            found = self._at_site(envelope, message)
        if fault == "kill after":
            return self._die()
        if fault == "lose the answer":
            raise Unreachable
        if fault == "replay an answer" and self._answers:
            return self.faults.random.choice(self._answers)
        self._answers.append(found)
        if fault == "corrupt the answer":
            return found[0], self._corrupted(found[1])
        if fault == "corrupt the envelope":
            return self._damaged(found[0].encode()).decode("latin-1"), found[1]
        return found

    def _at_site(self, envelope: str, message: Pieces) -> Any:
        try:
            return self.process.once(envelope, message)
        except Killed:
            return self._die()

    def _die(self) -> Any:
        self.process.dead = True
        raise Unreachable

    def _corrupted(self, message: Pieces) -> Pieces:
        draw, pieces = self.faults.random, [bytes(piece) for piece in message]
        if not pieces or draw.random() < 0.1:
            return [*pieces, b"?"]
        number = draw.randrange(len(pieces))
        if draw.random() < 0.1:
            return pieces[:number]
        return [*pieces[:number], self._damaged(pieces[number]), *pieces[number + 1 :]]

    def _damaged(self, data: bytes) -> bytes:
        draw = self.faults.random
        if not data or draw.random() < 0.2:
            return data[: len(data) // 2] + b"?"
        place, bit = draw.randrange(len(data)), 1 << draw.randrange(8)
        return data[:place] + bytes([data[place] ^ bit]) + data[place + 1 :]


class Clock:
    """What time it is for who asks `time.time`."""

    def __init__(self) -> None:
        self.offset, self._time = 0.0, time.time

    def jump(self, seconds: float) -> None:
        self.offset += seconds

    def __call__(self) -> float:
        return self._time() + self.offset


CLOCK = Clock()


@contextmanager
def failing_writes(faults: Faults, folder: pathlib.Path) -> Iterator[None]:
    """Lets writes below a folder fail, be torn, or be the last thing that a process does.

    The coordinator runs in the thread that enters this; every other thread is a site.
    """
    opened, replace, me = pathlib.Path.open, pathlib.Path.replace, threading.current_thread()
    dead = threading.Event()

    def fault(path: pathlib.Path) -> str:
        if not path.is_relative_to(folder):
            return ""
        at_coordinator = threading.current_thread() is me
        if at_coordinator and dead.is_set():
            raise Killed
        kinds = ["fill the disk", "tear a write", "kill at a write"]
        if not at_coordinator:
            kinds = ["kill a site at a write"]
        found = faults.draw(*kinds, chance=0.05)
        if found in ("tear a write", "kill at a write") and at_coordinator:
            dead.set()
        return found

    def open_(self: pathlib.Path, mode: str = "r", *args: Any, **options: Any) -> Any:
        writes = any(letter in mode for letter in "wa+x")
        found = fault(self) if writes else ""
        if found == "fill the disk":
            raise OSError(errno.ENOSPC, "No space left on device")
        if found.startswith("kill"):
            raise Killed
        file = opened(self, mode, *args, **options)
        return _Torn(file) if found == "tear a write" else file

    def replace_(self: pathlib.Path, target: Any) -> Any:
        found = fault(self)
        if found == "fill the disk":
            raise OSError(errno.ENOSPC, "No space left on device")
        if found:
            if faults.random.random() < 0.5:
                replace(self, target)
            raise Killed
        return replace(self, target)

    with (
        mock.patch.object(pathlib.Path, "open", open_), mock.patch.object(pathlib.Path, "replace", replace_),
        mock.patch.object(time, "time", CLOCK),
    ):  # fmt: skip
        yield


class _Torn:
    """A file of which only the first half of a write arrives, and then the process is gone."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def __enter__(self) -> _Torn:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, content: Any) -> builtins.int:
        self._file.write(content[: len(content) // 2])
        self._file.flush()
        raise Killed
