"""A procedure: the sites have the body of the network and the server has its head."""

import time
from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor, nn

from polyclinic.errors import PolyclinicError, StudyError
from polyclinic.parts import PROCEDURES, Answered, Memory, Procedure, SiteEnd, SiteView, Stage
from polyclinic.randomness import own_randomness
from polyclinic.roles import Role


@PROCEDURES.add("split")
class Split(Procedure):
    """Split learning: in each step a site sends features and labels, and gets their gradient from the server's head.

    Every site has its turn; bodies and heads are averaged at the end of the round, so that the model is that of fedavg.
    It is for networks that end with their head.

    Source: Gupta and Raskar, Distributed learning of deep neural network over multiple agents, J. Netw. Comput. Appl.
    2018; averaging as in Thapa et al., SplitFed, AAAI 2022.
    """

    trains = False
    reveals: ClassVar = {
        "features": "what the body makes of each training case, from which the case may be reconstructed",
        "targets": "the label of each training case",
        "gradient": "how the features of the site's own cases should change",
    }

    def at_site(self) -> SiteEnd:
        """Has the body."""
        return _Body()

    def updates(self, stage: Stage) -> Iterator[Answered]:
        """Site after site."""
        if len(stage.network.head) != 1:
            raise StudyError("P104", "Split learning needs a network with one layer as its head.", "Choose another.")
        if any(len(stage.state(site)) != len(stage.network.vector) for site in stage.sites):
            raise StudyError("P104", "Split learning shares the whole model.", "Use `share: all`.")
        for site in stage.sites:
            try:
                yield self._train(stage, site)
            except PolyclinicError as error:  # for the loop to judge
                yield Answered(site, error)

    def _train(self, stage: Stage, site: str) -> Answered:
        begun, before = time.monotonic(), stage.state(site)
        network, trainable = stage.network, stage.network.layout.trainable
        vector, losses, cases = before.clone(), list[float](), 0
        weights = nn.Parameter(vector[:trainable])
        optimizer = stage.optimizer([weights])
        self._ask(stage, site, "begin", {"state": before})
        while "features" in (found := self._ask(stage, site, "forward", {})):
            network.load(vector)
            network.module.train()
            network.gradient.zero_()
            features = found["features"].requires_grad_()
            loss = stage.task.loss(network.head[0](features), found["targets"]).mean()
            loss.backward()
            weights.grad = network.gradient.clone()
            optimizer.step()
            self._ask(stage, site, "backward", {"gradient": features.grad})
            losses, cases = [*losses, float(loss.detach())], cases + len(features)
        end, head = found["state"].clone(), network.layout.select({Role.HEAD})
        head.put(end, head.take(vector))
        said = {"examples": cases, "steps": len(losses), "loss": sum(losses) / len(losses),
                "seconds": time.monotonic() - begun}  # fmt: skip
        return Answered(site, {"change": end[:trainable] - before[:trainable], "statistics": end[trainable:]}, said)

    def _ask(self, stage: Stage, site: str, verb: str, sent: Memory) -> Memory:
        ((_, found),) = stage.ask(verb, {site: sent})
        if isinstance(found, PolyclinicError):
            raise found
        return found


class _Body(SiteEnd):
    def answer(self, verb: str, asked: Memory, view: SiteView) -> Memory:
        if verb == "begin":
            self._batches, self._vector, self._steps = view.batches(), view.vector.clone(), 0
            self._weights = nn.Parameter(self._vector[: view.trainable])
            self._optimizer = view.optimizer([self._weights])
            return {}
        if verb == "forward":
            inputs, targets = next(self._batches, (None, None))
            return {"state": self._vector} if inputs is None else self._forward(view, inputs, targets)
        if verb == "backward":
            return self._backward(view, asked["gradient"])
        return super().answer(verb, asked, view)

    def _forward(self, view: SiteView, inputs: Tensor, targets: Tensor) -> Memory:
        model, found = view.model, list[Tensor]()
        model.load(self._vector)
        model.module.train()
        hook = model.record_features(found)
        with own_randomness("split", view.name, view.number, self._steps):
            model.module(inputs.to(model.vector.device))
        hook.remove()
        self._features, self._steps = found[0], self._steps + 1
        return {"features": found[0].detach().cpu(), "targets": targets}

    def _backward(self, view: SiteView, gradient: Tensor) -> Memory:
        model = view.model
        model.gradient.zero_()
        self._features.backward(gradient.to(model.vector.device))
        self._weights.grad = model.gradient.cpu().clone()
        with torch.no_grad():
            self._vector[view.trainable :] = model.vector[view.trainable :].cpu()
        self._optimizer.step()
        return {}
