"""From the image files of a case to arrays on the study's grid, and a record of what was found on the way."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from polyclinic.data.masks.classes import vanished
from polyclinic.data.readers.axes import shear_angle
from polyclinic.data.readers.describe import volume_facts
from polyclinic.data.readers.volume import UnreadableError, Volume
from polyclinic.data.spec import Preprocessing
from polyclinic.data.volumes.coverage import Coverage, coverage
from polyclinic.data.volumes.grid import Grid, box_of, oriented, resample, target_grid, to_right_angles
from polyclinic.data.volumes.intensity import INTENSITIES, foreground_of, landmarks_of
from polyclinic.data.volumes.mask_place import APART, check_channel, place_mask, share_inside
from polyclinic.ignored import IGNORED
from polyclinic.notes import Note
from polyclinic.options import split_entry

#: An image of which fewer voxels of the grid are left shows nothing.
_FEWEST_VOXELS = 8
#: Red, green and blue of a grey picture may differ by so much: compression rounds.
_GREY = 2


@dataclass(frozen=True, eq=False)
class Prepared:
    """A case on the study's grid.

    Attributes:
        image: float16 ``[C, D, H, W]`` (float32 where intensities stay as they are).
        mask: uint8 ``[1, D, H, W]`` of class indices, or None.
        about: what was found, as JSON values: ``facts`` of the first image as it was read (see `VolumeFacts`),
            ``grid_spacing`` in mm, ``grid_orientation`` (axis codes), ``filled`` and ``inside`` (see `Coverage`, the
            least of the channels), ``sheared`` (by how many degrees the axes of the first image were not at right
            angles), ``labels`` (voxels of each class in the prepared mask, without ignored ones), ``lost`` (share of
            the mask's foreground that lies outside the grid), ``place`` (see `place_mask`), ``vanished`` (classes that
            the grid leaves nothing of), ``landmarks`` ``[C][11]``,
            ``notes`` (number, text, and ``of``: "image" or "mask"; see `polyclinic.data.image_notes`).
    """

    image: npt.NDArray[np.floating]
    mask: npt.NDArray[np.uint8] | None
    about: dict[str, Any]


def prepare_case(
    images: Sequence[Volume],
    mask: Volume | None,
    spec: Preprocessing,
    classes: Callable[[npt.NDArray[np.generic]], npt.NDArray[np.uint8]],
    mask_grid: Literal["voxels", "header"] | None = None,
) -> Prepared:
    """Bring a case to the study's grid.

    The first image gives the grid; further images and the mask are brought to it by their own place in space. For where
    a mask lies see `place_mask`.

    Args:
        images: one volume a channel.
        mask: where the classes are, or None.
        spec: how to prepare.
        classes: turns values of the mask into class indices.
        mask_grid: what counts where image and mask have the same voxels, but other headers; see `place_mask`.

    Raises:
        UnreadableError: the case can't be used, and why.
    """
    for image in images:
        if image.values.dtype.kind not in "biuf":
            raise UnreadableError("image is not of plain numbers")
    facts = volume_facts(images[0])
    frames = [single_frame(image, spec.frames) for image in images]
    single = [oriented(image, spec.orientation) for image in frames]
    _check_values(single)
    for frame in frames[1:]:
        check_channel(frame, frames[0], spec.orientation)
    placed = None
    if mask is not None:
        placed = place_mask(single_frame(mask, "reject", kind="mask"), frames[0], spec.orientation, mask_grid)
    grid = _grid(single[0], spec)
    name, options = split_entry(spec.intensity, (), "intensity normalisation")
    normalise = INTENSITIES[name](**options)
    channels, marks, shares = [], [], []
    for image in single:
        _check_place(image, single[0], "images")
        shares.append(coverage(image, grid))
        values = _on_grid(image, grid, shares[-1])
        if name == "none":
            channels.append(values)
            continue
        normalised = normalise(values, foreground_of(values, normalise.foreground))
        if name == "nyul":
            marks.append(landmarks_of(normalised, foreground_of(values, normalise.foreground)))
        with np.errstate(over="ignore"):
            channels.append(normalised.astype(np.float16))
        _check_prepared(channels[-1], f"after `intensity: {name}`")
    about: dict[str, Any] = {
        "facts": asdict(facts),
        "grid_spacing": list(grid.spacing),
        "grid_orientation": spec.orientation,
        "filled": round(min(share.filled for share in shares), 6),
        "inside": round(min(share.inside for share in shares), 4),
        "sheared": round(shear_angle(single[0].affine), 2),
        "landmarks": marks,
        "notes": [note.to_json() | {"of": "image"} for note in _notes(images)],
    }
    prepared_mask = None
    if mask is not None and placed is not None:
        turned_mask, turned, resampled = placed
        _check_place(turned_mask, single[0], "mask and image")
        indices = classes(turned_mask.values)
        inside = (
            share_inside((indices != 0) & (indices != IGNORED), turned_mask.affine, single[0]) if resampled else 1.0
        )
        prepared_mask, found = _prepare_mask(Volume(indices, turned_mask.affine), grid)
        about |= found | {"place": {"turned": turned, "resampled": resampled, "inside": inside}}
        about["notes"] += [note.to_json() | {"of": "mask"} for note in _notes([mask])]
    return Prepared(np.stack(channels), prepared_mask, about)


def grid_of(image: Volume, spec: Preprocessing) -> tuple[Grid, Volume]:
    """The grid to which a case is brought whose first image this is, and that image with three axes.

    Raises:
        UnreadableError: the case can't be used, and why.
    """
    frame = single_frame(image, spec.frames)
    return _grid(oriented(frame, spec.orientation), spec), frame


def _grid(image: Volume, spec: Preprocessing) -> Grid:
    if spec.sides is None:
        raise ValueError("the grid is not planned yet")
    return target_grid(image, spec.steps, spec.sides, _middle(image, spec.centre))


def _notes(volumes: Sequence[Volume]) -> list[Note]:
    """The notes on all channels of a case, each once."""
    return [*{(note.number, str(note)): note for volume in volumes for note in volume.notes}.values()]


def single_frame(volume: Volume, frames: str, *, kind: str = "image") -> Volume:
    """The volume with three axes.

    Raises:
        UnreadableError: it is in colour, it has several frames and ``frames`` is ``reject``, or it has more axes or
            none.
    """
    values = volume.values
    if values.ndim == 2:
        values = values[:, :, None]
    if volume.colour:
        values = _grey(values, kind)
    if values.ndim > 3 and values.size == int(np.prod(values.shape[:3])):
        values = values.reshape(values.shape[:3])
    if values.ndim == 4 and frames != "reject":
        values = values[..., 0] if frames == "first" else values.mean(axis=3, dtype=np.float64)
    if values.ndim == 4:
        raise UnreadableError(f"{kind} has several frames" + (f" ({volume.frames})" if volume.frames else ""))
    if values.ndim != 3 or 0 in values.shape:
        raise UnreadableError(f"{kind} has {values.ndim} axes" if values.ndim != 3 else f"{kind} is empty")
    return Volume(values, volume.affine, volume.about, volume.notes)


def _grey(values: npt.NDArray[Any], kind: str) -> npt.NDArray[Any]:
    """The grey values of a picture that is stored in colour (many captures of ultrasound are)."""
    if int((values.max(axis=3).astype(np.int64) - values.min(axis=3)).max()) > _GREY:
        raise UnreadableError(f"{kind} is in colour: pictures in colour need `size` instead of `preprocessing`")
    grey: npt.NDArray[Any] = values[..., 1]
    return grey


def _check_values(images: Sequence[Volume]) -> None:
    for image in images:
        if image.values.dtype.kind == "f" and not np.isfinite(image.values).all():
            raise UnreadableError("image has values that are not finite numbers")
        if image.values.dtype == np.float64 and np.abs(image.values).max() > np.finfo(np.float32).max:
            raise UnreadableError("image has values that are too large")
        if image.values.min() == image.values.max():
            raise UnreadableError("image is the same everywhere")


def _on_grid(image: Volume, grid: Grid, share: Coverage) -> npt.NDArray[np.float32]:
    """The image's values on the grid, if there is something to be seen of it."""
    if share.voxels < min(_FEWEST_VOXELS, math.prod(grid.size)):
        raise UnreadableError(f"image is smaller than {_FEWEST_VOXELS} voxels of the grid (look at its unit of length)")
    values: npt.NDArray[np.float32] = resample(image, grid, order=1).astype(np.float32, copy=False)
    _check_prepared(values, "inside the grid" if share.filled else "since nothing of it lies in the grid")
    return values


def _check_prepared(values: npt.NDArray[np.floating], where: str) -> None:
    """What was sound as it was read may be lost on the way."""
    if not np.isfinite(values).all():
        raise UnreadableError(f"image has values that are not finite or too large {where}")
    if values.min() == values.max():
        raise UnreadableError(f"image is the same everywhere {where}")


def _check_place(one: Volume, other: Volume, what: str) -> None:
    """Stop where two volumes of a case do not overlap in space."""
    boxes = []
    for volume in (one, other):
        ends = np.array(np.meshgrid(*[(-APART, side - APART) for side in volume.values.shape])).reshape(3, -1)
        corners = volume.affine[:3, :3] @ ends + volume.affine[:3, 3:]
        boxes.append((corners.min(axis=1), corners.max(axis=1)))
    if (np.minimum(boxes[0][1], boxes[1][1]) <= np.maximum(boxes[0][0], boxes[1][0])).any():
        raise UnreadableError(f"{what} lie apart in space")
    same_size = one.values.shape == other.values.shape
    if what == "mask and image" and not same_size and np.allclose(one.affine, other.affine, atol=1e-3):
        raise UnreadableError("mask and image differ in size")


def _middle(volume: Volume, centre: str) -> list[float]:
    """What comes to lie in the middle, in voxels along axes at right angles."""
    if centre == "foreground":
        inside = foreground_of(volume.values.astype(np.float32, copy=False), "otsu")
        first, last = box_of(volume, inside)
        middle: list[float] = ((first + last) / 2).tolist()
        return middle
    change = to_right_angles(volume)
    found: list[float] = (change[:3, :3] @ ((np.array(volume.values.shape) - 1) / 2) + change[:3, 3]).tolist()
    return found


def _prepare_mask(mask: Volume, grid: Grid) -> tuple[npt.NDArray[np.uint8], dict[str, Any]]:
    """Class indices on the grid, their voxels of each class, and how much of the foreground the grid leaves out."""
    prepared = resample(mask, grid, order=0).astype(np.uint8, copy=False)
    counts = np.bincount(prepared[prepared != IGNORED]).tolist()
    if not counts:
        raise UnreadableError("mask leaves out everything in the grid (`ignore`)")
    corners = np.linalg.inv(grid.affine) @ mask.affine
    places = np.argwhere((mask.values != 0) & (mask.values != IGNORED))
    outside = 0.0
    if len(places):
        where = places @ corners[:3, :3].T + corners[:3, 3]
        beyond = ((where < -APART) | (where > np.array(grid.size) - APART)).any(axis=1)
        outside = float(np.count_nonzero(beyond)) / len(places)
    return prepared[None], {"labels": counts, "lost": round(outside, 4), "vanished": vanished(mask.values, prepared)}
