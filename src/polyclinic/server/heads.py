"""Averaging where a network has a head for each of several labels, which not all sites have."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from typing import ClassVar

import torch
from torch import Tensor

from polyclinic.errors import TrainingError
from polyclinic.parts import (
    SERVER_PARTS,
    Aggregation,
    Ended,
    Memory,
    Now,
    Part,
    ServerEnd,
    SiteEnd,
    SiteView,
    Step,
    Update,
)
from polyclinic.roles import Role
from polyclinic.server.mean import Mean
from polyclinic.shapes import Shaped
from polyclinic.tasks.multi_label import MultiLabel


@SERVER_PARTS.add("label_heads")
class LabelHeads(Part):
    """The head of each label is averaged over the sites that have labels of it; all else as `Mean` does.

    For a weight of the head of label t: w ← w + Σ p_k s_kt Δ_k / Σ p_k s_kt, with p_k the site's weight and s_kt the
    share of its training cases that have a label of t; so by cases it is weighted by the number of these labels. A head
    of which no site of the round has labels stays as it is. Where all cases have all labels it is the mean, to the bit.

    A head is the rows of the network's last layer that give the outputs of a label. Whatever lies before it is the
    body, which all sites share.

    Source: Huang et al., Federated multi-task learning for joint diagnosis of multiple mental disorders on MRI scans,
    IEEE Transactions on Biomedical Engineering 70, 2023 (online 2022). Taken from its abstract, since its text was not
    at hand: what is built is the shared body with a head for each disease. Its contrastive extractor and its mixture
    of experts are left out.
    """

    reveals: ClassVar = {
        "shares": "which share of the site's training cases has a label of each finding",
        "places": "where in the model the heads are: nothing of patients",
    }
    shapes: ClassVar = {
        "shares": Shaped("float64", "heads", least=0, most=1, always="train"),
        "places": Shaped("int64", "runs", 3, least=0, always="start"),
    }
    tasks = ("multi_label",)

    def at_site(self) -> SiteEnd:
        """Tells what labels the site has."""
        return _Telling()

    def at_server(self) -> ServerEnd:
        """Averages heads by them."""
        return _HeadMeans()


class _Telling(SiteEnd):
    needs_labels = True

    def meet(self, view: SiteView) -> Memory:
        """Runs of shared weights ``[R, 3]`` that belong to a head: head, start, end."""
        _, targets = view.cases()
        self._shares = (targets >= 0).double().mean(0)
        return {"places": head_places(view)}

    def end(self, ended: Ended, given: Memory) -> Memory:
        """Shares of the training cases that have a label ``[K]``."""
        return {"shares": self._shares}


def head_places(view: SiteView) -> Tensor:
    """Runs of shared weights that belong to the head of a label, int64 ``[R, 3]``: number of the head, start, end.

    Raises:
        TrainingError: P302, the network's last layer has no row for each output.
    """
    if not isinstance(view.task, MultiLabel):
        raise TypeError(f"{view.task.name} has no heads")
    widths = [task.outputs for task in view.task.each]
    heads = [entry for entry in view.layout.entries if entry.role is Role.HEAD and entry.trainable]
    last = heads[-1].name.rpartition(".")[0] if heads else ""
    rows = [entry for entry in heads if entry.name.rpartition(".")[0] == last]
    if not rows or any(not entry.shape or entry.shape[0] != sum(widths) for entry in rows):
        raise TrainingError(
            "P302", f"Heads are averaged by label, and the last layer of the network has no row for each of its "
            f"{sum(widths)} outputs.", "Choose another model, name its `head`, or use fedavg.",
        )  # fmt: skip
    owners = torch.tensor([head for head, width in enumerate(widths) for _ in range(width)])
    marks = torch.zeros(len(view.vector), dtype=torch.int64)
    for entry in rows:
        each = entry.size // entry.shape[0]
        marks[entry.offset : entry.offset + entry.size] = owners.repeat_interleave(each) + 1
    found, start = [], 0
    for mark, run in groupby(view.shared(marks).tolist()):
        end = start + len(list(run))
        if mark:
            found.append((mark - 1, start, end))
        start = end
    return torch.tensor(found, dtype=torch.int64).view(-1, 3)


class _HeadMeans(Aggregation):
    """Sums of changes, and of how much sites count for each head."""

    def __init__(self) -> None:
        self._mean = Mean()

    def meet(self, announced: Mapping[str, Memory], everyone: Mapping[str, float]) -> None:
        """Take in where the heads are.

        Raises:
            TrainingError: P302, sites have heads in different places.
        """
        places = [told["places"] for told in announced.values()]
        if any(not torch.equal(one, places[0]) for one in places):
            raise TrainingError("P302", "Sites say that the heads of the labels are in different places of the model.",
                                "Let all sites run the same version of Polyclinic.")  # fmt: skip
        self._places = [tuple(one) for one in places[0].tolist()] if places else []

    def begin(self, now: Now) -> None:
        """Begin a round."""
        super().begin(now)
        self._mean.begin(now)
        self._sums = [torch.zeros(end - start) for _, start, end in self._places]
        self._totals = torch.zeros(max((head for head, *_ in self._places), default=-1) + 1, dtype=torch.float64)
        self._all = True

    def add(self, update: Update) -> None:
        """Take in an update."""
        self._mean.add(update)
        shares = self.sent(update)["shares"]
        self._all = self._all and bool((shares == 1).all())
        counts = update.weight * shares[: len(self._totals)]
        self._totals += counts
        for total, (head, start, end) in zip(self._sums, self._places, strict=True):
            if counts[head] > 0:  # else whatever it did to a head without labels of it
                total.add_(update.change[start:end], alpha=float(counts[head]) / self.now.total_weight)

    def done(self) -> Step:
        """The mean, with heads by the labels of each."""
        step = self._mean.done()
        if self._all:
            return step
        for total, (head, start, end) in zip(self._sums, self._places, strict=True):
            known = float(self._totals[head])
            step.change[start:end] = total * (self.now.total_weight / known) if known > 0 else 0.0
        return step
