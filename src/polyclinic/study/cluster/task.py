"""What runs on a node of a cluster: Ray gets these functions by name, and texts; each node has the code installed."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from polyclinic.files import write_atomic

#: In ``jobs/``: what trainings are told, as `polyclinic.study.side_by_side.crew.briefing` says it.
BRIEFING = "briefing.json"
#: Packages whose versions must be those of the coordinator.
SAME = ("polyclinic", "torch", "monai", "numpy", "scipy", "pandas", "scikit-learn", "ray")

#: The study that this process has open, by its folder and the digest of what it was told.
_open: dict[tuple[str, str], Any] = {}


class Superseded(RuntimeError):  # noqa: N818 - a word says it
    """A training goes on elsewhere, since this node was taken for lost; it writes nothing more here."""


def look(told: str) -> str:
    """What a node is, and whether it sees what it has to see.

    Args:
        told: JSON with ``out``, the folder of the results, and the ``digest`` of what lies there.

    Returns:
        JSON with ``node`` (its name), ``versions``, ``machine``, ``plugins``, and ``sees``: whether it reads the same.
    """
    asked = json.loads(told)
    return json.dumps({**about(), "sees": digest(Path(asked["out"])) == asked["digest"]})


def about() -> dict[str, Any]:
    """What this machine is, as far as results depend on it."""
    import torch

    from polyclinic.study.provenance import plugins

    return {
        "node": socket.gethostname(),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in SAME}},
        "machine": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
        "plugins": plugins(),
    }  # fmt: skip


def digest(out: Path) -> str:
    """SHA-256 of what trainings are told; empty where it can't be read."""
    try:
        return hashlib.sha256((out / "jobs" / BRIEFING).read_bytes()).hexdigest()
    except OSError:
        return ""


def train(told: str) -> str:
    """Run a training, from its checkpoint if it has one, and write what it found into the results folder.

    Args:
        told: JSON with ``out``, ``digest``, ``number`` and ``name`` of the training, and ``attempt``.

    Returns:
        JSON: ``{"done": true}``, or the ``error`` or ``crash`` that it failed by.
    """
    from polyclinic.errors import PolyclinicError, error_told
    from polyclinic.origins import told as told_of

    asked = json.loads(told)
    try:
        _say_where(Path(asked["out"]), asked["name"], asked["attempt"])
        bench = _bench(Path(asked["out"]), asked["digest"])
        bench.bench.folder.allowed = _fence(Path(asked["out"]), asked["attempt"])
        bench.run(asked["number"], asked["name"], lambda done, total: None)
    except PolyclinicError as error:
        return json.dumps({"error": error_told(error)})
    except Exception as error:
        found = told_of(error)  # in code of a plug-in
        crash = f"on {socket.gethostname()}:\n" + "".join(traceback.format_exception(error))
        return json.dumps({"crash": crash} if found is None else {"error": error_told(found)})
    return json.dumps({"done": True})


def attempt_file(out: Path, name: str) -> Path:
    """Says which attempt at a training counts."""
    return out / "jobs" / f"{name}.attempt"


def where(out: Path, name: str, attempt: int) -> str:
    """Ray's name of the node on which an attempt at a training began; empty where it has not, or none can be read."""
    try:
        found: str = json.loads(_node_file(out, name).read_text(encoding="utf-8")).get(str(attempt), "")
    except (OSError, ValueError):
        return ""
    return found


def _say_where(out: Path, name: str, attempt: int) -> None:
    if "ray" in sys.modules:
        import ray

        node = ray.get_runtime_context().get_node_id()
        write_atomic(_node_file(out, name), json.dumps({str(attempt): node}), durable=False)


def _node_file(out: Path, name: str) -> Path:
    return out / "jobs" / f"{name}.node"


def _fence(out: Path, attempt: int) -> Callable[[str], None]:
    def allowed(name: str) -> None:
        if int(attempt_file(out, name).read_text(encoding="ascii")) != attempt:
            raise Superseded(name)

    return allowed


def _bench(out: Path, asked: str) -> Any:
    """The study, opened once in this process.

    Raises:
        PolyclinicError: the data can't be opened here, or are not those of the coordinator.
    """
    key = (str(out), asked)
    if key not in _open:
        _open.clear()
        _open[key] = _opened(out)
    return _open[key]


def _opened(out: Path) -> Any:
    from polyclinic.errors import PolyclinicError
    from polyclinic.study.checked import CheckedStudy
    from polyclinic.study.opening import ask_agree, ask_open, local_engine
    from polyclinic.study.reading import read_yaml
    from polyclinic.study.side_by_side.job_worker import Bench

    told = json.loads((out / "jobs" / BRIEFING).read_text(encoding="utf-8"))
    content, _ = read_yaml(out / "study.yaml")
    try:
        study = CheckedStudy.of(content, told["folder"])
        sites = local_engine(study)
        cohort = ask_agree(ask_open(study, sites), sites)
    except PolyclinicError as error:
        raise _at_node(error, "can't open the data of the study") from None
    if cohort.fingerprint != told["fingerprint"]:
        other = PolyclinicError("P405", "its cases are not those that the coordinator has.")
        raise _at_node(other, f"reads other data in {told['folder']}")
    return Bench(told, {name: site.data for name, site in sites.members.items()})


def _at_node(error: Any, what: str) -> Any:
    from polyclinic.errors import PolyclinicError

    return PolyclinicError(
        "P405", f"The node {socket.gethostname()} {what}: {error.message}",
        "All nodes must see the same files under the same paths, on a file system that they share.",
    )  # fmt: skip


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
