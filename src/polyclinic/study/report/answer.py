"""What a study found, in sentences computed from its numbers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from polyclinic.study.baselines import BASELINES
from polyclinic.study.kinds import PLAIN, UNSEEN
from polyclinic.study.report.folder import POOLED, Folder, Line, Measure
from polyclinic.tasks.metrics import ZERO_FILLED, class_metric

#: A difference is called beyond chance where its corrected p value is below this.
ALPHA = 0.05


@dataclass(frozen=True)
class Best:
    """The best of several methods by the primary metric, with its row of ``summary.csv``."""

    method: str
    over: str
    row: Line


def find_best(
    folder: Folder, methods: list[str], overs: tuple[str, ...] = ("sites", "all"), run: str = PLAIN
) -> Best | None:
    """The best of ``methods`` as the mean over sites, or on all predictions together where no method has that value."""
    for over in overs:
        lines = {method: folder.line(method, folder.primary.name, over, run) for method in methods}
        found = [Best(method, over, row) for method, row in lines.items() if row is not None]
        if found:
            sign = 1 if folder.primary.higher_is_better else -1
            return max(found, key=lambda best: sign * float(best.row["mean"]))
    return None


def headline(folder: Folder) -> Best | None:
    """The method the answer is about: the best of those that leave the data at the sites and know the sites."""
    return find_best(folder, _private(folder, folder.methods)) or find_best(folder, folder.methods)


def _private(folder: Folder, methods: list[str]) -> list[str]:
    """Those of ``methods`` that leave the data at the sites."""
    return [method for method in methods if folder.name(method) != POOLED]


def answer(folder: Folder) -> list[Markup]:
    """What the study found, in sentences computed from ``summary.csv`` and ``results.csv``."""
    metric = folder.primary
    seen, private = folder.methods, _private(folder, folder.methods)
    best = headline(folder)
    if best is None:
        return [
            Markup("No method can be called best: summary.csv is missing or has no number for {}.").format(metric.title)
        ]
    where = "on the test predictions of all sites together" if best.over == "all" else "as the mean over the sites"
    among = f"Of the {len(seen)} methods compared, " if len(seen) > 1 else ""
    without = " among those that leave the data at the sites" if len(seen) > len(private) > 1 else ""
    verb = "did best" if len(seen) > 1 else "was the only method run"
    sentences = [
        Markup("{}<strong>{}</strong> {}{}. {}: {}{}, measured {}.").format(
            among, best.method, verb, without, metric.title, *_value(metric, best.row), where
        ),
        *_against(folder, best, private),
        *_second(folder, best, private),
        *_one_seed(folder, best),
        *_pooled(folder, best),
        *_guessing(folder, best),
        *_zero_filled(folder, best),
        *_range(folder, best),
        *_together(folder, best, private),
    ]
    return [*sentences, *_unseen(folder)]


def _unseen(folder: Folder) -> Iterator[Markup]:
    """The best method at sites that took no part in training, and what pooling the data gave there."""
    methods = folder.unseen
    private = find_best(folder, _private(folder, methods), run=UNSEEN)
    best = private or find_best(folder, methods, run=UNSEEN)
    if best is None:
        return
    pooled = find_best(folder, folder.named(POOLED), (best.over,), UNSEEN) if private else None
    against = f"; {pooled.method} reached {folder.primary.text(pooled.row['mean'])} there" if pooled else ""
    yield Markup("At sites that took no part in training, the best was <strong>{}</strong> with {}{}{}.").format(
        best.method, *_value(folder.primary, best.row), against
    )
    yield from _cost_of_unseen(folder, best)


def _cost_of_unseen(folder: Folder, best: Best) -> Iterator[Markup]:
    """What the best method at unseen sites has lost there."""
    costs = folder.costs_of_unseen
    keys = (costs["method"] == best.method) & (costs["metric"] == folder.primary.name) & (costs["over"] == best.over)
    for cost in costs[keys & costs["difference"].notna()].to_dict("records"):
        lost = cost["difference"] if folder.primary.higher_is_better else -cost["difference"]
        words, size = ("lost", lost) if lost >= 0 else ("gained", -lost)
        p = cost["p_adjusted"]
        chance = "beyond" if p < ALPHA else "not beyond"
        tested = f", {chance} chance (p {p_text(p)} after correction)" if np.isfinite(p) else ""
        what = "cases" if best.over == "all" else "sites"
        yield Markup("On the same {} it {} {} by not having the site in training{}.").format(
            what, words, folder.primary.text(size), tested
        )


def _value(metric: Measure, row: Line) -> tuple[str, str]:
    unit = f" {metric.unit}" if metric.unit else ""
    interval = ""
    if np.isfinite(row["low"]) and np.isfinite(row["high"]):
        interval = f" (95 % interval {metric.text(row['low'])} to {metric.text(row['high'])})"
    return metric.text(row["mean"]) + unit, interval


def _interval(metric: Measure, low: float, high: float) -> str:
    """The interval of a difference in brackets; empty where there is none."""
    ends = f"{signed(metric, low)} to {signed(metric, high)}"
    return f" (95 % interval {ends})" if np.isfinite(low) and np.isfinite(high) else ""


def _against(folder: Folder, best: Best, private: list[str]) -> Iterator[Markup]:
    """Sentences on the best method against ``single`` and ``fedavg``."""
    names = {"single": "each site training alone ({})", "fedavg": "plain federated averaging ({})"}
    if best.method == folder.baselines.get("single") and len(private) > 1:
        yield Markup("So, by this measure, no way of learning together was better than each site training alone.")
    for other, form in names.items():
        label = folder.baselines.get(other)
        words, against = form.format(label), folder.line(label, folder.primary.name, best.over)
        if label == best.method or against is None:
            continue
        value = folder.primary.text(against["mean"])
        within = folder.compared(best.method, label) if best.over == "sites" else None
        difference, p = (float(best.row.get(column, np.nan)) for column in (f"vs_{other}", f"p_{other}_adjusted"))
        if within is not None:
            difference = within["difference"]
        size = signed(folder.primary, difference)
        if within is not None:
            size += " within sites" + _interval(folder.primary, within["low"], within["high"])
        elif size != signed(folder.primary, round(best.row["mean"] - against["mean"], 12)):
            size += f" on the {'cases' if best.over == 'all' else 'sites'} that both scored"
        if not np.isfinite(p):
            yield Markup("{} reached {}; no paired test of the difference was possible.").format(_capital(words), value)
            continue
        if p < ALPHA:
            yield Markup(
                "{} reached {}: the difference of {} is <strong>beyond chance</strong> "
                "(p {} after correction for the number of comparisons)."
            ).format(_capital(words), value, size, p_text(p))
        else:
            yield Markup(
                "{} reached {}: the difference of {} is <strong>not beyond chance</strong> "
                "(p {} after correction), so this study does not show that {} is better."
            ).format(_capital(words), value, size, p_text(p), best.method)
        if within is not None and np.isfinite(within["expected_low"]):
            yield Markup("A hospital that is not among these may expect a difference from {} to {}.").format(
                *(signed(folder.primary, within[end]) for end in ("expected_low", "expected_high"))
            )


def _second(folder: Folder, best: Best, private: list[str]) -> Iterator[Markup]:
    """How probable it is that the best method is not better than the second."""
    others = [method for method in private if method != best.method]
    second = find_best(folder, others, (best.over,)) if best.over == "sites" else None
    within = None if second is None else folder.compared(best.method, second.method)
    if second is None or within is None:
        return
    chance = not_better(within, higher_is_better=folder.primary.higher_is_better)
    if np.isfinite(chance):
        yield Markup("The second is {} with {}; that {} is not better than it has the probability {}.").format(
            second.method, folder.primary.text(second.row["mean"]), best.method, share_text(chance)
        )


def not_better(row: Line, *, higher_is_better: bool) -> float:
    """The probability that a method is not better than the other, from a row of ``comparisons.csv``.

    Half of the two-sided p, if the method was the better one of the two here: without a prior opinion, the probability
    that the true difference has the other sign.
    """
    half = float(row["p"]) / 2
    return half if (row["difference"] > 0) == higher_is_better else 1 - half


def share_text(share: float) -> str:
    """A probability as text."""
    return "below 0.01" if share < 0.01 else "above 0.99" if share > 0.99 else f"{share:.2f}"


def _one_seed(folder: Folder, best: Best) -> Iterator[Markup]:
    """With one seed the tests can't tell chance in training from the method."""
    tested = [best.row.get(f"p_{name}_adjusted", np.nan) for name in BASELINES]
    if folder.results["seed"].nunique() == 1 and np.isfinite(tested).any():
        yield Markup(
            "All this is about the models as they were trained here, with one seed, and not about the methods: whether "
            "another training would come out the same is not known. With several seeds chance in training counts."
        )


def _together(folder: Folder, best: Best, private: list[str]) -> Iterator[Markup]:
    """Another method may be best where the predictions of all sites are put together."""
    other = find_best(folder, private, ("all",))
    if best.over == "sites" and other is not None and other.method != best.method:
        yield Markup(
            "On the predictions of all sites put together the order is another: <strong>{}</strong> did best with {}{}."
            "{}"
        ).format(
            other.method,
            *_value(folder.primary, other.row),
            f" (That also rewards knowing {known} at each site.)" if (known := rewarded(folder)) else "",
        )


def rewarded(folder: Folder) -> str:
    """What a method gains by, where cases of several sites are scored together; empty for nothing."""
    return {
        "labels": "how frequent the finding is",
        "numbers": "the mean",
        "findings": "how frequent each finding is",
    }.get(folder.target, "")


def _pooled(folder: Folder, best: Best) -> Iterator[Markup]:
    mix = find_best(folder, folder.named(POOLED), (best.over,))
    if mix is not None and folder.name(best.method) != POOLED:
        yield Markup("Training on all data in one place ({}), which federated learning avoids, reached {}.").format(
            mix.method, folder.primary.text(mix.row["mean"])
        )


def _guessing(folder: Folder, best: Best) -> Iterator[Markup]:
    """A warning where the interval of the best method includes the value that guessing would give."""
    if folder.primary.name in ("r2", "r") and best.row["low"] <= 0:
        yield Markup(
            "The interval of {} includes 0, which giving every case the same number would reach: "
            "<strong>this study does not show that the model predicts anything</strong>."
        ).format(best.method)
    halves = dict.fromkeys(("auc", "concordance", "uno"), 0.5)
    guess = (halves | {"bac": 1 / max(len(folder.classes), 2)}).get(folder.primary.name)
    if guess is not None and best.row["low"] <= guess:
        apart = "tells who has the event earlier" if folder.target == "times" else "tells the classes apart"
        yield Markup(
            "The interval of {} includes {:.2f}, the value of guessing: "
            "<strong>this study does not show that the model {}</strong>."
        ).format(best.method, guess, apart)


def _zero_filled(folder: Folder, best: Best) -> Iterator[Markup]:
    """What images are without any network, and a warning where the best method is not above it."""
    row = folder.line(best.method, class_metric(folder.primary.name, ZERO_FILLED), best.over)
    if folder.target != "images" or row is None:
        return
    yield Markup("The zero-filled images, without any network, reached {}.").format(folder.primary.text(row["mean"]))
    sign = 1 if folder.primary.higher_is_better else -1
    if sign * (best.row["mean"] - row["mean"]) <= 0:
        yield Markup("<strong>So this study does not show that {} reconstructs anything</strong>.").format(best.method)


def _range(folder: Folder, best: Best) -> Iterator[Markup]:
    means = {site: folder.estimate(best.method, site).mean for site in folder.scored}
    means = {site: mean for site, mean in means.items() if np.isfinite(mean)}
    if len(means) > 1:
        low, high = min(means, key=lambda site: means[site]), max(means, key=lambda site: means[site])
        yield Markup("Site by site it ranged from {} ({}) to {} ({}).").format(
            folder.primary.text(means[low]), low, folder.primary.text(means[high]), high
        )


def _capital(words: str) -> str:
    return words[0].upper() + words[1:]


def signed(metric: Measure, value: float) -> str:
    """A difference with its sign."""
    return f"{'+' if value > 0 else '−' if value < 0 else ''}{metric.text(abs(value))}"


def p_text(p: float) -> str:
    """A p value as text with its sign: ``= 0.031`` or ``< 0.001``."""
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"
