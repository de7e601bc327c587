"""Memory that two processes share: one writes a tensor into a block, others read it there.

A block is a file without a name that lives in memory. Its descriptor goes to the reader through a socket, so no name is
left behind, however a process ends. It has no part in the room of ``/dev/shm``, which is 64 MB in many containers.
Whoever wrote a block may write it again when all readers have freed their tensors; they say so, see
`polyclinic.engine.channel`.
"""

from __future__ import annotations

import errno
import math
import mmap
import os
import shutil
import tempfile
import threading
import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

#: Types of numbers that blocks hold, by name.
DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16,
                  torch.int8, torch.uint8, torch.bool)
}  # fmt: skip

#: Smaller tensors cost less in a pipe than a block of their own.
LEAST_BYTES = 2**18
#: How many blocks that nobody reads are kept to be written again: memory that is new costs several times the copy.
MOST_FREE = 4


class _Memory:
    """A mapped file without a name."""

    def __init__(self, size: int) -> None:
        self.size, self.file = size, _new_file(size)
        closing = weakref.finalize(self, os.close, self.file)
        closing.atexit = False
        self.mapping = mmap.mmap(self.file, size)


class Block:
    """A tensor as it was when it was lent; when nobody refers to it any more, its memory is written again.

    Attributes:
        file: descriptor that readers are given.
        dtype: name of the type of the numbers.
        shape: of the tensor.
    """

    def __init__(self, memory: _Memory, tensor: Tensor, back: Callable[[_Memory], None]) -> None:
        torch.frombuffer(memory.mapping, dtype=tensor.dtype, count=tensor.numel()).view(tensor.shape).copy_(tensor)
        self.file, self.dtype, self.shape = memory.file, str(tensor.dtype).removeprefix("torch."), list(tensor.shape)
        ending = weakref.finalize(self, back, memory)
        ending.atexit = False


class Lender:
    """Blocks that this process writes.

    Args:
        most: how many there may be at a time. Each needs an open file at both ends, of which systems allow few.

    Attributes:
        reason: why a block could not be had, the last time that happened; else empty.
    """

    def __init__(self, most: int) -> None:
        self.most, self.reason = most, ""
        self._free: deque[_Memory] = deque()  # memory comes back in any thread and at any time, so without a lock
        self._count = 0
        self._lock = threading.Lock()

    def lend(self, tensor: Tensor) -> Block | None:
        """A block with a copy of ``tensor``; None for one that belongs into a pipe, or where there is no memory."""
        size = tensor.numel() * tensor.element_size()
        if size < LEAST_BYTES or tensor.layout is not torch.strided or tensor.dtype not in DTYPES.values():
            return None
        memory = self._memory(size)
        return None if memory is None else Block(memory, tensor.detach(), self._free.append)

    def _memory(self, size: int) -> _Memory | None:
        """Free memory of about this size, or else new memory."""
        with self._lock:
            free = [self._free.popleft() for _ in range(len(self._free))]
            fitting = min((m for m in free if size <= m.size <= 2 * size), key=lambda m: m.size, default=None)
            kept = [memory for memory in free if memory is not fitting]
            first = max(len(kept) - MOST_FREE, 0)
            if fitting is None and self._count - first >= self.most:
                first += 1  # one that does not fit makes room
            self._free.extend(kept[first:])
            self._count -= len(kept[:first])
            if fitting is not None or self._count >= self.most:
                return fitting
            try:
                memory = _Memory(size)
            except OSError as error:
                self.reason = error.strerror or type(error).__name__
                return None
            self._count += 1
            return memory


class Borrower:
    """Blocks of another process as tensors of this one.

    Attributes:
        done: numbers of blocks whose tensors are gone, so that the lender may write them again.
    """

    def __init__(self) -> None:
        self.done: deque[int] = deque()

    def tensor(self, number: int, file: int, dtype: str, shape: Sequence[int]) -> Tensor:
        """A block as a tensor, without copying it. Whoever writes into it gets pages of his own, which nobody sees.

        Args:
            number: of the block, for ``done``.
            file: its descriptor, which is closed.
            dtype: one of `DTYPES`.
            shape: of the tensor.

        Raises:
            OSError, ValueError: the block is smaller, or can't be mapped.
        """
        try:
            mapping = mmap.mmap(file, math.prod(shape) * DTYPES[dtype].itemsize, access=mmap.ACCESS_COPY)
        finally:
            os.close(file)
        ending = weakref.finalize(mapping, self.done.append, number)  # the tensor's memory refers to the mapping
        ending.atexit = False
        return torch.frombuffer(mapping, dtype=DTYPES[dtype]).view(list(shape))

    def take_done(self) -> list[int]:
        """What was in ``done``, which is empty then."""
        return [self.done.popleft() for _ in range(len(self.done))]


def _new_file(size: int) -> int:
    """A file without a name, in memory if the system has such files, with room for ``size`` bytes.

    Raises:
        OSError: there is no room.
    """
    if hasattr(os, "memfd_create"):
        file = os.memfd_create("polyclinic")
    else:
        with tempfile.TemporaryFile() as temporary:
            file = os.dup(temporary.fileno())
    try:
        _reserve(file, size)
    except OSError:
        os.close(file)
        raise
    return file


def _reserve(file: int, size: int) -> None:
    """Take the room now: if there were none later, the write would end the process with SIGBUS."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)
        return
    if shutil.disk_usage(tempfile.gettempdir()).free < 2 * size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    os.truncate(file, size)


def most_blocks(processes: int) -> int:
    """How many blocks each of so many processes that write to one another may have, by the files it may open.

    One process reads the blocks of all others. A block is two files at its writer and one at each reader; half of what
    the system allows is left to everything else.
    """
    try:
        import resource
    except ImportError:
        return 0
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = 2**16 if soft == resource.RLIM_INFINITY else soft
    return max(allowed // (4 * processes), 1)


class OncePerCall:
    """Lends tensors that go to several readers, each written once.

    Args:
        lender: writes them.
        tensors: all that will be asked for, each as often; they stay alive and as they are until then.
    """

    def __init__(self, lender: Lender, tensors: Iterable[Tensor]) -> None:
        self._lender = lender
        uses = Counter(id(tensor) for tensor in tensors)
        self._locks = {number: threading.Lock() for number, count in uses.items() if count > 1}
        self._written: dict[int, Block | None] = {}

    def lend(self, tensor: Tensor) -> Block | None:
        """See `Lender.lend`."""
        number = id(tensor)
        if number not in self._locks:
            return self._lender.lend(tensor)
        with self._locks[number]:
            if number not in self._written:
                self._written[number] = self._lender.lend(tensor)
            return self._written[number]
