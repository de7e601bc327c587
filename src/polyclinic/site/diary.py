"""What a site must not forget, also where a training begins anew: written down before it matters."""

from __future__ import annotations

import json
import os
from pathlib import Path

from filelock import FileLock

from polyclinic.errors import SiteError
from polyclinic.files import write_error

#: The diary in a site's folder.
DIARY = "diary.jsonl"


class Diary:
    """Texts by name, in a file to which lines are added; the last one of a name counts.

    Args:
        site: whose it is.
        path: of the file; None keeps it in memory.
    """

    def __init__(self, site: str, path: Path | None) -> None:
        self.site, self._path = site, path
        self._texts: dict[str, str] = {}
        self._read = 0

    def recall(self, name: str) -> str | None:
        """The text of a name, or None.

        Raises:
            SiteError: P401, the file is not as it was written.
        """
        size = self._path.stat().st_size if self._path is not None and self._path.is_file() else 0
        if self._path is not None and size != self._read:  # perhaps by another process: trainings go side by side
            lines, self._read = self._path.read_text(encoding="utf-8").splitlines(), size
            for number, line in enumerate(lines):
                try:
                    ((key, text),) = json.loads(line).items()
                    self._texts[key] = str(text)
                except (ValueError, AttributeError):
                    if number < len(lines) - 1:  # the last one may have been cut off: what it was about never left
                        raise SiteError("P401", f"Line {number + 1} of {DIARY} of site {self.site} was changed.",
                                        "Restore it from a copy.", site=self.site) from None  # fmt: skip
        return self._texts.get(name)

    def note(self, name: str, text: str) -> None:
        """Write a text down; it is on the disk when this returns.

        Raises:
            ResultsError: P501 or P502, it can't be written.
        """
        if self.recall(name) == text:
            return
        if self._path is not None:
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                with FileLock(self._path.with_name(f".{DIARY}.lock")), self._path.open("ab") as file:
                    whole = self._path.read_bytes()
                    file.truncate(whole.rfind(b"\n") + 1)  # without a line that was cut off
                    file.write(json.dumps({name: text}).encode() + b"\n")
                    file.flush()
                    os.fsync(file.fileno())
            except OSError as error:
                raise write_error(self._path, error, "for the diary") from error
        self._texts[name] = text
