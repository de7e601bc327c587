"""A part's end at a site: hooks of local training, what is kept there, and what is sent."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from polyclinic.errors import SiteError

if TYPE_CHECKING:
    from polyclinic.data.dataset import Dataset
    from polyclinic.parts.predictor import Network
    from polyclinic.privacy import Event
    from polyclinic.privacy.draws import Draws
    from polyclinic.secure import Signer
    from polyclinic.state import FlatModule, Layout
    from polyclinic.tasks import Task

Memory = dict[str, Tensor]
#: Which of a site's cases.
PartOfCases = Literal["train", "validation", "unlabelled"]


class SiteView(ABC):
    """What a part may see of its site. Of all this nothing leaves the site but what the part itself sends.

    Attributes:
        name: the site's name.
        vector: the whole model ``[P]``: at the start the first one, in a round as the site received it, with whatever
            stays at the site; in an answer what the server sent as ``state``, empty if it sent none. Not written to.
        layout: names, shapes, places and roles of its tensors.
        trainable: its first coordinates are weights.
        shapes: of those weights that are shared, one after another: T numbers in all.
        class_counts: training cases of each class, float64 ``[C]``; None where targets are not classes.
        number: rounds done before.
        rounds: of the whole training, at most.
        steps: of the site's local work in a round in which the parts take part, at most.
        batch_size: of these.
        input_shape: of one case in training; of bags that of an instance.
        bags: whether cases are bags of instances: inputs are ``[n, M, ...]``, NaN where a bag has no more of them.
        unannotated: structures that were not outlined in the site's masks.
        ends: of all parts at the site.
        learning_rate: of the round.
        identity: signs for the site, and knows the others' signatures; None where sites have no certificates.
        model: the network that does all work of this process. A part may load any vector into it.
        task: loss and measures.
        public: the public set, prepared; the same cases in the same order at all sites. None where no part needs it.
        sent: in ``adapted`` what the part's end at the server sent for it (`ServerEnd.predicting`).
    """

    name: str
    vector: Tensor
    layout: Layout
    trainable: int
    shapes: Sequence[tuple[int, ...]]
    class_counts: Tensor | None
    number: int
    rounds: int
    steps: int
    batch_size: int
    input_shape: tuple[int, ...]
    bags: bool
    unannotated: Sequence[int]
    ends: Sequence[SiteEnd]
    learning_rate: float
    identity: Signer | None
    model: FlatModule
    task: Task
    public: Dataset | None
    sent: Memory

    @abstractmethod
    def count(self, part: PartOfCases = "train") -> int:
        """How many cases there are in this fold."""

    @abstractmethod
    def cases(self, index: Tensor | None = None, part: PartOfCases = "train") -> tuple[Tensor, Tensor]:
        """Inputs ``[n, ...]`` and targets ``[n, ...]`` of some cases as the network gets them, without augmentation.

        Args:
            index: positions ``[n]`` in the part; None for all of it, in its order.
            part: targets of unlabelled cases mean nothing.
        """

    @abstractmethod
    def hints(self, index: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """Inputs ``[n, ...]`` of some unlabelled cases, augmented as in training, and what is known of their masks.

        Args:
            index: positions ``[n]`` among the unlabelled cases.
            seed: of the augmentation, and of boxes that are cut from volumes.

        Returns:
            The inputs, and uint8 ``[n, 1, ...]`` with the numbers of `polyclinic.candidates`.
        """

    @abstractmethod
    def people(self, part: PartOfCases = "train") -> Tensor:
        """Which of the site's patients each case of a part is of ``[n]``, as numbers that mean nothing else."""

    @abstractmethod
    def groups(self, subgroup: str) -> Sequence[str | None]:
        """The group of each training case by a column of `evaluation: {subgroups: ...}`; None where it is not known."""

    @abstractmethod
    def outputs(self, vector: Tensor, part: PartOfCases = "train") -> tuple[Tensor, Tensor]:
        """What a model ``[P]`` gives in evaluation for the cases of a part ``[n, ...]``, and their targets."""

    @abstractmethod
    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs ``[B, ...]`` and targets of each step of the round, augmented: the same that local training takes.

        For procedures in which sites do not train by themselves.
        """

    @abstractmethod
    def optimizer(self, parameters: Iterable[nn.Parameter]) -> Optimizer:
        """An optimiser as the study declares, with the learning rate of the round, likewise."""

    @abstractmethod
    def measure(self, vector: Tensor, part: Literal["train", "validation"] = "train") -> Mapping[str, float]:
        """``loss`` (mean) and ``accuracy`` (share of right classes, or Dice) of a model ``[P]``.

        A site without validation cases is measured on its training cases.
        """

    @abstractmethod
    def features(self, vector: Tensor, part: PartOfCases = "train") -> Tensor:
        """What the head of a model ``[P]`` is given in evaluation, averaged over places ``[n, G]``.

        Raises:
            TrainingError: P302 if the model has no head.
        """

    @abstractmethod
    def whole(self, state: Tensor) -> Tensor:
        """A model ``[P]`` from shared coordinates ``[Q]``, with what stays at the site."""

    @abstractmethod
    def shared(self, vector: Tensor) -> Tensor:
        """The shared coordinates ``[Q]`` of a model ``[P]``."""

    @abstractmethod
    def generator(self, *names: str | int) -> torch.Generator:
        """Random numbers of this training, site and round, apart from all others by ``names``."""

    @abstractmethod
    def recall(self, name: str) -> str | None:
        """What a part has noted under a name in this training, also if it was begun anew since; or None."""

    @abstractmethod
    def note(self, name: str, text: str) -> None:
        """Note something for ever, before what it is about leaves the site."""

    @abstractmethod
    def draws(self, *names: str | int) -> Draws:
        """Random numbers of noise that is to protect: in a simulation as from ``generator``, else nobody can repeat
        them."""

    @abstractmethod
    def solved(self, plan: Callable[[float], Iterable[Event]], part: str) -> float:
        """The least noise with which a ``part`` keeps the study's budget, where ``plan`` gives all that it does.

        Raises:
            StudyError: P102, the study has no budget; P305, no noise keeps it.
        """


class Beside(NamedTuple):
    """The network of one of several sites that are trained together.

    Attributes:
        outputs: of it in training for other cases; its statistics move on.
        vector: its whole state ``[P]``, without gradient.
    """

    outputs: Callable[[Tensor], Tensor]
    vector: Callable[[], Tensor]


@dataclass(frozen=True)
class Batch:
    """One batch in training.

    Attributes:
        inputs: ``[B, ...]``, on the model's device.
        targets: ``[B, ...]``.
        model: the network in the middle of a step; its weights are the site's current ones.
        received: whole state of the model that the site received ``[P]``, on the model's device; not written to.
        seed: of this step, for a part's own random numbers.
        outputs: of the network ``[B, ...]``, with gradient; empty before the network has run.
        features: what the head was given, averaged over places ``[B, G]``, with gradient; only where a part
            ``needs_features``.
        cases: which of the site's cases these are ``[B]``, int64 numbers that mean nothing else; empty where sites are
            trained together.
        beside: the network as it is, where sites are trained together and ``model`` only lends it.
    """

    inputs: Tensor
    targets: Tensor
    model: FlatModule
    received: Tensor
    seed: int
    outputs: Tensor
    features: Tensor
    cases: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    beside: Beside | None = None

    def again(self, inputs: Tensor) -> Tensor:
        """Outputs of the network in training for other cases ``[N, ...]``, with gradient; its statistics move on."""
        found: Tensor = self.model.module(inputs) if self.beside is None else self.beside.outputs(inputs)
        return found

    @property
    def state(self) -> Tensor | None:
        """The network's state for `polyclinic.client.features.frozen_outputs`; None where ``model`` holds it."""
        return None if self.beside is None else self.beside.vector()


@dataclass(frozen=True)
class Ended:
    """A site's round, for a part to learn from.

    Attributes:
        view: the site, with the model that it received.
        start: shared and private weights that the round started from ``[T]``.
        end: weights at its end ``[T]``; those that stay at the site are as in ``start``, so that a part learns and
            tells nothing of them.
        vector: whole state at its end ``[P]``, also of what stays at the site.
        own: the model for the site's own cases after the round ``[P]``: the personal one, or else ``vector``.
        steps: optimiser steps taken with the weights that are shared.
        path: gives the length ‖a‖₁ of these steps' weights: how far, in units of the learning rate, a constant
            gradient of 1 moves the weights in these steps. For plain SGD it is the number of steps.
    """

    view: SiteView
    start: Tensor
    end: Tensor
    vector: Tensor
    own: Tensor
    steps: int
    path: Callable[[], float]


class SiteEnd:
    """A part's end at a site. Every hook is optional, and a hook that is not overridden costs nothing.

    A part that does not override ``batch``, and overrides ``loss`` only with ``stacks_loss``, can be trained for many
    sites at once. If its ``gradient`` is written with broadcasting, one end changes the gradients of all sites
    (``[S, T]``), which is fast. It is not if that gives something else than each site's own end gives for its site
    (``[T]``): then each end is called for its own.

    Attributes:
        name: of the part.
        kept: what is kept at the site between rounds; it is saved with checkpoints. A hook that changes it puts new
            tensors into a new dictionary: what a round has left there counts only once the server says that the round
            counted, and is else as it was before.
        alone: why sites with it can't be trained together; empty if they can.
        stacks_loss: whether one end's ``loss`` may stand for those of many sites, run under `torch.func.vmap`: it is a
            mean over the cases of the batch, or of what is ``drawn`` for each step, works on tensors only, draws no
            random numbers, keeps nothing, does not read ``seed``, runs the network by ``batch.again``, and
            ``batch.state`` and other states of it by functions of `polyclinic.client.features`.
        differing: names of attributes that are not the same at all sites. With ``stacks_loss`` other hooks read them,
            ``loss`` does not: what it needs of them is ``drawn``.
        needs_features: whether ``loss`` reads the features of a batch.
        needs_body: whether the part changes nothing where no weights are trained before the head.
        needs_normalisation: whether it changes nothing where the network has no normalisation layers.
        needs_unlabelled: whether it changes nothing where sites have no cases without a label.
        needs_labels: whether it looks at labels of training or validation cases, besides counts of classes; then a site
            without any is left out. None says yes of ends that override ``batch`` or ``loss`` and need no cases
            without a label.
        supposes_scale: whether it changes features of a table by amounts that suppose a mean of 0 and a deviation of 1.
        zero_at_start: whether it changes nothing at the weights that a round starts from.
        spares_model: whether the site never trains the model with it, so that it does not matter how many cases a batch
            of the site's has.
    """

    name: str = ""
    alone: ClassVar[str] = ""
    stacks_loss: ClassVar[bool] = False
    differing: ClassVar[frozenset[str]] = frozenset()
    needs_features: ClassVar[bool] = False
    needs_body: ClassVar[bool] = False
    needs_normalisation: ClassVar[bool] = False
    needs_unlabelled: ClassVar[bool] = False
    needs_labels: bool | None = None
    supposes_scale: ClassVar[bool] = False
    zero_at_start: ClassVar[bool] = False
    spares_model: ClassVar[bool] = False
    _kept: Memory | None = None

    @property
    def learns_alone(self) -> bool:
        """Whether it learns at a site none of whose training cases has a label. Such a site takes part then: its steps
        go through the cases without a label, and the loss is what parts add to it."""
        return False

    @property
    def kept(self) -> Memory:
        """See above."""
        if self._kept is None:
            self._kept = {}
        return self._kept

    @kept.setter
    def kept(self, kept: Memory) -> None:
        self._kept = kept

    def meet(self, view: SiteView) -> Memory:
        """Called once, when training starts: what to tell the server. What ``kept`` starts with is put there now."""
        return {}

    def answer(self, verb: str, asked: Memory, view: SiteView) -> Memory:
        """Answer what the part's end at the server asks in between.

        Args:
            verb: what is asked.
            asked: tensors, by keys of the part's ``reveals``.
            view: the site in this round.

        Returns:
            Tensors likewise; the shared coordinates ``[Q]`` of a model are called ``state``, both ways.

        Raises:
            SiteError: P401 if there is no such question.
        """
        raise SiteError("P401", f"The part {self.name} answers no {verb!r}.", site=view.name)

    def begin(self, view: SiteView, received: Memory) -> Memory:
        """What the steps of this round are given; ``received`` is what the end at the server sent."""
        return {}

    def starts_at(self, vector: Tensor, view: SiteView, given: Memory) -> Tensor:
        """The model that the local training of this round starts from ``[P]``.

        What leaves the site is the change from the received model all the same, and distances are measured from there.

        Args:
            vector: the received model, or what a part before made of it ``[P]``; not written to.
            view: the site in this round.
            given: what ``begin`` gave.
        """
        return vector

    def own_starts_at(self, vector: Tensor, view: SiteView, given: Memory) -> Tensor:
        """The model that the training of a personal model starts from in this round ``[P]``, where it starts from the
        site's own.

        Args:
            vector: the site's own, or what a part before made of it ``[P]``; not written to.
            view: the site in this round.
            given: what ``begin`` gave.
        """
        return vector

    def class_weights(self, given: Memory) -> Tensor | None:
        """Weight of each class's cases in the loss ``[C]``, on top of the study's own; None leaves them alone."""
        return None

    def batch(self, batch: Batch, given: Memory) -> Batch:
        """The batch as the network shall see it."""
        return batch

    def outputs(self, outputs: Tensor, given: Memory) -> Tensor:
        """What the network gives in training ``[B, ...]``, as the loss shall see it: of this shape, with gradient."""
        return outputs

    def images(self, images: Tensor) -> Tensor:
        """Images as the network shall see them, in training, validation and tests alike: the last step before it.

        It is not asked while the ends ``meet``. What it gives for images that are not changed at random is remembered,
        so it has to be the same whenever it is asked.

        Args:
            images: scaled, ``[B, C, H, W]`` or ``[B, C, D, H, W]``.
        """
        return images

    def adapted(self, network: Network, index: Tensor, inputs: Callable[[Tensor], Tensor], view: SiteView) -> Network:
        """What predicts cases in a test, or validation cases for a threshold, instead of a network.

        Validation cases of the other rounds are predicted so, too, if the end at the server sends something for it.

        Args:
            network: of the best round.
            index: positions of all cases that are predicted ``[n]``.
            inputs: gives those of some of them, ``[B, ...]``; their labels are not to be had.
            view: the site, with the shared model as ``vector``, and what the end at the server ``sent`` for it.
        """
        return network

    def perturbation(self, gradient: Tensor, given: Memory) -> Tensor | None:
        """How far from the weights the gradient of the step shall be taken instead ``[T]``; None takes it there.

        Args:
            gradient: of the loss at the weights ``[T]``; not written to.
            given: what ``begin`` gave.
        """
        return None

    def drawn(self, seed: int) -> Memory:
        """What ``loss`` is given in a step besides what ``begin`` gave: cases of its own, say, or what changes from
        step to step. The same seed in the same step gives the same.

        Args:
            seed: of the step, the one in ``batch``.
        """
        return {}

    def loss(self, batch: Batch, given: Memory) -> Tensor | None:
        """A term to add to the mean loss of the batch, a scalar with gradient."""
        return None

    def gradient(self, gradient: Tensor, weights: Tensor, start: Tensor, given: Memory) -> None:
        """Change ``gradient`` in place.

        Args:
            gradient: of the loss at ``weights``, ``[T]`` or ``[S, T]``.
            weights: the site's current weights, same shape.
            start: the weights of the received model, same shape or broadcastable to it.
            given: what ``begin`` gave, tensors ``[T]`` or ``[S, T]``.
        """

    def spends(self) -> Sequence[Event]:
        """What a round costs of the privacy of the site's patients; asked when it has begun, and written down then."""
        return []

    def sends(self, ended: Ended) -> bool:
        """Whether the update leaves the site; asked before ``end``.

        If one part says no, the site answers with its numbers and no tensor, and nothing is kept of the round, here and
        in all other parts: it counts for the site as one in which it did not take part.
        """
        return True

    def end(self, ended: Ended, given: Memory) -> Memory:
        """What to send with the update; names are keys of the part's ``reveals``."""
        return {}

    def close(self, packed: Memory) -> Memory:
        """What leaves the site, from ``change [T]``, ``statistics [S]`` and what parts send (``part/name``).

        What is added is called ``part/name``, too, with a key of the part's ``reveals``. Parts close in order, and the
        server opens in the reverse order.
        """
        return packed


def looks_at_labels(end: SiteEnd) -> bool:
    """Whether an end does not work at a site without any label."""
    if end.needs_labels is not None:
        return end.needs_labels
    return not end.needs_unlabelled and (overrides(end, "batch") or overrides(end, "loss"))


def overrides(end: SiteEnd, hook: str) -> bool:
    """Whether an end at a site does anything in a hook."""
    return getattr(type(end), hook) is not getattr(SiteEnd, hook)
