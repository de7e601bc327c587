"""Parts about labels that are not spread evenly over the sites."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from polyclinic.parts import LOCAL_PARTS, Memory, Part, ServerEnd, SiteEnd, SiteView
from polyclinic.shapes import Shaped


@LOCAL_PARTS.add("label_shares")
class LabelShares(Part):
    """FedSLD: each case is weighted by p(y) / p_k(y): how frequent its class is in the federation and at the site.

    A class that a site does not have gets no weight there, so the site's mean weight is the share of the federation's
    cases whose class it has.

    Source: Luo and Wu, FedSLD: federated learning with shared label distribution for medical image classification, ISBI
    2022, algorithm 1. There p_k(y) is the share of the class in each batch; here it is its share at the site, of which
    the former is an estimate, so that sites with equal shares train as without the rule.
    """

    reveals: ClassVar = {
        "counts": "how many training cases of each class the site has",
        "shares": "the share of each class in all sites together: with two sites, the other's",
    }
    shapes: ClassVar = {"counts": Shaped("float64", "C", least=0, always="start"), "shares": Shaped("float64", "C")}
    tasks = ("classification",)

    def at_site(self) -> SiteEnd:
        """Tells the site's counts once, and weights its cases."""
        return _OwnCounts()

    def at_server(self) -> ServerEnd:
        """Puts the counts together."""
        return _AllCounts()


class _OwnCounts(SiteEnd):
    def meet(self, view: SiteView) -> Memory:
        """The site's counts ``[C]``."""
        self._counts = view.class_counts
        return {} if self._counts is None else {"counts": self._counts}

    def begin(self, view: SiteView, received: Memory) -> Memory:
        """p ``[C]``."""
        return {"shares": received["shares"]}

    def class_weights(self, given: Memory) -> Tensor | None:
        """p / p_k ``[C]``; 0 for classes that the site does not have."""
        if self._counts is None:
            return None
        weights = given["shares"] * self._counts.sum() / self._counts
        return torch.where(self._counts > 0, weights, torch.zeros_like(weights))


class _AllCounts(ServerEnd):
    """Σ n_k(y) / Σ n_k over all sites that train."""

    def meet(self, announced: Mapping[str, Memory], everyone: Mapping[str, float]) -> None:
        """Add up all counts."""
        counts = torch.stack([told["counts"] for told in announced.values()]).sum(0)
        self._shares = counts / counts.sum()

    def send(self, site: str) -> Memory:
        """p ``[C]``."""
        return {"shares": self._shares}
