"""The command line. Heavy libraries are imported by the commands that need them, so that ``--help`` answers at once."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console

from polyclinic import cli_certificates, cli_export, cli_federation, cli_model, cli_results
from polyclinic.cli_data import data_app
from polyclinic.cli_plugins import plugin_app
from polyclinic.cli_tables import parts, tables_that_fit
from polyclinic.errors import PolyclinicError

if TYPE_CHECKING:
    import pandas as pd

    from polyclinic.notes import Note
    from polyclinic.study.results import Results

app = typer.Typer(
    help="Federated learning for medical image analysis: one study file, on a laptop and across hospitals.",
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
)  # fmt: skip
app.add_typer(data_app, name="data")
app.add_typer(plugin_app, name="plugin")
app.command()(cli_results.checklist)
app.command()(cli_results.watch)
app.command()(cli_results.compare)
app.command()(cli_model.fit)
app.command()(cli_model.predict)
app.command()(cli_model.evaluate)
app.command()(cli_export.export)
app.command()(cli_federation.rehearse)
cli_certificates.add_to(cli_federation.federation_app, cli_federation.coordinator_app, cli_federation.site_app)
app.add_typer(cli_federation.federation_app, name="federation")
app.add_typer(cli_federation.coordinator_app, name="coordinator")
app.add_typer(cli_federation.site_app, name="site")
app.add_typer(cli_federation.audit_app, name="audit-log")
#: Messages and progress; standard output is for what a command was asked for.
console = Console(stderr=True, highlight=False)
output = Console(highlight=False)

#: Columns of the sites' table that tell what images were like as they were read.
IMAGE_COLUMNS = ("shapes", "spacing", "orientations", "intensity", "vendors", "field strengths")

StudyFile = Annotated[Path, typer.Argument(metavar="STUDY", help="A study file (YAML).")]


@app.callback(invoke_without_command=True)
def _main(version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False) -> None:
    if version:
        from polyclinic import __version__

        print(f"polyclinic {__version__}")
        raise typer.Exit


@app.command()
def run(
    study: StudyFile,
    out: Annotated[Path, typer.Option(help="Folder for the results; it is made.")],
    method: Annotated[list[str] | None, typer.Option(help="Run this method only; may be repeated.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a study that was interrupted.")] = False,
    jobs: Annotated[
        str | None, typer.Option(help="Trainings side by side: a number, or auto. Default: as the study file says.")
    ] = None,
    engine: Annotated[
        Literal["local", "nvflare"], typer.Option(help="Where sites are: on this machine, or those of a consortium.")
    ] = "local",
    site: Annotated[
        list[str] | None,
        typer.Option(help="With nvflare: this site takes part; may be repeated. Default: all there are."),
    ] = None,
    kit: Annotated[Path | None, typer.Option(help="With nvflare: a researcher's start-up kit.")] = None,
    patience: Annotated[
        float, typer.Option(min=0, help="With nvflare: minutes for which to wait for sites that are lost.")
    ] = 60.0,
) -> None:
    """Run a study and write results and a report."""
    if (engine == "nvflare") != (kit is not None):
        raise typer.BadParameter("`--engine nvflare` and `--kit DIR` go together", param_hint="--engine")
    if kit is not None:
        if method:
            raise typer.BadParameter("sites take part in whole studies: leave it out", param_hint="--method")
        if jobs is not None:
            raise typer.BadParameter("sites do one training after another: leave it out", param_hint="--jobs")
        cli_federation.run_between(study, out, kit, site or [], resume=resume, patience=patience)
        return
    from polyclinic.study.provenance import check_plugins
    from polyclinic.study.study import Study

    if resume:
        check_plugins(out)  # before the file is read: parts of a plug-in that is gone are names that nobody knows
    _run(Study.read(study, method), out, resume, jobs)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the results; it is made.")] = Path("demo-results"),
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a demo that was interrupted.")] = False,
) -> None:
    """Run a real study on a table that ships with a package: MRI quality control over 17 hospitals."""
    import shutil

    from polyclinic.study.study import Study

    study = Study.read(Path(__file__).parent / "study" / "demo.yaml")
    if not resume and (out / "provenance.json").is_file() and (out / "study.yaml").is_file():
        shutil.rmtree(out)  # an earlier demo
    _run(study, out, resume)


@app.command()
def check(
    study: StudyFile,
    out: Annotated[
        Path | None, typer.Option(help="Folder for a page that shows what was read; it stays at the site.")
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Name the files that can't be read.")] = False,
) -> None:
    """Open the data of a study and count what training would use; trains nothing."""
    import logging

    from polyclinic.study.display import RichDisplay, counts_text
    from polyclinic.study.study import Study

    if verbose:
        logging.basicConfig(format="%(message)s")
        logging.getLogger("polyclinic").setLevel(logging.DEBUG)
    found = Study.read(study)
    with RichDisplay(console) as display:
        sites, notes = found.check(display.images, out)
    counts, images = sites.drop(columns=list(IMAGE_COLUMNS), errors="ignore"), sites.filter(items=IMAGE_COLUMNS)
    _print_sites(counts)
    if len(images.columns):
        output.print("Images as they were read:")
        _print_sites(images.assign(site=sites["site"])[["site", *images.columns]])
    for site, reasons in zip(sites["site"], sites["reasons"], strict=True):
        if reasons:
            output.print(f"Rejected at {_escape(site)}: {_escape(reasons)}.")
    _print_notes(notes, every=True)
    of = f"{len(sites)} site{'' if len(sites) == 1 else 's'}"
    print(f"{of}; {counts_text(sites)}.")
    if out is None:
        console.print("To look at the images, values and notes: the same command with --out DIR.")
    else:
        from polyclinic.study.sheet.page import PAGE

        print(f"Data sheet: {out / PAGE}")


@app.command()
def methods(
    parts: Annotated[bool, typer.Option("--parts", help="List the parts that methods are made of instead.")] = False,
) -> None:
    """List the methods by their place in the survey: name, what it does, options and source."""
    from polyclinic.catalogues import PLUGINS

    for plugin in PLUGINS:
        if plugin.problem:
            console.print(f"[yellow]{_escape(str(plugin))}[/yellow]")
    if parts:
        _print_parts()
        return

    from polyclinic.composition import METHODS
    from polyclinic.methods import PUBLISHED
    from polyclinic.options import describe_options

    for place in dict.fromkeys(one.place for one in PUBLISHED.values()):
        output.print(f"\n[bold]{_escape(place)}[/bold]")
        entries = [(name, one.summary, describe_options(METHODS[name]), _brought("methods", name, one.citation))
                   for name, one in PUBLISHED.items() if one.place == place]  # fmt: skip
        _print_entries(entries)


def _brought(place: str, name: str, source: str = "") -> str:
    """Where something is from, and which plug-in brought it."""
    from polyclinic.catalogues import plugin_of

    plugin = plugin_of(place, name)
    return source if plugin is None else f"{source}; {plugin}" if source else str(plugin)


def _print_entries(entries: Iterable[tuple[str, str, Iterable[str], str]]) -> None:
    """Name, what it does, options and source of methods or parts: narrow enough for any terminal."""
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 1))
    table.add_column(width=22, no_wrap=True)  # the same in all tables, so that they stand in line
    for name, summary, options, source in entries:
        lines = [_escape(summary.replace("`", ""))]
        lines += [f"[cyan]{_escape(text)}[/cyan]" for text in [", ".join(options)] if text]
        lines += [f"[dim]{_escape(source)}[/dim]"] * bool(source)
        table.add_row(f"[bold]{_escape(name)}[/bold]", "\n".join(lines))
    output.print(table)


def _print_parts() -> None:
    """The catalogues of parts, with the first sentence of what each says of itself, and its options."""
    from polyclinic.client.personal.models import PERSONAL
    from polyclinic.composition import METHODS  # noqa: F401 - the parts enter their catalogues
    from polyclinic.data.readers.read import READERS
    from polyclinic.data.volumes.intensity import INTENSITIES
    from polyclinic.models.catalogue import MODELS
    from polyclinic.options import Catalogue, describe_options, first_words
    from polyclinic.parts import CHANNEL_PARTS, LOCAL_PARTS, PROCEDURES, SERVER_PARTS, TOPOLOGIES
    from polyclinic.server.selection import PARTICIPATION
    from polyclinic.tasks import TASKS
    from polyclinic.tasks.metrics import METRICS

    catalogues: dict[tuple[str, str], Catalogue[Any]] = {
        ("Rules of local training (local)", "local"): LOCAL_PARTS,
        ("Personal models (personal)", "personal"): PERSONAL,
        ("Steps of the channel (channel)", "channel"): CHANNEL_PARTS,
        ("Parts of the server rule (server)", "server"): SERVER_PARTS,
        ("Groups and order of the sites (topology)", "topology"): TOPOLOGIES,
        ("Ways to the sites' updates (procedure)", "procedure"): PROCEDURES,
        ("Who takes part (training: participation)", "participation"): PARTICIPATION,
        ("Networks (model)", "model"): MODELS,
        ("Intensities of volumes (data: preprocessing: intensity)", "intensity"): INTENSITIES,
        ("Readers of image files, by the ending of their names", "reader"): READERS,
        **{(f"Losses of {name} (training: loss)", f"loss of {name}"): task.losses for name, task in TASKS.items()},
    }
    for (title, place), catalogue in catalogues.items():
        output.print(f"\n[bold]{_escape(title)}[/bold]")
        if not list(catalogue):
            output.print("None in this version; plug-ins can bring some.")
        _print_entries((name, first_words(catalogue[name]), describe_options(catalogue[name]), _brought(place, name))
                       for name in catalogue)  # fmt: skip
    output.print("\n[bold]Tasks (task)[/bold]")
    _print_entries((name, first_words(task), [], _brought("task", name)) for name, task in TASKS.items())
    output.print("\n[bold]Metrics (evaluation: metrics)[/bold]")
    _print_entries((name, one.meaning, [], _brought("metric", name)) for name, one in METRICS.items())


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Results folder of a study.")],
    out: Annotated[Path | None, typer.Option(help="HTML file to write; default DIR/report.html.")] = None,
) -> None:
    """Write the report of a finished study again."""
    from polyclinic.study.report.page import write_report

    print(write_report(folder, out))


@app.command()
def phantom(
    out: Annotated[Path, typer.Option(help="Folder to write into; it is made.")],
    sites: Annotated[int, typer.Option(min=1, help="Number of sites.")] = 6,
    subjects: Annotated[int | None, typer.Option(min=1, help="People at each site; 40, with --survey 200.")] = None,
    form: Annotated[str, typer.Option("--as", help="Form of the images: bids, nifti or dicom.")] = "nifti",
    seed: Annotated[int, typer.Option(help="The same seed gives the same people and images.")] = 0,
    spacing: Annotated[float, typer.Option(help="Voxel size in millimetres.")] = 2.0,
    dose: Annotated[float, typer.Option(help="Strength of the disease: 0 none, 1 like Alzheimer's disease.")] = 1.0,
    prevalence: Annotated[str, typer.Option(help="Share of ill people: one number, or one a site (0.5,0.2).")] = "0.5",
    effects: Annotated[
        str, typer.Option(help="In what scanners differ: all, none, or names such as contrast,noise.")
    ] = "all",
    maps: Annotated[bool, typer.Option("--maps", help="Also write grey-matter maps in MNI space.")] = False,
    table_only: Annotated[bool, typer.Option("--table-only", help="Write tables alone, no images.")] = False,
    survey: Annotated[
        bool, typer.Option("--survey", help="The table of studies/survey-adni.yaml: a 1.5 T and a 3 T site.")
    ] = False,
) -> None:
    """Make brain images with known truth, as several sites would have them."""
    from polyclinic.data.phantom.request import read_request
    from polyclinic.data.phantom.write import write_phantom

    request = read_request(
        sites=sites, subjects=subjects, form=form, seed=seed, spacing=spacing, dose=dose, prevalence=prevalence,
        effects=effects, maps=maps, table_only=table_only, survey=survey,
    )  # fmt: skip
    with _counting("Phantoms") as count:
        made = write_phantom(request.phantom, request.subjects, out, request.wanted, count)
    console.print(f"{len(request.phantom.sites)} sites with {request.subjects} people each.")
    print(made)


@app.command()
def regions(
    maps: Annotated[Path, typer.Option(help="Folder of grey-matter maps (NIfTI), or a manifest with a column map.")],
    atlas: Annotated[Path, typer.Option(help="NIfTI file with numbered regions, in the space of the maps.")],
    out: Annotated[Path, typer.Option(help="CSV file to write.")],
    labels: Annotated[Path | None, typer.Option(help="CSV with the columns label and name.")] = None,
) -> None:
    """Turn grey-matter maps and an atlas into a table of regional volumes in ml."""
    from polyclinic.data.regions import read_atlas, regions_table
    from polyclinic.files import write_atomic

    with _counting("Maps") as count:
        table = regions_table(maps, read_atlas(atlas, labels), count)
    write_atomic(out, table.to_csv(index=False, float_format="%.3f", lineterminator="\n"))
    print(out)


@contextmanager
def _counting(what: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar, moved by calls with the number done and the number of all."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True) as shown:
        bar = shown.add_task("")
        yield lambda done, total: shown.update(bar, completed=done, total=total)


def _run(study: object, out: Path, resume: bool, jobs: str | None = None) -> None:
    from polyclinic.study.display import RichDisplay
    from polyclinic.study.results import Results
    from polyclinic.study.runner import run_study
    from polyclinic.study.study import Study

    if not isinstance(study, Study):
        raise TypeError("not a study")
    try:
        with RichDisplay(console) as display:
            run_study(study, out, resume=resume, display=display, jobs=jobs)
    except (KeyboardInterrupt, Terminated) as stop:  # caught here, because typer would leave without a word
        console.print("Stopped. Finished rounds are saved: run the same command with --resume to go on.")
        raise typer.Exit(_exit_status(stop)) from None
    if study.declaration.fold_numbers:
        _print_results(Results(out), study.declaration.metrics)
    else:
        cli_results.end_run(out.resolve())


def _print_results(results: Results, metrics: list[str]) -> None:
    import numpy as np
    from rich.box import SIMPLE
    from rich.table import Table

    from polyclinic.study.kinds import RUN, titled
    from polyclinic.tasks.metrics import metric_text

    summary, sites = results.summary, results.sites
    scored = int((sites["scored"].astype(str) == "True").sum())
    for over, title in (
        ("sites", f"Mean over the {scored} site{'' if scored == 1 else 's'} that can be scored"),
        ("all", "All cases together"),
    ):
        rows = summary[summary["over"] == over]
        cells: dict[tuple[tuple[str, str], str], tuple[str, str]] = {}
        for row in rows.to_dict("records"):
            mean, deviation = (metric_text(row["metric"], row[name]) for name in ("mean", "deviation"))
            once = np.isnan(row["deviation"])  # a single run has no deviation
            cells[(row["method"], row[RUN]), row["metric"]] = (mean, mean if once else f"{mean} ± {deviation}")
        names = list(dict.fromkeys(zip(rows["method"], rows[RUN], strict=True)))
        # A narrow terminal shows the means alone; everything is in summary.csv and the report.
        short = {name: max([len(name), *(len(cells[method, name][0]) for method in names)]) + 3 for name in metrics}
        full = {name: max([len(name), *(len(cells[method, name][1]) for method in names)]) + 3 for name in metrics}
        first = max([len("method"), *(len(titled(*method)) for method in names)]) + 3
        wide = first + sum(full.values()) <= output.width
        for part in parts(full if wide else short, output.width - first):
            table = Table(title=title, title_justify="left", header_style="bold", box=SIMPLE, pad_edge=False)
            table.add_column("method", overflow="fold")
            for name in part:
                table.add_column(name.upper(), no_wrap=True, justify="right", min_width=short[name] - 3)
            for method in names:
                table.add_row(_escape(titled(*method)), *(cells[method, name][wide] for name in part))
            output.print(table)
    _print_notes(results.notes)
    few = len(sites) - scored
    if few == 1:
        console.print("1 site has too few cases to be scored by itself: see the report.")
    elif few:
        console.print(f"{few} sites have too few cases to be scored by themselves: see the report.")
    cli_results.end_run(results.folder.resolve())


def _print_notes(notes: list[Note], *, every: bool = False) -> None:
    shown = notes if every else notes[:5]
    for note in shown:
        console.print(f"[yellow]Note {note.number}:[/yellow] {_escape(note)}")
    if len(shown) < len(notes):
        more = len(notes) - len(shown)
        console.print(f"{more} more {'note is' if more == 1 else 'notes are'} in the report.")


def _print_sites(sites: pd.DataFrame) -> None:
    shown = [name for name in sites.columns if name not in {"scored", "note", "reasons"}]
    rows = [
        [_cell_text(name, cell) for name, cell in zip(shown, row, strict=True)]
        for row in sites[shown].itertuples(index=False)
    ]
    for table in tables_that_fit([name.removeprefix("class: ") for name in shown], rows, output.width):
        output.print(table)


def _cell_text(name: str, cell: object) -> str:
    if isinstance(cell, float):
        return _percent(cell) if name == "foreground" else f"{cell:.1f}"
    return str(cell)


def _percent(share: float) -> str:
    """Two digits that count: 0.05 %, 11 %; more where 100 % would say that nothing is left."""
    from numpy import format_float_positional

    value = 100 * share
    text = ""
    for digits in (2, 3, 4):
        text = format_float_positional(value, precision=digits, unique=False, fractional=False, trim="-")
        if text != "100" or value == 100:
            break
    return f"{text} %"


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)


@contextmanager
def _plain_errors() -> Iterator[None]:
    """A user's mistake is a sentence, not a traceback."""
    try:
        yield
    except PolyclinicError as error:
        console.print(f"[bold red]Error {error.code}[/bold red] {_escape(error.message)}", soft_wrap=True)
        if error.hint:
            console.print(_escape(error.hint), soft_wrap=True)
        sys.exit(error.exit_status)


class Terminated(BaseException):
    """The process was asked to end (SIGTERM), as a cluster does when a job's time is over."""


def _exit_status(stop: BaseException) -> int:
    """128 and the number of the signal, as shells have it."""
    return 128 + (signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT)


def _terminate(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not cut off what is being saved
    raise Terminated


def main() -> None:
    """Entry point of the ``polyclinic`` command."""
    signal.signal(signal.SIGTERM, _terminate)
    with _plain_errors():
        try:
            app()
        except Terminated as stop:
            console.print("Stopped.")
            sys.exit(_exit_status(stop))
        except PolyclinicError:
            raise
        except Exception as error:
            from polyclinic.origins import told

            found = told(error)
            if found is None:
                raise
            raise found from error


if __name__ == "__main__":
    main()
