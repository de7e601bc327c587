"""What all pages show pictures with: pictures as data, and the colours of outlines."""

from __future__ import annotations

import base64
import io

import numpy as np
from numpy.typing import NDArray

#: Colours of the outlines of several structures, told apart on grey: Okabe-Ito without black and grey, brightened.
STRUCTURE_COLOURS = ("#56D3FF", "#FFB000", "#3DF0B0", "#FF7AC6", "#F7F052", "#FF6B3D", "#B7A6FF")


def structure_colour(index: int) -> str:
    """Colour of a structure's outlines, by its position in the study; seven differ, then they come again."""
    return STRUCTURE_COLOURS[index % len(STRUCTURE_COLOURS)]


def edge_length(mask: NDArray[np.uint8]) -> int:
    """Length of the outline of a mask ``[H, W]``, in sides of pixels."""
    inside = mask > 0
    return int((inside[1:] != inside[:-1]).sum() + (inside[:, 1:] != inside[:, :-1]).sum())


def jpeg(pixels: NDArray[np.uint8], quality: int = 85) -> str:
    """A picture ``[H, W, 3]`` or ``[H, W]`` as a data URI."""
    return _data(pixels, "jpeg", quality=quality, subsampling=0)


def png(pixels: NDArray[np.uint8]) -> str:
    """A picture ``[H, W, 3 or 4]`` as a data URI, without loss."""
    return _data(pixels, "png", compress_level=3)


def _data(pixels: NDArray[np.uint8], kind: str, **options: int) -> str:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind.upper(), **options)
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"
