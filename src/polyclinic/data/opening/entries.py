"""Whether the entries of ``data:`` go together, for those who open data without a study file."""

from __future__ import annotations

import re

from polyclinic.data.masks.entries import check_hints
from polyclinic.data.opening.public import check_public
from polyclinic.data.partition import check_partition
from polyclinic.data.reconstruction_entries import check_undersampling
from polyclinic.data.spec import DataSpec, Target
from polyclinic.data.tables.features import check_categories
from polyclinic.data.volumes.prepare import check_volumes
from polyclinic.errors import StudyError

#: What is to be predicted -> what that is called, and what a column has.
_KINDS = {
    "labels": ("Classification", "class"), "numbers": ("Regression", "number"),
    "times": ("Survival", "the time of the event and whether it happened"),
    "findings": ("Several labels", "the labels"),
}  # fmt: skip


def check_entries(spec: DataSpec, target: Target) -> None:
    """Stop where entries of the ``data:`` part contradict each other or what is to be predicted.

    Raises:
        StudyError: P102 or P104.
        EntryError: of volumes or of the partition.
    """

    def need(fulfilled: object, message: str, hint: str, code: str = "P102") -> None:
        if not fulfilled:
            raise StudyError(code, message, hint)

    need((spec.table is None) != (spec.tables is None), "`data` needs one of `table` and `tables`.", "Give just one.")
    need(spec.tables is None or spec.tables, "`tables` is empty.", "Give one file for each site.")
    if spec.tables is not None:
        need(spec.site is None, "`tables` names the sites already.", "Take out `site`, or use `table`.", "P104")
    if spec.image is not None:
        inputs = "`image` and feature columns can't be used together."
        need(not (spec.features or spec.categorical), inputs, "Use either images or table columns.", "P104")
        if spec.preprocessing is None:
            need(isinstance(spec.image, str), "Several image columns are channels of volumes.",
                 "Name one column, or say with `preprocessing` how volumes are to be prepared.")  # fmt: skip
            need(spec.size and min(spec.size) > 0, "Images need a `size`.",
                 "Give height and width: size: [128, 128]; or `preprocessing` for NIfTI and DICOM.")  # fmt: skip
    check_volumes(spec, target)
    check_undersampling(spec, target)
    check_hints(spec, target)
    check_partition(spec, target)
    check_categories(spec)
    check_public(spec)
    if target == "masks":
        need(spec.image and spec.mask, "Segmentation needs `image` and `mask`.", "Name the columns with their paths.")
    elif target != "images":
        kind, goal = _KINDS[target]
        if target == "findings":
            need(spec.findings, f"{kind} needs `findings`.", f"Name the columns with {goal}.")
        elif target == "times":
            need(spec.time and spec.event, f"{kind} needs `time` and `event`.", f"Name the columns with {goal}.")
        else:
            need(spec.label, f"{kind} needs a `label`.", f"Name the column with the {goal} to predict.")
        hint = 'Name the feature columns (features: "*" takes all that have no other part) or the image column.'
        need(spec.image or spec.features or spec.categorical, f"{kind} needs `features` or `image`.", hint)
        need(spec.mask_classes is None, "`mask_classes` is for segmentation.", "Take it out.", "P104")
    if target == "numbers":
        need(spec.positive is None and spec.classes is None, "A number has no classes.",
             "Take out `positive` and `classes`, or use `task: classification`.", "P104")  # fmt: skip
    if spec.subject_pattern is not None:
        need(spec.subject, "`subject_pattern` needs `subject`.", "Name the column in which to look for the patient.")
        try:
            groups = re.compile(spec.subject_pattern).groups
        except re.error as error:
            raise StudyError("P102", f"`subject_pattern` is no regular expression: {error}.", "Mend it.") from None
        need(groups, "`subject_pattern` has no group.", r"Put the patient's part in brackets: (Image_\d+)[LR].")
