"""Undersampled k-space made from images: what a faster MRI scan would have measured.

Every image is scaled by the largest value of its own zero-filled image, so the unit of pixels means nothing: neither to
training nor to metrics.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from polyclinic.data.bags import Bags
from polyclinic.data.spec import Undersampling
from polyclinic.data.volumes.store import Volumes
from polyclinic.kspace import as_inputs, to_images, to_kspace
from polyclinic.notes import Note
from polyclinic.seeds import derive_seed

#: Of an image with one value everywhere the other lines of k-space are 0, but for this share of that value.
_ROUNDING = 1e-5


def measured_lines(width: int, undersampling: Undersampling, seed: int) -> Tensor:
    """Which lines of k-space are measured: float32 ``[W]``, 1 or 0.

    All lines in the middle (``center`` of the width, rounded; they lie as in fastMRI), and of the others as many as
    make W / ``acceleration`` lines in all, rounded: drawn at random, or equally far apart from a first one drawn at
    random. In the masks of fastMRI (Zbontar et al., fastMRI: an open dataset and benchmarks for accelerated MRI, 2018,
    section 4.4) each other line is drawn by itself, so that their number is right on average only.

    Args:
        width: W, the number of lines.
        undersampling: how many, and which.
        seed: of the draw.
    """
    middle = round(width * undersampling.center)
    start = (width - middle + 1) // 2
    mask = torch.zeros(width)
    mask[start : start + middle] = 1
    others = (mask == 0).nonzero().flatten()
    wanted = min(max(round(width / undersampling.acceleration) - middle, 0 if middle else 1), len(others))
    if not wanted:
        return mask
    source = torch.Generator().manual_seed(seed)
    if undersampling.lines == "random":
        chosen = torch.randperm(len(others), generator=source)[:wanted]
    else:
        step = len(others) / wanted
        first = float(torch.rand((), generator=source, dtype=torch.float64)) * step
        chosen = ((first + step * torch.arange(wanted, dtype=torch.float64)).long()).clamp(max=len(others) - 1)
    mask[others[chosen]] = 1
    return mask


def acquire(images: Tensor, measured: Tensor) -> tuple[Tensor, Tensor]:
    """What a network is given of some images, and what it shall find.

    Args:
        images: magnitudes, float32 ``[B, 1, ..., H, W]``; values below 0 count as 0.
        measured: lines ``[B, W]``, see `measured_lines`.

    Returns:
        inputs ``[B, 3, ..., H, W]`` (see `polyclinic.kspace`), and targets ``[B, 2, ..., H, W]``: the image, and the
        magnitude of the zero-filled one, which is the answer without any network. Both are in units of the largest
        value of the latter; or of the image, where nothing but rounding is left of it in what was measured.
    """
    truth = images.clamp_min(0.0)
    lines = measured.view(len(images), *[1] * (images.ndim - 2), -1)
    zero_filled = to_images(to_kspace(truth) * lines)
    magnitude = zero_filled.abs()
    largest, brightest = (one.flatten(1).amax(1).view(-1, *[1] * (images.ndim - 1)) for one in (magnitude, truth))
    scale = torch.where(largest > _ROUNDING * brightest, largest, brightest)
    scale = torch.where(scale > 0, scale, 1.0)
    return as_inputs(zero_filled / scale, lines), torch.cat([truth, magnitude], dim=1) / scale


def case_seeds(images: Tensor | Volumes | Bags, seed: int) -> list[int]:
    """A seed for each case, from its image alone: neither its name, nor its place, nor who holds it plays a part.

    Args:
        images: bytes ``[N, 1, H, W]``, or volumes, which are known by the values of their voxels once prepared.
        seed: of the study.
    """
    if isinstance(images, Bags):
        raise ValueError("the cases are bags")
    if isinstance(images, Volumes):
        return [derive_seed("measured lines", seed, record["content"]) for record in images.about]
    contents = (hashlib.sha256(image.contiguous().numpy().data).hexdigest() for image in images)
    return [derive_seed("measured lines", seed, content) for content in contents]


def acquisition_notes(site: str, images: Tensor | Volumes, cases: Sequence[str]) -> list[Note]:
    """Images of which no metric is defined, since all of their pixels are the same, and volumes with negative values.

    Args:
        site: its name.
        images: of its cases.
        cases: their names, which stay at the site.
    """
    constant, negative = list[str](), list[str]()
    for name, place in zip(cases, range(len(images)), strict=True):
        low, high = (float(value) for value in images[place].aminmax())
        constant += [name] if max(low, 0.0) == max(high, 0.0) else []
        negative += [name] if low < 0 else []
    notes = []
    if constant:
        text = f"Site {site}: {len(constant)} of {len(images)} images have one value everywhere. No metric is defined "
        notes.append(Note("N290", f"{text}of such an image, so these cases are in no mean.", constant))
    if negative:
        text = f"Site {site}: {len(negative)} of {len(images)} images have values below 0, which no magnitude image "
        notes.append(Note("N291", f"{text}has. They count as 0.", negative))
    return notes
