"""Batch normalisation with ``momentum: null`` averages over all batches so far, over rounds as well."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from helpers import Federation, catalogued, flat, plain_module, table_sites, training_message
from polyclinic.parts import FEDERATION
from polyclinic.running.progress import Checkpoint
from polyclinic.seeds import generator

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
    work = run.round(*training_message(2, state))
    assert [run.phases[0].start, run.phases[1].start] == ["received", "before"]
    work._results.append(type("Done", (), {"steps": 12, "vector": federation.initial(0)})())
    assert [work.job(0).batches, work.job(1).batches] == [2 * 18, 2 * 18 + 12]


def test_a_personal_model_counts_its_own_steps():
    method = {"ditto": {"epochs": 5}}
    federation = Federation(table_sites(), [method], model="cumulative", training=TRAINING)
    federation.rounds()
    run = federation.engine.members["Dresden"].run
    work = run.round(*training_message(2, run.shared.take(federation.initial(0))))
    assert [work.job(0).batches, work.job(1).batches] == [2 * 6, 2 * 15]


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
