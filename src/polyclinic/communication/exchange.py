"""What sites and server exchange besides the model's state, declared so that people can see it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

#: Bytes of a number that is sent as such.
NUMBER = 8


@dataclass(frozen=True)
class Extras:
    """Describes what goes with a state.

    Attributes:
        reveals: name of a tensor or number -> what it could reveal.
    """

    reveals: Mapping[str, str]

    def bytes_of(self, numbers: Mapping[str, float]) -> int:
        """Bytes of the numbers of a message."""
        return NUMBER * len(numbers)

    def describe(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, float]) -> str:
        """Name, shape, bytes of everything but the state, and what it could reveal; separated by semicolons."""
        found = [
            f"{name} {list(tensor.shape)} {tensor.numel() * tensor.element_size()} bytes: {self._reveals(name)}"
            for name, tensor in tensors.items()
            if name != "state"
        ]
        return "; ".join([*found, *(f"{name} [] {NUMBER} bytes: {self._reveals(name)}" for name in numbers)])

    def _reveals(self, name: str) -> str:
        return self.reveals[name].replace(";", ",")
