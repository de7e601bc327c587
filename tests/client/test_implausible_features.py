"""One site that shares huge numbers with others: they are cut, or are that site's failure."""

import pytest
import torch

from helpers import Federation, table_sites
from polyclinic.client.domain_shift.adversaries import _Adversary, cut
from polyclinic.client.domain_shift.domain_identifiers import _Identifier
from polyclinic.errors import SiteError

SHARED = [
    ({"fl_mrcm": {"target": "Bonn"}}, _Identifier, "codes"),
    ("fed_align", _Adversary, "features"),
    ("fed_align", _Adversary, "discriminator"),
]


def test_numbers_of_others_are_cut_at_a_multiple_of_the_own():
    theirs = torch.tensor([[1.0, -900.0], [3e38, 250.0]])
    assert cut(theirs, torch.tensor([-2.5, 0.5]), 100.0).tolist() == [[1.0, -250.0], [250.0, 250.0]]
    assert cut(theirs, torch.zeros(3), 100.0).tolist() == [[1.0, -100.0], [100.0, 100.0]]
    honest = torch.randn(5, 4)
    assert torch.equal(cut(honest, honest[:1], 100.0), honest)


@pytest.fixture
def trained(monkeypatch):
    """Trains a method in which Bonn shares ``value`` instead of what it has."""

    def train(method, end, name, value, **training):
        own = end.end

        def sent(self, ended, given):
            found = own(self, ended, given)
            if ended.view.name == "Bonn" and name in found:
                found[name] = torch.full_like(found[name], value)
            return found

        monkeypatch.setattr(end, "end", sent)
        made = Federation(table_sites(), [method], model={"mlp": {"hidden": [4]}}, training={"rounds": 8, **training})
        return made.rounds()[0]

    return train


@pytest.mark.parametrize(("method", "end", "name"), SHARED)
@pytest.mark.parametrize("value", [1e4, -9e8])
def test_large_numbers_of_one_site_do_not_break_the_others(trained, method, end, name, value):
    progress = trained(method, end, name, value)
    assert progress.failures == []
    assert all(model.abs().max() < 5 for model in progress.models.values())


@pytest.mark.parametrize(("method", "end", "name"), SHARED)
def test_what_no_network_gives_is_the_failure_of_its_site(trained, method, end, name):
    with pytest.raises(SiteError, match=rf"P401.*site Bonn.*/{name}: got 3e\+38, expected 1e\+09 or less"):
        trained(method, end, name, 3e38)
    progress = trained(method, end, name, 3e38, quorum=3)
    assert all("Bonn" in note for note in progress.failures)
    assert progress.failures
    assert all(model.isfinite().all() for model in progress.models.values())
