"""Weights by how differently a model treats groups of patients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from pydantic import NonNegativeFloat
from torch import Tensor

from polyclinic.errors import StudyError
from polyclinic.parts import SERVER_PARTS, Ended, Memory, SiteEnd, SiteView, Update
from polyclinic.server.rules import declared_shares
from polyclinic.server.weights import Remembering, carry_over
from polyclinic.shapes import Shaped


@SERVER_PARTS.add("equal_opportunity")
class EqualOpportunity(Remembering):
    """FairFed: sites count less the further the model's unfairness there is from that over all sites together.

    F = P(ŷ = 1 | y = 1, in the group) − P(ŷ = 1 | y = 1, in another) is how much more often ill patients of a group
    are found than ill patients of all other known groups. F_k is that of the received model over the training cases
    of site k, and F that over those of all sites of the round, from their sums. Δ_k = |F_k − F|; where a site has
    no ill patient of one of the two sides, |A_k − Σ p_j A_j| of the shares A of right predictions. a_k ← a_k − β
    (Δ_k − mean Δ), at least 0 and brought to their sum before. a_k starts at p_k; sites that take no part in a
    round keep theirs.

    Args:
        subgroup: column of `evaluation: {subgroups: ...}`.
        group: of it, as results name it; all other known groups are the other side.
        beta: β; 0 is FedAvg.

    Source: Ezzeldin, Yan, He, Ferrara and Avestimehr, FairFed: enabling group fairness in federated learning, AAAI 2023
    (arXiv 2110.00857), with the equal opportunity difference. Differs: the paper leaves a weight below 0 open, and
    adds sites' terms of F under a secure sum; here the server sees each site's counts.

    Raises:
        StudyError: P104, no training case of any site is in the group, or in another one.
    """

    reveals: ClassVar = {
        "members": "how many training cases of the two sides of a subgroup the site has",
        "positives": "how many training cases of the positive class of each side the site has",
        "found": "how many of these the model finds",
        "accuracy": "the share of the site's training cases that the model gets right",
    }
    shapes: ClassVar = {
        "members": Shaped("float64", 2, least=0, always="start"),
        "positives": Shaped("float64", 2, least=0, always="train"),
        "found": Shaped("float64", 2, least=0, always="train"),
        "accuracy": Shaped("float64", least=0, most=1, always="train"),
    }
    tasks = ("classification",)
    classes = 2

    def __init__(self, *, subgroup: str, group: str, beta: NonNegativeFloat = 1.0) -> None:
        super().__init__()
        self.subgroup, self.group, self.beta = subgroup, group, beta

    def at_site(self) -> SiteEnd:
        """Counts who is found."""
        return _Found(self.subgroup, self.group)

    def meet(self, announced: Mapping[str, Memory], everyone: Mapping[str, float]) -> None:
        """Whether there is anything to go by."""
        members = torch.stack([told["members"] for told in announced.values()]).sum(0)
        if not members.all():
            which = f"the group {self.group!r}" if members[1] else f"another known group than {self.group!r}"
            raise StudyError(
                "P104", f"No training case of any site is in {which} of the subgroup {self.subgroup!r}.",
                "Choose a group with more patients, or let more of them train.",
            )  # fmt: skip

    def weights(self, updates: Sequence[Update]) -> Tensor:
        """a_k, moved by what the sites say of the received model."""
        shares = carry_over(self.recall("share"), self.now.everyone)
        before = torch.tensor([shares[update.site] for update in updates], dtype=torch.float64)
        if not before.sum():
            before = declared_shares(updates)
        gaps = self.gaps(updates)
        moved = (before - self.beta * (gaps - gaps.mean())).clamp_min(0.0)
        moved *= before.sum() / moved.sum()
        new = zip(updates, moved.tolist(), strict=True)
        self.keep("share", shares | {update.site: share for update, share in new})
        return moved

    def gaps(self, updates: Sequence[Update]) -> Tensor:
        """Δ_k ``[K]``."""
        positives, found = (torch.stack([self.sent(u)[name] for u in updates]) for name in ("positives", "found"))
        accuracies = torch.stack([self.sent(update)["accuracy"] for update in updates])
        unfairness = _difference(positives, found)
        overall = _difference(positives.sum(0), found.sum(0))
        instead = (accuracies - (declared_shares(updates) * accuracies).sum()).abs()
        return torch.where((unfairness - overall).isfinite(), (unfairness - overall).abs(), instead)


def _difference(positives: Tensor, found: Tensor) -> Tensor:
    """F ``[...]`` from counts ``[..., 2]``; NaN where a side has none."""
    rates = found / positives
    return rates[..., 0] - rates[..., 1]


class _Found(SiteEnd):
    needs_labels = True

    def __init__(self, subgroup: str, group: str) -> None:
        self.subgroup, self.group = subgroup, group

    def meet(self, view: SiteView) -> Memory:
        """How many cases of each side there are ``[2]``."""
        return {"members": self._sides(view).sum(1).double()}

    def end(self, ended: Ended, given: Memory) -> Memory:
        """Positives and those found ``[2]``, and the accuracy, of the received model."""
        outputs, targets = ended.view.outputs(ended.view.vector)
        chosen = ended.view.task.probabilities(outputs).argmax(1)  # a network may have one output
        positives = self._sides(ended.view) & (targets == 1)
        return {
            "positives": positives.sum(1).double(),
            "found": (positives & (chosen == 1)).sum(1).double(),
            "accuracy": (chosen == targets).double().mean(),
        }

    def _sides(self, view: SiteView) -> Tensor:
        """Which training cases are in the group, and which in another known one ``[2, n]``."""
        groups = view.groups(self.subgroup)
        inside = torch.tensor([group == self.group for group in groups], dtype=torch.bool)
        known = torch.tensor([group is not None for group in groups], dtype=torch.bool)
        return torch.stack([inside, known & ~inside])
