"""Pixels of which it is known only which classes they may be of: inside a box, or where nobody looked for a structure.

In masks, which hold class indices, such a pixel has a number of its own: 128, and 1, 2, 4, ... for each of the
structures 1, 2, 3, ... that it may be of, if it is not background. ``IGNORED`` says that nothing is known.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from polyclinic.ignored import IGNORED

#: The structures that there are numbers for. Masks with more have class indices where these numbers would be.
MOST_CANDIDATES = 6
_FIRST = 128


def code_of(structures: Iterable[int]) -> int:
    """The number of a pixel that is background or of one of these structures.

    >>> code_of([1, 3]), code_of([])
    (133, 0)
    """
    bits = sum({1 << (structure - 1) for structure in structures})
    return _FIRST + bits if bits else 0


def common_code(hints: Tensor) -> int:
    """The number of a pixel of which just that is known which is known of all of these.

    >>> [common_code(torch.tensor(hints)) for hints in ([129, 131, 255], [129, 130], [255])]
    [129, 0, 255]

    Args:
        hints: the numbers above, 0 and ``IGNORED``, which are no other classes.
    """
    found = int(np.bitwise_and.reduce(hints.numpy(), axis=None))  # of `IGNORED` all bits are set
    return found if found > _FIRST else 0


def undecided(targets: Tensor, classes: int) -> Tensor:
    """Where more than one class is possible, and not all of them: bool, in the shape of ``targets``.

    Args:
        targets: class indices and the numbers above.
        classes: number of classes, the background among them.
    """
    if classes > MOST_CANDIDATES + 1:
        return torch.zeros_like(targets, dtype=torch.bool)
    return (targets >= _FIRST) & (targets != IGNORED)


def without(targets: Tensor, structure: int) -> Tensor:
    """The numbers of pixels of which it is known besides that they are not of a structure.

    >>> without(torch.tensor([128 + 1, 128 + 1 + 4], dtype=torch.uint8), 1).tolist() == [0, 128 + 4]
    True

    Args:
        targets: the numbers above, uint8.
        structure: 1 for the first.
    """
    left = targets & (IGNORED ^ (1 << (structure - 1)))
    return left.masked_fill(left == _FIRST, 0)


def possible(targets: Tensor, classes: int) -> Tensor:
    """Which classes each pixel may be of: bool ``[B, C, ...]``.

    Args:
        targets: class indices and the numbers above, uint8 ``[B, 1, ...]``.
        classes: C, the background among them.
    """
    table = torch.eye(256, classes, dtype=torch.bool)
    table[IGNORED] = True
    if classes <= MOST_CANDIDATES + 1:
        for bits in range(1, 1 << (classes - 1)):
            structures = [number for number in range(1, classes) if bits >> (number - 1) & 1]
            table[code_of(structures), [0, *structures]] = True
    return table.to(targets.device)[targets[:, 0].long()].movedim(-1, 1)
