"""What trainings cost the privacy of a site's patients: written down at the site before anything leaves it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from polyclinic.errors import SiteError
from polyclinic.privacy import Budget, Event, Ledger, merged

#: The ledger in a site's folder.
LEDGER = "privacy.jsonl"


class Spending:
    """A site's spending.

    Args:
        site: its name.
        path: of the ledger; None keeps it in memory.
        real: whether the site is a hospital: then a round that is done again has new noise, and costs again. In a
            simulation it has the same, so nothing more is told.
        study: goes before the names of trainings, where a ledger is of several studies.
        lifetime: ε and δ that all trainings together may cost; None for any.
    """

    def __init__(self, site: str, path: Path | None, *, real: bool = False, study: str = "",
                 lifetime: tuple[float, float] | None = None) -> None:  # fmt: skip
        self.site, self.real, self._path, self._study, self.lifetime = site, real, path, study, lifetime
        self._ledger: Ledger | None = None
        self._memory: dict[tuple[str, int, int], tuple[Event, ...]] = {}

    @property
    def ledger(self) -> Ledger | None:
        """Opened when it is needed, with what other processes have written: trainings go side by side."""
        if self._ledger is not None:
            self._ledger.refresh()
        elif self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._ledger = Ledger(self._path)
        return self._ledger

    def record(self, run: str, number: int, events: Iterable[Event], turn: int = 0) -> None:
        """Write down that a round of a training begins.

        Raises:
            ResultsError: P504 or others, it can't be written; then nothing may leave the site.
        """
        name, ledger = self._study + run, self.ledger
        if ledger is None:
            attempt = turn + 1 + (len(self._memory) if self.real else 0)
            self._memory[(name, number, attempt)] = merged(events)
            return
        attempt = 1 + ledger.attempts(self.site, name, number) if self.real else turn + 1
        ledger.record(self.site, events, run=name, round=number, attempt=attempt)

    def rounds(self, run: str, number: int, turn: int = 0) -> int:
        """How many rounds of a training were written down, where round ``number`` begins, or a later turn in it; a turn
        counts as a round.

        In a simulation one that was stopped and goes on from an earlier round does the same again.
        """
        own = [key[1:] for key in self._keys() if key[0] == self._study + run]
        return len(own) if self.real else sum(one < (number, turn + 1) for one in own)

    def of(self, run: str) -> tuple[Event, ...]:
        """What a training has cost."""
        return self.by_training().get(self._study + run, ())

    def others(self, run: str, *, of_study: bool = False) -> tuple[Event, ...]:
        """What all trainings but one have cost, or all of its study."""
        found = self.by_training()
        found.pop(self._study + run, None)
        prefix = self._study if of_study else ""
        return merged(event for name, events in found.items() if name.startswith(prefix) for event in events)

    def total(self) -> tuple[Event, ...]:
        """What all trainings have cost."""
        return merged(event for events in self.by_training().values() for event in events)

    def by_training(self) -> dict[str, tuple[Event, ...]]:
        """Training -> what it has cost."""
        found: dict[str, list[Event]] = {}
        ledger = self.ledger
        if ledger is None:
            noted = [(key[0], events) for key, events in self._memory.items()]
        else:
            noted = [(entry.run, entry.events) for entry in ledger.entries(self.site)]
        for run, events in noted:
            found.setdefault(run, []).extend(events)
        return {run: merged(events) for run, events in found.items()}

    def _keys(self) -> list[tuple[str, int, int]]:
        ledger = self.ledger
        if ledger is None:
            return list(self._memory)
        return [(entry.run, entry.round, entry.attempt) for entry in ledger.entries(self.site)]


def check_delta(site: str, delta: float, patients: int) -> None:
    """With a δ of 1/n or more, a guarantee allows that one of n patients is told of in full. The site looks itself,
    whatever the coordinator has counted, and says no more than that there are 1/δ or more.

    Raises:
        SiteError: P102, it is so.
    """
    if delta * patients >= 1:
        raise SiteError(
            "P102", f"Site {site} does not train: δ = {delta:g} is for fewer than {1 / delta:.4g} training patients, "
            "and it has as many or more, so that all of one of them could be told.",
            "Give a lower `privacy: {delta: ...}`: 1e-5, or what is far below one by their number.", site=site,
        )  # fmt: skip


def budget_spent(site: str, budget: Budget, done: int) -> SiteError:
    """A site's answer where its training may go no further."""
    one = budget.trainings == 1
    if not done:
        may = f"training may ({budget})" if one else f"training may, with all others of the study ({budget})"
        return SiteError(
            "P306", f"The first round alone costs the patients of site {site} more of their privacy than this {may}.",
            f"Allow a greater ε, or more noise{'' if one else ', or plan fewer trainings'}.", site=site,
        )  # fmt: skip
    may = f"training may cost its patients' privacy ({budget})" if one else (
        f"training may cost its patients' privacy, with all others of the study ({budget}),"
    )  # fmt: skip
    return SiteError(
        "P306", f"Site {site} has spent what this {may} in {done} rounds.",
        "The model of the rounds before is used. Allow a greater ε, more noise, or fewer rounds.", site=site,
    )  # fmt: skip


def lifetime_spent(site: str, budget: tuple[float, float]) -> SiteError:
    """A site's answer where its policy allows no more, whatever the study says."""
    return SiteError(
        "P306", f"Site {site} has spent what all trainings may cost its patients' privacy (ε = {budget[0]:g} at "
        f"δ = {budget[1]:g}, by its policy).",
        "The model of the rounds before is used, if there are any.", site=site,
    )  # fmt: skip
