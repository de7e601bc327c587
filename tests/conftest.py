"""Shared fixtures."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Folder with the real multi-site data sets; tests that need it are skipped where it is missing."""
    folder = Path(os.environ.get("POLYCLINIC_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("set POLYCLINIC_DATA to the folder with the real data sets to run this test")
    return folder
