"""What the ends of parts at the server ask those at the sites, and how much went which way."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping

from torch import Tensor

from polyclinic.communication.exchange import Traffic, check_declared
from polyclinic.communication.message import Message
from polyclinic.engine.base import Engine
from polyclinic.errors import PolyclinicError
from polyclinic.parts import Ask, Memory
from polyclinic.parts.checks import tensors_of, wrong
from polyclinic.running.attendance import leave_out
from polyclinic.running.plan import Plan
from polyclinic.running.progress import Progress
from polyclinic.site.messages import Question


class Conversation:
    """Carries what is said in a training, and counts it.

    Args:
        plan: what is run.
        engine: who runs the sites.

    Attributes:
        progress: where the training is.
        open: sites that were asked to train, and don't know yet whether that counts.
        up, down: what each site has sent and was sent since it was last written down.
    """

    def __init__(self, plan: Plan, engine: Engine, progress: Progress) -> None:
        self.plan, self.engine, self.progress = plan, engine, progress
        self.open: set[str] = set()
        self.up, self.down = defaultdict[str, Traffic](Traffic), defaultdict[str, Traffic](Traffic)

    def begin(self) -> None:
        """A round begins: all that was asked before has been decided."""
        self.open.clear()
        self.up.clear()
        self.down.clear()

    def call(self, function: str, requests: Mapping[str, Message]) -> Iterator[tuple[str, Message | PolyclinicError]]:
        """Ask sites something."""
        part = function.rpartition("/")[0]
        for site, request in requests.items():
            self._count(self.down[site], request, part)
        for site, reply in self.engine.call(function, requests):
            if isinstance(reply, Message):
                self._count(self.up[site], reply, part)
            yield site, reply

    def _count(self, traffic: Traffic, message: Message, part: str) -> None:
        """Sites that train alone exchange nothing: what they are asked is no part of the method."""
        traffic.add(_named(message.tensors, part), message.size if self.plan.together else 0)

    def asking(self, part: str, leaves_out: Collection[str] = ()) -> Ask:
        """How the end of a part at the server asks those at the sites.

        Args:
            part: its name.
            leaves_out: see `ServerEnd.leaves_out`.
        """

        def ask(verb: str, requests: Mapping[str, Memory]) -> Iterator[tuple[str, Memory | PolyclinicError]]:
            for site, tensors in requests.items():
                if site not in self.engine.sites:
                    raise wrong(part, f"ask({verb!r}, ...)", f"{site!r} as a site", "sites of the training")
                tensors_of(part, f"ask({verb!r}, ...)", tensors)
                check_declared(_named(tensors, part), self.plan.reveals)
            messages = {site: Message(self._about(site), self._sent(site, own)) for site, own in requests.items()}
            failures = dict[str, PolyclinicError]()
            for site, reply in self.call(f"{part}/{verb}", messages):
                if isinstance(reply, PolyclinicError):
                    failures[site] = reply
                yield site, reply if isinstance(reply, PolyclinicError) else reply.tensors
            if failures and verb in leaves_out:
                leave_out(f"{part}/{verb}", failures, messages, self.plan.quorum, self.progress.failures, set())

        return ask

    def _sent(self, site: str, tensors: Memory) -> Memory:
        model = {"state": self.plan.sent(site, tensors["state"])} if "state" in tensors else {}
        return {**tensors, **model}

    def _about(self, site: str) -> dict[str, object]:
        number = min(self.progress.done, self.plan.rounds - 1)  # parts meet again where all rounds are done
        counted = None if site in self.open else self.progress.counted.get(site, 0)
        return Question(
            round=number, learning_rate=self.plan.learning_rates[number], optimizer=self.plan.cycled_in(number),
            counted=counted,
        ).fields()  # fmt: skip


def _named(tensors: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    """Tensors of a message as they are called besides others: ``part/name``, but for the model."""
    return {name if not part or name == "state" else f"{part}/{name}": tensor for name, tensor in tensors.items()}
