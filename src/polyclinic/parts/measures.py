"""Numbers that a site measures for a part at the server, such as the loss of the model that it received."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from polyclinic.parts.site_end import Ended, Memory, SiteEnd, SiteView
from polyclinic.shapes import Shaped

_MEAN = (
    "a mean over the site's {} cases: how well a model fits them, and where they are few, whether a known one is there"
)
_TRAIN, _VALIDATION = _MEAN.format("training"), _MEAN.format("validation")


@dataclass(frozen=True)
class Measure:
    """A number about a model at a site.

    Attributes:
        reveals: what it could reveal of the site's patients.
        model: the model it is measured with: ``received``, ``trained``, or ``sent`` by the server for this.
        part: the cases it is measured on. On validation cases a site without any answers with its training cases.
        value: ``loss`` (mean), or ``accuracy`` (share of right classes, or Dice).
    """

    reveals: str
    model: Literal["received", "trained", "sent"]
    part: Literal["train", "validation"] = "train"
    value: Literal["loss", "accuracy"] = "loss"


MEASURES: Mapping[str, Measure] = {
    "start_loss": Measure(_TRAIN, "received"),
    "end_loss": Measure(_TRAIN, "trained"),
    "end_accuracy": Measure(_TRAIN, "trained", value="accuracy"),
    "start_validation_loss": Measure(_VALIDATION, "received", "validation"),
    "end_validation_loss": Measure(_VALIDATION, "trained", "validation"),
    "leave_one_out_loss": Measure(_VALIDATION, "sent", "validation"),
}
#: Numbers about the way that a site went, which any part may measure.
STEPS = "the number of local steps: about how many cases the site trains on"
PATH = "the number of local steps, weighted by momentum: about how many cases the site trains on"


def revealed(*names: str) -> dict[str, str]:
    """What some measures could reveal, by name."""
    return {name: {"steps": STEPS, "path": PATH}.get(name) or MEASURES[name].reveals for name in names}


def measured(*names: str, signed: bool = False) -> dict[str, Shaped]:
    """What some measures are sent as, by name; one of a model that is ``sent`` is not part of every answer.

    Args:
        names: of the measures.
        signed: whether losses may be negative. Without it, a site whose loss is has failed.
    """
    found = {}
    for name in names:
        measure = MEASURES.get(name)
        always = "" if measure is not None and measure.model == "sent" else "train"
        loss = measure is not None and measure.value == "loss"
        found[name] = Shaped("float64", always=always, least=None if signed and loss else 0.0)
    return found


class Measuring(SiteEnd):
    """Measures numbers and sends each as float64 ``[]``.

    Args:
        names: keys of ``MEASURES``, ``steps`` or ``path``.
        sent: name under which the server sends the shared state ``[Q]`` of the model for measures of a model that was
            ``sent``; without it there is no such number in the round.
    """

    def __init__(self, *names: str, sent: str = "") -> None:
        self.names, self.model_sent = names, sent
        self.needs_labels = any(name in MEASURES for name in names)

    def begin(self, view: SiteView, received: Memory) -> Memory:
        """Nothing for the steps."""
        self._sent = received.get(self.model_sent)
        return {}

    def end(self, ended: Ended, given: Memory) -> Memory:
        """The numbers."""
        found = {name: self._number(name, ended) for name in self.names}
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in found.items() if value is not None}

    def _number(self, name: str, ended: Ended) -> float | None:
        if name == "steps":
            return float(ended.steps)
        if name == "path":
            return ended.path()
        measure = MEASURES[name]
        models: dict[str, Tensor | None] = {
            "received": ended.view.vector, "trained": ended.vector,
            "sent": None if self._sent is None else ended.view.whole(self._sent),
        }  # fmt: skip
        model = models[measure.model]
        return None if model is None else ended.view.measure(model, measure.part)[measure.value]
