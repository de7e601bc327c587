"""What every task offers, and the catalogue of tasks.

A task is a file of this folder with a class that `register` enters. It says what a network's outputs mean, and it owns
its scoring: what a site measures on its cases, what it sends of its test cases, and what the coordinator makes of that.
Nothing outside this folder knows a task by its name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from polyclinic.errors import PartError
from polyclinic.options import Catalogue
from polyclinic.shapes import Shaped
from polyclinic.tasks.metrics import entered_metrics

#: A function that gives the loss of each case ``[B]``; its keyword-only arguments are options. What it is given, each
#: task says. If the loss of a case depends on the others, it has the attribute ``compares_cases``, which is true.
LossFunction = Callable[..., Tensor]
#: Name and options of a loss.
NamedLoss = tuple[str, dict[str, Any]]
Floats = NDArray[np.float64]
#: Rows of a group [n] and weights [n, B] -> values of all metrics [M, B].
Measure = Callable[[NDArray[np.intp], Floats], Floats]
#: Sums over cases by name, see `Task.totals`.
Totals = dict[str, NDArray[Any]]
#: Where masks are measured: on the grid to which images are brought, or in the space of the images as they were read.
Space = Literal["grid", "original"]
#: What a site sends of its test cases: named values and tensors, see `polyclinic.communication.message`.
Sent = tuple[dict[str, Any], dict[str, Tensor]]


class TimeGrid(NamedTuple):
    """Times that all sites agree on, in the unit of the targets.

    Attributes:
        times: at which survival is predicted and measured, rising.
        edges: ends of the intervals into which time is cut, rising; the first one begins at 0.
    """

    times: tuple[float, ...] = ()
    edges: tuple[float, ...] = ()


class Head(NamedTuple):
    """One of several labels that a network predicts at once.

    Attributes:
        name: of the label.
        classes: number of its classes.
        weight: how much its loss counts beside that of the others.
    """

    name: str
    classes: int
    weight: float = 1.0


def kept_digits(time: float) -> float:
    """A time as it is kept: with the seven digits that float32 has."""
    return float(f"{time:.7g}")


#: Of tasks that are not about time.
NO_TIMES = TimeGrid()


class Batch(NamedTuple):
    """Some cases that were predicted at once.

    Attributes:
        found: network outputs ``[B, ...]``, or what ``Task.probabilities`` made of them (a mean over several models);
            or, of masks that were brought back to the images, uint8 class indices ``[B, ...]``.
        targets: as the task has them.
        spacings: voxel sizes of each case in millimetres, B of them; None where they are not known.
    """

    found: Tensor
    targets: Tensor
    spacings: Sequence[tuple[float, ...]] | None = None

    @property
    def decided(self) -> bool:
        """Whether what was found are class indices, of which nothing is left to decide."""
        return self.found.dtype == torch.uint8


class Asked(NamedTuple):
    """What is measured of each case where a task does so at the site.

    Attributes:
        names: names of the metrics.
        classes: names of the classes, background first.
        tolerance: of surface Dice, in the unit of the spacing.
        completion: what predictions need besides the model, see `Task.completion`.
        space: of masks: where they are measured, on the study's ``grid`` or as the images are (``original``).
    """

    names: Sequence[str]
    classes: Sequence[str]
    tolerance: float
    completion: Sequence[float] = ()
    space: Space = "grid"


class Score(NamedTuple):
    """Mean loss and one metric over some cases; NaN where it is not defined."""

    loss: float
    value: float


class Task(ABC):
    """Meaning of a network's outputs.

    Args:
        classes: number of classes; 0 for numbers.
        loss: one of ``losses``.
        scale: mean and deviation by which targets that are numbers are standardised.
        grid: times, where targets are times.
        options: of the loss.
        heads: what is predicted, where it is several labels.
    """

    name: ClassVar[str]
    #: What is to be predicted: one of several classes, a number, a mask of each case, the time of an event, several
    #: labels at once, or the image of each case, of which part is measured.
    target: ClassVar[Literal["labels", "numbers", "masks", "times", "findings", "images"]]
    #: The losses by name; the first is the default.
    losses: ClassVar[Catalogue[LossFunction]]
    #: Names of its own metrics, each of them in `polyclinic.tasks.metrics.METRICS`; see ``all_metrics``.
    metrics: ClassVar[tuple[str, ...]]
    #: Those that are reported where the study names none; the first is the default primary metric.
    default_metrics: ClassVar[tuple[str, ...]]
    #: Whether ``accuracy`` is defined, which some server rules ask for.
    has_accuracy: ClassVar[bool] = False
    #: Tensors that a site sends of its test cases, see ``rows``; N is their number, C that of classes.
    sends: ClassVar[Mapping[str, Shaped]]
    #: Fields that go with them, and what these are.
    says: ClassVar[Mapping[str, Any]] = {}
    #: What ``totals`` gives; C is the number of classes, ``metrics`` that of metrics. Empty where these follow from
    #: no sums.
    totalled: ClassVar[Mapping[str, Shaped]] = {}
    #: Metrics that follow from totals only nearly.
    approximate: frozenset[str] = frozenset()
    #: What ``evidence`` gives; None where there is no threshold.
    counts: ClassVar[Shaped | None] = None
    #: What ``sums`` gives; None where predictions need nothing but the model.
    summed: ClassVar[Shaped | None] = None
    #: Whether cases are measured one by one, so that a few at a time are predicted, to bound memory.
    case_by_case: ClassVar[bool] = False

    def __init__(
        self, classes: int, loss: str, scale: tuple[float, float] = (0.0, 1.0), grid: TimeGrid = NO_TIMES,
        options: Mapping[str, Any] | None = None, heads: Sequence[Head] = (),
    ) -> None:  # fmt: skip
        self.classes = classes
        self.loss_name = loss
        self.loss_options = dict(options or {})
        self.scale = scale
        self.grid = grid
        self.heads = tuple(heads)

    def __eq__(self, other: object) -> bool:
        """Whether both mean the same by the same outputs."""
        return type(self) is type(other) and vars(self) == vars(other)

    def __hash__(self) -> int:
        """The same for those that are equal."""
        return hash((type(self), self.classes, self.loss_name))

    @property
    def truth(self) -> tuple[str, ...]:
        """Columns of ``predictions.csv`` that are no predictions, but what is true."""
        return ("label",)

    # Training -----------------------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def outputs(self) -> int:
        """Number of output channels that the network must have."""

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Loss of each case ``[B]`` from network outputs ``[B, ...]`` and targets."""

    @property
    def compares_cases(self) -> bool:
        """Whether the loss of a case depends on the others that are given with it, so that these must be all there."""
        return bool(getattr(self.losses[self.loss_name], "compares_cases", False))

    def stacked_loss(self, outputs: Tensor, targets: Tensor, real: Tensor) -> Tensor:
        """Loss of each case of several sites that are trained together ``[S, B]``.

        Args:
            outputs: ``[S, B, ...]``.
            targets: of the cases of one site after another ``[S * B, ...]``.
            real: which cases are there; the others only fill up, and whatever is given for them is left out.
        """
        if not self.compares_cases:
            return self.loss(outputs.flatten(0, 1), targets).view(real.shape)
        rows = targets.view(*real.shape, *targets.shape[1:])
        found = [outputs.new_zeros(real.shape[1]).masked_scatter(there, self.loss(own[there], wanted[there]))
                 for own, wanted, there in zip(outputs, rows, real, strict=True)]  # fmt: skip
        return torch.stack(found)

    def _called(self, outputs: Tensor, *targets: Any) -> Tensor:
        """What the function of the loss gives ``[B]``.

        Raises:
            PartError: P304, it is something else.
        """
        return self._checked(self.losses[self.loss_name](outputs, *targets, **self.loss_options), outputs)

    def _checked(self, found: object, outputs: Tensor) -> Tensor:
        if not isinstance(found, Tensor) or found.shape != outputs.shape[:1]:
            got = f"a tensor {list(found.shape)}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
            raise PartError(
                "P304", f"The loss {self.loss_name} gave {got}; expected the loss of each case, a tensor "
                f"[{len(outputs)}].", 'Don\'t take the mean: losses of PyTorch have `reduction="none"` for that.',
            )  # fmt: skip
        return found

    def example(self) -> tuple[Tensor, Tensor] | None:
        """Made-up network outputs and targets of some cases, on which a loss is tried; None if there are none."""
        return None

    @abstractmethod
    def probabilities(self, outputs: Tensor) -> Tensor:
        """Predicted probabilities from network outputs; where targets are numbers, the predicted numbers."""

    @classmethod
    def all_metrics(cls) -> list[str]:
        """Names of its own metrics, and of those that were entered for it."""
        return [*cls.metrics, *entered_metrics(cls.name)]

    @classmethod
    def metrics_by_default(cls, grid: TimeGrid) -> list[str]:
        """Those that are reported where the study names none."""
        return list(cls.default_metrics)

    @classmethod
    def unfit(cls, loss: str, classes: int) -> str:
        """Why ``loss`` can't be used for so many classes; empty if it can."""
        return ""

    # At a site ----------------------------------------------------------------------------------------------------

    @classmethod
    def validation_metric(cls, primary: str) -> str:
        """The metric that is measured on validation cases, given the study's primary one."""
        return primary

    @abstractmethod
    def score(self, batches: Iterable[Batch], metric: str) -> Score:
        """Mean loss and ``metric`` over one or more batches of network outputs; the loss is not weighted by class."""

    def accuracy(self, batches: Iterable[Batch]) -> Score:
        """Mean loss, and how many answers are right (a share, or an overlap), over batches of network outputs."""
        return Score(self._mean_loss(batches), float("nan"))

    def evidence(self, batches: Iterable[Batch]) -> Tensor:
        """What a site sends so that a threshold can be chosen: sums over its cases, not scores.

        Args:
            batches: of probabilities; none where there are no cases.

        Returns:
            counts that can be added over sites.
        """
        raise TypeError(f"{self.name} has no threshold")

    @property
    def needs_sums(self) -> bool:
        """Whether predictions need something besides the model, which follows from ``sums`` over training cases."""
        return False

    def sums(self, batches: Iterable[Batch]) -> Tensor:
        """What a site sends of its training cases so that predictions can be completed: sums, which can be added.

        Args:
            batches: of probabilities; none where there are no cases.
        """
        raise TypeError(f"{self.name} needs nothing but the model")

    @abstractmethod
    def rows(self, batches: Iterable[Batch], threshold: float, asked: Asked) -> Sent:
        """What a site sends of its test cases.

        Args:
            batches: of probabilities; none where there are no cases.
            threshold: of decision.
            asked: what is measured at the site.
        """

    def misfit(self, fields: Mapping[str, Any], tensors: Mapping[str, Tensor], asked: Asked) -> str:
        """What is wrong with what a site sent of its test cases, besides types and shapes; empty if nothing is."""
        return ""

    def case_scores(self, batches: Iterable[Batch], threshold: float) -> Tensor | None:
        """How good the prediction of each case is ``[N]``, the higher the better, to choose pictures: one of the
        metrics of the results. None where there is nothing to show."""
        return None

    def shown(self, batch: Batch, threshold: float) -> tuple[Tensor, Tensor]:
        """What pictures of masks show of the cases: predicted and true class indices, both ``[B, ...]``."""
        raise TypeError(f"{self.name} has no masks")

    def _mean_loss(self, batches: Iterable[Batch]) -> float:
        return float(torch.cat([self.loss(batch.found, batch.targets) for batch in batches]).mean())

    # At the coordinator: none of this depends on the loss -----------------------------------------------------------

    @property
    def has_threshold(self) -> bool:
        """Whether answers depend on a threshold."""
        return False

    @classmethod
    def has_pictures(cls) -> bool:
        """Whether cases can be shown with what was predicted; see ``case_scores``."""
        return cls.case_scores is not Task.case_scores

    def choose_threshold(self, evidence: Tensor) -> float:
        """The decision threshold from the ``evidence`` of all sites, added."""
        return 0.5

    def choose_thresholds(self, evidence: Tensor) -> list[float]:
        """Thresholds from the ``evidence`` of all sites, added, where there are several; they complete predictions."""
        return []

    def completion(self, sums: Tensor) -> list[float]:
        """What the sites are told when they predict, from the ``sums`` of all sites that trained, added."""
        return []

    @abstractmethod
    def columns(self, fields: Mapping[str, Any], tensors: Mapping[str, Tensor], threshold: float) -> dict[str, Any]:
        """Columns of ``predictions.csv`` with a value a case, from what a site sent (see ``rows``)."""

    def decided(self, tensors: Mapping[str, Tensor], threshold: float) -> Tensor:
        """The predicted class of each case ``[N]``, from what a site sent (see ``rows``)."""
        raise TypeError(f"{self.name} does not predict classes")

    def result_metrics(self, names: Sequence[str], classes: Sequence[str]) -> list[str]:
        """The metrics of ``results.csv``, from those asked for and the names of the classes."""
        return list(names)

    def known(self, names: Iterable[str], cases: pd.DataFrame) -> list[str]:
        """Those of ``names`` that can be computed from rows of predictions."""
        return [name for name in names if name in self.all_metrics()]

    @abstractmethod
    def measure(self, cases: pd.DataFrame, names: Sequence[str]) -> Measure:
        """How ``names`` are computed from some rows of ``predictions.csv`` under B sets of case weights.

        Args:
            cases: the predictions.
            names: as ``known`` gives them.
        """

    def values(self, cases: pd.DataFrame, names: Sequence[str]) -> dict[str, float]:
        """The metrics of some rows of predictions, each counted once; NaN where a metric is not defined."""
        found = self.measure(cases, names)(np.arange(len(cases)), np.ones((len(cases), 1)))
        return {name: float(value[0]) for name, value in zip(names, found, strict=True)}

    # Of cases of which only sums are known -------------------------------------------------------------------------

    def totals(self, cases: pd.DataFrame, names: Sequence[str]) -> Totals:
        """Sums over some rows of predictions from which metrics follow, see ``totalled``; of no single case.

        Args:
            cases: the predictions.
            names: as ``known`` gives them.
        """
        return {}

    def joined(self, totals: Sequence[Totals]) -> Totals:
        """The totals of several sites' cases together; those of one site stay as they are."""
        first, *others = totals
        return {name: sum((one[name] for one in others), value) for name, value in first.items()}

    def from_totals(self, totals: Totals, names: Sequence[str]) -> dict[str, float]:
        """The metrics of the cases whose totals these are; NaN where one is not defined or does not follow from them.

        Those that are ``approximate`` are as near as `margins` tells.
        """
        return dict.fromkeys(names, float("nan"))

    def influence(self, cases: pd.DataFrame, totals: Totals, names: Sequence[str]) -> Floats:
        """How much the metrics of all cases would grow if a case counted for more: derivatives by its weight, [M, n].

        How far they lie apart among patients is how sure the metrics are: their sum of squares is the variance by the
        infinitesimal jackknife (Efron 1982, "The jackknife, the bootstrap and other resampling plans", chapter 6).

        Args:
            cases: some of the cases.
            totals: of all cases.
            names: the metrics.

        Returns:
            NaN for what does not follow from totals.
        """
        return np.full((len(names), len(cases)), np.nan)

    def margins(self, totals: Totals, names: Sequence[str]) -> dict[str, float]:
        """Of metrics that are ``approximate``: how far ``from_totals`` can be from the value of the cases at most."""
        return {}

    def bearers(self, cases: pd.DataFrame, metric: str) -> NDArray[np.bool_] | None:
        """Which cases a metric rests on, where these are not all or those of some classes, [n]; else None."""
        return None

    @property
    def over_classes(self) -> Container[str]:
        """Metrics that are a mean over the classes, or the labels, that there are: of other ones they are another."""
        return frozenset[str]()

    def alike(self, one: pd.DataFrame, other: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame] | None:
        """Predictions of two groups of cases with the classes and labels that both have, as far as ``over_classes``
        are concerned; None where they have the same."""
        return None

    def ranked(self, cases: pd.DataFrame) -> tuple[NDArray[Any], Floats] | None:
        """Labels of 0 and 1 and scores, both [n], where the area under the ROC curve has a meaning; else None."""
        return None


#: The tasks by name.
TASKS: dict[str, type[Task]] = {}


def register(task: type[Task]) -> type[Task]:
    """Decorator that enters a task under its ``name``.

    Raises:
        ValueError: the name is taken.
    """
    if task.name in TASKS:
        raise ValueError(f"there is a task {task.name!r} already")
    TASKS[task.name] = task
    return task


def joined(batches: Iterable[Batch]) -> Batch | None:
    """All batches as one; None without any."""
    found = list(batches)
    if len(found) < 2:
        return found[0] if found else None
    return Batch(torch.cat([batch.found for batch in found]), torch.cat([batch.targets for batch in found]))


def stacked(values: Mapping[str, Floats], names: Sequence[str]) -> Floats:
    """Name -> [B] values as one array [M, B], in the order of ``names``."""
    return np.stack([values[name] for name in names])


def spread(found: Floats, own: Sequence[str], names: Sequence[str]) -> Floats:
    """Rows of the metrics ``own`` [M', n] as rows of all ``names`` [M, n]; NaN for the others."""
    rows = dict(zip(own, found, strict=True))
    return np.stack([rows.get(name, np.full(found.shape[1], np.nan)) for name in names])
