"""Numbers that a site adds to its update because a part of the server rule asks for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

#: Name of the tensor with the model whose loss is ``leave_one_out_loss``.
LEAVE_ONE_OUT = "leave_one_out"


@dataclass(frozen=True)
class Fact:
    """A number that a site can measure in a round.

    Attributes:
        reveals: what it could reveal of the site's patients.
        model: the model it is measured with: ``received``, ``trained``, or ``sent`` (``LEAVE_ONE_OUT``); empty where it
            is none of a model.
        part: the cases it is measured on.
        value: ``loss`` (mean), or ``accuracy`` (share of right classes, or Dice).
    """

    reveals: str
    model: Literal["", "received", "trained", "sent"] = ""
    part: Literal["train", "validation"] = "train"
    value: Literal["loss", "accuracy"] = "loss"


_MEAN = (
    "a mean over the site's {} cases: how well a model fits them, and where they are few, whether a known one is there"
)
_TRAIN, _VALIDATION = _MEAN.format("training"), _MEAN.format("validation")

#: Facts by name. On validation cases a site without any answers with its training cases.
FACTS: Mapping[str, Fact] = {
    "start_loss": Fact(_TRAIN, "received"),
    "end_loss": Fact(_TRAIN, "trained"),
    "end_accuracy": Fact(_TRAIN, "trained", value="accuracy"),
    "start_validation_loss": Fact(_VALIDATION, "received", "validation"),
    "end_validation_loss": Fact(_VALIDATION, "trained", "validation"),
    "leave_one_out_loss": Fact(_VALIDATION, "sent", "validation"),
    "steps": Fact("the number of local steps: about how many cases the site trains on"),
    "path": Fact("the number of local steps, weighted by momentum: about how many cases the site trains on"),
}


def models_needed(wanted: list[str], received: Tensor, trained: Tensor, sent: Tensor | None) -> dict[str, Tensor]:
    """Fact -> the model ``[P]`` that it is measured with, for those of ``wanted`` that are measured with a model."""
    models = {"received": received, "trained": trained, "sent": sent}
    found = {name: models[FACTS[name].model] for name in wanted if FACTS[name].model}
    return {name: model for name, model in found.items() if model is not None}
