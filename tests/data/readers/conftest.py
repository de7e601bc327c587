"""Makers of DICOM series, as fixtures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from pydicom.dataset import FileDataset
from pydicom.uid import CTImageStorage

from dicom_files import BIRTH, NUMBER, make_dataset, write_dicom, write_enhanced, write_stack


@pytest.fixture(scope="session")
def dicom() -> Callable[..., Path]:
    """``write_dicom``."""
    return write_dicom


@pytest.fixture(scope="session")
def stack() -> Callable[..., list[Path]]:
    """``write_stack``."""
    return write_stack


@pytest.fixture(scope="session")
def enhanced() -> Callable[..., Path]:
    """``write_enhanced``."""
    return write_enhanced


@pytest.fixture(scope="session")
def ct() -> dict[str, object]:
    """Elements of a CT slice."""
    hounsfield = {"RescaleSlope": "1", "RescaleIntercept": "0"}
    return {"SOPClassUID": CTImageStorage, "Modality": "CT", "MagneticFieldStrength": None, **hounsfield}


@pytest.fixture(scope="session")
def patient() -> tuple[str, ...]:
    """Texts that no output may hold."""
    return "Quixote", "Alonso", NUMBER, "7731902", BIRTH


@pytest.fixture(scope="session")
def dataset() -> Callable[..., FileDataset]:
    """``make_dataset``."""
    return make_dataset
