"""Rules about labels that are not spread evenly over the sites."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from polyclinic.client.rules import LOCAL_RULES, Counterpart, Memory, SiteFacts, WeightingRule


@LOCAL_RULES.add("label_shares")
class LabelShares(WeightingRule):
    """FedSLD: each case is weighted by p(y) / p_k(y): how frequent its class is in the federation and at the site.

    A class that a site does not have gets no weight there, so the site's mean weight is the share of the federation's
    cases whose class it has.

    Source: Luo and Wu, FedSLD: federated learning with shared label distribution for medical image classification, ISBI
    2022, algorithm 1. There p_k(y) is the share of the class in each batch; here it is its share at the site, of which
    the former is an estimate, so that sites with equal shares train as without the rule.
    """

    announces: ClassVar = {"counts": "how many training cases of each class the site has"}
    receives: ClassVar = {"shares": "the share of each class in all sites together: with two sites, the other's"}
    tasks = ("classification",)

    def counterpart(self) -> Counterpart:
        """Puts the counts together."""
        return _Counts()

    def announce(self, site: SiteFacts) -> Memory:
        """The site's counts ``[C]``."""
        return self.initial(site)

    def initial(self, site: SiteFacts) -> Memory:
        """The site's counts ``[C]``."""
        return {} if site.class_counts is None else {"counts": site.class_counts}

    def class_weights(self, memory: Memory, received: Mapping[str, Tensor]) -> Tensor:
        """p / p_k ``[C]``; 0 for classes that the site does not have."""
        counts = memory["counts"]
        weights = received["shares"] * counts.sum() / counts
        return torch.where(counts > 0, weights, torch.zeros_like(weights))


class _Counts(Counterpart):
    """Σ n_k(y) / Σ n_k over all sites that train."""

    def __init__(self) -> None:
        self._counts: Tensor | None = None

    def announced(self, site: str, weight: float, announced: Memory) -> None:
        """Add a site's counts."""
        counts = announced["counts"]
        self._counts = counts.clone() if self._counts is None else self._counts + counts

    def send(self) -> Memory:
        """p ``[C]``."""
        return {} if self._counts is None else {"shares": self._counts / self._counts.sum()}
