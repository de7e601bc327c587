"""A step of the channel after which the server sees the sum of the sites' updates alone."""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from polyclinic.channel.distributed_noise import DistributedNoise, Share
from polyclinic.channel.groups import check_same_sum, divided, note_sum, number_of_groups
from polyclinic.channel.said import read_said, said
from polyclinic.errors import PolyclinicError, SiteError
from polyclinic.parts import CHANNEL_PARTS, Hiding, Memory, Now, Part, ServerEnd, SiteEnd, SiteView, Sum
from polyclinic.secure import Ring, ServerRound, SiteRound, Terms, fit_shape
from polyclinic.secure.binding import digest
from polyclinic.secure.graph import COMPLETE_UP_TO
from polyclinic.shapes import Misfit, Shaped

#: No number of an update is larger, where no part before promises less: 2^24.
BOUND = 2.0**24
#: Why a site sends nothing where `Part.alike` is not what it agreed to with the others.
OTHERWISE = "it was told something else than what all sites agreed on"


@CHANNEL_PARTS.add("secure_sum")
class SecureSum(Part):
    """Sites add masks to their updates that cancel in the sum: the server learns the mean of all, and of no site more.

    Keys are new in every round. Each two sites agree on one (X25519, HKDF) from which the masks that they have in
    common come (AES-256 in counter mode), and each has a mask of its own, too. Shares of both secrets lie sealed at the
    others (Shamir), so that the sum is known also where sites drop out, in any phase; of a site they reveal one or the
    other, never both, and only for one list of survivors that all agree to. Updates become whole numbers modulo 2^k:
    with 32 bits where all that is sent is the change, shortened by `clip` (or `adaptive_clip`) directly before, else
    with 64. A sum of fewer than ``least`` sites is refused. With many sites each has masks in common with some only.

    What parts send with an update is summed with it, if a mean is all that they need of it. After `distributed_noise`
    each site adds its share of the noise to its whole numbers, before the masks.

    It does not protect from what the sum itself says, nor against a server together with all sites but one. Between
    hospitals keys are signed with the sites' certificates; on one computer, where sites have none, nothing is signed.

    Source: Bonawitz et al., Practical secure aggregation for privacy-preserving machine learning, CCS 2017; for more
    than 30 sites: Bell et al., Secure single-server aggregation with (poly)logarithmic overhead, CCS 2020; groups:
    Velicheti et al., Secure Byzantine-robust machine learning, 2021.

    Args:
        least: so many sites must be in a sum. With two, each knows the other's update.
        threshold: so many must be left of up to 30 sites; default: more than two thirds of them.
        dropout: share of more than 30 sites that may drop out.
        corrupt: share of more than 30 sites that may be in league with the server.
        group_size: sites are divided by lot into groups of at least so many, and the server sees a mean of each, so
            that a server rule which compares updates has some to compare; default: one group.
    """

    encodes: ClassVar = True
    requires: ClassVar = ("cryptography", "secure")
    reveals: ClassVar = {
        "terms": "which sites take part in a sum, and the site's own weight",
        "advert": "public keys of the round, signed by the site",
        "keys": "all sites' public keys",
        "shares": "shares of the site's secrets, each sealed for another site",
        "boxes": "other sites' shares, sealed for this site",
        "survivors": "which sites are in the sum",
        "signature": "that the site agrees to the list of those in the sum",
        "signatures": "that the others do",
        "revealed": "shares of the masks that are left in the sum: nothing of a single update",
    }

    def __init__(
        self, *, least: Annotated[int, Field(ge=2)] = 3, threshold: Annotated[int, Field(ge=2)] | None = None,
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.2, corrupt: Annotated[float, Field(ge=0, lt=1)] = 0.1,
        group_size: Annotated[int, Field(ge=2)] | None = None,
    ) -> None:  # fmt: skip
        self.least, self.threshold, self.dropout, self.corrupt = least, threshold, dropout, corrupt
        self.group_size = None if group_size is None else max(group_size, least)

    def at_site(self) -> SiteEnd:
        """Masks."""
        return _Masking(self)

    def at_server(self) -> ServerEnd:
        """Sums."""
        return _Summing(self)

    def leaves(self, before: Mapping[str, Shaped], sizes: Mapping[str, int]) -> Mapping[str, Shaped]:
        """One vector of whole numbers, in which everything is."""
        kind = "int32" if self._bits(before, sizes) == 32 else "int64"
        return {"change": Shaped(kind, sum(layout_of(before, sizes).values()) + 1)}

    @property
    def noisy(self) -> DistributedNoise | None:
        """The part whose noise sites add, if there is one."""
        return self.before if isinstance(self.before, DistributedNoise) else None

    def _bits(self, given: Mapping[str, Shaped], sizes: Mapping[str, int]) -> int:
        if self.noisy is not None:
            return self.noisy.bits
        others = [given[name] for name, count in layout_of(given, sizes).items() if count and name != "change"]
        return 32 if self.norm is not None and all(_largest(one) < math.inf for one in others) else 64

    def ring(self, about: About) -> Ring:
        """How values become whole numbers in a round; at a site once it knows how long changes may be."""
        bits = self._bits(self.given, self.sizes)
        bound = BOUND if bits == 64 or self.norm is None else self.norm
        return Ring.fit(bound, len(about.sites), most_weight=about.most, total_weight=about.total, bits=bits)

    def scale_(self, numbers: Tensor, *, back: bool = False) -> Tensor:
        """With 32 bits, what is sent beside the change is made as large as the change may be, in place; or ``back``."""
        if self.norm is not None and self.noisy is None and self._bits(self.given, self.sizes) == 32:
            for name, piece in zip(self.layout, numbers.split(list(self.layout.values())), strict=True):
                if name != "change" and len(piece):
                    factor = self.norm / _largest(self.given[name])
                    piece.mul_(1 / factor if back else factor)
        return numbers

    @property
    def layout(self) -> dict[str, int]:
        """Tensors of an update -> how many numbers, in the order in which the vector has them."""
        return layout_of(self.given, self.sizes)

    def agreed(self, about: About, number: int) -> tuple[Terms, Ring, Share | None]:
        """What all parties of a sum know in a round, how values become whole numbers, and a site's share of the noise.

        Raises:
            SiteError: P402, too few sites take part.
            StudyError: P102, it can't be.
        """
        count, layout = len(about.sites), self.layout
        if count < self.least:
            raise SiteError(
                "P402", f"A secure sum of {count} sites was asked for, and {self.least} are needed: of a sum of two, "
                "each of the two knows the other's update, since it takes its own off.",
                "Let more sites take part. Two sites that trust each other can allow it: `secure_sum: {least: 2}`.",
            )  # fmt: skip
        threshold = None if self.threshold is None or count > COMPLETE_UP_TO else min(self.threshold, count)
        shape = fit_shape(count, threshold=threshold, dropout=self.dropout, corrupt=self.corrupt)
        length = sum(layout.values()) + 1
        if self.noisy is None:
            ring, share = self.ring(about), None
        else:
            left = max(self.least, shape.agreement)
            ring, share = self.noisy.agreed(length - 1, count, left, most_weight=about.most, total_weight=about.total)
        # Sites that are told different things find different keys, so none can be made to outweigh all others.
        training = digest("weights", about.training, repr(about.most), repr(about.total), about.alike)
        terms = Terms(
            training, number + 1, about.attempt, about.sites, shape, ring.bits, length, self.least
        )  # fmt: skip
        return terms, ring, share


def layout_of(given: Mapping[str, Shaped], sizes: Mapping[str, int]) -> dict[str, int]:
    """How many numbers each tensor of an update has that is always there."""
    there = {name: shaped for name, shaped in given.items() if not shaped.group}
    return {
        name: math.prod(one if isinstance(one, int) else sizes[one] for one in there[name].shape or ())
        for name in sorted(there)
    }


def alike(part: Part) -> str:
    """What the parts before a sum say that all sites must have been told alike."""
    before, found = part.before, list[str]()
    while before is not None:
        found += [f"{before.name} {before.alike}"] if before.alike else []
        before = before.before
    return " ".join(found)


@dataclass(frozen=True)
class About:
    """What the server tells the sites of a sum in a round.

    Attributes:
        training: 32 bytes, of the training.
        attempt: how often the server began a round before.
        sites: that take part.
        most, total: the largest weight of a site, and the sum of all.
        weight: of the site that is told.
        alike: what parts before told all sites alike.
    """

    training: bytes
    attempt: int
    sites: tuple[str, ...]
    most: float
    total: float
    weight: float
    alike: str = ""

    @classmethod
    def of(cls, part: Part, training: bytes, attempt: int, now: Now, sites: tuple[str, ...]) -> About:
        """Of a group of sites in a round; the weight is none's."""
        weights = [now.everyone[site] for site in sites]
        return cls(training, attempt, sites, max(weights), sum(weights), 1.0, alike(part))

    def told(self) -> Tensor:
        """As a tensor."""
        return said(asdict(self))

    @classmethod
    def read(cls, told: Tensor | None) -> About:
        """From a tensor.

        Raises:
            Misfit: it is something else.
        """
        found = read_said(told, "terms")
        try:
            about = cls(**{**found, "sites": tuple(found["sites"])})
            numbers = [about.most, about.total, about.weight]
            fits = (
                isinstance(about.training, bytes) and isinstance(about.alike, str)
                and type(about.attempt) is int and about.attempt >= 0
                and all(isinstance(site, str) for site in about.sites) and all(type(one) is float for one in numbers)
                and all(0 < one < math.inf for one in numbers)
            )  # fmt: skip
        except (TypeError, KeyError):
            fits = False
        if not fits:
            raise Misfit("terms: got something else than those of a secure sum")
        return about


class _Masking(SiteEnd):
    """One site's end: a `SiteRound` for each round."""

    def __init__(self, part: SecureSum) -> None:
        self.part = part
        if part.noisy is not None:
            part.noisy.added = True
        self._round: SiteRound | None = None

    def answer(self, verb: str, asked: Memory, view: SiteView) -> Memory:
        """Its part in the phases of a round but for the update itself."""
        try:
            return self._answered(verb, asked, view)
        except Misfit as misfit:
            self._round = None
            raise self._refused(view.name, str(misfit)) from None

    def _answered(self, verb: str, asked: Memory, view: SiteView) -> Memory:
        if verb == "advertise":
            self._begin(About.read(asked.get("terms")), view)
        if self._round is None:
            raise Misfit("no sum was begun in this round")
        if verb == "advertise":
            return {"advert": said(self._round.advertise())}
        if verb == "share":
            return {"shares": said(self._round.share(read_said(asked.get("keys"), "keys")))}
        if verb == "agree":
            self._survivors = read_said(asked.get("survivors"), "survivors")
            if not isinstance(self._survivors, list) or not all(isinstance(one, str) for one in self._survivors):
                raise Misfit("survivors: got no list of names")
            check_same_sum(view, self.name, self._number, self._survivors)
            return {"signature": said(self._round.agree(self._survivors))}
        if verb == "unmask":
            revealed = self._round.unmask(read_said(asked.get("signatures"), "signatures"))
            note_sum(view, self.name, self._number, self._survivors)
            return {"revealed": said(revealed)}
        return super().answer(verb, asked, view)

    def _begin(self, about: About, view: SiteView) -> None:
        own = 1.0 if about.most == 1 else float(view.count() or view.count("unlabelled"))
        if about.weight != own:  # with all weight on one site the sum would be its update
            raise Misfit(f"terms: got a weight of {about.weight:g}, expected {own:g}, the site's own")
        terms, self._ring, self._share = self.part.agreed(about, view.number)
        if view.name not in terms.index:
            raise Misfit("terms: got a list of sites without this one")
        self._round, self._number, self._weight = SiteRound(terms, view.name, view.identity), view.number, about.weight
        self._about = about

    def begin(self, view: SiteView, received: Memory) -> Memory:
        """The other sites' shares. Without them nothing leaves the site."""
        self._site, ready = view.name, self._round is not None and self._number == view.number
        if not ready or "boxes" not in received:
            raise self._refused(view.name, "it took no part in finding masks")
        try:
            self._boxes = read_said(received["boxes"], "boxes")
        except Misfit as misfit:
            raise self._refused(view.name, str(misfit)) from None
        return {}

    def close(self, packed: Memory) -> Memory:
        """All that leaves the site, as whole numbers with masks."""
        if self._round is None:
            raise self._refused(self._site, "it took no part in finding masks")
        if self._about.alike != alike(self.part):
            raise self._refused(self._site, OTHERWISE)
        layout = self.part.layout
        if packed.keys() != layout.keys():
            raise ValueError(f"got {sorted(packed)} to add up, expected {sorted(layout)}")
        numbers = self.part.scale_(torch.cat([packed[name].double().flatten() for name in layout]))
        ring = self._ring if self.part.noisy is not None else self.part.ring(self._about)  # of this round's length
        vector = ring.encode(numbers, self._weight)
        if self._share is not None and self.part.noisy is not None:
            self.part.noisy.add_(vector[:-1], self._share)
        return {"change": self._round.mask(vector, self._boxes)}

    def _refused(self, site: str, why: str) -> SiteError:
        return SiteError(
            "P404", f"Site {site} sends nothing into the secure sum of this round: {why}.",
            "If other sites took part, the next round is begun with new keys.", site=site,
        )  # fmt: skip


class _Summing(Hiding):
    """The server's end: a `ServerRound` for each group of sites in a round."""

    adds_all = True

    def __init__(self, part: SecureSum) -> None:
        self.part, self.least, self.groups = part, part.least, part.group_size is not None
        self._training, self._attempts = secrets.token_bytes(32), 0

    def sums(self, sites: int) -> int:
        """One of each group."""
        return number_of_groups(sites, self.part.group_size)

    def begin(self, now: Now) -> None:
        """Let the sites find masks."""
        super().begin(now)
        if self.part.noisy is not None:
            self.part.noisy.settle(now.rounds, now.budget)
        self._rounds = [
            _Group(self.part, name, About.of(self.part, self._training, self._attempts, now, sites), now)
            for name, sites in divided(now, self.name, self.part.group_size)
        ]
        self._attempts += 1
        self._home = {site: group for group in self._rounds for site in group.sites}
        for verb in ("advertise", "share"):
            asked = {site: found for group in self._rounds for site, found in group.asks(verb).items()}
            answers = dict(self.ask(verb, asked))
            for group in self._rounds:
                group.answered(verb, {site: found for site, found in answers.items() if site in group.sites})

    def send(self, site: str) -> Memory:
        """Other sites' shares for this one; none for one that gave no keys, which then sends nothing."""
        boxes = self._home[site].boxes.get(site)
        return {} if boxes is None else {"boxes": said(boxes)}

    def collect(self, site: str, packed: Memory, weight: float) -> None:
        """Add."""
        self._home[site].add(site, packed["change"], weight)

    def together(self) -> Sequence[Sum]:
        """Let the sites agree on who is in the sum, and take the masks off."""
        there = [group for group in self._rounds if group.weights]
        for verb in ("agree", "unmask"):
            asked = {site: found for group in there for site, found in group.asks(verb).items()}
            answers = dict(self.ask(verb, asked))
            for group in there:
                group.answered(verb, {site: found for site, found in answers.items() if site in group.sites})
        return [group.sum() for group in there]


class _Group:
    """Sites with a sum of their own in a round."""

    def __init__(self, part: SecureSum, name: str, about: About, now: Now) -> None:
        self.part, self.name, self.about, self.sites, self._now = part, name, about, about.sites, now
        terms, self._ring, _ = part.agreed(about, now.number)
        self._server = ServerRound(terms, now.verifier)
        self.boxes: dict[str, dict[str, bytes]] = {}
        self.weights: dict[str, float] = {}

    def asks(self, verb: str) -> dict[str, Memory]:
        """Site -> what it is asked."""
        if verb == "advertise":
            weights = self._now.everyone
            return {site: {"terms": replace(self.about, weight=weights[site]).told()} for site in self.sites}
        if verb == "share":
            told = said(self._keys)
            return {site: {"keys": told} for site in self._keys}
        if verb == "agree":
            self._survivors = self._server.survivors()
            told = said(self._survivors)
            return {site: {"survivors": told} for site in self._survivors}
        told = said(self._signatures)
        return {site: {"signatures": told} for site in self._signatures}

    def answered(self, verb: str, answers: Mapping[str, Memory | PolyclinicError]) -> None:
        """Take the answers; a site whose answer is none, or can't be read, has dropped out."""
        names = {"advertise": "advert", "share": "shares", "agree": "signature", "unmask": "revealed"}
        found = dict[str, object]()
        for site, answer in answers.items():
            if isinstance(answer, PolyclinicError):
                self._server.failed[site] = answer.message
            else:
                with suppress(Misfit):
                    found[site] = read_said(answer.get(names[verb]), names[verb])
        if verb == "advertise":
            self._keys = self._server.keys(found)
        elif verb == "share":
            self.boxes = self._server.boxes(found)
        elif verb == "agree":
            self._signatures = self._server.signatures(found)
        else:
            self._total = self._server.sum(found)

    def add(self, site: str, masked: Tensor, weight: float) -> None:
        """Add what a site sent.

        Raises:
            Misfit: it does not fit.
        """
        self._server.add(site, masked)
        if site in self._server.failed:
            raise Misfit(self._server.failed[site].removesuffix("."))
        self.weights[site] = weight

    def sum(self) -> Sum:
        """The mean of all that were added."""
        total, weight = self._ring.decode(self._total), sum(self.weights.values())
        packed = unpacked(self.part, self.part.scale_(total.mean, back=True))
        return Sum(packed, {site: own / weight for site, own in self.weights.items()}, total.weight, self.name)


def _largest(shaped: Shaped) -> float:
    """The largest size that a number of a tensor may have, as far as it is known."""
    return math.inf if shaped.least is None or shaped.most is None else max(-shaped.least, shaped.most)


def unpacked(part: Part, numbers: Tensor) -> Memory:
    """The tensors of an update that a part was given to close, from all their numbers in the order of `layout_of`."""
    layout, found = layout_of(part.given, part.sizes), Memory()
    for name, piece in zip(layout, numbers.split(list(layout.values())), strict=True):
        kind, shape = next(iter(part.given[name].types)), part.given[name].shape or ()
        found[name] = piece.to(kind).reshape([one if isinstance(one, int) else part.sizes[one] for one in shape])
    return found
