"""What of a finished model stays at a site: weights that it does not share, and how its own cases are prepared."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from polyclinic.data.pictures.depth import DEPTHS
from polyclinic.errors import ResultsError
from polyclinic.files import write_atomic

#: Name of the file in the site's folder.
PART = "model-part.safetensors"
_KIND = "polyclinic-model-part"


@dataclass(frozen=True)
class ModelPart:
    """A site's part of a model.

    Attributes:
        site: its name.
        model: number of the model that it belongs to, see `polyclinic.study.final_model`.
        weights: tensors of the network that are the site's own, by name; none where all are shared.
        steps: of each step of preparation what it is taken with at the site, see `polyclinic.data.preparation.Step`.
        depth: how many bits white has in the site's pictures of 16 bits; None where the study says it, or without such.
    """

    site: str
    model: str
    weights: Mapping[str, Tensor]
    steps: Sequence[Mapping[str, Tensor]]
    depth: int | None = None

    def write(self, path: Path) -> None:
        """Write the part into a file."""
        tensors = {f"weights/{name}": tensor.clone() for name, tensor in self.weights.items()}
        for place, step in enumerate(self.steps):
            tensors |= {f"steps/{place}/{name}": tensor.clone() for name, tensor in step.items()}
        about: dict[str, Any] = {
            "kind": _KIND, "site": self.site, "model": self.model, "steps": len(self.steps), "depth": self.depth,
        }  # fmt: skip
        write_atomic(path, save(tensors, {"about": json.dumps(about)}))

    @classmethod
    def read(cls, path: Path) -> ModelPart:
        """A part from its file.

        Raises:
            ResultsError: P501, there is no such file, or it is no part of a model.
        """
        try:
            with safe_open(path, "pt") as file:
                about = json.loads((file.metadata() or {}).get("about", "{}"))
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        except (OSError, SafetensorError, ValueError) as error:
            text = f"{path} can't be read as a site's part of a model ({type(error).__name__})."
            raise ResultsError("P501", text, "Give the file that the site kept when the model was made.") from None
        if not isinstance(about, dict) or about.get("kind") != _KIND:
            raise ResultsError("P501", f"{path} is no site's part of a model.",
                               f"Give the file {PART} of the site's folder.")  # fmt: skip
        steps: list[dict[str, Tensor]] = [{} for _ in range(int(about["steps"]))]
        weights = dict[str, Tensor]()
        for name, tensor in tensors.items():
            kind, _, rest = name.partition("/")
            if kind == "weights":
                weights[rest] = tensor
                continue
            place, _, rest = rest.partition("/")
            steps[int(place)][rest] = tensor
        return cls(str(about["site"]), str(about["model"]), weights, steps, _depth(about.get("depth"), path))


def _depth(found: object, path: Path) -> int | None:
    """How many bits white has, as a part says it."""
    if found is None or (isinstance(found, int) and found in DEPTHS):
        return found
    text = f"{path} says that white has {found!r} bits; expected one of {', '.join(map(str, DEPTHS))}."
    raise ResultsError("P501", text, "Give the file that the site kept when the model was made.")
