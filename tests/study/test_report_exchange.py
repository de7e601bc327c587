"""The report's section on what was exchanged: read from rounds.csv as the loop writes it."""

import pandas as pd
import pytest

from helpers import write_table_study
from polyclinic.communication.exchange import Traffic
from polyclinic.composition import METHODS  # noqa: F401 - the parts enter their catalogues
from polyclinic.errors import ResultsError
from polyclinic.parts import PLACES
from polyclinic.study.columns import EXCHANGED
from polyclinic.study.payloads import Numbers, read_payloads
from polyclinic.study.report.exchange import Payload, Presence, exchanged
from polyclinic.study.report.folder import Folder
from polyclinic.study.report.page import render
from polyclinic.study.study import Study
from polyclinic.study.table_files import read_table, write_table

COLUMNS = ["method", "run", "seed", "fold", "round", "site", "bytes_up", "bytes_down", "extra_up", "extra_down"]


def folder_of(tmp_path, rows, sites=("A", "B"), *, old=False):
    """A results folder with these rounds; ``old``: as versions wrote it that had the words in every row."""
    run = {"method": "m", "run": "plain", "seed": 0, "fold": 0}
    line = {**run, "trained_on": "federation", "tested_on": "all", "metric": "auc"}
    write_table(tmp_path / "results.csv", pd.DataFrame([line | {"value": 0.5}]))
    frame = pd.DataFrame(rows, columns=COLUMNS).assign(seconds=0.1, examples=5, loss=0.5)
    numbers = Numbers()
    write_table(tmp_path / "rounds.csv", frame if old else numbers.put(frame))
    if not old:
        write_table(tmp_path / "payloads.csv", numbers.table())
    told = [("m", "rule/change", "a change"), ("m", "rule/mean", "a mean; and more")]
    write_table(tmp_path / "exchanged.csv", pd.DataFrame(told, columns=EXCHANGED))
    write_table(tmp_path / "sites.csv", pd.DataFrame({"site": sites, "found": 5, "used": 5, "rejected": 0}))
    return Folder(tmp_path)


def row(method, number, site, up=400, down=400, extra_up="", extra_down=""):
    return [method, "plain", 0, 0, number, site, up, down, extra_up, extra_down]


@pytest.mark.parametrize("old", [False, True])
def test_the_model_is_what_is_left_without_the_extras(tmp_path, old):
    up = "rule/change [2, 3] 24 bytes; other/path [] 8 bytes"
    rows = [row("m", n, s, up=432, down=400 if n == 0 else 424, extra_up=up,
                extra_down="" if n == 0 else "rule/mean [6] 24 bytes")
            for n in range(2) for s in "AB"]  # fmt: skip
    (one,) = exchanged(folder_of(tmp_path, rows, old=old)).methods
    assert (one.up, one.down) == ("400 bytes", "400 bytes")
    assert one.payloads == [
        Payload("change", "to the server", "2 × 3 numbers", "24 bytes", "a change", "in every round"),
        Payload("path", "to the server", "one number", "8 bytes", "", "in every round"),
        Payload("mean", "to the site", "6 numbers", "24 bytes", "a mean; and more", "in every round but the first"),
    ]


def test_what_is_announced_once_says_so(tmp_path):
    rows = [row("m", n, s, up=416 if n == 0 else 400, extra_up="labels/counts [2] 16 bytes" if n == 0 else "")
            for n in range(3) for s in "AB"]  # fmt: skip
    (one,) = exchanged(folder_of(tmp_path, rows)).methods
    assert [(p.name, p.often) for p in one.payloads] == [("counts", "once, at the start")]


def test_who_took_part_is_shown_where_somebody_did_not(tmp_path):
    """Of five rounds the third has no row; B is missing in the second, too."""
    rows = [row("all", n, s) for n in range(5) for s in "AB"]
    rows += [row("some", n, s) for n, sites in enumerate(["AB", "A", "", "AB", "AB"]) for s in sites]
    found = exchanged(folder_of(tmp_path, rows))
    assert found.sites == ["A", "B"]
    assert found.presence == [Presence("some", "5", "1", ["4 (80\u00a0%)", "3 (60\u00a0%)"])]


def test_a_site_that_never_took_part_is_shown_all_the_same(tmp_path):
    found = exchanged(folder_of(tmp_path, [row("some", n, "A") for n in range(2)]))
    assert (found.sites, found.presence[0].sites) == (["A", "B"], ["2 (100\u00a0%)", "0 (0\u00a0%)"])


def test_sites_alone_and_the_pool_exchange_nothing(tmp_path):
    rows = [row("single", 0, "A", 0, 0), row("mix", 0, "pool")]
    folder = folder_of(tmp_path, rows)
    assert exchanged(folder) is None
    assert "What was exchanged" not in render(folder)


def test_results_of_before_there_were_these_columns_can_be_read(tmp_path):
    folder_of(tmp_path, [row("m", 0, "A")])
    frame = pd.read_csv(tmp_path / "rounds.csv").drop(columns="payloads")
    write_table(tmp_path / "rounds.csv", frame)
    assert exchanged(Folder(tmp_path)) is None


def test_a_study_shows_what_its_methods_exchange(tmp_path):
    entries = write_table_study(tmp_path, {"Aachen": 24, "Bonn": 20})
    entries["data"]["table"] = str(tmp_path / "cases.csv")
    entries["training"] |= {"rounds": 2}
    entries["methods"] = ["mix", "fedavg", "scaffold", {"fednova": {
        "training": {"participation": {"availability": {"absent": {"Bonn": [2]}}}}, "label": "nova"}}]  # fmt: skip
    Study.of(entries).run(tmp_path / "out")
    found = exchanged(Folder(tmp_path / "out"))
    assert [(one.method, [p.name for p in one.payloads]) for one in found.methods] == [
        ("fedavg", []), ("scaffold", ["control change", "control"]), ("nova", ["path"]),
    ]  # fmt: skip
    assert found.presence == [Presence("nova", "4", "0", ["4 (100\u00a0%)", "2 (50\u00a0%)"])]
    told = read_table(tmp_path / "out" / "exchanged.csv")
    assert told[["method", "payload"]].to_numpy().tolist() == [
        ["scaffold", "control_variates/control_change"], ["scaffold", "control_variates/control"],
        ["nova", "normalised/path"],
    ]  # fmt: skip
    assert not any(words in (tmp_path / "out" / "rounds.csv").read_text() for words in told["reveals"])
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "the mean gradient of all sites: like a second global model" in page
    assert "Who took part" in page


def test_every_payload_can_be_read_back_from_its_words():
    import torch

    declared = {
        f"{name}/{key}": words
        for catalogue in PLACES.values()
        for name in catalogue
        for key, words in catalogue[name].reveals.items()
    }
    assert {"control_variates/control", "fedce/leave_one_out", "label_shares/counts"} <= declared.keys()
    traffic = Traffic()
    traffic.add({name: torch.zeros(2) for name in declared}, 0)
    assert {found.name for found in read_payloads(traffic.describe())} == declared.keys()
    assert all(len(words.split()) >= 4 for words in declared.values()), "says what it could reveal"


def test_numbers_that_payloads_csv_does_not_know_are_refused(tmp_path):
    folder_of(tmp_path, [row("m", n, "A", extra_up="rule/change [6] 24 bytes") for n in range(2)])
    (tmp_path / "payloads.csv").unlink()
    with pytest.raises(ResultsError, match=r"payloads.csv .* says nothing of number 1, which rounds.csv has"):
        Folder(tmp_path)


def test_words_of_an_older_version_that_nobody_understands_are_refused(tmp_path):
    with pytest.raises(ResultsError, match=r"rounds.csv .* got 'nonsense'"):
        folder_of(tmp_path, [row("m", 0, "A", extra_up="nonsense")], old=True)


def test_a_payload_that_varies_between_sites_and_rounds_says_so(tmp_path):
    """Three shapes in four rows, by hand: 8 to 24 bytes, in three of four exchanges, the model always 400 bytes."""
    texts = ["rule/change [2] 8 bytes", "rule/change [6] × 1 24 bytes", "", "rule/change [2] × 2 16 bytes"]
    sizes = [8, 24, 0, 16]
    rows = [row("m", n, s, up=400 + sizes[2 * n + i], extra_up=texts[2 * n + i])
            for n in range(2) for i, s in enumerate("AB")]  # fmt: skip
    (one,) = exchanged(folder_of(tmp_path, rows)).methods
    shape = "2 numbers or 6 numbers or 2 numbers, 2 times"
    assert one.up == "400 bytes"
    assert one.payloads == [
        Payload("change", "to the server", shape, "8 bytes to 24 bytes", "a change", "in 75\u00a0% of the exchanges")
    ]
