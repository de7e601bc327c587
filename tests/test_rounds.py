"""The federated loop: the best round, stopping early, and going on after an interruption."""

import gc
import json
import tracemalloc
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from helpers import Federation, recorded, table_sites
from polyclinic.client.work import Work
from polyclinic.communication.message import Message
from polyclinic.engine import Engine
from polyclinic.errors import PolyclinicError, SiteError
from polyclinic.files import write_atomic
from polyclinic.models import build_model
from polyclinic.parts import FEDERATION, Grouping, Part, build_part
from polyclinic.rounds import run_rounds
from polyclinic.running.plan import Plan
from polyclinic.running.progress import Checkpoint
from polyclinic.server.mean import Mean
from polyclinic.server.selection import Availability
from polyclinic.site.messages import MetricNames, Start
from polyclinic.state import Selection
from polyclinic.study.job import Job
from polyclinic.tasks import build_task

MOMENTUM = {"sgd": {"lr": 0.1, "momentum": 0.9}}


class Scripted(Engine):
    """Sites that add 1 to the state in each round, and whose validation results are written down beforehand.

    Args:
        losses: validation loss of each site in each round.
        metrics: same for the metric; default: nothing to report.
        cases: validation cases of each site; default 1.
        silent: (site, round) in which the site does not answer.
    """

    def __init__(self, losses, *, metrics=None, cases=None, silent=()):
        self.sites = list(losses)
        self.losses, self.metrics, self.cases, self.silent = losses, metrics, cases or {}, silent
        self.said, self.trained, self.round = [], [], -1

    def call(self, function, requests):
        for site, request in requests.items():
            self.said.append((function, site))
            if function == "train":
                self.round = request.fields["round"]
                if (site, self.round) in self.silent:
                    yield site, SiteError("P401", f"Site {site} is asleep.", site=site)
                    continue
                reply = Message(
                    {"seconds": 0.0, "examples": 1, "steps": 1, "loss": 0.5},
                    {"change": torch.ones_like(request.tensors["state"]), "statistics": torch.zeros(0)},
                )
                self.trained.append((request, reply))
                yield site, reply
            elif function == "evaluate":
                assert request.tensors["state"].eq(self.round + 1).all(), "the model of the round just done is measured"
                metric = None if self.metrics is None else self.metrics[site][self.round]
                fields = {"cases": self.cases.get(site, 1), "loss": self.losses[site][self.round], "metric": metric}
                yield site, Message(fields)
            else:
                yield site, Message()

    def asked(self, function):
        return [site for name, site in self.said if name == function]


#: What scripted sites are told at the start; they do not read it.
START = Start(
    run="scripted", task="classification", classes=2, loss="cross_entropy",
    metrics=MetricNames(names=["auc"], classes=["no", "yes"], tolerance=1.0), model=("logistic", {}), share=[], seed=0,
    fold=0, work=Work("train", 1, None, 8, ("sgd", {})),
)  # fmt: skip


def plan_for(engine, rounds, **changes):
    given = {
        "start": START, "initial": torch.zeros(3), "selection": Selection(((0, 3),), 3, 3, 3),
        "sites": engine.sites, "weights": dict.fromkeys(engine.sites, 1.0), "learning_rates": [0.1] * rounds,
        "quorum": len(engine.sites), "network": build_model("logistic", {}, (1,), 2),
        "task": build_task("classification", 2),
    }  # fmt: skip
    return Plan(**(given | changes))


def best_of(engine, rounds, **changes):
    """Number of the round whose state was taken (the state counts the rounds), and the progress."""
    progress, _ = run_rounds(plan_for(engine, rounds, **changes), engine)
    return int(progress.best_state(engine.sites[0])[0]), progress


# The best round -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("losses", "best"),
    [([3, 2, 1], 3), ([3, 1, 2], 2), ([1, 2, 3], 1), ([2, 1, 1], 2), ([1.0, float("nan"), 2.0], 1)],
)
def test_the_round_with_the_lowest_validation_loss_is_taken(losses, best):
    assert best_of(Scripted({"A": losses}), 3)[0] == best


def test_a_first_round_without_a_number_does_not_stay_the_best():
    assert best_of(Scripted({"A": [float("nan"), 2.0, 1.0, 3.0]}), 4)[0] == 3


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("choose_by", ["loss", "metric"])
def test_a_site_whose_validation_is_no_number_where_that_of_others_is_has_failed(number, choose_by):
    """One bad case at one site does not leave all rounds without a score."""
    finite = [3.0, 2.0, 1.0, 2.0]
    losses = {"A": finite, "B": [number] * 4, "C": finite}
    metrics = {site: [-value for value in values] for site, values in losses.items()}
    options = {"choose_by": choose_by, "higher_is_better": True}
    best, progress = best_of(Scripted(losses, metrics=metrics), 4, quorum=2, **options)
    assert (best, progress.best["federation"]) == (3, (1.0, 2))
    (note,) = progress.failures
    assert "When asked to evaluate, B did not answer. B: P301 Validation at site B gave values that are not" in note
    for quorum in (None, 3):
        with pytest.raises(PolyclinicError, match="P301 Validation at site B gave values that are not finite"):
            best_of(Scripted(losses, metrics=metrics), 4, quorum=quorum, **options)


def test_validation_that_is_no_number_anywhere_is_the_models_fault_and_is_noted():
    nan = float("nan")
    engine = Scripted({"A": [nan, 2.0, 1.0], "B": [nan, 2.0, 1.0], "C": [None] * 3}, cases={"C": 0})
    best, progress = best_of(engine, 3)
    assert (best, len(progress.failures)) == (3, 1)
    assert "Validation in round 1 gave values that are not finite numbers at A, B" in progress.failures[0]


def test_a_model_of_its_own_that_breaks_down_is_noted_and_not_the_best():
    engine = Scripted({"A": [float("nan"), 2.0, float("nan")], "B": [3.0, 2.0, 1.0]})
    none = Selection((), 0, 0, 3)
    progress, _ = run_rounds(plan_for(engine, 3, selection=none, together=False), engine)
    assert progress.best == {"A": (2.0, 1), "B": (1.0, 2)}
    assert ["at A" in note for note in progress.failures] == [True, True]


def test_in_a_simulated_attack_it_is_the_model_that_broke_down_where_too_few_are_left():
    engine = Scripted({"A": [2.0, 2.0], "B": [1.0, float("nan")], "C": [2.0, 2.0]})
    best, progress = best_of(engine, 2, endures=True)
    assert (best, len(progress.failures)) == (1, 1)


def test_the_loss_is_the_mean_over_the_cases_of_all_sites():
    engine = Scripted({"A": [1.0, 3.0], "B": [3.0, 2.0]}, cases={"A": 1, "B": 9})
    best, progress = best_of(engine, 2)
    assert best == 2
    assert progress.best["federation"] == (pytest.approx((3.0 + 18.0) / 10), 1)
    assert best_of(Scripted(engine.losses, cases={"A": 9, "B": 1}), 2)[0] == 1


@pytest.mark.parametrize(("higher", "best"), [(True, 2), (False, 3)])
def test_the_metric_can_choose_instead(higher, best):
    engine = Scripted({"A": [1, 2, 3]}, metrics={"A": [0.5, 0.9, 0.1]})
    assert best_of(engine, 3, choose_by="metric", higher_is_better=higher)[0] == best


def test_sites_that_can_not_tell_do_not_count():
    engine = Scripted({"A": [1, 2], "B": [1, 1]}, metrics={"A": [None, None], "B": [0.2, 0.4]}, cases={"A": 0, "B": 5})
    assert best_of(engine, 2, choose_by="metric")[0] == 2


def test_with_nothing_to_choose_by_the_last_round_is_taken():
    engine = Scripted({"A": [None] * 3}, cases={"A": 0})
    assert best_of(engine, 3)[0] == 3


def test_without_validation_nobody_is_asked_and_the_last_round_is_taken():
    engine = Scripted({"A": [1, 2, 3]})
    assert best_of(engine, 3, validate=False)[0] == 3
    assert engine.asked("evaluate") == []


def test_only_validation_is_asked_for_while_training():
    engine = Scripted({"A": [1, 2], "B": [1, 2]})
    best_of(engine, 2)
    assert {function for function, _ in engine.said} == {"start", "train", "evaluate"}


def test_the_model_that_stays_at_a_site_is_kept_when_the_round_is_the_best():
    engine = Scripted({"A": [3, 1, 2], "B": [3, 1, 2]})
    some = Selection(((0, 2),), 2, 2, 3)
    run_rounds(plan_for(engine, 3, selection=some, keeps=True), engine)
    order = [name for name, site in engine.said if site == "A" and name in {"train", "keep"}]
    assert order == ["train", "keep", "train", "keep", "train"]


def test_each_site_has_its_own_best_round_where_it_has_its_own_model():
    engine = Scripted({"A": [1, 2, 3], "B": [3, 2, 1]})
    none = Selection((), 0, 0, 3)
    progress, _ = run_rounds(plan_for(engine, 3, selection=none, together=False, keeps=True), engine)
    assert progress.best == {"A": (1, 0), "B": (1, 2)}
    assert engine.asked("keep") == ["A", "B", "B", "B"]


def test_rows_tell_of_every_round_and_site():
    engine = Scripted({"A": [0.5, 0.25], "B": [1.5, 1.25]}, metrics={"A": [0.7, 0.8], "B": [0.6, None]})
    _, rows = run_rounds(plan_for(engine, 2, metric="auc"), engine)
    told = [(r["round"], r["site"], r["validation_loss"], r["validation_auc"]) for r in rows]
    assert told == [(0, "A", 0.5, 0.7), (0, "B", 1.5, 0.6), (1, "A", 0.25, 0.8), (1, "B", 1.25, None)]
    written = [(len(reply.to_bytes()), len(asked.to_bytes())) for asked, reply in engine.trained]
    assert [(r["bytes_up"], r["bytes_down"]) for r in rows] == written
    assert min(min(pair) for pair in written) > 12  # three numbers, and what they are


# Stopping -------------------------------------------------------------------------------------------------------------


def test_training_stops_after_so_many_rounds_without_a_better_one():
    engine = Scripted({"A": [3, 2, 2.5, 2.5, 1, 1]})
    best, progress = best_of(engine, 6, patience=2)
    assert (best, progress.done) == (2, 4)


def test_patience_begins_anew_with_every_better_round():
    assert best_of(Scripted({"A": [3, 4, 2, 4, 1, 4, 4, 4]}), 8, patience=2)[1].done == 7


def test_sites_that_train_alone_stop_each_for_itself():
    engine = Scripted({"A": [1, 2, 2, 2, 2], "B": [5, 4, 3, 2, 1]})
    none = Selection((), 0, 0, 3)
    progress, rows = run_rounds(plan_for(engine, 5, selection=none, together=False, patience=2), engine)
    assert progress.stopped == ["A"]
    assert [row["site"] for row in rows] == ["A", "B", "A", "B", "A", "B", "B", "B"]


def test_training_ends_when_all_sites_have_stopped():
    engine = Scripted({"A": [1, 2, 2, 2, 2], "B": [1, 0, 2, 2, 2]})
    none = Selection((), 0, 0, 3)
    progress, _ = run_rounds(plan_for(engine, 5, selection=none, together=False, patience=1), engine)
    assert (progress.stopped, progress.done) == (["A", "B"], 3)


# Answers --------------------------------------------------------------------------------------------------------------


class Noting(Mean):
    """A mean that notes in which order it is given what."""

    def __init__(self):
        self.order = []

    def add(self, update):
        super().add(update)
        self.order.append(update.weight)


@pytest.mark.parametrize("stacked", [False, True])
def test_updates_are_added_in_site_order(stacked):
    """Site order is that of the data, not that of the plan, of the sites' sizes or of their answers."""
    federation = Federation(table_sites({"Celle": 5, "Aachen": 33, "Dresden": 20, "Bonn": 10}), stacked=stacked)
    plan = federation.plan()
    mean, part = Noting(), Part()
    part.at_server = lambda: mean
    run_rounds(replace(plan, parts=lambda: {"mean": part}, sites=sorted(plan.sites)), federation.engine)
    assert mean.order == [5.0, 33.0, 20.0, 10.0]


def test_a_site_that_does_not_answer_is_left_out_of_the_round():
    engine = Scripted({"A": [1, 1], "B": [1, 1], "C": [1, 1]}, silent=[("B", 0)])
    progress, rows = run_rounds(plan_for(engine, 2, quorum=2), engine)
    assert [row["site"] for row in rows] == ["A", "C", "A", "B", "C"]
    assert progress.failures == ["Round 1 went on without B. B: P401 Site B is asleep."]
    assert progress.model(FEDERATION).tolist() == [2.0, 2.0, 2.0]


class Halves(Grouping):
    """Two models of three sites each."""

    def stages(self, turn):
        groups = {"left": "ABC", "right": "DEF"}
        return [{model: [site for site in sites if site in turn.sites] for model, sites in groups.items()}]


def test_a_model_with_too_few_sites_for_its_rule_stays_and_the_others_go_on():
    """A is away in round 2, which leaves its model two sites for a mean that is trimmed by one at each end."""
    engine = Scripted({site: [2.0, 1.0] for site in "ABCDEF"})
    away = {
        "participation": [Availability(absent={"A": [2]})],
        "grouping": ("halves", Halves()),
        "quorum": 2,
        "validate": False,
    }
    parts = {"parts": lambda: {"trimmed_mean": build_part("trimmed_mean", {"trim": 1})}}
    progress, rows = run_rounds(plan_for(engine, 2, **away, **parts), engine)
    assert {name: model.tolist() for name, model in progress.models.items()} == {"left": [1.0] * 3, "right": [2.0] * 3}
    assert [row["site"] for row in rows] == [*"ABCDEF", *"DEF"]
    assert progress.counted == {"A": 1, "B": 2, "C": 3, "D": 9, "E": 10, "F": 11}
    (note,) = progress.failures
    assert "Round 2 changed nothing in left. P402 trimmed_mean with trim 1 needs the updates of at least 3" in note


def test_below_the_quorum_it_stops():
    engine = Scripted({"A": [1], "B": [1], "C": [1]}, silent=[("B", 0), ("C", 0)])
    with pytest.raises(SiteError) as caught:
        run_rounds(plan_for(engine, 1, quorum=2), engine)
    assert str(caught.value) == (
        "P402 In round 1, 1 of 3 sites answered (2 needed). B: P401 Site B is asleep; likewise C. "
        "Mend the sites named, or set a lower `training: {quorum: ...}`."
    )


def test_where_every_site_has_its_own_model_none_may_be_missing():
    engine = Scripted({"A": [1], "B": [1]}, silent=[("B", 0)])
    with pytest.raises(PolyclinicError, match="Site B is asleep"):
        run_rounds(plan_for(engine, 1, together=False, quorum=1), engine)


def test_a_site_that_fails_is_not_taken_for_a_late_one_whatever_its_error_is():
    class Failing(Scripted):
        def call(self, function, requests):
            for site, reply in super().call(function, requests):
                late = isinstance(reply, PolyclinicError)
                yield site, SiteError("P402", "its own sites did not answer.", site=site) if late else reply

    engine = Failing({"A": [1], "B": [1]}, silent=[("B", 0)])
    with pytest.raises(SiteError, match="its own sites did not answer"):
        run_rounds(plan_for(engine, 1, quorum=None), engine)


# Interruptions --------------------------------------------------------------------------------------------------------

METHODS = ["fedavg", "fedsgd", "fedbn", "silobn", "fedavgm", "fedadam", "single", "mix", "scaffold", "feddyn",
           "fednova", "cyclic", "incremental", "fedper", "lg_fedavg", "ditto", "apfl", "fed_moe", "moon", "fedsld",
           "fedpidavg", "auto_fedavg", "fourier", {"fedrep": {"head_epochs": 2}}]  # fmt: skip
# Methods without a server keep the optimiser's state in any case.
KEEP = ["fedavg", "fedsgd", "fedbn", "fedper", "ditto", "moon"]
RUNS = [*((name, "reset") for name in METHODS), *((name, "keep") for name in KEEP)]


class Killed(BaseException):
    """Stands for a kill: nothing that catches errors catches it."""


def saved_federation(method, folder, **options):
    training = {"rounds": 5, "optimizer": MOMENTUM} | options.pop("training", {})
    data = table_sites({"Aachen": 33, "Bonn": 14, "Celle": 17}, part=None)
    evaluation = {"folds": 2, "validation": 0.3, "best_round": "loss"}
    model = {"mlp": {"hidden": [5], "norm": "batch"}}
    return Federation(
        data, [method], model=model, training=training, evaluation=evaluation, folder=folder / "sites", **options
    )  # fmt: skip


def outcome_of(federation, folder, report=None):
    """Everything a job finds, without times."""
    job = Job((federation.method(),), 0, 0)
    outcome = federation.runner.run(job, federation.fold, checkpoint=Checkpoint(folder / "job"), report=report)
    rows = [{name: value for name, value in row.items() if name != "seconds"} for row in outcome.rounds]
    (tensors,) = outcome.models.values()
    return rows, [frame.to_csv() for frame in outcome.predictions], {n: t.numpy().tobytes() for n, t in tensors.items()}


def stop_after(rounds):
    def report(done, _):
        if done == rounds:
            raise Killed

    return report


@pytest.mark.parametrize(("method", "state"), RUNS)
def test_a_run_resumed_from_any_round_ends_with_the_same_bytes(method, state, tmp_path):
    training = {"optimizer_state": state}
    unbroken = outcome_of(saved_federation(method, tmp_path / "unbroken", training=training), tmp_path / "unbroken")
    for rounds in range(1, 6):
        folder = tmp_path / str(rounds)
        with pytest.raises(Killed):
            outcome_of(saved_federation(method, folder, training=training), folder, stop_after(rounds))
        assert outcome_of(saved_federation(method, folder, training=training), folder) == unbroken


CHOSEN = [
    {"participation": {"highest_loss": {"sites": 2, "candidates": 2}}},
    {"participation": {"poisson": {"probability": 0.5}}},
    {"participation": [{"availability": {"absent": {"Bonn": [2, 3]}}}, {"uniform": {"sites": 1}}]},
]


@pytest.mark.parametrize("training", CHOSEN, ids=["highest_loss", "poisson", "availability"])
def test_resuming_chooses_the_same_sites(training, tmp_path):
    method = {"scaffold": {"share": "no_norm"}}
    unbroken = outcome_of(saved_federation(method, tmp_path / "unbroken", training=training), tmp_path / "unbroken")
    assert 0 < len(unbroken[0]) < 15
    for rounds in (1, 2, 3, 4):
        folder = tmp_path / str(rounds)
        with pytest.raises(Killed):
            outcome_of(saved_federation(method, folder, training=training), folder, stop_after(rounds))
        assert outcome_of(saved_federation(method, folder, training=training), folder) == unbroken


@pytest.mark.parametrize("method", ["single", "mix", "fedavg"])
@pytest.mark.parametrize("optimizer", [{"sgd": {"lr": 0.1}}, {"adam": {"lr": 0.01}}], ids=["sgd", "adam"])
def test_resuming_works_with_any_optimiser(method, optimizer, tmp_path):
    """Plain SGD has no state to keep, Adam has three tensors."""
    training = {"optimizer": optimizer, "optimizer_state": "keep"}
    unbroken = outcome_of(saved_federation(method, tmp_path / "unbroken", training=training), tmp_path / "unbroken")
    with pytest.raises(Killed):
        outcome_of(saved_federation(method, tmp_path, training=training), tmp_path, stop_after(2))
    assert outcome_of(saved_federation(method, tmp_path, training=training), tmp_path) == unbroken


@pytest.mark.parametrize("method", ["single", "fedbn"])
def test_resuming_keeps_the_patience_of_each_site(method, tmp_path):
    training = {"rounds": 12, "early_stopping": 2, "optimizer": {"sgd": {"lr": 1.5, "momentum": 0.9}}}
    unbroken = outcome_of(saved_federation(method, tmp_path / "unbroken", training=training), tmp_path / "unbroken")
    assert len(unbroken[0]) < 36, "or nobody stopped"
    for rounds in (2, 3, 4):
        folder = tmp_path / str(rounds)
        with pytest.raises(Killed):
            outcome_of(saved_federation(method, folder, training=training), folder, stop_after(rounds))
        assert outcome_of(saved_federation(method, folder, training=training), folder) == unbroken


@pytest.mark.parametrize("method", ["fedadam", "fedbn", "single"])
def test_a_kill_at_any_file_leaves_what_can_be_resumed(method, tmp_path, monkeypatch):
    """The run is killed before each file in turn is put in its place: sites' files, rows and checkpoints."""
    unbroken = outcome_of(saved_federation(method, tmp_path / "unbroken"), tmp_path / "unbroken")
    original, count = write_atomic, 0

    def counting(path, content, **options):
        nonlocal count
        count -= 1
        if count == 0:
            raise Killed
        original(path, content, **options)

    monkeypatch.setattr("polyclinic.running.progress.write_atomic", counting)
    monkeypatch.setattr("polyclinic.site.site.write_atomic", counting)
    for moment in range(1, 50):
        folder, count = tmp_path / str(moment), moment
        try:
            outcome_of(saved_federation(method, folder), folder)
        except Killed:
            count = 0
            assert outcome_of(saved_federation(method, folder), folder) == unbroken
        else:
            break
    # Of these three are the sites' own lists of who is who.
    assert moment == {"fedadam": 8, "fedbn": 23, "single": 23}[method] + 1


def test_a_run_killed_again_and_again_ends_with_the_same_bytes(tmp_path, monkeypatch):
    """Each attempt is killed when the rows of its second round are written, but not yet its checkpoint."""
    unbroken = outcome_of(saved_federation("fedadam", tmp_path / "unbroken"), tmp_path / "unbroken")
    original, left = write_atomic, 0

    def second_time_killed(path, content, **options):
        nonlocal left
        left -= 1
        if left == 0:
            raise Killed
        original(path, content, **options)

    with monkeypatch.context() as patch:
        patch.setattr("polyclinic.running.progress.write_atomic", second_time_killed)
        for _ in range(4):
            left = 2
            with pytest.raises(Killed):
                outcome_of(saved_federation("fedadam", tmp_path), tmp_path)
    assert outcome_of(saved_federation("fedadam", tmp_path), tmp_path) == unbroken


def test_a_checkpoint_is_replaced_in_one_step(tmp_path, monkeypatch):
    """A kill in the middle of writing leaves the old checkpoint, which counts only the rows that belong to it."""
    federation = saved_federation("fedavg", tmp_path)
    with pytest.raises(Killed):
        outcome_of(federation, tmp_path, stop_after(2))
    before = (tmp_path / "job" / "checkpoint.safetensors").read_bytes()
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(Killed()))
    with pytest.raises(Killed):
        outcome_of(saved_federation("fedavg", tmp_path), tmp_path)
    assert (tmp_path / "job" / "checkpoint.safetensors").read_bytes() == before
    lines = (tmp_path / "job" / "rounds.jsonl").read_text().splitlines()
    assert len(lines) == 3 * 3, "the third round's rows are there"
    progress, rows = Checkpoint(tmp_path / "job").read(torch.zeros(0))
    assert (progress.done, len(rows)) == (2, 2 * 3)
    assert [json.loads(line)["round"] for line in lines] == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_a_site_without_its_checkpoint_says_so(tmp_path):
    with pytest.raises(Killed):
        outcome_of(saved_federation("fedbn", tmp_path), tmp_path, stop_after(2))
    for path in (tmp_path / "sites" / "Bonn").glob("*.safetensors"):
        path.unlink()
    with pytest.raises(SiteError, match="P401 Site Bonn has no checkpoint of round 2"):
        outcome_of(saved_federation("fedbn", tmp_path), tmp_path)


# Memory ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["fedadam", "single"])
@pytest.mark.parametrize("stacked", [False, True])
def test_memory_does_not_grow_with_the_rounds(method, stacked, tmp_path):
    data = table_sites({"Aachen": 20, "Bonn": 10}, part=None)
    federation = Federation(
        data, [method], model={"mlp": {"hidden": [100], "norm": "batch"}},
        training={"rounds": 50, "optimizer": MOMENTUM},
        evaluation={"folds": 2, "validation": 0.3, "best_round": "loss"}, stacked=stacked,
    )  # fmt: skip
    tensors = {}

    def report(done, _):
        if done in {10, 50}:
            gc.collect()
            tensors[done] = sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())
            if done == 10:
                tracemalloc.start()

    try:
        federation.rounds(checkpoint=Checkpoint(tmp_path), report=report)
        grown, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # One that is kept in each round would be 40 more. Some are the best round's own, or not, and all that live in this
    # process are counted, also those of threads that other tests left behind.
    assert tensors[50] < tensors[10] + 20
    rows = 40 * 2 * 2000
    assert grown < rows + 5e5, "the rows of the rounds are all that is kept"


def test_what_goes_round_is_only_what_is_shared():
    federation = Federation(
        table_sites(), ["fedbn"], model={"mlp": {"hidden": [5], "norm": "batch"}}, training={"rounds": 2}
    )
    plan = federation.plan()
    with recorded(federation.engine) as said:
        run_rounds(plan, federation.engine)
    for function, _, request, reply in said:
        if function == "train":
            assert {name: tuple(t.shape) for name, t in request.tensors.items()} == {"state": (plan.selection.size,)}
            assert {name: tuple(t.shape) for name, t in reply.tensors.items()} == {
                "change": (plan.selection.trainable,), "statistics": (plan.selection.size - plan.selection.trainable,)
            }  # fmt: skip
            assert set(reply.fields) == {"examples", "steps", "loss", "seconds"}
