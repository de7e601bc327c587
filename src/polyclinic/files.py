"""Writing files so that a crash at any moment leaves the old file or the new one, never half of one."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import secrets
from collections.abc import Iterable
from pathlib import Path

from polyclinic.errors import ResultsError

_NUMBERS = itertools.count()
#: Processes of two machines may have the same number.
_MACHINE = secrets.token_hex(3)
#: Ending of files that are not whole yet; a process that was killed may leave one.
DRAFT = ".tmp"


def draft_of(path: Path) -> Path:
    """A file beside ``path`` to be written first.

    Its name is short, since that of ``path`` may be as long as can be, and no other process or thread writes the same,
    on no other machine that shares the folder either.
    """
    return path.with_name(f".{os.getpid():x}-{_MACHINE}{next(_NUMBERS):x}{DRAFT}")


def write_atomic(
    path: Path, content: bytes | str | Iterable[bytes | memoryview], *, durable: bool = True, choose: str = "with --out"
) -> None:
    """Replace ``path`` by ``content`` in one step.

    Args:
        path: file to write; its folder is made if missing.
        content: bytes, or text written as UTF-8; or parts that are made while they are written.
        durable: also outlive a power failure (waits for the disk); without it, only the death of this process.
        choose: how another folder is chosen, for the message.

    Raises:
        ResultsError: P502 if the disk is full, P501 if the folder can't be written.
    """
    content = content.encode() if isinstance(content, str) else content
    parts = [content] if isinstance(content, bytes) else content
    temporary = draft_of(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            for part in parts:
                file.write(part)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise write_error(path, error, choose) from error
        raise


def write_error(path: Path, error: OSError, choose: str = "with --out") -> ResultsError:
    """The sentence for a failed write; ``choose`` says how another folder is chosen."""
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return ResultsError(
            "P502",
            f"The disk is full: {path.name} could not be written to {path.parent}.",
            "Nothing written so far is lost: free some space and run the same command with --resume.",
        )
    return ResultsError(
        "P501",
        f"{path.name} could not be written to {path.parent} ({error.strerror or error}).",
        f"Choose a folder that you may write to {choose}.",
    )
