"""What a run's files say of the federation: who took part when, what was exchanged, and what that could reveal."""

from __future__ import annotations

from polyclinic.study.columns import MODEL
from polyclinic.study.report.checklists.entries import (
    federated_methods,
    federated_rows,
    listed,
    notes_of,
    part,
)
from polyclinic.study.report.checklists.items import NotDone
from polyclinic.study.report.exchange import exchanged
from polyclinic.study.report.flow import site_flows
from polyclinic.study.report.folder import Folder
from polyclinic.study.report.tables import plain


def presence(folder: Folder) -> str | None:
    """Which sites missed rounds, came later, or left."""
    table = federated_rows(folder)
    if table.empty:
        return None
    missed: dict[str, int] = {}
    late, left, total = dict[str, None](), dict[str, None](), 0
    for _, rows in table.groupby(["method", "seed", "fold"], sort=False):
        rounds = rows["round"].nunique()
        total += rounds
        for site, own in rows.groupby("site", sort=False):
            missed[str(site)] = missed.get(str(site), 0) + rounds - own["round"].nunique()
            if own["round"].min() > rows["round"].min():
                late[str(site)] = None
            if own["round"].max() < rows["round"].max():
                left[str(site)] = None
    some = {site: count for site, count in missed.items() if count}
    never = [site for site in folder.sites if site not in missed]
    apart = f" In no round of a federated method: {listed(never)}." if never else ""
    if not some:
        return (
            f"Every site whose updates counted was there in all {total} rounds (over methods, folds and seeds).{apart}"
        )
    worst = sorted(some, key=lambda site: (-some[site], site))
    each = listed([f"{site} {some[site]}" for site in worst])
    came = f" First answer in a later round than others': {listed(list(late))}." if late else ""
    went = f" No answer in last rounds: {listed(list(left))}." if left else ""
    return f"Rounds missed, of {total} over methods, folds and seeds: {each}.{came}{went}{apart}"


def failures(folder: Folder) -> str:
    """Sites that failed, were left out, or were too small."""
    left_out = [one.site for one in site_flows(folder) if not one.used]
    notes = notes_of(folder, "N208", "N801", "N803")
    gone = f"Left out, since no case can be used: {listed(left_out)}. " if left_out else ""
    if not gone and not notes:
        return "No site failed, was left out, or was too small to be split."
    return f"{gone}{notes}".strip()


def traffic(folder: Folder) -> str | None:
    """Bytes each way, and what was sent besides the model."""
    found = exchanged(folder)
    if found is None:
        return None
    each = []
    for one in found.methods:
        extra = listed(list(dict.fromkeys(payload.name for payload in one.payloads)))
        each.append(f"{one.method}: {one.up} up, {one.down} down{f', besides {extra}' if extra else ''}")
    return f"A round and site: {'; '.join(each)}. All exchanges: rounds.csv."


def reveals(folder: Folder) -> str | None:
    """What the payloads besides the model could reveal."""
    said = dict.fromkeys(words for (_, name), words in folder.reveals.items() if words and name != MODEL)
    parts = [f"{method}: {words}" for (method, name), words in folder.reveals.items() if name == MODEL]
    if federated_rows(folder).empty:
        return None
    model = "The change of the model itself was sent in every round: what it could reveal was not measured in this run."
    model += f" Of the model was sent by {listed(parts)}." if parts else ""
    if not said:
        return f"{model} Nothing was sent besides it."
    return f"{model} Besides it: {' '.join(said)} (exchanged.csv, by payload)."


def evidence(folder: Folder) -> str | None:
    """What left the sites of single cases."""
    if folder.kept_at_sites:
        least = part(folder, "evaluation").get("disclosure_floor")
        return (
            "No row of a test case: sites kept their predictions, and sent metrics, counts of scores between "
            f"thresholds and sums; nothing of test cases of fewer than {least} patients."
        )
    if folder.predictions.empty:
        return None
    pictures = " Images of three patients a site are in the report." if folder.overlays() else ""
    return f"Of every test case a prediction with its label, or its scores, came together in predictions.csv.{pictures}"


def protection(folder: Folder) -> str | None:
    """Steps that protect what leaves a site, and their budget."""
    labels = federated_methods(folder)
    if not labels or not folder.declared:
        return None
    steps = {label: channel for label in labels if (channel := folder.declared.get(label, ("", {}))[1].get("channel"))}
    budgets = [
        f"{label} at most ε = {rows['epsilon'].max():g} at δ = {rows['delta'].max():g} for {unit}"
        for (label, unit), rows in folder.privacy.groupby(["method", "unit"], sort=False)
    ]
    noise = f"Noise in a training costs: {listed(budgets)} (privacy.csv)." if budgets else ""
    if not steps and not noise:
        return NotDone(
            "Not done: no federated method of this study adds noise to what leaves a site, hides single updates from "
            "the server, or encrypts them; there is no privacy budget."
        )
    others = [one for one in labels if one not in steps and one not in set(folder.privacy["method"])]
    said = [f"Steps on what leaves a site: {plain(steps)}."] if steps else []
    return " ".join([*said, *filter(None, [noise]), *([f"Others: {listed(others)}."] if others else [])])


def attacks(folder: Folder) -> str:
    """What was tried against the federation."""
    attack = folder.study.get("attack")
    if not attack:
        return NotDone("Not done: no corrupt site was simulated, and no attack on what is exchanged was tried.")
    return f"Simulated: {plain(attack)}; results with corrupt sites are in the rows with run = attacked."


def governance(folder: Folder) -> str | None:
    """Which study file all sites followed."""
    name = folder.provenance.get("study_file")
    times = f"started {folder.provenance.get('started', '?')}, finished {folder.provenance.get('finished', '?')}"
    if not name:
        return None
    resumed = f", resumed {folder.provenance['resumed']}" if folder.provenance.get("resumed") else ""
    return f"One study file ({name}) declares the whole study; {times}{resumed}."


def harmonised(folder: Folder) -> str | None:
    """What was shared to bring the sites' inputs together."""
    data = part(folder, "data")
    if not data:
        return None
    shared = []
    if data.get("scaling") == "federated":
        shared.append("count, mean and deviation of each feature or channel for the common scale")
    if isinstance(data.get("harmonisation"), dict) and data["harmonisation"].get("combat"):
        shared.append("summaries of the features for ComBat")
    if not shared:
        return "No summary of features was shared for preparation; sizes and class counts of the parts were."
    return (
        f"Shared for preparation, from training cases only: {listed(shared)}; and sizes and class counts of the parts."
    )
