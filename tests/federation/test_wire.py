"""What goes between the ends: answers, and failures in their place."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polyclinic.communication.message import Message
from polyclinic.errors import (
    TITLES,
    DataError,
    FederationError,
    PolyclinicError,
    SiteError,
    StudyError,
    TrainingError,
)
from polyclinic.federation.remote.wire import answer_from_pieces, failure_to_pieces


@pytest.mark.parametrize("kind", [DataError, FederationError, StudyError, TrainingError, PolyclinicError])
def test_a_failure_arrives_as_it_was(kind: type[PolyclinicError]) -> None:
    for code in TITLES:
        found = answer_from_pieces("Aachen", failure_to_pieces(kind(code, "What was got.", "What to do.")))
        assert isinstance(found, PolyclinicError)
        assert str(found) == f"{code} What was got. What to do."
        assert type(found) is (SiteError if kind is PolyclinicError else kind)


def test_a_site_error_says_whose_it_is() -> None:
    found = answer_from_pieces("Aachen", failure_to_pieces(SiteError("P401", "It failed.", site="Bonn")))
    assert isinstance(found, SiteError)
    assert found.site == "Aachen"


def test_a_long_failure_is_cut() -> None:
    found = answer_from_pieces("Aachen", failure_to_pieces(DataError("P203", "x" * 10_000, "y" * 10_000)))
    assert isinstance(found, DataError)
    assert len(str(found)) < 7000


def test_an_answer_arrives_as_it_was() -> None:
    sent = Message({"a": [1, None]}, {"change": torch.arange(5.0)})
    found = answer_from_pieces("Aachen", sent.to_pieces())
    assert isinstance(found, Message)
    assert found.fields == sent.fields
    assert torch.equal(found.tensors["change"], sent.tensors["change"])


@given(st.lists(st.binary(max_size=200)) | st.binary(max_size=200) | st.none() | st.lists(st.text()) | st.integers())
def test_anything_else_is_the_sites_failure(data: object) -> None:
    assert isinstance(answer_from_pieces("Aachen", data), SiteError)


@pytest.mark.parametrize(
    "failure",
    [{}, {"kind": "DataError"}, {"kind": "DataError", "code": "P999", "message": "", "hint": ""},
     {"kind": "SystemExit", "code": "P203", "message": "", "hint": "", "more": 1}, "text", None],
)  # fmt: skip
def test_a_failure_that_is_none_is_the_sites_failure(failure: object) -> None:
    found = answer_from_pieces("Aachen", Message({"failure": failure}).to_pieces())
    assert isinstance(found, SiteError)
    assert found.code == "P401"
