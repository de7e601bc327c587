"""Single numbers that a server rule goes by are sent as they are, though all else of a corrupt site is forged."""

from __future__ import annotations

import pytest
import torch

from helpers import Federation, table_sites
from polyclinic.audit.forging import Answered, Corrupt
from polyclinic.audit.poisoning import read_attack
from polyclinic.audit.updates import SignFlip
from polyclinic.communication.message import Message
from polyclinic.rounds import run_rounds

SITES = {"A": 16, "B": 16, "C": 16}


def test_numbers_stay_and_vectors_are_forged():
    sent = {
        "change": torch.tensor([1.0, -2.0]), "statistics": torch.zeros(0),
        "loss_weights/end_loss": torch.tensor(0.75, dtype=torch.float64),
        "control_variates/control_change": torch.tensor([3.0, 4.0]),
    }  # fmt: skip
    request = Message({"round": 0}, {"state": torch.zeros(2)})
    corrupt = Corrupt(SignFlip(scale=2.0), frozenset({"B"}), 2, 0, torch.zeros(0, dtype=torch.bool))
    forged = corrupt.forged([Answered(site, request, Message({}, sent)) for site in ("A", "B")])
    assert list(forged) == ["B"]
    assert forged["B"].tensors["change"].tolist() == [-2.0, 4.0]
    assert forged["B"].tensors["control_variates/control_change"].tolist() == [-6.0, -8.0]
    assert float(forged["B"].tensors["loss_weights/end_loss"]) == 0.75


@pytest.mark.parametrize("method", ["loss_weights", "qfedavg", "fednova"])
def test_rules_that_go_by_numbers_stand_an_attack(method):
    attack = {"sites": ["B"], "sign_flip": {}}
    federation = Federation(table_sites(SITES), [method], training={"rounds": 2})
    plan = federation.plan()
    engine = read_attack(attack, "labels", images=False).around(
        federation.engine, federation.template.layout, plan.selection, 0
    )
    progress, rows = run_rounds(plan, engine)
    assert progress.done == 2
    assert all(row["share"] > 0 for row in rows)
