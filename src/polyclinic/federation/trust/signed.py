"""Files that the authority signs: answers to requests, and the list of certificates that were revoked.

Such a file is JSON: what it says, and a signature of that by the authority's key.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polyclinic.errors import FederationError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
    from cryptography.x509 import Certificate

#: Larger files are not read.
MOST_BYTES = 2_000_000


def to_signed(key: RSAPrivateKey, kind: str, content: dict[str, Any]) -> str:
    """The text of a signed file.

    Args:
        key: of the authority.
        kind: what the file is, so that none passes for another.
        content: JSON values.
    """
    content = {"kind": kind, **content}
    signature = base64.b64encode(key.sign(_text(content), *_padding())).decode("ascii")
    return json.dumps({"content": content, "signature": signature}, indent=2)


def read_signed(path: Path, kind: str) -> dict[str, Any]:
    """What a file says and its signature, which nobody has checked yet.

    Raises:
        FederationError: P608, it is no such file.
    """
    wrong = FederationError("P608", f"{path.name} is no {kind}.", "Give the file as it was made.")
    try:
        if path.stat().st_size > MOST_BYTES:
            raise wrong
        found = json.loads(path.read_text(encoding="utf-8"))
        content, signature = found["content"], found["signature"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise wrong from None
    if not isinstance(content, dict) or content.get("kind") != kind or not isinstance(signature, str):
        raise wrong
    return {"content": content, "signature": signature}


def checked_content(found: dict[str, Any], name: str, authority: Certificate) -> dict[str, Any]:
    """What a file says that the authority has signed.

    Args:
        found: see `read_signed`.
        name: of the file, for the message.
        authority: its certificate.

    Raises:
        FederationError: P608, it has not, or the file was changed afterwards.
    """
    from cryptography.exceptions import InvalidSignature

    content: dict[str, Any] = found["content"]
    key: Any = authority.public_key()
    try:
        key.verify(base64.b64decode(found["signature"], validate=True), _text(content), *_padding())
    except (InvalidSignature, ValueError):
        raise FederationError("P608", f"{name} was changed, or signed by another authority than this consortium's.",
                              "Ask for the file again, from who keeps the authority.") from None  # fmt: skip
    return content


def _text(content: dict[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode("utf-8")


def _padding() -> tuple[Any, Any]:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import padding

    return padding.PSS(padding.MGF1(hashes.SHA256()), padding.PSS.MAX_LENGTH), hashes.SHA256()
