"""Models of all sites at the server, for cases that are not predicted by the shared one alone."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from polyclinic.client.domain_shift.spectra import trained_on_boxes
from polyclinic.client.latest import LatestModels
from polyclinic.errors import StudyError
from polyclinic.parts import Ended, Memory, SiteEnd, SiteView, Update

#: What a site's model tells, for `polyclinic.parts.Part.reveals`.
SITE_MODEL = (
    "the site's own model as a whole, for the server and for every site that is tested: as telling as an update, and "
    "of this site alone"
)


class SendsModel(SiteEnd):
    """Sends the site's own model with each update."""

    def meet(self, view: SiteView) -> Memory:
        """Refuses boxes of volumes, of which a case has many."""
        if trained_on_boxes(view):
            raise StudyError("P104", f"{self.name} looks at whole images, and the network is trained on boxes of "
                             "volumes.", f"Leave {self.name} out, or train on whole volumes (no `patch`).")  # fmt: skip
        return {}

    def end(self, ended: Ended, given: Memory) -> Memory:
        """θ_k after the round ``[P]``."""
        return {"model": ended.own.clone()}


class SiteModels(LatestModels):
    """Keeps the last model of each site, as it sent it."""

    needs_whole = True

    def meet(self, announced: Mapping[str, Memory], everyone: Mapping[str, float]) -> None:
        """Sites have numbers."""
        self.everyone = list(everyone)

    def told(self, update: Update) -> Memory:
        """θ_k ``[P]``."""
        return dict(self.sent(update))

    def numbered(self, models: Mapping[str, Tensor]) -> Memory:
        """Models of sites by their site's number: ``model0``, ``model1``, ..."""
        return {f"model{self.everyone.index(site)}": model for site, model in models.items()}


def by_number(sent: Memory) -> dict[int, Tensor]:
    """What ``numbered`` gave: a site's number -> its model ``[P]``."""
    return {int(name.removeprefix("model")): one for name, one in sent.items() if name.startswith("model")}


def pulled(models: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """SoftPull: λ θ_k + (1 − λ) Σ_{j ≠ k} θ_j / (K − 1) of each of K models ``[P]``; one alone stays as it is.

    Args:
        models: site -> θ_k.
        share: λ.
    """
    if len(models) < 2 or share == 1:
        return dict(models)
    total = torch.zeros_like(next(iter(models.values())), dtype=torch.float64)
    for one in models.values():  # one after another: they may be large
        total += one
    rest = (1 - share) / (len(models) - 1)
    return {site: ((share - rest) * one.double() + rest * total).float() for site, one in models.items()}
