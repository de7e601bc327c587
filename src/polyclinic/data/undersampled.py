"""The images of a site as an accelerated scan would measure them."""

from __future__ import annotations

import torch
from torch import Tensor

from polyclinic.data.acquisition import acquire, case_seeds, measured_lines
from polyclinic.data.augmentation import Augmentation
from polyclinic.data.bags import Bags
from polyclinic.data.cases import SiteData
from polyclinic.data.dataset import Dataset, Pixels
from polyclinic.data.scaling import Scaler
from polyclinic.data.volumes.store import Volumes
from polyclinic.kspace import CHANNELS
from polyclinic.seeds import derive_seed


class UndersampledDataset(Dataset):
    """Cases whose targets are their own images; see `Dataset`, and for inputs and targets `acquire`.

    The lines that are measured of a case are always the same, but in training they are drawn anew for each batch.

    Args:
        data: the site's cases, with an ``undersampling``.
        scaler: which changes nothing.
        augmentation: random changes of training images, before they are measured.
    """

    def __init__(self, data: SiteData, scaler: Scaler, augmentation: Augmentation | None = None) -> None:
        super().__init__(data, scaler, augmentation)
        if data.undersampling is None:
            raise ValueError("it is not said which lines of k-space are measured")
        self._undersampling = data.undersampling
        self._seeds = case_seeds(data.inputs, data.undersampling.seed)
        self.augments = True

    @property
    def shape(self) -> tuple[int, ...]:
        """See `Dataset.shape`."""
        return (CHANNELS, *super().shape[1:])

    def units(self, index: Tensor) -> Tensor:
        """What a batch of these cases was divided by, float32 ``[B]``; without augmentation. Reconstructions times this
        are in the units of the prepared images; see `acquire`."""
        images = super()._own_batch(index, None, hints=False)[0].clamp_min(0.0).flatten(1).amax(1)
        scaled = self.batch(index)[1][:, 0].flatten(1).amax(1)
        return torch.where(scaled > 0, images / scaled, 1.0)

    def changed(self, *, inputs: Pixels | None = None, targets: Tensor | Volumes | None = None) -> Dataset:
        """Cases whose images are their targets can't have others of one of the two.

        Raises:
            ValueError: always.
        """
        raise ValueError("images to be reconstructed are not changed")

    def _chosen(self, index: Tensor, augment: int | None, hints: bool) -> tuple[Tensor, Tensor]:
        """Images as they are kept; what is made of them comes later."""
        inputs = self._inputs
        if isinstance(inputs, Bags):
            raise ValueError("the cases are bags")
        return inputs.index_select(0, index), torch.zeros(len(index))

    def _own_batch(self, index: Tensor, augment: int | None, hints: bool) -> tuple[Tensor, Tensor]:
        found = super()._own_batch(index, augment, hints)
        if self._sites:
            return found
        width, places = self.shape[-1], index.tolist()
        seeds = [self._seeds[place] for place in places]
        if augment is not None:
            seeds = [derive_seed("measured lines", augment, place) for place in range(len(places))]
        lines = [measured_lines(width, self._undersampling, seed) for seed in seeds]
        return acquire(found[0], torch.stack(lines))

    def _targets_like(self, *, boxes: bool) -> tuple[tuple[int, ...], torch.dtype]:
        return (2, *self.shape[1:]), torch.float32
