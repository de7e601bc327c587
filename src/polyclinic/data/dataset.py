"""One site's cases, scaled and ready for a network."""

from __future__ import annotations

from copy import copy

import torch
from torch import Tensor

from polyclinic.data.augmentation import Augmentation
from polyclinic.data.cases import SiteData
from polyclinic.data.scaling import Scaler
from polyclinic.seeds import derive_seed


class Dataset:
    """The cases of a site, or of several sites pooled. ``batch`` is the only way to the inputs.

    Attributes:
        site: the site's name, or the pool's.
        targets: int64 ``[N]`` classes, float32 ``[N]`` numbers or uint8 ``[N, 1, H, W]`` masks.
        spacing: size of a pixel along each axis in millimetres, or None; see ``SiteData``.
        augments: whether training batches are changed at random.

    Args:
        data: the site's cases.
        scaler: how to scale them.
        augmentation: random changes of training images; not for tables.
    """

    def __init__(self, data: SiteData, scaler: Scaler, augmentation: Augmentation | None = None) -> None:
        if augmentation is not None and data.inputs.ndim == 2:
            raise ValueError("augmentation is for images")
        self.site = data.site
        self.targets = data.targets
        self.spacing = data.spacing
        self.augments = augmentation is not None
        self._scaler = scaler
        self._augmentation = augmentation
        self._sites: list[Dataset] = []
        # Tables are small and are scaled once; images stay bytes until they are used.
        self._inputs = scaler.apply(data.inputs) if data.inputs.ndim == 2 else data.inputs

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
        pooled.augments = any(dataset.augments for dataset in datasets)
        pooled.targets = torch.cat([dataset.targets for dataset in datasets])
        if len(datasets[0].shape) == 1:
            pooled._inputs = torch.cat([dataset._inputs for dataset in datasets])
        else:
            pooled._sites = list(datasets)
        return pooled

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one input: ``(F,)`` or ``(C, H, W)``."""
        return tuple(self._inputs.shape[1:])

    def batch(self, index: Tensor, *, augment: int | None = None) -> tuple[Tensor, Tensor]:
        """Inputs and targets of some cases.

        Args:
            index: int64 ``[B]``.
            augment: seed of the random changes of this batch; None leaves the images as they are.

        Returns:
            float32 inputs ``[B, F]`` or ``[B, C, H, W]``, scaled, and targets ``[B]`` or ``[B, 1, H, W]``.
        """
        if self._sites:
            return self._pooled_batch(index, augment)
        inputs, targets = self._inputs.index_select(0, index), self.targets.index_select(0, index)
        if inputs.ndim == 2:
            return inputs, targets
        images = inputs.float().div_(255.0)
        if augment is not None and self._augmentation is not None:
            masks = targets if targets.ndim == 4 else None
            images, masks = self._augmentation(images, masks, augment)
            targets = targets if masks is None else masks
        return self._scaler.apply(images), targets

    def picture(self, position: int) -> Tensor:
        """The image of one case as it was read, uint8 ``[C, H, W]``, for a person to look at."""
        return self._inputs[position]

    def _pooled_batch(self, index: Tensor, augment: int | None) -> tuple[Tensor, Tensor]:
        inputs = torch.empty(len(index), *self.shape)
        targets = self.targets.new_empty(len(index), *self.targets.shape[1:])
        start = 0
        for number, dataset in enumerate(self._sites):
            here = ((index >= start) & (index < start + len(dataset))).nonzero().flatten()
            if len(here):
                seed = None if augment is None else derive_seed(augment, number)
                inputs[here], targets[here] = dataset.batch(index[here] - start, augment=seed)
            start += len(dataset)
        return inputs, targets
