"""The public face of a study: read it, check its data, run it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from polyclinic.errors import StudyError
from polyclinic.notes import Note
from polyclinic.study.checked import CheckedStudy

if TYPE_CHECKING:
    import pandas as pd

    from polyclinic.study.display import Display
    from polyclinic.study.results import Results


@dataclass(frozen=True)
class Study(CheckedStudy):
    """A checked study; see `CheckedStudy` for its attributes. What runs it is loaded when it is asked for."""

    def check(
        self, progress: Callable[[int, int], None] | None = None, out: str | Path | None = None
    ) -> tuple[pd.DataFrame, list[Note]]:
        """Open the data and count: a table with a row a site, and notes. Trains nothing.

        Args:
            progress: called with the number of images read, and of all images.
            out: folder for a page that shows a person what was read, ``data-sheet.html``. It shows patients, so it
                stays at the site.

        Raises:
            PolyclinicError: what is wrong with the data, or P501, the folder can't be used.
        """
        from polyclinic.study.fit.data import check_fit
        from polyclinic.study.sheet.page import check_out, write_sheet
        from polyclinic.study.site_table import site_table

        if out is not None:
            check_out(Path(out))
        study = self.planned(progress)
        opened = study.open(progress)
        planned = [Note("N101", f"Planned: {study.plan.reason}.")] if study.plan else []
        sites, notes = site_table(study, opened.cohort, check_fit(study, opened.cohort)), [*planned, *opened.notes]
        if out is not None:
            write_sheet(study, opened, sites, notes, Path(out))
        return sites, notes

    def run(
        self, out: str | Path | None = None, *, resume: bool = False, display: Display | None = None,
        jobs: int | str | None = None,
    ) -> Results:  # fmt: skip
        """Run everything.

        Args:
            out: folder for the results; without it they live as long as the returned object.
            resume: go on with a study that was interrupted.
            display: shows progress.
            jobs: how many trainings go side by side, or ``"auto"``; default: as the study file says. It changes no
                result.

        Raises:
            PolyclinicError: in plain words; P104, the study makes a model alone, and has no results.
        """
        if not self.declaration.fold_numbers:
            raise StudyError("P104", "With `final_model: {alone: true}` a study has no results to return.",
                             "Use `polyclinic.Model.fit`, or `polyclinic run`.")  # fmt: skip
        from polyclinic.study.results import Results
        from polyclinic.study.runner import run_study
        from polyclinic.study.tracking.entry import beside_results

        keeper = None
        if out is None and any(map(beside_results, self.declaration.trackers.values())):
            raise StudyError("P104", "Without `out` results go when the program ends, and what is tracked beside them.",
                             "Give `out`, or say in `tracking` where it is kept (`folder`, `uri`).")  # fmt: skip
        if out is None:
            keeper = TemporaryDirectory(prefix="polyclinic-")
            out = keeper.name
        run_study(self, Path(out), resume=resume, display=display, jobs=jobs)
        return Results(Path(out), keeper)
