"""The public set, prepared as a party's own cases are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from polyclinic.data.cases import NO_CLASS, Counts, SiteData
from polyclinic.data.dataset import Dataset
from polyclinic.data.preparation import Named, Prepared, build_steps
from polyclinic.data.spec import PUBLIC


def prepare_public(inputs: Tensor, steps: Sequence[Named], merged: Sequence[Mapping[str, Tensor]]) -> Dataset:
    """The public set after the chain of preparation, the same at all parties.

    What each site finds for itself is found for the public set from all of its own cases, as if it were a site: with
    ``scaling: per_site`` its features have mean 0 and deviation 1.

    Args:
        inputs: as they were opened ``[M, ...]``.
        steps: of the chain.
        merged: of each step what all sites were told, nothing for one that each site takes alone.
    """
    cases = len(inputs)
    names = [f"case {number}" for number in range(1, cases + 1)]
    nothing = torch.full((cases,), NO_CLASS, dtype=torch.int64)
    data = SiteData(PUBLIC, inputs, nothing, names, names, None, Counts(cases, cases))
    prepared = Prepared(data, torch.arange(cases))
    for step, told in zip(build_steps(steps), merged, strict=True):
        prepared = step.apply(prepared, dict(told))
    if prepared.scaler is None:
        raise ValueError("the chain of preparation has no scaling")
    return Dataset(prepared.data, prepared.scaler)
