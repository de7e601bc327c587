"""Asking sites something of which only the sum over them is known here, see `polyclinic.secure.sums`."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from math import prod

from torch import Tensor

from polyclinic.channel.said import read_said, said
from polyclinic.communication.message import Message
from polyclinic.engine.base import Engine
from polyclinic.errors import PolyclinicError, SiteError
from polyclinic.running.attendance import causes_of
from polyclinic.secure import ServerRound
from polyclinic.secure.exact import decode
from polyclinic.secure.sums import SumTerms
from polyclinic.shapes import Misfit, Shaped
from polyclinic.site.sums import BOXES, BROKEN, MASKED


@dataclass(frozen=True)
class Summed:
    """What came of it.

    Attributes:
        total: name -> sum over sites, float64.
        sites: those that are in it.
        failures: the others -> why they are not.
        broken: how many of those in it had numbers that can't be summed, since they are not finite, or larger than any
            data are; they added nothing.
    """

    total: dict[str, Tensor]
    sites: list[str]
    failures: dict[str, PolyclinicError]
    broken: int


def ask_sum(
    engine: Engine, function: str, requests: Mapping[str, Message], shapes: Mapping[str, tuple[int, ...]], *,
    whole: bool = False,
) -> Summed:  # fmt: skip
    """The sum of what sites answer to a question; each answer leaves its site under masks.

    Args:
        engine: who runs the sites.
        function: what they are asked.
        requests: site -> the message.
        shapes: of what is summed, by name.
        whole: whether no site may be missing in the sum. Then one that fails ends it before anything is known of it:
            sites add the same numbers to no sum of others.

    Raises:
        SiteError: P402, too few sites take part or are left.
        PolyclinicError: the first failure, where no site may be missing.
    """
    shapes = dict(sorted({**shapes, BROKEN: ()}.items()))
    sites = [site for site in engine.sites if site in requests]
    about = SumTerms(secrets.token_bytes(32), function, tuple(sites), sum(map(prod, shapes.values())))
    talk = _Talk(engine, ServerRound(about.terms(), engine.verifier))
    try:
        keys = talk.server.keys(talk.ask("sum_advertise", dict.fromkeys(sites, about.told())))
        boxes = talk.server.boxes(talk.ask("sum_share", dict.fromkeys(keys, keys)))
        talk.add(function, {site: requests[site] for site in boxes}, boxes)
        for error in talk.all_failures().values() if whole else ():
            raise error
        survivors = talk.server.survivors()
        failures = talk.all_failures()  # who falls silent from now on is in the sum
        signatures = talk.server.signatures(talk.ask("sum_agree", dict.fromkeys(survivors, survivors)))
        total = decode(talk.server.sum(talk.ask("sum_unmask", dict.fromkeys(signatures, signatures))))
    except SiteError as error:
        if not talk.failures or error in talk.failures.values():
            raise
        text = f"{error.message.removesuffix('.')}. {causes_of(talk.failures)}"
        causes = [one.code for one in talk.failures.values()]
        raise SiteError(error.code, text, error.hint, causes=causes) from None
    pieces = total.split([prod(shape) for shape in shapes.values()])
    found = {name: piece.reshape(shape) for (name, shape), piece in zip(shapes.items(), pieces, strict=True)}
    broken = int(found.pop(BROKEN))
    return Summed(found, survivors, failures, broken)


def lengths(shapes: Mapping[str, Shaped], sizes: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    """The shapes in numbers, where the lengths of all dimensions are known."""
    return {
        name: tuple(one if isinstance(one, int) else sizes[one] for one in shaped.shape or ())
        for name, shaped in shapes.items()
    }


class _Talk:
    """What is said in one sum.

    Attributes:
        failures: site -> why it has dropped out.
    """

    def __init__(self, engine: Engine, server: ServerRound) -> None:
        self.engine, self.server = engine, server
        self.failures: dict[str, PolyclinicError] = {}

    def all_failures(self) -> dict[str, PolyclinicError]:
        """Site -> why it has dropped out, or why what it said does not fit."""
        return {site: _unfit(site, why) for site, why in self.server.failed.items()} | self.failures

    def ask(self, phase: str, told: Mapping[str, object]) -> dict[str, object]:
        """The answers of the sites that have one."""
        found = dict[str, object]()
        requests = {site: Message({}, {"told": said(content)}) for site, content in told.items()}
        for site, reply in self.engine.call(phase, requests):
            if isinstance(reply, PolyclinicError):
                self.failures[site] = reply
                continue
            with suppress(Misfit):  # no answer, then
                found[site] = read_said(reply.tensors["said"], "said")
        return found

    def add(self, function: str, requests: Mapping[str, Message], boxes: Mapping[str, Mapping[str, bytes]]) -> None:
        """Ask what is to be summed, and add it."""
        asked = {
            site: Message(one.fields, {**one.tensors, BOXES: said(boxes[site])}) for site, one in requests.items()
        }  # fmt: skip
        for site, reply in self.engine.call(function, asked):
            if isinstance(reply, PolyclinicError):
                self.failures[site] = reply
            else:
                self.server.add(site, reply.tensors[MASKED])


def _unfit(site: str, why: str) -> SiteError:
    text = f"What site {site} said in a sum does not fit: {why.removesuffix('.')}."
    return SiteError("P401", text, "Let all sites and the server run the same version of Polyclinic.", site=site)
