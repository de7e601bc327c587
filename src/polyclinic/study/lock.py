"""One run at a time in a results folder."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from polyclinic.errors import ResultsError
from polyclinic.files import write_error

#: The operating system frees it when a run dies, however it dies.
LOCK = ".lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make a results folder if it is missing, and keep other runs out of it.

    A folder in which nothing was written is taken away again.

    Raises:
        ResultsError: P501 if another run is writing into the folder, or nobody may.
    """
    if folder.exists() and not folder.is_dir():  # the study will say so
        yield
        return
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        made = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise ResultsError(
            "P501",
            f"Another run is writing into {folder}.",
            "Wait until it has ended, or choose another folder with --out. On a network drive a run that was killed "
            f"may hold the folder: if no run is alive, delete {folder / LOCK}.",
        ) from None
    except OSError as error:
        raise write_error(folder / LOCK, error) from error
    try:
        yield
    finally:
        # While the lock is held: else a run that begins in between would lose its own.
        with contextlib.suppress(OSError):
            (folder / LOCK).unlink(missing_ok=True)
        lock.release()
        if made:
            with contextlib.suppress(OSError):  # not empty
                folder.rmdir()
