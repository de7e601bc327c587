"""The coordinator's side of a training: its sites have been told of it, its parts have met, and both can be saved."""

from __future__ import annotations

from polyclinic.communication.exchange import check_declared
from polyclinic.communication.message import Message
from polyclinic.engine.base import Engine
from polyclinic.parts import FEDERATION, Memory
from polyclinic.parts.checks import tensors_of
from polyclinic.running.attendance import gather
from polyclinic.running.conversation import Conversation
from polyclinic.running.plan import Plan
from polyclinic.running.progress import Before, Checkpoint, Progress, Row
from polyclinic.server.chain import Chain, named
from polyclinic.site.messages import Checkpointed


class Federation:
    """Starts a training at all sites.

    Args:
        plan: what to run.
        engine: who runs the sites.

    Attributes:
        progress: where the training is.
        announced: site -> its answer to ``start``, in which parts told something (``part/name``).
        steps: site -> optimiser steps in a round of its local work.
        conversation: carries messages of the training.
    """

    def __init__(self, plan: Plan, engine: Engine) -> None:
        self.plan, self.engine = plan, engine
        firsts = {model: plan.first(model) for model in plan.homes.values()}
        homes, best_homes = dict(plan.homes), dict(plan.homes)
        self.progress = Progress(0, plan.first(FEDERATION), firsts, homes=homes, best_homes=best_homes)
        said = engine.ask("start", plan.started(engine.sites))
        self.announced = {site: said[site] for site in plan.sites}
        self.steps: dict[str, int] = {site: said[site].fields.get("steps", 0) for site in plan.sites}
        self.conversation = Conversation(plan, engine, self.progress)
        self._chains: dict[str, Chain] = {}

    def chain(self, model: str) -> Chain:
        """The server's ends of the parts for one model."""
        if model not in self._chains:
            chain = self._chains[model] = self.plan.chain(model)
            told = {s: {name: named(m.tensors, name) for name in chain.ends} for s, m in self.announced.items()}
            others = [site for site in self.engine.sites if site not in self.plan.weights]
            asking = {name: self.conversation.asking(name, end.leaves_out) for name, end in chain.ends.items()}
            chain.meet(told, self.plan.weights, asking, others, self.plan.workplace(model))
        return self._chains[model]

    def beside(self) -> Memory:
        """``part/name`` -> what sites are sent beside the model when cases are predicted."""
        reveals, ends = self.plan.reveals, next((chain.ends for chain in self._chains.values()), {})
        found = {name: tensors_of(name, "predicting", end.predicting()) for name, end in ends.items()}
        beside = {f"{name}/{key}": tensor for name, tensors in found.items() for key, tensor in tensors.items()}
        check_declared((name if name in reveals else name.rstrip("0123456789") for name in beside), reveals)
        return beside

    def needed(self) -> dict[str, Memory]:
        """Part -> what a model that is in use needs of it. All of a training's models are shown the same images."""
        ends = next((chain.ends for chain in self._chains.values()), {})
        found = {name: tensors_of(name, "needed", end.needed()) for name, end in ends.items()}
        return {name: tensors for name, tensors in found.items() if tensors}

    def _memory(self) -> Memory:
        """What the parts keep at the coordinator."""
        found: Memory = {}
        for place, (name, part) in (("grouping", self.plan.grouping), ("procedure", self.plan.procedure)):
            kept = tensors_of(name, "memory", part.memory())
            found |= {f"{place}/{key}": tensor for key, tensor in kept.items()}
        for model, chain in self._chains.items():
            found |= {f"model {model}/{key}": tensor for key, tensor in chain.memory().items()}
        return found

    def _restore(self, memory: Memory) -> None:
        self.plan.grouping[1].restore(named(memory, "grouping"))
        self.plan.procedure[1].restore(named(memory, "procedure"))
        for model in self.progress.models:
            self.chain(model).restore(named(memory, f"model {model}"))

    def now(self) -> tuple[Before, Memory]:
        """What a round changes here, so that it can be taken back."""
        return self.progress.now(), {name: tensor.clone() for name, tensor in self._memory().items()}

    def go_back(self, before: tuple[Before, Memory]) -> None:
        """The round did not count: all is as it was when ``now`` gave ``before``."""
        progress, memory = before
        self.progress.go_back(progress)
        self._chains.clear()  # parts may keep more than they write down: they begin anew, as in a run that is resumed
        self._restore(memory)

    def save(self, checkpoint: Checkpoint, rows: list[Row]) -> None:
        """Write a checkpoint, here and at the sites."""
        plan, progress = self.plan, self.progress
        if plan.save:
            checkpoint.allowed()
            counted = {site: progress.counted.get(site, 0) for site in plan.sites}
            asked = {s: Message(Checkpointed(round=progress.done, counted=n).fields()) for s, n in counted.items()}
            answered = gather(self.engine, "save", asked, plan.quorum, progress.failures)
            progress.saved |= dict.fromkeys(answered, progress.done)
        checkpoint.write(progress, self._memory(), rows)

    def resume(self, checkpoint: Checkpoint) -> list[Row]:
        """Go on from a checkpoint, if there is one; its rows."""
        saved = checkpoint.read(self.progress.first, self.progress.firsts)
        if saved is None:
            return []
        self.progress, rows = saved
        self.conversation.progress = self.progress
        self._restore(checkpoint.memory)
        if self.plan.save and self.progress.done:
            self._restore_sites()
        return rows

    def _restore_sites(self) -> None:
        """Let each site go on with what it last saved, which is older where it was not there when others did."""
        progress, asked = self.progress, dict[str, Message]()
        for site in self.plan.sites:
            saved = progress.saved.get(site, 0)
            if saved:
                asked[site] = Message(Checkpointed(round=saved).fields())
            if saved < progress.done:
                what = f"with what it kept after round {saved}" if saved else "as it began, with nothing kept"
                progress.failures.append(f"After round {progress.done} {site} goes on {what}.")
            best = progress.best.get(FEDERATION if self.plan.together else site)
            if self.plan.keeps and best is not None and best[1] >= saved and site not in progress.lost:
                progress.lost.append(site)  # what it kept with the model of the best round is gone
        self.engine.ask("restore", asked)
