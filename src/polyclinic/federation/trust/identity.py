"""Who a site is to the other sites: signatures that bring their certificates along.

A site knows no other's certificate beforehand, and whoever runs the server could show it any. So each signature comes
with the certificate of who signed, and it counts if the consortium's authority, whose certificate is in every kit, has
signed that for a site. Two names belong to a site: that of its *party*, which stands in the certificate and is nobody
else's, and that which it gave itself in studies. A signature is of both, and as long as a study runs a name stays with
one party and a party with one name, whatever certificates it has. So of several names that a server makes up each needs
a site of the consortium in league with it.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from polyclinic.federation.trust.certificates import ROOT, fingerprint, read_certificate, read_key
from polyclinic.federation.trust.revoked import Revoked
from polyclinic.secure import KeySigner, KnownKeys
from polyclinic.secure.binding import UnfitError, bind

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
    from cryptography.x509 import Certificate

log = logging.getLogger(__name__)

#: Signatures that are longer, with their certificates, are not looked at: with a key of 8192 bits they have 4 KB.
MOST_BYTES = 8192
#: Bytes that tell how long the signature itself is; then come it and the certificate (DER).
_HEAD = 2


class CertifiedSites:
    """Verifies signatures of sites by the certificates that come with them; a `polyclinic.secure.Verifier`.

    Args:
        kit: folder of a party's kit, which has the authority's certificate, and perhaps its list of revoked ones.

    Raises:
        FederationError: P602, the kit has no certificate of an authority; P608, its list was changed.
    """

    def __init__(self, kit: Path) -> None:
        self._root, self._revoked = read_certificate(kit / "startup" / ROOT), Revoked(kit)
        self._revoked.read()
        self._parties, self._names = dict[str, str](), dict[str, str]()

    def verify(self, site: str, data: bytes, signature: bytes) -> bool:
        """Whether a site signed the data.

        From the first signature on that counts a name belongs to its party, and the party to this name.

        Args:
            site: its name in the study.
            data: what should be signed.
            signature: what `Identity.sign` gave; any bytes may be tried.

        Returns:
            False, too, where the certificate is not valid now, or not that of a site; the log says why.
        """
        try:
            given, certificate = _taken_apart(signature)
            party = self._party(certificate)
            keys = KnownKeys({site: _site_key(certificate)})
            if not keys.verify(site, _signed(site, party, certificate, data), given):
                raise UnfitError(f"it is not of this, or not by {party}")
            self._pin(site, party)
        except UnfitError as error:
            log.warning("A signature under the name %r does not count: %s.", site[:100], error)
            return False
        return True

    def _party(self, certificate: Certificate) -> str:
        """The name of the site's kit in a certificate that is valid now.

        Raises:
            UnfitError: it is not valid.
        """
        from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

        try:
            certificate.verify_directly_issued_by(self._root)
        except (InvalidSignature, UnsupportedAlgorithm, ValueError, TypeError):
            raise UnfitError("its certificate is not of this consortium") from None
        party, now = _name(certificate), datetime.now(UTC)
        if not _is_site(certificate):
            raise UnfitError(f"the certificate of {party} is not that of a site")
        if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
            raise UnfitError(f"the certificate of {party} is not valid now")
        if self._revoked.has(certificate.serial_number):
            raise UnfitError(f"the certificate of {party} was revoked")
        return party

    def _pin(self, site: str, party: str) -> None:
        """From now on these belong together.

        Raises:
            UnfitError: one of them belongs to another.
        """
        known, named = self._parties.get(site, party), self._names.get(party, site)
        if known != party:
            raise UnfitError(f"it is by {party}, and the name belongs to {known}")
        if named != site:
            raise UnfitError(f"it is by {party}, whose name is {named!r}")
        self._parties[site], self._names[party] = party, site


class Identity(CertifiedSites):
    """Signs for a site with the key of its kit, too; a `polyclinic.secure.Signer`.

    Args:
        kit: folder of the site's kit.
        site: its name in the study.

    Raises:
        FederationError: P602, the kit has no key, no certificate, or none of an authority; P608, its list was changed.
    """

    def __init__(self, kit: Path, site: str) -> None:
        super().__init__(kit)
        self._key = read_key(kit / "startup" / "client.key")
        self._certificate = read_certificate(kit / "startup" / "client.crt")
        self._site, self._own = site, _name(self._certificate)
        self._pin(site, self._own)

    def sign(self, data: bytes) -> bytes:
        """The signature with the certificate, about 1.5 KB."""
        from cryptography.hazmat.primitives.serialization import Encoding

        signer = KeySigner({}, self._key)
        given = signer.sign(_signed(self._site, self._own, self._certificate, data))
        return len(given).to_bytes(_HEAD, "big") + given + self._certificate.public_bytes(Encoding.DER)


def _signed(site: str, party: str, certificate: Certificate, data: bytes) -> bytes:
    """What is signed. Its beginning is that of nothing else that is signed with the key of a kit: TLS, FLARE, logs."""
    return bind("signed by a site", site, party, fingerprint(certificate), data)


def _taken_apart(signature: object) -> tuple[bytes, Certificate]:
    """Signature and certificate, of which nothing is checked yet.

    Raises:
        UnfitError: it is something else.
    """
    from cryptography.x509 import InvalidVersion, load_der_x509_certificate

    if not isinstance(signature, bytes) or not _HEAD < len(signature) <= MOST_BYTES:
        _unfit()
    end = _HEAD + int.from_bytes(signature[:_HEAD], "big")
    try:
        return signature[_HEAD:end], load_der_x509_certificate(signature[end:])
    except (ValueError, InvalidVersion):
        _unfit()


def _unfit() -> NoReturn:
    raise UnfitError("it is no signature with a certificate")


def _name(certificate: Certificate) -> str:
    """The party that the authority gave a certificate."""
    from cryptography.x509.oid import NameOID

    return "".join(str(one.value) for one in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME))


def _is_site(certificate: Certificate) -> bool:
    """Whether the authority signed for a site: not for itself, the coordinator, or a researcher, who has a role."""
    from cryptography import x509
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    try:
        uses = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        basic = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        return False
    role = certificate.subject.get_attributes_for_oid(NameOID.UNSTRUCTURED_NAME)
    return bool(_name(certificate)) and not role and not basic.ca and list(uses) == [ExtendedKeyUsageOID.CLIENT_AUTH]


def _site_key(certificate: Certificate) -> RSAPublicKey:
    """The key of a certificate.

    Raises:
        UnfitError: it is no key of RSA, as all keys of kits are.
    """
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

    key = certificate.public_key()
    if not isinstance(key, RSAPublicKey):
        raise UnfitError(f"the key of {_name(certificate)} is not one of RSA")
    return key
