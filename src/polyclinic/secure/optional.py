"""Secure sums need the optional package cryptography."""

from __future__ import annotations

from importlib.util import find_spec

from polyclinic.errors import PolyclinicError


def require_cryptography() -> None:
    """Whether the package is there.

    Raises:
        PolyclinicError: P503, it is not.
    """
    if find_spec("cryptography") is None:
        raise PolyclinicError(
            "P503", "Secure sums need the package cryptography.", "pip install 'polyclinic[secure]'"
        )  # fmt: skip
