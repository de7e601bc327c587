"""False updates on their way: an engine whose corrupt sites send what an attack makes them send.

Answers of ``train`` are changed after all sites of an exchange have answered, so that corrupt sites may know what the
others sent. Changed are all shared coordinates, and each tensor that a part sends with them (control variates,
for example). Single numbers such as losses, and what sites say once at the start, are sent as they are. A corrupt site
whose update is kept back by a part of the method sends none, either.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from polyclinic.audit.updates import Exchange, Statistics, UpdateAttack
from polyclinic.communication.exchange import MODEL
from polyclinic.communication.message import Message
from polyclinic.engine.base import Engine, Reply
from polyclinic.notes import Note


@dataclass(frozen=True)
class Answered:
    """A site's honest answer to ``train``, with what it had been asked.

    Attributes:
        site: its name.
        request: with the state that it was sent ``[Q]``.
        reply: with the change and the statistics, and further tensors by the names of the parts that sent them.
    """

    site: str
    request: Message
    reply: Message


@dataclass(frozen=True)
class Corrupt:
    """Forges the answers of corrupt sites.

    Attributes:
        attack: what they send.
        sites: the corrupt sites.
        trainable: the first so many shared coordinates are weights; those after them are statistics, or frozen.
        seed: of the training.
        variances: which statistics are running variances ``[S]``, which no forgery makes less than 0.
    """

    attack: UpdateAttack
    sites: frozenset[str]
    trainable: int
    seed: int
    variances: Tensor

    def forged(self, answers: Sequence[Answered]) -> dict[str, Message]:
        """What each corrupt site sends.

        Args:
            answers: honest ones of all sites of an exchange, in site order; not written to.
        """
        sites = [one.site for one in answers if one.site in self.sites]
        if not sites:
            return {}
        changes, statistics, extras = self._changes(answers), self._statistics(answers), self._extras(answers)
        honest = {one.site: one.reply for one in answers}
        return {
            site: Message(
                honest[site].fields,
                {**honest[site].tensors, **extras[site], "change": change, "statistics": values},
            )
            for site, change, values in zip(sites, changes, statistics, strict=True)
        }

    def _changes(self, answers: Sequence[Answered]) -> Tensor:
        """The changes of the weights that corrupt sites send ``[M, T]``."""
        now = self._exchange([(one, one.reply.tensors["change"]) for one in answers])
        return now.own if self.attack.honest_weights else self.attack.forge(now)

    def _statistics(self, answers: Sequence[Answered]) -> Tensor:
        """The statistics that corrupt sites send ``[M, S]``."""
        before = {one.site: one.request.tensors["state"][self.trainable :] for one in answers}
        ended = {one.site: one.reply.tensors["statistics"] for one in answers}
        sites = [one.site for one in answers if one.site in self.sites]
        received, honest = (torch.stack([values[site] for site in sites]) for values in (before, ended))
        if not received.numel():
            return honest
        changes = self._exchange([(one, ended[one.site] - before[one.site]) for one in answers], "statistics")
        forged = self.attack.statistics(Statistics(changes, received, honest, self.variances))
        return torch.where(self.variances, forged.clamp(min=0), forged)

    def _extras(self, answers: Sequence[Answered]) -> dict[str, dict[str, Tensor]]:
        """What corrupt sites send in place of what parts send."""
        extras: dict[str, dict[str, Tensor]] = {one.site: {} for one in answers}
        if self.attack.honest_weights:
            return extras
        kinds = [
            (name, tensor.shape)
            for one in answers
            for name, tensor in one.reply.tensors.items()
            if name not in MODEL and tensor.is_floating_point() and tensor.dim()
        ]
        for name, shape in dict.fromkeys(kinds):  # a tensor of another shape tells a corrupt site nothing for its own
            found = [(one, one.reply.tensors[name]) for one in answers if name in one.reply.tensors]
            alike = [(one, tensor.flatten()) for one, tensor in found if tensor.shape == shape]
            sites = [one.site for one, _ in alike if one.site in self.sites]
            if sites:
                for site, tensor in zip(sites, self.attack.forge(self._exchange(alike, name)), strict=True):
                    extras[site][name] = tensor.reshape(shape)
        return extras

    def _exchange(self, honest: Sequence[tuple[Answered, Tensor]], *name: str) -> Exchange:
        """What corrupt sites know of the changes ``[T]`` that go with the answers; ``name`` is that of the tensor."""
        corrupt = [one for one, _ in honest if one.site in self.sites]
        own = torch.stack([change for one, change in honest if one.site in self.sites])
        others = [change for one, change in honest if one.site not in self.sites]
        names = [(one.request.fields["round"], one.site, *_turn(one), *name) for one in corrupt]
        return Exchange(self.seed, names, own, torch.stack(others) if others else own[:0])


def _turn(one: Answered) -> tuple[str, ...]:
    """Makes the random numbers of a second turn in a round others."""
    turn = one.request.fields.get("turn", 0)
    return (f"turn {turn}",) if turn else ()


class ForgingEngine(Engine):
    """An engine in which some sites send false updates.

    Args:
        inner: who runs the sites.
        corrupt: what is sent in place of honest answers.
    """

    def __init__(self, inner: Engine, corrupt: Corrupt) -> None:
        self.inner, self.corrupt, self.sites = inner, corrupt, inner.sites

    def call(self, function: str, requests: Mapping[str, Message]) -> Iterator[Reply]:
        """See `Engine.call`. Failures stay failures, and corrupt sites know nothing of sites that failed."""
        if function != "train":
            yield from self.inner.call(function, requests)
            return
        replies = list(self.inner.call(function, requests))
        honest = [
            Answered(site, requests[site], reply)
            for site, reply in replies
            if isinstance(reply, Message) and reply.tensors
        ]
        forged = self.corrupt.forged(honest)
        for site, reply in replies:
            yield site, forged.get(site, reply)

    @property
    def notes(self) -> list[Note]:
        """See `Engine.notes`."""
        return self.inner.notes

    def close(self) -> None:
        """See `Engine.close`."""
        self.inner.close()
