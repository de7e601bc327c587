"""One site's cases, scaled and ready for a network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import replace
from math import prod
from typing import Literal

import torch
from torch import Tensor

from polyclinic.candidates import code_of, common_code, undecided
from polyclinic.data.augmentation import Augmentation
from polyclinic.data.bags import Bags, joined, padded
from polyclinic.data.cases import SiteData
from polyclinic.data.masks.hinted import Hidden
from polyclinic.data.originals import joined as joined_originals
from polyclinic.data.scaling import Scaler
from polyclinic.data.spec import Patch
from polyclinic.data.volumes.patches import patch_corners
from polyclinic.data.volumes.standardisation import landmarks, standardise
from polyclinic.data.volumes.store import Volumes, concatenate
from polyclinic.ignored import IGNORED
from polyclinic.seeds import derive_seed

Pixels = Tensor | Volumes | Bags
#: Changed images are kept up to so many numbers: 1 GiB.
_KEPT = 2**28
#: Images changed at once, to be kept.
_TOGETHER = 32


class Dataset:
    """The cases of a site, or of several sites pooled. ``batch`` is the only way to the inputs.

    Attributes:
        site: the site's name, or the pool's.
        targets: int64 ``[N]`` classes, float32 ``[N]`` numbers, float32 ``[N, 2]`` times and events (of a pool
            ``[N, 3]``, with the number of the site), int64 ``[N, K]`` classes of several labels, or uint8 masks
            ``[N, 1, H, W]`` (volumes ``[N, 1, D, H, W]``).
        labelled: bool ``[N]``, which cases have a label or mask; None where all have. The targets of the others are -1,
            NaN, or what is known of their masks; `batch` gives ``IGNORED`` everywhere, unless it is asked for hints.
        augments: whether training batches are changed at random (augmentation, or boxes cut from volumes).
        patch: the boxes on which a network is trained, or None for whole images.
        people: int64 ``[N]``, a number for each patient.
        groups: column of a subgroup -> the group of each case.
        spacings: voxel sizes of each case in millimetres, or None; see ``SiteData``.
        originals: where each case's image and mask lie, or None; see ``SiteData``.
        unannotated: structures that were not outlined in these cases.
        unscaled: the inputs before scaling, see ``SiteData``; not of a pool.

    Args:
        data: the site's cases.
        scaler: how to scale them.
        augmentation: random changes of training images; not for tables.
        patch: train on boxes of volumes.
        standard: landmarks ``[C, L]`` to which the histograms of volumes are brought, or None.
    """

    def __init__(
        self, data: SiteData, scaler: Scaler, augmentation: Augmentation | None = None, patch: Patch | None = None,
        standard: Tensor | None = None,
    ) -> None:  # fmt: skip
        if augmentation is not None and data.inputs.ndim == 2:
            raise ValueError("augmentation is for images")
        self.site = data.site
        self.targets, self.labelled = data.targets, data.labelled
        numbers = {subject: number for number, subject in enumerate(dict.fromkeys(data.subjects))}
        self.people = torch.tensor([numbers[subject] for subject in data.subjects], dtype=torch.int64)
        self.groups: Mapping[str, Sequence[str]] = data.groups or {}
        self.augments = augmentation is not None or patch is not None
        self.patch, self.spacings, self.originals = patch, data.spacings, data.originals
        self._standard = standard
        self._landmarks = None if standard is None else landmarks(data.plain)
        self._scaler = scaler
        self._augmentation = augmentation
        self._sites: list[Dataset] = []
        self._seen: _Seen | None = None
        self.unannotated: tuple[int, ...] = ()
        self._hidden: tuple[Tensor, Hidden | None] | None = None
        self.unscaled: Pixels = data.inputs
        self._inputs: Pixels = self._scaled(data.inputs)

    def _scaled(self, inputs: Pixels) -> Pixels:
        """Tables are small and are scaled once; images stay bytes until they are used."""
        return self._scaler.apply(inputs) if isinstance(inputs, Tensor) and inputs.ndim == 2 else inputs

    def changed(self, *, inputs: Pixels | None = None, targets: Tensor | Volumes | None = None) -> Dataset:
        """The same cases, scaled in the same way, with other inputs (as ``unscaled``) or other targets."""
        other = copy(self)
        if inputs is not None:
            other.unscaled, other._inputs = inputs, self._scaled(inputs)
            other._seen = None if self._seen is None else _Seen(self._seen.change)
        if targets is not None:
            other.targets = targets
        return other

    def without_labels(self, hidden: Tensor, leaves: Literal["box", "label"] | None = None) -> Dataset:
        """The same cases, of which those at ``hidden [n]`` are as if they had no label or mask, or of the mask only a
        box around each structure, or which structures there are."""
        other = copy(self)
        other.labelled = self.known.clone()
        other.labelled[hidden] = False
        if len(self.targets.shape) > 3:
            gone = torch.zeros(len(self), dtype=torch.bool)
            gone[hidden] = True
            other._hidden = gone, None if leaves is None else Hidden(self.targets, leaves)
        if isinstance(self.targets, Volumes):
            about = list(self.targets.about)  # it says where structures are, by which boxes are cut
            for place in hidden.tolist():
                about[place] = {}
            other.targets = Volumes(self.targets.files, about)
        elif self.targets.ndim < 3:
            other.targets = self.targets.clone()
            other.targets[hidden] = torch.nan if self.targets.is_floating_point() else -1
        return other

    def without_structures(self, structures: Sequence[int]) -> Dataset:
        """The same cases, in whose masks some structures were not outlined: where there is background or one of them,
        either may be."""
        other = copy(self)
        other.unannotated = tuple(structures)
        return other

    def partly(self, masks: Tensor) -> Tensor:
        """Masks ``[...]`` of class indices, in which structures that were not outlined may be; see
        `polyclinic.candidates`."""
        if not self.unannotated:
            return masks
        code = code_of(self.unannotated)
        outlined = masks.masked_fill(torch.isin(masks, torch.tensor(self.unannotated, dtype=masks.dtype)), 0)
        more = torch.where(undecided(outlined, 0), outlined | code, outlined)
        return torch.where(outlined == 0, torch.full_like(outlined, code), more)

    def seen_through(self, change: Callable[[Tensor], Tensor]) -> Dataset:
        """The same cases, whose images are changed in a further step, the last before the network.

        Args:
            change: of scaled images ``[B, C, ...]``; always the same, since what it gives for an image is kept where
                training does not change that image at random, and where all of them fit into 1 GiB.
        """
        other, before = copy(self), None if self._seen is None else self._seen.change
        other._seen = _Seen(change if before is None else lambda images: change(before(images)))
        return other

    @staticmethod
    def pool(datasets: list[Dataset], name: str) -> Dataset:
        """The cases of several sites, one site after another, each scaled with its own site's scaler.

        Images are not copied: the pool reads them through ``batch`` of its sites.

        Args:
            datasets: one or more, with inputs of one shape.
            name: what to call the pool.
        """
        pooled = copy(datasets[0])
        pooled.site = name
        if len(datasets) == 1:
            return pooled
        pooled.unannotated = ()  # each site's masks say it themselves
        pooled.augments = any(dataset.augments for dataset in datasets)
        pooled.targets = concatenate([_marked(dataset.targets, site) for site, dataset in enumerate(datasets)])
        counts = [int(dataset.people.max()) + 1 if len(dataset) else 0 for dataset in datasets]
        before = [sum(counts[:site]) for site in range(len(counts))]
        pooled.people = torch.cat([dataset.people + first for dataset, first in zip(datasets, before, strict=True)])
        pooled.groups = {name: [one for dataset in datasets for one in dataset.groups[name]] for name in pooled.groups}
        known = [dataset.spacings for dataset in datasets if dataset.spacings is not None]
        pooled.spacings = [one for spacings in known for one in spacings] if len(known) == len(datasets) else None
        pooled.originals = joined_originals(dataset.originals for dataset in datasets)
        if any(dataset.labelled is not None for dataset in datasets):
            pooled.labelled = torch.cat([dataset.known for dataset in datasets])
        if len(datasets[0].shape) == 1 and not datasets[0].bags:
            pooled._inputs = torch.cat([torch.as_tensor(dataset._inputs) for dataset in datasets])
        else:
            pooled._sites = list(datasets)
        return pooled

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def bags(self) -> bool:
        """Whether cases are bags of instances."""
        return False

    def pieces(self, index: Tensor, largest: int) -> Iterable[Tensor]:
        """``index [n]`` in pieces that can be predicted at once, of at most ``largest`` cases."""
        found: Iterable[Tensor] = index.split(largest)
        return found

    @property
    def known(self) -> Tensor:
        """Which cases have a label or mask: bool ``[N]``."""
        return torch.ones(len(self), dtype=torch.bool) if self.labelled is None else self.labelled

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one input: ``(F,)``, ``(C, H, W)`` or ``(C, D, H, W)``; of a bag that of an instance."""
        return tuple(self._inputs.shape[1:])

    @property
    def training_shape(self) -> tuple[int, ...]:
        """Shape of one input as a network is trained on it: that of a box, where boxes are cut."""
        return self.shape if self.patch is None else (self.shape[0], *self.patch.size)

    def batch(self, index: Tensor, *, augment: int | None = None, hints: bool = False) -> tuple[Tensor, Tensor]:
        """Inputs and targets of some cases.

        Args:
            index: int64 ``[B]``.
            augment: seed of the random changes of this batch; None leaves the images as they are.
            hints: whether masks of cases without one say what is known, see `polyclinic.candidates`.

        Returns:
            float32 inputs ``[B, F]``, ``[B, C, H, W]`` or ``[B, C, D, H, W]``, scaled, and targets ``[B]`` or
            ``[B, 1, ...]``. With ``augment`` volumes are boxes of ``patch`` where there is one. Bags are
            ``[B, M, ...]``, where M is the size of the largest, with `PADDING` behind the others.
        """
        if self._seen is None:
            return self._own_batch(index, augment, hints)
        inputs, targets = self._inputs, self.targets
        fits = len(self) * prod(self.shape) <= _KEPT
        if augment is None and not hints and fits and isinstance(inputs, Tensor) and isinstance(targets, Tensor):
            for missing in self._seen.missing(index, len(self)):
                self._seen.keep(missing, self._own_batch(missing, None, hints=False)[0], len(self))
            return self._seen.kept.index_select(0, index), self.partly(
                self._ignored(targets.index_select(0, index), index)
            )
        images, wanted = self._own_batch(index, augment, hints)
        return self._seen.change(images), wanted

    def _own_batch(self, index: Tensor, augment: int | None, hints: bool) -> tuple[Tensor, Tensor]:
        """The same, before a further step changes images."""
        if self._sites:
            return self._pooled_batch(index, augment, hints)
        inputs, targets = self._chosen(index, augment, hints)
        targets = targets if hints else self._ignored(targets, index)
        if inputs.ndim == 2:
            return inputs, targets
        images = inputs.float()
        if inputs.dtype == torch.uint8:
            images = images.div_(255.0)
        if self._standard is not None and self._landmarks is not None:
            images = standardise(images, self._landmarks[index], self._standard)
        if augment is not None and self._augmentation is not None:
            masks = targets if targets.ndim > 2 else None
            images, masks = self._augmentation(images, masks, augment)
            if masks is not None:
                # What is moved in from outside counts as background, but what may be anywhere may be there, too.
                for row in [] if self.labelled is None else (~self.labelled[index]).nonzero().flatten().tolist():
                    masks[row][masks[row] == 0] = common_code(targets[row])
                targets = masks
        return self._scaler.apply(images) if self._scaler.changes else images, self.partly(targets)

    def _ignored(self, targets: Tensor, index: Tensor) -> Tensor:
        """Targets of some cases, written to where they are masks of cases without a label."""
        if self.labelled is not None and targets.ndim > 2:
            targets[~self.labelled[index]] = IGNORED
        return targets

    def _chosen(self, index: Tensor, augment: int | None, hints: bool) -> tuple[Tensor, Tensor]:
        """Inputs and targets as they are kept: whole, or boxes of volumes."""
        inputs, targets = self._inputs, self.targets
        if isinstance(inputs, Bags):
            raise ValueError("the cases are bags")
        if not isinstance(inputs, Volumes):
            whole = targets.index_select(0, index)
            corner = (0,) * (whole.ndim - 2)
            return inputs.index_select(0, index), self._hinted(whole, index, [corner] * len(index), hints)
        size = tuple(inputs.shape[2:])
        corners = [(0, 0, 0)] * len(index)
        if augment is not None and self.patch is not None and isinstance(targets, Volumes):
            size = self.patch.size
            corners = patch_corners(targets, index, self.patch, augment)
        chosen = targets.crop(index, corners, size) if isinstance(targets, Volumes) else targets.index_select(0, index)
        return inputs.crop(index, corners, size, torch.float32), self._hinted(chosen, index, corners, hints)

    def _hinted(self, targets: Tensor, index: Tensor, corners: Sequence[Sequence[int]], hints: bool) -> Tensor:
        """Targets of some cases, written to where masks are hidden."""
        if not hints or self._hidden is None:
            return targets
        gone, left = self._hidden
        for row, position in enumerate(index.tolist()):
            if gone[position]:
                targets[row] = IGNORED if left is None else left.of(position, corners[row], targets[row])
        return targets

    @property
    def orientation(self) -> str:
        """Where the axes of volumes point, such as RAS; "" for flat images and tables."""
        inputs = self._inputs
        return str(inputs.about[0]["grid_orientation"]) if isinstance(inputs, Volumes) else ""

    def picture(self, position: int) -> Tensor:
        """The image of one case before scaling, for a person to look at: uint8 ``[C, H, W]``, or a volume
        ``[C, D, H, W]`` of any range."""
        return self._inputs[position]

    def _pooled_batch(self, index: Tensor, augment: int | None, hints: bool) -> tuple[Tensor, Tensor]:
        boxes = augment is not None and self.patch is not None
        inputs = torch.empty(len(index), *(self.training_shape if boxes else self.shape))
        kept, kind = self._targets_like(boxes=boxes)
        targets = torch.empty(len(index), *kept, dtype=kind)
        start = 0
        for number, dataset in enumerate(self._sites):
            here = ((index >= start) & (index < start + len(dataset))).nonzero().flatten()
            if len(here):
                seed = None if augment is None else derive_seed(augment, number)
                inputs[here], wanted = dataset.batch(index[here] - start, augment=seed, hints=hints)
                targets[here] = torch.as_tensor(_marked(wanted, number))
            start += len(dataset)
        return inputs, targets

    def _targets_like(self, *, boxes: bool) -> tuple[tuple[int, ...], torch.dtype]:
        """Shape and type of the target of one case, as ``batch`` gives it."""
        kept = (1, *self.training_shape[1:]) if boxes else tuple(self.targets.shape[1:])
        return kept, self.targets.dtype


class BagDataset(Dataset):
    """Cases that are bags of instances; see `Dataset`.

    Args:
        data: the site's cases.
        scaler: how to scale instances.
        augmentation: random changes of instances in training; not for tables.
        most: of a larger bag so many instances are drawn anew for each batch of training; None takes all.
    """

    def __init__(
        self, data: SiteData, scaler: Scaler, augmentation: Augmentation | None = None, most: int | None = None
    ) -> None:
        super().__init__(data, scaler, augmentation)
        if not isinstance(data.inputs, Bags):
            raise ValueError("the cases are no bags")
        self._bags, self._most = data.inputs, most
        nothing = torch.zeros(len(data.inputs.instances))
        rows = replace(data, inputs=data.inputs.instances, targets=nothing, subjects=[], labelled=None, groups=None)
        self._instances = Dataset(rows, scaler, augmentation)
        self.augments = self.augments or (most is not None and bool((data.inputs.counts > most).any()))

    @property
    def bags(self) -> bool:
        """See `Dataset.bags`."""
        return True

    def changed(self, *, inputs: Pixels | None = None, targets: Tensor | Volumes | None = None) -> Dataset:
        """See `Dataset.changed`."""
        other = super().changed(inputs=inputs, targets=targets)
        if isinstance(other, BagDataset) and isinstance(inputs, Bags):
            other._bags, other._instances = inputs, self._instances.changed(inputs=inputs.instances)
        return other

    def seen_through(self, change: Callable[[Tensor], Tensor]) -> Dataset:
        """See `Dataset.seen_through`: each instance is changed."""
        other = copy(self)
        other._instances = self._instances.seen_through(change)
        return other

    def pieces(self, index: Tensor, largest: int) -> Iterable[Tensor]:
        """See `Dataset.pieces`."""
        return index.split(1) if self._sites else self._bags.batches(index, largest)

    def _own_batch(self, index: Tensor, augment: int | None, hints: bool) -> tuple[Tensor, Tensor]:
        if self._sites:
            return self._pooled_batch(index, augment, hints)
        places, counts = self._bags.sampled(index, self._most, augment)
        return padded(self._instances.batch(places, augment=augment)[0], counts), self.targets.index_select(0, index)

    def _pooled_batch(self, index: Tensor, augment: int | None, hints: bool) -> tuple[Tensor, Tensor]:
        found, order = list[tuple[Tensor, Tensor]](), list[Tensor]()
        start = 0
        for number, dataset in enumerate(self._sites):
            here = ((index >= start) & (index < start + len(dataset))).nonzero().flatten()
            if len(here):
                seed = None if augment is None else derive_seed(augment, number)
                inputs, wanted = dataset.batch(index[here] - start, augment=seed)
                found.append((inputs, torch.as_tensor(_marked(wanted, number))))
                order.append(here)
            start += len(dataset)
        back = torch.cat(order).argsort()
        return joined([inputs for inputs, _ in found])[back], torch.cat([wanted for _, wanted in found])[back]


def _marked(targets: Tensor | Volumes, site: int) -> Tensor | Volumes:
    """Times with the number of their site, since cases are compared within sites only; other targets as they are."""
    if not isinstance(targets, Tensor) or targets.ndim != 2 or not targets.is_floating_point():
        return targets
    return torch.cat([targets, targets.new_full((len(targets), 1), site)], dim=1)


class _Seen:
    """What a further step makes of images, and what it has made of them already.

    Attributes:
        change: the step.
        kept: float32 ``[N, C, H, W]``.
    """

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        self.change, self.kept, self._done = change, torch.empty(0), torch.empty(0, dtype=torch.bool)

    def missing(self, index: Tensor, cases: int) -> list[Tensor]:
        """Those that are not kept, of so many cases in all, with their neighbours.

        Cases are changed together with the same others whenever it is done: how many are in a transform decides how its
        last digits are rounded.
        """
        asked = index[~self._done[index]] if len(self._done) else index
        places = [int(place) * _TOGETHER for place in (asked // _TOGETHER).unique()]
        return [torch.arange(first, min(first + _TOGETHER, cases)) for first in places]

    def keep(self, index: Tensor, images: Tensor, cases: int) -> None:
        """Change ``images`` of the cases ``index``, of so many in all, and keep what comes out."""
        changed = self.change(images)
        if not len(self._done):
            self.kept, self._done = changed.new_empty(cases, *changed.shape[1:]), torch.zeros(cases, dtype=torch.bool)
        self.kept[index], self._done[index] = changed, True
