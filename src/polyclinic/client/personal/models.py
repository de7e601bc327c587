"""Personal models: what a site trains for its own cases besides, or around, the shared model."""

from __future__ import annotations

import math
from abc import ABC
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveInt
from torch import Tensor, nn

from polyclinic.client.companion import Companion
from polyclinic.client.drift.corrections import Proximal
from polyclinic.client.optimizers import Named, build_optimizer, is_elementwise
from polyclinic.client.work import Work, clip_gradient
from polyclinic.errors import TrainingError
from polyclinic.options import Catalogue
from polyclinic.parts import Memory, SiteEnd, SiteView
from polyclinic.parts.predictor import Network
from polyclinic.randomness import kept_randomness
from polyclinic.state import FlatModule, Layout, Role, Selection


@dataclass(frozen=True)
class Phase:
    """One of the trainings that a site does in a round, one after another.

    Attributes:
        work: what is done.
        start: where it starts: at the ``received`` model, at what the phase before gave (``before``), or at the site's
            ``personal`` model. Distances are always measured from the received model.
        gives: whether it gives the model to be ``shared`` or the ``personal`` one.
        trained: the coordinates that are trained; None for all weights.
        declared: whether its length is what the study declares, which may give each site its own; otherwise it is what
            ``work`` says.
        ends: what changes its steps; None for the parts of the method.
    """

    work: Work
    start: Literal["received", "before", "personal"] = "received"
    gives: Literal["shared", "personal"] = "shared"
    trained: Selection | None = None
    declared: bool = True
    ends: Sequence[SiteEnd] | None = None


class Personal(ABC):  # noqa: B024 - each changes some of it
    """A way to have a personal model; its memory stays at the site.

    Attributes:
        unseen: what a site that did not train gets, for people.
        not_stackable: why sites can't be trained together; empty where they can.
        keeps_optimizer: whether the local optimisers may keep their state between rounds.
        mixed_precision: whether it can be trained in mixed precision.
        shares: what a method may share with it, keys of `polyclinic.methods.SHARES`; empty for anything.
        starts_own: whether the site also trains from its ``model``: what makes it its own is then a private part of the
            received model, for all other parts, too, and the change that leaves the site is measured from there.
        tasks: kinds of tasks that it is for; empty for all.
    """

    unseen: ClassVar[str] = (
        "the shared model, or the mean of all sites' predictions where sites keep a part of the model"
    )
    not_stackable: ClassVar[str] = ""
    keeps_optimizer: ClassVar[bool] = True
    mixed_precision: ClassVar[bool] = True
    shares: ClassVar[tuple[str, ...]] = ()
    starts_own: ClassVar[bool] = False
    tasks: ClassVar[tuple[str, ...]] = ()

    def initial(self, view: SiteView) -> Memory:
        """What is kept before the first round."""
        return {}

    def phases(self, work: Work, layout: Layout) -> Sequence[Phase]:
        """The trainings of a round.

        Raises:
            TrainingError: P302 if the model has not the parts that are trained.
        """
        return [Phase(work)]

    def companion(self, memory: Memory, optimizer: Named, clip: float | None, batches: int) -> Companion | None:
        """What is trained beside the shared model in the first phase, with the round's optimiser and clipping.

        ``batches`` is on how many it was trained before.
        """
        return None

    def model(self, shared: Tensor, memory: Memory) -> Tensor:
        """The model for the site's own cases ``[P]`` from the shared one ``[P]``."""
        return shared

    def predictor(self, shared: Tensor, memory: Memory) -> Network:
        """What predicts the site's own cases, where it is more than one network."""
        return self.model(shared, memory)

    def end(self, memory: Memory, shared: Tensor, personal: Tensor | None, companion: Companion | None) -> Memory:
        """What to keep after a round; ``shared`` and ``personal`` are what phases gave as such a model ``[P]``."""
        return memory


#: Ways to a personal model by the name used under ``personal:`` in a study file.
PERSONAL: Catalogue[type[Personal]] = Catalogue("personal model")


@PERSONAL.add("shared_model")
class SharedModel(Personal):
    """No personal model: the site's own cases get the shared one, with whatever the site does not share."""


@PERSONAL.add("ditto")
class Ditto(Personal):
    """Ditto: a personal model v_k held near the shared one, v_k ← v_k − η (∇F_k(v_k) + λ (v_k − w)).

    w is the received model. The shared model is trained as without it, and the personal one after it on the same
    batches. Local rules change the shared model's training only.

    Source: Li et al., Ditto: fair and robust federated learning through personalization, ICML 2021, algorithm 1. There
    the personal model makes its own number s of steps; here it does the same work as the shared one, or ``epochs``, and
    with any optimiser.

    Args:
        weight: λ; 0 is training alone.
        epochs: passes of the personal training in a round; None for the same work as for the shared model.
    """

    def __init__(self, *, weight: NonNegativeFloat = 0.1, epochs: PositiveInt | None = None) -> None:
        self.weight, self.epochs = weight, epochs

    def initial(self, view: SiteView) -> Memory:
        """v_k is the first model."""
        return {"model": view.vector.clone()}

    def phases(self, work: Work, layout: Layout) -> Sequence[Phase]:
        """The shared model, then the personal one."""
        own = work if self.epochs is None else replace(work, epochs=self.epochs, steps=None)
        near = [Proximal(mu=self.weight)]
        return [
            Phase(work),
            Phase(own, start="personal", gives="personal", declared=self.epochs is None, ends=near),
        ]

    def model(self, shared: Tensor, memory: Memory) -> Tensor:
        """v_k, with its own statistics."""
        return memory["model"]

    def end(self, memory: Memory, shared: Tensor, personal: Tensor | None, companion: Companion | None) -> Memory:
        """v_k after the round."""
        return memory if personal is None else {"model": personal.clone()}


@PERSONAL.add("second_model")
class SecondModel(Ditto):
    """A model of the site's own, trained beside the shared one, on the same batches, as if it were alone.

    It goes on from where it was, or where a part moves it to (`super_model`). That is Ditto with λ = 0.

    Args:
        epochs: passes of its training in a round; None for the same work as for the shared model.
    """

    def __init__(self, *, epochs: PositiveInt | None = None) -> None:
        super().__init__(weight=0.0, epochs=epochs)


@PERSONAL.add("head_then_body")
class HeadThenBody(Personal):
    """FedRep: in each round the site's own head is trained on the fixed received body, then the body under that head.

    Normalisation layers belong to the body. Their statistics also move while the head is trained; no weight does.

    Source: Collins et al., Exploiting shared representations for personalized federated learning, ICML 2021,
    algorithm 1; heads are trained for 10 epochs in its experiments.

    Args:
        head_epochs: passes of the head's training in a round; the body does the study's local work.
    """

    unseen = "the mean of all sites' predictions"
    keeps_optimizer = False
    shares = ("body",)

    def __init__(self, *, head_epochs: PositiveInt = 10) -> None:
        self.head_epochs = head_epochs

    def phases(self, work: Work, layout: Layout) -> Sequence[Phase]:
        """The head, then the body."""
        head, body = layout.select({Role.HEAD}), layout.select(set(Role) - {Role.HEAD})
        if not head.trainable or not body.trainable:
            raise TrainingError("P302", f"The model has nothing but a {'body' if body.trainable else 'head'}, and "
                                "head_then_body trains both in turn.", "Choose another model.")  # fmt: skip
        first = replace(work, epochs=self.head_epochs, steps=None)
        return [Phase(first, trained=head, declared=False), Phase(work, start="before", trained=body)]


@PERSONAL.add("apfl")
class AdaptiveMixture(Personal):
    """APFL: the site's own cases get v̄ = α v + (1 − α) w, where v and the mixture's weight α stay at the site.

    With each step of w on a batch also v ← v − η α ∇F_k(v̄), by an optimiser of the same kind; once a round, at its
    first step, α ← α − η ⟨v − w, ∇F_k(v̄)⟩, clipped to [0, 1]. Statistics of normalisation layers are the mixture's
    own. What gradient rules add is for w only; terms of loss rules and weights of classes count for both.

    Source: Deng et al., Adaptive personalized federated learning, arXiv 2003.13461, algorithm 1. As there and unlike in
    the authors' code, v̄ in a step is that of before the step of w, and α is not drawn towards 0 besides.

    Args:
        mixture: α at the start; 0 is the shared model.
        learn_mixture: whether α is learned.
    """

    not_stackable = "apfl trains a second model beside the first"
    keeps_optimizer = False
    mixed_precision = False

    def __init__(self, *, mixture: Annotated[float, Field(ge=0, le=1)] = 0.5, learn_mixture: bool = True) -> None:
        self.mixture, self.learn_mixture = mixture, learn_mixture

    def initial(self, view: SiteView) -> Memory:
        """v is the first model."""
        weights, statistics = view.vector[: view.trainable], view.vector[view.trainable :]
        mixture = torch.tensor(self.mixture, dtype=torch.float64)
        return {"weights": weights.clone(), "statistics": statistics.clone(), "mixture": mixture}

    def companion(self, memory: Memory, optimizer: Named, clip: float | None, batches: int) -> Companion | None:
        """Trains v."""
        return Beside(memory, optimizer, clip, batches, learn=self.learn_mixture)

    def model(self, shared: Tensor, memory: Memory) -> Tensor:
        """v̄."""
        weights = memory["weights"]
        return torch.cat([shared[: len(weights)].lerp(weights, float(memory["mixture"])), memory["statistics"]])

    def end(self, memory: Memory, shared: Tensor, personal: Tensor | None, companion: Companion | None) -> Memory:
        """v, α and the mixture's statistics after the round."""
        return companion.memory() if isinstance(companion, Beside) else memory


class Beside(Companion):
    """Trains v for a round, mixed with the shared model; see `AdaptiveMixture`."""

    def __init__(self, memory: Memory, optimizer: Named, clip: float | None, batches: int, *, learn: bool) -> None:
        self.named, self.clip, self.batches, self.learn = optimizer, clip, batches, learn
        self.weights, self.statistics = nn.Parameter(memory["weights"].clone()), memory["statistics"].clone()
        self.mixture = float(memory["mixture"])
        self.optimizer: torch.optim.Optimizer | None = None
        self.parameters: list[nn.Parameter] = []
        self.shapes: list[tuple[int, ...]] = []

    def step(self, model: FlatModule, backward: Callable[[], Tensor]) -> None:
        """One step of v and, in the first step of a round, of α."""
        first = self.optimizer is None
        if self.optimizer is None:
            self.weights.data, self.statistics = self.weights.to(model.vector), self.statistics.to(model.vector)
            self.shapes = [(model.layout.trainable,)]
            if not is_elementwise(self.named):  # it looks at whole tensors
                self.shapes = [entry.shape for entry in model.layout.entries if entry.trainable]
            self.parameters = [nn.Parameter(part) for part in self._parts(self.weights.detach())]
            self.optimizer = build_optimizer(self.named, self.parameters)
        shared, own = model.weights.detach().clone(), self.weights.detach()
        with _lent(model):
            model.load(torch.cat([shared.lerp(own, self.mixture), self.statistics]), self.batches)
            backward()
            self.batches += 1
            self.statistics = model.vector[len(own) :].clone()
        slope = float((own - shared) @ model.gradient)
        gradient = model.gradient * self.mixture
        clip_gradient(gradient, self.clip)
        for parameter, part in zip(self.parameters, self._parts(gradient), strict=True):
            parameter.grad = part
        self.optimizer.step()
        if self.learn and first:
            self.mixture = min(max(self.mixture - self.named[1]["lr"] * slope, 0.0), 1.0)

    def _parts(self, vector: Tensor) -> list[Tensor]:
        """What the optimiser is given of a vector ``[T]``, as views."""
        parts = vector.split([math.prod(shape) for shape in self.shapes])
        return [part.view(shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def memory(self) -> Memory:
        """See `AdaptiveMixture.initial`."""
        mixture = torch.tensor(self.mixture, dtype=torch.float64)
        found = {"weights": self.weights.detach(), "statistics": self.statistics, "mixture": mixture}
        return {name: tensor.to("cpu", copy=True) for name, tensor in found.items()}


@contextmanager
def _lent(model: FlatModule) -> Iterator[None]:
    """Another model may be put into ``model``; afterwards it is as before, and so are random numbers."""
    put_back = model.remember()
    try:
        with kept_randomness(model.vector.device):
            yield
    finally:
        put_back()
