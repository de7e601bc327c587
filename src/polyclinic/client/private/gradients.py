"""The sum of patients' clipped gradients, which differentially private training adds noise to (Abadi et al. 2016).

The unit of privacy is the patient. g_p is the mean of the gradients of patient p's cases in the batch, and

    Σ = Σ_p g_p min(1, C / ‖g_p‖)

changes by no more than C when a patient comes or goes, with all of their images, whatever these are. With the mean
rather than the sum, a patient with many images pulls no more than one with few, also where nothing is clipped; and C
need not be chosen by how many images patients have.

The bound holds of the numbers that are added: norms are taken of the very rows that are summed, C is lowered by what
rounding could make of it, and sums are in float64. What is left is that a network may round one case's gradient
another way when it is given with other cases. Where even that is not to be, the way ``patients`` is there.

A gradient that is not a finite number counts as 0, and is told in ``Clipped.unusable``. An error in its place would
tell everybody who sees it that there is such a patient, and no noise would hide it.

None of this looks at the clock: how long a step takes may still tell how many patients it had.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from polyclinic.client.private.plan import PrivatePlan, choose_private_plan
from polyclinic.client.private.rows import Places, Rows, factors, length
from polyclinic.client.private.ways import add_gradient, by_layers, by_vmap
from polyclinic.state import FlatModule, Selection
from polyclinic.tasks import Task

#: Inputs ``[b, ...]`` and targets ``[b, ...]`` of some cases of a batch, on the model's device, from positions ``[b]``.
Cases = Callable[[Tensor], tuple[Tensor, Tensor]]
#: By what losses are multiplied in half precision, so that small gradients do not become 0. It is no more, since a
#: patient's loss is not divided by the size of a batch; and it never follows the data, since one patient would then
#: change how those of others are rounded.
_SCALE = 2.0**10


@dataclass(frozen=True)
class Clipped:
    """What came of a batch. All of it is exact, so nothing of it may leave the site without noise.

    Attributes:
        total: Σ, float64 ``[T]``; 0 for weights that are not trained.
        loss: mean over patients of the mean loss of their cases; 0 for an empty batch. Losses that are not finite are
            left out.
        patients: how many there are in the batch.
        unusable: of these, how many have a gradient that is not a finite number and was taken as 0.
    """

    total: Tensor
    loss: float
    patients: int
    unusable: int


class PatientGradients:
    """Clipped gradients of patients.

    Args:
        model: the network, in training; its ``gradient`` is written over.
        task: whose loss is used.
        norm: C.
        shape: of one input.
        trained: the coordinates that are trained, whole tensors; None for all. Norms are over these alone.
        class_weights: weight of each class's cases in the loss ``[C]``, or None. They must not come from counts of
            patients that are to be protected.
        mixed_precision: autocast to half precision.
        plan: how it is done; None for what `choose_private_plan` takes.
    """

    def __init__(
        self,
        model: FlatModule,
        task: Task,
        norm: float,
        shape: tuple[int, ...],
        *,
        trained: Selection | None = None,
        class_weights: Tensor | None = None,
        mixed_precision: bool = False,
        plan: PrivatePlan | None = None,
    ) -> None:
        self.model, self.task, self.norm = model, task, norm
        self.plan = choose_private_plan(model, shape, trained) if plan is None else plan
        self._class_weights = None if class_weights is None else class_weights.to(model.vector.device)
        self._mixed = mixed_precision
        self._scale = _SCALE if mixed_precision else 1.0
        self._places = Places.of(model, trained, set(self.plan.outer))
        self._memory = torch.empty(0, device=model.vector.device)

    def clipped_sum(self, cases: Cases, patients: Tensor) -> Clipped:
        """Σ over the patients of a batch; no more cases are asked for at a time than the plan says.

        Args:
            cases: for positions in the batch what `Dataset.batch` gives; for tensors at hand
                ``lambda index: (inputs[index], targets[index])``.
            patients: of each case ``[B]``, integers. All cases of a patient must be there.
        """
        device = self.model.vector.device
        total = torch.zeros(self.model.layout.trainable, dtype=torch.float64, device=device)
        losses = torch.zeros((), dtype=torch.float64, device=device)
        finite, unusable, count = torch.zeros((), device=device), 0, 0
        for index, sizes in self._chunks(patients.cpu()):
            count += len(sizes)
            add = self._one if len(sizes) == 1 and self._alone(sizes) else self._several
            found, wrong = add(cases, index, sizes, total)
            usable = found.isfinite()
            losses += found.where(usable, 0.0).sum()
            finite += usable.sum()
            unusable += wrong
        self.model.gradient.zero_()
        return Clipped(total, float(losses / finite.clamp_min(1)), count, unusable)

    def _alone(self, sizes: list[int]) -> bool:
        return self.plan.way == "patients" or sizes[0] > self.plan.together

    def _chunks(self, patients: Tensor) -> Iterator[tuple[Tensor, list[int]]]:
        """Positions of the cases of some patients, one patient after another, and how many cases each has.

        Those with few cases come first, so that most chunks have one case a patient.
        """
        _, members, counts = patients.unique(return_inverse=True, return_counts=True)
        many: list[int] = counts.tolist()
        own = members.argsort(stable=True).split(many)
        chunk: list[int] = []
        cases = 0
        for patient in counts.argsort(stable=True).tolist():
            mixed = bool(chunk) and many[chunk[0]] == 1 < many[patient]  # outer products need one case a patient
            full = cases + many[patient] > self.plan.together
            if chunk and (mixed or full or self.plan.way == "patients"):
                yield torch.cat([own[one] for one in chunk]), [many[one] for one in chunk]
                chunk, cases = [], 0
            chunk.append(patient)
            cases += many[patient]
        if chunk:
            yield torch.cat([own[one] for one in chunk]), [many[one] for one in chunk]

    def _several(self, cases: Cases, index: Tensor, sizes: list[int], total: Tensor) -> tuple[Tensor, int]:
        """Add the gradients of some patients to ``total``; their losses ``[P]``, and how many are unusable."""
        device = total.device
        counts = torch.tensor(sizes, device=device)
        members = torch.arange(len(sizes), device=device).repeat_interleave(counts)
        if self._memory.numel() < len(sizes) * self._places.size:
            self._memory = torch.empty(self.plan.together * self._places.size, device=device)
        rows = Rows(self._places, self._memory, members, len(sizes), outer=len(sizes) == len(index))
        inputs, targets = cases(index)
        way = by_layers if self.plan.way == "layers" else by_vmap
        weights = 1.0 / counts[members]
        losses = way(self.model, inputs, self._losses(targets), weights * self._scale, rows, self._casting)
        norms = rows.norms() / self._scale
        by = factors(norms, self.norm) / self._scale
        wrong = ~norms.isfinite()
        unusable = 0
        again: list[int] = wrong.nonzero().flatten().tolist()
        if again:
            rows.leave_out(wrong)
            by[wrong] = 0.0
        rows.add_to(total, by)
        found = losses.new_zeros(len(sizes)).index_add_(0, members, losses * weights.to(losses.dtype))
        for patient, part in enumerate(index.split(sizes)) if again else ():
            if patient in again:
                if self._scale > 1:  # the scale may be why; a lower one must not touch anybody else's gradient
                    unusable += self._one(cases, part, [len(part)], total)[1]
                else:
                    unusable += 1
        return found, unusable

    def _one(self, cases: Cases, index: Tensor, sizes: list[int], total: Tensor) -> tuple[Tensor, int]:
        """Add the gradient of one patient likewise, taking their cases a few at a time."""
        gradient, scale = self.model.gradient, self._scale
        while True:
            gradient.zero_()
            loss = torch.zeros(1, device=total.device)
            for part in index.split(self.plan.together):
                inputs, targets = cases(part)
                weights = torch.full((len(part),), scale / len(index), device=total.device)
                losses = add_gradient(self.model, inputs, self._losses(targets), weights, self._casting)
                loss += losses.float().sum() / len(index)
            parts = [gradient[e.offset : e.offset + e.size] for e in self._places.entries]
            norm = torch.stack([length(part) for part in parts]).norm() / scale
            if norm.isfinite():
                by = float(factors(norm, self.norm)) / scale
                for entry, part in zip(self._places.entries, parts, strict=True):
                    total[entry.offset : entry.offset + entry.size].add_(part, alpha=by)
                return loss, 0
            if scale == 1:
                return loss, 1
            scale /= 2

    def _losses(self, targets: Tensor) -> Callable[[Tensor], Tensor]:
        def losses(outputs: Tensor) -> Tensor:
            found = self.task.loss(outputs, targets)
            return found if self._class_weights is None else found * self._class_weights[targets]

        return losses

    def _casting(self) -> torch.autocast:
        return torch.autocast(self.model.vector.device.type, enabled=self._mixed)
