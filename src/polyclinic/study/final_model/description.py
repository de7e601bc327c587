"""What ``model.yaml`` says of a model: all that is needed to use it, and nothing of a patient."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from polyclinic.data.masks.classes import MaskClasses
from polyclinic.data.opening.agreement import Agreement
from polyclinic.data.spec import DataSpec
from polyclinic.limits import (
    AboveZero,
    Body,
    Count,
    FileName,
    Name,
    NamedPart,
    NotNegative,
    Number,
    Options,
    Positive,
    Sentence,
    Switch,
)
from polyclinic.site.messages import LabelHead
from polyclinic.tasks import TASKS, Task, build_task
from polyclinic.tasks.base import Head, TimeGrid

#: Entries of ``data`` that say where the cases of a study were; a model does not need them, and they name folders.
_PLACES: dict[str, Any] = {
    "table": None, "tables": None, "root": None, "cache": DataSpec.model_fields["cache"].default, "where": {},
    "partition": None, "public": None,
}  # fmt: skip


class Usual(Body):
    """What values of a feature were like at the sites that trained, all of them together.

    Attributes:
        median: of the sites' medians.
        deviation: of the sites' robust deviations, the median.
        low, high: beyond these a value is unlike those of every site.
    """

    median: Number
    deviation: NotNegative
    low: Number
    high: Number


class Seen(Body):
    """What inputs were like at the sites that trained, so that others are noticed; of no single site.

    Attributes:
        features: by name, those that are measured.
        images: what volumes were like as they were read: entry -> texts of the sites.
        spacing: lowest and highest voxel size in millimetres, from the shortest side of a voxel to the longest.
        air: whether some site's volumes have the values of CT, whether some have not; none where that is not known.
    """

    features: dict[Name, Usual] = {}
    spacing: list[tuple[Number, Number]] = []
    air: list[Switch] = []


class TrainingSite(Body):
    """A site that took part.

    Attributes:
        cases, patients: that were trained on.
        weights: tensors of the network that stayed there.
        prepares: whether its cases are prepared in a way of their own.
        white: whether its part of the model says what is white in its pictures of 16 bits.
    """

    cases: Count
    patients: Count
    weights: list[Name] = []
    prepares: Switch = False
    white: Switch = False


class PublicUsed(Body):
    """The public set that a training worked on.

    Attributes:
        cases: of it.
        fingerprint: SHA-256 of their inputs.
    """

    cases: Count
    fingerprint: Name


class Calibration(Body):
    """Recalibrated probability: the inverse logit of ``intercept + slope x logit(p)``.

    Attributes:
        intercept, slope: of a logistic regression of the label on the logit of the score.
        cases: how many it was fitted to.
        source: where these cases come from.
    """

    intercept: Number
    slope: Number
    cases: Count
    source: Sentence


class Description(Body):
    """A model.

    Attributes:
        format: number of the format.
        number: of the model, from the hashes of its weights and its preparation.
        study: name of the study.
        method: its label; ``parts`` is its entry in the study file, as JSON.
        task, loss, loss_options, classes: as in the study; ``classes`` in index order.
        network: name and options; ``shape`` of one input, ``outputs`` their number.
        data: what of a table or of images is used; no paths.
        agreement: features, values of codes, classes, and how volumes are prepared.
        inputs: names of the network's input columns, or channels, in order.
        steps: name and options of each step of preparation.
        shown: name and options of each part that changes images after these steps, the last before the network.
        scale: mean and deviation of the numbers that are predicted.
        labels: where these are several: name, number of classes, and weight of each, see `LabelHead`.
        times, edges: of survival.
        completion: what predictions need besides the model, see `Task.completion`.
        threshold: of decision.
        calibration: of the probabilities; None leaves them as they are.
        batch_size: cases that are predicted at once at least, see `polyclinic.site.evaluation`.
        models: names of the models of which the weights are; several are averaged for a site that has none of its own.
        homes: site -> the model that it uses.
        whole: whether these are whole networks; else each site needs its own part besides.
        sites: that trained.
        rounds: of training, and how their number was found.
        seed: of the training.
        seen: what inputs were like.
        public: the public set that the training worked on; None without one.
        plugins: packages that the network needs, with versions.
        files: name of each file beside -> its SHA-256.
    """

    format: Literal[1] = 1
    number: FileName
    study: Name
    method: Name
    parts: Sentence
    task: Name
    loss: Name
    loss_options: Options = {}
    classes: list[Name] = []
    network: NamedPart
    shape: list[Positive] = Field(min_length=1, max_length=4)
    outputs: Positive
    data: DataSpec
    agreement: Agreement
    inputs: list[Name]
    covariates: dict[Name, list[Name]] = {}
    steps: list[NamedPart]
    shown: list[NamedPart] = []
    scale: tuple[Number, AboveZero] | None = None
    labels: list[LabelHead] = []
    times: list[AboveZero] = []
    edges: list[AboveZero] = []
    completion: list[Number] = []
    threshold: Number = 0.5
    calibration: Calibration | None = None
    batch_size: Positive
    models: list[Name] = Field(min_length=1)
    homes: dict[Name, Count] = {}
    whole: Switch = True
    sites: dict[Name, TrainingSite]
    rounds: Count
    chosen: Sentence
    seed: int
    seen: Seen = Seen()
    public: PublicUsed | None = None
    plugins: dict[Name, Name] = {}
    files: dict[Name, Name] = {}

    @property
    def built_task(self) -> Task:
        """The task, as sites build it."""
        grid = TimeGrid(tuple(self.times), tuple(self.edges))
        loss, heads = (self.loss, self.loss_options), [Head(one.name, one.classes, one.weight) for one in self.labels]
        return build_task(self.task, len(self.classes), loss, self.scale or (0.0, 1.0), grid, heads)

    @property
    def target(self) -> str:
        """What is predicted: labels, numbers, masks, times, findings or images."""
        return TASKS[self.task].target

    @property
    def is_table(self) -> bool:
        """Whether inputs are features; else they are images."""
        return self.data.image is None

    @property
    def mask_values(self) -> list[int]:
        """The number of each class in masks that are written, background first: the first one that the study's own
        masks have; without such numbers that of the class, or 255 in pictures with one structure."""
        if self.target != "masks":
            return []
        meaning = MaskClasses.of(self.data)
        if meaning.values is not None and not meaning.colours:
            return [meaning.background[0], *(values[0] for values in meaning.values)]
        if len(self.classes) == 2 and self.data.preprocessing is None:
            return [0, 255]
        return list(range(len(self.classes)))

    def content(self) -> dict[str, Any]:
        """As JSON values; entries without a value are left out."""
        found: dict[str, Any] = self.model_dump(mode="json")
        return {name: value for name, value in found.items() if value not in (None, [], {})}


def without_places(spec: DataSpec) -> DataSpec:
    """The part ``data`` of a study without where its cases were."""
    return spec.model_copy(update=_PLACES)
