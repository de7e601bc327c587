"""What FLARE makes of each message besides carrying it."""

from __future__ import annotations


def shorten_texts() -> None:
    """Let the parts of a message that has arrived have a short text in this process.

    FLARE writes each into a line for finding faults, which it makes whether or not anybody keeps it: with a model of
    1 GB a text of 3 GB, and at a site most of the time of a round. Called in processes that models are sent to.
    """
    from nvflare.fuel.utils.buffer_list import ConsumableBufferList

    ConsumableBufferList.__repr__ = _short


def _short(parts: list[bytes]) -> str:
    return f"{sum(map(len, parts))} bytes"
