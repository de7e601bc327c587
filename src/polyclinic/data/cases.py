"""The cases of one site, as compact arrays."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class Counts:
    """What became of every case of a site: ``found == used + sum(rejected.values())``."""

    found: int = 0
    used: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    """Reason -> number of cases. Reasons name columns and kinds of failure, never a patient or a path."""


@dataclass
class SiteData:
    """One site's usable cases. ``subjects`` and ``cases`` identify patients and never leave the site.

    Attributes:
        site: the site's name.
        inputs: float32 ``[N, F]`` features (missing values are NaN) or uint8 ``[N, C, H, W]`` images.
        targets: int64 ``[N]`` class indices, or uint8 ``[N, 1, H, W]`` masks of 0 and 1.
        subjects: patient of each case, N names.
        cases: name of each case (table row or image file), N names.
        parts: ``train``, ``validation`` or ``test`` for each case where a column fixes the split, else None.
        counts: found, used and rejected with reasons.
        covariates: float64 ``[N, K]`` without missing values, where the study names covariates, else None.
    """

    site: str
    inputs: Tensor
    targets: Tensor
    subjects: list[str]
    cases: list[str]
    parts: list[str] | None
    counts: Counts
    covariates: Tensor | None = None

    def __len__(self) -> int:
        return len(self.subjects)


@dataclass
class Opened:
    """Everything that ``open_data`` found.

    Attributes:
        sites: site name -> its cases, sorted by name (tables: study file order).
        features: names of the columns of ``inputs`` (after one-hot encoding), or of the image channels.
        classes: names of the classes in index order; ``["background", "foreground"]`` for segmentation. In a binary
            task index 1 is the positive class.
        warnings: sentences for the report (the same patient at two sites, duplicated rows, constant columns...).
        fingerprint: SHA-256 of everything that was read, hex.
        covariates: for each column of the table that is a covariate, the names of the columns made of it.
    """

    sites: dict[str, SiteData]
    features: list[str]
    classes: list[str]
    warnings: list[str]
    fingerprint: str
    covariates: dict[str, list[str]] = field(default_factory=dict)
