"""Batch normalisation with ``momentum: null`` averages over all batches so far, over rounds as well."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from helpers import Federation, catalogued, flat, plain_module, table_sites, training_message
from polyclinic.parts import FEDERATION
from polyclinic.running.progress import Checkpoint
from polyclinic.seeds import generator
from polyclinic.site.round import Round

ROUNDS, EPOCHS = 3, 2
TRAINING = {"rounds": ROUNDS, "local_epochs": EPOCHS, "batch_size": 8}


def cumulative(shape, outputs):
    head = nn.Linear(6, outputs)
    return nn.Sequential(nn.Linear(shape[0], 6), nn.BatchNorm1d(6, momentum=None), nn.ReLU(), head), [head]


@pytest.fixture(autouse=True)
def network():
    with catalogued("cumulative", cumulative):
        yield


def plain(federation, own, site, optimizer):
    """Plain training over all epochs, with the batches that the site has; 20 cases are batches of 8, 8 and 4."""
    network = federation.network(0)
    module = plain_module(network, federation.initial(0)).train()
    optimizer = optimizer(module.parameters())
    for number in range(ROUNDS):
        source = generator(0, "train", site, 0, number)
        for _ in range(EPOCHS):
            order = torch.randperm(len(own.targets), generator=source)
            for index in order.split(8):
                optimizer.zero_grad()
                F.cross_entropy(module(own.inputs[index]), own.targets[index]).backward()
                optimizer.step()
    assert module[1].num_batches_tracked == ROUNDS * EPOCHS * 3
    return flat(network, module).detach()


@pytest.mark.parametrize(
    ("method", "optimizer"),
    [
        ("mix", {"sgd": {"lr": 0.1, "momentum": 0.9}}),
        ("single", {"sgd": {"lr": 0.1, "momentum": 0.9}}),
        ("fedavg", {"sgd": {"lr": 0.1}}),
        ("fedbn", {"sgd": {"lr": 0.1}}),
    ],
)
@pytest.mark.parametrize("stacked", [False, True])
def test_one_site_is_plain_training(method, optimizer, stacked):
    data = {"Dresden": table_sites()["Dresden"]}
    federation = Federation(
        data, [method], model="cumulative", training={**TRAINING, "optimizer": optimizer}, stacked=stacked
    )
    expected = plain(federation, data["Dresden"], "Dresden", lambda p: torch.optim.SGD(p, **optimizer["sgd"]))
    (found,) = federation.outcome().models.values()
    trained = {name.rpartition("/")[2]: tensor for name, tensor in found.items()}
    for name, tensor in federation.template.layout.split(expected).items():
        torch.testing.assert_close(trained[name], tensor, rtol=1e-5, atol=1e-5)


def test_statistics_of_a_round_are_not_the_last_rounds_alone():
    """With a rate of nearly 0 each round repeats itself, but for other batches: the average is over all of them."""
    data = {"Dresden": table_sites()["Dresden"]}
    training = {**TRAINING, "optimizer": {"sgd": {"lr": 1e-30}}}
    federation = Federation(data, model="cumulative", training=training)
    own, layer = data["Dresden"], plain_module(federation.network(0), federation.initial(0))[0]
    found = []
    for number in range(ROUNDS):
        source = generator(0, "train", "Dresden", 0, number)
        for _ in range(EPOCHS):
            found += [layer(own.inputs[i]).mean(0) for i in torch.randperm(20, generator=source).split(8)]
    names = federation.template.layout.split(federation.state())
    torch.testing.assert_close(names["1.running_mean"], torch.stack(found).mean(0).detach(), rtol=1e-5, atol=1e-5)
    last = torch.stack(found[-EPOCHS * 3 :]).mean(0)
    assert (last - names["1.running_mean"]).abs().max() > 1e-4


def test_of_many_sites_it_is_the_mean_of_their_averages():
    sizes = {"Aachen": 16, "Bonn": 24}
    training = {**TRAINING, "optimizer": {"sgd": {"lr": 1e-30}}}
    data = table_sites(sizes)
    both = Federation(data, model="cumulative", training=training)
    alone = [Federation({site: own}, model="cumulative", training=training).state() for site, own in data.items()]
    torch.testing.assert_close(both.state(), 0.4 * alone[0] + 0.6 * alone[1], rtol=1e-5, atol=1e-5)


def test_phases_of_a_round_are_counted_one_after_another():
    """Dresden has 3 batches: 4 epochs of the head, then 2 of the body, so 18 steps a round."""
    method = {"fedrep": {"head_epochs": 4}}
    federation = Federation(table_sites(), [method], model="cumulative", training=TRAINING)
    federation.rounds()
    run = federation.engine.members["Dresden"].run
    state = run.shared.take(federation.initial(0))
    work = Round(run, *training_message(2, state))
    assert [run.phases[0].start, run.phases[1].start] == ["received", "before"]
    work._results.append(type("Done", (), {"steps": 12, "vector": federation.initial(0)})())
    assert [work.job(0).batches, work.job(1).batches] == [2 * 18, 2 * 18 + 12]


def test_a_personal_model_counts_its_own_steps():
    method = {"ditto": {"epochs": 5}}
    federation = Federation(table_sites(), [method], model="cumulative", training=TRAINING)
    federation.rounds()
    run = federation.engine.members["Dresden"].run
    work = Round(run, *training_message(ROUNDS, run.shared.take(federation.initial(0))))
    assert [work.job(0).batches, work.job(1).batches] == [ROUNDS * 6, ROUNDS * 15]


def test_a_run_that_is_resumed_counts_on(tmp_path):
    def start(rounds):
        training = {**TRAINING, "rounds": rounds}
        return Federation(table_sites(), model="cumulative", training=training, folder=tmp_path / "sites")

    whole = start(ROUNDS).state()
    first = start(ROUNDS)
    folder = tmp_path / "progress"

    class Stop(Exception):  # noqa: N818
        pass

    def stop(done, total):
        if done == 1:
            raise Stop

    with pytest.raises(Stop):
        first.rounds(checkpoint=Checkpoint(folder), report=stop)
    again = start(ROUNDS).rounds(checkpoint=Checkpoint(folder))[0].model(FEDERATION)
    assert torch.equal(again, whole)


# With a rate of nearly 0 weights stay as they are, so the running mean is the plain mean of the batches' means.
STILL = {"rounds": 4, "batch_size": 8, "optimizer": {"sgd": {"lr": 1e-30}}}
TWO = {"Aachen": 24, "Dresden": 20}  # three batches each
LATER = {"participation": {"availability": {"absent": {"Dresden": [1, 2]}}}}


def batch_means(federation, site, number, *turn):
    """Of each batch of a site in a round, the mean of what comes to the normalisation."""
    own, layer = federation.data[site].inputs, plain_module(federation.network(0), federation.initial(0))[0]
    order = torch.randperm(len(own), generator=generator(0, "train", site, 0, number, *turn))
    return [layer(own[index]).mean(0).detach() for index in order.split(8)]


def running_mean(federation, vector):
    return federation.template.layout.split(vector)["1.running_mean"]


def started(methods, training, **options):
    return Federation(table_sites(TWO), methods, model="cumulative", training={**STILL, **training}, **options)


@pytest.mark.parametrize("method", ["fedbn", "silobn", "lg_fedavg", "ditto", "apfl", "single"])
@pytest.mark.parametrize("resumed", [False, True])
def test_what_stays_at_a_site_counts_the_batches_of_that_site(method, resumed, tmp_path):
    training = {} if method == "single" else LATER
    federation = started([method], training, folder=tmp_path / "sites")
    if resumed:
        interrupted(federation, tmp_path / "progress", after=3)
        federation = started([method], training, folder=tmp_path / "sites")
    progress, _ = federation.rounds(checkpoint=Checkpoint(tmp_path / "progress"))
    federation.kept(progress)
    run = federation.engine.members["Dresden"].run
    found = running_mean(federation, run.vector(progress.model(FEDERATION)))
    rounds = (0, 1, 2, 3) if method == "single" else (2, 3)
    expected = torch.stack([mean for number in rounds for mean in batch_means(federation, "Dresden", number)])
    torch.testing.assert_close(found, expected.mean(0), rtol=1e-5, atol=1e-5)


class Interrupted(Exception):  # noqa: N818
    pass


def interrupted(federation, folder, after):
    """Train for so many rounds."""

    def stop(done, total):
        if done == after:
            raise Interrupted

    with pytest.raises(Interrupted):
        federation.rounds(checkpoint=Checkpoint(folder), report=stop)


@pytest.mark.parametrize("personal", [None, "ditto"])
@pytest.mark.parametrize("resumed", [False, True])
def test_a_model_that_goes_from_site_to_site_counts_the_batches_of_all(personal, resumed, tmp_path):
    method = {"cyclic": {"personal": personal}}
    federation = started([method], LATER, folder=tmp_path / "sites")
    if resumed:
        interrupted(federation, tmp_path / "progress", after=3)
        federation = started([method], LATER, folder=tmp_path / "sites")
    progress, rows = federation.rounds(checkpoint=Checkpoint(tmp_path / "progress"))
    turns = [(row["site"], row["round"]) for row in rows]
    assert len(turns) == 6
    expected = torch.stack([mean for turn in turns for mean in batch_means(federation, *turn)]).mean(0)
    found = running_mean(federation, progress.model(FEDERATION))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_every_turn_of_incremental_training_counts():
    federation = started(["incremental"], {"rounds": 2})
    turns = [("Aachen", 0), ("Aachen", 0, "turn 1"), ("Dresden", 1), ("Dresden", 1, "turn 1")]
    expected = torch.stack([mean for turn in turns for mean in batch_means(federation, *turn)]).mean(0)
    torch.testing.assert_close(running_mean(federation, federation.state()), expected, rtol=1e-5, atol=1e-5)


def test_a_round_without_sites_counts_for_nothing():
    absent = {"participation": {"availability": {"absent": {"Aachen": [1, 3], "Dresden": [1, 3]}}}}
    federation = started(["fedavg"], absent)
    found = running_mean(federation, federation.state())
    means = {site: [m for number in (1, 3) for m in batch_means(federation, site, number)] for site in TWO}
    expected = sum(cases * torch.stack(means[site]).mean(0) for site, cases in TWO.items()) / sum(TWO.values())
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("share", ["all", "no_norm"])
def test_a_cycle_that_is_taken_back_counts_for_nothing(share):
    """Dresden is always late, so that the two answers that are needed come only where Celle is there."""
    training = {
        **STILL, "quorum": 2, "step_seconds": {"Aachen": 1, "Celle": 1, "Dresden": 3},
        "participation": [{"availability": {"absent": {"Celle": [1, 3]}}}, {"deadline": {"seconds": 5}}],
    }  # fmt: skip
    federation = Federation(
        table_sites({**TWO, "Celle": 16}), [{"cyclic": {"share": share}}], model="cumulative", training=training
    )
    progress, _ = federation.rounds()
    federation.kept(progress)
    turns = [(site, number) for number in (1, 3) for site in ("Aachen", "Celle") if share == "all" or site == "Aachen"]
    expected = torch.stack([mean for turn in turns for mean in batch_means(federation, *turn)]).mean(0)
    found = running_mean(federation, federation.engine.members["Aachen"].run.vector(progress.model(FEDERATION)))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
