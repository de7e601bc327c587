"""ELCFS (FedDG): steps that must also help on images with the look of other sites."""

import pytest
import torch
from torch import nn

from helpers import Federation, catalogued, image_sites, recorded, site_of, table_sites
from polyclinic.client.domain_shift.episodes import FrequencyEpisodes
from polyclinic.client.domain_shift.spectra import Window
from polyclinic.errors import SiteError
from polyclinic.options import EntryError
from polyclinic.parts import Batch
from polyclinic.running.progress import Checkpoint
from polyclinic.seeds import generator
from polyclinic.state import FlatModule
from polyclinic.tasks import build_task

CNN = {"cnn": {"channels": [4]}}
NORM_CNN = {"cnn": {"channels": [4], "norm": "batch"}}


def close(actual, expected, tolerance=1e-6):
    torch.testing.assert_close(actual, torch.as_tensor(expected), rtol=tolerance, atol=tolerance)


def images(*methods, **options):
    options = {"model": CNN, **options}
    options["training"] = {"rounds": 2, **options.get("training", {})}
    return Federation(options.pop("data", None) or image_sites(), list(methods), **options)


def test_looks_are_mixed_by_hand():
    """Brightness 3 (amplitude 12 of 4 pixels) towards 1 (amplitude 4): a quarter of the way is 2.5."""
    pattern = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    pictures = (3 + pattern).expand(2, 1, 2, 2)
    found = Window((2, 2), 0).mixed(pictures, torch.full((2, 1, 1, 1), 4.0), torch.tensor([0.25, 1.0]))
    close(found, torch.stack([2.5 + pattern, 1 + pattern])[:, None])


@pytest.mark.parametrize("window", [0.0, 0.2, 0.5])
def test_with_a_share_of_nothing_images_stay(window):
    frequencies, source = Window((6, 7), window), torch.Generator().manual_seed(2)
    pictures = torch.randn(3, 2, 6, 7, generator=source)
    others = frequencies.amplitudes(pictures).flip(0)
    close(frequencies.mixed(pictures, others, torch.zeros(3)), pictures, 1e-5)


class Brightness(nn.Module):
    """One weight w: its output is w times the brightness of the image."""

    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([weight]))

    def forward(self, inputs):
        return self.weight * inputs.flatten(1).mean(1, keepdim=True)


def test_an_episode_by_hand():
    """w = 2, b = 3, y = 1: F = (6 − 1)² = 25, slope 2 · 3 · 5 = 30. With β = 0.05 the step goes to w' = 0.5.

    The other look has the brightness c = 3 + λ (5 − 3), there F = (0.5 c − 1)², slope 2 c (0.5 c − 1) for w, of which
    half is added: (2 · 3 + (c · (0.5 c − 1))).
    """
    part = FrequencyEpisodes(weight=0.5, step=0.05, window=0.0)
    end, model = part.at_site(), FlatModule(Brightness(2.0))
    end._window, end._task = Window((2, 2), 0.0), build_task("regression", 0)
    inputs, targets = torch.full((1, 1, 2, 2), 3.0), torch.tensor([1.0])
    outputs = model.module(inputs)
    batch = Batch(inputs, targets, model, model.vector.clone(), 7, outputs, torch.empty(0))
    term = end.loss(batch, {"others": torch.full((1, 1, 1, 1), 20.0)})
    source = generator("looks", 7)
    torch.randint(1, (1,), generator=source)
    look = 3 + 2 * float(torch.rand(1, generator=source))
    close(term.detach(), 0.5 * (0.5 * look - 1) ** 2, 1e-5)
    term.backward()
    close(model.gradient, [look * (0.5 * look - 1)], 1e-5)
    close(model.vector, [2.0])


def test_sites_get_the_banks_of_the_others():
    made = images({"elcfs": {"bank": 6, "window": 0.2}})
    with recorded(made.engine) as said:
        made.rounds()
    banks = {site: reply.tensors["frequency_episodes/bank"] for function, site, _, reply in said if function == "start"}
    told = {site: request.tensors["others"] for function, site, request, _ in said if function.endswith("/tell")}
    assert {site: len(bank) for site, bank in banks.items()} == {"Aachen": 6, "Bonn": 6, "Celle": 5, "Dresden": 6}
    assert banks["Bonn"].shape[1:] == (1, 3, 2), "of 8 pixels the frequencies −1, 0 and 1"
    for site, others in told.items():
        assert torch.equal(others, torch.cat([bank for other, bank in banks.items() if other != site]))


@pytest.mark.parametrize("model", [CNN, NORM_CNN])
def test_without_its_term_it_is_fedavg_to_the_bit(model):
    made = images("fedavg", {"elcfs": {"weight": 0, "label": "none"}}, model=model)
    assert torch.equal(made.state("none"), made.state("fedavg"))


def test_a_site_alone_trains_as_without():
    data = image_sites({"Aachen": 20})
    made = images("fedavg", "elcfs", data=data)
    assert torch.equal(made.state("elcfs"), made.state("fedavg"))


def test_without_a_step_and_with_its_own_looks_all_losses_are_twice_those_of_fedavg():
    """β = 0 and λ = 0: the added term is the loss itself, so half the rate gives the same models."""
    own = {"elcfs": {"step": 0, "most": 0, "label": "own", "training": {"optimizer": {"sgd": {"lr": 0.05}}}}}
    made = images("fedavg", own)
    close(made.state("own"), made.state("fedavg"), 1e-5)


def test_statistics_of_normalisation_are_those_of_the_sites_own_images():
    rate = {"optimizer": {"sgd": {"lr": 1e-12}}}
    made = images("fedavg", "elcfs", model=NORM_CNN, training=rate)
    size = made.template.layout.trainable
    assert torch.equal(made.state("elcfs")[size:], made.state("fedavg")[size:])


LABELS = torch.tensor([0, 1] * 6)


def striped(brightness):
    """Class 1 has faint stripes across, class 0 along; each image has a brightness."""
    wave = 0.1 * torch.cos(torch.arange(8) * torch.pi)
    stripes = torch.where(LABELS[:, None, None] == 1, wave[:, None].expand(8, 8), wave[None, :].expand(8, 8))
    return (stripes + brightness[:, None, None])[:, None].float()


def linear(shape, outputs):
    layer = nn.Linear(64, outputs)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return nn.Sequential(nn.Flatten(), layer), [layer]


def test_a_look_that_goes_with_the_class_at_all_sites_is_not_what_is_learned():
    """At all sites class 1 is bright, elsewhere dark. Brightness is much stronger than the stripes, so a model that
    learns it is wrong elsewhere, on half of the cases; with looks of either class, only the stripes tell."""
    data = {name: site_of(name, striped(0.2 + 0.1 * number + 0.5 * LABELS), LABELS) for number, name in enumerate("AB")}
    training = {"rounds": 150, "batch_size": 12, "optimizer": {"sgd": {"lr": 0.3}}}
    with catalogued("linear", linear):
        made = images("fedavg", {"elcfs": {"weight": 9.0, "window": 0.0, "label": "elcfs"}}, data=data, model="linear",
                      training=training)  # fmt: skip
        right = {}
        for label in ("fedavg", "elcfs"):
            network = made.network(0)
            network.load(made.state(label))
            elsewhere = network.module(striped(0.7 - 0.5 * LABELS))
            right[label] = float((elsewhere.argmax(1) == LABELS).float().mean())
    assert right == {"fedavg": 0.5, "elcfs": 1.0}


def test_a_site_that_was_away_is_told_when_it_trains():
    states = []
    for absent in (False, True):
        made = images("elcfs", training={"quorum": 1})
        if absent:
            original = made.engine.call

            def call(function, requests, original=original):
                for name, reply in original(function, requests):
                    lost = (function, name) == ("frequency_episodes/tell", "Bonn")
                    yield name, SiteError("P401", "away", site=name) if lost else reply

            made.engine.call = call
        states.append(made.state())
    assert torch.equal(*states)


@pytest.mark.parametrize("options", [{"stacked": True}, {"serialise": True}])
def test_engines_agree(options):
    close(images("elcfs", **options).state(), images("elcfs").state(), 1e-6)


@pytest.mark.parametrize("stop", [1, 2])
def test_a_run_resumed_ends_with_the_same_bytes(stop, tmp_path):
    def train(folder, stop=None):
        made = images({"elcfs": {"window": 0.2}}, model=NORM_CNN, training={"rounds": 3}, folder=folder / "sites")

        def report(done, total):
            if done == stop:
                raise KeyboardInterrupt

        return made.rounds(checkpoint=Checkpoint(folder / "job"), report=report)[0]

    whole = train(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "part", stop)
    again = train(tmp_path / "part")
    assert all(torch.equal(again.models[name], model) for name, model in whole.models.items())


def test_masks_are_trained_with_it_and_tables_are_refused():
    data = image_sites({"Aachen": 8, "Bonn": 8}, size=16, masks=True)
    made = images("elcfs", data=data, task="segmentation", classes=1, model={"unet": {"channels": [4, 8]}})
    assert made.state().isfinite().all()
    with pytest.raises(EntryError, match="P104 frequency_episodes is for images"):
        Federation(table_sites(), ["elcfs"])


def test_in_half_precision_the_step_is_taken_in_full():
    """Outputs of half precision are computed anew for the step: the term is that of full precision."""
    part = FrequencyEpisodes(step=0.05, window=0.0)
    terms = []
    for kind in (torch.float32, torch.float16):
        end, model = part.at_site(), FlatModule(Brightness(2.0))
        end._window, end._task = Window((2, 2), 0.0), build_task("regression", 0)
        inputs = torch.full((1, 1, 2, 2), 3.0)
        outputs = model.module(inputs).to(kind)
        batch = Batch(inputs, torch.tensor([1.0]), model, model.vector, 7, outputs, torch.empty(0))
        terms.append(end.loss(batch, {"others": torch.full((1, 1, 1, 1), 20.0)}))
    assert torch.equal(*terms)
