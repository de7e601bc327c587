"""Sites that can be turned bad in a simulation."""

from __future__ import annotations

from copy import copy
from typing import ClassVar

from polyclinic.data.corruption import Backdoor, corrupted
from polyclinic.data.dataset import Dataset
from polyclinic.data.splits import Parts
from polyclinic.site.messages import Predict, Start
from polyclinic.site.run import Run
from polyclinic.site.site import Site


class CorruptibleSite(Site):
    """A site that trains on corrupt cases, and shows its test cases with a mark, where a message says so.

    Whoever starts the sites decides whether they are of this kind: it is for studies with an ``attack``, whose sites
    are all simulated. No message can turn an ordinary site into one.
    """

    refused: ClassVar[frozenset[str]] = frozenset()

    def cases(self, asked: Start) -> tuple[Dataset, Parts]:
        """The site's prepared cases, corrupted where the message makes this site a bad one."""
        corruption = asked.corrupt.get(self.name)
        if corruption is None:
            return super().cases(asked)
        return corrupted(self.dataset, self.parts, corruption, asked.classes, (asked.seed, self.name, asked.fold))

    def tested(self, asked: Predict) -> Run:
        """The run, with the mark of a backdoor on its test cases where one is asked for."""
        run = super().tested(asked)
        if asked.mark is not None:
            run = copy(run)
            run.dataset = Backdoor(**asked.mark).marked(run.dataset, run.parts.test)
        return run
