"""A step of the channel that packs bytes without loss."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from polyclinic.parts import CHANNEL_PARTS, Memory, Part, ServerEnd, SiteEnd
from polyclinic.shapes import Misfit, Shaped

_TYPES = (
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool,
)  # fmt: skip
#: Type, number of dimensions, and whether what follows is packed.
_HEAD = struct.Struct("<BB?")
#: More bytes than these, or four times the model, come out of no tensor.
_MOST = 2**23


@CHANNEL_PARTS.add("zstd")
class Zstd(Part):
    """Packs the bytes of all that leaves a site, without loss: first those of all signs and exponents, which are alike.

    It pays after steps that leave many equal bytes (places of `top_k`, `int8`); numbers of 32 bits get little smaller.
    What would not get smaller is sent as it is.

    Source: Collet and Kucherawy, Zstandard compression and the application/zstd media type, RFC 8878.

    Args:
        level: of effort.
    """

    encodes: ClassVar = True
    packs: ClassVar = True
    requires: ClassVar = ("zstandard", "zstd")

    def __init__(self, *, level: Annotated[int, Field(ge=1, le=19)] = 3) -> None:
        self.level = level

    def at_site(self) -> SiteEnd:
        """Packs."""
        return _Packing(self.level)

    def at_server(self) -> ServerEnd:
        """Unpacks."""
        return _Unpacking()

    def leaves(self, before: Mapping[str, Shaped], sizes: Mapping[str, int]) -> Mapping[str, Shaped]:
        """Bytes of each tensor."""
        return {name: Shaped("uint8", f"N {name}", group=shaped.group) for name, shaped in before.items()}


class _Packing(SiteEnd):
    def __init__(self, level: int) -> None:
        self.level = level

    def close(self, packed: Memory) -> Memory:
        """Bytes of each tensor."""
        from zstandard import ZstdCompressor

        press = ZstdCompressor(level=self.level)
        return {name: pack(tensor, press) for name, tensor in packed.items()}


class _Unpacking(ServerEnd):
    def open(self, packed: Memory) -> Memory:
        """The tensors as they were."""
        most = max(_MOST, 4 * 4 * (len(self.now.weights) + len(self.now.statistics)))
        return {name: unpack(written, most, name) for name, written in packed.items()}


def pack(tensor: Tensor, press: Any) -> Tensor:
    """A tensor as bytes ``[n]``; ``press`` is a ``zstandard.ZstdCompressor``."""
    contents = tensor.contiguous().flatten().view(torch.uint8) if tensor.numel() else torch.empty(0, dtype=torch.uint8)
    size = tensor.element_size()
    planes = contents.view(-1, size).T.contiguous() if size > 1 and len(contents) else contents
    packed = press.compress(planes.numpy())
    smaller = len(packed) < len(contents)
    head = _HEAD.pack(_TYPES.index(tensor.dtype), tensor.dim(), smaller)
    head += struct.pack(f"<{tensor.dim()}q", *tensor.shape)
    body = torch.frombuffer(bytearray(packed), dtype=torch.uint8) if smaller else contents
    return torch.cat([torch.frombuffer(bytearray(head), dtype=torch.uint8), body])


def unpack(written: Tensor, most: int, name: str = "") -> Tensor:
    """What `pack` was given, of so many bytes at ``most``.

    Raises:
        Misfit: `pack` can't have given it.
    """
    from zstandard import ZstdDecompressor, ZstdError, frame_content_size

    content = written.contiguous().numpy().tobytes()
    kind, dimensions, smaller = _HEAD.unpack_from(content) if len(content) >= _HEAD.size else (len(_TYPES), 0, False)
    start = _HEAD.size + 8 * dimensions
    if kind >= len(_TYPES) or dimensions > 8 or len(content) < start:
        raise Misfit(f"{name}: got {len(content)} bytes that begin with no head")
    shape, dtype = struct.unpack_from(f"<{dimensions}q", content, _HEAD.size), _TYPES[kind]
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize > most:
        raise Misfit(f"{name}: got a tensor {list(shape)}, expected {most} bytes at most")
    length, body = math.prod(shape) * dtype.itemsize, content[start:]
    if smaller:
        try:
            told = frame_content_size(body)
            found = ZstdDecompressor().decompress(body) if told == length else b""
        except ZstdError:
            found = b""
        if len(found) != length or not length:
            raise Misfit(f"{name}: got bytes that can't be unpacked to a tensor {list(shape)}")
        planes = torch.frombuffer(bytearray(found), dtype=torch.uint8)
        contents = planes.view(dtype.itemsize, -1).T.contiguous().flatten()
    elif len(body) != length:
        raise Misfit(f"{name}: got {len(body)} bytes, expected {length} of a tensor {list(shape)}")
    else:
        contents = written[start:].clone()  # whose start need not fit the type
    if dtype is torch.bool and length and int(contents.max()) > 1:
        raise Misfit(f"{name}: got bytes that are neither true nor false")
    return contents.view(dtype).reshape(shape) if length else torch.empty(shape, dtype=dtype)
