"""Sites whose models are most alike help each other to label cases: FedPerl."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, PositiveInt
from torch import Tensor

from polyclinic.client.features import frozen_outputs
from polyclinic.client.few_labels.consistency import PseudoLabelling, of_classes
from polyclinic.client.latest import LatestModels
from polyclinic.parts import LOCAL_PARTS, Batch, Memory, Now, Part, ServerEnd, SiteEnd, SiteView
from polyclinic.shapes import Shaped

#: Differences of models that may be rounding, as a share of the weights: the mean of the biases of all classes, say,
#: stays what it was.
_SAME = 1e-5

_Share = Annotated[float, Field(ge=0, le=1)]


@LOCAL_PARTS.add("peer_labels")
class PeerLabels(Part):
    """FedPerl: an anonymous peer, the mean of the most similar sites' models, helps to label cases without a label.

    Adds λ · mean over cases of 1[max q ≥ τ] · −log p(argmax q), as FixMatch does, with q the mean of the probabilities
    of the site's model and of its peer, both of a weak view and without gradient, and p those of the site's model in a
    strong one. A site is similar to another by the cosine of what its last model looks like: mean and deviation of each
    shared tensor of weights, each scaled over the sites to 0 to 1. In a site's first round it has no peer.

    Source: Bdair, Navab, Albarqouni, Semi-supervised federated peer learning for skin lesion classification, MELBA
    2022 (FedPerl, 2021), and the authors' program. Left out are the difference between the peers' predictions and the
    site's own, which has no gradient in that program, and the choice by validation whether a site learns from peers
    (dynamic peer learning).

    Args:
        weight: λ; 0 changes nothing.
        threshold: τ.
        peers: how many sites make up the peer.
        cases: without a label in each step.
        strength: of the strong view, see `polyclinic.client.few_labels.views.strong_view`.
    """

    reveals: ClassVar = {
        "peer": "the mean of the models of the sites that are most alike, not named: of one, that site's model"
    }
    shapes: ClassVar = {"peer": Shaped("float32", "Q")}
    tasks = ("classification", "segmentation")
    returns = True
    no_bags = True
    same_network = True

    def __init__(
        self, *, weight: NonNegativeFloat = 1.0, threshold: _Share = 0.95, peers: PositiveInt = 2,
        cases: PositiveInt = 32, strength: _Share = 0.5,
    ) -> None:  # fmt: skip
        self.weight, self.threshold, self.peers, self.cases, self.strength = weight, threshold, peers, cases, strength
        self.hands_on = peers == 1

    def at_site(self) -> SiteEnd:
        """Labels cases."""
        return _Peer(weight=self.weight, threshold=self.threshold, cases=self.cases, strength=self.strength)

    def at_server(self) -> ServerEnd:
        """Finds peers."""
        return _Peers(self.peers if self.weight else 0)


class _Peer(PseudoLabelling):
    differing = frozenset({"_view", "_peer"})

    def begin(self, view: SiteView, received: Memory) -> Memory:
        """Take the peer ``[P]``, with what stays at the site."""
        self._peer = {"peer": view.whole(received["peer"])} if "peer" in received else {}
        return super().begin(view, received)

    def drawn(self, seed: int) -> Memory:
        """The peer, too: not all sites have one."""
        found = super().drawn(seed)
        return found | self._peer if found else {}

    def probabilities(self, batch: Batch, given: Memory) -> Tensor:
        """Mean of the site's own and its peer's."""
        own = super().probabilities(batch, given)
        if "peer" not in given:
            return own
        return (own + of_classes(self._task, frozen_outputs(batch.model, given["peer"], given["weak"]))) / 2


class _Peers(LatestModels):
    def __init__(self, peers: int) -> None:
        super().__init__(kept=bool(peers))
        self._peers = peers

    def begin(self, now: Now) -> None:
        """See which sites are alike."""
        super().begin(now)
        sizes = [torch.Size(shape).numel() for shape in now.shapes]
        looks = [looks_of(state[: sum(sizes)], sizes) for state in self.models.values()]
        self._alike = similarities(torch.stack(looks)) if len(looks) > 1 else torch.empty(0, 0)

    def send(self, site: str) -> Memory:
        """The mean of the most similar sites' models."""
        names = list(self.models)
        if site not in names or len(names) < 2 or not self._peers:
            return {}
        order = self._alike[names.index(site)].argsort(descending=True, stable=True).tolist()
        chosen = [names[place] for place in order if names[place] != site][: self._peers]
        return {"peer": torch.stack([self.models[name] for name in chosen]).mean(0)}


def looks_of(weights: Tensor, sizes: list[int]) -> Tensor:
    """Mean and deviation of each tensor of weights, float64 ``[2 L]``."""
    parts = [part.double() for part in weights.split(sizes)]
    return torch.stack([*(part.mean() for part in parts), *(part.std(correction=0) for part in parts)])


def similarities(looks: Tensor) -> Tensor:
    """Cosines ``[K, K]`` of what models look like ``[K, 2 L]``, each number scaled to 0 to 1 over the models.

    One that is the same for all, or differs by no more than rounding, counts 1.
    """
    least, most = looks.min(0).values, looks.max(0).values
    size = looks.square().unflatten(1, (2, -1)).sum(1).sqrt().max(0).values.repeat(2)  # of the weights of a tensor
    differs = most - least > _SAME * size
    scaled = torch.where(differs, (looks - least) / (most - least).clamp_min(1e-300), torch.ones_like(looks))
    return F.cosine_similarity(scaled[:, None], scaled[None], dim=2)
