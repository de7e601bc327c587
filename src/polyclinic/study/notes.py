"""Notes for the reader of results: methods that are not what their name says here, and training gone wrong."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from polyclinic.audit.poisoning import Attack
from polyclinic.catalogues import PLUGINS
from polyclinic.data.opening.subgroups import NOT_KNOWN
from polyclinic.data.spec import DataSpec
from polyclinic.data.tables.findings import finding_classes
from polyclinic.methods import SHARES
from polyclinic.notes import Note
from polyclinic.parts import build_part
from polyclinic.roles import Role
from polyclinic.state import Layout
from polyclinic.study.declaration import Declaration
from polyclinic.study.job import Fold, Job
from polyclinic.study.kinds import PLAIN, RUN
from polyclinic.study.method_entries import StudyMethod
from polyclinic.study.planning import balanced_weights, cannot_vote
from polyclinic.study.shared_budget import protected
from polyclinic.study.without_labels import pretrains_only, why_left_out
from polyclinic.tasks import build_task

if TYPE_CHECKING:
    import pandas as pd

#: With fewer events a batch has little to compare.
_FEW_EVENTS = 3
#: A training loss is far too high above so many times that of a model that guesses.
_FAR = 20


def left_out() -> list[Note]:
    """On plug-ins that could not be loaded."""
    return [Note("N107", str(plugin)) for plugin in PLUGINS if plugin.problem]


def hidden_labels(declaration: Declaration, folds: Sequence[Fold]) -> list[Note]:
    """On labels that a study hides from its trainings."""
    sites = {site: 0 for fold in folds for site, cases in fold.hidden.items() if cases}
    if not sites:
        return []
    shown = [sum(fold.train[site] for site in sites) for fold in folds]
    hidden = [sum(fold.hidden[site] for site in sites) for fold in folds]
    text = f"Labels were hidden from training on purpose, at {', '.join(sites)}: of {hidden[0]} of "
    text += f"{hidden[0] + shown[0]} training cases there" + (" in the first fold" if len(folds) > 1 else "")
    leaves = declaration.data.labels.leaves if declaration.data.labels else None
    if leaves:
        text += ", of whose masks " + ("boxes" if leaves == "box" else "names of structures") + " are left"
    if any(fold.train[site] == 0 for fold in folds for site in sites):
        return [Note("N111", f"{text}, with those for validation. Test cases have all of theirs.")]
    return [Note("N111", f"{text}. Validation and test cases have all of theirs.")]


def no_labels(declaration: Declaration, folds: Sequence[Fold]) -> list[Note]:
    """On sites at which no training case has a label: who trains there, and whether they are tested."""
    found = {site: fold for fold in reversed(folds) for site in fold.sites_without_labels}
    why = {study.label: why_left_out(study.method) for study in declaration.study_methods}
    if not found:
        return []
    sites = [site for site in folds[0].train if site in found]
    reasons: dict[str, list[str]] = {}
    for label, reason in why.items():
        reasons.setdefault(reason, []).append(label)
    counts = ", ".join(f"{site} {found[site].unlabelled[site]}" for site in sites)
    words = [f"No training case of {len(sites)} of {len(folds[0].train)} sites has a label ({counts} without one)."]
    trained = reasons.pop("", [])
    first = [one.label for one in declaration.study_methods if one.label in trained and pretrains_only(one.method)]
    words.append(f"They take part in {', '.join(trained)}." if trained else "They take part in no method.")
    if first:
        words.append(f"In {', '.join(first)} they do so in the pretraining, and then receive the model.")
    words += [f"They are left out of {', '.join(labels)}: {reason}." for reason, labels in reasons.items()]
    silent = [site for site in sites if not any(fold.test[site] for fold in folds)]
    if silent:
        words.append(f"Not tested, since no test case there has a label: {', '.join(silent)}.")
    return [Note("N275", " ".join(words))]


def full_precision(declaration: Declaration, device: str) -> list[Note]:
    """On mixed precision that was asked for, but not on this device."""
    if declaration.engine.precision == "float32" or declaration.engine.mixed_on(device):
        return []
    return [Note("N105", "Mixed precision is for GPUs: on this machine's processor training was in float32.")]


def idle_parts(declaration: Declaration, layout: Layout) -> list[Note]:
    """On parts of methods that find nothing to work on, so that the method is the same as another."""
    name, notes = declaration.model_part[0], list[Note]()
    body = layout.select(SHARES["body"]).trainable
    normalised = layout.select({Role.NORM_WEIGHT, Role.NORM_STATISTIC}).size
    for study in declaration.study_methods:
        method = study.method
        if method.share != "all" and method.selection(layout).everything:
            text = f"{study.label} shares the whole model here: {name} has nothing of what it would keep at the sites."
            notes.append(Note("N103", text))
        for rule, options in method.local:
            end = build_part(rule, options).at_site()
            if end.needs_body and not body:
                why = f"{name} has no layers before its head"
            elif end.needs_normalisation and not normalised:
                why = f"{name} has no normalisation layers"
            elif end.needs_unlabelled and not _may_lack_labels(declaration.data):
                why = "the study keeps no cases without a label (`data: {unlabelled: use}` does)"
            elif end.zero_at_start and study.training.local_steps == 1:
                why = "it is zero in the first local step of a round, and there is no other"
            else:
                continue
            notes.append(Note("N103", f"{study.label} is the same as without its rule {rule} here: {why}."))
    return notes


def _may_lack_labels(data: DataSpec) -> bool:
    return data.unlabelled == "use" or data.labels is not None or bool(data.hint_columns)


def ungrouped(declaration: Declaration, folds: Sequence[Fold]) -> list[Note]:
    """On parts that compare a group of patients with the others, and sites without training cases of one of the two."""
    notes = []
    for study in declaration.study_methods:
        for name, options in study.method.server:
            part = build_part(name, options)
            trained = [(site, one) for fold in folds for site, one in fold.counted.items() if fold.train[site]]
            lacking = dict.fromkeys(
                site for site, one in trained
                if part.group and not _both_sides(one.groups.get(part.subgroup, {}), part.group)
                and site not in declaration.evaluation.voters
            )  # fmt: skip
            if lacking:
                text = (
                    f"{study.label}: no training case is in the group {part.group!r} of {part.subgroup!r}, or none in "
                    f"another known one, at {', '.join(lacking)} ({len(lacking)} of {len(folds[0].train)} sites). "
                    f"{name} can't tell there how differently the model treats them."
                )
                notes.append(Note("N103", text))
    return notes


def _both_sides(groups: Mapping[str, Sequence[int]], group: str) -> bool:
    """Whether there are training cases of the group, and of another known one."""
    known = {name for name, counts in groups.items() if counts[0] and name != NOT_KNOWN}
    return group in known and len(known) > 1


def frozen_from_scratch(declaration: Declaration) -> list[Note]:
    """On methods that train little of a network that nobody has trained before."""
    if declaration.initial_weights is not None:
        return []
    labels = [
        study.label
        for study in declaration.study_methods
        if any(build_part(name, options).freezes for name, options in study.method.parts)
    ]
    if not labels:
        return []
    text = (
        f"{', '.join(labels)} {'trains' if len(labels) == 1 else 'train'} little of a frozen network, and its first "
        "weights are random: a random body learns little. Start from weights that were trained before (`model: "
        "{bundle: {path: ...}}`)."
    )
    return [Note("N265", text)]


def unscaled(declaration: Declaration) -> list[Note]:
    """On methods that change features by fixed amounts, and features that a study leaves as they are."""
    data = declaration.data
    if data.image is not None or data.scaling != "none":
        return []
    labels = [
        study.label
        for study in declaration.study_methods
        if any(build_part(name, options).at_site().supposes_scale for name, options in study.method.local)
    ]
    if not labels:
        return []
    text = (
        f"{', '.join(labels)} {'looks' if len(labels) == 1 else 'look'} at cases whose features are changed as if all "
        "had a mean of 0 and a deviation of 1, and `scaling: none` leaves them as the table has them. If these are "
        "others, it is nothing to one feature and too much for another: take `per_site` or `federated`."
    )
    return [Note("N296", text)]


def without_training(
    declaration: Declaration, folds: Sequence[Fold], layout: Layout, classes: Sequence[str] = ()
) -> list[Note]:  # fmt: skip
    """On sites that train nothing, in which methods they have no say, and which ``classes`` they alone have."""
    voters = declaration.evaluation.voters
    if not voters:
        return []
    cases = sum(folds[0].validation.get(site, 0) for site in voters) if folds else 0
    first = " in the first fold" if len(folds) > 1 else ""
    who = f"{', '.join(voters)} train{'s' if len(voters) == 1 else ''} nothing"
    chosen = f"the best round and the threshold are chosen on their {cases} validation cases{first}, too"
    words = [f"{who}; {chosen if cases else f'no case there can be validated on{first}'}."]
    reasons: dict[str, list[str]] = {}
    for study in declaration.study_methods:
        reason = cannot_vote(study.method, study.method.selection(layout), networks=bool(declaration.own_networks))
        if reason:
            reasons.setdefault(reason, []).append(study.label)
    words += [f"Not for {', '.join(labels)}: {reason}." for reason, labels in reasons.items()]
    for place, name in enumerate(classes):
        found = {site: count for site in voters if (count := _cases_of(folds, site, place))}
        trained = any(counts[place] for fold in folds for counts in fold.classes.values() if counts)
        if found and not trained:
            listed = ", ".join(f"{site} {count}" for site, count in found.items())
            words.append(
                f"No case that is trained on has the class {name!r}, and {sum(found.values())} of theirs have it "
                f"({listed}): no model can find it."
            )
    return [Note("N266", " ".join(words))]


def _cases_of(folds: Sequence[Fold], site: str, place: int) -> int:
    """Cases of a class that a site has in the first fold, in all of its parts."""
    parts = folds[0].counted[site].classes if folds and site in folds[0].counted else []
    return sum(counts[place] for counts in parts if counts)


def spared(declaration: Declaration, attack: Attack | None, sites: int, layout: Layout) -> list[Note]:
    """On methods that the attack does not reach, and on the attack itself."""
    if attack is None:
        return []
    reached = [m for m in declaration.study_methods if attack.applies_to(m.method.scope)]
    alone = [m.label for m in declaration.study_methods if m not in reached]
    keeping = [m.label for m in reached if attack.lacks(layout, m.method.selection(layout))]
    words = [attack.note(sites)]
    if alone:
        words.insert(0, f"{_not_attacked(alone, attack)} changes what sites send to a server, and there is none.")
    if keeping:
        what = attack.lacks(layout, layout.select(()))
        words.append(f"{_not_attacked(keeping, attack)} changes {what}, and these stay at the sites.")
    return [Note("N104", text) for text in words if text]


def in_sums(declaration: Declaration) -> list[Note]:
    """On what sites tell in sums alone, and on what is visible all the same."""
    if declaration.privacy.summaries is None:
        return []
    words = ["Summaries of sites were added under masks: the coordinator saw sums over sites, and no site's own."]
    alone = [one.label for one in declaration.study_methods if one.method.scope == "sites"]
    if alone:
        what = "has a model" if len(alone) == 1 else "have models"
        words.append(
            f"{', '.join(alone)} {what} of each site alone: validation and counts for its threshold are that site's."
        )
    words.append("Numbers of cases, patients and labels are told by site, and so are results on test cases.")
    if declaration.data.harmonisation.combat is not None:
        words.append("There is no harmonisation.csv, which tells of each site's features.")
    return [Note("N812", " ".join(words))]


def rows_as_patients(declaration: Declaration, folds: Sequence[Fold]) -> list[Note]:
    """On noise for patients, where tables do not say which rows are of one patient."""
    if declaration.data.subject is not None:
        return []
    noisy = [
        study.label
        for study in declaration.study_methods
        if any(build_part(name, options).private == "a patient" for name, options in study.method.parts)
    ]
    if not noisy:
        return []
    sites = {site: fold.train[site] + fold.validation[site] + fold.test[site] for fold in folds for site in fold.train}
    text = (
        f"{', '.join(noisy)}: noise protects one row, since `data` names no column `subject`: each of "
        f"{sum(sites.values()):,} rows of {len(sites)} sites counts as a patient. "
        "A patient with several rows is protected less."
    )
    return [Note("N813", text)]


def bare(declaration: Declaration, jobs: Sequence[Job]) -> list[Note]:
    """On trainings without noise beside a budget that says it is for the whole study."""
    noisy = {m.label: any(protected(one.method.method) for one in declaration.candidates(m))
             for m in declaration.study_methods}  # fmt: skip
    labels = [label for label, has_noise in noisy.items() if not has_noise]
    if declaration.privacy.over != "study" or not labels:
        return []
    count = sum(not noisy[job.methods[0].label] for job in jobs)
    text = (
        f"ε = {declaration.privacy.epsilon:g} of the study is for its {len(jobs) - count} trainings with noise. "
        f"{', '.join(labels)} {'has' if len(labels) == 1 else 'have'} none: {count} trainings on the same patients are "
        "in no ε, and who gets their models or results is bound by no guarantee."
    )
    return [Note("N110", text)]


def few_events(declaration: Declaration, folds: Sequence[Fold]) -> list[Note]:
    """On losses that compare the cases of a batch, where batches have so few events that there is little to compare."""
    if declaration.target != "times":
        return []
    sites = {
        site: (sum(counts), counts[1]) for fold in folds for site, counts in fold.classes.items() if sum(counts)
    }  # fmt: skip
    notes = []
    for size, methods in _comparing(declaration).items():
        expected = {site: size * events / cases for site, (cases, events) in sites.items() if size < cases}
        few = [site for site, count in expected.items() if count < _FEW_EVENTS]
        if few:
            text = (
                f"{', '.join(methods)}: a batch of {size} cases has {min(expected.values()):.1f} with the event on "
                f"average at {len(few)} of {len(sites)} sites, and a case is compared with those of its batch: use a "
                "larger `batch_size`."
            )
            notes.append(Note("N809", text))
    return notes


def _comparing(declaration: Declaration) -> dict[int, list[str]]:
    """Batch size -> labels of the methods that train with it and compare the cases of a batch."""
    found: dict[int, list[str]] = {}
    for study in declaration.study_methods:
        task = build_task(declaration.task, 2, declaration.loss_of(study.training), grid=declaration.grid)
        if task.compares_cases and study.method.work == "train":
            found.setdefault(study.training.batch_size, []).append(study.label)
    return found


def _not_attacked(labels: list[str], attack: Attack) -> str:
    return f"{', '.join(labels)} {'is' if len(labels) == 1 else 'are'} not attacked: {attack.name}"


def diverged(declaration: Declaration, rounds: pd.DataFrame, folds: Sequence[Fold]) -> list[Note]:
    """On methods whose training loss ends far above that of a model that guesses.

    Args:
        declaration: the study.
        rounds: a row a round and site.
        folds: the sites' parts.
    """
    rounds = rounds[rounds[RUN] == PLAIN]
    if "phase" in rounds:  # in a pretraining the loss is another one
        rounds = rounds[rounds["phase"] != "pretraining"]
    runs = rounds.groupby(["method", "seed", "fold", "site"])["round"]
    last = rounds[rounds["round"] == runs.transform("max")]
    found = []
    for study in declaration.study_methods:
        for worst in last[last["method"] == study.label].nlargest(1, "loss").to_dict("records"):
            if worst["loss"] > _FAR * _guess(study, folds):
                where = f"site {worst['site']}, round {worst['round'] + 1}"
                found.append(f"{worst['loss']:.3g} for {study.label} ({where})")
    if not found:
        return []
    text = (
        f"Training diverged: its loss ends far above that of a model that guesses, at {', '.join(found)}. Lower the "
        "learning rate (`training: {optimizer: ...}`), or set `training: {clip: 1.0}`."
    )
    return [Note("N804", text)]


def kept_back(declaration: Declaration, rounds: pd.DataFrame) -> list[Note]:
    """On updates that sites did not send, since a part of the method kept them back; counts are of plain runs.

    Args:
        declaration: the study.
        rounds: a row a round and site.
    """
    rounds, notes = rounds[rounds[RUN] == PLAIN], list[Note]()
    for study in declaration.study_methods:
        mine = rounds[rounds["method"] == study.label]
        quiet = mine[mine["sent"] == 0]
        if quiet.empty:
            continue
        sites = ", ".join(f"{site} {count}" for site, count in quiet.groupby("site", sort=False).size().items())
        nobody = int((mine.groupby(["seed", "fold", "round"])["sent"].sum() == 0).sum())
        text = (
            f"{study.label}: {len(quiet)} of {len(mine)} updates were kept back at their sites by a part of the method "
            f"({sites}); in {nobody} round{'s' * (nobody != 1)} nobody sent one, and the model stayed as it was."
        )
        notes.append(Note("N811", text))
    return notes


def uncalibrated(declaration: Declaration) -> list[Note]:
    """On what is not told where several labels are predicted."""
    if declaration.target != "findings":
        return []
    text = (
        "Calibration and decision curves are those of one label: with several there are none. The Brier score and the "
        "calibration error of each (`brier`, `ece`) tell how far its probabilities can be trusted."
    )
    return [Note("N286", text)]


def not_learned(declaration: Declaration, folds: Sequence[Fold]) -> list[Note]:
    """On findings that models are asked for though no case that they learned from has one, or all are of one class."""
    if declaration.target != "findings":
        return []
    unseen = [study.label for study in declaration.study_methods if declaration.is_unseen(study)]
    alone = [study.label for study in declaration.study_methods if study.name in ("cross", "ensemble")]
    said, first = list[str](), 0
    for finding, names in finding_classes(declaration.data).items():
        own = slice(first, first + len(names))
        first += len(names)
        without, within = dict[str, None](), dict[str, None]()
        for fold in folds:
            counts = {site: np.array(known[own]) for site, known in fold.classes.items() if known}
            total = np.sum(list(counts.values()), axis=0)
            without |= {site: None for site, one in counts.items() if np.count_nonzero(total - one) < 2}
            within |= {site: None for site, one in counts.items() if np.count_nonzero(one) < 2}
        if unseen and without:
            said.append(f"{finding} without {' or '.join(without)} ({', '.join(unseen)}, `unseen_sites`)")
        if alone and within:
            said.append(f"{finding} in the models of {', '.join(within)} alone ({', '.join(alone)})")
    if not said:
        return []
    text = (
        f"Models are asked for findings of which they learned no two classes: {'; '.join(said)}. What they say of these"
    )
    return [Note("N287", f"{text} is chance, and has a part in the means over findings.")]


def _guess(study: StudyMethod, folds: Sequence[Fold]) -> float:
    """About the highest loss that a model has at a site if it predicts the same for all cases."""
    weights, counts = study.training.class_weights, [list(fold.classes.values()) for fold in folds]
    if weights == "balanced":
        heaviest = max(max(balanced_weights(sites)) for sites in counts)
    else:
        heaviest = 1.0 if weights == "none" else max(weights)
    classes = max((len(site) for sites in counts for site in sites), default=0)
    return heaviest * max(1.0, math.log(max(classes, 1)))


def rough_distances(declaration: Declaration, notes: Sequence[Note]) -> list[Note]:
    """A note where distances are measured along axes that are not at right angles.

    Args:
        declaration: the study.
        notes: on its images.
    """
    sheared = any(note.number == "N710" for note in notes)
    if declaration.evaluation.space != "original" or not sheared:
        return []
    text = (
        "Some images have axes that are not at right angles (N710). With `space: original` distances in them are "
        "rough, since they are measured along these axes as if they were. Overlaps are exact."
    )
    return [Note("N814", text)]
