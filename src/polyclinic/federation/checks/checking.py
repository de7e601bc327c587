"""Looking at one thing after another, each within a time of its own: nothing hangs, and nothing ends the rest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Literal

from polyclinic.errors import PolyclinicError

#: Seconds that a look may take.
LIMIT = 10.0


@dataclass(frozen=True)
class Finding:
    """What was found.

    Attributes:
        state: ``passes``, ``warning`` or ``fails``.
        text: what is so.
        advice: what to do, unless it passes.
    """

    state: Literal["passes", "warning", "fails"]
    text: str
    advice: str = ""


def passes(text: str) -> Finding:
    """It is as it should be."""
    return Finding("passes", text)


def warns(text: str, advice: str) -> Finding:
    """It works, but somebody should know."""
    return Finding("warning", text, advice)


def fails(text: str, advice: str) -> Finding:
    """With this no study works."""
    return Finding("fails", text, advice)


@dataclass(frozen=True)
class Check:
    """Something to look at.

    Attributes:
        name: of what is looked at.
        look: looks, and says what was found; it may call ``alive`` of the check to tell that it goes on.
        seconds: without an answer or a sign of life for so long, the check fails.
    """

    name: str
    look: Callable[[], Finding]
    seconds: float = LIMIT
    _answers: SimpleQueue[Finding | None] = field(default_factory=SimpleQueue, repr=False)

    def alive(self, done: int = 0, total: int = 0) -> None:
        """The look goes on."""
        self._answers.put(None)

    def run(self) -> Finding:
        """What was found; that there is no answer, or that looking failed, is a finding, too."""
        # A thread that hangs, in a file system that is gone, say, must not keep the program from ending.
        Thread(target=lambda: self._answers.put(self._looked()), daemon=True).start()
        while True:
            try:
                found = self._answers.get(timeout=self.seconds)
            except Empty:
                return fails(f"There was no answer within {self.seconds:g} s.",
                             "Find out what does not answer: a disk or a network.")  # fmt: skip
            if found is not None:
                return found

    def _looked(self) -> Finding:
        try:
            return self.look()
        except PolyclinicError as error:
            return fails(error.message, error.hint)
        except PermissionError as error:
            return fails(f"Permission denied: {error.filename}.", "Let the user who runs Polyclinic read it.")
        except Exception as error:
            cause = (
                f"{type(error).__name__}: {str(error).splitlines()[0][:300]}" if str(error) else type(error).__name__
            )
            return fails(f"It could not be looked at: {cause}.", "Mend what it names.")
