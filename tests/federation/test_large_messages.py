"""What FLARE does with large messages besides carrying them."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from polyclinic.federation.large_messages import LARGE, prepare, release

pytest.importorskip("nvflare")


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    from nvflare.fuel.utils.buffer_list import ConsumableBufferList

    monkeypatch.setattr(ConsumableBufferList, "__repr__", list.__repr__)
    gc.disable()
    yield
    gc.enable()
    gc.unfreeze()


class Sent:
    """Refers to itself, as what FLARE keeps of a message does."""

    def __init__(self) -> None:
        self.task = self


def test_no_text_is_made_of_a_message() -> None:
    from nvflare.fuel.utils.buffer_list import ConsumableBufferList

    parts = ConsumableBufferList([bytes(7), bytearray(5)])
    assert "\\x00" in f"{parts}"
    prepare()
    assert f"{parts}" == "12 bytes"
    assert list(parts) == [bytes(7), bytearray(5)]


@pytest.mark.parametrize(("size", "gone"), [(LARGE, True), (LARGE - 1, False)])
def test_what_is_left_of_a_large_message_is_given_back(size: int, gone: bool) -> None:
    prepare()
    left = weakref.ref(Sent())
    assert left() is not None
    release(size)
    assert (left() is None) == gone
