"""A step of the channel: the server sees the sum of all updates alone."""

import secrets
from collections.abc import Iterable, Mapping
from hashlib import shake_256
from typing import ClassVar

import torch
from torch import Tensor

from polyclinic.errors import SiteError, TrainingError
from polyclinic.parts import (
    CHANNEL_PARTS,
    Hiding,
    Memory,
    Now,
    Part,
    ServerEnd,
    SiteEnd,
    SiteView,
    Sum,
    all_answers,
)

#: Group 14 of RFC 3526, with 2 as generator.
PRIME = int("""
FFFFFFFFFFFFFFFFC90FDAA22168C234C4C6628B80DC1CD129024E088A67CC74020BBEA63B139B22514A08798E3404DDEF9519B3CD3A431B
302B0A6DF25F14374FE1356D6D51C245E485B576625E7EC6F44C42E9A637ED6B0BFF5CB6F406B7EDEE386BFB5A899FA5AE9F24117C4B1FE6
49286651ECE45B3DC2007CB8A163BF0598DA48361C55D39A69163FA8FD24CF5F83655D23DCA3AD961C62F356208552BB9ED529077096966D
670C354E4ABC9804F1746C08CA18217C32905E462E36CE3BE39E772C180E86039B2783A2EC07A28FB5C55DF06F4C52C9DE2BCBF695581718
3995497CEA956AE515D2261898FA051015728E5A8AACAA68FFFFFFFFFFFFFFFF
""".replace("\n", ""), 16)  # fmt: skip
#: One unit of the whole numbers that are summed.
UNIT = 2.0**-24


@CHANNEL_PARTS.add("masked_sum")
class MaskedSum(Part):
    """Each two sites agree on a mask, which one adds to its update and the other takes off, so that sums have none.

    Updates, times the site's weight, become whole numbers of 64 bits, whose sums overflow without harm, and masks cover
    all of their range. Where a site's answer does not count, the others tell the masks that they have in common with
    it. The paper's second mask, against a server that has that answer all the same, is left out.

    Source: Bonawitz et al., Practical secure aggregation for privacy-preserving machine learning, CCS 2017.
    """

    reveals: ClassVar = {
        "key": "a public key", "keys": "all sites' public keys", "place": "which of them is the site's",
        "there": "who takes part in the round, or whose masks are to be told", "weight": "the site's own weight",
        "mask": "masks in common with sites that are not in the sum",
    }  # fmt: skip

    def at_site(self) -> SiteEnd:
        """Masks."""
        return _Masking()

    def at_server(self) -> ServerEnd:
        """Sums."""
        return _Summing()


class _Masking(SiteEnd):
    def meet(self, view: SiteView) -> Memory:
        self._secret = secrets.randbits(256)
        public = pow(2, self._secret, PRIME).to_bytes(256)
        return {"key": torch.frombuffer(bytearray(public), dtype=torch.uint8)}

    def answer(self, verb: str, asked: Memory, view: SiteView) -> Memory:
        if verb == "keys":
            self._place = int(asked["place"])
            keys = [int.from_bytes(key.numpy().tobytes()) for key in asked["keys"]]
            self._common = [pow(key, self._secret, PRIME).to_bytes(256) for key in keys]
            return {}
        if verb == "unmask":
            return {"mask": self._mask(view.number, asked["there"])}
        return super().answer(verb, asked, view)

    def begin(self, view: SiteView, received: Memory) -> Memory:
        self._number, self._there, self._weight = view.number, received["there"], float(received["weight"])
        return {}

    def close(self, packed: Memory) -> Memory:
        change, statistics = packed["change"], packed["statistics"]
        values = torch.cat([change, statistics]).double() * (self._weight / UNIT)
        if not values.abs().max() * len(self._there) < 2.0**62:
            raise TrainingError("P301", "An update is too large for a secure sum.", "Lower the learning rate.")
        self._size = len(values)
        masked = values.round().long() + self._mask(self._number, self._there)
        return {**packed, "change": masked[: len(change)], "statistics": masked[len(change) :]}

    def _mask(self, number: int, there: Tensor) -> Tensor:
        """The sum of all masks in common with the sites that are ``there`` ``[K]``."""
        total = torch.zeros(self._size, dtype=torch.int64)
        for place in there.nonzero()[:, 0].tolist():
            if place != self._place:
                drawn = shake_256(self._common[place] + number.to_bytes(8)).digest(8 * self._size)
                mask = torch.frombuffer(bytearray(drawn), dtype=torch.int64)
                total += mask if place > self._place else -mask
        return total


class _Summing(Hiding):
    def meet(self, announced: Mapping[str, Memory], everyone: Mapping[str, float]) -> None:
        self._sites = list(everyone)
        keys = torch.stack([announced[site]["key"] for site in self._sites])
        asked = {site: {"keys": keys, "place": torch.tensor(place)} for place, site in enumerate(self._sites)}
        all_answers(self.ask("keys", asked))

    def begin(self, now: Now) -> None:
        super().begin(now)
        self._sum = torch.zeros(len(now.weights) + len(now.statistics), dtype=torch.int64)
        self._came: dict[str, float] = {}

    def send(self, site: str) -> Memory:
        weight = torch.tensor(self.now.everyone[site], dtype=torch.float64)
        return {"there": self._among(self.now.sites), "weight": weight}

    def collect(self, site: str, packed: Memory, weight: float) -> None:
        self._sum += torch.cat([packed["change"], packed["statistics"]])
        self._came[site] = weight

    def together(self) -> list[Sum]:
        if len(self._came) < 2:
            raise SiteError("P402", "A secure sum of one update would show it.", "Let more sites take part.")
        gone = self._among(site for site in self.now.sites if site not in self._came)
        if gone.any():
            for told in all_answers(self.ask("unmask", {site: {"there": gone} for site in self._came})).values():
                self._sum -= told["mask"]
        weight, size = sum(self._came.values()), len(self.now.weights)
        mean = (self._sum.double() * (UNIT / weight)).float()
        shares = {site: own / weight for site, own in self._came.items()}
        return [Sum({"change": mean[:size], "statistics": mean[size:]}, shares, weight)]

    def _among(self, sites: Iterable[str]) -> Tensor:
        chosen = set(sites)
        return torch.tensor([site in chosen for site in self._sites])
