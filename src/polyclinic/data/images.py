"""Image files as compact arrays, decoded once."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from polyclinic.data.dicom_pictures import is_scan, open_scan
from polyclinic.data.masks import MaskClasses
from polyclinic.data.readers.volume import UnreadableError

logger = logging.getLogger(__name__)

#: Other formats of Pillow are left out: some of them run outside programs on the file.
FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF")
_MOST_THREADS = 4


@dataclass(frozen=True)
class ImageFiles:
    """Where the images of a site are.

    Attributes:
        images: path of each case's image as the table has it.
        masks: path of each case's mask, or None for classification.
        roots: for each case, the folder to which its paths are relative.
        allowed: folders, besides a case's own root, under which a file may lie.
    """

    images: Sequence[str]
    masks: Sequence[str] | None
    roots: Sequence[Path]
    allowed: Sequence[Path] = ()

    def __len__(self) -> int:
        return len(self.images)


def decode_images(
    files: ImageFiles,
    size: tuple[int, int],
    channels: Literal["rgb", "grey"],
    done: Callable[[], None] = lambda: None,
    classes: MaskClasses = MaskClasses(),  # noqa: B008 - frozen
) -> tuple[Tensor, Tensor | None, dict[int, str]]:
    """Decode all images, in a few threads, and bring them to one size.

    Images are turned upright by their EXIF orientation and resized bilinearly with antialiasing; 16-bit grey images are
    brought to 8 bits over the whole 16-bit range (65535 becomes 255). Masks are resized by nearest neighbour; what is
    not zero is foreground unless ``classes`` says otherwise.

    Args:
        files: where the images are.
        size: height and width in pixels.
        channels: ``rgb`` (3 channels) or ``grey`` (1 channel).
        done: called after each case, in the calling thread.
        classes: which values of a mask are which structure.

    Returns:
        uint8 images ``[N, C, H, W]``, uint8 masks ``[N, 1, H, W]`` of class indices (None without masks), and the
        position of each case that can't be used with the reason; its pixels are undefined.
    """
    images = np.zeros((len(files), 3 if channels == "rgb" else 1, *size), dtype=np.uint8)
    masks = None if files.masks is None else np.zeros((len(files), 1, *size), dtype=np.uint8)

    def decode(position: int) -> str:
        try:
            _decode_case(files, position, images[position], None if masks is None else masks[position], classes)
        except UnreadableError as error:
            return str(error)
        return ""

    failures: dict[int, str] = {}
    with ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1)) as threads:
        for position, reason in enumerate(threads.map(decode, range(len(files)))):
            if reason:
                failures[position] = reason
            done()
    return torch.from_numpy(images), None if masks is None else torch.from_numpy(masks), failures


def resolve(name: str, root: Path, allowed: Sequence[Path] = ()) -> Path | None:
    """The file that a table's cell names, or None where it lies outside ``root`` and all ``allowed`` folders.

    Relative paths start at ``root``; absolute ones are fine under one of the folders. A table thus reaches nothing that
    the study file doesn't name (``../../etc``), while a link inside the folder, which its owner made, is followed.
    """
    path = Path(os.path.normpath(root.absolute() / name))
    inside = any(path.is_relative_to(os.path.normpath(folder.absolute())) for folder in (root, *allowed))
    return path if inside else None


def _decode_case(
    files: ImageFiles,
    position: int,
    image_out: npt.NDArray[np.uint8],
    mask_out: npt.NDArray[np.uint8] | None,
    classes: MaskClasses,
) -> None:
    root = files.roots[position]
    with _upright(files.images[position], root, files.allowed, "image") as image:
        full_size = image.size
        eight_bits = _eight_bits(image).convert("RGB" if len(image_out) == 3 else "L")
        pixels = np.asarray(eight_bits.resize(_width_height(image_out), Image.Resampling.BILINEAR))
        image_out[...] = pixels.transpose(2, 0, 1) if pixels.ndim == 3 else pixels
    if files.masks is None or mask_out is None:
        return
    with _upright(files.masks[position], root, files.allowed, "mask") as mask:
        if mask.size != full_size:
            raise UnreadableError("mask and image differ in size")
        try:
            indices = Image.fromarray(_mask_indices(mask, classes))
        except UnreadableError as error:
            logger.debug("%s: %s", error, files.masks[position])
            raise
        mask_out[...] = np.asarray(indices.resize(_width_height(mask_out), Image.Resampling.NEAREST))


def _upright(name: str, root: Path, allowed: Sequence[Path], kind: Literal["image", "mask"]) -> Image.Image:
    path = resolve(name, root, allowed)
    if path is None:
        logger.debug("%s outside the image folder: %s", kind, name)
        raise UnreadableError(f"{kind} path lies outside the image folder")
    try:
        image = open_scan(path, kind) if is_scan(path) else Image.open(path, formats=FORMATS)
        # Cameras append previews to a JPEG (format MPO); its first frame is the picture.
        if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
            raise UnreadableError(f"{kind} file has several frames")
        ImageOps.exif_transpose(image, in_place=True)
        image.load()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        logger.debug("%s file missing: %s", kind, name)
        raise UnreadableError(f"{kind} file is missing") from None
    except PermissionError:
        logger.debug("%s file may not be read: %s", kind, name)
        raise UnreadableError(f"{kind} file may not be read") from None
    except UnidentifiedImageError:
        logger.debug("%s file of an unknown format: %s", kind, name)
        raise UnreadableError(f"{kind} file is no {', '.join(FORMATS[:-1])} or {FORMATS[-1]}") from None
    except UnreadableError:
        logger.debug("%s file has several frames: %s", kind, name)
        raise
    except Exception as error:  # Pillow's decoders raise many types on damaged files
        logger.debug("%s file damaged: %s (%s)", kind, name, error)
        raise UnreadableError(f"{kind} file is damaged") from None
    return image


def _eight_bits(image: Image.Image) -> Image.Image:
    if image.mode != "F" and not image.mode.startswith("I"):
        return image
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 65535:
        raise UnreadableError("image file has 32-bit pixels")
    return Image.fromarray((values // 257).astype(np.uint8))


def _mask_indices(mask: Image.Image, classes: MaskClasses) -> npt.NDArray[np.uint8]:
    """Class indices ``[H, W]``. Palette masks count by index; an alpha channel does not count."""
    values = np.asarray(mask.convert(mask.mode.rstrip("A")) if mask.mode in ("LA", "RGBA") else mask)
    channels = values.reshape(*values.shape[:2], -1)
    if classes.values is None:
        return classes.encode(np.asarray((channels != 0).any(axis=2)))
    if (channels != channels[..., :1]).any():
        raise UnreadableError("mask has colours, not one value for each structure")
    return classes.encode(channels[..., 0].astype(np.int64))


def _width_height(out: npt.NDArray[np.uint8]) -> tuple[int, int]:
    return out.shape[2], out.shape[1]
