"""A secure sum played between its two ends in one process, with sites that vanish and a server that may lie."""

from __future__ import annotations

import hashlib
import hmac
import itertools
from dataclasses import dataclass

import torch

from polyclinic.secure import ServerRound, Shape, SiteRound, Terms, fit_shape

TRAINING = bytes(range(32))
#: Phases in which a site may be gone; "never" comes last.
PHASES = ("advertise", "share", "mask", "agree", "unmask", "never")


def names(count):
    return tuple(f"Clinic {number}" for number in range(count))


def terms_of(count, *, bits=32, length=5, shape: Shape | None = None, number=1, attempt=0, least=3, training=TRAINING):
    return Terms(training, number, attempt, names(count), shape or fit_shape(count), bits, length, least)


def vectors_of(terms, seed=0):
    """Site -> whole numbers over all of the ring, away from zero."""
    generator = torch.Generator().manual_seed(seed)
    top = 2 ** (terms.bits - 1) - 1
    dtype = torch.int32 if terms.bits <= 32 else torch.int64
    draw = lambda: torch.randint(-top, top, (terms.length,), generator=generator, dtype=dtype)  # noqa: E731
    return {site: draw() for site in terms.sites}


def plain_sum(terms, vectors, sites):
    """By exact Python numbers, brought to -2^(k-1) .. 2^(k-1) - 1."""
    modulus, half = 2**terms.bits, 2 ** (terms.bits - 1)
    columns = zip(*(vectors[site].tolist() for site in sites), strict=True)
    return [(sum(column) + half) % modulus - half for column in columns]


@dataclass
class Secret:
    """A cheap identity: anybody who has the secrets could sign, but nobody here does."""

    site: str

    def sign(self, data):
        return hmac.digest(self.site.encode(), data, hashlib.sha256)

    def verify(self, site, data, signature):
        return hmac.compare_digest(hmac.digest(site.encode(), data, hashlib.sha256), signature)


class Play:
    """One round; `until` goes on to the end of a phase, and `run` to the sum.

    Args:
        terms: of the round.
        gone: site -> the phase from which on it does not answer.
        signed: whether sites have identities.
    """

    def __init__(self, terms, vectors=None, gone=None, *, signed=True):
        self.terms, self.gone = terms, gone or {}
        self.vectors = vectors or vectors_of(terms)
        self.sites = {site: SiteRound(terms, site, Secret(site) if signed else None) for site in terms.sites}
        self.server = ServerRound(terms, Secret("") if signed else None)
        self.masked, self.revealed = {}, {}
        self._done = 0

    def there(self, phase):
        return [s for s in self.terms.sites if PHASES.index(self.gone.get(s, "never")) > PHASES.index(phase)]

    def until(self, phase):
        for name in PHASES[self._done : PHASES.index(phase) + 1]:
            getattr(self, f"_{name}")()
            self._done += 1
        return self

    def run(self):
        self.until("unmask")
        return self.total

    def _advertise(self):
        self.adverts = {site: self.sites[site].advertise() for site in self.there("advertise")}
        self.keys = self.server.keys(self.adverts)

    def _share(self):
        self.shared = {site: self.sites[site].share(self.keys) for site in self.there("share") if site in self.keys}
        self.boxes = self.server.boxes(self.shared)

    def _mask(self):
        for site in self.there("mask"):
            if site in self.boxes:
                self.masked[site] = self.sites[site].mask(self.vectors[site].clone(), self.boxes[site])
                self.server.add(site, self.masked[site])
        self.survivors = self.server.survivors()

    def _agree(self):
        there = [site for site in self.there("agree") if site in self.survivors]
        self.agreed = {site: self.sites[site].agree(self.survivors) for site in there}
        self.signatures = self.server.signatures(self.agreed)

    def _unmask(self):
        there = [site for site in self.there("unmask") if site in self.signatures]
        self.revealed = {site: self.sites[site].unmask(self.signatures) for site in there}
        self.total = self.server.sum(self.revealed)


def splits(sites):
    """All ways to divide sites into two lists."""
    for choice in itertools.product((True, False), repeat=len(sites)):
        yield (
            [site for site, first in zip(sites, choice, strict=True) if first],
            [site for site, first in zip(sites, choice, strict=True) if not first],
        )
