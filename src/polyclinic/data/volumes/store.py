"""Volumes that stay on disk and are read when they are used."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from numpy.lib.format import open_memmap
from torch import Tensor


class Volumes:
    """The volumes of some cases, ``[N, C, D, H, W]``, each a NumPy file that is mapped into memory.

    What the operating system has read stays in memory as long as there is room, so a data set may be larger than that.
    It stands in for a tensor where cases are chosen (``index_select``, indexing) and described (``shape``, ``ndim``).

    Attributes:
        files: one ``.npy`` file a case, ``[C, D, H, W]``.
        about: what was found while the case was prepared, one record a case (see `preprocessing`).
    """

    def __init__(self, files: Sequence[Path], about: Sequence[dict[str, Any]]) -> None:
        if not files:
            raise ValueError("no volumes")
        self.files, self.about = list(files), list(about)
        self._maps: list[npt.NDArray[np.generic] | None] = [None] * len(self.files)
        first = self._map(0)
        self.shape = torch.Size((len(self.files), *first.shape))
        self.dtype = torch.from_numpy(first).dtype
        self.ndim = len(self.shape)

    def __len__(self) -> int:
        return len(self.files)

    def dim(self) -> int:
        """Number of axes, 5."""
        return self.ndim

    def __getitem__(self, position: int) -> Tensor:
        """One case ``[C, D, H, W]``, mapped from disk; not to be written to."""
        return torch.from_numpy(self._map(position))

    def index_select(self, axis: int, index: Tensor) -> Tensor:
        """The cases ``index [B]`` as a tensor of its own ``[B, C, D, H, W]``."""
        if axis != 0:
            raise ValueError("volumes are chosen by case, axis 0")
        return self.crop(index, [(0, 0, 0)] * len(index), tuple(self.shape[2:]))

    def crop(
        self, index: Tensor, corners: Sequence[Sequence[int]], size: Sequence[int], dtype: torch.dtype | None = None
    ) -> Tensor:
        """A box of each of some cases; nothing else is read from disk.

        Args:
            index: int64 ``[B]``.
            corners: first voxel of each box, B times (D, H, W).
            size: of all boxes; they lie within the volumes.
            dtype: type of the result, to which values are converted while they are copied; default: that of the files.

        Returns:
            ``[B, C, *size]``.
        """
        found = torch.empty(len(index), self.shape[1], *size, dtype=dtype or self.dtype)
        for row, (position, corner) in enumerate(zip(index.tolist(), corners, strict=True)):
            box = tuple(slice(start, start + side) for start, side in zip(corner, size, strict=True))
            found[row] = self[position][(slice(None), *box)]
        return found

    def _map(self, position: int) -> npt.NDArray[np.generic]:
        mapped = self._maps[position]
        if mapped is None:
            # Copy on write: PyTorch wants arrays that could be written to.
            mapped = self._maps[position] = open_memmap(self.files[position], mode="c")
        return mapped


def concatenate(parts: Sequence[Tensor | Volumes]) -> Tensor | Volumes:
    """The cases of several sites, one site after another; volumes are not copied."""
    volumes = [part for part in parts if isinstance(part, Volumes)]
    if not volumes:
        return torch.cat([part for part in parts if isinstance(part, Tensor)])
    return Volumes([f for part in volumes for f in part.files], [a for part in volumes for a in part.about])
