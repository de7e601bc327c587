"""Style transfer by a light generator that all sites learn together: `style_generator`."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import Federation, image_site, image_sites, recorded, site_of
from polyclinic.client.domain_shift.curves import CurveGenerator, looks_of, places
from polyclinic.client.domain_shift.style_generator import StyleCurves, along, directions, generated, shares_of
from polyclinic.client.domain_shift.styles import styled

CNN = {"cnn": {"channels": [4]}}


def close(actual, expected, tolerance=1e-6):
    torch.testing.assert_close(actual, torch.as_tensor(expected), rtol=tolerance, atol=tolerance)


def style(rounds=3, **options):
    return {"style_generator": {"style_rounds": rounds, "label": "style", **options}}


def images(*methods, **options):
    options = {"model": CNN, **options}
    options["training"] = {"rounds": 2, **options.get("training", {})}
    return Federation(options.pop("data", None) or image_sites({"Aachen": 20, "Bonn": 14}), list(methods), **options)


# Identities -----------------------------------------------------------------------------------------------------------


def told_of(channels, weights=None, low=-1.0, high=1.0):
    """What an image is changed by, with M = 0 and S = 1."""
    weights = CurveGenerator(channels).initial() if weights is None else weights
    scale = {"common": torch.zeros(channels), "deviation": torch.ones(channels)}
    return {**scale, "curves": weights, "low": torch.full((channels,), low), "high": torch.full((channels,), high)}


@pytest.mark.parametrize("shape", [(3, 1, 8, 8), (2, 3, 6, 5), (2, 2, 4, 5, 6)])
def test_a_generator_that_has_learned_nothing_changes_nothing(shape):
    pictures = 100 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(generated(pictures, **told_of(shape[1])), pictures)


def test_without_rounds_it_is_fedavg_and_nothing_is_sent():
    made = images("fedavg", style(0))
    assert torch.equal(made.state("style"), made.state("fedavg"))
    with recorded(made.engine) as said:
        made.rounds("style")
    assert not [name for *_, asked, answer in said for name in (*asked.tensors, *answer.tensors) if "/" in name]
    assert StyleCurves(style_rounds=0).reveals == {}


def test_one_site_has_the_style_of_all():
    made = images("fedavg", style(5), data={"Aachen": image_site("Aachen", 20)})
    assert torch.equal(made.state("style"), made.state("fedavg"))


# Exact numbers --------------------------------------------------------------------------------------------------------


def with_last(channels, last):
    """Weights of a generator that does the same to all images: ``last`` is what the network says."""
    weights = CurveGenerator(channels).initial()
    weights[-len(last) :] = torch.tensor(last)
    return weights


def test_a_curve_by_hand():
    """Between −1 and 1 there are 8 pieces of ¼. The first has slope e^(2 tanh(½)), the last e^(−2 tanh(1)), the shift
    is ½."""
    said = [1.0, *[0.0] * 6, -2.0, 0.5]
    first, last = math.exp(2 * math.tanh(0.5)), math.exp(-2 * math.tanh(1))
    values = torch.tensor([-3.0, -1.0, -0.75, 0.0, 0.75, 1.0, 2.0])
    inside = 0.25 * (first - 1) + 0.5
    expected = [
        -3 - 2 * (first - 1) + 0.5, -0.5, -0.75 + inside, inside, 0.75 + inside,
        1 + inside + 0.25 * (last - 1), 2 + inside + 1.25 * (last - 1),
    ]  # fmt: skip
    found = generated(values.view(1, 1, 1, 7), **told_of(1, with_last(1, said)))
    close(found.flatten(), expected)
    scale = {"common": torch.tensor([10.0]), "deviation": torch.tensor([4.0])}
    found = generated(10 + 4 * values.view(1, 1, 1, 7), **told_of(1, with_last(1, said)) | scale)
    close(found.flatten(), 10 + 4 * torch.tensor(expected), 1e-5)


def test_a_mixture_by_hand():
    """Of two channels the first gets 0.9 tanh(1) of the second, after its curve, and the second nothing."""
    said = [*[0.0] * 16, 0.0, 0.25, 1.0, 0.0]
    pictures = torch.tensor([[1.0, -2.0], [0.5, 3.0]]).view(1, 2, 1, 2)
    found = generated(pictures, **told_of(2, with_last(2, said)))
    mixed = 0.9 * math.tanh(1)
    close(found[0, 0, 0], [1 + mixed * 0.75, -2 + mixed * 3.25])
    close(found[0, 1, 0], [0.75, 3.25])


def test_shares_of_pixels_by_hand():
    """Of 96 numbers each 64th is one and a half: the first is (0 + ½ · 1) / 1.5, the second (½ · 1 + 2) / 1.5."""
    found = shares_of(torch.arange(96.0)[:, None])
    close(found[:3, 0], torch.tensor([1 / 3, 5 / 3, 3.5 - 1 / 6], dtype=torch.float64))
    close(found.mean(0), torch.tensor([47.5], dtype=torch.float64))
    close(shares_of(torch.tensor([[2.0]])), torch.full((64, 1), 2.0, dtype=torch.float64))


def test_images_are_looked_at_by_quantiles_and_correlations():
    values = torch.stack([torch.linspace(0, 1, 101), torch.linspace(2, -2, 101), torch.ones(101)])[None]
    found = looks_of(values)[0]
    levels = torch.tensor([0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98])
    close(found[:21], torch.cat([levels, 4 * levels - 2, torch.ones(7)]), 1e-5)
    close(found[21:], [-1.0, 0.0, 0.0], 1e-5)


def reference(sites, channels, exchanges, lr, target=None):
    """The same again in other words: curves by interpolation, shares by repeating each pixel 64 times, Adam by hand."""
    pixels = {name: values.flatten(2).double().numpy() for name, values in sites.items()}
    counts = np.array([len(one) for one in pixels.values()], dtype=float)
    weight = dict(zip(pixels, counts / counts.sum(), strict=True))
    mean = sum(weight[n] * one.mean((0, 2)) for n, one in pixels.items())
    square = sum(weight[n] * (one**2).mean((0, 2)) for n, one in pixels.items())
    deviation = np.sqrt(square - mean**2)
    z = {n: torch.from_numpy((one - mean[:, None]) / deviation[:, None]) for n, one in pixels.items()}
    ways = directions(channels).double()

    def shares(values):
        seen = torch.cat([one.T @ ways for one in values])
        return seen.sort(0).values.repeat_interleave(64, 0).view(64, -1, ways.shape[1]).mean(1)

    looked = {n: shares(one) for n, one in z.items()}
    goal = sum(weight[n] * one for n, one in looked.items()) if target is None else looked[target]
    low, high = (torch.stack([one[end, :channels] for one in looked.values()]) for end in (0, -1))
    low, high = low.amin(0), high.amax(0)

    def aim(values):
        """Each pixel, one after another, goes as far along each direction as its share does, then along the next."""
        points = torch.cat([one.T for one in values])
        for _ in range(30 if channels > 1 else 1):
            gaps, step = goal - shares([points.T]), torch.zeros_like(points)
            for d in range(ways.shape[1]):
                ranks = (points @ ways[:, d]).argsort().argsort().numpy()
                far = np.interp((ranks + 0.5) / len(ranks), (np.arange(64) + 0.5) / 64, gaps[:, d].numpy())
                step += torch.from_numpy(far)[:, None] * ways[:, d]
            points = points + channels / ways.shape[1] * step
        return points.view(len(values), -1, channels).transpose(1, 2)

    aims = {n: aim(one) for n, one in z.items()}

    def looks(image):
        quantiles = [float(np.quantile(row.numpy(), level)) for row in image
                     for level in (0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98)]  # fmt: skip
        together = np.corrcoef(image.numpy()).reshape(channels, channels)
        return torch.tensor([*quantiles, *(together[i, j] for i in range(channels) for j in range(i))]).double()

    def made(image, weights):
        inputs = 7 * channels + channels * (channels - 1) // 2
        outputs = 9 * channels + channels * (channels - 1)
        parts = weights.split([32 * inputs, 32, 32 * outputs, outputs])
        said = parts[2].view(outputs, 32) @ torch.tanh(parts[0].view(32, inputs) @ looks(image) + parts[1]) + parts[3]
        rows = []
        for c in range(channels):
            slopes = torch.exp(2 * torch.tanh(said[8 * c : 8 * c + 8] / 2))
            ends = low[c] + (high[c] - low[c]) * torch.arange(9) / 8
            heights = torch.cat([ends[:1], ends[0] + (slopes * (high[c] - low[c]) / 8).cumsum(0)])
            piece = torch.bucketize(image[c], ends[1:-1].contiguous(), right=True)
            rows.append(heights[piece] + slopes[piece] * (image[c] - ends[piece]) + said[8 * channels + c])
        mixture, rest = torch.eye(channels).double(), list(said[9 * channels :])
        for i in range(channels):
            for j in range(channels):
                if i != j:
                    mixture = mixture + torch.zeros_like(mixture).index_put(
                        (torch.tensor(i), torch.tensor(j)), 0.9 / (channels - 1) * torch.tanh(rest.pop(0))
                    )
        return mixture @ torch.stack(rows)

    weights, first, second = CurveGenerator(channels).initial().double(), 0.0, 0.0
    for step in range(1, exchanges + 1):
        weights = weights.detach().requires_grad_()
        terms = [
            weight[n] * torch.stack([made(i, weights) - j for i, j in zip(one, aims[n], strict=True)]).square().mean()
            for n, one in z.items()
        ]
        (slope,) = torch.autograd.grad(sum(terms), weights)
        first, second = 0.9 * first + 0.1 * slope, 0.999 * second + 0.001 * slope**2
        there = (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-5)
        weights = weights - lr * there
    return weights.detach(), mean, deviation, low, high


@pytest.mark.parametrize(("channels", "target"), [(1, None), (2, None), (2, "Bonn"), (3, None)])
def test_exchanges_are_those_of_an_independent_implementation(channels, target):
    source, data = torch.Generator().manual_seed(3), {}
    for name, cases in (("Aachen", 6), ("Bonn", 4)):
        pictures = torch.rand(cases, channels, 8, 8, generator=source) ** (2 if name == "Bonn" else 1)
        data[name] = site_of(name, pictures, torch.arange(cases) % 2)
    made = images(style(3, **({"target": target} if target else {})), data=data, training={"rounds": 1})
    progress, _ = made.rounds()
    found = progress.needed["style_curves"]
    weights, mean, deviation, low, high = reference(
        {name: site.inputs for name, site in data.items()}, channels, 3, 0.01, target
    )  # fmt: skip
    close(found["common"], torch.from_numpy(mean).float(), 1e-5)
    close(found["deviation"], torch.from_numpy(deviation).float(), 1e-5)
    close(found["low"], low.float(), 1e-5)
    close(found["high"], high.float(), 1e-5)
    assert (weights - CurveGenerator(channels).initial()).abs().max() > 0.02
    close(found["curves"], weights.float(), 2e-4)


# Properties -----------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 30), st.floats(-100, 100), st.floats(1e-3, 1e3))
def test_curves_rise_whatever_they_have_learned(seed, size, mean, spread):
    """Of one channel the order of pixels stays, and nothing is 8 times as far apart as before, or 8 times nearer."""
    source = torch.Generator().manual_seed(seed)
    weights = size * torch.randn(CurveGenerator(1).size, generator=source)
    pictures = (mean + spread * torch.randn(2, 1, 6, 6, generator=source)).double()
    told = {name: tensor.double() for name, tensor in told_of(1, weights).items()}
    found = generated(pictures, **told)
    assert found.isfinite().all()
    for before, after in zip(pictures.flatten(1), found.flatten(1), strict=True):
        order = before.argsort()
        far, now = before[order].diff(), after[order].diff()
        assert (now <= 7.4 * far + 1e-6).all()
        assert (now >= far / 7.4 - 1e-6).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 30), st.integers(2, 5))
def test_colours_that_differ_stay_different(seed, size, channels):
    """With row sums below 1 beside the diagonal the mixture can be undone, and so can curves that rise."""
    source = torch.Generator().manual_seed(seed)
    network = CurveGenerator(channels)
    weights = size * torch.randn(network.size, generator=source)
    chosen = size * torch.randn(3, channels * (channels - 1), generator=source)
    beside = network._mixture(chosen)
    assert (beside.abs().sum(2) <= 0.9 + 1e-6).all()
    pictures = torch.randn(3, channels, 5, 5, generator=source)
    assert generated(pictures, **told_of(channels, weights)).isfinite().all()


def test_an_image_is_changed_by_itself_alone():
    """Whatever else is in the batch, and wherever its pixels lie."""
    source = torch.Generator().manual_seed(5)
    told = told_of(3, 0.3 * torch.randn(CurveGenerator(3).size, generator=source))
    pictures = torch.randn(4, 3, 8, 8, generator=source)
    found = generated(pictures, **told)
    close(generated(pictures[2:3], **told), found[2:3], 1e-5)
    close(generated(pictures.flip(3), **told).flip(3), found, 1e-5)


def test_large_images_are_looked_at_in_some_places():
    assert sorted(places(64).tolist()) == list(range(64))
    chosen = places(10_000)
    assert (len(chosen), len(chosen.unique())) == (1024, 1024)
    assert chosen is places(10_000)


# Styles ---------------------------------------------------------------------------------------------------------------


def apart(found):
    """How far the pixels of sites are from each other, in each share."""
    looked = torch.stack([shares_of(along(values.flatten(2)).sort(0).values) for values in found.values()])
    return float((looked - looked.mean(0)).square().mean().sqrt())


def learned(data, **options):
    """What images of all sites are changed by."""
    made = images(style(**options), data=data, training={"rounds": 1})
    return made.rounds()[0].needed["style_curves"]


def textures(name, cases, seed, channels=1):
    """Images of even noise about a brightness of their own."""
    rng = np.random.default_rng([seed, len(name)])
    level = rng.uniform(0.2, 0.5, (cases, channels, 1, 1))
    return torch.from_numpy(level + rng.uniform(-0.15, 0.45, (cases, channels, 8, 8))).float().clamp(0.01, 1)


@pytest.mark.parametrize("seed", range(2))
def test_tone_curves_of_scanners_are_undone_also_of_one_that_was_not_there(seed):
    """Sites with gammas of ½, 1 and 2; the patients of the second are at one of 1.5 later."""
    scenes = {name: textures(name, 40, seed) for name in ("A", "BB", "CCC")}
    shown = {name: scene**gamma for (name, scene), gamma in zip(scenes.items(), (0.5, 1.0, 2.0), strict=True)}
    data = {name: site_of(name, one, torch.arange(40) % 2) for name, one in shown.items()}
    told = learned(data, rounds=100)
    assert apart({name: generated(one, **told) for name, one in shown.items()}) < 0.2 * apart(shown)
    again = {"BB": shown["BB"], "later": scenes["BB"] ** 1.5}
    assert apart({name: generated(one, **told) for name, one in again.items()}) < 0.4 * apart(again)


def test_mixed_colours_are_undone():
    """One scanner lets a third of the next channel into each, and its tone curve comes after."""
    scenes = {name: textures(name, 40, 0, channels=3) for name in ("A", "BB")}
    mixture = torch.tensor([[0.6, 0.4, 0.0], [0.0, 0.7, 0.3], [0.2, 0.0, 0.8]])
    shown = {"A": scenes["A"], "BB": torch.einsum("ij,njhw->nihw", mixture, scenes["BB"]) ** 0.6}
    data = {name: site_of(name, one, torch.arange(40) % 2) for name, one in shown.items()}
    told = learned(data, rounds=100)
    assert apart({name: generated(one, **told) for name, one in shown.items()}) < 0.35 * apart(shown)


@pytest.mark.parametrize("power", [10, -20, 60])
def test_units_do_not_matter(power):
    """Powers of two, which round nothing."""
    scenes = {name: textures(name, 20, 3) for name in ("A", "BB")}
    shown, found = {"A": scenes["A"], "BB": scenes["BB"] ** 2}, []
    for factor in (1.0, 2.0**power):
        sites = {name: site_of(name, factor * one, torch.arange(20) % 2) for name, one in shown.items()}
        told = learned(sites, rounds=10)
        found.append(torch.cat([generated(site.inputs, **told) / factor for site in sites.values()]))
    close(found[0], found[1])


def test_channels_that_are_flat_are_brought_together_and_spoil_nothing():
    """One channel is 0.3 everywhere at one site and 0.7 at the other, and one is 0 at both."""
    scenes = {name: textures(name, 30, 3) for name in ("A", "BB")}
    shown = {"A": scenes["A"], "BB": scenes["BB"] ** 2}
    for (name, one), level in zip(shown.items(), (0.3, 0.7), strict=True):
        shown[name] = torch.cat([one, torch.full_like(one, level), torch.zeros_like(one)], 1)
    told = learned({name: site_of(name, one, torch.arange(30) % 2) for name, one in shown.items()}, rounds=100)
    means = [generated(one, **told).mean((0, 2, 3)) for one in shown.values()]
    close(means[0], means[1], 0.02)
    close(means[0][1], 0.5, 0.02)


def test_all_images_can_get_the_style_of_one_site():
    scenes = {name: textures(name, 40, 1) for name in ("A", "BB")}
    shown = {"A": scenes["A"], "BB": scenes["BB"] ** 2}
    data = {name: site_of(name, one, torch.arange(40) % 2) for name, one in shown.items()}
    told = learned(data, rounds=100, target="A")
    found = {name: generated(one, **told) for name, one in shown.items()}
    before = apart(shown)
    assert apart({"A": shown["A"], "found": found["A"]}) < 0.15 * before
    assert apart({"A": shown["A"], "found": found["BB"]}) < 0.15 * before


def order(measured, sick):
    """How surely a measure of images tells the sick: 1 for all, ½ for a coin."""
    return float((measured[sick][:, None] > measured[~sick][None]).float().mean())


def test_what_makes_images_of_a_site_differ_stays():
    """Half of the images of both sites are brighter, as stronger staining may be what tells a disease. Their mean still
    tells which, and better than before for both sites together; style transfer by statistics takes it away."""
    sick = torch.arange(40) % 2 == 1
    scenes = {name: 0.7 * textures(name, 40, 2) + 0.3 * sick[:, None, None, None] for name in ("A", "BB")}
    shown = {"A": scenes["A"], "BB": scenes["BB"] ** 2}
    told = learned({name: site_of(name, one, sick.long()) for name, one in shown.items()}, rounds=100)
    found = {name: generated(one, **told) for name, one in shown.items()}
    for one in found.values():
        assert order(one.mean((1, 2, 3)), sick) > 0.98
    assert apart(found) < 0.25 * apart(shown)
    together, everyone = torch.cat(list(found.values())), torch.cat([sick, sick])
    assert order(together.mean((1, 2, 3)), everyone) > order(torch.cat(list(shown.values())).mean((1, 2, 3)), everyone)
    plain = styled(together, mean=torch.zeros(1), deviation=torch.ones(1)).mean((1, 2, 3))
    assert plain.abs().max() < 1e-5


def test_a_disease_that_is_more_frequent_at_one_site_is_not_taken_for_style():
    """One scanner, and the sick are brighter: 32 of 40 at one site and 8 of 40 at the other."""
    data = {}
    for name, ill in (("A", 32), ("BB", 8)):
        sick = torch.arange(40) < ill
        pictures = 0.7 * textures(name, 40, 4) + 0.3 * sick[:, None, None, None]
        data[name] = site_of(name, pictures, sick.long())
    shown = {name: site.inputs for name, site in data.items()}
    told = learned(data, rounds=100)
    change = max(float((generated(one, **told) - one).abs().mean()) for one in shown.values())
    numbers = {name: site_of(name, one, torch.arange(40) % 2) for name, one in shown.items()}  # labels tell nothing
    without = max(float((generated(one, **learned(numbers, rounds=100)) - one).abs().mean()) for one in shown.values())
    assert change < 0.03
    assert without > 2 * change


def test_classes_count_the_same():
    """Of 8 images at most, 4 are of class 0, and the 2 of class 1 count twice; of 1 of class 1, 8 times at most."""
    pixels = torch.arange(14.0).view(14, 1, 1, 1).expand(14, 1, 8, 8).contiguous()
    for labels, cases, expected in (
        ([0] * 12 + [1] * 2, 8, [4, 2, 2]), ([0] * 13 + [1], 128, [13, 8]), ([0] * 12 + [1] * 2, 1, [1, 1]),
    ):  # fmt: skip
        site = site_of("A", pixels, torch.tensor(labels))
        made = images(style(1, cases=cases), data={"A": site}, training={"rounds": 1})
        made.rounds()
        found = made.engine.members["A"].run.ends["style_curves"]._values[:, 0, 0]
        ill = sum(labels)
        counted = [int((found == one).sum()) for one in range(14 - ill, 14)]
        assert [int((found < 14 - ill).sum()), *(n for n in counted if n)] == expected


@pytest.fixture(scope="module")
def told():
    """What is learned of two scanners, of which one darkens."""
    scenes = {name: textures(name, 40, 3) for name in ("A", "BB")}
    shown = {"A": scenes["A"], "BB": scenes["BB"] ** 2}
    return learned({name: site_of(name, one, torch.arange(40) % 2) for name, one in shown.items()}, rounds=100)


@pytest.mark.parametrize("bright", [0.0, 0.7, 1.0, 255.0])
def test_an_image_without_any_tissue_stays_flat(told, bright):
    """Others' normalisation of stains gives what is no number there."""
    found = generated(torch.full((2, 1, 9, 9), bright), **told)
    close(found, found.flatten()[0].expand_as(found))


def test_an_image_that_is_hardly_stained_is_not_torn_apart(told):
    """Others divide by what little there is of the stain, and show its noise."""
    pale = 0.8 + 1e-3 * torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    found = generated(pale, **told)
    assert (found.std((2, 3)) <= 7.4 * pale.std((2, 3)) + 1e-6).all()


def test_the_brightest_stays_the_brightest_beside_pixels_without_a_value():
    """More than half of all pixels are 0, where nothing was measured, and at each site another share of them. Matching
    of histograms has turned the brightest dark there."""
    source, data = torch.Generator().manual_seed(1), {}
    for name, share, gamma in (("A", 0.6, 1.0), ("BB", 0.85, 2.0)):
        pictures = torch.rand(30, 1, 8, 8, generator=source).clamp_min(0.05) ** gamma
        empty = torch.rand(pictures.shape, generator=source) < share
        data[name] = site_of(name, pictures.masked_fill(empty, 0.0), torch.arange(30) % 2)
    told = learned(data, rounds=100)
    for site in data.values():
        for before, after in zip(site.inputs.flatten(1), generated(site.inputs, **told).flatten(1), strict=True):
            assert after[before.argsort()].diff().min() >= -1e-6
            assert after[before == 0].max() - after[before == 0].min() < 1e-6


# Benefit --------------------------------------------------------------------------------------------------------------


def toned(name, cases, seed, gamma):
    """Images with all levels of grey, in which a square is darker or brighter than the middle, by a tone curve."""
    rng, labels = np.random.default_rng([seed, len(name)]), np.arange(cases) % 2
    pixels = np.stack([rng.permutation(np.linspace(0.02, 0.98, 64)).reshape(8, 8) for _ in range(cases)])
    for case, (row, column) in enumerate(rng.integers(0, 5, (cases, 2))):
        pixels[case, row : row + 4, column : column + 4] = 0.7 if labels[case] else 0.3
    pixels = (pixels + rng.normal(scale=0.03, size=pixels.shape)).clip(0.01, 1) ** gamma
    site = site_of(name, torch.from_numpy(pixels).float()[:, None], torch.from_numpy(labels))
    site.parts = ["train"] * (cases // 2) + ["test"] * (cases - cases // 2)
    return site


def test_tone_curves_hide_what_a_small_network_looks_for():
    """A certain case: a brightness of 0.3 at one site is 0.7 at another. With each image at the same mean and contrast
    it is not 0.3 everywhere, either, since a curve is no line."""
    training = {"rounds": 25, "batch_size": 20, "optimizer": {"sgd": {"lr": 0.1, "momentum": 0.9}}}
    found = {"fedavg": [], "style_transfer": [], "style": []}
    for seed in range(3):
        data = {name: toned(name, 120, seed, gamma) for name, gamma in (("A", 0.4), ("BB", 1.0), ("CCC", 2.5))}
        made = images(
            "fedavg", "style_transfer", style(100), data=data, training=training, model={"cnn": {"channels": [8]}}
        )
        for label, right in found.items():
            cases = pd.concat(made.outcome(label).predictions)
            right.append(((cases["score"] > 0.5) == (cases["label"] == 1)).mean())
    assert min(found["style"]) > 0.9, found
    for other in ("fedavg", "style_transfer"):
        assert min(np.subtract(found["style"], found[other])) > 0.1, found
