"""The report's section on harmonisation: how different the sites' features were before and after."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from polyclinic.study.columns import STAGES
from polyclinic.study.drawing import Numbers, Panel
from polyclinic.study.report import figures
from polyclinic.study.report.folder import Folder

#: So many features are shown site by site: those that depended most on the site.
SHOWN = 4


@dataclass(frozen=True)
class Harmonised:
    """What the section shows.

    Attributes:
        words: how it was done.
        before, after: mean share of a feature's variance that the site explains, as text.
        chance: the share that would be found if sites did not matter.
        features: number of features.
        shares: the figure of all features.
        panels: a figure for each of the features that depended most on the site.
        rows: name and both shares of every feature, in the order of the first.
    """

    words: str
    before: str
    after: str
    chance: str
    features: int
    shares: Panel
    panels: list[Panel]
    rows: list[tuple[str, str, str]]


def harmonised(folder: Folder) -> Harmonised | None:
    """The section, or None where nothing was harmonised or too little is known."""
    table = folder.harmonisation
    if table.empty or table["site"].nunique() < 2:
        return None
    shares = pd.DataFrame({stage: _explained(table[table["stage"] == stage]) for stage in STAGES}).dropna()
    if shares.empty:
        return None
    shares = shares.sort_values("before", ascending=False, kind="stable")
    first = table[table["stage"] == "before"].groupby("site", sort=False)["count"].max()
    chance = (len(first) - 1) / (first.sum() - 1)
    panels = [
        figures.site_distributions(str(name), table[table["feature"] == name], folder.sites)
        for name in shares.index[:SHOWN]
    ]
    return Harmonised(
        words=_words(folder),
        before=_percent(shares["before"].mean()),
        after=_percent(shares["after"].mean()),
        chance=_percent(chance),
        features=len(shares),
        shares=figures.site_shares(shares["before"].to_numpy(), shares["after"].to_numpy(), chance),
        panels=panels,
        rows=[(str(name), _percent(row["before"]), _percent(row["after"])) for name, row in shares.iterrows()],
    )


def _explained(rows: pd.DataFrame) -> pd.Series[float]:
    """Eta squared of each feature, from the sites' counts, means and deviations."""
    features = list(dict.fromkeys(rows["feature"]))
    sites = [own.set_index("feature").reindex(features) for _, own in rows.groupby("site", sort=False)]
    count, mean, deviation = (
        np.array([own[name].fillna(0.0) for own in sites], dtype=float) for name in ("count", "mean", "deviation")
    )
    return pd.Series(explained_by_site(count, mean, deviation), index=features)


def explained_by_site(count: Numbers, mean: Numbers, deviation: Numbers) -> Numbers:
    """Eta squared of each feature ``[F]``: the share of its squared deviations that lies between the sites.

    NaN for a constant feature. Sites without any effect have ``(S - 1) / (N - 1)`` on average, for S sites and N cases.

    Args:
        count: number of values of each site ``[S, F]``; 0 where nothing is known.
        mean: of these values ``[S, F]``.
        deviation: of these values from their mean ``[S, F]``, that of the population.
    """
    # Measured from the largest site's mean: sites with the same mean are then no rounding error apart.
    largest = np.take_along_axis(mean, count.argmax(axis=0)[None], axis=0)
    away = np.where(count > 0, mean - largest, 0.0)
    centre = (count * away).sum(axis=0) / np.maximum(count.sum(axis=0), 1.0)
    between = (count * np.square(away - centre)).sum(axis=0)
    within = (count * np.square(deviation)).sum(axis=0)
    total = between + within
    shares: Numbers = 1.0 - np.divide(within, total, out=np.full_like(total, np.nan), where=total > 0)
    return shares


def _words(folder: Folder) -> str:
    options = ((folder.study.get("data") or {}).get("harmonisation") or {}).get("combat") or {}
    kept = [*options.get("covariates", []), *options.get("groups", [])]
    effect = f"The effect of {', '.join(kept)} was kept." if kept else "No covariate was kept."
    reference = options.get("reference_site")
    target = f" The other sites were brought to {reference}." if reference else ""
    borrowed = "" if options.get("empirical_bayes", True) else " Without empirical Bayes."
    return f"{effect}{target}{borrowed}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}\u00a0%"
