"""What FLARE does with large messages besides carrying them."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from polyclinic.federation.remote.large_messages import prepare

pytest.importorskip("nvflare")


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    from nvflare.fuel.f3.streaming.byte_streamer import TxTask
    from nvflare.fuel.utils.buffer_list import ConsumableBufferList

    monkeypatch.setattr(ConsumableBufferList, "__repr__", list.__repr__)
    monkeypatch.setattr(TxTask, "remove_task", TxTask.remove_task)
    gc.disable()
    yield
    gc.enable()


def test_no_text_is_made_of_a_message() -> None:
    from nvflare.fuel.utils.buffer_list import ConsumableBufferList

    parts = ConsumableBufferList([bytes(7), bytearray(5)])
    assert "\\x00" in f"{parts}"
    prepare()
    assert f"{parts}" == "12 bytes"
    assert list(parts) == [bytes(7), bytearray(5)]


@pytest.mark.parametrize("prepared", [True, False])
def test_what_is_left_of_a_message_that_was_sent_is_given_back(prepared: bool) -> None:
    from nvflare.fuel.f3.streaming.blob_streamer import BlobStream
    from nvflare.fuel.f3.streaming.byte_streamer import TxTask

    if prepared:
        prepare()
    stream = BlobStream(bytes(5), {})
    task = TxTask(None, 4, "channel", "topic", "Aachen", {}, stream, reliable=False, secure=False, optional=False)
    future, left = task.stream_future, weakref.ref(task)
    task.stop()
    assert future.result(timeout=1.0) == 0
    del task, future
    assert (left() is None) == prepared, "of FLARE's own there is a circle, which is what is mended"
