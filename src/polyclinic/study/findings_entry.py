"""Whether the entries of a study of several labels fit each other and the task."""

from __future__ import annotations

from collections.abc import Sequence

from polyclinic.data.spec import DataSpec
from polyclinic.data.tables.findings import finding_classes
from polyclinic.options import EntryError
from polyclinic.tasks import TASKS
from polyclinic.tasks.classification import ONE_OUTPUT

_PLACE = ("data", "findings")


def check_finding_columns(data: DataSpec, task: str) -> None:
    """Check the entry ``findings``, and what means nothing beside it.

    Raises:
        EntryError: P102, it is missing, or says nothing that can be learned; P104, it is not for this task, or a column
            has another part in the study.
    """
    if TASKS[task].target != "findings":
        if data.findings is not None:
            raise EntryError(
                "P104", f"`findings` are several labels of a case, and the task is {task}.",
                "Use `task: multi_label`, or take them out.", place=_PLACE,
            )  # fmt: skip
        return
    if not data.findings:
        raise EntryError(
            "P102", "the entry 'findings' is missing: the columns of the labels, as in `findings: [edema, effusion]`.",
            place=_PLACE,
        )  # fmt: skip
    for key in ("label", "positive", "classes"):
        if getattr(data, key) is not None:
            raise EntryError(
                "P104", f"`{key}` is for one label, and the study has several.",
                "Say it of each of the `findings`: `{effusion: {positive: [mild, severe]}}`.", place=("data", key),
            )  # fmt: skip
    taken = {data.site: "site", data.subject: "subject", data.divide_by: "divide_by"}
    taken |= dict.fromkeys(data.image_columns, "image")
    taken |= dict.fromkeys(data.categorical, "categorical")
    for name, finding in data.findings.items():
        if name in taken:
            raise EntryError(
                "P104", f"{name!r} is the `{taken[name]}` of the study, and can't be a finding as well.",
                place=(*_PLACE, name),
            )  # fmt: skip
        if "[" in name or "]" in name or not name:
            raise EntryError(
                "P102", f"{name!r} can't name a finding: results have its name in square brackets, `auc[effusion]`.",
                "Rename the column.", place=(*_PLACE, name),
            )  # fmt: skip
        names = finding_classes(data)[name]
        others = [text for other, texts in finding_classes(data).items() if other != name for text in texts]
        if set(names) & set(others):
            raise EntryError(
                "P102", f"the class {min(set(names) & set(others))!r} is there twice, of two findings.",
                "Rename one of the columns.", place=(*_PLACE, name),
            )  # fmt: skip
        if len(set(names)) < max(2, len(names)):
            raise EntryError(
                "P102", f"`classes` is {finding.classes}; expected two or more different values.",
                place=(*_PLACE, name, "classes"),
            )  # fmt: skip


def check_finding_losses(data: DataSpec, task: str, losses: Sequence[str]) -> None:
    """Check that losses are for labels that may be missing, and for so many classes.

    Args:
        data: the part ``data`` of the study file.
        task: its name.
        losses: of all methods.

    Raises:
        EntryError: P104 with what does not fit.
    """
    if TASKS[task].target != "findings":
        return
    for loss in losses:
        if getattr(TASKS[task].losses[loss], "compares_cases", False):
            raise EntryError(
                "P104", f"`{loss}` compares cases with each other, and of several labels any case may lack some.",
                "Choose a loss of single cases.", place=("training", "loss"),
            )  # fmt: skip
        several = [name for name, classes in finding_classes(data).items() if len(classes) > 2]
        if loss == ONE_OUTPUT and several:
            raise EntryError(
                "P104", f"`{ONE_OUTPUT}` is for two classes, and {several[0]} has more.", "Use `cross_entropy`.",
                place=("training", "loss"),
            )  # fmt: skip
