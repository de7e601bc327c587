"""A start-up kit: the folder with which a party takes part."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polyclinic.errors import FederationError

#: Name of the file in a kit that says whose it is.
PARTY = "party.json"


@dataclass(frozen=True)
class Kit:
    """A start-up kit.

    Attributes:
        folder: where it is.
        role: ``coordinator``, ``site`` or ``researcher``.
        name: of the party.
    """

    folder: Path
    role: str
    name: str

    @classmethod
    def read(cls, folder: Path, role: str) -> Kit:
        """A kit in its folder.

        Raises:
            FederationError: P602, there is none, or it is one of another role.
        """
        kinds = {"coordinator": "fed_server.json", "site": "fed_client.json", "researcher": "fed_admin.json"}
        found = next((kind for kind, file in kinds.items() if (folder / "startup" / file).is_file()), None)
        if found is None and (folder / "startup" / "client.key").is_file():
            raise FederationError("P602", f"The kit in {folder} waits for the answer to its request.",
                                  "Put it in with `polyclinic federation join`.")  # fmt: skip
        if found is None:
            raise FederationError("P602", f"There is no start-up kit in {folder}.",
                                  "Give the folder that was made by `polyclinic federation new`.")  # fmt: skip
        if found != role:
            raise FederationError("P602", f"The kit in {folder} is that of a {found}, expected one of a {role}.",
                                  f"Give the kit of a {role}.")  # fmt: skip
        about = json.loads((folder / PARTY).read_text(encoding="utf-8"))
        return cls(folder.resolve(), role, str(about["name"]))

    @property
    def about(self) -> dict[str, Any]:
        """What ``party.json`` says: consortium, name, role, sites."""
        found: dict[str, Any] = json.loads((self.folder / PARTY).read_text(encoding="utf-8"))
        return found
