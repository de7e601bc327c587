"""A site's cases on their way to another process of this machine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from polyclinic.communication.message import Fields
from polyclinic.data.bags import Bags
from polyclinic.data.cases import Counts, SiteData
from polyclinic.data.originals import originals_received, originals_sent
from polyclinic.data.spec import Undersampling
from polyclinic.data.volumes.store import Volumes


def cases_sent(data: SiteData) -> tuple[Fields, dict[str, Tensor]]:
    """A site's cases as fields and tensors of a message; volumes stay where they are, and their files are named."""
    pixels = {"inputs": data.inputs} if data.undersampling else {"inputs": data.inputs, "targets": data.targets}
    mapped = {name: found for name, found in pixels.items() if isinstance(found, Volumes)}
    fields: Fields = {
        "subjects": data.subjects, "cases": data.cases, "parts": data.parts, "groups": data.groups,
        "depth": data.depth,
        "spacings": None if data.spacings is None else [list(one) for one in data.spacings],
        "volumes": {name: [[str(file) for file in v.files], v.about] for name, v in mapped.items()},
        "originals": originals_sent(data.originals),
        "undersampling": None if data.undersampling is None else data.undersampling.model_dump(mode="json"),
    }  # fmt: skip
    tensors = {name: found for name, found in pixels.items() if isinstance(found, Tensor)}
    others = {"covariates": data.covariates, "labelled": data.labelled, "public": data.public}
    if isinstance(data.inputs, Bags):
        others |= {"inputs": data.inputs.instances, "starts": data.inputs.starts}
    return fields, tensors | {name: tensor for name, tensor in others.items() if tensor is not None}


def cases_received(site: str, fields: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> SiteData:
    """The cases that ``cases_sent`` gave; what became of cases that can't be used is not among them."""
    pixels: dict[str, Tensor | Volumes] = dict(tensors)
    inputs: Tensor | Volumes | Bags
    for name, (files, about) in fields["volumes"].items():
        pixels[name] = Volumes([Path(file) for file in files], about)
    inputs = Bags(tensors["inputs"], tensors["starts"]) if "starts" in tensors else pixels["inputs"]
    spacings, undersampling = fields["spacings"], fields["undersampling"]
    targets = pixels["inputs" if undersampling else "targets"]
    return SiteData(
        site, inputs, targets, fields["subjects"], fields["cases"], fields["parts"], Counts(),
        None if spacings is None else [tuple(one) for one in spacings], tensors.get("covariates"),
        labelled=tensors.get("labelled"), groups=fields["groups"], depth=fields["depth"],
        originals=originals_received(fields["originals"]), public=tensors.get("public"),
        undersampling=None if undersampling is None else Undersampling(**undersampling),
    )  # fmt: skip
