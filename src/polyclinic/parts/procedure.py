"""What happens between the server and a stage's sites until their updates are there."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn
from torch.optim import Optimizer

from polyclinic.errors import PolyclinicError
from polyclinic.options import Catalogue
from polyclinic.parts.catalogue import Part
from polyclinic.parts.server_end import Ask
from polyclinic.parts.site_end import Memory

if TYPE_CHECKING:
    import torch

    from polyclinic.state import FlatModule
    from polyclinic.tasks import Task


@dataclass(frozen=True)
class Answered:
    """What came of a site's work.

    Attributes:
        site: its name.
        packed: what left the site, ``change [T]`` and ``statistics [S]`` at least, or what a channel made of them;
            nothing where a part keeps the update back (``SiteEnd.sends``); or why no answer came.
        said: ``examples``, ``steps``, ``loss`` and ``seconds`` of its work; a procedure that does not let sites train
            by themselves says all four.
        lag: steps that the server has taken since it sent what the site started from.
    """

    site: str
    packed: Memory | PolyclinicError
    said: Mapping[str, Any] = field(default_factory=dict)
    lag: int = 0


class Stage(ABC):
    """What a procedure has to work with.

    Attributes:
        number: rounds done before.
        rounds: of the whole training.
        learning_rate: of the round.
        sites: who takes part, in site order.
        weights: of each site's update.
        seconds: site -> declared seconds of its local work in a round, where the study declares ``step_seconds``.
        network: the server's own network of the study's kind, as a place to compute in.
        task: loss and measures.
        ask: asks the sites something, which the procedure's end there answers (``answer``).
    """

    number: int
    rounds: int
    learning_rate: float
    sites: list[str]
    weights: Mapping[str, float]
    seconds: dict[str, float]
    network: FlatModule
    task: Task
    ask: Ask

    @abstractmethod
    def state(self, site: str) -> Tensor:
        """The model that a site shares, now ``[Q]``; its first T coordinates are weights."""

    @abstractmethod
    def optimizer(self, parameters: Iterable[nn.Parameter]) -> Optimizer:
        """An optimiser as the study declares, with the learning rate of the round."""

    @abstractmethod
    def generator(self, *names: str | int) -> torch.Generator:
        """Random numbers of this training and round, apart from all others by ``names``."""

    @abstractmethod
    def train(self, states: Mapping[str, Tensor]) -> Iterator[Answered]:
        """Ask sites to train, each from a state ``[Q]``; answers come in site order.

        Raises:
            PartError: P304, a site was asked in this stage before, or does not belong to it.
        """


@dataclass(frozen=True)
class Made:
    """Inputs that a procedure made at the server, to be told of in the report.

    Attributes:
        inputs: standardised as at the sites ``[M, ...]``.
        labels: their classes ``[M]``, or the masks that they were made from ``[M, 1, H, W]``.
        told: site -> what it found when it compared them with its own cases, see
            `polyclinic.client.synthesis.memorisation`.
        masks: site -> how many masks of patients it gave to the server.
    """

    inputs: Tensor
    labels: Tensor
    told: Mapping[str, Memory]
    masks: Mapping[str, int] = field(default_factory=dict)


class Procedure(Part):
    """Gets the updates of a stage.

    One procedure serves all groups of a training. Its end at the site answers questions.

    Attributes:
        trains: whether sites train by themselves, by the message ``train``; parts at the sites have their hooks there,
            and so has the procedure's own end.
        shares: what a method may share with it, keys of `polyclinic.methods.SHARES`; empty for anything.
        still_rounds: rounds at the beginning in which the model stays as it is.
    """

    trains: bool = True
    shares: ClassVar[tuple[str, ...]] = ()
    still_rounds: int = 0

    @abstractmethod
    def updates(self, stage: Stage) -> Iterator[Answered]:
        """What came of the sites' work, in the order in which the server takes it in."""

    def made(self) -> Made | None:
        """Inputs that it made for the training; None if it makes none."""
        return None

    def memory(self) -> Memory:
        """What is kept between rounds, for checkpoints."""
        return {}

    def restore(self, memory: Memory) -> None:
        """Take back what ``memory`` gave."""


#: Procedures by the name used under ``procedure:`` in a study file.
PROCEDURES: Catalogue[type[Procedure]] = Catalogue("procedure")


@PROCEDURES.add("local")
class Local(Procedure):
    """Every site trains once, from the model as it is now."""

    def updates(self, stage: Stage) -> Iterator[Answered]:
        """One message to each."""
        return stage.train({site: stage.state(site) for site in stage.sites})
