"""Training, validation and test parts of a site, by patient."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from polyclinic.data.cases import SiteData
from polyclinic.data.spec import Labels
from polyclinic.errors import DataError
from polyclinic.seeds import generator

#: Groups by which patients are stratified where a number is to be predicted.
_MOST_GROUPS, _LEAST_IN_GROUP = 10, 5


@dataclass(frozen=True, eq=False)
class Parts:
    """Which cases of a site are for what: sorted int64 indices ``[N_train]``, ``[N_validation]``, ``[N_test]``.

    No patient is in two of these parts. ``note`` is a sentence for the report, or "". ``unlabelled [N_unlabelled]`` are
    cases without a label from which training may learn; none is of a patient in the validation or the test part.
    ``hidden [N_hidden]`` are those of them whose label is hidden from training.
    """

    train: Tensor
    validation: Tensor
    test: Tensor
    note: str = ""
    unlabelled: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    hidden: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))

    @property
    def trained_on(self) -> Tensor:
        """The cases that local training goes through: the training part, or where the site has no labelled case in it
        those without a label, for methods that learn from them."""
        return self.train if len(self.train) else self.unlabelled


def split(
    data: SiteData,
    *,
    folds: int | None,
    fold: int,
    validation: float,
    seed: int,
    small_sites: Literal["train", "drop", "stop"] = "train",
    holdout: float | None = None,
    final: bool = False,
    labels: Labels | None = None,
) -> Parts:
    """Parts of one fold, by patient and stratified by class, or by the quantiles of a number to be predicted.

    The patients of each class are shuffled, and all are dealt to the folds in turn, class after class: fold sizes, and
    the folds' numbers of each class, differ by at most one patient. A patient's class is the most frequent label of the
    patient's cases (the higher class where two are as frequent); for segmentation all patients are alike. For
    regression the classes are up to ten groups of five or more patients each, in the order of their mean numbers. Of
    several labels see ``finding_strata``. The test parts of all folds together are the whole site. The validation part
    is a share of the remaining patients, spread evenly over the classes; it has a patient at least where three or more
    remain, but never the last one of a class.

    With ``holdout`` there is one test part instead, a share of the patients spread evenly over the classes.

    Where a column fixes the parts (``data.parts``), it decides; only a validation part that it does not name is taken
    from its training part. The dealing depends on the patients' names, classes and the seed, not on the order of cases.

    Cases without a label are in none of these parts, and the others are dealt as if they were not there. Training may
    learn from those whose patient has no case in the validation or the test part (and, where a column fixes the parts,
    which it calls training cases), unless the site is left out as too small.

    With ``labels`` only some of the patients of the training part keep their labels there, as many of each class as
    its share is of all, and at least one. The cases of the others join those without a label. With a share of 0 all
    of them do, and those of the validation part, too: what has no labels can't choose a round.

    Args:
        data: the site's cases.
        folds: number of folds, 2 or more; None where a column fixes the parts, or with ``holdout``.
        fold: which fold is the test part, from 0; with ``final`` it decides nothing.
        validation: share of the patients outside the test part, 0 to below 1; 0 means no validation part.
        seed: of the study.
        small_sites: what becomes of a site with fewer patients than folds: all its cases are training cases, it has no
            part at all, or the study stops.
        holdout: share of the patients in the one test part.
        final: for a model that is to be used: the test parts of folds are for training, too, and so are cases that a
            column calls validation cases. A part that is held out for good stays the test part.
        labels: whose labels are hidden in training; None hides none.

    Raises:
        DataError: P206 when the data can't be split as asked.
    """
    if not 0 <= validation < 1:
        raise DataError("P206", f"The validation share is {validation}.", "Give a share from 0 to below 1.")
    known, nothing = data.with_labels(), torch.empty(0, dtype=torch.int64)
    parts = Parts(nothing, nothing, nothing)
    if len(known):
        parts = _split(known, folds, fold, validation, seed, small_sites, holdout, final)
    parts = parts if data.labelled is None else _with_unlabelled(data, data.labelled, parts)
    hides = labels is not None and (labels.sites is None or data.site in labels.sites)
    return _scarce(data, parts, labels) if labels is not None and hides else parts


def voting(parts: Parts, *, votes: bool) -> Parts:
    """The parts of a site that trains nothing: what would be training cases are validation cases, if it ``votes``."""
    nothing, validation = parts.train[:0], parts.validation
    if votes:
        validation = torch.cat([parts.train, validation]).sort().values
    return replace(parts, train=nothing, validation=validation, unlabelled=nothing, hidden=nothing)


def _scarce(data: SiteData, parts: Parts, labels: Labels) -> Parts:
    """``parts`` with the labels of some training patients only."""
    if not labels.share:
        hidden = torch.cat([parts.train, parts.validation]).sort().values
        free = torch.cat([parts.unlabelled, hidden]).sort().values
        return replace(parts, train=hidden[:0], validation=hidden[:0], unlabelled=free, hidden=hidden)
    train = parts.train.tolist()
    own = patient_cases([data.subjects[place] for place in train])
    every = data.labels_or_findings
    targets = None if every is None else every[parts.train]
    classes = patient_classes(own, targets)
    everybody = sorted(set(data.subjects))  # whatever the fold is, the same patients come first
    order = torch.randperm(len(everybody), generator=generator(labels.seed, "labels", data.site)).tolist()
    ranked = sorted(own, key=dict(zip(everybody, order, strict=True)).__getitem__)
    least = 1 if targets is not None and not targets.is_floating_point() else 0
    wanted = _shares(Counter(classes.values()), labels.share, least)
    kept = {name for one in wanted for name in [name for name in ranked if classes[name] == one][: wanted[one]]}
    known = torch.tensor([data.subjects[place] in kept for place in train], dtype=torch.bool)
    hidden = parts.train[~known]
    return replace(
        parts, train=parts.train[known], unlabelled=torch.cat([parts.unlabelled, hidden]).sort().values, hidden=hidden
    )


def _shares(counts: Mapping[int, int], share: float, least: int) -> dict[int, int]:
    """How many of each class: their share, rounded so that all together are the share of all, and at least so many."""
    exact = {one: share * counts[one] for one in sorted(counts)}
    found = {one: max(min(least, counts[one]), math.floor(number)) for one, number in exact.items()}
    missing = max(round(share * sum(counts.values())), 1) - sum(found.values())
    for one in sorted(exact, key=lambda one: (found[one] - exact[one], one))[: max(missing, 0)]:
        found[one] = min(found[one] + 1, counts[one])
    return found


def _with_unlabelled(data: SiteData, labelled: Tensor, parts: Parts) -> Parts:
    """``parts`` of the labelled cases as parts of all cases of the site."""
    known = labelled.nonzero().flatten()
    train, validation, test = (known[index] for index in (parts.train, parts.validation, parts.test))
    held_out = {data.subjects[place] for place in [*validation.tolist(), *test.tolist()]}
    free = [
        place
        for place in (~labelled).nonzero().flatten().tolist()
        if data.subjects[place] not in held_out and (data.parts is None or data.parts[place] == "train")
    ]
    left_out = len(known) and not len(train) + len(validation) + len(test)
    unlabelled = torch.tensor([] if left_out else free, dtype=torch.int64)
    return replace(parts, train=train, validation=validation, test=test, unlabelled=unlabelled)


def _split(
    data: SiteData, folds: int | None, fold: int, validation: float, seed: int,
    small_sites: Literal["train", "drop", "stop"], holdout: float | None, final: bool,
) -> Parts:  # fmt: skip
    """See ``split``; all cases have a label."""
    subjects = _Subjects(data, seed)
    if data.parts is not None:
        parts = ["train" if part == "validation" and final else part for part in data.parts]
        return _column_parts(data, parts, subjects, fold, validation)
    if holdout is not None and len(subjects.names) >= 3:
        taken = _spread(subjects, subjects.names, holdout)
        remaining = [name for name in subjects.names if name not in taken]
        return _with_validation(subjects, remaining, validation, list(taken))
    folds = 3 if holdout is not None else folds  # a site of one or two patients is too small either way
    if folds is None or folds < 2 or not (final or 0 <= fold < folds):
        raise DataError(
            "P206",
            f"Fold {fold} of {folds} was asked for.",
            "Give `folds` of 2 or more and a fold from 0, or a column with the split.",
        )
    if len(subjects.names) < folds:
        patients = "1 patient" if len(subjects.names) == 1 else f"{len(subjects.names)} patients"
        wanted = f"{folds} folds" if holdout is None else "a part that is held out"
        message = f"Site {data.site} has {patients}, too few for {wanted}"
        if small_sites == "stop":
            fewer = "Use fewer folds, or set" if holdout is None else "Set"
            raise DataError("P206", f"{message}.", f"{fewer} what becomes of small sites.")
        if small_sites == "drop":
            return Parts(subjects.cases([]), subjects.cases([]), subjects.cases([]), f"{message}: left out.")
        note = f"{message}: used for training only."
        return Parts(torch.arange(len(data)), subjects.cases([]), subjects.cases([]), note)
    if final:
        return _with_validation(subjects, subjects.names, validation, [])
    test = subjects.names[fold::folds]
    remaining = [name for position, name in enumerate(subjects.names) if position % folds != fold]
    return _with_validation(subjects, remaining, validation, test)


class _Subjects:
    """The patients of a site, shuffled within their class, class after class.

    Attributes:
        names: the patients in that order.
        classes: patient -> class.
    """

    def __init__(self, data: SiteData, seed: int) -> None:
        self._positions = patient_cases(data.subjects)
        self.classes = patient_classes(self._positions, data.labels_or_findings)
        ordered = sorted(self._positions)
        order = torch.randperm(len(ordered), generator=generator(seed, "split", data.site)).tolist()
        # Sorting is stable: it keeps the shuffled order within each class.
        self.names = sorted((ordered[position] for position in order), key=self.classes.__getitem__)

    def cases(self, names: list[str]) -> Tensor:
        """Sorted case indices of some patients, int64."""
        return torch.tensor(sorted(i for name in names for i in self._positions[name]), dtype=torch.int64)


def patient_cases(subjects: Sequence[str]) -> dict[str, list[int]]:
    """Patient -> positions of the patient's cases."""
    positions: dict[str, list[int]] = {}
    for position, subject in enumerate(subjects):
        positions.setdefault(subject, []).append(position)
    return positions


def patient_classes(positions: Mapping[str, list[int]], labels: Tensor | None) -> dict[str, int]:
    """Patient -> class by which patients are stratified.

    Args:
        positions: of each patient's cases.
        labels: int64 ``[N]`` classes: the most frequent one of the patient's cases counts, the higher where two are as
            frequent; or floating-point ``[N]`` numbers: groups of patients with means of about the same size; or int64
            ``[N, K]`` of several labels, see ``finding_strata``; None, for segmentation: all patients are alike.
    """
    if labels is None:
        return dict.fromkeys(positions, 0)
    if labels.ndim == 2:
        return finding_strata(positions, labels)
    if labels.is_floating_point():
        numbers = labels.double()
        return _quantile_groups({name: float(numbers[own].mean()) for name, own in positions.items()})
    classes = labels.tolist()
    return {name: _main_class([classes[i] for i in own]) for name, own in positions.items()}


def finding_strata(positions: Mapping[str, list[int]], labels: Tensor) -> dict[str, int]:
    """Patient -> that class of all findings of the patient which the fewest patients have; the first of equals.

    So classes that are rare are spread evenly over the parts, which is what iterative stratification looks after
    (Sechidis et al., On the stratification of multi-label data, ECML 2011); of one finding it is the patient's class.

    Args:
        positions: of each patient's cases.
        labels: int64 ``[N, K]``, classes of all findings, no two of which share a number; -1 where one is missing.
    """
    rows = labels.tolist()
    own = {
        name: [_main_class(known) for column in zip(*(rows[i] for i in cases), strict=True)
               if (known := [label for label in column if label >= 0])]
        for name, cases in positions.items()
    }  # fmt: skip
    counts = Counter(label for classes in own.values() for label in classes)
    return {name: min(classes, key=lambda label: (counts[label], label)) for name, classes in own.items()}


def _quantile_groups(means: dict[str, float]) -> dict[str, int]:
    """Patient -> group of patients with numbers of about the same size; equal numbers are ordered by name."""
    groups = min(_MOST_GROUPS, max(1, len(means) // _LEAST_IN_GROUP))
    ordered = sorted(means, key=lambda name: (means[name], name))
    return {name: rank * groups // len(ordered) for rank, name in enumerate(ordered)}


def _main_class(labels: list[int]) -> int:
    counts = Counter(labels)
    return max(counts, key=lambda label: (counts[label], label))


def _with_validation(subjects: _Subjects, remaining: list[str], share: float, test: list[str], note: str = "") -> Parts:
    """Take the validation part out of the ``remaining`` patients, which stand class after class."""
    chosen = _spread(subjects, remaining, share)
    train = [name for name in remaining if name not in chosen]
    return Parts(subjects.cases(train), subjects.cases(list(chosen)), subjects.cases(test), note)


def _spread(subjects: _Subjects, remaining: list[str], share: float) -> set[str]:
    """Patients at even distances in the row of patients, so that each class gives its share."""
    if share == 0 or len(remaining) < 3:
        return set()
    first_of_class = {subjects.classes[name]: name for name in reversed(remaining)}
    candidates = [name for name in remaining if name != first_of_class[subjects.classes[name]]]
    count = min(max(1, round(share * len(remaining))), len(candidates))
    return {candidates[(2 * turn + 1) * len(candidates) // (2 * count)] for turn in range(count)}


def _column_parts(data: SiteData, parts: list[str], subjects: _Subjects, fold: int, validation: float) -> Parts:
    if fold != 0:
        raise DataError("P206", f"Fold {fold} was asked for, but a column fixes the split.", "Use one fold.")
    members: dict[str, set[str]] = {"train": set(), "validation": set(), "test": set()}
    for subject, part in zip(data.subjects, parts, strict=True):
        members[part].add(subject)
    torn = sum(map(len, members.values())) - len(subjects.names)
    if torn:
        raise DataError(
            "P206",
            f"Site {data.site}: the split column puts {torn} patient(s) into more than one part.",
            "Put all cases of a patient into one part.",
        )
    named = {part: [name for name in subjects.names if name in members[part]] for part in members}
    note = "" if named["train"] else f"Site {data.site} has no training cases in the split column."
    if named["validation"]:
        cases = {part: subjects.cases(names) for part, names in named.items()}
        return Parts(cases["train"], cases["validation"], cases["test"], note)
    return _with_validation(subjects, named["train"], validation, named["test"], note)
