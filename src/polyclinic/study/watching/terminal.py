"""A study that is watched, on a terminal; a line now and then where there is none."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bars
from rich.table import Table
from rich.text import Text

from polyclinic.errors import ResultsError
from polyclinic.study.display import duration
from polyclinic.study.watching.progress import Progress, Training, Watcher

STATES = {
    "preparing": "preparing: data are being opened, and nothing else is known yet",
    "running": "running",
    "unknown": "running, or interrupted without a word: its lock is there, and who holds it can't be told from here",
    "unheard": "not heard of: the command that follows it has ended, or does not reach the coordinator; the study may "
    "go on, and the same `polyclinic run` follows it again",
    "interrupted": "interrupted: no process holds its lock; `polyclinic run` with --resume goes on",
    "failed": "failed",
    "finished": "finished: see report.html",
    "incomplete": "finished, but incomplete: sites did not answer when they were tested; see report.html",
}
#: Seconds from one look to the next, and from one plain line to the next.
EVERY, LINES_EVERY = 2.0, 10.0
#: So many looks in a row may fail.
PATIENCE = 5
#: Names, notes and rounds that are shown.
MOST_NAMES, MOST_NOTES, WIDTH = 8, 5, 24
_BARS = "▁▂▃▄▅▆▇█"


def watch(watcher: Watcher, console: Console, *, once: bool = False) -> None:
    """Show a study until nothing runs any more.

    Args:
        watcher: reads its folder.
        console: where.
        once: show where it is, and end.

    Raises:
        ResultsError: P501, the folder holds no study.
    """
    progress = watcher.look()
    if once:
        console.print(drawn(progress))
    elif console.is_terminal:
        with Live(drawn(progress), console=console, auto_refresh=False) as live:
            for now in _looks(watcher, progress):
                live.update(drawn(now), refresh=True)
    else:
        _print_lines(watcher, progress, console)


def _looks(watcher: Watcher, progress: Progress) -> Iterator[Progress]:
    yield progress
    failed = 0
    while not progress.is_over:
        time.sleep(EVERY)
        try:
            progress, failed = watcher.look(), 0
        except ResultsError:  # a network drive may lose a file for a moment
            failed += 1
            if failed == PATIENCE:
                raise
            continue
        yield progress


def _print_lines(watcher: Watcher, progress: Progress, console: Console) -> None:
    printed, before = -LINES_EVERY, ""
    for now in _looks(watcher, progress):
        text = line(now)
        if text != before and (now.is_over or time.monotonic() - printed >= LINES_EVERY):
            console.print(text, markup=False, soft_wrap=True)
            printed, before = time.monotonic(), text


def line(progress: Progress) -> str:
    """Where a study is, in one line."""
    parts = [state_text(progress)]
    if progress.state not in ("preparing", "finished", "incomplete"):
        parts.append(f"{progress.count} of {_total(progress)} trainings done")
    parts += [f"{one.title} {_rounds(one)}" for one in progress.under_way]
    if progress.left is not None:
        parts.append(f"about {duration(progress.left)} left")
    return "; ".join(parts)


def state_text(progress: Progress) -> str:
    """The state of a study in words."""
    text = STATES[progress.state] + (f": {progress.reason}" if progress.state == "failed" else "")
    if progress.silent is not None and progress.state in ("preparing", "unknown", "unheard", "interrupted"):
        text += f" (last written {duration(progress.silent)} ago)"
    return text


def drawn(progress: Progress) -> RenderableType:
    """Where a study is, as a picture of several lines."""
    shown: list[RenderableType] = [Text.assemble((progress.study, "bold"), ": ", state_text(progress))]
    if progress.state not in ("preparing", "finished", "incomplete"):
        shown += _trainings(progress)
    if progress.sites:
        shown.append(sites_table(progress.sites))
    if progress.notes:
        shown.append(f"Notes so far: {len(progress.notes)}")
        shown += [Text(f"  {text}", style="yellow") for text in progress.notes[:MOST_NOTES]]
        if len(progress.notes) > MOST_NOTES:
            shown.append(f"  and {len(progress.notes) - MOST_NOTES} more")
    return Group(*shown)


def sites_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """What is told of each site between hospitals."""
    table = Table(box=None, pad_edge=False)
    for name in ("Site", "", "Last heard", "Sent to it", "Left it"):
        table.add_column(name, no_wrap=True)
    for row in rows:
        cells = [escape(str(row[name])) for name in ("name", "state", "heard", "sent", "received")]
        table.add_row(*cells, style="red" if row["lost"] else None)
    return table


def _trainings(progress: Progress) -> Iterator[RenderableType]:
    done = progress.done
    if progress.total is None:
        yield f"Trainings done: {progress.count} of an unknown number"
    else:
        bars = Bars(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        bars.add_task("Trainings", total=progress.total, completed=progress.count)
        yield bars
    if done:
        shown = min(len(done), MOST_NAMES)
        more = f"{progress.count - shown} others, " if progress.count > shown else ""
        yield Text(f"Done: {more}{', '.join(done[-MOST_NAMES:])}", style="dim")
    if progress.under_way:
        table = Table(box=None, pad_edge=False, show_edge=False)
        for name in ("Begun", "Round", "Validation loss", "Last", "Metric"):
            table.add_column(name)
        for one in progress.under_way:
            known = [loss for loss in one.losses if loss is not None]
            metric = "" if one.metric is None else f"{one.metric[0]} {one.metric[1]:.3f}"
            last = f"{known[-1]:.4g}" if known else "–"
            table.add_row(escape(one.title), _rounds(one), sparkline(one), last, escape(metric))
        yield table
        yield Text(f"Losses and metrics are means over {progress.means}.", style="dim")
    if progress.left is not None:
        end = datetime.now().astimezone() + timedelta(seconds=progress.left)
        yield f"About {duration(progress.left)} left for trainings, until {end:%d %B %H:%M}; then tables and report."
    elif progress.state in ("running", "unknown"):
        yield "The end can be estimated when a training is done that was begun in this run."


def _total(progress: Progress) -> str:
    return "an unknown number of" if progress.total is None else str(progress.total)


def _rounds(training: Training) -> str:
    return f"round {training.done} of {'unknown' if training.rounds is None else training.rounds}"


def sparkline(training: Training, width: int = WIDTH) -> str:
    """The losses of the last rounds as bars from the lowest to the highest of them; a dot where a round has none."""
    losses = list(training.losses)[-width:]
    known = [loss for loss in losses if loss is not None]
    if not known:
        return ""
    low, high = min(known), max(known)
    step = (high - low) / (len(_BARS) - 1)
    return "".join("·" if x is None else _BARS[round((x - low) / step) if step else 0] for x in losses)
