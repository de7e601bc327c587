"""What a network draws in training depends on study, site and round, and on nothing else."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from helpers import Federation, catalogued, recorded, table_sites, trained_state
from polyclinic.randomness import kept_randomness, own_randomness
from polyclinic.seeds import derive_seed


def stochastic(shape, outputs):
    from monai.networks.layers import DropPath

    head = nn.Linear(16, outputs)
    return nn.Sequential(nn.Linear(shape[0], 16), nn.ReLU(), DropPath(0.5), head), [head]


def states(federation):
    with recorded(federation.engine) as said:
        federation.rounds()
    return {(site, number): trained_state(request, reply) for number, (function, site, request, reply)
            in enumerate(said) if function == "train"}  # fmt: skip


@pytest.mark.parametrize("method", ["fedavg", "fedsgd", "apfl"])
def test_stochastic_depth_draws_the_same_whatever_was_drawn_before(method):
    with catalogued("stochastic", stochastic):
        found = []
        for seed in (1, 2):
            torch.manual_seed(seed)
            found.append(states(Federation(table_sites(), [method], model="stochastic", training={"rounds": 2})))
            expected = torch.rand(3, generator=torch.Generator().manual_seed(seed))
            assert torch.equal(torch.rand(3), expected), "the global generator is as it was"
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[0][key], found[1][key]) for key in found[0])


def test_sites_do_not_depend_on_each_others_draws():
    with catalogued("stochastic", stochastic):
        all_sites = states(Federation(table_sites(), model="stochastic"))
        alone = states(Federation({"Celle": table_sites()["Celle"]}, model="stochastic"))
    ((_, together),) = [item for item in all_sites.items() if item[0][0] == "Celle"]
    ((_, single),) = [item for item in alone.items() if item[0][0] == "Celle"]
    assert torch.equal(together, single)


def test_depth_is_stochastic():
    with catalogued("stochastic", stochastic):
        federation = Federation(table_sites(), model="stochastic", training={"rounds": 1})
        one = federation.state(seed=0)
        federation.template.module[2].drop_prob = 0.0
        federation.engine.members["Aachen"].run.model.module[2].drop_prob = 0.0
        assert not torch.equal(one, federation.state(seed=0))


def test_threads_draw_from_their_own_seeds():
    """Each begins, and draws when the other would have begun, too."""

    def draws(name, wait=lambda: None):
        with own_randomness(1, name):
            wait()
            return [torch.rand(3).tolist(), torch.randn(3).tolist()]

    names = ["a", "b", "c", "d"]
    alone = [draws(name) for name in names]
    with ThreadPoolExecutor(len(names)) as threads:
        together = list(threads.map(lambda name: draws(name, lambda: time.sleep(0.02)), names))
    assert together == alone
    assert len({str(one) for one in alone}) == len(names)


def test_own_randomness_gives_what_manual_seed_gives_and_is_put_back():
    before = torch.get_rng_state()
    with own_randomness(1, "a"):
        drawn = torch.rand(4)
    assert torch.equal(torch.get_rng_state(), before)
    with kept_randomness():
        torch.manual_seed(derive_seed(1, "a"))
        assert torch.equal(torch.rand(4), drawn)
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(KeyError), own_randomness(1, "a"):
        raise KeyError
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu_too():
    device = torch.device("cuda")
    before = torch.cuda.get_rng_state(device)
    with own_randomness(1, "a", device=device):
        drawn = torch.rand(4, device=device)
    assert torch.equal(torch.cuda.get_rng_state(device), before)
    with kept_randomness(device):
        torch.manual_seed(derive_seed(1, "a"))
        assert torch.equal(torch.rand(4, device=device), drawn)
    assert torch.equal(torch.cuda.get_rng_state(device), before)
