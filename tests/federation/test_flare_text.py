"""What FLARE makes of each message besides carrying it."""

from __future__ import annotations

import pytest

from polyclinic.federation.flare_text import shorten_texts

pytest.importorskip("nvflare")


def test_no_text_is_made_of_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    from nvflare.fuel.utils.buffer_list import ConsumableBufferList

    parts = ConsumableBufferList([bytes(7), bytearray(5)])
    monkeypatch.setattr(ConsumableBufferList, "__repr__", list.__repr__)  # put back at the end
    assert "\\x00" in f"{parts}"
    shorten_texts()
    assert f"{parts}" == "12 bytes"
    assert list(parts) == [bytes(7), bytearray(5)]
    assert ConsumableBufferList.__str__ is object.__str__
