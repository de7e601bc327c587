"""Randomness as a function of names, so that the same study gives the same bytes wherever it runs."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derive_seed(*names: str | int) -> int:
    """A seed in ``[0, 2**63)`` that depends on all ``names`` and on nothing else.

    >>> derive_seed(0, "train", "site A", 3) == derive_seed(0, "train", "site A", 3)
    True
    """
    text = "\x1f".join(f"{type(name).__name__}:{name}" for name in names)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def generator(*names: str | int) -> torch.Generator:
    """A CPU random generator seeded by ``derive_seed(*names)``."""
    return torch.Generator().manual_seed(derive_seed(*names))


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
