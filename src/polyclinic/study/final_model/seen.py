"""What inputs were like at the sites that trained a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from polyclinic.data.opening.facts import SiteFacts
from polyclinic.study.final_model.description import Seen, Usual

#: A value is unlike those of a site so many robust deviations from its median.
_FAR = 20.0
#: What is below this is air in CT; no other modality has it.
AIR = -500.0


def seen_at(facts: Mapping[str, SiteFacts], inputs: Sequence[str]) -> Seen:
    """What inputs were like at all sites together.

    Args:
        facts: what each site says, with the usual values of its features.
        inputs: names of the features.
    """
    features = {}
    for place, name in enumerate(inputs):
        known = [
            (one.medians[place], one.deviations[place]) for one in facts.values() if place < len(one.medians)
        ]  # fmt: skip
        pairs = [(median, spread) for median, spread in known if median is not None and spread]
        if pairs:
            low, high = min(m - _FAR * s for m, s in pairs), max(m + _FAR * s for m, s in pairs)
            middle, spread = np.median(np.array(pairs), axis=0).tolist()
            features[name] = Usual(median=middle, deviation=spread, low=low, high=high)
    sorted_ranges = [sorted(one.spacings) for one in facts.values() if one.spacings]
    spacing = [(min(one[0] for one in axis), max(one[1] for one in axis)) for axis in zip(*sorted_ranges, strict=True)]
    air = sorted({one.levels[0] < AIR for one in facts.values() if one.levels})
    return Seen(features=features, spacing=spacing, air=air)
