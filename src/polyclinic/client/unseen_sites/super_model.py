"""A selector says for each case whose site's model predicts it: FedSM."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeInt, PositiveFloat
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from polyclinic.client.optimizers import restore_state, state_of
from polyclinic.client.unseen_sites.site_models import SITE_MODEL, SendsModel, SiteModels, by_number, pulled
from polyclinic.errors import PolyclinicError
from polyclinic.models import build_model
from polyclinic.parts import LOCAL_PARTS, Memory, Part, ServerEnd, SiteEnd, SiteView, Step
from polyclinic.parts.predictor import Network, Outputs, Predictor
from polyclinic.parts.site_end import PartOfCases
from polyclinic.server.rules import weighted_sum
from polyclinic.shapes import Shaped
from polyclinic.state import FlatModule

#: The number of the shared model, which is nobody's.
NOBODY = -1
_Share = Annotated[float, Field(ge=0, le=1)]


@LOCAL_PARTS.add("super_model")
class SuperModel(Part):
    """FedSM: a selector that tells sites apart says for each case which site's model predicts it, or the shared one.

    Each site sends its own model θ_k with its update: the personal one, if the method has a way to such a model, else
    the shared model as it has trained it. The server draws them towards each other (SoftPull), θ_k ← λ θ_k + (1 − λ)
    Σ_{j ≠ k} θ_j / (K − 1), and a personal model goes on from there in the next round. Of sites that are away the last
    one counts. The selector has an output a site. It is trained in each round with all training cases of the sites that
    are there: each answers the gradient of the mean cross-entropy, with itself as the class of all its cases, and the
    server makes a step of Adam with the mean of these by the sites' weights. When cases are predicted, also at a site
    that did not train, the selector's largest probability says whose θ_k predicts, if it is above γ; else the shared
    model does. The best round is chosen by such predictions, for which each site is sent the models of all.

    Source: Xu et al., Closing the generalization gap of cross-silo federated medical image segmentation, CVPR 2022.
    Taken from its abstract and from the authors' example for NVIDIA FLARE (research/fed-sm), the paper's text was not
    at hand. From there are SoftPull with λ = 0.7, γ = 0.9, one full-batch step of the selector in a round, and that
    sites do not train it by themselves: each has one class only. There sites make the step and the moments of Adam are
    averaged, which is the same but for the second one; the selector is VGG-11, here a small network without batch
    normalisation: two layers (32 features) for tables, three convolutions for images.

    Args:
        pull: λ; 1 leaves each site's model alone, 1 / K makes all the same.
        confidence: γ; 1 is the shared model for all cases.
        selector_steps: of the selector in a round.
        selector_lr: rate of Adam.
    """

    reveals: ClassVar = {
        "model": SITE_MODEL,
        "own": "the site's own model drawn towards the others': with two sites, the other's",
        "selector": "a network that tells the cases of all sites apart",
        "sites": "how many sites train",
        "place": "the number of the site among these",
        "gradient": "the gradient of the selector over all training cases of the site: without labels, and from few "
        "images can be made again",
    }  # fmt: skip
    shapes: ClassVar = {
        "model": Shaped("float32", "P", always="train"),
        "own": Shaped("float32", "P"),
        "selector": Shaped("float32", "G"),
        "sites": Shaped("int64", least=1),
        "place": Shaped("int64", least=0),
        "gradient": Shaped("float32", "G"),
    }
    tasks = ("classification", "multi_label", "regression", "segmentation")
    returns = True
    no_bags = True
    same_network = True

    def __init__(
        self, *, pull: _Share = 0.7, confidence: _Share = 0.9, selector_steps: NonNegativeInt = 5,
        selector_lr: PositiveFloat = 0.01,
    ) -> None:  # fmt: skip
        self.pull, self.confidence, self.steps, self.lr = pull, confidence, selector_steps, selector_lr

    def at_site(self) -> SiteEnd:
        """Trains its own model, tells its cases from others', and selects."""
        return _Selecting(self.confidence)

    def at_server(self) -> ServerEnd:
        """Keeps the models, and trains the selector."""
        return _SuperModel(self.pull, self.steps, self.lr)


class _Selecting(SendsModel):
    def __init__(self, confidence: float) -> None:
        self.confidence = confidence

    def begin(self, view: SiteView, received: Memory) -> Memory:
        return received

    def own_starts_at(self, vector: Tensor, view: SiteView, given: Memory) -> Tensor:
        """Where SoftPull has drawn it."""
        return given.get("own", vector)

    def answer(self, verb: str, asked: Memory, view: SiteView) -> Memory:
        """∇ of the selector's mean loss over the training cases ``[G]``."""
        if verb != "tell_apart":
            return super().answer(verb, asked, view)
        selector = Selector(view, asked["selector"], int(asked["sites"]))
        return {"gradient": selector.gradient(view, int(asked["place"]))}

    def adapted(self, network: Network, index: Tensor, inputs: Callable[[Tensor], Tensor], view: SiteView) -> Network:
        """The model that the selector chooses for each case."""
        if "selector" not in view.sent:
            return network
        selector, choice = Selector(view, view.sent["selector"], int(view.sent["sites"])), dict[int, int]()
        for some in index.split(view.batch_size):
            confidence, place = selector.probabilities(inputs(some)).max(1)
            place[~(confidence > self.confidence)] = NOBODY  # also where it is no number
            choice |= zip(some.tolist(), place.tolist(), strict=True)
        return Selected({**by_number(view.sent), NOBODY: view.vector}, choice)


class Selector:
    """A small network that tells sites apart, at a site.

    Args:
        view: the site.
        weights: of the network ``[G]``.
        sites: how many there are, K.
    """

    def __init__(self, view: SiteView, weights: Tensor, sites: int) -> None:
        self.network = selector_network(tuple(view.input_shape), sites).to(view.model.vector.device)
        vector_to_parameters(weights.to(view.model.vector.device, copy=True), self.network.parameters())

    def gradient(self, view: SiteView, place: int) -> Tensor:
        """∇ mean −log p(place) over the site's training cases ``[G]``, also where they have no labels."""
        part: PartOfCases = "train" if view.count() else "unlabelled"
        parameters, cases = list(self.network.parameters()), view.count(part)
        for index in torch.arange(cases).split(view.batch_size):
            inputs, _ = view.cases(index, part)
            with torch.enable_grad():
                outputs = self.network(inputs.to(parameters[0].device))
                wanted = torch.full((len(index),), place, device=outputs.device)
                (F.cross_entropy(outputs, wanted, reduction="sum") / cases).backward()
        return torch.cat([one.grad.flatten() for one in parameters if one.grad is not None]).cpu()

    def probabilities(self, inputs: Tensor) -> Tensor:
        """Of each site ``[B, K]`` for inputs ``[B, ...]``."""
        with torch.no_grad():
            found: Tensor = self.network(inputs.to(next(self.network.parameters()).device)).softmax(1)
        return found.cpu()


def selector_network(shape: tuple[int, ...], sites: int) -> nn.Module:
    """The selector with its first weights, for inputs of a shape (without the batch axis) from K sites."""
    if len(shape) == 1:
        return build_model("mlp", {"hidden": [32]}, shape, sites).module
    return build_model("cnn", {"norm": "group"}, shape, sites).module


@dataclass(frozen=True)
class Selected(Predictor):
    """One of several states of a network for each case.

    Attributes:
        models: a site's number -> its model ``[P]``; that of `NOBODY` for cases of sites that have none.
        choice: position of each case -> a site's number.
    """

    models: Mapping[int, Tensor]
    choice: Mapping[int, int]

    def in_use(self, model: FlatModule, index: Tensor) -> Iterator[tuple[Tensor, Outputs]]:
        """The cases of each model."""
        numbers = torch.tensor([self.choice[place] for place in index.tolist()])
        numbers[~torch.isin(numbers, torch.tensor(list(self.models)))] = NOBODY
        for number in numbers.unique().tolist():
            model.load(self.models[number])
            yield (numbers == number).nonzero().flatten(), model.module


class _SuperModel(SiteModels):
    leaves_out = frozenset({"tell_apart"})

    def __init__(self, pull: float, steps: int, lr: float) -> None:
        super().__init__()
        self.pull, self.steps, self.lr = pull, steps, lr

    def meet(self, announced: Mapping[str, Memory], everyone: Mapping[str, float]) -> None:
        super().meet(announced, everyone)
        network = selector_network(tuple(self.workplace.network.shape), len(everyone))
        self._selector, self._adam = parameters_to_vector(network.parameters()).detach(), dict[str, Tensor]()
        self._drawn = dict[str, Tensor]()

    def send(self, site: str) -> Memory:
        """Its own model after SoftPull, where that changes it."""
        moved = site in self._drawn and self._drawn[site] is not self.models[site]
        return {"own": self._drawn[site]} if moved else {}

    def finish(self, step: Step) -> Step:
        """The models count, and the selector learns."""
        step = super().finish(step)
        self._drawn = pulled(self.models, self.pull)
        for _ in range(self.steps):
            self._learn()
        return step

    def _learn(self) -> None:
        """A step of the selector with the sites of the round that answer."""
        selector, sites = self._selector, torch.tensor(len(self.everyone))
        asked = {
            site: {"selector": selector, "sites": sites, "place": torch.tensor(self.everyone.index(site))}
            for site in self.models
            if site in self.new
        }
        answers = {
            site: found["gradient"]
            for site, found in self.ask("tell_apart", asked)
            if not isinstance(found, PolyclinicError) and found["gradient"].shape == selector.shape
        }
        if not answers:
            return
        shares = torch.tensor([self.now.everyone[site] for site in answers], dtype=torch.float64)
        weights = nn.Parameter(selector.clone())
        weights.grad = weighted_sum(list(answers.values()), shares / shares.sum())
        optimizer = torch.optim.Adam([weights], lr=self.lr)
        restore_state(optimizer, [weights], self._adam)
        optimizer.step()
        self._selector, self._adam = weights.detach(), state_of(optimizer, [weights])

    def predicting(self) -> Memory:
        """The selector, and each site's model after SoftPull."""
        models = self.numbered(self._drawn)
        return {"selector": self._selector, "sites": torch.tensor(len(self.everyone)), **models} if models else {}

    def memory(self) -> Memory:
        return {
            **super().memory(),
            "selector": self._selector,
            **{f"adam_{name}": one for name, one in self._adam.items()},
        }

    def restore(self, memory: Memory) -> None:
        super().restore(memory)
        self._drawn = pulled(self.models, self.pull)
        self._selector = memory["selector"]
        self._adam = {name.removeprefix("adam_"): one for name, one in memory.items() if name.startswith("adam_")}
