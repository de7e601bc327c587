"""Sampling of patients and noise of private training; `polyclinic.privacy.draws` says where the numbers come from."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from polyclinic.privacy.draws import Draws, gaussian
from polyclinic.state import Selection

#: Coordinates of noise that are drawn at once, to bound memory.
_AT_ONCE = 1 << 18


def poisson_batches(patients: Tensor, rate: float, steps: int, draws: Draws) -> Iterator[Tensor]:
    """The cases of each step: every patient takes part with probability q, whoever else does, and with all their cases.

    Batches have no fixed size; some are empty, in which case only noise is added. This is the sampling for which
    privacy is amplified as the accountant says (Abadi et al. 2016, section 3.1; Mironov et al. 2019); shuffled batches
    of one size are not.

    Args:
        patients: of each case ``[n]``, integers.
        rate: q, above 0 and at most 1.
        steps: how many batches.
        draws: where the choice comes from.

    Returns:
        Positions of cases, rising, ``[B]``.

    Raises:
        ValueError: the rate is no such number.
    """
    if not 0 < rate <= 1:
        raise ValueError(f"the sampling rate must be above 0 and at most 1, got {rate}")
    different, members = patients.unique(return_inverse=True)
    for _ in range(steps):
        chosen = draws.uniform(len(different)) < rate
        yield chosen.to(members.device)[members].nonzero().flatten()


def private_gradient(
    total: Tensor, norm: float, noise_multiplier: float, expected: float, draws: Draws, trained: Selection | None = None
) -> Tensor:
    """The private gradient (Σ + N(0, (σ C)²)) / (q N), float32 ``[T]`` (Abadi et al. 2016, algorithm 1).

    Sum and noise are added in float64 and rounded once, afterwards, so that the last digits that come out are those of
    the noise.

    Args:
        total: Σ, the sum over patients of their clipped gradients, float64 ``[T]``.
        norm: C, the largest norm of a patient's gradient.
        noise_multiplier: σ; 0 adds no noise, and protects nobody.
        expected: q N, how many patients take part in a step on average, N being a number that all may know. Never how
            many did: that would tell of the patients, and noise would shrink where few take part.
        draws: where the noise comes from.
        trained: the coordinates that are trained; the others stay 0. None for all.

    Raises:
        ValueError: a number is out of its range.
    """
    for name, value, fits in (
        ("norm", norm, 0 < norm < math.inf),
        ("noise multiplier", noise_multiplier, 0 <= noise_multiplier < math.inf),
        ("expected number of patients", expected, 0 < expected < math.inf),
    ):
        if not fits:
            raise ValueError(f"the {name} is out of its range: {value}")
    found = total.to("cpu", torch.float64, copy=True)
    places = ((0, len(found)),) if trained is None else trained.within(len(found)).slices
    if noise_multiplier:
        for start, stop in places:
            for first in range(start, stop, _AT_ONCE):
                part = found[first : min(first + _AT_ONCE, stop)]
                part.add_(gaussian(len(part), draws), alpha=noise_multiplier * norm)
    return (found / expected).float().to(total.device)
