"""What a doctor looks at in a machine: space, memory, and where networks run."""

from __future__ import annotations

import shutil
from pathlib import Path

from polyclinic.federation.checks.checking import Finding, fails, passes, warns

_GIGABYTE = 10**9
#: Gigabytes below which no study runs, and below which a large one may not.
LEAST_DISK, LITTLE_DISK = 1.0, 10.0
LEAST_MEMORY, LITTLE_MEMORY = 1.0, 4.0


def check_disk(folders: list[Path]) -> Finding:
    """Whether there is space where a party writes.

    Args:
        folders: which need not exist yet.
    """
    free, folder = min((shutil.disk_usage(_existing(one)).free / _GIGABYTE, one) for one in folders)
    text, advice = f"{free:.1f} GB are free at {folder}.", "Make space, or move the kit to a larger disk."
    if free < LEAST_DISK:
        return fails(text, advice)
    return warns(text, advice) if free < LITTLE_DISK else passes(text)


def _existing(folder: Path) -> Path:
    return next(place for place in (folder, *folder.resolve().parents) if place.exists())


def check_memory() -> Finding:
    """Whether there is memory for a study."""
    import psutil

    memory = psutil.virtual_memory()
    free, total = memory.available / _GIGABYTE, memory.total / _GIGABYTE
    text = f"{free:.1f} of {total:.1f} GB are free."
    advice = "End what else runs here, or take a larger machine."
    if free < LEAST_MEMORY:
        return fails(text, advice)
    return warns(text, advice) if free < LITTLE_MEMORY else passes(text)


def check_device(wanted: str) -> Finding:
    """Whether the device of ``site.yaml`` is there.

    Args:
        wanted: its entry.
    """
    import torch

    from polyclinic.engine.planner import cores

    kind, _, number = wanted.partition(":")
    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    there = {"auto": True, "cpu": True, "cuda": cards > int(number or 0), "mps": torch.backends.mps.is_available()}
    if not there.get(kind, False):
        usable = ", ".join(["auto", "cpu", *(f"cuda:{card}" for card in range(cards)), *["mps"] * there["mps"]])
        return fails(f"site.yaml, device: this machine has no {wanted}.", f"Give one of {usable}, or mend the driver.")
    if not cards or kind in ("cpu", "mps"):
        return passes(
            "Networks run on " + ("the graphics processor." if kind == "mps" else f"{cores()} processor cores.")
        )
    free, total = torch.cuda.mem_get_info(int(number or 0))
    name = torch.cuda.get_device_name(int(number or 0))
    return passes(f"Networks run on {name}: {free / _GIGABYTE:.1f} of {total / _GIGABYTE:.1f} GB are free.")
