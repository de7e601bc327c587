"""FedDM at the sites: boxes become outlines as far as a site's model and those of two peers agree on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt
from torch import Tensor

from polyclinic.candidates import possible, undecided, without
from polyclinic.client.features import frozen_outputs
from polyclinic.client.few_labels.consistency import Unlabelled, of_classes
from polyclinic.client.latest import LatestModels
from polyclinic.errors import SiteError
from polyclinic.ignored import IGNORED
from polyclinic.parts import LOCAL_PARTS, Batch, Memory, Now, Part, ServerEnd, SiteEnd, SiteView
from polyclinic.seeds import generator
from polyclinic.shapes import Shaped
from polyclinic.state import FlatModule
from polyclinic.tasks import Task

#: A box of which no more pixels than these would be chosen is taken whole.
_FEW = 5
#: Probabilities that differ by no more are as high: equal ones come out of a processor with other last digits.
_ROUNDING = 1e-6
#: Made-up cases that a network at the server sees at a time.
_AT_ONCE = 4


@LOCAL_PARTS.add("calibrated_boxes")
class CalibratedBoxes(Part):
    """FedDM at a site: boxes in the place of masks are corrected by what the site's model and two peers' find in them.

    Adds λ · mean loss, with the study's loss, over cases without a mask. Outside of all boxes pixels are background. Of
    the n pixels in a structure's boxes in a case each of three models, the site's own as it is in this step, the
    proximal and the distal peer's, chooses those ⌊p n⌋ that it finds likeliest to be of the structure:

    - what the site's and the distal peer's choose is of the structure (agreement tells clean labels);
    - what either the site's or the proximal peer's chooses, and not both, is not of it (disagreement corrects labels);
      this comes first;
    - the rest plays no part.

    p = 1 − r min(t / T, 1) after t rounds. Boxes of which no more than 5 pixels would be chosen are taken whole, as all
    are while there is no peer: in the first round, and where a site is alone. A pixel in the boxes of several
    structures is taken for one of the smallest box.

    The server finds the peers by their models of the last round, on made-up cases whose pixels are drawn evenly from 0
    to 1 (Monte Carlo sampling), by the distances of the models' maps of probabilities. The proximal peer is the one
    that is nearest in most cases, the distal peer the one that is farthest in most. Two sites are both to each other.

    Source: Zhu, Chen, Yuan, FedDM: federated weakly supervised segmentation via annotation calibration and gradient
    de-conflicting, IEEE TMI 2023 (collaborative annotation calibration); from its abstract and the authors' program, as
    the paper's text was not at hand. There all cases have boxes of one structure with a wide margin, and r is 0.6; the
    loss is a focal one, T is 50 of 200 rounds, 100 cases are made up, and the site's model is asked as in training. In
    that program peers' models are overwritten by the common one before they are asked; here they are those whose
    distances were measured. That smaller boxes are in front is Khoreva et al., Simple does it: weakly supervised
    instance and semantic segmentation, CVPR 2017.

    Args:
        weight: λ; 0 changes nothing.
        doubted: r, the share of each box that is doubted at the end: about what is not of the structure, 0.21 of a box
            around an ellipse. 0 takes boxes for outlines.
        ramp: T; 0 doubts it from the start.
        cases: without a mask in each step.
        samples: made-up cases by which peers are found.
    """

    reveals: ClassVar = {
        "proximal": "the model of the site, not named, whose predictions are nearest: what that site's model tells",
        "distal": "the model of the site, not named, whose predictions are farthest: what that site's model tells",
    }
    shapes: ClassVar = {"proximal": Shaped("float32", "Q"), "distal": Shaped("float32", "Q")}
    tasks = ("segmentation",)
    returns = True
    hands_on = True
    no_bags = True
    same_network = True

    def __init__(
        self, *, weight: NonNegativeFloat = 1.0, doubted: Annotated[float, Field(ge=0, lt=1)] = 0.2,
        ramp: NonNegativeInt = 10, cases: PositiveInt = 16, samples: PositiveInt = 20,
    ) -> None:  # fmt: skip
        self.weight, self.doubted, self.ramp, self.cases, self.samples = weight, doubted, ramp, cases, samples

    def at_site(self) -> SiteEnd:
        """Calibrates boxes."""
        return _Calibrating(doubted=self.doubted, ramp=self.ramp, weight=self.weight, cases=self.cases, strength=0.0)

    def at_server(self) -> ServerEnd:
        """Finds peers."""
        return _CustomisedPeers(self.samples, kept=bool(self.weight and self.doubted))


class _Calibrating(Unlabelled):
    def __init__(self, *, doubted: float, ramp: int, **others: Any) -> None:
        super().__init__(**others)
        self.doubted, self.ramp = doubted, ramp

    def begin(self, view: SiteView, received: Memory) -> Memory:
        """The peers ``[P]``, with what stays at the site."""
        super().begin(view, received)
        self._share = 1 - self.doubted * (min(view.number / self.ramp, 1.0) if self.ramp else 1.0)
        if received and received.keys() != {"proximal", "distal"}:
            raise SiteError("P401", f"The site was sent {' and '.join(received)}, and no other peer's model.",
                            site=view.name)  # fmt: skip
        return {name: view.whole(state) for name, state in received.items()}

    def loss(self, batch: Batch, given: Memory) -> Tensor | None:
        """The term."""
        chosen = self.chosen(batch.seed)
        if chosen is None:
            return None
        inputs, known = self._view.hints(chosen[0], batch.seed)
        task, device = self._view.task, batch.inputs.device
        inputs, known = inputs.float().to(device), known.to(device)
        boxes = front_boxes(known, max(task.classes, 2), self._view.unannotated)
        masks = torch.where(boxes > 0, boxes, known)
        if given:
            models = (None, given["proximal"], given["distal"])
            found = [of_classes(task, frozen_outputs(batch.model, vector, inputs)) for vector in models]
            masks = calibrated(known, boxes, found, self._share)
        told = ((masks != IGNORED) & ~undecided(masks, max(task.classes, 2))).flatten(1).any(1)
        if not told.any():
            return None
        return self.weight * task.loss(batch.model.module(inputs), masks)[told].mean()


class _CustomisedPeers(LatestModels):
    needs_whole = True

    def __init__(self, samples: int, *, kept: bool) -> None:
        super().__init__(kept=kept)
        self._samples = samples

    def begin(self, now: Now) -> None:
        """Find the peers of all sites."""
        super().begin(now)
        self._peers = dict[str, tuple[str, str]]()
        models = self.models
        if len(models) < 2:
            return
        names, place = list(models), self.workplace
        drawn = torch.rand(self._samples, *place.network.shape, generator=generator(self.name, now.seed, now.fold))
        near, far = customised(place.network, place.task, list(models.values()), drawn)
        self._peers = {name: (names[near[row]], names[far[row]]) for row, name in enumerate(names)}

    def send(self, site: str) -> Memory:
        """Their models."""
        if site not in self._peers:
            return {}
        proximal, distal = self._peers[site]
        return {"proximal": self.models[proximal], "distal": self.models[distal]}


def customised(
    network: FlatModule, task: Task, models: Sequence[Tensor], inputs: Tensor
) -> tuple[list[int], list[int]]:
    """Which of the other models predicts most cases most alike, and which least; the first of several.

    Args:
        network: lends itself.
        task: gives maps of probabilities.
        models: ``[P]``, two or more.
        inputs: made-up cases ``[n, ...]``.
    """
    near = torch.zeros(len(models), len(models), dtype=torch.int64)
    far = near.clone()
    device = network.vector.device
    states = [model.to(device) for model in models]
    for some in inputs.to(device).split(_AT_ONCE):
        maps = torch.stack([task.probabilities(frozen_outputs(network, state, some)).flatten(1) for state in states])
        for row in range(len(maps)):
            distances = (maps - maps[row]).square().sum(2).cpu()  # [K, n]
            distances[row] = torch.inf
            near[row] += torch.bincount(distances.argmin(0), minlength=len(maps))
            distances[row] = -1.0
            far[row] += torch.bincount(distances.argmax(0), minlength=len(maps))
    return near.argmax(1).tolist(), far.argmax(1).tolist()


def front_boxes(known: Tensor, classes: int, unannotated: Sequence[int] = ()) -> Tensor:
    """The structure of whose box a pixel is, of several the one whose boxes are smallest; 0 where there is none.

    A structure that may be anywhere in a case has no box.

    Args:
        known: numbers of `polyclinic.candidates`, uint8 ``[B, 1, ...]``.
        classes: number of classes, the background among them.
        unannotated: structures of which nothing is said.
    """
    allowed = possible(known, classes) & undecided(known, classes)
    sizes = allowed.flatten(2).sum(2).float()  # [B, C]
    sizes[sizes == (known != IGNORED).flatten(1).sum(1, keepdim=True)] = torch.inf
    sizes[:, [0, *unannotated]] = torch.inf
    in_front = sizes.view(*sizes.shape, *[1] * (known.dim() - 2)).masked_fill(~allowed, torch.inf).min(1, keepdim=True)
    return in_front.indices.to(known.dtype).masked_fill(in_front.values.isinf(), 0)


def calibrated(known: Tensor, boxes: Tensor, found: Sequence[Tensor], share: float) -> Tensor:
    """Masks of boxes that three models looked at, uint8 ``[B, 1, ...]`` with the numbers of `polyclinic.candidates`.

    Args:
        known: what is known of the masks, likewise.
        boxes: whose box each pixel is of, ``[B, 1, ...]``.
        found: probabilities of all classes ``[B, C, ...]`` by the site's model, the proximal and the distal peer's.
        share: p.
    """
    masks = known.clone()
    for structure in range(1, found[0].shape[1]):
        box = boxes == structure
        own, proximal, distal = (likeliest(maps[:, structure : structure + 1], box, share) for maps in found)
        masks = masks.masked_fill(box, IGNORED).masked_fill(own & distal, structure)
        masks = torch.where(own ^ proximal, without(known, structure), masks)
    return masks


def likeliest(found: Tensor, box: Tensor, share: float) -> Tensor:
    """The ⌊p n⌋ of the n pixels of a box with the highest probabilities, and those as high but for rounding; all, if
    these are few: bool ``[B, 1, ...]``.

    Args:
        found: probabilities ``[B, 1, ...]``.
        box: bool ``[B, 1, ...]``.
        share: p.
    """
    values = found.masked_fill(~box, -1.0).flatten(1)
    number = (box.flatten(1).sum(1).double() * share + 1e-6).long()
    limit = values.sort(dim=1, descending=True).values.gather(1, (number - 1).clamp_min(0)[:, None])
    return box & ((values >= limit - _ROUNDING) | (number <= _FEW)[:, None]).view_as(box)
