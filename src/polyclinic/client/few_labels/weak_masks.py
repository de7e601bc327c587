"""FedMix: masks at some sites, boxes or names of structures at others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field, NonNegativeFloat, PositiveInt
from torch import Tensor

from polyclinic.candidates import possible
from polyclinic.client.features import frozen_outputs
from polyclinic.client.few_labels.consistency import Unlabelled, of_classes
from polyclinic.client.few_labels.views import strong_view
from polyclinic.ignored import IGNORED
from polyclinic.parts import LOCAL_PARTS, SERVER_PARTS, Batch, Ended, Memory, SiteEnd, SitePart, SiteView, Update
from polyclinic.server.rules import Weighting
from polyclinic.server.weights import Measured, normalised
from polyclinic.shapes import Shaped

_Share = Annotated[float, Field(ge=0, le=1)]


@LOCAL_PARTS.add("weak_masks")
class WeakMasks(Unlabelled, SitePart):
    """FedMix at a site: the common model outlines cases without a mask, as far as box or image label allow it.

    In each step the received model predicts some cases without a mask. A pixel is of the likeliest of those classes
    that it may be of: outside of all boxes it is background, and a structure that is not there is nowhere. A case is
    learned from, with this mask and the study's loss, if

    - the same prediction of a strong view of it agrees: their Dice, mean over the structures in either, is τ or more;
    - each structure that is said to be there is found, and one with boxes fills them: its Dice with them is b or more.

    Adds λ · mean loss over these cases. A case of which nothing is known needs to agree alone. Where boxes are cut from
    volumes for training, a structure that is said to be in the volume must be found in what was cut.

    Source: Wicaksana et al., FedMix: mixed supervised federated learning for medical image segmentation, IEEE TMI 2023
    (arXiv 2205.01840); rules and defaults from the authors' program. There two networks, which sites share, label cases
    for each other, once a round, and agreement is theirs; here it is one network's on two views, as pixels are drawn.
    There a site has either masks or one kind of weak labels, and λ is 1.

    Args:
        weight: λ; 0 changes nothing.
        agreement: τ.
        filled: b; a disc's Dice with its box is 0.88.
        cases: without a mask in each step.
        strength: of the strong view, see `polyclinic.client.few_labels.views.strong_view`.
    """

    tasks = ("segmentation",)

    def __init__(
        self, *, weight: NonNegativeFloat = 1.0, agreement: _Share = 0.9, filled: _Share = 0.5, cases: PositiveInt = 16,
        strength: _Share = 0.2,
    ) -> None:  # fmt: skip
        super().__init__(weight=weight, cases=cases, strength=strength)
        self.agreement, self.filled = agreement, filled

    def begin(self, view: SiteView, received: Memory) -> Memory:
        """A new round."""
        self.known, self.weak, self._drawn = Losses(), Losses(), 0
        return super().begin(view, received)

    def loss(self, batch: Batch, given: Memory) -> Tensor | None:
        """The term."""
        if self._view.count():
            self.known.add(self._view.task.loss(batch.outputs.detach(), batch.targets))
        chosen = self.chosen(batch.seed)
        if chosen is None:
            return None
        index, source = chosen
        inputs, known = self._view.hints(index, batch.seed)
        inputs, task, device = inputs.float(), self._view.task, batch.inputs.device
        strong = strong_view(inputs, source, self.strength, cut=False).to(device)
        inputs, known = inputs.to(device), known.to(device)
        ignored = known == IGNORED
        unknown = ignored.flatten(1).all(1)
        ignored[unknown] = False
        allowed = possible(known, max(task.classes, 2)) & ~ignored
        masks, others = (
            refined(task, frozen_outputs(batch.model, batch.received, seen), allowed) for seen in (inputs, strong)
        )
        taken = (overlap(masks, others, allowed.shape[1]) >= self.agreement) & (
            unknown | fits(masks, allowed, self.filled, self._view.unannotated)
        )
        self._drawn += len(index)
        if not taken.any():
            return None
        losses = task.loss(batch.model.module(inputs), masks)[taken]
        self.weak.add(losses.detach())
        return self.weight * losses.mean()

    def learned(self) -> float:
        """Of about how many cases without a mask the site learned in this round."""
        return self._view.count("unlabelled") * self.weak.cases / self._drawn if self._drawn else 0.0


class Losses:
    """Losses of cases, added up.

    Attributes:
        cases: how many.
    """

    def __init__(self) -> None:
        self.cases, self._total = 0, 0.0

    def add(self, losses: Tensor) -> None:
        """Those of some cases ``[B]``."""
        self.cases, self._total = self.cases + len(losses), self._total + float(losses.sum())

    @property
    def mean(self) -> float:
        """Their mean; 0 of none."""
        return self._total / self.cases if self.cases else 0.0


def refined(task: Any, outputs: Tensor, allowed: Tensor) -> Tensor:
    """The likeliest of the classes that each pixel may be of, uint8 ``[B, 1, ...]``; ``IGNORED`` where there is none.

    Args:
        task: segmentation.
        outputs: of the network ``[B, ...]``.
        allowed: bool ``[B, C, ...]``.
    """
    found = of_classes(task, outputs).masked_fill(~allowed, -1.0)
    mask = found.argmax(dim=1, keepdim=True).to(torch.uint8)
    return mask.masked_fill(~allowed.any(dim=1, keepdim=True), IGNORED)


def overlap(one: Tensor, other: Tensor, classes: int) -> Tensor:
    """Dice ``[B]`` of two masks ``[B, 1, ...]``, mean over the structures that are in either; 1 where there is none."""
    total, count = torch.zeros(len(one), device=one.device), torch.zeros(len(one), device=one.device)
    for structure in range(1, classes):
        first, second = (one == structure).flatten(1), (other == structure).flatten(1)
        marked = first.sum(1) + second.sum(1)
        total += 2 * (first & second).sum(1) / marked.clamp_min(1)
        count += marked > 0
    return torch.where(count > 0, total / count.clamp_min(1), torch.ones_like(total))


def fits(masks: Tensor, allowed: Tensor, filled: float, unannotated: Sequence[int] = ()) -> Tensor:
    """Whether masks have each structure that is said to be there, and enough of its boxes: bool ``[B]``.

    Args:
        masks: uint8 ``[B, 1, ...]``.
        allowed: bool ``[B, C, ...]``; a pixel that may be of no class plays no part.
        filled: least Dice of a structure and its boxes.
        unannotated: structures of which nothing is said.
    """
    found, nothing = torch.ones(len(masks), dtype=torch.bool, device=masks.device), ~allowed.any(1).flatten(1)
    for structure in sorted({*range(1, allowed.shape[1])} - {*unannotated}):
        place, marked = allowed[:, structure].flatten(1), (masks == structure).flatten(1).sum(1)
        dice = 2 * marked / (marked + place.sum(1)).clamp_min(1)
        found &= ~place.any(1) | torch.where((place | nothing).all(1), marked > 0, dice >= filled)
    return found


@SERVER_PARTS.add("mixed_weights")
class MixedWeights(Measured, Weighting):
    """FedMix at the server: sites count by how many cases they learned from, and more the higher their loss on these.

    w ← w + Σ a_k Δ_k / Σ a_k, a_k = N_k / Σ N + λ L_k^β / Σ L^β. N_k are the cases with a mask, and those without one
    that the part `weak_masks` learned from; L_k is the mean loss of all of them in the round's steps. Without
    `weak_masks` it is that of the trained model on cases with a mask, and with λ = 0, too, it is the mean of FedAvg.

    Source: see `WeakMasks`; a_k from the authors' program. Its λ is 10 for breast tumours, with which the sites of a
    high loss count nearly alone.

    Args:
        quality: λ; 0 goes by numbers of cases alone.
        power: β; the larger, the more a high loss counts.
    """

    reveals: ClassVar = {
        "cases": "about how many of the site's cases the model learned from in this round",
        "loss": "a mean over those cases: how well a model fits them, and of few, whether a known one is there",
    }
    shapes: ClassVar = {name: Shaped("float64", always="train", least=0.0) for name in ("cases", "loss")}

    def __init__(self, *, quality: NonNegativeFloat = 1.0, power: NonNegativeFloat = 1.5) -> None:
        self.quality, self.power = quality, power

    def at_site(self) -> SiteEnd:
        """Tells both."""
        return _Learned()

    def weights(self, updates: Sequence[Update]) -> Tensor:
        """a_k."""
        cases = self.reported(updates, "cases")
        losses = self.reported(updates, "loss")
        powers = (losses / losses.max().clamp_min(1e-300)) ** self.power * (losses > 0)
        numbers, quality = (values / values.sum().clamp_min(1e-300) for values in (cases, powers))
        return normalised(numbers + self.quality * quality)


class _Learned(SiteEnd):
    needs_labels = False

    def end(self, ended: Ended, given: Memory) -> Memory:
        """Of cases with a mask and of others."""
        view = ended.view
        rule = next((end for end in view.ends if isinstance(end, WeakMasks)), None)
        known, weak = view.count(), 0.0 if rule is None else rule.learned()
        if rule is None:
            loss = view.measure(ended.vector)["loss"] if known else 0.0
        else:
            loss = (known * rule.known.mean + weak * rule.weak.mean) / max(known + weak, 1.0)
        told = {"cases": known + weak, "loss": loss}
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in told.items()}
