"""Key pairs of a round, the keys that two sites have in common, and sealing for one receiver.

X25519 (RFC 7748), HKDF with SHA-256 (RFC 5869), ChaCha20-Poly1305 (RFC 8439).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from polyclinic.secure.binding import UnfitError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

KEY_BYTES = 32
#: What sealing adds.
TAG_BYTES = 16


@dataclass(frozen=True)
class KeyPair:
    """A pair of X25519.

    Attributes:
        private: the secret key.
        public: 32 bytes for everybody.
    """

    private: X25519PrivateKey = field(repr=False)
    public: bytes

    @classmethod
    def new(cls) -> KeyPair:
        """A pair from the operating system's randomness."""
        from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

        return cls.of(X25519PrivateKey.generate().private_bytes_raw())

    @classmethod
    def of(cls, secret: bytes) -> KeyPair:
        """The pair of a secret of 32 bytes."""
        from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

        private = X25519PrivateKey.from_private_bytes(secret)
        return cls(private, private.public_key().public_bytes_raw())

    @property
    def secret(self) -> bytes:
        """The secret key, 32 bytes."""
        return self.private.private_bytes_raw()

    def common(self, public: bytes, context: bytes) -> bytes:
        """The key, 32 bytes, that the owners of two pairs both find, and nobody else.

        Args:
            public: the other's.
            context: what the key is for, see `bind`; each has its own.

        Raises:
            UnfitError: the other's key is one of those of which the result is known to everybody.
        """
        from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey

        try:
            shared = self.private.exchange(X25519PublicKey.from_public_bytes(public))
        except ValueError:  # all zero
            raise UnfitError("A public key is of low order: what it leads to is no secret.") from None
        return expand(shared, context)


def expand(secret: bytes, context: bytes) -> bytes:
    """A key of 32 bytes for one purpose, by HKDF."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    return HKDF(hashes.SHA256(), KEY_BYTES, salt=None, info=context).derive(secret)


def seal(key: bytes, text: bytes, context: bytes) -> bytes:
    """Encrypts one text; a key seals no second one, so that the nonce can be zero."""
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

    return ChaCha20Poly1305(key).encrypt(bytes(12), text, context)


def unseal(key: bytes, sealed: bytes, context: bytes) -> bytes:
    """The text.

    Raises:
        UnfitError: it was sealed with another key or context, or changed.
    """
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

    try:
        return ChaCha20Poly1305(key).decrypt(bytes(12), sealed, context)
    except InvalidTag:
        raise UnfitError(
            "can't be opened: it is for another site or round, was changed, or its sender was told other keys."
        ) from None
