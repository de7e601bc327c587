"""What a run's files say of its data: sites, selection, preparation, missing values, the flow of cases."""

from __future__ import annotations

import numpy as np

from polyclinic.study.report.checklists.entries import counted, listed, notes_of, part, percent
from polyclinic.study.report.checklists.items import NotDone
from polyclinic.study.report.flow import PARTS, SiteFlow, group_counts, site_flows, spread, together
from polyclinic.study.report.folder import CLASS, Folder
from polyclinic.study.report.tables import count_text, networks, plain

#: Columns of ``sites.csv`` that tell what images were like as they were read.
_IMAGE_COLUMNS = ("vendors", "field strengths", "shapes", "spacing")


def sites(folder: Folder) -> str:
    """How many sites there are, and whether they are real or simulated."""
    names = f"{counted(len(folder.sites), 'site')}: {listed(folder.sites)}."
    partition = part(folder, "data").get("partition")
    if partition:
        return f"{names} They are simulated: the patients of one table were shared out ({plain(partition)})."
    return f"{names} They are those that the data name."


def where_run(folder: Folder) -> str | None:
    """Whether the sites were computers of their own."""
    plan = folder.provenance.get("plan")
    if not isinstance(plan, dict):
        return None
    mode = str(plan.get("mode"))
    if mode not in ("sequential", "stacked", "processes"):
        return f"Engine: {mode}."
    return (
        f"The sites ran on one computer (engine: {mode}); no network lay between them. What is measured of traffic are "
        "sizes of messages."
    )


def task(folder: Folder) -> str | None:
    """What is predicted, from what, by which network."""
    data, declared = part(folder, "data"), folder.study.get("task")
    if not declared:
        return None
    target = data.get("mask") if declared == "segmentation" else data.get("label") or list(data.get("findings") or ())
    inputs = "images" if data.get("image") else "columns of a table"
    model = networks(folder.study)
    return f"Task: {declared} (target: {plain(target)}) from {inputs}, with the network {model}."


def selection(folder: Folder) -> str | None:
    """Which rows belong to the study, and why others were not used."""
    data = part(folder, "data")
    if not data:
        return None
    rows = data.get("where")
    chosen = f"Rows were selected by {plain(rows)}." if rows else "All rows of the tables belong to the study."
    flows = site_flows(folder)
    if not flows:
        return chosen
    total = together(flows)
    if not total.rejected:
        return f"{chosen} No case was rejected."
    reasons = ", ".join(f"{reason} ({count})" for reason, count in total.rejected)
    return f"{chosen} Rejected: {reasons}."


def preparation(folder: Folder) -> str | None:
    """How inputs were prepared, and what was fitted where."""
    data = part(folder, "data")
    if not data:
        return None
    words = []
    if data.get("preprocessing"):
        words.append(f"Volumes: {plain(data['preprocessing'])}.")
    elif data.get("image"):
        words.append(
            f"Images were brought to {plain(data.get('size'))} pixels, channels {plain(data.get('channels'))}."
        )
    scaling = data.get("scaling")
    how = {
        "per_site": "each site scales by its own training cases",
        "federated": "sites share mean and deviation of their training cases, and all scale alike",
        "none": "inputs are not scaled",
    }
    if scaling:
        words.append(f"Scaling: {how.get(str(scaling), plain(scaling))}.")
    if data.get("divide_by"):
        words.append(f"Features were divided by {data['divide_by']}.")
    harmonisation = data.get("harmonisation")
    none = harmonisation in (None, "none") or harmonisation == {"combat": None}
    words.append("No harmonisation." if none else f"Harmonisation: {plain(harmonisation)}.")
    augmentation = data.get("augmentation")
    if data.get("image"):
        words.append(f"Augmentation: {plain(augmentation)}." if augmentation else "No augmentation.")
    return " ".join(words)


def missing(folder: Folder) -> str | None:
    """Missing features and labels, and what became of them."""
    data, table = part(folder, "data"), folder.site_table
    if not data or table.empty:
        return None
    words = []
    if not data.get("image") and "missing" in table:
        shares = {str(site): float(share) for site, share in zip(table["site"], table["missing"], strict=True)}
        some = {site: share for site, share in shares.items() if share > 0}
        if some:
            worst = sorted(some, key=lambda site: -some[site])[:5]
            each = ", ".join(f"{site} {some[site]:.3g}\u00a0%" for site in worst)
            words.append(
                f"Feature values are missing at {len(some)} of {counted(len(shares), 'site')} ({each}"
                f"{', ...' if len(some) > len(worst) else ''}); imputation: {plain(data.get('imputation'))}."
            )
        else:
            words.append("No feature value is missing.")
    flows = site_flows(folder)
    gone = [(why, count) for why, count in together(flows).rejected if why.endswith("is missing")] if flows else []
    if gone:
        words.append(f"Cases were rejected because {', '.join(f'{why} ({count})' for why, count in gone)}.")
    unlabelled = sum(one.unlabelled for one in flows)
    if unlabelled:
        words.append(f"{counted(unlabelled, 'case')} without a label stayed, for training without labels alone.")
    return " ".join(words) or ("No case was rejected for a missing value." if flows else None)


def pseudonyms(folder: Folder) -> str | None:
    """How patients are named in what was written."""
    if folder.kept_at_sites:
        return "No prediction of a patient left a site; the sites keep theirs under numbers, and the key to these."
    if folder.predictions.empty:
        return None
    return "In predictions.csv patients have numbers within their site, and the key stays in the site's folder."


def split(folder: Folder) -> str | None:
    """How cases came into parts."""
    evaluation = part(folder, "evaluation")
    if not evaluation:
        return None
    if evaluation.get("split"):
        return f"A column of the table ({evaluation['split']}) fixes training, validation and test part."
    share = percent(float(evaluation.get("validation", 0)))
    rest = f"{share} of the other patients are for validation. The split is drawn within each site (split_seed "
    rest += f"{evaluation.get('split_seed', 0)}) and is the same for all methods and seeds."
    if evaluation.get("holdout"):
        tested = percent(float(evaluation["holdout"]))
        return f"{tested} of each site's patients, spread over the classes, are tested; {rest}"
    return f"{evaluation.get('folds')}-fold cross-validation at each site, stratified; {rest}"


def split_level(folder: Folder) -> str | None:
    """At which level parts are disjoint."""
    data = part(folder, "data")
    if not data:
        return None
    if data.get("subject"):
        pattern = " (by subject_pattern)" if data.get("subject_pattern") else ""
        words = f"By patient: all cases of a patient, named by {data['subject']}{pattern}, are in one part."
    else:
        words = "By case: no column names the patients, so every case counts as a patient."
    unseen = " For runs at unseen sites also by site." if folder.unseen else ""
    doubts = notes_of(folder, "N201", "N202", "N203", "N230", "N237", "N238")
    return f"{words}{unseen}{' ' if doubts else ''}{doubts}"


def overlap(folder: Folder) -> str:
    """Whether patients or cases stand at several sites."""
    found = notes_of(folder, "N201", "N203", "N237")
    if found:
        return found
    if not part(folder, "data").get("subject"):
        return (
            "No column names the patients, so the same person at two sites can't be seen. No copy of a case was noted."
        )
    return "No patient's name, as it is written, and no copy of a case was noted at more than one site."


def flow(folder: Folder) -> str | None:
    """Found, rejected and used, in total."""
    flows = site_flows(folder)
    if not flows:
        return None
    total = together(flows)
    left_out = [one.site for one in flows if not one.used]
    patients = ""
    if part(folder, "data").get("subject") and np.isfinite(total.patients):
        patients = f" of {count_text(total.patients)} patients"
    without = f" Left out as a whole: {listed(left_out)}." if left_out else ""
    rejected = sum(count for _, count in total.rejected)
    return (
        f"{count_text(total.found)} cases found at {counted(len(flows), 'site')}, {count_text(rejected)} rejected, "
        f"{count_text(total.used)}{patients} used.{without} Flow diagram: report; numbers of each site: flow.csv."
    )


def flow_by_site(folder: Folder) -> str | None:
    """The same at each site, of few sites."""
    flows = site_flows(folder)
    if not flows:
        return None
    return "; ".join(_site(one) for one in flows[:6]) + (
        f"; {len(flows) - 6} more in flow.csv." if len(flows) > 6 else "."
    )


def _site(one: SiteFlow) -> str:
    parts = ", ".join(f"{PARTS[name].lower()} {spread(found.cases)}" for name, found in one.parts.items())
    return f"{one.site}: {one.found} found, {one.used} used{f' ({parts})' if parts else ', left out'}"


def by_part(folder: Folder) -> str | None:
    """Cases, and of which classes, in each part of all sites together."""
    flows = [one for one in site_flows(folder) if one.parts]
    if not flows:
        return None
    words = []
    for name, found in together(flows).parts.items():
        classes = ", ".join(f"{spread(counts)} {label}" for label, counts in found.classes.items())
        words.append(f"{PARTS[name].lower()} {spread(found.cases)}{f' ({classes})' if classes else ''}")
    folds = len(next(iter(flows[0].parts.values())).cases)
    each = f" in each of {folds} folds (least to largest)" if folds > 1 else ""
    return f"Cases{each}: {'; '.join(words)}. Each site by part and class: flow.csv."


def classes(folder: Folder) -> str | None:
    """How classes, numbers or marked areas differ between sites."""
    table = folder.site_table
    if folder.classes:
        counts = table[[CLASS + name for name in folder.classes]].sum()
        whole = ", ".join(f"{name} {count_text(counts[CLASS + name])}" for name in folder.classes)
        last = folder.classes[-1]
        totals = table[[CLASS + name for name in folder.classes]].sum(axis=1)
        shares = (table[CLASS + last] / totals.where(totals > 0)).dropna()
        apart = (
            f" The share of {last} is {percent(shares.min())} to {percent(shares.max())} by site."
            if len(shares) > 1
            else ""
        )
        return f"{whole}.{apart}"
    if "label mean" in table and len(table):
        low, high = table["label mean"].min(), table["label mean"].max()
        return f"The sites' means of the numbers to be predicted lie between {low:.3g} and {high:.3g}."
    if "foreground" in table and len(table):
        low, high = table["foreground"].min(), table["foreground"].max()
        return f"The sites' mean share of marked pixels lies between {percent(low)} and {percent(high)}."
    return None


def images(folder: Folder) -> str | None:
    """What images were like as they were read, by site."""
    known = [name for name in _IMAGE_COLUMNS if name in folder.site_table]
    if not known or folder.site_table.empty:
        return None
    return f"sites.csv tells for each site: {listed(known)} of the images as they were read."


def annotation(folder: Folder) -> str | None:
    """What was noticed of labels and masks."""
    return notes_of(folder, "N224", "N226", "N227", "N229", "N233", "N402", "N410", "N413") or None


def quality(folder: Folder) -> str:
    """What checks of the data found."""
    found = [note for note in folder.notes if "201" <= note.number[1:] <= "799"]
    if not found:
        return "The checks of tables, labels, images and masks on opening gave no note."
    numbers = listed([note.number for note in found])
    return f"The checks on opening gave {counted(len(found), 'note')}: {numbers}; see notes.json."


def characteristics(folder: Folder) -> str | None:
    """Groups of patients in each part, where the study names subgroups."""
    counts = group_counts(folder)
    if not counts:
        return None
    each = [f"{name} {group}: {', '.join(texts)}" for name, group, texts in counts]
    return f"Patients in training, validation and test part, of {listed(each)}. Each site: characteristics.csv."


def subgroups(folder: Folder) -> str:
    """Whether results were looked at by groups of patients."""
    asked = part(folder, "evaluation").get("subgroups")
    if not asked:
        return NotDone("Not done: the study names no subgroups (`evaluation: {subgroups: ...}`).")
    return f"Results by {plain(asked)} are in the report and in subgroups.csv, with gaps and intervals."


def recalibration(folder: Folder) -> str:
    """Whether models were updated at a site."""
    return NotDone("Not done: models are tested as they were trained; none was recalibrated.")
