"""The report's table of how even each method is over the hospitals."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from polyclinic.study.kinds import RUN
from polyclinic.study.report.folder import Folder
from polyclinic.tasks.metrics import split_metric

#: Method, and kind of run.
Entry = tuple[str, str]


class Evenness(NamedTuple):
    """How far hospitals lie apart.

    Attributes:
        rows: title of a method, where it does worst and where best, the deviation, and of how many hospitals.
        by: what is compared, where hospitals have different findings or structures; else "".
    """

    rows: list[tuple[str, str, str, str, str]]
    by: str = ""


def evenness(folder: Folder, values: Mapping[Entry, Mapping[str, float]]) -> Evenness:
    """How even methods are over the sites; those with fewer than three sites are left out.

    A mean over findings or structures is of those that a site has: a site with an easy one alone is no better than the
    others. Where sites have different ones, they are compared by the mean of those that all have.

    Args:
        folder: of the results.
        values: method and kind of run -> site -> primary metric.
    """
    rows, by, text, parts = list[tuple[str, str, str, str, str]](), list[str](), folder.primary.text, _parts(folder)
    for entry, found in values.items():
        own = [parts.get((*entry, site), {}) for site in found]
        common = [name for name in (own[0] if own else ()) if all(name in one for one in own)]
        compared = dict(found)
        if any(len(one) > len(common) for one in own):
            mean = [float(np.mean([one[name] for name in common])) if common else np.nan for one in own]
            compared = dict(zip(found, mean, strict=True)) if common else {}
            by += [name for name in common if name not in by]
        if len(compared) > 2:
            ends = [min(compared.values()), max(compared.values())]
            worst, best = (_there(compared, end, text) for end in ends[:: 1 if folder.primary.higher_is_better else -1])
            deviation = text(float(np.std(list(compared.values()), ddof=1)))
            rows.append((folder.titles[entry], worst, best, deviation, str(len(compared))))
    return Evenness(rows, ", ".join(by))


def _parts(folder: Folder) -> dict[tuple[str, str, str], dict[str, float]]:
    """Of each method, kind of run and site the metric of each finding or structure that it has."""
    if folder.target not in ("findings", "masks"):
        return {}
    names = {name: split_metric(name) for name in folder.results["metric"].unique()}
    wanted = {name: part for name, (metric, part) in names.items() if part and metric == folder.primary.name}
    rows = folder.results[folder.results["metric"].isin(list(wanted)) & folder.results["value"].notna()]
    found = dict[tuple[str, str, str], dict[str, float]]()
    keys = ["method", RUN, "tested_on", "metric"]
    means = rows.groupby([*keys, folder.repeated_by], sort=False)["value"].mean().groupby(keys, sort=False).mean()
    for method, run, site, metric, value in means.reset_index().itertuples(index=False):
        found.setdefault((str(method), str(run), str(site)), {})[wanted[str(metric)]] = float(value)
    return found


def _there(values: Mapping[str, float], end: float, text: Callable[[float], str]) -> str:
    """A value, and the sites that have it as it is written: of many, how many."""
    sites = [site for site, value in values.items() if text(value) == text(end)]
    return f"{text(end)} ({', '.join(sites) if len(sites) < 4 else f'{len(sites)} hospitals'})"
