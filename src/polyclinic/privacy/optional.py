"""Opacus is an optional package."""

from __future__ import annotations

from importlib.util import find_spec

from polyclinic.errors import PolyclinicError


def require_opacus() -> None:
    """Whether Opacus is there, which trains with the gradient of each case; what is spent is told without it.

    Raises:
        PolyclinicError: P503, it is not.
    """
    if find_spec("opacus") is None:
        raise PolyclinicError(
            "P503", "Training with differential privacy needs the package opacus.", "pip install 'polyclinic[privacy]'"
        )
