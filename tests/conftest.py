"""Shared fixtures."""

import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]

# The first call into torch takes longer than hypothesis grants an example.
hypothesis.settings.register_profile("polyclinic", deadline=None)
hypothesis.settings.load_profile("polyclinic")


#: tests/processors.py repeats the numeric tests with two.
THREADS = int(os.environ.get("POLYCLINIC_TEST_THREADS", "1"))


@pytest.fixture(autouse=True)
def few_threads() -> Iterator[None]:
    """One arithmetic thread: tiny networks are fastest so, and a study that sets another number must not leak it."""
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(THREADS)


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Folder with the real multi-site data sets; tests that need it are skipped where it is missing."""
    folder = Path(os.environ.get("POLYCLINIC_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("set POLYCLINIC_DATA to the folder with the real data sets to run this test")
    return folder
