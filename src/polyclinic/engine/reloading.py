"""Going on after a process that ran sites has ended: they are loaded again, and what was begun is done once more."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from polyclinic.engine.base import Engine, SitesLost
from polyclinic.errors import TrainingError

#: After so many processes that ended at the same point, nothing more is tried.
MOST_LOSSES = 3

Found = TypeVar("Found")


class Reloading:
    """Does things with the sites of an engine, again where a process that ran some of them has ended.

    A process that dies is no hospital that does not answer: whoever holds the data can load the sites again, so the
    quorum has no say in it. What is done has to go on from its last checkpoint, or give the same when it is repeated.

    Args:
        engine: who runs the sites.
        forget: is called when sites were lost, since none of them is prepared for anything any more.
        tell: is told what happened, for people.
    """

    def __init__(self, engine: Engine, forget: Callable[[], None], tell: Callable[[str], None]) -> None:
        self._engine, self._forget, self._tell = engine, forget, tell
        self._losses, self._busy = 0, False

    def do(self, act: Callable[[], Found]) -> Found:
        """What ``act`` gives at last.

        Raises:
            TrainingError: P403, so many processes ended with nothing done between them.
        """
        if self._busy:  # whoever does more with the sites repeats this, too
            return act()
        self._busy, self._losses = True, 0
        try:
            while True:
                try:
                    self._engine.reload()
                    return act()
                except SitesLost as lost:
                    self._lost(lost)
        finally:
            self._busy = False

    def _lost(self, lost: SitesLost) -> None:
        self._losses += 1
        self._forget()
        if self._losses >= MOST_LOSSES:
            raise given_up(lost, self._losses) from None
        self._tell(f"{lost} Another one takes its place, and goes on from the last checkpoint.")

    def advanced(self) -> None:
        """A round is done, so that what comes next is another point."""
        self._losses = 0


def given_up(lost: SitesLost, attempts: int) -> TrainingError:
    """The error after the last attempt."""
    cause = " Most often that is the system, when memory is short." if lost.was_killed else ""
    return TrainingError(
        "P403", f"At the same point {attempts} worker processes ended one after another. {lost}{cause}",
        "Finished rounds are saved. Free memory and run the same command with --resume; or start anew with fewer "
        "`engine: {workers: ...}`, a lower `training: {batch_size: ...}`, or `engine: {mode: sequential}`.",
    )  # fmt: skip
