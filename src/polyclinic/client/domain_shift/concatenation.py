"""A network that is cut before its head: the head learns at the server, from the features of all sites at once."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from polyclinic.client.features import head_input
from polyclinic.client.work import NOT_FINITE
from polyclinic.errors import PolyclinicError, SiteError, StudyError, TrainingError
from polyclinic.parts import PROCEDURES, Answered, Memory, Procedure, SiteEnd, SiteView, Stage
from polyclinic.randomness import own_randomness
from polyclinic.roles import Role
from polyclinic.shapes import Shaped, finite
from polyclinic.state import FlatModule


@PROCEDURES.add("concatenated_features")
class ConcatenatedFeatures(Procedure):
    """SplitAVG: in each step the server's head learns from the features of all sites' batches, put together as one.

    Each site has a body, and the server has the head. In a step every site that still has a batch in the round sends
    what its body makes of it, with the labels; the head makes a step down the mean loss over all cases, and each site
    is sent the gradient for its own features, by which its body makes a step. At the end of the round bodies are
    averaged. So the head never forgets the classes that a site does not have. One site alone is plain training.

    It is for networks that end with one layer as their head, and shares the whole model. A site that fails in a step
    is left out of the round from then on.

    Source: Zhang et al., SplitAVG: a heterogeneity-aware federated deep learning method for medical imaging, IEEE
    JBHI 26 (2022), and the authors' code. There bodies are never averaged and each is tested with the head, the cut is
    after the first layer, and the code sends all sites the mean of the gradients of cases that stand at the same place
    in their batches. Read were the abstract and the code. Its second version, in which labels stay at the sites, is
    left out.
    """

    trains = False
    shares: ClassVar = ("all",)
    tasks: ClassVar = ("classification", "regression", "segmentation")
    reveals: ClassVar = {
        "features": "what the body makes of each training case, from which the case may be reconstructed",
        "targets": "the label of each training case",
        "gradient": "how the features of the site's own cases should change",
    }

    def shapes_for(self, model: FlatModule) -> Mapping[str, Shaped]:
        """Of what the head of this network is given."""
        given = head_input(model)
        if given is None:
            return {}
        features = Shaped("float32", "N cases", *given.shape[1:])
        return {"features": features, "gradient": features}

    def at_site(self) -> SiteEnd:
        """Has the body."""
        return _Body()

    def updates(self, stage: Stage) -> Iterator[Answered]:
        """Step after step with all sites; then what came of it."""
        _check(self.name, stage.network)
        begun, before = time.monotonic(), {site: stage.state(site) for site in stage.sites}
        if any(state is not before[stage.sites[0]] for state in before.values()):
            raise StudyError("P104", f"{self.name} trains one model with all sites, and the topology has several.",
                             "Use `topology: star`.")  # fmt: skip
        head, steps = _Head(stage, before[stage.sites[0]]), dict.fromkeys(stage.sites, 0)
        failed, done, cases = dict[str, PolyclinicError](), dict[str, Memory](), dict.fromkeys(stage.sites, 0)

        def ask(verb: str, sent: Mapping[str, Memory]) -> dict[str, Memory]:
            answers = dict(stage.ask(verb, sent))
            failed.update({site: one for site, one in answers.items() if isinstance(one, PolyclinicError)})
            return {site: one for site, one in answers.items() if not isinstance(one, PolyclinicError)}

        going = list(ask("begin", {site: {"state": state} for site, state in before.items()}))
        while going and head.finite:
            answers = ask("forward", {site: {} for site in going})
            done |= {site: answer for site, answer in answers.items() if "state" in answer}
            batches = {site: answer for site, answer in answers.items() if site not in done}
            failed |= {site: why for site, one in batches.items() if (why := head.misfit(site, one))}
            batches = {site: one for site, one in batches.items() if site not in failed}
            gradients = head.step(batches) if batches else {}
            going = list(ask("backward", {site: {"gradient": one} for site, one in gradients.items()}))
            for site in going:
                steps[site] += 1
                cases[site] += len(batches[site]["targets"])
        seconds = time.monotonic() - begun
        for site in stage.sites:
            if not head.finite:
                text = f"Training with site {site} gave values that are not finite numbers."
                yield Answered(site, TrainingError("P301", text, NOT_FINITE))
            elif site in done:
                said = {"examples": cases[site], "steps": steps[site], "loss": head.loss, "seconds": seconds}
                yield Answered(site, head.update(before[site], done[site]["state"]), said)
            else:
                yield Answered(site, failed[site])


def _check(name: str, network: FlatModule) -> None:
    if len(network.head) != 1:
        raise StudyError("P104", f"{name} cuts a network before its head, which must be one layer.",
                         "Choose another network.")  # fmt: skip
    norms = (layer for layer in network.module.modules() if isinstance(layer, nn.modules.batchnorm._NormBase))
    if any(layer.momentum is None for layer in norms):
        raise StudyError("P104", f"{name} has no average over all batches (normalisation with `momentum: null`).",
                         "Give the network's normalisation a momentum.")  # fmt: skip


_SAME = "Let all sites and the server run the same version of Polyclinic."


class _Head:
    """The head at the server, in a round.

    Args:
        stage: of it.
        state: of the model at its beginning ``[P]``.
    """

    def __init__(self, stage: Stage, state: Tensor) -> None:
        self.network, self.task = stage.network, stage.task
        self.chosen = self.network.layout.select({Role.HEAD})
        self.vector, self.trainable = state.clone(), self.network.layout.trainable
        self._weights = nn.Parameter(self.vector[: self.trainable])
        self._optimizer = stage.optimizer([self._weights])
        self._losses = list[float]()
        # What the model is when the round begins follows from the seed of the training, which no procedure is told.
        self._seed = "head", stage.number, float(state.double().sum()).hex()

    @property
    def loss(self) -> float:
        """Mean over the steps."""
        return sum(self._losses) / max(len(self._losses), 1)

    @property
    def finite(self) -> bool:
        """Whether it has not broken down."""
        return finite(self.vector) and math.isfinite(self.loss)

    def misfit(self, site: str, answer: Memory) -> SiteError | None:
        """What is wrong with what a site sent, if it is no batch; None if it is one."""
        features, targets = answer.get("features"), answer.get("targets")
        wrong = "no batch"
        if features is not None and targets is not None and len(features):
            wrong = f"{len(features)} features, and labels {list(targets.shape)} that are not theirs"
            try:
                self.network.load(self.vector)
                with torch.no_grad(), own_randomness("misfit"):
                    outputs = self.network.head[0](features.to(self.network.vector.device)).cpu()
                    if self.task.loss(outputs, targets).shape == (len(features),):
                        return None
            except (RuntimeError, ValueError, IndexError):
                pass
        return SiteError("P401", f"In a step site {site} sent {wrong}.", _SAME, site=site)

    def step(self, batches: Mapping[str, Memory]) -> dict[str, Tensor]:
        """A step on all batches together; site -> the gradient for its features."""
        network, sizes = self.network, [len(one["features"]) for one in batches.values()]
        device = network.vector.device
        network.load(self.vector)
        network.module.train()
        network.gradient.zero_()
        features = torch.cat([one["features"] for one in batches.values()]).to(device).requires_grad_()
        targets = torch.cat([one["targets"] for one in batches.values()]).to(device)
        with own_randomness(*self._seed, len(self._losses), device=device):
            loss = self.task.loss(network.head[0](features), targets).mean()
        loss.backward()
        with torch.no_grad():
            self.vector[self.trainable :] = network.vector[self.trainable :].cpu()
        self._weights.grad = network.gradient.cpu().clone()
        self._optimizer.step()
        self._losses.append(float(loss.detach()))
        gradient = torch.zeros_like(features) if features.grad is None else features.grad
        return dict(zip(batches, gradient.cpu().split(sizes), strict=True))

    def update(self, before: Tensor, body: Tensor) -> Memory:
        """A site's update: the change of its body, and that of the head."""
        end = body.clone()
        self.chosen.put(end, self.chosen.take(self.vector))
        return {"change": end[: self.trainable] - before[: self.trainable], "statistics": end[self.trainable :]}


class _Body(SiteEnd):
    def answer(self, verb: str, asked: Memory, view: SiteView) -> Memory:
        """``begin`` a round, send a batch ``forward``, take its gradient ``backward``."""
        if verb == "begin":
            self._batches, self._vector, self._steps = view.batches(), view.vector.clone(), 0
            self._weights = nn.Parameter(self._vector[: view.trainable])
            self._optimizer = view.optimizer([self._weights])
            return {}
        if verb == "forward":
            batch = next(self._batches, None)
            return {"state": self._vector.clone()} if batch is None else self._forward(view, *batch)
        if verb == "backward":
            return self._backward(view, asked["gradient"])
        return super().answer(verb, asked, view)

    def _forward(self, view: SiteView, inputs: Tensor, targets: Tensor) -> Memory:
        found, self._inputs = list[Tensor](), inputs
        self._run(view, found)
        return {"features": found[0].detach().float().cpu(), "targets": targets}

    def _run(self, view: SiteView, found: list[Tensor]) -> None:
        model = view.model
        model.load(self._vector)
        model.module.train()
        hook = model.record_features(found)
        try:
            seed = view.generator("body", self._steps).initial_seed()
            with own_randomness(seed, device=model.vector.device):
                model.module(self._inputs.to(model.vector.device))
        finally:
            hook.remove()

    def _backward(self, view: SiteView, gradient: Tensor) -> Memory:
        """The batch is run again: sites of one process lend each other the network between two questions."""
        model, found = view.model, list[Tensor]()
        self._run(view, found)
        model.gradient.zero_()
        if found[0].requires_grad:  # else there is nothing before the head that learns
            found[0].backward(gradient.to(model.vector.device))
        self._weights.grad = model.gradient.cpu().clone()
        with torch.no_grad():
            self._vector[view.trainable :] = model.vector[view.trainable :].cpu()
        self._optimizer.step()
        self._steps += 1
        return {}
