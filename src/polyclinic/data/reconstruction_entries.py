"""Whether the entries of ``data:`` fit a reconstruction of images from part of their k-space."""

from __future__ import annotations

from polyclinic.data.spec import DataSpec, Target
from polyclinic.options import EntryError, split_entry

#: Entries that say what is true of a case, or hide it: here the truth is the image.
_OTHERS = (
    "label", "positive", "classes", "findings", "time", "event", "mask", "mask_classes", "labels", "public", "bag",
    "patch",
)  # fmt: skip
#: Intensities whose values are those of a magnitude image, or from 0 to 1.
_MAGNITUDES = ("none", "percentile", "window")
#: Sides of the windows in which structural similarity is measured.
_LEAST_SIDE = 7


def check_undersampling(spec: DataSpec, target: Target) -> None:
    """Stop where entries contradict a reconstruction, or there is one and it is not said what is measured.

    Raises:
        EntryError: P102 or P104 with the place of the entry.
    """

    def refuse(key: str, message: str, hint: str, code: str = "P104") -> None:
        raise EntryError(code, message, hint, place=("data", key))

    if target != "images":
        if spec.undersampling is not None:
            refuse("undersampling", "`undersampling` is for reconstruction.", "Use `task: reconstruction`.")
        return
    if spec.undersampling is None:
        refuse("undersampling", "the entry 'undersampling' is missing: which lines of k-space are measured.",
               "Give it, such as `undersampling: {acceleration: 4, center: 0.08}`.", "P102")  # fmt: skip
    given = next((name for name in _OTHERS if getattr(spec, name) is not None), None)
    if given is not None:
        refuse(given, f"`{given}` has no meaning in a reconstruction: its target is the image itself.", "Take it out.")
    if spec.unlabelled == "use":
        refuse("unlabelled", "In a reconstruction each image is its own target: none is without.", "Take it out.")
    if not spec.image_columns:
        refuse("image", "the entry 'image' is missing: the column with the paths of the images.",
               "Name it.", "P102")  # fmt: skip
    if len(spec.image_columns) > 1 or spec.channels != "grey":
        what = "several image columns" if len(spec.image_columns) > 1 else "`channels: rgb`"
        refuse("channels", f"got {what}; a reconstruction is of one grey image a case.",
               "Name one column, and take `channels` out.")  # fmt: skip
    if spec.scaling != "none":
        refuse("scaling", f"got {spec.scaling}; each image is scaled by its own zero-filled image.",
               "Take `scaling` out, or write `scaling: none`.")  # fmt: skip
    volumes = spec.preprocessing
    if volumes is not None and volumes.size != "auto" and min(volumes.size[1:]) < _LEAST_SIDE:
        refuse("preprocessing", f"got `size: {list(volumes.size)}`; slices, along the last two axes, need at least "
               f"{_LEAST_SIDE} voxels each way: structural similarity is measured in windows of that side.",
               "Give a larger `size`.")  # fmt: skip
    if volumes is not None and split_entry(volumes.intensity, (), "")[0] not in _MAGNITUDES:
        refuse("preprocessing", f"got `intensity: {split_entry(volumes.intensity, (), '')[0]}`, and magnitude images "
               "have no values below 0.", "Take `intensity` out, or write `intensity: none`.")  # fmt: skip
