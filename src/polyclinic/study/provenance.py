"""What a result depends on besides the study file and the data."""

from __future__ import annotations

import datetime
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

PACKAGES = (
    "polyclinic", "torch", "monai", "numpy", "scipy", "pandas", "scikit-learn", "safetensors", "pydantic", "pillow",
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


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
