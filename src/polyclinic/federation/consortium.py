"""The file ``consortium.yaml``: who takes part, and how the coordinator is reached."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from polyclinic.errors import FederationError
from polyclinic.study.reading import read_yaml

#: Names of parties become names of folders and of certificates.
_PARTY = re.compile(r"[A-Za-z][A-Za-z0-9-]{0,40}")
_ADDRESS = re.compile(r"(?=.{1,64}\Z)[A-Za-z0-9._+-]+@[A-Za-z0-9.-]+\.[A-Za-z]{2,}")
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,60}[A-Za-z0-9])?")


def _party(name: str) -> str:
    if not _PARTY.fullmatch(name):
        raise ValueError(f"got {name!r}, expected letters, digits and hyphens, a letter first, 41 at most")
    return name


def _address(name: str) -> str:
    if not _ADDRESS.fullmatch(name):
        raise ValueError(f"got {name!r}, expected an e-mail address of at most 64 characters, as maria@hospital.org")
    return name


def _host(name: str) -> str:
    if not _HOST.fullmatch(name):
        raise ValueError(f"got {name!r}, expected the name of a host, such as federation.hospital.org")
    return name


PartyName = Annotated[str, AfterValidator(_party)]
#: Role -> checks the name of a party that has it, by ValueError.
NAMES = {"site": _party, "researcher": _address}


class _Entries(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class CoordinatorEntry(_Entries):
    """How sites and researchers reach the coordinator; it connects to nobody.

    Attributes:
        host: name by which all parties find it.
        port: the only one that is open.
    """

    host: Annotated[str, AfterValidator(_host)]
    port: Annotated[int, Field(ge=1, le=65535)] = 8102


class Consortium(_Entries):
    """Who takes part.

    Attributes:
        consortium: its name.
        coordinator: who runs studies and sees what sites answer.
        sites: who has data.
        researchers: who may ask for studies.
        valid_days: how long certificates are valid.
        keys: where those of sites and researchers are made: ``central`` with their kits, ``parties`` by themselves.
    """

    consortium: PartyName
    coordinator: CoordinatorEntry
    sites: Annotated[list[PartyName], Field(min_length=1)]
    researchers: Annotated[list[Annotated[str, AfterValidator(_address)]], Field(min_length=1)]
    valid_days: Annotated[int, Field(ge=1, le=3650)] = 365
    keys: Literal["central", "parties"] = "central"

    @model_validator(mode="after")
    def _different(self) -> Consortium:
        # Names of folders may differ in more than case only.
        names = [name.lower() for name in [*self.sites, *self.researchers, self.coordinator.host]]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"two parties are called {twice!r}")
        taken = next((name for name in self.sites if name.lower() in ("authority", "coordinator")), None)
        if taken is not None:
            raise ValueError(f"no site can be called {taken!r}, as a folder beside the kits is called so")
        return self

    @property
    def roles(self) -> dict[str, str]:
        """Party -> ``coordinator``, ``site`` or ``researcher``."""
        others = dict.fromkeys(self.sites, "site") | dict.fromkeys(self.researchers, "researcher")
        return {"coordinator": "coordinator"} | others

    @classmethod
    def read(cls, path: Path) -> Consortium:
        """From its file.

        Raises:
            FederationError: P601 with the first entry that does not fit.
        """
        content, _ = read_yaml(path)
        return checked(cls, content, path.name, "P601")


Kind = TypeVar("Kind", bound=BaseModel)


def checked(kind: type[Kind], content: dict[str, Any], name: str, code: str) -> Kind:
    """The entries of a file as its model.

    Raises:
        FederationError: with the file and the first entry that does not fit.
    """
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        place = "".join(f"[{step + 1}]" if isinstance(step, int) else f".{step}" for step in first["loc"])
        words = first["msg"].removeprefix("Value error, ")
        entry = f", {place.lstrip('.')}" if place else ""
        raise FederationError(
            code, f"{name}{entry}: {words[:1].lower()}{words[1:]}.", "See docs/federation.md for all entries."
        ) from None
