"""What a study between processes costs, with real certificates, all on this machine.

Each benchmark starts the parties of a consortium, runs a study of a network of a given size on small tables, and takes
its numbers from outside: from the parties' audit logs, the results, a proxy that counts bytes, and ``/proc``. Times
need a machine that does nothing else:

    python benchmarks/federation.py [NAME ...]

``small`` and ``large``: seconds of a round beyond the training in it, and of a study beyond its rounds. ``bytes`` and
``smallbytes``: what goes over the wire. ``model``, ``pair``, ``sites`` and ``rounds``: the memory of the processes with
a network of 1.5 GB at one site, with one of 0.6 GB at two, with 50 sites, and over 500 rounds; these take minutes and
many gigabytes, and are run by their names only. A number behind a name, as in ``sites=10``, replaces its size.
"""

from __future__ import annotations

import json
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
import yaml

from polyclinic.federation.audit_log import AUDIT_LOG
from polyclinic.federation.kit import Kit
from polyclinic.federation.processes import parties
from polyclinic.federation.rehearse import all_parties
from polyclinic.federation.watching.status import Status

FEATURES, CASES = 100, 16
#: A word in the command of a process -> what it is.
PROCESSES = {
    "processes.coordinator": "coordinator", "runner_process": "coordinator's study", "client_train": "site",
    "worker_process": "site's study",
}  # fmt: skip
#: Seconds between two looks at the memory of processes.
LOOK = 0.2
#: Rounds at the beginning that are not counted: they warm up.
WARM = 2


# --- a study between processes


@dataclass
class Run:
    """A study that was run.

    Attributes:
        logs: party -> lines of its audit log.
        rounds: the table of rounds.
        handed_in, fetched: when the study was handed in, and when its results were here.
    """

    logs: dict[str, list[dict[str, Any]]]
    rounds: pd.DataFrame
    handed_in: float
    fetched: float

    def times(self, party: str, event: str, function: str | None = None) -> list[float]:
        """When something happened at a party."""
        found = [line for line in self.logs[party] if line["event"] == event and line.get("function") == function]
        return [datetime.fromisoformat(line["time"]).timestamp() for line in found]

    def ends(self) -> list[float]:
        """When the last site had trained, for each round."""
        sites = [party for party in self.logs if party != "coordinator"]
        return [max(one) for one in zip(*(self.times(site, "answered", "train") for site in sites), strict=True)]

    def messages(self) -> int:
        """Bytes of all messages and answers."""
        lines = [line for log in self.logs.values() for line in log if "asked" in line]
        return sum(line[way]["bytes"] for line in lines for way in ("asked", "left"))


class Memory:
    """The memory of the parties' processes, in MB, as it is now and at its highest.

    Args:
        kits: folder of the parties' kits.
    """

    def __init__(self, kits: Path) -> None:
        self.kits = str(kits)
        self.highest: dict[str, dict[int, float]] = defaultdict(dict)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while not self._over.wait(LOOK):
            self.now("VmHWM")

    def now(self, entry: str) -> dict[str, list[float]]:
        """Kind of process -> an entry of ``/proc/PID/status`` of each."""
        found = defaultdict(list)
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                command = (folder / "cmdline").read_text(encoding="utf-8", errors="replace")
                kind = next((kind for word, kind in PROCESSES.items() if f".{word}\0" in command), None)
                if kind is None or self.kits not in command:
                    continue
                lines = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
                value = int(lines[entry].split()[0]) / 1024
            except (OSError, KeyError):  # it has ended
                continue
            found[kind].append(value)
            if entry == "VmHWM":
                self.highest[kind][int(folder.name)] = value
        return found

    def close(self) -> None:
        """Look no more."""
        self._over.set()
        self._thread.join()


def run(
    hidden: list[int], rounds: int, sites: int, follow: Callable[[Status], None] = lambda now: None,
    begin: Callable[[Path], None] = lambda kits: None,
) -> Run:  # fmt: skip
    """Run a study of one method between processes.

    Args:
        hidden: widths of the network.
        rounds: of the training.
        sites: how many there are.
        follow: is told where the study is.
        begin: called with the folder of the kits, before any party is started.
    """
    with tempfile.TemporaryDirectory(prefix="polyclinic-") as place:
        folder = Path(place)
        files = {}
        for number in range(1, sites + 1):
            party = f"site-{number:02d}"
            own = folder / party
            own.mkdir()
            patients(party, number).to_csv(own / "cases.csv", index=False)
            files[party] = {"name": party, "device": "cpu", "data": {"cases.csv": str(own / "cases.csv")},
                            "policy": {"patients": 1, "floor": 1}}  # fmt: skip
        study, kits = folder / "study.yaml", folder / "kits"
        study.write_text(yaml.safe_dump(declared(hidden, rounds)), encoding="utf-8")
        begin(kits)
        with all_parties(kits, files) as researcher:
            handed_in = time.time()
            researcher.run(study, folder / "out", list(files), follow)
            fetched = time.time()
        texts = {party: (kits / party / AUDIT_LOG).read_text(encoding="utf-8") for party in ["coordinator", *files]}
        logs = {party: [json.loads(line) for line in text.splitlines()] for party, text in texts.items()}
        return Run(logs, pd.read_csv(folder / "out" / "rounds.csv"), handed_in, fetched)


def patients(site: str, seed: int) -> pd.DataFrame:
    """A table of people who never lived."""
    table = pd.DataFrame(np.random.default_rng(seed).normal(size=(CASES, FEATURES)).round(3)).add_prefix("x")
    table.insert(0, "site", site)
    table.insert(1, "patient", [f"p{number}" for number in range(CASES)])
    table.insert(2, "label", ["no", "yes"] * (CASES // 2))
    return table


def declared(hidden: list[int], rounds: int) -> dict[str, Any]:
    """A study whose rounds are a step at each site, and nothing else."""
    return {
        "data": {"table": "cases.csv", "site": "site", "subject": "patient", "label": "label", "features": "x*"},
        "model": {"mlp": {"hidden": hidden}}, "methods": ["fedavg"],
        "training": {"rounds": rounds, "batch_size": CASES, "optimizer": {"sgd": {"lr": 0.01}}},
        "evaluation": {"holdout": 0.25, "validation": 0, "best_round": "last", "bootstrap": 0, "predictions": "sites",
                       "disclosure_floor": 1, "metrics": ["acc"]},
        "engine": {"threads": 1},
    }  # fmt: skip


def size(hidden: list[int]) -> float:
    """MB of a network."""
    return sum((before + 1) * after for before, after in pairwise([FEATURES, *hidden, 2])) * 4 / 1e6


def show(name: str, found: str, reached: bool, limit: str, detail: str) -> None:
    """One line of the results."""
    print(f"{name}: {found} (to reach: {limit}, {'reached' if reached else 'NOT reached'}); {detail}", flush=True)


# --- seconds


def overhead(hidden: list[int], rounds: int, limit: float, sites: int = 4) -> None:
    """Seconds of a round beyond the longest training in it, and of a study beyond its rounds."""
    done = run(hidden, rounds, sites)
    ends = done.ends()
    training = done.rounds.groupby("round")["seconds"].max().sort_index().tolist()
    beyond = [after - before - longest for (before, after), longest in zip(pairwise(ends), training[1:], strict=True)]
    (begun,), (ended,) = done.times("coordinator", "study begun"), done.times("coordinator", "study ended")
    middle = statistics.median(beyond[WARM:])
    spans = {
        "until the study begins": begun - done.handed_in, "until a round is done": ends[0] - begun,
        "of rounds": ends[-1] - ends[0], "until the study ends": ended - ends[-1],
        "until its results are fetched": done.fetched - ended,
    }  # fmt: skip
    detail = ", ".join(f"{seconds:.1f} s {what}" for what, seconds in spans.items())
    show(f"A round of {size(hidden):.3g} MB, {sites} sites", f"{middle:.3f} s", middle <= limit, f"{limit:g} s",
         f"it takes {statistics.median(np.diff(ends)[WARM:]):.3f} s; {detail}")  # fmt: skip


# --- bytes


class Proxy:
    """Stands between the sites and the coordinator, and counts what passes, which it can't read."""

    def __init__(self) -> None:
        self.passed: list[tuple[float, int]] = [(0.0, 0)]
        self._lock = threading.Lock()

    def until(self, moment: float) -> float:
        """How many bytes had passed."""
        return float(np.interp(moment, *zip(*self.passed, strict=True)))

    def start(self, port: int, to: int) -> None:
        """Carry each connection to one port to another."""
        listening = socket.create_server(("127.0.0.1", port), backlog=200)
        threading.Thread(target=self._accept, args=(listening, to), daemon=True).start()

    def _accept(self, listening: socket.socket, to: int) -> None:
        while True:
            own, _ = listening.accept()
            try:
                other = socket.create_connection(("127.0.0.1", to))
            except OSError:  # the coordinator does not listen yet
                own.close()
                continue
            for source, sink in ((own, other), (other, own)):
                source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(target=self._carry, args=(source, sink), daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(2**20):
                with self._lock:
                    self.passed.append((time.time(), self.passed[-1][1] + len(data)))
                sink.sendall(data)
        except OSError:
            pass
        finally:
            for end in (source, sink):
                end.close()


@contextmanager
def counted() -> Iterator[Proxy]:
    """While this lasts, coordinators listen behind a proxy at the port that their kit says."""
    proxy, start = Proxy(), parties.start

    def behind(kit: Kit) -> Any:
        if kit.role == "coordinator":
            path = kit.folder / "startup" / "fed_server.json"
            content = json.loads(path.read_text(encoding="utf-8"))
            (server,) = content["servers"]
            with socket.create_server(("127.0.0.1", 0)) as free:
                inner = free.getsockname()[1]
            proxy.start(server["admin_port"], inner)
            server["service"]["target"], server["admin_port"] = f"localhost:{inner}", inner
            path.write_text(json.dumps(content), encoding="utf-8")
        return start(kit)

    with patch.object(parties, "start", behind):
        yield proxy


def wire(hidden: list[int], rounds: int, limit: float, sites: int = 4) -> None:
    """Bytes between coordinator and sites for each byte of the models that they exchange, in a round."""
    with counted() as proxy:
        done = run(hidden, rounds, sites)
    ends = done.ends()
    models = done.rounds[["bytes_up", "bytes_down"]].to_numpy().sum() / rounds
    first, last = (proxy.until(ends[number]) for number in (WARM, -1))
    each = (last - first) / (len(ends) - 1 - WARM)
    whole = f"{proxy.until(done.fetched) / 1e6:.4g} MB in all for {done.messages() / 1e6:.4g} MB of messages"
    ratio = each / models
    show(f"Bytes of {size(hidden):.3g} MB, {sites} sites", f"{ratio:.3f} times", ratio <= limit, f"{limit:g}", whole)


# --- memory


def watched(hidden: list[int], rounds: int, sites: int) -> tuple[Run, Memory]:
    """Run a study, and look at the memory of its processes."""
    watching = list[Memory]()
    done = run(hidden, rounds, sites, begin=lambda kits: watching.append(Memory(kits)))
    watching[0].close()
    return done, watching[0]


def model(width: int, sites: int) -> None:
    """Peak memory of each process with a large network, over two rounds."""
    hidden = [width, width]
    done, memory = watched(hidden, 2, sites)
    for kind, peaks in memory.highest.items():
        text = ", ".join(
            f"{peak / 1024:.2f} GB ({peak * 1.048576 / size(hidden):.1f} models)" for peak in peaks.values()
        )
        print(f"{size(hidden) / 1000:.2f} GB, {kind}: {text}", flush=True)
    print(f"rounds ended after {[round(end - done.handed_in, 1) for end in done.ends()]} s", flush=True)


def many(sites: int = 50) -> None:
    """Memory of each process of many sites, and the time until all are there."""
    done, memory = watched([48], 3, sites)
    for kind, peaks in memory.highest.items():
        print(f"{kind}: {len(peaks)} processes, at most {max(peaks.values()):.0f} MB", flush=True)
    joined = [max(done.times(party, "study joined")) for party in done.logs if party != "coordinator"]
    print(f"{sites} sites joined after {max(joined) - done.handed_in:.0f} s, results after "
          f"{done.fetched - done.handed_in:.0f} s, rounds of {np.diff(done.ends()).round(2).tolist()} s")  # fmt: skip


def long(rounds: int = 500) -> None:
    """Memory of the processes every 50 rounds."""
    watching, before = list[Memory](), -50

    def follow(now: Status) -> None:
        nonlocal before
        if (number := now.round) >= before + 50:
            before = number
            found = {kind: [round(one, 1) for one in values] for kind, values in watching[0].now("VmRSS").items()}
            print(f"round {number}: {json.dumps(found)} MB", flush=True)

    run([48], rounds, 2, follow, lambda kits: watching.append(Memory(kits)))
    watching[0].close()


BENCHMARKS: dict[str, Callable[..., None]] = {
    "small": lambda rounds=50: overhead([48], rounds, 0.2),
    "large": lambda rounds=15: overhead([2200, 2200], rounds, 1.0),
    "bytes": lambda rounds=10: wire([2200, 2200], rounds, 1.05),
    "smallbytes": lambda rounds=200: wire([48], rounds, 1.05),
    "model": lambda width=19_300: model(width, 1),
    "pair": lambda width=12_000: model(width, 2),
    "sites": many,
    "rounds": long,
}
#: What is run without a name.
QUICK = ("small", "large", "bytes", "smallbytes")


def main(names: list[str]) -> None:
    """Each benchmark after the other."""
    for name in names or QUICK:
        name, _, number = name.partition("=")
        if name not in BENCHMARKS:
            sys.exit(f"There is no benchmark {name!r}; there are: {', '.join(BENCHMARKS)}.")
        BENCHMARKS[name](*([int(number)] if number else []))


if __name__ == "__main__":
    main(sys.argv[1:])
