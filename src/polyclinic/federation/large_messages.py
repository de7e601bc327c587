"""What FLARE does with large messages besides carrying them, and what is done about it."""

from __future__ import annotations

import gc

#: Bytes of a message after which it pays to look for what is left of it.
LARGE = 2**20


def prepare() -> None:
    """Make a process ready for large messages; called once, when all is imported and before the first message.

    FLARE writes each message that arrives into a line for finding faults, which it makes whether or not anybody keeps
    it: of a model of 1 GB a text of 3 GB, and at a site most of the time of a round. It is made short.
    """
    from nvflare.fuel.utils.buffer_list import ConsumableBufferList

    ConsumableBufferList.__repr__ = _short
    gc.collect()
    gc.freeze()  # what is there now stays, and is not looked through by `release`


def release(size: int) -> None:
    """Give back the memory of a message that was sent or read.

    Objects of FLARE that hold a message refer to each other in circles, which Python finds late: where messages are
    large and objects few, many messages later.

    Args:
        size: bytes of the message.
    """
    if size >= LARGE:
        gc.collect()


def _short(parts: list[bytes]) -> str:
    return f"{sum(map(len, parts))} bytes"
