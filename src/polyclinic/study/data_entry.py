"""Whether the entries of ``data:`` fit each other and the task."""

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
from polyclinic.options import EntryError, Place
from polyclinic.study.findings_entry import check_finding_columns
from polyclinic.study.times_entry import check_time_columns
from polyclinic.tasks import TASKS


def check_data(data: DataSpec, task: str) -> None:
    """Check the part ``data`` as a whole.

    Raises:
        EntryError: with the place of what does not fit.
    """
    target = TASKS[task].target

    def refuse(key: str, message: str, hint: str = "") -> None:
        raise EntryError("P102", message, hint, place=("data", key))

    if (data.table is None) == (data.tables is None):
        refuse("table", "give either `table` (one file with a `site` column) or `tables` (one file a site).")
    if data.table is not None and data.site is None and data.partition is None:
        refuse(
            "site",
            "the entry 'site' is missing: the column of `table` that names the site.",
            "Without such a column, `partition` can make simulated sites.",
        )
    if data.tables is not None and data.site is not None:
        refuse("site", "with `tables` the sites are its keys; leave `site` out.")
    if data.image is None and data.features is None and not data.categorical:
        refuse("features", "give `features` (columns of the table) or `image` (column with image files).")
    if data.image is not None and data.features is not None:
        refuse("features", "a study has either `features` or `image`, not both.")
    _check_bags(data, target)
    check_volumes(data, target)
    check_undersampling(data, target)
    check_partition(data, target)
    check_categories(data)
    check_public(data)
    if data.image is not None and data.preprocessing is None:
        if data.size is None:
            refuse(
                "size", "the entry 'size' is missing: [height, width] in pixels to which images are brought.",
                "For NIfTI and DICOM give `preprocessing` instead.",
            )  # fmt: skip
        if not isinstance(data.image, str):
            refuse("image", "several image columns are channels of volumes, which need `preprocessing`.")
    if data.size is not None and min(data.size) < 8:
        refuse("size", f"got {list(data.size)}; expected at least 8 pixels each way.")
    if target == "labels" and data.label is None:
        refuse("label", "the entry 'label' is missing: the column with the class to predict.")
    if target == "numbers" and data.label is None:
        refuse("label", "the entry 'label' is missing: the column with the number to predict.")
    if target == "times":
        check_time_columns(data)
    check_finding_columns(data, task)
    if data.labels is not None and not data.labels.share and data.labels.sites is None:
        refuse("labels", "with `share: 0` name the `sites` that have no labels: at all, nothing could be learned.")
    for key in ("positive", "classes"):
        if target == "numbers" and getattr(data, key) is not None:
            refuse(key, f"a number has no classes, so `{key}` means nothing.", "Use `task: classification`.")
    if data.mask_classes is not None and target != "masks":
        refuse("mask_classes", f"`mask_classes` is for segmentation, and the task is {task}.")
    if target == "masks":
        from polyclinic.data.masks.classes import MaskClasses

        try:
            MaskClasses.of(data)
        except StudyError as error:
            key = "mask_classes" if "`mask`" not in error.message else "mask"
            raise EntryError(error.code, error.message, error.hint, place=("data", key)) from None
    if target == "masks" and (data.mask is None or data.image is None):
        refuse("mask", "segmentation needs `image` and `mask`: columns with image and mask files.")
    check_hints(data, target)
    if data.imputation == "median" and data.scaling == "federated":
        refuse(
            "imputation",
            "medians can't be put together from summaries.",
            "Use `imputation: mean`, or per_site scaling.",
        )
    _check_harmonisation(data)
    if data.augmentation and data.image is None:
        refuse("augmentation", "augmentation is for images; this study has features.")
    sides: tuple[int, ...] | None = data.size
    if data.preprocessing is not None:
        sides = data.planned_patch.size if data.planned_patch else data.preprocessing.sides
    if data.augmentation and sides is not None:
        from polyclinic.data.augmentation import Augmentation

        try:
            Augmentation(data.augmentation, sides)
        except StudyError as error:
            raise EntryError(error.code, error.message, error.hint, place=("data", "augmentation")) from None
    if data.subject_pattern is not None:
        try:
            groups = re.compile(data.subject_pattern).groups
        except re.error as error:
            refuse("subject_pattern", f"not a regular expression: {error}.")
        else:
            if groups < 1:
                refuse("subject_pattern", "the pattern needs a group in parentheses: the patient's part of the cell.")


def _check_bags(data: DataSpec, target: Target) -> None:
    bags = data.bags
    if bags is None:
        return

    def refuse(message: str, hint: str) -> None:
        raise EntryError("P104", message, hint, place=("data", "bag"))

    if target == "masks":
        refuse("A bag has one label, and segmentation a mask for each image.", "Leave `bag` out.")
    if data.preprocessing is not None:
        refuse("Bags are of rows of a table, or of pictures; these are volumes.",
               "Leave `bag` out, or give features or pictures of the volumes.")  # fmt: skip
    if bags.column is None and data.subject is None:
        refuse("It is not said which rows are one case.",
               "Name the column: `bag: slide`. Without one the patient is the bag, which needs `subject`.")  # fmt: skip
    roles = {"label": data.label, "time": data.time, "event": data.event, "site": data.site}
    roles |= {"findings": bags.column if bags.column in (data.findings or ()) else None}
    role = next((role for role, column in roles.items() if column is not None and column == bags.column), None)
    if role is not None:
        refuse(f"{bags.column!r} is the column of `{role}`, too.", "Name the column of the slide or the patient.")


def _check_harmonisation(data: DataSpec) -> None:
    combat = data.harmonisation.combat
    if combat is None:
        return
    place: Place = ("data", "harmonisation")
    if data.image is not None:
        raise EntryError("P104", "ComBat is for features of a table; this study has images.", place=place)
    for name in [*combat.covariates, *combat.groups]:
        if name in (data.label, data.time, data.event, *(data.findings or ())):
            raise EntryError(
                "P104", f"the label {name!r} can't be a covariate: the covariates of test cases are used to harmonise "
                "them, so their labels would be known before they are predicted.",
                "Take it out of `covariates`.", place=place,
            )  # fmt: skip
        if name in (data.site, data.subject, data.bags.column if data.bags else data.site):
            raise EntryError(
                "P104", f"{name!r} names the {'site' if name == data.site else 'patient'}, so its effect can't be kept "
                "while differences between sites are taken out.", "Take it out of `covariates`.", place=place,
            )  # fmt: skip
