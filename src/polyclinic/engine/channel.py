"""One end of the way between the coordinator and a worker process.

A message is a frame in a pipe: its length and the bytes of a `Message`. Large tensors are not in the frame but in
blocks of shared memory (`polyclinic.engine.blocks`); the frame says which, and their descriptors follow through a
socket. With every frame each end tells the other which blocks it has done with.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from typing import IO, Any

from torch import Tensor

from polyclinic.communication.message import Fields, Message
from polyclinic.engine.blocks import Block, Borrower

Lend = Callable[[Tensor], Block | None]


class Channel:
    """Sends messages to another process, and reads those that it sends.

    Args:
        reading: frames that come.
        writing: frames that go.
        files: the way of descriptors; without it everything goes through the pipes.
    """

    def __init__(self, reading: IO[bytes], writing: IO[bytes], files: socket.socket | None) -> None:
        self._reading, self._writing, self._files = reading, writing, files
        self._borrower = Borrower()
        self._lent: dict[int, Block] = {}
        self._count = 0

    def send(self, message: Message, lend: Lend, about: Mapping[str, Any] = {}) -> None:
        """Write a frame.

        Args:
            message: what to send; when this returns its tensors may be changed.
            lend: gives blocks for tensors that are large enough.
            about: what else the reader is told; a key that begins with an underscore is the channel's own.

        Raises:
            OSError: the other process is gone.
        """
        blocks = {name: None if self._files is None else lend(tensor) for name, tensor in message.tensors.items()}
        lent = {name: block for name, block in blocks.items() if block is not None}
        numbers = range(self._count, self._count + len(lent))
        self._count += len(lent)
        self._lent |= dict(zip(numbers, lent.values(), strict=True))
        told = [
            [name, number, block.dtype, block.shape]
            for number, (name, block) in zip(numbers, lent.items(), strict=True)
        ]
        fields = {**about, "_fields": message.fields, "_blocks": told, "_order": list(message.tensors),
                  "_done": self._borrower.take_done()}  # fmt: skip
        inside = {name: tensor for name, tensor in message.tensors.items() if name not in lent}
        write_frame(self._writing, Message(fields, inside).to_bytes())
        if self._files is not None:
            for block in lent.values():
                socket.send_fds(self._files, [b"f"], [block.file])

    def receive(self) -> tuple[Fields, Message] | None:
        """What is told about the next message, and the message; None when the other process has closed its end.

        Raises:
            OSError, ValueError: the other process is gone, or what came is no message.
        """
        frame = read_frame(self._reading)
        if not frame:
            return None
        found = Message.from_bytes(frame)
        fields, tensors = found.fields, dict(found.tensors)
        for name, number, dtype, shape in fields.pop("_blocks"):
            tensors[name] = self._borrower.tensor(number, self._next_file(), dtype, shape)
        for number in fields.pop("_done"):
            del self._lent[number]
        message = Message(fields.pop("_fields"), {name: tensors[name] for name in fields.pop("_order")})
        return fields, message

    def _next_file(self) -> int:
        if self._files is None:
            raise ValueError("no way for descriptors")
        _, files, _, _ = socket.recv_fds(self._files, 1, 1)
        if not files:
            raise OSError("the other process is gone")
        return files[0]

    def forget(self) -> None:
        """The other process has ended: what was lent to it is free."""
        self._lent.clear()


def write_frame(stream: IO[bytes], data: bytes) -> None:
    """Write ``data`` with its length in front."""
    stream.write(len(data).to_bytes(8, "little"))
    stream.write(data)
    stream.flush()


def read_frame(stream: IO[bytes]) -> bytes:
    """What ``write_frame`` wrote; empty at the end of the stream."""
    length = int.from_bytes(stream.read(8), "little")
    return stream.read(length)
