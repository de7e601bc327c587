"""A stage of a round at work: messages to its sites, and a row for what each answered."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from polyclinic.client.optimizers import build_optimizer, with_learning_rate
from polyclinic.communication.exchange import Traffic, check_declared
from polyclinic.communication.message import Message
from polyclinic.errors import PolyclinicError
from polyclinic.parts import Answered, Groups, Memory, Now, Stage
from polyclinic.parts.checks import kind_of, tensors_of, wrong
from polyclinic.running.federation import Federation
from polyclinic.running.progress import Row
from polyclinic.seeds import generator
from polyclinic.site.messages import Train


class ModelStage(Stage):
    """What a procedure works with; see `polyclinic.parts.procedure.Stage`.

    Args:
        federation: the training's sites, parts and progress.
        groups: model -> the sites that train it.
        turns: sites that had a turn in this round before, each as often as it had one.
    """

    def __init__(self, federation: Federation, groups: Groups, turns: list[str]) -> None:
        plan, progress = federation.plan, federation.progress
        self.plan, self.progress, self.turns = plan, progress, turns
        self.conversation = federation.conversation
        self.chains = {model: federation.chain(model) for model in groups}
        self.number, self.rounds = progress.done, plan.rounds
        self.learning_rate = plan.learning_rates[progress.done]
        self.homes = {site: model for model, sites in groups.items() for site in sites}
        self.sites = [site for site in plan.sites if site in self.homes]
        speeds = {site: plan.start.work.of(site).step_seconds for site in self.sites}
        self.seconds = {s: speed * federation.steps[s] for s, speed in speeds.items() if speed is not None}
        self.network, self.task, self.weights = plan.network, plan.task, plan.weights
        self.ask = self.conversation.asking(plan.procedure[0])
        self._exchanges: dict[str, int] = {}
        self._batches: dict[str, int] = {}
        if plan.homes:
            for name in next(iter(self.chains.values())).ends:
                counterparts = [chain.ends[name] for chain in self.chains.values()]
                for end in counterparts:
                    end.counterparts = counterparts
        for model, sites in groups.items():
            shared, layout = plan.selection_of(model), plan.network_of(model).layout
            state, size = progress.model(model), shared.trainable
            total = sum(plan.weights[site] for site in sites)
            weights, statistics = state[:size], state[size:]
            self.chains[model].begin(
                Now(
                    self.number, self.rounds, self.learning_rate, weights, statistics, total, plan.weights, sites,
                    layout.shapes(shared), plan.start.seed, plan.budget, federation.engine.real,
                    federation.engine.verifier, plan.start.fold, plan.variants,
                )
            )  # fmt: skip

    def answers(self) -> Iterator[Answered]:
        """What the procedure gives.

        Raises:
            PartError: P304, it gives something else than answers of the stage's sites, one each at most.
        """
        name, procedure = self.plan.procedure
        found, seen = procedure.updates(self), set[str]()
        if not isinstance(found, Iterable):
            raise wrong(name, "updates", kind_of(found), "to `yield` an `Answered` for each site")
        for answered in found:
            if not isinstance(answered, Answered):
                raise wrong(name, "updates", kind_of(answered), "an `Answered` for each site")
            if answered.site not in self.homes or answered.site in seen:
                got = f"an answer of {answered.site!r}" + " again" * (answered.site in seen)
                raise wrong(name, "updates", got, "one answer at most of each site of `stage.sites`")
            seen.add(answered.site)
            if not isinstance(answered.packed, PolyclinicError):
                tensors_of(name, "updates", answered.packed)
                missing = [key for key in ("examples", "steps", "loss", "seconds") if key not in answered.said]
                if missing:
                    raise wrong(name, "updates", f"an answer that says no {missing[0]!r}", "`said` to have it")
            yield answered

    def state(self, site: str) -> Tensor:
        """See `Stage`."""
        return self.progress.model(self.homes[site])

    def optimizer(self, parameters: Iterable[nn.Parameter]) -> Optimizer:
        """See `Stage`."""
        named = with_learning_rate(self.plan.start.work.optimizer, self.learning_rate, self.plan.cycled_in(self.number))
        return build_optimizer(named, list(parameters))

    def generator(self, *names: str | int) -> torch.Generator:
        """See `Stage`."""
        start = self.plan.start
        return generator(start.seed, "stage", start.fold, self.number, *names)

    def train(self, states: Mapping[str, Tensor]) -> Iterator[Answered]:
        """See `Stage`."""
        others = [site for site in states if site not in self.homes]
        if others:
            raise wrong(self.plan.procedure[0], "updates", f"{others[0]!r} to train", "sites of `stage.sites`")
        requests = {site: self._request(site, state) for site, state in states.items()}
        for site, reply in self.conversation.call("train", requests):
            if isinstance(reply, PolyclinicError):
                yield Answered(site, reply)
            else:
                yield Answered(site, reply.tensors, reply.fields)

    def _request(self, site: str, state: Tensor) -> Message:
        if site in self._exchanges:  # what the first exchange left at the site would be lost
            raise wrong(
                self.plan.procedure[0], "updates", f"{site} to train again", "each site at most once in a stage"
            )
        self.conversation.open.add(site)
        self.progress.exchanges += 1
        self._exchanges[site] = self.progress.exchanges
        trained, one_by_one = self.progress.trained.get(self.homes[site], 0), self.plan.grouping[1].one_by_one
        asked = Train(
            round=self.number, exchange=self.progress.exchanges, turn=self.turns.count(site),
            learning_rate=self.learning_rate, counted=self.progress.counted.get(site, 0),
            optimizer=self.plan.cycled_in(self.number), after_rounds=0 if one_by_one else trained,
            after_batches=trained if one_by_one else 0,
        )  # fmt: skip
        sent = self.chains[self.homes[site]].send(site)
        check_declared(sent, self.plan.reveals)
        return Message(asked.fields(), {"state": self.plan.sent(site, state), **sent})

    def take(self, answered: Answered, packed: Memory, once: Message | None) -> Row:
        """Give an answer to the parts at the server; one without an update they never see.

        Returns:
            What is written down of it; ``once`` is what the site answered when training started, if it counts here.
        """
        site, said, model = answered.site, answered.said, self.homes[answered.site]
        sent = bool(packed) or not self.plan.known.may_be_quiet
        if sent:
            self.chains[model].take(site, packed, self.plan.weights[site], answered.lag)
            self._batches[model] = self._batches.get(model, 0) + said.get("batches", said["steps"])
        else:
            self.chains[model].passes(site)
        if once is not None and once.tensors:
            self.conversation.up[site].add(once.tensors, once.size)
        return {
            "round": self.number, "site": site, "seconds": said["seconds"], "bytes_up": 0, "bytes_down": 0,
            "examples": said["examples"], "steps": said["steps"],
            "loss": math.nan if said["loss"] is None else said["loss"], "extra_up": "",
            "extra_down": "", "sent": int(sent), **self.plan.phase(self.number),
        }  # fmt: skip

    def finish(self, rows: list[Row], excuses: Callable[[PolyclinicError, str], bool]) -> list[Row]:
        """Make the next models of what was taken in; only now the answers count. A model of which no update came stays
        as it is.

        Args:
            rows: of the answers.
            excuses: whether a model for which parts at the server failed simply stays as it is.

        Returns:
            The rows of the answers that count.
        """
        shares, still = dict[str, float](), set[str]()
        for model in dict.fromkeys(self.homes.values()):
            try:
                result = self.chains[model].finish()
            except PolyclinicError as error:
                if not excuses(error, model):
                    raise
                still.add(model)
                continue
            if result is not None:
                self.progress.models[model] = result.state
                more = self._batches[model] if self.plan.grouping[1].one_by_one else 1
                self.progress.trained[model] = self.progress.trained.get(model, 0) + more
                shares |= result.shares
        homes = {site: model for site, model in self.homes.items() if model not in still}
        self.progress.homes |= homes
        rows = [row for row in rows if row["site"] in homes]
        for row in rows:
            for way, traffic in (("up", self.conversation.up), ("down", self.conversation.down)):
                said = traffic.pop(row["site"], Traffic())  # also what parts asked just now
                row[f"bytes_{way}"], row[f"extra_{way}"] = said.size, said.describe()
            self.progress.losses[row["site"]] = row["loss"]
            row["share"] = shares.get(row["site"], 0.0)
            if row["sent"] and row["site"] in self._exchanges:  # a site that sent nothing is as it was before
                self.progress.counted[row["site"]] = self._exchanges[row["site"]]
        return rows
