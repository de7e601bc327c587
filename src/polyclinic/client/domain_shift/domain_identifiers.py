"""Latent codes that are taken for those of one site: a domain identifier at each of the others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from polyclinic.client.domain_shift.adversaries import FEATURES_APART, LARGEST, cut, noisy_features
from polyclinic.client.domain_shift.site_classifier import SiteClassifier
from polyclinic.client.features import feature_count
from polyclinic.parts import LOCAL_PARTS, Batch, Ended, Memory, Now, Part, ServerEnd, SiteEnd, SiteView, Step, Update
from polyclinic.seeds import generator
from polyclinic.shapes import Shaped
from polyclinic.state import FlatModule


@LOCAL_PARTS.add("domain_identifier")
class DomainIdentifier(Part):
    """FL-MRCM: latent codes of all other sites are trained to be taken for those of a target site.

    After each round the target site shares the codes z_t of some training cases, with noise of ``noise`` times their
    deviation. Each other site k keeps an identifier C_k, which tells its own codes z_k from them. In each step it makes
    one step down (−mean log C_k(z_k) − mean log(1 − C_k(z_t))) / 2, for the codes of the batch and as many of the
    target's, and then the site's loss gets weight · mean −log(1 − C_k(z_k)), which trains the network and leaves C_k
    alone. So the term begins in the second round; the target site itself trains as without it. Codes are features: of
    the network ``unrolled`` what the coarsest layer of its last cascade gives, of others what their head is given, both
    averaged over places. So that the target can't spoil the others, its codes are cut at 100 times the largest of the
    batch's own, or at 100.

    Source: Guo et al., Multi-institutional collaborations for improving deep learning-based magnetic resonance image
    reconstruction using federated learning, CVPR 2021, as in the authors' code. There codes of the target come in every
    step and have a gradient, too, and identifiers see each place of a code by itself.

    Args:
        target: name of the target site.
        weight: of the term; 0 changes nothing.
        noise: deviation of the noise, as a share of that of the codes.
        rate: length of the identifier's steps.
        hidden: of its layer between.
        cases: of how many the target shares codes, at most.
    """

    reveals: ClassVar = {
        "codes": "what the network makes of single training cases of the target site, with noise: from latent codes a "
                 "case may be reconstructed as far as the noise allows",
        "target": "the codes with noise of the target site's cases, handed on to all others",
    }  # fmt: skip
    same_network = True

    def __init__(
        self, *, target: Annotated[str, Field(min_length=1)], weight: NonNegativeFloat = 1.0,
        noise: PositiveFloat = 0.1, rate: PositiveFloat = 0.1, hidden: PositiveInt = 4, cases: PositiveInt = 32,
    ) -> None:  # fmt: skip
        self.target, self.weight, self.spread, self.rate = target, weight, noise, rate
        self.width, self.cases = hidden, cases

    def shapes_for(self, model: FlatModule) -> Mapping[str, Shaped]:
        """Of codes of this network."""
        features = feature_count(model)
        if features is None:  # sites refuse a network without a head
            return {}
        return {
            "codes": Shaped("float32", "N codes", features, filled=True, least=-LARGEST, most=LARGEST),
            "target": Shaped("float32", "N target", features),
        }

    def at_site(self) -> SiteEnd:
        """Trains C_k, and the network against it; the target shares codes."""
        return _Identifier(self)

    def at_server(self) -> ServerEnd:
        """Hands on what the target shared last."""
        return _Target(self)


class _Identifier(SiteEnd):
    needs_features = True
    needs_body = True

    def __init__(self, part: DomainIdentifier) -> None:
        self.part = part

    def begin(self, view: SiteView, received: Memory) -> Memory:
        """The target's codes ``[N, G]``, if this is another site and there are any."""
        self._weights: Tensor | None = None
        if "target" in received:
            self._network = SiteClassifier(received["target"].shape[1], self.part.width, 1)
            self._weights = self.kept.get("identifier", self._network.initial())
        return received

    def loss(self, batch: Batch, given: Memory) -> Tensor | None:
        """weight · mean −log(1 − C_k(z_k)), after a step of C_k."""
        if self._weights is None:
            return None
        codes, source = batch.features.float(), generator("identifier", batch.seed)
        chosen = torch.randint(len(given["target"]), (len(codes),), generator=source).to(codes.device)
        own = codes.detach()
        theirs = cut(given["target"].to(codes.device)[chosen], own, FEATURES_APART)

        def mistaken(weights: Tensor) -> Tensor:
            mine, others = self._network(weights, own), self._network(weights, theirs)
            return (F.softplus(-mine).mean() + F.softplus(others).mean()) / 2

        self._weights = self._network.train(self._weights.to(codes.device), mistaken, self.part.rate, batch)
        return self.part.weight * F.softplus(self._network(self._weights, codes)).mean()

    def end(self, ended: Ended, given: Memory) -> Memory:
        """Codes of some cases with noise ``[n, G]``, if this is the target; else C_k is kept."""
        if self._weights is not None:
            self.kept = {"identifier": self._weights.cpu().clone()}
        if not self.part.weight or ended.view.name != self.part.target:
            return {}
        return {"codes": noisy_features(ended, self.part.cases, self.part.spread)}


class _Target(ServerEnd):
    needs_each = True  # whose is what
    needs_named = True

    def __init__(self, part: DomainIdentifier) -> None:
        self.part, self.named = part, (part.target,)
        self._codes: Tensor | None = None

    def begin(self, now: Now) -> None:
        """Begin with nothing new."""
        super().begin(now)
        self._new: Tensor | None = None

    def send(self, site: str) -> Memory:
        """What the target shared last, to all others."""
        return {} if self._codes is None or site == self.part.target else {"target": self._codes}

    def take(self, update: Update) -> Update:
        """What the target shared; other sites share nothing."""
        found = self.sent(update)
        if update.site == self.part.target and "codes" in found:
            self._new = found["codes"].clone()
        return update

    def finish(self, step: Step) -> Step:
        """It counts; if the target was away, what is known of it stays."""
        self._codes = self._codes if self._new is None else self._new
        return step

    def memory(self) -> Memory:
        """The codes."""
        return {} if self._codes is None else {"codes": self._codes}

    def restore(self, memory: Memory) -> None:
        """Take them back."""
        self._codes = memory.get("codes")
