"""Features from which nobody can tell the site: what FedHarmony unlearns, from means and deviations alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from polyclinic.client.domain_shift.site_classifier import SiteClassifier
from polyclinic.client.features import feature_count
from polyclinic.client.latest import Latest
from polyclinic.parts import LOCAL_PARTS, Batch, Ended, Memory, Now, Part, ServerEnd, SiteEnd, SiteView, Step, Update
from polyclinic.seeds import generator
from polyclinic.shapes import Misfit, Shaped
from polyclinic.state import FlatModule


@LOCAL_PARTS.add("site_unlearning")
class SiteUnlearning(Part):
    """FedHarmony: a classifier learns which site features are of, and the network to leave it undecided.

    After each round every site shares mean and deviation of each feature, what the network gives its head, over its
    training cases. In each step of the next round it trains the classifier on the features f of the batch, and for
    every other site on as many that are drawn from a normal distribution with that site's mean and deviation: one step
    down the cross entropy over sites. Its own loss gets weight · mean over the batch of −(1/K) Σ_c log p_c(f), over
    the K sites that are known, which is least where all p_c are 1 / K, and leaves the classifier alone. The server
    sends the mean of the sites' classifiers. So classifier and term begin in the second round.

    Source: Dinsdale, Jenkinson, Namburete, FedHarmony: unlearning scanner bias with distributed data, MICCAI 2022, as
    in the authors' code, whose networks beside the study's own are not in it: here it has two layers. There the batch
    is shared out between sites at random, classifier and confusion have optimisers of their own, and the first round
    has means and deviations of 0.

    Args:
        weight: of the term; 0 changes nothing.
        rate: length of the classifier's steps.
        hidden: of its layer between.
    """

    reveals: ClassVar = {
        "mean": "the mean of each feature over the site's training cases: of a single case its features",
        "deviation": "the deviation of each feature",
        "classifier": "what tells the site's features from those of others",
        "means": "the means of all sites that are known",
        "deviations": "the deviation of each feature at each site",
        "place": "which of them is the site's own",
        "common": "the mean of the sites' classifiers",
    }
    same_network = True

    def __init__(
        self, *, weight: NonNegativeFloat = 1.0, rate: PositiveFloat = 0.1, hidden: PositiveInt = 32
    ) -> None:  # fmt: skip
        self.weight, self.rate, self.width = weight, rate, hidden

    def shapes_for(self, model: FlatModule) -> Mapping[str, Shaped]:
        """Of this network's features; how long a classifier is, K decides (see `open`)."""
        features = feature_count(model)
        if features is None:  # sites refuse a network without a head
            return {}
        return {
            "mean": Shaped("float32", features), "deviation": Shaped("float32", features, least=0),
            "classifier": Shaped("float32", "N classifier"), "common": Shaped("float32", "N classifier"),
            "means": Shaped("float32", "N sites", features), "place": Shaped("int64"),
            "deviations": Shaped("float32", "N sites", features, least=0),
        }  # fmt: skip

    def at_site(self) -> SiteEnd:
        """Trains the classifier, and the network against it."""
        return _Unlearning(self)

    def at_server(self) -> ServerEnd:
        """Knows each site's mean and deviation, and the mean classifier."""
        return _Statistics(self.width)


class _Unlearning(SiteEnd):
    needs_features = True
    needs_body = True

    def __init__(self, part: SiteUnlearning) -> None:
        self.part = part

    def begin(self, view: SiteView, received: Memory) -> Memory:
        """Means and deviations ``[K, G]``, of which one is the site's own."""
        self._weights: Tensor | None = None
        if "means" in received:
            sites, features = received["means"].shape
            self._network = SiteClassifier(features, self.part.width, sites)
            self._weights = received["common"] if "common" in received else self._network.initial()
        return {name: received[name] for name in ("means", "deviations", "place") if name in received}

    def loss(self, batch: Batch, given: Memory) -> Tensor | None:
        """weight · mean −(1/K) Σ_c log p_c, after a step of the classifier."""
        if not self.part.weight or self._weights is None:
            return None
        means, deviations, own = given["means"], given["deviations"], int(given["place"])
        features = batch.features.float()
        cases, device = len(features), features.device
        drawn = torch.randn(len(means), cases, means.shape[1], generator=generator("sites", batch.seed)).to(device)
        seen = means[:, None] + deviations[:, None] * drawn
        seen[own] = features.detach()
        labels = torch.arange(len(means), device=device).repeat_interleave(cases)

        def undecided(weights: Tensor) -> Tensor:
            return F.cross_entropy(self._network(weights, seen.flatten(0, 1)), labels)

        self._weights = self._network.train(self._weights.to(device), undecided, self.part.rate, batch)
        return -self.part.weight * self._network(self._weights, features).log_softmax(1).mean()

    def end(self, ended: Ended, given: Memory) -> Memory:
        """Mean and deviation ``[G]``, and the classifier; nothing where nothing is made of them."""
        if not self.part.weight:
            return {}
        features = ended.view.features(ended.vector).double()
        sent = {"mean": features.mean(0).float(), "deviation": features.std(0, correction=0).float()}
        return sent if self._weights is None else {**sent, "classifier": self._weights.cpu()}


class _Statistics(Latest):
    def __init__(self, width: int) -> None:
        super().__init__()
        self._width = width
        self._common: Tensor | None = None

    def begin(self, now: Now) -> None:
        """Begin with nothing new."""
        super().begin(now)
        self._classifiers = list[tuple[float, Tensor]]()

    def send(self, site: str) -> Memory:
        """What is known, where it is known of others and of the site itself."""
        if len(self.latest) < 2 or site not in self.latest:
            return {}
        sent = {f"{name}s": torch.stack([one[name] for one in self.latest.values()]) for name in ("mean", "deviation")}
        sent["place"] = torch.tensor(list(self.latest).index(site))
        return sent if self._common is None else {**sent, "common": self._common}

    def open(self, packed: Memory) -> Memory:
        """The same; a classifier is of the sites that are known.

        Raises:
            Misfit: it is not.
        """
        classifier = packed.get(f"{self.name}/classifier")
        if classifier is not None:
            sites, features = len(self.latest), next((len(one["mean"]) for one in self.latest.values()), 0)
            size = SiteClassifier(features, self._width, sites).size if sites > 1 else 0
            if len(classifier) != size:
                raise Misfit(f"got a classifier of {len(classifier)} numbers, expected {size} for {sites} sites")
        return packed

    def told(self, update: Update) -> Memory:
        """Mean and deviation; classifiers are averaged."""
        found = super().told(update)
        classifier = found.pop("classifier", None)
        if classifier is not None:
            self._classifiers.append((update.weight, classifier))
        return found

    def finish(self, step: Step) -> Step:
        """It counts; of sites that were away what was known stays. A site more makes another classifier."""
        before = len(self.latest)
        step = super().finish(step)
        if self._classifiers:
            total = sum(weight for weight, _ in self._classifiers)
            self._common = torch.stack([weight / total * one for weight, one in self._classifiers]).sum(0)
        if len(self.latest) != before:
            self._common = None
        return step

    def memory(self) -> Memory:
        """All of it."""
        found = super().memory()
        return found if self._common is None else {**found, "common": self._common}

    def restore(self, memory: Memory) -> None:
        """Take it back."""
        super().restore(memory)
        self._common = memory.get("common")
