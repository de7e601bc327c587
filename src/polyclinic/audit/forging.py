"""False updates on their way: an engine whose corrupt sites send what an attack makes them send.

Answers of ``train`` are changed after all sites of an exchange have answered, so that corrupt sites may know what the
others sent. Changed are all shared coordinates, and each tensor that a local rule sends with them (SCAFFOLD's control
variates, for example). Single numbers such as losses, and what sites say once at the start, are sent as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from polyclinic.audit.updates import Exchange, Statistics, UpdateAttack
from polyclinic.communication.message import Message
from polyclinic.engine.base import Engine, Reply
from polyclinic.notes import Note
from polyclinic.server.rules import Answer


@dataclass(frozen=True)
class Answered:
    """A site's honest answer to ``train``, with what it had been asked.

    Attributes:
        site: its name.
        request: with the state that it was sent ``[Q]``.
        reply: with the state that it ended with ``[Q]``, and further tensors by the names of the parts that sent them.
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
        variances: which shared coordinates are running variances ``[Q]``, which no forgery makes less than 0.
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
        corrupt = [one for one in answers if one.site in self.sites]
        if not corrupt:
            return {}
        states, extras = self._states(answers), self._extras(answers)
        return {
            one.site: Message(one.reply.fields, {**one.reply.tensors, **extras[one.site], "state": states[one.site]})
            for one in corrupt
        }

    def _states(self, answers: Sequence[Answered]) -> dict[str, Tensor]:
        """The shared coordinates ``[Q]`` that corrupt sites send."""
        before = {one.site: one.request.tensors["state"] for one in answers}
        ended = {one.site: one.reply.tensors["state"] for one in answers}
        sites = [one.site for one in answers if one.site in self.sites]
        weights, rest = slice(self.trainable), slice(self.trainable, None)
        now = self._exchange([(one, ended[one.site][weights] - before[one.site][weights]) for one in answers])
        if self.attack.honest_weights:
            trained = [ended[site][weights] for site in sites]
        else:
            trained = [
                before[site][weights] + change for site, change in zip(sites, self.attack.forge(now), strict=True)
            ]
        changes = [(one, ended[one.site][rest] - before[one.site][rest]) for one in answers]
        received, honest = (torch.stack([states[site][rest] for site in sites]) for states in (before, ended))
        variances = self.variances[rest].to(received.device)
        others = received
        if received.numel():
            about = Statistics(self._exchange(changes, "statistics"), received, honest, variances)
            others = self.attack.statistics(about)
        others = torch.where(variances, others.clamp(min=0), others)
        return {site: torch.cat(parts) for site, *parts in zip(sites, trained, others, strict=True)}

    def _extras(self, answers: Sequence[Answered]) -> dict[str, dict[str, Tensor]]:
        """What corrupt sites send in place of what local rules send."""
        extras: dict[str, dict[str, Tensor]] = {one.site: {} for one in answers}
        if self.attack.honest_weights:
            return extras
        kinds = [
            (name, tensor.shape)
            for one in answers
            for name, tensor in one.reply.tensors.items()
            if name != "state" and tensor.is_floating_point()
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
        honest = [Answered(site, requests[site], reply) for site, reply in replies if isinstance(reply, Message)]
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


@dataclass(frozen=True)
class CorruptUpdates:
    """Changes answers before the coordinator sees them; the ``corrupt`` of a plan.

    Attributes:
        corrupt: what is sent in place of honest answers.
    """

    corrupt: Corrupt

    def __call__(self, number: int, state: Tensor, answers: Sequence[Answer]) -> Sequence[Answer]:
        """The answers that the coordinator gets.

        Args:
            number: rounds done before.
            state: the global state that sites were sent ``[Q]``.
            answers: honest ones of all sites of an exchange; not written to.
        """
        honest = [
            Answered(one.update.site, Message({"round": number, "turn": one.turn}, {"state": state}),
                     Message({}, {**one.extras, "state": one.update.state}))
            for one in answers
        ]  # fmt: skip
        forged = {site: dict(reply.tensors) for site, reply in self.corrupt.forged(honest).items()}
        return [_with(one, forged[one.update.site]) if one.update.site in forged else one for one in answers]


def _with(answer: Answer, tensors: dict[str, Tensor]) -> Answer:
    return replace(answer, update=replace(answer.update, state=tensors.pop("state")), extras=tensors)
