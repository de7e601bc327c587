"""A stage of a round at work: messages to its sites, and a row for what each answered."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from polyclinic.communication.exchange import describe
from polyclinic.communication.message import Message
from polyclinic.engine.base import Engine
from polyclinic.errors import PolyclinicError
from polyclinic.parts import Answered, Ask, Groups, Memory, Now, Stage
from polyclinic.running.plan import Plan
from polyclinic.running.progress import Progress, Row
from polyclinic.server.chain import Chain
from polyclinic.site.messages import Train


class ModelStage(Stage):
    """What a procedure works with; see `polyclinic.parts.procedure.Stage`.

    Args:
        plan: what is run.
        engine: who runs the sites.
        progress: where the training is.
        groups: model -> the sites that train it.
        chains: model -> the server's ends of the parts.
        turns: sites that had a turn in this round before, each as often as it had one.
    """

    def __init__(
        self, plan: Plan, engine: Engine, progress: Progress, groups: Groups, chains: Mapping[str, Chain],
        turns: list[str],
    ) -> None:  # fmt: skip
        self.plan, self.engine, self.progress, self.chains, self.turns = plan, engine, progress, chains, turns
        self.number, self.rounds = progress.done, plan.rounds
        self.learning_rate = plan.learning_rates[progress.done]
        self.homes = {site: model for model, sites in groups.items() for site in sites}
        self.sites = [site for site in plan.sites if site in self.homes]
        self.speeds = {s: own.step_seconds for s, own in plan.start.work.own.items() if own.step_seconds is not None}
        self.network, self.task = plan.network, plan.task
        self.ask = asking(engine, plan.procedure[0])
        self._requests: dict[str, Message] = {}
        self._exchanges: dict[str, int] = {}
        for model, sites in groups.items():
            state, size = progress.model(model), plan.selection.trainable
            total = sum(plan.weights[site] for site in sites)
            weights, statistics = state[:size], state[size:]
            chains[model].begin(
                Now(self.number, self.rounds, self.learning_rate, weights, statistics, total, plan.weights)
            )

    def state(self, site: str) -> Tensor:
        """See `Stage`."""
        return self.progress.model(self.homes[site])

    def train(self, states: Mapping[str, Tensor]) -> Iterator[Answered]:
        """See `Stage`."""
        self._requests |= {site: self._request(site, state) for site, state in states.items()}
        for site, reply in self.engine.call("train", {site: self._requests[site] for site in states}):
            if isinstance(reply, PolyclinicError):
                yield Answered(site, reply)
            else:
                yield Answered(site, reply.tensors, reply.fields)

    def _request(self, site: str, state: Tensor) -> Message:
        self.progress.exchanges += 1
        self._exchanges[site] = self.progress.exchanges
        asked = Train(
            round=self.number, exchange=self.progress.exchanges, turn=self.turns.count(site),
            learning_rate=self.learning_rate, counted=self.progress.counted.get(site, 0),
            optimizer=self.plan.cycled[self.number] if self.plan.cycled else {},
        )  # fmt: skip
        return Message(asked.fields(), {"state": state, **self.chains[self.homes[site]].send(site)})

    def row(self, answered: Answered, packed: Memory, once: Mapping[str, Tensor]) -> Row:
        """What is written down of a site's answer; ``once`` is what it told when training started."""
        sent = Message({}, {**once, **packed})
        asked = self._requests.get(answered.site, Message())
        said: Mapping[str, Any] = answered.said
        reveals = self.plan.reveals
        return {
            "round": self.number, "site": answered.site, "seconds": said["seconds"], "bytes_up": sent.size,
            "bytes_down": asked.size, "examples": said["examples"], "steps": said["steps"], "loss": said["loss"],
            "extra_up": describe(sent.tensors, reveals), "extra_down": describe(asked.tensors, reveals),
        }  # fmt: skip

    def take(self, answered: Answered, packed: Memory) -> None:
        """Give an answer to the parts at the server."""
        site = answered.site
        self.chains[self.homes[site]].take(site, packed, self.plan.weights[site], answered.lag)

    def finish(self, rows: list[Row]) -> None:
        """Make the next models of what was taken in; only now the answers count."""
        shares: dict[str, float] = {}
        for model in dict.fromkeys(self.homes.values()):
            result = self.chains[model].finish()
            if result is not None:
                self.progress.models[model] = result.state
                shares |= result.shares
        self.progress.homes |= self.homes
        for row in rows:
            self.progress.losses[row["site"]] = row["loss"]
            row["share"] = shares.get(row["site"], 0.0)
            if row["site"] in self._exchanges:
                self.progress.counted[row["site"]] = self._exchanges[row["site"]]


def asking(engine: Engine, part: str) -> Ask:
    """How a part's end at the server asks those at the sites."""

    def ask(verb: str, requests: Mapping[str, Memory]) -> Iterator[tuple[str, Memory | PolyclinicError]]:
        for site, reply in engine.call(f"{part}/{verb}", {s: Message({}, dict(t)) for s, t in requests.items()}):
            yield site, reply if isinstance(reply, PolyclinicError) else reply.tensors

    return ask
