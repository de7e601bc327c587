"""Tables made in the test, opened as a study would open them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from polyclinic.data.open import open_data
from polyclinic.data.opening.cohort import Opened
from polyclinic.data.spec import DataSpec

BASE = {"table": "table.csv", "site": "site", "subject": "pid", "label": "y", "positive": 1, "features": "f*"}


@pytest.fixture
def opened(tmp_path: Path) -> Callable[..., Opened]:
    """``opened(frame, target=..., **entries)``: the frame written as CSV and opened."""

    def open_it(frame: pd.DataFrame, target: str = "labels", **entries: object) -> Opened:
        frame.to_csv(tmp_path / "table.csv", index=False)
        spec = DataSpec.model_validate({key: value for key, value in (BASE | entries).items() if value is not None})
        return open_data(spec, tmp_path, target)

    return open_it


@pytest.fixture
def noise() -> Callable[..., pd.DataFrame]:
    """``noise(sites, cases, features)``: rows of coin-flip labels and features without meaning."""

    def make(sites: str = "AB", cases: int = 40, features: int = 4, seed: int = 0) -> pd.DataFrame:
        rng = np.random.default_rng(seed)
        count = len(sites) * cases
        values = rng.normal(100, 10, (count, features)).round(3)
        frame = pd.DataFrame(values, columns=[f"f{place}" for place in range(features)])
        frame.insert(0, "site", np.repeat(list(sites), cases))
        frame.insert(1, "pid", [f"{site}{row % cases:03}" for row, site in enumerate(frame["site"])])
        frame.insert(2, "y", rng.permutation(np.arange(count) % 2))
        return frame

    return make
