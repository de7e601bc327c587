"""Style transfer by statistics: images with the mean brightness and contrast of all sites."""

from types import SimpleNamespace

import pytest
import torch

from helpers import Federation, image_site, image_sites, site_of, table_sites
from polyclinic.client.domain_shift.styles import MeanStyle, styled
from polyclinic.errors import StudyError
from polyclinic.options import EntryError
from polyclinic.running.progress import Checkpoint
from polyclinic.shapes import Misfit
from polyclinic.study.job import Job

CNN = {"cnn": {"channels": [4]}}


def close(actual, expected, tolerance=1e-6):
    torch.testing.assert_close(actual, torch.as_tensor(expected), rtol=tolerance, atol=tolerance)


def images(*methods, **options):
    options = {"model": CNN, **options}
    options["training"] = {"rounds": 2, **options.get("training", {})}
    return Federation(options.pop("data", None) or image_sites(), list(methods), **options)


def test_an_image_by_hand():
    """1, 3, 3, 5 has mean 3 and deviation √2; with mean 10 and deviation 2 √2 it is 2 (x − 3) + 10."""
    image, flat = torch.tensor([[1.0, 3.0], [3.0, 5.0]]), torch.full((2, 2), 7.0)
    pictures = torch.stack([image, flat])[None]
    found = styled(pictures, mean=torch.tensor([10.0, -1.0]), deviation=torch.tensor([2 * 2**0.5, 3.0]))
    close(found[0, 0], [[6.0, 10.0], [10.0, 14.0]])
    close(found[0, 1], torch.full((2, 2), -1.0))
    close(styled(pictures, mean=torch.tensor([3.0, 7.0]), deviation=torch.tensor([2**0.5, 0.0])), pictures)


def test_rounding_is_no_contrast():
    noise = 1e-7 * torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    found = styled(100 * (1 + noise), mean=torch.zeros(1), deviation=torch.ones(1))
    close(found, torch.zeros(1, 1, 8, 8), 1e-4)


def test_the_style_is_the_mean_over_the_cases_of_all_sites():
    """Summed means 6 of 2 cases and 2 of 6: 1; deviations 4 and 12: 2."""
    end, asked = MeanStyle().at_server(), []
    end.ask = lambda verb, told: (asked.append(told), iter([(site, {}) for site in told]))[1]
    end.others = ["C"]

    def told(mean, deviation, count):
        return {"means": torch.tensor([mean]), "deviations": torch.tensor([deviation]), "count": torch.tensor(count)}

    end.meet({"A": told(6.0, 4.0, 2.0), "B": told(2.0, 12.0, 6.0)}, {"A": 2.0, "B": 6.0})
    assert set(asked[0]) == {"A", "B", "C"}
    assert all((float(one["mean"]), float(one["deviation"])) == (1.0, 2.0) for one in asked[0].values())
    assert {name: float(one) for name, one in end.needed().items()} == {"mean": 1.0, "deviation": 2.0}


def moved(name, cases):
    """A site whose images are one image, moved in a circle: all have its mean and deviation."""
    site, picture = image_site(name, cases), image_site("one", 1).inputs[0]
    shifts = [torch.roll(picture, (case // 8, case % 8 + len(name)), (1, 2)) for case in range(cases)]
    return site_of(name, torch.stack(shifts), site.targets)


def test_where_all_images_have_the_same_style_it_is_fedavg():
    made = images("fedavg", "style_transfer", data={"Aachen": moved("Aachen", 20), "Bo": moved("Bo", 12)})
    close(made.state("style_transfer"), made.state("fedavg"), 1e-4)


def test_one_site_has_its_own_style():
    made = images("style_transfer", data={"Aachen": image_site("Aachen", 20)})
    made.rounds()
    site = made.engine.members["Aachen"]
    raw, seen = (one.batch(torch.arange(20))[0] for one in (site.dataset, site.run.dataset))
    close(seen.mean((2, 3)), raw.mean((2, 3)).mean(0).expand(20, -1), 1e-4)
    close(seen.std((2, 3), correction=0), raw.std((2, 3), correction=0).mean(0).expand(20, -1), 1e-4)


def test_brightness_and_contrast_of_a_scanner_leave_no_trace():
    """The same patients at both sites are the same images afterwards, which fedavg tells apart."""
    for seed in range(3):
        plain = image_site("Aachen" + "x" * seed, 24)
        pixels = plain.inputs.float() / 255
        data = {"Aachen": site_of("Aachen", pixels, plain.targets),
                "Bonn": site_of("Bonn", 0.4 * pixels + 0.3, plain.targets)}  # fmt: skip
        apart = {}
        for method in ("fedavg", "style_transfer"):
            made = images(method, data=data, training={"rounds": 3})
            network = made.network(0)
            network.load(made.state())
            network.module.eval()
            sites = [made.engine.members[name] for name in data]
            with torch.no_grad():
                one, other = (network.module(site.run.dataset.batch(torch.arange(24))[0]) for site in sites)
            apart[method] = float((one - other).abs().max())
        assert apart["style_transfer"] < 1e-4 < 1e-2 < apart["fedavg"]


def test_validation_and_tests_see_the_same_images_also_at_a_site_that_does_not_train():
    data = image_sites({"Aachen": 24, "Bonn": 20, "Celle": 22}, part=None)
    made = images("style_transfer", data=data, evaluation={"folds": 2, "validation": 0.2, "best_round": "loss"})
    made.runner.run(Job((made.method(),), 0, 0, without="Celle"), made.fold)
    runs = [site.run for site in made.engine.members.values()]
    seen = [run.dataset.batch(run.parts.test)[0].mean((2, 3)) for run in runs]
    close(torch.cat(seen), seen[0][:1].expand(sum(map(len, seen)), -1), 1e-4)


@pytest.mark.parametrize("options", [{"stacked": True}, {"serialise": True}])
def test_engines_agree(options):
    close(images("style_transfer", **options).state(), images("style_transfer").state(), 1e-5)


def test_a_resumed_run_ends_with_the_same_bytes(tmp_path):
    def train(folder, stop=None):
        made = images("style_transfer", folder=folder / "sites")

        def report(done, total):
            if done == stop:
                raise KeyboardInterrupt

        return made.rounds(checkpoint=Checkpoint(folder / "job"), report=report)[0].model("federation")

    whole = train(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "again", 1)
    assert torch.equal(train(tmp_path / "again"), whole)


def test_what_has_no_style_is_refused():
    with pytest.raises(EntryError, match="P104 mean_style is for images, and the cases are rows"):
        Federation(table_sites(), ["style_transfer"])
    view = SimpleNamespace(count=lambda: 1, cases=lambda index: (torch.zeros(1, 1, 8, 8, 8), None),
                           input_shape=(1, 4, 4, 4))  # fmt: skip
    end = MeanStyle().at_site()
    end.name = "mean_style"
    with pytest.raises(StudyError, match="P104 mean_style is about the style of whole images"):
        end.meet(view)
    with pytest.raises(Misfit):
        MeanStyle().shown({"mean": torch.zeros(3), "deviation": torch.zeros(2)}, (3, 8, 8))
