"""A secret that the sites of a round have in common, and the server that passes it on has not.

One site, the dealer, draws it and seals it for each other (X25519, ChaCha20-Poly1305). With identities the sites sign
the keys to which it is sealed; without them that protects from a server that reads along, and not from one that puts
keys of its own in their place.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping

from polyclinic.secure.binding import UnfitError, bind, check_bytes
from polyclinic.secure.identity import Signer
from polyclinic.secure.keys import KEY_BYTES, TAG_BYTES, KeyPair, expand, seal, unseal
from polyclinic.secure.optional import require_cryptography

#: Of a secret that was sealed.
BOX_BYTES = KEY_BYTES + TAG_BYTES


class CommonSecret:
    """One site's part in it, with a fresh pair of keys: `advertise`, then `deal` or `open`, each once.

    Whose own secret did not reach the others may open one that another site dealt.

    Args:
        terms: what all parties know of the round, as bytes; keys and signatures are bound to it.
        sites: who takes part.
        site: this one.
        signer: its identity and those of the others, if it has any.

    Raises:
        PolyclinicError: P503, the package cryptography is missing.
    """

    def __init__(self, terms: bytes, sites: Collection[str], site: str, signer: Signer | None = None) -> None:
        require_cryptography()
        self._terms, self._sites, self._site, self._signer = terms, frozenset(sites), site, signer
        self._pair, self._secret = KeyPair.new(), b""
        self._done = set[str]()

    @property
    def known(self) -> bool:
        """Whether this site has the secret."""
        return bool(self._secret)

    def advertise(self) -> dict[str, bytes]:
        """The public ``key``, 32 bytes, and its ``signature``, perhaps empty."""
        public = self._pair.public
        signature = self._signer.sign(self._signed(self._site, public)) if self._signer else b""
        return {"key": public, "signature": signature}

    def deal(self, adverts: object) -> dict[str, bytes]:
        """Draws the secret.

        Args:
            adverts: site -> what it advertised, this one among them.

        Returns:
            Other site -> the secret, sealed for it (48 bytes). A site whose key is not as it must be gets none.

        Raises:
            UnfitError: the list is refused.
        """
        self._once("deal")
        if not isinstance(adverts, Mapping) or not adverts.keys() <= self._sites:
            raise UnfitError("the list of keys names sites that do not take part")
        own = adverts.get(self._site)
        if not isinstance(own, Mapping) or own.get("key") != self._pair.public:
            raise UnfitError("the list of keys has not the one that this site advertised")
        secret, boxes = secrets.token_bytes(KEY_BYTES), dict[str, bytes]()
        for other in sorted(adverts.keys() - {self._site}):
            try:
                public = self._read(other, adverts[other])
                context = self._context(self._site, self._pair.public, other, public)
                boxes[other] = seal(self._pair.common(public, context), secret, context)
            except UnfitError:
                continue
        self._secret = secret
        self._done.add("deal")
        return boxes

    def open(self, dealer: object, advert: object, box: object) -> None:
        """Takes the secret that another site has sealed for this one.

        Raises:
            UnfitError: it is refused.
        """
        self._once("open")
        if not isinstance(dealer, str) or dealer not in self._sites or dealer == self._site:
            raise UnfitError("the secret of the sites comes from none of the others")
        public = self._read(dealer, advert)
        context = self._context(dealer, public, self._site, self._pair.public)
        sealed = check_bytes(f"what site {dealer} sealed", box, BOX_BYTES)
        try:
            self._secret = unseal(self._pair.common(public, context), sealed, context)
        except UnfitError as error:
            raise UnfitError(f"what site {dealer} sealed {str(error).removesuffix('.')}") from None
        self._done.add("open")

    def key(self, purpose: str, *parts: bytes | str | int) -> bytes:
        """32 bytes that whoever has the secret finds, and nobody else; each purpose, with its parts, has its own."""
        if not self._secret:
            raise UnfitError("the secret of the sites is not known here")
        return expand(self._secret, bind(purpose, self._terms, *parts))

    def _once(self, what: str) -> None:
        if {what, "open"} & self._done:
            raise UnfitError("the sites have a secret already")

    def _signed(self, site: str, public: bytes) -> bytes:
        return bind("key for a common secret", self._terms, site, public)

    def _context(self, dealer: str, dealt: bytes, receiver: str, received: bytes) -> bytes:
        return bind("common secret", self._terms, dealer, receiver, dealt, received)

    def _read(self, site: str, advert: object) -> bytes:
        if not isinstance(advert, Mapping):
            raise UnfitError(f"there is no key of site {site}")
        public = check_bytes(f"the key of site {site}", advert.get("key"), KEY_BYTES)
        signature = advert.get("signature")
        if self._signer is not None and not (
            isinstance(signature, bytes) and self._signer.verify(site, self._signed(site, public), signature)
        ):
            raise UnfitError(f"the key of site {site} is not signed by it for this round")
        return public
