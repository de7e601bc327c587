"""A study between hospitals that is watched from the researcher's folder, by what the command following it writes."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from polyclinic.federation.watching.page import site_rows
from polyclinic.federation.watching.status import Status
from polyclinic.study.watching.progress import STATUS_FILE, Progress, Training, Watcher

#: Seconds after which a study is not heard of any longer; it is told each second.
SILENCE = 60.0


class FollowedWatcher(Watcher):
    """Reads a results folder again and again, also while the study in it runs between hospitals."""

    def look(self) -> Progress:
        """Where the study is now.

        Raises:
            ResultsError: P501, the folder holds no study.
        """
        path = self.folder / STATUS_FILE
        found = _read(path)
        if found is None:
            return super().look()
        status, silent = found
        progress = progress_of(status)
        return replace(progress, state="unheard", silent=silent, left=None) if silent > SILENCE else progress


def _read(path: Path) -> tuple[Status, float] | None:
    """What was told last, and how many seconds ago; None if nobody follows the study."""
    try:
        text, written = path.read_text(encoding="utf-8"), path.stat().st_mtime
        return Status.model_validate_json(text), max(0.0, time.time() - written)
    except (OSError, ValueError):
        return None


def progress_of(status: Status) -> Progress:
    """What a local study would show, as far as the coordinator tells it."""
    left = status.left if status.state == "running" else 0.0  # else results are on their way
    under_way = list[Training]()
    if status.title and (status.jobs is None or status.job < status.jobs):
        last = status.validations[-1] if status.validations else None
        metric = None if last is None or last.metric is None else (status.metric, last.metric)
        losses = [one.loss for one in status.validations]
        under_way.append(Training(status.title, status.round, status.rounds, losses, metric))
    return Progress(
        status.study, "preparing" if status.jobs is None else "running", done=status.done,
        others=max(0, status.job - len(status.done)), total=status.jobs, under_way=under_way, left=left,
        notes=status.lines, means="the validation cases of all sites", sites=site_rows(status),
    )  # fmt: skip
