"""Certificates that are not valid any longer, though their dates say so: a list that the authority signs.

The coordinator has the list in its kit, and hangs up on parties with a certificate that is in it
(`polyclinic.federation.processes.coordinator`). A site that has it, too, refuses their signatures by itself
(`polyclinic.federation.trust.identity`).
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from polyclinic.errors import FederationError
from polyclinic.federation.kit import Kit
from polyclinic.federation.trust.authority import Authority
from polyclinic.federation.trust.certificates import ROOT, read_certificate
from polyclinic.federation.trust.signed import checked_content, read_signed, to_signed
from polyclinic.files import write_atomic

log = logging.getLogger(__name__)

#: Name of the file with the authority, and in the folder ``local`` of a kit.
REVOKED = "revoked.json"
#: What the file is, in itself.
_KIND = "list of revoked certificates"


def revoke(kits: Path, name: str) -> Path:
    """Put all certificates that a party was given into the authority's list; returns the list's file.

    Args:
        kits: folder of the kits.
        name: of the party, which may have left the consortium file.

    Raises:
        FederationError: P602, the folder has no kits; P608, there is no such party.
    """
    authority = Authority.of(kits)
    check_party(authority, name)
    if name == "coordinator":
        raise FederationError("P608", "The coordinator can't be revoked: it is the one that refuses others.",
                              "Make new kits for all, in another folder.")  # fmt: skip
    path = authority.folder / REVOKED
    before = listed(path, authority)
    entries = list(before.get("revoked", []))
    known = {entry["serial"] for entry in entries}
    since = datetime.now(UTC).isoformat(timespec="seconds")
    serials = [f"{certificate.serial_number:x}" for certificate in authority.signed(name)]
    entries += [{"name": name, "serial": serial, "since": since} for serial in serials if serial not in known]
    if len(entries) > len(known):
        content = {"consortium": authority.consortium.consortium, "version": before.get("version", 0) + 1}
        write_atomic(path, to_signed(authority.key, _KIND, {**content, "revoked": entries}))
    return path


def check_party(authority: Authority, name: str) -> None:
    """Whether a party was given a certificate.

    Raises:
        FederationError: P608, it was not.
    """
    if name not in authority.parties():
        raise FederationError("P608", f"No certificate of {name} was signed here.",
                              f"Those of: {', '.join(authority.parties())}.")  # fmt: skip


def listed(path: Path, authority: Authority) -> dict[str, Any]:
    """What the authority's own list says; nothing if there is none yet.

    Raises:
        FederationError: P608, it was changed.
    """
    return checked_content(read_signed(path, _KIND), path.name, authority.certificate) if path.is_file() else {}


def revoked_serials(authority: Authority) -> set[int]:
    """Serial numbers of all certificates in the authority's list."""
    return {int(entry["serial"], 16) for entry in listed(authority.folder / REVOKED, authority).get("revoked", [])}


class Revoked:
    """The list in the kit of a coordinator or a site.

    Args:
        kit: its folder; where it has no list, nothing is revoked.

    Attributes:
        known: serial numbers of certificates that are revoked, as far as was read.
        version: of the list that was read.
    """

    def __init__(self, kit: Path) -> None:
        self.path, self._root = kit / "local" / REVOKED, kit / "startup" / ROOT
        self._state: tuple[int, int, int] | None = None
        self.known = frozenset[int]()
        self.version = 0

    def read(self) -> frozenset[int]:
        """Serial numbers of certificates that are revoked; the file is read again if it is another.

        Raises:
            FederationError: P608, once for each such file: it was changed, or is older than one that was read before,
                which holds on.
        """
        if not self.path.is_file():
            return self.known
        about = self.path.stat()
        state = (about.st_ino, about.st_size, about.st_mtime_ns)
        if state != self._state:
            self._state = state
            content = checked_content(read_signed(self.path, _KIND), self.path.name, read_certificate(self._root))
            if content["version"] < self.version:
                raise _older(self.path.name, content["version"], self.version)
            self.known = frozenset(int(entry["serial"], 16) for entry in content["revoked"])
            self.version = content["version"]
        return self.known

    def has(self, serial: int) -> bool:
        """Whether a certificate is in the list; where that can't be read, in the one before."""
        try:
            return serial in self.read()
        except FederationError as error:
            log.error("%s", error)
            return serial in self.known


def take_revoked(file: Path, kit: Kit) -> list[str]:
    """Put a list into a kit, whose party may be running; returns the names of those who are in it.

    Args:
        file: from the authority.
        kit: the coordinator's, or a site's.

    Raises:
        FederationError: P608, it is no list, was changed, or is older than the one that the kit has.
    """
    content = checked_content(read_signed(file, _KIND), file.name, read_certificate(kit.folder / "startup" / ROOT))
    now = Revoked(kit.folder)
    now.read()
    if content["version"] < now.version:
        raise _older(file.name, content["version"], now.version)
    write_atomic(now.path, file.read_bytes())
    return sorted({entry["name"] for entry in content["revoked"]})


def _older(name: str, version: int, than: int) -> FederationError:
    return FederationError("P608", f"{name} is version {version} of the list, and version {than} is known here.",
                           "Ask for the latest one, from who keeps the authority.")  # fmt: skip
