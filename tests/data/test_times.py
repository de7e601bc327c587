"""Times and events of a table: what is used, what is rejected, and what a person is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from polyclinic.data.open import open_data
from polyclinic.data.opening.cohort import Opened
from polyclinic.data.spec import DataSpec
from polyclinic.data.splits import split
from polyclinic.errors import DataError


def table(cases: int = 40, *, sites: str = "ABC", seed: int = 0) -> pd.DataFrame:
    """Times in days with two features."""
    source = np.random.default_rng(seed)
    frame = pd.DataFrame({"site": [sites[case % len(sites)] for case in range(cases)]})
    frame["time"] = source.integers(5, 900, cases)
    frame["died"] = source.integers(0, 2, cases)
    return frame.assign(age=source.normal(60, 9, cases).round(1), size=source.normal(3, 1, cases).round(2))


def opened(folder: Path, frame: pd.DataFrame, **entries: Any) -> Opened:
    frame.to_csv(folder / "cases.csv", index=False)
    told = {"table": "cases.csv", "site": "site", "time": "time", "event": "died", "time_unit": "days"}
    return open_data(DataSpec(**{**told, "features": ["age", "size"], **entries}), folder, "times")


def numbers(found: Opened) -> dict[str, str]:
    return {note.number: str(note) for note in found.notes}


def test_times_and_events_as_the_table_has_them(tmp_path: Path) -> None:
    frame = table()
    found = opened(tmp_path, frame)
    assert found.classes == ["censored", "event"]
    mine = frame[frame["site"] == "B"]
    targets = found.sites["B"].targets
    assert isinstance(targets, torch.Tensor)
    assert targets.tolist() == mine[["time", "died"]].to_numpy(float).tolist()
    assert found.sites["B"].labels is not None
    assert found.sites["B"].labels.tolist() == mine["died"].tolist()
    assert not set(numbers(found)) & {f"N25{number}" for number in range(6)}


def test_a_glob_takes_neither_time_nor_event(tmp_path: Path) -> None:
    assert opened(tmp_path, table(), features="*").features == ["age", "size"]


@pytest.mark.parametrize(
    ("events", "entries", "expected"),
    [
        (["1", "0", "1", "0"], {}, [1, 0, 1, 0]),
        (["1.0", "0.0", "1.0", "0.0"], {}, [1, 0, 1, 0]),
        (["TRUE", "False", "true", "false"], {}, [1, 0, 1, 0]),
        (["2", "1", "2", "1"], {"positive": 2}, [1, 0, 1, 0]),
        (["dead", "alive", "dead", "lost"], {"positive": "dead"}, [1, 0, 1, 0]),
        (["3", "1", "2", "0"], {"positive": "> 1"}, [1, 0, 1, 0]),
        (["1", "1", "1", "1"], {"positive": 1}, [1, 1, 1, 1]),
        (["relapse", "alive", "dead", "alive"], {"positive": ["relapse", "dead"]}, [1, 0, 1, 0]),
    ],
)
def test_what_means_an_event(events: list[str], entries: dict[str, Any], expected: list[int], tmp_path: Path) -> None:
    frame = pd.DataFrame({"site": "A", "time": [3, 4, 5, 6], "died": events, "age": [1, 2, 3, 5], "size": [4, 2, 1, 1]})
    assert opened(tmp_path, frame, **entries).sites["A"].labels.tolist() == expected  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("events", "entries", "message"),
    [
        (["1", "2", "1", "2"], {}, "has 1 and 2; expected 1 where the event happened"),
        (["1", "1", "1", "1"], {}, "has 1; expected 1 where the event happened and 0 where it did not"),
        (["0", "0", "0", "0"], {}, "has 0; expected"),
        (["0", "1", "2", "1"], {}, "has 0, 1 and 2; expected"),
        (["dead", "alive", "dead", "alive"], {}, "has alive and dead; expected"),
        (["0", "1", "0", "1"], {"positive": 2}, r"The event never happens: .* has 0 and 1, and none of them"),
    ],
)
def test_codes_are_not_guessed(events: list[str], entries: dict[str, Any], message: str, tmp_path: Path) -> None:
    frame = pd.DataFrame({"site": "A", "time": [3, 4, 5, 6], "died": events, "age": [1, 2, 3, 5], "size": [4, 2, 1, 1]})
    with pytest.raises(DataError, match=message) as error:
        opened(tmp_path, frame, **entries)
    assert error.value.code == "P203"


@pytest.mark.parametrize("name", ["censored", "Cens", "is_alive", "survived", "lost_to_follow_up"])
def test_a_column_that_says_the_opposite_is_not_taken_for_the_event(name: str, tmp_path: Path) -> None:
    frame = table().rename(columns={"died": name})
    with pytest.raises(DataError, match="seems to say which cases did not have the event"):
        opened(tmp_path, frame, event=name)
    found = opened(tmp_path, frame, event=name, positive=0).sites["A"].labels
    assert found is not None
    assert found.tolist() == (1 - frame[name][frame["site"] == "A"]).tolist()


@pytest.mark.parametrize("name", ["survival_status", "overall_survival_event", "dead", "vital"])
def test_other_names_of_events_are_taken(name: str, tmp_path: Path) -> None:
    assert opened(tmp_path, table().rename(columns={"died": name}), event=name).classes == ["censored", "event"]


def test_an_identifier_in_the_place_of_the_event_is_not_quoted(tmp_path: Path) -> None:
    frame = table().assign(died=[f"MRN{number:03d}" for number in range(40)])
    with pytest.raises(DataError, match="has 40 different values; expected"):
        opened(tmp_path, frame)


def test_rows_without_time_or_event_are_rejected_and_counted(tmp_path: Path) -> None:
    frame = table().astype({"time": object, "died": object})
    for row, (column, value) in enumerate(
        [("time", ""), ("time", "soon"), ("time", 0), ("time", -3), ("time", "inf"), ("died", ""), ("died", "NA")]
    ):
        frame.loc[3 * row, column] = value  # all at site A
    counts = opened(tmp_path, frame).sites["A"].counts
    assert counts.rejected == {
        "time is missing": 1, "time is not a number": 2, "time is not above 0": 2, "died is missing": 2,
    }  # fmt: skip
    assert counts.found == counts.used + 7


@pytest.mark.parametrize(
    ("times", "message"),
    [
        (["2020-01-31", "2021-05-06", "2020-02-28", "2022-08-09"], "Dates are no numbers"),
        (["1,5", "2,25", "3,5", "4,75"], "decimal comma"),
        (["12 months", "3 months", "5 months", "7 months"], "unit into the column's name"),
    ],
)
def test_times_that_are_no_numbers_stop_with_what_to_do(times: list[str], message: str, tmp_path: Path) -> None:
    frame = pd.DataFrame({"site": "A", "time": times, "died": [1, 0, 1, 0], "age": [1, 2, 3, 5], "size": [4, 2, 1, 1]})
    with pytest.raises(DataError, match="P203") as error:
        opened(tmp_path, frame)
    assert message in str(error.value)


def test_events_are_spread_over_the_parts(tmp_path: Path) -> None:
    frame = table(120, sites="A").assign(died=lambda rows: (np.arange(len(rows)) % 4 == 0).astype(int))
    data = opened(tmp_path, frame).sites["A"]
    labels = data.labels
    assert labels is not None
    for fold in range(5):
        parts = split(data, folds=5, fold=fold, validation=0.25, seed=0)
        assert [int(labels[index].sum()) for index in (parts.train, parts.validation, parts.test)] == [18, 6, 6]


# Notes ----------------------------------------------------------------------------------------------------------------


def test_sites_where_the_event_never_or_always_happens(tmp_path: Path) -> None:
    frame = table()
    frame.loc[frame["site"] == "A", "died"] = 0
    frame.loc[frame["site"] == "C", "died"] = 1
    found = [str(note) for note in opened(tmp_path, frame).notes if note.number == "N250"]
    assert found[0].startswith("The event never happens at 1 of 3 sites (A)")
    assert found[1].startswith("The event always happens at 1 of 3 sites (C)")


def test_other_events_are_counted(tmp_path: Path) -> None:
    frame = table(40).assign(died=[case % 4 for case in range(40)])
    assert "3 values besides `positive`" in numbers(opened(tmp_path, frame, positive=1))["N251"]
    assert "0 (10), 2 (10), 3 (10)" in numbers(opened(tmp_path, frame, positive=1))["N251"]
    for plain in (2, "> 0", [1, 2, 3]):
        two = frame.assign(died=frame["died"].clip(1, 2) if plain == 2 else frame["died"])
        assert "N251" not in numbers(opened(tmp_path, two, positive=plain))


def test_a_patient_with_several_times(tmp_path: Path) -> None:
    frame = table().assign(patient=[f"p{case // 2}" for case in range(40)])
    frame["site"] = [frame["site"][case // 2 * 2] for case in range(40)]
    assert numbers(opened(tmp_path, frame, subject="patient"))["N252"].startswith(
        "20 patients have rows with different"
    )
    both = ["time", "died"]
    frame.loc[1::2, both] = frame.loc[0::2, both].to_numpy()
    assert "N252" not in numbers(opened(tmp_path, frame, subject="patient"))


@pytest.mark.parametrize(("factor", "told"), [(1 / 30.4, "1/"), (12.0, "1"), (1.5, "")])
def test_another_unit_at_a_site(factor: float, told: str, tmp_path: Path) -> None:
    frame = table(90)
    here = frame["site"] == "B"
    frame["time"] = frame["time"].astype(float).where(~here, (frame["time"] * factor).round(2))
    found = numbers(opened(tmp_path, frame))
    assert ("N253" in found) == bool(told)
    if told:
        assert found["N253"].startswith("Site B: the median of 'time' is " + told)
        assert found["N253"].endswith("All sites must count in days.")


def test_more_digits_than_are_kept(tmp_path: Path) -> None:
    frame = table().assign(time=[100_000_000 + case for case in range(40)])
    assert numbers(opened(tmp_path, frame))["N254"].startswith("Column 'time': 3")
    assert "N254" not in numbers(opened(tmp_path, table().assign(time=[365.2425 + case / 8 for case in range(40)])))


def test_a_feature_that_follows_the_time(tmp_path: Path) -> None:
    frame = table(60)
    frame["stay"] = frame["time"] * 0.9 + 3
    found = numbers(opened(tmp_path, frame, features=["age", "stay"]))
    assert found["N255"].startswith("1 feature orders the cases with the event as its time does: stay.")
    frame["stay"] = frame["time"] + np.random.default_rng(1).normal(0, 300, 60)
    assert "N255" not in numbers(opened(tmp_path, frame, features=["age", "stay"]))
