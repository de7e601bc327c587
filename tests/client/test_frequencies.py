"""Progressive Fourier aggregation: frequencies by hand, what is common, and sites that differ in high ones alone."""

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers import Federation, image_sites, site_of, table_sites
from polyclinic.client.personal.frequencies import Fourier, low
from polyclinic.parts import FEDERATION
from polyclinic.state import FlatModule

BATCH = {"mlp": {"hidden": [6], "norm": "batch"}}


def close(actual, expected, tolerance=1e-6):
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype), rtol=tolerance, atol=tolerance)


def fourier(start, end=None, *, method="fedavg", **entry):
    return {method: {"personal": {"fourier": {"start": start, "end": start if end is None else end}}, **entry}}


# Frequencies ----------------------------------------------------------------------------------------------------------


def test_low_frequencies_by_hand():
    """Of four numbers 0.5 keeps the mean and the wave of length 4; the alternating part, (1 − 2 + 5 − 8) / 4, goes."""
    found = low(torch.tensor([[1.0, 2.0, 5.0, 8.0]]), 0.5)
    close(found, [[2.0, 1.0, 6.0, 7.0]])
    close(low(torch.tensor([[1.0, 2.0, 5.0, 8.0]]), 0.0), [[4.0, 4.0, 4.0, 4.0]])


def test_a_kernel_is_a_matrix_of_channels_and_rows_by_columns_and_outputs():
    """As the authors arrange it: ``permute(1, 2, 3, 0).reshape(C D1, D2 N)``."""
    kernel = torch.randn(5, 2, 3, 4, generator=torch.Generator().manual_seed(0))
    matrix = kernel.permute(1, 2, 3, 0).reshape(6, 20)
    expected = low(matrix, 0.4).reshape(2, 3, 4, 5).permute(3, 0, 1, 2)
    close(low(kernel, 0.4), expected)
    assert low(torch.randn(5, 2, 3, 4, 2), 0.4).shape == (5, 2, 3, 4, 2)


@given(
    shape=st.lists(st.integers(1, 6), min_size=2, max_size=5), window=st.floats(0, 1), wider=st.floats(0, 1),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_what_is_kept_is_a_projection_of_real_numbers_that_grows_with_the_window(shape, window, wider, seed):
    window, wider = sorted((window, wider))
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found = low(tensor, window)
    close(low(found, window), found, 1e-9)
    close(low(found, wider), found, 1e-9)
    close(found.mean(), tensor.mean(), 1e-9)
    close(low(tensor, 1.0), tensor, 1e-9)
    assert abs(float((found * (tensor - found)).sum())) < 1e-8


# The model of a site --------------------------------------------------------------------------------------------------


def met(start, end, rounds=10):
    """The part at a site with one matrix ``[1, 2]`` and one bias."""
    network = FlatModule(torch.nn.Linear(2, 1))
    personal = Fourier(start=start, end=end)
    return personal, personal.initial(SimpleNamespace(layout=network.layout, vector=torch.zeros(3), rounds=rounds))


def test_a_model_by_hand():
    """w has the mean 5, v the difference 1 − 3; the bias is that of w."""
    personal, memory = met(0.5, 0.5)
    memory = personal.end(memory, torch.tensor([1.0, 3.0, 7.0]), None, None)
    close(personal.model(torch.tensor([10.0, 0.0, -4.0]), memory), [4.0, 6.0, -4.0])


def test_the_window_grows_with_the_rounds_of_the_site():
    """Of ten numbers the waves of 1/10, 2/10, ... cycles are common from r = 0.2, 0.4, ... on."""
    network = FlatModule(torch.nn.Linear(10, 1, bias=False))
    personal = Fourier(start=0.0, end=1.0)
    memory = personal.initial(SimpleNamespace(layout=network.layout, vector=torch.zeros(10), rounds=10))
    waves = torch.stack([torch.cos(2 * math.pi * k * torch.arange(10) / 10) for k in range(6)])
    common = []
    for _ in range(10):
        memory = personal.end(memory, torch.zeros(10), None, None)
        found = [personal.model(wave, memory) for wave in waves]
        common.append(sum(bool(torch.allclose(one, wave, atol=1e-6)) for one, wave in zip(found, waves, strict=True)))
        assert all(
            one.abs().max() < 1e-6 or torch.allclose(one, w, atol=1e-6) for one, w in zip(found, waves, strict=True)
        )
    assert common == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]


def test_a_site_that_has_not_trained_has_the_common_model():
    personal, memory = met(0.0, 0.0)
    assert personal.model(torch.tensor([10.0, 0.0, 1.0]), memory).tolist() == [10.0, 0.0, 1.0]


# Identities -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stacked", [False, True])
def test_with_all_frequencies_it_is_fedavg_to_the_bit(stacked):
    states = [
        Federation(table_sites(), [method], model=BATCH, training={"rounds": 3}, stacked=stacked).state()
        for method in ("fedavg", fourier(1.0))
    ]
    assert torch.equal(*states)


def ended(method, *, sites=None, rounds=4, **options):
    """The common model after training, and what each site keeps."""
    options = {"model": BATCH, **options}
    federation = Federation(sites or table_sites(), [method], training={"rounds": rounds}, **options)
    progress, rows = federation.rounds()
    return federation, progress.model(FEDERATION), federation.kept(progress), rows


def test_the_common_model_is_the_mean_of_the_sites_own():
    """Which is what the paper averages; here changes are added up, also of frequencies that are common later only."""
    federation, state, kept, rows = ended(fourier(0.2, 0.9))
    shares = {row["site"]: row["share"] for row in rows}
    mean = sum(shares[site] * found.personal["model"] for site, found in kept.items())
    torch.testing.assert_close(state, mean, rtol=1e-4, atol=1e-5)
    models = {site: member.run.vector(state) for site, member in federation.local.members.items()}
    window = 0.2 + 0.7 * 3 / 4
    for site, model in models.items():
        split, own, common = (federation.template.layout.split(v) for v in (model, kept[site].personal["model"], state))
        for name, tensor in split.items():
            matrix = tensor.dim() > 1
            expected = own[name] + low(common[name] - own[name], window) if matrix else common[name]
            torch.testing.assert_close(tensor, expected.float(), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(models["Aachen"], models["Bonn"], atol=1e-3)


@pytest.mark.parametrize("method", ["scaffold", "fedprox", "fedadam", "median", "feddyn"])
def test_it_goes_with_other_ends(method):
    _, state, _, _ = ended(fourier(0.5, method=method))
    assert state.isfinite().all()


def test_stacked_sites_learn_the_same():
    states = [ended(fourier(0.3, 0.8), stacked=stacked)[1] for stacked in (False, True)]
    torch.testing.assert_close(*states, rtol=1e-4, atol=1e-5)


def test_a_secure_sum_shows_the_same_mean():
    plain, hidden = (ended(fourier(0.5, channel=channel))[1] for channel in ([], ["secure_sum"]))
    torch.testing.assert_close(plain, hidden, rtol=1e-3, atol=1e-4)


def test_images_and_layers_that_stay():
    _, state, kept, _ = ended(
        "fourier", sites=image_sites({"Aachen": 6, "Bonn": 7}, masks=True), task="segmentation",
        model={"unet": {"channels": [2, 4]}}, rounds=2,
    )  # fmt: skip
    assert state.isfinite().all()
    assert all(found.personal["model"].isfinite().all() for found in kept.values())


def test_a_site_that_sits_out_keeps_its_frequencies():
    federation = Federation(table_sites(), [fourier(0.2, 0.9)], model=BATCH,
                            training={"rounds": 6, "participation": {"uniform": {"sites": 2}}})  # fmt: skip
    progress, rows = federation.rounds()
    kept = federation.kept(progress)
    done = {site: int(found.personal["rounds"][0]) for site, found in kept.items()}
    assert done == {site: sum(row["site"] == site for row in rows) for site in done}
    assert min(done.values()) < 6


def test_sites_are_asked_with_their_own_frequencies():
    """What a part measures in a round is the model from which the site starts."""
    federation, state, _, _ = ended(fourier(0.2, server=["fedce"]))
    for member in federation.local.members.values():
        assert torch.equal(member.run.view.whole(state), member.run.vector(state))


def test_restored_sites_go_on_as_if_they_had_not_stopped():
    federation, state, _, _ = ended(fourier(0.2, 0.9))
    for member in federation.local.members.values():
        before = member.run.vector(state).clone()
        memory = {name: tensor.clone() for name, tensor in member.run.memory().items()}
        member.run.restore(memory)
        assert torch.equal(member.run.vector(state), before)
        assert int(member.run.kept.personal["rounds"][0]) == 4


# What it is for -------------------------------------------------------------------------------------------------------


def opposed_sites():
    """Cases ±(1, −1, 1, −1); what is class 1 at A is class 0 at B. So sites differ in the highest frequency alone."""
    wave = torch.tensor([1.0, -1.0, 1.0, -1.0])
    inputs, labels = torch.stack([wave, -wave] * 4), torch.tensor([1, 0] * 4)
    return {"A": site_of("A", inputs, labels), "B": site_of("B", inputs, 1 - labels)}


def losses(method):
    """Of each site's model for its own cases, at its own cases."""
    federation, state, _, _ = ended(method, sites=opposed_sites(), model="logistic", rounds=20)
    runs = {site: member.run for site, member in federation.local.members.items()}
    return [run.measure(run.vector(state), run.parts.train)["loss"] for run in runs.values()]


def test_sites_that_differ_in_high_frequencies_each_get_what_is_right_for_them():
    """What a common model gives A it takes from B: in the mean none beats a coin. With its own high frequencies
    each site learns its labels, as it would alone."""
    assert sum(losses("fedavg")) / 2 >= math.log(2) - 1e-6
    assert max(losses(fourier(0.9))) < 0.1
