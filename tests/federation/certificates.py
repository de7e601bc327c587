"""Certificates of any dates by any authority, and servers that present them, for tests."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


class Authority:
    """Who signs certificates.

    Args:
        folder: for its own and those that it signs.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.key = folder, ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority")])
        self.root = folder / "rootCA.pem"
        self._write(self.root, self._certificate("authority", self.key, 0, 100, True))

    def sign(self, name: str, start: int = -1, end: int = 100) -> tuple[Path, Path]:
        """A certificate that is valid between days from now on, and its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate, own = self.folder / f"{name}.crt", self.folder / f"{name}.key"
        self._write(certificate, self._certificate(name, key, start, end, False))
        own.touch(mode=0o600)
        form = serialization.PrivateFormat.TraditionalOpenSSL
        own.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))
        return certificate, own

    def give(self, kit: Path, start: int = -1, end: int = 100) -> None:
        """Put another root, certificate and key into a site's kit."""
        certificate, own = self.sign("site", start, end)
        for path, name in ((self.root, "rootCA.pem"), (certificate, "client.crt"), (own, "client.key")):
            (kit / "startup" / name).write_bytes(path.read_bytes())

    def _certificate(
        self, name: str, key: ec.EllipticCurvePrivateKey, start: int, end: int, root: bool
    ) -> x509.Certificate:
        now = datetime.now(UTC)
        about = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        made = x509.CertificateBuilder().subject_name(about).issuer_name(self.name).public_key(key.public_key())
        made = made.serial_number(x509.random_serial_number()).not_valid_before(now + timedelta(days=start, minutes=-1))
        made = made.not_valid_after(now + timedelta(days=end, minutes=1))
        made = made.add_extension(x509.BasicConstraints(ca=root, path_length=None), critical=True)
        made = made.add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        return made.sign(self.key, hashes.SHA256())

    def _write(self, path: Path, certificate: x509.Certificate) -> None:
        path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))


@contextmanager
def listening(answer: Callable[[socket.socket], None]) -> Iterator[int]:
    """A server at a port of this machine that does something with each connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    try:
                        answer(connection)
                    except OSError:
                        continue

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield int(server.getsockname()[1])
        server.shutdown(socket.SHUT_RDWR)
    thread.join(5)


def coordinator(certificate: tuple[Path, Path], accepts: Path) -> Callable[[socket.socket], None]:
    """A server with a certificate that accepts those of one authority, and greets them."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    context.load_verify_locations(accepts)
    context.verify_mode = ssl.CERT_REQUIRED
    context.set_alpn_protocols(["h2"])

    def answer(plain: socket.socket) -> None:
        plain.settimeout(5)
        with context.wrap_socket(plain, server_side=True) as safe:
            safe.recv(100)
            safe.sendall(bytes(3) + b"\x04" + bytes(5))

    return answer
