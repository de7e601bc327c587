"""Starter study files: one template for tables, one for images, one for volumes."""

from __future__ import annotations

from typing import Any

import yaml

from polyclinic.data.catalogue.entry import Draft, Entry, Kind, Label, Task

_Training = dict[str, Any]

#: (what is read, task) -> model, training and metrics of the template.
_TEMPLATES: dict[tuple[Kind, Task], tuple[Any, _Training, list[str]]] = {
    ("table", "classification"): (
        "logistic",
        {"rounds": 50, "batch_size": 32, "optimizer": {"sgd": {"lr": 0.003, "momentum": 0.9, "weight_decay": 0.01}}},
        ["auc", "acc", "bac", "sen", "spe"],
    ),
    ("table", "regression"): (
        "mlp",
        {"rounds": 50, "batch_size": 32, "optimizer": {"adamw": {"lr": 0.003}}},
        ["mae", "r2"],
    ),
    ("table", "survival"): (
        "logistic",
        {"rounds": 50, "batch_size": 512, "optimizer": {"sgd": {"lr": 0.1}}},
        ["concordance"],
    ),
    ("image", "classification"): (
        {"cnn": {"channels": [16, 32, 64]}},
        {"rounds": 15, "batch_size": 32, "optimizer": {"adamw": {"lr": 0.003}}},
        ["auc", "acc", "bac", "sen", "spe"],
    ),
    ("image", "regression"): (
        {"cnn": {"channels": [16, 32, 64]}},
        {"rounds": 15, "batch_size": 32, "optimizer": {"adamw": {"lr": 0.003}}},
        ["mae", "r2"],
    ),
    ("image", "multi_label"): (
        {"cnn": {"channels": [16, 32, 64]}},
        {"rounds": 15, "batch_size": 32, "optimizer": {"adamw": {"lr": 0.003}}},
        ["auc", "ap", "bac"],
    ),
    ("image", "segmentation"): (
        {"unet": {"channels": [16, 32, 64, 128]}},
        {"rounds": 15, "local_epochs": 2, "batch_size": 4, "optimizer": {"adamw": {"lr": 0.003}}},
        ["dice", "hd95", "sen", "pre"],
    ),
    ("image", "reconstruction"): (
        {"unrolled": {"network": {"unet": {"channels": [16, 32, 64]}}, "cascades": 2}},
        {"rounds": 15, "batch_size": 8, "optimizer": {"adamw": {"lr": 0.001}}},
        ["ssim", "psnr", "nmse"],
    ),
    ("volume", "classification"): (
        {"cnn": {"channels": [16, 32, 64, 128], "norm": "group"}},
        {"rounds": 30, "batch_size": 4, "optimizer": {"adamw": {"lr": 0.001}}},
        ["auc", "acc", "bac", "sen", "spe"],
    ),
    ("volume", "regression"): (
        {"cnn": {"channels": [16, 32, 64, 128], "norm": "group"}},
        {"rounds": 30, "batch_size": 4, "optimizer": {"adamw": {"lr": 0.001}}},
        ["mae", "r2"],
    ),
    ("volume", "multi_label"): (
        {"cnn": {"channels": [16, 32, 64, 128], "norm": "group"}},
        {"rounds": 15, "batch_size": 32, "optimizer": {"adamw": {"lr": 0.001}}},
        ["auc", "ap", "bac"],
    ),
    ("volume", "segmentation"): (
        {"unet": {"channels": [16, 32, 64, 128], "norm": "instance"}},
        {"rounds": 30, "batch_size": 2, "optimizer": {"adamw": {"lr": 0.001}}},
        ["dice", "hd95"],
    ),
}
#: What is put before the pooling of bags whose instances are rows of features.
_FEATURES = {"mlp": {"hidden": [128]}}
_FLIPS = [{"RandFlip": {"prob": 0.5, "spatial_axis": 0}}, {"RandFlip": {"prob": 0.5, "spatial_axis": 1}}]


def grid(
    size: tuple[int, int, int],
    *,
    spacing: tuple[float, float, float] = (1, 1, 1),
    intensity: Any = "zscore",
    **further: Any,
) -> dict[str, Any]:
    """The ``preprocessing:`` of volumes: orientation, spacing (mm), size (voxels), intensities."""
    return {"orientation": "RAS", "spacing": list(spacing), "size": list(size), "intensity": intensity, **further}


def starter_study(
    entry: Entry, draft: Draft, label: Label, positive: tuple[str, ...], classes: int, sites: int, root: str | None
) -> dict[str, Any]:
    """The content of the starter study file.

    Args:
        entry: of the catalogue.
        draft: what the entry found.
        label: what is learnt.
        positive: the positive classes; empty where each class stands for itself.
        classes: number of classes found.
        sites: number of sites found.
        root: folder to which image paths are relative, itself relative to the study file; None: the study's folder.
    """
    kind = draft.kind
    model, training, metrics = _TEMPLATES[kind, label.task]
    data: dict[str, Any] = {"table": "manifest.csv", "site": "site", "subject": "subject"}
    if label.findings:
        data["findings"] = list(label.findings)
    elif label.event:
        data |= {"time": label.column, "event": label.event}
    elif label.task not in ("segmentation", "reconstruction"):
        data["label"] = label.column
    if positive:
        data["positive"] = list(positive) if len(positive) > 1 else positive[0]
    if kind == "table":
        data["features"] = draft.features
    else:
        data["image"] = draft.images[0] if len(draft.images) == 1 else draft.images
        if label.task == "segmentation":
            data["mask"] = draft.mask
        if root is not None:
            data["root"] = root
    data |= draft.data
    if kind == "image":
        data.setdefault("augmentation", _FLIPS)
    if kind == "table":
        data.setdefault("scaling", "federated")
    evaluation: dict[str, Any] = {"split": draft.split} if draft.split else {"folds": 5 if kind == "table" else 3}
    if label.task == "classification" and classes > 2:
        metrics = ["auc", "acc", "bac"]
    if kind == "table" and "bag" in data:
        model, training = _FEATURES, training | {"batch_size": 8, "optimizer": {"adamw": {"lr": 0.001}}}
    if "bag" in data:
        model = {"gated_attention": {"encoder": model}}
        training = training | {"batch_size": min(training["batch_size"], 8)}
    return {
        "study": f"{entry.title}: {label.meaning.split(':')[0].split(';')[0]}",
        "data": data,
        "task": label.task,
        "model": model,
        "training": training | draft.training,
        "evaluation": evaluation | {"metrics": metrics} | draft.evaluation,
        "methods": _methods(sites, "bag" in data),
    }


def _methods(sites: int, bags: bool) -> list[Any]:
    if sites == 1:
        return ["single"]
    return ["single", "mix", "fedavg", "attention_mil" if bags else {"fedprox": {"mu": 0.1}}]


def study_text(entry: Entry, content: dict[str, Any], notes: list[str]) -> str:
    """The starter study file: terms and citation as comments, then the content."""
    head = [
        f"{entry.title}. A starting point, made by `polyclinic data prepare {entry.name}`; change it as you like.",
        f"Sites: {entry.sites}",
        f"Terms: {entry.terms} {entry.access}",
        f"Citation: {entry.citation}",
        *(f"Note: {note}" for note in notes),
    ]
    comments = "".join(f"# {line}\n" for text in head for line in _wrapped(text))
    return comments + yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=110, default_flow_style=None)


def _wrapped(text: str) -> list[str]:
    import textwrap

    return textwrap.wrap(text, 115, break_long_words=False, break_on_hyphens=False, subsequent_indent="  ")
