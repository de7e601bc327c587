"""What was spent of the privacy of each unit-holder, for ever: lines that are on the disk before noise leaves.

A line is JSON: whose privacy, in which run, round and attempt, under which label, the events, the SHA-256 of the line
before and its own. So a line that was changed, taken out or put in is found.

Before a line is appended it stands in a second file beside the ledger, which is replaced in one step. From then on it
is spent: if the power fails while it is appended, whoever opens the ledger next ends the work.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from polyclinic.errors import PolyclinicError, ResultsError
from polyclinic.files import write_atomic, write_error
from polyclinic.privacy.events import Event, merged, refuse_unless

#: What the first line has instead of the hash of one before.
_FIRST = "0" * 64
_FIELDS = {"holder", "run", "round", "attempt", "label", "events", "before", "sha256"}
#: What reading something else than a line raises.
_NO_LINE = (ValueError, TypeError, KeyError, AttributeError, PolyclinicError)
#: Whose privacy it is, and when it was spent; no two lines have the same.
Key = tuple[str, str, int, int]


@dataclass(frozen=True)
class Entry:
    """One line.

    Attributes:
        holder: whose units these are: a site, or ``federation`` for all of them.
        run: which training, by a name that stays the same if it goes on after a stop.
        round: of the training, from 0.
        attempt: from 1; a round that was done again because its work was lost looked at the data again.
        label: what it was for, such as method, fold, seed and trial.
        events: what it cost.
    """

    holder: str
    run: str
    round: int
    attempt: int
    label: Mapping[str, str | int]
    events: tuple[Event, ...]

    @property
    def key(self) -> Key:
        """What no other line has."""
        return self.holder, self.run, self.round, self.attempt


class Ledger:
    """A ledger in a file; several processes may write into it.

    Args:
        path: the file; it need not exist yet.

    Raises:
        ResultsError: P504, the file is not what was written; P501 or P502, it can't be read, or a line that was not
            ended can't be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._pending = path.with_name(path.name + ".next")
        self._lock = FileLock(path.with_name(f".{path.name}.lock"))
        self._entries: dict[Key, Entry] = {}
        self._last, self._read, self._lines = _FIRST, 0, 0
        self.refresh()

    def record(self, holder: str, events: Iterable[Event], *, run: str, round: int, attempt: int = 1,  # noqa: A002
               label: Mapping[str, str | int] | None = None) -> bool:  # fmt: skip
        """Note that events were spent; call it before anything that they made is released.

        Recording the same again does nothing, so that a training which goes on after a stop may record its last round
        once more.

        Args:
            holder: a site's name, or ``federation``.
            events: what was spent.
            run: which training.
            round: of it, from 0.
            attempt: from 1; give the next number if the data were looked at again for a round that was recorded.
            label: what it was for.

        Returns:
            Whether it is new.

        Raises:
            StudyError: P102 for a value that does not fit.
            ResultsError: P504, other events were recorded for this attempt, or the file is not what was written; P501
                or P502, it can't be written: then nothing may be released.
        """
        for name, text in (("holder", holder), ("run", run)):
            refuse_unless(isinstance(text, str) and text != "", f"the {name}", text, "a name")
        for name, value, least in (("round", round, 0), ("attempt", attempt, 1)):
            whole = isinstance(value, int) and not isinstance(value, bool)
            refuse_unless(whole and value >= least, f"the number of the {name}", value, f"a whole number from {least}")
        for name, said in (label or {}).items():
            fits = isinstance(name, str) and isinstance(said, (str, int))
            refuse_unless(fits, f"the label's {name!r}", said, "text or a whole number")
        entry = Entry(holder, run, round, attempt, dict(label or {}), merged(events))
        with self._lock:
            self._refresh()
            known = self._entries.get(entry.key)
            if known is not None:
                self._check_same(known, entry)
                return False
            line = _line(entry, self._last)
            write_atomic(self._pending, line, choose="for the ledger")
            self._append(line)
            self._refresh()
        return True

    def total(self, holder: str) -> tuple[Event, ...]:
        """All that was spent of a holder's privacy, whatever it was for."""
        return merged(event for entry in self.entries(holder) for event in entry.events)

    def entries(self, holder: str | None = None) -> list[Entry]:
        """The lines of a holder, or of all, in the order in which they were written."""
        return [entry for entry in self._entries.values() if holder in (None, entry.holder)]

    def attempts(self, holder: str, run: str, round: int) -> int:  # noqa: A002
        """How many attempts at a round were recorded."""
        return sum((entry.holder, entry.run, entry.round) == (holder, run, round) for entry in self.entries())

    def refresh(self) -> None:
        """Read what other processes have written, and end a line whose writing was interrupted.

        Raises:
            ResultsError: as for the class.
        """
        if self.path.exists() or self._pending.exists():
            with self._lock:
                self._refresh()

    def _refresh(self) -> None:
        try:
            content = self._new_bytes()
        except OSError as error:
            raise ResultsError("P501", f"{self.path.name} could not be read ({error.strerror or error}).",
                               f"Make {self.path} readable.") from error  # fmt: skip
        whole, torn = content[: content.rfind(b"\n") + 1], content[content.rfind(b"\n") + 1 :]
        for line in whole.splitlines():
            self._take(line)
        self._read += len(whole)
        pending = self._pending_entry()
        if pending is not None and pending[1] == self._last:
            self._append(self._pending.read_bytes())
            self._refresh()
        elif torn or (pending is not None and pending[2] != self._last):
            raise self._refused("its end is missing", "what it spent is not known")

    def _new_bytes(self) -> bytes:
        if not self.path.exists():
            if self._lines:
                raise self._refused("the file is gone", "what was spent is not known")
            return b""
        with self.path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            if size < self._read:
                raise self._refused("lines that were there are gone", "what was spent is not known")
            file.seek(self._read)
            return file.read()

    def _take(self, line: bytes) -> None:
        """Add a line that was read.

        Raises:
            ResultsError: P504, it is not as it was written.
        """
        self._lines += 1
        try:
            entry, before, own = _entry(line)
        except _NO_LINE as error:
            raise self._refused("it is no line of a ledger, or was changed") from error
        if before != self._last:
            raise self._refused("lines before it are missing, or were put in")
        if entry.key in self._entries:
            raise self._refused("its round was recorded before")
        self._entries[entry.key], self._last = entry, own

    def _pending_entry(self) -> tuple[Entry, str, str] | None:
        """What the second file has: the last line of the ledger, or the one that comes next."""
        try:
            return _entry(self._pending.read_bytes().removesuffix(b"\n"))
        except FileNotFoundError:
            return None
        except (OSError, *_NO_LINE) as error:
            raise self._refused(f"{self._pending.name} was changed", "what was spent is not known") from error

    def _append(self, line: bytes) -> None:
        """Put a line in place of what was written of one; it is on the disk when this returns."""
        fresh = not self.path.exists()
        try:
            with self.path.open("ab") as file:
                file.truncate(self._read)
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise write_error(self.path, error, "for the ledger") from error
        if fresh:
            _sync_folder(self.path.parent)

    def _check_same(self, known: Entry, entry: Entry) -> None:
        if (known.events, known.label) != (entry.events, entry.label):
            raise ResultsError(
                "P504",
                f"Attempt {entry.attempt} at round {entry.round} of {entry.run} was recorded for {entry.holder} with "
                f"other events or another label.",
                "Record it as the next attempt if the data were looked at again.",
            )

    def _refused(self, wrong: str, so: str = "") -> ResultsError:
        place = f"Line {self._lines + bool(so)} of {self.path.name}"
        return ResultsError("P504", f"{place}: {wrong}{', so ' + so if so else ''}.",
                            "Restore the ledger from a copy, together with the file whose name ends in .next; without "
                            "it no more may be released.")  # fmt: skip


def _line(entry: Entry, before: str) -> bytes:
    content: dict[str, Any] = {
        "holder": entry.holder, "run": entry.run, "round": entry.round, "attempt": entry.attempt,
        "label": entry.label, "events": [event.to_json() for event in entry.events], "before": before,
    }  # fmt: skip
    return (_text({**content, "sha256": _hash(content)}) + "\n").encode("utf-8")


def _entry(line: bytes) -> tuple[Entry, str, str]:
    """The entry of a line, the hash of the line before, and its own.

    Raises:
        Exception: one of `_NO_LINE`, it is none.
    """
    content = json.loads(line.decode("utf-8"))
    own = content.pop("sha256")
    if set(content) != _FIELDS - {"sha256"} or _hash(content) != own:
        raise ValueError("changed")
    events = tuple(Event.from_json(fields) for fields in content["events"])
    holder, run, number, attempt, label = (content[name] for name in ("holder", "run", "round", "attempt", "label"))
    entry = Entry(holder, run, number, attempt, label, events)
    return entry, content["before"], own


def _text(content: Mapping[str, Any]) -> str:
    return json.dumps(content, ensure_ascii=False, separators=(",", ":"), sort_keys=True, allow_nan=False)


def _hash(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(_text(content).encode("utf-8")).hexdigest()


def _sync_folder(folder: Path) -> None:
    """Let the name of a new file outlive a power failure, where folders can be opened."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
