"""Whether the entries of a study about times fit each other and the task, and the times that follow from them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from polyclinic.data.opening.cohort import Cohort
from polyclinic.data.spec import DataSpec
from polyclinic.options import EntryError, Place
from polyclinic.study.entries import Evaluation
from polyclinic.tasks import TASKS
from polyclinic.tasks.base import TimeGrid, kept_digits
from polyclinic.tasks.survival import DISCRETE

#: Intervals of time where the study does not say how many.
INTERVALS = 20


def time_grid(data: DataSpec, evaluation: Evaluation) -> TimeGrid:
    """The times that all sites agree on, from the study file alone.

    They have as many digits as the times of cases, so that a case at one of them is at it in any unit.
    """
    times, given = tuple(map(kept_digits, evaluation.times)), data.intervals
    if isinstance(given, list):
        return TimeGrid(times, tuple(map(kept_digits, given)))
    count = INTERVALS if given is None else given
    edges = [evaluation.times[-1] * (part + 1) / count for part in range(count)] if times else []
    return TimeGrid(times, tuple(map(kept_digits, edges)))


def check_times(data: DataSpec, evaluation: Evaluation, task: str, losses: Sequence[str]) -> None:
    """Check the entries about times, and what means nothing where times are predicted.

    Args:
        data, evaluation: parts of the study file.
        task: its name.
        losses: of all methods.

    Raises:
        EntryError: with the place of what does not fit.
    """
    if TASKS[task].target != "times":
        _check_absent(data, evaluation, task)
        return
    _check_rising(evaluation.times, ("evaluation", "times"))
    if isinstance(data.intervals, list):
        _check_rising(data.intervals, ("data", "intervals"))
        if evaluation.times and evaluation.times[-1] > data.intervals[-1]:
            raise EntryError(
                "P102", f"the last interval ends at {data.intervals[-1]:g}, and survival is asked for at "
                f"{evaluation.times[-1]:g}.", "Add an interval that ends there, or later.", place=("data", "intervals"),
            )  # fmt: skip
    if evaluation.threshold != "validation":
        raise EntryError(
            "P104", "survival has no threshold: risks order cases, they do not divide them.", "Leave `threshold` out.",
            place=("evaluation", "threshold"),
        )  # fmt: skip
    least = {"brier": 1, "uno": 1, "ibs": 2}
    for position, metric in enumerate(evaluation.metrics):
        if len(evaluation.times) < least.get(metric, 0):
            wanted = "one time or more" if least[metric] == 1 else "two times or more"
            raise EntryError(
                "P102", f"`{metric}` needs {wanted} at which survival is predicted.",
                "Give `evaluation: {times: [...]}` in the unit of `time`.", place=("evaluation", "metrics", position),
            )  # fmt: skip
    if DISCRETE in losses and not time_grid(data, evaluation).edges:
        raise EntryError(
            "P102", f"`{DISCRETE}` needs intervals of time that are the same at all sites.",
            "Give their ends, `data: {intervals: [...]}`, or `evaluation: {times: [...]}`, up to the last of which "
            "there are then equal ones.", place=("data", "intervals"),
        )  # fmt: skip


def check_time_columns(data: DataSpec) -> None:
    """Check the entries of ``data:`` of a study that predicts times.

    Raises:
        EntryError: with the place of what does not fit.
    """
    meanings = {
        "time": "the column with the time of the event, or until when a case was not seen any longer",
        "event": "the column that says whether the event happened",
        "time_unit": "hours, days, weeks, months or years",
    }
    if data.label is not None and (data.time is None or data.event is None):
        raise EntryError(
            "P102", "survival has no `label`: it is about a time and an event.",
            "Name two columns, `time` and `event`, instead.", place=("data", "label"),
        )  # fmt: skip
    for key, meaning in meanings.items():
        if getattr(data, key) is None:
            raise EntryError("P102", f"the entry {key!r} is missing: {meaning}.", place=("data", key))
    if data.time == data.event:
        raise EntryError("P104", "`time` and `event` are the same column.", place=("data", "event"))
    refused = {
        "label": (data.label is not None, "survival has no `label`: it is about `time` and `event`."),
        "classes": (data.classes is not None, "an event has no classes: say with `positive` when it happened."),
        "unlabelled": (
            data.unlabelled == "use",
            "a case without a time or an event has no part in survival; one that was last seen without it has both.",
        ),
        "labels": (data.labels is not None, "times of survival are not hidden: a case without one has no part in it."),
    }  # fmt: skip
    for key, (given, message) in refused.items():
        if given:
            raise EntryError("P104", message, "Take it out.", place=("data", key))


def check_times_fit(grid: TimeGrid, cohort: Cohort, unit: str | None) -> None:
    """Check that the times at which survival is asked for are times of these data: most likely their unit is another.

    Raises:
        EntryError: P104, nobody was seen for so long, or nothing happened by then.
    """
    seen = [one for one in cohort.facts.values() if one.longer is not None]
    if not grid.times or not seen:
        return
    last, place = grid.times[-1], ("evaluation", "times")
    hint = f"Times are in {unit}, as in the table."
    if not any(one.longer for one in seen):
        text = f"survival is asked for at {last:g} {unit}, and no case was seen for longer."
        raise EntryError("P104", text, hint, place=place)
    if not any(one.by_then for one in seen):
        text = f"survival is asked for up to {last:g} {unit}, and no event happened by then."
        raise EntryError("P104", text, hint, place=place)


def _check_absent(data: DataSpec, evaluation: Evaluation, task: str) -> None:
    for key in ("time", "event", "time_unit", "intervals"):
        if getattr(data, key) is not None:
            raise EntryError(
                "P104", f"`{key}` is for survival, and the task is {task}.", "Use `task: survival`, or take it out.",
                place=("data", key),
            )  # fmt: skip
    if evaluation.times:
        raise EntryError(
            "P104", f"`times` is for survival, and the task is {task}.", "Take it out.", place=("evaluation", "times")
        )


def _check_rising(times: Sequence[float], place: Place) -> None:
    for before, after in pairwise(times):
        if after <= before:
            raise EntryError("P102", f"{after:g} comes after {before:g}; times must rise.", place=place)
