"""What a run's files say of its methods: models, training, tuning, time, and the software."""

from __future__ import annotations

import numpy as np

from polyclinic.study.report.checklists.entries import counted, federated_methods, listed, part
from polyclinic.study.report.checklists.items import NotDone
from polyclinic.study.report.folder import Folder
from polyclinic.study.report.methods import method_lines
from polyclinic.study.report.tables import bytes_text, costs, networks, plain, seconds_text


def model(folder: Folder) -> str | None:
    """The network, and the files it is in."""
    named = networks(folder.study)
    if not named:
        return None
    return f"Network: {named}. Layers and shapes of all tensors are in the files of models/, the options in study.yaml."


def methods(folder: Folder) -> str | None:
    """The methods that were run, each with its source."""
    lines = method_lines(folder)
    if not lines:
        return None
    each = "; ".join(f"{one.label}{f' ({one.citation})' if one.citation else ''}" for one in lines)
    return f"{counted(len(lines), 'method')}: {each}. What each does, with all options: report and study.yaml."


def sharing(folder: Folder) -> str | None:
    """What sites share with whom, and how their updates are put together."""
    said = []
    for label in federated_methods(folder):
        options = folder.declared.get(label, ("", {}))[1]
        parts = {key: options.get(key) for key in ("share", "server", "topology") if options.get(key)}
        if parts:
            said.append(f"{label} ({plain(parts)})")
    if not said:
        return None
    weights = {"cases": "its number of training cases", "uniform": "one vote each"}
    how = weights.get(str(part(folder, "training").get("weights")), "")
    counts = f" A site counts by {how}, unless a rule of the method says otherwise." if how else ""
    return f"Shared and put together: {listed(said)}.{counts}"


def training(folder: Folder) -> str | None:
    """Rounds, local work, optimiser and loss."""
    declared = part(folder, "training")
    if not declared:
        return None
    own = [label for label, (_, options) in folder.declared.items() if options.get("training")]
    others = f" Own training: {listed(own)} (study.yaml)." if own else ""
    return f"Training: {plain(declared)}.{others}"


def participation(folder: Folder) -> str | None:
    """Who was asked in a round, and how many had to answer."""
    declared = part(folder, "training")
    if not declared:
        return None
    chosen = plain(declared.get("participation")) if declared.get("participation") else "all sites"
    quorum = declared.get("quorum")
    least = f"at least {quorum} had to answer" if quorum else "all that were asked had to answer"
    return f"Asked in each round: {chosen}; {least}."


def start(folder: Folder) -> str | None:
    """Where training started from."""
    seeds = folder.provenance.get("seeds")
    if seeds is None:
        return None
    weights = folder.provenance.get("weights_sha256")
    began = f"from given weights (SHA-256 {weights})" if weights else "from random weights"
    return f"Every training starts {began}, the same for all methods with one seed; seeds: {plain(seeds)}."


def versions(folder: Folder) -> str | None:
    """Software, data fingerprint and number of models, which tell one version from another."""
    known = folder.provenance.get("versions")
    if not isinstance(known, dict):
        return None
    data = folder.provenance.get("data_sha256")
    cases = f" SHA-256 of all cases used: {data}." if data else ""
    return f"{plain({name: value for name, value in known.items() if value})}.{cases}"


def plugins(folder: Folder) -> str | None:
    """Plug-ins that took part."""
    loaded = folder.provenance.get("plugins")
    return f"Plug-ins: {plain(loaded)}." if loaded else None


def machine(folder: Folder) -> str | None:
    """The kind of computer."""
    known = folder.provenance.get("machine")
    return f"Computer: {plain(known)}." if isinstance(known, dict) else None


def best_round(folder: Folder) -> str | None:
    """How the tested model was chosen."""
    evaluation = part(folder, "evaluation")
    if not evaluation:
        return None
    by = evaluation.get("best_round", "loss")
    if by == "last":
        return "The model of the last round is tested; nothing was chosen by test cases."
    what = "loss" if by == "loss" else folder.validation_metric
    return (
        f"The round whose model is tested was chosen by the {what} on validation patients (mean over the sites that "
        "share the model), never by test cases."
    )


def tuning(folder: Folder) -> str:
    """What was searched, with which budget for each method."""
    table = folder.search
    if table.empty:
        return NotDone(
            "Not done: nothing was searched in this run; all methods have the values of study.yaml. Whether these were "
            "found by trying is not recorded."
        )
    searches = table.groupby(["method", "run", "fold", "without"], sort=False)["trial"].nunique()
    counts = searches.groupby("method", sort=False).first()
    least, most = int(counts.min()), int(counts.max())
    same = f"{least} configurations each" if least == most else f"{least} to {most} configurations"
    each = ", ".join(f"{method} {count}" for method, count in counts.items())
    without = [method for method in folder.methods if method not in set(table["method"])]
    none = f" Nothing was searched for {listed(without)}." if without else ""
    nested = (folder.study.get("search") or {}).get("nested", True)
    where = "anew in each fold" if nested else "once for all folds"
    return f"Searched on validation patients, {where}: {same} ({each}).{none} All trials: search.csv."


def time(folder: Folder) -> str | None:
    """Time of training, and of the search, by method."""
    lines = [one for one in costs(folder) if one.seconds != "–"]
    if not lines:
        return None
    each = ", ".join(f"{one.method} {one.seconds}" for one in lines)
    searched = folder.provenance.get("search_seconds")
    trials = ""
    if isinstance(searched, dict) and searched:
        trials = (
            f" Time of all trials of the search: {', '.join(f'{k} {seconds_text(v)}' for k, v in searched.items())}."
        )
    return f"Local training of one fold with one seed, sum over rounds and sites: {each}.{trials}"


def files(folder: Folder) -> str:
    """The trained models that are there."""
    if not folder.models:
        return NotDone("There are no trained models in the results folder.")
    size = bytes_text(sum(size for _, size in folder.models))
    return f"models/ holds {counted(len(folder.models), 'file')} ({size}, safetensors, no code), one a training."


def ensemble(folder: Folder) -> str:
    """Whether models are averaged."""
    named = folder.named("ensemble")
    if not named:
        return NotDone("Not done: no method of this study averages the predictions of several models.")
    return f"{listed(named)} averages the predictions of the models that the sites trained alone."


def imbalance(folder: Folder) -> str | None:
    """What was done about rare classes."""
    declared, boxes = part(folder, "training"), part(folder, "data").get("patch")
    if not declared:
        return None
    if folder.target == "numbers":
        return "Does not apply: numbers are predicted, not classes."
    if folder.target == "images":
        return "Does not apply: images are reconstructed, no classes predicted."
    weights = declared.get("class_weights", "none")
    if weights in (None, "none") and boxes:
        return f"Classes have the same weight in the loss. Boxes are cut from volumes: {plain(boxes)}."
    if weights in (None, "none"):
        return NotDone("Not done: classes have the same weight in the loss, and cases are drawn alike.")
    return f"The loss weights classes: {plain(weights)}. Probabilities were not corrected for it."


def baselines(folder: Folder) -> str:
    """What the methods were compared with."""
    known = {
        "single": "each site alone",
        "mix": "all data in one place",
        "ensemble": "averaged predictions of the sites' own models",
        "fedavg": "plain federated averaging",
    }
    run = [f"{listed(folder.named(name))} ({words})" for name, words in known.items() if folder.named(name)]
    missing = [words for name, words in known.items() if name in ("single", "mix") and not folder.named(name)]
    lacks = f" Not run: {listed(missing)}." if missing else ""
    if not run:
        return NotDone(f"Not done: no baseline was run.{lacks}")
    return f"Run in the same folds and seeds: {listed(run)}.{lacks}"


def repetitions(folder: Folder) -> str:
    """How often training was repeated."""
    seeds, folds = folder.seeds, folder.folds
    if seeds < 2:
        return (
            f"One seed, {counted(folds, 'fold')}: results speak of the models as they were trained; chance in training "
            "is not counted."
        )
    return f"{seeds} seeds, {counted(folds, 'fold')}: chance in training counts in intervals and p values."


def converged(folder: Folder) -> str | None:
    """Whether training had come to an end, from the validation losses."""
    notes = [note for note in folder.notes if note.number == "N804"]
    rounds = folder.rounds["round"]
    if rounds.empty:
        return None
    most = int(np.nanmax(rounds)) + 1
    diverged = f" Diverged: {' '.join(notes)}" if notes else ""
    return f"Up to {counted(most, 'round')}; loss and score by round are in rounds.csv and the report.{diverged}"
