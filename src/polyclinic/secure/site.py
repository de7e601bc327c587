"""A site in one round of a secure sum: what it says in each phase, and what it refuses.

Source: Bonawitz, Ivanov, Kreuter, Marcedone, McMahan, Patel, Ramage, Segal, Seth, Practical secure aggregation for
privacy-preserving machine learning, CCS 2017, figure 4. As there, a site has two kinds of masks: those in common with
its neighbours, which cancel in the sum, and one of its own. Of a site that is in the sum the others reveal shares of
its own mask, of one that dropped out those of its key, never both: so a server that has an answer that came too late,
or says that it has not, still can't read it.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from torch import Tensor

from polyclinic.errors import SiteError
from polyclinic.secure.binding import UnfitError
from polyclinic.secure.identity import Signer
from polyclinic.secure.keys import KeyPair, seal, unseal
from polyclinic.secure.masks import add_masks_, container, reduce_
from polyclinic.secure.optional import require_cryptography
from polyclinic.secure.roster import KEY, SEED, Advert, Box, Roster, seed_hash
from polyclinic.secure.shares import SHARE_BYTES, split
from polyclinic.secure.terms import Terms

PHASES = ("advertise", "share", "mask", "agree", "unmask")


class SiteRound:
    """One round at one site, with fresh keys: `advertise`, `share`, `mask`, `agree`, `unmask`, each once, in order.

    What is refused ends the round at this site: its secrets are forgotten, and it takes part in no further phase. So
    the server can't try again with other lists. Whoever makes the object keeps nothing of it beyond the round.

    A round that did not end can be begun again with new objects and the next attempt; not with the same values, where
    this site has ``revealed`` shares: from two sums that differ by a site the server has that site's values.

    Attributes:
        revealed: whether shares were revealed, so that the server may know the sum.

    Args:
        terms: of the round.
        site: this site's name.
        signer: its identity and those of the others. With it, keys and lists of survivors that the sites have not
            signed are refused. Without it, all this holds against a server that reads along, and not against one that
            puts keys of its own in the place of the sites'.

    Raises:
        PolyclinicError: P503, the package cryptography is missing.
    """

    def __init__(self, terms: Terms, site: str, signer: Signer | None = None) -> None:
        require_cryptography()
        if site not in terms.index:
            raise ValueError(f"{site} is not among the sites of the round")
        self.terms, self.site = terms, site
        self._signer = signer
        self._next: str | None = PHASES[0]
        self._sealing, self._masking = KeyPair.new(), KeyPair.new()
        self._seed = secrets.token_bytes(32)
        self._held = dict[str, tuple[bytes, bytes]]()
        self._survivors: list[str] = []
        self.revealed = False

    def advertise(self) -> dict[str, bytes]:
        """Public keys ``seal`` and ``mask``, ``seed`` (a hash), each 32 bytes, and a ``signature``, perhaps empty."""
        with self._phase("advertise"):
            seed = seed_hash(self.terms, self.site, self._seed)
            advert = Advert(self._sealing.public, self._masking.public, seed)
            signature = self._signer.sign(advert.signed(self.terms, self.site)) if self._signer else b""
            self._advert = Advert(advert.seal, advert.mask, advert.seed, signature)
            return self._advert.message()

    def share(self, keys: Mapping[str, Mapping[str, bytes]]) -> dict[str, bytes]:
        """Shares of this site's two secrets, each sealed for the site that is to hold it.

        Args:
            keys: site -> what it advertised, of all that did.

        Returns:
            Neighbour -> box (146 bytes), and this site -> hashes of the share that it keeps (64 bytes).

        Raises:
            SiteError: P404, the keys are refused.
        """
        with self._phase("share"):
            self._roster = roster = Roster.read(self.terms, keys, self._signer)
            if roster.adverts.get(self.site) != self._advert:
                raise UnfitError("The list of keys has not what this site advertised.")
            boxes = dict[str, bytes]()
            holders = sorted((self.site, *roster.neighbours(self.site)), key=self.terms.index.__getitem__)
            for holder, pair in self._split(holders).items():
                committed = [roster.commitment(self.site, holder, kind, pair[kind]) for kind in (SEED, KEY)]
                if holder == self.site:
                    self._held[holder], sealed = pair, b""
                else:
                    context = roster.sealing(self.site, holder)
                    key = self._sealing.common(roster.adverts[holder].seal, context)
                    sealed = seal(key, b"".join(pair), context)
                boxes[holder] = Box((committed[SEED], committed[KEY]), sealed).message()
            return boxes

    def mask(self, vector: Tensor, boxes: Mapping[str, bytes]) -> Tensor:
        """Masks this site's vector, in place.

        Args:
            vector: integers ``[T]``, int32 for up to 32 bits, else int64; taken modulo 2^bits. Beyond 64 bits the
                words of each element, ``[T words]``.
            boxes: sender -> its box for this site, of those neighbours whose boxes the server has.

        Returns:
            The vector: every value from 0 to 2^bits - 1 is equally likely (all those of int32 or int64 for 32 or 64).

        Raises:
            SiteError: P404, the boxes are refused.
            ValueError: the vector is not as said above.
        """
        if vector.dtype != container(self.terms.bits) or tuple(vector.shape) != (self.terms.size,):
            raise ValueError(f"got {vector.dtype} {list(vector.shape)}; expected {container(self.terms.bits)} "
                             f"[{self.terms.size}]")  # fmt: skip
        with self._phase("mask"):
            roster = self._roster
            if not isinstance(boxes, Mapping) or not boxes.keys() <= set(roster.neighbours(self.site)):
                raise UnfitError("There are boxes of sites that are no neighbours.")
            if (there := 1 + len(boxes)) < self.terms.shape.threshold or there < self.terms.least:
                needed = max(self.terms.shape.threshold, self.terms.least)
                raise UnfitError(f"Shares of {there} sites are there; {needed} are needed.")
            for sender, box in boxes.items():
                self._held[sender] = self._opened(sender, box)
            masks = [roster.pair_mask(self.site, self._masking, other) for other in boxes]
            masks.append((roster.own_mask(self.site, self._seed), 1))
            return reduce_(add_masks_(vector, masks, self.terms.words), self.terms.bits)

    def agree(self, survivors: Sequence[str]) -> bytes:
        """Agrees to one list of those that are in the sum, for good.

        Args:
            survivors: their names.

        Returns:
            This site's signature of the list, empty without an identity.

        Raises:
            SiteError: P404, the list is refused.
        """
        with self._phase("agree"):
            roster, terms = self._roster, self.terms
            named = (
                list(survivors) if isinstance(survivors, Sequence) and not isinstance(survivors, str | bytes) else []
            )
            if not all(isinstance(name, str) for name in named) or len(set(named)) < len(named):
                raise UnfitError("The list of survivors names a site twice, or something else.")
            if not set(named) <= roster.adverts.keys():
                raise UnfitError("The list of survivors names sites that had no keys.")
            if self.site not in named:
                raise UnfitError("The list of survivors is without this site, which is here.")
            if len(named) < terms.needed:
                raise UnfitError(f"The list of survivors has {len(named)} sites; {terms.needed} are needed.")
            if unshared := set(named) & set(roster.neighbours(self.site)) - self._held.keys():
                raise UnfitError(f"The list of survivors has {min(unshared)}, with which no mask is in common.")
            if not roster.connected(named):
                raise UnfitError("The sites in the list of survivors fall into groups without common masks.")
            self._survivors = sorted(named, key=terms.index.__getitem__)
            return self._signer.sign(roster.survivors_signed(self._survivors)) if self._signer else b""

    def unmask(self, signatures: Mapping[str, bytes]) -> dict[str, bytes]:
        """Reveals a share of each neighbour, and of this site: of its seed if it is in the sum, else of its key.

        Args:
            signatures: survivor -> its signature of the list.

        Returns:
            Site -> 0 for the seed or 1 for the key, and the share, 34 bytes. The site's secrets are forgotten.

        Raises:
            SiteError: P404, too few sites signed the list that this site signed.
        """
        with self._phase("unmask"):
            if self._signer is not None:
                self._check(signatures, self._signer)
            kinds = {owner: SEED if owner in self._survivors else KEY for owner in self._held}
            shares = {owner: bytes([kind]) + self._held[owner][kind] for owner, kind in kinds.items()}
            self.revealed = True
        self._end()
        return shares

    # What the phases are made of --------------------------------------------------------------------------------------

    def _split(self, holders: Sequence[str]) -> dict[str, tuple[bytes, bytes]]:
        """Holder -> its shares of the seed and of the key."""
        points = [self.terms.index[holder] + 1 for holder in holders]
        numbers = (int.from_bytes(secret, "little") for secret in (self._seed, self._masking.secret))
        seed, key = (split(number, self.terms.shape.threshold, points) for number in numbers)
        return {
            holder: (seed[point].to_bytes(SHARE_BYTES, "little"), key[point].to_bytes(SHARE_BYTES, "little"))
            for holder, point in zip(holders, points, strict=True)
        }

    def _opened(self, sender: str, message: object) -> tuple[bytes, bytes]:
        box = Box.read(f"The box of site {sender}", message)
        context = self._roster.sealing(sender, self.site)
        key = self._sealing.common(self._roster.adverts[sender].seal, context)
        try:
            text = unseal(key, box.sealed, context)
        except UnfitError as error:
            raise UnfitError(f"The box of site {sender} {error}") from None
        pair = text[:SHARE_BYTES], text[SHARE_BYTES:]
        if box.commitments != tuple(
            self._roster.commitment(sender, self.site, kind, pair[kind]) for kind in (SEED, KEY)
        ):
            raise UnfitError(f"The box of site {sender} holds other shares than it says.")
        return pair

    def _check(self, signatures: Mapping[str, bytes], signer: Signer) -> None:
        """Whether enough survivors signed the list."""
        if not isinstance(signatures, Mapping):
            raise UnfitError("There are no signatures of the list of survivors.")
        signed = self._roster.survivors_signed(self._survivors)
        valid = sum(
            isinstance(signature := signatures.get(site), bytes) and signer.verify(site, signed, signature)
            for site in self._survivors
        )
        if valid < self.terms.shape.agreement:
            raise UnfitError(
                f"{valid} sites signed the list of survivors that this site signed; {self.terms.shape.agreement} are "
                "needed. The others may have been told another list."
            )

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        """A phase, which must be the next; whatever goes wrong in it, no other follows."""
        expected, self._next = self._next, None
        try:
            if expected is None:
                raise UnfitError(f"This round is over here; it can't be asked to {name}.")
            if name != expected:
                raise UnfitError(f"It was asked to {name}, and must {expected} next. Each is done once.")
            yield
        except UnfitError as error:
            self._end()
            raise SiteError(
                "P404", f"Site {self.site} refuses a secure sum in round {self.terms.number}: {error}",
                "Begin the round again, with fresh keys. If it is refused again, ask who runs the server.",
                site=self.site,
            ) from None  # fmt: skip
        except BaseException:
            self._end()
            raise
        self._next = following[0] if (following := PHASES[PHASES.index(name) + 1 :]) else None

    def _end(self) -> None:
        """Forgets what must not be used again."""
        self._next = None
        self._held.clear()
        self.__dict__.pop("_sealing", None)
        self.__dict__.pop("_masking", None)
        self.__dict__.pop("_seed", None)
