"""What a result depends on besides the study file and the data."""

from __future__ import annotations

import datetime
import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from polyclinic.errors import ResultsError
from polyclinic.study.ended import is_finished

PACKAGES = (
    "polyclinic", "torch", "monai", "numpy", "scipy", "pandas", "scikit-learn", "safetensors", "pydantic", "pillow",
    "pyarrow",
)  # fmt: skip


def now() -> str:
    """The time, UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def machine() -> dict[str, Any]:
    """Versions and kind of machine; no names of people, hosts or folders."""
    import torch

    return {
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "machine": {
            "system": platform.system(), "processor": platform.machine(), "cores": os.cpu_count(),
            "instructions": torch.backends.cpu.get_cpu_capability(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
        "plugins": plugins(),
    }  # fmt: skip


def plugins() -> dict[str, str]:
    """Entry point of each plug-in that was loaded -> its package, with its version."""
    from polyclinic.catalogues import PLUGINS

    return {plugin.name: plugin.package for plugin in PLUGINS if not plugin.problem}


def check_plugins(folder: Path) -> None:
    """See that the study in a folder, if one is there and is not finished, goes on with the plug-ins it began with.

    Raises:
        ResultsError: P501, there are others now.
    """
    try:
        record = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # the folder is looked at later on
        return
    then, here = record.get("plugins", {}), plugins()
    if then != here and not is_finished(folder, record):
        before, now_there = (", ".join(found.values()) or "none" for found in (then, here))
        raise ResultsError(
            "P501", f"The study in {folder} was started with other plug-ins: {before}. Now there are: {now_there}.",
            "Install those that it was started with, or start anew in another folder with --out.",
        )  # fmt: skip


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
