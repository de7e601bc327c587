"""For how long a site has worked for a study, where its policy sets a limit."""

from __future__ import annotations

import json
from pathlib import Path

from polyclinic.errors import FederationError
from polyclinic.files import write_atomic

#: Seconds of work after which what was worked is written down again.
_STEP = 10.0


class Hours:
    """Counts the time in which a site answers messages of a study, over all runs of it.

    Args:
        site: its name.
        path: the file that remembers it.
        most: hours that the policy allows; None for any.
    """

    def __init__(self, site: str, path: Path, most: float | None) -> None:
        self.site, self.path, self.most = site, path, most
        self.seconds, self._written = 0.0, 0.0
        if path.is_file():
            self.seconds = self._written = float(json.loads(path.read_text(encoding="utf-8"))["seconds"])

    def check(self) -> None:
        """Whether the site may go on.

        Raises:
            FederationError: P604, it has worked for as long as its policy allows.
        """
        if self.most is not None and self.seconds >= 3600 * self.most:
            raise FederationError(
                "P604", f"Site {self.site} does not take part any longer: it has worked for {self.most:g} hours.",
                "Ask the site to change its policy; then run the study again, and it goes on.",
            )  # fmt: skip

    def add(self, seconds: float) -> None:
        """The site has worked."""
        self.seconds += seconds
        if self.most is not None and self.seconds >= self._written + _STEP:
            write_atomic(self.path, json.dumps({"seconds": self.seconds}), durable=False)
            self._written = self.seconds
