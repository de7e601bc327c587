"""Networks for bags of instances: an encoder of instances, a pooling of what it finds, and the encoder's head.

The encoder is any network of the catalogue that ends in a fully connected layer. That layer is its head: it is taken
off and put behind the pooling, so a bag of one instance gives what the encoder alone gives.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from polyclinic.models.catalogue import MODELS, Built
from polyclinic.options import EntryError, Place

#: Instances that the encoder is given at once when nothing is trained: rows of a table, and images.
_ROWS, _IMAGES = 1 << 14, 64
#: An encoder as a study file names it: ``cnn``, or ``{cnn: {channels: [8, 16]}}``.
Encoder = str | dict[str, dict[str, Any] | None]


class Pooling(nn.Module, ABC):
    """What becomes of the instances of a bag: a vector with as many numbers as each of them has."""

    @abstractmethod
    def forward(self, features: Tensor, there: Tensor) -> Tensor:
        """Pool.

        Args:
            features: of instances ``[B, M, D]``; 0 where there is none.
            there: bool ``[B, M]``, which instances there are; one at least in each bag.

        Returns:
            ``[B, D]``.
        """


class Mean(Pooling):
    """The mean of all instances."""

    def forward(self, features: Tensor, there: Tensor) -> Tensor:
        """See `Pooling.forward`."""
        found: Tensor = features.sum(1) / there.sum(1, keepdim=True).to(features.dtype)
        return found


class Maximum(Pooling):
    """Of each feature the largest among the instances."""

    def forward(self, features: Tensor, there: Tensor) -> Tensor:
        """See `Pooling.forward`."""
        found: Tensor = features.masked_fill(~there[..., None], -torch.inf).amax(1)
        return found


class GatedAttention(Pooling):
    """Σ a_k h_k with weights a_k = softmax_k( w · (tanh(V h_k) ⊙ σ(U h_k)) ).

    Source: Ilse et al., Attention-based deep multiple instance learning, ICML 2018, equations 7 and 9. As in Lu et al.,
    Medical Image Analysis 2022 (HistoFL), V, U and w have biases.
    """

    def __init__(self, features: int, hidden: int) -> None:
        super().__init__()
        self.value, self.gate = nn.Linear(features, hidden), nn.Linear(features, hidden)
        self.score = nn.Linear(hidden, 1)
        self.attention = nn.Softmax(dim=1)

    def forward(self, features: Tensor, there: Tensor) -> Tensor:
        """See `Pooling.forward`. What ``attention`` gives are the weights ``[B, M]``, 0 where there is no instance."""
        scores = self.score(self.value(features).tanh() * self.gate(features).sigmoid())[..., 0]
        weights = self.attention(scores.masked_fill(~there, -torch.inf))
        found: Tensor = (weights[..., None] * features).sum(1)
        return found


class BagNetwork(nn.Module):
    """A network for bags of instances of different numbers.

    Args:
        encoder: gives features ``[R, D]`` of instances ``[R, ...]``.
        pooling: puts those of a bag together.
        head: gives the outputs ``[B, O]`` from ``[B, D]``.
        axes: of one instance.
    """

    def __init__(self, encoder: nn.Module, pooling: Pooling, head: nn.Module, axes: int) -> None:
        super().__init__()
        self.encoder, self.pooling, self.head = encoder, pooling, head
        self._axes = axes

    def forward(self, bags: Tensor) -> Tensor:
        """Outputs ``[B, O]``.

        Args:
            bags: ``[B, M, ...]``, NaN where a bag has no more instances (`polyclinic.data.bags.PADDING`); or
                ``[B, ...]``, bags of one instance each. What stands for no instance is never given to the encoder.
        """
        if bags.ndim == self._axes + 1:
            bags = bags[:, None]
        if bags.shape[1] == 1:
            found = self.encoder(bags[:, 0])
            features, there = found[:, None], torch.ones(bags.shape[:2], dtype=torch.bool, device=bags.device)
        else:
            there = ~bags.flatten(2).isnan().all(2)
            found = self._encoded(bags[there])
            features = found.new_zeros(*there.shape, found.shape[1])
            features[there] = found
        outputs: Tensor = self.head(self.pooling(features, there))
        return outputs

    def _encoded(self, instances: Tensor) -> Tensor:
        if torch.is_grad_enabled() or self.training:
            found: Tensor = self.encoder(instances)
            return found
        at_once = _ROWS if self._axes == 1 else _IMAGES
        return torch.cat([self.encoder(piece) for piece in instances.split(at_once)])


def pools_bags(module: nn.Module) -> bool:
    """Whether a network is for bags, whose numbers of instances differ."""
    return isinstance(module, BagNetwork)


def attention_of(module: nn.Module) -> nn.Module | None:
    """What gives the weights ``[B, M]`` of instances in a network; None if nothing does."""
    pooling = module.pooling if isinstance(module, BagNetwork) else None
    return pooling.attention if isinstance(pooling, GatedAttention) else None


@MODELS.add("gated_attention")
def gated_attention(
    shape: tuple[int, ...], outputs: int, *, encoder: Encoder = "mlp", hidden: PositiveInt = 128
) -> Built:
    """For bags: the encoder's instances count as gated attention finds (Ilse 2018; Lu 2022)."""
    module, head, features = _taken_apart("gated_attention", encoder, shape, outputs)
    return BagNetwork(module, GatedAttention(features, hidden), head, len(shape)), [head]


@MODELS.add("mean_pooling")
def mean_pooling(shape: tuple[int, ...], outputs: int, *, encoder: Encoder = "mlp") -> Built:
    """For bags: the mean of what the encoder finds in the instances."""
    module, head, _ = _taken_apart("mean_pooling", encoder, shape, outputs)
    return BagNetwork(module, Mean(), head, len(shape)), [head]


@MODELS.add("max_pooling")
def max_pooling(shape: tuple[int, ...], outputs: int, *, encoder: Encoder = "mlp") -> Built:
    """For bags: of each feature the largest that the encoder finds in the instances."""
    module, head, _ = _taken_apart("max_pooling", encoder, shape, outputs)
    return BagNetwork(module, Maximum(), head, len(shape)), [head]


#: Those of them that say how much each instance counts.
ATTENDING = ("gated_attention",)
#: Networks for bags; each has the option ``encoder``.
POOLING = ("gated_attention", "mean_pooling", "max_pooling")


def resolve_pooled(name: str, options: dict[str, Any], place: Place) -> dict[str, Any]:
    """``options`` of a network for bags in which the encoder's are complete, too; those of other networks as they are.

    Raises:
        EntryError: P103 or P104, there is no such network, or it can't encode instances.
    """
    if name not in POOLING:
        return options
    where = (*place, name, "encoder")
    inner, own = MODELS.resolve(options["encoder"], where)
    if inner in (*POOLING, "unrolled", "bundle"):
        hint = "Name a network that takes single cases, such as mlp, cnn or resnet."
        raise EntryError("P104", f"{inner} can't be the encoder of instances.", hint, place=where)
    return {**options, "encoder": {inner: own}}


def _taken_apart(
    name: str, encoder: Encoder, shape: tuple[int, ...], outputs: int
) -> tuple[nn.Module, nn.Module, int]:  # fmt: skip
    """The network without its last layer, that layer, and how many numbers it is given."""
    entry = {encoder: None} if isinstance(encoder, str) else encoder
    (inner, options), *_ = entry.items()
    module, heads = MODELS[inner](shape, outputs, **(options or {}))
    layers = [layer for head in heads for layer in head.modules() if not list(layer.children())]
    last = layers[-1] if len(heads) == 1 and layers else None
    if not isinstance(last, nn.Linear):
        raise ValueError(f"{name} can't use the network {inner}: it does not end in one fully connected layer")
    if module is last:
        return nn.Identity(), last, last.in_features
    path = next(path for path, layer in module.named_modules() if layer is last)
    parent, _, own = path.rpartition(".")
    setattr(module.get_submodule(parent), own, nn.Identity())
    return module, last, last.in_features
