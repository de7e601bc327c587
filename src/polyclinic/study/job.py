"""What a job of a study is, what it is given, and what it finds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from polyclinic.audit.poisoning import Attack
from polyclinic.data.scaling import Summary
from polyclinic.methods import Method
from polyclinic.notes import Note
from polyclinic.running.progress import Row
from polyclinic.seeds import derive_seed
from polyclinic.study.kinds import ATTACKED, FINAL, PLAIN, UNSEEN, titled
from polyclinic.study.method_entries import StudyMethod
from polyclinic.study.tested import Tested
from polyclinic.study.without_labels import why_left_out


@dataclass(frozen=True)
class SiteParts:
    """What is in the training, the validation and the test part of a site.

    Attributes:
        patients: of each part.
        classes: cases of each class, of each part; three empty lists where targets are no classes.
        groups: subgroup -> group -> cases in the three parts, then patients.
    """

    patients: list[int]
    classes: list[list[int]]
    groups: dict[str, dict[str, list[int]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Fold:
    """What is known of the sites after a split.

    Attributes:
        number: which fold.
        train, validation, test: number of cases of each site.
        classes: training cases of each class, by site; empty lists where targets are no classes.
        targets: count, mean and sum of squared deviations of the training cases' numbers, by site; for numbers only.
        hidden: training cases whose labels are hidden, by site; for the record only.
        unlabelled: cases without a label that may be trained on, by site.
        counted: patients, and cases of each class, in each part, by site; for the record only.
    """

    number: int
    train: dict[str, int]
    validation: dict[str, int]
    test: dict[str, int]
    classes: dict[str, list[int]]
    targets: dict[str, Summary] = field(default_factory=dict)
    counted: dict[str, SiteParts] = field(default_factory=dict)
    hidden: dict[str, int] = field(default_factory=dict)
    unlabelled: dict[str, int] = field(default_factory=dict)

    def corrupted(self, attack: Attack) -> Fold:
        """What is known where the training cases of some sites are corrupt: a class may be missing there."""
        left = attack.corruption().left
        classes = {site: left(counts) if site in attack.names else counts for site, counts in self.classes.items()}
        train = {site: cases - sum(self.classes[site]) + sum(classes[site]) for site, cases in self.train.items()}
        return replace(self, train=train, classes=classes)

    def to_json(self) -> dict[str, Any]:
        """As JSON values, which give the same bits back."""
        targets = {
            site: {name: values.tolist() for name, values in summary.to_tensors().items()}
            for site, summary in self.targets.items()
        }
        return {**vars(self), "targets": targets, "counted": {site: vars(one) for site, one in self.counted.items()}}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Fold:
        """What ``to_json`` gave."""
        targets = {
            site: Summary(*(torch.tensor(summary[name], dtype=torch.float64) for name in ("count", "mean", "m2")))
            for site, summary in content["targets"].items()
        }
        counted = {site: SiteParts(**one) for site, one in content["counted"].items()}
        return cls(**{**content, "targets": targets, "counted": counted})

    @property
    def training_sites(self) -> list[str]:
        """Sites that have training cases with a label."""
        return [site for site, cases in self.train.items() if cases]

    @property
    def sites_without_labels(self) -> list[str]:
        """Sites that have cases to learn from, and no label of them."""
        return [site for site, cases in self.train.items() if not cases and self.unlabelled.get(site)]

    def trains(self, method: Method, without: str | None = None) -> list[str]:
        """Sites that take part in the trainings of a method, but for one."""
        alone = self.sites_without_labels
        left_out = {without, *(alone if alone and why_left_out(method) else [])}
        return [site for site in self.train if self.trained_on(site) and site not in left_out]

    def trained_on(self, site: str) -> int:
        """How many cases local training goes through; see `polyclinic.data.splits.Parts.trained_on`."""
        return self.train[site] or self.unlabelled.get(site, 0)

    @property
    def tested_sites(self) -> list[str]:
        """Sites that have test cases."""
        return [site for site, cases in self.test.items() if cases]


@dataclass(frozen=True)
class Job:
    """One training.

    Attributes:
        methods: what the training serves (single, cross and ensemble share one).
        seed: model seed.
        fold: number of the fold.
        without: the site left out, for an unseen-site run.
        attacked: whether the study's corrupt sites are corrupt in this training.
        trial: number of the configuration that a search tries; None for what is tested.
        trials: how many are tried.
        final: whether it is trained on all cases, for the model that is used.
        trainings: how many share a privacy budget with this one, itself included.
    """

    methods: tuple[StudyMethod, ...]
    seed: int
    fold: int
    without: str | None = None
    attacked: bool = False
    trial: int | None = None
    trials: int = 0
    final: bool = False
    trainings: int = field(default=1, compare=False)

    @property
    def title(self) -> str:
        """For progress displays."""
        names = " + ".join(method.label for method in self.methods)
        if self.attacked or self.final:
            names = titled(names, self.run)
        what = f"{names} without {self.without}" if self.without else names
        return what if self.trial is None else f"search: {what}, trial {self.trial + 1} of {self.trials}"

    @property
    def suffix(self) -> str:
        """Ending of the names of this job's files."""
        return _suffix(self.run, self.without) + ("" if self.trial is None else f"-trial{self.trial}")

    @property
    def run(self) -> str:
        """Which kind of run this is, as in the results."""
        if self.final:
            return FINAL
        return ATTACKED if self.attacked else UNSEEN if self.without is not None else PLAIN


@dataclass
class Outcome:
    """Everything a job found.

    Attributes:
        predictions: a row a test case, method and model; none where sites keep them.
        tested: what sites that keep their predictions said of them.
        attention: a row an instance of a tested bag, method and model; likewise.
        rounds: a row a round and site.
        models: file stem -> tensors by name.
        overlays: name -> picture, where there are any.
        overlay_scores: ``METHOD/SITE/RANK`` -> how good it is, see `Task.case_scores`.
        privacy: a row a site whose patients noise protects.
        backdoor: a row a model and site: test cases with the mark of a backdoor, and how many of them it opened.
        memorisation: a row a site that compared cases which the method made with its own.
        pictures: method -> some of the images that it made, where no site suspects that they are copies.
        notes: what went wrong in rounds.
    """

    predictions: list[pd.DataFrame] = field(default_factory=list)
    attention: list[pd.DataFrame] = field(default_factory=list)
    tested: Tested = field(default_factory=Tested)
    rounds: list[Row] = field(default_factory=list)
    models: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    overlays: dict[str, Tensor] = field(default_factory=dict)
    overlay_scores: dict[str, float] = field(default_factory=dict)
    privacy: list[Row] = field(default_factory=list)
    backdoor: list[Row] = field(default_factory=list)
    memorisation: list[Row] = field(default_factory=list)
    pictures: dict[str, Tensor] = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)


def training_name(label: str, run: str, seed: int, fold: int, without: str | None) -> str:
    """Folder name of the training of a method that is tested."""
    return f"{slug(label)}-seed{seed}-fold{fold}{_suffix(run, without)}"


def _suffix(run: str, without: str | None) -> str:
    if run in (ATTACKED, FINAL):
        return f"-{run}"
    return "" if without is None else f"-without-{slug(without)}"


def slug(text: str) -> str:
    """``text`` as part of a file name: letters, digits, dots and dashes; different texts stay different."""
    plain = "".join(c if c.isascii() and (c.isalnum() or c in "-.") else "_" for c in text)[:60]
    return plain if plain == text else f"{plain}-{derive_seed(text) % 16**6:06x}"
