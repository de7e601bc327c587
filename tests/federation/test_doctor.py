"""The doctor: each line where what it looks at is as it should be, and where it is not."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from certificates import Authority, coordinator, listening
from test_without_flare import CODE
from typer.testing import CliRunner

from helpers import write_table_study
from polyclinic.cli import app
from polyclinic.federation.checks import connection as connection_checks
from polyclinic.federation.checks import data as data_checks
from polyclinic.federation.checks import kit as kit_checks
from polyclinic.federation.checks import machine as machine_checks
from polyclinic.federation.checks.checking import Check, Finding, passes
from polyclinic.federation.checks.doctor import check_coordinator, check_site
from polyclinic.federation.consortium import Consortium
from polyclinic.federation.job import study_hash
from polyclinic.federation.kit import Kit
from polyclinic.federation.kits import make_kits
from polyclinic.federation.site_file import SITE_FILE, SiteFile
from polyclinic.study.checked import CheckedStudy

pytest.importorskip("nvflare")

ENTRIES: dict[str, Any] = {
    "consortium": "lungs", "coordinator": {"host": "localhost", "port": 18997}, "sites": ["aachen"],
    "researchers": ["maria@hospital.org"],
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_kits(Consortium.model_validate(ENTRIES), tmp_path_factory.mktemp("kits"))


@pytest.fixture
def kit(made: dict[str, Path], tmp_path: Path) -> Kit:
    """A site's kit with a table of 24 patients."""
    shutil.copytree(made["aachen"], tmp_path / "kit")
    (tmp_path / "export").mkdir()
    write_table_study(tmp_path / "export", {"Aachen": 24})
    write_site_file(tmp_path / "kit")
    return Kit.read(tmp_path / "kit", "site")


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    (tmp_path / "authority").mkdir()
    return Authority(tmp_path / "authority")


def write_site_file(kit: Path, **changes: Any) -> None:
    entries = {"name": "Aachen", "device": "cpu", "data": {"cases.csv": "../../export/cases.csv"}} | changes
    entries["policy"] = {"patients": 24, "floor": 5} | entries.get("policy", {})
    (kit / "local" / SITE_FILE).write_text(yaml.safe_dump(entries))


def write_study(folder: Path, **changes: Any) -> Path:
    (folder / "unused").mkdir(exist_ok=True)
    entries = write_table_study(folder / "unused", {"Aachen": 4}) | {"methods": ["fedavg"]}
    entries["evaluation"] |= {"predictions": "sites", "disclosure_floor": 5}
    for key, value in changes.items():
        entries[key] = {**entries[key], **value} if isinstance(entries.get(key), dict) else value
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(entries))
    return path


def move(kit: Kit, host: str, port: int) -> None:
    """Let the coordinator be somewhere else."""
    path = kit.folder / "startup" / ("fed_server.json" if kit.role == "coordinator" else "fed_client.json")
    content = json.loads(path.read_text())
    content["servers"][0]["service"]["target"] = f"{host}:{port}"
    path.write_text(json.dumps(content))


def looked(look: Callable[[], Finding]) -> Finding:
    return Check("it", look).run()


# How it looks ---------------------------------------------------------------------------------------------------------


def test_a_look_that_hangs_fails_in_time() -> None:
    found = Check("it", lambda: time.sleep(60) or passes(""), 0.1).run()  # type: ignore[func-returns-value]
    assert (found.state, found.text) == ("fails", "There was no answer within 0.1 s.")


def test_a_look_that_breaks_is_a_finding_with_its_cause() -> None:
    found = looked(lambda: passes(str(1 // 0)))
    assert (found.state, found.text) == (
        "fails", "It could not be looked at: ZeroDivisionError: integer division or modulo by zero.",
    )  # fmt: skip


def test_a_look_that_goes_on_is_waited_for() -> None:
    def look() -> Finding:
        for _ in range(10):
            time.sleep(0.1)
            check.alive()
        return passes("done")

    check = Check("it", look, 0.6)
    assert check.run().text == "done"


# The kit --------------------------------------------------------------------------------------------------------------


def test_a_kit_as_it_was_made_passes(kit: Kit) -> None:
    for look in (kit_checks.check_files, kit_checks.check_closed, kit_checks.check_key, kit_checks.check_certificate,
                 kit_checks.check_versions, kit_checks.check_process, connection_checks.check_clock):  # fmt: skip
        assert looked(lambda look=look: look(kit)).state == "passes", look  # type: ignore[misc]


def test_without_a_whole_kit_nothing_else_is_looked_at(kit: Kit, made: dict[str, Path], tmp_path: Path) -> None:
    ((name, found),) = check_site(made["coordinator"])
    assert (name, found.state) == ("kit", "fails")
    assert "is that of a coordinator, expected one of a site" in found.text
    ((name, found),) = check_coordinator(tmp_path)
    assert "There is no start-up kit in" in found.text
    (kit.folder / "startup" / "rootCA.pem").unlink()
    ((name, found),) = check_site(kit.folder)
    assert "startup/rootCA.pem" in found.text


def test_a_kit_that_lets_others_in_is_told(kit: Kit) -> None:
    local = kit.folder / "local"
    resources, rights = (json.loads((local / name).read_text()) for name in ("resources.json", "authorization.json"))
    (local / "resources.json").write_text(json.dumps(resources | {"class_allow_list": ["os.system"]}))
    rights["permissions"]["lead"]["byoc"] = "any"
    (local / "authorization.json").write_text(json.dumps(rights))
    found = kit_checks.check_closed(kit)
    assert found.state == "fails"
    assert "lets jobs start other code" in found.text
    assert "allows byoc" in found.text


def test_a_key_that_others_can_read_is_told(kit: Kit) -> None:
    key = kit.folder / "startup" / "client.key"
    key.chmod(0o640)
    found = kit_checks.check_key(kit)
    assert (found.state, found.advice) == ("fails", f"chmod 600 {key}")
    assert "mode 640" in found.text


def test_a_key_that_does_not_fit_its_certificate_is_told(kit: Kit, authority: Authority) -> None:
    _, key = authority.sign("another")
    (kit.folder / "startup" / "client.key").write_bytes(key.read_bytes())
    assert kit_checks.check_key(kit).text == "The private key does not fit the certificate."


def test_a_root_of_another_consortium_is_told(kit: Kit, authority: Authority) -> None:
    shutil.copy(authority.root, kit.folder / "startup" / "rootCA.pem")
    found = kit_checks.check_certificate(kit)
    assert found.state == "fails"
    assert "not signed by the consortium" in found.text


@pytest.mark.parametrize(
    ("start", "end", "state", "words"),
    [
        (-9, -2, "fails", "The certificate expired on"),
        (2, 9, "fails", "The certificate is valid from"),
        (-9, 29, "warning", "in 29 days"),
        (-9, 31, "passes", "for 31 more days"),
    ],
)
def test_dates_of_a_certificate_are_told(
    kit: Kit, authority: Authority, start: int, end: int, state: str, words: str
) -> None:
    authority.give(kit.folder, start, end)
    found = kit_checks.check_certificate(kit)
    assert found.state == state
    assert words in found.text
    assert connection_checks.check_clock(kit).state == ("fails" if start > 0 else "passes")


@pytest.mark.parametrize(
    ("changes", "state", "advice"),
    [
        ({"polyclinic": "9.8.7"}, "fails", "pip install 'polyclinic[federation]==9.8.7'"),
        ({"nvflare": "2.7.5"}, "fails", "pip install 'nvflare==2.7.5'"),
        ({"torch": "1.13.1+cu117"}, "warning", "pip install 'torch==1.13.1'"),
        ({"python": "3.99.0"}, "passes", ""),
    ],
)
def test_other_versions_are_told(kit: Kit, changes: dict[str, str], state: str, advice: str) -> None:
    about = kit.about
    (kit.folder / "party.json").write_text(json.dumps(about | {"versions": about["versions"] | changes}))
    found = kit_checks.check_versions(kit)
    assert (found.state, found.advice) == (state, advice)


def test_a_kit_that_does_not_say_its_versions_is_told(kit: Kit) -> None:
    (kit.folder / "party.json").write_text(json.dumps({**kit.about, "versions": {}}))
    assert kit_checks.check_versions(kit).state == "warning"


# The machine ----------------------------------------------------------------------------------------------------------


def test_too_little_space_or_memory_is_told(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: dict[str, Callable[[], Finding]] = {
        "DISK": lambda: machine_checks.check_disk([kit.folder, kit.folder / "data" / "not yet"]),
        "MEMORY": machine_checks.check_memory,
    }
    for what, look in looks.items():
        for name in ("LEAST", "LITTLE"):
            monkeypatch.setattr(machine_checks, f"{name}_{what}", 0.0)
        assert look().state == "passes"
        monkeypatch.setattr(machine_checks, f"LITTLE_{what}", 1e9)
        assert look().state == "warning"
        monkeypatch.setattr(machine_checks, f"LEAST_{what}", 1e9)
        assert look().state == "fails"


def test_a_device_that_is_not_there_is_told() -> None:
    for device in ("cuda:99", "gpu", *["cuda"] * (not torch.cuda.is_available())):
        found = machine_checks.check_device(device)
        assert (found.state, found.text) == ("fails", f"site.yaml, device: this machine has no {device}.")
        assert "auto, cpu" in found.advice
    assert machine_checks.check_device("cpu").state == machine_checks.check_device("auto").state == "passes"


# Between the site and the coordinator ---------------------------------------------------------------------------------


def test_a_name_that_nobody_knows_is_told(kit: Kit) -> None:
    move(kit, "nowhere.invalid", 18997)
    found = connection_checks.check_name(kit)
    assert found.state == "fails"
    assert "The name nowhere.invalid is not known here" in found.text
    for look in (connection_checks.check_port, connection_checks.check_tls):
        assert "can't be reached" in look(kit).text
    assert connection_checks.check_own_name(kit).state == "warning"


def test_a_closed_port_is_told(kit: Kit) -> None:
    assert connection_checks.check_name(kit).state == "passes"
    found = connection_checks.check_port(kit)
    assert (found.state, found.text) == ("fails", "Nothing listens at localhost:18997.")
    assert "can't be reached" in connection_checks.check_tls(kit).text


def test_a_port_that_says_nothing_is_told_in_time(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_checks, "ANSWER", 0.3)
    with listening(lambda connection: time.sleep(1)) as port:
        move(kit, "localhost", port)
        assert connection_checks.check_port(kit).state == "passes"
        assert f"What listens at localhost:{port} says nothing within 0.3 s." in connection_checks.check_tls(kit).text


def test_another_program_at_the_port_is_told(kit: Kit) -> None:
    with listening(lambda connection: connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")) as port:
        move(kit, "localhost", port)
        assert f"What listens at localhost:{port} is no coordinator" in connection_checks.check_tls(kit).text


def test_certificates_that_each_end_accepts_pass(kit: Kit, authority: Authority) -> None:
    authority.give(kit.folder)
    with listening(coordinator(authority.sign("localhost"), authority.root)) as port:
        move(kit, "localhost", port)
        found = connection_checks.check_tls(kit)
    assert (found.state, found.text[:24]) == ("passes", "Both ends accept each ot")


@pytest.mark.parametrize(
    ("name", "end", "state", "words"),
    [
        ("elsewhere", 100, "fails", "certificate is not accepted: Hostname mismatch"),
        ("localhost", -1, "fails", "certificate is not accepted: certificate has expired"),
        ("localhost", 20, "warning", "The coordinator's certificate expires on"),
    ],
)
def test_a_coordinator_that_is_not_as_it_should_be_is_told(
    kit: Kit, authority: Authority, name: str, end: int, state: str, words: str
) -> None:
    authority.give(kit.folder)
    with listening(coordinator(authority.sign(name, -9, end), authority.root)) as port:
        move(kit, "localhost", port)
        found = connection_checks.check_tls(kit)
    assert found.state == state
    assert words in found.text


def test_ends_of_different_consortia_are_told(kit: Kit, authority: Authority, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = Authority(tmp_path / "other")
    with listening(coordinator(authority.sign("localhost"), authority.root)) as port:
        move(kit, "localhost", port)
        found = connection_checks.check_tls(kit)
        assert "The coordinator's certificate is not accepted" in found.text
        other.give(kit.folder)
        shutil.copy(authority.root, kit.folder / "startup" / "rootCA.pem")  # whom the site trusts, but is not of
        found = connection_checks.check_tls(kit)
    assert (found.state, found.text) == ("fails", "The coordinator does not accept this kit's certificate.")


def test_a_coordinator_looks_at_its_own_name_and_port(made: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(made["coordinator"], tmp_path / "kit")
    kit = Kit.read(tmp_path / "kit", "coordinator")
    assert connection_checks.check_own_name(kit).state == "passes"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        move(kit, "192.0.2.1", taken.getsockname()[1])
        found = connection_checks.check_own_port(kit)
    assert (found.state, found.text[:24]) == ("fails", "Another program has port")
    assert connection_checks.check_own_port(kit).state == "passes"
    found = connection_checks.check_own_name(kit)
    assert (found.state, found.text) == ("warning", "192.0.2.1 is 192.0.2.1, which is not this machine.")
    assert {found.state for _, found in check_coordinator(kit.folder)} == {"passes", "warning"}


# Data -----------------------------------------------------------------------------------------------------------------


def opened(kit: Kit, study: Path) -> dict[str, Finding]:
    """What is found in the data of a study."""
    file, checked = SiteFile.read(kit.folder / "local" / SITE_FILE), CheckedStudy.read(study, named=True)
    data = data_checks.StudyData(kit, file, checked)
    return {
        "study": looked(lambda: data_checks.check_study(checked, file.policy)),
        "approval": looked(lambda: data_checks.check_approval(kit, checked, file.policy)),
        "cases": looked(lambda: data.check(lambda done, total: None)), "patients": looked(data.check_patients),
    }  # fmt: skip


def test_a_place_that_is_not_there_is_told(kit: Kit) -> None:
    write_site_file(kit.folder, data={"cases.csv": "nothing.csv"})
    lines = dict(check_site(kit.folder))
    assert lines["site.yaml"].state == "fails"
    assert "data.cases.csv: there is nothing at" in lines["site.yaml"].text
    assert "data.cases.csv" not in lines


def test_a_place_that_may_not_be_read_is_told(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for name in ("cases.csv", "folder/image.nii"):
        (tmp_path / name).touch(mode=0o000)
    if os.access(tmp_path / "cases.csv", os.R_OK):
        pytest.skip("root may read everything")
    for place in ("cases.csv", "folder"):
        found = looked(lambda place=place: data_checks.check_place(tmp_path / place))  # type: ignore[misc]
        assert found.state == "fails"
        assert found.text.startswith(f"Permission denied: {tmp_path / place}")


def test_places_that_can_be_read_pass(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "table.csv").write_text("a\n")
    states = [data_checks.check_place(place).state for place in (tmp_path, tmp_path / "table.csv", tmp_path / "empty")]
    assert states == ["passes", "passes", "warning"]


def test_data_of_a_study_are_counted_and_nothing_is_written(kit: Kit, tmp_path: Path) -> None:
    table = tmp_path / "export" / "cases.csv"
    lines = table.read_text().splitlines()
    lines += ["Aachen,MRN-A9998,,1,1,1", "Aachen,,kind 1,1,1,1"]
    table.write_text("\n".join(lines) + "\n")
    before = sorted(kit.folder.rglob("*"))
    found = opened(kit, write_study(tmp_path))
    assert {one.state for one in found.values()} == {"passes"}
    assert found["cases"].text.startswith("26 cases found, 24 used, 2 rejected: ")
    assert "diagnosis" in found["cases"].text
    assert found["patients"].text == "24 patients can be used; the policy asks for 24."
    assert sorted(kit.folder.rglob("*")) == before


def test_too_few_patients_are_told(kit: Kit, tmp_path: Path) -> None:
    write_site_file(kit.folder, policy={"patients": 25})
    found = opened(kit, write_study(tmp_path))["patients"]
    assert (found.state, found.text) == ("fails", "24 patients can be used, and the policy asks for 25.")


def test_what_the_policy_does_not_allow_is_told(kit: Kit, tmp_path: Path) -> None:
    write_site_file(kit.folder, policy={"methods": ["single"], "rounds": 2, "researchers": ["maria@hospital.org"]})
    found = opened(kit, write_study(tmp_path))["study"]
    assert (found.state, found.text) == (
        "fails", "The policy does not allow it: the method fedavg is not allowed; 3 rounds are more than 2.",
    )  # fmt: skip


def test_whether_a_study_is_approved_is_told(kit: Kit, tmp_path: Path) -> None:
    write_site_file(kit.folder, policy={"approval": "person"})
    study = write_study(tmp_path)
    mark = study_hash(study.read_text())
    assert "was not handed in yet" in opened(kit, study)["approval"].text
    for folder, state in (("waiting", "warning"), ("approved", "passes")):
        (kit.folder / folder).mkdir()
        shutil.copy(study, kit.folder / folder / f"{mark}.yaml")
        found = opened(kit, study)["approval"]
        assert found.state == state
        assert mark[:12] in found.text


def test_a_study_whose_data_can_not_be_opened_is_told(kit: Kit, tmp_path: Path) -> None:
    found = opened(kit, write_study(tmp_path, data={"features": ["x0", "height"]}))
    assert found["cases"].state == "fails"
    assert "'height'" in found["cases"].text
    assert found["patients"].state == "warning"
    (tmp_path / "secret.csv").write_text((tmp_path / "export" / "cases.csv").read_text())
    found = opened(kit, write_study(tmp_path, data={"table": "../secret.csv"}))
    assert "names a place outside the folder" in found["cases"].text


def test_what_only_other_sites_can_have_is_no_failure(kit: Kit, tmp_path: Path) -> None:
    table = tmp_path / "export" / "cases.csv"
    table.write_text(table.read_text().replace("kind 1", "kind 0"))
    found = opened(kit, write_study(tmp_path))["cases"]
    assert found.state == "warning"
    assert "has 1 value, which can't be classes" in found.text


def test_values_that_too_few_cases_have_are_a_failure(kit: Kit, tmp_path: Path) -> None:
    table = tmp_path / "export" / "cases.csv"
    table.write_text(table.read_text() + "Aachen,MRN-1,kind 2,1,1,1\n")
    found = opened(kit, write_study(tmp_path))["cases"]
    assert found.state == "fails"
    assert "too few cases" in found.text


# The command ----------------------------------------------------------------------------------------------------------


def test_lines_are_printed_and_a_failure_is_the_exit_status(kit: Kit, tmp_path: Path) -> None:
    words = ["site", "check", "--kit", str(kit.folder), "--study", str(write_study(tmp_path))]
    done = CliRunner().invoke(app, [*words, "--json"])
    found = json.loads(done.stdout)
    assert (done.exit_code, found["passes"]) == (1, False)
    assert [line["name"] for line in found["lines"] if line["state"] == "fails"] == ["port", "TLS"]
    assert {"cases", "patients", "data.cases.csv"} <= {line["name"] for line in found["lines"]}
    lines = CliRunner().invoke(app, words).stdout.splitlines()
    assert "fails   port: Nothing listens at localhost:18997. Ask the coordinator to start it." in lines
    page = (Path(__file__).resolve().parents[2] / "docs" / "federation.md").read_text(encoding="utf-8")
    for line in found["lines"]:
        assert f"`{'data.NAME' if line['name'] == 'data.cases.csv' else line['name']}`" in page


def test_without_flare_a_line_says_so(made: dict[str, Path]) -> None:
    words = [sys.executable, "-c", CODE, "coordinator", "check", "--kit", str(made["coordinator"])]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    (line,) = [line for line in done.stdout.splitlines() if " versions: " in line]
    assert line == (
        "fails   versions: Studies across hospitals need the package nvflare. pip install 'polyclinic[federation]'"
    )
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
