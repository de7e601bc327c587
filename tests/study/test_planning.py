"""What the loop of rounds is given: the order of the parts at the server, wherever a study file names them."""

from __future__ import annotations

import pytest
import torch

from helpers import Federation, table_sites


def ends(method):
    """Names of a method's ends at the server, in the order in which steps pass them."""
    return list(Federation(table_sites({"A": 16, "B": 16}), [method]).plan().chain().ends)


def test_a_step_passes_the_methods_own_parts_before_those_of_the_server_rule():
    assert ends({"feddyn": {"server": "fedadam"}}) == ["dynamic_regularisation", "fedadam"]


@pytest.mark.parametrize("method", ["scaffold", "feddyn"])
def test_what_was_done_to_updates_is_undone_first_wherever_the_part_is_named(method):
    assert ends({method: {"server": ["normalised", "fedavgm"]}})[0] == "normalised"


def test_feddyn_with_normalised_updates_of_equal_length_is_feddyn():
    data = table_sites({"A": 16, "B": 16, "C": 16})
    training = {"rounds": 3, "local_steps": 4}
    plain, normalised = (
        Federation(data, [{"feddyn": {"alpha": 0.1, "server": rule}}], training=training).rounds()[0].state("A")
        for rule in ("mean", "normalised")
    )
    assert float(plain.abs().max()) > 0.01
    torch.testing.assert_close(normalised, plain, rtol=1e-5, atol=1e-6)
