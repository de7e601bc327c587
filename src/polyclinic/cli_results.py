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
    from polyclinic.study.watching.progress import STATUS_FILE, Watcher
    from polyclinic.study.watching.terminal import watch as show

    watcher = Watcher(folder)
    if (folder / STATUS_FILE).is_file():
        from polyclinic.federation.watching.watcher import FollowedWatcher

        watcher = FollowedWatcher(folder)
    try:
        show(watcher, Console(highlight=False), once=once)
    except KeyboardInterrupt:
        raise typer.Exit from None


def compare(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR DIR ...", help="Results folders of finished studies.")],
    out: Annotated[Path | None, typer.Option(help="Folder to write compare.html and compare.csv into.")] = None,
) -> None:
    """Set finished studies side by side: what differs between them, and each method's results in all of them."""
    from polyclinic.cli_tables import tables_that_fit
    from polyclinic.study.comparing.compare import PAGE
    from polyclinic.study.comparing.compare import compare as compared
    from polyclinic.study.comparing.page import difference_rows, value_rows
    from polyclinic.study.comparing.studies import OVER

    found = compared(folders)
    console = Console(highlight=False)

    def show(title: str, heads: list[str], rows: list[list[str]]) -> None:
        console.print(title, markup=False)
        for table in tables_that_fit(heads, rows, console.width) if rows else ():
            console.print(table)

    for one in found.studies:
        console.print(f"Study {one.title}", markup=False)
    heads = [f"study {one.number}" for one in found.studies]
    show("Entries that differ:" if found.entries else "No entry differs.", ["entry", *heads],
         [[name, *values] for name, values in found.entries])  # fmt: skip
    metric = found.studies[0].folder.primary
    for over, title in OVER.items():
        rows = value_rows(found.studies, found.values, over)
        show(f"{title}: {metric.label}", ["method", *heads], [[method, *cells] for method, cells in rows])
    for versus in found.versus:
        show(f"Study {versus.later} minus study {versus.earlier}:", ["method", *OVER.values(), "paired", ""],
             [[method, *cells] for method, cells in difference_rows(metric, versus)])  # fmt: skip
    if out is not None:
        found.write(out)
        print(out / PAGE)


def end_run(out: Path) -> None:
    """Say where the report of a study is that was run to its end, and the model that it ended with; one without all its
    results is no success."""
    from polyclinic.study.ended import MODEL_FOLDER, is_incomplete

    if (out / MODEL_FOLDER).is_dir():
        print(f"Model: {out / MODEL_FOLDER}")
    if (out / "report.html").is_file():
        print(f"Report: {out / 'report.html'}")
    if is_incomplete(out):
        text = "Incomplete: sites that did not answer were not tested; the notes N810 in the report say which."
        Console(stderr=True, highlight=False).print(text)
        raise typer.Exit(3)
