"""Keys and certificates: made, read, compared, and how long they are valid.

Certificates and keys are those of FLARE: RSA, PEM files in the folder ``startup`` of a kit.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from polyclinic.errors import FederationError
from polyclinic.federation.optional import require_flare

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey
    from cryptography.x509 import Certificate

    from polyclinic.federation.kit import Kit

#: Bits of keys that are made here.
BITS = 3072
#: Name of the authority's certificate in a kit.
ROOT = "rootCA.pem"
#: With fewer days left it is time to renew a certificate.
FEW_DAYS = 30


@dataclass(frozen=True)
class CertificateDates:
    """Both in UTC.

    Attributes:
        start: from when the certificate is valid.
        end: until when.
    """

    start: datetime
    end: datetime

    def days_left(self, now: datetime | None = None) -> int:
        """Whole days until it ends; less than 0 where it has ended."""
        return (self.end - (now or datetime.now(UTC))).days


def stem(role: str) -> str:
    """Name of a party's key and certificate in its kit, without the ending."""
    return "server" if role == "coordinator" else "client"


def new_key() -> RSAPrivateKey:
    """A key nobody has."""
    from cryptography.hazmat.primitives.asymmetric import rsa

    return rsa.generate_private_key(public_exponent=65537, key_size=BITS)


def write_key(path: Path, key: RSAPrivateKey) -> None:
    """Write a key that was just made, for its owner's eyes only; one that is there is not overwritten."""
    from nvflare.lighter.utils import serialize_pri_key

    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(serialize_pri_key(key))


def read_key(path: Path) -> RSAPrivateKey:
    """A key in its file.

    Raises:
        FederationError: P602, there is none.
    """
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(path.read_bytes(), None)
    except (OSError, ValueError, TypeError):
        key = None
    if not isinstance(key, RSAPrivateKey):
        raise FederationError("P602", f"There is no key that can be read in {path}.",
                              "Give the folder in which it was made.")  # fmt: skip
    return key


def read_certificate(path: Path) -> Certificate:
    """A certificate in its file.

    Raises:
        FederationError: P602, there is none.
    """
    from cryptography.x509 import load_pem_x509_certificate

    try:
        return load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError):
        raise FederationError("P602", f"There is no certificate that can be read in {path}.",
                              "Give the folder of a kit as it was made.") from None  # fmt: skip


def certificate_dates(path: Path) -> CertificateDates:
    """The dates of a certificate in its file.

    Raises:
        FederationError: P602, there is none.
    """
    found = read_certificate(path)
    return CertificateDates(found.not_valid_before_utc, found.not_valid_after_utc)


def to_text(certificate: Certificate) -> str:
    """A certificate as it stands in its file."""
    from cryptography.hazmat.primitives.serialization import Encoding

    return certificate.public_bytes(Encoding.PEM).decode("ascii")


def fingerprint(certificate: Certificate) -> str:
    """SHA-256 of a certificate, as other programs write it."""
    from cryptography.hazmat.primitives.serialization import Encoding

    return _pairs(certificate.public_bytes(Encoding.DER))


def key_fingerprint(key: RSAPublicKey) -> str:
    """SHA-256 of a public key."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return _pairs(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))


def _pairs(data: bytes) -> str:
    return hashlib.sha256(data).digest().hex(":").upper()


def check_dates(kit: Kit, now: datetime | None = None) -> str:
    """Whether a kit's certificate is valid now; returns what to say if it ends soon, else nothing.

    Args:
        kit: the kit.
        now: the time; None for this computer's.

    Raises:
        FederationError: P602, it is not valid any longer, or not yet.
    """
    require_flare()
    now = now or datetime.now(UTC)
    found = certificate_dates(kit.folder / "startup" / f"{stem(kit.role)}.crt")
    begin, end = found.start, found.end
    if now < begin:
        raise FederationError("P602", f"The certificate of {kit.name} is valid from {begin:%Y-%m-%d %H:%M} UTC on.",
                              "Look at this computer's clock.")  # fmt: skip
    if now > end:
        raise FederationError(
            "P602", f"The certificate of {kit.name} was valid until {end:%Y-%m-%d %H:%M} UTC.",
            f"Ask for another (`polyclinic federation renew {kit.name}`), and put it in with `polyclinic federation "
            "join`.",
        )  # fmt: skip
    left = found.days_left(now)
    if left >= FEW_DAYS:
        return ""
    days = f"{left} day{'' if left == 1 else 's'}"
    return f"The certificate of {kit.name} ends in {days}, on {end:%Y-%m-%d}; see `polyclinic federation renew`."
