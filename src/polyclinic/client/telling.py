"""What the server tells each site once, before the first round."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch

from polyclinic.errors import PolyclinicError, SiteError
from polyclinic.parts import Memory, ServerEnd, SiteEnd, SiteView, Update


class Telling(ServerEnd):
    """Tells sites something when training starts or goes on; those that were away then, when they are asked to train.

    At a site it is the question ``tell``, or comes with the model, so it may come twice.
    """

    def tell(self, told: Mapping[str, Memory]) -> None:
        """Tell each site its own."""
        self._left = dict(told)
        for site, answer in self.ask("tell", told):
            if not isinstance(answer, PolyclinicError):
                del self._left[site]

    def send(self, site: str) -> Memory:
        """The same, to a site that was away."""
        return self._left.get(site, {})

    def take(self, update: Update) -> Update:
        """A site that has trained has been told."""
        self._left.pop(update.site, None)
        return update


class Told(SiteEnd):
    """The end at a site that is told once how images of all sites look, by `Telling`, and changes its own accordingly.

    Attributes:
        looks: what it is told, for people.
    """

    looks: ClassVar[str]
    site: str = ""
    _told: Memory | None = None

    def answer(self, verb: str, asked: Memory, view: SiteView) -> Memory:
        """Learn it, before the first round."""
        if verb != "tell":
            return super().answer(verb, asked, view)
        self._learn(asked)
        return {}

    def begin(self, view: SiteView, received: Memory) -> Memory:
        """Learn it, where the site was away when all were told."""
        if received:
            self._learn(received)
        return {}

    def _learn(self, told: Memory) -> None:
        if self._told is not None and not all(torch.equal(told[name], one) for name, one in self._told.items()):
            raise SiteError("P401", f"Site {self.site} was told of two {self.looks} in one training.",
                            "Run the study again.", site=self.site)  # fmt: skip
        self._told = told

    @property
    def told(self) -> Memory:
        """What it was told.

        Raises:
            SiteError: P401, nothing yet.
        """
        if self._told is None:
            raise SiteError("P401", f"Site {self.site} was not told how images look on average, so it can't change its "
                            "own.", "It is told when it takes part in a round.", site=self.site)  # fmt: skip
        return self._told
