"""Masks: the keystream of AES-256 in counter mode, as whole numbers that are added to a vector.

A key gives one mask, and each element has its own 4 or 8 bytes of the keystream, little endian. So all 2^32 or 2^64
values of an element are equally likely, and so are all 2^k values once it is reduced modulo 2^k. Keys are used once:
the counter starts at zero. An element may also be a number of several words of 64 bits, the lowest first: then its
words are added with what is carried from one to the next, so that a sum says nothing of the carries of its parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from polyclinic.secure.optional import require_cryptography

#: Bytes of the vector that are worked on at a time, so that they and the keystream stay in the processor's cache.
CHUNK = 1 << 18
KEY_BYTES = 32
Whole = npt.NDArray[np.signedinteger[Any]]


def add_masks_(vector: Tensor, masks: Sequence[tuple[bytes, int]], words: int = 1) -> Tensor:
    """Adds masks to a vector, or takes them off, in place.

    Args:
        vector: integers ``[T]`` of 32 or 64 bits, contiguous, in the processor's memory. Sums overflow without harm:
            they are modulo 2^32 or 2^64.
        masks: for each its key, 32 bytes that serve nothing else, and 1 to add it or -1 to take it off.
        words: of 64 bits that an element has; the vector is ``[T words]``, and sums are modulo 2^(64 words).

    Returns:
        The vector.

    Raises:
        ValueError: the vector, a key or a sign is not as said above.
        PolyclinicError: P503, the package cryptography is missing.
    """
    require_cryptography()
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    _check(vector, masks, words)
    streams = [(Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor(), sign) for key, sign in masks]
    values = vector.numpy()
    zeros, drawn = bytes(CHUNK), bytearray(CHUNK + 15)  # a cipher wants room for a block more
    whole = CHUNK // values.itemsize // words * words  # no element is cut in two
    mask = np.frombuffer(drawn, dtype=f"<i{values.itemsize}", count=whole)
    for start in range(0, len(values), len(mask)):
        chunk = values[start : start + len(mask)]
        for stream, sign in streams:
            stream.update_into(memoryview(zeros)[: chunk.nbytes], drawn)
            _add_(chunk, mask[: len(chunk)], words, sign)
    return vector


def add_(vector: Tensor, other: Tensor, words: int = 1) -> Tensor:
    """Adds a vector to another one of its type and length in place; see `add_masks_`."""
    _add_(vector.numpy(), other.numpy(), words, 1)
    return vector


def _add_(values: Whole, other: Whole, words: int, sign: int) -> None:
    if words == 1:
        (np.add if sign > 0 else np.subtract)(values, other, out=values)
        return
    left, right = (numbers.view(np.uint64).reshape(-1, words) for numbers in (values, other))
    carried = np.zeros(len(left), dtype=np.uint64)
    for place in range(words):
        own, its = left[:, place], right[:, place]
        if sign > 0:
            first = own + its
            total = first + carried
            over = (first < own) | (total < first)
        else:
            first = own - its
            total = first - carried
            over = (first > own) | (total > first)
        left[:, place], carried = total, over.astype(np.uint64)


def reduce_(vector: Tensor, bits: int) -> Tensor:
    """Brings a vector to 0 .. 2^bits - 1 in place, modulo 2^bits; with all bits of its words nothing changes."""
    if bits < 8 * vector.itemsize:
        vector.bitwise_and_((1 << bits) - 1)
    return vector


def signed_(vector: Tensor, bits: int) -> Tensor:
    """Brings a vector to -2^(bits-1) .. 2^(bits-1) - 1 in place, modulo 2^bits; likewise."""
    spare = 8 * vector.itemsize - bits
    if spare > 0:
        vector.bitwise_left_shift_(spare).bitwise_right_shift_(spare)
    return vector


def container(bits: int) -> torch.dtype:
    """The type that holds whole numbers modulo 2^bits, or a word of them."""
    return torch.int32 if bits <= 32 else torch.int64


def _check(vector: Tensor, masks: Sequence[tuple[bytes, int]], words: int) -> None:
    if vector.dtype not in (torch.int32, torch.int64) or vector.dim() != 1 or not vector.is_contiguous():
        raise ValueError(f"got {vector.dtype} {list(vector.shape)}; expected contiguous int32 or int64 [T]")
    if vector.device.type != "cpu":
        raise ValueError(f"the vector is on {vector.device}; masks are added in the processor's memory")
    if words > 1 and (vector.dtype != torch.int64 or len(vector) % words):
        raise ValueError(f"got {vector.dtype} {list(vector.shape)}; expected int64, {words} for each element")
    for key, sign in masks:
        if len(key) != KEY_BYTES or sign not in (-1, 1):
            raise ValueError(f"a mask has a key of {len(key)} bytes and sign {sign}; expected {KEY_BYTES}, and 1 or -1")
