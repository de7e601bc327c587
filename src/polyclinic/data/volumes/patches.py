"""Where to cut boxes from volumes for training.

MONAI's RandCropByPosNegLabel is given whole images; here the place is chosen first, so that only the box is read from
disk.
"""

from __future__ import annotations

import torch
from torch import Tensor

from polyclinic.data.spec import Patch
from polyclinic.data.volumes.store import Volumes
from polyclinic.seeds import generator

Corner = tuple[int, int, int]


def patch_corners(masks: Volumes, index: Tensor, patch: Patch, seed: int) -> list[Corner]:
    """First voxel of a random box in each of some cases.

    With probability ``patch.foreground`` the box's middle is a random voxel of a random class that the case has, moved
    where the box would stick out; else the box lies anywhere. Rare classes are thus seen as often as frequent ones.

    Args:
        masks: uint8 ``[N, 1, D, H, W]``.
        index: int64 ``[B]``.
        patch: size and share.
        seed: of this batch.
    """
    source = generator(seed, "patches")
    size, room = torch.tensor(patch.size), torch.tensor(masks.shape[2:]) - torch.tensor(patch.size)
    corners = []
    for position in index.tolist():
        on_foreground = float(torch.rand((), generator=source)) < patch.foreground
        counts = masks.about[position].get("labels", [])[1:]  # a case without a mask has none
        there = [number for number, count in enumerate(counts, start=1) if count]
        if on_foreground and there:
            wanted = there[int(torch.randint(len(there), (), generator=source))]
            flat = (masks[position][0] == wanted).flatten().nonzero().flatten()
            voxel = int(flat[int(torch.randint(len(flat), (), generator=source))])
            middle = torch.stack(torch.unravel_index(torch.tensor(voxel), tuple(masks.shape[2:])))
            corner = (middle - size // 2).clamp(min=torch.zeros(3, dtype=torch.int64), max=room)
        else:
            corner = (torch.rand(3, generator=source) * (room + 1)).long().minimum(room)
        first, second, third = corner.tolist()
        corners.append((first, second, third))
    return corners
