"""Certificates between real processes: keys of the parties' own, and who is refused."""

from __future__ import annotations

import shutil
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from helpers import write_table_study
from polyclinic.errors import FederationError, PolyclinicError
from polyclinic.federation.consortium import Consortium
from polyclinic.federation.kit import Kit
from polyclinic.federation.kits import make_kits
from polyclinic.federation.processes import parties
from polyclinic.federation.processes.running import end
from polyclinic.federation.rehearse import _free_port
from polyclinic.federation.session import Researcher
from polyclinic.federation.site_file import SITE_FILE
from polyclinic.federation.trust.answers import join, sign_request
from polyclinic.federation.trust.authority import Authority
from polyclinic.federation.trust.certificates import read_certificate, to_text
from polyclinic.federation.trust.requests import make_request
from polyclinic.federation.trust.revoked import REVOKED, revoke, take_revoked
from polyclinic.federation.watching.status import Status

pytest.importorskip("nvflare")
pytestmark = pytest.mark.long

MARIA, NINA = "maria@hospital.org", "nina@hospital.org"
SITES = ["aachen", "bonn", "celle"]


class Hospitals:
    """A consortium whose sites and researchers have made their keys themselves."""

    def __init__(self, folder: Path) -> None:
        self.port = _free_port()
        entries = {
            "consortium": "lungs", "coordinator": {"host": "localhost", "port": self.port}, "sites": SITES,
            "researchers": [MARIA, NINA], "keys": "parties",
        }  # fmt: skip
        self.folder, self.kits = folder, folder / "kits"
        made = make_kits(Consortium.model_validate(entries), self.kits)
        self.coordinator = Kit.read(made["coordinator"], "coordinator")
        self.running = dict[str, Kit]()

    def ask(self, name: str, folder: str, *, again: bool = False) -> Kit:
        """A kit with the party's own key."""
        role = "researcher" if "@" in name else "site"
        request, _ = make_request(name, role, self.folder / folder)
        join(sign_request(request, self.kits, again=again).path, self.folder / folder)
        kit = Kit.read(self.folder / folder, role)
        if role == "site":
            policy = {"patients": 1, "floor": 1}
            entries = {
                "name": name.title(),
                "data": {"cases.csv": "../../all/cases.csv"},
                "device": "cpu",
                "policy": policy,
            }
            (kit.folder / "local" / SITE_FILE).write_text(yaml.safe_dump(entries))
        return kit

    def greeting(self, kit: Kit) -> bytes:
        """What the coordinator says first to who comes with a kit's certificate; nothing if it hangs up."""
        startup = kit.folder / "startup"
        context = ssl.create_default_context(cafile=str(startup / "rootCA.pem"))
        context.load_cert_chain(startup / "client.crt", startup / "client.key")
        context.set_alpn_protocols(["h2"])
        with (
            socket.create_connection(("localhost", self.port), timeout=20) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as secure,
        ):
            return secure.recv(9)

    def start(self, kit: Kit) -> None:
        self.stop(kit.name)
        parties.start(kit)
        self.running[kit.name] = kit

    def stop(self, name: str) -> None:
        if name in self.running:
            end(self.running.pop(name))


@pytest.fixture
def hospitals(tmp_path: Path) -> Iterator[Hospitals]:
    found = Hospitals(tmp_path)
    try:
        yield found
    finally:
        for name in list(found.running):
            found.stop(name)


def until(what: Callable[[], Any]) -> None:
    latest = time.monotonic() + 90
    while not what():
        assert time.monotonic() < latest
        time.sleep(0.3)


def said(kit: Kit, words: str) -> Callable[[], bool]:
    """Whether a party's log has the words more often than now."""
    log = kit.folder / parties.LOG
    before = log.read_text().count(words) if log.exists() else 0
    return lambda: log.read_text().count(words) > before


def write_study(hospitals: Hospitals, rounds: int) -> Path:
    folder = hospitals.folder / "all"
    folder.mkdir(exist_ok=True)
    entries = write_table_study(folder, {"Aachen": 24, "Bonn": 24}) | {"methods": ["fedavg"]}
    entries["evaluation"] |= {"predictions": "sites", "bootstrap": 0}
    entries["training"]["rounds"] = rounds
    path = folder / f"study{rounds}.yaml"
    path.write_text(yaml.safe_dump(entries))
    return path


def test_kits_with_own_keys_take_part_and_who_is_revoked_or_late_is_refused(hospitals: Hospitals) -> None:
    aachen, bonn, celle = (hospitals.ask(name, name) for name in SITES)
    maria, nina = (Researcher.connect(hospitals.ask(name, name), 60) for name in (MARIA, NINA))
    expire(hospitals, celle)

    hospitals.start(hospitals.coordinator)
    with maria as researcher:
        hospitals.start(aachen)
        hospitals.start(bonn)
        researcher.wait_for(["aachen", "bonn"], 90)
        researcher.run(write_study(hospitals, 2), hospitals.folder / "out", ["aachen", "bonn"], lambda _: None)
        assert (hospitals.folder / "out" / "results.csv").is_file()

        # A site that is revoked in a study is hung up on, and stays out when its process starts again.
        def revoke_bonn(now: Status) -> None:
            if now.round > 3 and not (hospitals.coordinator.folder / "local" / REVOKED).exists():
                take_revoked(revoke(hospitals.kits, "bonn"), hospitals.coordinator)

        refused = said(hospitals.coordinator, "bonn was refused: its certificate was revoked.")
        # Whoever notices first ends the study: its own end, or FLARE.
        with pytest.raises(PolyclinicError, match=r"P402 Site Bonn|P606 "):
            researcher.run(write_study(hospitals, 2000), hospitals.folder / "no", ["aachen", "bonn"], revoke_bonn)
        until(refused)
        assert researcher.sites() == ["aachen"]
        again = said(hospitals.coordinator, "bonn was refused: its certificate was revoked.")
        hospitals.start(bonn)
        until(again)
        assert researcher.sites() == ["aachen"]
        with pytest.raises(FederationError, match=r"P603 Not connected: bonn\."):
            researcher.chosen(["aachen", "bonn"], 2)

        # With another key it is there again.
        hospitals.start(hospitals.ask("bonn", "bonn-again", again=True))
        researcher.wait_for(["aachen", "bonn"], 90)

        # A certificate that has ended is refused by the coordinator, too, whatever the party runs.
        assert hospitals.greeting(aachen)
        assert not hospitals.greeting(celle)

    # A researcher who is revoked may not log in, whether the coordinator starts again or not.
    with nina as researcher:
        assert "aachen" in researcher.sites()
        take_revoked(revoke(hospitals.kits, NINA), hospitals.coordinator)
        until(said(hospitals.coordinator, f"{NINA} was refused"))
        with pytest.raises(FederationError, match="P603"):
            researcher.sites()
    hospitals.start(hospitals.coordinator)
    with Researcher.connect(Kit.read(hospitals.folder / MARIA, "researcher"), 90):
        pass
    with (
        pytest.raises(FederationError, match=f"P603 The coordinator does not answer {NINA}"),
        Researcher.connect(Kit.read(hospitals.folder / NINA, "researcher"), 1),
    ):
        pass


def test_a_researcher_is_no_site_and_a_site_no_researcher(hospitals: Hospitals) -> None:
    """With the certificate of one and the kit of the other."""
    aachen, maria, nina = (hospitals.ask(name, name) for name in ("aachen", MARIA, NINA))
    hospitals.start(hospitals.coordinator)
    with Researcher.connect(maria, 60) as researcher:
        hospitals.start(pretend(nina, aachen, hospitals.folder / "site"))
        hospitals.start(aachen)
        researcher.wait_for(["aachen"], 60)
        assert researcher.sites() == ["aachen"]
    refused = said(hospitals.coordinator, "aachen was refused: its certificate is not that of a researcher.")
    with (
        pytest.raises(FederationError, match="P603 The coordinator does not answer aachen"),
        Researcher.connect(pretend(aachen, maria, hospitals.folder / "researcher"), 1),
    ):
        pass
    assert refused()


def pretend(owner: Kit, other: Kit, folder: Path) -> Kit:
    """The kit of another party, of another role, with a party's own name, key and certificate."""
    shutil.copytree(other.folder, folder)
    for name in ("client.crt", "client.key"):
        shutil.copyfile(owner.folder / "startup" / name, folder / "startup" / name)
    for path in folder.rglob("*.json"):
        path.write_text(path.read_text().replace(other.name, owner.name))
    return Kit.read(folder, other.role)


def expire(hospitals: Hospitals, kit: Kit) -> None:
    """Let a kit have a certificate that ended yesterday, which its own commands refuse."""
    from nvflare.lighter.utils import Identity, generate_cert

    path, authority = kit.folder / "startup" / "client.crt", Authority.of(hospitals.kits)
    now = datetime.now(UTC)
    ended = generate_cert(
        Identity(kit.name, "polyclinic"), Identity("lungs"), authority.key, read_certificate(path).public_key(),
        not_valid_before=now - timedelta(days=2), not_valid_after=now - timedelta(days=1),
    )  # fmt: skip
    path.write_text(to_text(ended))
    with pytest.raises(FederationError, match="P602 The certificate of celle was valid until"):
        parties.start(kit)
