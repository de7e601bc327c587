"""What a site can be asked, and what it answers: the fields of each message, the same for both ends.

Unknown fields are refused, and so are values of another type. Tensors are described beside them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, NonNegativeFloat, NonNegativeInt, PositiveInt, ValidationError

from polyclinic.client.work import Work
from polyclinic.errors import SiteError


class Body(BaseModel):
    """The fields of a message."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def fields(self) -> dict[str, Any]:
        """As JSON values; what is not set is left out."""
        return self.model_dump(mode="json", exclude_defaults=True)


class Nothing(Body):
    """No fields."""


class MetricNames(Body):
    """What is measured on test cases."""

    names: list[str]
    classes: list[str]
    tolerance: float


class Start(Body):
    """``start``: a training begins.

    Attributes:
        run: its name.
        task, classes, loss: what is learned.
        target_scale: mean and deviation of the numbers to be predicted; None for other tasks.
        metrics: what is measured on test cases.
        model: name and options of the network.
        share: roles of the tensors that are shared.
        parts: name and options of each part of the method, in the order of the sites' ends.
        personal: name and options of the way to a personal model, or None.
        seed, fold: what randomness derives from.
        work: local work.
        corrupt: in a simulated attack, site -> name and options of what is wrong with its cases.
    """

    run: str
    task: str
    classes: NonNegativeInt
    loss: str
    target_scale: tuple[float, float] | None = None
    metrics: MetricNames
    model: tuple[str, dict[str, Any]]
    share: list[str]
    parts: list[tuple[str, dict[str, Any]]] = []
    personal: tuple[str, dict[str, Any]] | None = None
    seed: int
    fold: NonNegativeInt
    work: Work
    corrupt: dict[str, tuple[str, dict[str, Any]]] = {}


class Started(Body):
    """Sizes of the parts that training uses, and optimiser steps in a round of it."""

    train: NonNegativeInt
    validation: NonNegativeInt
    steps: NonNegativeInt


class During(Body):
    """What any message during a training may say.

    Attributes:
        counted: number of the last exchange with this site that counted, 0 for none: what the site has left of
            another one after it is forgotten. None says nothing.
    """

    counted: NonNegativeInt | None = None


class Train(During):
    """``train``: one round of local work.

    Attributes:
        round: rounds done before.
        exchange: number of this exchange.
        turn: how often the site had its turn in this round before.
        learning_rate: of this round.
        optimizer: other options of the optimiser in this round, where the schedule cycles them.
    """

    round: NonNegativeInt
    exchange: PositiveInt
    turn: NonNegativeInt = 0
    learning_rate: NonNegativeFloat
    optimizer: dict[str, Any] = {}


class Asked(During):
    """``part/verb``: what the end of a part at the server asks those at the sites.

    Attributes:
        round: rounds done before.
        learning_rate: of this round.
        optimizer: other options of the optimiser in this round, where the schedule cycles them.
    """

    round: NonNegativeInt
    learning_rate: NonNegativeFloat
    optimizer: dict[str, Any] = {}


class Trained(Body):
    """What a site says of its work: cases, steps, mean loss, seconds."""

    examples: NonNegativeInt
    steps: NonNegativeInt
    loss: float
    seconds: NonNegativeFloat


class Evaluate(During):
    """``evaluate``: a metric on validation cases."""

    metric: str


class Evaluated(Body):
    """Number of cases, mean loss and the metric; None where there is nothing to measure."""

    cases: NonNegativeInt
    loss: float | None
    metric: float | None


class Predict(During):
    """``predict`` and ``overlays``: test cases are predicted.

    Attributes:
        threshold: above which a case is positive.
        mark: in a simulated attack, the mark of a backdoor that is put on the cases.
    """

    threshold: float
    mark: dict[str, Any] | None = None


class Checkpointed(During):
    """``save`` and ``restore``: number of the round."""

    round: NonNegativeInt


class Prepare(Body):
    """``prepare``: a split, and the chain of preparation."""

    fold: NonNegativeInt
    folds: PositiveInt | None
    holdout: float | None = None
    validation: float
    split_seed: int
    small_sites: Literal["train", "drop", "stop"]
    steps: list[tuple[str, dict[str, Any]]]
    augmentation: list[Any] = []
    classes: NonNegativeInt
    patch: dict[str, Any] | None = None


#: Function -> the fields that a site is sent.
ASKED: dict[str, type[Body]] = {
    "prepare": Prepare, "share": Nothing, "apply": Nothing, "describe": Nothing, "start": Start, "train": Train,
    "evaluate": Evaluate, "keep": During, "threshold": During, "predict": Predict, "model": During, "overlays": Predict,
    "save": Checkpointed, "restore": Checkpointed,
}  # fmt: skip


def read_body(kind: type[Body], fields: Mapping[str, Any], function: str, site: str) -> Body:
    """The fields of a message as what they must be.

    Raises:
        SiteError: P401 with the first field that is not as it should be.
    """
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise SiteError(
            "P401", f"A message {function!r} between the server and site {site} is not as it should be: {place}: "
            f"{first['msg']}.", "Let all sites and the server run the same version of Polyclinic.", site=site,
        ) from None  # fmt: skip
