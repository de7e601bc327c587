"""A step of the channel that lets an update pass only where the site's model got better."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch

from polyclinic.parts import CHANNEL_PARTS, SitePart
from polyclinic.parts.site_end import Ended


@CHANNEL_PARTS.add("dynamic_fusion")
class DynamicFusion(SitePart):
    """A site sends its update only if the model that it trained is better on its own validation cases than each one
    that it sent before: a_k > max a_k, which starts at −∞. As good is not better. Otherwise it sends nothing, and is as
    if it had not taken part.

    A site without validation cases goes by its training cases. That it sends nothing tells the server that its model
    did not get better there.

    Source: Zhang et al., Dynamic-fusion-based federated learning for COVID-19 detection, IEEE Internet of Things
    Journal 8 (2021); the comparison as in the authors' program (DynamicFL), where the first model is compared with an
    accuracy of 0, and where sites go on from models of their own after a round in which nobody sent one.

    Args:
        by: what says how good a model is: its ``accuracy`` (for masks Dice), or its ``loss``.
    """

    packs: ClassVar = True
    needs_labels = True

    def __init__(self, *, by: Literal["accuracy", "loss"] = "accuracy") -> None:
        self.by, self.needs_accuracy = by, by == "accuracy"

    def sends(self, ended: Ended) -> bool:
        """Compare; what is not a number is not better."""
        found = ended.view.measure(ended.vector, "validation")[self.by]
        score = -found if self.by == "loss" else found
        if not score > float(self.kept.get("best", -math.inf)):
            return False
        self.kept = {"best": torch.tensor(score, dtype=torch.float64)}
        return True
