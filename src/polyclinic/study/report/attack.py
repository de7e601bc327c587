"""What the report says of corrupt sites: what each method lost, and whether it counted the right ones less."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from markupsafe import Markup

from polyclinic.audit.words import WORDS
from polyclinic.study.report import tables
from polyclinic.study.report.answer import signed
from polyclinic.study.report.figures import Estimate
from polyclinic.study.report.folder import Folder, estimate, of_run
from polyclinic.study.report.methods import entry, is_reference

RUN = ["seed", "fold"]


@dataclass(frozen=True)
class Loss:
    """One method with and without corrupt sites, as text.

    Attributes:
        method: its label.
        clean, attacked: mean over the honest sites, and over folds and seeds.
        lost: how much worse it became.
        interval: of ``lost``.
        opened_clean, opened: how often the mark of a backdoor led to its target, without and with corrupt sites.
        named: the sites that the server counted as good as nothing; None where there is no server.
        verdict: whether these are the corrupt ones.
        mistaken: how many honest sites are among them.
        named_clean: the sites that it counted as good as nothing without corrupt sites.
    """

    method: str
    clean: str
    attacked: str
    lost: str
    interval: str
    opened_clean: str
    opened: str
    named: list[str] | None
    verdict: str
    mistaken: str
    named_clean: list[str]


@dataclass(frozen=True)
class Attacked:
    """What the section shows.

    Attributes:
        corrupt, honest: the corrupt sites, and the honest ones over which methods are scored.
        words: what was done to the corrupt sites.
        options: of the attack.
        answer: a sentence computed from the rows.
        rows: of the table.
        backdoor: whether there was a mark.
    """

    corrupt: list[str]
    honest: list[str]
    words: str
    options: str
    answer: Markup
    rows: list[Loss]
    backdoor: bool


def attacked(folder: Folder) -> Attacked | None:
    """The section, or None where no site was corrupt."""
    if folder.attacked.results.empty or "corrupt" not in folder.site_table:
        return None
    is_corrupt = folder.site_table["corrupt"].str.lower() == "true"
    corrupt = list(folder.site_table["site"][is_corrupt])
    honest = [site for site in folder.scored if site not in corrupt]
    attack = folder.study.get("attack") or {}
    name = next((key for key in attack if key != "sites"), "")
    before = _scores(folder, of_run(folder.results), honest)
    after = _scores(folder, folder.attacked.results, honest)
    methods = [method for method in folder.methods if method in after.columns]
    sign = 1 if folder.primary.higher_is_better else -1
    lost = (sign * (before - after)).groupby(level=folder.repeated_by).mean()
    losses = {method: estimate(lost[method], (-np.inf, np.inf)) for method in methods}
    rows = [_row(folder, method, before, after, losses[method], corrupt) for method in methods]
    return Attacked(
        corrupt=corrupt,
        honest=honest,
        words=WORDS.get(name, "they were corrupted"),
        options=tables.plain(attack.get(name) or {}),
        answer=_answer(folder, before, after, losses),
        rows=rows,
        backdoor=not folder.backdoor.empty,
    )


def _scores(folder: Folder, results: pd.DataFrame, honest: list[str]) -> pd.DataFrame:
    """Mean of the primary metric over the honest sites: a row a seed and fold, a column a method."""
    rows = results[(results["metric"] == folder.primary.name) & results["tested_on"].isin(honest)]
    table = rows.pivot_table(index=RUN, columns="method", values="value", aggfunc="mean", sort=False)
    return table.reindex(columns=list(dict.fromkeys([*table.columns, *folder.methods])))


def _row(
    folder: Folder, method: str, before: pd.DataFrame, after: pd.DataFrame, lost: Estimate, corrupt: list[str]
) -> Loss:
    metric = folder.primary
    named = named_sites(folder, folder.attacked.rounds, method)
    clean = named_sites(folder, of_run(folder.rounds), method) or []
    interval = f"{_fall(folder, lost.low)} to {_fall(folder, lost.high)}" if np.isfinite(lost.low) else ""
    return Loss(
        method=method,
        clean=metric.text(before[method].mean()),
        attacked=metric.text(after[method].mean()),
        lost=_fall(folder, lost.mean),
        interval=interval,
        opened_clean=_opened(folder.backdoor, method, corrupt),
        opened=_opened(folder.attacked.backdoor, method, corrupt),
        named=named,
        verdict="–" if named is None else verdict(named, corrupt),
        mistaken="–" if named is None else str(len(set(named) - set(corrupt))),
        named_clean=clean,
    )


def _fall(folder: Folder, value: float) -> str:
    """A loss; with a sign where it is a gain."""
    return signed(folder.primary, value).removeprefix("+") if np.isfinite(value) else "–"


def verdict(named: list[str], corrupt: list[str]) -> str:
    """Whether the sites named are the corrupt ones, in a word or two."""
    found, mistaken = set(named) & set(corrupt), set(named) - set(corrupt)
    if not named:
        return "names nobody"
    if not found:
        return "wrong"
    if mistaken:
        return "right, and others by mistake"
    return "right" if found == set(corrupt) else f"right, but only {len(found)} of {len(corrupt)}"


def named_sites(folder: Folder, rounds: pd.DataFrame, method: str) -> list[str] | None:
    """Sites whose mean share in what the server makes is below half of their fair share; None without a server.

    The fair share of a site in a round is the smaller of two: its share of the declared weights, and one over the
    number of sites that took part. So neither a rule that weights by cases nor one that counts every site the same
    names anybody.
    """
    rows = rounds[rounds["method"] == method]
    options = entry(folder, method)[1]
    if rows.empty or "share" not in rows or is_reference(folder, method):
        return None
    training = {**(folder.study.get("training") or {}), **(options.get("training") or {})}
    weight = rows["examples"] if training.get("weights", "cases") == "cases" else rows["examples"] * 0 + 1
    keys = [rows[column] for column in (*RUN, "round")]
    declared = weight / weight.groupby(keys).transform("sum")
    fair = np.minimum(declared, 1 / weight.groupby(keys).transform("size"))
    means = pd.DataFrame({"site": rows["site"], "share": rows["share"], "fair": fair}).groupby("site").mean()
    low = means["share"] < 0.5 * means["fair"]
    return [site for site in folder.sites if site in low.index and low[site]]


def _opened(backdoor: pd.DataFrame, method: str, corrupt: list[str]) -> str:
    """How many of the marked test cases of honest sites were predicted as the target, in percent."""
    rows = backdoor[(backdoor["method"] == method) & ~backdoor["tested_on"].isin(corrupt)]
    cases = rows["cases"].sum()
    return f"{100 * rows['opened'].sum() / cases:.0f}\u00a0%" if cases else "–"


def _answer(folder: Folder, before: pd.DataFrame, after: pd.DataFrame, losses: dict[str, Estimate]) -> Markup:
    """Which federated method lost least, which most, and which was the best with corrupt sites."""
    metric = folder.primary
    federated = [one for one in losses if not is_reference(folder, one) and np.isfinite(losses[one].mean)]
    if not federated:
        return Markup("")

    def told(method: str) -> Markup:
        lost = losses[method]
        chance = "too few runs to say whether this is more than chance"
        if np.isfinite(lost.low):
            chance = "beyond chance" if lost.low > 0 or lost.high < 0 else "not beyond chance"
        words = Markup("<strong>{}</strong> (from {} to {}, {})")
        return words.format(method, metric.text(before[method].mean()), metric.text(after[method].mean()), chance)

    most, least = max(federated, key=lambda one: losses[one].mean), min(federated, key=lambda one: losses[one].mean)
    if len(federated) == 1:
        return Markup("{} at the honest sites: {}.").format(metric.title, told(most))
    sign = 1 if metric.higher_is_better else -1
    reached = {one: float(after[one].mean()) for one in federated}
    best = max(federated, key=lambda one: sign * reached[one])
    words = Markup("most was lost by {}, least by {}")
    if losses[least].mean <= 0:
        words = Markup("most was lost by {}, and {} lost nothing")
    if losses[most].mean <= 0:  # a method can gain by what is called an attack
        words = Markup("no method lost anything, neither {} nor {}")
    return Markup("{} at the honest sites: {}. With corrupt sites the best was <strong>{}</strong> with {}.").format(
        metric.title, words.format(told(most), told(least)), best, metric.text(reached[best])
    )
