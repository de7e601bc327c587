"""What was sent besides the model is said once, and rows of rounds.csv point to it by a number."""

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers import write_table_study
from polyclinic.communication.exchange import Traffic
from polyclinic.study.payloads import Numbers, Sent, exchanged_table, read_payloads
from polyclinic.study.results import Results
from polyclinic.study.study import Study
from polyclinic.study.table_files import write_table

CHANGE, MEAN = "rule/change [2, 3] 24 bytes", "rule/mean [] × 2 16 bytes"


def rounds_of(*words):
    return pd.DataFrame({"site": "A", "extra_up": [up for up, _ in words], "extra_down": [d for _, d in words], "s": 1})


def test_equal_things_have_equal_numbers_in_order_of_appearance():
    numbers = Numbers()
    first = numbers.put(rounds_of(("", ""), (CHANGE, ""), ("", CHANGE), (CHANGE, "")))
    second = numbers.put(rounds_of((f"{CHANGE}; {MEAN}", MEAN), ("", CHANGE), ("", "")))
    assert list(first.columns) == ["site", "payloads", "s"], "where the words were"
    assert first["payloads"].tolist() == [0, 1, 2, 1]
    assert second["payloads"].tolist() == [3, 2, 0]
    assert numbers.table().to_numpy().tolist() == [
        [1, "up", "rule/change", "[2, 3]", 1, 24],
        [2, "down", "rule/change", "[2, 3]", 1, 24],
        [3, "up", "rule/change", "[2, 3]", 1, 24],
        [3, "up", "rule/mean", "[]", 2, 16],
        [3, "down", "rule/mean", "[]", 2, 16],
    ]


def test_a_training_without_rounds_gets_no_numbers():
    assert Numbers().put(pd.DataFrame()).empty
    assert Numbers().put(rounds_of()).columns.tolist() == ["site", "payloads", "s"]


names = st.text(st.characters(blacklist_categories=["Cs"]), min_size=1, max_size=8).map(str.strip).filter(bool)
shapes = st.lists(st.integers(0, 99), max_size=3).map(tuple)


@given(st.dictionaries(st.tuples(names, shapes), st.integers(1, 3), max_size=4))
def test_what_is_described_can_be_read_again(sent):
    """For any names, also with blanks; those that look like the end of another payload can't be told from it."""
    sent = {key: times for key, times in sent.items() if not {";", "[", "×"} & set(key[0])}
    traffic = Traffic()
    traffic.sent.update({(f"part/{name}", shape, 4): times for (name, shape), times in sent.items()})
    found = read_payloads(traffic.describe())
    assert sorted(found, key=str) == sorted(
        (Sent(f"part/{name}", str(list(shape)), times, 4 * times) for (name, shape), times in sent.items()), key=str
    )


@pytest.mark.parametrize(
    "text", ["nonsense", f"{CHANGE}; ", f"{CHANGE}; rest", "rule/change [2, 3] 24", "a [x] 1 bytes"]
)
def test_words_that_nobody_understands_are_refused(text):
    with pytest.raises(ValueError, match="expected 'PART/NAME"):
        read_payloads(text)


def test_what_was_not_sent_reveals_nothing():
    payloads = pd.DataFrame({"payloads": [1, 2, 2], "payload": ["a/x", "a/x", "b/y"]})
    reveals = {"m": {"a/x": "one", "b/y": "two"}, "n": {"b/y": "two"}, "none": {"a/x": "one"}, "away": {"a/x": "one"}}
    told = exchanged_table({"m": [0, 1], "n": [2], "none": [0]}, payloads, reveals)
    assert told.to_numpy().tolist() == [["m", "a/x", "one"], ["n", "b/y", "two"]]


def test_a_study_says_once_what_is_sent_in_every_round(tmp_path):
    """Scaffold sends a control variate up in each round, and down from the second on: two numbers."""
    entries = write_table_study(tmp_path, {"Aachen": 24, "Bonn": 20})
    entries["training"] |= {"rounds": 3}
    entries["methods"] = ["fedavg", "scaffold", {"qfedavg": {"label": "q"}}]
    results = Study.of(entries, tmp_path).run(tmp_path / "out")
    text = (tmp_path / "out" / "rounds.csv").read_text()
    assert not any(words in text for words in ("control", "bytes;", "start_loss"))
    rounds = results.rounds
    assert rounds.groupby("method", sort=False)["payloads"].agg(lambda found: sorted(set(found))).to_dict() == {
        "fedavg": [0], "scaffold": [1, 2], "q": [3],
    }  # fmt: skip
    first = rounds[rounds["method"] == "scaffold"].groupby("round")["payloads"].unique()
    assert [list(one) for one in first] == [[1], [2], [2]]
    told = results.payloads.set_index(["payloads", "way", "payload"])
    size = int(rounds.loc[rounds["method"] == "fedavg", "bytes_up"].iloc[0])
    for way, name in (("up", "control_change"), ("down", "control")):
        one = told.loc[(2, way, f"control_variates/{name}")]
        assert one["bytes"] == 4 * int(one["shape"].strip("[]"))
    assert (1, "down", "control_variates/control") not in told.index
    besides = results.payloads.groupby(["payloads", "way"])["bytes"].sum()
    for way in ("up", "down"):
        left = rounds[f"bytes_{way}"] - [besides.get((number, way), 0) for number in rounds["payloads"]]
        assert all(abs(one - size) < 300 for one in left), "the model, with what is around it and the payloads"


def test_older_results_read_as_the_present_ones(tmp_path):
    old = rounds_of((CHANGE, ""), ("", ""), (CHANGE, MEAN)).assign(method="m", run="plain")
    write_table(tmp_path / "results.csv", pd.DataFrame({"method": ["m"], "run": ["plain"]}))
    write_table(tmp_path / "rounds.csv", old)
    results = Results(tmp_path)
    assert results.rounds["payloads"].tolist() == [1, 0, 2]
    assert results.payloads["payload"].tolist() == ["rule/change", "rule/change", "rule/mean"]
