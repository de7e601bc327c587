"""Checklists: every answer follows from the files of the run, and changes with them."""

import json
import re
from pathlib import Path
from shutil import copytree

import pandas as pd
import pytest
import yaml

from polyclinic import cli
from polyclinic.errors import ResultsError
from polyclinic.study.columns import PRIVACY
from polyclinic.study.report.checklists import CHECKLISTS, answered
from polyclinic.study.report.checklists.items import Item, NotDone, Status, counted
from polyclinic.study.report.checklists.writing import html, markdown, summary, write_checklist
from polyclinic.study.report.folder import Folder
from polyclinic.study.report.page import render

DOCS = Path(__file__).resolve().parents[2] / "docs"
FEDERATED, TRIPOD, CLAIM = (CHECKLISTS[name] for name in ("federated", "tripod-ai", "claim"))


@pytest.fixture
def copied(finished_study, tmp_path):
    """A results folder that may be changed."""
    return Path(copytree(finished_study, tmp_path / "out"))


def changed_study(folder, **entries):
    """Rewrite entries of the study file: ``part__entry=value``."""
    path = folder / "study.yaml"
    study = yaml.safe_load(path.read_text(encoding="utf-8"))
    for name, value in entries.items():
        part, _, entry = name.partition("__")
        if entry:
            study[part] = (study.get(part) or {}) | {entry: value}
        else:
            study[part] = value
    path.write_text(yaml.safe_dump(study, sort_keys=False), encoding="utf-8")


def changed_record(folder, **entries):
    path = folder / "provenance.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def answer(folder, number, checklist=FEDERATED):
    return next(one for one in answered(checklist, Folder(folder)) if one.item.number == number)


# --- the lists --------------------------------------------------------------------------------------------------------


def test_the_lists_have_the_items_of_their_originals():
    assert [item.number for item in CLAIM.items] == [str(number) for number in range(1, 45)]
    numbers = [item.number for item in TRIPOD.items]
    assert len(numbers) == len(set(numbers)) == 52
    assert {int(re.sub(r"\D", "", number)) for number in numbers} == set(range(1, 28))
    lettered = {
        3: "abc",
        5: "ab",
        6: "abc",
        8: "abc",
        9: "abc",
        12: "abcdefg",
        18: "abcdef",
        20: "abc",
        23: "ab",
        27: "abc",
    }
    for number in range(1, 28):
        wanted = [f"{number}{letter}" for letter in lettered.get(number, "")] or [str(number)]
        assert [one for one in numbers if int(re.sub(r"\D", "", one)) == number] == wanted
    assert [item.number for item in FEDERATED.items] == [f"F{number}" for number in range(1, 36)]


@pytest.mark.parametrize("checklist", CHECKLISTS.values(), ids=CHECKLISTS)
def test_every_item_can_be_answered_by_the_run_or_by_the_authors(checklist):
    for item in checklist.items:
        assert item.find or item.authors, item.number
        assert item.asks


def test_the_page_of_the_list_for_federated_studies_is_the_list():
    text = (DOCS / "federated-checklist.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (F\d+) \| (.*?) \| (.*?) \|$", text, flags=re.MULTILINE)
    assert [(number, asks) for number, asks, _ in rows] == [(item.number, item.asks) for item in FEDERATED.items]
    assert all(why for _, _, why in rows)
    sections = re.findall(r"^## (.*)$", text, flags=re.MULTILINE)
    assert sections[:-1] == list(dict.fromkeys(item.section for item in FEDERATED.items))
    cited = {int(number) for number in re.findall(r"\[(\d)\]", text)}
    assert cited == {int(number) for number in re.findall(r"^(\d)\. ", text, flags=re.MULTILINE)}


# --- answers ----------------------------------------------------------------------------------------------------------


def test_the_flow_is_told_with_its_numbers(finished_study):
    found = answer(finished_study, "F6").found
    assert "110 cases found at 4 sites, 7 rejected, 103 of 103 patients used" in found
    assert "Left out as a whole: Dessau." in found
    assert "Aachen: 40 found, 37 used" in found
    assert answer(finished_study, "35", CLAIM).found.startswith("110 cases found")
    assert answer(finished_study, "20a", TRIPOD).status == Status.BOTH


def test_missing_values_are_told_by_site(finished_study):
    found = answer(finished_study, "F9").found
    assert "missing at 1 of 3 sites (Bonn 6.67\u00a0%); imputation: mean" in found
    assert "diagnosis is missing (7)" in found


def test_classes_of_the_parts_are_told(finished_study):
    found = answer(finished_study, "F7").found
    flow = pd.read_csv(finished_study / "flow.csv", keep_default_na=False)
    train = flow[(flow["stage"] == "train") & (flow["what"] == "")].groupby("fold")["cases"].sum()
    ends = list(dict.fromkeys(map(str, sorted(train))))
    assert f"training {' to '.join(ends)} (" in found
    assert "kind 0 51, kind 1 52" in found


def test_what_was_not_done_is_called_so(finished_study):
    for number, checklist in (
        ("F21", FEDERATED),
        ("F22", FEDERATED),
        ("F31", FEDERATED),
        ("31", CLAIM),
        ("12f", TRIPOD),
    ):
        one = answer(finished_study, number, checklist)
        assert one.status == Status.NOT_DONE, number
        assert one.found.startswith("Not done")


def test_unseen_sites_are_told_only_where_there_were_some(finished_study, copied):
    assert "by fedavg" in answer(finished_study, "F29").found
    assert answer(finished_study, "F29").status == Status.RUN
    for name in ("results.csv", "summary.csv", "predictions.csv", "rounds.csv"):
        table = pd.read_csv(copied / name, dtype=str, keep_default_na=False)
        table[table["run"] != "unseen"].to_csv(copied / name, index=False)
    (copied / "unseen.csv").unlink()
    for number, checklist in (("F29", FEDERATED), ("33", CLAIM)):
        one = answer(copied, number, checklist)
        assert one.status == Status.NOT_DONE
        assert "no site was left out of training" in one.found
    assert "also by site" not in answer(copied, "F25").found


def test_the_search_is_told_with_its_budget_and_time(finished_study, copied):
    found = answer(finished_study, "F16").found
    assert "2 configurations each (single 2, fedavg 2, fedbn 2)" in found
    assert "once for all folds" in found
    assert "Time of all trials of the search: single " in answer(finished_study, "F18").found
    table = pd.read_csv(copied / "search.csv", dtype=str, keep_default_na=False)
    table[(table["method"] != "fedbn") & ((table["method"] != "single") | (table["trial"] == "0"))].to_csv(
        copied / "search.csv", index=False
    )
    uneven = answer(copied, "F16").found
    assert "1 to 2 configurations (single 1, fedavg 2)" in uneven
    assert "Nothing was searched for fedbn." in uneven
    (copied / "search.csv").unlink()
    assert answer(copied, "F16").status == Status.NOT_DONE


def test_sites_that_missed_rounds_came_late_or_left_are_named(finished_study, copied):
    assert "there in all" in answer(finished_study, "F3").found
    table = pd.read_csv(copied / "rounds.csv", dtype=str, keep_default_na=False)
    mine = (table["method"] == "fedavg") & (table["run"] == "plain")
    late = mine & (table["site"] == "Bonn") & (table["round"] == "0")
    gone = mine & (table["site"] == "Celle") & (table["round"] == "1")
    table[~late & ~gone].to_csv(copied / "rounds.csv", index=False)
    found = answer(copied, "F3").found
    rounds = mine.sum() / 3 + ((table["method"] == "fedbn") & (table["run"] == "plain")).sum() / 3
    assert f"of {rounds:.0f} over methods, folds and seeds: Bonn {late.sum()} and Celle {gone.sum()}" in found
    assert "First answer in a later round than others': Bonn." in found
    assert "No answer in last rounds: Celle." in found


def test_a_site_in_no_round_is_named(finished_study):
    assert "Dessau" not in answer(finished_study, "F3").found  # it is no site of the study: F4 has it
    assert "Left out, since no case can be used: Dessau." in answer(finished_study, "F4").found


def test_simulated_sites_are_called_so(finished_study, copied):
    assert "They are those that the data name." in answer(finished_study, "F1").found
    changed_study(copied, data__partition={"dirichlet": {"sites": 3, "alpha": 0.5}})
    assert "They are simulated" in answer(copied, "F1").found


def test_a_split_without_patients_is_told(finished_study, copied):
    assert "named by patient" in answer(finished_study, "20", CLAIM).found
    changed_study(copied, data__subject=None)
    found = answer(copied, "20", CLAIM).found
    assert "no column names the patients" in found
    assert "of 103 patients" not in answer(copied, "F6").found


@pytest.mark.parametrize(
    ("entries", "number", "words"),
    [
        ({"evaluation__best_round": "last"}, "F17", "model of the last round is tested"),
        ({"evaluation__threshold": 0.3}, "F17", "the threshold is fixed at 0.3"),
        ({"evaluation__folds": None, "evaluation__holdout": 0.25}, "F25", "25\u00a0% of each site's patients"),
        ({"evaluation__folds": None, "evaluation__split": "part"}, "F25", "A column of the table (part) fixes"),
        ({"training__class_weights": "balanced"}, "F15", "class_weights: balanced"),
        ({"training__quorum": 2}, "F3", "at least 2 had to answer"),
        ({"data__scaling": "federated"}, "F12", "common scale"),
        ({"data__harmonisation": {"combat": {"covariates": ["age"]}}}, "F12", "summaries of the features for ComBat"),
        ({"attack": {"sign_flip": {"sites": ["Bonn"]}}}, "F22", "Simulated"),
        ({"evaluation__subgroups": ["sex"]}, "F31", "Results by sex are in the report and in subgroups.csv"),
    ],
)
def test_answers_follow_the_study_file(copied, entries, number, words):
    changed_study(copied, **entries)
    assert words in answer(copied, number).found


def test_class_imbalance_follows_the_study_file(finished_study, copied):
    assert "Not done: classes have the same weight" in answer(finished_study, "13", TRIPOD).found
    changed_study(copied, training__class_weights="balanced")
    assert "The loss weights classes: balanced." in answer(copied, "13", TRIPOD).found


def test_one_search_for_all_folds_is_owned_up_to(finished_study, copied):
    assert "But one search served all folds" in answer(finished_study, "32", CLAIM).found
    changed_study(copied, search__nested=True)
    assert "But one" not in answer(copied, "32", CLAIM).found


def test_what_does_not_apply_is_called_so(copied):
    changed_record(copied, target="numbers")
    assert answer(copied, "13", TRIPOD).found.startswith("Does not apply")
    assert answer(copied, "F30").found.startswith("Does not apply")


def test_protection_follows_the_methods(finished_study, copied):
    study = yaml.safe_load((copied / "study.yaml").read_text())
    study["methods"][1]["fedavg"]["channel"] = [{"gaussian_noise": {"epsilon": 3.0}}]
    (copied / "study.yaml").write_text(yaml.safe_dump(study))
    one = answer(copied, "F21")
    assert one.status == Status.RUN
    assert "gaussian_noise (epsilon: 3.0)" in one.found
    assert "Others: fedbn." in one.found


def test_noise_in_training_is_no_want_of_protection(finished_study, copied):
    """dp_sgd is in `local`, and leaves what is sent as it is."""
    assert answer(finished_study, "F21").status == Status.NOT_DONE
    lines = [",".join(PRIVACY)]
    for site, epsilon in (("a", 2.5), ("b", 7.25)):
        spent = f"Gaussian,0.001,{epsilon},prv,{epsilon},system"
        lines.append(f"fedbn,plain,0,0,{site},dp_sgd,nobody,a patient,9,3,{spent}")
    (copied / "privacy.csv").write_text("\n".join(lines) + "\n")
    one = answer(copied, "F21")
    assert one.status == Status.RUN
    assert "fedbn at most ε = 7.25 at δ = 0.001 for a patient (privacy.csv)" in one.found
    assert "Others: fedavg." in one.found


def test_where_sites_ran_is_no_claim_where_the_engine_is_not_known(finished_study, copied):
    assert "no network lay between them" in answer(finished_study, "F2").found
    changed_record(copied, plan={"mode": "hospitals"})
    assert "no network" not in answer(copied, "F2").found


def test_one_seed_is_told(finished_study):
    assert "chance in training is not counted" in answer(finished_study, "F33").found


def test_the_expected_width_is_that_of_hanley_and_mcneil(finished_study):
    # 51 negative and 52 positive; equation 1 with A = 0.8, Q1 = A / (2 - A), Q2 = 2 A² / (1 + A).
    area, q1, q2 = 0.8, 0.8 / 1.2, 2 * 0.64 / 1.8
    variance = (area * (1 - area) + 51 * (q2 - 0.64) + 50 * (q1 - 0.64)) / (51 * 52)
    found = answer(finished_study, "F26").found
    assert "From 52 positive and 51 negative test cases" in found
    assert f"{2 * 1.96 * variance**0.5:.3f} for 0.8" in found


def test_a_folder_of_an_older_version_leaves_items_to_the_authors(copied):
    for name in ("flow.csv", "exchanged.csv", "calibration.csv", "comparisons.csv", "provenance.json", "notes.json"):
        (copied / name).unlink()
    one = answer(copied, "F6")
    assert (one.status, one.found) == (Status.AUTHORS, "")
    assert one.authors
    for checklist in CHECKLISTS.values():
        assert all(item.found or item.authors for item in answered(checklist, Folder(copied)))


def test_results_alone_are_enough(copied):
    for path in copied.iterdir():
        if path.name != "results.csv" and path.is_file():
            path.unlink()
    for checklist in CHECKLISTS.values():
        assert "answered from the run" in markdown(checklist, Folder(copied))
    assert 'id="checklists"' not in render(Folder(copied))  # nobody would know of which study


def test_status_is_who_answered():
    from polyclinic.study.report.checklists.items import _answer

    said, not_done, silent = (lambda _: "Said."), (lambda _: NotDone("Not done: x.")), (lambda _: None)
    cases = {
        Status.RUN: ((said,), ""), Status.BOTH: ((said, silent), "Add."), Status.NOT_DONE: ((not_done,), "Add."),
        Status.AUTHORS: ((silent,), "Add."),
    }  # fmt: skip
    for status, (find, authors) in cases.items():
        assert _answer(Item("1", "s", "a", find, authors), None).status == status
    both = _answer(Item("1", "s", "a", (said, not_done)), None)
    assert (both.status, both.found) == (Status.RUN, "Said. Not done: x.")


# --- files ------------------------------------------------------------------------------------------------------------


def test_the_summary_counts_all_items(finished_study):
    for checklist in CHECKLISTS.values():
        answers = answered(checklist, Folder(finished_study))
        assert sum(counted(answers).values()) == len(checklist.items)
        numbers = [int(number) for number in re.findall(r"(\d+) (?:answered|from|not|for)", summary(answers))]
        assert sum(numbers) == len(checklist.items)


def test_markdown_has_a_row_an_item_and_takes_nothing_for_markup(copied):
    changed_study(copied, study="A | study <script>alert(1)</script> *with* `signs`\nand lines")
    text = markdown(CLAIM, Folder(copied))
    assert "<script>" not in text
    rows = [line for line in text.splitlines() if re.match(r"\| \d+ \|", line)]
    assert len(rows) == 44
    assert all(len(re.split(r"(?<!\\)\|", row)) == 6 for row in rows)
    assert text.splitlines()[0].startswith("# CLAIM 2024: A \\| study &lt;script")


def test_the_page_needs_nothing_and_escapes_what_it_shows(copied):
    changed_study(copied, study="<script>alert(1)</script>", data__where={"sex": "<b>F</b>"})
    page = html(TRIPOD, Folder(copied))
    assert "<script" not in page
    assert "<b>" not in page
    assert "http-equiv" in page
    assert not re.findall(r'(?:src|href)="http', page)
    assert page.count('<th scope="row">') == 52


def test_the_report_has_all_lists_folded(finished_study):
    page = (finished_study / "report.html").read_text(encoding="utf-8")
    for checklist in CHECKLISTS.values():
        assert f"<details><summary>{checklist.title}</summary>" in page
    assert page.count('class="authors"') > 20


def test_no_pseudonym_and_no_name_of_a_patient_is_in_a_list(finished_study):
    for checklist in CHECKLISTS.values():
        text = markdown(checklist, Folder(finished_study))
        assert "secret" not in text
        assert not re.search(r"P0\d{4}", text)
        assert str(finished_study) not in text


@pytest.mark.parametrize("name", CHECKLISTS)
def test_the_command_writes_the_list(finished_study, tmp_path, monkeypatch, capsys, name):
    out = tmp_path / "deep" / "list.html"
    monkeypatch.setattr("sys.argv", ["polyclinic", "checklist", str(finished_study), "--list", name, "--out", str(out)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 0
    assert capsys.readouterr().out.strip() == str(out)
    assert CHECKLISTS[name].title in out.read_text(encoding="utf-8")


def test_the_command_knows_no_other_list(finished_study, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["polyclinic", "checklist", str(finished_study), "--list", "tripod"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    assert "tripod-ai" in capsys.readouterr().err


def test_other_files_and_folders_are_refused(finished_study, tmp_path):
    with pytest.raises(ResultsError, match="must end in"):
        write_checklist(finished_study, CLAIM, tmp_path / "list.docx")
    with pytest.raises(ResultsError, match=r"no results\.csv"):
        write_checklist(tmp_path, CLAIM, tmp_path / "list.md")
