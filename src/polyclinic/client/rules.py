"""What a local rule is: a small change to local training that composes with every other.

A rule may keep tensors at the site between rounds (its memory), may send tensors with the site's update, and may have a
counterpart at the coordinator that takes these in and sends something back. All of it is optional.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from polyclinic.options import Catalogue

if TYPE_CHECKING:
    from polyclinic.state import FlatModule

Memory = dict[str, Tensor]


@dataclass(frozen=True)
class SiteFacts:
    """What a rule may know of its site.

    Attributes:
        vector: first state of the model ``[P]``.
        trainable: the first T coordinates are weights.
        class_counts: training cases of each class, float64 ``[C]``; None where targets are not classes.
    """

    vector: Tensor
    trainable: int
    class_counts: Tensor | None


@dataclass(frozen=True)
class Ended:
    """A site's round, for a rule to learn from.

    Attributes:
        start: trainable weights that the round started from ``[T]``.
        end: trainable weights at its end ``[T]``; those that stay at the site are as in ``start``, so that a rule
            learns and tells nothing of them.
        vector: whole state at its end ``[P]``, also of what stays at the site.
        steps: optimiser steps taken with the weights that are shared.
        learning_rate: of the round.
        path: length ‖a‖₁ of these steps' weights: how far, in units of the learning rate, a constant gradient of 1
            moves the weights in these steps. For plain SGD it is the number of steps, and also where
            no rule ``needs_sgd``.
        received: what the counterpart sent at the start.
    """

    start: Tensor
    end: Tensor
    vector: Tensor
    steps: int
    learning_rate: float
    path: float
    received: Mapping[str, Tensor]


class Counterpart(ABC):
    """The coordinator's end of a rule that exchanges more than a model."""

    def announced(self, site: str, weight: float, announced: Memory) -> None:  # noqa: B027 - most rules announce nothing
        """Take in what a site says once, when training starts; ``weight`` is its declared weight."""

    @abstractmethod
    def send(self) -> Memory:
        """What every site is sent at the start of a round; names are keys of the rule's ``receives``."""

    def begin(self) -> None:  # noqa: B027 - see announced
        """Answers come in next; those that came before and were never finished, in a round given up, do not count."""

    def add(self, site: str, share: float, sent: Memory) -> None:  # noqa: B027 - see announced
        """Take in what a site sent with its update; ``share`` is its weight among all sites of the federation."""

    def finish(self) -> None:  # noqa: B027 - see announced
        """All answers of the round are in."""

    def memory(self) -> Memory:
        """What it keeps between rounds, for checkpoints."""
        return {}

    def restore(self, memory: Memory) -> None:  # noqa: B027 - see announced
        """Take back what ``memory`` gave."""


class LocalRule(ABC):  # noqa: B024 - its three kinds are below
    """A rule of local training.

    Attributes:
        announces: what a site sends once when training starts: name -> what that could reveal.
        sends: what it sends with every update: name -> what that could reveal.
        receives: what it is sent every round: name -> what that could reveal to the site.
        not_stackable: why sites with this rule can't be trained together; empty where they can.
        zero_at_start: whether it changes nothing at the weights that a round starts from.
        needs_body: whether it changes nothing where no weights are trained before the head.
        needs_sgd: whether it reads gradients off the way that SGD went.
        partner: the part of the server rule, with the same options, without which it makes no sense; or "".
        tasks: what it is for; empty for all tasks.
    """

    announces: ClassVar[Mapping[str, str]] = {}
    sends: ClassVar[Mapping[str, str]] = {}
    receives: ClassVar[Mapping[str, str]] = {}
    not_stackable: ClassVar[str] = ""
    zero_at_start: ClassVar[bool] = False
    needs_body: ClassVar[bool] = False
    needs_sgd: ClassVar[bool] = False
    partner: ClassVar[str] = ""
    tasks: ClassVar[tuple[str, ...]] = ()

    def counterpart(self) -> Counterpart | None:
        """A new counterpart for one training, or None."""
        return None

    def announce(self, site: SiteFacts) -> Memory:
        """What the site says once; names are keys of ``announces``."""
        return {}

    def initial(self, site: SiteFacts) -> Memory:
        """What the rule keeps at the site before the first round."""
        return {}

    def begin(self, start: Tensor, memory: Memory, received: Mapping[str, Tensor]) -> Memory:
        """What the steps of this round are given.

        Args:
            start: trainable weights that the round starts from ``[T]``.
            memory: what is kept at the site; not written to.
            received: what the counterpart sent.
        """
        return {}

    def end(self, ended: Ended, memory: Memory) -> tuple[Memory, Memory]:
        """What to keep for the next round, and what to send with the update (keys of ``sends``)."""
        return memory, {}


class GradientRule(LocalRule):
    """A rule that changes the gradient of each local step.

    It is written with broadcasting, so the same code serves one site (``[T]``) and many stacked sites (``[S, T]``).
    """

    @abstractmethod
    def gradient(self, gradient: Tensor, weights: Tensor, start: Tensor, given: Memory) -> None:
        """Change ``gradient`` in place.

        Args:
            gradient: of the loss at ``weights``, ``[T]`` or ``[S, T]``.
            weights: the site's current trainable weights, same shape.
            start: the weights it started the round from, same shape or broadcastable to it.
            given: what ``begin`` gave, tensors ``[T]`` or ``[S, T]``.
        """


class WeightingRule(LocalRule):
    """A rule that weights the cases of each class in the loss."""

    @abstractmethod
    def class_weights(self, memory: Memory, received: Mapping[str, Tensor]) -> Tensor:
        """Weight of each class's cases ``[C]``; multiplies the study's own class weights."""


@dataclass(frozen=True)
class Batch:
    """One batch in training, for rules that add to the loss.

    Attributes:
        model: the network in the middle of a step; its weights are the site's current ones.
        inputs: ``[B, ...]``, on the model's device.
        targets: ``[B, ...]``.
        features: what the head was given for these inputs, averaged over places: ``[B, G]``, with gradient.
        outputs: of the network ``[B, ...]``, with gradient.
        received: whole state of the model that the site received ``[P]``, on the model's device; not written to.
    """

    model: FlatModule
    inputs: Tensor
    targets: Tensor
    features: Tensor
    outputs: Tensor
    received: Tensor


def mean_over_places(features: Tensor) -> Tensor:
    """Features of cases ``[B, G]`` from features of places in them ``[B, G, ...]``."""
    return features.flatten(2).mean(2) if features.dim() > 2 else features


class LossRule(LocalRule):
    """A rule that adds a term to the loss of each batch."""

    not_stackable = "a rule adds to the loss of each batch"

    @abstractmethod
    def loss(self, batch: Batch, given: Memory) -> Tensor:
        """The term, a scalar with gradient; ``given`` is what ``begin`` gave."""


#: Local rules by the name used under ``local:`` in a study file.
LOCAL_RULES: Catalogue[type[LocalRule]] = Catalogue("local rule")
