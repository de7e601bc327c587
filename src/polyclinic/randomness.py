"""Global random generators, from which code of other libraries draws."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from polyclinic.seeds import derive_seed


@contextmanager
def kept_randomness(device: torch.device | None = None) -> Iterator[None]:
    """Afterwards the global random generators are as before: Python's, NumPy's, PyTorch's and that of ``device``."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[device] if device is not None and device.type == "cuda" else []):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


@contextmanager
def own_randomness(*names: str | int, device: torch.device | None = None) -> Iterator[None]:
    """Code of other libraries draws from global random generators: seed them by ``names``, and put them back."""
    with kept_randomness(device):
        seed = derive_seed(*names)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        yield
