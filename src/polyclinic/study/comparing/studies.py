"""The studies that are compared: what they are, what differs between them, and whether their cases can be paired."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from polyclinic.errors import ResultsError
from polyclinic.study.ended import INCOMPLETE, is_finished
from polyclinic.study.kinds import Entry
from polyclinic.study.report.folder import Folder
from polyclinic.study.table_files import has_table

#: Entries of ``evaluation`` that say which case is tested in which fold.
SPLIT = ("folds", "split", "holdout", "split_seed", "small_sites")
#: Ways of taking sites together, as in ``summary.csv``, the first one before the other.
OVER = {"sites": "Mean over sites", "all": "All sites together"}
#: What stands where a study has no such entry.
NOTHING = "–"


@dataclass(frozen=True)
class Value:
    """The primary metric of a method in a study, with its 95 % interval, as in ``summary.csv``."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Paired:
    """A paired comparison within sites, as in ``comparisons.csv``: the later study minus the earlier one.

    Attributes:
        difference, low, high: the mean over the sites, with its 95 % interval.
        p, p_adjusted: two-sided; corrected for the number of methods (Holm).
        sites: at how many sites.
    """

    difference: float
    low: float
    high: float
    p: float
    p_adjusted: float
    sites: int


@dataclass(frozen=True)
class Versus:
    """Two studies, by their numbers.

    Attributes:
        earlier, later: which ones.
        differences: later minus earlier of the means of a method, by ``over`` as in ``summary.csv``.
        paired: of methods whose cases can be paired.
        why: sentences on the others.
    """

    earlier: int
    later: int
    differences: dict[tuple[Entry, str], float]
    paired: dict[Entry, Paired]
    why: dict[Entry, str]


@dataclass(frozen=True)
class Compared:
    """A study among others.

    Attributes:
        number: from 1, in the order in which they were given.
        folder: its results.
    """

    number: int
    folder: Folder

    @property
    def title(self) -> str:
        """Number, title of the study and name of its folder."""
        return f"{self.number}: {self.folder.study.get('study') or 'Study'} ({self.folder.path.resolve().name})"

    @property
    def is_incomplete(self) -> bool:
        """Whether sites did not answer when they were tested."""
        return self.folder.provenance.get("status") == INCOMPLETE


def read_studies(paths: Sequence[Path]) -> list[Compared]:
    """Read the results of several studies.

    Args:
        paths: their folders.

    Raises:
        ResultsError: P501, there are fewer than two, one is no finished study, or they can't be compared.
    """
    if len({path.resolve() for path in paths}) < max(2, len(paths)):
        raise ResultsError("P501", "Fewer than two folders were given, or one of them twice.",
                           "Give the results folders of two or more studies.")  # fmt: skip
    studies = []
    for number, path in enumerate(paths, 1):
        folder = Folder(path)
        if not is_finished(path, folder.provenance):
            state = folder.provenance.get("status", "not known")
            raise ResultsError("P501", f"The study in {path} is not finished (its state is {state}).",
                               "Finish it with `polyclinic run ... --resume`, or leave it out.")  # fmt: skip
        if "task" not in folder.study:
            raise ResultsError("P501", f"study.yaml is missing in {path}, or does not tell the task.",
                               "Put the study file back, or leave this folder out.")  # fmt: skip
        studies.append(Compared(number, folder))
    for before, after in pairwise(studies):
        _check_alike(before.folder, after.folder)
    return studies


def _check_alike(a: Folder, b: Folder) -> None:
    """Whether numbers of two studies are of the same kind."""
    kinds = {
        "task": [one.study["task"] for one in (a, b)],
        "primary metric": [one.primary.label for one in (a, b)],
        "classes": [", ".join(one.classes) if one.target in ("labels", "findings") else "" for one in (a, b)],
        "space": [one.space or "grid" if one.target == "masks" else "" for one in (a, b)],
    }
    for name, (of_a, of_b) in kinds.items():
        if of_a != of_b:
            raise ResultsError("P501", f"{a.path} and {b.path} can't be compared: their {name} differ"
                               f"{'' if name == 'classes' else 's'} ({of_a}; {of_b}).",
                               "Compare studies of the same task, classes, primary metric and space.")  # fmt: skip


def differing_entries(studies: Sequence[Compared]) -> list[tuple[str, list[str]]]:
    """Entries of the study files that are not the same in all, each with its value in every study."""
    found = [_entries(one.folder) for one in studies]
    names = list(dict.fromkeys(name for entries in found for name in entries))
    rows = [(name, [entries.get(name, NOTHING) for entries in found]) for name in names]
    return [(name, values) for name, values in rows if len(set(values)) > 1]


def _entries(folder: Folder) -> dict[str, str]:
    """All entries by their paths, as text; methods stand under their labels. What is not in the study file follows."""
    study = {name: value for name, value in folder.study.items() if name not in ("study", "methods")}
    methods = {label: {"method": name, **options} for label, (name, options) in folder.declared.items()}
    about = {
        "data (fingerprint)": str(folder.provenance.get("data_sha256") or "not known")[:12],
        "version": str((folder.provenance.get("versions") or {}).get("polyclinic") or "not known"),
    }
    return dict(_flat(study)) | dict(_flat({"methods": methods})) | about


def _flat(value: Any, path: str = "") -> list[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        return [one for name, inner in value.items() for one in _flat(inner, f"{path}.{name}" if path else str(name))]
    return [(path, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str))]


def why_not_paired(a: Compared, b: Compared) -> str:
    """Why the cases of two studies can't be paired, in a sentence; empty if nothing speaks against it so far."""
    for one in (a, b):
        if one.folder.kept_at_sites:
            return f"The sites of study {one.number} kept their predictions."
        if not has_table(one.folder.path / "predictions.csv"):
            return f"Study {one.number} has no predictions.csv."
        if one.folder.target in ("labels", "findings") and not one.folder.classes:
            return f"The classes of study {one.number} are not known: its sites.csv is missing."
    prints = [one.folder.provenance.get("data_sha256") for one in (a, b)]
    if not all(prints):
        return "The fingerprint of the data is not known of both."
    if prints[0] != prints[1]:
        return "The data are not the same (their fingerprints differ), so cases can't be paired."
    splits = [one.folder.study.get("evaluation") or {} for one in (a, b)]
    for name in SPLIT:
        if splits[0].get(name) != splits[1].get(name):
            values = " and ".join(str(split.get(name)) for split in splits)
            return f"Cases were split in different ways: `evaluation: {name}` is {values}."
    if not set(a.folder.results["seed"]) & set(b.folder.results["seed"]):
        return "The studies have no seed in common."
    if not set(a.folder.scored) & set(b.folder.scored):
        return "There is no site that is scored by itself in both."
    return ""
