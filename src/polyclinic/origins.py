"""Whose code something is: of this package, or of which plug-in; and errors that come up in code of others.

A user is told of them in a sentence. The traceback is for whoever makes the package, and goes to a file.
"""

from __future__ import annotations

import tempfile
import traceback
from pathlib import Path

from polyclinic.errors import PartError

#: First part of a module's name -> what people are told of the plug-in that it belongs to.
LOADED: dict[str, str] = {}
#: File for the traceback of an error in code of others.
ERROR_LOG = "error.log"


def of_module(name: object) -> str:
    """The plug-in that a module belongs to, with its package and version; empty if it is of none."""
    return LOADED.get(str(name).partition(".")[0], "")


def of_error(error: BaseException) -> str:
    """The plug-in in whose code an error came up, innermost first; empty if it is of none."""
    step, found = error.__traceback__, ""
    while step is not None:
        found = of_module(step.tb_frame.f_globals.get("__name__")) or found
        step = step.tb_next
    return found


def told(error: Exception, folder: Path | None = None) -> PartError | None:
    """An error in the code of a plug-in as a sentence; its traceback is written to a file.

    Args:
        error: what came up.
        folder: where the file is written; None for that of temporary files.

    Returns:
        P304, or None where no plug-in had a part in it.
    """
    plugin = of_error(error)
    if not plugin:
        return None
    try:
        log = (folder or Path(tempfile.mkdtemp(prefix="polyclinic-"))) / ERROR_LOG
        log.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
        where = f" The traceback is in {log}."
    except OSError:
        where = ""
    return PartError("P304", f"{plugin} failed: {said(error)}.",
                     f"It is not Polyclinic itself: whoever makes that package can mend it.{where}")  # fmt: skip


def said(error: BaseException) -> str:
    """An error in one line, without the full stop."""
    return " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(".").removesuffix(":")
