"""Trainings as tasks of a Ray cluster: the same bytes, whoever dies; closed to others; nobody left behind."""

import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import pytest
import yaml

from helpers import write_table_study
from polyclinic.errors import PolyclinicError, StudyError
from polyclinic.running.progress import Checkpoint
from polyclinic.study.checked import CheckedStudy
from polyclinic.study.cluster import access, crew, driver, task
from polyclinic.study.cluster.crew import Cluster
from polyclinic.study.display import Display
from polyclinic.study.entries import EngineOptions, RayOptions
from polyclinic.study.folder import Folder
from polyclinic.study.side_by_side.jobs_entry import check_ray
from polyclinic.study.study import Study

linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
with_ray = pytest.mark.skipif(find_spec("ray") is None, reason="needs ray")


@pytest.fixture(autouse=True)
def without_report(monkeypatch):
    monkeypatch.setattr("polyclinic.study.runner.write_report", lambda out: out / "report.html")


def entries(folder, methods=("scaffold", "mix"), **more):
    found = write_table_study(folder, {"Aachen": 24, "Bonn": 20, "Celle": 22})
    found["data"]["scaling"] = "federated"
    found["methods"] = list(methods)
    return found | more


def on(address, **more):
    return {"engine": {"mode": "sequential", "threads": 1, "jobs": 2, "ray": {"address": address, **more}}}


def contents(out):
    """Bytes of all that a study leaves, but for what tells times, what was asked of the engine, and notes."""
    aside = ("provenance.json", "study.yaml", "site.log", "rounds.csv", "notes.json")
    files = [path for path in sorted(out.rglob("*")) if path.is_file() and path.name not in aside]
    rounds = pd.read_csv(out / "rounds.csv").drop(columns="seconds")
    said = {str(path.relative_to(out)): path.read_bytes() for path in files}
    return said | {"rounds.csv": rounds.to_csv(index=False).encode()}


def notes(out):
    return [one for one in json.loads((out / "notes.json").read_text()) if one["number"] not in ("N109", "N113")]


def command(number):
    try:
        return Path(f"/proc/{number}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    except OSError:
        return ""


def alive(number):
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def all_end(numbers, seconds=60):
    until = time.monotonic() + seconds
    while any(map(alive, numbers)) and time.monotonic() < until:
        time.sleep(0.1)
    return not any(map(alive, numbers))


class Watching(Display):
    """Does something to the processes of a cluster when trainings run.

    Args:
        act: is given the numbers of processes that train, once two trainings are done.
    """

    def __init__(self, monkeypatch, act=lambda training: None):
        self.said, self.act, self.processes, self.cluster = [], act, set(), None
        monkeypatch.setattr(crew, "_PAUSE", 0.05)
        began = Cluster.__init__

        def noted(own, *args):
            began(own, *args)
            self.cluster = own

        monkeypatch.setattr(Cluster, "__init__", noted)

    def together(self, done, running):
        found = driver.descendants(self.cluster._driver.pid)
        self.processes |= {self.cluster._driver.pid, *found}
        training = [number for number in found if command(number).startswith("ray::train")]
        if done >= 1 and any(running.values()) and self.act is not None and training:
            self.act(training)
            self.act = None

    def note(self, text):
        self.said.append(str(text))


def listening(numbers):
    """Addresses on which processes wait for others, from /proc: hexadecimal."""
    nodes = set()
    for number in numbers:
        try:
            nodes |= {str(file.readlink()) for file in Path(f"/proc/{number}/fd").iterdir()}
        except OSError:
            continue
    found = []
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in nodes:
                found.append(fields[1].split(":")[0])
    return found


@with_ray
@linux
def test_a_cluster_of_this_machine_is_its_own_and_gives_the_same_bytes_though_a_worker_is_killed(tmp_path, monkeypatch):
    content = entries(tmp_path)
    content["training"]["rounds"] = 20
    Study.of(content, tmp_path).run(tmp_path / "one", jobs=1)
    seen = {}

    def look_and_kill(training):
        everyone = driver.descendants(display.cluster._driver.pid)
        said = Path(f"/proc/{training[0]}/environ").read_bytes().decode().split("\0")
        seen.update(value.split("=", 1) for value in said if "=" in value)
        token = Path(seen["RAY_AUTH_TOKEN_PATH"])
        seen["token mode"], seen["folder"] = stat.S_IMODE(token.stat().st_mode), token.parent
        seen["folder mode"], seen["addresses"] = stat.S_IMODE(token.parent.stat().st_mode), listening(everyone)
        for number in training:  # one of them may just have done what it was to do
            os.kill(number, signal.SIGKILL)

    display = Watching(monkeypatch, look_and_kill)
    results = Study.of(content | on("local"), tmp_path).run(tmp_path / "many", display=display)
    assert contents(tmp_path / "many") == contents(tmp_path / "one")
    assert notes(tmp_path / "many") == notes(tmp_path / "one")
    assert results.provenance["worker_deaths"] >= 1
    assert results.provenance["plan"]["jobs"] == 2
    assert any("its process ended); another one goes on from its checkpoint." in text for text in display.said)
    assert (seen["token mode"], seen["folder mode"]) == (0o600, 0o700)
    assert (seen["RAY_AUTH_MODE"], seen["RAY_USAGE_STATS_ENABLED"]) == ("token", "0")
    assert len(seen["addresses"]) > 3
    assert {one[-8:] for one in seen["addresses"]} == {"0100007F"}, "127.0.0.1 alone"
    assert len(display.processes) > 5
    assert all_end(display.processes, 5), "nobody is left behind"
    assert not seen["folder"].exists()


# What is around a cluster ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ray", "engine", "code", "words"),
    [
        ({"address": "somewhere"}, {}, "P102", "address"),
        ({"memory": "6"}, {}, "P102", "memory"),
        ({"memory": "6 gigabytes"}, {}, "P102", "memory"),
        ({"cpus": 0}, {}, "P102", "cpus"),
        ({"gpus": -1}, {}, "P102", "gpus"),
        ({"nodes": 3}, {}, "P103", "nodes"),
        ({}, {"mode": "processes"}, "P104", "side by side"),
        ({"gpus": 1}, {"device": "cpu"}, "P104", "exclude each other"),
        ({"gpus": 0.5}, {"device": "cuda:1"}, "P104", "Ray chooses the GPU"),
        ({}, {"device": "cuda"}, "P104", "ray: {gpus: 1}"),
    ],
)  # fmt: skip
def test_an_entry_that_does_not_fit_is_refused_before_anything_is_started(tmp_path, ray, engine, code, words):
    content = entries(tmp_path) | {"engine": {**engine, "ray": ray}}
    with pytest.raises(StudyError, match=f"^{code} ") as caught:
        Study.of(content, tmp_path)
    assert words in str(caught.value)


def test_memory_is_read_in_units_of_ten():
    assert [RayOptions(memory=text).memory_bytes for text in ("6GB", "1.5 GB", "300MB", "2TB")] == [
        6 * 10**9, 15 * 10**8, 3 * 10**8, 2 * 10**12,
    ]  # fmt: skip
    assert RayOptions().memory_bytes == 0


def test_without_ray_a_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setattr("polyclinic.study.side_by_side.jobs_entry.find_spec", lambda name: None)
    with pytest.raises(StudyError, match=r"P503 .*pip install 'polyclinic\[cluster\]'"):
        check_ray(EngineOptions(ray=RayOptions()))


def test_a_cluster_is_for_files_of_one_institution(tmp_path):
    from polyclinic.engine import LocalEngine
    from polyclinic.study.runner import run_study

    study = Study.of(entries(tmp_path) | on("local"), tmp_path)
    with pytest.raises(StudyError, match="P104 A cluster is inside one institution"):
        run_study(study, tmp_path / "out", engine=LocalEngine([]))
    table = pd.read_csv(tmp_path / "cases.csv")
    content = entries(tmp_path) | on("local")
    content["data"] = {**content["data"], "table": table}
    with pytest.raises(StudyError, match="P104 Frames, networks and losses"):
        Study.of(content).run(tmp_path / "out")


@pytest.fixture
def environment(monkeypatch, tmp_path):
    """Of a process that speaks to Ray, put back at the end."""
    for name in (access.MODE, access.TOKEN, access.TOKEN_PATH, *access.QUIET, *access.LOOPBACK):
        monkeypatch.setenv(name, "x")
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    return monkeypatch


def test_a_token_that_is_missing_or_can_be_read_by_others_is_refused(environment, tmp_path):
    with pytest.raises(StudyError, match=r"P405 There is no token .*auth_token is missing.*--generate"):
        access.settle_token()
    token = tmp_path / ".ray" / "auth_token"
    token.parent.mkdir()
    token.write_text("secret")
    for mode in (0o644, 0o640, 0o602):
        token.chmod(mode)
        with pytest.raises(StudyError, match=f"P405 Others .*mode {mode:04o}.*chmod 600") as caught:
            access.settle_token()
        assert "secret" not in str(caught.value)
    token.chmod(0o600)
    access.settle_token()
    environment.setenv(access.TOKEN_PATH, str(tmp_path / "elsewhere"))
    with pytest.raises(StudyError, match="elsewhere is missing"):
        access.settle_token()
    environment.setenv(access.TOKEN, "secret")
    access.settle_token()
    assert (os.environ[access.MODE], os.environ["RAY_USAGE_STATS_ENABLED"]) == ("token", "0")


def test_a_token_of_a_cluster_of_this_machine_is_new_each_time_and_the_only_one(environment, tmp_path):
    environment.setenv(access.TOKEN, "of another cluster")
    environment.setenv(access.MODE, "disabled")
    found = set()
    for name in "ab":
        (tmp_path / name).mkdir()
        access.own_token(tmp_path / name)
        path = Path(os.environ[access.TOKEN_PATH])
        assert (path.parent, stat.S_IMODE(path.stat().st_mode)) == (tmp_path / name, 0o600)
        found.add(path.read_text())
        assert access.TOKEN not in os.environ
        assert os.environ[access.MODE] == "token"
    assert {len(one) for one in found} == {64}
    assert len(found) == 2


@linux
def test_whatever_a_process_has_started_ends_with_it(tmp_path):
    """Children of a child that has died are found, too: here one ignores that it is told to end."""
    script = """
import subprocess, sys, time
from pathlib import Path
from polyclinic.study.cluster import driver
driver._adopt_orphans()
inner = "import signal, time; signal.signal(15, signal.SIG_IGN); print('there', flush=True); time.sleep(600)"
outer = (
    "import subprocess, sys; "
    f"p = subprocess.Popen([sys.executable, '-c', {inner!r}], stdout=subprocess.PIPE, start_new_session=True); "
    "p.stdout.readline(); print(p.pid, flush=True)"
)
found = subprocess.run([sys.executable, "-c", outer], stdout=subprocess.PIPE, text=True).stdout
print(found, driver.descendants(__import__("os").getpid()), flush=True)
driver.end_descendants()
print(driver.descendants(__import__("os").getpid()), flush=True)
"""
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    number, then, after = said.stdout.replace("\n[", " [").split(" [")[0], *said.stdout.split("[")[1:]
    assert number.strip() in then
    assert after.strip() == "]"
    assert not alive(int(number))


def test_a_node_has_room_for_as_many_as_what_it_has_least_of():
    needs = {"num_cpus": 2, "num_gpus": 0.5, "memory": 6_000_000_000}
    assert driver._room({"CPU": 16, "GPU": 2, "memory": 64e9}, needs) == 4
    assert driver._room({"CPU": 16, "GPU": 2, "memory": 12e9}, needs) == 2
    assert driver._room({"CPU": 3, "GPU": 2, "memory": 12e9}, needs) == 1
    assert driver._room({"CPU": 16, "memory": 64e9}, needs) == 0
    assert driver._room({"CPU": 16}, {"num_cpus": 1, "num_gpus": 0, "memory": 0}) == 16


def test_a_node_that_was_taken_for_lost_writes_nothing_more(tmp_path):
    """It wakes when another goes on with its training, whose rows it would cut off."""
    folder = Folder(tmp_path, CheckedStudy.of(entries(tmp_path), tmp_path))
    folder.jobs.mkdir()
    task.attempt_file(tmp_path, "a").write_text("1")
    folder.allowed = task._fence(tmp_path, 1)
    folder.allowed("a")
    task.attempt_file(tmp_path, "a").write_text("2")
    before = sorted(folder.path.rglob("*"))
    with pytest.raises(task.Superseded):
        Checkpoint(folder.jobs / "a.part", lambda: folder.allowed("a")).write(None, {}, [])
    folder.job_name = lambda job: "a"
    for store in (folder.store, folder.store_trial):
        with pytest.raises(task.Superseded):
            store(None, None)
    assert sorted(folder.path.rglob("*")) == before


def test_rounds_are_counted_by_the_last_line_that_is_whole(tmp_path):
    path = tmp_path / "rounds.jsonl"
    assert crew._rounds_done(path) == 0
    rows = [json.dumps({"round": number, "site": "A" * 100}) + "\n" for number in range(90)]
    path.write_text("".join(rows))
    assert crew._rounds_done(path) == 90
    path.write_text("".join(rows) + '{"round": 9')
    assert crew._rounds_done(path) == 90


#: Stands for the process that speaks to Ray: answers what a test says.
FAKE = """
import json, sys
for line in sys.stdin:
    asked = json.loads(line)
    for one in ANSWERS:
        if one["to"] in asked:
            answer = dict(one["answer"])
            if "number" in asked:
                answer["number"] = asked["number"]
            print(json.dumps(answer), flush=True)
            break
    else:
        sys.exit("the head of the cluster is gone")
"""
ROOM = {"to": "address", "answer": {"room": [2, 3], "names": ["n1 (10.0.0.1)", "n2 (10.0.0.2)"]}}


def node(**other):
    return {**task.about(), "node": "n2 (10.0.0.2)", "sees": True, **other}


def faked(monkeypatch, tmp_path, *answers, nodes=None):
    """Run a study with a cluster that answers so; what the study ends by."""
    looked = {"to": "look", "answer": {"looked": [node()] if nodes is None else nodes}}
    script = f"ANSWERS = {[*answers, ROOM, looked]!r}\n{FAKE}".replace("nan", "None")
    monkeypatch.setattr(crew, "DRIVER", [sys.executable, "-c", script])
    with pytest.raises((PolyclinicError, RuntimeError)) as caught:
        Study.of(entries(tmp_path) | on("auto"), tmp_path).run(tmp_path / "out")
    return str(caught.value)


def test_a_training_that_is_lost_again_and_again_ends_the_study(monkeypatch, tmp_path):
    said = faked(monkeypatch, tmp_path, {"to": "number", "answer": {"died": "its node ran out of memory"}})
    assert said.startswith("P403 The training scaffold (seed 0, fold ")
    assert "was lost 3 times (last: its node ran out of memory). Finished rounds are saved" in said
    assert "memory: ..." in said
    attempts = {path.read_text() for path in (tmp_path / "out" / "jobs").glob("*.attempt")}
    assert "3" in attempts
    assert json.loads((tmp_path / "out" / "provenance.json").read_text())["worker_deaths"] >= 3


def test_what_a_node_says_of_a_failure_is_what_the_study_ends_by(monkeypatch, tmp_path):
    told = {"kind": "TrainingError", "code": "P303", "message": "Site Bonn ran out of memory.", "hint": "Lower it."}
    assert faked(monkeypatch, tmp_path, {"to": "number", "answer": {"error": told}}) == (
        "P303 Site Bonn ran out of memory. Lower it."
    )


def test_a_mistake_in_the_program_keeps_its_traceback(monkeypatch, tmp_path):
    said = faked(monkeypatch, tmp_path, {"to": "number", "answer": {"crash": "on n1:\nTraceback: KeyError"}})
    assert "in a task of the cluster:\non n1:\nTraceback: KeyError" in said


def test_a_cluster_that_is_gone_is_said_so(monkeypatch, tmp_path):
    said = faked(monkeypatch, tmp_path)
    assert said.startswith("P405 The connection to the cluster has ended (the head of the cluster is gone).")
    assert "--resume" in said


def test_a_cluster_without_room_is_refused(monkeypatch, tmp_path):
    none = {"to": "address", "answer": {"room": [0, 0], "names": ["n1", "n2"]}}
    said = faked(monkeypatch, tmp_path, none)
    assert said.startswith("P405 No node of the cluster has room for one training (1 CPU): n1, n2.")


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"sees": False}, "does not see the results folder"),
        ({"versions": {}}, "has python None, and the coordinator 3."),
        ({"plugins": {"x": "other 1.0"}}, "has other plug-ins (other 1.0) than the coordinator (none)"),
        ({"problem": "No module named 'polyclinic'"}, "can't run Polyclinic: No module named 'polyclinic'."),
    ],
)
def test_a_node_that_can_t_take_part_is_named(monkeypatch, tmp_path, other, words):
    said = faked(monkeypatch, tmp_path, nodes=[node(), node(node="n7 (10.0.0.7)", **other)])
    assert said.startswith("P405 The node n7 (10.0.0.7) ")
    assert words in said


def test_another_version_on_a_node_is_refused():
    here = task.about()
    other = {**here, "sees": True, "versions": {**here["versions"], "polyclinic": "0.0.9"}}
    with pytest.raises(StudyError, match=r"has polyclinic 0\.0\.9, and the coordinator "):
        crew._check_node(other, here, "/results")


def test_nodes_with_other_data_say_so(tmp_path):
    """A node opens the data itself, and what it finds must be what the coordinator found."""
    content = entries(tmp_path)
    out = tmp_path / "out"
    (out / "jobs").mkdir(parents=True)
    (out / "study.yaml").write_text(yaml.safe_dump(CheckedStudy.of(content, tmp_path).declaration.filled()))
    told = {"folder": str(tmp_path), "fingerprint": "another"}
    (out / "jobs" / task.BRIEFING).write_text(json.dumps(told))
    asked = {"out": str(out), "digest": task.digest(out), "number": 0, "name": "x", "attempt": 1}
    said = json.loads(task.train(json.dumps(asked)))["error"]
    assert said["code"] == "P405"
    assert f"reads other data in {tmp_path}" in said["message"]
    (tmp_path / "cases.csv").unlink()
    said = json.loads(task.train(json.dumps(asked)))["error"]
    assert "can't open the data of the study: " in said["message"]
    assert said["message"].startswith("The node ")


def test_notes_tell_of_processors_of_several_kinds(monkeypatch, tmp_path):
    found = Cluster.__new__(Cluster)
    found.notes, found._told = [], {"out": "/results"}
    nodes = [node(sees=True), node(sees=True, machine="aarch64, DEFAULT")]
    monkeypatch.setattr(Cluster, "_say", lambda self, told: None)
    monkeypatch.setattr(Cluster, "_hear", lambda self: {"looked": nodes})
    found._look(Display())
    assert [note.number for note in found.notes] == ["N113"]
    assert "1 with aarch64, DEFAULT" in str(found.notes[0])


# The page -------------------------------------------------------------------------------------------------------------

PAGE = (Path(__file__).parents[2] / "docs" / "cluster.md").read_text(encoding="utf-8")


def blocks(kind):
    return re.findall(rf"^```{kind}\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)


def test_the_scripts_of_the_page_can_be_read_by_bash():
    scripts = blocks("sh") + blocks("bash")
    assert len(scripts) >= 7
    for script in scripts:
        subprocess.run(["bash", "-n"], input=script, text=True, check=True, capture_output=True)


def test_the_entries_of_the_page_are_those_of_the_program():
    found = [
        content["engine"] for text in blocks("yaml") for content in yaml.safe_load_all(text) if "engine" in content
    ]
    assert [EngineOptions(**content).ray.address for content in found] == ["auto", "local"]
    rows = re.findall(r"^\| `(\w+)` \| (none|`[^`]*`) \|", PAGE, flags=re.MULTILINE)
    defaults = {name: "none" if field.default is None else f"`{field.default}`"
                for name, field in RayOptions.model_fields.items()}  # fmt: skip
    assert dict(rows) == defaults


def test_the_cluster_of_kubernetes_asks_for_a_token_and_lets_only_its_own_in():
    (cluster, policy) = [one for text in blocks("yaml") for one in yaml.safe_load_all(text) if "kind" in one]
    groups = [cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"]]
    for group in groups:
        pod = group["template"]["spec"]
        told = {one["name"]: one.get("value") for one in pod["containers"][0]["env"]}
        assert (told["RAY_AUTH_MODE"], told["RAY_USAGE_STATS_ENABLED"]) == ("token", "0")
        assert "RAY_AUTH_TOKEN" in told
        assert told["RAY_AUTH_TOKEN"] is None, "it comes from a secret"
        assert pod["volumes"][0]["persistentVolumeClaim"]
        labels = group["template"]["metadata"]["labels"]
        assert labels == policy["spec"]["podSelector"]["matchLabels"]
    pinned = re.search(r"^ray==(.*)$", (Path(__file__).parents[2] / "constraints.txt").read_text(), flags=re.MULTILINE)
    assert cluster["spec"]["rayVersion"] == pinned[1]


@with_ray
def test_options_of_ray_on_the_page_are_there():
    asked = [Path(sys.executable).with_name("ray"), "start", "--help"]
    known = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
    text = "\n".join(blocks("sh") + blocks("bash")).replace("\\\n", " ")
    lines = [line for line in text.splitlines() if "ray start" in line or line.startswith("own=")]
    options = {option for line in lines for option in re.findall(r"--[a-z-]+", line)} - {"--nodes", "--ntasks"}
    assert {"--head", "--disable-usage-stats", "--temp-dir"} <= options
    assert not [option for option in options if option not in known]
    for line in lines:
        if "--head" in line or "--address" in line:
            assert "--disable-usage-stats" in line
