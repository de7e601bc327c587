"""What an attack proves that private training tells: an audit with canaries (Steinke, Nasr, Jagielski, NeurIPS 2023).

Half of the canaries, by the toss of a coin each, are patients of a site. Each has a feature that nobody else has, so
that the weight of this feature tells as plainly as can be who was there. The attacker guesses those with the largest
weights to be in, and those with the smallest to be out, and abstains from the others.
"""

from __future__ import annotations

import torch

from helpers import Federation, site_of, table_site
from polyclinic.privacy import lower_bound

CANARIES, OTHERS, DELTA = 240, 4, 1e-5


def attacked(noise: float, seed: int, guesses: int) -> tuple[float, float]:
    """ε that is stated, and the one that the attack proves with 95 % confidence, for one training."""
    coins = torch.rand(CANARIES, generator=torch.Generator().manual_seed(1000 + seed)) < 0.5
    here = table_site("Aachen", 30, features=OTHERS)
    inputs = torch.zeros(int(coins.sum()) + 30, CANARIES + OTHERS)
    inputs[: int(coins.sum()), :CANARIES] = torch.eye(CANARIES)[coins] * 3
    inputs[int(coins.sum()) :, CANARIES:] = here.inputs
    labels = torch.cat([torch.ones(int(coins.sum()), dtype=torch.int64), here.labels])
    bonn = table_site("Bonn", 30, features=OTHERS)
    wide = torch.cat([torch.zeros(30, CANARIES), bonn.inputs], dim=1)
    data = {"Aachen": site_of("Aachen", inputs, labels), "Bonn": site_of("Bonn", wide, bonn.labels)}
    made = Federation(
        data, [{"fedavg": {"local": [{"dp_sgd": {"norm": 1.0, "noise": noise}}], "label": "private"}}],
        training={"rounds": 2, "batch_size": 60, "optimizer": {"sgd": {"lr": 1.0}}},
    )  # fmt: skip
    stated = next(row["epsilon"] for row in made.outcome(seed=seed).privacy if row["site"] == "Aachen")
    layout = made.template.layout
    change = layout.split(made.state(seed=seed) - made.initial(seed))
    weights = next(tensor for name, tensor in change.items() if name.endswith("weight"))
    scores = (weights[1] - weights[0])[:CANARIES]
    order = scores.argsort()
    half = guesses // 2
    right = int(coins[order[-half:]].sum()) + int((~coins[order[:half]]).sum())
    return stated, lower_bound(right, 2 * half, DELTA, canaries=CANARIES)


def test_no_attack_proves_more_than_is_stated() -> None:
    for noise in (0.6, 1.0, 3.0):
        proven = [attacked(noise, seed, guesses) for seed in range(3) for guesses in (40, 240)]
        assert all(found <= stated for stated, found in proven), proven


def test_without_noise_the_attack_proves_much() -> None:
    """So the canaries would be seen: with next to no noise all guesses are right."""
    (_, quiet), (stated, noisy) = (attacked(noise, 0, 200) for noise in (1e-9, 1.0))
    assert quiet > 3
    assert noisy < 0.5 * quiet
    assert noisy <= stated
