"""The command that makes of results an archive, and of a model what other programs take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

#: Options of each kind of export that the others do not have.
_CRATE = ("--ro-crate", "--with-predictions", "--without-models")
_MODEL = ("--to", "--out")


def export(
    folder: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="Results folder of a study, or the folder of a model (`polyclinic fit`)."),
    ],
    ro_crate: Annotated[
        Path | None, typer.Option("--ro-crate", help="Of results: folder or .zip file to write; it is made.")
    ] = None,
    to: Annotated[Literal["onnx", "monai-bundle"] | None, typer.Option(help="Of a model: what becomes of it.")] = None,
    out: Annotated[Path | None, typer.Option(help="Of a model: folder to write; it is made.")] = None,
    author: Annotated[list[str] | None, typer.Option(help="Name of an author; may be repeated.")] = None,
    licence: Annotated[str | None, typer.Option(help="URL of the licence of the whole.")] = None,
    with_predictions: Annotated[
        bool,
        typer.Option("--with-predictions", help="Of results: also the predictions of single cases, under pseudonyms."),
    ] = False,
    without_models: Annotated[
        bool, typer.Option("--without-models", help="Of results: leave out the trained models.")
    ] = False,
) -> None:
    """Export a finished study as an RO-Crate for an archive, or a model as an ONNX file or a MONAI bundle."""
    crate = dict(zip(_CRATE, (ro_crate is not None, with_predictions, without_models), strict=True))
    model = dict(zip(_MODEL, (to is not None, out is not None), strict=True))
    if _is_model(folder):
        _refuse(crate, f"{folder} is a model, and this is for results of a study: give --to and --out")
        if to is None or out is None:
            raise typer.BadParameter(f"{folder} is a model: give both of --to and --out", param_hint="--to")
        _export_model(folder, to, out, author or [], licence)
        return
    _refuse(model, f"{folder} is no model, and this is for models (`polyclinic fit`): results take --ro-crate")
    if ro_crate is None:
        text = f"{folder} is no model: results of a study are exported with --ro-crate OUT"
        raise typer.BadParameter(text, param_hint="--ro-crate")
    _export_results(folder, ro_crate, author or [], licence, predictions=with_predictions, models=not without_models)


def _is_model(folder: Path) -> bool:
    return (folder / "model.yaml").is_file()


def _refuse(given: dict[str, bool], reason: str) -> None:
    """Stop at the first option that is given."""
    for option, there in given.items():
        if there:
            raise typer.BadParameter(reason, param_hint=option)


def _export_results(
    folder: Path, path: Path, authors: list[str], licence: str | None, *, predictions: bool, models: bool
) -> None:
    from polyclinic.study.crate import export_crate

    made = export_crate(folder, path, authors=authors, licence=licence, predictions=predictions, models=models)
    _tell(made.told)
    print(made.path)


def _export_model(folder: Path, to: str, out: Path, authors: list[str], licence: str | None) -> None:
    from polyclinic.study.final_model.folder import read_model

    if to == "onnx":
        if authors:
            raise typer.BadParameter("an ONNX file has no authors: leave it out", param_hint="--author")
        from polyclinic.deployment.export.onnx import FILE, export_onnx

        apart = export_onnx(read_model(folder), out, licence=licence)
        _tell([f"Run with onnxruntime, it gives what the model gives; predictions differ by {apart:.1g} at most."])
        print(out / FILE)
        return
    from polyclinic.deployment.export.bundle import export_bundle

    _tell(export_bundle(read_model(folder), out, authors=authors, licence=licence))
    print(out)


def _tell(sentences: list[str]) -> None:
    console = Console(stderr=True, highlight=False, markup=False)
    for sentence in sentences:
        console.print(sentence)
