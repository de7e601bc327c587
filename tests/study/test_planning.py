"""What the loop of rounds is given: the order of the parts at the server, wherever a study file names them."""

from __future__ import annotations

import pytest
import torch

from helpers import Federation, table_sites
from polyclinic.parts import FEDERATION, Now


def ends(method):
    """Names of a method's ends at the server, in the order in which steps pass them."""
    return list(Federation(table_sites({"A": 16, "B": 16}), [method]).plan().chain(FEDERATION).ends)


def test_a_step_passes_the_methods_own_parts_before_those_of_the_server_rule():
    assert ends({"feddyn": {"server": "fedadam"}}) == ["dynamic_regularisation", "fedadam"]


@pytest.mark.parametrize("method", ["scaffold", "feddyn"])
def test_what_was_done_to_updates_is_undone_first_wherever_the_part_is_named(method):
    assert ends({method: {"server": ["normalised", "fedavgm"]}})[0] == "normalised"


def test_feddyn_corrects_the_step_after_normalised_updates_were_brought_back():
    """h ← h − α d and w ← w + d − h / α, with d FedNova's step: paths of both rounds differ, h is of both."""
    plan = Federation(table_sites({"A": 16, "B": 16}), [{"feddyn": {"alpha": 0.5, "server": "normalised"}}]).plan()
    chain, before, size = plan.chain(FEDERATION), plan.initial.clone(), plan.selection.trainable
    for number, (change, path, expected) in enumerate([(2.0, 1.0, 2 + 2), (6.0, 3.0, 6 + 2 + 6)]):
        chain.begin(Now(number, 2, 0.1, before[:size], before[size:], 2.0, {"A": 1.0, "B": 1.0}))
        for site in ("A", "B"):
            packed = {"change": torch.full((size,), change), "statistics": before[size:]}
            chain.take(site, packed | {"normalised/path": torch.tensor(path, dtype=torch.float64)}, 1.0)
        result = chain.finish()
        assert result is not None
        torch.testing.assert_close(result.state - before, torch.full((size,), float(expected)))
        before = result.state
