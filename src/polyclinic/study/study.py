"""The public face of a study: read it, check its data, run it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from polyclinic.errors import StudyError, nearest
from polyclinic.methods import METHODS
from polyclinic.notes import Note
from polyclinic.options import EntryError
from polyclinic.study.declaration import Declaration
from polyclinic.study.reading import expand_variables, located, read_yaml

if TYPE_CHECKING:
    import pandas as pd

    from polyclinic.data.cases import Opened
    from polyclinic.data.volumes.fingerprint import VolumePlan
    from polyclinic.study.display import Display
    from polyclinic.study.results import Results


@dataclass(frozen=True)
class Study:
    """A checked study.

    Attributes:
        declaration: what it asks for.
        folder: paths in it are relative to this folder.
        name: of the study file, for messages.
        text: of the study file, for line numbers.
        plan: grid, boxes and network, where they were planned.
    """

    declaration: Declaration
    folder: Path
    name: str = "study"
    text: str = ""
    plan: VolumePlan | None = None

    @classmethod
    def read(cls, path: str | Path, methods: list[str] | None = None) -> Study:
        """A study from its file.

        Args:
            path: a YAML file, see ``docs/study-file.md``.
            methods: run these entries only (labels or names of the catalogue); names not in the file are added.

        Raises:
            StudyError: with the file, line and entry of the first mistake.
        """
        path = Path(path)
        content, text = read_yaml(path)
        return cls._checked(content, path.resolve().parent, path.name, text, methods)

    @classmethod
    def of(cls, content: dict[str, Any], folder: str | Path = ".") -> Study:
        """A study from a dictionary with the entries of a study file; paths are relative to ``folder``.

        Raises:
            StudyError: with the entry of the first mistake.
        """
        return cls._checked(content, Path(folder).resolve(), "study", "", None)

    @classmethod
    def _checked(cls, content: dict[str, Any], folder: Path, name: str, text: str, methods: list[str] | None) -> Study:
        try:
            content = {**content, **{key: expand_variables(content.get(key), (key,)) for key in ("data", "model")}}
            content = {key: value for key, value in content.items() if value is not None}
            declaration = Declaration.check(content)
            if methods:
                known = {alias: m.entry for m in declaration.study_methods for alias in (m.name, m.label)}
                wrong = [name for name in methods if name not in known and name not in METHODS]
                if wrong:
                    hint = nearest(wrong[0], sorted({*known, *METHODS}))
                    raise StudyError("P103", f"--method {wrong[0]}: there is no such method.", hint)
                entries = [known.get(name, name) for name in methods]
                declaration = Declaration.check({**content, "methods": entries, **_searched(content, entries)})
            declaration.read_bundle(folder)
        except EntryError as error:
            raise located(error, name, text) from None
        return cls(declaration, folder, name, text)

    def planned(self, progress: Callable[[int, int], None] | None = None) -> Study:
        """The study with everything that says ``auto`` planned from the images of all sites; itself without any.

        Raises:
            DataError: what is wrong with the data.
        """
        declaration = self.declaration
        if not declaration.wants_plan:
            return self
        from dataclasses import replace

        from polyclinic.data.open import fingerprint_data
        from polyclinic.data.volumes.fingerprint import make_plan
        from polyclinic.engine.planner import choose_device

        spec, split = declaration.data, declaration.evaluation.split
        sites = fingerprint_data(spec, self.folder, declaration.target, split, progress)
        spacing = spec.preprocessing.steps if spec.preprocessing else None
        plan = make_plan(list(sites.values()), declaration.target, choose_device(declaration.engine.device), spacing)
        try:
            return replace(self, declaration=declaration.planned(plan), plan=plan)
        except EntryError as error:
            raise located(error, self.name, self.text) from None

    def open(self, progress: Callable[[int, int], None] | None = None) -> Opened:
        """Read the data.

        Raises:
            DataError: what is wrong with it.
        """
        from polyclinic.data.open import open_data

        spec, split = self.declaration.data, self.declaration.evaluation.split
        return open_data(spec, self.folder, self.declaration.target, split, progress)

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
        from polyclinic.study.fit import check_fit
        from polyclinic.study.runner import site_table
        from polyclinic.study.sheet.page import check_out, write_sheet

        if out is not None:
            check_out(Path(out))
        study = self.planned(progress)
        opened = study.open(progress)
        planned = [Note("N101", f"Planned: {study.plan.reason}.")] if study.plan else []
        sites, notes = site_table(study, opened, check_fit(study, opened)), [*planned, *opened.notes]
        if out is not None:
            write_sheet(study, opened, sites, notes, Path(out))
        return sites, notes

    def run(self, out: str | Path | None = None, *, resume: bool = False, display: Display | None = None) -> Results:
        """Run everything.

        Args:
            out: folder for the results; without it they live as long as the returned object.
            resume: go on with a study that was interrupted.
            display: shows progress.

        Raises:
            PolyclinicError: in plain words.
        """
        from polyclinic.study.results import Results
        from polyclinic.study.runner import run_study

        keeper = None
        if out is None:
            keeper = TemporaryDirectory(prefix="polyclinic-")
            out = keeper.name
        run_study(self, Path(out), resume=resume, display=display)
        return Results(Path(out), keeper)


def _searched(content: dict[str, Any], entries: Sequence[Any]) -> dict[str, Any]:
    """The part ``search`` of a study with these methods only; nothing if nothing is left to search."""
    asked = content.get("search")
    if asked is None:
        return {}
    aliases = set()
    for entry in entries:
        name, options = next(iter(entry.items())) if isinstance(entry, dict) else (entry, {})
        aliases |= {name, options.get("label", name)}
    own = {key: values for key, values in (asked.get("methods") or {}).items() if key in aliases}
    return {"search": {**asked, "methods": own} if own or asked.get("parameters") else None}
