"""Keys of the parties' own: requests, answers, certificates that are renewed or revoked, and what is refused."""

from __future__ import annotations

import base64
import json
import shutil
import stat
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from polyclinic.errors import FederationError
from polyclinic.federation.audit_log import AuditLog, verify
from polyclinic.federation.consortium import Consortium
from polyclinic.federation.kit import Kit
from polyclinic.federation.kits import make_kits
from polyclinic.federation.trust.answers import join, renew, sign_request
from polyclinic.federation.trust.authority import Authority
from polyclinic.federation.trust.certificates import (
    check_dates,
    fingerprint,
    key_fingerprint,
    new_key,
    read_certificate,
    read_key,
    to_text,
)
from polyclinic.federation.trust.requests import make_request, read_request
from polyclinic.federation.trust.revoked import Revoked, revoke, take_revoked
from polyclinic.federation.trust.signed import to_signed
from polyclinic.federation.versions import versions

pytest.importorskip("nvflare")

MARIA = "maria@hospital.org"
ENTRIES: dict[str, Any] = {
    "consortium": "lungs", "coordinator": {"host": "localhost", "port": 18997}, "sites": ["aachen", "bonn"],
    "researchers": [MARIA], "keys": "parties", "valid_days": 100,
}  # fmt: skip


class Made:
    """Kits of a consortium, requests and an answer, made once; each test has a copy."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.kits = folder, folder / "kits"

    def of(self, name: str) -> Path:
        return self.folder / name

    def request(self, name: str) -> Path:
        return self.of(name) / f"{name}.csr"

    def answer(self, name: str) -> Path:
        return self.kits / f"{name}.answer.json"

    def certificate(self, name: str) -> Any:
        return read_certificate(self.of(name) / "startup" / "client.crt")


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Made:
    made = Made(tmp_path_factory.mktemp("made"))
    make_kits(Consortium.model_validate(ENTRIES), made.kits)
    for name, role in (("aachen", "site"), ("bonn", "site"), (MARIA, "researcher")):
        make_request(name, role, made.of(name))
    sign_request(made.request("aachen"), made.kits)
    make_kits(Consortium.model_validate(ENTRIES), made.of("others") / "kits")
    return made


@pytest.fixture(scope="module")
def central_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("central") / "kits"
    make_kits(Consortium.model_validate({**ENTRIES, "keys": "central"}), folder)
    return folder


@pytest.fixture
def central(central_once: Path, tmp_path: Path) -> Path:
    """Kits with central keys."""
    shutil.copytree(central_once, tmp_path / "central")
    return tmp_path / "central"


@pytest.fixture
def made(once: Made, tmp_path: Path) -> Made:
    shutil.copytree(once.folder, tmp_path / "made")
    return Made(tmp_path / "made")


def test_where_parties_make_their_keys_only_the_coordinator_has_one_here(made: Made) -> None:
    assert {path.name for path in made.kits.iterdir()} == {
        "authority", "coordinator", "consortium.yaml", "aachen.answer.json",
    }  # fmt: skip
    assert {path.name for path in made.kits.rglob("*.key")} == {"authority.key", "server.key"}
    assert not stat.S_IMODE((made.kits / "authority").stat().st_mode) & 0o077
    assert stat.S_IMODE((made.kits / "authority" / "authority.key").stat().st_mode) == 0o600


def test_a_key_that_was_made_at_the_party_and_an_answer_are_a_kit(made: Made) -> None:
    kit = made.of("aachen")
    key = (kit / "startup" / "client.key").read_bytes()
    assert stat.S_IMODE((kit / "startup" / "client.key").stat().st_mode) == 0o600
    with pytest.raises(FederationError, match=r"P602 The kit in .* waits for the answer to its request\."):
        Kit.read(kit, "site")
    found = join(made.answer("aachen"), kit)
    assert found.authority == fingerprint(read_certificate(made.kits / "authority" / "authority.crt"))
    assert found.key == key_fingerprint(read_request(made.request("aachen")).key)
    assert Kit.read(kit, "site").about == {
        "consortium": "lungs", "role": "site", "name": "aachen", "sites": ["aachen", "bonn"],
        "versions": versions(),
    }  # fmt: skip
    assert (kit / "startup" / "client.key").read_bytes() == key
    assert key not in made.answer("aachen").read_bytes()
    AuditLog(kit).add("answered")
    assert verify(kit).lines == 1


def test_a_kit_with_an_own_key_is_as_closed_as_one_with_a_central_key(made: Made, central: Path) -> None:
    join(made.answer("aachen"), made.of("aachen"))
    join(sign_request(made.request(MARIA), made.kits).path, made.of(MARIA))
    for name in ("aachen", MARIA):
        there = {path.relative_to(central / name).as_posix(): path for path in (central / name).rglob("*")}
        here = {path.relative_to(made.of(name)).as_posix(): path for path in made.of(name).rglob("*")}
        assert here.keys() - there.keys() == {f"{name}.csr"}
        assert not there.keys() - here.keys()
        for path, file in there.items():
            if file.suffix not in (".key", ".crt", ".pem") and file.is_file():
                assert here[path].read_bytes() == file.read_bytes(), path


def test_certificates_are_valid_as_long_as_said_and_for_one_role(made: Made) -> None:
    from cryptography import x509
    from cryptography.x509.oid import ExtendedKeyUsageOID

    authority = Authority.of(made.kits)
    for name in ("coordinator", "aachen"):
        (found,) = authority.signed(name)
        found.verify_directly_issued_by(authority.certificate)
        assert found.not_valid_after_utc - found.not_valid_before_utc == timedelta(days=100, hours=1)
        uses = found.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        assert (ExtendedKeyUsageOID.SERVER_AUTH in uses) == (name == "coordinator")
    assert authority.certificate.not_valid_after_utc - found.not_valid_after_utc > timedelta(days=3000)


def test_a_certificate_does_not_outlive_its_authority(made: Made) -> None:
    renew("aachen", made.kits, 3650)
    authority = Authority.of(made.kits)
    assert authority.signed("aachen")[-1].not_valid_after_utc == authority.certificate.not_valid_after_utc


def test_the_commands_make_a_kit_renew_it_and_revoke_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from polyclinic import cli

    def said(line: str) -> dict[str, str]:
        """What a command prints, a line each, and on standard error as ``error``."""
        monkeypatch.setattr(sys, "argv", ["polyclinic", *line.split()])
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert not end.value.code, line
        printed = capfd.readouterr()
        pairs = dict(text.split(": ", 1) for text in printed.out.splitlines())
        return pairs | {"error": " ".join(printed.err.split())}

    monkeypatch.chdir(tmp_path)
    Path("consortium.yaml").write_text(json.dumps(ENTRIES))
    made = said("federation new consortium.yaml --out kits")
    assert made["coordinator"] == "kits/coordinator"
    asked = said("federation request --name aachen --role site --out kit")
    answered = said(f"federation sign {asked['Request']} --kits kits")
    joined = said(f"federation join {answered['Answer']} --kit kit")
    assert joined["Kit of aachen"] == "kit"
    assert asked["Fingerprint of the key"] == answered["Fingerprint of the key"] != ""
    prints = [one["Fingerprint of the authority"] for one in (made, answered, joined)]
    assert len({*prints}) == 1
    assert len(prints[0].split(":")) == 32
    renewed = said("federation renew aachen --kits kits --days 9")
    assert said(f"federation join {renewed['Answer']} --kit kit")["Valid until"] == renewed["Valid until"]
    assert renewed["Valid until"] < answered["Valid until"]
    listed = said("federation revoke aachen --kits kits")
    assert said(f"coordinator revoked {listed['List']} --kit kits/coordinator")["Revoked"] == "aachen"
    assert said(f"site revoked {listed['List']} --kit kit")["Revoked"] == "aachen"
    assert Path("kit/local/revoked.json").read_bytes() == Path(listed["List"]).read_bytes()
    monkeypatch.setattr("polyclinic.federation.processes.parties.start", lambda kit: pytest.fail("it was started"))
    Path("kit/startup/client.crt").write_text("none")
    monkeypatch.setattr(sys, "argv", ["polyclinic", "site", "start", "--kit", "kit"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 1
    assert "There is no certificate that can be read in" in " ".join(capfd.readouterr().err.split())


# Requests -------------------------------------------------------------------------------------------------------------


def csr(path: Path, name: str = "aachen", role: str = "site", key: Any = None) -> Path:
    """A request as another program may make it."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import rsa
    from cryptography.hazmat.primitives.serialization import Encoding
    from cryptography.x509.oid import NameOID

    key = key or rsa.generate_private_key(65537, 2048)
    subject = [(NameOID.COMMON_NAME, name), (NameOID.UNSTRUCTURED_NAME, role)]
    names = x509.Name([x509.NameAttribute(kind, text) for kind, text in subject if text])
    request = x509.CertificateSigningRequestBuilder().subject_name(names).sign(key, hashes.SHA256())
    path.write_bytes(request.public_bytes(Encoding.PEM))
    return path


@pytest.mark.parametrize(
    ("name", "role", "words"),
    [
        ("celle", "site", "The request is for a site called 'celle', and the consortium has none."),
        ("aachen", "researcher", "The request is for a researcher called 'aachen'"),
        (MARIA, "site", f"The request is for a site called '{MARIA}'"),
        ("coordinator", "coordinator", "The request is for a coordinator called 'coordinator'"),
        ("../aachen", "site", "The request is for a site called '../aachen'"),
        ("aachen", "", "request.csr is no request."),
    ],
)
def test_a_request_of_somebody_else_is_not_signed(
    made: Made, tmp_path: Path, name: str, role: str, words: str
) -> None:  # fmt: skip
    with pytest.raises(FederationError, match="P608 ") as error:
        sign_request(csr(tmp_path / "request.csr", name, role), made.kits)
    assert words in str(error.value)
    assert Authority.of(made.kits).parties() == ["aachen", "coordinator"]


def weak(made: Made, path: Path) -> Path:
    from cryptography.hazmat.primitives.asymmetric import rsa

    return csr(path, "bonn", key=rsa.generate_private_key(65537, 1024))  # noqa: S505


def of_another_kind(made: Made, path: Path) -> Path:
    from cryptography.hazmat.primitives.asymmetric import ec

    return csr(path, "bonn", key=ec.generate_private_key(ec.SECP256R1()))


def changed(made: Made, path: Path) -> Path:
    """Another name in a request that was signed."""
    from cryptography.hazmat.primitives.serialization import Encoding
    from cryptography.x509 import load_pem_x509_csr

    data = load_pem_x509_csr(made.request("aachen").read_bytes()).public_bytes(Encoding.DER)
    assert data.count(b"aachen") == 1
    text = base64.encodebytes(data.replace(b"aachen", b"bonnnn")).decode()
    path.write_text(f"-----BEGIN CERTIFICATE REQUEST-----\n{text}-----END CERTIFICATE REQUEST-----\n")
    return path


def large(made: Made, path: Path) -> Path:
    path.write_bytes(made.request("bonn").read_bytes() + b"\n" * 100_000)
    return path


def no_request(made: Made, path: Path) -> Path:
    return made.kits / "authority" / "authority.crt"


def missing(made: Made, path: Path) -> Path:
    return path


def key_of_another(made: Made, path: Path) -> Path:
    return csr(path, "bonn", key=read_key(made.of("aachen") / "startup" / "client.key"))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (weak, "is 1024 bits, expected RSA with 2048 to 8192 bits"),
        (of_another_kind, "is not RSA, expected RSA"),
        (changed, "was changed, or is signed with another key"),
        (large, "is no request"),
        (no_request, "is no request"),
        (missing, "is no request"),
        (key_of_another, "The request of bonn has the key of aachen"),
    ],
)
def test_a_request_that_is_not_as_it_must_be_is_not_signed(
    made: Made, tmp_path: Path, make: Callable[[Made, Path], Path], words: str
) -> None:
    with pytest.raises(FederationError, match=f"P608 .*{words}"):
        sign_request(make(made, tmp_path / "bonn.csr"), made.kits)
    assert Authority.of(made.kits).parties() == ["aachen", "coordinator"]


def test_another_key_is_signed_only_if_that_is_said(made: Made, tmp_path: Path) -> None:
    make_request("aachen", "site", tmp_path / "again")
    request = tmp_path / "again" / "aachen.csr"
    with pytest.raises(FederationError, match=r"P608 aachen was given a certificate for another key before\."):
        sign_request(request, made.kits)
    join(sign_request(request, made.kits, again=True).path, tmp_path / "again")
    assert len(Authority.of(made.kits).signed("aachen")) == 2


def test_a_request_is_made_once_in_a_folder_and_for_a_name_that_may_be(made: Made, tmp_path: Path) -> None:
    key = (made.of("bonn") / "startup" / "client.key").read_bytes()
    with pytest.raises(FederationError, match="P602 There is a key in"):
        make_request("bonn", "site", made.of("bonn"))
    assert (made.of("bonn") / "startup" / "client.key").read_bytes() == key
    for name, role in (("St. Mary", "site"), ("aachen", "researcher"), ("aachen", "coordinator"), ("../a", "site")):
        with pytest.raises(FederationError, match="P608 "):
            make_request(name, role, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_without_the_authority_nothing_is_signed(made: Made, tmp_path: Path) -> None:
    with pytest.raises(FederationError, match="P602 There are no kits in"):
        sign_request(made.request("bonn"), tmp_path)
    (made.kits / "authority").rename(tmp_path / "elsewhere")
    with pytest.raises(FederationError, match=r"P602 There is no key that can be read in .*authority\.key"):
        sign_request(made.request("bonn"), made.kits)
    with pytest.raises(FederationError, match="P602 There is no key that can be read in"):
        make_kits(Consortium.model_validate(ENTRIES), made.kits)
    assert not (made.kits / "authority").exists()


# Answers --------------------------------------------------------------------------------------------------------------


def rewrite(made: Made, change: Callable[[dict[str, Any]], None], *, signed: bool = False) -> Path:
    """An answer that was changed, by somebody without the authority's key or with it."""
    path = made.answer("aachen")
    found = json.loads(path.read_text())
    change(found["content"])
    if signed:
        kind = found["content"].pop("kind")
        path.write_text(to_signed(Authority.of(made.kits).key, kind, found["content"]))
    else:
        path.write_text(json.dumps(found))
    return path


def allow_code(content: dict[str, Any]) -> None:
    name = "local/authorization.json"
    content["files"][name] = content["files"][name].replace("none", "any")


@pytest.mark.parametrize(
    "path",
    [
        "../outside", "/tmp/outside", "startup/../../outside", "local/../../outside", "outside", "startup/client.key",  # noqa: S108
        "startup/", "local/.hidden", "local/a/b", "startup\\..\\outside", "party.json\n", "local/..",
    ],
)  # fmt: skip
def test_nothing_is_written_outside_a_kit(made: Made, path: str) -> None:
    before = {file: file.stat().st_mtime_ns for file in made.folder.rglob("*")}
    answer = rewrite(made, lambda content: content["files"].update({path: "x"}), signed=True)
    with pytest.raises(FederationError, match=r"P608 aachen\.answer\.json has files that do not belong into a kit"):
        join(answer, made.of("aachen"))
    after = {file: file.stat().st_mtime_ns for file in made.folder.rglob("*")}
    assert {file for file in after if before.get(file) != after[file]} <= {made.kits, answer}


@pytest.mark.parametrize(
    "change",
    [
        allow_code,
        lambda content: content.update(name="bonn"),
        lambda content: content["files"].update({"local/more.json": "{}"}),
    ],
)
def test_an_answer_that_was_changed_is_refused(made: Made, change: Callable[[dict[str, Any]], None]) -> None:
    with pytest.raises(FederationError, match=r"P608 .* was changed, or signed by another authority"):
        join(rewrite(made, change), made.of("aachen"))
    assert not (made.of("aachen") / "party.json").exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.update(stem="../client"),
        lambda content: content.update(files=[]),
        lambda content: content.pop("files"),
        lambda content: content["files"].pop("startup/rootCA.pem"),
        lambda content: content["files"].update({"startup/client.crt": "x"}),
        lambda content: content["files"].update({"local/a": 1}),
        lambda content: content.update(kind="list of revoked certificates"),
    ],
)
def test_what_is_no_answer_is_refused(made: Made, change: Callable[[dict[str, Any]], None]) -> None:
    with pytest.raises(FederationError, match="P608 "):
        join(rewrite(made, change, signed=True), made.of("aachen"))
    assert not (made.of("aachen") / "party.json").exists()


@pytest.mark.parametrize("text", ["", "{}", "[]", "[" * 100_000, "null", '{"content": 1, "signature": 2}', "\xff" * 9])
def test_a_file_that_is_something_else_is_refused(made: Made, text: str) -> None:
    made.answer("aachen").write_bytes(text.encode("latin-1"))
    with pytest.raises(FederationError, match=r"P608 aachen\.answer\.json is no answer to a request\."):
        join(made.answer("aachen"), made.of("aachen"))


def test_a_file_that_is_too_large_is_not_read(made: Made) -> None:
    with made.answer("aachen").open("ab") as file:
        file.truncate(3_000_000)
    with pytest.raises(FederationError, match=r"P608 aachen\.answer\.json is no answer"):
        join(made.answer("aachen"), made.of("aachen"))


def test_an_answer_fits_one_key_only(made: Made, tmp_path: Path) -> None:
    with pytest.raises(FederationError, match=r"P608 aachen\.answer\.json is for another key than the one in"):
        join(made.answer("aachen"), made.of("bonn"))
    with pytest.raises(FederationError, match="P602 There is no key that can be read in"):
        join(made.answer("aachen"), tmp_path / "empty")
    assert not (tmp_path / "empty").exists()


def test_a_kit_stays_with_its_authority(made: Made) -> None:
    join(made.answer("aachen"), made.of("aachen"))
    others = sign_request(made.request("aachen"), made.of("others") / "kits")
    with pytest.raises(FederationError, match=r"P608 aachen\.answer\.json is of another authority than the kit"):
        join(others.path, made.of("aachen"))
    assert others.authority != fingerprint(read_certificate(made.of("aachen") / "startup" / "rootCA.pem"))


# Dates and renewal ----------------------------------------------------------------------------------------------------


def test_a_certificate_that_has_ended_is_refused_and_one_that_ends_soon_is_told(made: Made) -> None:
    from polyclinic.federation.processes import parties

    join(made.answer("aachen"), made.of("aachen"))
    kit = Kit.read(made.of("aachen"), "site")
    end = made.certificate("aachen").not_valid_after_utc
    assert check_dates(kit) == ""
    assert check_dates(kit, end - timedelta(days=30)) == ""
    assert check_dates(kit, end - timedelta(days=29, hours=23)) == (
        f"The certificate of aachen ends in 29 days, on {end:%Y-%m-%d}; see `polyclinic federation renew`."
    )
    assert "ends in 1 day, on" in check_dates(kit, end - timedelta(days=1))
    with pytest.raises(FederationError, match=f"P602 The certificate of aachen was valid until {end:%Y-%m-%d}"):
        check_dates(kit, end + timedelta(seconds=1))
    with pytest.raises(FederationError, match=r"P602 The certificate of aachen is valid from .* on\. Look at this"):
        check_dates(kit, made.certificate("aachen").not_valid_before_utc - timedelta(seconds=1))
    (kit.folder / "startup" / "client.crt").write_text("none")
    with pytest.raises(FederationError, match=r"P602 There is no certificate that can be read in .*client\.crt"):
        parties.start(kit)
    assert not (kit.folder / parties.LOG).exists()


def test_renewal_keeps_the_key_and_what_the_party_wrote(made: Made) -> None:
    kit = made.of("aachen")
    join(made.answer("aachen"), kit)
    site_file = kit / "local" / "site.yaml"
    site_file.write_text("data: {}\n# ours\n")
    before, first = made.certificate("aachen"), made.answer("aachen").read_bytes()
    make_kits(Consortium.model_validate({**ENTRIES, "sites": ["aachen", "bonn", "celle"]}), made.kits)
    join(renew("aachen", made.kits, 500).path, kit)
    after = made.certificate("aachen")
    assert after.public_key() == before.public_key()
    assert after.serial_number != before.serial_number
    assert after.not_valid_after_utc - before.not_valid_after_utc >= timedelta(days=400)
    assert site_file.read_text() == "data: {}\n# ours\n"
    assert Kit.read(kit, "site").about["sites"] == ["aachen", "bonn", "celle"]  # others are told with it
    if after.not_valid_before_utc > before.not_valid_before_utc:  # they are whole seconds
        made.answer("aachen").write_bytes(first)
        with pytest.raises(FederationError, match=r"P608 The certificate in .* is older than the one in"):
            join(made.answer("aachen"), kit)


def test_kits_with_central_keys_are_renewed_too(made: Made, central: Path) -> None:
    for name, role in Authority.of(central).consortium.roles.items():
        kit = Kit.read(central / name, role)
        path = kit.folder / "startup" / ("server.crt" if role == "coordinator" else "client.crt")
        before = read_certificate(path)
        join(renew(name, central).path, kit.folder)
        assert read_certificate(path).serial_number != before.serial_number
        assert read_certificate(path).subject == before.subject
        assert Kit.read(kit.folder, role) == kit
    with pytest.raises(FederationError, match=r"P608 No certificate of bonn was signed here\. Those of: aachen"):
        renew("bonn", made.kits)


def test_a_party_whose_kit_was_given_away_gets_no_second_one(central: Path, tmp_path: Path) -> None:
    (central / "aachen").rename(tmp_path / "aachen")
    entries = {**ENTRIES, "keys": "central", "sites": ["aachen", "bonn", "celle"]}
    more = make_kits(Consortium.model_validate(entries), central)
    assert "aachen" not in more
    assert not (central / "aachen").exists()
    assert more["celle"].is_dir()
    assert len(Authority.of(central).signed("aachen")) == 1


# Revoked --------------------------------------------------------------------------------------------------------------


def coordinator(made: Made) -> Kit:
    return Kit.read(made.kits / "coordinator", "coordinator")


def test_a_list_has_all_certificates_of_who_was_revoked(made: Made) -> None:
    renew("aachen", made.kits)
    sign_request(made.request("bonn"), made.kits)
    authority = Authority.of(made.kits)
    lists = [take_revoked(revoke(made.kits, "aachen"), coordinator(made)) for _ in range(2)]
    assert lists == [["aachen"], ["aachen"]]
    found = Revoked(coordinator(made).folder)
    assert found.read() == {one.serial_number for one in authority.signed("aachen")}
    assert (len(found.known), found.version) == (2, 1)  # again is no other list
    assert take_revoked(revoke(made.kits, "bonn"), coordinator(made)) == ["aachen", "bonn"]
    assert len(found.read()) == 3  # a list that changes is read again
    assert found.version == 2
    with pytest.raises(FederationError, match="P608 No certificate of celle was signed here"):
        revoke(made.kits, "celle")
    with pytest.raises(FederationError, match="P608 The coordinator can't be revoked"):
        revoke(made.kits, "coordinator")


def test_who_was_revoked_needs_another_key(made: Made, tmp_path: Path) -> None:
    revoke(made.kits, "aachen")
    for again in (False, True):
        with pytest.raises(FederationError, match="P608 The key of the request was revoked with aachen"):
            sign_request(made.request("aachen"), made.kits, again=again)
    with pytest.raises(FederationError, match=r"P608 The certificate of aachen was revoked\."):
        renew("aachen", made.kits)
    make_request("aachen", "site", tmp_path / "again")
    sign_request(tmp_path / "again" / "aachen.csr", made.kits, again=True)
    assert take_revoked(made.kits / "authority" / "revoked.json", coordinator(made)) == ["aachen"]
    latest = Authority.of(made.kits).signed("aachen")[-1]
    assert latest.serial_number not in Revoked(coordinator(made).folder).read()


def test_a_list_that_is_older_or_forged_is_refused(made: Made, tmp_path: Path) -> None:
    sign_request(made.request("bonn"), made.kits)
    first = tmp_path / "first.json"
    shutil.copy(revoke(made.kits, "aachen"), first)
    latest = revoke(made.kits, "bonn")
    take_revoked(latest, coordinator(made))
    with pytest.raises(FederationError, match=r"P608 first\.json is version 1 of the list, and version 2 is known"):
        take_revoked(first, coordinator(made))
    forged = tmp_path / "forged.json"
    forged.write_text(latest.read_text().replace('"version": 2', '"version": 3'))
    with pytest.raises(FederationError, match=r"P608 forged\.json was changed, or signed by another authority"):
        take_revoked(forged, coordinator(made))
    sign_request(made.request("aachen"), made.of("others") / "kits")
    with pytest.raises(FederationError, match=r"P608 revoked\.json was changed, or signed by another authority"):
        take_revoked(revoke(made.of("others") / "kits", "aachen"), coordinator(made))
    with pytest.raises(FederationError, match=r"P608 aachen\.answer\.json is no list of revoked certificates"):
        take_revoked(made.answer("aachen"), coordinator(made))
    assert take_revoked(latest, coordinator(made)) == ["aachen", "bonn"]  # what was there is still there


def test_a_list_that_is_changed_in_the_kit_ends_nothing_and_starts_nothing(made: Made) -> None:
    from polyclinic.federation.processes import parties

    take_revoked(revoke(made.kits, "aachen"), coordinator(made))
    running = Revoked(coordinator(made).folder)
    known = running.read()
    assert len(known) == 1
    running.path.write_text(running.path.read_text().replace('"name": "aachen"', '"name": "nobody"'))
    with pytest.raises(FederationError, match="P608 "):
        running.read()
    assert running.read() == running.known == known
    with pytest.raises(FederationError, match=r"P608 revoked\.json was changed"):
        parties.start(coordinator(made))
    running.path.unlink()
    assert running.read() == known


class Connection:
    """What gRPC tells of one."""

    def __init__(self, certificate: Any) -> None:
        from cryptography.hazmat.primitives.serialization import Encoding

        self.certificate, self.cancelled = certificate.public_bytes(Encoding.PEM), False

    def auth_context(self) -> dict[str, list[bytes]]:
        return {"x509_pem_cert": [self.certificate]}

    def cancel(self) -> None:
        self.cancelled = True


@pytest.mark.parametrize(
    ("role", "kind", "may"),
    [("site", "regular", True), ("researcher", "admin", True), ("researcher", "regular", False),
     ("researcher", "relay", False), ("site", "admin", False)],
)  # fmt: skip
def test_nobody_is_what_the_certificate_is_not_for(made: Made, role: str, kind: str, may: bool) -> None:
    from nvflare.apis.fl_constant import FLContextKey
    from nvflare.apis.fl_context import FLContext
    from nvflare.apis.shareable import Shareable
    from nvflare.fuel.f3.cellnet.defs import IdentityChallengeKey
    from nvflare.fuel.f3.message import Message

    from polyclinic.federation.processes.coordinator import _registered

    party = "aachen" if role == "site" else "maria@hospital.org"
    certificate = Authority.of(made.kits).sign(party, new_key().public_key())
    registration, context = Shareable(), FLContext()
    registration[IdentityChallengeKey.CERT] = to_text(certificate).encode()
    found = _registered(lambda *given: given, Message({"client_name": party}, registration), context, kind)
    assert (found is not None) == may
    said = context.get_prop(FLContextKey.UNAUTHENTICATED)
    assert said == (None if may else f"The certificate is not that of a {'researcher' if kind == 'admin' else 'site'}.")


def test_connections_of_who_is_revoked_end_and_others_go_on(made: Made) -> None:
    from polyclinic.federation.processes.coordinator import Connections

    sign_request(made.request("bonn"), made.kits)
    authority = Authority.of(made.kits)
    aachen, bonn = (Connection(authority.signed(name)[-1]) for name in ("aachen", "bonn"))
    connections = Connections(Revoked(coordinator(made).folder))
    assert connections.begin(aachen)
    assert connections.begin(bonn)
    assert connections.hang_up() == set()
    take_revoked(revoke(made.kits, "aachen"), coordinator(made))
    assert connections.hang_up() == {"aachen"}
    assert (aachen.cancelled, bonn.cancelled) == (True, False)
    connections.end(aachen)
    assert connections.hang_up() == set()
    assert not connections.begin(Connection(authority.signed("aachen")[-1]))
