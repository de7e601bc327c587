"""Who a site is: signatures by keys that outlast a round, such as those of certificates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePrivateKey, EllipticCurvePublicKey
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
    from cryptography.hazmat.primitives.asymmetric.padding import PSS
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey
    from cryptography.hazmat.primitives.hashes import SHA256

    PrivateKey = Ed25519PrivateKey | EllipticCurvePrivateKey | RSAPrivateKey
    PublicKey = Ed25519PublicKey | EllipticCurvePublicKey | RSAPublicKey


class Verifier(Protocol):
    """Knows the sites' public keys."""

    def verify(self, site: str, data: bytes, signature: bytes) -> bool:
        """Whether the site signed the data."""


class Signer(Verifier, Protocol):
    """A site, which also has a key of its own."""

    def sign(self, data: bytes) -> bytes:
        """The site's signature."""


@dataclass(frozen=True)
class KnownKeys:
    """Verifies signatures by the public keys of certificates: Ed25519, ECDSA with SHA-256, or RSA-PSS with SHA-256.

    Attributes:
        keys: site -> public key. Who reads them from certificates checks these first.
    """

    keys: Mapping[str, PublicKey] = field(repr=False)

    def verify(self, site: str, data: bytes, signature: bytes) -> bool:
        """See `Verifier`."""
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
        from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

        key = self.keys.get(site)
        if key is None:
            return False
        try:
            if isinstance(key, EllipticCurvePublicKey):
                key.verify(signature, data, _ecdsa())
            elif isinstance(key, RSAPublicKey):
                key.verify(signature, data, *_pss())
            else:
                key.verify(signature, data)
        except InvalidSignature:
            return False
        return True


@dataclass(frozen=True)
class KeySigner(KnownKeys):
    """Signs with a site's private key, too.

    Attributes:
        private: of this site.
    """

    private: PrivateKey = field(repr=False)

    def sign(self, data: bytes) -> bytes:
        """See `Signer`."""
        from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
        from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

        if isinstance(self.private, EllipticCurvePrivateKey):
            return self.private.sign(data, _ecdsa())
        if isinstance(self.private, RSAPrivateKey):
            return self.private.sign(data, *_pss())
        return self.private.sign(data)


def _ecdsa() -> ECDSA:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric.ec import ECDSA

    return ECDSA(hashes.SHA256())


def _pss() -> tuple[PSS, SHA256]:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import padding

    return padding.PSS(padding.MGF1(hashes.SHA256()), padding.PSS.DIGEST_LENGTH), hashes.SHA256()
