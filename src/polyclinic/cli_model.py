"""Commands on a model: made from a study, used on new cases."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console

if TYPE_CHECKING:
    from polyclinic.deployment.inputs import Cases
    from polyclinic.deployment.run import Progress
    from polyclinic.notes import Note

#: Messages and progress; standard output is for what a command was asked for.
console = Console(stderr=True, highlight=False)

ModelFolder = Annotated[Path, typer.Argument(metavar="MODEL", help="Folder of a model, as `polyclinic fit` makes it.")]


def fit(
    study: Annotated[Path, typer.Argument(metavar="STUDY", help="A study file (YAML).")],
    out: Annotated[Path, typer.Option(help="Folder for the model; it is made.")],
    method: Annotated[str | None, typer.Option(help="Method of the study; needed if it has several.")] = None,
    results: Annotated[
        Path | None,
        typer.Option(help="Results of the study: they tell how many rounds, which values of a search, the threshold."),
    ] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Rounds of training; default: as the results tell.")] = None,
    fold: Annotated[
        int | None, typer.Option(min=0, help="Train as the study does in this fold, on its training part alone.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the training; default: the study's first.")] = None,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Recalibrate probabilities by the test predictions of the results.")
    ] = False,
    site_models: Annotated[
        bool,
        typer.Option("--site-models", help="Put the whole networks of all sites into the model, for other sites."),
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a training that was interrupted.")] = False,
) -> None:
    """Train one method of a study on all cases, and write a model that can be used."""
    from polyclinic.study.checked import CheckedStudy
    from polyclinic.study.display import RichDisplay
    from polyclinic.study.final_model.fit import Wanted, fit_model
    from polyclinic.study.final_model.folder import CARD_PAGE, sites_folder

    read = CheckedStudy.read(study)
    wanted = Wanted(method, results, rounds, fold, seed, site_models, calibrate)
    with RichDisplay(console) as display:
        made = fit_model(read, out, wanted, resume=resume, display=display)
    console.print(f"Rounds: {made.rounds} ({made.chosen}).", markup=False)
    if any(one.weights or one.prepares or one.white for one in made.sites.values()):
        console.print(f"What stays at each site: {sites_folder(out)}. Do not pass it on with the model.", markup=False)
    print(f"Model {made.number}: {out}")
    print(f"Model card: {out / CARD_PAGE}")


def predict(
    model: ModelFolder,
    out: Annotated[Path, typer.Option(help="Folder for the predictions; it is made.")],
    table: Annotated[Path | None, typer.Option(help="Table with a row for each case (CSV or TSV).")] = None,
    images: Annotated[
        Path | None, typer.Option(help="Folder with images, or a table with the columns of the study's images.")
    ] = None,
    site: Annotated[str | None, typer.Option(help="Whose cases they are; default: as the table tells.")] = None,
    parts: Annotated[
        Path | None,
        typer.Option(help="What sites kept of the model: a folder, or one site's file. Default: MODEL-sites."),
    ] = None,
    reference: Annotated[
        Path | None, typer.Option(help="Further cases of the same site, by which those of a new site are scaled.")
    ] = None,
    masks: Annotated[
        Literal["nifti", "dicom-seg"],
        typer.Option(help="How masks of volumes are written; `dicom-seg` refers to the DICOM series that it is of."),
    ] = "nifti",
    segments: Annotated[
        Path | None,
        typer.Option(help="With `--masks dicom-seg`: a file (YAML) with the coded concepts of the structures."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with predictions that were interrupted.")] = False,
    device: Annotated[str, typer.Option(help="Where the network runs: auto, cpu, cuda.")] = "auto",
) -> None:
    """Predict new cases with a model."""
    from polyclinic.deployment.dicom_seg import SegWriter, read_meanings
    from polyclinic.deployment.prediction import Predictor
    from polyclinic.deployment.run import TABLE, predict_into
    from polyclinic.engine.planner import choose_device
    from polyclinic.study.final_model.folder import read_model, sites_folder

    if (table is None) == (images is None):
        raise typer.BadParameter("give one of --table and --images", param_hint="--table")
    if segments is not None and masks != "dicom-seg":
        raise typer.BadParameter("goes with --masks dicom-seg only", param_hint="--segments")
    loaded = read_model(model, device=choose_device(device))
    if parts is None and sites_folder(model).is_dir():
        parts = sites_folder(model)
    description, seg = loaded.description, None
    if masks == "dicom-seg":
        seg = SegWriter(description, read_meanings(segments, description.classes[1:]) if segments else None)

    def opened(path: Path) -> Cases:
        from polyclinic.deployment.inputs import open_images, open_table

        return (open_images if path.is_dir() else open_table)(description, path, site)

    cases = opened(table or images or Path())
    others = None if reference is None else opened(reference)
    with _progress() as progress:
        done = predict_into(
            out, Predictor(loaded, parts), cases, reference=others, resume=resume, progress=progress, seg=seg
        )  # fmt: skip
    _print_notes(done.notes)
    console.print(f"{len(done.predictions)} cases predicted, {len(done.failures)} not.", markup=False)
    print(out / TABLE)


def evaluate(
    model: ModelFolder,
    study: Annotated[
        Path, typer.Argument(metavar="STUDY", help="A study file: where the cases are and what is true of them.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the results; it is made.")],
    parts: Annotated[
        Path | None, typer.Option(help="What sites kept of the model, as for `predict`. Default: MODEL-sites.")
    ] = None,
    recalibrate: Annotated[
        Literal["all", "site"] | None,
        typer.Option(help="Also fit a calibration to these cases: one for all sites, or one for each."),
    ] = None,
    device: Annotated[str, typer.Option(help="Where the network runs: auto, cpu, cuda.")] = "auto",
) -> None:
    """Validate a model on labelled cases, at sites that may be new to it; writes results and a report."""
    from polyclinic.deployment.evaluation import evaluate_model
    from polyclinic.engine.planner import choose_device
    from polyclinic.study.display import RichDisplay
    from polyclinic.study.final_model.folder import read_model, sites_folder

    loaded = read_model(model, device=choose_device(device))
    if parts is None and sites_folder(model).is_dir():
        parts = sites_folder(model)
    with RichDisplay(console) as display:
        report = evaluate_model(loaded, study, out, parts=parts, recalibrate=recalibrate, display=display)
    print(f"Report: {report}")


@contextmanager
def _progress() -> Iterator[Progress]:
    """A bar on a terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("Predicting"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _print_notes(notes: list[Note]) -> None:
    for note in notes:
        console.print(f"{note.number}: {note}", markup=False)
