"""The coordinator's process: FLARE's server, which hangs up on parties whose certificates were revoked.

FLARE asks no list of revoked certificates. Here each connection is looked at when it begins, before a byte is read
from it, and all that are open whenever the list has changed: registrations of sites, log-ins of researchers and what
belongs to a study come over these connections, and over no others.
"""

from __future__ import annotations

import logging
import runpy
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from nvflare.apis.fl_constant import FLContextKey
from nvflare.fuel.f3.cellnet.defs import IdentityChallengeKey
from nvflare.fuel.f3.drivers import grpc_driver
from nvflare.private.defs import CellMessageHeaderKeys, ClientType
from nvflare.private.fed.app.deployer import server_deployer

from polyclinic.federation.trust.revoked import Revoked

log = logging.getLogger("polyclinic.federation.processes.coordinator")  # this module is run, and called __main__ then

#: Seconds between two looks at the list.
PERIOD = 1.0


class Connections:
    """Open connections, each with the certificate by which it was let in.

    Args:
        revoked: the list.
    """

    def __init__(self, revoked: Revoked) -> None:
        self._revoked = revoked
        self._open: dict[Any, tuple[str, int]] = {}
        self._lock = threading.Lock()

    def begin(self, context: Any) -> bool:
        """Whether a connection may begin; from then on it is one of those that may be ended."""
        party = _party(context)
        with self._lock:
            self._open[context] = party
        refused = self._revoked.has(party[1])
        if refused:
            log.warning("%s was refused: its certificate was revoked.", party[0])
        return not refused

    def end(self, context: Any) -> None:
        """A connection is over."""
        with self._lock:
            self._open.pop(context, None)

    def hang_up(self) -> set[str]:
        """End the connections of those who were revoked since; returns their names."""
        with self._lock:
            ended = {context: party for context, party in self._open.items() if self._revoked.has(party[1])}
        for context, (name, _) in ended.items():
            log.warning("%s was hung up on: its certificate was revoked.", name)
            context.cancel()
        return {name for name, _ in ended.values()}


def _party(context: Any) -> tuple[str, int]:
    """Name and serial number in the certificate of who is at the other end; TLS has checked it."""
    from cryptography.x509 import load_pem_x509_certificate
    from cryptography.x509.oid import NameOID

    certificate = load_pem_x509_certificate(context.auth_context()["x509_pem_cert"][0])
    return str(certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value), certificate.serial_number


class Servicer(grpc_driver.Servicer):  # type: ignore[misc]
    """FLARE's end of a connection, where revoked certificates end it."""

    connections: Connections

    def Stream(self, request_iterator: Any, context: Any) -> Iterator[Any]:  # noqa: N802 - FLARE's name
        """What goes over a connection."""
        try:
            if not self.connections.begin(context):
                context.abort(grpc_driver.grpc.StatusCode.UNAUTHENTICATED, "The certificate was revoked.")
            yield from super().Stream(request_iterator, context)
        finally:
            self.connections.end(context)


class Server(server_deployer.FederatedServer):  # type: ignore[misc]
    """FLARE's server, which forgets sites that were hung up on, and lets nobody be a site who is a researcher."""

    def __init__(self, *args: Any, **entries: Any) -> None:
        super().__init__(*args, **entries)
        self.client_manager.authenticated_client = partial(_registered, self.client_manager.authenticated_client)
        threading.Thread(target=self._watch, name="revoked", daemon=True).start()

    def _watch(self) -> None:
        while not self.shutdown:
            time.sleep(PERIOD)
            try:
                for name in Servicer.connections.hang_up():
                    site = self.client_manager.name_to_clients.get(name)
                    if site is not None:
                        self.logout_client(site.token)
            except Exception:
                log.exception("hanging up")


def _registered(register: Callable[..., Any], request: Any, context: Any, kind: Any) -> Any:
    """What FLARE makes of who registers as a site or as a researcher; nothing of who is none by its certificate.

    FLARE looks whether the certificate is that of the name, and not what it is for: a researcher who registers as a
    site would be sent studies and models.
    """
    name, role = request.get_header(CellMessageHeaderKeys.CLIENT_NAME), _role(request.payload)
    if (kind == ClientType.ADMIN) != bool(role):
        what = "researcher" if kind == ClientType.ADMIN else "site"
        log.warning("%s was refused: its certificate is not that of a %s.", name, what)
        context.set_prop(FLContextKey.UNAUTHENTICATED, f"The certificate is not that of a {what}.", sticky=False)
        return None
    return register(request, context, kind)


def _role(registration: Any) -> str:
    """The role in the certificate of who registers: that of researchers; sites have none."""
    from cryptography.x509 import load_pem_x509_certificates
    from cryptography.x509.oid import NameOID

    try:
        certificate = load_pem_x509_certificates(registration[IdentityChallengeKey.CERT])[0]
    except (KeyError, TypeError, ValueError, IndexError):
        return ""  # FLARE refuses it
    return "".join(str(one.value) for one in certificate.subject.get_attributes_for_oid(NameOID.UNSTRUCTURED_NAME))


def main() -> None:
    """Run FLARE's server with the arguments of its own command.

    Raises:
        PolyclinicError: P608, the list of revoked certificates was changed.
    """
    revoked = Revoked(Path(sys.argv[sys.argv.index("-m") + 1]))
    revoked.read()
    Servicer.connections = Connections(revoked)
    grpc_driver.Servicer, server_deployer.FederatedServer = Servicer, Server
    runpy.run_module("nvflare.private.fed.app.server.server_train", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
