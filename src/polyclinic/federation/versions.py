"""Which versions of what a study needs are installed here."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version


def versions() -> dict[str, str]:
    """Name -> version of Python and of each package that is there."""
    from polyclinic import __version__

    found = {"python": platform.python_version(), "polyclinic": __version__}
    for name in ("nvflare", "torch"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
