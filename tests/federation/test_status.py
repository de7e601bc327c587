"""Where a study is: what is kept account of, and the page of it."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from polyclinic.cli import app
from polyclinic.communication.message import Message
from polyclinic.errors import ResultsError
from polyclinic.federation.remote.engine import Line
from polyclinic.federation.watching.page import STATUS_PAGE, size_text, status_page
from polyclinic.federation.watching.status import MOST_ROUNDS, Status, Watch, read_status
from polyclinic.federation.watching.terminal import shown
from polyclinic.federation.watching.watcher import FollowedWatcher
from polyclinic.study.watching.progress import STATUS_FILE


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


def test_who_watches_the_folder_sees_what_a_local_study_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = watched()
    watch.note("Data: 2 sites.")
    watch.since, watch._planned = watch.since - 90, watch._ended - 60
    with shown(Console(file=io.StringIO()), tmp_path) as show:
        show(watch.status())
        seen = FollowedWatcher(tmp_path).look()
        assert (seen.study, seen.state, seen.total, seen.count) == ("Nodules <b>", "running", 4, 1)
        assert seen.done == ["fedavg, fold 1"]
        (training,) = seen.under_way
        assert (training.title, training.done, training.rounds) == ("fedavg, fold 2", 3, 3)
        assert training.losses == [one.loss for one in watch.status().validations]
        assert training.metric == ("auc", pytest.approx((30 * 0.8 + 10 * 0.6) / 40))
        assert seen.left == pytest.approx(3 * 60, abs=5)  # three are left, and one took a minute
        assert seen.notes == ["Data: 2 sites."]
        told = CliRunner().invoke(app, ["watch", str(tmp_path), "--once"]).output
        for text in ("Nodules <b>: running", "1/4", "Done: fedavg, fold 1", "round 3 of 3", "auc 0.750", "Bonn",
                     "does not answer", "Data: 2 sites.", "means over the validation cases of all sites"):  # fmt: skip
            assert text in told
        monkeypatch.setattr("polyclinic.federation.watching.watcher.SILENCE", -1.0)
        told = CliRunner().invoke(app, ["watch", str(tmp_path), "--once"]).output
        assert "not heard of" in told
        assert "left for trainings" not in told
    assert not (tmp_path / STATUS_FILE).exists()
    with pytest.raises(ResultsError, match="nobody follows it now"):
        FollowedWatcher(tmp_path).look()


def test_who_looks_while_the_file_is_damaged_or_of_another_version_sees_no_study(tmp_path: Path) -> None:
    for text in ("", "{}", '{"state": "running"'):
        (tmp_path / STATUS_FILE).write_text(text, encoding="utf-8")
        with pytest.raises(ResultsError):
            FollowedWatcher(tmp_path).look()


def test_trainings_that_were_done_before_do_not_tell_how_long_others_take() -> None:
    watch = watched()
    watch.planned(None, 4)  # type: ignore[arg-type]
    watch._trained, watch._round, watch._done = 0, 0, []
    for number in range(3):
        watch.job(number, f"fold {number}", True)
    watch.job(3, "fold 3", False)
    assert watch.status().left is None
    assert watch.status().done == ["fold 0", "fold 1", "fold 2"]


def test_a_status_has_no_other_fields() -> None:
    assert read_status(watched().status().model_dump() | {"path": "/srv"}) is None
    assert isinstance(watched().status(), Status)
