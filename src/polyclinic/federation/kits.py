"""Start-up kits: a folder for each party with its certificate, and what it lets others do.

Made by FLARE's own provisioning. What it leaves open by default is closed here: no code travels with a job, only the
ends of Polyclinic can be started by one, nobody has a shell at a site, and no log of a site is sent to the coordinator.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from polyclinic.errors import FederationError
from polyclinic.federation.consortium import Consortium
from polyclinic.federation.optional import require_flare
from polyclinic.federation.site_file import SITE_FILE
from polyclinic.federation.versions import versions
from polyclinic.files import write_atomic

#: What a job may start, and nothing else.
CONTROLLER = "nvflare.collab.runtime.controller.CollabController"
EXECUTOR = "nvflare.collab.runtime.executor.CollabExecutor"
COORDINATOR_END = "polyclinic.federation.coordinator_end.CoordinatorEnd"
SITE_END = "polyclinic.federation.site_end.SiteEnd"
ALLOWED = [CONTROLLER, EXECUTOR, COORDINATOR_END, SITE_END]
#: Starts the process of a study at a site, instead of FLARE's own.
_LAUNCHER = "polyclinic.federation.launcher.SiteLauncher"
#: All parties are of one organisation to FLARE; who may do what is said in the kits.
ORGANISATION = "polyclinic"
#: What researchers may ask of a party, in FLARE's words; everything else they may not.
_RIGHTS = {
    "coordinator": ("submit_job", "manage_job", "download_job", "view", "app_command"),
    "site": ("submit_job", "manage_job"),
}
_RULES = (
    *_RIGHTS["coordinator"], "clone_job", "operate", "shell_commands", "byoc", "server-predeployed-flwr",
)  # fmt: skip
#: Loggers that write a line or two for each message.
_CHATTY = ("nvflare.collab.runtime.cell_dispatcher",)
#: For how many seconds FLARE sends an answer again until it is known to have arrived, and after how many. For both
#: together a thread waits after each answer; by default for 65 seconds, in which many sites answer thousands of times.
_SENT_AGAIN = {"streaming_retry_timeout": 15.0, "streaming_retry_wait": 3.0}
_SITE = """\
# What this site is called in studies, if not as in its kit.
# name: {name}
# Name of the data, as a study has it -> place on this computer.
data: {{}}
device: auto
# What studies may ask; docs/federation.md has all entries.
policy:
  patients: 10
  floor: 5
  approval: automatic
"""


@dataclass(frozen=True)
class Kit:
    """A start-up kit.

    Attributes:
        folder: where it is.
        role: ``coordinator``, ``site`` or ``researcher``.
        name: of the party.
    """

    folder: Path
    role: str
    name: str

    @classmethod
    def read(cls, folder: Path, role: str) -> Kit:
        """A kit in its folder.

        Raises:
            FederationError: P602, there is none, or it is one of another role.
        """
        kinds = {"coordinator": "fed_server.json", "site": "fed_client.json", "researcher": "fed_admin.json"}
        found = next((kind for kind, file in kinds.items() if (folder / "startup" / file).is_file()), None)
        if found is None:
            raise FederationError("P602", f"There is no start-up kit in {folder}.",
                                  "Give the folder that was made by `polyclinic federation new`.")  # fmt: skip
        if found != role:
            raise FederationError("P602", f"The kit in {folder} is that of a {found}, expected one of a {role}.",
                                  f"Give the kit of a {role}.")  # fmt: skip
        about = json.loads((folder / "party.json").read_text(encoding="utf-8"))
        return cls(folder.resolve(), role, str(about["name"]))

    @property
    def about(self) -> dict[str, Any]:
        """What ``party.json`` says: consortium, name, role, sites."""
        found: dict[str, Any] = json.loads((self.folder / "party.json").read_text(encoding="utf-8"))
        return found


def make_kits(consortium: Consortium, folder: Path) -> dict[str, Path]:
    """Make the kit of each party that has none yet; returns party -> folder of its kit.

    Beside them lies ``authority``, with the key that signs certificates: who has it can let anyone in.

    Args:
        consortium: who takes part.
        folder: where kits are made; those of an earlier call stay as they are.

    Raises:
        FederationError: P601, the folder has kits of another consortium.
    """
    require_flare()
    known = folder / "consortium.yaml"
    if known.is_file():
        before = Consortium.read(known)
        if (before.consortium, before.coordinator) != (consortium.consortium, consortium.coordinator):
            raise FederationError(
                "P601", f"{folder} has the kits of {before.consortium} at {before.coordinator.host}, whose name and "
                "address can't be changed.", "Give another folder.",
            )  # fmt: skip
    roles = {"coordinator": "coordinator"} | dict.fromkeys(consortium.sites, "site")
    roles |= dict.fromkeys(consortium.researchers, "researcher")
    missing = {name: role for name, role in roles.items() if not (folder / name).exists()}
    if missing:
        made = _provision(consortium, folder / "authority")
        for name, role in missing.items():
            source = made / (consortium.coordinator.host if role == "coordinator" else name)
            draft = folder / f".{name}.part"
            shutil.rmtree(draft, ignore_errors=True)
            shutil.copytree(source, draft)
            _close(draft, role, name, consortium)
            draft.rename(folder / name)
    write_atomic(known, yaml.safe_dump(consortium.model_dump(), sort_keys=False))
    return {name: folder / name for name in roles}


def _provision(consortium: Consortium, state: Path) -> Path:
    """Certificates and files of all parties by FLARE; those of parties that were there before are the same again."""
    from nvflare.lighter.entity import Project
    from nvflare.lighter.impl.cert import CertBuilder
    from nvflare.lighter.impl.signature import SignatureBuilder
    from nvflare.lighter.impl.static_file import StaticFileBuilder
    from nvflare.lighter.impl.workspace import WorkspaceBuilder
    from nvflare.lighter.provisioner import Provisioner

    state.mkdir(parents=True, exist_ok=True, mode=0o700)
    project = Project(consortium.consortium, "", props={"api_version": 3})
    host, port = consortium.coordinator.host, consortium.coordinator.port
    project.set_server(host, ORGANISATION, props={"fed_learn_port": port, "admin_port": port, "default_host": host})
    for name in consortium.sites:
        project.add_client(name, ORGANISATION, props={"allow_log_streaming": False})
    for name in consortium.researchers:
        project.add_admin(name, ORGANISATION, props={"role": "project_admin"})
    builders = [
        WorkspaceBuilder(), StaticFileBuilder(config_folder="config", scheme="grpc"),
        CertBuilder(root_valid_days=consortium.valid_days), SignatureBuilder(),
    ]  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        context = Provisioner(str(state), builders).provision(project)
    return Path(context.get("current_prod_dir"))


def _close(folder: Path, role: str, name: str, consortium: Consortium) -> None:
    """Close what a kit leaves open, and tell whose it is."""
    local = folder / "local"
    if role != "researcher":
        resources = json.loads((local / "resources.json.default").read_text(encoding="utf-8"))
        resources |= {"class_list_enforcement_mode": "enforce", "class_allow_list": ALLOWED,
                      "allow_log_streaming": False}  # fmt: skip
        resources["components"] = [one for one in resources["components"] if "log" not in one["id"]]
        for component in resources["components"]:
            if role == "site" and component["id"] == "process_launcher":
                component["path"] = _LAUNCHER
        (local / "resources.json").write_text(json.dumps(resources, indent=2), encoding="utf-8")
        rights = {rule: "any" if rule in _RIGHTS[role] else "none" for rule in _RULES}
        nothing = dict.fromkeys(_RULES, "none")
        permissions = {"project_admin": rights} | dict.fromkeys(("org_admin", "lead", "member"), nothing)
        content = {"format_version": "1.0", "permissions": permissions}
        (local / "authorization.json").write_text(json.dumps(content, indent=2), encoding="utf-8")
        levels = json.loads((local / "log_config.json.default").read_text(encoding="utf-8"))
        levels["loggers"] |= {name: {"level": "WARNING"} for name in _CHATTY}
        (local / "log_config.json").write_text(json.dumps(levels, indent=2), encoding="utf-8")
        (local / "comm_config.json").write_text(json.dumps(_SENT_AGAIN, indent=2), encoding="utf-8")
    if role == "site":
        (local / SITE_FILE).write_text(_SITE.format(name=name), encoding="utf-8")
    about = {"consortium": consortium.consortium, "role": role, "name": name, "sites": consortium.sites,
             "versions": versions()}  # fmt: skip
    (folder / "party.json").write_text(json.dumps(about, indent=2), encoding="utf-8")
