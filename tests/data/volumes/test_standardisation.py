"""Histogram standardisation with landmarks from all sites."""

import numpy as np
import torch

from polyclinic.data.cases import Counts, SiteData
from polyclinic.data.preparation import Landmarks, Prepared
from polyclinic.data.volumes.intensity import LANDMARKS, Nyul, foreground_of, landmarks_of
from polyclinic.data.volumes.standardisation import standardise
from polyclinic.data.volumes.store import Volumes


def test_the_map_by_hand():
    own = torch.tensor([[[0.0, 0.5, 1.0]]], dtype=torch.float64)
    standard = torch.tensor([[0.0, 0.2, 1.0]], dtype=torch.float64)
    values = torch.tensor([-0.5, 0.0, 0.25, 0.5, 0.75, 1.0, 1.5]).view(1, 1, 1, 1, 7)
    mapped = standardise(values, own, standard).flatten()
    # Slopes 0.4 below and 1.6 above the middle landmark, also beyond the ends.
    torch.testing.assert_close(mapped, torch.tensor([-0.2, 0.0, 0.1, 0.2, 0.6, 1.0, 1.8]), atol=1e-5, rtol=0)


def test_own_landmarks_as_standard_change_nothing():
    source = torch.Generator().manual_seed(0)
    images = torch.rand(2, 1, 4, 4, 4, generator=source)
    own = torch.linspace(0, 1, len(LANDMARKS), dtype=torch.float64).expand(2, 1, -1)
    torch.testing.assert_close(standardise(images, own, own[0]), images, atol=1e-4, rtol=0)


def site(folder, name, gamma, cases=3):
    """Volumes of a scanner that bends the grey scale by ``gamma``."""
    source, files, about = np.random.default_rng(len(name)), [], []
    normalise = Nyul(foreground="all")
    for number in range(cases):
        truth = source.gamma(2.0, 1.0, (12, 12, 12)).astype(np.float32)
        values = (1000 * (truth / truth.max()) ** gamma).astype(np.float32)
        scaled = normalise(values, foreground_of(values, "all"))
        file = folder / f"{name}{number}.npy"
        np.save(file, scaled[None].astype(np.float16))
        files.append(file)
        about.append({"landmarks": [landmarks_of(scaled, foreground_of(values, "all"))]})
    subjects = [f"{name}{number}" for number in range(cases)]
    return SiteData(
        name, Volumes(files, about), torch.zeros(cases, dtype=torch.int64), subjects, subjects, None, Counts()
    )


def test_scanners_come_to_one_histogram(tmp_path):
    sites = {name: site(tmp_path, name, gamma) for name, gamma in (("bent", 0.6), ("straight", 1.0))}
    step = Landmarks()
    prepared = {name: Prepared(data, torch.arange(2)) for name, data in sites.items()}
    merged, notes = step.merge({name: step.share(one) for name, one in prepared.items()})
    assert notes == []
    # The mean over the four training cases, not over the sites; the third case of a site is a test case.
    marks = [torch.tensor(record["landmarks"]) for data in sites.values() for record in data.inputs.about[:2]]
    torch.testing.assert_close(merged["standard"], torch.stack(marks).double().mean(0))
    apart = {"before": [], "after": []}
    for name, data in sites.items():
        image = data.inputs.index_select(0, torch.tensor([2])).float()
        own = torch.tensor([data.inputs.about[2]["landmarks"]], dtype=torch.float64)
        standard = step.apply(prepared[name], merged).standard
        apart["before"].append(image.median())
        apart["after"].append(standardise(image, own, standard).median())
    before, after = (abs(float(one - other)) for one, other in apart.values())
    assert before > 0.05
    assert after < before / 10
