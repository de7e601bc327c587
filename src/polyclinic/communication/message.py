"""Messages: named values and tensors that can be bytes. No pickle: safetensors with JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Fields = dict[str, Any]

#: Types of numbers and what safetensors files call them.
_DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


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
        """The message as a safetensors file; the fields are one JSON text in its header.

        Written here, since the library copies every tensor twice; it is the library that reads.

        Raises:
            ValueError: a tensor has numbers of a type that such files don't have.
        """
        tensors = {name: tensor.detach().contiguous().cpu() for name, tensor in self.tensors.items()}
        header: dict[str, Any] = {"__metadata__": {"fields": json.dumps(self.fields)}}
        parts, end = list[Any](), 0
        for name, tensor in sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0])):
            if tensor.dtype not in _DTYPES:
                raise ValueError(f"a message has no tensors of {tensor.dtype}; got one named {name!r}")
            row = tensor.as_strided((tensor.numel(),), (1,))  # strides of axes of length 1 may be anything
            parts.append(row.view(torch.uint8).numpy())
            start, end = end, end + parts[-1].nbytes
            header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # so that all numbers stand at multiples of their size
        return b"".join([len(text).to_bytes(8, "little"), text, *parts])

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
