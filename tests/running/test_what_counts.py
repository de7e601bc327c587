"""What a site keeps of a round counts only once the round did: late, lost and given-up rounds leave no trace."""

import pytest
import torch

from helpers import Federation, table_sites, training_message
from polyclinic.client.train import train
from polyclinic.communication.message import Message
from polyclinic.errors import SiteError
from polyclinic.running.progress import Checkpoint
from polyclinic.site.round import Round
from polyclinic.site.run import Kept

SITES = {"Aachen": 33, "Bonn": 14, "Celle": 17, "Dresden": 20}
ROUNDS = 12
#: In round 6 a single site is there, fewer than the quorum.
TRAINING = {
    "rounds": ROUNDS, "weights": "uniform", "quorum": 2, "local_epochs": 1,
    "participation": {"availability": {"absent": {"Celle": [2, 6], "Dresden": [3, 6], "Aachen": [6]}}},
}  # fmt: skip


class Lossy:
    """An engine on whose way answers get lost: the site has trained, and nobody hears of it."""

    def __init__(self, engine, lost):
        self.engine, self.lost, self.sites = engine, lost, engine.sites
        self.original = engine.call
        engine.call = self.call

    def call(self, function, requests):
        for site, reply in self.original(function, requests):
            if function == "train" and (site, requests[site].fields["round"] + 1) in self.lost:
                reply = SiteError("P401", f"The answer of {site} was lost.", site=site)
            yield site, reply


def federation(method, folder, **training):
    """Answers of Aachen in rounds 4 and 8, and of Bonn in 5, are lost; in round 6 too few sites are there."""
    made = Federation(table_sites(SITES), [method], training={**TRAINING, **training}, folder=folder / "sites")
    Lossy(made.engine, {("Aachen", 4), ("Aachen", 8), ("Bonn", 5)})
    return made


def of_server(progress, folder, part, name):
    """What a part keeps at the server."""
    saved = Checkpoint(folder / "job")
    saved.read(progress.first)
    return saved.memory[f"model federation/{part}/{name}"]


class Stop(BaseException):
    pass


def stop_after(rounds):
    def report(done, _):
        if done == rounds:
            raise Stop

    return report


@pytest.mark.parametrize("stop", [None, 1, 4, 5, 6, 8])
def test_c_stays_the_mean_of_all_c_k(stop, tmp_path):
    """Karimireddy 2020, algorithm 1: c is the mean of all c_k whoever takes part, also after rounds given up, answers
    lost and a training that was stopped and resumed."""
    if stop is not None:
        with pytest.raises(Stop):
            federation("scaffold", tmp_path).rounds(checkpoint=Checkpoint(tmp_path / "job"), report=stop_after(stop))
    made = federation("scaffold", tmp_path)
    progress, rows = made.rounds(checkpoint=Checkpoint(tmp_path / "job"))
    took_part = {number: [row["site"] for row in rows if row["round"] + 1 == number] for number in range(1, ROUNDS + 1)}
    assert took_part[6] == [], "a round that is given up"
    assert "Aachen" not in took_part[4] + took_part[8]
    assert "Bonn" not in took_part[5]
    own = [kept.parts["control_variates"]["control"] for kept in made.kept(progress).values()]
    c = of_server(progress, tmp_path, "control_variates", "control")
    assert c.norm() > 0.01
    torch.testing.assert_close(torch.stack(own).mean(0), c, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("stop", [None, 4, 6])
def test_h_stays_the_mean_of_all_h_k(stop, tmp_path):
    """FedDyn: h_k ← h_k − α Δ_k at the site and h ← h − α / m Σ Δ_k at the server, so h is the mean of all h_k."""
    method = {"feddyn": {"alpha": 0.1}}
    if stop is not None:
        with pytest.raises(Stop):
            federation(method, tmp_path).rounds(checkpoint=Checkpoint(tmp_path / "job"), report=stop_after(stop))
    made = federation(method, tmp_path)
    progress, _ = made.rounds(checkpoint=Checkpoint(tmp_path / "job"))
    own = [kept.parts["dynamic_regularisation"]["gradient"] for kept in made.kept(progress).values()]
    h = of_server(progress, tmp_path, "dynamic_regularisation", "gradient")
    assert h.norm() > 0.01
    torch.testing.assert_close(torch.stack(own).mean(0), h, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", ["scaffold", {"feddyn": {"alpha": 0.1}}], ids=["scaffold", "feddyn"])
def test_late_answers_leave_no_trace(method, tmp_path):
    """Aachen has five steps and is late in every round; the others' answers count."""
    speed = {"participation": {"deadline": {"seconds": 3.5}}, "step_seconds": 1.0, "rounds": 4, "quorum": 3}
    made = Federation(
        table_sites(SITES), [method], training={"weights": "uniform", **speed}, folder=tmp_path / "sites"
    )  # fmt: skip
    progress, rows = made.rounds(checkpoint=Checkpoint(tmp_path / "job"))
    assert {row["site"] for row in rows} == {"Bonn", "Celle", "Dresden"}
    ((part, _),) = made.method().method.local
    (name,) = made.kept(progress)["Aachen"].parts[part]
    own = {site: kept.parts[part][name] for site, kept in made.kept(progress).items()}
    assert not own["Aachen"].any()
    mean = of_server(progress, tmp_path, part, name)
    torch.testing.assert_close(torch.stack(list(own.values())).mean(0), mean, rtol=1e-4, atol=1e-6)


# At a site ------------------------------------------------------------------------------------------------------------


def started():
    """A site in a training of SCAFFOLD, that knows no round."""
    made = Federation(table_sites({"Aachen": 12}), ["scaffold"])
    plan = made.plan()
    made.engine.ask("start", {"Aachen": Message(plan.start.fields(), {"initial": plan.initial})})
    return made.engine.members["Aachen"].run, plan.initial


def exchange(run, state, number):
    """One round of work; what it left."""
    work = Round(run, *training_message(number, state, exchange=number))
    work.took(train(run.model, run.task, work.work(0), work.job(0)))
    return work.finish(0.0).tensors["control_variates/control_change"]


def control(run):
    return run.kept.parts["control_variates"]["control"]


def test_what_an_exchange_left_is_kept_only_once_it_counted():
    run, state = started()
    before = control(run).clone()
    change = exchange(run, state, 1)
    assert torch.equal(control(run), before), "nobody has said yet that it counted"
    run.settle(None)
    assert torch.equal(control(run), before), "a conversation in between says nothing"
    run.settle(1)
    assert torch.equal(control(run), before + change)
    run.settle(1)
    assert torch.equal(control(run), before + change), "said again"


@pytest.mark.parametrize("counted", [0, 1, 3])
def test_another_number_forgets_it_for_good(counted):
    run, state = started()
    exchange(run, state, 2)
    run.settle(counted)
    assert not control(run).any()
    run.settle(2)
    assert not control(run).any(), "forgotten is forgotten"


def test_an_exchange_that_is_repeated_starts_from_what_counted():
    """Two exchanges of the same round, of which nothing is known in between: the later one alone may count."""
    run, state = started()
    first = exchange(run, state, 1)
    run.settle(1)
    kept = control(run).clone()
    exchange(run, state, 2)
    lost = exchange(run, state, 3)
    run.settle(3)
    assert torch.equal(control(run), kept + lost)
    assert first.any()
    assert lost.any()


def test_restoring_forgets_what_was_left():
    run, state = started()
    exchange(run, state, 1)
    run.settle(1)
    saved = {name: tensor.clone() for name, tensor in run.memory().items()}
    exchange(run, state, 2)
    run.restore(saved)
    run.settle(2)
    assert torch.equal(control(run), saved["part control_variates/control"])
    assert isinstance(run.kept, Kept)
