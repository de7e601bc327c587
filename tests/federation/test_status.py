"""Where a study is: what is kept account of, and the page of it."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from polyclinic.communication.message import Message
from polyclinic.federation.remote.engine import Line
from polyclinic.federation.watching.page import STATUS_PAGE, size_text, status_page
from polyclinic.federation.watching.status import MOST_ROUNDS, Status, Watch, read_status
from polyclinic.federation.watching.terminal import shown


def watched() -> Watch:
    """A study of two sites in its second training."""
    lines = {"site-1": Line(), "site-2": Line()}
    watch = Watch("Nodules <b>", "3f1c09a2b7de" * 4, "auc", lines)
    watch.renamed({"site-1": "Bonn", "site-2": "Aachen"}, {"Bonn": lines["site-1"], "Aachen": lines["site-2"]})
    lines["site-1"].lost, lines["site-1"].received, lines["site-1"].heard = True, 12_345, watch.since - 300
    watch._jobs = 4
    watch.job(0, "fedavg, fold 1", False)
    watch.round(1, 2)
    watch.job(1, "fedavg, fold 2", False)
    for number, loss in enumerate([0.7, 0.5, 0.4], start=1):
        watch.answered("Aachen", "evaluate", Message({"cases": 30, "loss": loss, "metric": 0.8}))
        watch.answered("Bonn", "evaluate", Message({"cases": 10, "loss": loss + 0.4, "metric": 0.6}))
        watch.round(number, 3)
    return watch


def test_validation_is_the_mean_over_cases() -> None:
    last = watched().status().validations[-1]
    assert (last.round, last.sites) == (3, 2)
    assert last.loss == pytest.approx((30 * 0.4 + 10 * 0.8) / 40)
    assert last.metric == pytest.approx((30 * 0.8 + 10 * 0.6) / 40)


def test_a_value_that_is_missing_or_not_finite_makes_no_mean() -> None:
    watch = watched()
    watch.answered("Aachen", "evaluate", Message({"cases": 30, "loss": float("nan"), "metric": None}))
    watch.answered("Bonn", "evaluate", Message({"cases": 10, "loss": 0.3, "metric": 0.6}))
    watch.round(4, 9)
    last = watch.status().validations[-1]
    assert (last.loss, last.metric) == (None, None)
    watch.answered("Bonn", "evaluate", Message({"loss": "x"}))  # no answer that the schema knows
    watch.round(5, 9)


def test_rounds_of_a_long_training_are_not_kept_for_ever() -> None:
    watch = watched()
    for number in range(1, MOST_ROUNDS + 50):
        watch.answered("Aachen", "evaluate", Message({"cases": 3, "loss": 0.1, "metric": 0.5}))
        watch.round(number, 1000)
    assert len(watch.status().validations) == MOST_ROUNDS


def test_what_is_told_arrives() -> None:
    status = watched().status()
    assert read_status(status.model_dump(mode="json")) == status
    assert read_status({"state": "running"}) is None
    assert read_status(None) is None
    assert status.progress == 5, "four rounds, and a training"
    assert [(site.name, site.party, site.lost) for site in status.sites] == [
        ("Aachen", "site-2", False), ("Bonn", "site-1", True),
    ]  # fmt: skip


def test_the_page_says_it_without_scripts() -> None:
    page = status_page(watched().status())
    for words in (
        "Nodules &lt;b&gt;",
        "1 of 4 are done",
        "round 3 of 3",
        "does not answer",
        "12.3 KB",
        "3 × validations",
    ):
        assert words in page, words
    assert "<script" not in page
    assert 'http-equiv="refresh"' in page
    ended = watched()
    ended.state = "finished"
    assert 'http-equiv="refresh"' not in status_page(ended.status())
    assert "opening their data" in status_page(Watch("a", "b", "auc", {}).status())


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1 KB"), (1.5e9, "1.5 GB"), (2e12, "2e+03 GB")]
)
def test_sizes(size: float, text: str) -> None:
    assert size_text(int(size)) == text


@pytest.mark.parametrize("terminal", [False, True])
def test_what_is_new_is_shown_once(tmp_path: Path, *, terminal: bool) -> None:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=120, highlight=False)
    watch = watched()
    watch.note("Data: 2 sites.")
    with shown(console, tmp_path) as show:
        show(watch.status())
        show(watch.status())
        watch.lines["Bonn"].lost = False  # type: ignore[index]
        show(watch.status())
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert text.count("Data: 2 sites.") == 1
    assert text.count("Bonn does not answer.") == 1
    assert text.count("Bonn is there again.") == 1
    assert (tmp_path / STATUS_PAGE).is_file()
    if terminal:
        assert "Left it" in text
    else:
        assert text.count("Training 2 of 4: fedavg, fold 2") == 1


def test_a_status_has_no_other_fields() -> None:
    assert read_status(watched().status().model_dump() | {"path": "/srv"}) is None
    assert isinstance(watched().status(), Status)
