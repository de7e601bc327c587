"""What an entry of the catalogue says, and what its ``draft`` function takes and gives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from polyclinic.data.cases import Counts

Kind = Literal["table", "image", "volume"]
Task = Literal["classification", "segmentation", "regression", "survival", "multi_label", "reconstruction"]


@dataclass(frozen=True)
class Label:
    """Something that can be learnt from a data set.

    Attributes:
        column: its column in the manifest; of several findings the first.
        meaning: what it is, and its values.
        task: what it is learnt for; for segmentation ``column`` holds the mask, for survival the time, for
            reconstruction the image itself.
        positive: classes that are the positive class by default; empty: every value is a class of its own.
        against: classes that are the negative class by default; empty: all others.
        event: column of the event (survival), 1 where it happened and 0 where it was not seen.
        findings: columns of all findings (multi-label), of 1, 0 and empty cells.
    """

    column: str
    meaning: str
    task: Task = "classification"
    positive: tuple[str, ...] = ()
    against: tuple[str, ...] = ()
    event: str = ""
    findings: tuple[str, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the manifest that hold what is learnt."""
        return self.findings or ((self.column, self.event) if self.event else (self.column,))


@dataclass(frozen=True)
class Choices:
    """What the user may choose; the same for all entries. None means the entry's default.

    Attributes:
        label: one of the entry's labels.
        positive: classes that form the positive class.
        against: classes that form the negative class; all others are rejected.
        sites_by: one of the entry's ways to tell sites, or ``dirichlet`` or ``quantity`` for artificial ones.
        sites: number of artificial sites.
        alpha: concentration of the Dirichlet distribution of artificial sites: the smaller, the more unlike they are.
        seed: of the artificial sites.
        sessions: of a patient with several sessions, the first that can be used, or all.
    """

    label: str | None = None
    positive: tuple[str, ...] = ()
    against: tuple[str, ...] = ()
    sites_by: str | None = None
    sites: int = 4
    alpha: float = 0.5
    seed: int = 0
    sessions: Literal["first", "all"] = "first"


def _no_progress(done: int, total: int) -> None:
    pass


@dataclass(frozen=True)
class Request:
    """What a ``draft`` function is given.

    Attributes:
        source: the data set's folder, or its file where it is one file.
        out: folder for images that must be converted.
        label: name of the label chosen.
        sites_by: the way to tell sites; an artificial one is not the entry's business.
        progress: called with the number of conversions done and of all.
    """

    source: Path
    out: Path
    label: str
    sites_by: str
    progress: Callable[[int, int], None] = _no_progress


@dataclass
class Draft:
    """Every case that an entry found, before it is checked, pseudonymised and written.

    Attributes:
        rows: a row a case, all cells texts, missing ones empty. Columns: ``site``, ``subject`` (unique over all
            sites), ``reason`` (why the case can't be used, or empty), ``session`` where there are several, and the
            columns of the manifest in their order.
        kind: what the starter study reads.
        images: the image columns that the starter study reads; paths relative to the source, or to ``out`` after
            ``out:``. A case without one of them can't be used.
        further_images: other image columns; a case may lack them.
        mask: the mask column.
        features: feature columns or globs (tables).
        data: further entries of the starter study's ``data:`` part, such as ``size``.
            With ``bag`` the rows are instances, and the template is one for bags.
        training: entries of the starter study's ``training:`` part that differ from the template's.
        evaluation: entries of its ``evaluation:`` part, such as ``times``.
        split: column that fixes train, validation and test, if the data set has an official one.
        notes: sentences for the user.
    """

    rows: pd.DataFrame
    kind: Kind
    images: list[str] = field(default_factory=list)
    further_images: list[str] = field(default_factory=list)
    mask: str | None = None
    features: list[str] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    evaluation: dict[str, Any] = field(default_factory=dict)
    split: str | None = None
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Entry:
    """One data set (or family) of the catalogue.

    Attributes:
        name: as it is typed.
        title: one line.
        about: what it is, in a few sentences.
        modality: kind of images or table.
        sites: how many sites there are and how they are known.
        subjects: number of subjects and images, as published.
        access: where to apply or download (address).
        licence: its name, or in a word or two what stands in its place, for lists.
        terms: licence or data use terms, in a sentence.
        citation: the paper to cite.
        layout: the files expected on disk, as a tree.
        labels: name -> label; the first is the default.
        sites_by: name -> explanation of each way to tell sites; the first is the default.
        draft: reads the layout.
        assumed: what could not be checked on the original data, and choices made.
    """

    name: str
    title: str
    about: str
    modality: str
    sites: str
    subjects: str
    access: str
    licence: str
    terms: str
    citation: str
    layout: str
    labels: Mapping[str, Label]
    sites_by: Mapping[str, str]
    draft: Callable[[Request], Draft]
    assumed: tuple[str, ...] = ()

    @property
    def tasks(self) -> list[str]:
        """The tasks of the labels, each once."""
        return list(dict.fromkeys(label.task for label in self.labels.values()))


@dataclass(frozen=True)
class Prepared:
    """What was written and what became of every case.

    Attributes:
        manifest: the table written.
        study: the starter study file written.
        counts: site -> found, used, rejected with reasons. Cases without a site stand under ``(no site)``.
        classes: site -> class -> number of used cases (classification).
        subjects: site -> number of subjects with a used case.
        notes: sentences for the user.
    """

    manifest: Path
    study: Path
    counts: dict[str, Counts]
    classes: dict[str, Counter[str]]
    subjects: dict[str, int]
    notes: list[str]

    @property
    def used(self) -> int:
        """Number of cases in the manifest."""
        return sum(counts.used for counts in self.counts.values())
