"""What goes into an exported file and what comes out, for a program and for a person."""

from __future__ import annotations

from typing import Any

from polyclinic.deployment.export.folder import LICENCE_QUESTION
from polyclinic.deployment.export.front import Front, preparation_numbers, preparation_words
from polyclinic.study.final_model.card import INTENDED_USE
from polyclinic.study.final_model.description import Description
from polyclinic.study.final_model.folder import Model
from polyclinic.study.provenance import machine
from polyclinic.tasks.survival import DISCRETE

Page = dict[str, Any]
_MEANINGS = {
    "labels": "probability of each class",
    "numbers": "the predicted number, in the unit of what was learned",
    "masks": "probability of each class in each pixel or voxel",
    "findings": "probability of each class of each finding, one finding after another",
}


def model_page(model: Model, front: Front, inputs: str, outputs: str, *, licence: str | None) -> Page:
    """What ``model.json`` says besides of the file itself.

    Args:
        model: the model.
        front: what of its preparation is in the file.
        inputs, outputs: names of the file's input and output.
        licence: of the model.
    """
    description = model.description
    versions = machine()["versions"]
    return {
        "format": 1,
        "model": description.number,
        "study": description.study,
        "method": description.method,
        "task": description.task,
        "inputs": _inputs(description, front, inputs),
        "preparation": {
            "in_the_file": front.scaler is not None,
            "before": list(preparation_words(description, front)),
            **preparation_numbers(model, front),
        },
        "outputs": _outputs(description, outputs),
        "networks": len(model.vectors),
        "intended_use": list(INTENDED_USE),
        "licence": licence or LICENCE_QUESTION,
        "made_with": {name: versions[name] for name in ("polyclinic", "torch", "monai")},
    }


def _inputs(description: Description, front: Front, name: str) -> Page:
    found: Page = {
        "name": name, "type": "uint8" if front.pixels else "float32", "shape": ["batch", *description.shape],
        "scaled": front.scaler is None,
    }  # fmt: skip
    if description.is_table:
        found["columns"] = _columns(description)
        missing = "NaN, which is filled in" if front.fills else "not allowed"
        found |= {"axes": ["case", "column"], "missing": missing if front.scaler is not None else "filled in before"}
        return found
    flat = description.data.preprocessing is None
    found["axes"] = ["case", "channel", *(("height", "width") if flat else _axes(description))]
    found["channels"] = _channels(description)
    if front.pixels:
        found["values"] = "pixels from 0 to 255"
    if description.seen.spacing:
        found["usual_voxels"] = {"unit": "mm", "shortest_to_longest": [list(one) for one in description.seen.spacing]}
    return found


def _axes(description: Description) -> list[str]:
    preparation = description.data.preprocessing
    return [f"towards {letter}" for letter in (preparation.orientation if preparation else "")]


def _channels(description: Description) -> list[str]:
    if description.data.preprocessing is None:
        return ["grey"] if description.shape[0] == 1 else ["red", "green", "blue"]
    return list(description.data.image_columns)


def _columns(description: Description) -> list[Page]:
    """Each input in order, with its column in the study's tables."""
    found: list[Page] = []
    for column in description.agreement.features:
        if column in description.data.categorical:
            found += [{"name": f"{column}={value}", "column": column, "meaning": f"1 where {column} is {value}, else 0"}
                      for value in description.agreement.values[column]]  # fmt: skip
            continue
        usual = description.seen.features.get(column)
        one: Page = {"name": column, "column": column, "unit": f"that of {column} in the study's tables"}
        if description.data.divide_by:
            one["divided_by"] = description.data.divide_by
        if usual is not None:
            one["usual"] = usual.model_dump(mode="json")
        found.append(one)
    if [one["name"] for one in found] != list(description.inputs):
        raise ValueError("the inputs of the model are not those of its columns")
    return found


def _outputs(description: Description, name: str) -> Page:
    task = description.built_task
    found: Page = {"name": name, "type": "float32", "meaning": _MEANINGS.get(description.target, "")}
    if description.target == "times":
        return found | _times(description)
    if description.target == "numbers":
        return found | {"shape": ["batch", 1], "unit": f"that of {description.data.label} in the study's tables"}
    found["classes"] = description.classes
    if description.target == "findings":
        return found | {"shape": ["batch", len(description.classes)], "findings": _findings(description)}
    if description.target == "masks":
        channels = description.classes if description.outputs > 1 else description.classes[-1:]
        found |= {"shape": ["batch", len(channels), *description.shape[1:]], "channels": channels}
    else:
        found["shape"] = ["batch", len(description.classes)]
    if len(description.classes) == 2:
        found["threshold"] = description.threshold
        found["decision"] = f"{description.classes[1]} from a probability of `threshold` on"
    else:
        found["decision"] = "the most probable class"
    if description.calibration is not None and task.has_threshold:
        found["calibration"] = {
            **description.calibration.model_dump(mode="json"),
            "formula": f"p of {description.classes[1]} becomes 1 / (1 + exp(-(intercept + slope * ln(p / (1 - p)))))",
            "in_the_file": False,
        }
    return found


def _findings(description: Description) -> list[Page]:
    """Of several labels: where the classes of each are, and how one of them is decided."""
    found, first = list[Page](), 0
    limits = description.completion or [description.threshold] * len(description.labels)
    for one, limit in zip(description.labels, limits, strict=True):
        classes = description.classes[first : first + one.classes]
        page: Page = {"name": one.name, "first": first, "classes": classes, "decision": "the most probable class"}
        if one.classes == 2:
            page |= {"threshold": limit, "decision": f"{classes[1]} from a probability of `threshold` on"}
        found.append(page)
        first += one.classes
    return found


def _times(description: Description) -> Page:
    """Of survival."""
    if description.loss == DISCRETE:
        return {
            "shape": ["batch", description.outputs], "edges": description.edges, "unit": description.data.time_unit,
            "meaning": "probability that the event comes after each of `edges`; the logarithm is linear between them",
        }  # fmt: skip
    found: Page = {"shape": ["batch", 1], "meaning": "log hazard (Cox): the higher, the earlier the event is expected"}
    if description.completion:
        found |= {
            "times": description.times, "unit": description.data.time_unit, "cumulative_hazard": description.completion,
            "survival": "exp(-cumulative_hazard * exp(log hazard)) at each of `times`",
        }  # fmt: skip
    return found
