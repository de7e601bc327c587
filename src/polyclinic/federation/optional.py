"""NVIDIA FLARE is an optional package."""

from __future__ import annotations

from importlib.util import find_spec

from polyclinic.errors import PolyclinicError


def require_flare() -> None:
    """Whether FLARE is there.

    Raises:
        PolyclinicError: P503, it is not.
    """
    if find_spec("nvflare") is None:
        raise PolyclinicError(
            "P503", "Studies across hospitals need the package nvflare.", "pip install 'polyclinic[federation]'"
        )
