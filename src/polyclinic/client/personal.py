"""Personal models: what a site trains for its own cases besides, or around, the shared model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from polyclinic.client.rules import Memory
from polyclinic.client.work import Work
from polyclinic.options import Catalogue
from polyclinic.state import FlatModule, Layout, Selection


class Companion(ABC):
    """A second model that is trained on the same batches as the first."""

    @abstractmethod
    def step(self, model: FlatModule, backward: Callable[[], Tensor]) -> None:
        """Train it on the batch that the first model just made a step on.

        Args:
            model: holds the first model; must hold it again afterwards.
            backward: writes into ``model.gradient`` the gradient of the batch's loss at whatever ``model`` holds, and
                gives the loss.
        """


@dataclass(frozen=True)
class Phase:
    """One of the trainings that a site does in a round, one after another.

    Attributes:
        work: what is done.
        start: where it starts: at the ``received`` model, at what the phase before gave (``before``), or at the site's
            ``personal`` model. Distances are always measured from the received model.
        gives: whether it gives the model to be ``shared`` or the ``personal`` one.
        trained: the coordinates that are trained; None for all weights.
    """

    work: Work
    start: Literal["received", "before", "personal"] = "received"
    gives: Literal["shared", "personal"] = "shared"
    trained: Selection | None = None


class Personal(ABC):  # noqa: B024 - each changes some of it
    """A way to have a personal model; its memory stays at the site.

    Attributes:
        unseen: what a site that did not train gets, for people.
        not_stackable: why sites can't be trained together; empty where they can.
        keeps_optimizer: whether the local optimisers may keep their state between rounds.
        mixed_precision: whether it can be trained in mixed precision.
    """

    unseen: ClassVar[str] = "the shared model"
    not_stackable: ClassVar[str] = ""
    keeps_optimizer: ClassVar[bool] = True
    mixed_precision: ClassVar[bool] = True

    def initial(self, vector: Tensor) -> Memory:
        """What is kept before the first round, from the first state ``[P]`` of the model."""
        return {}

    def phases(self, work: Work, layout: Layout) -> Sequence[Phase]:
        """The trainings of a round."""
        return [Phase(work)]

    def companion(self, memory: Memory, work: Work, learning_rate: float) -> Companion | None:
        """What is trained beside the shared model in the first phase."""
        return None

    def model(self, shared: Tensor, memory: Memory) -> Tensor:
        """The model for the site's own cases ``[P]`` from the shared one ``[P]``."""
        return shared

    def end(self, memory: Memory, personal: Tensor | None, companion: Companion | None) -> Memory:
        """What to keep after a round; ``personal`` is what a phase gave as the personal model ``[P]``."""
        return memory


#: Ways to a personal model by the name used under ``personal:`` in a study file.
PERSONAL: Catalogue[type[Personal]] = Catalogue("personal model")


@PERSONAL.add("shared_model")
class SharedModel(Personal):
    """No personal model: the site's own cases get the shared one, with whatever the site does not share."""

    unseen = "the shared model, or the mean of all sites' predictions where sites keep a part of the model"
