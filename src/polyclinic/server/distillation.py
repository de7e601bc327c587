"""Distillation at the server: the mean of the sites' models learns on a public set what the models find together."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Annotated

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

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

    Normalisation works with the statistics that came out of the round, which stay, and nothing is dropped out. The
    server runs each model on the public set once a round, so memory grows with the number of sites.

    Source: Lin, Kong, Stich, Jaggi, Ensemble distillation for robust model fusion in federated learning, NeurIPS 2020,
    algorithm 1. There steps end early, once validation cases at the server show no gain, after at most 10000; here
    their number is fixed, since the server has no labels. Sites with other networks (algorithm 3) are not supported.

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

    def __init__(
        self, *, steps: Annotated[int, Field(ge=0)] = 100, lr: PositiveFloat = 0.001, batch_size: PositiveInt = 64,
        temperature: PositiveFloat = 1.0,
    ) -> None:  # fmt: skip
        self.steps, self.lr, self.batch_size, self.temperature = steps, lr, batch_size, temperature

    def begin(self, now: Now) -> None:
        """Begin a round."""
        super().begin(now)
        self._models: list[Tensor] = []

    def take(self, update: Update) -> Update:
        """Keep the site's model."""
        if self.steps:
            self._models.append(torch.cat([self.now.weights + update.change, update.statistics]))
        return update

    def finish(self, step: Step) -> Step:
        """Distil."""
        models, self._models = self._models, []
        if not self.steps or not models:
            return step
        before = torch.cat([self.now.weights + step.change, step.statistics])
        after = self.distilled(before, models)
        size = len(self.now.weights)
        return Step(after[:size] - self.now.weights, after[size:].clone(), step.shares)

    def distilled(self, vector: Tensor, models: Sequence[Tensor]) -> Tensor:
        """A model ``[P]`` after the steps of a round towards an ensemble of models ``[P]``.

        Raises:
            StudyError: P102, there is no public set here.
        """
        place, now = self.workplace, self.now
        public = place.public
        if public is None:
            raise StudyError("P102", f"{self.name} works on a public set, and the server has none.",
                             "Give `data: {public: ...}`.")  # fmt: skip
        wanted = torch.zeros(())
        for model in models:
            wanted = wanted + outputs_on(place.network, model, public).double() / len(models)
        targets = wanted.float()
        order = shuffled(len(public), self.batch_size, generator(self.name, now.seed, now.fold, now.number))
        return distil(
            place.network, vector, public, islice(order, self.steps),
            lambda outputs, index: divergence(place.task, outputs, targets[index], self.temperature),
            falling_adam(self.lr, self.steps),
        )  # fmt: skip
