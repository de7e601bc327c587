"""The kind of dataset that fits a site's cases."""

from __future__ import annotations

from torch import Tensor

from polyclinic.data.augmentation import Augmentation
from polyclinic.data.bags import Bags
from polyclinic.data.cases import SiteData
from polyclinic.data.dataset import BagDataset, Dataset
from polyclinic.data.scaling import Scaler
from polyclinic.data.spec import Patch
from polyclinic.data.undersampled import UndersampledDataset


def dataset_of(
    data: SiteData, scaler: Scaler, augmentation: Augmentation | None = None, patch: Patch | None = None,
    standard: Tensor | None = None, most: int | None = None,
) -> Dataset:  # fmt: skip
    """The cases of a site; of bags at most so many instances at a time in training."""
    if isinstance(data.inputs, Bags):
        return BagDataset(data, scaler, augmentation, most)
    if data.undersampling is not None:
        return UndersampledDataset(data, scaler, augmentation)
    return Dataset(data, scaler, augmentation, patch, standard)
