"""Masks: the keystream of AES-256 in counter mode, as whole numbers that are added to a vector.

A key gives one mask, and each element has its own 4 or 8 bytes of the keystream, little endian. So all 2^32 or 2^64
values of an element are equally likely, and so are all 2^k values once it is reduced modulo 2^k. Keys are used once:
the counter starts at zero.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from polyclinic.secure.optional import require_cryptography

#: Bytes of the vector that are worked on at a time, so that they and the keystream stay in the processor's cache.
CHUNK = 1 << 18
KEY_BYTES = 32


def add_masks_(vector: Tensor, masks: Sequence[tuple[bytes, int]]) -> Tensor:
    """Adds masks to a vector, or takes them off, in place.

    Args:
        vector: integers ``[T]`` of 32 or 64 bits, contiguous, in the processor's memory. Sums overflow without harm:
            they are modulo 2^32 or 2^64.
        masks: for each its key, 32 bytes that serve nothing else, and 1 to add it or -1 to take it off.

    Returns:
        The vector.

    Raises:
        ValueError: the vector, a key or a sign is not as said above.
        PolyclinicError: P503, the package cryptography is missing.
    """
    require_cryptography()
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    _check(vector, masks)
    streams = [(Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor(), sign) for key, sign in masks]
    values = vector.numpy()
    zeros, drawn = bytes(CHUNK), bytearray(CHUNK + 15)  # a cipher wants room for a block more
    mask = np.frombuffer(drawn, dtype=f"<i{values.itemsize}", count=CHUNK // values.itemsize)
    for start in range(0, len(values), len(mask)):
        chunk = values[start : start + len(mask)]
        for stream, sign in streams:
            stream.update_into(memoryview(zeros)[: chunk.nbytes], drawn)
            (np.add if sign > 0 else np.subtract)(chunk, mask[: len(chunk)], out=chunk)
    return vector


def reduce_(vector: Tensor, bits: int) -> Tensor:
    """Brings a vector to 0 .. 2^bits - 1 in place, modulo 2^bits; with all bits of its type nothing changes."""
    if bits < 8 * vector.itemsize:
        vector.bitwise_and_((1 << bits) - 1)
    return vector


def signed_(vector: Tensor, bits: int) -> Tensor:
    """Brings a vector to -2^(bits-1) .. 2^(bits-1) - 1 in place, modulo 2^bits."""
    spare = 8 * vector.itemsize - bits
    if spare:
        vector.bitwise_left_shift_(spare).bitwise_right_shift_(spare)
    return vector


def container(bits: int) -> torch.dtype:
    """The type that holds whole numbers modulo 2^bits."""
    return torch.int32 if bits <= 32 else torch.int64


def _check(vector: Tensor, masks: Sequence[tuple[bytes, int]]) -> None:
    if vector.dtype not in (torch.int32, torch.int64) or vector.dim() != 1 or not vector.is_contiguous():
        raise ValueError(f"got {vector.dtype} {list(vector.shape)}; expected contiguous int32 or int64 [T]")
    if vector.device.type != "cpu":
        raise ValueError(f"the vector is on {vector.device}; masks are added in the processor's memory")
    for key, sign in masks:
        if len(key) != KEY_BYTES or sign not in (-1, 1):
            raise ValueError(f"a mask has a key of {len(key)} bytes and sign {sign}; expected {KEY_BYTES}, and 1 or -1")
