"""Whether a Ray cluster is closed to others: who may run a task on it may run anything, with the files of its user.

Runs in the driver's process, where nothing of Ray was imported before the environment was settled.
"""

from __future__ import annotations

import json
import os
import secrets
import stat
import subprocess
import sys
from importlib import import_module
from pathlib import Path

from polyclinic.errors import StudyError

#: What a process that starts or uses a cluster has in its environment.
MODE, TOKEN, TOKEN_PATH = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
#: Idle processes that nobody asked for take 80 MB each, and data about the cluster are sent to nobody.
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0", "RAY_enable_worker_prestart": "0", "RAY_prestart_worker_first_driver": "0",
}  # fmt: skip
#: Ray listens on all addresses of a machine but where it is told that there is no cluster: this is the switch.
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
_MAKE = "`(umask 077; ray get-auth-token --generate >/dev/null)`"
_START = "`RAY_AUTH_MODE=token ray start --head --disable-usage-stats`"

#: Asks the cluster something without a token, in a process of its own: Ray reads the mode once.
_PROBE = """
import sys
from ray._raylet import GcsClient
from ray.exceptions import AuthenticationError
try:
    GcsClient(address=sys.argv[1]).internal_kv_get(b"CLUSTER_METADATA", b"cluster")
except AuthenticationError:
    print("closed")
else:
    print("open")
"""


def own_token(folder: Path) -> None:
    """Settle the environment for a cluster of this process alone: a new token, which nobody else can read."""
    path = folder / "token"
    path.touch(mode=0o600, exist_ok=False)
    path.write_text(secrets.token_hex(32), encoding="ascii")
    os.environ.pop(TOKEN, None)
    os.environ |= {MODE: "token", TOKEN_PATH: str(path), **QUIET, **LOOPBACK}


def settle_token() -> None:
    """Settle the environment for a cluster that is there.

    Raises:
        StudyError: P405, there is no token, or others can read it.
    """
    os.environ |= {MODE: "token", **QUIET}
    if os.environ.get(TOKEN):
        return
    given = os.environ.get(TOKEN_PATH)
    path = Path(given) if given else Path.home() / ".ray" / "auth_token"
    try:
        found = path.stat()
    except OSError:
        raise StudyError(
            "P405", f"There is no token for the cluster: {path} is missing.",
            f"Make one with {_MAKE}, copy it to all nodes, and start the head with {_START}; see docs/cluster.md.",
        ) from None  # fmt: skip
    if found.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise StudyError(
            "P405", f"Others on this machine can read the cluster's token: {path} has the mode "
            f"{stat.S_IMODE(found.st_mode):04o}. Whoever has it can run code with your files.",
            f"`chmod 600 {path}`, and make a new token if others may have read it.",
        )  # fmt: skip


def check_closed(address: str) -> None:
    """Whether a cluster asks for a token.

    Args:
        address: HOST:PORT of its head.

    Raises:
        StudyError: P405, it does not, or can't be reached.
    """
    environment = {name: value for name, value in os.environ.items() if name not in (TOKEN, TOKEN_PATH)}
    asked = subprocess.run(  # noqa: S603 - our own code
        [sys.executable, "-c", _PROBE, address], env={**environment, MODE: "disabled"}, capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    answer = asked.stdout.strip()
    if answer == "open":
        raise open_to_others(address)
    if answer != "closed":
        raise unreachable(address, (asked.stderr.strip().splitlines() or ["no answer"])[-1])


def open_to_others(address: str) -> StudyError:
    """The cluster needs no token."""
    return StudyError(
        "P405", f"The cluster at {address} asks nobody for a token: whoever reaches it can run code on all nodes.",
        f"Stop it (`ray stop`), make a token with {_MAKE}, and start its head with {_START}; see docs/cluster.md.",
    )  # fmt: skip


def check_quiet(address: str) -> None:
    """Whether a cluster sends nothing about itself to the makers of Ray; needs Ray, and the token.

    Raises:
        StudyError: P405, it does, or the token is not the cluster's.
    """
    from ray.exceptions import AuthenticationError, RpcError

    try:
        found = import_module("ray._raylet").GcsClient(address=address).internal_kv_get(b"CLUSTER_METADATA", b"cluster")
    except AuthenticationError:
        raise StudyError(
            "P405", f"The token here is not that of the cluster at {address}.",
            "Copy the token file of its head to this machine (mode 0600), or give RAY_AUTH_TOKEN_PATH.",
        ) from None  # fmt: skip
    except RpcError as error:
        raise unreachable(address, str(error).splitlines()[0]) from None
    # Ray writes down when the session began only where it reports.
    if "session_start_timestamp_ms" in json.loads(found or b"{}"):
        raise StudyError(
            "P405", f"The cluster at {address} sends usage statistics to the makers of Ray, as `ray start` does.",
            f"Stop it (`ray stop`), and start its head with {_START}.",
        )  # fmt: skip


def unreachable(address: str, cause: str) -> StudyError:
    """There is no cluster, or it does not answer."""
    return StudyError(
        "P405", f"No Ray cluster answers at {address} ({cause}).",
        f"Start one with {_START} and `ray start --address HOST:6379` on the other nodes; or use `address: local`.",
    )  # fmt: skip
