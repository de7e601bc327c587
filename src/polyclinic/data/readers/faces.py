"""Whether a head MRI seems to show a face."""

from __future__ import annotations

import numpy as np

from polyclinic.data.readers.volume import Volume

_FOREGROUND = 0.15
"""Share of the 99th percentile above which a voxel is tissue and not air."""
_FACE = 0.15
"""Share of tissue in the region of the face above which there seems to be one."""


def shows_face(volume: Volume) -> bool:
    """A rough look at where the face would be; a hint for a person, no proof in either direction.

    Tools that deface set the face to zero. The head's bounding box is taken from the voxels above 15 % of the 99th
    percentile. Of this box, the region of the face is the front quarter, from the lowest tenth to the lowest quarter,
    in the middle half from left to right: mouth and chin, where a brain without skull has nothing. The head seems to
    have a face if more than 15 % of this region is tissue. Heads of which only a part was scanned can be misjudged.

    Args:
        volume: a head, in any orientation.
    """
    import nibabel as nib

    values = np.asarray(volume.values, dtype=np.float32)
    values = values[..., 0] if values.ndim == 4 else values
    image = nib.as_closest_canonical(nib.Nifti1Image(values, volume.affine))
    upright = np.nan_to_num(np.asarray(image.dataobj))
    # Every second voxel tells as much, in an eighth of the time.
    upright = upright[tuple(slice(None, None, 2 if length > 64 else 1) for length in upright.shape)]
    tissue = upright > _FOREGROUND * np.percentile(upright, 99)
    if not tissue.any():
        return False
    box = []
    for axis in range(3):
        profile = np.flatnonzero(tissue.sum(axis=tuple(other for other in range(3) if other != axis)))
        box.append(slice(int(profile[0]), int(profile[-1]) + 1))
    head = tissue[tuple(box)]
    x, y, z = head.shape
    face = head[x // 4 : x - x // 4, y - y // 4 :, z // 10 : z // 4]
    return bool(face.size and face.mean() > _FACE)
