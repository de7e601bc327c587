"""Clusters of two nodes on this machine: nodes that are lost or frozen, clusters that are open to others, ends."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from test_cluster import Watching, alive, all_end, command, contents, entries, notes, on

from helpers import write_image_study
from polyclinic.errors import PolyclinicError
from polyclinic.study.cluster import access, driver
from polyclinic.study.study import Study

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc"),
    pytest.mark.skipif(shutil.which("ray", path=Path(sys.executable).parent) is None, reason="needs ray"),
]

#: A node is lost after three seconds.
HURRY = {f"RAY_health_check_{name}": "1000" for name in ("initial_delay_ms", "period_ms", "timeout_ms")}
HURRY["RAY_health_check_failure_threshold"] = "3"


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    monkeypatch.setattr("polyclinic.study.runner.write_report", lambda out: out / "report.html")
    token = tmp_path / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    for name in (access.TOKEN, access.MODE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(access.TOKEN_PATH, str(token))
    return monkeypatch


class Node:
    """A node of a cluster on this machine."""

    def __init__(self, folder, address, *, head=False, cpus=1, mode="token", statistics=False):
        about = [f"--port={address.rpartition(':')[2]}"] if head else [f"--address={address}"]
        about += ["--head", "--include-dashboard=false"] if head else []
        about += ["--disable-usage-stats"] if head and not statistics else []
        self.folder = Path(folder)
        self.process = subprocess.Popen(
            [Path(sys.executable).with_name("ray"), "start", *about, "--block", f"--num-cpus={cpus}",
             f"--temp-dir={folder}", "--object-store-memory=80000000"],
            env={**os.environ, **HURRY, **access.QUIET, "RAY_USAGE_STATS_ENABLED": "01"[statistics],
                 "RAY_AUTH_MODE": mode},
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip

    @property
    def processes(self):
        return [self.process.pid, *driver.descendants(self.process.pid)]

    def send(self, number):
        found = self.processes
        for one in found:
            try:
                os.kill(one, number)
            except ProcessLookupError:
                continue
        return found

    def end(self):
        for _ in range(5):
            self.send(signal.SIGKILL)
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


@contextmanager
def cluster(*cpus, **head):
    """A head, and other nodes, with so many processors each; address and nodes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    nodes = []
    try:
        for number, count in enumerate(cpus):
            folder = f"/tmp/pc-test-{secrets.token_hex(4)}"  # noqa: S108 - paths of sockets must be short
            more = {"head": True, **head} if number == 0 else {}
            nodes.append(Node(folder, address, cpus=count, **more))
            until = time.monotonic() + 60
            while not any("raylet" in command(one).split(" ")[0] for one in nodes[-1].processes):
                assert time.monotonic() < until, "the node does not start"
                time.sleep(0.2)
            time.sleep(2)
        yield address, nodes
    finally:
        for node in nodes:
            node.end()


def compare(tmp_path, monkeypatch, content, address, act=None):
    Study.of(content, tmp_path).run(tmp_path / "one", jobs=1)
    display = Watching(monkeypatch, lambda training: None)
    display.act = act
    display.together = lambda done, running: act is not None and act(done, running)
    results = Study.of(content | on(address), tmp_path).run(tmp_path / "many", display=display)
    assert contents(tmp_path / "many") == contents(tmp_path / "one")
    assert notes(tmp_path / "many") == notes(tmp_path / "one")
    return results, display


@pytest.mark.parametrize("way", ["killed", "frozen"])
def test_a_node_that_is_lost_changes_no_byte(tmp_path, environment, way):
    content = entries(tmp_path, ["scaffold", "fedavg", "ditto"])
    content["training"]["rounds"] = 40
    with cluster(1, 1) as (address, nodes):
        lost = []

        def lose(done, running):
            if not lost and done >= 1 and any(command(n).startswith("ray::train") for n in nodes[1].processes):
                lost.extend(nodes[1].send(signal.SIGKILL if way == "killed" else signal.SIGSTOP))

        results, display = compare(tmp_path, environment, content, address, lose)
        assert lost
        assert "Cluster: 2 nodes." in display.said
        assert results.provenance["worker_deaths"] == 1
        assert any("its node was lost" in text for text in display.said), display.said
        before = contents(tmp_path / "many")
        nodes[1].send(signal.SIGCONT)
        time.sleep(10)
        assert finished(tmp_path / "many") == before, "whoever wakes changes nothing"


def finished(out):
    """What is there, but for the checkpoint that a process may have been about to write when it was stopped."""
    return {
        name: text
        for name, text in contents(out).items()
        if not name.startswith("jobs/") and not (name.startswith("sites/") and name.endswith(".safetensors"))
    }


def test_images_give_the_same_bytes(tmp_path, environment):
    content = write_image_study(tmp_path, {"Aachen": 10, "Bonn": 8, "Celle": 9})
    with cluster(1, 1) as (address, _):
        compare(tmp_path, environment, content, address)


def refused(tmp_path, address):
    with pytest.raises(PolyclinicError) as caught:
        Study.of(entries(tmp_path) | on(address), tmp_path).run(tmp_path / "out")
    assert caught.value.code == "P405"
    return str(caught.value)


def test_a_cluster_that_is_open_to_others_is_refused(tmp_path):
    with cluster(1, mode="disabled") as (address, _):
        assert f"{address[9:]} asks nobody for a token: whoever reaches it can run code" in refused(tmp_path, address)


def test_a_cluster_that_tells_of_itself_is_refused(tmp_path):
    with cluster(1, statistics=True) as (address, _):
        assert "sends usage statistics to the makers of Ray" in refused(tmp_path, address)


def test_another_token_and_an_address_where_nobody_answers_are_refused(tmp_path, environment):
    with cluster(1) as (address, _):
        other = tmp_path / "other"
        other.touch(mode=0o600)
        other.write_text("0" * 64)
        environment.setenv(access.TOKEN_PATH, str(other))
        said = refused(tmp_path, address)
        assert "The token here is not that of the cluster at " in said
        assert f"{address[9:]}. Copy the token file of its head" in said
    assert "No Ray cluster answers at " in refused(tmp_path, address)


def run(tmp_path, content, out, *more):
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(content))
    asked = [sys.executable, "-m", "polyclinic.cli", "run", str(tmp_path / "study.yaml"), "--out", str(out), *more]
    return subprocess.Popen(asked, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)


def training_of(process):
    return [one for one in driver.descendants(process.pid) if command(one).startswith("ray::train")]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_however_a_study_ends_its_cluster_does_and_it_goes_on(tmp_path, number):
    content = entries(tmp_path, ["scaffold", "fedavg"])
    content["training"]["rounds"] = 200
    Study.of(content, tmp_path).run(tmp_path / "one", jobs=1)
    process = run(tmp_path, content | on("local"), tmp_path / "many")
    rounds = tmp_path / "many" / "jobs"
    while process.poll() is None and not list(rounds.glob("*.part/rounds.jsonl")):
        time.sleep(0.05)
    everyone = driver.descendants(process.pid)
    paths = [value for one in everyone for value in environment_of(one) if value.startswith("RAY_AUTH_TOKEN_PATH=")]
    folders = [value for value in paths if str(tmp_path) not in value]
    assert training_of(process)
    assert folders
    process.send_signal(number)
    _, said = process.communicate(timeout=120)
    assert all_end(everyone, 60), [command(one) for one in everyone if alive(one)]
    assert not Path(folders[0].split("=")[1]).parent.exists()
    if number == signal.SIGINT:
        assert process.returncode == 130
        assert "Stopped. Finished rounds are saved" in said
    process = run(tmp_path, content | on("local"), tmp_path / "many", "--resume", "--jobs", "1")
    assert (process.communicate(timeout=300), process.returncode)[1] == 0
    kept = {name: text for name, text in contents(tmp_path / "many").items() if not name.endswith(".html")}
    assert kept == contents(tmp_path / "one")


def environment_of(number):
    try:
        return Path(f"/proc/{number}/environ").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []


def test_a_study_that_is_stopped_leaves_a_cluster_of_others_as_it_was(tmp_path):
    content = entries(tmp_path, ["scaffold", "fedavg"])
    content["training"]["rounds"] = 500
    with cluster(1, 1) as (address, nodes):
        process = run(tmp_path, content | on(address), tmp_path / "many")
        jobs = tmp_path / "many" / "jobs"
        while process.poll() is None and not list(jobs.glob("*.part/rounds.jsonl")):
            time.sleep(0.05)
        training = [one for node in nodes for one in node.processes if command(one).startswith("ray::train")]
        assert training
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=120)
        assert all_end(training, 60)
        assert all(node.process.poll() is None for node in nodes)
