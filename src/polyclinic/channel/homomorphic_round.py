"""A sum of encrypted numbers: what its parties know, and one round of it at a site."""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from polyclinic.channel.ckks import MOST, NOISE, NUMBERS, SLOTS, Key, check, normal
from polyclinic.channel.secure_sum import About
from polyclinic.errors import StudyError, TrainingError
from polyclinic.parts import SiteView
from polyclinic.secure.binding import digest
from polyclinic.secure.common import CommonSecret
from polyclinic.secure.keys import seal, unseal
from polyclinic.secure.masks import add_masks_
from polyclinic.shapes import MOST_NUMBERS, Misfit

#: Standard deviation of the noise that the site which decrypts a sum adds to it, in units.
FLOOD = 2.0**-28
#: A sum is told in steps of so many units; finer digits would be noise.
STEP = 2.0**-30
#: The server's view may differ so much (total variation) from one in which nothing depends on the secret key.
MOST_DISTANCE = 2.0**-30
#: A sum of more numbers is more than a message may have.
MOST_LENGTH = MOST_NUMBERS // NUMBERS * SLOTS
#: How far, relative to the largest number, a check may be off by rounding.
ROUNDING = 2.0**-42


@dataclass(frozen=True)
class Terms:
    """What all parties of a sum know in a round, and how values become numbers to encrypt.

    A site's vector is ``[x, check]`` with x = w v / (W · unit), where w is its weight and W that of all.

    Attributes:
        sites: that take part.
        total: W.
        layout: tensors -> how many numbers each has, in the vector's order.
        least: so many sites must be in a sum.
        bound: no value is larger.
        unit: what values are divided by, a power of two.
        digest: 32 bytes that stand for all of it, the round and its attempt.
    """

    sites: tuple[str, ...]
    total: float
    layout: Mapping[str, int]
    least: int
    bound: float
    unit: float
    digest: bytes

    @classmethod
    def fit(cls, about: About, number: int, layout: Mapping[str, int], bound: float, least: int) -> Terms:
        """For values up to a bound.

        Raises:
            StudyError: P102, they can't be added with the precision and security that is promised.
        """
        unit = min(1.0, 2.0 ** math.ceil(math.log2(bound)))
        if bound / unit > MOST / 2:
            raise StudyError(
                "P102", f"A homomorphic sum was asked for of values up to {bound:g}; it has room for {MOST / 2:g} with "
                "two primes of 60 bits and steps of 2^-92.", "Give `clip` a lower `norm`.",
            )  # fmt: skip
        length, count = sum(layout.values()) + 1, len(about.sites)
        if length > MOST_LENGTH:
            raise StudyError(
                "P102", f"A homomorphic sum was asked for of {length - 1} numbers; a message has room for "
                f"{MOST_LENGTH - 1}, which become {MOST_NUMBERS} encrypted.",
                "Use `secure_sum`, or share fewer weights.",
            )  # fmt: skip
        if (told := distance(length, count)) > MOST_DISTANCE:
            raise StudyError(
                "P102", f"A homomorphic sum of {count} sites' {length} numbers would tell of the secret key: what the "
                f"server sees differs by 2^{math.log2(told):.1f}, and 2^{math.log2(MOST_DISTANCE):.0f} is allowed.",
                "Use `secure_sum`, or choose fewer sites in a round (`participation`).",
            )  # fmt: skip
        same = about.most.hex(), about.total.hex(), about.alike
        known = digest("homomorphic sum", about.training, number, about.attempt, least, length, *same, *about.sites)
        return cls(about.sites, about.total, layout, least, bound, unit, known)

    @property
    def length(self) -> int:
        """Of a site's vector."""
        return sum(self.layout.values()) + 1

    @property
    def needed(self) -> int:
        """So many sites must agree on who is in a sum: no two lists have so many."""
        return max(self.least, len(self.sites) // 2 + 1)


def distance(length: int, sites: int) -> float:
    """How far what the server sees can be from what it would see of the mean with noise alone (total variation).

    Each site's ciphertexts bring noise of their own (standard deviation `NOISE` in each number), which depends on the
    key, and is hidden by the noise that is added (`FLOOD`). Their Kullback-Leibler divergence is half the squared
    length of the one in standard deviations of the other, for each site that decrypts; then by Pinsker's inequality.
    """
    return math.sqrt(sites * length * sites * (NOISE / FLOOD) ** 2 / 2 / 2)


class Round:
    """One round at one site: `advertise`, `deal` or `open`, `encrypt`, `agree`, `decrypt`, each once.

    Args:
        terms: of the round.
        weight: of this site.
        number: rounds done before.
        view: the site.

    Raises:
        Misfit: the terms are not for this site. So does whatever else is refused, in all that follows; or UnfitError.
    """

    def __init__(self, terms: Terms, weight: float, number: int, view: SiteView) -> None:
        if len(set(terms.sites)) < len(terms.sites) or view.name not in terms.sites:
            raise Misfit("terms: got a list of sites without this one, or with one twice")
        self.terms, self.site, self.number = terms, view.name, number
        self._share = weight / terms.total
        self._secret = CommonSecret(terms.digest, terms.sites, view.name, view.identity)
        self._key: Key | None = None
        self._survivors: list[str] | None = None
        self._encrypted = False

    @property
    def ready(self) -> bool:
        """Whether it has the key."""
        return self._key is not None

    def advertise(self) -> dict[str, bytes]:
        """The key to which this site's copy of the secret is sealed."""
        return self._secret.advertise()

    def deal(self, adverts: object) -> tuple[dict[str, bytes], bytes]:
        """A new key: what opens it, sealed for each other site, and the key, sealed with that."""
        boxes = self._secret.deal(adverts)
        if 1 + len(boxes) < self.terms.needed:
            raise Misfit(f"keys of {1 + len(boxes)} sites are there, {self.terms.needed} are needed")
        self._key = Key.new()
        return boxes, seal(self._secret.key("CKKS"), self._key.text, b"")

    def open(self, box: Mapping[str, object], sealed: bytes) -> None:
        """The key that another site made."""
        self._secret.open(box.get("dealer"), box.get("advert"), box.get("box"))
        self._key = Key.read(unseal(self._secret.key("CKKS"), sealed, b""))

    def encrypt(self, values: Tensor) -> Tensor:
        """Values ``[T]`` in whole numbers of ciphertexts."""
        if self._key is None or self._encrypted:
            raise Misfit("it has no key of the sites for this round")
        terms = self.terms
        inside = int((values.abs() <= terms.bound).sum())
        if inside < len(values):
            infinite = len(values) - int(values.isfinite().sum())
            raise TrainingError(
                "P301", f"Of {len(values)} values for a homomorphic sum {infinite} are not finite and "
                f"{len(values) - inside - infinite} are beyond the bound of {terms.bound:g}.",
                "Clip them, or lower the learning rate.",
            )  # fmt: skip
        self._encrypted = True
        vector = torch.empty(terms.length, dtype=torch.float64)
        vector[:-1] = values.double() * (self._share / terms.unit)
        vector[-1] = self._checked(vector[:-1]) + self._own(self.site)
        return self._key.encrypt(vector)

    def agree(self, survivors: object) -> bytes:
        """Agrees to one list of those in the sum, for good."""
        if self._survivors is not None or not self._encrypted:
            raise Misfit("it can't agree twice, or to a sum without its update")
        named = survivors if isinstance(survivors, list) else []
        if named != [site for site in self.terms.sites if site in named] or self.site not in named:
            raise Misfit("the list of those in the sum is without this site, or has others than take part")
        if len(named) < self.terms.least:
            raise Misfit(f"{len(named)} sites are in the sum, {self.terms.least} are needed")
        self._survivors = named
        return self._agreement(self.site)

    def decrypt(self, agreements: object, encrypted: Tensor | None) -> Tensor:
        """Σ w v / W ``[T]`` of those in the sum, with noise."""
        terms, survivors = self.terms, self._survivors
        if survivors is None or self._key is None or not isinstance(agreements, Mapping) or encrypted is None:
            raise Misfit("it agreed to no list of those in the sum")
        agreed = sum(secrets.compare_digest(self._agreement(site), _bytes(agreements.get(site))) for site in survivors)
        if agreed < terms.needed:
            raise Misfit(f"{agreed} sites agreed to the list of those in the sum, {terms.needed} are needed")
        found = self._key.decrypt(check(encrypted, terms.length), terms.length)
        expected = self._checked(found[:-1]) + sum(map(self._own, survivors))
        largest = max(float(found.abs().max()), len(survivors))
        if not abs(float(found[-1]) - expected) <= ROUNDING * largest:  # also if it is no number
            raise Misfit(f"what it was to decrypt is not the sum of what {len(survivors)} sites sent")
        told = found[:-1].add_(normal(len(found) - 1, secrets.token_bytes(32)), alpha=FLOOD)
        return told.div_(STEP).round_().mul_(STEP * terms.unit)

    def _agreement(self, site: str) -> bytes:
        return self._secret.key("in the sum", site, *(self._survivors or []))

    def _checked(self, numbers: Tensor) -> float:
        """Σ r x / √L, with secret r between -1 and 1 that all sites know."""
        drawn = add_masks_(torch.zeros(len(numbers), dtype=torch.int32), [(self._secret.key("weights"), 1)])
        chunks = zip(drawn.split(1 << 16), numbers.split(1 << 16), strict=True)
        total = math.fsum(float(weights.double() @ chunk) for weights, chunk in chunks)
        return total * 2.0**-31 / math.sqrt(len(numbers))

    def _own(self, site: str) -> float:
        """A secret number between -1 and 1 that all sites know."""
        return int.from_bytes(self._secret.key("own", site)[:8], "little", signed=True) * 2.0**-63


def _bytes(found: object) -> bytes:
    return found if isinstance(found, bytes) else b""
