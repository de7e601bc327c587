"""Momentum contrast: a pretraining in which each site learns to find its cases again in other views, without labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeInt, PositiveFloat
from torch import Tensor

from polyclinic.client.features import feature_count, frozen_features
from polyclinic.client.few_labels.views import strong_view, weak_view
from polyclinic.parts import LOCAL_PARTS, Batch, Ended, Memory, Now, Part, ServerEnd, SiteEnd, SiteView, Step, Update
from polyclinic.seeds import derive_seed
from polyclinic.shapes import Shaped
from polyclinic.state import FlatModule

_Share = Annotated[float, Field(ge=0, le=1)]


@LOCAL_PARTS.add("momentum_contrast")
class MomentumContrast(Part):
    """FedMoCo: in the first rounds sites learn without labels to find each case again, in another view, among others.

    In each step of these rounds two strong views of every case i of the batch are taken. The network makes features q_i
    of one (what its head is given, averaged over places, of length 1), and a second network, whose weights follow those
    of the first, θ' ← m θ' + (1 − m) θ, makes a key k_i of the other. The loss is the mean over the batch of
    −log(e^{q_i k_i/T} / (e^{q_i k_i/T} + Σ_n e^{q_i n/T})). n are the keys of the other cases in the batch, those of
    earlier batches, of which the site keeps a queue, and some that are drawn anew in each step from a normal
    distribution with the mean and deviation that keys had at all sites in the round before. θ' and the queue stay at
    the site. The head is as it was drawn until these rounds are over; then the network is trained with labels as usual,
    and of this part nothing is left.

    Source: Dong, Voiculescu, Federated contrastive learning for decentralized unlabeled medical images, MICCAI 2021, by
    its abstract: momentum contrast at each site, statistics of features that go from site to site as further cases to
    compare with (metadata transfer), and fine-tuning with few labels. Its text was not at hand, so how they are drawn
    is ours, and so is that sites are told one mean and deviation of all. Its weights of the sites by the similarity of
    representations (self-adaptive aggregation) are left out: any server rule can be named. In Wu et al., Federated
    contrastive learning for volumetric medical image segmentation, MICCAI 2021, features of single cases go from site
    to site instead, which would show more of patients. The loss is He et al., Momentum contrast for unsupervised visual
    representation learning, CVPR 2020, equation 1. There only earlier keys are compared with, features go through one
    more layer, and keys are made with normalisation as in training; here that is as in evaluation, other cases of the
    batch count, too, and earlier keys of the same case, which small sites soon meet again, don't.

    Args:
        pretraining_rounds: how many of the study's rounds, the first ones; 0 changes nothing.
        temperature: T.
        momentum: m.
        queue: most keys of earlier batches that a site keeps.
        drawn: keys from the distribution of all sites in each step; 0 shares nothing besides the weights.
        strength: of the views, see `polyclinic.client.few_labels.views.strong_view`.
    """

    reveals: ClassVar = {
        "mean": "the mean of each feature over the site's cases and their views: of a single case its features",
        "square": "the mean square of each feature, likewise",
        "common": "the mean of each feature over all sites; of two sites, each learns the other's",
        "deviation": "the deviation of each feature over all sites, likewise",
    }
    means = frozenset({"mean", "square"})
    same_network = True
    no_bags = True

    def __init__(
        self, *, pretraining_rounds: NonNegativeInt = 10, temperature: PositiveFloat = 0.2,
        momentum: Annotated[float, Field(ge=0, lt=1)] = 0.99, queue: NonNegativeInt = 1024,
        drawn: NonNegativeInt = 64, strength: _Share = 0.5,
    ) -> None:  # fmt: skip
        self.pretraining_rounds, self.temperature, self.momentum = pretraining_rounds, temperature, momentum
        self.queue, self.drawn, self.strength = queue, drawn, strength
        if not self.shares:
            self.reveals = {}  # type: ignore[misc]

    @property
    def shares(self) -> bool:
        """Whether sites share anything besides the weights."""
        return bool(self.pretraining_rounds and self.drawn)

    def shapes_for(self, model: FlatModule) -> Mapping[str, Shaped]:
        """Of this network's features. Sums of encrypted numbers have a little noise."""
        features = feature_count(model) if self.shares else None
        if features is None:  # a network without a head is refused
            return {}
        return {
            "mean": Shaped("float32", features, least=-1.01, most=1.01, always="train"),
            "square": Shaped("float32", features, least=-0.01, most=1.01, always="train"),
            "common": Shaped("float32", features),
            "deviation": Shaped("float32", features, least=0),
        }

    def at_site(self) -> SiteEnd:
        """Contrasts."""
        return _Contrasting(self) if self.pretraining_rounds else SiteEnd()

    def at_server(self) -> ServerEnd:
        """Knows how keys are distributed."""
        return _Distribution(self) if self.shares else ServerEnd()


@dataclass(frozen=True)
class _Seen:
    """What a step is given, also where its gradient is taken more than once.

    Attributes:
        seed: of the step.
        query: one view of each case ``[B, ...]``.
        keys: of the other view ``[B, G]``.
        weights: that made them ``[W]``.
        cases: which they are ``[B]``.
    """

    seed: int
    query: Tensor
    keys: Tensor
    weights: Tensor
    cases: Tensor


class _Contrasting(SiteEnd):
    needs_features = True
    supposes_scale = True
    needs_labels = False
    learns_alone = True

    def __init__(self, part: MomentumContrast) -> None:
        self.part = part

    def begin(self, view: SiteView, received: Memory) -> Memory:
        """θ' ``[W]`` and the queue; in the first such round θ' is the received model."""
        self._pretrains = view.number < self.part.pretraining_rounds
        self._seen: _Seen | None = None
        self._pending = False
        if not self._pretrains:
            return {}
        device = view.model.vector.device
        weights = self.kept.get("weights", view.vector[: view.trainable])
        features = feature_count(view.model) or 0
        empty = {"keys": torch.zeros(0, features), "cases": torch.zeros(0, dtype=torch.int64)}
        self._weights, self._keys, self._cases = (
            tensor.to(device) for tensor in (weights, *(self.kept.get(name, new) for name, new in empty.items()))
        )
        self._sums, self._count = torch.zeros(2, features, dtype=torch.float64), 0
        return {name: received[name] for name in ("common", "deviation") if name in received}

    def batch(self, batch: Batch, given: Memory) -> Batch:
        """One view of each case."""
        if not self._pretrains:
            return batch
        if self._seen is None or self._seen.seed != batch.seed:
            self._seen, self._pending = self._look(batch), True
        return replace(batch, inputs=self._seen.query)

    def _look(self, batch: Batch) -> _Seen:
        """Both views, and the keys of the other."""
        source = torch.Generator().manual_seed(batch.seed)
        inputs, device = batch.inputs.float().cpu(), batch.inputs.device
        query, other = (
            strong_view(weak_view(inputs, inputs.shape[2:], source), source, self.part.strength, cut=True).to(device)
            for _ in range(2)
        )
        now, size = batch.model.vector.detach(), len(self._weights)
        weights = self.part.momentum * self._weights + (1 - self.part.momentum) * now[:size]
        keys = frozen_features(batch.model, torch.cat([weights, now[size:]]), other)
        return _Seen(batch.seed, query, F.normalize(keys.float(), dim=1), weights, batch.cases.to(device))

    def loss(self, batch: Batch, given: Memory) -> Tensor | None:
        """The term."""
        if not self._pretrains or self._seen is None:
            return None
        others = [self._seen.keys, self._keys, *self._drawn(batch.seed, given)]
        logits = F.normalize(batch.features.float(), dim=1) @ torch.cat(others).T / self.part.temperature
        own, size = self._seen.cases[:, None] == self._cases[None], len(logits)
        again = F.pad(own, (size, logits.shape[1] - size - own.shape[1]))  # earlier keys of the same case
        return F.cross_entropy(logits.masked_fill(again, -torch.inf), torch.arange(size, device=logits.device))

    def _drawn(self, seed: int, given: Memory) -> list[Tensor]:
        if "common" not in given or "deviation" not in given:
            return []
        source = torch.Generator().manual_seed(derive_seed(seed, "drawn"))
        normal = torch.randn(self.part.drawn, len(given["common"]), generator=source).to(given["common"].device)
        return [F.normalize(given["common"] + given["deviation"] * normal, dim=1)]

    def gradient(self, gradient: Tensor, weights: Tensor, start: Tensor, given: Memory) -> None:
        """The step is done: keep θ' and the keys; the gradient stays."""
        if not self._pretrains or self._seen is None or not self._pending:
            return
        self._pending, seen = False, self._seen
        self._weights = seen.weights
        self._keys = torch.cat([seen.keys, self._keys])[: self.part.queue]
        self._cases = torch.cat([seen.cases, self._cases])[: self.part.queue]
        keys = seen.keys.double().cpu()
        self._sums += torch.stack([keys.sum(0), keys.square().sum(0)])
        self._count += len(keys)

    def end(self, ended: Ended, given: Memory) -> Memory:
        """Keep θ' and the queue, and tell how keys are distributed; after the pretraining, zeros, so that all sites
        send the same tensors in a sum."""
        if self._pretrains:
            kept = {"weights": self._weights, "keys": self._keys, "cases": self._cases}
            self.kept = {name: tensor.cpu() for name, tensor in kept.items()}
        else:
            self.kept = {}
            self._sums, self._count = torch.zeros(2, feature_count(ended.view.model) or 0), 0
        if not self.part.shares:
            return {}
        mean, square = (self._sums / max(self._count, 1)).float()
        return {"mean": mean, "square": square}


class _Distribution(ServerEnd):
    def __init__(self, part: MomentumContrast) -> None:
        self.part = part
        self._known: Memory = {}

    def begin(self, now: Now) -> None:
        """Begin with sums of nothing."""
        super().begin(now)
        self._pretrains = now.number < self.part.pretraining_rounds
        self._sums: Tensor | None = None
        self._weight = 0.0

    def send(self, site: str) -> Memory:
        """Mean and deviation of keys at all sites in the round before."""
        return dict(self._known) if self._pretrains else {}

    def take(self, update: Update) -> Update:
        """Add, by weight."""
        sent = self.sent(update)
        sums = update.weight * torch.stack([sent["mean"], sent["square"]]).double()
        self._sums = sums if self._sums is None else self._sums + sums
        self._weight += update.weight
        return update

    def finish(self, step: Step) -> Step:
        """Those of the next round."""
        if self._pretrains and self._sums is not None:
            mean, square = self._sums / self._weight
            deviation = (square - mean.square()).clamp_min(0).sqrt()
            self._known = {"common": mean.float(), "deviation": deviation.float()}
        return step

    def memory(self) -> Memory:
        """Mean and deviation."""
        return dict(self._known)

    def restore(self, memory: Memory) -> None:
        """Take them back."""
        self._known = dict(memory)
