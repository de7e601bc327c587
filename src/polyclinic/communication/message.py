"""Messages: named values and tensors that can be bytes. No pickle: safetensors with JSON."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

Fields = dict[str, Any]
#: A part of a message as bytes.
Piece = bytes | memoryview

#: Types of numbers and what safetensors files call them.
_DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
_TYPES = {name: dtype for dtype, name in _DTYPES.items()}
_METADATA, _FIELDS = "__metadata__", "fields"
#: What reading what is no message raises.
_NONE = (IndexError, KeyError, TypeError, ValueError, RuntimeError)
#: No number is longer as JSON: -2.2250738585072014e-308.
_DIGITS = 24
#: A header with more bytes is none.
_LONGEST_HEADER = 100_000_000
_Count = Annotated[int, Field(ge=0, lt=2**53)]

with warnings.catch_warnings():  # PyTorch says once that bytes can't be written to; here nobody does
    warnings.simplefilter("ignore")
    torch.frombuffer(b"0", dtype=torch.uint8)


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
        """Bytes of the message as ``to_pieces`` writes it, without writing it."""
        return len(self._header) + sum(map(_bytes_of, self.tensors.values()))

    @cached_property
    def _order(self) -> list[str]:
        """Names of the tensors in the order of their pieces."""
        return sorted(self.tensors, key=lambda name: (-self.tensors[name].element_size(), name))

    @cached_property
    def _header(self) -> bytes:
        """Fields, and what is said of each tensor: a text with its length in front.

        Its length is the same for all values of the numbers in the fields that are not whole, such as seconds: the size
        of a message says nothing of them, and is the same in every engine and whenever a study is run.
        """
        fields = json.dumps(self.fields)
        header: dict[str, Any] = {_METADATA: {_FIELDS: fields}}
        end = 0
        for name in self._order:
            tensor = self.tensors[name]
            start, end = end, end + _bytes_of(tensor)
            dtype = _DTYPES.get(tensor.dtype, str(tensor.dtype))
            header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [start, end]}
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode() + b" " * _left(self.fields)
        text += b" " * (-len(text) % 8)  # so that all numbers stand at multiples of their size
        return len(text).to_bytes(8, "little") + text

    def to_pieces(self) -> list[Piece]:
        """The message as the pieces of a safetensors file: a header, in which the fields are one JSON text, and the
        memory of each tensor, which is not copied and must stay as it is for as long as the pieces are used.

        Written here, since the library copies every tensor twice.

        Raises:
            ValueError: a tensor has numbers of a type that such files don't have.
        """
        pieces: list[Piece] = [self._header]
        for name in self._order:
            tensor = self.tensors[name].detach().contiguous().cpu()
            if tensor.dtype not in _DTYPES:
                raise ValueError(f"a message has no tensors of {tensor.dtype}; got one named {name!r}")
            row = tensor.as_strided((tensor.numel(),), (1,))  # strides of axes of length 1 may be anything
            pieces.append(row.view(torch.uint8).numpy().data)
        return pieces

    def to_bytes(self) -> bytes:
        """The message as a safetensors file.

        Raises:
            ValueError: see ``to_pieces``.
        """
        return b"".join(self.to_pieces())

    @classmethod
    def from_pieces(cls, pieces: Sequence[Piece]) -> Message:
        """The message whose pieces these are; its tensors are not copied, as the library would.

        Raises:
            ValueError: they are not those of a message.
        """
        try:
            fields, entries = _read_header(pieces[0])
            tensors = dict(_tensor(*one) for one in zip(entries, pieces[1:], strict=True))
        except _NONE as error:
            raise ValueError(f"not a message: {error}") from error
        return cls(fields, tensors)

    @classmethod
    def from_bytes(cls, data: bytes) -> Message:
        """The message that ``to_bytes`` wrote.

        Raises:
            ValueError: the bytes are not a message.
        """
        end = 8 + int.from_bytes(data[:8], "little")
        header, ends = data[:end], [end]
        try:
            ends += [end + entry.data_offsets[1] for _, entry in _read_header(header)[1]]
        except _NONE as error:
            raise ValueError(f"not a message: {error}") from error
        if ends[-1] != len(data):
            raise ValueError(f"not a message: {len(data)} bytes instead of {ends[-1]}")
        return cls.from_pieces([header, *(data[start:stop] for start, stop in pairwise(ends))])


def _bytes_of(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _left(fields: Any) -> int:
    """How many digits the numbers in fields that are not whole have less than they could have."""
    if isinstance(fields, float):
        return _DIGITS - len(json.dumps(fields))
    inner = fields.values() if isinstance(fields, dict) else fields if isinstance(fields, list | tuple) else ()
    return sum(map(_left, inner))


class _Entry(BaseModel):
    """What a header says of a tensor."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    dtype: str
    shape: list[_Count] = Field(max_length=64)
    data_offsets: list[_Count] = Field(min_length=2, max_length=2)


def _read_header(header: Piece) -> tuple[Fields, list[tuple[str, _Entry]]]:
    """Fields, and what is said of each tensor, in the order of their pieces."""
    text = bytes(header[8 : 9 + _LONGEST_HEADER])
    if len(text) > _LONGEST_HEADER or len(text) != int.from_bytes(header[:8], "little"):
        raise ValueError("its header is cut, or longer than can be")
    content = json.loads(text)
    if not isinstance(content, dict):
        raise ValueError(f"its header is a {type(content).__name__}")
    fields = json.loads(content.pop(_METADATA)[_FIELDS])
    if not isinstance(fields, dict):
        raise ValueError(f"its fields are a {type(fields).__name__}")
    entries = {name: _Entry.model_validate(entry) for name, entry in content.items()}
    return fields, sorted(entries.items(), key=lambda item: item[1].data_offsets)


def _tensor(named: tuple[str, _Entry], piece: Piece) -> tuple[str, Tensor]:
    name, entry = named
    name.encode()  # half of a character is none
    dtype, (start, end) = _TYPES[entry.dtype], entry.data_offsets
    if not math.prod(entry.shape) * dtype.itemsize == end - start == len(piece):
        raise ValueError(f"{len(piece)} bytes for {entry.dtype} {entry.shape}")
    if not len(piece):
        return name, torch.empty(entry.shape, dtype=dtype)
    read = torch.frombuffer(piece, dtype=torch.uint8 if dtype == torch.bool else dtype).view(entry.shape)
    if dtype == torch.bool:
        if (read > 1).any():
            raise ValueError("a truth value is neither 0 nor 1")
        read = read.view(dtype)
    return name, read
