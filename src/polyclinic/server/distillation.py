"""Distillation at the server: the mean of the sites' models learns on a public set what the models find together."""

from __future__ import annotations

from itertools import islice
from typing import Annotated

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from polyclinic.data.dataset import Dataset
from polyclinic.errors import StudyError
from polyclinic.parts import SERVER_PARTS, Now, ServerPart, Step, Update
from polyclinic.parts.distilling import distil, divergence, falling_adam, outputs_on, shuffled
from polyclinic.seeds import generator


@SERVER_PARTS.add("ensemble_distillation")
class EnsembleDistillation(ServerPart):
    """FedDF: after a round's models are put together, the model learns on a public set what the ensemble of them finds.

    x ← x − η ∂KL(σ(1/K Σ f_k(d)), σ(f(d))) / ∂x on batches d of the public set, starting from the mean of the models
    (or what other parts made of it). The ensemble is the mean of the logits of the models that sites sent in this round
    (AvgLogits), each once. Adam, with a rate that falls to 0 along a cosine over the steps of a round. Of numbers to be
    predicted the mean squared difference takes the place of the divergence.

    Sites may have networks of their own (``networks:`` in a study file). Then those with the same network share a
    model: it starts from the mean of theirs, and learns what the models of all sites find together, whatever their
    networks. A model of which nobody sends an update in a round stays as it is.

    Normalisation works with the statistics that came out of the round, which stay, and nothing is dropped out. The
    server runs each model on the public set once a round.

    Source: Lin, Kong, Stich, Jaggi, Ensemble distillation for robust model fusion in federated learning, NeurIPS 2020,
    algorithm 1, and algorithm 3 for different networks; that the logits are those of the models of all networks, and
    that each network's model is tested by itself, the authors say beside their code (federated-learning-public-code).
    There steps end early, once validation cases at the server show no gain, after at most 10000; here their number
    is fixed, since the server has no labels.

    Args:
        steps: in a round; 0 is the round without it.
        lr: η at a round's first step.
        batch_size: public cases in a step.
        temperature: of the probabilities; 1 in the paper.
    """

    tasks = ("classification", "segmentation", "regression")
    needs_each = True
    needs_public = True
    needs_whole = True
    same_network = True
    model_per_network = True

    def __init__(
        self, *, steps: Annotated[int, Field(ge=0)] = 100, lr: PositiveFloat = 0.001, batch_size: PositiveInt = 64,
        temperature: PositiveFloat = 1.0,
    ) -> None:  # fmt: skip
        self.steps, self.lr, self.batch_size, self.temperature = steps, lr, batch_size, temperature

    def begin(self, now: Now) -> None:
        """Begin a round."""
        super().begin(now)
        self.found: list[Tensor] = []

    def take(self, update: Update) -> Update:
        """Look what the site's model finds in the public set ``[U, V]``."""
        if self.steps:
            model = torch.cat([self.now.weights + update.change, update.statistics])
            self.found.append(outputs_on(self.workplace.network, model, self._public()))
        return update

    def finish(self, step: Step) -> Step:
        """Distil."""
        ends = [end for end in self.counterparts if isinstance(end, EnsembleDistillation)] or [self]
        found = [logits for end in ends for logits in end.found]
        if not found:
            return step
        before = torch.cat([self.now.weights + step.change, step.statistics])
        after = self._distilled(before, sum((one.double() / len(found) for one in found), torch.zeros(())).float())
        size = len(self.now.weights)
        return Step(after[:size] - self.now.weights, after[size:].clone(), step.shares)

    def _distilled(self, vector: Tensor, targets: Tensor) -> Tensor:
        """A model ``[P]`` after the steps of a round towards logits of the public cases ``[U, V]``."""
        place, now, public = self.workplace, self.now, self._public()
        order = shuffled(len(public), self.batch_size, generator(self.name, now.seed, now.fold, now.number))
        return distil(
            place.network, vector, public, islice(order, self.steps),
            lambda outputs, index: divergence(place.task, outputs, targets[index], self.temperature),
            falling_adam(self.lr, self.steps),
        )  # fmt: skip

    def _public(self) -> Dataset:
        """The public set.

        Raises:
            StudyError: P102, there is none here.
        """
        if self.workplace.public is None:
            raise StudyError("P102", f"{self.name} works on a public set, and the server has none.",
                             "Give `data: {public: ...}`.")  # fmt: skip
        return self.workplace.public
