"""Writing files so that a crash at any moment leaves the old file or the new one, never half of one."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from polyclinic.errors import ResultsError


def write_atomic(path: Path, content: bytes | str, *, durable: bool = True) -> None:
    """Replace ``path`` by ``content`` in one step.

    Args:
        path: file to write; its folder is made if missing.
        content: bytes, or text written as UTF-8.
        durable: also outlive a power failure (waits for the disk); without it, only the death of this process.

    Raises:
        ResultsError: P502 if the disk is full, P501 if the folder can't be written.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise write_error(path, error) from error


def write_error(path: Path, error: OSError) -> ResultsError:
    """The sentence for a failed write."""
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return ResultsError(
            "P502",
            f"The disk is full: {path.name} could not be written to {path.parent}.",
            "Nothing written so far is lost: free some space and run the same command with --resume.",
        )
    return ResultsError(
        "P501",
        f"{path.name} could not be written to {path.parent} ({error.strerror or error}).",
        "Choose a folder that you may write to with --out.",
    )
