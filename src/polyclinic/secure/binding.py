"""What hashes, keys and signatures are made of: texts that can mean one thing only."""

from __future__ import annotations

import hashlib

#: Of the protocol; parties of two versions can't open each other's messages.
VERSION = 1


class UnfitError(ValueError):
    """A message is not as it must be; says in a sentence, without secrets, what is wrong with it."""


def bind(purpose: str, *parts: bytes | str | int) -> bytes:
    """The protocol's name, its version, the purpose and all parts, each with its length, as bytes.

    Two different lists of parts never give the same bytes as long as a purpose always has parts of the same kinds.

    >>> bind("test", "ab", "c") == bind("test", "a", "bc")
    False
    """
    return b"".join(_framed(part) for part in ("polyclinic secure sum", VERSION, purpose, *parts))


def digest(purpose: str, *parts: bytes | str | int) -> bytes:
    """SHA-256 of `bind`, 32 bytes."""
    return hashlib.sha256(bind(purpose, *parts)).digest()


def _framed(part: bytes | str | int) -> bytes:
    if isinstance(part, int):
        part = part.to_bytes(8, "little")
    elif isinstance(part, str):
        part = part.encode("utf-8")
    return len(part).to_bytes(4, "little") + part


def check_bytes(what: str, value: object, length: int) -> bytes:
    """The value, if it is bytes of this length.

    Raises:
        UnfitError: it is not.
    """
    if not isinstance(value, bytes):
        raise UnfitError(f"{what} is {type(value).__name__}; expected {length} bytes.")
    if len(value) != length:
        raise UnfitError(f"{what} has {len(value)} bytes; expected {length}.")
    return value
