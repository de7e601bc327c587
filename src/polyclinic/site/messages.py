"""What a site can be asked, and what it answers: the fields of each message, the same for both ends.

Unknown fields are refused, and so are values of another type. Tensors stand in `polyclinic.site.schema`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, Strict

from polyclinic.client.work import Work
from polyclinic.data.opening.agreement import Agreement
from polyclinic.data.spec import DataSpec, Labels, Patch, Target
from polyclinic.limits import (
    AboveZero,
    Body,
    Classes,
    Count,
    FileName,
    Measured,
    Name,
    NamedPart,
    NotNegative,
    Number,
    Options,
    Patterns,
    Positive,
    Seed,
    Sentence,
    Share,
    Switch,
    Times,
)
from polyclinic.privacy import Event
from polyclinic.roles import Role
from polyclinic.tasks.base import Head, TimeGrid

#: A bootstrap has so many draws at least, or none.
LEAST_DRAWS = 100


def _enough(draws: int) -> int:
    if 0 < draws < LEAST_DRAWS:
        raise ValueError(f"a bootstrap at a site has {LEAST_DRAWS} draws or more, or none")
    return draws


# Opening --------------------------------------------------------------------------------------------------------------


#: A column, and two edges or more at which its numbers are cut.
CutAtEdges = Annotated[dict[Name, Annotated[list[Number], Field(min_length=2)]], Field(min_length=1, max_length=1)]


class Open(Body):
    """``open``: what a study declares of its data; a site reads its rows, and answers a `Census`.

    Attributes:
        data: the part ``data`` of the study file.
        target: what is to be predicted of each case.
        split: column that fixes the part of each case.
        plan: whether images are measured, for a plan.
        subgroups: by what patients are grouped: a column, or ``{column: edges}``.
        until: up to when survival is asked for.
    """

    data: DataSpec
    target: Target
    split: Name | None = None
    plan: Switch = False
    subgroups: list[Name | CutAtEdges] = []
    until: AboveZero | None = None

    def fields(self) -> dict[str, Any]:
        """As JSON values; what is not set is left out, but for the declaration."""
        return {**super().fields(), "data": self.data.model_dump(mode="json")}


class Agree(Body):
    """``agree``: what all sites agreed on; a site opens its cases, and answers `SiteFacts`.

    Attributes:
        agreement: features, values of codes, classes, and how volumes are prepared.
        notes: whether the site says what was noted of its data: asked where nobody holds the data of all.
        usual: whether the site then says usual values of features and times, too, which show other units.
    """

    agreement: Agreement
    notes: Switch = False
    usual: Switch = False


# Preparation ----------------------------------------------------------------------------------------------------------


class Prepare(Body):
    """``prepare``: a split, and the chain of preparation.

    Attributes:
        fold, folds: which of how many; None where the cases say which part they are in.
        holdout: share of the patients that are test cases, instead of folds.
        validation: share of the other patients whose cases are for validation.
        final: whether a model is made that is to be used, see `polyclinic.data.splits.split`.
        split_seed: decides who is in which part.
        small_sites: what becomes of sites with too few patients.
        steps: name and options of each step of the chain.
        augmentation: random changes of training images, as in a study file.
        classes: number of classes.
        patch: how boxes are cut from volumes.
        hides: whether what sites share is told in sums alone.
        labels: whose labels are hidden from training, and what is left of masks.
        partial: site -> numbers of the structures that it did not outline.
        most: of bags, how many instances a step of training sees at most; None where cases are none.
        voters: sites that train nothing, and whose cases outside the test part are for validation.
    """

    fold: Count
    folds: Annotated[int, Field(strict=True, ge=1, le=1000)] | None
    holdout: Share | None = None
    validation: Share
    final: Switch = False
    split_seed: Seed
    small_sites: Literal["train", "drop", "stop"]
    steps: list[NamedPart]
    augmentation: list[Name | Options] = []
    classes: Classes
    patch: Patch | None = None
    hides: Switch = False
    labels: Labels | None = None
    partial: dict[Name, list[Count]] = {}
    most: Times | None = None
    voters: list[Name] = []


class Prepared(Body):
    """What came of ``prepare``.

    Attributes:
        train, validation, test: cases in each part.
        classes: training cases of each class; empty where targets are not classes.
        note: a sentence for the report if the site is too small; else empty.
        unlabelled: cases without a label that may be trained on; ``hidden`` of them only here and in training.
        patients: in each of the three parts.
        validation_classes, test_classes: as ``classes``, of the other two parts.
        groups: subgroup -> group -> cases in the three parts, then patients.
    """

    train: Count
    validation: Count
    test: Count
    classes: list[Count]
    note: Sentence
    unlabelled: Count = 0
    hidden: Count = 0
    patients: list[Count] = []
    validation_classes: list[Count] = []
    test_classes: list[Count] = []
    groups: dict[Name, dict[Name, Annotated[list[Count], Field(min_length=6, max_length=6)]]] = {}


class Applied(Body):
    """What came of ``apply``: sentences for the report."""

    notes: list[Sentence]


# Training -------------------------------------------------------------------------------------------------------------


class MetricNames(Body):
    """What is measured on test cases, and of masks in which space, see `polyclinic.tasks.base.Asked`."""

    names: list[Name]
    classes: list[Name]
    tolerance: NotNegative
    space: Literal["grid", "original"] = "grid"


class Allowance(Body):
    """What noise is to guarantee the patients.

    Attributes:
        epsilon: that may be spent at most; None for any.
        delta: δ at which ε is told.
        over: whether ε is for each training, or for all trainings of the study together.
        trainings: how many share ε, where it is for the study: at all sites the same, since they may share noise.
    """

    epsilon: AboveZero | None
    delta: Annotated[float, Field(gt=0, lt=1)]
    over: Literal["training", "study"] = "training"
    trainings: Positive = 1


class LabelHead(Body):
    """One of several labels that are predicted, see `polyclinic.tasks.base.Head`."""

    name: Name
    classes: Annotated[Count, Field(ge=2)]
    weight: AboveZero = 1.0


class SentNetwork(Body):
    """A network of a study in which sites have different ones.

    Attributes:
        model: its name and options.
        size: numbers of its state.
    """

    model: NamedPart
    size: Positive


class Start(Body):
    """``start``: a training begins.

    Attributes:
        run: its name.
        task, classes, loss, loss_options: what is learned.
        target_scale: mean and deviation of the numbers to be predicted; None for other tasks.
        labels: where these are several: their names, numbers of classes, and weights in the loss.
        times, edges: at which survival is predicted, and the ends of the intervals of time, see `TimeGrid`.
        metrics: what is measured on test cases.
        model: name and options of the network.
        share: roles of the tensors that are shared.
        modules, without: patterns of the modules of which they are (empty for all), and of which they are not.
        parts: name and options of each part of the method, in the order of the sites' ends.
        personal: name and options of the way to a personal model, or None.
        seed, fold: what randomness derives from.
        work: local work.
        corrupt: in a simulated attack, site -> name and options of what is wrong with its cases.
        rounds: at most.
        privacy: what noise is to guarantee; None without any.
        hides: whether validation, counts for a threshold and sums over training cases are told in sums alone.
        public: how many cases the public set has, and numbers of the network's output of one; None without one.
        networks: where sites have different networks, all of them: of which models may be sent to be tested.
        own: the network that this site trains, where ``model`` is what is validated and tested; None if it is that one.
    """

    run: FileName
    task: Name
    classes: Classes
    loss: Name
    loss_options: Options = {}
    target_scale: tuple[Number, Number] | None = None
    labels: list[LabelHead] = []
    times: list[AboveZero] = []
    edges: list[AboveZero] = []
    metrics: MetricNames
    model: NamedPart
    share: list[Role]
    modules: Patterns = []
    without: Patterns = []
    parts: list[NamedPart] = []
    personal: NamedPart | None = None
    seed: Seed
    fold: Count
    work: Work
    corrupt: dict[Name, NamedPart] = {}
    rounds: Positive = 1
    privacy: Allowance | None = None
    hides: Switch = False
    public: tuple[Positive, Positive] | None = None
    networks: list[SentNetwork] = []
    own: NamedPart | None = None

    @property
    def heads(self) -> list[Head]:
        """Several labels; empty for other tasks."""
        return [Head(one.name, one.classes, one.weight) for one in self.labels]

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


class Retain(During):
    """``retain``: the training made a model, whose part that belongs to the site is kept there.

    Attributes:
        model: number of the model.
    """

    model: FileName


class Retained(Body):
    """What a site kept of a model.

    Attributes:
        weights: names of the network's tensors that stay at the site.
        prepares: whether its cases are prepared in a way of their own, which stays there, too.
        white: whether it stays there what is white in its pictures of 16 bits.
    """

    weights: list[Name]
    prepares: Switch
    white: Switch = False


class Spending(Body):
    """Equal steps with noise."""

    mechanism: Name
    parameter: NotNegative
    rate: Share
    count: Count

    @property
    def event(self) -> Event:
        """As accountants read it."""
        return Event(self.mechanism, self.parameter, self.rate, self.count)


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
        loss: None where the patients are protected by noise, which it has not.
        batches: steps of the shared model, where others were of a personal one; None for all.
    """

    examples: Count
    steps: Count
    loss: Number | None
    seconds: NotNegative
    batches: Count | None = None


class Spends(Body):
    """What a training, and all of them, have cost the privacy of a site's patients.

    Attributes:
        training, lifetime: events, see `polyclinic.privacy.Event`.
        patients: number of training patients.
        source: where the random numbers of the noise come from.
    """

    training: list[Spending]
    lifetime: list[Spending]
    patients: Count
    source: Sentence


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


class Test(Predict):
    """``test``: test cases are predicted, and the predictions stay at the site.

    Attributes:
        method: label of the method.
        kind: kind of run, see `polyclinic.study.kinds`.
        trained_on: as in ``results.csv``.
        floor: with test cases of fewer patients the site says only how many there are.
    """

    method: Name
    kind: Name
    trained_on: Name
    floor: Count


class Tested(Body):
    """What came of ``test``, besides the tensors.

    Attributes:
        cases, patients: how many were tested; with the mark of a backdoor the cases of other classes than the target.
        opened: how many of these were predicted as the target; None without a mark.
        withheld: whether there are too few patients for more to be said.
    """

    cases: Count
    patients: Count
    opened: Count | None = None
    withheld: Switch = False


class KeptTrial(Body):
    """Predictions that a site kept of one model.

    Attributes:
        run: name of the training.
        method, trained_on: as the message ``test`` had them.
        name: what they are called where they are compared.
    """

    run: FileName
    method: Name
    trained_on: Name
    name: Name


#: Numbers of draws of a bootstrap: from few of them, patients could be told.
Draws = Annotated[int, Strict(), AfterValidator(_enough), Field(ge=0, le=10**6)]


class AskGroups(Body):
    """``groups``: what the site's predictions say of groups of patients, whichever training is going on.

    Attributes:
        task, classes: what was learned.
        metrics: by which methods are compared.
        trials: the predictions.
        bootstrap: number of draws.
        floor: with fewer patients than these the site says only how many there are.
    """

    task: Name
    classes: Classes
    metrics: list[Name]
    trials: list[KeptTrial]
    bootstrap: Draws
    floor: Count


class Compare(AskGroups):
    """``compare``: what they say of several methods.

    Attributes:
        trust: whether calibration and net benefit are asked for, too.
    """

    trust: Switch


class Compared(Body):
    """What came of ``compare``, besides the tensors; lists are empty where there are too few patients.

    Attributes:
        patients: how many there are.
        methods, metrics, seeds: what the axes of the tensors stand for.
        trusted: methods whose probabilities something is said of.
        several: methods of which a case has several predictions, so that nothing is.
    """

    patients: Count
    methods: list[Name] = []
    metrics: list[Name] = []
    seeds: list[Seed] = []
    trusted: list[Name] = []
    several: list[Name] = []


class Spread(Body):
    """``spread``: how far the site's patients lie apart in what they contribute to metrics over all sites' cases.

    The tensor ``shares`` says how much each trial counts in its method's mean, ``totals0``, ``totals1``, ... are the
    totals of all sites for each trial, as one vector of all that `polyclinic.tasks.Task.totalled` names, in that order.

    Attributes:
        task, classes, metrics, trials, floor: as in `Compare`.
    """

    task: Name
    classes: Classes
    metrics: list[Name]
    trials: list[KeptTrial]
    floor: Count


class Spreads(Body):
    """What came of ``spread``, besides the tensors, which are missing where there are too few patients."""

    patients: Count
    methods: list[Name] = []


class Groups(Body):
    """What came of ``groups``, besides the tensors.

    Attributes:
        patients: how many there are; below the floor nothing else is said.
        metrics: names, [K].
        places: method, subgroup and group of each entry, [E].
        withheld: subgroup and group of those of which nothing is said.
        mixed: subgroups in which the few patients of no known group count with the rest.
    """

    patients: Count
    metrics: list[Name] = []
    places: list[tuple[Name, Name, Name]] = []
    withheld: list[tuple[Name, Name]] = []
    mixed: list[Name] = []


class AskSurvival(Body):
    """``survival``: how long the site's test cases live; whichever training is going on.

    Attributes:
        trials: predictions of one kind of run.
        steps: times at which that is asked for.
        floor: as in `Compare`, and least number of cases in a step of a curve.
    """

    trials: list[KeptTrial]
    steps: list[NotNegative]
    floor: Count


class Survival(Body):
    """What came of ``survival``, besides the tensors.

    Attributes:
        patients: how many there are; below the floor nothing else is said.
        methods: those that made groups of higher and lower risk, [M].
    """

    patients: Count
    methods: list[Name] = []


class Predicted(Body):
    """What came of ``predict``: pseudonyms of N patients and cases; a task may add fields, see `Task.says`.

    Attributes:
        groups: column of a subgroup -> the group of each case.
    """

    subject: list[Name]
    case: list[Name]
    groups: dict[Name, list[Name]] = {}


class Pictured(Body):
    """What came of ``overlays``: how good the predictions are that are shown; None where there is nothing to show."""

    worst: Number | None = None
    median: Number | None = None
    best: Number | None = None


class Checkpointed(During):
    """``save`` and ``restore``: number of the round."""

    round: Count
