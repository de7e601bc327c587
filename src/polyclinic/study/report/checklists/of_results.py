"""What a run's files say of its results: metrics, intervals, sites, unseen sites, sample size, failures."""

from __future__ import annotations

import numpy as np

from polyclinic.statistics.areas import expected_variance
from polyclinic.study.kinds import PLAIN, UNSEEN
from polyclinic.study.report.answer import find_best, headline, p_text, signed
from polyclinic.study.report.checklists.entries import counted, interval, listed, part, percent
from polyclinic.study.report.checklists.items import NotDone
from polyclinic.study.report.flow import site_flows, together
from polyclinic.study.report.folder import Folder, of_run
from polyclinic.study.report.tables import interval_text

#: Standard errors from a number to the ends of its 95 % interval.
Z95 = 1.96


def metrics(folder: Folder) -> str:
    """The metrics and their meaning; the first is the primary one."""
    each = "; ".join(f"{one.title}: {one.meaning.rstrip('.')}" if one.meaning else one.title for one in folder.metrics)
    return " ".join([f"Primary: {folder.primary.title}. {each}.", folder.space_words]).strip()


def statistics(folder: Folder) -> str | None:
    """How intervals and tests were made."""
    if folder.summary.empty or "interval" not in folder.summary:
        return None
    how = "; ".join(name for name in folder.summary["interval"].unique() if name)
    words = f"95\u00a0% intervals: {how}." if how else "No intervals were computed."
    if len(folder.comparisons):
        words += (
            " Methods are compared within sites by a random-effects meta-analysis, p corrected by Holm's method over "
            "the methods (comparisons.csv)."
        )
    return words


def performance(folder: Folder) -> str | None:
    """The best method with its interval, over sites and over all cases."""
    best = headline(folder)
    if best is None:
        return None
    words = []
    for over, where in (("sites", "mean over sites"), ("all", "all cases together")):
        row = folder.line(best.method, folder.primary.name, over)
        if row is not None:
            words.append(f"{where} {folder.primary.text(row['mean'])}{interval(folder, row['low'], row['high'])}")
    if not words:
        return None
    return f"{folder.primary.title} of {best.method}: {'; '.join(words)}. All methods and metrics: summary.csv."


def precision(folder: Folder) -> str | None:
    """Sensitivity and specificity, or the other metrics, with intervals."""
    best = headline(folder)
    if best is None:
        return None
    words = []
    for one in folder.metrics[1:]:
        row = folder.line(best.method, one.name, best.over)
        if row is not None:
            ends = f" ({one.text(row['low'])} to {one.text(row['high'])})" if np.isfinite(row["low"]) else ""
            words.append(f"{one.title} {one.text(row['mean'])}{ends}")
    return f"{best.method}: {'; '.join(words)}." if words else None


def by_site(folder: Folder) -> str | None:
    """How far the sites lie apart."""
    best = headline(folder)
    if best is None:
        return None
    found = {site: folder.estimate(best.method, site).mean for site in folder.scored}
    known = {site: value for site, value in found.items() if np.isfinite(value)}
    if not known:
        return None
    low, high = min(known, key=lambda site: known[site]), max(known, key=lambda site: known[site])
    text = folder.primary.text
    few = [site for site in folder.sites if site not in folder.scored]
    unscored = f" Too few cases to be scored alone: {listed(few)}." if few else ""
    return (
        f"{folder.primary.title} of {best.method} from {text(known[low])} ({low}) to {text(known[high])} ({high}) over "
        f"{counted(len(known), 'site')}.{unscored} Each site: report and results.csv."
    )


def heterogeneity(folder: Folder) -> str | None:
    """τ², I² and the prediction interval of the best method against the baselines."""
    best = headline(folder)
    if best is None:
        return None
    words = []
    for label in dict.fromkeys(folder.baselines.values()):
        row = folder.compared(best.method, label)
        if label == best.method or row is None or not np.isfinite(row["between"]):
            continue
        apart = f"τ {folder.primary.text(np.sqrt(row['between']))}, I² {percent(row['unlike'])}"
        ends = interval_text(folder.primary, row["expected_low"], row["expected_high"])
        p = f", p {p_text(row['p_adjusted'])}" if np.isfinite(row["p_adjusted"]) else ""
        words.append(
            f"{best.method} against {label}, within sites: {signed(folder.primary, row['difference'])} "
            f"({interval_text(folder.primary, row['low'], row['high'])}{p}); {apart}"
            f"{f'; at a new hospital {ends} may be expected' if ends else ''}"
        )
    return f"{'. '.join(words)}." if words else None


def unseen(folder: Folder) -> str:
    """Results at sites that took no part in training."""
    if not folder.unseen:
        return NotDone("Not done: no site was left out of training to be tested (`evaluation: {unseen_sites: true}`).")
    best = find_best(folder, folder.unseen, run=UNSEEN)
    value = ""
    if best is not None:
        low, high = best.row["low"], best.row["high"]
        value = f" Best: {best.method} with {folder.primary.text(best.row['mean'])}{interval(folder, low, high)}."
    return (
        f"Each site in turn was left out of training and tested, by {listed(folder.unseen)}.{value} These are sites of "
        "the same study, not an independent data set."
    )


def external(folder: Folder) -> str:
    """Whether data of other sources were tested."""
    found = unseen(folder)
    return found if isinstance(found, NotDone) else f"{found} No other external data set was tested in this run."


def calibrated(folder: Folder) -> str | None:
    """Calibration of the best method over the sites."""
    table, best = of_run(folder.calibration), headline(folder)
    if folder.target == "findings":
        return NotDone("Not done: calibration is computed where there is one label.")
    if folder.target != "labels":
        return "Does not apply: nothing is predicted that is a probability of a case."
    if len(folder.classes) > 2:
        return NotDone("Not done: calibration is computed for two classes only.")
    if best is None or table.empty:
        return None
    rows = table[(table["method"] == best.method) & (table["site"] == "all")].to_dict("records")
    if not rows or not np.isfinite(rows[0]["intercept"]):
        return NotDone("Not done: too few cases of each class at every site.")
    row = rows[0]
    each = [f"intercept {row['intercept']:.2f} ({row['intercept_low']:.2f} to {row['intercept_high']:.2f})"]
    if np.isfinite(row["slope"]):
        each.append(f"slope {row['slope']:.2f} ({row['slope_low']:.2f} to {row['slope_high']:.2f})")
    sites = table[(table["method"] == best.method) & (table["site"] != "all")]["site"].nunique()
    where = "each site and decision curves: calibration.csv, decisions.csv"
    return f"{best.method} over {counted(sites, 'site')}: {', '.join(each)}; {where}."


def threshold(folder: Folder) -> str | None:
    """What a model gives, and how it becomes a decision."""
    evaluation = part(folder, "evaluation")
    if folder.target == "numbers":
        return "A model gives a number; no threshold."
    if folder.target == "images":
        return "A model gives an image; no threshold."
    if (len(folder.classes) > 2 or folder.structures) and folder.target != "findings":
        return "A model gives a probability of each class; the most probable one is taken."
    if not evaluation:
        return None
    given = evaluation.get("threshold")
    goal = "Dice" if folder.target == "masks" else "balanced accuracy"
    goal += " of each finding" if folder.target == "findings" else ""
    how = f"chosen for the highest {goal} on validation cases" if given == "validation" else f"fixed at {given}"
    return f"A model gives a probability; the threshold is {how}."


def sample_size(folder: Folder) -> str | None:
    """Numbers tested, the interval they led to, and what they lead to expect."""
    flows = site_flows(folder)
    best = headline(folder)
    words = []
    if flows:
        words.append(f"{together(flows).used} cases used.")
    row = None if best is None else folder.line(best.method, folder.primary.name, "all")
    if best is not None and row is not None and np.isfinite(row["low"]):
        width = folder.primary.text(row["high"] - row["low"])
        words.append(f"{folder.primary.title} of {best.method} over all cases: a 95\u00a0% interval {width} wide.")
    words += _expected(folder)
    return " ".join(words) or None


def _expected(folder: Folder) -> list[str]:
    """Widths of intervals of areas under the curve that the numbers of cases alone lead to expect."""
    if folder.target != "labels" or len(folder.classes) != 2:
        return []
    flows = [one for one in site_flows(folder) if one.parts]
    counts = together(flows).parts["test"].classes if flows else {}
    negative, positive = (int(np.nansum(counts.get(name, [0.0]))) for name in folder.classes)
    if min(positive, negative) < 2:
        return []
    widths = {area: 2 * Z95 * float(np.sqrt(expected_variance(area, positive, negative))) for area in (0.7, 0.8, 0.9)}
    each = [f"{width:.3f} for {area}" for area, width in widths.items()]
    return [
        f"From {positive} positive and {negative} negative test cases an interval of an area under the curve is "
        f"expected to be as wide as {listed(each)} (Hanley and McNeil 1982)."
    ]


def failures(folder: Folder) -> str:
    """What can be seen of cases that went wrong."""
    words = []
    if folder.overlays():
        words.append("The report shows each site's worst test case.")
    if len(folder.classes) > 2 and not (folder.predictions.empty and folder.confusion.empty):
        words.append("A table of confusions tells which classes are mixed up.")
    if not words:
        return NotDone("Not done: the run counts errors, but shows no single case that was wrong.")
    return " ".join(words)


def robustness(folder: Folder) -> str:
    """What was varied to see whether results stand."""
    done = []
    if folder.seeds > 1:
        done.append(f"{folder.seeds} seeds")
    if folder.unseen:
        done.append("sites left out of training")
    if folder.study.get("attack"):
        done.append("corrupt sites")
    if not folder.subgroups.empty:
        done.append("subgroups of patients")
    if not done:
        return NotDone("Not done: one seed, no site left out, no corrupt site, no subgroup.")
    return f"Varied: {listed(done)}."


def explained(folder: Folder) -> str:
    """Whether single predictions were explained."""
    return NotDone("Not done: this run explains no single prediction (no saliency maps or like methods).")


def internal(folder: Folder) -> str:
    """What the test cases are."""
    runs = of_run(folder.results, PLAIN)[["seed", "fold"]].drop_duplicates()
    words = (
        f"Tested on held-out patients of the sites that trained ({counted(len(runs), 'run')} of seed and fold for each "
        "method); test cases were read once, after all choices."
    )
    if len(folder.search) and not (folder.study.get("search") or {}).get("nested", True) and folder.folds > 1:
        words += (
            " But one search served all folds: patients tested in one had a part in the choice of values by another."
        )
    return words


def limits(folder: Folder) -> str | None:
    """What the run's own notes say against it."""
    if not folder.notes:
        return None
    return f"The run gave {counted(len(folder.notes), 'note')} that a reader should know: see the report or notes.json."
