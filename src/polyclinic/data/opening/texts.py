"""Texts in digests."""

from __future__ import annotations

import hashlib


def add_texts(digest: hashlib._Hash, *texts: str) -> None:
    """Add texts to a digest, each with its length."""
    for text in texts:
        encoded = text.encode()
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
