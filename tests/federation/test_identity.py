"""Signatures that bring certificates along: whose count, under which name, and which are refused."""

from __future__ import annotations

import logging
import random
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from polyclinic.errors import FederationError, SiteError
from polyclinic.federation.consortium import Consortium
from polyclinic.federation.kit import Kit
from polyclinic.federation.kits import make_kits
from polyclinic.federation.trust.answers import renew
from polyclinic.federation.trust.authority import Authority
from polyclinic.federation.trust.certificates import new_key, read_certificate, read_key, to_text, write_key
from polyclinic.federation.trust.identity import MOST_BYTES, CertifiedSites, Identity
from polyclinic.federation.trust.revoked import REVOKED, revoke, take_revoked
from polyclinic.secure import ServerRound, SiteRound, Terms, fit_shape

pytest.importorskip("nvflare")

MARIA = "maria@hospital.org"
DATA = b"keys of this round"
#: What the sites call themselves in studies -> their kits.
NAMES = {"Aachen": "aachen", "St. Bonn": "bonn", "Celle": "celle"}


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Kits of a consortium, and of another with the same names."""
    folder = tmp_path_factory.mktemp("identity")
    entries = {"consortium": "lungs", "coordinator": {"host": "localhost"}, "sites": list(NAMES.values()),
               "researchers": [MARIA]}  # fmt: skip
    for name in ("kits", "others"):
        make_kits(Consortium.model_validate(entries), folder / name)
    return folder


@pytest.fixture
def kits(once: Path, tmp_path: Path) -> Path:
    shutil.copytree(once, tmp_path / "made")
    return tmp_path / "made" / "kits"


def identity(kits: Path, site: str) -> Identity:
    return Identity(kits / NAMES[site], site)


def give(kits: Path, party: str, certificate: Any, key: Any = None) -> Path:
    """A site's kit with another certificate, and perhaps key."""
    startup = kits / party / "startup"
    (startup / "client.crt").write_text(to_text(certificate))
    if key is not None:
        (startup / "client.key").unlink()
        write_key(startup / "client.key", key)
    return kits / party


def certificate(
    kits: Path, party: str, *, key: Any = None, days: tuple[float, float] = (-1, 30), role: str = "", ca: bool = False,
    uses: tuple[str, ...] = ("CLIENT_AUTH",), basic: bool = True, signer: Any = None,
) -> Any:  # fmt: skip
    """One that the authority might sign for a site, with something in it that is other than it should be."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    authority, now = Authority.of(kits), datetime.now(UTC)
    about = [x509.NameAttribute(NameOID.COMMON_NAME, party)] if party else []
    about += [x509.NameAttribute(NameOID.UNSTRUCTURED_NAME, role)] if role else []
    public = (key or read_key(kits / "aachen" / "startup" / "client.key")).public_key()
    made = x509.CertificateBuilder().subject_name(x509.Name(about)).issuer_name(authority.certificate.subject)
    made = made.public_key(public).serial_number(x509.random_serial_number())
    made = made.not_valid_before(now + timedelta(days=days[0])).not_valid_after(now + timedelta(days=days[1]))
    if basic:
        made = made.add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    if uses:
        found = [getattr(ExtendedKeyUsageOID, use) for use in uses]
        made = made.add_extension(x509.ExtendedKeyUsage(found), critical=False)
    return made.sign(signer or authority.key, hashes.SHA256())


# What counts ----------------------------------------------------------------------------------------------------------


def test_a_site_s_signature_counts_with_all_others_and_the_coordinator(kits: Path) -> None:
    signed = identity(kits, "Aachen").sign(DATA)
    own = (kits / "aachen" / "startup" / "client.crt").read_bytes()
    assert len(signed) < len(own) + 400, "compact: with the certificate in fewer bytes than its file has"
    for other in (identity(kits, "Aachen"), identity(kits, "Celle"), CertifiedSites(kits / "coordinator")):
        assert other.verify("Aachen", DATA, signed)
        assert other.verify("Aachen", b"other data", identity(kits, "Aachen").sign(b"other data"))


def test_a_signature_is_of_these_data_under_this_name(kits: Path) -> None:
    signed = identity(kits, "Aachen").sign(DATA)
    for site, data in (("Aachen", DATA + b"."), ("Aachen", b""), ("aachen", DATA), ("St. Bonn", DATA), ("", DATA)):
        assert not CertifiedSites(kits / "celle").verify(site, data, signed), (site, data)
    assert not CertifiedSites(kits / "celle").verify("Aache", b"n" + DATA, signed), "the parts have lengths"


def test_a_certificate_that_was_renewed_is_of_the_same_party(kits: Path) -> None:
    from polyclinic.federation.trust.answers import join

    other = identity(kits, "Celle")
    old, signed = identity(kits, "Aachen"), identity(kits, "Aachen").sign(DATA)
    assert other.verify("Aachen", DATA, signed)
    join(renew("aachen", kits).path, kits / "aachen")
    assert identity(kits, "Aachen").sign(DATA)[-100:] != signed[-100:]
    assert other.verify("Aachen", DATA, identity(kits, "Aachen").sign(DATA))
    assert other.verify("Aachen", DATA, old.sign(DATA)), "both are valid"


# What does not --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"days": (-30, -0.01)}, "the certificate of aachen is not valid now"),
        ({"days": (0.01, 30)}, "the certificate of aachen is not valid now"),
        ({"role": "project_admin"}, "the certificate of aachen is not that of a site"),
        ({"uses": ("SERVER_AUTH", "CLIENT_AUTH")}, "the certificate of aachen is not that of a site"),
        ({"uses": ()}, "the certificate of aachen is not that of a site"),
        ({"ca": True}, "the certificate of aachen is not that of a site"),
        ({"basic": False}, "the certificate of aachen is not that of a site"),
        ({"party": ""}, "the certificate of  is not that of a site"),
    ],
)  # fmt: skip
def test_a_certificate_for_something_else_or_of_another_time_is_refused(
    kits: Path, caplog: pytest.LogCaptureFixture, changes: dict[str, Any], why: str
) -> None:
    sign = Identity(give(kits, "aachen", certificate(kits, **{"party": "aachen", **changes})), "Aachen").sign
    with caplog.at_level(logging.WARNING):
        assert not CertifiedSites(kits / "celle").verify("Aachen", DATA, sign(DATA))
    assert caplog.messages == [f"A signature under the name 'Aachen' does not count: {why}."]
    good = Identity(give(kits, "aachen", certificate(kits, "aachen")), "Aachen").sign
    assert CertifiedSites(kits / "celle").verify("Aachen", DATA, good(DATA)), "or the certificate is wrong otherwise"


@pytest.mark.parametrize("party", ["coordinator", MARIA])
def test_the_coordinator_and_researchers_sign_for_no_site(
    kits: Path, party: str, caplog: pytest.LogCaptureFixture
) -> None:
    stem = "server" if party == "coordinator" else "client"
    own = read_key(kits / party / "startup" / f"{stem}.key")
    certified = read_certificate(kits / party / "startup" / f"{stem}.crt")
    signed = Identity(give(kits, "aachen", certified, own), "Aachen").sign(DATA)
    assert not identity(kits, "Celle").verify("Aachen", DATA, signed)
    assert "is not that of a site" in caplog.text


def test_a_certificate_that_signs_itself_or_of_another_consortium_is_refused(
    kits: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other, key = identity(kits, "Celle"), new_key()
    itself = certificate(kits, "aachen", key=key, signer=key)
    strange = Identity(kits.parent / "others" / "aachen", "Aachen")
    assert strange.verify("Aachen", DATA, strange.sign(DATA))
    root = Authority.of(kits)
    for sign in (
        strange.sign,
        Identity(give(kits, "aachen", itself, key), "Aachen").sign,
        Identity(give(kits, "aachen", root.certificate, root.key), "Aachen").sign,
    ):
        caplog.clear()
        assert not other.verify("Aachen", DATA, sign(DATA))
        assert "is not of this consortium" in caplog.text or "is not that of a site" in caplog.text


def test_another_s_certificate_does_not_make_a_signature_another_s(kits: Path) -> None:
    """Bonn signs with its own key, and puts Aachen's certificate beside it."""
    aachen, bonn = (read_certificate(kits / party / "startup" / "client.crt") for party in ("aachen", "bonn"))
    liar = Identity(give(kits, "bonn", aachen), "Aachen")
    assert not identity(kits, "Celle").verify("Aachen", DATA, liar.sign(DATA))
    assert identity(kits, "Celle").verify("Aachen", DATA, Identity(give(kits, "bonn", bonn), "Aachen").sign(DATA)), (
        "names are free until they are taken"
    )


def test_who_is_revoked_is_refused_where_the_list_is(kits: Path, caplog: pytest.LogCaptureFixture) -> None:
    signed, other = identity(kits, "Aachen").sign(DATA), identity(kits, "Celle")
    assert other.verify("Aachen", DATA, signed)
    take_revoked(revoke(kits, "aachen"), Kit.read(kits / "celle", "site"))
    assert not other.verify("Aachen", DATA, signed), "also while it runs"
    assert "the certificate of aachen was revoked" in caplog.text
    assert identity(kits, "St. Bonn").verify("Aachen", DATA, signed), "nobody has told Bonn"
    path = kits / "celle" / "local" / REVOKED
    path.write_text(path.read_text().replace('"name": "aachen"', '"name": "nobody"'))
    assert not other.verify("Aachen", DATA, signed), "the list before holds on"
    with pytest.raises(FederationError, match=r"P608 revoked\.json was changed"):
        identity(kits, "Celle")


def test_a_party_has_one_name_and_a_name_one_party(kits: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With a second certificate for the same key, too, and with one for another key."""
    other = identity(kits, "Celle")
    assert other.verify("Aachen", DATA, identity(kits, "Aachen").sign(DATA))
    assert not other.verify("Essen", DATA, Identity(kits / "aachen", "Essen").sign(DATA))
    assert "it is by aachen, whose name is 'Aachen'" in caplog.text
    again = new_key()
    for key in (None, again):
        second = give(kits, "aachen", certificate(kits, "aachen", key=key), key)
        assert not other.verify("Essen", DATA, Identity(second, "Essen").sign(DATA))
        assert other.verify("Aachen", DATA, Identity(second, "Aachen").sign(DATA))
    assert not other.verify("Aachen", DATA, Identity(kits / "bonn", "Aachen").sign(DATA))
    assert "it is by bonn, and the name belongs to aachen" in caplog.text
    assert other.verify("St. Bonn", DATA, identity(kits, "St. Bonn").sign(DATA)), "what was refused changes nothing"


def test_a_site_s_own_name_is_its_own_from_the_beginning(kits: Path) -> None:
    other = identity(kits, "Celle")
    assert not other.verify("Celle", DATA, Identity(kits / "bonn", "Celle").sign(DATA))
    assert not other.verify("Essen", DATA, Identity(kits / "celle", "Essen").sign(DATA))
    assert other.verify("Celle", DATA, other.sign(DATA))


@pytest.fixture(scope="module")
def signed(once: Path) -> tuple[CertifiedSites, bytes]:
    return CertifiedSites(once / "kits" / "celle"), identity(once / "kits", "Aachen").sign(DATA)


def test_blobs_of_any_length_are_refused(signed: tuple[CertifiedSites, bytes]) -> None:
    other, whole = signed
    assert other.verify("Aachen", DATA, whole)
    cuts = [*range(40), *range(350, 420), *range(len(whole) - 40, len(whole))]
    blobs = [whole[:length] for length in cuts] + [whole[start:] for start in range(1, 40)]
    blobs += [whole + b"\0", whole + whole, bytes(MOST_BYTES), bytes(MOST_BYTES + 1), b"\xff" * 3000, bytes(2**24)]
    blobs += [whole[:2] + bytes(384) + whole[386:], bytes(2) + whole[386:], b"\xff\xff" + whole[2:]]
    for blob in blobs:
        assert not other.verify("Aachen", DATA, blob), len(blob)
    for value in (None, "text", 7, bytearray(whole), memoryview(whole), [whole]):
        assert not other.verify("Aachen", DATA, value)  # type: ignore[arg-type]
    assert other.verify("Aachen", DATA, whole)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32), garbage=st.binary(max_size=2000))
def test_a_changed_byte_anywhere_and_garbage_are_refused(
    signed: tuple[CertifiedSites, bytes], seed: int, garbage: bytes
) -> None:
    other, whole = signed
    draw = random.Random(seed)  # noqa: S311 - nothing secret
    changed = bytearray(whole)
    for _ in range(draw.randint(1, 3)):
        changed[draw.randrange(len(changed))] ^= draw.randint(1, 255)
    assert not other.verify("Aachen", DATA, bytes(changed)) or bytes(changed) == whole
    assert not other.verify("Aachen", DATA, garbage)
    assert not other.verify("Aachen", DATA, whole[:386] + garbage)


def test_what_is_signed_otherwise_with_the_key_is_no_signature(kits: Path) -> None:
    """By FLARE, which signs the name and a text that the coordinator chooses, and by the audit log."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import padding
    from cryptography.hazmat.primitives.serialization import Encoding
    from nvflare.lighter.utils import sign_content

    from polyclinic.federation.trust.identity import _signed

    own = read_certificate(kits / "aachen" / "startup" / "client.crt")
    key, text = read_key(kits / "aachen" / "startup" / "client.key"), _signed("Aachen", "aachen", own, DATA)
    assert not text.startswith(b"aachen")
    for given_ in (
        sign_content(text, key, return_str=False),
        key.sign(text, padding.PKCS1v15(), hashes.SHA256()),
    ):
        blob = len(given_).to_bytes(2, "big") + given_ + own.public_bytes(Encoding.DER)
        assert not CertifiedSites(kits / "celle").verify("Aachen", DATA, blob)


def test_without_a_key_or_certificate_there_is_no_identity(kits: Path) -> None:
    (kits / "aachen" / "startup" / "client.key").unlink()
    with pytest.raises(FederationError, match="P602 There is no key that can be read"):
        identity(kits, "Aachen")
    (kits / "bonn" / "startup" / "rootCA.pem").write_text("nothing")
    with pytest.raises(FederationError, match="P602 There is no certificate that can be read"):
        identity(kits, "St. Bonn")


# In a secure sum ------------------------------------------------------------------------------------------------------


def terms(*sites: str) -> Terms:
    return Terms(bytes(32), 1, 0, sites, fit_shape(len(sites)), 32, 4)


def test_a_server_with_one_site_in_league_can_not_be_two_sites(kits: Path) -> None:
    """Beside Aachen there are only names that Celle signs for: its own keys would be all that hides Aachen's update."""
    agreed = terms("Aachen", "Celle", "Dresden")
    aachen = SiteRound(agreed, "Aachen", identity(kits, "Aachen"))
    parts = {"Aachen": aachen, "Celle": SiteRound(agreed, "Celle", identity(kits, "Celle")),
             "Dresden": SiteRound(agreed, "Dresden", Identity(kits / "celle", "Dresden"))}  # fmt: skip
    keys = {site: part.advertise() for site, part in parts.items()}
    with pytest.raises(SiteError, match=r"P404 .*The keys of site Dresden are not signed by it"):
        aachen.share(keys)


def test_the_server_leaves_out_a_site_whose_keys_do_not_count_and_the_others_go_on(kits: Path) -> None:
    """With its verifier; else all others would refuse the list of keys."""
    give(kits, "bonn", certificate(kits, "bonn", days=(-30, -0.01), key=read_key(kits / "bonn/startup/client.key")))
    entries = ("Aachen", "Celle", "Dresden", "St. Bonn")
    parties = {**NAMES, "Dresden": "dresden"}
    about = {"consortium": "lungs", "coordinator": {"host": "localhost"}, "sites": list(parties.values()),
             "researchers": [MARIA]}  # fmt: skip
    make_kits(Consortium.model_validate(about), kits)
    agreed = terms(*entries)
    sites = {site: SiteRound(agreed, site, Identity(kits / parties[site], site)) for site in entries}
    server = ServerRound(agreed, CertifiedSites(kits / "coordinator"))
    keys = server.keys({site: one.advertise() for site, one in sites.items()})
    assert server.failed == {"St. Bonn": "The keys of site St. Bonn are not signed by it for this round."}
    boxes = server.boxes({site: sites[site].share(keys) for site in keys})
    assert boxes.keys() == {"Aachen", "Celle", "Dresden"}
