"""The cases of one site, as compact arrays."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from polyclinic.data.bags import Bags
from polyclinic.data.masks.classes import MaskFacts
from polyclinic.data.originals import Original
from polyclinic.data.spec import Undersampling
from polyclinic.data.volumes.store import Volumes
from polyclinic.kspace import CHANNELS

#: The class index of a case without a label.
NO_CLASS = -1


@dataclass
class Counts:
    """What became of every case of a site: ``found == used + sum(rejected.values())``."""

    found: int = 0
    used: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    """Reason -> number of cases. Reasons name columns and kinds of failure, never a patient or a path."""
    cases: dict[str, list[str]] = field(default_factory=dict)
    """Reason -> names of the rejected cases. They are shown at the site alone."""
    unlabelled: int = 0
    """How many of those used have no label or mask."""
    boxed: int = 0
    """How many of these have boxes."""
    named: int = 0
    """How many of these have names of structures, and no box."""
    instances: Counts | None = None
    """What became of the instances, where cases are bags of them."""

    def reject(self, case: str, reason: str) -> None:
        """A case that seemed usable is not."""
        self.used -= 1
        self.rejected[reason] += 1
        self.cases.setdefault(reason, []).append(case)


@dataclass
class SiteData:
    """One site's usable cases. ``subjects`` and ``cases`` identify patients and never leave the site.

    Attributes:
        site: the site's name.
        inputs: float32 ``[N, F]`` features (missing values are NaN), uint8 ``[N, C, H, W]`` images, volumes
            ``[N, C, D, H, W]``, or bags of features or images.
        targets: int64 ``[N]`` class indices, float32 ``[N]`` numbers (regression), float32 ``[N, 2]`` times with 1 for
            an event and 0 for the end of observation (survival), or uint8 masks ``[N, 1, H, W]``
            (volumes: ``[N, 1, D, H, W]``) of class indices, 0 for the background, ``IGNORED`` for what plays no part;
            or the inputs themselves (reconstruction); or int64 ``[N, K]`` of K findings, see
            `polyclinic.data.tables.findings`, -1 where a label is missing.
            Of a case without a label -1, NaN, or a mask of what is known of it (see `polyclinic.candidates`):
            ``IGNORED`` everywhere, if nothing is.
        subjects: patient of each case, N names.
        cases: name of each case (table row or image file), N names.
        parts: ``train``, ``validation`` or ``test`` for each case where a column fixes the split, else None.
        counts: found, used and rejected with reasons.
        spacings: size of a voxel along each axis of each case's image in millimetres, N of them; None where they are
            not known: then distances are in pixels.
        covariates: float64 ``[N, K]`` without missing values, where the study names covariates, else None.
        mask_facts: what was seen in each case's mask (nothing where a case has none), or None.
        labelled: bool ``[N]``, which cases have a label or mask; None where all have. Nobody but a method that learns
            without labels may look at the others; ``with_labels`` leaves them out.
        groups: column of a subgroup -> name of each case's group, N names; None where the study asks for none.
        depth: how many bits white has in the site's pictures of 16 bits, where the study does not say it (``bits``) and
            the brightest tells; None without such pictures.
        originals: where each case's image and mask lie, N of them; None where targets are no masks.
        public: inputs ``[M, ...]`` of the public set as the site has it, of the same kind; None without one.
        undersampling: which lines of k-space are measured of images that are to be reconstructed; None for other tasks.
    """

    site: str
    inputs: Tensor | Volumes | Bags
    targets: Tensor | Volumes
    subjects: list[str]
    cases: list[str]
    parts: list[str] | None
    counts: Counts
    spacings: list[tuple[float, ...]] | None = None
    covariates: Tensor | None = None
    mask_facts: list[MaskFacts] | None = None
    labelled: Tensor | None = None
    groups: dict[str, list[str]] | None = None
    depth: int | None = None
    originals: list[Original] | None = None
    public: Tensor | None = None
    undersampling: Undersampling | None = None

    def __len__(self) -> int:
        return len(self.subjects)

    @property
    def labels(self) -> Tensor | None:
        """Classes or numbers ``[N]``, -1 or NaN for cases without a label; of times, int64, 1 where the event happened
        and 0 where it was not seen; None where targets are masks, images or findings."""
        if not isinstance(self.targets, Tensor) or self.targets.ndim > 2 or self.findings is not None:
            return None
        return self.targets if self.targets.ndim == 1 else self.targets[:, 1].long()

    @property
    def times(self) -> Tensor | None:
        """Float32 ``[N]``, until when cases were seen; None where targets are no times."""
        timed = isinstance(self.targets, Tensor) and self.targets.ndim == 2 and self.targets.is_floating_point()
        return self.targets[:, 0] if timed and isinstance(self.targets, Tensor) else None

    @property
    def findings(self) -> Tensor | None:
        """Int64 ``[N, K]``, classes of several labels, -1 where one is missing; None where targets are none."""
        several = isinstance(self.targets, Tensor) and self.targets.ndim == 2 and not self.targets.is_floating_point()
        return self.targets if several and isinstance(self.targets, Tensor) else None

    @property
    def labels_or_findings(self) -> Tensor | None:
        """Labels ``[N]`` or those of several findings ``[N, K]``; None where targets are masks or images."""
        return self.labels if self.findings is None else self.findings

    @property
    def masked(self) -> bool:
        """Whether targets are masks."""
        return self.labels_or_findings is None and self.undersampling is None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one input as a network is given it; of a bag that of an instance."""
        own = tuple(self.inputs.shape[1:])
        return own if self.undersampling is None else (CHANNELS, *own[1:])

    def of_finding(self, place: int) -> SiteData:
        """The same cases with the label of one finding alone; those that have none of it are as without a label."""
        if self.findings is None:
            raise ValueError("the cases have no findings")
        own = self.findings[:, place]
        return replace(self, targets=own, labelled=own >= 0)

    @property
    def known(self) -> Tensor:
        """Which cases have a label or mask: bool ``[N]``."""
        return torch.ones(len(self), dtype=torch.bool) if self.labelled is None else self.labelled

    def with_labels(self) -> SiteData:
        """The cases that have a label or mask, in their order. Nothing is copied where they come before the others, as
        they do in what ``open_data`` gives."""
        if self.labelled is None:
            return self
        index = self.labelled.nonzero().flatten()
        places = index.tolist()
        return replace(
            self,
            inputs=self.inputs.chosen(index) if isinstance(self.inputs, Bags) else _chosen(self.inputs, index),
            targets=_chosen(self.targets, index),
            subjects=[self.subjects[place] for place in places],
            cases=[self.cases[place] for place in places],
            parts=None if self.parts is None else [self.parts[place] for place in places],
            covariates=None if self.covariates is None else self.covariates[index],
            spacings=None if self.spacings is None else [self.spacings[place] for place in places],
            mask_facts=None if self.mask_facts is None else [self.mask_facts[place] for place in places],
            labelled=None,
            groups=None
            if self.groups is None
            else {name: [own[place] for place in places] for name, own in self.groups.items()},
            originals=None if self.originals is None else [self.originals[place] for place in places],
        )

    @property
    def table(self) -> Tensor:
        """The features ``[N, F]``.

        Raises:
            ValueError: the cases are images, or bags.
        """
        if isinstance(self.inputs, Tensor) and self.inputs.ndim == 2:
            return self.inputs
        raise ValueError("the cases are no rows of a table")

    @property
    def values(self) -> Tensor | Volumes:
        """The inputs; of bags all their instances, one bag after another."""
        return self.inputs.instances if isinstance(self.inputs, Bags) else self.inputs

    @property
    def plain(self) -> Tensor | Volumes:
        """The inputs, one for each case.

        Raises:
            ValueError: the cases are bags.
        """
        if isinstance(self.inputs, Bags):
            raise ValueError("the cases are bags")
        return self.inputs

    def by_instance(self) -> SiteData:
        """Each instance of bags as a case of its own, with the label of its bag; other cases as they are."""
        if not isinstance(self.inputs, Bags):
            return self
        bags = torch.arange(len(self)).repeat_interleave(self.inputs.counts)
        places = bags.tolist()
        order = (torch.arange(len(bags)) - self.inputs.starts[bags] + 1).tolist()
        return replace(
            self,
            inputs=self.inputs.instances,
            targets=self.targets[bags] if isinstance(self.targets, Tensor) else self.targets,
            subjects=[self.subjects[place] for place in places],
            cases=[f"{self.cases[place]}, instance {number}" for place, number in zip(places, order, strict=True)],
            parts=None if self.parts is None else [self.parts[place] for place in places],
            covariates=None if self.covariates is None else self.covariates[bags],
            labelled=None if self.labelled is None else self.labelled[bags],
            groups=None
            if self.groups is None
            else {name: [own[place] for place in places] for name, own in self.groups.items()},
        )


def _chosen(pixels: Tensor | Volumes, index: Tensor) -> Tensor | Volumes:
    """The cases ``index [n]``, in rising order."""
    places = index.tolist()
    if isinstance(pixels, Volumes):
        return Volumes([pixels.files[place] for place in places], [pixels.about[place] for place in places])
    return pixels[: len(places)] if places == list(range(len(places))) else pixels[index]


def reasons_text(rejected: Counter[str]) -> str:
    """``"label is missing (3), image file is damaged (1)"``, the most frequent reason first."""
    ordered = sorted(rejected.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{reason} ({count})" for reason, count in ordered)
