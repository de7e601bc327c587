"""A page of where a study is, for a browser: one file without scripts that loads nothing, written anew each round."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from polyclinic.federation.watching.status import SiteStatus, Status, Validation
from polyclinic.files import write_atomic

#: Name of the file.
STATUS_PAGE = "status.html"
_TEMPLATES = Path(__file__).parent / "templates"
_STYLE = Path(__file__).parents[2] / "study" / "report" / "templates" / "report.css"
_STATES = {
    "running": "running", "finished": "finished", "failed": "failed",
    "incomplete": "finished without results of some sites",
    "lost": "stopped without sites that were lost; run it again to go on",
    "stopped": "stopped by a researcher; run it again to go on",
    "paused": "stopped for a moment, so that a site can take part again",
}  # fmt: skip
#: Functions in words; those of parts have names of their own.
_WORDS = {
    "hello": "its name", "open": "census", "agree": "counts", "prepare": "sizes", "share": "summaries",
    "apply": "applied", "describe": "distributions", "start": "started", "train": "updates", "evaluate": "validations",
    "threshold": "threshold counts", "test": "test results", "compare": "comparisons", "predict": "predictions",
    "model": "whole models", "save": "saved", "restore": "restored", "keep": "kept", "overlays": "pictures",
}  # fmt: skip
_WIDTH, _HEIGHT, _EDGE = 640, 140, 4


def write_status_page(path: Path, status: Status) -> None:
    """Write the page of a study.

    Raises:
        ResultsError: P501 or P502, it can't be written.
    """
    write_atomic(path, status_page(status), durable=False)


def status_page(status: Status) -> str:
    """The page of a study."""
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["number"] = lambda value: "" if value is None else f"{value:.4g}"
    part = status.round / status.rounds if status.rounds else 0.0
    share = 100 * min(1.0, (status.job + part) / status.jobs) if status.jobs else 0.0
    return environment.get_template("status.html.j2").render(
        status=status, state=_STATES.get(status.state, status.state), now=_time(status.now), since=_time(status.since),
        sites=site_rows(status), share=f"{share:.1f}", curve=_curve(status.validations),
        style=Markup(_STYLE.read_text(encoding="utf-8")),  # noqa: S704 - a file of this package
    )  # fmt: skip


def site_rows(status: Status) -> list[dict[str, Any]]:
    """What is shown of each site, in words."""
    return [_site(site, status) for site in status.sites]


def _site(site: SiteStatus, status: Status) -> dict[str, Any]:
    state = "waits"
    if site.lost:
        state = "does not answer"
    elif site.doing and status.state == "running":
        state = f"asked to {site.doing} {_span(status.now - site.since)} ago"
    answers = ", ".join(f"{count} × {_WORDS.get(name, name)}" for name, count in site.answers.items())
    return {
        "name": site.name, "lost": site.lost, "state": state, "sent": size_text(site.sent),
        "received": size_text(site.received), "answers": answers,
        "heard": f"{_span(status.now - site.heard)} ago" if site.heard else "never",
    }  # fmt: skip


def _curve(validations: list[Validation]) -> Markup:
    """Loss by round as a line; nothing for fewer than two."""
    known = [(one.round, one.loss) for one in validations if one.loss is not None]
    if len(known) < 2:
        return Markup("")
    low, high = min(loss for _, loss in known), max(loss for _, loss in known)
    first, last = known[0][0], known[-1][0]
    across, down = (_WIDTH - 2 * _EDGE) / (last - first), (_HEIGHT - 2 * _EDGE) / ((high - low) or 1.0)
    points = " ".join(f"{_EDGE + (n - first) * across:.1f},{_EDGE + (high - loss) * down:.1f}" for n, loss in known)
    label = f"Validation loss from round {first} to {last}, between {low:.4g} and {high:.4g}"
    return Markup(
        '<svg viewBox="0 0 {} {}" role="img" aria-label="{}"><polyline points="{}" fill="none" stroke="#00558c" '
        'stroke-width="2"/></svg><p class="caption">{}.</p>'
    ).format(_WIDTH, _HEIGHT, label, points, label)


def size_text(size: int) -> str:
    """A number of bytes for people."""
    for unit in ("B", "KB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            return f"{size:.3g} {unit}" if unit != "B" else f"{size} B"
        size = size / 1000  # type: ignore[assignment]
    return ""


def _span(seconds: float) -> str:
    seconds = max(0, round(seconds))
    if seconds < 120:
        return f"{seconds} s"
    return f"{seconds // 60} min" if seconds < 7200 else f"{seconds // 3600} h"


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
