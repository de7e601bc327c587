"""What a site can be asked, and what it answers: the fields of each message, the same for both ends.

Unknown fields are refused, and so are values of another type. Tensors stand in `polyclinic.site.schema`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from polyclinic.client.work import Work
from polyclinic.data.spec import Patch
from polyclinic.limits import (
    AboveZero,
    Classes,
    Count,
    FileName,
    Measured,
    Name,
    NamedPart,
    NotNegative,
    Number,
    Options,
    Positive,
    Seed,
    Sentence,
    Share,
)
from polyclinic.tasks.base import TimeGrid


class Body(BaseModel):
    """The fields of a message."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def fields(self) -> dict[str, Any]:
        """As JSON values; what is not set is left out."""
        return self.model_dump(mode="json", exclude_defaults=True)


class Nothing(Body):
    """No fields."""


# Preparation ----------------------------------------------------------------------------------------------------------


class Prepare(Body):
    """``prepare``: a split, and the chain of preparation.

    Attributes:
        fold, folds: which of how many; None where the cases say which part they are in.
        holdout: share of the patients that are test cases, instead of folds.
        validation: share of the other patients whose cases are for validation.
        split_seed: decides who is in which part.
        small_sites: what becomes of sites with too few patients.
        steps: name and options of each step of the chain.
        augmentation: random changes of training images, as in a study file.
        classes: number of classes.
        patch: how boxes are cut from volumes.
    """

    fold: Count
    folds: Annotated[int, Field(strict=True, ge=1, le=1000)] | None
    holdout: Share | None = None
    validation: Share
    split_seed: Seed
    small_sites: Literal["train", "drop", "stop"]
    steps: list[NamedPart]
    augmentation: list[Name | Options] = []
    classes: Classes
    patch: Patch | None = None


class Prepared(Body):
    """What came of ``prepare``.

    Attributes:
        train, validation, test: cases in each part.
        classes: training cases of each class; empty where targets are not classes.
        note: a sentence for the report if the site is too small; else empty.
        unlabelled: cases without a label that may be trained on.
    """

    train: Count
    validation: Count
    test: Count
    classes: list[Count]
    note: Sentence
    unlabelled: Count = 0


class Applied(Body):
    """What came of ``apply``: sentences for the report."""

    notes: list[Sentence]


# Training -------------------------------------------------------------------------------------------------------------


class MetricNames(Body):
    """What is measured on test cases."""

    names: list[Name]
    classes: list[Name]
    tolerance: NotNegative


class Start(Body):
    """``start``: a training begins.

    Attributes:
        run: its name.
        task, classes, loss: what is learned.
        target_scale: mean and deviation of the numbers to be predicted; None for other tasks.
        times, edges: at which survival is predicted, and the ends of the intervals of time, see `TimeGrid`.
        metrics: what is measured on test cases.
        model: name and options of the network.
        share: roles of the tensors that are shared.
        parts: name and options of each part of the method, in the order of the sites' ends.
        personal: name and options of the way to a personal model, or None.
        seed, fold: what randomness derives from.
        work: local work.
        corrupt: in a simulated attack, site -> name and options of what is wrong with its cases.
    """

    run: FileName
    task: Name
    classes: Classes
    loss: Name
    target_scale: tuple[Number, Number] | None = None
    times: list[AboveZero] = []
    edges: list[AboveZero] = []
    metrics: MetricNames
    model: NamedPart
    share: list[Name]
    parts: list[NamedPart] = []
    personal: NamedPart | None = None
    seed: Seed
    fold: Count
    work: Work
    corrupt: dict[Name, NamedPart] = {}

    @property
    def grid(self) -> TimeGrid:
        """The times of survival."""
        return TimeGrid(tuple(self.times), tuple(self.edges))


class Started(Body):
    """Sizes of the parts that training uses, and optimiser steps in a round of it."""

    train: Count
    validation: Count
    steps: Count


class During(Body):
    """What any message during a training may say.

    Attributes:
        counted: number of the last exchange with this site that counted, 0 for none: what the site has left of
            another one after it is forgotten. None says nothing.
    """

    counted: Count | None = None


class Train(During):
    """``train``: one round of local work.

    Attributes:
        round: rounds done before.
        exchange: number of this exchange.
        turn: how often the site had its turn in this round before.
        learning_rate: of this round.
        optimizer: other options of the optimiser in this round, where the schedule cycles them.
        after_rounds: in how many rounds the state was trained before; 0 where one site trains after another.
        after_batches: there, on how many batches of all sites; else 0.
    """

    round: Count
    exchange: Positive
    turn: Count = 0
    learning_rate: NotNegative
    optimizer: Options = {}
    after_rounds: Count = 0
    after_batches: Count = 0


class Question(During):
    """``part/verb``: what the end of a part at the server asks those at the sites.

    Attributes:
        round: rounds done before.
        learning_rate: of this round.
        optimizer: other options of the optimiser in this round, where the schedule cycles them.
    """

    round: Count
    learning_rate: NotNegative
    optimizer: Options = {}


class Trained(Body):
    """What a site says of its work: cases, steps, mean loss, seconds.

    Attributes:
        batches: steps of the shared model, where others were of a personal one; None for all.
    """

    examples: Count
    steps: Count
    loss: Number
    seconds: NotNegative
    batches: Count | None = None


class Evaluate(During):
    """``evaluate``: a metric on validation cases."""

    metric: Name


class Evaluated(Body):
    """Number of cases, mean loss and the metric; None where there is nothing to measure.

    The numbers of a model that broke down are not finite: what becomes of that, the loop of rounds decides.
    """

    cases: Count
    loss: Measured | None
    metric: Measured | None


# Test -----------------------------------------------------------------------------------------------------------------


class Predict(During):
    """``predict`` and ``overlays``: test cases are predicted.

    Attributes:
        threshold: above which a case is positive.
        completion: what predictions need besides the model, see `Task.completion`.
        mark: in a simulated attack, the mark of a backdoor that is put on the cases.
    """

    threshold: Number
    completion: list[Number] = []
    mark: Options | None = None


class Predicted(Body):
    """What came of ``predict``: pseudonyms of N patients and cases; a task may add fields, see `Task.says`."""

    subject: list[Name]
    case: list[Name]


class Pictured(Body):
    """What came of ``overlays``: how good the predictions are that are shown; None where there is nothing to show."""

    worst: Number | None = None
    median: Number | None = None
    best: Number | None = None


class Checkpointed(During):
    """``save`` and ``restore``: number of the round."""

    round: Count
