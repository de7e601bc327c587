"""The phantoms that some studies of this folder run on: made where the environment names no folder with them."""

from __future__ import annotations

import os
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from polyclinic.data.phantom.phantom import Phantom
from polyclinic.data.phantom.request import Request, survey_request
from polyclinic.data.phantom.write import Wanted, write_phantom

#: Environment variable in study files -> folder beside the results, and what is made in it if the variable is not set.
PHANTOMS = {
    "POLYCLINIC_SURVEY": ("survey-phantoms", survey_request()),
    "POLYCLINIC_PHANTOMS": ("phantoms", Request(Phantom(0, sites=4), 20, Wanted("nifti"))),
}


def phantoms_of(study_file: Path, out: Path, console: Console) -> None:
    """Make what a study file names, in a folder in ``out``, and set the environment variable for it.

    Raises:
        PolyclinicError: see `made`.
    """
    text = study_file.read_text(encoding="utf-8")
    for variable, (name, request) in PHANTOMS.items():
        if f"${{{variable}}}" in text and variable not in os.environ:
            os.environ[variable] = str(made(request, out.resolve() / name, console))


def made(request: Request, folder: Path, console: Console) -> Path:
    """A folder with phantoms, made if it is not there yet.

    Raises:
        PolyclinicError: P503 without nilearn; P501 if the folder holds something else.
    """
    if not (folder / "regions.csv").is_file():
        with Progress(console=console, transient=True) as shown:
            bar = shown.add_task("Phantoms")
            write_phantom(
                request.phantom, request.subjects, folder, request.wanted,
                lambda done, total: shown.update(bar, completed=done, total=total),
            )  # fmt: skip
    return folder
