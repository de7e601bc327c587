"""Features that do not tell sites apart: an adversary at each site, and features with noise that sites share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from polyclinic.client.domain_shift.site_classifier import SiteClassifier
from polyclinic.client.features import feature_count, frozen_features
from polyclinic.client.latest import Latest
from polyclinic.parts import LOCAL_PARTS, Batch, Ended, Memory, Part, ServerEnd, SiteEnd, SiteView
from polyclinic.privacy.draws import gaussian
from polyclinic.seeds import generator
from polyclinic.shapes import Shaped
from polyclinic.state import FlatModule

#: Cases whose features are computed together.
_AT_ONCE = 32
#: A site that shares a larger number has failed: nothing that is learned comes near, and its square is still finite.
LARGEST = 1e9
#: What others shared is cut at so many times a site's own largest number, or 1 if that is larger.
FEATURES_APART, WEIGHTS_APART = 100.0, 10.0


@LOCAL_PARTS.add("adversarial_alignment")
class AdversarialAlignment(Part):
    """Fed-Align: features, what the network gives its head, are trained to be taken for those of other sites.

    After each round a site shares the features of some training cases, with noise of ``noise`` times their deviation.
    In the next round each site k trains a discriminator D_k: in each step one step down
    −mean log D_k(f_k) − mean log(1 − D_k(f_j)), for its own features f_k of the batch, with noise, and for as many that
    others shared. Discriminators are shared, too, and the site's loss gets weight · mean over other sites j of
    −mean log D_j(f_k), which trains the network and leaves D_j alone. So the term begins in the third round. Features
    are averaged over places. So that no site spoils the others, what others share is cut before it is used: features at
    100 times the largest of the batch's own, or at 100, and discriminators at 10 times the largest weight of the own
    one, or at 10.

    Source: Li et al., Multi-site fMRI analysis using privacy-preserving federated learning and domain adaptation: ABIDE
    results, Medical Image Analysis 65 (2020), as in the authors' code. There features of all sites and gradients for
    them go to and fro in every step, and begin after five epochs; here once a round. There D_k also rewards the
    site's own features for being its own, which is left out. The code adds noise of 0.001 times the deviation, which
    hides nothing.

    Args:
        weight: of the term; 0 changes nothing.
        noise: deviation of the noise, as a share of that of the features.
        rate: length of the discriminator's steps.
        hidden: of its layer between.
        cases: whose features a site shares, at most.
    """

    reveals: ClassVar = {
        "features": "what the network makes of single training cases, with noise: from features a case may be "
                    "reconstructed as far as the noise allows",
        "discriminator": "what tells the site's features from those of others",
        "others": "the features with noise of all other sites' cases",
        "adversaries": "the other sites' discriminators",
    }  # fmt: skip
    same_network = True

    def __init__(
        self, *, weight: NonNegativeFloat = 1.0, noise: PositiveFloat = 0.1, rate: PositiveFloat = 0.1,
        hidden: PositiveInt = 4, cases: PositiveInt = 32,
    ) -> None:  # fmt: skip
        self.weight, self.spread, self.rate, self.width, self.cases = weight, noise, rate, hidden, cases

    def shapes_for(self, model: FlatModule) -> Mapping[str, Shaped]:
        """Of features and discriminators of this network."""
        features = feature_count(model)
        if features is None:  # sites refuse a network without a head
            return {}
        weights = SiteClassifier(features, self.width, 1).size
        return {
            "features": Shaped("float32", "N features", features, filled=True, least=-LARGEST, most=LARGEST),
            "discriminator": Shaped("float32", weights, least=-LARGEST, most=LARGEST),
            "others": Shaped("float32", "N others", features),
            "adversaries": Shaped("float32", "N adversaries", weights),
        }

    def at_site(self) -> SiteEnd:
        """Trains D_k, and the network against the others."""
        return _Adversary(self)

    def at_server(self) -> ServerEnd:
        """Hands on what sites shared last."""
        return _Shared()


class _Adversary(SiteEnd):
    needs_features = True
    needs_body = True

    def __init__(self, part: AdversarialAlignment) -> None:
        self.part = part

    def begin(self, view: SiteView, received: Memory) -> Memory:
        """The others' features ``[N, G]``, and discriminators ``[K, D]`` where there are any."""
        self._weights: Tensor | None = None
        if "others" in received:
            self._network = SiteClassifier(received["others"].shape[1], self.part.width, 1)
            self._weights = self.kept.get("discriminator")
        return received

    def loss(self, batch: Batch, given: Memory) -> Tensor | None:
        """weight · mean −log D_j(f_k), after a step of D_k."""
        part = self.part
        if not part.weight or "others" not in given:
            return None
        source, features = generator("adversary", batch.seed), batch.features.float()
        noise = torch.randn(features.shape, generator=source).to(features.device)
        noisy = features + part.spread * features.detach().std(correction=0) * noise
        chosen = torch.randint(len(given["others"]), (len(noisy),), generator=source).to(noisy.device)
        own = noisy.detach()
        others = cut(given["others"][chosen], own, FEATURES_APART)

        def mistaken(weights: Tensor) -> Tensor:
            mine, theirs = self._network(weights, own), self._network(weights, others)
            return F.softplus(-mine).mean() + F.softplus(theirs).mean()

        before = self._network.initial() if self._weights is None else self._weights
        self._weights = self._network.train(before.to(noisy.device), mistaken, part.rate, batch)
        if "adversaries" not in given:
            return None
        adversaries = cut(given["adversaries"], self._weights, WEIGHTS_APART)
        taken = torch.stack([F.softplus(-self._network(one, noisy)).mean() for one in adversaries])
        return part.weight * taken.mean()

    def end(self, ended: Ended, given: Memory) -> Memory:
        """Features of some cases with noise ``[n, G]``, and D_k; nothing where nothing is made of them."""
        if not self.part.weight:
            return {}
        sent = {"features": noisy_features(ended, self.part.cases, self.part.spread)}
        if self._weights is not None:
            sent["discriminator"] = self._weights.cpu()
            self.kept = {"discriminator": sent["discriminator"].clone()}
        return sent


def cut(theirs: Tensor, own: Tensor, apart: float) -> Tensor:
    """Numbers of others, none of them larger than ``apart`` times the largest of the site's own, or than ``apart``."""
    most = apart * own.detach().abs().amax().clamp_min(1.0)
    return theirs.clamp(-most, most)


def noisy_features(ended: Ended, cases: int, spread: float) -> Tensor:
    """Features of some training cases at the end of a round, with Gaussian noise ``[n, G]``.

    Args:
        ended: the round.
        cases: of how many at most.
        spread: deviation of the noise, as a share of that of all features.
    """
    view = ended.view
    chosen = torch.randperm(view.count(), generator=view.generator("features"))[:cases]
    device = view.model.vector.device
    vector = ended.vector.to(device)
    parts = [
        frozen_features(view.model, vector, view.cases(index)[0].to(device)).cpu() for index in chosen.split(_AT_ONCE)
    ]
    features = torch.cat(parts)
    noise = gaussian(features.numel(), view.draws("features noise")).view(features.shape)
    return (features + spread * features.std(correction=0) * noise).float()


class _Shared(Latest):
    def send(self, site: str) -> Memory:
        """What the others shared last."""
        others = [memory for name, memory in self.latest.items() if name != site and memory]
        sent = {"others": torch.cat([memory["features"] for memory in others])} if others else {}
        trained = [memory["discriminator"] for memory in others if "discriminator" in memory]
        return {**sent, "adversaries": torch.stack(trained)} if trained else sent
