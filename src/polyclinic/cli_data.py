"""The commands of ``polyclinic data``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    from polyclinic.data.readers.scan import Scan

data_app = typer.Typer(help="Find out what a folder of images is, and prepare known data sets.", no_args_is_help=True)
console = Console(stderr=True, highlight=False)
output = Console(highlight=False)


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
) -> None:
    """Find out what a folder of images is, and write a manifest with pseudonymous patients."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from polyclinic.data.readers.scan import find_salt, keep_salt, scan_folder, write_manifest

    secret = find_salt(out, salt)
    columns = (TextColumn("Reading headers"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=None)
        found = scan_folder(
            folder,
            site=site,
            site_from=None if site_from is None else site_from.value,
            salt=secret,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    write_manifest(found, out)
    _print_scan(found, folder, out, keep_salt(out, secret))


def _print_scan(found: Scan, folder: Path, out: Path, salt: Path) -> None:
    from rich.box import SIMPLE
    from rich.markup import escape
    from rich.table import Table

    from polyclinic.data.check import reasons_text

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
    for warning in found.warnings:
        console.print(f"[yellow]Note:[/yellow] {escape(warning)}", soft_wrap=True)
    print(f"Manifest: {out} ({len(manifest)} rows); in a study file set `root: {folder.resolve()}`.")
    print(f"The salt in {salt} and the manifest must stay at this site.")
