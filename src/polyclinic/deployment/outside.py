"""What a model has not seen: values, units and images unlike those of every site that trained."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from polyclinic.data.bags import Bags
from polyclinic.data.cases import SiteData
from polyclinic.data.quality.values import unit_notes, usual_values
from polyclinic.data.volumes.store import Volumes
from polyclinic.notes import Note
from polyclinic.study.final_model.description import Description, Seen
from polyclinic.study.final_model.seen import AIR

Values = npt.NDArray[np.float64]

#: Voxel sizes are unlike those of the sites beyond their range by this factor.
_TIMES = 1.5
#: Stands beside a site; no site has an empty name.
_MODEL = ""


def outside_table(description: Description, data: SiteData) -> list[str]:
    """Of each case the features whose values are unlike those of every site, as a text; mostly empty."""
    table = torch.as_tensor(data.values).double().numpy()
    cases = data.inputs.cases if isinstance(data.inputs, Bags) else np.arange(len(data))
    found: list[list[str]] = [[] for _ in range(len(data))]
    for name, usual in description.seen.features.items():
        column = table[:, description.inputs.index(name)]
        with np.errstate(invalid="ignore"):
            far = (column < usual.low) | (column > usual.high)
        case, first = np.unique(cases[far], return_index=True)  # of a bag the first instance
        for place, value in zip(case.tolist(), column[far][first], strict=True):
            found[place].append(f"{name} = {value:.6g}")
    return ["; ".join(one) for one in found]


def units_of(description: Description, data: SiteData) -> list[Note]:
    """Notes on features whose values differ from those of the sites that trained as if the unit did."""
    features = description.seen.features
    places = [description.inputs.index(name) for name in features]
    if not places or not len(data):
        return []
    known = np.array([[one.median for one in features.values()], [one.deviation for one in features.values()]])
    here = tuple(values[places] for values in usual_values(data.by_instance()))
    return unit_notes({_MODEL: (known[0], known[1]), data.site: (here[0], here[1])}, list(features), known=_MODEL)


def outside_images(description: Description, data: SiteData) -> list[str]:
    """Of each volume how it is unlike those of every site, as a text; mostly empty."""
    if not isinstance(data.inputs, Volumes):
        return [""] * len(data)
    return ["; ".join(_unlike(description.seen, record["facts"])) for record in data.inputs.about]


def _unlike(seen: Seen, facts: dict[str, Any]) -> list[str]:
    found = []
    own = sorted(facts["spacing"])  # the axes of an image may be stored in any order
    near = [low / _TIMES <= side <= high * _TIMES for side, (low, high) in zip(own, seen.spacing, strict=False)]
    if not all(near):
        found.append("voxels of " + " x ".join(f"{size:.3g}" for size in facts["spacing"]) + " mm")
    air = facts["quantiles"][0] < AIR
    if seen.air and air not in seen.air:
        found.append("values like CT" if air else "values unlike CT")
    return found
