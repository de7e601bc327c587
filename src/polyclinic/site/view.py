"""What the parts of a method may see of a site; see `polyclinic.parts.site_end.SiteView`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.weak import WeakTensorKeyDictionary

from polyclinic.client.features import frozen_features, frozen_outputs
from polyclinic.client.optimizers import Named, build_optimizer
from polyclinic.data.dataset import Dataset
from polyclinic.data.opening.subgroups import NOT_KNOWN
from polyclinic.data.splits import Parts
from polyclinic.errors import PartError, StudyError
from polyclinic.parts.site_end import PartOfCases, SiteView
from polyclinic.privacy import Budget, Event
from polyclinic.privacy.draws import Draws, RepeatableDraws, SystemDraws
from polyclinic.secure import Signer
from polyclinic.seeds import generator
from polyclinic.site.diary import Diary
from polyclinic.state import FlatModule, Selection
from polyclinic.tasks import Task

#: ``(vector [P], index [n]) -> {"loss": ..., "accuracy": ...}``.
Measure = Callable[[Tensor, Tensor], Mapping[str, float]]


class View(SiteView):
    """A site's cases and models, for parts.

    Args:
        name: the site's.
        vector: whole model ``[P]``.
        model: the process's network of this kind.
        task: the study's.
        dataset: the site's cases.
        parts: its training, validation and test cases.
        shared: the coordinates that are shared.
        seed: names that randomness of the training at this site derives from.
        measure: gives loss and accuracy of a model on some of the site's cases.
        whole: gives a whole model ``[P]`` from shared coordinates ``[Q]``.
        batches: gives the batches of a round.
        optimizer: name and options of the local optimiser.
        identity: signs for the site, if it has certificates.
    """

    def __init__(
        self, name: str, vector: Tensor, model: FlatModule, task: Task, dataset: Dataset, parts: Parts,
        shared: Selection, seed: tuple[str | int, ...], measure: Measure, whole: Callable[[Tensor], Tensor],
        batches: Callable[[int], Iterator[tuple[Tensor, Tensor]]], optimizer: Named, identity: Signer | None,
    ) -> None:  # fmt: skip
        self.name, self.vector, self.model, self.task = name, vector, model, task
        self.layout, self.trainable = model.layout, model.layout.trainable
        self.shapes = model.layout.shapes(shared)
        self.identity, self.diary, self.run = identity, Diary(name, None), ""
        self.rounds, self.steps, self.batch_size, self.real = 1, 1, 1, False
        self.input_shape, self.bags, self.ends = dataset.training_shape, dataset.bags, ()
        self.public, self.sent = None, dict[str, Tensor]()
        self.unannotated = dataset.unannotated
        self.budget: Budget | None = None
        self.number, self.turn, self.learning_rate = 0, 0, float(optimizer[1]["lr"])
        self.class_counts = _class_counts(task, dataset, parts)
        self._dataset, self._parts, self._selection, self._seed = dataset, parts, shared, seed
        self._measure, self._whole, self._batches, self._optimizer = measure, whole, batches, optimizer
        self._measured = WeakTensorKeyDictionary()

    def at(self, vector: Tensor, number: int, optimizer: Named, turn: int = 0) -> View:
        """The same site with another model ``[P]``, in a turn of a round with its own options of the optimiser."""
        other = object.__new__(View)  # many times faster than a copy, and one is made for each site and round
        other.__dict__.update(self.__dict__)
        other.vector, other.number, other.turn = vector, number, turn
        other.learning_rate = float(optimizer[1]["lr"])
        other._optimizer, other._measured = optimizer, WeakTensorKeyDictionary()
        return other

    def predicting(self, vector: Tensor, sent: dict[str, Tensor]) -> View:
        """The same site with a model ``[P]`` whose predictions are asked for, and what a part was sent for them."""
        other = object.__new__(View)
        other.__dict__.update(self.__dict__)
        other.vector, other.sent = vector, sent
        return other

    def look_at(self, dataset: Dataset) -> None:
        """From now on, see the site's cases as they are in here."""
        self._dataset = dataset

    def count(self, part: PartOfCases = "train") -> int:
        """See `SiteView`."""
        return len(self._index(part))

    def cases(self, index: Tensor | None = None, part: PartOfCases = "train") -> tuple[Tensor, Tensor]:
        """See `SiteView`."""
        found = self._index(part)
        return self._dataset.batch(found if index is None else found[index])

    def hints(self, index: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """See `SiteView`."""
        augment = seed if self._dataset.augments else None
        return self._dataset.batch(self._index("unlabelled")[index], augment=augment, hints=True)

    def measure(self, vector: Tensor, part: Literal["train", "validation"] = "train") -> Mapping[str, float]:
        """See `SiteView`."""
        found: dict[tuple[str, int], Mapping[str, float]] = self._measured.setdefault(vector, {})
        key = part, 0 if vector.is_inference() else vector._version  # how often it was written to
        if key not in found:
            index = self._index(part)
            index = index if len(index) else self._index("train")
            if not len(index) and self.count("unlabelled"):
                raise PartError(
                    "P304", f"A part measured a model at site {self.name}, which has no training case with a label.",
                    "Set `needs_labels = True` in its end at the site: then such sites are left out.",
                )  # fmt: skip
            found[key] = self._measure(vector, index)
        return found[key]

    def features(self, vector: Tensor, part: PartOfCases = "train") -> Tensor:
        """See `SiteView`."""
        device = self.model.vector.device
        on_device, found = vector.to(device), list[Tensor]()
        for index in self._at_a_time(part):
            found.append(frozen_features(self.model, on_device, self._dataset.batch(index)[0].to(device)).cpu())
        return torch.cat(found)

    def whole(self, state: Tensor) -> Tensor:
        """See `SiteView`."""
        return self._whole(state)

    def shared(self, vector: Tensor) -> Tensor:
        """See `SiteView`."""
        return self._selection.take(vector)

    def people(self, part: PartOfCases = "train") -> Tensor:
        """See `SiteView`."""
        return self._dataset.people[self._index(part)]

    def groups(self, subgroup: str) -> Sequence[str | None]:
        """See `SiteView`."""
        groups = self._dataset.groups[subgroup]
        return [None if groups[place] == NOT_KNOWN else groups[place] for place in self._parts.train.tolist()]

    def outputs(self, vector: Tensor, part: PartOfCases = "train") -> tuple[Tensor, Tensor]:
        """See `SiteView`."""
        device = self.model.vector.device
        on_device, found = vector.to(device), list[tuple[Tensor, Tensor]]()
        for index in self._at_a_time(part):
            inputs, targets = self._dataset.batch(index)
            found.append((frozen_outputs(self.model, on_device, inputs.to(device)).cpu(), targets))
        return torch.cat([outputs for outputs, _ in found]), torch.cat([targets for _, targets in found])

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """See `SiteView`."""
        return self._batches(self.number)

    def optimizer(self, parameters: Iterable[nn.Parameter]) -> Optimizer:
        """See `SiteView`."""
        return build_optimizer(self._optimizer, list(parameters))

    def generator(self, *names: str | int) -> torch.Generator:
        """See `SiteView`."""
        turn = [f"turn {self.turn}"] if self.turn else []
        return generator(*self._seed, self.number, *turn, *names)

    def recall(self, name: str) -> str | None:
        """See `SiteView`."""
        return self.diary.recall(f"{self.run} {name}")

    def note(self, name: str, text: str) -> None:
        """See `SiteView`."""
        self.diary.note(f"{self.run} {name}", text)

    def draws(self, *names: str | int) -> Draws:
        """See `SiteView`."""
        return SystemDraws() if self.real else RepeatableDraws(self.generator(*names))

    def solved(self, plan: Callable[[float], Iterable[Event]], part: str) -> float:
        """See `SiteView`."""
        if self.budget is None:
            raise StudyError("P102", f"{part} has no noise, and the study no `privacy` to find it from.",
                             "Give one of them.")  # fmt: skip
        return self.budget.noise(plan)

    def _at_a_time(self, part: PartOfCases) -> Iterable[Tensor]:
        """Positions of a part's cases, as many together as fit into memory."""
        return self._dataset.pieces(self._index(part), 256 if len(self._dataset.shape) == 1 else 8)

    def _index(self, part: PartOfCases) -> Tensor:
        found: Tensor = getattr(self._parts, part)
        return found


def _class_counts(task: Task, dataset: Dataset, parts: Parts) -> Tensor | None:
    targets = dataset.targets
    if task.name != "classification" or not isinstance(targets, Tensor):
        return None
    return torch.bincount(targets[parts.train], minlength=task.classes).double()
