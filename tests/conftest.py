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


#: The files that take longest, in the order in which they begin, so that what begins last is soon over. Those that
#: mostly wait for processes stand between those that need a core all the time.
FIRST = (
    "federation/test_between_kinds.py", "study/test_evidence.py", "federation/test_between_failures.py",
    "federation/test_faults.py", "federation/test_between_sums.py", "test_plugin_runs.py",
    "federation/test_certificates_between.py", "study/test_statistics.py", "federation/test_between.py",
    "test_pairs.py", "federation/test_first_consortium.py", "test_studies.py", "federation/test_running_parties.py",
    "federation/test_conduct.py", "study/test_runner.py", "study/test_phantom_studies.py", "test_methods.py",
    "test_engines.py", "test_rounds.py", "audit/test_poisoning.py", "study/test_survival.py", "study/test_report.py",
)  # fmt: skip

#: tests/processors.py repeats the numeric tests with two.
THREADS = int(os.environ.get("POLYCLINIC_TEST_THREADS", "1"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the longest files begin first; see ``make test``."""
    place = {ROOT / "tests" / name: number for number, name in enumerate(FIRST)}
    items.sort(key=lambda item: place.get(item.path, len(place)))


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
