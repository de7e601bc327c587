"""From when and until when a certificate is valid."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from polyclinic.errors import FederationError

#: With fewer days left it is time to renew a certificate.
FEW_DAYS = 30


@dataclass(frozen=True)
class CertificateDates:
    """Both in UTC.

    Attributes:
        start: from when the certificate is valid.
        end: until when.
    """

    start: datetime
    end: datetime

    def days_left(self, now: datetime | None = None) -> int:
        """Whole days until it ends; less than 0 where it has ended."""
        return (self.end - (now or datetime.now(UTC))).days


def certificate_dates(path: Path) -> CertificateDates:
    """The dates of a certificate (PEM).

    Raises:
        FederationError: P602, there is none.
    """
    from cryptography.x509 import load_pem_x509_certificate

    try:
        found = load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError):
        raise FederationError("P602", f"{path} is no certificate.", "Put the start-up kit there again.") from None
    return CertificateDates(found.not_valid_before_utc, found.not_valid_after_utc)
