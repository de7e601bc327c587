"""Telling trackers of a study while it runs, each in a thread of its own that reads what is written anyway.

So nothing waits for a tracker, and a server that is down or a disk that is full ends no study: what failed is tried
again, from what is known to be there. At the end a note counts how often that was, if something is missing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Protocol, Self
from urllib.parse import unquote

from polyclinic.notes import Note
from polyclinic.study.checked import CheckedStudy
from polyclinic.study.ended import is_finished, read_record
from polyclinic.study.job import slug
from polyclinic.study.tracking.about import About
from polyclinic.study.tracking.entry import Options, TensorBoardOptions
from polyclinic.study.tracking.outcome import Outcome, outcome_of
from polyclinic.study.tracking.trainings import Part, Reader, Training

#: Folder of what is tracked on this machine, in that of the results.
TRACKING = "tracking"
#: Seconds from one look at the folder to the next; after a failure, and at most after many.
_PAUSE, _FAILED, _MOST = 1.0, 5.0, 300.0
#: Seconds within which a thread must have ended at the end of a study.
_END = 60.0


class Tracker(Protocol):
    """Who is told of a study. Whatever a method raises is a failure, after which `forget` is called, and it again."""

    title: str

    def is_over(self, training: Training) -> bool:
        """Whether all rounds of a training were tracked, in an earlier run perhaps."""

    def rounds(self, part: Part) -> None:
        """Track new rounds."""

    def results(self, found: Outcome) -> None:
        """Track what is known at the end."""

    def stop(self) -> None:
        """The study was stopped, and may go on."""

    def forget(self) -> None:
        """What is there is not known any longer."""


class Tracking:
    """All trackers of a study.

    Args:
        trackers: who is told.
        reader: makes who reads the study's folder, anew for each tracker.
    """

    def __init__(self, trackers: Sequence[Tracker] = (), reader: Callable[[], Reader] | None = None) -> None:
        self._followers = [_Follower(tracker, reader()) for tracker in trackers] if reader is not None else []

    @classmethod
    def of(
        cls, study: CheckedStudy, folder: Path, *, kept: Path | None = None, what: str = "", anew: bool = False
    ) -> Tracking:  # fmt: skip
        """The trackers that a study asks for, of what is written into ``folder``, which must have begun.

        Args:
            study: the study.
            folder: of its results.
            kept: folder for what is tracked on this machine; ``tracking`` in that of the results by default.
            what: is done with the study, for its title.
            anew: whether nothing goes on that was tracked before.

        Raises:
            ResultsError: P501 or P502, the folder can't be written.
        """
        wanted = study.declaration.trackers
        if not wanted:
            return cls()
        about = About.of(study.declaration, kept or folder / TRACKING, what=what, anew=anew)
        trackers = [_made(study, about, name, options) for name, options in wanted.items()]
        return cls(trackers, lambda: Reader(folder))

    def start(self) -> None:
        """Begin to look at the folder."""
        for one in self._followers:
            one.start()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def settle(self) -> list[Note]:
        """Stop looking, after a last look; notes on who could not be told of all rounds."""
        for one in self._followers:
            one.halt()
            one.attempt(one.look)
        return [note for one in self._followers if (note := one.note()) is not None]

    def finish(self, outcome: Callable[[], Outcome]) -> list[Note]:
        """Track what is known at the end; notes on who could not be told of it."""
        once = cache(outcome)
        for one in self._followers:
            one.halt()
            one.attempt(partial(one.end, once))
        return [note for one in self._followers if (note := one.note()) is not None]

    def close(self) -> None:
        """Stop looking. If not all was told, the study was stopped, and may go on."""
        for one in self._followers:
            one.halt()
            if not one.ended and not one.failing:
                one.attempt(one.tracker.stop)


def track_folder(study: CheckedStudy, folder: Path) -> list[Note]:
    """Tell trackers of what is in a results folder that nobody writes to, finished or not.

    Returns:
        Notes on who could not be told of it.

    Raises:
        ResultsError: P501 or P502, the folder can't be written.
    """
    record = read_record(folder)
    if not record:
        return []
    with Tracking.of(study, folder) as tracking:
        return tracking.finish(lambda: outcome_of(folder)) if is_finished(folder, record) else tracking.settle()


class _Follower:
    """Tells one tracker."""

    def __init__(self, tracker: Tracker, reader: Reader) -> None:
        self.tracker, self.reader = tracker, reader
        self.ended = self.failing = False
        self._failures, self._cause, self._again = 0, "", 0.0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def _follow(self) -> None:
        while not self._stop.wait(_PAUSE):
            if time.monotonic() >= self._again:
                self.attempt(self.look)

    def halt(self) -> None:
        """End the thread."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(_END)

    def attempt(self, work: Callable[[], None]) -> None:
        """Do something that may fail, unless the thread hangs in something else."""
        mine = self._thread is threading.current_thread()
        if not mine and self._thread is not None and self._thread.is_alive():
            self._fail("TimeoutError")
            return
        try:
            work()
        except Exception as error:  # whatever a store or a disk raises
            self._fail(type(error).__name__)
            self.tracker.forget()
            self.reader.again()
        else:
            self.failing = False

    def _fail(self, cause: str) -> None:
        self.failing, self._failures, self._cause = True, self._failures + 1, cause
        self._again = time.monotonic() + min(_FAILED * 2 ** min(self._failures - 1, 10), _MOST)

    def look(self) -> None:
        """Track what is new in the folder."""
        for part in self.reader.parts():
            if not (part.first and self.tracker.is_over(part.training)):
                self.tracker.rounds(part)
            elif not part.done:
                continue
            self.reader.taken(part)

    def end(self, outcome: Callable[[], Outcome]) -> None:
        """Track what is known at the end, and all rounds that are missing."""
        found = outcome()
        for training, rows in found.rounds.items():
            if not self.reader.over(training) and not self.tracker.is_over(training):
                self.tracker.rounds(Part(training, rows, first=True, done=True))
        self.tracker.results(found)
        self.ended = True

    def note(self) -> Note | None:
        """What is to be said if the last attempt failed."""
        if not self.failing:
            return None
        times = "once" if self._failures == 1 else f"{self._failures} times"
        return Note("N112", f"{self.tracker.title} was not told of all that is in the results: that failed {times} "
                    f"({self._cause}). Results are not touched by it.")  # fmt: skip


def _made(study: CheckedStudy, about: About, name: str, options: Options) -> Tracker:
    """A tracker as the study asks for it; paths are relative to the study file."""
    if isinstance(options, TensorBoardOptions):
        from polyclinic.study.tracking.tensorboard import TensorBoard

        folder = about.folder / name if options.folder is None else study.folder / options.folder
        return TensorBoard(about, folder / f"{slug(about.title)}-{about.identity[:8]}")  # beside other studies, perhaps
    from polyclinic.study.tracking.mlflow import SQLITE, Mlflow

    store: str | Path | None = options.uri
    if options.uri is not None and options.uri.startswith(SQLITE):
        store = study.folder / unquote(options.uri.removeprefix(SQLITE))
    return Mlflow(about, store, options.experiment or study.declaration.study)
