"""What a site says of its cases once they are opened: counts, shares and means, nothing of a single patient."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from polyclinic.data.bags import Bags
from polyclinic.data.cases import Counts, SiteData, reasons_text
from polyclinic.data.check import class_counts, copies, foreground_shares
from polyclinic.data.opening.public import PublicFacts
from polyclinic.data.opening.texts import add_texts
from polyclinic.data.quality.times import round_time, usual_time
from polyclinic.data.quality.values import usual_values
from polyclinic.data.readers.describe import VolumeFacts, facts_row, spacing_ranges, usual_levels
from polyclinic.data.tables.findings import class_counts as label_counts
from polyclinic.data.volumes.cache import BLANK
from polyclinic.data.volumes.store import Volumes
from polyclinic.limits import Body, Count, Name, Number, Sentence
from polyclinic.notes import Note

#: Number and text of a note.
Told = tuple[Name, Sentence]


class SiteFacts(Body):
    """What became of a site's cases, and what they are like.

    Attributes:
        found, used, unlabelled: cases.
        boxed, named: of those without a mask, how many have boxes, and how many names of structures alone.
        rejected: reason -> cases. Reasons name columns and kinds of failure, never a patient or a path.
        patients: among the cases used.
        instances: of the cases used, where these are bags; None where they are none. Of ``instances_found`` the others
            are ``instances_rejected`` by reason, or in bags that are rejected.
        labelled: cases used that have a label or mask.
        classes: labelled cases of each class, of all findings; empty where targets are not classes.
        numbers: mean and deviation of the numbers to be predicted; None for other targets.
        foreground: mean share of the masks that is foreground; None for other targets.
        missing: percent of all feature values.
        duplicates: cases whose inputs repeat those of an earlier case.
        images: what volumes were like as they were read, in words; see `facts_row`.
        shape: of one input, ``[F]``, ``[C, H, W]`` or ``[C, D, H, W]``; empty where no case is used.
        in_millimetres: whether voxel sizes are known.
        fingerprint: SHA-256 of all cases, hex.
        longer: cases that were seen for longer than survival is asked for; None without times.
        by_then: events until then.
        round_time: a round number that no time is beyond; None without times.
        usual_time: median time, if usual values are asked for; None of few cases.
        notes: what a person should know of the site's data.
        medians, deviations: usual value of each feature that is measured, and a robust deviation from it; None for
            groups and where a site has few values. They show other units, and are said where they are asked for, since
            nobody holds the data of all sites.
        spacings: likewise, lowest and highest voxel size of volumes along each axis, in millimetres.
        levels: likewise, medians over volumes of the 1 %, 50 % and 99 % quantiles of their values.
        public: what is said of the site's copy of the public set; None without one.
    """

    found: Count
    used: Count = 0
    unlabelled: Count = 0
    boxed: Count = 0
    named: Count = 0
    rejected: dict[Sentence, Count] = {}
    patients: Count = 0
    instances: Count | None = None
    instances_found: Count = 0
    instances_rejected: dict[Sentence, Count] = {}
    labelled: Count = 0
    classes: list[Count] = []
    numbers: tuple[Number, Number] | None = None
    foreground: Number | None = None
    missing: Number = 0.0
    duplicates: Count = 0
    images: dict[Name, Sentence] = {}
    shape: list[Count] = []
    in_millimetres: bool = False
    fingerprint: Name = ""
    longer: Count | None = None
    by_then: Count = 0
    round_time: Number | None = None
    usual_time: Number | None = None
    notes: list[Told] = []
    medians: list[Number | None] = []
    deviations: list[Number | None] = []
    spacings: list[tuple[Number, Number]] = []
    levels: list[Number] = []
    public: PublicFacts | None = None

    @classmethod
    def nothing(cls, counts: Counts) -> SiteFacts:
        """Of a site none of whose cases can be used."""
        return cls(found=counts.found, rejected=dict(counts.rejected), **_of_instances(counts, 0))

    @classmethod
    def of(
        cls, data: SiteData, classes: int, *, subjects_named: bool, notes: Sequence[Note] | None = None,
        until: float | None = None, usual: bool = False,
    ) -> SiteFacts:  # fmt: skip
        """Of a site's cases; without names of patients each case counts as one. With ``notes`` where nobody else can
        look at the site's data, and then perhaps with ``usual`` values."""
        known, counts = data.with_labels(), data.counts
        found: dict[str, Any] = {}
        labels = known.labels
        if known.findings is not None:
            found["classes"] = label_counts(known.findings.numpy(), classes)
        elif data.masked:
            shares = foreground_shares(known.targets)
            found["foreground"] = sum(shares) / len(shares) if shares else None
        elif labels is not None and labels.is_floating_point():
            if len(labels):
                numbers = labels.double()
                found["numbers"] = numbers.mean().item(), numbers.std(correction=0).item()
        elif labels is not None:
            found["classes"] = class_counts(labels, classes)
            if known.times is not None and len(known):
                found["round_time"] = round_time(known.times.max().item())
            if until is not None and (times := known.times) is not None:
                found["longer"] = int((times > until).sum())
                found["by_then"] = int(((times <= until) & (labels == 1)).sum())
        if usual:
            found["usual_time"] = usual_time(known)
        if data.inputs.ndim == 2:
            if usual:
                for name, values in zip(("medians", "deviations"), usual_values(data.by_instance()), strict=True):
                    found[name] = [None if math.isnan(value) else value for value in values.tolist()]
            found["missing"] = 100.0 * torch.as_tensor(data.values).isnan().double().mean().item()
        if isinstance(data.inputs, Bags):
            found |= _of_instances(counts, len(data.inputs.instances))
        if isinstance(data.inputs, Volumes):
            facts = [VolumeFacts(**record["facts"]) for record in data.inputs.about]
            found["images"] = facts_row(facts)
            if usual:
                found["spacings"], found["levels"] = spacing_ranges(facts), usual_levels(facts)
        return cls(
            found=counts.found, used=counts.used, unlabelled=counts.unlabelled, boxed=counts.boxed,
            named=counts.named, rejected=dict(counts.rejected),
            patients=len(set(data.subjects)) if subjects_named else len(data), labelled=len(known),
            duplicates=copies(data), shape=list(data.shape), in_millimetres=data.spacings is not None,
            fingerprint=_fingerprint(data), notes=[(note.number, str(note)) for note in notes or ()], **found,
        )  # fmt: skip


def _of_instances(counts: Counts, used: int) -> dict[str, Any]:
    """What became of the instances; nothing where cases are no bags."""
    one = counts.instances
    return {} if one is None else {
        "instances": used, "instances_found": one.found, "instances_rejected": dict(one.rejected)
    }  # fmt: skip


def facts_frame(facts: Mapping[str, SiteFacts], classes: Sequence[str]) -> pd.DataFrame:
    """A row for each site, for ``polyclinic check`` and the report.

    Columns: ``site``; ``found``, ``used`` and ``rejected`` cases with ``reasons`` (text); ``unlabelled``, how many of
    those used have no label or mask, if there are any at some site, and likewise ``boxed`` and ``named``, how many of
    these have boxes, or names of structures alone; ``patients`` among the used cases; where cases are
    bags their ``instances``; a column
    ``class: NAME`` with the number of cases of each class, ``foreground`` with the mean share of foreground pixels (0
    to 1) for segmentation, or ``label mean`` and ``label deviation`` for regression; ``missing`` (percent of all
    feature values); ``duplicates`` (cases whose inputs repeat those of an earlier case of the site); for volumes what
    the images were like as they were read, ``shapes`` to ``field strengths``, see `facts_row`.
    """
    some = [name for name in ("unlabelled", "boxed", "named") if any(getattr(one, name) for one in facts.values())]
    rows = []
    for site, one in facts.items():
        row: dict[str, object] = {
            "site": site,
            "found": one.found,
            "used": one.used,
            **{name: getattr(one, name) for name in some},
            "rejected": sum(one.rejected.values()),
            "reasons": reasons_text(Counter(one.rejected)),
            "patients": one.patients,
            **({} if one.instances is None else {"instances": one.instances}),
        }
        if one.foreground is not None:
            row["foreground"] = one.foreground
        elif one.numbers is not None:
            row |= dict(zip(("label mean", "label deviation"), one.numbers, strict=True))
        elif one.classes:
            row |= {f"class: {name}": count for name, count in zip(classes, one.classes, strict=True)}
        rows.append({**row, "missing": one.missing, "duplicates": one.duplicates, **one.images})
    return pd.DataFrame(rows)


def _fingerprint(data: SiteData) -> str:
    """SHA-256 of all tensors and names; every text is preceded by its length, so that no two contents look alike."""
    digest = hashlib.sha256()
    add_texts(digest, data.site, *data.subjects, *data.cases, *(data.parts or []))
    others: list[Tensor] = [] if data.covariates is None else [data.covariates]
    for pixels in (data.inputs, data.targets, *others):
        kind = pixels.instances.dtype if isinstance(pixels, Bags) else pixels.dtype
        add_texts(digest, str(kind), str(tuple(pixels.shape)))
        if isinstance(pixels, Volumes):
            add_texts(digest, *(record["key"] for record in pixels.about))
            add_texts(digest, *(file.name for file in pixels.files if file.name.startswith(BLANK)))
        elif isinstance(pixels, Bags):
            add_texts(digest, *map(str, pixels.counts.tolist()))
            digest.update(pixels.instances.numpy().data)
        else:
            digest.update(pixels.numpy().data)
    return digest.hexdigest()
