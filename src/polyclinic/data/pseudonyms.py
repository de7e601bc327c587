"""Names that say nothing of a person: keyed hashes, one key (salt) a study."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from pathlib import Path

from polyclinic.errors import DataError
from polyclinic.files import write_error

_SALT_TEXT = """\
# The salt of the pseudonyms in the manifest beside this file. With it, patients can be found again from their
# pseudonyms: keep it at this site, never send it anywhere. Scanning again with it gives the same pseudonyms.
"""
_DIGITS = 12


def new_salt() -> str:
    """A random salt of 128 bits, as text."""
    return secrets.token_hex(16)


def pseudonym(identifier: str, salt: str, prefix: str) -> str:
    """``prefix-`` and 12 hexadecimal digits that only a holder of the salt can relate to ``identifier``.

    HMAC-SHA-256 (RFC 2104), cut to 48 bits: among 10,000 patients two share a name with a chance of 2e-7.

    >>> pseudonym("4711", "salt", "sub") == pseudonym(" 4711 ", "salt", "sub")
    True
    """
    digest = hmac.new(salt.encode(), identifier.strip().encode(), hashlib.sha256).hexdigest()
    return f"{prefix}-{digest[:_DIGITS]}"


def find_salt(out: Path, given: str | None) -> str:
    """The salt given, else that of an earlier scan into the manifest ``out``, else a new random one.

    Raises:
        DataError: P201 when the file beside the manifest has no salt in it.
    """
    place = _salt_file(out)
    if given or not place.is_file():
        return given or new_salt()
    lines = [line.strip() for line in place.read_text(encoding="utf-8", errors="replace").splitlines()]
    kept = next((line for line in lines if line and not line.startswith("#")), "")
    if not kept:
        raise DataError("P201", f"The salt file {place.name!r} is empty.", "Delete it, or give `--salt`.")
    return kept


def keep_salt(out: Path, salt: str) -> Path:
    """Write the salt beside the manifest ``out``, in a file that only its owner may read.

    Raises:
        ResultsError: P501 or P502 when the file can't be written.
    """
    place = _salt_file(out)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(f"{_SALT_TEXT}{salt}\n")
    except OSError as error:
        raise write_error(place, error) from None
    return place


def _salt_file(out: Path) -> Path:
    return out.with_name(f"{out.stem}.salt")
