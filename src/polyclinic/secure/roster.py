"""The keys that all sites advertised in a round, as the server tells them; and what follows from them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from polyclinic.secure.binding import UnfitError, bind, check_bytes, digest
from polyclinic.secure.graph import Graph
from polyclinic.secure.identity import Verifier
from polyclinic.secure.keys import KEY_BYTES, TAG_BYTES, KeyPair, expand
from polyclinic.secure.shares import SHARE_BYTES
from polyclinic.secure.terms import Terms

#: A site's two secrets, each of which has shares: the seed of its own mask, and its key for the masks with others.
SEED, KEY = 0, 1


@dataclass(frozen=True)
class Advert:
    """What a site advertises.

    Attributes:
        seal: public key to which shares are sealed.
        mask: public key of masks in common.
        seed: hash of the seed of its own mask.
        signature: of all three by the site; empty where it has no identity.
    """

    seal: bytes
    mask: bytes
    seed: bytes
    signature: bytes = b""

    @classmethod
    def read(cls, terms: Terms, site: str, message: object, verifier: Verifier | None) -> Advert:
        """What a message says.

        Raises:
            UnfitError: it is not as it must be; or there are identities, and the site did not sign it for this round.
        """
        if not isinstance(message, Mapping) or set(message) != {"seal", "mask", "seed", "signature"}:
            raise UnfitError(f"What site {site} advertises has other fields than seal, mask, seed and signature.")
        seal, mask, seed = (
            check_bytes(f"The {name} of site {site}", message[name], KEY_BYTES) for name in ("seal", "mask", "seed")
        )
        signature = message["signature"]
        if not isinstance(signature, bytes):
            raise UnfitError(f"The signature of site {site} is {type(signature).__name__}; expected bytes.")
        advert = cls(seal, mask, seed, signature)
        if verifier is not None and not verifier.verify(site, advert.signed(terms, site), signature):
            raise UnfitError(f"The keys of site {site} are not signed by it for this round.")
        return advert

    def signed(self, terms: Terms, site: str) -> bytes:
        """What the site signs."""
        return bind("keys", terms.digest, site, self.seal, self.mask, self.seed)

    def message(self) -> dict[str, bytes]:
        """As it is sent."""
        return {"seal": self.seal, "mask": self.mask, "seed": self.seed, "signature": self.signature}


@dataclass(frozen=True)
class Roster:
    """Who takes part in the round, with which keys.

    Attributes:
        terms: of the round.
        adverts: site -> what it advertised, in the federation's order.

    Raises:
        UnfitError: there are too few, or two have a key in common.
    """

    terms: Terms
    adverts: Mapping[str, Advert]

    def __post_init__(self) -> None:
        if len(self.adverts) < self.terms.needed:
            raise UnfitError(f"Keys of {len(self.adverts)} sites are there; {self.terms.needed} are needed.")
        keys = [key for advert in self.adverts.values() for key in (advert.seal, advert.mask)]
        if len(set(keys)) < len(keys):
            raise UnfitError("Two of the advertised keys are equal.")

    @classmethod
    def read(cls, terms: Terms, message: object, verifier: Verifier | None) -> Roster:
        """What a message says.

        Raises:
            UnfitError: as above, or as by `Advert.read`; or a site is not of the federation.
        """
        if not isinstance(message, Mapping) or not terms.index.keys() >= message.keys():
            raise UnfitError("The list of keys names sites that are not of this federation.")
        there = [site for site in terms.sites if site in message]
        return cls(terms, {site: Advert.read(terms, site, message[site], verifier) for site in there})

    @cached_property
    def digest(self) -> bytes:
        """32 bytes that stand for the terms and all keys; who was told other keys has others."""
        parts = [part for site, one in self.adverts.items() for part in (site, one.seal, one.mask, one.seed)]
        return digest("roster", self.terms.digest, *parts)

    @cached_property
    def graph(self) -> Graph:
        """Of all sites of the federation, whether or not they are here."""
        return Graph(self.terms.shape, digest("graph", self.digest))

    def neighbours(self, site: str) -> list[str]:
        """Those of a site that are here, in order."""
        names = [self.terms.sites[place] for place in self.graph.neighbours(self.terms.index[site])]
        return [name for name in names if name in self.adverts]

    def connected(self, sites: Collection[str]) -> bool:
        """Whether masks in common connect all of these sites."""
        return self.graph.connected([self.terms.index[site] for site in sites])

    def sealing(self, sender: str, receiver: str) -> bytes:
        """Context of the key, and of what is sealed with it."""
        return bind("seal", self.digest, sender, receiver)

    def pair_mask(self, site: str, pair: KeyPair, other: str) -> tuple[bytes, int]:
        """Key and sign of the mask that a site adds for another, which adds its negative.

        Raises:
            UnfitError: the other's key is of low order.
        """
        first, second = sorted((site, other), key=self.terms.index.__getitem__)
        key = pair.common(self.adverts[other].mask, bind("mask", self.digest, first, second))
        return key, 1 if site == first else -1

    def own_mask(self, site: str, seed: bytes) -> bytes:
        """Key of the mask that a site adds for itself."""
        return expand(seed, bind("own mask", self.digest, site))

    def commitment(self, owner: str, holder: str, kind: int, share: bytes) -> bytes:
        """Hash of a share, 32 bytes, by which it is known again. A share is as hard to guess as the secret."""
        return digest("share", self.digest, owner, holder, kind, share)

    def survivors_signed(self, survivors: Collection[str]) -> bytes:
        """What each site signs of a list of survivors in the federation's order."""
        return bind("survivors", self.digest, *survivors)


def seed_hash(terms: Terms, site: str, seed: bytes) -> bytes:
    """What a site advertises of the seed of its own mask; 256 random bits can't be guessed from it."""
    return digest("seed", terms.digest, site, seed)


@dataclass(frozen=True)
class Box:
    """The shares of a site's secrets that are for one other site, or for itself.

    Attributes:
        commitments: of the share of the seed and of that of the key.
        sealed: both, for the holder's eyes; empty where that is the owner.
    """

    commitments: tuple[bytes, bytes]
    sealed: bytes

    SIZE: ClassVar = 64 + 2 * SHARE_BYTES + TAG_BYTES
    OWN_SIZE: ClassVar = 64

    @classmethod
    def read(cls, what: str, message: object, *, own: bool = False) -> Box:
        """What a message says.

        Raises:
            UnfitError: it has another type or length than it must.
        """
        found = check_bytes(what, message, cls.OWN_SIZE if own else cls.SIZE)
        return cls((found[:32], found[32:64]), found[64:])

    def message(self) -> bytes:
        """As it is sent."""
        return b"".join((*self.commitments, self.sealed))
