"""The page of several studies side by side: one HTML file without scripts, which loads nothing, like the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from polyclinic.study.comparing.studies import NOTHING, OVER, Compared, Paired, Value, Versus
from polyclinic.study.kinds import Entry, titled
from polyclinic.study.report.answer import ALPHA, p_text, signed
from polyclinic.study.report.folder import Measure
from polyclinic.study.report.tables import interval_text

TEMPLATES = Path(__file__).parent.parent / "report" / "templates"
Values = Mapping[tuple[Entry, int, str], Value]
#: Method, and cells of text.
Row = tuple[str, list[str]]


def render(
    studies: Sequence[Compared], entries: Sequence[tuple[str, list[str]]], values: Values, versus: Sequence[Versus]
) -> str:
    """The page as text.

    Args:
        studies: at least two.
        entries: entries of their study files that differ, with the value in each.
        values: by method and kind of run, number of the study, and ``over``.
        versus: each two studies.
    """
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    metric = studies[0].folder.primary
    return environment.get_template("compare.html.j2").render(
        style=Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),  # noqa: S704
        studies=studies,
        metric=metric,
        alpha=ALPHA,
        entries=entries,
        tables=[(title, rows) for over, title in OVER.items() if (rows := value_rows(studies, values, over))],
        versus=[(one, difference_rows(metric, one)) for one in versus],
    )


def value_rows(studies: Sequence[Compared], values: Values, over: str) -> list[Row]:
    """Methods, with mean and interval in each study."""
    metric = studies[0].folder.primary
    rows = []
    for entry in dict.fromkeys(entry for entry, _, how in values if how == over):
        found = [values.get((entry, one.number, over)) for one in studies]
        rows.append((titled(*entry), [NOTHING if one is None else _value(metric, one) for one in found]))
    return rows


def difference_rows(metric: Measure, versus: Versus) -> list[Row]:
    """Methods that two studies have: differences of means, the paired one, and its p value or why there is none."""
    entries = dict.fromkeys([*(entry for entry, _ in versus.differences), *versus.why])
    rows = []
    for entry in entries:
        plain = [versus.differences.get((entry, over), np.nan) for over in OVER]
        cells = [signed(metric, one) if np.isfinite(one) else NOTHING for one in plain]
        found = versus.paired.get(entry)
        rows.append((titled(*entry), [*cells, *_paired(metric, found, versus.why.get(entry, ""))]))
    return rows


def _value(metric: Measure, value: Value) -> str:
    known = np.isfinite(value.low) and np.isfinite(value.high)
    return metric.text(value.mean) + (f" ({metric.text(value.low)} to {metric.text(value.high)})" if known else "")


def _paired(metric: Measure, found: Paired | None, why: str) -> tuple[str, str]:
    if found is None:
        return NOTHING, why
    ends = interval_text(metric, found.low, found.high)
    p = f"p {p_text(found.p_adjusted)}" if np.isfinite(found.p_adjusted) else "no test was possible"
    sites = f"{found.sites} site{'' if found.sites == 1 else 's'}"
    return signed(metric, found.difference) + (f" ({ends})" if ends else ""), f"{p}; {sites}"
