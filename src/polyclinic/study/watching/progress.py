"""Where a study is, read from its results folder.

The run writes while this reads. Files that are replaced in one step are whole, old or new; the rows of a training grow
at their end, where a line may be half there; anything may be gone in the next moment.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from polyclinic.errors import ResultsError
from polyclinic.study.ended import INCOMPLETE, is_finished
from polyclinic.study.lock import LOCK
from polyclinic.study.watching.held import is_held

#: In ``jobs/``: name, title, seed, fold and number of rounds of each training, in order.
TRAININGS = "trainings.json"
#: Page that a study between hospitals keeps in the researcher's folder, and the same for programs while it is followed.
STATUS_PAGE, STATUS_FILE = "status.html", "status.json"
_PART, _DRAFT = ".part", ".draft"

State = Literal["preparing", "running", "unknown", "unheard", "interrupted", "failed", "finished", "incomplete"]


@dataclass(frozen=True)
class Training:
    """A training that was begun and is not done.

    Attributes:
        title: what is trained, with seed and fold.
        done: rounds done.
        rounds: how many there are at most; None where it is not known.
        losses: validation loss of the rounds so far, the mean over the sites; None where a round has none.
        metric: name of the metric on validation cases, and its mean over the sites after the last round.
    """

    title: str
    done: int
    rounds: int | None
    losses: Sequence[float | None]
    metric: tuple[str, float] | None


@dataclass(frozen=True)
class Progress:
    """Where a study is.

    Attributes:
        study: its name.
        state: see `STATES` of `polyclinic.study.watching.terminal` for what they mean.
        reason: why it failed.
        done: titles of trainings that are done.
        others: how many more are done before these, whose titles are not told.
        total: how many there are; None where the folder does not tell.
        under_way: those that were begun.
        left: seconds to the end of the last training; None where nothing tells.
        silent: seconds since something was written last; None where nothing was.
        notes: texts of the notes so far, each once.
        means: over what losses and metrics are means, in words.
        sites: what is told of each site between hospitals, see `polyclinic.federation.watching.page.site_rows`.
    """

    study: str
    state: State
    reason: str = ""
    done: Sequence[str] = ()
    others: int = 0
    total: int | None = None
    under_way: Sequence[Training] = ()
    left: float | None = None
    silent: float | None = None
    notes: Sequence[str] = ()
    means: str = "the sites"
    sites: Sequence[Mapping[str, Any]] = ()

    @property
    def count(self) -> int:
        """How many trainings are done."""
        return self.others + len(self.done)

    @property
    def is_over(self) -> bool:
        """Whether nothing runs any more."""
        return self.state in ("interrupted", "failed", "finished", "incomplete")


@dataclass
class Watcher:
    """Reads a results folder again and again.

    Args:
        folder: the results folder.
    """

    folder: Path
    _notes: dict[str, list[str]] = field(default_factory=dict)

    def look(self) -> Progress:
        """Where the study is now.

        Raises:
            ResultsError: P501, the folder holds no study.
        """
        held = is_held(self.folder)  # before the record is read: a run writes how it ended, then lets go
        record = _mapping(_json(self.folder / "provenance.json"))
        study = str(record.get("study_file") or self.folder.name)
        if not record:
            return self._early(study, held)
        state = self._state(record, held)
        if state in ("finished", "incomplete"):
            return Progress(study, state, notes=_texts(_json(self.folder / "notes.json")))
        jobs = self.folder / "jobs"
        listed = _json(jobs / TRAININGS)
        trainings = [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
        known = {str(one.get("name")): one for one in trainings}
        ended = _folders(jobs, "")
        order = {name: place for place, name in enumerate(known)}
        done = sorted(ended, key=lambda name: (order.get(name, len(order)), name))
        begun = [name for name in _folders(jobs, _PART) if name not in ended]
        under_way = [_training(jobs / f"{name}{_PART}", name, known.get(name, {})) for name in begun]
        total = len(known) or None
        now = time.time()
        return Progress(
            study, state, str(record.get("reason") or ""), [_title(known.get(name, {}), name) for name in done],
            total=total, under_way=under_way,
            left=_left(jobs, ended, total, now) if state in ("running", "unknown") else None,
            silent=self._silent([*(jobs / f"{name}{_PART}" / "rounds.jsonl" for name in begun), jobs], now),
            notes=self._notes_of(done),
        )  # fmt: skip

    def _early(self, study: str, held: bool | None) -> Progress:
        """A study that has not written what it is."""
        if not self.folder.is_dir():
            raise ResultsError("P501", f"There is no folder {self.folder}.",
                               "Give the folder of `polyclinic run STUDY --out DIR`.")  # fmt: skip
        if (self.folder / LOCK).exists():
            state: State = "interrupted" if held is False else "preparing"
            return Progress(study, state, silent=self._silent([self.folder / LOCK], time.time()))
        if (self.folder / STATUS_PAGE).is_file():
            raise ResultsError("P501", f"The study in {self.folder} runs between hospitals, and nobody follows it now.",
                               f"Open {self.folder / STATUS_PAGE} in a browser: it says how far it was. The same "
                               "`polyclinic run` follows it again.")  # fmt: skip
        raise ResultsError("P501", f"There is no study in {self.folder}: provenance.json is missing or can't be read.",
                           "Give the folder of `polyclinic run STUDY --out DIR`.")  # fmt: skip

    def _state(self, record: dict[str, Any], held: bool | None) -> State:
        if is_finished(self.folder, record):
            return "incomplete" if record["status"] == INCOMPLETE else "finished"
        if record.get("status") == "failed" and not held:  # a run that resumes it holds the folder
            return "interrupted" if record.get("reason") == "interrupted" else "failed"
        return "running" if held else "unknown" if held is None else "interrupted"

    def _silent(self, paths: Sequence[Path], now: float) -> float | None:
        times = [when for path in [*paths, self.folder / "provenance.json"] if (when := _time(path)) is not None]
        return max(0.0, now - max(times)) if times else None

    def _notes_of(self, done: Sequence[str]) -> list[str]:
        """Of finished trainings, which are read once."""
        for name in done:
            if name not in self._notes:
                self._notes[name] = _texts(_json(self.folder / "jobs" / name / "notes.json"))
        return list(dict.fromkeys(text for name in done for text in self._notes[name]))


def _training(part: Path, name: str, about: dict[str, Any]) -> Training:
    """What the rows of a training say so far."""
    rounds: dict[int, dict[str, dict[str, Any]]] = {}
    for row in _rows(part / "rounds.jsonl"):  # after a crash a round may stand there twice: the later one counts
        rounds.setdefault(row["round"], {})[str(row.get("site"))] = row
    losses = [_mean(rounds[number], "validation_loss") for number in sorted(rounds)]
    last = rounds[max(rounds)] if rounds else {}
    names = {key for row in last.values() for key in row if key.startswith("validation_")} - {"validation_loss"}
    found = [(key.removeprefix("validation_"), _mean(last, key)) for key in sorted(names)]
    metric = next(((key, value) for key, value in found if value is not None), None)
    count = about.get("rounds")
    return Training(_title(about, name), len(rounds), count if isinstance(count, int) else None, losses, metric)


def _rows(path: Path) -> list[dict[str, Any]]:
    """The rows that are whole; none where the file is gone."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    rows = []
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:  # half a line, which is being written
            continue
        if isinstance(row, dict) and isinstance(row.get("round"), int):
            rows.append(row)
    return rows


def _mean(rows: dict[str, dict[str, Any]], key: str) -> float | None:
    values = [row[key] for row in rows.values() if isinstance(row.get(key), int | float)]
    finite = [float(value) for value in values if abs(value) < float("inf")]  # NaN is no number either
    return sum(finite) / len(finite) if finite else None


def _left(jobs: Path, ended: Sequence[str], total: int | None, now: float) -> float | None:
    """Seconds to the end of the last training, as quickly as those since the run began or was resumed.

    Both times are from the drive's clock; that of this computer only tells how long ago the last training ended.
    """
    began = _time(jobs / TRAININGS)
    ends = [when for name in ended if (when := _time(jobs / name)) is not None and began is not None and when > began]
    if total is None or began is None or not ends or total <= len(ended):
        return None
    each = (max(ends) - began) / len(ends)
    return max(0.0, each * (total - len(ended)) - max(0.0, now - max(ends)))


def _title(about: dict[str, Any], name: str) -> str:
    if not {"title", "seed", "fold"} <= about.keys():
        return name
    return f"{about['title']} (seed {about['seed']}, fold {about['fold']})"


def _folders(jobs: Path, ending: str) -> list[str]:
    """Names of the trainings whose folders end so, without the ending; with none, those that are done."""
    try:
        names = sorted(path.name for path in jobs.iterdir() if path.is_dir())
    except OSError:  # not there yet, or gone since the study is finished
        return []
    if ending:
        return [name.removesuffix(ending) for name in names if name.endswith(ending)]
    return [name for name in names if not name.endswith((_PART, _DRAFT))]


def _time(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:
        return None


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _texts(notes: Any) -> list[str]:
    """Number and text of notes as they are stored."""
    stored = notes if isinstance(notes, list) else []
    return [f"{one.get('number')}: {one.get('text')}" for one in stored if isinstance(one, dict)]
