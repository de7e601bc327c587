"""The commands of a consortium: its kits, its parties, and studies between them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from polyclinic.cli_results import end_run

if TYPE_CHECKING:
    from polyclinic.federation.checks.doctor import Line
    from polyclinic.federation.kit import Kit

#: Messages and progress; standard output is for what a command was asked for.
console = Console(stderr=True, highlight=False)
output = Console(highlight=False)

federation_app = typer.Typer(help="The parties of a consortium and their start-up kits.", no_args_is_help=True)
site_app = typer.Typer(
    help="A site: start it, see how it does, and say which studies it takes part in.", no_args_is_help=True
)
audit_app = typer.Typer(help="A party's audit log.", no_args_is_help=True)
coordinator_app = typer.Typer(help="The coordinator: start it, and see how it does.", no_args_is_help=True)

KitFolder = Annotated[Path, typer.Option(help="The folder of the start-up kit.")]
User = Annotated[str | None, typer.Option(help="Who runs it; default: who owns the kit.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead.")]
Background = Annotated[bool, typer.Option("--background", help="Return at once; `stop` ends it.")]
Out = Annotated[Path, typer.Option(help="Folder for the results; it is made.")]


@federation_app.command("new")
def new(
    consortium: Annotated[Path, typer.Argument(metavar="CONSORTIUM", help="A consortium file (YAML).")],
    out: Annotated[Path, typer.Option(help="Folder for the kits; it is made.")],
) -> None:
    """Make a signed start-up kit for each party; with more parties in the file, call it again."""
    from polyclinic.federation.consortium import Consortium
    from polyclinic.federation.kits import make_kits
    from polyclinic.federation.trust.authority import Authority
    from polyclinic.federation.trust.certificates import fingerprint

    for name, folder in make_kits(Consortium.read(consortium), out).items():
        print(f"{name}: {folder}")
    print(f"Fingerprint of the authority: {fingerprint(Authority.of(out).certificate)}")
    console.print(f"Keep {out / 'authority'} safe: who has it can let anyone in. Give each party its own folder only.")


@coordinator_app.command("start")
def start_coordinator(kit: KitFolder, background: Background = False) -> None:
    """Run the coordinator until it is interrupted."""
    _run_party(kit, "coordinator", background)


@site_app.command("start")
def start_site(kit: KitFolder, background: Background = False) -> None:
    """Run a site until it is interrupted; it connects to the coordinator, and nobody connects to it."""
    from polyclinic.federation.site_file import SITE_FILE, SiteFile

    SiteFile.read(kit / "local" / SITE_FILE)
    _run_party(kit, "site", background)


@coordinator_app.command("stop")
def stop_coordinator(kit: KitFolder) -> None:
    """End a coordinator that runs; studies go on when they are run again."""
    _stop_party(kit, "coordinator")


@site_app.command("stop")
def stop_site(kit: KitFolder) -> None:
    """End a site that runs; a study that it takes part in stops."""
    _stop_party(kit, "site")


@coordinator_app.command("status")
def status_of_coordinator(kit: KitFolder) -> None:
    """Tell what the coordinator does; the exit status is 1 where it does not run."""
    _tell_status(kit, "coordinator")


@site_app.command("status")
def status_of_site(kit: KitFolder) -> None:
    """Tell what a site does; the exit status is 1 where it does not run."""
    _tell_status(kit, "site")


@coordinator_app.command("check")
def check_coordinator(kit: KitFolder, as_json: Json = False) -> None:
    """Look at everything that must be so before a study works; the exit status is 1 where something is not."""
    from polyclinic.federation.checks import doctor

    _tell_lines(doctor.check_coordinator(kit), as_json)


@site_app.command("check")
def check_site(
    kit: KitFolder,
    study: Annotated[Path | None, typer.Option(help="A study file, whose data are opened; nothing leaves.")] = None,
    as_json: Json = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Name the files that can't be read.")] = False,
) -> None:
    """Look at everything that must be so before a study works; the exit status is 1 where something is not."""
    from polyclinic.federation.checks import doctor

    if verbose:
        import logging

        logging.basicConfig(format="%(message)s")
        logging.getLogger("polyclinic").setLevel(logging.DEBUG)
    _tell_lines(doctor.check_site(kit, study), as_json)


@coordinator_app.command("service")
def service_of_coordinator(kit: KitFolder, user: User = None) -> None:
    """Print a unit by which systemd runs the coordinator."""
    _print_unit(kit, "coordinator", user)


@site_app.command("service")
def service_of_site(kit: KitFolder, user: User = None) -> None:
    """Print a unit by which systemd runs a site."""
    _print_unit(kit, "site", user)


@site_app.command("approve")
def approve_study(
    mark: Annotated[str, typer.Argument(metavar="HASH", help="The beginning of the study's hash.")], kit: KitFolder
) -> None:
    """Approve a study that waits: the file with this very hash, and no other."""
    from polyclinic.federation.ends.policy import approve
    from polyclinic.federation.kit import Kit

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
    from polyclinic.federation.watching.terminal import shown

    _check_out(out, resume=False)
    with _tracked(study, out), shown(console, out) as follow:
        between(study, out, follow, keep)
    end_run(out)


def run_between(study: Path, out: Path, kit: Path, sites: Sequence[str], *, resume: bool, patience: float) -> None:
    """Run a study between sites that are connected to a coordinator; ``patience`` is in minutes."""
    from polyclinic.federation.kit import Kit
    from polyclinic.federation.session import Researcher
    from polyclinic.federation.watching.terminal import shown

    _check_out(out, resume=resume)
    found = Kit.read(kit, "researcher")
    _warn(found)
    with Researcher.connect(found) as researcher:
        chosen = researcher.chosen(sites)
        console.print(f"Sites: {', '.join(chosen)}.")
        with _tracked(study, out), shown(console, out) as follow:
            researcher.run(study, out, chosen, follow, 60 * patience)
    end_run(out)


@contextmanager
def _tracked(study: Path, out: Path) -> Iterator[None]:
    """Tell the researcher's trackers of what has come into a folder when the context ends, however it does.

    Raises:
        StudyError: P503, what a tracker needs is not installed.
    """
    from polyclinic.study.checked import CheckedStudy
    from polyclinic.study.tracking.entry import check_installed
    from polyclinic.study.tracking.track import track_folder

    read = CheckedStudy.read(study, named=True)
    check_installed(list(read.declaration.trackers))
    try:
        yield
    finally:
        for note in track_folder(read, out):
            console.print(f"{note.number}: {note}", markup=False)


def _check_out(out: Path, *, resume: bool) -> None:
    """Whether results can be put into a folder.

    Raises:
        ResultsError: P501, it has something else.
    """
    from polyclinic.errors import ResultsError
    from polyclinic.study.watching.progress import STATUS_FILE, STATUS_PAGE

    held = {path.name for path in out.iterdir()} - {STATUS_PAGE, STATUS_FILE} if out.is_dir() else {out.name}
    if out.exists() and not resume and held:
        raise ResultsError("P501", f"The folder {out} is not empty.",
                           "Go on with its study with --resume, or choose another folder with --out.")  # fmt: skip


def _run_party(folder: Path, role: str, background: bool) -> None:
    import signal

    from polyclinic.federation.kit import Kit
    from polyclinic.federation.processes.parties import LOG, last_words, start
    from polyclinic.federation.processes.running import end

    kit = Kit.read(folder, role)
    _warn(kit)
    process = start(kit)
    if background:
        console.print(f"{kit.name} runs; its log is {kit.folder / LOG}. `polyclinic {role} stop` ends it.")
        return
    console.print(f"{kit.name} runs; its log is {kit.folder / LOG}. Interrupt to end it.")
    try:
        status = process.wait()
    except KeyboardInterrupt:
        status = 0
        console.print("Ending ...")
    finally:
        end(kit)
    if status == -signal.SIGTERM:
        console.print(f"{kit.name} was stopped.")
    elif status:
        console.print(f"{kit.name} ended with status {status}:\n{last_words(kit.folder)}", markup=False)
        raise typer.Exit(1)


def _warn(kit: Kit) -> None:
    """Say it if a kit's certificate ends soon; if it has ended, that is an error."""
    from polyclinic.federation.trust.certificates import check_dates

    if ends := check_dates(kit):
        console.print(ends, markup=False)


def _stop_party(folder: Path, role: str) -> None:
    from polyclinic.federation.kit import Kit
    from polyclinic.federation.processes.running import end

    kit = Kit.read(folder, role)
    console.print(f"{kit.name} has ended." if end(kit) else f"{kit.name} did not run.")


def _tell_status(folder: Path, role: str) -> None:
    from rich.table import Table

    from polyclinic.federation.kit import Kit
    from polyclinic.federation.processes.party_status import status
    from polyclinic.federation.processes.running import running

    kit = Kit.read(folder, role)
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 1))
    for name, text in status(kit):
        table.add_row(f"[bold]{name}[/bold]", _escape(text))
    output.print(table)
    if running(kit) is None:
        raise typer.Exit(1)


def _tell_lines(lines: Iterable[Line], as_json: bool) -> None:
    import json
    from collections import Counter
    from dataclasses import asdict

    states, found = Counter[str](), list[dict[str, str]]()
    for name, one in lines:
        states[one.state] += 1
        found.append({"name": name, **asdict(one)})
        if not as_json:
            advice = f" {_escape(one.advice)}" if one.advice else ""
            colour = {"passes": "green", "warning": "yellow", "fails": "red"}[one.state]
            start = f"[{colour}]{one.state:7}[/{colour}] [bold]{_escape(name)}[/bold]"
            output.print(f"{start}: {_escape(one.text)}{advice}", soft_wrap=True)
    if as_json:
        print(json.dumps({"passes": not states["fails"], "lines": found}, indent=2, ensure_ascii=False))
    else:
        console.print(f"{states['passes']} pass, {states['warning']} warn, {states['fails']} fail.")
    if states["fails"]:
        raise typer.Exit(1)


def _print_unit(folder: Path, role: str, user: str | None) -> None:
    from polyclinic.federation.kit import Kit
    from polyclinic.federation.processes.service import unit, unit_name

    kit = Kit.read(folder, role)
    print(unit(kit, user), end="")
    name = unit_name(kit)
    console.print(f"Put it into /etc/systemd/system/{name}, then: systemctl enable --now {name}", soft_wrap=True)


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)
