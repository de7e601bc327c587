"""What a doctor looks at in a kit: its files, what it lets others do, its key and certificate, and versions."""

from __future__ import annotations

import json
import stat
from datetime import UTC, datetime
from pathlib import Path

from polyclinic.federation.checks.checking import Finding, fails, passes, warns
from polyclinic.federation.kit import Kit
from polyclinic.federation.kits import ALLOWED
from polyclinic.federation.optional import require_flare
from polyclinic.federation.processes.running import held, processes, running, was_cut_off
from polyclinic.federation.trust.certificates import FEW_DAYS, certificate_dates
from polyclinic.federation.versions import versions

_AGAIN = "Put the kit there again, as `polyclinic federation new` made it."
#: What nobody may do at a party, in FLARE's words.
_NOBODY = ("byoc", "shell_commands", "operate", "clone_job", "server-predeployed-flwr")


def kind_of_files(kit: Kit) -> str:
    """How FLARE calls a party's own files: ``server.key`` or ``client.key``."""
    return "server" if kit.role == "coordinator" else "client"


def check_files(kit: Kit) -> Finding:
    """Whether the kit has all its files."""
    kind = kind_of_files(kit)
    names = [f"startup/{kind}.key", f"startup/{kind}.crt", "startup/rootCA.pem", "party.json", "local/resources.json",
             "local/authorization.json"]  # fmt: skip
    missing = [name for name in names if not (kit.folder / name).is_file()]
    if missing:
        return fails(f"Missing in {kit.folder}: {', '.join(missing)}.", _AGAIN)
    return passes(f"It is complete: {kit.role} {kit.name} of {kit.about['consortium']}.")


def check_closed(kit: Kit) -> Finding:
    """Whether nothing can be started but what the kit was made for; FLARE does not sign these files."""
    local = kit.folder / "local"
    resources = json.loads((local / "resources.json").read_text(encoding="utf-8"))
    wrong = []
    if resources.get("class_list_enforcement_mode") != "enforce" or set(resources.get("class_allow_list", ())) != {
        *ALLOWED
    }:
        wrong.append("local/resources.json lets jobs start other code than Polyclinic's")
    if resources.get("allow_log_streaming") is not False:
        wrong.append("local/resources.json lets logs leave")
    rights = json.loads((local / "authorization.json").read_text(encoding="utf-8"))["permissions"]
    open_to = [name for name in _NOBODY if any(of_role.get(name) != "none" for of_role in rights.values())]
    if open_to:
        wrong.append(f"local/authorization.json allows {', '.join(open_to)}")
    if wrong:
        return fails(f"The kit was changed: {'; '.join(wrong)}.", _AGAIN)
    return passes("Jobs bring no code, nobody has a shell, and no log leaves.")


def check_key(kit: Kit) -> Finding:
    """Whether the private key is private, and fits the certificate."""
    from cryptography.hazmat.primitives.serialization import load_pem_private_key
    from cryptography.x509 import load_pem_x509_certificate

    path = kit.folder / "startup" / f"{kind_of_files(kit)}.key"
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        return fails(f"Others can use the private key {path} (mode {mode:o}).", f"chmod 600 {path}")
    certificate = load_pem_x509_certificate(path.with_suffix(".crt").read_bytes())
    if load_pem_private_key(path.read_bytes(), None).public_key() != certificate.public_key():
        return fails("The private key does not fit the certificate.", _AGAIN)
    return passes("Nobody else can read the private key, and it fits the certificate.")


def check_certificate(kit: Kit) -> Finding:
    """Whether the certificate is of the consortium, and valid now."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.x509 import load_pem_x509_certificate

    startup = kit.folder / "startup"
    path = startup / f"{kind_of_files(kit)}.crt"
    root = load_pem_x509_certificate((startup / "rootCA.pem").read_bytes())
    try:
        load_pem_x509_certificate(path.read_bytes()).verify_directly_issued_by(root)
    except (InvalidSignature, ValueError):
        return fails("The certificate was not signed by the consortium whose root is in the kit.", _AGAIN)
    for name, file in (("certificate", path), ("consortium's root certificate", startup / "rootCA.pem")):
        found = dates_found(name, file)
        if found.state != "passes":
            return found
    return dates_found("certificate", path)


def dates_found(name: str, path: Path) -> Finding:
    """Whether a certificate is valid now, and for how long."""
    dates, now = certificate_dates(path), datetime.now(UTC)
    left = dates.days_left(now)
    if now < dates.start:
        return fails(f"The {name} is valid from {dates.start:%Y-%m-%d %H:%M} UTC on, and it is {now:%Y-%m-%d %H:%M}.",
                     "Set this computer's clock.")  # fmt: skip
    if now > dates.end:
        return fails(f"The {name} expired on {dates.end:%Y-%m-%d}.", "Ask who runs the consortium for a new kit.")
    if left < FEW_DAYS:
        return warns(f"The {name} expires on {dates.end:%Y-%m-%d}, in {left} days.",
                     "Ask who runs the consortium for a new kit.")  # fmt: skip
    return passes(f"The {name} is valid until {dates.end:%Y-%m-%d}, for {left} more days.")


def check_versions(kit: Kit) -> Finding:
    """Whether the versions here are those with which the kit was made.

    Raises:
        PolyclinicError: P503, FLARE is missing.
    """
    require_flare()
    here, there = versions(), kit.about.get("versions", {})
    told = ", ".join(f"{name} {number}" for name, number in here.items())
    if not there:
        return warns(f"{told}; the kit does not say which versions it was made with.",
                     "Ask the coordinator which it has.")  # fmt: skip
    if here["polyclinic"] != there.get("polyclinic"):
        return fails(f"Polyclinic is {here['polyclinic']}, and the kit was made with {there.get('polyclinic')}.",
                     f"pip install 'polyclinic[federation]=={there.get('polyclinic')}'")  # fmt: skip
    for name in ("nvflare", "torch"):
        ours, theirs = (str(found.get(name, "none")).split("+")[0] for found in (here, there))
        if ours.split(".")[:2] != theirs.split(".")[:2]:
            text, advice = f"{name} is {ours}, and the kit was made with {theirs}.", f"pip install '{name}=={theirs}'"
            return fails(text, advice) if name == "nvflare" else warns(text, advice)
    return passes(f"{told}: as the kit was made.")


def check_process(kit: Kit) -> Finding:
    """Whether the party runs, and whether an earlier run has left something behind."""
    found = running(kit)
    if found is not None:
        return passes(f"It runs since {found.since.astimezone():%Y-%m-%d %H:%M} (process {found.number}).")
    left = [str(one.pid) for one in processes(kit)]
    stop = f"polyclinic {kit.role} stop --kit {kit.folder}"
    if held(kit) or left:
        return fails(f"Processes of an earlier run are still there: {', '.join(left) or 'of another computer'}.", stop)
    if was_cut_off(kit):
        return warns("The last run ended without being stopped; party.log says more.", "Start it again.")
    return passes("It does not run, and no earlier run has left anything.")
