"""Consortium files, and the kits that are made from them: who may do what, and whose keys are whose."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest
import yaml

from polyclinic.errors import FederationError, StudyError
from polyclinic.federation.consortium import Consortium
from polyclinic.federation.kit import Kit
from polyclinic.federation.kits import make_kits
from polyclinic.federation.site_file import SiteFile

pytest.importorskip("nvflare")

ENTRIES: dict[str, Any] = {
    "consortium": "lungs", "coordinator": {"host": "localhost", "port": 18999}, "sites": ["aachen", "bonn"],
    "researchers": ["maria@hospital.org"],
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_kits(Consortium.model_validate(ENTRIES), tmp_path_factory.mktemp("kits"))


def test_each_party_has_a_kit_with_its_own_key(made: dict[str, Path]) -> None:
    assert set(made) == {"coordinator", "aachen", "bonn", "maria@hospital.org"}
    keys = {path.read_bytes() for folder in made.values() for path in folder.rglob("*.key")}
    assert len(keys) == 4
    for name, folder in made.items():
        assert not list(folder.rglob("*.part"))
        kit = Kit.read(folder, {"coordinator": "coordinator", "maria@hospital.org": "researcher"}.get(name, "site"))
        assert kit.name == name
        assert kit.about["consortium"] == "lungs"
    authority = made["aachen"].parent / "authority"
    assert not stat.S_IMODE(authority.stat().st_mode) & 0o077


def test_a_kit_lets_nobody_bring_code_or_look_around(made: dict[str, Path]) -> None:
    for name in ("coordinator", "aachen", "bonn"):
        local = made[name] / "local"
        resources = json.loads((local / "resources.json").read_text())
        assert resources["class_list_enforcement_mode"] == "enforce"
        assert sorted(path.rpartition(".")[2] for path in resources["class_allow_list"]) == [
            "CollabController", "CollabExecutor", "CoordinatorEnd", "SiteEnd",
        ]  # fmt: skip
        assert resources["allow_log_streaming"] is False
        assert not [one for one in resources["components"] if "log" in one["path"].lower()]
        for rights in json.loads((local / "authorization.json").read_text())["permissions"].values():
            for right in ("byoc", "shell_commands", "operate", "clone_job", "server-predeployed-flwr"):
                assert rights[right] == "none"


def test_a_new_site_gets_a_kit_and_the_others_stay(made: dict[str, Path]) -> None:
    folder = made["aachen"].parent
    before = {path: path.read_bytes() for path in folder.rglob("*.crt") if "authority" not in path.parts}
    more = make_kits(Consortium.model_validate({**ENTRIES, "sites": ["aachen", "bonn", "celle"]}), folder)
    assert more["celle"].is_dir()
    assert all(path.read_bytes() == content for path, content in before.items())
    roots = {(more[name] / "startup" / "rootCA.pem").read_bytes() for name in more}
    assert len(roots) == 1
    with pytest.raises(FederationError, match=r"P601 .*has the kits of lungs"):
        make_kits(Consortium.model_validate({**ENTRIES, "consortium": "hearts"}), folder)


def test_a_site_file_that_was_not_filled_in_is_valid(made: dict[str, Path]) -> None:
    found = SiteFile.read(made["aachen"] / "local" / "site.yaml")
    assert (found.data, found.policy.floor, found.policy.predictions) == ({}, 5, False)


def test_a_kit_of_another_role_is_refused(made: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(FederationError, match=r"P602 .*is that of a site, expected one of a coordinator"):
        Kit.read(made["aachen"], "coordinator")
    with pytest.raises(FederationError, match="P602 There is no start-up kit in"):
        Kit.read(tmp_path, "site")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sites": []}, "sites: "),
        ({"sites": ["a", "A"]}, "two parties are called 'a'"),
        ({"sites": ["localhost"]}, "two parties are called 'localhost'"),
        ({"sites": ["a", "Authority"]}, "no site can be called 'Authority'"),
        ({"keys": "mine"}, "keys: input should be 'central' or 'parties'"),
        ({"sites": ["../a"]}, "sites[1]: got '../a'"),
        ({"sites": ["St. Mary"]}, "letters, digits and hyphens"),
        ({"researchers": ["maria"]}, "researchers[1]: got 'maria', expected an e-mail address"),
        ({"researchers": ["maria@hospital"]}, "expected an e-mail address"),
        ({"researchers": [f"{'m' * 52}@hospital.org"]}, "expected an e-mail address of at most 64 characters"),
        ({"researchers": ["maria@hospital.org\n"]}, "expected an e-mail address"),
        ({"sites": ["a\n"]}, "letters, digits and hyphens"),
        ({"coordinator": {"host": "a b"}}, "coordinator.host"),
        ({"coordinator": {"host": "a", "port": 0}}, "coordinator.port"),
        ({"valid_days": 0}, "valid_days"),
        ({"cordinator": {}}, "cordinator"),
    ],
)
def test_a_consortium_file_that_does_not_fit_is_refused(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    path = tmp_path / "consortium.yaml"
    path.write_text(yaml.safe_dump({**ENTRIES, **change}))
    with pytest.raises(FederationError, match="P601 ") as error:
        Consortium.read(path)
    assert words in str(error.value)


def test_a_consortium_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="P101"):
        Consortium.read(tmp_path / "consortium.yaml")
