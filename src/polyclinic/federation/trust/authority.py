"""The authority of a consortium: its key signs all certificates, and it keeps those that it has signed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polyclinic.errors import FederationError
from polyclinic.federation.consortium import Consortium
from polyclinic.federation.optional import require_flare
from polyclinic.federation.trust.certificates import new_key, read_certificate, read_key, to_text, write_key
from polyclinic.files import write_atomic

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey
    from cryptography.x509 import Certificate

#: All parties are of one organisation to FLARE; who may do what is said in the kits.
ORGANISATION = "polyclinic"
#: Days for which the authority's own certificate is valid; no other outlives it.
AUTHORITY_DAYS = 3650
#: Clocks of parties may be behind by this much.
_EARLIER = timedelta(hours=1)
#: What a researcher is to FLARE.
_RESEARCHER = "project_admin"


class Authority:
    """Signs certificates.

    Args:
        folder: of the authority.
        consortium: who takes part.

    Raises:
        FederationError: P602, the folder has no key and certificate.
    """

    def __init__(self, folder: Path, consortium: Consortium) -> None:
        self.folder, self.consortium = folder, consortium
        self.key: RSAPrivateKey = read_key(folder / "authority.key")
        self.certificate: Certificate = read_certificate(folder / "authority.crt")

    @classmethod
    def create(cls, folder: Path, consortium: Consortium) -> Authority:
        """A new one, with a key of its own."""
        from nvflare.lighter.utils import Identity, generate_cert

        key, itself = new_key(), Identity(consortium.consortium)
        begin = datetime.now(UTC) - _EARLIER
        certificate = generate_cert(
            itself, itself, key, key.public_key(), ca=True, not_valid_before=begin,
            not_valid_after=begin + timedelta(days=AUTHORITY_DAYS),
        )  # fmt: skip
        write_key(folder / "authority.key", key)
        write_atomic(folder / "authority.crt", to_text(certificate))
        return cls(folder, consortium)

    @classmethod
    def of(cls, kits: Path) -> Authority:
        """The one beside kits.

        Raises:
            FederationError: P602, the folder has no kits, or the authority is elsewhere.
        """
        require_flare()
        known = kits / "consortium.yaml"
        if not known.is_file():
            raise FederationError("P602", f"There are no kits in {kits}.",
                                  "Give the folder that was made by `polyclinic federation new`.")  # fmt: skip
        return cls(kits / "authority", Consortium.read(known))

    def sign(self, name: str, key: RSAPublicKey, days: int | None = None) -> Certificate:
        """A new certificate of a party, which is kept.

        Args:
            name: of the party.
            key: its key.
            days: for which it is valid; None for what the consortium says.
        """
        from cryptography import x509
        from nvflare.lighter.utils import Identity, generate_cert

        role = self.consortium.roles[name]
        host = self.consortium.coordinator.host if role == "coordinator" else None
        now = datetime.now(UTC)
        end = now + timedelta(days=days or self.consortium.valid_days)
        certificate: Certificate = generate_cert(
            Identity(host or name, ORGANISATION, _RESEARCHER if role == "researcher" else None),
            Identity(self.consortium.consortium), self.key, key, server_default_host=host,
            not_valid_before=max(now - _EARLIER, self.certificate.not_valid_before_utc),
            not_valid_after=min(end, self.certificate.not_valid_after_utc),
            extra_extensions=[(x509.BasicConstraints(ca=False, path_length=None), True), *_uses(role)],
        )  # fmt: skip
        kept = self.folder / "signed" / name
        write_atomic(kept / f"{len(self.signed(name)) + 1:04}.crt", to_text(certificate))
        return certificate

    def signed(self, name: str) -> list[Certificate]:
        """All certificates that a party was given, the latest last."""
        return [read_certificate(path) for path in sorted((self.folder / "signed" / name).glob("*.crt"))]

    def parties(self) -> list[str]:
        """Names of all parties that were given one."""
        folder = self.folder / "signed"
        return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def _uses(role: str) -> list[tuple[Any, bool]]:
    """What a certificate is for: nobody but the coordinator can pass for it."""
    from cryptography import x509
    from cryptography.x509.oid import ExtendedKeyUsageOID

    both = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    usage = x509.KeyUsage(
        digital_signature=True, content_commitment=False, key_encipherment=True, data_encipherment=False,
        key_agreement=False, key_cert_sign=False, crl_sign=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    return [(usage, True), (x509.ExtendedKeyUsage(both if role == "coordinator" else both[1:]), False)]
