"""The commands of a consortium: its kits, its parties, and studies between them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

#: Messages and progress; standard output is for what a command was asked for.
console = Console(stderr=True, highlight=False)

federation_app = typer.Typer(help="The parties of a consortium and their start-up kits.", no_args_is_help=True)
site_app = typer.Typer(help="A site: start it, and say which studies it takes part in.", no_args_is_help=True)
audit_app = typer.Typer(help="A party's audit log.", no_args_is_help=True)
coordinator_app = typer.Typer(help="The coordinator: start it.", no_args_is_help=True)

KitFolder = Annotated[Path, typer.Option(help="The folder of the start-up kit.")]
Out = Annotated[Path, typer.Option(help="Folder for the results; it is made.")]


@federation_app.command("new")
def new(
    consortium: Annotated[Path, typer.Argument(metavar="CONSORTIUM", help="A consortium file (YAML).")],
    out: Annotated[Path, typer.Option(help="Folder for the kits; it is made.")],
) -> None:
    """Make a signed start-up kit for each party; with more parties in the file, call it again."""
    from polyclinic.federation.consortium import Consortium
    from polyclinic.federation.kits import make_kits

    for name, folder in make_kits(Consortium.read(consortium), out).items():
        print(f"{name}: {folder}")
    console.print(f"Keep {out / 'authority'} safe: who has it can let anyone in. Give each party its own folder only.")


@coordinator_app.command("start")
def start_coordinator(kit: KitFolder) -> None:
    """Run the coordinator until it is interrupted."""
    _run_party(kit, "coordinator")


@site_app.command("start")
def start_site(kit: KitFolder) -> None:
    """Run a site until it is interrupted; it connects to the coordinator, and nobody connects to it."""
    from polyclinic.federation.site_file import SITE_FILE, SiteFile

    SiteFile.read(kit / "local" / SITE_FILE)
    _run_party(kit, "site")


@site_app.command("approve")
def approve_study(
    mark: Annotated[str, typer.Argument(metavar="HASH", help="The beginning of the study's hash.")], kit: KitFolder
) -> None:
    """Approve a study that waits: the file with this very hash, and no other."""
    from polyclinic.federation.kits import Kit
    from polyclinic.federation.policy import approve

    Kit.read(kit, "site")
    print(f"Approved: {approve(kit, mark)}")


@audit_app.command("verify")
def verify_log(kit: KitFolder) -> None:
    """Whether a party's audit log is as it was written: no line changed, taken out or put in."""
    from polyclinic.federation.audit_log import verify

    found = verify(kit)
    print(f"{found.lines} lines, none changed. Hash of the last one: {found.last}")


def rehearse(
    study: Annotated[Path, typer.Argument(metavar="STUDY", help="A study file (YAML).")],
    out: Out,
    keep: Annotated[Path | None, typer.Option(help="Folder for the parties' kits and logs, to be looked at.")] = None,
) -> None:
    """Run a study between real processes with real certificates, all on this machine."""
    from polyclinic.federation.rehearse import rehearse as between
    from polyclinic.federation.shown import shown

    _check_out(out, resume=False)
    with shown(console, out) as follow:
        between(study, out, follow, keep)
    print(f"Report: {out / 'report.html'}")


def run_between(study: Path, out: Path, kit: Path, sites: Sequence[str], *, resume: bool, patience: float) -> None:
    """Run a study between sites that are connected to a coordinator; ``patience`` is in minutes."""
    from polyclinic.federation.kits import Kit
    from polyclinic.federation.session import Researcher
    from polyclinic.federation.shown import shown

    _check_out(out, resume=resume)
    with Researcher.connect(Kit.read(kit, "researcher")) as researcher:
        chosen = researcher.chosen(sites)
        console.print(f"Sites: {', '.join(chosen)}.")
        with shown(console, out) as follow:
            researcher.run(study, out, chosen, follow, 60 * patience)
    print(f"Report: {out / 'report.html'}")


def _check_out(out: Path, *, resume: bool) -> None:
    """Whether results can be put into a folder.

    Raises:
        ResultsError: P501, it has something else.
    """
    from polyclinic.errors import ResultsError
    from polyclinic.federation.status_page import STATUS_PAGE

    if out.exists() and not resume and (not out.is_dir() or {path.name for path in out.iterdir()} - {STATUS_PAGE}):
        raise ResultsError("P501", f"The folder {out} is not empty.",
                           "Go on with its study with --resume, or choose another folder with --out.")  # fmt: skip


def _run_party(folder: Path, role: str) -> None:
    from polyclinic.federation.kits import Kit
    from polyclinic.federation.parties import LOG, last_words, start, stop

    kit = Kit.read(folder, role)
    process = start(kit)
    console.print(f"{kit.name} runs; its log is {kit.folder / LOG}. Interrupt to end it.")
    try:
        status = process.wait()
    except KeyboardInterrupt:
        status = 0
        console.print("Ending ...")
    finally:
        stop(process)
    if status:
        console.print(f"{kit.name} ended with status {status}:\n{last_words(kit.folder)}", markup=False)
        raise typer.Exit(1)
