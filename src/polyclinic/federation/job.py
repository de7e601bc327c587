"""A study as a job: its file, and the names of the two ends that run it. No code is in it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from polyclinic.federation.kits import CONTROLLER, COORDINATOR_END, EXECUTOR, SITE_END
from polyclinic.study.reading import without_entry

#: In the coordinator's kit: copies of files that studies name, such as a public set.
COPIES = "data"
#: Name of the study file in a job.
STUDY_FILE = "study.yaml"
#: Names in the folder of a job that is over: how the study ended, its results, and what would be told of it then.
OUTCOME, RESULTS, LAST = "outcome.json", "results", "last.json"
#: Name of the list of the sites that a study is for, in the coordinator's part of its job.
SITES_FILE = "sites.json"
#: Topic of the command by which a researcher asks where a study is.
STATUS = "polyclinic_status"
#: Topic of the command by which a researcher asks a study to stop after this round, so that it goes on with all sites.
PAUSE = "polyclinic_pause"
#: How much of a hash names a job, or a folder.
MARK = 16
#: Seconds that the processes of a study wait for each other to start; FLARE would give a minute.
_START = 300.0
#: Seconds after which a site asks what FLARE wants of it: twice before a study begins, and once at its end.
_ASK = 1.0
#: Names of the components.
_COORDINATOR, _SITE = "polyclinic_coordinator", "polyclinic_site"


def sent_text(text: str) -> str:
    """A study file as it is handed in: without ``tracking``, which is the researcher's alone.

    So it may change while sites need not approve the study again, and no address of a tracker travels.
    """
    return without_entry(text, "tracking")


def study_hash(text: str) -> str:
    """What tells a study from others: SHA-256 of its file."""
    return hashlib.sha256(text.encode()).hexdigest()


def run_hash(text: str, sites: Sequence[str]) -> str:
    """What tells a study with its sites from others: SHA-256 of its file and the names of their kits."""
    return study_hash("\n".join([text, *sorted(sites)]))


def write_job(folder: Path, text: str, sites: Sequence[str]) -> None:
    """Write the job of a study.

    FLARE is told that a single site suffices: whether those that are there do is for the study to say.

    Args:
        folder: where; it is made.
        text: the study file.
        sites: names of the kits of those who are asked to take part.
    """
    controller = {"server_obj_id": _COORDINATOR, "sync_task_timeout": _START}
    of_coordinator = {
        "server": {"task_request_interval": _ASK},
        "workflows": [{"id": "controller", "path": CONTROLLER, "args": controller}],
        "components": [{"id": _COORDINATOR, "path": COORDINATOR_END, "args": {}}],
    }
    executor = {"id": "executor", "path": EXECUTOR, "args": {"client_obj_id": _SITE}}
    of_site = {
        "max_runner_sync_timeout": _START,
        "executors": [{"tasks": ["*"], "executor": executor}],
        "components": [{"id": _SITE, "path": SITE_END, "args": {}}],
    }
    _write_app(folder / "coordinator", "config_fed_server.json", of_coordinator, text)
    _write_app(folder / "site", "config_fed_client.json", of_site, text)
    about = {
        "name": run_hash(text, sites)[:MARK], "resource_spec": {}, "min_clients": 1, "mandatory_clients": [],
        "deploy_map": {"coordinator": ["server"], "site": list(sites)},
    }  # fmt: skip
    (folder / "meta.json").write_text(json.dumps(about), encoding="utf-8")
    (folder / "coordinator" / "config" / SITES_FILE).write_text(json.dumps(sorted(sites)), encoding="utf-8")


def _write_app(folder: Path, name: str, content: dict[str, Any], text: str) -> None:
    config = folder / "config"
    config.mkdir(parents=True)
    (config / name).write_text(json.dumps({"format_version": 2, **content}), encoding="utf-8")
    (config / STUDY_FILE).write_text(text, encoding="utf-8")
