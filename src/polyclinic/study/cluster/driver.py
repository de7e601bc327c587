"""A process between a study and a Ray cluster: it gives trainings to nodes, and ends with all that it started.

Run as ``python -m polyclinic.study.cluster.driver`` by `polyclinic.study.cluster.crew`; both write lines of JSON. So
Ray's settings, signals and threads are none of the study's process, and whatever happens to that one, this one ends
the processes of a cluster that it started.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from polyclinic.errors import PolyclinicError, error_told
from polyclinic.study.cluster import access, task

#: Room for results of tasks, which are a line each; in bytes.
STORE = 80 * 2**20
#: Seconds in which a cluster of this process ends, once the study has; then its processes are killed.
PATIENCE = 15.0
#: Seconds after which it is said that no node has room for what is to be done.
WAITING = 60.0
#: Seconds between two looks at what is done, and at which nodes are alive.
PAUSE, LOOK = 0.1, 2.0


def main() -> None:
    """Answer until the study closes the pipe, or dies."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # who stops a job on a cluster tells all; this ends with the study
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    _adopt_orphans()
    asked = SimpleQueue[dict[str, Any] | None]()
    threading.Thread(target=_read, args=[asked], daemon=True).start()

    def say(told: Mapping[str, Any]) -> None:
        with contextlib.suppress(OSError):  # nobody listens any more: then ``asked`` has an end, too
            answers.write(json.dumps(told) + "\n")
            answers.flush()

    folder = Path(tempfile.mkdtemp(prefix="pc-", dir=None if len(tempfile.gettempdir()) < 30 else "/tmp"))  # noqa: S108
    try:
        first = asked.get()
        if first is not None:
            _serve(first, asked, say, folder)
    except PolyclinicError as error:
        say({"refused": error_told(error)})
    finally:
        _shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def _read(asked: SimpleQueue[dict[str, Any] | None]) -> None:
    """Whatever else this process does: when the study has ended, it does, too."""
    for line in sys.stdin:
        asked.put(json.loads(line))
    asked.put(None)
    time.sleep(PATIENCE)
    end_descendants()
    os._exit(1)


def _serve(first: Mapping[str, Any], asked: SimpleQueue[Any], say: Any, folder: Path) -> None:
    _connect(first, folder)
    import ray

    options = {"num_cpus": first["cpus"], "num_gpus": first["gpus"], "memory": first["memory"]}
    nodes = [node for node in ray.nodes() if node["Alive"]]
    say({"room": [_room(node["Resources"], options) for node in nodes], "names": [_name(node) for node in nodes]})
    _Giving(options, say).until_end(asked)


def _connect(first: Mapping[str, Any], folder: Path) -> None:
    """Connect to a cluster, or start one on this machine.

    Raises:
        StudyError: P405, there is none, or it is open to others.
    """
    how: dict[str, Any] = {"log_to_driver": False, "logging_level": "error", "namespace": "polyclinic"}
    if first["address"] == "local":
        access.own_token(folder)
        import ray

        inner = str(folder / "ray")  # which Ray lets everybody write into, so that it needs a folder around it
        ray.init(
            num_cpus=first["most_cpus"], include_dashboard=False, object_store_memory=STORE, _temp_dir=inner,
            _node_ip_address="127.0.0.1", **how,
        )  # fmt: skip
        return
    access.settle_token()
    import ray
    from ray._private.services import canonicalize_bootstrap_address_or_die

    try:
        address = canonicalize_bootstrap_address_or_die(first["address"])
    except (ConnectionError, ValueError) as error:
        raise access.unreachable(first["address"], str(error).splitlines()[0]) from None
    access.check_closed(address)
    access.check_quiet(address)
    try:
        ray.init(address=address, **how)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise access.unreachable(address, str(error).splitlines()[0]) from None


class _Giving:
    """Gives tasks to the cluster, and says what became of them.

    Args:
        options: what each training needs of a node.
        say: tells the study.
    """

    def __init__(self, options: dict[str, Any], say: Any) -> None:
        import ray

        self._say, self._options = say, options
        given = {key: value for key, value in options.items() if value}
        # What happens to a lost training is decided by the study: Ray itself would repeat one that runs out of memory
        # for ever.
        self._train = ray.remote(**given, max_retries=0)(task.train)
        self._look = ray.remote(num_cpus=0, max_retries=0)(task.look)
        self._given: dict[Any, Mapping[str, Any]] = {}
        self._looked = self._done = time.monotonic()

    def until_end(self, asked: SimpleQueue[Any]) -> None:
        """Do what is asked until nothing more is."""
        import ray

        while True:
            try:
                while (told := asked.get(timeout=PAUSE if not self._given else 0.001)) is not None:
                    self._do(told)
                return
            except Empty:
                pass
            if self._given:
                done, _ = ray.wait(list(self._given), timeout=PAUSE)
                for ref in done:
                    self._done = time.monotonic()
                    self._tell(self._given.pop(ref)["number"], ref)
            if time.monotonic() - self._looked > LOOK:
                self._looked = time.monotonic()
                self._watch([node for node in ray.nodes() if node["Alive"]])

    def _do(self, told: Mapping[str, Any]) -> None:
        if "look" in told:
            self._say({"looked": self._look_everywhere(told["look"])})
        else:
            self._given[self._train.remote(json.dumps(told))] = told

    def _look_everywhere(self, told: Mapping[str, Any]) -> list[dict[str, Any]]:
        """What each node says of itself; one that can't answer says why."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        alive = [node for node in ray.nodes() if node["Alive"]]
        places = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in alive]
        asked = [self._look.options(scheduling_strategy=place).remote(json.dumps(told)) for place in places]
        found = []
        for name, ref in zip(map(_name, alive), asked, strict=True):
            try:
                found.append({**json.loads(ray.get(ref, timeout=120)), "node": name})
            except ray.exceptions.RayError as error:
                found.append({"node": name, "problem": _last_line(error)})
        return found

    def _tell(self, number: int, ref: Any) -> None:
        import ray

        try:
            self._say({"number": number, **json.loads(ray.get(ref))})
        except ray.exceptions.RayTaskError as error:
            self._say({"number": number, "crash": str(error)})
        except ray.exceptions.OutOfMemoryError:
            self._say({"number": number, "died": "its node ran out of memory, and Ray ended it"})
        except ray.exceptions.RayError as error:
            self._say({"number": number, "died": _cause(error)})

    def _watch(self, alive: Sequence[Mapping[str, Any]]) -> None:
        """Say which trainings were on a node that is lost, and where none that is alive is large enough.

        Ray itself says that a process is lost when its connection breaks. Of a node that is frozen or cut off none does
        for many minutes, though Ray has long taken it for dead.
        """
        there = {node["NodeID"] for node in alive}
        for ref, told in list(self._given.items()):
            where = task.where(Path(told["out"]), told["name"], told["attempt"])
            if where and where not in there:
                del self._given[ref]
                self._say({"number": told["number"], "died": "its node was lost"})
        if self._given and time.monotonic() - self._done > WAITING:
            self._done = time.monotonic()
            if not any(_room(node["Resources"], self._options) for node in alive):
                self._say({"waiting": len(self._given)})


def _room(resources: Mapping[str, float], options: Mapping[str, Any]) -> int:
    """How many trainings a node has room for."""
    names = {"num_cpus": "CPU", "num_gpus": "GPU", "memory": "memory"}
    return min(int(resources.get(names[key], 0) / value + 1e-9) for key, value in options.items() if value)


def _name(node: Mapping[str, Any]) -> str:
    return f"{node['NodeManagerHostname']} ({node['NodeName']})"


def _cause(error: Exception) -> str:
    """How a worker was lost, in words."""
    kinds = {
        "WorkerCrashedError": "its process ended", "NodeDiedError": "its node was lost",
        "LocalRayletDiedError": "its node was lost", "TaskCancelledError": "it was cancelled",
        "OutOfMemoryError": "its node ran out of memory",
    }  # fmt: skip
    return next((kinds[kind.__name__] for kind in type(error).__mro__ if kind.__name__ in kinds), _last_line(error))


def _last_line(error: Exception) -> str:
    return ([line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__])[-1][:300]


# Processes that are left --------------------------------------------------------------------------------------------


def _adopt_orphans() -> None:
    """Children of children whose parent dies become this process's, so that they can be found and ended. Linux only:
    elsewhere Ray ends them itself, where it can."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER


def _shutdown() -> None:
    """End the connection, and the cluster if it is this process's own."""
    if "ray" in sys.modules:
        import ray

        with contextlib.suppress(Exception):  # whatever it says: the processes end now
            ray.shutdown()
    end_descendants()


def end_descendants() -> None:
    """Kill all processes that this one started, and those that they did."""
    for _ in range(20):
        found = descendants(os.getpid())
        if not found:
            return
        for number in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(0.05)


def descendants(ancestor: int) -> list[int]:
    """Numbers of all living processes that come from one."""
    parents = dict[int, int]()
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state, parent = (path / "stat").read_text().rpartition(")")[2].split()[:2]
            if state != "Z":
                parents[int(path.name)] = int(parent)
    found, counted = {ancestor}, 0
    while len(found) > counted:
        counted = len(found)
        found |= {number for number, parent in parents.items() if parent in found}
    return sorted(found - {ancestor})


if __name__ == "__main__":
    main()
