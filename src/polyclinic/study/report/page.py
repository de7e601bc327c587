"""The report of a study: one HTML file, made from the files of the results folder and nothing else.

The report holds no scripts and loads nothing, so it opens offline and can be mailed. Pseudonyms and case names are not
in it. The same folder gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from polyclinic.files import write_atomic
from polyclinic.notes import Note
from polyclinic.study.baselines import BASELINES
from polyclinic.study.drawing import Panel
from polyclinic.study.kinds import PLAIN, RUN, UNSEEN, titled
from polyclinic.study.pictures import structure_colour
from polyclinic.study.report import figures, tables
from polyclinic.study.report.answer import ALPHA, answer, headline, rewarded
from polyclinic.study.report.attack import attacked
from polyclinic.study.report.attention import attended
from polyclinic.study.report.checklists import CHECKLISTS
from polyclinic.study.report.checklists.writing import filled
from polyclinic.study.report.evenness import evenness
from polyclinic.study.report.exchange import exchanged
from polyclinic.study.report.flow import flow_section
from polyclinic.study.report.folder import Folder, Measure, Overlay, of_run
from polyclinic.study.report.harmonisation import harmonised
from polyclinic.study.report.methods import SHOWN, featured, is_reference, method_lines
from polyclinic.study.report.privacy import guaranteed
from polyclinic.study.report.reconstructions import reconstruction
from polyclinic.study.report.search import searched, searched_values
from polyclinic.study.report.subgroups import subgroup_section
from polyclinic.study.report.survival import survived
from polyclinic.study.report.synthesis import made_cases
from polyclinic.study.report.trust import trusted
from polyclinic.study.report.within import within
from polyclinic.tasks.metrics import metric_text
from polyclinic.tasks.survival_metrics import time_text

TEMPLATES = Path(__file__).parent / "templates"
#: What the baselines are, where the name does not say it.
COMPARED_WITH = {"single": " (each site alone)"}
#: Sections in the order of the page; one without anything to show is left out.
SECTIONS = {
    "answer": "The answer in short",
    "question": "What was asked",
    "sites": "Sites and cases",
    "harmonisation": "Differences between sites",
    "results": "Results",
    "within": "Differences within sites",
    "attack": "Corrupt sites",
    "structures": "Structure by structure",
    "site_results": "Results site by site",
    "subgroups": "Groups of patients",
    "cross": "Each site's model at the other sites",
    "curves": "ROC and calibration",
    "survival": "Survival",
    "scatter": "Predicted against true",
    "confusion": "Which classes are mixed up",
    "overlays": "Segmentations",
    "attention": "Which instances count",
    "made": "Cases that were made",
    "search": "Search for hyper-parameters",
    "convergence": "Training over the rounds",
    "costs": "Time and traffic",
    "exchanged": "What was exchanged",
    "privacy": "What noise guarantees",
    "notes": "Notes",
    "card": "Model card",
    "checklists": "Checklists",
    "provenance": "Provenance and study file",
}


def write_report(folder: Path, out: Path | None = None) -> Path:
    """Write the report of a results folder as one HTML file that needs nothing else.

    Args:
        folder: what ``polyclinic run`` wrote; only ``results.csv`` must be there.
        out: the file to write; ``report.html`` in the folder by default.

    Returns:
        The file written.

    Raises:
        ResultsError: P501, there is no usable ``results.csv``, a file can't be read or the report can't be written;
            P502, the disk is full.
    """
    out = folder / "report.html" if out is None else out
    write_atomic(out, render(Folder(folder)), durable=False)
    return out


def render(folder: Folder, without: Collection[str] = ()) -> str:
    """The page as text; ``without`` some of its sections."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    content = {name: () if name in without else make(folder) for name, make in CONTENT.items()}
    by_each = "Zero-filled images" if folder.target == "images" else f"{folder.each.capitalize()} by {folder.each}"
    titles = SECTIONS | {"structures": by_each}
    if folder.target == "images":
        titles["overlays"] = "Reconstructions"
    sections = {name: title for name, title in titles.items() if content[name]}
    return environment.get_template("report.html.j2").render(
        folder=folder,
        metric=folder.primary,
        title=str(folder.study.get("study") or "Study"),
        style=Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),  # noqa: S704
        sections=sections,
        alpha=ALPHA,
        colours=_colours(folder),
        featured=featured(folder),
        most=SHOWN,
        runs=len(folder.results[["seed", "fold"]].drop_duplicates()),
        heads=[_head(one) for one in folder.metrics],
        baselines=[
            (name[0].upper(), folder.baselines[name] + COMPARED_WITH.get(name, ""))
            for name in BASELINES
            if folder.baselines.get(name) in folder.methods and len(folder.methods) > 1
        ],
        seeds=folder.seeds,
        repeats=" and ".join(word for word, count in (("folds", folder.folds), ("seeds", folder.seeds)) if count > 1),
        spread=_spread(folder),
        unseen=tables.unseen_tables(folder),
        alone=folder.baselines.get("single"),
        volumes=_are_volumes(folder),
        flow=flow_section(folder),
        **content,
    )


def _spread(folder: Folder) -> str:
    """What the intervals of repetitions are made of, in words; empty where these are too few."""
    if folder.folds > 2:
        means = ", each the mean over the seeds" if folder.seeds > 1 else ""
        short = "which is a little too short because folds share training patients"
        return f"over the folds{means} (Student’s t), {short}"
    if folder.folds == 1 and folder.seeds > 2:
        return "over the seeds (Student’s t), which tells chance in training and nothing of other patients"
    return ""


def _head(metric: Measure) -> Markup:
    """A metric as the head of a column."""
    lower = "" if metric.higher_is_better else Markup('<br><span class="soft">lower is better</span>')
    return Markup("{}{}").format(metric.label, lower)


#: What is to be said where sites kept their predictions, by what is predicted.
_KEPT = "stayed at the sites, which answered with metrics, counts and sums over their test cases"
KEPT = {
    "labels": f"{_KEPT}; curves over all sites are drawn from counts of scores between thresholds",
    "numbers": f"{_KEPT}; plots of predicted against true numbers would show single cases, so there are none",
    "images": f"{_KEPT}; pictures of reconstructions would show patients, so there are none",
    "masks": f"{_KEPT}; pictures of segmentations would show patients, so there are none",
}


# --- what each section shows ------------------------------------------------------------------------------------------


def _question(folder: Folder) -> list[tuple[str, str]]:
    """What was asked, as lines of name and text."""
    study = folder.study
    evaluation = study.get("evaluation") or {}
    seeds = study.get("seeds", study.get("seed"))
    lines = {
        "Task": study.get("task"),
        "Data": _cases(folder),
        "Model": study.get("model"),
        "Networks of single sites": study.get("networks"),
        "Training": study.get("training"),
        "Hyper-parameters": searched_values(folder),
        "Test": _split(folder) if evaluation else None,
        "Decision threshold": _threshold(evaluation) if _decides(folder) else None,
        "Event": _event(folder),
        "Seeds": seeds,
        "Predictions": KEPT.get(folder.target, _KEPT) if folder.kept_at_sites else None,
        "Corrupt sites": study.get("attack"),
        "Judged by": f"{folder.primary.title} ({folder.primary.name})",
    }
    return [(name, tables.plain(value)) for name, value in lines.items() if value not in (None, {}, [], "")]


def _cases(folder: Folder) -> str:
    sites = f"{len(folder.sites)} sites" if len(folder.sites) != 1 else "1 site"
    rows = tables.site_rows(folder)
    if not rows or not rows[-1].used:
        return sites
    patients = f", from {rows[-1].patients} patients" if rows[-1].patients else ""
    without = f", {rows[-1].unlabelled} of them without a label" if rows[-1].unlabelled else ""
    return f"{sites}, {rows[-1].used} of {rows[-1].found} cases used{without}{patients}"


def _split(folder: Folder) -> str:
    evaluation = folder.study.get("evaluation") or {}
    if evaluation.get("split"):
        how = f"split fixed by the column {evaluation['split']}"
    elif evaluation.get("holdout"):
        how = f"{100 * evaluation['holdout']:.0f}\u00a0% of each site's patients held out for the test"
    else:
        how = f"{evaluation.get('folds') or '?'}-fold cross-validation, all cases of a patient in one fold"
    unseen = "; also at sites left out of training" if folder.unseen else ""
    return f"{how}; {_kept_round(folder)}; test data is read once{unseen}"


def _kept_round(folder: Folder) -> str:
    by = (folder.study.get("evaluation") or {}).get("best_round", "loss")
    if by == "last":
        return "the model of the last round is tested"
    measure = "loss" if by == "loss" else "score"
    return f"the round whose model is tested is chosen by the {measure} on validation patients"


def _event(folder: Folder) -> str | None:
    """What event of which columns is predicted."""
    data = folder.study.get("data") or {}
    if not folder.time_unit:
        return None
    happened = f" {tables.plain(data['positive'])}" if data.get("positive") is not None else ""
    times = (folder.study.get("evaluation") or {}).get("times")
    at = f"; survival at {', '.join(map(time_text, times))}" if times else ""
    return f"{data.get('event')}{happened}, by {data.get('time')} in {folder.time_unit}{at}"


def _decides(folder: Folder) -> bool:
    """Whether there is a threshold."""
    return folder.target == "findings" or (len(folder.classes) == 2 and not folder.time_unit)


def _threshold(evaluation: dict[str, Any]) -> object:
    threshold = evaluation.get("threshold")
    return "chosen on validation data" if threshold == "validation" else threshold


def _results(folder: Folder) -> list[tuple[str, str, Any]]:
    """Title, caption and groups of the two main tables."""
    kinds = (
        (
            "Mean over sites",
            "Each site is scored by itself, then the mean is taken, so every site counts the same. Differences are "
            "those within sites, see the next section.",
            "sites",
        ),
        (
            "All sites together",
            f"The test predictions of all sites are put together, so a large site counts more{_gain(folder)}. "
            "Differences are tested on the same cases.",
            "all",
        ),
    )
    found = [(title, caption, tables.main_table(folder, over)) for title, caption, over in kinds]
    return [table for table in found if table[2]]


def _gain(folder: Folder) -> str:
    """What scores of several sites reward besides, where they are compared with each other."""
    known = rewarded(folder)
    return f", and a method gains by knowing {known} at each site" if known else ""


@dataclass(frozen=True)
class SiteResults:
    """Panels of the sites, the numbers behind them (a column a title), and the sites that can't be scored."""

    panels: list[Panel]
    unseen: list[Panel]
    """The same sites, when they took no part in training."""
    methods: list[str]
    rows: list[tuple[str, list[str]]]
    left_out: list[str]
    even: list[tuple[str, str, str, str, str]]
    """For each method, where it does worst and where best, how far hospitals lie apart, and how many those are."""
    even_by: str
    """By which findings or structures, if hospitals have different ones."""
    references: bool
    """Whether a method is a reference."""
    alone: bool
    """Whether the sites were trained alone."""


def _site_results(folder: Folder) -> SiteResults | None:
    there = set(zip(folder.at_sites["method"], folder.at_sites[RUN], strict=True))
    entries = [entry for entry in folder.titles if entry in there]
    table = {
        site: [((label, run), folder.estimate(label, site, run)) for label, run in entries] for site in folder.sites
    }
    scored = [site for site, row in table.items() if any(np.isfinite(one.mean) for _, one in row)]
    if not scored:
        return None
    ends = np.array([[one.mean, one.low, one.high] for site in scored for _, one in table[site]])
    low, high = float(np.nanmin(ends)), float(np.nanmax(ends))
    margin = 0.05 * (high - low) or 0.05
    limits = (low - margin, high + margin)

    def panels(wanted: str) -> list[Panel]:
        shown = []
        for site in scored:
            known = [(label, one) for (label, run), one in table[site] if run == wanted]
            rows = [(label, one, is_reference(folder, label)) for label, one in known]
            line = folder.estimate(folder.baselines.get("single"), site).mean
            name = "unseen" if wanted == UNSEEN else "forest"
            if rows:
                label = folder.primary.label
                shown.append(figures.forest(site, rows, axis=label, limits=limits, line=line, name=name))
        return shown

    known = {
        entry: {site: row[n][1].mean for site, row in table.items() if np.isfinite(row[n][1].mean)}
        for n, entry in enumerate(entries)
    }
    even = evenness(folder, known)
    return SiteResults(
        panels=panels(PLAIN),
        unseen=panels(UNSEEN),
        methods=[folder.titles[entry] for entry in entries],
        rows=[(site, [_interval(folder, one) for _, one in table[site]]) for site in scored],
        left_out=[site for site in folder.sites if site not in scored],
        even=even.rows,
        even_by=even.by,
        references=any(is_reference(folder, label) for label, _ in entries),
        alone=(folder.baselines.get("single"), PLAIN) in entries,
    )


def _interval(folder: Folder, one: figures.Estimate) -> str:
    text = folder.primary.text
    return text(one.mean, 2) + (f" ({text(one.low, 2)} to {text(one.high, 2)})" if np.isfinite(one.low) else "")


def _curves(folder: Folder) -> dict[str, Any]:
    """ROC and calibration panels of a binary classification, and what is said of each site."""
    rows = tables.own_predictions(folder)
    if folder.target == "numbers" or not {"label", "score"} <= set(rows.columns) or "score_0" in rows.columns:
        return {}
    rows = rows.dropna(subset=["label", "score"])
    if set(rows["label"]) != {0, 1}:
        return {}
    rows = _titled(folder, rows)
    methods = [title for title in folder.titles.values() if title in set(rows["method"])]
    alone = folder.baselines.get("single")
    reference = alone if alone in methods else None
    return {
        "roc": figures.roc(rows, methods, reference),
        "calibration": figures.calibration(rows, methods),
        "trusted": trusted(folder),
    }


def _titled(folder: Folder, rows: pd.DataFrame) -> pd.DataFrame:
    """``rows`` with the title of method and kind of run in the column ``method``."""
    return rows.assign(
        method=[folder.titles.get(one, titled(*one)) for one in zip(rows["method"], rows[RUN], strict=True)]
    )


def _scatter(folder: Folder) -> list[tuple[str, list[Panel]]]:
    """Predicted against true numbers: a panel a method, and a panel a site of the best one."""
    rows = tables.own_predictions(folder)
    if folder.target != "numbers" or folder.kept_at_sites or not {"label", "score"} <= set(rows.columns):
        return []
    rows = rows.dropna(subset=["label", "score"])
    name = str((folder.study.get("data") or {}).get("label") or "Label")
    rows = _titled(folder, rows)
    methods = {title: rows[rows["method"] == title] for title in folder.titles.values()}
    shown = [("Every method, all sites together", figures.scatter(methods, name))]
    best = headline(folder)
    if best is not None and len(folder.sites) > 1:
        mine = methods[best.method]
        sites = {site: mine[mine["site"] == site] for site in folder.sites}
        shown.append((f"{best.method}, site by site", figures.scatter(sites, name)))
    return [(title, panels) for title, panels in shown if panels]


def _confusion(folder: Folder) -> tuple[str, Any] | None:
    best = headline(folder)
    cells = tables.confusion(folder, best.method) if best else None
    return (best.method, cells) if best and cells else None


def _overlays(folder: Folder) -> list[tuple[str, list[tuple[str, list[Panel]]]]]:
    """For each method, each site's best, median and worst case; the best method first."""
    found = folder.overlays()
    best = headline(folder)
    methods = list(dict.fromkeys(one.method for one in found))
    methods.sort(key=lambda method: best is None or method != best.method)
    several = folder.structures
    return [
        (method, [(site, [_overlay(one, several) for one in ones]) for site, ones in _by_site(found, method).items()])
        for method in methods
    ]


def _are_volumes(folder: Folder) -> bool:
    """Whether pictures are slices of volumes."""
    data = folder.study.get("data")
    of_volumes = isinstance(data, dict) and data.get("preprocessing") is not None
    return any(one.planes or (of_volumes and folder.target == "images") for one in folder.overlays())


def _colours(folder: Folder) -> list[tuple[str, str]]:
    """Name and colour of each of several structures in the overlays."""
    return [(name, structure_colour(index)) for index, name in enumerate(folder.structures)]


def _by_site(found: list[Overlay], method: str) -> dict[str, list[Overlay]]:
    sites: dict[str, list[Overlay]] = {}
    for one in found:
        if one.method == method:
            sites.setdefault(one.site, []).append(one)
    return sites


def _overlay(one: Overlay, structures: list[str]) -> Panel:
    if "reconstruction" in one.parts:
        score = f", PSNR {metric_text('psnr', one.score)} dB" if np.isfinite(one.score) else ""
        return reconstruction(f"{one.which.capitalize()}{score}", f"{one.site} by {one.method}", one.parts)
    score = f", Dice {one.score:.2f}" if np.isfinite(one.score) else ""
    words = f"{one.which.capitalize()} test case of {one.site} by {one.method}{score}: image with both outlines."
    title = f"{one.which.capitalize()}{score}"
    image, mask, prediction = (one.parts[name] for name in ("image", "mask", "prediction"))
    return figures.overlay(title, words, image, mask, prediction, structures, one.planes)


def _convergence(folder: Folder) -> list[tuple[str, str, list[Panel]]]:
    """Title, caption and panels: loss, and the validation metric."""
    table = of_run(folder.rounds).replace([np.inf, -np.inf], np.nan)
    if "phase" in table:  # in a pretraining the loss is another one
        table["loss"] = table["loss"].where(table["phase"] != "pretraining")
    table = table[table.groupby("method")["round"].transform("nunique") > 1]
    if table.empty:
        return []
    run = ["method", "seed", "fold", "round"]
    losses = [name for name in ("loss", "validation_loss") if name in table and table[name].notna().any()]
    scores = [name for name in table if str(name).startswith("validation_") and name != "validation_loss"]
    scores = [name for name in scores if table[name].notna().any()]
    scores.sort(key=lambda name: name != f"validation_{folder.primary.name}")
    # A site counts in the loss by its number of training examples, as it does in the objective of the federation.
    weighted = table[losses].mul(table["examples"].fillna(1), axis=0)
    weights = table[losses].notna().mul(table["examples"].fillna(1), axis=0)
    keys = [table[name] for name in run]
    means = weighted.groupby(keys).sum(min_count=1) / weights.groupby(keys).sum()
    means = means.join(table.groupby(run)[scores[:1]].mean()).reset_index()
    methods = tables.ordered(folder.methods, table["method"].unique())
    names = {"loss": "training", "validation_loss": "validation"}
    shown = []
    if losses:
        curves = [(name, names[name]) for name in losses]
        caption = "Mean over the sites, weighted by their numbers of training cases. The lower, the better."
        caption += " The loss of a pretraining is not shown: it is another one." if "phase" in table else ""
        shown.append(("Loss", caption, figures.convergence(means, methods, curves, axis="Loss", name="loss")))
    for name in scores[:1]:
        title = next((one.label for one in folder.metrics if f"validation_{one.name}" == name), str(name))
        caption = f"On validation patients, the mean over the sites. Here {_kept_round(folder)}."
        panels = figures.convergence(means, methods, [(str(name), "validation")], axis=title, name="score")
        shown.append((f"Validation: {title}", caption, panels))
    return shown


@dataclass(frozen=True)
class Card:
    """What the model card says beyond its fixed words."""

    model: str
    training: str
    files: list[tuple[str, str]]
    size: str
    version: str
    unscored: list[str]
    final: str


def _card(folder: Folder) -> Card:
    versions = folder.provenance.get("versions")
    return Card(
        model=tables.networks(folder.study),
        training=tables.plain(folder.study.get("training") or {}),
        files=[(name, tables.bytes_text(size)) for name, size in folder.models],
        size=tables.bytes_text(sum(size for _, size in folder.models)),
        version=str(versions.get("polyclinic", "")) if isinstance(versions, dict) else "",
        unscored=[site for site in folder.sites if site not in folder.scored],
        final=folder.final_model,
    )


def _notes(folder: Folder) -> list[Note]:
    """The notes; what is said of several methods in the same words is said once."""
    said: dict[tuple[str, str], list[str]] = {}
    for note in folder.notes:
        method, colon, rest = note.partition(": ")
        is_method = bool(colon) and method in folder.methods
        said.setdefault((note.number, rest if is_method else str(note)), []).extend([method] if is_method else [])
    return [
        Note(number, f"{', '.join(dict.fromkeys(of))}: {words}" if of else words)
        for (number, words), of in said.items()
    ]


def _checklists(folder: Folder) -> list[dict[str, object]]:
    """The checklists, filled as far as the run goes; none where there is no study file to say what was run."""
    return [filled(one, folder) for one in CHECKLISTS.values()] if folder.study else []


def _provenance(folder: Folder) -> dict[str, Any]:
    told = {name: value for name, value in folder.provenance.items() if name != "described"}  # with the methods
    rows = tables.nested_rows(told)
    return {"rows": rows, "study": folder.study_text} if rows or folder.study_text else {}


CONTENT: dict[str, Callable[[Folder], Any]] = {
    "answer": answer,
    "question": _question,
    "methods": method_lines,
    "sites": tables.site_rows,
    "harmonisation": harmonised,
    "results": _results,
    "attack": attacked,
    "structures": tables.structure_tables,
    "within": within,
    "site_results": _site_results,
    "subgroups": subgroup_section,
    "cross": tables.cross_matrix,
    "curves": _curves,
    "survival": survived,
    "scatter": _scatter,
    "confusion": _confusion,
    "overlays": _overlays,
    "attention": attended,
    "made": made_cases,
    "search": searched,
    "convergence": _convergence,
    "costs": tables.costs,
    "exchanged": exchanged,
    "privacy": guaranteed,
    "notes": _notes,
    "card": _card,
    "checklists": _checklists,
    "provenance": _provenance,
}
