"""Private training at a site: each step's gradient with as much noise as hides any patient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from polyclinic.client.private.gradients import PatientGradients
from polyclinic.client.private.noise import poisson_batches, private_gradient
from polyclinic.client.private.obstacles import check_private
from polyclinic.client.private.plan import PrivatePlan, choose_private_plan
from polyclinic.client.work import LocalJob, Work
from polyclinic.errors import StudyError
from polyclinic.limits import AboveZero
from polyclinic.parts import LOCAL_PARTS, Memory, SitePart, SiteView
from polyclinic.privacy import Event
from polyclinic.privacy.draws import Draws
from polyclinic.state import FlatModule, Selection
from polyclinic.tasks import Task


@LOCAL_PARTS.add("dp_sgd")
class DPSGD(SitePart):
    """DP-SGD: in each step every patient takes part with the same probability q, all of their images at once; each
    patient's gradient (the mean of those of their images) is shortened to a length C, Gaussian noise of standard
    deviation σ C is added to the sum, and the step is the sum divided by how many patients take part on average.

    q is the batch size divided by the number N of training patients that the site told when the study was opened, so
    `batch_size` counts patients here, and the divisor q N is no secret. There are as many steps as without it. Training
    losses stay at the site. Networks that mix cases (batch normalisation) are refused, and so are parts that could.

    Source: Abadi et al., Deep learning with differential privacy, CCS 2016, algorithm 1.

    Args:
        norm: C.
        noise: σ; default: what keeps the study's budget (`privacy`).
    """

    private: ClassVar = "a patient"
    in_steps: ClassVar = True
    needs_labels = True
    alone: ClassVar = "a part adds noise to the steps of each site"
    same_network = True

    def __init__(self, *, norm: AboveZero = 1.0, noise: AboveZero | None = None) -> None:
        self.length, self.noise = norm, noise
        self._plans: list[tuple[Selection | None, PrivatePlan]] = []

    def meet(self, view: SiteView) -> Memory:
        """See that no patient's gradient depends on others, and find the noise that keeps the budget."""
        check_private(view.model, view.task, view.input_shape, view.ends)
        self._people = view.people()
        self._units = len(self._people.unique())
        self._rate = min(1.0, view.batch_size / self._units)
        self._steps = view.steps
        if self.noise is None:
            self.noise = view.solved(lambda noise: [self._event(noise, view.rounds)], self.name)
        return {}

    def _event(self, noise: float, rounds: int) -> Event:
        return Event.gaussian(noise, self._rate, self._steps * rounds)

    def spends(self) -> Sequence[Event]:
        """All steps of a round."""
        return [self._event(self.size(), 1)]

    def size(self) -> float:
        """σ; without it there would be no noise, and nobody would see that."""
        if self.noise is None:
            raise StudyError("P102", "dp_sgd has no noise, so nothing would be protected, and nothing is trained.",
                             "Give it a `noise`, or the study `privacy`.")  # fmt: skip
        return self.noise

    def begin(self, view: SiteView, received: Memory) -> Memory:
        """The round's random numbers."""
        self._draws = view.draws(self.name)
        return {}

    def steps_of(self, model: FlatModule, task: Task, work: Work, job: LocalJob, number: int) -> PrivateSteps:
        """So many steps of a job."""
        plan = next((plan for trained, plan in self._plans if trained is job.trained), None)
        if plan is None:  # phases may train other layers
            plan = choose_private_plan(model, job.dataset.training_shape, job.trained)
            self._plans.append((job.trained, plan))
        gradients = PatientGradients(
            model, task, self.length, job.dataset.training_shape, trained=job.trained,
            class_weights=job.class_weights, mixed_precision=work.mixed_precision, plan=plan,
        )  # fmt: skip
        return PrivateSteps(
            self, gradients, job, self._people, self._rate, self._rate * self._units, self._draws, number
        )


class PrivateSteps:
    """The steps of a round at a site.

    Attributes:
        batches: positions among the site's training cases of each step ``[B]``.

    Args:
        part: says how much noise.
        gradients: of patients.
        job: of the site.
        people: patient of each training case ``[n]``.
        rate: q.
        expected: q N.
        draws: where random numbers come from.
        number: of steps.
    """

    def __init__(
        self, part: DPSGD, gradients: PatientGradients, job: LocalJob, people: Tensor, rate: float, expected: float,
        draws: Draws, number: int,
    ) -> None:  # fmt: skip
        self.part, self.gradients, self.job, self.people = part, gradients, job, people
        self.expected, self.draws = expected, draws
        self.batches = poisson_batches(people, rate, number, draws)

    def gradient(self, model: FlatModule, chosen: Tensor, seed: int | None) -> float:
        """Write the private gradient of some training cases into the model; their loss, which is for the site alone.

        Args:
            model: the network.
            chosen: their positions.
            seed: of the random changes of images.
        """
        index, dataset, device = self.job.index[chosen], self.job.dataset, model.vector.device

        def cases(places: Tensor) -> tuple[Tensor, Tensor]:
            inputs, targets = dataset.batch(index[places], augment=seed)
            return inputs.to(device), targets.to(device)

        found = self.gradients.clipped_sum(cases, self.people[chosen])
        noise, length = self.part.size(), self.part.length
        noisy = private_gradient(found.total, length, noise, self.expected, self.draws, self.job.trained)
        model.gradient.copy_(noisy)
        return found.loss


def private_part(job: LocalJob) -> DPSGD | None:
    """The part of a job that makes its steps private, if there is one."""
    return next((end for end, _ in job.ends if isinstance(end, DPSGD)), None)
