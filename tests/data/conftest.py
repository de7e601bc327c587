"""Small sites and tables for the tests of this folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch
from PIL import Image

from polyclinic.data.cases import Counts, SiteData

# The first call into torch takes longer than hypothesis grants an example.
hypothesis.settings.register_profile("polyclinic", deadline=None)
hypothesis.settings.load_profile("polyclinic")


@pytest.fixture(scope="session")
def make_site() -> Callable[..., SiteData]:
    """A table site: ``make_site(labels, subjects=..., site=..., inputs=..., parts=...)``."""

    def make(
        labels: list[int],
        subjects: list[str] | None = None,
        *,
        site: str = "A",
        inputs: torch.Tensor | None = None,
        parts: list[str] | None = None,
    ) -> SiteData:
        count = len(labels)
        subjects = [f"p{i:03}" for i in range(count)] if subjects is None else subjects
        inputs = torch.arange(count, dtype=torch.float32)[:, None] if inputs is None else inputs
        cases = [f"row {i + 1}" for i in range(count)]
        return SiteData(site, inputs, torch.tensor(labels), subjects, cases, parts, Counts(count, count))

    return make


@pytest.fixture
def write_table(tmp_path: Path) -> Callable[..., Path]:
    """Write a text as a table file and return its folder."""

    def write(text: str, name: str = "table.csv") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return tmp_path

    return write


@pytest.fixture
def write_image(tmp_path: Path) -> Callable[..., None]:
    """Save an array as an image file in the study's folder."""

    def write(name: str, pixels: np.ndarray, **options: object) -> None:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, **options)

    return write
