"""Pictures with more than eight bits: their levels are kept, alike in all pictures of a site."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from polyclinic.data.readers.volume import UnreadableError
from polyclinic.notes import Note

#: Cameras, scanners and detectors give so many bits.
DEPTHS = (8, 10, 12, 14, 16)
#: A picture whose brightest pixel is by this factor below white looks black.
_DARK = 8
#: Of 16 bits a colour the upper 8 are left; below this, the picture held 14 bits or fewer.
_HIGH_BYTE_ONLY = 64
#: TIFF's tag.
_BITS_PER_SAMPLE = 258


@dataclass
class DeepPictures:
    """The pictures of a site with 16-bit grey values, on their way to bytes.

    Attributes:
        bits: how many bits white has; None: what the brightest pixel of all of them needs.
        complete: whether all of them come here, so that the brightest is known; else ``bits`` is needed.
        pictures: position of the case -> float32 ``[H, W]``, in the final size.
        highest: position of the case -> the largest value of the picture as it was read.
    """

    bits: int | None = None
    complete: bool = True
    pictures: dict[int, npt.NDArray[np.float32]] = field(default_factory=dict)
    highest: dict[int, int] = field(default_factory=dict)

    def add(self, position: int, picture: Image.Image, size: tuple[int, int]) -> None:
        """Take in a picture, resized to ``size`` (width, height).

        Raises:
            UnreadableError: its pixels are no numbers from 0 to 65535, or nothing tells which of them is white.
        """
        if self.bits is None and not self.complete:
            raise UnreadableError("image file has 16-bit pixels, and the study says with no `bits` what is white")
        values = np.asarray(picture)
        if picture.mode == "F" or values.max() > 65535:
            raise UnreadableError("image file has 32-bit pixels")
        if values.min() < 0:
            raise UnreadableError("image file has negative pixels")
        floats = Image.fromarray(values.astype(np.float32))
        self.pictures[position] = np.asarray(floats.resize(size, Image.Resampling.BILINEAR))
        self.highest[position] = int(values.max())

    def drop(self, position: int) -> None:
        """Forget a picture: its case can't be used."""
        self.pictures.pop(position, None)
        self.highest.pop(position, None)

    @property
    def depth(self) -> int:
        """How many bits white has."""
        top = max(self.highest.values(), default=0)
        return self.bits or next(bits for bits in DEPTHS if top < 1 << bits)

    def to_bytes(self) -> dict[int, npt.NDArray[np.uint8]]:
        """All pictures with the same white, uint8 ``[H, W]``."""
        # With all 16 bits, levels are cut off (bilinear weights are rounded: a hair below a level is that level).
        up = 1e-3 if self.depth == 16 else 0.5
        factor = 255.0 / ((1 << self.depth) - 1)
        return {
            position: np.clip(np.floor(values * factor + up), 0, 255).astype(np.uint8)
            for position, values in self.pictures.items()
        }

    def notes(self, site: str, cases: Sequence[str]) -> list[Note]:
        """What a person should know of these pictures.

        Args:
            site: the site's name.
            cases: name of the case at each position.
        """
        white = (1 << self.depth) - 1
        notes: list[Note] = []

        def tell(number: str, wanted: Callable[[int], bool], text: str) -> None:
            chosen = [cases[position] for position, top in sorted(self.highest.items()) if wanted(top)]
            if chosen:
                count = f"{len(chosen)} of {len(self.highest)} pictures of 16 bits"
                notes.append(Note(number, f"Site {site}: {count} {text}", chosen))

        if self.bits is None and self.depth < 16:
            tell("N419", lambda top: True, f"hold {self.depth} bits: {white} is white. Say `bits: {self.depth}`.")
        tell("N420", lambda top: 0 < top < white / _DARK,
             f"are almost black, because {white} is white: if they hold fewer bits, say `bits`.")  # fmt: skip
        tell("N420", lambda top: top > white, f"have values above `bits`, which become white ({white}).")
        return notes


def is_deep(picture: Image.Image) -> bool:
    """Whether a picture has one channel of more than eight bits."""
    return picture.mode == "F" or picture.mode.startswith("I")


def check_bits(picture: Image.Image, path: Path, kind: str) -> None:
    """Stop where Pillow gives other values than the file has.

    It cuts 16 bits a colour to 8, and what counts may have been in the lower ones; and of a BMP file with two colours
    it takes eight pixels for one byte, whatever the file says.

    Raises:
        UnreadableError: it is such a BMP, a mask of 16 bits a colour, or a picture of them with at most 14 bits.
    """
    if picture.format == "BMP" and picture.mode == "1" and _bytes_at(path, 28, 2) != b"\x01\x00":
        raise UnreadableError(f"{kind} file is a BMP of two colours that can't be read: save it as PNG")
    if picture.mode not in ("RGB", "RGBA", "LA") or not _sixteen_bits(picture, path):
        return
    if kind == "mask":
        raise UnreadableError("mask has 16 bits a colour: save it with one number a pixel")
    colours = np.asarray(picture)[..., : 3 if picture.mode.startswith("RGB") else 1]
    if colours.max() < _HIGH_BYTE_ONLY:
        raise UnreadableError("image file has 16 bits a colour of which the upper ones are empty: save it with 8 bits")


def _sixteen_bits(picture: Image.Image, path: Path) -> bool:
    if picture.format == "PNG":
        return _bytes_at(path, 24, 1) == b"\x10"
    tags = getattr(picture, "tag_v2", {})
    return 16 in tags.get(_BITS_PER_SAMPLE, ())


def _bytes_at(path: Path, start: int, count: int) -> bytes:
    with path.open("rb") as file:
        file.seek(start)
        return file.read(count)


def too_large(error: Exception, kind: str) -> str:
    """The reason where a picture has more pixels than Pillow decodes."""
    limit = (Image.MAX_IMAGE_PIXELS or 0) * 2 // 10**6
    count = re.search(r"\((\d+) pixels\)", str(error))
    has = f"{float(f'{int(count[1]):.2g}') / 1e6:,.0f}" if count else f"more than {limit}"
    size = f"{has} million pixels, and up to {limit} are read"
    return f"{kind} file is too large ({size}): make a smaller copy or cut it into tiles"
