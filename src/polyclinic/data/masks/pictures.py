"""Masks in PNG, JPEG and other pictures: which of their numbers or colours count."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from polyclinic.data.masks.classes import MaskClasses, MaskFacts
from polyclinic.data.readers.volume import UnreadableError

Found = tuple[npt.NDArray[np.uint8], MaskFacts]

_WITH_ALPHA = ("LA", "La", "RGBA", "RGBa")
_NUMBERS = ("1", "L", "I", "F")


def is_lossy(picture: Image.Image) -> bool:
    """Whether the file's format changes values."""
    return picture.format in ("JPEG", "MPO") or picture.info.get("compression") in ("jpeg", "tiff_jpeg")


def read_mask(picture: Image.Image, classes: MaskClasses, *, lossy: bool = False) -> Found:
    """Class indices ``[H, W]`` of a mask, and what was seen.

    Grey values count as they are, colours as colours: black is the background. Of a picture with a palette the colours
    count too, unless the study says what numbers mean (``mask_classes`` with numbers, ``above``, ...): then the numbers
    of the palette do. Where only the transparency differs, it is the mask.

    Args:
        picture: decoded.
        classes: which values are which structure.
        lossy: whether the file's format changes values (JPEG).

    Raises:
        UnreadableError: it can't be told, or the values are not those of a mask; see `MaskClasses.read`.
    """
    if picture.mode not in ("P", "PA"):
        return _by_colour(picture, classes, lossy=lossy)
    if classes.palette == "colour" or not (classes.numbered or classes.palette == "index"):
        return _by_colour(_without_palette(picture), classes, lossy=lossy)
    numbers = np.asarray(picture) if picture.mode == "P" else np.asarray(picture)[..., 0]
    found = classes.read(numbers, lossy=lossy)
    if classes.palette is None and not _agrees(picture, classes, found[0]):
        raise UnreadableError(
            "mask has a palette whose numbers are not its grey values: say `mask: {palette: index}` if numbers count, "
            "or `colour`"
        )
    return found


def _agrees(picture: Image.Image, classes: MaskClasses, found: npt.NDArray[np.uint8]) -> bool:
    """Whether a grey palette gives the same mask by grey values; with colours there is but one way."""
    colours = np.asarray(picture.convert("RGB"))
    if (colours != colours[..., :1]).any():
        return True
    try:
        return bool(np.array_equal(classes.read(colours[..., 0])[0], found))
    except UnreadableError:
        return False


def _without_palette(picture: Image.Image) -> Image.Image:
    return picture.convert("RGBA" if picture.mode == "PA" or "transparency" in picture.info else "RGB")


def _by_colour(picture: Image.Image, classes: MaskClasses, *, lossy: bool) -> Found:
    channels, alpha = _channels(picture)
    grey = channels.shape[2] == 1 or not (channels != channels[..., :1]).any()
    if classes.colours:
        values, coloured = _packed(channels), True
    elif grey:
        values, coloured = channels[..., 0], False
    elif classes.numbered:
        raise UnreadableError("mask has colours, not one value for each structure")
    else:
        values, coloured = _packed(channels), True
    indices, facts = classes.read(values, coloured=coloured, lossy=lossy)
    return indices, replace(facts, alpha=alpha)


def _channels(picture: Image.Image) -> tuple[npt.NDArray[Any], str]:
    """The channels that count ``[H, W, C]``, and what part transparency has; see `MaskFacts`."""
    if picture.mode in _WITH_ALPHA:
        values = np.asarray(picture.convert("RGBA" if picture.mode.startswith("RGB") else "LA"))
        colours, alpha = values[..., :-1], values[..., -1]
        if alpha.min() == alpha.max():
            return colours, ""
        if (colours == colours[:1, :1]).all():
            return alpha[..., None], "only"
        hidden = ((alpha == 0)[..., None] & (colours != 0)).any()
        return np.where((alpha == 0)[..., None], np.uint8(0), colours), "hidden" if hidden else ""
    if picture.mode in _NUMBERS or picture.mode.startswith("I;16"):
        return np.asarray(picture)[..., None], ""
    return np.asarray(picture.convert("RGB")), ""


def _packed(channels: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Colours as numbers ``0xRRGGBB``.

    Raises:
        UnreadableError: the picture has more than eight bits a colour.
    """
    numbers = np.broadcast_to(channels, (*channels.shape[:2], 3))
    if numbers.dtype == np.bool_:
        numbers = numbers * np.uint8(255)
    if numbers.dtype != np.uint8:
        raise UnreadableError("mask has more than 8 bits, and the study names colours")
    red, green, blue = np.moveaxis(numbers.astype(np.int64), 2, 0)
    packed: npt.NDArray[np.int64] = (red << 16) + (green << 8) + blue
    return packed
