"""Messages: named values and tensors that can be bytes. No pickle: safetensors with JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

Fields = dict[str, Any]


@dataclass(frozen=True)
class Message:
    """What a site is asked, or answers.

    Attributes:
        fields: JSON values by name.
        tensors: tensors by name; a receiver must not write into them.
    """

    fields: Fields = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes of the tensors: what counts on the wire for a model update."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors.values())

    def to_bytes(self) -> bytes:
        """The message as a safetensors file; the fields are one JSON text in its header."""
        from safetensors.torch import save

        content: bytes = save(_apart(self.tensors), {"fields": json.dumps(self.fields)})
        return content

    @classmethod
    def from_bytes(cls, data: bytes) -> Message:
        """The message that ``to_bytes`` wrote.

        Raises:
            ValueError: the bytes are not a message.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            tensors = load(data)
            length = int.from_bytes(data[:8], "little")
            header = json.loads(data[8 : 8 + length])
            fields = json.loads(header["__metadata__"]["fields"])
        except (KeyError, TypeError, ValueError, RecursionError, SafetensorError) as error:
            raise ValueError(f"not a message: {error}") from error
        if not isinstance(fields, dict):
            raise ValueError(f"not a message: its fields are a {type(fields).__name__}")
        return cls(fields, tensors)


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors in main memory, none in the memory of another, which safetensors refuses."""
    found, places = dict[str, Tensor](), set[int]()
    for name, tensor in tensors.items():
        own = tensor.detach().contiguous().cpu()
        place = own.untyped_storage().data_ptr()
        found[name] = own.clone() if place in places else own
        places.add(place)
    return found
