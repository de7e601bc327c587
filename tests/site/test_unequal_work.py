"""Sites that do different amounts of local work: steps, epochs and time of their own."""

import pytest
import torch

from helpers import Federation, recorded, table_sites, write_table_study
from polyclinic.client.work import Work, batch_sizes
from polyclinic.errors import StudyError
from polyclinic.study.study import Study

#: Batches of 8: five, two, one and three steps an epoch (a single case left over joins the batch before it).
SITES = {"Aachen": 34, "Bonn": 10, "Celle": 5, "Dresden": 20}


def steps(**training):
    _, rows = Federation(table_sites(SITES), training=training, stacked=training.pop("stacked", False)).rounds()
    return [row["steps"] for row in rows]


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize(
    ("training", "expected"),
    [
        ({}, [5, 2, 1, 3]),
        ({"local_steps": 4}, [4, 4, 4, 4]),
        ({"local_steps": {"Aachen": 2, "Celle": 6}}, [2, 2, 6, 3]),
        ({"local_steps": {"Aachen": 2}, "local_epochs": 2}, [2, 4, 2, 6]),
        ({"local_epochs": {"Bonn": 3}}, [5, 6, 1, 3]),
        ({"local_epochs": {"Bonn": 3}, "local_steps": {"Dresden": 1}}, [5, 6, 1, 1]),
    ],
)
def test_sites_do_the_work_that_is_declared_for_them(training, expected, stacked):
    assert steps(**training, stacked=stacked) == expected


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize(
    ("training", "expected"),
    [
        ({"time_budget": 3, "step_seconds": 1}, [3, 2, 1, 3]),
        ({"time_budget": 0.3, "step_seconds": 0.1}, [3, 2, 1, 3]),  # 0.3 / 0.1 is 2.9999999999999996 in floating point
        ({"time_budget": 0.5, "step_seconds": 1}, [1, 1, 1, 1]),
        ({"time_budget": 3, "step_seconds": {"Aachen": 0.5, "Bonn": 2, "Celle": 1, "Dresden": 1}}, [5, 1, 1, 3]),
        ({"time_budget": {"Aachen": 2}, "step_seconds": 1, "local_epochs": 2}, [2, 4, 2, 6]),
        ({"time_budget": 3, "step_seconds": 1, "local_steps": {"Celle": 9}}, [3, 2, 3, 3]),
    ],
)
def test_a_time_budget_with_declared_speeds(training, expected, stacked):
    """As many steps as the budget holds at the declared speed, never more than declared, never none."""
    assert steps(**training, stacked=stacked) == expected


def test_by_the_clock_there_is_at_least_one_step():
    assert steps(time_budget=1e-9) == [1, 1, 1, 1]
    assert steps(time_budget=3600) == [5, 2, 1, 3]


def test_a_site_stopped_by_the_clock_has_done_the_first_steps_of_its_work():
    stopped = Federation(table_sites(SITES), training={"time_budget": 1e-9})
    one = Federation(table_sites(SITES), training={"local_steps": 1})
    with recorded(stopped.engine) as said, recorded(one.engine) as expected:
        stopped.rounds()
        one.rounds()
    changes = [[r.tensors["change"] for f, _, _, r in found if f == "train"] for found in (said, expected)]
    for first, second in zip(*changes, strict=True):
        assert torch.equal(first, second)


def test_own_steps_are_the_first_steps_of_the_same_order():
    """Aachen with two steps does the first two of its five."""
    few = Federation(table_sites({"Aachen": 34}), training={"local_steps": {"Aachen": 2}})
    assert torch.equal(few.state(), Federation(table_sites({"Aachen": 34}), training={"local_steps": 2}).state())


def test_batch_sizes_with_steps_of_its_own():
    work = Work("train", 1, None, 8, ("sgd", {}))
    assert batch_sizes(17, work) == [8, 9]
    assert batch_sizes(17, work, 3) == [8, 9, 8]
    assert batch_sizes(17, Work("train", None, 5, 8, ("sgd", {})), 1) == [8]


def test_the_same_site_has_steps_or_epochs():
    with pytest.raises(StudyError, match="Bonn has both `local_epochs` and `local_steps`; give one"):
        steps(local_epochs={"Bonn": 1}, local_steps={"Bonn": 2})


@pytest.mark.parametrize(
    ("training", "key"),
    [
        ({"local_steps": {"Aachn": 2}}, "local_steps"),
        ({"local_epochs": {"Aachn": 2}}, "local_epochs"),
        ({"time_budget": {"Aachn": 2}}, "time_budget"),
        ({"step_seconds": {"Aachn": 2}}, "step_seconds"),
        ({"participation": {"availability": {"probability": {"Aachn": 0.5}}}}, "participation"),
        ({"participation": [{"uniform": {"sites": 1}}, {"availability": {"absent": {"Aachn": [1]}}}]}, "participation"),
    ],
)
def test_sites_that_are_not_there_are_refused(training, key, tmp_path):
    entries = write_table_study(tmp_path, {"Aachen": 20, "Bonn": 20})
    entries["training"] |= training
    with pytest.raises(StudyError) as caught:
        Study.of({**entries, "data": {**entries["data"], "table": str(tmp_path / "cases.csv")}}).run(tmp_path / "out")
    assert str(caught.value) == (
        f"P103 `training: {{{key}: ...}}` names the site 'Aachn', which is not there. Did you mean 'Aachen'?"
    )


def test_a_trusted_site_that_is_not_there_is_refused_before_anything_is_trained(tmp_path):
    entries = write_table_study(tmp_path, {"Aachen": 20, "Bonn": 20})
    entries["methods"] = ["single", {"fltrust": {"trusted": "Aachn"}}]
    with pytest.raises(StudyError) as caught:
        Study.of({**entries, "data": {**entries["data"], "table": str(tmp_path / "cases.csv")}}).run(tmp_path / "out")
    assert str(caught.value) == (
        "P103 `fltrust(trusted=Aachn)` names the site 'Aachn', which is not there. Did you mean 'Aachen'?"
    )
    assert not (tmp_path / "out" / "jobs").exists()


def test_a_budget_by_the_clock_is_not_stacked(tmp_path):
    entries = write_table_study(tmp_path, {"Aachen": 20, "Bonn": 20})
    entries["training"] |= {"time_budget": 5}
    entries |= {"engine": {"mode": "stacked", "threads": 1}, "methods": ["fedavg"]}
    study = Study.of({**entries, "data": {**entries["data"], "table": str(tmp_path / "cases.csv")}})
    with pytest.raises(StudyError, match="a time budget is kept by the clock"):
        study.run(tmp_path / "out")
