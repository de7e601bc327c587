"""What a doctor looks at in a site's data: that they can be read, and what a study would find in them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from polyclinic.data.cases import Counts
from polyclinic.data.opening.source import Source
from polyclinic.engine import LocalEngine
from polyclinic.errors import DataError, PolyclinicError
from polyclinic.federation.checks.checking import Finding, fails, passes, warns
from polyclinic.federation.ends.policy import refusals
from polyclinic.federation.job import sent_text, study_hash
from polyclinic.federation.kit import Kit
from polyclinic.federation.site_file import Policy, SiteFile
from polyclinic.study.checked import CheckedStudy
from polyclinic.study.opening import ask_agree, ask_open

#: So many names of rejected cases are shown of each reason.
_SHOWN = 5


def check_place(place: Path) -> Finding:
    """Whether a file or folder of data can be read.

    Raises:
        PermissionError: it can't.
    """
    if place.is_dir():
        inside = sorted(one.name for one in os.scandir(place))
        first = next((place / name for name in inside if (place / name).is_file()), None)
        if first is not None:
            _read(first)
        return passes(f"The folder {place} can be read.") if inside else warns(f"The folder {place} is empty.",
                                                                               "Is its disk there?")  # fmt: skip
    _read(place)
    return passes(f"{place} can be read.")


def _read(path: Path) -> None:
    with path.open("rb") as file:
        file.read(1)


def check_study(study: CheckedStudy, policy: Policy) -> Finding:
    """Whether a study fits a site's policy; who asks for it is known only when it is handed in."""
    refused = list(refusals(policy.model_copy(update={"researchers": None}), study.declaration, ""))
    if refused:
        return fails(f"The policy does not allow it: {'; '.join(refused)}.", "Change the study, or the policy.")
    return passes(f"The policy allows it. Of fewer than {policy.floor} patients nothing is said.")


def check_approval(kit: Kit, study: CheckedStudy, policy: Policy) -> Finding:
    """Whether somebody has to approve a study, and has done so."""
    mark = study_hash(sent_text(study.text))
    if policy.approval == "automatic":
        return passes("Studies that fit the policy need no approval.")
    if (kit.folder / "approved" / f"{mark}.yaml").is_file():
        return passes(f"The study {mark[:12]} is approved.")
    waits = (kit.folder / "waiting" / f"{mark}.yaml").is_file()
    text = "waits for approval" if waits else "is not approved, and was not handed in yet"
    when = "" if waits else "Once it was handed in: "
    return warns(f"The study {mark[:12]} {text}.",
                 f"{when}polyclinic site approve {mark[:12]} --kit {kit.folder}")  # fmt: skip


class _Alone(LocalEngine):
    """A site by itself, which has no data of others."""

    holds_all = False


class StudyData:
    """The data of a study, opened as the site would, so that they can be looked at; nothing of it leaves.

    Args:
        kit: of the site.
        file: its ``site.yaml``.
        study: the study.
    """

    def __init__(self, kit: Kit, file: SiteFile, study: CheckedStudy) -> None:
        self.kit, self.file, self.study, self.name = kit, file, study, file.name or kit.name
        self._patients: int | None = None

    @property
    def cache(self) -> Path:
        """Where prepared volumes are kept."""
        first, *more = self._cache
        return self.file.data.get(first, self.kit.folder / "data" / first).joinpath(*more)

    @property
    def _cache(self) -> tuple[str, ...]:
        return Path(self.study.declaration.data.cache).parts or (".",)

    def check(self, alive: Callable[[int, int], None]) -> Finding:
        """What a study finds in the site's data.

        Args:
            alive: is called after each image.
        """
        with self._linked() as (folder, places):
            floor = self.file.policy.floor
            source = Source(folder, site=self.name, floor=floor, places=places, progress=alive)
            engine = _Alone([self.name], source=source)
            engine.members[self.name].floor = floor
            try:
                cohort = ask_agree(ask_open(self.study, engine), engine)
            except PolyclinicError as error:
                return self._failed(error)
            declaration = self.study.declaration
            split, groups = declaration.evaluation.split, declaration.evaluation.grouped_by
            held = source.holder(declaration.data, declaration.target, split, groups, declaration.until)
        facts = cohort.facts[self.name]
        self._patients = facts.patients
        rejected = _rejected(held.counts(self.name))
        return passes(f"{facts.found} cases found, {facts.used} used, {facts.found - facts.used} rejected{rejected}.")

    def _failed(self, error: PolyclinicError) -> Finding:
        """What else a site lacks that others may have, such as a second class, is nothing to mend."""
        if isinstance(error, DataError) and error.code == "P203" and self.name not in error.message:
            return warns(f"This site's data do not do by themselves: {error.message}",
                         f"If other sites have what is missing, all is well. Else: {error.hint}")  # fmt: skip
        return fails(error.message, error.hint)

    def check_patients(self) -> Finding:
        """Whether the site has patients enough to take part."""
        found, least = self._patients, self.file.policy.patients
        if found is None:
            return warns("It is not known how many patients there are.", "See the line before.")
        if found < least:
            return fails(f"{found} patients can be used, and the policy asks for {least}.",
                         "Mend the data, or change `patients` in site.yaml.")  # fmt: skip
        return passes(f"{found} patients can be used; the policy asks for {least}.")

    @contextmanager
    def _linked(self) -> Iterator[tuple[Path, list[Path]]]:
        """A folder like that in which a study finds the site's data, and where its links may lead.

        It is another one, so that a study that runs is not disturbed; prepared volumes are kept where a study has them.
        """
        with tempfile.TemporaryDirectory(prefix="polyclinic-") as name:
            folder, places = Path(name), list(self.file.data.values())
            for entry, place in self.file.data.items():
                (folder / entry).symlink_to(place)
            first = self._cache[0]
            if self.study.declaration.data.image and first not in (*self.file.data, "/", ".", ".."):
                keep = self.kit.folder / "data" / first
                keep.mkdir(parents=True, exist_ok=True)
                (folder / first).symlink_to(keep)
                places.append(keep)
            yield folder, places


def _rejected(counts: Counts) -> str:
    """Why cases were rejected, and which; this is shown at the site alone."""
    reasons = []
    for reason, count in counts.rejected.most_common():
        names = counts.cases.get(reason, [])
        more = ", ..." if len(names) > _SHOWN else ""
        reasons.append(f"{reason} ({count}{': ' if names else ''}{', '.join(names[:_SHOWN])}{more})")
    return f": {'; '.join(reasons)}" if reasons else ""
