"""Requests: a party makes its own key, and asks the authority to sign a certificate for it. The key leaves nobody.

A request is a PEM file as other programs make them, whose subject says the party's name and role.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from polyclinic.errors import FederationError
from polyclinic.federation.consortium import NAMES
from polyclinic.federation.optional import require_flare
from polyclinic.federation.trust.authority import Authority
from polyclinic.federation.trust.certificates import key_fingerprint, new_key, stem, write_key
from polyclinic.files import write_atomic

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

#: Keys of other sizes are not signed: smaller ones are weak, and larger ones slow.
_BITS = range(2048, 8193)
#: Larger files are not read.
_MOST_BYTES = 50_000


@dataclass(frozen=True)
class Request:
    """A request that is whole: who signed it has the key.

    Attributes:
        name: of the party.
        role: ``site`` or ``researcher``.
        key: its public key.
    """

    name: str
    role: str
    key: RSAPublicKey


def make_request(name: str, role: str, folder: Path) -> tuple[Path, str]:
    """Make a party's key, and the request for its certificate; returns the request's file and the key's fingerprint.

    Args:
        name: as it stands in the consortium file.
        role: ``site`` or ``researcher``.
        folder: of the kit to be; it is made.

    Raises:
        FederationError: P602, there is a key in the folder; P608, the role is another.
    """
    require_flare()
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.serialization import Encoding
    from cryptography.x509.oid import NameOID

    _check_name(name, role)
    path, key = folder / "startup" / f"{stem(role)}.key", new_key()
    if path.exists():
        raise FederationError("P602", f"There is a key in {folder} already.",
                              "Send the request that is there, or give another folder.")  # fmt: skip
    write_key(path, key)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name),
                         x509.NameAttribute(NameOID.UNSTRUCTURED_NAME, role)])  # fmt: skip
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    file = folder / f"{name}.csr"
    write_atomic(file, request.public_bytes(Encoding.PEM))
    return file, key_fingerprint(key.public_key())


def _check_name(name: str, role: str) -> None:
    """Whether a party may be called so.

    Raises:
        FederationError: P608, it may not.
    """
    hint = "Give name and role as they stand in the consortium file."
    if role not in NAMES:
        raise FederationError("P608", f"Got the role {role!r}, expected {' or '.join(NAMES)}.", hint)
    try:
        NAMES[role](name)
    except ValueError as error:
        raise FederationError("P608", f"The name of the {role}: {error}.", hint) from None


def read_request(path: Path) -> Request:
    """A request in its file.

    Raises:
        FederationError: P608, it is none, was changed, or its key is not one to be signed.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
    from cryptography.x509.oid import NameOID

    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError
        found = x509.load_pem_x509_csr(path.read_bytes())
        name, role = (
            str(found.subject.get_attributes_for_oid(kind)[0].value)
            for kind in (NameOID.COMMON_NAME, NameOID.UNSTRUCTURED_NAME)
        )
        key, whole = found.public_key(), found.is_signature_valid
    except (OSError, ValueError, IndexError, TypeError):
        raise FederationError("P608", f"{path.name} is no request.",
                              "Give the file that `polyclinic federation request` made.") from None  # fmt: skip
    if not whole:
        raise FederationError("P608", f"The request {path.name} was changed, or is signed with another key.",
                              "Ask the party for the file again.")  # fmt: skip
    if not isinstance(key, RSAPublicKey) or key.key_size not in _BITS or key.public_numbers().e != 65537:
        size = f"{key.key_size} bits" if isinstance(key, RSAPublicKey) else "not RSA"
        raise FederationError("P608", f"The key of the request {path.name} is {size}, expected RSA with 2048 to 8192 "
                              "bits and exponent 65537.", "Let the party make another request.")  # fmt: skip
    return Request(name, role, key)


def check_request(request: Request, authority: Authority, revoked: set[int], *, again: bool) -> None:
    """Whether a request is one to be signed.

    Args:
        request: the request.
        authority: who signs it.
        revoked: serial numbers of certificates that are revoked.
        again: whether the party may have another key than before.

    Raises:
        FederationError: P608 with what is wrong.
    """
    roles = authority.consortium.roles
    if request.role not in NAMES or roles.get(request.name) != request.role:
        raise FederationError(
            "P608", f"The request is for a {request.role} called {request.name!r}, and the consortium has none.",
            "Put the name into the consortium file, and call `polyclinic federation new` with it first.",
        )  # fmt: skip
    for party in authority.parties():
        for certificate in authority.signed(party):
            same = certificate.public_key() == request.key
            if same and certificate.serial_number in revoked:
                raise FederationError("P608", f"The key of the request was revoked with {party}.",
                                      "Let the party make another request, in a new folder.")  # fmt: skip
            if same and party != request.name:
                raise FederationError("P608", f"The request of {request.name} has the key of {party}.",
                                      "Let each party make a request of its own.")  # fmt: skip
    before = authority.signed(request.name)
    if before and before[-1].public_key() != request.key and not again:
        raise FederationError(
            "P608", f"{request.name} was given a certificate for another key before.",
            f"Ask {request.name} whether it made a new one. If so: revoke the one before, and give --again.",
        )  # fmt: skip
