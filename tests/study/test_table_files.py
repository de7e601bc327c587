"""The tables of a results folder: the same frame from CSV and from Parquet, to the last bit."""

import math
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import write_table_study
from polyclinic.errors import PolyclinicError, ResultsError
from polyclinic.running.progress import Checkpoint
from polyclinic.study.report.folder import Folder
from polyclinic.study.report.page import write_report
from polyclinic.study.results import Results
from polyclinic.study.study import Study
from polyclinic.study.table_files import GROWING, columns_of, has_table, read_table, write_table

pytest.importorskip("pyarrow")


def with_form(entries, form):
    return {**entries, "report": {"tables": form}}


texts = st.text(st.characters(blacklist_categories=["Cs"]), max_size=6)
kinds = {
    "site": texts | st.sampled_from(["NA", "nan", "007", "1", "true", "", " x", '"', "a,b", "a\nb", "a\rb", "\r\n"]),
    "value": st.floats(width=64) | st.sampled_from([0.1 + 0.2, 5e-324, -0.0, math.inf, -math.inf]),
    "round": st.integers(-(2**63), 2**63 - 1),
    "scored": st.booleans(),
    "dice[left, right]": st.floats(0, 1) | st.just(math.nan),
    "empty": st.just(math.nan),
    "share": st.floats(0, 1, width=32).map(np.float32),
    "note": st.none() | texts,
    "mixed": st.none() | st.integers(0, 9),
    "words": st.sampled_from(["north", "south"]),
}


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 5).flatmap(lambda rows: st.fixed_dictionaries(
    {name: st.lists(kind, min_size=rows, max_size=rows) for name, kind in kinds.items()})))  # fmt: skip
def test_both_forms_read_as_the_same_frame(tmp_path_factory, columns):
    folder = tmp_path_factory.mktemp("tables")
    frame = pd.DataFrame(columns).sample(frac=1, random_state=1)  # the index is not kept
    write_table(folder / "a.csv", frame)
    write_table(folder / "b.csv", frame, parquet=True)
    assert [path.name for path in sorted(folder.iterdir())] == ["a.csv", "b.parquet"]
    plain, other = read_table(folder / "a.csv"), read_table(folder / "b.csv")
    pd.testing.assert_frame_equal(plain, other, check_exact=True, check_column_type=False)
    assert columns_of(folder / "a.csv") == columns_of(folder / "b.csv") == list(columns)
    for name in ("value", "dice[left, right]", "share"):
        if len(frame):
            told, kept = frame[name].to_numpy(np.float64), plain[name].to_numpy(np.float64)
            assert [one.hex() for one in kept] == [one.hex() for one in told]


@pytest.mark.parametrize("form", [False, True])
def test_columns_can_be_left_unread(tmp_path, form):
    write_table(tmp_path / "a.csv", pd.DataFrame({"subject": ["P1"], "site": ["01"], "value": [0.5]}), parquet=form)
    assert read_table(tmp_path / "a.csv", without=("subject",)).to_dict("list") == {"site": ["01"], "value": [0.5]}


def test_empty_cells_are_missing_numbers_also_under_a_name_with_a_comma(tmp_path):
    write_table(tmp_path / "a.csv", pd.DataFrame({"dice[left, right]": [0.5, math.nan], "site": ["A", ""]}))
    found = read_table(tmp_path / "a.csv")
    assert found["dice[left, right]"].dtype == "float64"
    assert found["site"].tolist() == ["A", ""]


def test_a_large_table_is_written_as_if_at_once(tmp_path, monkeypatch):
    frame = pd.DataFrame(
        {"site": list("abcdefg"), "value": [0.1, math.nan, 3, 1e300, 1 / 3, 2**60, -0.0]}, range(7, 14)
    )
    write_table(tmp_path / "whole.csv", frame)
    for rows in (1, 3, 7):
        monkeypatch.setattr("polyclinic.study.table_files.ROWS", rows)
        write_table(tmp_path / "parts.csv", frame)
        assert (tmp_path / "parts.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    write_table(tmp_path / "none.csv", frame[:0])
    assert (tmp_path / "none.csv").read_text() == "site,value\n"


def test_a_parquet_file_says_nothing_of_when_and_where(tmp_path):
    frame = pd.DataFrame({"site": ["A", "B"], "value": [0.1, 0.2]})
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_table(tmp_path / name / "a.csv", frame, parquet=True)
    first, second = ((tmp_path / name / "a.parquet").read_bytes() for name in ("one", "two"))
    assert first == second
    assert str(tmp_path).encode() not in first


def test_a_table_in_both_forms_is_refused(tmp_path):
    for form in (False, True):
        write_table(tmp_path / "results.csv", pd.DataFrame({"run": ["plain"]}), parquet=form)
    with pytest.raises(ResultsError, match=r"P501 results.csv and results.parquet are both in .* Delete the one"):
        Results(tmp_path)
    with pytest.raises(ResultsError, match="P501"):
        Folder(tmp_path)


@pytest.fixture
def no_parquet(monkeypatch):
    def missing(*_, **__):
        raise ImportError("Missing optional dependency 'pyarrow'.")

    monkeypatch.setattr(pd.DataFrame, "to_parquet", missing)
    monkeypatch.setattr("polyclinic.study.table_files.find_spec", lambda name: None)


def test_reading_parquet_without_pyarrow_says_what_to_install(both, no_parquet, tmp_path):
    shutil.copy(both[1].folder / "results.parquet", tmp_path)
    with pytest.raises(ResultsError, match=r"P503 results.parquet needs .* pip install 'polyclinic\[parquet\]'"):
        Results(tmp_path)


def test_asking_for_parquet_without_pyarrow_is_refused_before_anything_is_read(tmp_path, no_parquet):
    entries = with_form(write_table_study(tmp_path, {"Aachen": 24}), "parquet")
    (tmp_path / "cases.csv").unlink()
    with pytest.raises(PolyclinicError, match=r"P503 .*report.tables: .* pip install 'polyclinic\[parquet\]', or use"):
        Study.of(entries, tmp_path)


def test_a_package_that_is_there_and_does_not_work_is_found_before_training(tmp_path, monkeypatch):
    def broken(*_, **__):
        raise ImportError("DLL load failed while importing _parquet: The specified procedure could not be found.")

    entries = with_form(write_table_study(tmp_path, {"Aachen": 24}), "parquet")
    monkeypatch.setattr(pd.DataFrame, "to_parquet", broken)
    with pytest.raises(PolyclinicError, match=r"P503 .*does not work here \(DLL load failed"):
        Study.of(entries, tmp_path)


def test_columns_of_several_kinds_are_of_one_kind_when_they_are_read(tmp_path):
    """Read in pieces, a long column would hold numbers and texts; Parquet would refuse it after all training."""
    frame = pd.DataFrame({"value": [1] * 300_000 + ["none"] * 5})
    for name, form in (("a.csv", False), ("b.csv", True)):
        write_table(tmp_path / name, frame, parquet=form)
        assert set(map(type, read_table(tmp_path / name)["value"])) == {str}


def test_another_form_is_refused(tmp_path):
    entries = with_form(write_table_study(tmp_path, {"Aachen": 24}), "excel")
    with pytest.raises(PolyclinicError, match=r"P102 .*report.tables: .*'csv' or 'parquet'"):
        Study.of(entries, tmp_path)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The same study with tables of either form."""
    folder = tmp_path_factory.mktemp("forms")
    entries = write_table_study(folder, {"1e3": 24, "01": 20, "Celle": 18})
    entries["methods"], entries["training"] = ["single", "scaffold"], entries["training"] | {"rounds": 2}
    found = [Study.of(with_form(entries, form), folder).run(folder / form) for form in ("csv", "parquet")]
    return found[0], found[1], entries


def test_a_study_gives_the_same_frames_in_both_forms(both):
    plain, other, _ = both
    names = {path.name for path in plain.folder.iterdir()}
    large = {name for name in GROWING if name in names}
    assert large >= {"results.csv", "predictions.csv", "rounds.csv", "payloads.csv", "decisions.csv"}
    expected = {name.replace(".csv", ".parquet") if name in large else name for name in names}
    assert {path.name for path in other.folder.iterdir()} == expected
    for name in ("results", "predictions", "payloads", "summary", "comparisons", "calibration", "sites"):
        pd.testing.assert_frame_equal(getattr(plain, name), getattr(other, name), check_exact=True)
    first, second = (found.rounds.drop(columns="seconds") for found in (plain, other))
    pd.testing.assert_frame_equal(first, second, check_exact=True)
    assert set(other.rounds["site"]) == {"1e3", "01", "Celle"}
    for name in ("site_comparisons.csv", "decisions.csv"):
        pd.testing.assert_frame_equal(*(read_table(found.folder / name) for found in (plain, other)), check_exact=True)


def test_the_report_of_both_forms_is_the_same_but_for_times(both):
    plain, other, _ = both
    plain, other = Folder(plain.folder), Folder(other.folder)
    for name in ("results", "summary", "predictions", "site_table", "payloads", "calibration", "decisions"):
        pd.testing.assert_frame_equal(getattr(plain, name), getattr(other, name), check_exact=True)
    assert "subject" not in other.predictions
    assert plain.reveals == other.reveals != {}
    page = write_report(other.path).read_text(encoding="utf-8")
    assert "What was exchanged" in page


def test_the_bytes_of_parquet_are_those_of_a_second_run(both, tmp_path):
    _, other, entries = both
    study = Study.of(with_form(entries, "parquet"), other.folder.parent)
    again = study.run(tmp_path / "out")
    for name in ("results", "predictions", "payloads", "site_comparisons", "decisions"):
        first, second = ((found.folder / f"{name}.parquet").read_bytes() for found in (other, again))
        assert first == second, name


@pytest.mark.parametrize("form", ["csv", "parquet"])
@pytest.mark.parametrize("rounds", [1, 3, 6])
def test_a_study_stopped_and_resumed_ends_with_the_same_bytes(both, tmp_path, monkeypatch, form, rounds):
    """Stopped in the first round of the first method, in that of the second, and in its last."""
    unbroken, entries = both[form == "parquet"], both[2]
    study, count = Study.of(with_form(entries, form), unbroken.folder.parent), [0]
    write = Checkpoint.write

    def stop(self, *arguments):
        write(self, *arguments)
        count[0] += 1
        if count[0] == rounds:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "write", stop)
        with pytest.raises(KeyboardInterrupt):
            study.run(tmp_path / "out")
    again = study.run(tmp_path / "out", resume=True)
    for name in ("results", "predictions", "payloads", "site_comparisons", "decisions"):
        first, second = ((found.folder / f"{name}.{form}").read_bytes() for found in (unbroken, again))
        assert first == second, name
    first, second = (found.rounds.drop(columns="seconds") for found in (unbroken, again))
    pd.testing.assert_frame_equal(first, second, check_exact=True)


def test_a_finished_study_with_parquet_is_known_to_be_finished(both):
    _, other, entries = both
    study = Study.of(with_form(entries, "parquet"), other.folder.parent)
    assert study.run(other.folder, resume=True).results.equals(other.results)
    with pytest.raises(PolyclinicError, match="differs in `report`"):
        Study.of(entries, other.folder.parent).run(other.folder, resume=True)
    assert has_table(other.folder / "results.csv")
    assert not (other.folder / "results.csv").exists()


def test_reading_results_in_either_form_loads_no_pytorch(both):
    for found in both[:2]:
        code = (
            "import sys; from polyclinic.study.results import Results; from pathlib import Path; "
            "r = Results(Path(sys.argv[1])); r.results, r.rounds, r.payloads; assert 'torch' not in sys.modules"
        )
        subprocess.run([sys.executable, "-c", code, found.folder], check=True)
