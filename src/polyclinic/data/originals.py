"""Images as they lie on disk, and their masks, beside what was prepared of them: read again, one case at a time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from polyclinic.data.masks.classes import MaskClasses
from polyclinic.data.pictures.own_space import PictureSpace
from polyclinic.data.readers.files import resolve
from polyclinic.data.readers.read import place_and_series, read_volume
from polyclinic.data.readers.volume import UnreadableError
from polyclinic.data.spec import DataSpec
from polyclinic.data.volumes.cache import source_files
from polyclinic.data.volumes.own_space import VolumeSpace

Floats = npt.NDArray[np.float32]
Indices = npt.NDArray[np.uint8]
#: Sizes of the files, and when they were written.
Stamp = tuple[tuple[int, int], ...]


class Compared(NamedTuple):
    """A predicted mask and the reference, in the space of the image.

    Attributes:
        predicted, reference: uint8 class indices ``[X, Y, Z]`` or ``[H, W]``, in the order of the image's voxels.
        spacing: sizes of a voxel along these axes in millimetres; None where they are not known.
    """

    predicted: Indices
    reference: Indices
    spacing: tuple[float, ...] | None


@dataclass(frozen=True)
class Original:
    """Where the first image of a case lies, and its mask.

    Attributes:
        image: its cell.
        mask: that of the mask; None for a case without one.
        root: folder to which both are relative.
        allowed: other folders in which the files may lie.
        spec: how they are read and prepared.
        stamp: of the files when the case was opened.
    """

    image: str
    mask: str | None
    root: Path
    allowed: tuple[Path, ...]
    spec: DataSpec
    stamp: Stamp = ()

    @classmethod
    def opened(cls, image: str, mask: str | None, root: Path, allowed: Sequence[Path], spec: DataSpec) -> Original:
        """A case that was just opened."""
        made = cls(image, mask, root, tuple(allowed), spec)
        return cls(image, mask, root, tuple(allowed), spec, made._stamp())

    def space(self) -> VolumeSpace | PictureSpace:
        """The image's own voxels, and how to get there.

        Raises:
            UnreadableError: it can't be read, and why.
        """
        if self.spec.preprocessing is None:
            return PictureSpace.of(self.image, self.root, self.allowed)
        return VolumeSpace.of(read_volume(self.image, self.root, self.allowed), self.spec.preprocessing)

    def compared(self, probabilities: Floats, threshold: float) -> Compared:
        """What was predicted and what is true, in the space of the image.

        Args:
            probabilities: ``[C, ...]`` of the prepared case.
            threshold: of the foreground, where there is one structure.

        Raises:
            UnreadableError: the files can't be read any more, or are others than when the case was opened.
        """
        if self.mask is None:
            raise UnreadableError("case has no mask")
        if self._stamp() != self.stamp:
            raise UnreadableError("files have changed since they were opened")
        space, classes = self.space(), MaskClasses.of(self.spec)
        if isinstance(space, PictureSpace):
            reference = space.reference(self.mask, self.root, self.allowed, classes)
        else:
            mask = read_volume(self.mask, self.root, self.allowed)
            reference = space.reference(mask, classes.encode, self.spec.mask_meaning.grid)
        return Compared(space.decided(probabilities, threshold), reference, space.spacing)

    def _stamp(self) -> Stamp:
        cells = [self.image, *([] if self.mask is None else [self.mask])]
        paths = [resolve(cell, self.root, self.allowed) for cell in cells]
        found = [source_files(place_and_series(path)[0]) if path is not None else [] for path in paths]
        try:
            told = [file.stat() for files in found for file in files]
        except OSError:
            return ()
        return tuple((one.st_size, one.st_mtime_ns) for one in told)


def originals_sent(originals: Sequence[Original] | None) -> dict[str, Any] | None:
    """As JSON values, for another process of this machine; the specification, which all share, is there once."""
    if not originals:
        return None
    cases = [[one.image, one.mask, str(one.root), list(map(str, one.allowed)), one.stamp] for one in originals]
    return {"spec": originals[0].spec.model_dump(mode="json"), "cases": cases}


def originals_received(sent: Mapping[str, Any] | None) -> list[Original] | None:
    """What ``originals_sent`` gave."""
    if sent is None:
        return None
    spec = DataSpec.model_validate(sent["spec"])
    return [
        Original(image, mask, Path(root), tuple(map(Path, allowed)), spec, tuple((size, time) for size, time in stamp))
        for image, mask, root, allowed, stamp in sent["cases"]
    ]


def joined(parts: Iterable[Sequence[Original] | None]) -> list[Original] | None:
    """Those of several sites, one site after another; None where one has none."""
    found = list(parts)
    return None if any(part is None for part in found) else [one for part in found for one in part or ()]
