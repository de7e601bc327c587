"""What the tensors of a model are for."""

from __future__ import annotations

import enum


class Role(enum.StrEnum):
    """What a tensor is for; sharing rules select by it."""

    WEIGHT = "weight"
    HEAD = "head"
    NORM_WEIGHT = "norm_weight"
    NORM_STATISTIC = "norm_statistic"
    BUFFER = "buffer"
