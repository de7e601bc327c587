"""PyTorch's global random generators, from which networks draw."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from polyclinic.seeds import derive_seed

#: The generators are those of all threads. Two that used them at a time would draw from each other's seeds; and PyTorch
#: stands still where one reads a generator's state while another waits for it and Python clears away tensors.
_LOCK = threading.RLock()


@contextmanager
def kept_randomness(device: torch.device | None = None) -> Iterator[None]:
    """Afterwards PyTorch's global random generators are as before, that of the processor and that of ``device``.

    Threads have them one after another.
    """
    with _LOCK, torch.random.fork_rng(devices=[device] if device is not None and device.type == "cuda" else []):
        yield


@contextmanager
def own_randomness(*names: str | int, device: torch.device | None = None) -> Iterator[None]:
    """Networks draw from PyTorch's global random generators: seed them by ``names``, and put them back afterwards.

    The generator of the processor and that of ``device`` give the numbers that they give after `torch.manual_seed`,
    which takes longer than a step of a small network. (No network of MONAI draws from Python or NumPy.)
    """
    with kept_randomness(device):
        seed = derive_seed(*names)
        torch.default_generator.manual_seed(seed)
        if device is not None and device.type == "cuda":
            number = torch.cuda.current_device() if device.index is None else device.index
            torch.cuda.default_generators[number].manual_seed(seed)
        elif device is not None and device.type == "mps":
            torch.mps.manual_seed(seed)
        yield
