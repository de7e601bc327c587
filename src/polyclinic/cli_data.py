"""The commands of ``polyclinic data``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    from polyclinic.data.catalogue import Choices, Entry, Prepared
    from polyclinic.data.readers.scan import Scan

data_app = typer.Typer(help="Find out what a folder of images is, and prepare known data sets.", no_args_is_help=True)
#: Messages and progress; standard output is for what a command was asked for.
console = Console(stderr=True, highlight=False)
output = Console(highlight=False)

_MOST_LAYOUTS = 12
_MOST_CONTRASTS = 8

DataSet = Annotated[str, typer.Argument(metavar="NAME", help="A data set; `polyclinic data list` shows all.")]


class _SiteFrom(StrEnum):
    folder = "folder"
    column = "column"


@data_app.command()
def scan(
    folder: Annotated[Path, typer.Argument(help="Folder with DICOM, NIfTI or BIDS data, in any nesting.")],
    out: Annotated[Path, typer.Option(help="Manifest to write (CSV): a row for each patient's visit.")],
    site: Annotated[str | None, typer.Option(help="Name of the site; default: the folder's name.")] = None,
    site_from: Annotated[
        _SiteFrom | None,
        typer.Option(help="Each folder in FOLDER is a site, or a column of participants.tsv tells the site."),
    ] = None,
    salt: Annotated[str | None, typer.Option(help="Secret for pseudonyms; default: random, kept beside OUT.")] = None,
    pattern: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATH",
            help='How paths of NIfTI files tell patient and visit: "{subject}/{session}/{contrast}.nii.gz". Fields: '
            "site, subject, session, contrast, run, mask; wildcards: * and **. Several may be given.",
        ),
    ] = None,
) -> None:
    """Find out what a folder of images is, and write a manifest with pseudonymous patients."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from polyclinic.data.pseudonyms import find_salt, keep_salt
    from polyclinic.data.readers.scan import scan_folder, write_manifest

    secret = find_salt(out, salt)
    columns = (TextColumn("Reading headers"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=None)
        found = scan_folder(
            folder,
            site=site,
            site_from=None if site_from is None else site_from.value,
            salt=secret,
            patterns=pattern or (),
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    write_manifest(found, out)
    _print_scan(found, folder, out, keep_salt(out, secret))


def _print_scan(found: Scan, folder: Path, out: Path, salt: Path) -> None:
    from rich.box import SIMPLE
    from rich.markup import escape
    from rich.table import Table

    from polyclinic.data.cases import reasons_text

    manifest = found.manifest
    kinds = " and ".join(found.kinds) or "no image that can be used"
    used = sum(not image.reason for image in found.images)
    print(f"{kinds}: {found.files} files; {used} of {len(found.images)} images and other objects can be used.")
    table = Table(header_style="bold", box=SIMPLE, pad_edge=False)
    for name in ("site", "patients", "rows", "found", "used", "rejected"):
        table.add_column(name, justify="left" if name == "site" else "right")
    for site, counts in found.counts().items():
        here = manifest[manifest["site"] == site]
        numbers = here["subject"].nunique(), len(here), counts.found, counts.used, counts.rejected.total()
        table.add_row(escape(site), *map(str, numbers))
    output.print(table)
    _print_taken(found)
    shown = Table(header_style="bold", box=SIMPLE, pad_edge=False)
    shown.add_column("column")
    shown.add_column("filled rows", justify="right")
    for name in manifest.columns:
        shown.add_row(escape(str(name)), str(int((manifest[name] != "").sum())))
    output.print(shown)
    for site, counts in found.counts().items():
        if counts.rejected:
            output.print(f"Rejected at {escape(site)}: {escape(reasons_text(counts.rejected))}.", soft_wrap=True)
    if found.others:
        print("Files that are no images: " + ", ".join(f"{kind} ({n})" for kind, n in found.others.most_common()))
    for note in found.notes:
        console.print(f"[yellow]Note {note.number}:[/yellow] {escape(note)}", soft_wrap=True)
    print(f"Manifest: {out} ({len(manifest)} rows); in a study file set `root: {folder.resolve()}`.")
    print(f"The salt in {salt} and the manifest must stay at this site.")


def _print_taken(found: Scan) -> None:
    """What was taken for patient, visit and contrast: a person sees at once whether that is right."""
    from rich.box import SIMPLE
    from rich.markup import escape
    from rich.table import Table

    from polyclinic.data.readers.found import what_was_taken

    rows = what_was_taken(found.images)
    table = Table(header_style="bold", box=SIMPLE, pad_edge=False)
    for name in ("names", "images", "masks", "patients", "visits"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("contrasts", overflow="fold")
    for number, row in enumerate(rows[:_MOST_LAYOUTS], 1):
        shown = [f"{what} ({count})" for what, count in row.shows.most_common(_MOST_CONTRASTS)]
        more = [f"{len(row.shows) - len(shown)} more"] * (len(row.shows) > len(shown))
        numbers = map(str, (number, row.images, row.masks, row.patients, row.visits))
        table.add_row(*numbers, escape(", ".join(shown + more)))
    if rows:
        print("What was taken for patient, visit and contrast:")
        output.print(table)
    for number, row in enumerate(rows[:_MOST_LAYOUTS], 1):
        print(f"  names {number}: {row.layout or 'DICOM, told by headers'}")
        if row.example:
            print(f"    such as {row.example}")
    if len(rows) > _MOST_LAYOUTS:
        print(f"... and {len(rows) - _MOST_LAYOUTS} other ways in which files are named.")


@data_app.command("list")
def list_entries() -> None:
    """List the data sets of the catalogue."""
    from rich.box import SIMPLE
    from rich.table import Table

    from polyclinic.data.catalogue import ENTRIES

    table = Table(header_style="bold", box=SIMPLE, pad_edge=False)
    table.add_column("name", no_wrap=True)
    for name in ("data set", "tasks", "sites by", "licence"):
        table.add_column(name)
    for entry in ENTRIES.values():
        ways = ", ".join(entry.sites_by) or "artificial only"
        table.add_row(entry.name, _escape(entry.title), ", ".join(entry.tasks), ways, entry.licence)
    output.print(table)
    print("`polyclinic data describe NAME` tells where to get one, its terms, and how its files must lie.")


@data_app.command()
def describe(name: DataSet) -> None:
    """Say what a data set is, where to get it, and how its files must lie."""
    from rich.markdown import Markdown

    from polyclinic.data.catalogue import find_entry
    from polyclinic.data.catalogue.page import entry_page

    entry = find_entry(name)
    # The tree of the layout is wider than a narrow terminal, and wrapped it can't be read.
    head, _, rest = entry_page(entry).partition("```text\n")
    layout, _, tail = rest.partition("```\n")
    output.print(Markdown(head))
    output.print()
    print(layout)
    if tail.strip():
        output.print(Markdown(tail))
    print(f"\nThen: polyclinic data prepare {entry.name} --from FOLDER --out my-study")


@data_app.command()
def prepare(
    name: DataSet,
    source: Annotated[Path, typer.Option("--from", metavar="DIR", help="Folder of the data set, as downloaded.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for manifest and study file; it is made.")],
    label: Annotated[str | None, typer.Option(help="What to learn; `describe` lists the labels.")] = None,
    positive: Annotated[str, typer.Option(metavar="A,B", help="Classes that are positive.")] = "",
    against: Annotated[str, typer.Option(metavar="C,D", help="Classes that are negative; others are rejected.")] = "",
    sites_by: Annotated[str | None, typer.Option(help="How sites are told, or dirichlet or quantity.")] = None,
    sites: Annotated[int, typer.Option(min=2, help="Number of artificial sites.")] = 4,
    alpha: Annotated[float, typer.Option(min=0.001, help="Concentration of artificial sites.")] = 0.5,
    seed: Annotated[int, typer.Option(help="Seed of artificial sites.")] = 0,
    sessions: Annotated[str, typer.Option(metavar="first|all", help="Sessions of a patient to use.")] = "first",
) -> None:
    """Turn a downloaded data set into a manifest and a study file; downloads and copies nothing."""
    from polyclinic.data.catalogue import Choices, find_entry

    entry = find_entry(name)
    if sessions not in ("first", "all"):
        raise typer.BadParameter(f"got {sessions!r}; expected first or all", param_hint="--sessions")
    choices = Choices(
        label=label,
        positive=_names(positive),
        against=_names(against),
        sites_by=sites_by,
        sites=sites,
        alpha=alpha,
        seed=seed,
        sessions="all" if sessions == "all" else "first",
    )
    _print_prepared(entry, _prepare(entry, source, out, choices))


def _prepare(entry: Entry, source: Path, out: Path, choices: Choices) -> Prepared:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from polyclinic.data.catalogue import prepare as prepare_entry

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as shown:
        task = shown.add_task("Looking for cases", total=None)
        return prepare_entry(
            entry, source, out, choices,
            lambda done, total: shown.update(task, description="Converting images", completed=done, total=total),
        )  # fmt: skip


def _print_prepared(entry: Entry, prepared: Prepared) -> None:
    from collections import Counter

    from rich.box import SIMPLE
    from rich.table import Table

    classes = sorted({name for here in prepared.classes.values() for name in here})
    table = Table(title=_escape(entry.title), title_justify="left", header_style="bold", box=SIMPLE, pad_edge=False)
    table.add_column("site", no_wrap=True)
    for column in ("found", "used", "rejected", "subjects", *classes[:8]):
        table.add_column(_escape(column), justify="right")
    reasons: Counter[str] = Counter()
    for site, counts in prepared.counts.items():
        rejected = sum(counts.rejected.values())
        reasons.update(counts.rejected)
        shown = [prepared.classes.get(site, Counter())[name] for name in classes[:8]]
        numbers = [counts.found, counts.used, rejected, prepared.subjects.get(site, 0), *shown]
        table.add_row(_escape(site), *map(str, numbers))
    output.print(table)
    for reason, number in reasons.most_common():
        output.print(f"Rejected: {number} ({_escape(reason)})", soft_wrap=True)
    for note in prepared.notes:
        output.print(f"[yellow]Note:[/yellow] {_escape(note)}", soft_wrap=True)
    output.print(f"Terms: {_escape(entry.terms)}", soft_wrap=True)
    print(f"{prepared.manifest}: {prepared.used} cases of {len(prepared.subjects)} sites.")
    print(f"Next: polyclinic check {prepared.study}")


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)
