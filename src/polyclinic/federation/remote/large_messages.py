"""What FLARE does with large messages besides carrying them, and what is done about it."""

from __future__ import annotations

from typing import Any


def prepare() -> None:
    """Make a process ready for large messages; called once, before the first message.

    FLARE writes each message that arrives into a line for finding faults, which it makes whether or not anybody keeps
    it: of a model of 1 GB a text of 3 GB, and at a site most of the time of a round. It is made short.

    What FLARE keeps of a message that was sent refers to itself in a circle, which Python finds late: where messages
    are large and objects few, many messages later. The circle is opened when the message has been sent.
    """
    from nvflare.fuel.f3.streaming.byte_streamer import TxTask
    from nvflare.fuel.utils.buffer_list import ConsumableBufferList

    remove = TxTask.remove_task

    def remove_open(task: Any) -> None:
        remove(task)
        if task.stream_future is not None:
            task.stream_future.task_handle = None  # by which sending could have been stopped

    ConsumableBufferList.__repr__ = _short
    TxTask.remove_task = remove_open


def _short(parts: list[bytes]) -> str:
    return f"{sum(map(len, parts))} bytes"
