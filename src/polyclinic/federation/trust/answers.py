"""Answers: certificates for keys that are elsewhere, with the rest of the kit. The authority signs them as a whole."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polyclinic.errors import FederationError
from polyclinic.federation.kit import PARTY
from polyclinic.federation.kits import party_text, unsigned_kits
from polyclinic.federation.optional import require_flare
from polyclinic.federation.trust.authority import Authority
from polyclinic.federation.trust.certificates import (
    ROOT,
    fingerprint,
    key_fingerprint,
    read_certificate,
    read_key,
    to_text,
)
from polyclinic.federation.trust.certificates import stem as stem_of
from polyclinic.federation.trust.requests import check_request, read_request
from polyclinic.federation.trust.revoked import check_party, revoked_serials
from polyclinic.federation.trust.signed import checked_content, read_signed, to_signed
from polyclinic.files import write_atomic

#: What the file is, in itself.
_KIND = "answer to a request"
#: Names of files that may be in an answer: nothing else is written, and nowhere else.
_FILES = re.compile(r"party\.json|(?:startup|local)/[A-Za-z0-9_][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Answer:
    """An answer that was made or taken.

    Attributes:
        name: of the party.
        path: the answer's file, or the kit's folder.
        key: fingerprint of the party's key.
        authority: fingerprint of the authority's certificate.
        until: day on which the certificate ends.
    """

    name: str
    path: Path
    key: str
    authority: str
    until: str


def sign_request(file: Path, kits: Path, *, again: bool = False) -> Answer:
    """Check a request, and write the answer: the party's kit without its key.

    Args:
        file: the request.
        kits: folder of the kits, with the authority.
        again: whether the party may have another key than before.

    Raises:
        FederationError: P602, the folder has no kits; P608 with what is wrong with the request.
    """
    authority = Authority.of(kits)
    request = read_request(file)
    check_request(request, authority, revoked_serials(authority), again=again)
    with unsigned_kits(authority.consortium, [request.name]) as made:
        kit = made / request.name
        found = [kit / PARTY, *sorted((kit / "startup").glob("*.json")), *sorted((kit / "local").iterdir())]
        files = {path.relative_to(kit).as_posix(): path.read_text(encoding="utf-8") for path in found}
    return _write(authority, request.name, request.key, None, files, kits)


def renew(name: str, kits: Path, days: int | None = None) -> Answer:
    """Sign another certificate for the key that a party has, and write the answer.

    Args:
        name: of the party.
        kits: folder of the kits, with the authority.
        days: for which it is valid; None for what the consortium says.

    Raises:
        FederationError: P602, the folder has no kits; P608, the party has no certificate, has left, or was
            revoked.
    """
    authority = Authority.of(kits)
    check_party(authority, name)
    latest = authority.signed(name)[-1]
    if name not in authority.consortium.roles:
        raise FederationError("P608", f"{name} does not stand in the consortium file any longer.",
                              "Put it there, and call `polyclinic federation new` with it first.")  # fmt: skip
    if latest.serial_number in revoked_serials(authority):
        raise FederationError("P608", f"The certificate of {name} was revoked.",
                              "Let the party make a request with a new key.")  # fmt: skip
    files = {PARTY: party_text(authority.consortium, name)}
    return _write(authority, name, latest.public_key(), days, files, kits)


def _write(authority: Authority, name: str, key: Any, days: int | None, files: dict[str, str], kits: Path) -> Answer:
    certificate = authority.sign(name, key, days)
    stem = stem_of(authority.consortium.roles[name])
    files = files | {
        f"startup/{stem}.crt": to_text(certificate), f"startup/{ROOT}": to_text(authority.certificate),
    }  # fmt: skip
    content = {"consortium": authority.consortium.consortium, "name": name, "stem": stem, "files": files}
    path = kits / f"{name}.answer.json"
    write_atomic(path, to_signed(authority.key, _KIND, content))
    return Answer(name, path, key_fingerprint(key), fingerprint(authority.certificate),
                  f"{certificate.not_valid_after_utc:%Y-%m-%d}")  # fmt: skip


def join(file: Path, kit: Path) -> Answer:
    """Put an answer together with the key that is in a folder: a kit, or a kit with a certificate that ends later.

    What the party wrote itself in ``local`` stays as it is.

    Args:
        file: the answer.
        kit: the folder with the key.

    Raises:
        FederationError: P602, the folder has no key; P608, the answer was changed, is for another key or of another
            authority, or older than what is there.
    """
    require_flare()
    from cryptography.x509 import load_pem_x509_certificate

    found = read_signed(file, _KIND)
    try:
        files: dict[str, str] = found["content"]["files"]
        stem, name = str(found["content"]["stem"]), str(found["content"]["name"])
        root = load_pem_x509_certificate(files[f"startup/{ROOT}"].encode())
        certificate = load_pem_x509_certificate(files[f"startup/{stem}.crt"].encode())
        fits = all(_FILES.fullmatch(path) and not path.endswith(".key") and type(files[path]) is str for path in files)
    except (KeyError, TypeError, ValueError, AttributeError):
        fits = False
    if not fits or stem not in ("client", "server"):
        raise _refused(f"{file.name} has files that do not belong into a kit, or lacks some")
    checked_content(found, file.name, root)
    _check_fits(kit, stem, certificate, root, file.name)
    for path, text in files.items():
        own = path.startswith("local/") and (kit / path).exists()
        if not own and path != f"startup/{stem}.crt":
            write_atomic(kit / path, text)
    (kit / "transfer").mkdir(exist_ok=True)  # FLARE's, for researchers
    write_atomic(kit / "startup" / f"{stem}.crt", files[f"startup/{stem}.crt"])
    key: Any = certificate.public_key()
    return Answer(name, kit, key_fingerprint(key), fingerprint(root), f"{certificate.not_valid_after_utc:%Y-%m-%d}")


def _check_fits(kit: Path, stem: str, certificate: Any, root: Any, name: str) -> None:
    """Whether a certificate is for the key in a folder, from the authority that is known there, and the latest."""
    startup = kit / "startup"
    try:
        certificate.verify_directly_issued_by(root)
    except Exception:
        raise _refused(f"The certificate in {name} is not signed by the authority that is in it") from None
    if (startup / ROOT).is_file() and read_certificate(startup / ROOT) != root:
        raise _refused(f"{name} is of another authority than the kit in {kit}")
    if read_key(startup / f"{stem}.key").public_key() != certificate.public_key():
        raise _refused(f"{name} is for another key than the one in {kit}")
    present = startup / f"{stem}.crt"
    if present.is_file() and read_certificate(present).not_valid_before_utc > certificate.not_valid_before_utc:
        raise _refused(f"The certificate in {name} is older than the one in {kit}")


def _refused(what: str) -> FederationError:
    return FederationError("P608", f"{what}.", "Ask for the file again, from who keeps the authority.")
