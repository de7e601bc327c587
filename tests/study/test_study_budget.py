"""A privacy budget for all trainings of a study together: who shares it, that it is kept, and what is told of it."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from helpers import Federation, declare, table_sites, write_table_study
from polyclinic import Study
from polyclinic.errors import SiteError
from polyclinic.options import EntryError
from polyclinic.privacy import Event, Ledger, epsilon
from polyclinic.rounds import run_rounds
from polyclinic.site.messages import Allowance, Start
from polyclinic.site.spending import Spending
from polyclinic.study.display import Display
from polyclinic.study.job import Fold, Job
from polyclinic.study.shared_budget import sharing, without_noise

CLIP = {"clip": {"norm": 0.5}}
DELTA = 1e-3
STEPS = {"fedavg": {"local": ["dp_sgd"], "label": "steps"}}
SITES = {"fedavg": {"channel": ["clip", "laplace_noise"], "label": "sites"}}
CENTRE = {"fedavg": {"channel": ["clip", "central_noise"], "label": "centre"}}


def entries(folder: Path, **changes):
    content = write_table_study(folder, {"Aachen": 24, "Bonn": 24, "Celle": 24})
    content |= {"model": "logistic", "methods": ["fedavg", STEPS, SITES, CENTRE], "seeds": [0],
                "privacy": {"epsilon": 4.0, "delta": DELTA, "over": "study"}}  # fmt: skip
    content["training"] |= {"rounds": 2, "early_stopping": 1}
    content["evaluation"] |= {"unseen_sites": ["sites"]}
    return content | changes


class Killed(BaseException):
    """As if the process had been killed."""


class Stopping(Display):
    """Ends after so many rounds."""

    def __init__(self, rounds: int) -> None:
        super().__init__()
        self.left = rounds

    def round(self, done: int, of: int) -> None:
        self.left -= 1
        if self.left == 0:
            raise Killed


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("over")
    Study.of(entries(base), base).run(base / "results")
    return base / "results"


def ledger_of(folder: Path, site: str) -> Ledger:
    return Ledger(folder / "sites" / site / "privacy.jsonl")


@pytest.mark.parametrize("site", ["Aachen", "Bonn", "Celle"])
def test_the_ledger_of_each_site_keeps_epsilon_and_uses_most_of_it(folder: Path, site: str) -> None:
    total = ledger_of(folder, site).total(site)
    assert {event.mechanism for event in total} == {"gaussian", "pure"}
    assert 3.6 < epsilon(total, DELTA) <= 4.0
    runs = {entry.run for entry in ledger_of(folder, site).entries()}
    assert len(runs) == 2 + 2 + 4, "in two folds, and it takes part in two of three trainings without a site"


def test_the_servers_noise_keeps_epsilon_too(folder: Path) -> None:
    table = pd.read_csv(folder / "privacy.csv")
    centre = table[table["site"] == "federation"]
    assert centre["lifetime_epsilon"].is_monotonic_increasing
    assert 3.5 < centre["lifetime_epsilon"].max() <= 4.0
    assert (table["lifetime_epsilon"] <= 4.0).all()


def test_trainings_without_noise_are_counted_and_said(folder: Path) -> None:
    table = pd.read_csv(folder / "privacy.csv")
    own = table[table["site"] != "federation"].groupby("site")["without_noise"].unique()
    assert [list(count) for count in own] == [[4]] * 3, "2 of fedavg, and 2 whose noise is of the server"
    assert set(table[table["site"] == "federation"]["without_noise"]) == {2 + 2 + 2 + 6}
    notes = json.loads((folder / "notes.json").read_text())
    (said,) = [note["text"] for note in notes if note["number"] == "N110"]
    assert said.startswith("ε = 4 of the study is for its 12 trainings with noise. fedavg has none: 2 trainings")
    page = re.sub(r"\s+", " ", (folder / "report.html").read_text(encoding="utf-8"))
    section = page[page.index('id="privacy"') :].partition("</section>")[0]
    for words in ("(of 4)", "for all of its trainings with noise together", "12 trainings of this study had no such"):
        assert words in section


def test_a_study_that_was_killed_spends_no_more(folder: Path, tmp_path: Path) -> None:
    study = Study.of(entries(tmp_path), tmp_path)
    with pytest.raises(Killed):
        study.run(tmp_path / "results", display=Stopping(7))
    study.run(tmp_path / "results", resume=True)
    for name in ("privacy.csv", "results.csv", "rounds.csv"):
        read = [pd.read_csv(one / name).drop(columns="seconds", errors="ignore")
                for one in (folder, tmp_path / "results")]  # fmt: skip
        pd.testing.assert_frame_equal(*read, check_exact=True)
    for site in ("Aachen", "Bonn", "Celle"):
        assert ledger_of(tmp_path / "results", site).entries() == ledger_of(folder, site).entries()


def test_trials_of_a_search_are_in_the_budget(tmp_path: Path) -> None:
    """Batches of other sizes; also the noise of the server, of which trials have no row."""
    found = entries(tmp_path, methods=[STEPS, CENTRE], seeds=[0])
    found["search"] = {"parameters": {"training.batch_size": [4, 8]}, "trials": 2}
    found["evaluation"] = {"holdout": 0.3, "bootstrap": 0}
    Study.of(found, tmp_path).run(tmp_path / "results")
    for site in ("Aachen", "Bonn"):
        ledger = ledger_of(tmp_path / "results", site)
        assert len({entry.run for entry in ledger.entries()}) == 2 + 1
        assert 3.3 < epsilon(ledger.total(site), DELTA) <= 4.0
    table = pd.read_csv(tmp_path / "results" / "privacy.csv")
    last = table[table["site"] == "federation"]["lifetime_epsilon"].max()
    assert 3.3 < last <= 4.0


# Who shares it --------------------------------------------------------------------------------------------------------


def test_trainings_are_counted_for_each_site_in_their_order() -> None:
    declaration = declare(methods=["fedavg", STEPS, CENTRE], privacy={"epsilon": 1.0, "over": "study"})
    plain, steps, centre = declaration.study_methods
    folds = {0: Fold(0, {"A": 9, "B": 9}, {}, {}, {}), 1: Fold(1, {"A": 9, "B": 0}, {}, {}, {})}
    jobs = [Job((plain,), 0, 0), Job((steps,), 0, 0), Job((steps,), 0, 0, without="A"), Job((centre,), 0, 0),
            Job((steps,), 0, 0, attacked=True), Job((steps,), 0, 1), Job((centre,), 0, 1)]  # fmt: skip
    found = sharing(declaration, jobs, folds)
    assert [job.trainings for job in found] == [1, 3, 3, 2, 3, 3, 2], "each site is in three with its own noise"
    assert without_noise(declaration, jobs, folds) == {"A": 3, "B": 2, "federation": 5}
    each = declare(methods=["fedavg", STEPS], privacy={"epsilon": 1.0})
    assert sharing(each, jobs, folds) == jobs
    assert {job.trainings for job in sharing(each, jobs, folds)} == {1}


def test_a_search_that_may_leave_noise_out_counts_both_ways() -> None:
    declaration = declare(methods=[STEPS], privacy={"epsilon": 1.0, "over": "study"}, evaluation={"validation": 0.2},
                          search={"methods": {"steps": {"local": [["dp_sgd"], []]}}, "trials": 3})  # fmt: skip
    (steps,) = declaration.study_methods
    folds, job = {0: Fold(0, {"A": 9}, {}, {}, {})}, Job((steps,), 0, 0)
    assert sharing(declaration, [job], folds)[0].trainings == 1
    assert without_noise(declaration, [job], folds) == {"A": 1, "federation": 1}


# At a site ------------------------------------------------------------------------------------------------------------


def federation(noise, **told) -> Federation:
    channel = [CLIP, {"laplace_noise": {} if noise is None else {"noise": noise}}]
    made = Federation(table_sites({"A": 33, "B": 24}, part=None), [{"fedavg": {"channel": channel, "label": "noisy"}}],
                      evaluation={"folds": 2}, training={"rounds": 3})  # fmt: skip
    declared = declare(
        methods=[{"fedavg": {"channel": channel, "label": "noisy"}}], privacy=told, training={"rounds": 3},
        evaluation={"folds": 2, "validation": 0, "best_round": "last"},
    )  # fmt: skip
    made.declaration = made.runner.declaration = made.runner.planner.declaration = declared
    return made


BUDGET = {"epsilon": 3.0, "delta": DELTA, "over": "study"}


def run(made: Federation, path: Path, seed=0, trainings=1) -> int:
    """Rounds of a training at a hospital whose ledger is at ``path``, as a new process."""
    for site, member in made.engine.members.items():
        member.spending = Spending(site, path / site / "privacy.jsonl", real=True, study="mark ")
    job = Job((made.method(),), seed, 0, trainings=trainings)
    return len({row["round"] for row in made.runner.run(job, made.fold).rounds})


def test_whatever_a_site_is_told_its_ledger_keeps_epsilon(tmp_path: Path) -> None:
    """A coordinator that says of each training that it is the last; the first takes all there is."""
    assert run(federation(None, **BUDGET), tmp_path, 0) == 3
    with pytest.raises(SiteError, match=r"P306"):
        run(federation(None, **BUDGET), tmp_path, 1)
    assert 2.99 < epsilon(Ledger(tmp_path / "A" / "privacy.jsonl").total("A"), DELTA) <= 3.0


def test_a_study_that_is_run_again_at_hospitals_has_no_other_budget(tmp_path: Path) -> None:
    for seed in (0, 1):
        assert run(federation(None, **BUDGET), tmp_path, seed, 2) == 3
    for seed in (0, 1):
        with pytest.raises(SiteError, match=r"P306 .*in 3 rounds"):
            run(federation(None, **BUDGET), tmp_path, seed, 2)
    assert 2.5 < epsilon(Ledger(tmp_path / "A" / "privacy.jsonl").total("A"), DELTA) <= 3.0


def test_given_noise_has_the_rounds_that_leave_room_for_the_others(tmp_path: Path) -> None:
    """With noise 4.75 six rounds are within ε = 3 as divergences add up: two for each of three trainings."""
    done = [run(federation(4.75, **BUDGET), tmp_path, seed, 3) for seed in range(3)]
    assert done == [2, 2, 2]
    assert Ledger(tmp_path / "A" / "privacy.jsonl").total("A") == (Event.pure(2 / 4.75, count=6),)
    with pytest.raises(SiteError, match=r"P306 .*with all others of the study"):
        run(federation(3.0, **BUDGET), tmp_path, 3, 3)


def test_other_studies_do_not_count_against_it(tmp_path: Path) -> None:
    spending = Spending("A", tmp_path / "privacy.jsonl", real=True, study="one ")
    spending.record("x", 0, [Event.pure(1.0)])
    other = Spending("A", tmp_path / "privacy.jsonl", real=True, study="two ")
    other.record("x", 0, [Event.pure(2.0)])
    other.record("y", 0, [Event.pure(0.5)])
    assert other.others("y", of_study=True) == (Event.pure(2.0),)
    assert other.others("y") == (Event.pure(1.0), Event.pure(2.0))
    assert other.total() == (Event.pure(0.5), Event.pure(1.0), Event.pure(2.0))


def test_a_training_that_goes_on_with_other_noise_spends_no_more(tmp_path: Path) -> None:
    """Rounds of another cost are in the ledger, such as before data changed: what they cost is what counts."""
    path = tmp_path / "A" / "privacy.jsonl"
    made = federation(4.0, epsilon=1.5, delta=DELTA)
    plan = made.plan()
    Spending("A", path, real=True, study="mark ").record(plan.start.run, 0, [Event.pure(0.9)])
    assert run(made, tmp_path) == 1, "0.9 + 0.5, and no 0.5 more"
    assert epsilon(Ledger(path).total("A"), DELTA) <= 1.5


def test_a_site_looks_itself_whether_delta_is_small_enough() -> None:
    """The coordinator's check is not asked here; how many patients there are is not told."""
    made = Federation(table_sites({"A": 17, "B": 4}, part=None), evaluation={"folds": 2},
                      methods=[{"fedavg": {"channel": [CLIP, {"laplace_noise": {"noise": 4}}]}}])  # fmt: skip
    planned, patients = made.plan(), len(made.engine.members["A"].parts.train)

    def rounds(delta):
        told = planned.start.model_copy(update={"privacy": Allowance(epsilon=None, delta=delta)})
        return run_rounds(replace(planned, start=told), made.engine)

    for delta in (1 / patients, 0.2):
        with pytest.raises(SiteError, match=r"P102 Site A does not train: δ = 0\.[\d]+ is for fewer than") as caught:
            rounds(delta)
    assert "fewer than 5 training patients" in str(caught.value)
    assert str(patients) not in str(caught.value)
    rounds(0.999 / patients)


# What is refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("content", "words"), [
    ({"methods": [STEPS], "privacy": {"over": "study"}}, "P104 .*there is none"),
    ({"methods": [STEPS], "privacy": {"epsilon": 1, "over": "year"}}, "P102"),
    ({"methods": [STEPS], "privacy": {"epsilon": True}}, "P102 .*got True"),
    ({"methods": [STEPS], "privacy": {"epsilon": 1, "delta": "0.001"}}, "P102 .*got '0.001'"),
    ({"methods": [{"mix": {"local": ["dp_sgd"]}}], "privacy": {"epsilon": 1, "over": "study"}}, "P104 .*no server"),
])  # fmt: skip
def test_what_can_not_be_counted_is_refused(content, words) -> None:
    with pytest.raises(EntryError, match=words):
        declare(**content)


@pytest.mark.parametrize("wrong", [
    {"epsilon": 1.0, "delta": 1}, {"epsilon": 0, "delta": 0.1}, {"epsilon": 1.0, "delta": 0.1, "over": "year"},
    {"epsilon": 1.0, "delta": 0.1, "trainings": 0}, {"delta": 0.1},
])  # fmt: skip
def test_a_message_with_a_budget_that_is_none_is_refused(wrong) -> None:
    fields = federation(4.0, **BUDGET).plan().start.fields()
    Start.model_validate(fields)
    with pytest.raises(ValueError, match="privacy"):
        Start.model_validate(fields | {"privacy": wrong})
