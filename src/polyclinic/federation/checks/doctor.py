"""The doctor of a party: everything that must be so before a study works, each with what to do where it is not."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from polyclinic.federation.checks import connection as between
from polyclinic.federation.checks import kit as own
from polyclinic.federation.checks import machine
from polyclinic.federation.checks.checking import Check, Finding, passes
from polyclinic.federation.kit import Kit
from polyclinic.federation.site_file import SITE_FILE, SiteFile

if TYPE_CHECKING:
    from polyclinic.study.checked import CheckedStudy

#: Seconds for what loads large libraries, and for a table or an image of a study.
_LONG, _LONGEST = 60.0, 600.0


class Line(NamedTuple):
    """What was found of something.

    Attributes:
        name: of it.
        found: what.
    """

    name: str
    found: Finding


def check_site(folder: Path, study: Path | None = None) -> Iterator[Line]:
    """Look at a site.

    Args:
        folder: its kit.
        study: a study file, whose data are opened.
    """
    kit = yield from _kit(folder, "site")
    if kit is None:
        return
    yield from _of_kit(kit)
    file = yield from _site_file(kit)
    writes = [kit.folder, kit.folder / "data"]
    if file is not None:
        yield from _data(kit, file, study, writes)
        yield _line("device", lambda: machine.check_device(file.device), _LONG)
    yield from _machine(writes)
    yield _line("name", lambda: between.check_name(kit))
    yield _line("port", lambda: between.check_port(kit))
    yield _line("TLS", lambda: between.check_tls(kit), 3 * between.ANSWER)
    yield _line("clock", lambda: between.check_clock(kit))
    yield _line("process", lambda: own.check_process(kit))


def check_coordinator(folder: Path) -> Iterator[Line]:
    """Look at a coordinator.

    Args:
        folder: its kit.
    """
    kit = yield from _kit(folder, "coordinator")
    if kit is None:
        return
    yield from _of_kit(kit)
    yield from _machine([kit.folder])
    yield _line("name", lambda: between.check_own_name(kit))
    yield _line("port", lambda: between.check_own_port(kit))
    yield _line("clock", lambda: between.check_clock(kit))
    yield _line("process", lambda: own.check_process(kit))


def _line(name: str, look: Callable[[], Finding], seconds: float | None = None) -> Line:
    check = Check(name, look) if seconds is None else Check(name, look, seconds)
    return Line(name, check.run())


def _kit(folder: Path, role: str) -> Generator[Line, None, Kit | None]:
    """The kit, if it is complete."""
    kits = list[Kit]()

    def look() -> Finding:
        kit = Kit.read(folder, role)
        found = own.check_files(kit)
        kits.extend([kit] * (found.state == "passes"))
        return found

    yield _line("kit", look)
    return kits[0] if kits else None


def _of_kit(kit: Kit) -> Iterator[Line]:
    yield _line("rights", lambda: own.check_closed(kit))
    yield _line("key", lambda: own.check_key(kit))
    yield _line("certificate", lambda: own.check_certificate(kit))
    yield _line("versions", lambda: own.check_versions(kit))


def _machine(writes: list[Path]) -> Iterator[Line]:
    yield _line("disk", lambda: machine.check_disk(writes))
    yield _line("memory", machine.check_memory, _LONG)


def _site_file(kit: Kit) -> Generator[Line, None, SiteFile | None]:
    """The site's own file, if it can be used."""
    files = list[SiteFile]()

    def look() -> Finding:
        files.append(SiteFile.read(kit.folder / "local" / SITE_FILE))
        names = ", ".join(files[0].data) or "none"
        return passes(f"The site is called {files[0].name or kit.name}; data: {names}; floor {files[0].policy.floor}.")

    yield _line(SITE_FILE, look)
    return files[0] if files else None


def _data(kit: Kit, file: SiteFile, study: Path | None, writes: list[Path]) -> Iterator[Line]:
    """The places of a site's data, and what a study finds in them; where it keeps volumes is added to ``writes``."""
    from polyclinic.federation.checks import data

    for name, place in file.data.items():
        yield _line(f"data.{name}", lambda place=place: data.check_place(place))  # type: ignore[misc]
    if study is None:
        return
    found = list["CheckedStudy"]()

    def look() -> Finding:
        from polyclinic.study.checked import CheckedStudy

        found.append(CheckedStudy.read(study, named=True))
        return data.check_study(found[0], file.policy)

    yield _line("study", look, _LONG)
    if found:
        opened = data.StudyData(kit, file, found[0])
        yield _line("approval", lambda: data.check_approval(kit, found[0], file.policy))
        check = Check("cases", lambda: opened.check(check.alive), _LONGEST)
        yield Line(check.name, check.run())
        yield _line("patients", opened.check_patients)
        writes.append(opened.cache)
