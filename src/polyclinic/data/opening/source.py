"""Where a site's data are, and who reads them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from polyclinic.data.opening.holder import Holder, Progress
from polyclinic.data.opening.subgroups import Subgroup
from polyclinic.data.spec import DataSpec, Target
from polyclinic.data.tables.table import PACKAGE
from polyclinic.errors import DataError
from polyclinic.notes import Note


class Source:
    """Opens what a study declares, from files below a folder; what was opened last is kept.

    Args:
        folder: paths of the declaration are relative to it.
        site: the one site whose data are there, and nothing outside the folder is read or written; None where they are
            those of all.
        floor: values of labels and groups that fewer cases have are not named outside the site.
        places: files and folders elsewhere that links in the folder may lead to; they are read only.
        progress: called with the number of images read and the number of all images, after each image.
    """

    def __init__(
        self, folder: Path, *, site: str | None = None, floor: int = 1, progress: Progress | None = None,
        places: Sequence[Path] = (),
    ) -> None:  # fmt: skip
        self.folder, self.site, self.floor, self.progress = folder, site, floor, progress
        self._inside = [folder.resolve(), *(place.resolve() for place in places)]
        self._last: tuple[str, Holder] | None = None

    def holder(
        self,
        spec: DataSpec,
        target: Target,
        split: str | None,
        subgroups: Sequence[Subgroup] = (),
        until: float | None = None,
    ) -> Holder:
        """Who holds the tables of a declaration; they are read once.

        Raises:
            DataError: what is wrong with them, see `Holder`; P201, the declaration names a place outside the folder.
        """
        if self.site is not None:
            self._check_inside(spec)
        key = repr((spec.model_dump(mode="json"), target, split, subgroups, until))
        if self._last is None or self._last[0] != key:
            self._last = key, Holder(spec, self.folder, target, split, self.progress, self.site, subgroups, until)
        return self._last[1]

    def _check_inside(self, spec: DataSpec) -> None:
        """Who asks may be anyone: a site's own folder bounds what is read for it."""
        named = {"table": spec.table, "root": spec.root, "cache": spec.cache}
        if spec.public is not None:
            named |= {"public": spec.public.table, "public: {root: ...}": spec.public.root}
        named |= {f"tables: {{{self.site}: ...}}": (spec.tables or {}).get(self.site or "")}
        for key, path in named.items():
            if path is None or path.startswith(PACKAGE):
                continue
            place = (self.folder / path).resolve()
            inside = self._inside[:1] if key == "cache" else self._inside  # nothing is written beside the data
            if not any(place.is_relative_to(one) for one in inside):
                raise DataError("P201", f"`data: {{{key}: ...}}` names a place outside the folder of site {self.site}.",
                                "Put the site's data into its folder, and name them from there.")  # fmt: skip

    def patients(self) -> int:
        """How many patients the site has among the rows that were read last and can be used.

        Raises:
            ValueError: none were read, or they are those of several sites.
        """
        if self._last is None or self.site is None:
            raise ValueError("no rows of one site were read")
        return self._last[1].patients(self.site)

    def notes(self) -> list[Note]:
        """What a person should know of the cases that were opened last.

        Raises:
            ValueError: none were.
        """
        if self._last is None:
            raise ValueError("nothing was opened")
        return self._last[1].notes()
