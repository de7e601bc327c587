"""The ledger: nothing is lost and nothing is counted twice, whatever happens to the file."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyclinic import files
from polyclinic.errors import PolyclinicError, ResultsError, StudyError
from polyclinic.privacy import Event, Ledger, epsilon, merged

STEP = Event.gaussian(1.1, 0.02, 50)
OTHER = Event.laplace(30.0)


def filled(folder: Path, rounds: int = 4) -> Ledger:
    ledger = Ledger(folder / "privacy.jsonl")
    for number in range(rounds):
        assert ledger.record("Aachen", [STEP], run="a", round=number, label={"method": "fedavg", "fold": 1})
        assert ledger.record("Bonn", [OTHER, STEP], run="a", round=number)
    return ledger


def test_totals_are_over_everything_of_a_holder(tmp_path):
    ledger = filled(tmp_path)
    ledger.record("Aachen", [OTHER], run="b", round=0, label={"method": "ditto", "seed": 3})
    assert ledger.total("Aachen") == (Event.gaussian(1.1, 0.02, 200), OTHER)
    assert ledger.total("Bonn") == merged([STEP.times(200), OTHER.times(4)])
    assert ledger.total("federation") == ()
    again = Ledger(ledger.path)
    assert again.entries() == ledger.entries()
    assert [entry.label for entry in again.entries("Aachen")][-1] == {"method": "ditto", "seed": 3}
    assert len(ledger.path.read_text(encoding="utf-8").splitlines()) == 9


def test_the_same_again_counts_once_and_another_attempt_counts_again(tmp_path):
    ledger = filled(tmp_path)
    before, content = ledger.total("Aachen"), ledger.path.read_bytes()
    for one in (ledger, Ledger(ledger.path)):
        assert not one.record("Aachen", [STEP.times(20), STEP.times(30)], run="a", round=3,
                              label={"fold": 1, "method": "fedavg"})  # fmt: skip
        assert one.total("Aachen") == before
    assert ledger.path.read_bytes() == content
    assert ledger.attempts("Aachen", "a", 3) == 1
    assert ledger.record("Aachen", [STEP], run="a", round=3, attempt=2)
    assert ledger.attempts("Aachen", "a", 3) == 2
    assert ledger.total("Aachen") == (STEP.times(250),)
    assert epsilon(ledger.total("Aachen"), 1e-5) > epsilon(before, 1e-5)


def test_other_events_for_the_same_attempt_are_refused(tmp_path):
    ledger = filled(tmp_path)
    for events, label in (([OTHER], {"method": "fedavg", "fold": 1}), ([STEP], {"method": "fedavg"}), ([STEP], None)):
        with pytest.raises(ResultsError, match=r"P504 Attempt 1 at round 3 of a was .* with other events"):
            ledger.record("Aachen", events, run="a", round=3, label=label)
    assert ledger.total("Aachen") == (STEP.times(200),)


@pytest.mark.parametrize("cut", [1, 2, 40, 150, 9999])
def test_a_last_line_that_was_cut_short_is_spent(tmp_path, cut):
    """The power fails while it is written; 9999 stands for: before its first byte."""
    ledger = filled(tmp_path)
    expected, content = ledger.entries(), ledger.path.read_bytes()
    last = content.splitlines(keepends=True)[-1]
    ledger.path.write_bytes(content[: -min(cut, len(last))])
    again = Ledger(ledger.path)
    assert again.entries() == expected
    assert ledger.path.read_bytes() == content
    assert not again.record("Bonn", [OTHER, STEP], run="a", round=3)
    assert again.record("Bonn", [OTHER], run="a", round=4)
    assert Ledger(ledger.path).entries() == again.entries()


def test_zeros_where_a_line_should_be_are_replaced_by_it(tmp_path):
    ledger = filled(tmp_path)
    content = ledger.path.read_bytes()
    last = content.splitlines(keepends=True)[-1]
    ledger.path.write_bytes(content[: -len(last)] + b"\0" * len(last))
    assert Ledger(ledger.path).entries() == ledger.entries()
    assert ledger.path.read_bytes() == content


def test_the_first_line_of_all_is_spent_before_the_file_is_there(tmp_path):
    ledger = filled(tmp_path, rounds=1)
    first = ledger.path.read_bytes().splitlines(keepends=True)[0]
    ledger.path.unlink()
    (tmp_path / "privacy.jsonl.next").write_bytes(first)
    assert Ledger(ledger.path).total("Aachen") == (STEP,)


def test_an_end_that_is_cut_short_without_the_second_file_is_refused(tmp_path):
    ledger = filled(tmp_path)
    ledger.path.write_bytes(ledger.path.read_bytes()[:-20])
    (tmp_path / "privacy.jsonl.next").unlink()
    with pytest.raises(ResultsError, match=r"P504 Line 8 of privacy.jsonl: its end is missing, so what it spent"):
        Ledger(ledger.path)


def test_lines_taken_off_the_end_are_missed(tmp_path):
    ledger = filled(tmp_path)
    lines = ledger.path.read_bytes().splitlines(keepends=True)
    ledger.path.write_bytes(b"".join(lines[:5]))
    for read in (lambda: Ledger(ledger.path), ledger.refresh):
        with pytest.raises(ResultsError, match=r"P504 Line . of privacy.jsonl: .* not known"):
            read()
    ledger.path.unlink()
    for read in (lambda: Ledger(ledger.path), ledger.refresh, lambda: ledger.record("Bonn", [STEP], run="c", round=0)):
        with pytest.raises(ResultsError, match=r"P504 .* not known"):
            read()


@pytest.mark.parametrize(
    ("change", "says"),
    [(lambda lines: [*lines[:2], lines[2].replace(b'"count":50', b'"count":5'), *lines[3:]], "Line 3 .*was changed"),
     (lambda lines: [*lines[:2], lines[2][:30] + b"\n", *lines[3:]], "Line 3 .*was changed"),
     (lambda lines: [*lines[:2], b"\n", *lines[2:]], "Line 3 .*was changed"),
     (lambda lines: [*lines[:2], b"\xff\xfe\n", *lines[3:]], "Line 3 .*was changed"),
     (lambda lines: [*lines[:2], b"[1]\n", *lines[3:]], "Line 3 .*was changed"),
     (lambda lines: [*lines[:2], *lines[3:]], "Line 3 .*lines before it are missing"),
     (lambda lines: [lines[1], lines[0], *lines[2:]], "Line 1 .*lines before it are missing"),
     (lambda lines: [*lines, lines[-1]], "Line 9 .*lines before it are missing"),
     (lambda lines: [*lines, b"more"], "Line 9 .*its end is missing")],
)  # fmt: skip
def test_a_changed_line_is_refused(tmp_path, change, says):
    ledger = filled(tmp_path)
    lines = ledger.path.read_bytes().splitlines(keepends=True)
    ledger.path.write_bytes(b"".join(change(lines)))
    with pytest.raises(ResultsError, match=f"P504 {says}") as error:
        Ledger(ledger.path)
    assert "Restore the ledger from a copy" in error.value.hint


def test_a_changed_second_file_is_refused(tmp_path):
    ledger = filled(tmp_path)
    (tmp_path / "privacy.jsonl.next").write_bytes(b"{}")
    with pytest.raises(ResultsError, match=r"P504 .*privacy.jsonl.next was changed"):
        Ledger(ledger.path)


def test_several_writers_see_each_other(tmp_path):
    one, other = Ledger(tmp_path / "privacy.jsonl"), Ledger(tmp_path / "privacy.jsonl")
    for number in range(6):
        assert (one, other)[number % 2].record("Aachen", [STEP], run="a", round=number)
        assert not (other, one)[number % 2].record("Aachen", [STEP], run="a", round=number)
    one.refresh()
    assert one.entries() == other.entries() == Ledger(one.path).entries()
    assert one.total("Aachen") == (STEP.times(300),)


def test_several_processes_lose_nothing(tmp_path):
    code = (
        "import sys; from pathlib import Path; from polyclinic.privacy import Event, Ledger\n"
        "ledger = Ledger(Path(sys.argv[1]))\n"
        "for number in range(25): ledger.record('Aachen', [Event.pure(0.1)], run=sys.argv[2], round=number)\n"
    )
    path = tmp_path / "privacy.jsonl"
    started = [subprocess.Popen([sys.executable, "-c", code, path, run]) for run in ("a", "b", "c")]
    assert [one.wait() for one in started] == [0, 0, 0]
    assert Ledger(path).total("Aachen") == (Event.pure(0.1, 1, 75),)


def test_a_disk_that_is_full_lets_nothing_be_released(tmp_path, monkeypatch):
    ledger = filled(tmp_path)
    before = ledger.entries()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(ResultsError, match=r"P502 The disk is full"):
        ledger.record("Aachen", [STEP], run="a", round=9)
    monkeypatch.undo()
    assert Ledger(ledger.path).entries() == before
    assert ledger.record("Aachen", [STEP], run="a", round=9)


def test_what_was_said_to_be_written_is_on_the_disk_in_order(tmp_path, monkeypatch):
    """Synchronised twice: the second file, whole, and then the ledger."""
    ledger, seen = filled(tmp_path), []
    real = files.os.fsync

    def noted(handle):
        real(handle)
        seen.append(ledger.path.read_bytes().count(b"\n"))

    monkeypatch.setattr(files.os, "fsync", noted)
    ledger.record("Aachen", [STEP], run="a", round=9)
    assert seen == [8, 9]


@pytest.mark.parametrize(
    "values",
    [{"holder": ""}, {"holder": 1}, {"run": ""}, {"run": None}, {"round": -1}, {"round": 1.0}, {"round": True},
     {"attempt": 0}, {"attempt": "1"}, {"label": {"fold": 1.5}}, {"label": {1: "x"}}],
)  # fmt: skip
def test_what_does_not_fit_is_refused(tmp_path, values):
    ledger = Ledger(tmp_path / "privacy.jsonl")
    given_values = {"holder": "Aachen", "run": "a", "round": 0} | values
    with pytest.raises(StudyError, match=r"P102 The .*, expected"):
        ledger.record(given_values.pop("holder"), [STEP], **given_values)
    assert not ledger.path.exists()


def test_a_line_says_what_it_is(tmp_path):
    ledger = filled(tmp_path, rounds=1)
    line = json.loads(ledger.path.read_text(encoding="utf-8").splitlines()[0])
    assert {name: line[name] for name in ("holder", "run", "round", "attempt", "label", "events", "before")} == {
        "holder": "Aachen", "run": "a", "round": 0, "attempt": 1, "label": {"method": "fedavg", "fold": 1},
        "events": [{"mechanism": "gaussian", "parameter": 1.1, "rate": 0.02, "count": 50}], "before": "0" * 64,
    }  # fmt: skip


@given(data=st.data())
def test_any_damage_is_mended_or_refused_and_never_spends_less(tmp_path_factory, data):
    """A part of the file is cut out, doubled or overwritten."""
    ledger = filled(tmp_path_factory.mktemp("damaged"), rounds=3)
    content = ledger.path.read_bytes()
    start = data.draw(st.integers(0, len(content)))
    stop = data.draw(st.integers(start, min(len(content), start + 400)))
    instead = data.draw(st.sampled_from([b"", content[start:stop] * 2, b"\0" * (stop - start), b"\n", b'"count":1']))
    ledger.path.write_bytes(content[:start] + instead + content[stop:])
    try:
        found = Ledger(ledger.path).entries()
    except PolyclinicError as error:
        found = error.code
    assert found in ("P504", ledger.entries())
