"""Masks of pixels of which it is known only what they may be: inside of boxes, or wherever a structure is present."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from polyclinic.candidates import code_of
from polyclinic.data.readers.volume import UnreadableError
from polyclinic.data.tables.hints import Hint
from polyclinic.data.volumes.store import Volumes
from polyclinic.ignored import IGNORED

_Slices = tuple[slice, ...]


def draw_hint(hint: Hint, image: tuple[int, int], size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """The mask ``[H, W]`` that a hint gives, see `polyclinic.candidates`.

    Boxes are drawn in pixels of the image and brought to ``size`` just as masks are, so that what is in a box stays in
    it.

    Args:
        hint: what is known.
        image: width and height of the image as it is to be looked at.
        size: height and width of the mask.

    Raises:
        UnreadableError: a box reaches beyond the image, or has no pixel left.
    """
    width, height = image
    everywhere = code_of(hint.anywhere)
    found = np.full((height, width), everywhere, dtype=np.uint8)
    kept = _kept(height, size[0])[:, None], _kept(width, size[1])[None]
    for structure, left, top, right, bottom in hint.boxes:
        if min(left, top) < 0 or right > width or bottom > height:
            raise UnreadableError("box reaches beyond the image")
        box = slice(math.floor(top), math.ceil(bottom)), slice(math.floor(left), math.ceil(right))
        if any(not ((own.start <= places) & (places < own.stop)).any() for own, places in zip(box, kept, strict=True)):
            raise UnreadableError("box has no pixel left at this `size`")
        found[box] |= code_of([structure])
    return found[kept]


def _kept(side: int, size: int) -> npt.NDArray[np.int32]:
    """Which of the pixels along a side are left where masks are brought to another ``size``."""
    places = Image.fromarray(np.arange(side, dtype=np.int32)[None])
    kept: npt.NDArray[np.int32] = np.asarray(places.resize((size, 1), Image.Resampling.NEAREST))[0]
    return kept


class Hidden:
    """What is left of masks that a study hides: boxes around structures, or which there are.

    Args:
        masks: uint8 ``[N, 1, ...]`` of class indices.
        kind: ``box``, or ``label`` for which structures there are.
    """

    def __init__(self, masks: Tensor | Volumes, kind: str) -> None:
        self._masks, self._kind = masks, kind
        self._boxes = dict[int, list[tuple[int, _Slices]]]()

    def of(self, position: int, corner: Sequence[int], mask: Tensor) -> Tensor:
        """What is left of a part of a case's mask, uint8 ``[1, ...]``; what plays no part stays so.

        Args:
            position: of the case.
            corner: first pixel of the part along each axis.
            mask: the part ``[1, ...]``.
        """
        if position not in self._boxes:
            self._boxes[position] = _around(self._masks[position][0].numpy())
        found = torch.zeros_like(mask)
        for structure, box in self._boxes[position]:
            inside = [slice(max(one.start - first, 0), max(one.stop - first, 0))
                      for one, first in zip(box, corner, strict=True)]  # fmt: skip
            found[(slice(None), *inside) if self._kind == "box" else (slice(None),)] |= code_of([structure])
        return found.masked_fill(mask == IGNORED, IGNORED)


def _around(mask: npt.NDArray[np.uint8]) -> list[tuple[int, _Slices]]:
    """Each structure of a mask, and the box around all of it."""
    from scipy import ndimage

    boxes = ndimage.find_objects(np.where(mask == IGNORED, 0, mask))
    return [(structure, box) for structure, box in enumerate(boxes, start=1) if box is not None]
