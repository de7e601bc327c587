"""What a doctor looks at between a site and its coordinator: name, port, TLS with both certificates, and the clock."""

from __future__ import annotations

import errno
import json
import socket
import ssl
from datetime import UTC, datetime

from polyclinic.federation.checks.checking import Finding, fails, passes, warns
from polyclinic.federation.checks.kit import kind_of_files
from polyclinic.federation.kit import Kit
from polyclinic.federation.processes.running import running
from polyclinic.federation.trust.certificates import FEW_DAYS, certificate_dates

#: Seconds within which the coordinator must answer.
ANSWER = 5.0
#: How a client of HTTP/2 begins: its preface, and settings of which none is changed.
_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5)
_FIREWALL = "Ask who runs the network to let this computer reach it."


def address(kit: Kit) -> tuple[str, int]:
    """Name and port of the coordinator, as FLARE has them."""
    file = "fed_server.json" if kit.role == "coordinator" else "fed_client.json"
    content = json.loads((kit.folder / "startup" / file).read_text(encoding="utf-8"))
    host, _, port = content["servers"][0]["service"]["target"].rpartition(":")
    return str(host), int(port)


def check_name(kit: Kit) -> Finding:
    """Whether this computer knows the coordinator's name."""
    host, port = address(kit)
    try:
        found = sorted(_addresses(host, port))
    except OSError as error:
        return fails(f"The name {host} is not known here: {error.strerror}.",
                     "Ask who runs the network to add it, or add it to /etc/hosts.")  # fmt: skip
    return passes(f"{host} is {', '.join(found)}.")


def _addresses(host: str, port: int) -> set[str]:
    return {str(one[4][0]) for one in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}


def check_port(kit: Kit) -> Finding:
    """Whether the coordinator's port can be reached."""
    host, port = address(kit)
    try:
        socket.create_connection((host, port), timeout=ANSWER).close()
    except TimeoutError:
        return fails(
            f"{host}:{port} does not answer within {ANSWER:g} s.", f"A firewall may be in the way. {_FIREWALL}"
        )
    except ConnectionRefusedError:
        return fails(f"Nothing listens at {host}:{port}.", "Ask the coordinator to start it.")
    except OSError as error:
        return fails(f"{host}:{port} can't be reached: {error.strerror or error}.", _FIREWALL)
    return passes(f"{host}:{port} can be reached.")


def check_tls(kit: Kit) -> Finding:
    """Whether each end accepts the other's certificate."""
    host, port = address(kit)
    startup, kind = kit.folder / "startup", kind_of_files(kit)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(startup / "rootCA.pem")
    context.load_cert_chain(startup / f"{kind}.crt", startup / f"{kind}.key")
    context.set_alpn_protocols(["h2"])
    try:
        with (
            socket.create_connection((host, port), timeout=ANSWER) as plain,
            context.wrap_socket(plain, server_hostname=host) as safe,
        ):
            return _greeted(safe)
    except TimeoutError:
        return fails(f"What listens at {host}:{port} says nothing within {ANSWER:g} s.",
                     "Ask the coordinator whether it is its own port.")  # fmt: skip
    except ssl.SSLCertVerificationError as error:
        return fails(f"The coordinator's certificate is not accepted: {error.verify_message}.",
                     "Ask whether the coordinator and this kit are of the same consortium; if they are, somebody may "
                     "stand in between.")  # fmt: skip
    except ssl.SSLError as error:
        if "ALERT" in (error.reason or ""):
            return _NOT_ACCEPTED
        return fails(f"What listens at {host}:{port} is no coordinator, or something in between changes what is sent: "
                     f"{(error.reason or 'no TLS').replace('_', ' ').lower()}.", _FIREWALL)  # fmt: skip
    except OSError as error:
        return fails(f"{host}:{port} can't be reached: {error.strerror or error}.", "See the lines before.")


_NOT_ACCEPTED = fails("The coordinator does not accept this kit's certificate.",
                      "Ask who runs the consortium for a kit of it that is valid.")  # fmt: skip


def _greeted(safe: ssl.SSLSocket) -> Finding:
    """What comes of the first words: only after them a server of TLS 1.3 says whether it accepts who speaks.

    Raises:
        TimeoutError: it says nothing.
    """
    try:
        safe.sendall(_HELLO)
        answer = safe.recv(9)
    except (ssl.SSLError, ConnectionError):
        answer = b""
    if not answer:
        return _NOT_ACCEPTED
    end = datetime.fromtimestamp(ssl.cert_time_to_seconds(str((safe.getpeercert() or {})["notAfter"])), UTC)
    left = (end - datetime.now(UTC)).days
    if left < FEW_DAYS:
        return warns(f"The coordinator's certificate expires on {end:%Y-%m-%d}, in {left} days.",
                     "Tell who runs the consortium.")  # fmt: skip
    return passes(f"Both ends accept each other ({safe.version()}); the coordinator's certificate is valid until "
                  f"{end:%Y-%m-%d}.")  # fmt: skip


def check_clock(kit: Kit) -> Finding:
    """Whether this computer's clock can be right; nobody tells the time over TLS, so it is compared with dates."""
    dates, now = certificate_dates(kit.folder / "startup" / f"{kind_of_files(kit)}.crt"), datetime.now(UTC)
    text = f"This computer's clock says {now:%Y-%m-%d %H:%M} UTC"
    if now < dates.start:
        return fails(f"{text}, and the kit is of {dates.start:%Y-%m-%d %H:%M}.", "Set the clock.")
    return passes(f"{text}, after the kit was made; it was not compared with the coordinator's.")


def check_own_name(kit: Kit) -> Finding:
    """Whether the coordinator's name leads to this machine."""
    host, port = address(kit)
    advice = f"Let {host} lead here, through a router, say; else no site finds the coordinator."
    try:
        found = sorted(_addresses(host, port))
    except OSError as error:
        return warns(f"The name {host} is not known here: {error.strerror}.", advice)
    if not any(_is_own(one) for one in found):
        return warns(f"{host} is {', '.join(found)}, which is not this machine.", advice)
    return passes(f"{host} is {', '.join(found)}, this machine.")


def _is_own(found: str) -> bool:
    with socket.socket(socket.AF_INET6 if ":" in found else socket.AF_INET) as one:
        try:
            one.bind((found, 0))
        except OSError:
            return False
    return True


def check_own_port(kit: Kit) -> Finding:
    """Whether the coordinator's port is free, or its own already."""
    _, port = address(kit)
    if running(kit) is not None:
        return passes(f"The coordinator runs, and has port {port}.")
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind(("", port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return fails(f"Another program has port {port}.", "End it, or make kits with another port.")
            return fails(f"Port {port} can't be opened: {error.strerror}.", "Make kits with a port above 1023.")
    return passes(f"Port {port} is free.")


def connections(kit: Kit, number: int) -> int | None:
    """How many connections a party's process has at the coordinator's port; None where that can't be seen.

    Args:
        kit: of the party.
        number: of its process.
    """
    import psutil

    _, port = address(kit)
    end = "laddr" if kit.role == "coordinator" else "raddr"
    try:
        found = psutil.Process(number).net_connections(kind="tcp")
    except psutil.Error:
        return None
    there = [one for one in found if one.status == psutil.CONN_ESTABLISHED and getattr(one, end).port == port]
    return len(there)
