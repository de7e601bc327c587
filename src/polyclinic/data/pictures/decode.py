"""Image files as compact arrays, decoded once."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from polyclinic.data.masks.classes import MaskClasses, MaskFacts, vanished
from polyclinic.data.masks.hinted import draw_hint
from polyclinic.data.masks.pictures import is_lossy, read_mask
from polyclinic.data.pictures.depth import DeepPictures, check_bits, is_deep, too_large
from polyclinic.data.pictures.dicom import is_scan, open_scan
from polyclinic.data.readers.files import FORMATS, open_picture, resolve
from polyclinic.data.readers.volume import UnreadableError
from polyclinic.data.tables.hints import Hint
from polyclinic.ignored import IGNORED
from polyclinic.notes import Note

logger = logging.getLogger(__name__)

_MOST_THREADS = 4
_ORIENTATION = 0x0112  # EXIF


@dataclass(frozen=True)
class ImageFiles:
    """Where the images of a site are.

    Attributes:
        images: path of each case's image as the table has it.
        masks: path of each case's mask (None for a case without one), or None for classification.
        roots: for each case, the folder to which its paths are relative.
        allowed: folders, besides a case's own root, under which a file may lie.
        hints: what is known of each mask that is not there (None for nothing), or None where nothing is of any.
    """

    images: Sequence[str]
    masks: Sequence[str | None] | None
    roots: Sequence[Path]
    allowed: Sequence[Path] = ()
    hints: Sequence[Hint | None] | None = None

    def __len__(self) -> int:
        return len(self.images)


@dataclass
class Seen:
    """What was seen while pictures were decoded.

    Attributes:
        masks: position of the case -> its mask.
        deep: pictures with 16-bit grey values.
        notes: what a person should know.
    """

    masks: dict[int, MaskFacts] = field(default_factory=dict)
    deep: DeepPictures = field(default_factory=DeepPictures)
    notes: list[Note] = field(default_factory=list)

    @property
    def mask_facts(self) -> list[MaskFacts] | None:
        """Masks of the cases that can be used, in order; None without masks."""
        return [self.masks[position] for position in sorted(self.masks)] or None


def decode_images(
    files: ImageFiles,
    size: tuple[int, int],
    channels: Literal["rgb", "grey"],
    done: Callable[[], None] = lambda: None,
    classes: MaskClasses = MaskClasses(),  # noqa: B008 - frozen
    seen: Seen | None = None,
) -> tuple[Tensor, Tensor | None, dict[int, str]]:
    """Decode all images, in a few threads, and bring them to one size.

    Images are turned upright by their EXIF orientation and resized bilinearly with antialiasing; 16-bit grey images are
    brought to 8 bits, with as many bits for white as the brightest of them needs, see `DeepPictures`. Masks are resized
    by nearest neighbour; see `read_mask`.

    Args:
        files: where the images are.
        size: height and width in pixels.
        channels: ``rgb`` (3 channels) or ``grey`` (1 channel).
        done: called after each case, in the calling thread.
        classes: which values of a mask are which structure.
        seen: is given what was seen.

    Returns:
        uint8 images ``[N, C, H, W]``, uint8 masks ``[N, 1, H, W]`` of class indices (None without masks; of a case
        without one what is known of it, or ``IGNORED`` everywhere), and the position of each case that can't be used
        with the reason; its pixels are undefined.
    """
    images = np.zeros((len(files), 3 if channels == "rgb" else 1, *size), dtype=np.uint8)
    masks = None if files.masks is None else np.zeros((len(files), 1, *size), dtype=np.uint8)

    seen = Seen() if seen is None else seen

    def decode(position: int) -> str:
        try:
            _decode_case(files, position, images[position], None if masks is None else masks[position], classes, seen)
        except UnreadableError as error:
            return str(error)
        return ""

    failures: dict[int, str] = {}
    with ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1)) as threads:
        for position, reason in enumerate(threads.map(decode, range(len(files)))):
            if reason:
                failures[position] = reason
                seen.deep.drop(position)
                seen.masks.pop(position, None)
            done()
    for position, picture in seen.deep.to_bytes().items():
        images[position] = picture
    seen.deep.pictures.clear()
    return torch.from_numpy(images), None if masks is None else torch.from_numpy(masks), failures


def _decode_case(
    files: ImageFiles,
    position: int,
    image_out: npt.NDArray[np.uint8],
    mask_out: npt.NDArray[np.uint8] | None,
    classes: MaskClasses,
    seen: Seen,
) -> None:
    root = files.roots[position]
    image, turned = upright(files.images[position], root, files.allowed, "image")
    with image:
        full_size = image.size
        if is_deep(image):
            seen.deep.add(position, image, _width_height(image_out))
        else:
            eight_bits = image.convert("RGB" if len(image_out) == 3 else "L")
            pixels = np.asarray(eight_bits.resize(_width_height(image_out), Image.Resampling.BILINEAR))
            image_out[...] = pixels.transpose(2, 0, 1) if pixels.ndim == 3 else pixels
    if files.masks is None or mask_out is None:
        return
    name = files.masks[position]
    if name is None:
        hint = None if files.hints is None else files.hints[position]
        mask_out[...] = IGNORED if hint is None else draw_hint(hint, full_size, mask_out.shape[1:])
        return
    mask, mask_turned = upright(name, root, files.allowed, "mask")
    with mask:
        if mask.size != full_size:
            raise UnreadableError("mask and image differ in size")
        try:
            found, facts = read_mask(mask, classes, lossy=is_lossy(mask))
        except UnreadableError as error:
            logger.debug("%s: %s", error, name)
            raise
        indices = Image.fromarray(found).resize(_width_height(mask_out), Image.Resampling.NEAREST)
        mask_out[...] = np.asarray(indices)
        turned_alone = "exif" if turned != mask_turned else ""
        seen.masks[position] = replace(facts, turned=turned_alone, vanished=vanished(found, mask_out))
        if (mask_out == IGNORED).all():
            raise UnreadableError("mask leaves out everything (`ignore`)")


def upright(name: str, root: Path, allowed: Sequence[Path], kind: Literal["image", "mask"]) -> tuple[Image.Image, int]:
    """The picture as it is to be looked at, and the EXIF orientation that it had (1: upright already).

    Args:
        name: path as the table has it.
        root: folder to which it is relative.
        allowed: other folders in which the file may lie.
        kind: what it is, for the reason.

    Raises:
        UnreadableError: it can't be read, and why.
    """
    path = resolve(name, root, allowed)
    if path is None:
        logger.debug("%s outside the image folder: %s", kind, name)
        raise UnreadableError(f"{kind} path lies outside the image folder")
    try:
        image = open_scan(path, kind) if is_scan(path) else open_picture(path)
        # Cameras append previews to a JPEG (format MPO); its first frame is the picture.
        if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
            raise UnreadableError(f"{kind} file has several frames")
        turned = image.getexif().get(_ORIENTATION, 1)  # a TIFF file no longer says so once it is loaded, and turned
        image.load()
        check_bits(image, path, kind)
        ImageOps.exif_transpose(image, in_place=True)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        logger.debug("%s file missing: %s", kind, name)
        raise UnreadableError(f"{kind} file is missing") from None
    except PermissionError:
        logger.debug("%s file may not be read: %s", kind, name)
        raise UnreadableError(f"{kind} file may not be read") from None
    except UnidentifiedImageError:
        logger.debug("%s file of an unknown format: %s", kind, name)
        raise UnreadableError(f"{kind} file is no {', '.join(FORMATS[:-1])} or {FORMATS[-1]}") from None
    except UnreadableError as error:
        logger.debug("%s: %s", error, name)
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        logger.debug("%s file too large: %s", kind, name)
        raise UnreadableError(too_large(error, kind)) from None
    except MemoryError:
        logger.debug("%s file too large: %s", kind, name)
        raise UnreadableError(f"{kind} file is too large for the memory") from None
    except Exception as error:  # Pillow's decoders raise many types on damaged files
        logger.debug("%s file damaged: %s (%s)", kind, name, error)
        raise UnreadableError(f"{kind} file is damaged") from None
    return image, turned if turned in range(2, 9) else 1


def upright_size(name: str, root: Path, allowed: Sequence[Path] = ()) -> tuple[int, int]:
    """Height and width of a picture as it is to be looked at.

    Raises:
        UnreadableError: it can't be read, and why.
    """
    image, _ = upright(name, root, allowed, "image")
    with image:
        return image.height, image.width


def _width_height(out: npt.NDArray[np.uint8]) -> tuple[int, int]:
    return out.shape[2], out.shape[1]
