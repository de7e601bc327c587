"""A procedure: the server does not wait for all sites."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor

from polyclinic.errors import StudyError
from polyclinic.parts import PROCEDURES, SERVER_PARTS, Answered, Memory, Procedure, ServerPart, Stage, Update


@PROCEDURES.add("buffered")
class Buffered(Procedure):
    """FedBuff: the server takes a step as soon as some sites are ready; the others go on from the model that they got.

    When a site is ready is told by the speeds that the study declares (``training: {step_seconds: ...}``), so that a
    run can be repeated. A site that was ready starts again with the server's next step.

    Source: Nguyen et al., Federated learning with buffered asynchronous aggregation, AISTATS 2022, algorithm 1.

    Args:
        size: sites that are waited for.
    """

    def __init__(self, *, size: PositiveInt = 2) -> None:
        self.size = size
        self._clock = 0.0
        #: Site -> when it will be ready, the round in which it began, and the model that it got [Q].
        self._busy: dict[str, tuple[float, int, Tensor]] = {}

    def updates(self, stage: Stage) -> Iterator[Answered]:
        """Those of the sites that are ready first."""
        silent = [site for site in stage.sites if site not in stage.seconds]
        if silent:
            raise StudyError("P104", f"Nobody says how fast {silent[0]} is, by which the procedure goes.",
                             "Give `training: {step_seconds: ...}` for every site.")  # fmt: skip
        for site in stage.sites:
            if site not in self._busy:
                self._busy[site] = self._clock + stage.seconds[site], stage.number, stage.state(site)
        for site in sorted(stage.sites, key=lambda site: (self._busy[site][0], site))[: self.size]:
            ready, number, state = self._busy.pop(site)
            self._clock = max(self._clock, ready)
            for answered in stage.train({site: state}):
                yield replace(answered, lag=stage.number - number)

    def memory(self) -> Memory:
        """The clock, and who is busy with what."""
        found = {"clock": torch.tensor(self._clock, dtype=torch.float64)}
        for site, (ready, number, state) in self._busy.items():
            found |= {f"when/{site}": torch.tensor([ready, number], dtype=torch.float64), f"state/{site}": state}
        return found

    def restore(self, memory: Memory) -> None:
        """Take it back."""
        self._clock = float(memory["clock"])
        when = {key.removeprefix("when/"): value for key, value in memory.items() if key.startswith("when/")}
        self._busy = {site: (float(v[0]), int(v[1]), memory[f"state/{site}"]) for site, v in when.items()}


@SERVER_PARTS.add("stale")
class Stale(ServerPart):
    """Changes from an older model count less: Δ ← Δ / (1 + lag)^a.

    Source: as above, section 5, where a is 0.5.

    Args:
        power: a; 0 changes nothing.
    """

    def __init__(self, *, power: NonNegativeFloat = 0.5) -> None:
        self.power = power

    def take(self, update: Update) -> Update:
        """Scale."""
        return replace(update, change=update.change / (1 + update.lag) ** self.power) if update.lag else update
