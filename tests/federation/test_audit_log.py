"""The audit log: lines can be added, and not changed unseen."""

from __future__ import annotations

import json
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import pytest

from polyclinic.errors import FederationError
from polyclinic.federation.audit_log import AUDIT_LOG, AuditLog, verify
from polyclinic.federation.consortium import Consortium
from polyclinic.federation.kits import make_kits

pytest.importorskip("nvflare")

ENTRIES = {
    "consortium": "lungs", "coordinator": {"host": "localhost"}, "sites": ["aachen", "bonn"],
    "researchers": ["a@b.org"],
}  # fmt: skip


@pytest.fixture(scope="module")
def kits(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_kits(Consortium.model_validate(ENTRIES), tmp_path_factory.mktemp("kits"))


@pytest.fixture
def kit(kits: dict[str, Path]) -> Path:
    (kits["aachen"] / AUDIT_LOG).unlink(missing_ok=True)
    log = AuditLog(kits["aachen"])
    for number in range(5):
        log.add("answered", function=f"train {number}", words="größer")
    return kits["aachen"]


def lines(kit: Path) -> list[str]:
    return (kit / AUDIT_LOG).read_text(encoding="utf-8").splitlines()


def write(kit: Path, content: list[str]) -> None:
    (kit / AUDIT_LOG).write_text("\n".join(content) + "\n", encoding="utf-8")


def test_a_log_that_was_not_touched_is_verified(kit: Path) -> None:
    found = verify(kit)
    assert found.lines == 5
    assert [json.loads(line)["number"] for line in lines(kit)] == [0, 1, 2, 3, 4]
    AuditLog(kit).add("study ended")  # by another process
    assert verify(kit).lines == 6
    assert verify(kit).last != found.last


def test_an_empty_log_has_no_fault(kits: dict[str, Path]) -> None:
    (kits["bonn"] / AUDIT_LOG).unlink(missing_ok=True)
    assert verify(kits["bonn"]).lines == 0


CHANGES: dict[str, tuple[Callable[[list[str]], list[str]], int, str]] = {
    "changed": (lambda own: [*own[:2], own[2].replace("train 2", "train 9"), *own[3:]], 3, "was changed"),
    "taken out": (lambda own: [*own[:2], *own[3:]], 3, "missing, or were put in"),
    "first taken off": (lambda own: own[1:], 1, "missing, or were put in"),
    "twice": (lambda own: [*own[:2], own[1], *own[2:]], 3, "missing, or were put in"),
    "swapped": (lambda own: [own[0], own[2], own[1], *own[3:]], 2, "missing, or were put in"),
    "no JSON": (lambda own: [*own[:4], "x"], 5, "no line of a log"),
    "a list": (lambda own: [*own[:4], "[]"], 5, "no line of a log"),
    "no signature": (lambda own: [*own[:4], '{"number":4}'], 5, "no line of a log"),
    "an empty line": (lambda own: [*own[:2], "", *own[2:]], 3, "no line of a log"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_was_changed_is_found(kit: Path, name: str) -> None:
    change, line, words = CHANGES[name]
    write(kit, change(lines(kit)))
    with pytest.raises(FederationError, match=rf"P607 Line {line} of audit\.jsonl: .*{words}"):
        verify(kit)


def test_a_log_written_anew_with_another_key_is_found(kit: Path, kits: dict[str, Path]) -> None:
    (kits["bonn"] / AUDIT_LOG).unlink(missing_ok=True)
    AuditLog(kits["bonn"]).add("answered")
    write(kit, lines(kits["bonn"]))
    (kits["bonn"] / AUDIT_LOG).unlink()
    with pytest.raises(FederationError, match=r"P607 Line 1 of .*another key"):
        verify(kit)


def test_a_line_torn_by_a_crash_is_taken_off(kit: Path) -> None:
    with (kit / AUDIT_LOG).open("a", encoding="utf-8") as file:
        file.write('{"number":5,"time":')
    with pytest.raises(FederationError, match="P607 Line 6"):
        verify(kit)
    AuditLog(kit).add("answered")
    assert verify(kit).lines == 6


def add_many(kit: Path) -> None:
    log = AuditLog(kit)
    for number in range(20):
        log.add("answered", number_of_its_own=number)


def test_several_processes_write_one_log(kit: Path) -> None:
    context = get_context("spawn")
    running = [context.Process(target=add_many, args=(kit,)) for _ in range(3)]
    for process in running:
        process.start()
    for process in running:
        process.join()
    assert verify(kit).lines == 65
