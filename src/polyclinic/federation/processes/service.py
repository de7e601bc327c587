"""A party as a service of systemd: started with the machine, started again where it fails, and held in bounds."""

from __future__ import annotations

import pwd
import sys
from collections.abc import Iterable
from pathlib import Path

from polyclinic.federation.kit import Kit
from polyclinic.federation.site_file import SITE_FILE, SiteFile

#: Of the file; what is in braces is put in.
_UNIT = """\
[Unit]
Description=Polyclinic {role} {name}
Wants=network-online.target
After=network-online.target
RequiresMountsFor={mounts}

[Service]
User={user}
ExecStart={command}
Restart=on-failure
RestartSec=30
# Polyclinic ends what it has started by itself, and says so with this status.
KillMode=mixed
SuccessExitStatus=143
TimeoutStopSec=60
UMask=0077
# It writes into its kit, reads everything else, and gets no rights that its user does not have.
NoNewPrivileges=yes
CapabilityBoundingSet=
ProtectSystem=strict
ProtectHome=read-only
ReadWritePaths={writes}
{reads}PrivateTmp=yes
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectControlGroups=yes
RestrictSUIDSGID=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK
LockPersonality=yes

[Install]
WantedBy=multi-user.target
"""


def unit_name(kit: Kit) -> str:
    """Name of the file."""
    return f"polyclinic-{kit.name.lower()}.service"


def unit(kit: Kit, user: str | None = None) -> str:
    """The file that tells systemd of a party.

    Args:
        kit: of the party.
        user: who runs it; None for who owns the kit.

    Raises:
        FederationError: P605, the site's own file can't be used.
    """
    data = SiteFile.read(kit.folder / "local" / SITE_FILE).data.values() if kit.role == "site" else ()
    command = [sys.executable, "-m", "polyclinic", kit.role, "start", "--kit", str(kit.folder)]
    return _UNIT.format(
        role=kit.role, name=kit.name, user=user or pwd.getpwuid(kit.folder.stat().st_uid).pw_name,
        command=" ".join(map(_word, command)), writes=_places([kit.folder]),
        reads=f"ReadOnlyPaths={_places(data)}\n" if data else "", mounts=_places([kit.folder, *data]),
    )  # fmt: skip


def _places(paths: Iterable[Path]) -> str:
    return " ".join(_quoted(str(path)) for path in paths)


def _word(word: str) -> str:
    """A word of a command, in which a dollar sign would begin a variable."""
    return _quoted(word.replace("$", "$$"))


def _quoted(text: str) -> str:
    """As it is if it is one plain word, else between quotation marks."""
    text = text.replace("%", "%%")
    if any(letter in text for letter in " \t\"'\\;"):
        return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return text
