"""Where a study is: what the coordinator tells researchers of it, and shows in a page."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from polyclinic.communication.message import Message
from polyclinic.federation.remote.engine import Line
from polyclinic.notes import Note
from polyclinic.study.display import Display, counts_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd

    from polyclinic.engine.planner import EnginePlan

#: Rounds whose validation is shown, and trainings whose titles are.
MOST_ROUNDS, MOST_TITLES = 200, 8


class _Told(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SiteStatus(_Told):
    """A site in a study that runs.

    Attributes:
        name: in the study.
        party: name of its kit.
        lost: whether it did not answer when it was asked last.
        heard: when it said something last, in seconds since 1970; 0 for never.
        doing: what it was asked and has not answered yet; empty for nothing.
        since: when it was asked that.
        sent, received: bytes that went to the site, and that left it.
        answers: function -> how many answers left it.
    """

    name: str
    party: str
    lost: bool
    heard: float
    doing: str
    since: float
    sent: int
    received: int
    answers: dict[str, int]


class Validation(_Told):
    """What sites said of the model after a round; means over their validation cases.

    Attributes:
        round: its number, from 1.
        loss, metric: None where no site gave a finite number.
        sites: how many answered.
    """

    round: int
    loss: float | None
    metric: float | None
    sites: int


class Status(_Told):
    """Where a study is.

    Attributes:
        state: ``running``, or how it ended: see `Outcome`.
        study: its name.
        mark: its hash with its sites.
        now: when this was told, in seconds since 1970.
        since: when this run of it began.
        jobs, job: how many trainings it has, and how many are done.
        title: of the training that is going on.
        rounds, round: how many rounds that has, and how many are done.
        progress: how many rounds and trainings were done in this run.
        metric: name of the metric in validations.
        validations: the last rounds of the training that is going on.
        sites: one by one.
        lines: what was to be said so far.
        done: titles of the trainings that were done last.
        left: seconds to the end of the last training, as quickly as those of this run; None where nothing tells.
    """

    state: str
    study: str
    mark: str
    now: float
    since: float
    jobs: int | None
    job: int
    title: str
    rounds: int | None
    round: int
    progress: int
    metric: str
    validations: list[Validation]
    sites: list[SiteStatus]
    lines: list[str]
    done: list[str] = []
    left: float | None = None


class Outcome(_Told):
    """How a run of a study ended.

    Attributes:
        state: ``finished``; ``incomplete``, finished without results of sites that did not answer when they were
            tested; ``failed``, which another run will not mend; ``lost``, sites did not answer; ``paused``,
            so that a site that was lost can take part again; or ``stopped``, a researcher did not want it to go on.
            In the last three states the study goes on where it was when it is run again.
        lost: names of the kits of sites that did not answer.
        progress: how many rounds and trainings were done in this run.
        failure: why it did not finish; empty if it did.
    """

    state: Literal["finished", "incomplete", "failed", "lost", "paused", "stopped"]
    lost: list[str] = Field(default_factory=list)
    progress: int = 0
    failure: dict[str, str] = Field(default_factory=dict)


def read_status(found: object) -> Status | None:
    """What a coordinator told, if it is that."""
    try:
        return Status.model_validate(found)
    except ValidationError:
        return None


class Watch(Display):
    """Keeps account of a study that runs.

    Args:
        study: its name.
        mark: its hash with its sites.
        metric: the one that sites are validated by.
        lines: what is known of the connections to sites; they may get other names.
    """

    def __init__(self, study: str, mark: str, metric: str, lines: Mapping[str, Line]) -> None:
        self.study, self.mark, self.metric, self.lines = study, mark, metric, lines
        self.parties = {name: name for name in lines}
        self.state, self.since, self.progress = "running", time.time(), 0
        self._jobs: int | None = None
        self._rounds: int | None = None
        self._job, self._round, self._title = 0, 0, ""
        self._said, self._done = list[str](), list[str]()
        self._planned, self._ended, self._trained = self.since, self.since, 0
        self._validations: list[Validation] = []
        self._validated: dict[str, tuple[int, float | None, float | None]] = {}
        self._answers: dict[str, dict[str, int]] = {}
        self._lock = threading.Lock()  # sites answer in threads of their own

    def renamed(self, names: Mapping[str, str], lines: Mapping[str, Line]) -> None:
        """Sites have names of their own: name of the kit -> name."""
        self.parties, self.lines = {name: party for party, name in names.items()}, lines

    def answered(self, site: str, function: str, answer: Message) -> None:
        """A site answered."""
        with self._lock:
            counts = self._answers.setdefault(site, {})
            counts[function] = counts.get(function, 0) + 1
            if function == "evaluate":
                cases, loss, metric = (_finite(answer.fields.get(name)) for name in ("cases", "loss", "metric"))
                self._validated[site] = (int(cases or 0), loss, metric)

    def status(self) -> Status:
        """Where the study is now."""
        with self._lock:
            answers = {site: dict(counts) for site, counts in self._answers.items()}
        return Status(
            state=self.state, study=self.study, mark=self.mark, now=time.time(), since=self.since, jobs=self._jobs,
            job=self._job, title=self._title, rounds=self._rounds, round=self._round, progress=self.progress,
            metric=self.metric, validations=list(self._validations), lines=list(self._said), done=list(self._done),
            left=self._left(),
            sites=[self._of_site(name, line, answers.get(name, {})) for name, line in sorted(self.lines.items())],
        )  # fmt: skip

    def _left(self) -> float | None:
        """Seconds to the end of the last training; those that were done in this run tell."""
        if self._jobs is None or not self._trained or self._job >= self._jobs or self.state != "running":
            return None
        each = (self._ended - self._planned) / self._trained
        return max(0.0, each * (self._jobs - self._job) - (time.time() - self._ended))

    def _of_site(self, name: str, line: Line, answers: dict[str, int]) -> SiteStatus:
        return SiteStatus(
            name=name, party=self.parties.get(name, name), lost=line.lost, heard=line.heard, doing=line.asked[0],
            since=line.asked[1], sent=line.sent, received=line.received, answers=answers,
        )  # fmt: skip

    def opened(self, sites: pd.DataFrame, notes: list[Note]) -> None:
        """See `Display`."""
        self.note(f"Data: {len(sites)} sites, {counts_text(sites)}.")

    def planned(self, plan: EnginePlan, jobs: int) -> None:
        """See `Display`."""
        self._jobs, self._job = jobs, 0
        self._planned = self._ended = time.time()

    def job(self, number: int, title: str, skipped: bool) -> None:
        """See `Display`."""
        if self._job < number and self._round > 0:  # the one before was trained now
            self.progress += 1
            self._trained, self._ended = self._trained + 1, time.time()
            self._done.append(self._title)
        if skipped:
            self._done.append(title)
        del self._done[:-MOST_TITLES]
        self._job, self._title, self._round, self._rounds = number + skipped, title, 0, None
        self._validations.clear()
        self._validated.clear()

    def round(self, done: int, total: int) -> None:
        """See `Display`."""
        self._round, self._rounds = done, total
        self.progress += 1
        with self._lock:
            said, self._validated = list(self._validated.values()), {}
        if said:
            loss, metric = _mean([(cases, of) for cases, of, _ in said]), _mean([(cases, of) for cases, _, of in said])
            self._validations.append(Validation(round=done, loss=loss, metric=metric, sites=len(said)))
            del self._validations[:-MOST_ROUNDS]

    def step(self, title: str) -> None:
        """See `Display`."""
        self.note(f"Writing {title} ...")

    def note(self, text: str) -> None:
        """See `Display`."""
        self._said.append(text)


def _finite(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and abs(value) < float("inf") else None


def _mean(values: Sequence[tuple[int, float | None]]) -> float | None:
    """Mean weighted by cases; None if a value is missing."""
    cases = sum(count for count, _ in values)
    known = [count * value for count, value in values if value is not None]
    return sum(known) / cases if cases and len(known) == len(values) else None
