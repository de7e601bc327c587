"""A step of the channel after which the server adds what it can't read: sums of encrypted updates."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from polyclinic.channel.ckks import NUMBERS, add_, check, ciphertexts
from polyclinic.channel.groups import check_same_sum, divided, note_sum, number_of_groups
from polyclinic.channel.homomorphic_round import Round, Terms
from polyclinic.channel.said import read_said, said
from polyclinic.channel.secure_sum import BOUND, OTHERWISE, About, alike, layout_of, unpacked
from polyclinic.errors import PolyclinicError, SiteError
from polyclinic.parts import CHANNEL_PARTS, Hiding, Memory, Now, Part, ServerEnd, SiteEnd, SiteView, Sum
from polyclinic.secure.binding import UnfitError
from polyclinic.shapes import Misfit, Shaped

#: Of the weight of all sites so much must be in a sum: the mean's noise is that of the sum divided by this share.
LEAST_SHARE = 2.0**-5


@CHANNEL_PARTS.add("homomorphic_sum")
class HomomorphicSum(Part):
    """Sites encrypt their updates, the server adds them encrypted, and one of the sites decrypts the sum: CKKS.

    In each round the first site, of each group if there are several, makes a key and seals it for each other site
    (X25519, ChaCha20-Poly1305); the server passes it on and never has it. Sites encrypt w v / W, where W is the weight
    of all, so that the server knows the mean also of those that are left. More than half of all sites, and ``least``,
    must agree to one list of those in the sum. A site agrees to one list in a round, also where the round is begun
    anew, and decrypts one sum, of that list. Each update has a secret number with it that fits no other sum than that
    of just these sites' whole updates, so a server can't have anything else decrypted.

    The sum goes to the server, and in CKKS the numbers that come out of decryption tell the secret key. So noise of
    2^-28 is added first, and digits finer than 2^-30 are cut off: what the server sees then differs by less than 2^-30
    (total variation, in exact arithmetic) from the sum with noise that has nothing to do with the key. Both are in
    units of 1, or of the length to which `clip` shortens changes directly before, where that is less and all that is
    sent. The mean is right to 2^-25 units (3e-8) if all sites are in it, and to 2^-20 (1e-6) with 1/32 of their weight.

    The degree is 8192 and there are three primes of 60 bits: 128 bits of security. An update becomes 16 times as large
    as in 32-bit numbers.

    Every site has the secret key, so a server together with a single site can read all updates; `secure_sum` protects
    from a server together with all sites but one. Nobody checks what the one site says that the sum is. Between
    hospitals keys are signed with the sites' certificates. On one computer, where sites have none, nothing is signed:
    that protects from a server that reads along, and not from one that puts keys of its own in the place of the sites'.

    Source: Cheon et al., Homomorphic encryption for arithmetic of approximate numbers, ASIACRYPT 2017. What decrypted
    numbers tell: Li and Micciancio, On the security of homomorphic encryption on approximate numbers, EUROCRYPT 2021.
    Noise against it: Li et al., Securing approximate homomorphic encryption using differential privacy, CRYPTO 2022.
    The check: Agrawal and Boneh, Homomorphic MACs, ACNS 2009.

    Args:
        least: so many sites must be in a sum. With two, each knows the other's update.
        group_size: sites are divided by lot into groups of at least so many, and the server sees a mean of each, so
            that a server rule which compares updates has some to compare; default: one group.
    """

    encodes: ClassVar = True
    requires: ClassVar = ("tenseal", "homomorphic")
    reveals: ClassVar = {
        "terms": "which sites take part in a sum, and the site's own weight",
        "advert": "a public key of the round, signed by the site",
        "adverts": "all sites' public keys",
        "boxes": "a secret of the round, sealed for each of the other sites",
        "box": "a secret of the round, sealed for this site",
        "key": "the key to encrypt and decrypt with, sealed for the sites",
        "survivors": "which sites are in the sum",
        "agreed": "that the site agrees to the list of those in the sum",
        "agreements": "that the others do",
        "sum": "the sum of all updates, encrypted",
        "total": "the sum of all updates in it by their weights, with a little noise",
    }

    def __init__(
        self, *, least: Annotated[int, Field(ge=2)] = 3, group_size: Annotated[int, Field(ge=2)] | None = None
    ) -> None:  # fmt: skip
        self.least, self.group_size = least, None if group_size is None else max(group_size, least)

    def at_site(self) -> SiteEnd:
        """Encrypts, and decrypts sums."""
        return _Encrypting(self)

    def at_server(self) -> ServerEnd:
        """Adds."""
        return _Adding(self)

    def leaves(self, before: Mapping[str, Shaped], sizes: Mapping[str, int]) -> Mapping[str, Shaped]:
        """The whole numbers of all ciphertexts, in which everything is."""
        length = sum(layout_of(before, sizes).values()) + 1
        return {"change": Shaped("int64", NUMBERS * ciphertexts(length), least=0)}

    @property
    def layout(self) -> dict[str, int]:
        """Tensors of an update -> how many numbers, in the order in which the vector has them."""
        return layout_of(self.given, self.sizes)

    def agreed(self, about: About, number: int) -> Terms:
        """What all parties of a sum know in a round.

        Raises:
            SiteError: P402, too few sites take part.
            StudyError: P102, numbers are too large, or there are too many.
        """
        count, layout = len(about.sites), self.layout
        if count < self.least:
            raise SiteError(
                "P402", f"A homomorphic sum of {count} sites was asked for, and {self.least} are needed: of a sum of "
                "two, each of the two knows the other's update, since it takes its own off.",
                "Let more sites take part. Two that trust each other can allow it: `homomorphic_sum: {least: 2}`.",
            )  # fmt: skip
        alone = not any(size for name, size in layout.items() if name != "change")
        bound = self.norm if alone and self.norm is not None else BOUND
        return Terms.fit(about, number, layout, bound, self.least)


class _Encrypting(SiteEnd):
    """One site's end: a `Round` for each round."""

    def __init__(self, part: HomomorphicSum) -> None:
        self.part = part
        self._round: Round | None = None

    def answer(self, verb: str, asked: Memory, view: SiteView) -> Memory:
        """Its part in a round but for the update itself."""
        try:
            return self._answered(verb, asked, view)
        except (Misfit, UnfitError) as unfit:
            self._round = None
            raise self._refused(view.name, str(unfit)) from None

    def _answered(self, verb: str, asked: Memory, view: SiteView) -> Memory:
        if verb == "advertise":
            self._round = self._begun(About.read(asked.get("terms")), view)
            return {"advert": said(self._round.advertise())}
        if verb not in ("deal", "agree", "decrypt"):
            return super().answer(verb, asked, view)
        if self._round is None:
            raise Misfit("no sum was begun in this round")
        if verb == "deal":
            boxes, key = self._round.deal(read_said(asked.get("adverts"), "adverts"))
            return {"boxes": said(boxes), "key": torch.frombuffer(bytearray(key), dtype=torch.uint8)}
        if verb == "agree":
            survivors = read_said(asked.get("survivors"), "survivors")
            agreed = self._round.agree(survivors)
            check_same_sum(view, self.name, view.number, survivors)
            note_sum(view, self.name, view.number, survivors)  # now, since any of those who agree may decrypt
            return {"agreed": said(agreed)}
        playing, self._round = self._round, None  # whatever comes, it decrypts once
        return {"total": playing.decrypt(read_said(asked.get("agreements"), "agreements"), asked.get("sum"))}

    def _begun(self, about: About, view: SiteView) -> Round:
        own = (
            1.0 if about.most == 1 else float(view.count() or view.count("unlabelled"))
        )  # else most weight could be put on one site's update
        if about.weight != own or not own <= about.most <= about.total:
            raise Misfit(f"terms: got a weight of {about.weight:g} of {about.total:g} in all, at most {about.most:g} "
                         f"each; expected {own:g} for this site")  # fmt: skip
        self._alike = about.alike
        return Round(self.part.agreed(about, view.number), about.weight, view.number, view)

    def begin(self, view: SiteView, received: Memory) -> Memory:
        """The key. Without it nothing leaves the site."""
        self._site = view.name
        if self._round is None or self._round.number != view.number:
            raise self._refused(view.name, "it took no part in finding a key")
        if "box" in received and "key" in received:
            try:
                box, key = read_said(received["box"], "box"), received["key"]
                if not isinstance(box, dict) or key.dtype is not torch.uint8 or key.dim() != 1:
                    raise Misfit("box: got something else than a sealed key")
                self._round.open(box, key.numpy().tobytes())
            except (Misfit, UnfitError) as unfit:
                self._round = None
                raise self._refused(view.name, str(unfit)) from None
        if not self._round.ready:
            raise self._refused(view.name, "it was given no key of the sites")
        return {}

    def close(self, packed: Memory) -> Memory:
        """All that leaves the site, encrypted."""
        layout = self.part.layout
        if packed.keys() != layout.keys():
            raise ValueError(f"got {sorted(packed)} to add up, expected {sorted(layout)}")
        try:
            if self._round is None:
                raise Misfit("it took no part in finding a key")
            if self._alike != alike(self.part):
                raise Misfit(OTHERWISE)
            return {"change": self._round.encrypt(torch.cat([packed[name].double().flatten() for name in layout]))}
        except Misfit as misfit:
            raise self._refused(self._site, str(misfit)) from None

    def _refused(self, site: str, why: str) -> SiteError:
        return SiteError(
            "P404", f"Site {site} takes no part in the homomorphic sum of this round: {why.removesuffix('.')}.",
            "If other sites took part, the next round is begun with a new key.", site=site,
        )  # fmt: skip


class _Adding(Hiding):
    """The server's end: it passes keys on that it can't open, and adds."""

    adds_all = True

    def __init__(self, part: HomomorphicSum) -> None:
        self.part, self.least, self.groups = part, part.least, part.group_size is not None
        self._training, self._attempts = secrets.token_bytes(32), 0

    def sums(self, sites: int) -> int:
        """One of each group."""
        return number_of_groups(sites, self.part.group_size)

    def begin(self, now: Now) -> None:
        """Let a site of each group make a key for all of it."""
        super().begin(now)
        self._rounds = [
            _Group(self.part, name, About.of(self.part, self._training, self._attempts, now, sites), now)
            for name, sites in divided(now, self.name, self.part.group_size)
        ]
        self._attempts += 1
        self._home = {site: group for group in self._rounds for site in group.terms.sites}
        for group, answers in self._asked("advertise", {group: group.terms_for() for group in self._rounds}):
            group.advertised(answers)
        self._in_turn("deal", self._rounds)

    def send(self, site: str) -> Memory:
        """What opens the key; nothing for one that told no public key, which then sends nothing."""
        return self._home[site].sealed(site)

    def collect(self, site: str, packed: Memory, weight: float) -> None:
        """Add."""
        self._home[site].add(site, packed["change"])

    def together(self) -> Sequence[Sum]:
        """Let the sites of each group agree on who is in its sum, and one of them decrypt it."""
        there = [group for group in self._rounds if group.survivors]
        for group, answers in self._asked("agree", {group: group.lists() for group in there}):
            group.agreed(answers)
        self._in_turn("decrypt", there)
        return [group.mean for group in there]

    def _asked(self, verb: str, asked: Mapping[_Group, Mapping[str, Memory]]) -> Iterator[tuple[_Group, Answers]]:
        """Ask sites of all groups at once; what those of each group answered."""
        answers = dict(self.ask(verb, {site: found for own in asked.values() for site, found in own.items()}))
        for group, own in asked.items():
            yield group, {site: answers[site] for site in own if site in answers}

    def _in_turn(self, verb: str, groups: Sequence[_Group]) -> None:
        """Ask one site of each group after another, until one has done it."""
        waiting = {group: group.asks(verb) for group in groups}
        while waiting:
            asked = {group: {site: message} for group, (site, message) in ((g, next(w)) for g, w in waiting.items())}
            for group, answers in self._asked(verb, asked):
                if group.answered(verb, answers):
                    del waiting[group]


class _Group:
    """Sites with a sum of their own in a round."""

    def __init__(self, part: HomomorphicSum, name: str, about: About, now: Now) -> None:
        self.part, self.name, self.about, self.now = part, name, about, now
        self.terms = part.agreed(about, now.number)
        self._total = torch.zeros(0)
        self._added = set[str]()
        self._boxes = dict[str, object]()
        self._failed = dict[str, None]()

    def terms_for(self) -> dict[str, Memory]:
        """Site -> the terms of the round."""
        weights = self.now.everyone
        return {site: {"terms": replace(self.about, weight=weights[site]).told()} for site in self.terms.sites}

    def advertised(self, answers: Answers) -> None:
        """Take the sites' public keys; a site that told none has dropped out."""
        self._adverts = _read(answers, "advert")
        self._enough(len(self._adverts), "told a public key")

    def asks(self, verb: str) -> Iterator[tuple[str, Memory]]:
        """Which sites can make a key (``deal``) or ``decrypt``, one after another, and what each is asked.

        Raises:
            SiteError: P402 behind the last.
        """
        if verb == "deal":
            told = said(self._adverts)
            yield from ((site, {"adverts": told}) for site in self._adverts)
            self._enough(0, "made a key for all")
        agreements, total = said(self._agreed), self._total.flatten()
        yield from ((site, {"agreements": agreements, "sum": total}) for site in self._agreed)
        raise SiteError(
            "P402", f"None of {len(self._agreed)} sites decrypted the homomorphic sum of round {self.now.number + 1}: "
            f"{' '.join(self._failed)}", "Nothing of any site is known. Begin the round again.",
        )  # fmt: skip

    def answered(self, verb: str, answers: Answers) -> bool:
        """Whether the site that was asked has done it."""
        return any(map(self._dealt if verb == "deal" else self._decrypted, answers, answers.values()))

    def _dealt(self, site: str, answer: Memory | PolyclinicError) -> bool:
        boxes = _told(answer, "boxes")
        if not isinstance(answer, dict) or not isinstance(boxes, dict) or "key" not in answer:
            return False
        self._dealer, self._boxes, self._key = site, boxes, answer["key"]
        return True

    def sealed(self, site: str) -> Memory:
        """What opens the key for a site."""
        if site not in self._boxes:
            return {}
        box = {"dealer": self._dealer, "advert": self._adverts[self._dealer], "box": self._boxes[site]}
        return {"box": said(box), "key": self._key}

    def add(self, site: str, update: Tensor) -> None:
        """Add what a site sent.

        Raises:
            Misfit: it does not fit.
        """
        found = check(update, self.terms.length)
        if self._added:
            add_(self._total, found)
        else:
            self._total = found.clone()
        self._added.add(site)

    @property
    def survivors(self) -> list[str]:
        """Sites whose updates were added."""
        return [site for site in self.terms.sites if site in self._added]

    def lists(self) -> dict[str, Memory]:
        """Site -> who is in the sum.

        Raises:
            SiteError: P402, too few, or too little of the weight.
        """
        survivors = self.survivors
        self._enough(len(survivors), "sent their updates")
        share = sum(self.now.everyone[site] for site in survivors) / self.terms.total
        if share < LEAST_SHARE:
            raise SiteError(
                "P402", f"In round {self.now.number + 1} of a homomorphic sum {share:.2%} of all sites' weight is "
                f"left; {LEAST_SHARE:.2%} are needed, or the mean would not be precise.",
                "Nothing of any site is known. Mend the sites that failed, and begin the round again.",
            )  # fmt: skip
        told = said(survivors)
        return {site: {"survivors": told} for site in survivors}

    def agreed(self, answers: Answers) -> None:
        """Take the sites' agreements."""
        self._agreed = _read(answers, "agreed")
        self._enough(len(self._agreed), "agreed to who is in the sum")

    def _decrypted(self, site: str, answer: Memory | PolyclinicError) -> bool:
        """Whether a site told the sum; then it is kept as the ``mean``."""
        if isinstance(answer, PolyclinicError):
            self._failed[answer.message] = None
            return False
        total = answer.get("total")
        if total is None or total.dtype is not torch.float64 or tuple(total.shape) != (self.terms.length - 1,):
            self._failed[f"Site {site} told something else than a sum."] = None
            return False
        weights = {site: self.now.everyone[site] for site in self.survivors}
        weight = sum(weights.values())
        packed = unpacked(self.part, total * (self.terms.total / weight))
        self.mean = Sum(packed, {site: own / weight for site, own in weights.items()}, weight, self.name)
        return True

    def _enough(self, count: int, what: str) -> None:
        if count < self.terms.needed:
            raise SiteError(
                "P402", f"In round {self.now.number + 1} of a homomorphic sum {count} of {len(self.terms.sites)} sites "
                f"{what}; {self.terms.needed} are needed.",
                "Nothing of any site is known. Mend the sites that failed, and begin the round again.",
            )  # fmt: skip


#: Site -> what it answered.
Answers = Mapping[str, Memory | PolyclinicError]


def _read(answers: Answers, name: str) -> dict[str, object]:
    """Site -> what it told, of those that did; any other has dropped out."""
    found = {site: _told(answer, name) for site, answer in answers.items()}
    return {site: told for site, told in found.items() if told is not None}


def _told(answer: Memory | PolyclinicError, name: str) -> object:
    if isinstance(answer, PolyclinicError):
        return None
    try:
        found: object = read_said(answer.get(name), name)
    except Misfit:
        return None
    return found
