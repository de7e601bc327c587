"""Commands on results folders."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

Results = Annotated[Path, typer.Argument(metavar="DIR", help="Results folder of a study.")]


def checklist(
    folder: Results,
    name: Annotated[str, typer.Option("--list", help="federated, tripod-ai or claim.")] = "federated",
    out: Annotated[
        Path | None, typer.Option(help="File to write (.md or .html); default DIR/checklist-LIST.md.")
    ] = None,
) -> None:
    """Fill a checklist for reporting from a finished study; what a run can't know is left to the authors."""
    from polyclinic.errors import StudyError, nearest
    from polyclinic.study.report.checklists import CHECKLISTS
    from polyclinic.study.report.checklists.writing import write_checklist

    if name not in CHECKLISTS:
        raise StudyError("P103", f"There is no checklist {name!r}.", nearest(name, list(CHECKLISTS)))
    target = folder / f"checklist-{name}.md" if out is None else out
    write_checklist(folder, CHECKLISTS[name], target)
    print(target)


def watch(
    folder: Results,
    once: Annotated[bool, typer.Option("--once", help="Print where it is now, and end.")] = False,
) -> None:
    """Show how far a study is, by its results folder alone; the run is not disturbed."""
    from polyclinic.study.watching.progress import Watcher
    from polyclinic.study.watching.terminal import watch as show

    try:
        show(Watcher(folder), Console(highlight=False), once=once)
    except KeyboardInterrupt:
        raise typer.Exit from None


def end_run(out: Path) -> None:
    """Say where the report of a study is that was run to its end; one without all its results is no success."""
    from polyclinic.study.ended import is_incomplete

    print(f"Report: {out / 'report.html'}")
    if is_incomplete(out):
        text = "Incomplete: sites that did not answer were not tested; the notes N810 in the report say which."
        Console(stderr=True, highlight=False).print(text)
        raise typer.Exit(3)
