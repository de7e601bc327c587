"""Start-up kits: a folder for each party with its certificate, and what it lets others do.

Files are those of FLARE's own provisioning, keys and certificates those of the consortium's authority. What FLARE
leaves open by default is closed here: no code travels with a job, only the ends of Polyclinic can be started by one,
nobody has a shell at a site, and no log of a site is sent to the coordinator.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

from polyclinic.errors import FederationError
from polyclinic.federation.consortium import Consortium
from polyclinic.federation.kit import PARTY
from polyclinic.federation.optional import require_flare
from polyclinic.federation.site_file import SITE_FILE
from polyclinic.federation.trust.authority import ORGANISATION, Authority
from polyclinic.federation.trust.certificates import ROOT, new_key, stem, to_text, write_key
from polyclinic.federation.versions import versions
from polyclinic.files import write_atomic

#: What a job may start, and nothing else.
CONTROLLER = "nvflare.collab.runtime.controller.CollabController"
EXECUTOR = "nvflare.collab.runtime.executor.CollabExecutor"
COORDINATOR_END = "polyclinic.federation.ends.coordinator.CoordinatorEnd"
SITE_END = "polyclinic.federation.ends.site.SiteEnd"
ALLOWED = [CONTROLLER, EXECUTOR, COORDINATOR_END, SITE_END]
#: Starts the process of a study at a site, instead of FLARE's own.
_LAUNCHER = "polyclinic.federation.processes.launcher.SiteLauncher"
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


def make_kits(consortium: Consortium, folder: Path) -> dict[str, Path]:
    """Make the kit of each party that has none yet; returns party -> folder of its kit.

    Beside them lies ``authority``, with the key that signs certificates: who has it can let anyone in. Where parties
    make their keys themselves, only the coordinator's kit is made here.

    Args:
        consortium: who takes part.
        folder: where kits are made; those of an earlier call stay as they are.

    Raises:
        FederationError: P601, the folder has kits of another consortium; P602, the authority is elsewhere.
    """
    require_flare()
    known = folder / "consortium.yaml"
    if known.is_file():
        _check_same(Consortium.read(known), consortium, folder)
        authority = Authority(folder / "authority", consortium)
    else:
        (folder / "authority").mkdir(parents=True, exist_ok=True, mode=0o700)
        authority = Authority.create(folder / "authority", consortium)
    # From here on the authority is found again.
    write_atomic(known, yaml.safe_dump(consortium.model_dump(), sort_keys=False))
    made = list(consortium.roles) if consortium.keys == "central" else ["coordinator"]
    with_kit = {*authority.parties(), *(name for name in made if (folder / name).exists())}
    missing = [name for name in made if name not in with_kit]
    with unsigned_kits(consortium, missing) as unsigned:
        for name in missing:
            draft = folder / f".{name}.part"
            shutil.rmtree(draft, ignore_errors=True)
            shutil.copytree(unsigned / name, draft)
            _sign(draft, name, authority)
            draft.rename(folder / name)
    return {name: folder / name for name in made if (folder / name).is_dir()}


def _check_same(before: Consortium, now: Consortium, folder: Path) -> None:
    """Whether kits of a consortium may be made where others were.

    Raises:
        FederationError: P601, it is another consortium.
    """
    if (before.consortium, before.coordinator) != (now.consortium, now.coordinator):
        raise FederationError(
            "P601", f"{folder} has the kits of {before.consortium} at {before.coordinator.host}, whose name and "
            "address can't be changed.", "Give another folder.",
        )  # fmt: skip


def _sign(folder: Path, name: str, authority: Authority) -> None:
    """Give a kit its key and certificate."""
    own, key = folder / "startup" / stem(authority.consortium.roles[name]), new_key()
    write_key(own.with_suffix(".key"), key)
    own.with_suffix(".crt").write_text(to_text(authority.sign(name, key.public_key())), encoding="utf-8")
    (folder / "startup" / ROOT).write_text(to_text(authority.certificate), encoding="utf-8")


@contextlib.contextmanager
def unsigned_kits(consortium: Consortium, names: Sequence[str]) -> Iterator[Path]:
    """A folder with kits that have neither key nor certificate, for as long as the context lasts."""
    with tempfile.TemporaryDirectory(prefix="polyclinic-") as temporary:
        made = _provision(consortium, names, Path(temporary) / "flare")
        for name in names:
            role = consortium.roles[name]
            folder = Path(temporary) / name
            (made / (consortium.coordinator.host if role == "coordinator" else name)).rename(folder)
            _close(folder, role, name, consortium)
        yield Path(temporary)


def _provision(consortium: Consortium, names: Sequence[str], folder: Path) -> Path:
    """Files of parties by FLARE, without its keys and certificates."""
    from nvflare.lighter.entity import Project
    from nvflare.lighter.impl.static_file import StaticFileBuilder
    from nvflare.lighter.impl.workspace import WorkspaceBuilder
    from nvflare.lighter.provisioner import Provisioner

    project = Project(consortium.consortium, "", props={"api_version": 3})
    host, port = consortium.coordinator.host, consortium.coordinator.port
    project.set_server(host, ORGANISATION, props={"fed_learn_port": port, "admin_port": port, "default_host": host})
    for name in names:
        if consortium.roles[name] == "site":
            project.add_client(name, ORGANISATION, props={"allow_log_streaming": False})
        elif consortium.roles[name] == "researcher":
            project.add_admin(name, ORGANISATION, props={"role": "project_admin"})
    builders = [WorkspaceBuilder(), StaticFileBuilder(config_folder="config", scheme="grpc")]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        context = Provisioner(str(folder), builders).provision(project)
    return Path(context.get("current_prod_dir"))


def _close(folder: Path, role: str, name: str, consortium: Consortium) -> None:
    """Close what a kit leaves open, and tell whose it is."""
    local = folder / "local"
    for path in [*(folder / "startup").glob("*.sh"), *folder.rglob("readme.txt"), *folder.rglob("*.ipynb")]:
        path.unlink()  # FLARE's scripts would start a party without what is checked here
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
    (folder / PARTY).write_text(party_text(consortium, name), encoding="utf-8")


def party_text(consortium: Consortium, name: str) -> str:
    """The text of a kit's ``party.json``."""
    about = {"consortium": consortium.consortium, "role": consortium.roles[name], "name": name}
    return json.dumps({**about, "sites": consortium.sites, "versions": versions()}, indent=2)
