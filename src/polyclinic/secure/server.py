"""The server in one round of a secure sum: it passes on what sites say, adds masked vectors, and takes masks off."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping

import torch
from torch import Tensor

from polyclinic.errors import SiteError
from polyclinic.secure.binding import UnfitError, check_bytes
from polyclinic.secure.identity import Verifier
from polyclinic.secure.keys import KEY_BYTES, KeyPair
from polyclinic.secure.masks import add_, add_masks_, container, signed_
from polyclinic.secure.optional import require_cryptography
from polyclinic.secure.roster import KEY, SEED, Advert, Box, Roster, seed_hash
from polyclinic.secure.shares import SHARE_BYTES, rebuild
from polyclinic.secure.terms import Terms

PHASES = ("keys", "boxes", "survivors", "signatures", "sum")


class ServerRound:
    """One round at the server: `keys`, `boxes`, `add` for each vector, `survivors`, `signatures`, `sum`.

    Each takes the answers to the question before, by site, and gives the next question. A site without an answer has
    dropped out; one whose answer does not fit is told in ``failed``, and is treated like that, too. Where too few are
    left, the round is given up with P402, and nothing of any site is known.

    Attributes:
        failed: site -> why its answer does not fit.

    Args:
        terms: of the round.
        verifier: the sites' identities, if they have any: then it is noticed here, too, who did not sign.

    Raises:
        PolyclinicError: P503, the package cryptography is missing.
    """

    def __init__(self, terms: Terms, verifier: Verifier | None = None) -> None:
        require_cryptography()
        self.terms, self.failed = terms, dict[str, str]()
        self._verifier, self._probe = verifier, KeyPair.new()
        self._next = 0
        self._boxes = dict[str, dict[str, Box]]()
        self._added = set[str]()
        self._total = torch.zeros(terms.size, dtype=container(terms.bits))

    def keys(self, answers: Mapping[str, object]) -> dict[str, dict[str, bytes]]:
        """What all sites are to be told, from what each advertised."""
        self._step("keys")
        adverts, seen = dict[str, Advert](), set[bytes]()
        for site in self._in_order(answers, self.terms.sites):
            try:
                advert = Advert.read(self.terms, site, answers[site], self._verifier)
                for public in (advert.seal, advert.mask):
                    self._probe.common(public, b"")
                if len(pair := {advert.seal, advert.mask}) < 2 or pair & seen:
                    raise UnfitError("Its keys are not new.")
            except UnfitError as error:
                self.failed[site] = str(error)
            else:
                adverts[site] = advert
                seen |= pair
        self._enough(len(adverts), "advertised keys")
        self._roster = Roster(self.terms, adverts)
        return {site: advert.message() for site, advert in adverts.items()}

    def boxes(self, answers: Mapping[str, object]) -> dict[str, dict[str, bytes]]:
        """Site -> sender -> box: what each site is to be told, from what each shared."""
        self._step("boxes")
        for site in self._in_order(answers, self._roster.adverts):
            try:
                self._boxes[site] = self._read_boxes(site, answers[site])
            except UnfitError as error:
                self.failed[site] = str(error)
        self._enough(len(self._boxes), "shared their secrets")
        return {
            site: {other: self._boxes[other][site].message() for other in self._roster.neighbours(site)
                   if other in self._boxes}
            for site in self._boxes
        }  # fmt: skip

    def add(self, site: str, masked: object) -> None:
        """Adds a site's masked vector to the sum; only that is kept. One that does not fit is the site's failure."""
        if self._next != PHASES.index("survivors"):
            raise ValueError("vectors are added after `boxes` and before `survivors`")
        if site not in self._boxes or site in self._added:
            self.failed[site] = "Its vector was not asked for, or came twice."
        elif not isinstance(masked, Tensor) or (masked.dtype, masked.shape) != (self._total.dtype, self._total.shape):
            self.failed[site] = f"Its vector is not {self._total.dtype} [{self.terms.size}]."
        else:
            add_(self._total, masked, self.terms.words)
            self._added.add(site)

    def survivors(self) -> list[str]:
        """Those that are in the sum: what all of them are to agree to."""
        self._step("survivors")
        self._survivors = self._in_order(self._added, self.terms.sites)
        self._enough(len(self._survivors), "sent their vectors")
        return list(self._survivors)

    def signatures(self, answers: Mapping[str, object]) -> dict[str, bytes]:
        """What those that agreed are to be told, from their signatures; without identities these are empty."""
        self._step("signatures")
        signed = self._roster.survivors_signed(self._survivors)
        found = dict[str, bytes]()
        for site in self._in_order(answers, self._survivors):
            signature = answers[site]
            if not isinstance(signature, bytes):
                self.failed[site] = f"Its signature is {type(signature).__name__}; expected bytes."
            elif self._verifier is not None and not self._verifier.verify(site, signed, signature):
                self.failed[site] = "It did not sign the list of survivors."
            else:
                found[site] = signature
        self._enough(len(found), "agreed to the list of survivors")
        return found

    def sum(self, answers: Mapping[str, object]) -> Tensor:
        """The sum ``[T]`` of the survivors' vectors, from the shares that were revealed.

        Returns:
            Integers from -2^(bits-1) to 2^(bits-1) - 1, equal to the plain sum modulo 2^bits; beyond 64 bits their
            words.

        Raises:
            SiteError: P402, too few shares fit; P401, a site's shares do not give its secret.
        """
        self._step("sum")
        shares = dict[str, dict[str, bytes]]()
        for site in self._in_order(answers, self._survivors):
            try:
                shares[site] = self._read_shares(site, answers[site])
            except UnfitError as error:
                self.failed[site] = str(error)
        masks = list[tuple[bytes, int]]()
        for owner in self._boxes:
            secret = self._rebuilt(owner, shares)
            if self._kind(owner) == SEED:
                masks.append((self._roster.own_mask(owner, secret), -1))
            else:  # its neighbours have added what it would have taken off, and the other way round
                pair = KeyPair.of(secret)
                others = [other for other in self._roster.neighbours(owner) if other in self._added]
                masks += [self._roster.pair_mask(owner, pair, other) for other in others]
        return signed_(add_masks_(self._total, masks, self.terms.words), self.terms.bits)

    # What the phases are made of --------------------------------------------------------------------------------------

    def _step(self, name: str) -> None:
        if PHASES[self._next : self._next + 1] != (name,):
            raise ValueError(f"`{name}` is out of turn: the order is {', '.join(PHASES)}, each once")
        self._next += 1

    def _in_order(self, answers: Collection[str], among: Iterable[str]) -> list[str]:
        """Those that answered, in the federation's order. One that had dropped out before stays so."""
        return [site for site in among if site in answers]

    def _enough(self, count: int, what: str) -> None:
        if count < self.terms.needed:
            raise SiteError(
                "P402", f"In round {self.terms.number} of a secure sum {count} of {len(self.terms.sites)} sites {what}"
                f"; {self.terms.needed} are needed.{self._causes()}",
                "Nothing of any site is known. Mend the sites that failed, and begin the round again.",
            )  # fmt: skip

    def _causes(self) -> str:
        """Why sites failed, once for all of those that say the same but for their names."""
        found = dict[str, list[str]]()
        for site, why in self.failed.items():
            found.setdefault(re.sub(rf"(?<!\w){re.escape(site)}(?!\w)", "…", why), []).append(site)
        return "".join(f" {', '.join(sites)}: {self.failed[sites[0]]}" for sites in found.values())

    def _kind(self, owner: str) -> int:
        return SEED if owner in self._added else KEY

    def _read_boxes(self, site: str, message: object) -> dict[str, Box]:
        expected = {site, *self._roster.neighbours(site)}
        if not isinstance(message, Mapping) or message.keys() != expected:
            raise UnfitError(f"It did not share with the {len(expected)} sites that it should.")
        return {to: Box.read(f"Its box for {to}", box, own=to == site) for to, box in message.items()}

    def _read_shares(self, site: str, message: object) -> dict[str, bytes]:
        """Owner -> share, each compared with the hash that its owner told."""
        owners = {site, *self._roster.neighbours(site)} & self._boxes.keys()
        if not isinstance(message, Mapping) or message.keys() != owners:
            raise UnfitError(f"It did not reveal shares of the {len(owners)} sites that it should.")
        found = {}
        for owner in owners:
            told = check_bytes(f"Its share of {owner}", message[owner], 1 + SHARE_BYTES)
            kind, share = self._kind(owner), told[1:]
            committed = self._boxes[owner][site].commitments[kind]
            if told[0] != kind or self._roster.commitment(owner, site, kind, share) != committed:
                raise UnfitError(f"Its share of {owner} is not the one that it was given.")
            found[owner] = share
        return found

    def _rebuilt(self, owner: str, shares: Mapping[str, Mapping[str, bytes]]) -> bytes:
        """A site's seed or key, 32 bytes."""
        threshold, index = self.terms.shape.threshold, self.terms.index
        pairs = [
            (index[site] + 1, int.from_bytes(held[owner], "little")) for site, held in shares.items() if owner in held
        ][:threshold]
        if len(pairs) < threshold:
            raise SiteError(
                "P402", f"In round {self.terms.number} of a secure sum {len(pairs)} sites revealed fitting shares of "
                f"site {owner}; {threshold} are needed.{self._causes()}",
                "The sum is not known. Mend the sites that failed, and begin the round again.",
            )  # fmt: skip
        advert = self._roster.adverts[owner]
        try:
            secret = rebuild(pairs, threshold).to_bytes(KEY_BYTES, "little")
            if self._kind(owner) == SEED:
                fits = seed_hash(self.terms, owner, secret) == advert.seed
            else:
                fits = KeyPair.of(secret).public == advert.mask
        except (UnfitError, OverflowError):
            fits = False
        if not fits:
            self.failed[owner] = "The shares that it dealt do not give its secret."
            raise SiteError("P401", f"The shares that site {owner} dealt in a secure sum do not give its secret.",
                            "Begin the round again, without that site.", site=owner)  # fmt: skip
        return secret
