"""A study that was read and checked, and the data that it is about; it knows nothing of running."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from polyclinic.composition import METHODS
from polyclinic.errors import DataError, StudyError, nearest
from polyclinic.options import EntryError
from polyclinic.parts import build_part
from polyclinic.study.declaration import Declaration
from polyclinic.study.reading import expand_variables, located, read_yaml

if TYPE_CHECKING:
    from polyclinic.data.opening.cohort import Opened
    from polyclinic.data.tables.frames import Frame
    from polyclinic.data.volumes.fingerprint import SiteFingerprint, VolumePlan


@dataclass(frozen=True)
class CheckedStudy:
    """A checked study.

    Attributes:
        declaration: what it asks for.
        folder: paths in it are relative to this folder.
        name: of the study file, for messages.
        text: of the study file, for line numbers.
        plan: grid, boxes and network, where they were planned.
        given: frames that a program gave in the place of tables; they are there as long as the study is.
    """

    declaration: Declaration
    folder: Path
    name: str = "study"
    text: str = ""
    plan: VolumePlan | None = None
    given: tuple[Frame, ...] = ()

    @classmethod
    def read(cls, path: str | Path, methods: list[str] | None = None, *, named: bool = False) -> Self:
        """A study from its file.

        Args:
            path: a YAML file, see ``docs/study-file.md``.
            methods: run these entries only (labels or names of the catalogue); names not in the file are added.
            named: whether ``${NAME}`` stands for data that each site calls by that name, instead of for a variable.

        Raises:
            StudyError: with the file, line and entry of the first mistake.
        """
        path = Path(path)
        content, text = read_yaml(path)
        return cls._checked(content, path.resolve().parent, path.name, text, methods, named=named)

    @classmethod
    def of(
        cls, content: dict[str, Any], folder: str | Path = ".", *, data: Mapping[str, Any] | None = None
    ) -> Self:  # fmt: skip
        """A study from a dictionary with the entries of a study file; paths are relative to ``folder``.

        Args:
            content: the entries. ``model`` may be a class or function that makes a network, ``loss`` a function, and
                tables may be pandas frames; see docs/bring-your-own.md.
            folder: to which paths are relative.
            data: for each site a frame, or a ``torch.utils.data.Dataset``, instead of ``data: {tables: ...}``.

        Raises:
            StudyError: with the entry of the first mistake.
            DataError: a frame or data set is not as it should be.
        """
        from polyclinic.study.given.entries import take_in

        try:
            content, given = take_in(content, data)
        except EntryError as error:
            raise located(error, "study", "") from None
        return replace(cls._checked(content, Path(folder).resolve(), "study", "", None), given=given)

    @classmethod
    def _checked(
        cls, content: dict[str, Any], folder: Path, name: str, text: str, methods: list[str] | None, *,
        named: bool = False,
    ) -> Self:  # fmt: skip
        try:
            expanded = {key: expand_variables(content.get(key), (key,), named=named) for key in ("data", "model")}
            content = {**content, **expanded}
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
            if named and declaration.model_part[0] == "bundle":  # a file that an outsider names would be read
                raise EntryError("P104", "A bundle is read from files of one machine, and sites are on others.",
                                 "Name a network of the catalogue.", place=("model",))  # fmt: skip
            if named:
                _check_files(declaration)
                declaration.check_kept_at_sites()
            declaration.read_bundle(folder)
        except EntryError as error:
            raise located(error, name, text) from None
        return cls(declaration, folder, name, text)

    def planned(self, progress: Callable[[int, int], None] | None = None) -> Self:
        """The study with everything that says ``auto`` planned from the images of all sites; itself without any.

        Raises:
            DataError: what is wrong with the data.
        """
        declaration = self.declaration
        if not declaration.wants_plan:
            return self
        from polyclinic.data.opening.holder import Holder

        spec, split = declaration.data, declaration.evaluation.split
        holder = Holder(spec, self.folder, declaration.target, split, progress)
        found = (holder.census(site, plan=True).volumes for site in holder.sites)
        return self.planned_from([volumes for volumes in found if volumes is not None])

    def planned_from(self, images: Sequence[SiteFingerprint]) -> Self:
        """The study with everything that says ``auto`` planned from what sites say of their images; itself without any.

        Raises:
            DataError: P205, no site has an image that can be read.
        """
        declaration = self.declaration
        if not declaration.wants_plan:
            return self
        from polyclinic.data.volumes.fingerprint import make_plan
        from polyclinic.engine.planner import choose_device

        if not images:
            raise DataError("P205", "No image can be read, so that nothing can be planned.", "Mend the images' paths.")
        spacing = declaration.data.preprocessing.steps if declaration.data.preprocessing else None
        plan = make_plan(images, declaration.target, choose_device(declaration.engine.device), spacing)
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

        declaration, evaluation = self.declaration, self.declaration.evaluation
        return open_data(
            declaration.data, self.folder, declaration.target, evaluation.split, progress, evaluation.grouped_by,
            declaration.until,
        )  # fmt: skip


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


def _check_files(declaration: Declaration) -> None:
    """Files that methods name are read from the coordinator's folder, and from nowhere else.

    Raises:
        EntryError: P104 with one that lies elsewhere.
    """
    for position, method in enumerate(declaration.study_methods):
        for name, options in method.method.parts:
            for path in build_part(name, options).files:
                if Path(path).is_absolute() or ".." in Path(path).parts:
                    raise EntryError("P104", f"{name} names a file outside the coordinator's folder.",
                                     "Put it into the folder `data` of the coordinator's kit, and name it from there.",
                                     place=("methods", position))  # fmt: skip
