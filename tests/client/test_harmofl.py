"""HarmoFL: images with the mean look of all sites, and steps towards flat optima."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from helpers import Federation, catalogued, image_site, image_sites, recorded, site_of, table_site, table_sites
from polyclinic.client.domain_shift.amplitudes import AmplitudeNormalisation
from polyclinic.client.domain_shift.spectra import Window, whole_images
from polyclinic.client.drift.flatness import WeightPerturbation
from polyclinic.errors import SiteError, StudyError
from polyclinic.options import EntryError
from polyclinic.parts import build_part
from polyclinic.running.progress import Checkpoint
from polyclinic.study.final_model.entry import unusable
from polyclinic.study.job import Job

CNN = {"cnn": {"channels": [4]}}
LOOK = {"fedavg": {"local": ["mean_amplitude"], "label": "look"}}
FLAT = {"fedavg": {"local": ["weight_perturbation"], "label": "flat"}}
MOMENTUM = {"sgd": {"lr": 0.1, "momentum": 0.9}}


def close(actual, expected, tolerance=1e-6):
    torch.testing.assert_close(actual, torch.as_tensor(expected), rtol=tolerance, atol=tolerance)


def images(*methods, **options):
    options = {"model": CNN, **options}
    options["training"] = {"rounds": 2, **options.get("training", {})}
    return Federation(options.pop("data", None) or image_sites(), list(methods), **options)


def away(engine, function, site):
    """A site does not answer a question."""
    original = engine.call

    def call(asked, requests):
        for name, reply in original(asked, requests):
            yield name, SiteError("P401", f"{name} is away.", site=name) if (asked, name) == (function, site) else reply

    engine.call = call


# Spectra --------------------------------------------------------------------------------------------------------------


def test_an_image_is_rebuilt_by_hand():
    """[[1, 2], [3, 6]] has the spectrum 12, 1 − 2 + 3 − 6 = −4; 1 + 2 − 3 − 6 = −6, 1 − 2 − 3 + 6 = 2.

    With the amplitudes 4, 8; 0, 4 and these signs it is 4, −8; −0, 4, and the image is (4 − 8 + 0 + 4) / 4 = 0,
    (4 + 8 + 0 − 4) / 4 = 2; (4 − 8 − 0 − 4) / 4 = −2, (4 + 8 − 0 + 4) / 4 = 4. With the mean alone, 4 for 12, all is 2
    lower.
    """
    image, window = torch.tensor([[1.0, 2.0], [3.0, 6.0]]), Window((2, 2), 0.5)
    close(window.amplitudes(image), [[12.0, 4.0], [6.0, 2.0]])
    close(window.rebuilt(image, torch.tensor([[4.0, 8.0], [0.0, 4.0]])), [[0.0, 2.0], [-2.0, 4.0]])
    close(Window((2, 2), 0).rebuilt(image, torch.tensor([[4.0]])), [[-1.0, 0.0], [1.0, 4.0]])


@pytest.mark.parametrize("sizes", [(8, 8), (7, 5), (6, 9), (4, 5, 6)])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.5])
def test_an_image_with_its_own_amplitudes_is_itself_and_others_are_those_it_gets(sizes, share):
    window, source = Window(sizes, share), torch.Generator().manual_seed(1)
    pictures = torch.randn(3, 2, *sizes, generator=source)
    own = window.amplitudes(pictures)
    close(window.rebuilt(pictures, own), pictures, 1e-5)
    others = own.flip(0)
    changed = window.rebuilt(pictures, others)
    close(window.amplitudes(changed), others, 1e-4)
    full = torch.fft.fftn(pictures, dim=tuple(range(-len(sizes), 0)))
    far = [torch.fft.fftfreq(size).abs() <= int(size * share) / size + 1e-9 for size in sizes]
    inside = math.prod(far[0].sum().item() if n == 0 else far[n].sum().item() for n in range(len(sizes)))
    kept = torch.fft.fftn(changed, dim=tuple(range(-len(sizes), 0)))
    same = ((kept - full).abs() < 1e-3).sum() >= 6 * (math.prod(sizes) - inside)
    assert same, "frequencies outside of the window stay"


def test_rounding_has_no_phase():
    """A flat image has no other frequency than 0; what rounding leaves of others must not decide how it looks."""
    window = Window((6, 6), 0.5)
    flat, amplitudes = torch.full((6, 6), 0.3), torch.ones(6, 4)
    amplitudes[0, 0] = 36.0
    found = window.rebuilt(flat + 1e-9 * torch.randn(6, 6), amplitudes)
    close(found[0, 0], 1.0 + 35 / 36, 1e-4)
    assert torch.isfinite(window.rebuilt(torch.zeros(6, 6), amplitudes)).all()


def test_the_mean_is_over_the_cases_of_all_sites():
    """Sums 6 of 2 cases and 2 of 6: mean 1, and not (3 + 1/3) / 2."""
    end, asked = AmplitudeNormalisation().at_server(), []
    end.ask = lambda verb, told: (asked.append((verb, told)), iter([(site, {}) for site in told]))[1]
    end.others = ["C"]
    end.meet({"A": {"sum": torch.tensor([6.0]), "count": torch.tensor(2.0)},
              "B": {"sum": torch.tensor([2.0]), "count": torch.tensor(6.0)}}, {"A": 2.0, "B": 6.0})  # fmt: skip
    ((verb, told),) = asked
    assert verb == "tell"
    assert {site: float(sent["mean"]) for site, sent in told.items()} == {"A": 1.0, "B": 1.0, "C": 1.0}
    assert end.send("A") == {}


# Images ---------------------------------------------------------------------------------------------------------------


def shifted(name, cases):
    """A site whose images are one image, moved in a circle: all have its amplitudes."""
    site = image_site(name, cases)
    picture = image_site("one", 1).inputs[0]
    moved = [torch.roll(picture, (case // 8, case % 8 + len(name)), (1, 2)) for case in range(cases)]
    return site_of(name, torch.stack(moved), site.targets)


def test_where_all_images_have_the_same_amplitudes_it_is_fedavg():
    data = {"Aachen": shifted("Aachen", 20), "Bo": shifted("Bo", 12)}
    made = images("fedavg", LOOK, data=data)
    close(made.state("look"), made.state("fedavg"), 1e-5)


def test_one_site_has_its_own_mean():
    data = {"Aachen": image_site("Aachen", 20)}
    made = images(LOOK, data=data)
    made.rounds()
    site = made.engine.members["Aachen"]
    raw = site.dataset.batch(torch.arange(20))[0]
    mean = torch.fft.rfft2(raw).abs().mean(0)
    seen = site.run.dataset.batch(torch.arange(20))[0]
    close(torch.fft.rfft2(seen).abs(), mean.expand(20, -1, -1, -1), 1e-4)
    close(torch.fft.rfft2(seen).sgn(), torch.fft.rfft2(raw).sgn(), 1e-3)


def two_scanners():
    """Two sites with the same cases; the scanner of the second makes images sharper and brighter, and moves nothing."""
    plain = image_site("Aachen", 24)
    pixels = plain.inputs.float() / 255
    size = pixels.shape[-1]
    far = torch.fft.fftfreq(size)[:, None].abs() + torch.fft.rfftfreq(size).abs()
    other = torch.fft.irfft2(torch.fft.rfft2(pixels) * (1.5 + 4 * far), s=(size, size))
    return {"Aachen": site_of("Aachen", pixels, plain.targets), "Bonn": site_of("Bonn", other, plain.targets)}


def test_a_scanner_that_only_changes_amplitudes_leaves_no_trace():
    """The same patients at both sites are the same images, which fedavg tells apart."""
    found = {}
    for method in ("fedavg", LOOK):
        made = images(method, data=two_scanners(), training={"rounds": 3, "optimizer": MOMENTUM})
        state = made.state()
        sites = [made.engine.members[name] for name in ("Aachen", "Bonn")]
        seen = [site.run.dataset.batch(torch.arange(24))[0] for site in sites]
        network = made.network(0)
        network.load(state)
        network.module.eval()
        outputs = [network.module(pictures).detach() for pictures in seen]
        found[str(method)] = float((outputs[0] - outputs[1]).abs().max()), float((seen[0] - seen[1]).abs().max())
    (plain, difference), (look, none) = found.values()
    assert difference > 0.1
    assert none < 1e-4
    assert look < 1e-3 < plain


def test_validation_and_tests_see_the_same_images_also_at_a_site_that_does_not_train():
    data = image_sites({"Aachen": 24, "Bonn": 20, "Celle": 22}, part=None)
    made = images(LOOK, data=data, evaluation={"folds": 2, "validation": 0.2, "best_round": "loss"})
    with recorded(made.engine) as said:
        outcome = made.runner.run(Job((made.method(),), 0, 0, without="Celle"), made.fold)
    told = {site: request.tensors["mean"] for function, site, request, _ in said if function.endswith("/tell")}
    assert set(told) == set(data)
    assert {frame["site"].iloc[0] for frame in outcome.predictions} == {"Celle"}
    sums = [reply for function, site, _, reply in said if function == "start" and site != "Celle"]
    total = sum(reply.tensors["mean_amplitude/sum"] for reply in sums)
    count = sum(float(reply.tensors["mean_amplitude/count"]) for reply in sums)
    close(told["Celle"], (total / count).float())
    run = made.engine.members["Celle"].run
    pictures = run.dataset.batch(run.parts.test)[0]
    close(torch.fft.rfft2(pictures).abs(), told["Celle"].expand(len(pictures), -1, -1, -1), 1e-4)


def test_a_site_that_was_away_is_told_when_it_trains():
    states = []
    for absent in (False, True):
        made = images(LOOK, training={"quorum": 1})
        if absent:
            away(made.engine, "mean_amplitude/tell", "Bonn")
        with recorded(made.engine) as said:
            states.append(made.state())
        sent = [site for function, site, request, _ in said if "mean_amplitude/mean" in request.tensors
                and function == "train"]  # fmt: skip
        assert sent == (["Bonn"] if absent else [])
    assert torch.equal(*states)


def test_a_site_that_was_never_told_does_not_answer_with_other_images():
    rebuilding = build_part("mean_amplitude", {}).at_site()
    rebuilding.site = "Bonn"
    with pytest.raises(SiteError, match="P401 Site Bonn was not told how images look on average"):
        assert rebuilding.told
    rebuilding.begin(None, {"mean": torch.ones(1)})
    rebuilding.begin(None, {"mean": torch.ones(1)})
    with pytest.raises(SiteError, match="two mean amplitudes"):
        rebuilding.answer("tell", {"mean": torch.zeros(1)}, None)


@pytest.mark.parametrize("options", [{"stacked": True}, {"serialise": True}])
def test_engines_agree(options):
    close(images("harmofl", **options).state(), images("harmofl").state(), 1e-5)


def test_a_run_resumed_from_any_round_ends_with_the_same_bytes(tmp_path):
    def train(folder, stop=None):
        made = images({"harmofl": {"share": "no_norm"}}, model={"cnn": {"channels": [4], "norm": "batch"}},
                      training={"rounds": 3, "optimizer": MOMENTUM}, folder=folder / "sites")  # fmt: skip

        def report(done, total):
            if done == stop:
                raise KeyboardInterrupt

        return made.rounds(checkpoint=Checkpoint(folder / "job"), report=report)[0]

    whole = train(tmp_path / "whole")
    for stop in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / f"{stop}", stop)
        again = train(tmp_path / f"{stop}")
        assert all(torch.equal(again.models[name], model) for name, model in whole.models.items())


def test_with_augmentation_images_are_rebuilt_after_it():
    made = images(LOOK, preparation={"augmentation": [{"RandGaussianNoise": {"prob": 1.0}}]})
    made.rounds()
    dataset = made.engine.members["Aachen"].run.dataset
    changed, again = (dataset.batch(torch.arange(5), augment=seed)[0] for seed in (1, 2))
    mean = torch.fft.rfft2(dataset.batch(torch.arange(5))[0]).abs()
    close(torch.fft.rfft2(changed).abs(), mean, 1e-3)
    assert (changed - again).abs().max() > 1e-3


def test_images_are_rebuilt_once_and_other_images_anew():
    """Kept images are those of the cases; where these are others, as in a test of a backdoor, none is shown."""
    site, calls = image_site("Aachen", 9), []

    def change(pictures):
        calls.append(len(pictures))
        return pictures + 1

    dataset = images("fedavg", data={"Aachen": site}).engine.members["Aachen"].dataset
    seen = dataset.seen_through(change)
    for index in ([0, 3, 4], [4, 5], [0, 5, 3, 4]):
        close(seen.batch(torch.tensor(index))[0], dataset.batch(torch.tensor(index))[0] + 1)
    assert calls == [9], "with their neighbours, whoever comes first: rounding depends on who is there"
    other = seen.changed(inputs=torch.zeros_like(site.inputs))
    close(other.batch(torch.tensor([0]))[0], torch.ones(1, 1, 8, 8))
    twice = seen.seen_through(lambda pictures: pictures * 2)
    close(twice.batch(torch.tensor([0]))[0], 2 * (dataset.batch(torch.tensor([0]))[0] + 1))


def test_masks_that_are_hidden_stay_hidden():
    data = image_sites({"Aachen": 6, "Bonn": 6}, size=16, masks=True)
    made = images("fedavg", data=data, task="segmentation", classes=1, model={"unet": {"channels": [4, 8]}})
    dataset = made.engine.members["Aachen"].dataset.without_labels(torch.tensor([1, 4]))
    index = torch.tensor([0, 1, 4])
    assert torch.equal(dataset.seen_through(lambda pictures: pictures).batch(index)[1], dataset.batch(index)[1])


def test_what_has_no_look_is_refused():
    with pytest.raises(EntryError, match="P104 mean_amplitude is for images, and the cases are rows"):
        Federation(table_sites(), ["harmofl"])
    view = SimpleNamespace(count=lambda: 1, cases=lambda index: (torch.zeros(1, 1, 8, 8, 8), None),
                           input_shape=(1, 4, 4, 4))  # fmt: skip
    with pytest.raises(StudyError, match=r"P104 .* boxes of volumes"):
        whole_images(view, "mean_amplitude")
    made = images("harmofl", FLAT, "fedavg")
    assert not any(unusable(made.method(label).method) for label in ("harmofl", "flat", "fedavg"))


# Flat optima ----------------------------------------------------------------------------------------------------------


def one_weight(output, start):
    """A network with one weight w, whose output for any case is ``output(w)``."""

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.tensor([start]))

        def forward(self, inputs):
            return output(self.weight).expand(len(inputs), 1)

    network = Network()
    return lambda shape, outputs: (network, [])


def path(output, start, method, **training):
    """Where w ends; the loss is the squared output, since the numbers to be predicted are 0 in their unit."""
    numbers = torch.tensor([1.0, 3.0])
    data = {"A": site_of("A", torch.zeros(2, 1), numbers)}
    with catalogued("one_weight", one_weight(output, start)):
        made = Federation(data, [method], model="one_weight", task="regression", classes=0,
                          training={"batch_size": 2, "optimizer": {"sgd": {"lr": 0.1}}, **training})  # fmt: skip
        return float(made.state())


@pytest.mark.parametrize("method", ["fedavg", "fedsgd"])
def test_a_step_by_hand(method):
    """F(w) = w² + 1 (numbers −1 and 1 in their unit): g = 6 at w = 3; the gradient is taken at 3.5, where it is 7."""
    perturbed = {method: {"local": [{"weight_perturbation": {"alpha": 0.5}}]}}
    assert path(lambda w: w, 3.0, method) == pytest.approx(3 - 0.1 * 6)
    assert path(lambda w: w, 3.0, perturbed) == pytest.approx(3 - 0.1 * 7)
    assert path(lambda w: w, -3.0, perturbed) == pytest.approx(-3 + 0.1 * 7)


def test_the_way_up_is_as_long_as_alpha():
    part = WeightPerturbation(alpha=0.5)
    close(part.perturbation(torch.tensor([3.0, 4.0]), {}), [0.3, 0.4])
    assert torch.equal(part.perturbation(torch.zeros(2), {}), torch.zeros(2))
    assert WeightPerturbation(alpha=0).perturbation(torch.ones(2), {}) is None


def valleys(weight):
    """A loss with a valley at 0 that is 0.02 wide and one at 1 that is 0.5 wide and less deep."""
    sharp, flat = torch.exp(-((weight / 0.02) ** 2)), torch.exp(-(((weight - 1) / 0.5) ** 2))
    return (2.0 - sharp - 0.8 * flat).sqrt()


def test_a_sharp_valley_is_left_for_a_flat_one():
    """It begins within the sharp valley. α = 0.2 up the slope is outside of it, where all goes down to the flat one."""
    training = {"rounds": 1, "local_steps": 300, "optimizer": {"sgd": {"lr": 0.0005}}}
    assert abs(path(valleys, 0.01, "fedavg", **training)) < 0.01
    training["optimizer"] = {"sgd": {"lr": 0.01}}
    flat = path(valleys, 0.01, {"fedavg": {"local": [{"weight_perturbation": {"alpha": 0.2}}]}}, **training)
    assert abs(flat - 1) < 0.25


@pytest.mark.parametrize("model", [CNN, {"cnn": {"channels": [4], "norm": "batch"}}])
def test_without_a_way_up_it_is_fedavg_to_the_bit(model):
    none = {"fedavg": {"local": [{"weight_perturbation": {"alpha": 0}}], "label": "none"}}
    made = images("fedavg", none, model=model)
    assert torch.equal(made.state("none"), made.state("fedavg"))


@pytest.mark.parametrize("method", ["fedavg", "fedsgd", "fedrep"])
def test_sites_are_trained_together_to_the_same_model(method):
    entry = {method: {"local": [{"weight_perturbation": {"alpha": 0.3}}]}}
    model = {"mlp": {"hidden": [5], "norm": "batch"}}
    alone, together = (
        Federation(table_sites(), [entry], model=model, training={"rounds": 2}, stacked=stacked)
        for stacked in (False, True)
    )
    close(together.state(), alone.state(), 1e-4)
    assert together.engine._trainers


def test_statistics_are_those_where_the_network_was():
    """At a learning rate of nearly 0 they are those of fedavg, though every batch was seen twice."""
    training = {"optimizer": {"sgd": {"lr": 1e-12}}}
    model = {"mlp": {"hidden": [5], "norm": "batch"}}
    entry = {"fedavg": {"local": [{"weight_perturbation": {"alpha": 5.0}}], "label": "far"}}
    made = Federation({"A": table_site("A", 20)}, ["fedavg", entry], model=model, training=training)
    size = made.template.layout.trainable
    assert torch.equal(made.state("far")[size:], made.state("fedavg")[size:])


def test_it_is_refused_where_patients_gradients_are_private():
    entry = {"fedavg": {"local": ["weight_perturbation", {"dp_sgd": {"noise": 1.0}}]}}
    with pytest.raises(StudyError, match="P104 dp_sgd can't be used here: the part weight_perturbation"):
        Federation(table_sites(), [entry], model={"mlp": {"hidden": [5]}}).rounds()
