"""What happened at a party, for those who must be able to prove it: lines that can be added, and not changed unseen.

A line is JSON: its number, the time, what happened, the SHA-256 of the line before, and a signature by the party's own
key. So a line that was changed, taken out or put in is found, and so is a log that was written anew with another key.
Lines taken off the end are found by comparing the last line's hash with one that was noted elsewhere.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock

from polyclinic.errors import FederationError
from polyclinic.federation.remote.calls import Pieces, digest, size
from polyclinic.files import write_error

#: Name of the file in a kit.
AUDIT_LOG = "audit.jsonl"
#: What the first line has instead of the hash of one before.
_FIRST = "0" * 64
#: A line is not longer than this: so far back the last one is looked for.
_LONGEST = 1_000_000


@dataclass(frozen=True)
class Verified:
    """A log without a fault: how many lines it has, and the hash of the last one."""

    lines: int
    last: str


class AuditLog:
    """The log of one party; several processes may write into it.

    Args:
        kit: folder of the party's kit, with its key.
    """

    def __init__(self, kit: Path) -> None:
        self.path = kit / AUDIT_LOG
        self._lock = FileLock(kit / f".{AUDIT_LOG}.lock")
        self._key = _private_key(kit)

    def add(self, event: str, **fields: Any) -> None:
        """Add a line; it has left this process when this returns.

        Args:
            event: what happened.
            fields: JSON values that say more.

        Raises:
            ResultsError: P501 or P502, it can't be written; then what it is about must not happen either.
        """
        with self._lock:
            try:
                self._add(event, fields)
            except OSError as error:
                raise write_error(self.path, error, "for the kit") from error

    def _add(self, event: str, fields: Mapping[str, Any]) -> None:
        before = _last(self.path)
        content = {
            "number": 0 if before is None else int(json.loads(before)["number"]) + 1,
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, **fields,
            "before": _FIRST if before is None else _hash(before),
        }  # fmt: skip
        line = _text({**content, "signature": _sign(self._key, _text(content))})
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def told(tensors: Mapping[str, Any], message: Pieces) -> dict[str, Any]:
    """What a log says of a message: names and shapes of its tensors, its bytes and their SHA-256, and no value."""
    shapes = {name[:100]: list(tensor.shape) for name, tensor in tensors.items()}
    return {"tensors": shapes, "bytes": size(message), "sha256": digest(message)}


def verify(kit: Path) -> Verified:
    """Whether a log is as it was written, by the party whose certificate is in the kit.

    Raises:
        FederationError: P607 with the first line that is not.
    """
    path, key = kit / AUDIT_LOG, _public_key(kit)
    before, count = _FIRST, 0
    for number, line in enumerate(_lines(path)):
        wrong = _wrong(line, number, before, key)
        if wrong:
            raise FederationError("P607", f"Line {number + 1} of {path.name}: {wrong}.",
                                  "Keep the file as it is, and find out who had access to it.")  # fmt: skip
        before, count = _hash(line), number + 1
    return Verified(count, before)


def _wrong(line: str, number: int, before: str, key: Any) -> str:
    """What is wrong with a line; empty if nothing is."""
    try:
        content = json.loads(line)
        signature = content.pop("signature")
    except (ValueError, KeyError, TypeError, AttributeError):
        return "it is no line of a log"
    if not _signed(key, _text(content), signature):
        return "it was changed, or written with another key"
    if content.get("before") != before or content.get("number") != number:
        return "lines before it are missing, or were put in"
    return ""


def _text(content: Mapping[str, Any]) -> str:
    return json.dumps(content, ensure_ascii=False, separators=(",", ":"))


def _lines(path: Path) -> Iterator[str]:
    """The lines of a log; one without an end, which a crash has torn, is made one that is none."""
    if path.is_file():
        with path.open(encoding="utf-8", errors="replace", newline="\n") as file:
            for line in file:
                yield line.removesuffix("\n") if line.endswith("\n") else ""


def _last(path: Path) -> str | None:
    """The last line of a log; one that was torn by a crash is taken off."""
    if not path.is_file() or not path.stat().st_size:
        return None
    with path.open("rb+") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - _LONGEST))
        tail = file.read()
        whole = tail.rfind(b"\n") + 1
        if whole < len(tail):
            file.truncate(size - len(tail) + whole)
    lines = tail[:whole].split(b"\n")
    return lines[-2].decode("utf-8") if len(lines) > 1 else None


def _hash(line: str) -> str:
    return hashlib.sha256(line.encode("utf-8")).hexdigest()


def _private_key(kit: Path) -> Any:
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    return load_pem_private_key(_startup(kit, "key").read_bytes(), None)


def _public_key(kit: Path) -> Any:
    from cryptography.x509 import load_pem_x509_certificate

    return load_pem_x509_certificate(_startup(kit, "crt").read_bytes()).public_key()


def _startup(kit: Path, kind: str) -> Path:
    """The party's own key or certificate.

    Raises:
        FederationError: P602, the kit has none.
    """
    for name in ("client", "server"):
        if (path := kit / "startup" / f"{name}.{kind}").is_file():
            return path
    raise FederationError("P602", f"There is no start-up kit in {kit}.",
                          "Give the folder that was made by `polyclinic federation new`.")  # fmt: skip


def _sign(key: Any, text: str) -> str:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import padding

    return base64.b64encode(key.sign(text.encode("utf-8"), padding.PKCS1v15(), hashes.SHA256())).decode("ascii")


def _signed(key: Any, text: str, signature: object) -> bool:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import padding

    try:
        given = base64.b64decode(str(signature), validate=True)
        key.verify(given, text.encode("utf-8"), padding.PKCS1v15(), hashes.SHA256())
    except (InvalidSignature, ValueError):
        return False
    return True
