"""Vectors of real numbers that can be added while they are encrypted: CKKS, as TenSEAL computes it.

A ciphertext has 4096 numbers. On its way it is what it is made of, whole numbers modulo two primes; who adds
ciphertexts adds these, and needs no key. TenSEAL ends the process on some bytes that are no ciphertext, so it is given
none that came from elsewhere: what it reads is put together here, from numbers that were checked.

Source: Cheon, Kim, Kim and Song, Homomorphic encryption for arithmetic of approximate numbers, ASIACRYPT 2017.
"""

from __future__ import annotations

import hashlib
import math
import struct
import zlib
from collections.abc import Iterator
from functools import cache, cached_property
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch import Tensor

from polyclinic.shapes import Misfit

if TYPE_CHECKING:
    import tenseal as ts

#: Of the polynomials; a ciphertext has half as many numbers.
DEGREE = 8192
SLOTS = DEGREE // 2
#: Bits of the primes: ciphertexts are modulo the first two, encryption needs the third, too.
PRIME_BITS = (60, 60, 60)
#: So many bits all primes may have together at this degree, that breaking it takes 2^128 steps: Albrecht et al.,
#: Homomorphic encryption standard, 2018, table 1.
MOST_PRIME_BITS = 218
#: Numbers are encrypted in steps of 1 / SCALE.
SCALE = 2.0**92
#: No sum may be larger: SCALE times this is less than half of the product of the first two primes, which is over 2^119.
MOST = 2.0**26
#: Of the numbers in one ciphertext that was made anew, standard deviation of what encryption adds. Each coefficient of
#: its two polynomials is rounded once (variance 1/12), and two thirds of the secret's coefficients are 1 or -1.
NOISE = math.sqrt(DEGREE / 2 * (1 + 2 * DEGREE / 3) / 12) / SCALE

#: Whole numbers of a ciphertext: of two polynomials modulo two primes.
_SHAPE = (2, len(PRIME_BITS) - 1, DEGREE)
NUMBERS = math.prod(_SHAPE)
#: Before the numbers: identity of the parameters, form, three sizes, scale, correction, header and length of an array.
_MEMBERS = 97
#: Magic number, its own size, version (two bytes), compression, nothing, size of all: of what SEAL writes.
_HEADER = struct.Struct("<HBBBBHQ")
_PLAIN, _ZLIB, _ZSTD = range(3)
#: No key has more bytes.
MOST_KEY_BYTES = 2**20

#: Keys that are in use in this process, so that sites that share it read each once.
_READ: WeakValueDictionary[bytes, Key] = WeakValueDictionary()


def ciphertexts(length: int) -> int:
    """How many a vector of so many numbers needs."""
    return -(-length // SLOTS)


@cache
def primes() -> tuple[int, ...]:
    """The two modulo which ciphertexts are added."""
    from tenseal.sealapi import CoeffModulus

    return tuple(int(prime.value()) for prime in CoeffModulus.Create(DEGREE, list(PRIME_BITS))[:-1])


def check(encrypted: Tensor, length: int) -> Tensor:
    """Ciphertexts of a vector, each by its polynomials and primes ``[C, 2, 2, 8192]``.

    Raises:
        Misfit: they can't be that.
    """
    expected = NUMBERS * ciphertexts(length)
    if encrypted.dtype is not torch.int64 or tuple(encrypted.shape) != (expected,):
        raise Misfit(f"got {str(encrypted.dtype).removeprefix('torch.')} {list(encrypted.shape)}, expected int64 "
                     f"[{expected}], ciphertexts of {length} numbers")  # fmt: skip
    found = encrypted.view(-1, *_SHAPE)
    for place, prime in enumerate(primes()):
        low, high = (int(one) for one in found[:, :, place].aminmax())
        if low < 0 or high >= prime:
            raise Misfit("got whole numbers that are not those of a ciphertext")
    return found


def add_(total: Tensor, other: Tensor) -> Tensor:
    """Adds checked ciphertexts ``[C, 2, 2, 8192]`` to others, in place."""
    for mine, added in zip(total, other, strict=True):  # one at a time, which stays in the processor's cache
        mine.add_(added)
        for place, prime in enumerate(primes()):
            numbers = mine[:, place]
            numbers.sub_(prime)
            numbers.add_((numbers < 0).long().mul_(prime))
    return total


class Key:
    """The key of some parties, who alone can encrypt and decrypt.

    Attributes:
        context: TenSEAL's, with the secret key and the public one.
    """

    def __init__(self, context: ts.Context) -> None:
        self.context = context

    @classmethod
    def new(cls) -> Key:
        """A new one, from the operating system's randomness."""
        import tenseal as ts

        key = cls(ts.context(ts.SCHEME_TYPE.CKKS, DEGREE, coeff_mod_bit_sizes=list(PRIME_BITS), n_threads=1))
        key.context.global_scale = SCALE
        return _READ.setdefault(hashlib.sha256(key.text).digest(), key)

    @classmethod
    def read(cls, text: bytes) -> Key:
        """From what ``text`` gave, at another of the parties.

        Raises:
            Misfit: it is something else.
        """
        import tenseal as ts

        name = hashlib.sha256(text).digest()
        if name in _READ:
            return _READ[name]
        if len(text) > MOST_KEY_BYTES:
            raise Misfit(f"got a key of {len(text)} bytes, expected {MOST_KEY_BYTES} at most")
        try:
            key = cls(ts.context_from(text, n_threads=1))
            fits = key.context.is_private() and key.context.has_public_key() and key.context.global_scale == SCALE
        except (ValueError, RuntimeError):
            fits = False
        if not fits:
            raise Misfit("got something else than a key to encrypt with")
        return _READ.setdefault(name, key)

    @cached_property
    def text(self) -> bytes:
        """The secret and the public key; the keys to multiply with are left out."""
        text: bytes = self.context.serialize(
            save_public_key=True, save_secret_key=True, save_galois_keys=False, save_relin_keys=False
        )  # fmt: skip
        return text

    def encrypt(self, numbers: Tensor) -> Tensor:
        """Ciphertexts of finite numbers up to `MOST`, float64 ``[L]``; their whole numbers, int64 ``[C · 32768]``."""
        import tenseal as ts

        found = torch.empty(ciphertexts(len(numbers)), NUMBERS, dtype=torch.int64)
        filled = torch.zeros(SLOTS, dtype=torch.float64)
        for chunk, row in zip(numbers.split(SLOTS), found, strict=True):
            filled.zero_()
            filled[: len(chunk)] = chunk
            _, members, _ = _taken_apart(ts.ckks_vector(self.context, filled.tolist()).serialize())
            row.copy_(torch.frombuffer(bytearray(members[_MEMBERS:]), dtype=torch.int64))
        return found.flatten()

    def decrypt(self, encrypted: Tensor, length: int) -> Tensor:
        """The numbers, float64 ``[L]``, of checked ciphertexts ``[C, 2, 2, 8192]``, to about 50 bits of the largest.

        They are those that were encrypted plus noise that depends on the key: see `NOISE`.
        """
        import tenseal as ts

        found = torch.empty(len(encrypted), SLOTS, dtype=torch.float64)
        for ciphertext, row in zip(encrypted, found, strict=True):
            vector = ts.ckks_vector_from(self.context, self._put_together(ciphertext))
            row.copy_(torch.tensor(vector.decrypt(), dtype=torch.float64))
        return found.flatten()[:length]

    @cached_property
    def _envelope(self) -> tuple[bytes, bytes, bytes]:
        import tenseal as ts

        before, members, after = _taken_apart(ts.ckks_vector(self.context, [0.0] * SLOTS).serialize())
        return before, members[:_MEMBERS], after

    def _put_together(self, numbers: Tensor) -> bytes:
        before, members, after = self._envelope
        content = members + numbers.contiguous().numpy().tobytes()
        magic, size, major, minor, _, nothing, _ = _HEADER.unpack(before[-_HEADER.size :])
        header = _HEADER.pack(magic, size, major, minor, _PLAIN, nothing, _HEADER.size + len(content))
        ciphertext = header + content
        return before[: -_HEADER.size] + _varint(len(ciphertext)) + ciphertext + after


def _taken_apart(text: bytes) -> tuple[bytes, bytes, bytes]:
    """What TenSEAL wrote of one ciphertext here: what is before it, with its header; its content; what is after it.

    Its fields are the number of slots (1), the ciphertext (2) and the scale (3).
    """
    fields = {number: (start, first, end) for number, start, first, end in _fields(text)}
    start, first, end = fields[2]
    header = text[first : first + _HEADER.size]
    *_, compression, _, _ = _HEADER.unpack(header)
    packed = text[first + _HEADER.size : end]
    if compression == _ZSTD:
        import zstandard

        content = zstandard.ZstdDecompressor().decompressobj().decompress(packed)
    else:
        content = zlib.decompress(packed) if compression == _ZLIB else packed
    if len(content) != _MEMBERS + 8 * NUMBERS:
        raise ValueError(f"a ciphertext has {len(content)} bytes; expected {_MEMBERS + 8 * NUMBERS}")
    return text[: start + 1] + header, content, text[end:]


def _fields(text: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Number of each field of a message of Protocol Buffers, where it starts, and where its content starts and ends."""
    place = 0
    while place < len(text):
        start, kind = place, text[place] & 7
        first, length = (place + 1, 8) if kind == 1 else _read_varint(text, place + 1)
        place = first + length
        yield text[start] >> 3, start, first, place


def _read_varint(text: bytes, place: int) -> tuple[int, int]:
    """Where a number of 7 bits a byte ends, and the number."""
    value = shift = 0
    while True:
        value |= (text[place] & 127) << shift
        place, shift = place + 1, shift + 7
        if text[place - 1] < 128:
            return place, value


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])


def normal(count: int, key: bytes) -> Tensor:
    """Normal random numbers, float64 ``[n]``, from a key of 32 bytes that serves nothing else: Box and Muller."""
    from polyclinic.secure.masks import add_masks_

    half = -(-count // 2)
    drawn = add_masks_(torch.zeros(2 * half, dtype=torch.int64), [(key, 1)]).view(2, half)
    uniform = drawn.bitwise_right_shift_(11).bitwise_and_(2**53 - 1).double().add_(0.5).mul_(2.0**-53)  # never 0
    radius, angle = uniform[0].log_().mul_(-2).sqrt_(), uniform[1].mul_(2 * np.pi)
    return torch.cat([radius * angle.cos(), radius * angle.sin()])[:count]
