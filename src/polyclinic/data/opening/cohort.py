"""The sites of a study as its coordinator knows them."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
from torch import Tensor

from polyclinic.data.cases import Counts, SiteData, reasons_text
from polyclinic.data.masks.entries import structure_notes
from polyclinic.data.opening.agreement import Agreement
from polyclinic.data.opening.census import Census
from polyclinic.data.opening.facts import SiteFacts
from polyclinic.data.opening.public import PublicFacts, check_alike
from polyclinic.data.opening.subgroups import spelling_notes
from polyclinic.data.opening.texts import add_texts
from polyclinic.data.quality.classes import counted_label_notes
from polyclinic.data.quality.times import time_unit_notes
from polyclinic.data.quality.values import unit_notes
from polyclinic.data.quality.words import some
from polyclinic.data.spec import DataSpec, Target
from polyclinic.errors import DataError, nearest
from polyclinic.notes import Note


@dataclass(frozen=True)
class Cohort:
    """What is known of all sites.

    Attributes:
        facts: sites that take part, in order.
        left_out: sites without a case that can be used.
        features: names of the columns of the inputs (after one-hot encoding), or of the image channels.
        classes: names of the classes in index order.
        covariates: for each column of the table that is a covariate, the names of the columns made of it.
        notes: for the report.
        fingerprint: SHA-256 of all that was read, hex.
        public: what all say of the public set; None without one.
        public_inputs: the coordinator's own copy of it ``[M, ...]``; None where it has or needs none.
        groups: for each column of a subgroup that is not cut at edges, the names of its groups in order.
    """

    facts: dict[str, SiteFacts]
    left_out: dict[str, SiteFacts]
    features: list[str]
    classes: list[str]
    covariates: dict[str, list[str]] = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)
    fingerprint: str = ""
    public: PublicFacts | None = None
    public_inputs: Tensor | None = field(default=None, compare=False, repr=False)
    groups: dict[str, list[str]] = field(default_factory=dict)

    @classmethod
    def of(
        cls, facts: Mapping[str, SiteFacts], agreement: Agreement, spec: DataSpec, target: Target,
        notes: Sequence[Note] | None = None, censuses: Mapping[str, Census] | None = None,
        public: PublicFacts | None = None,
    ) -> Cohort:  # fmt: skip
        """Put together what the sites say.

        Args:
            facts: what each site says, in order.
            agreement: what they agreed on.
            spec: the ``data:`` part of the study file.
            target: what is to be predicted of each case.
            notes: what was noted of all sites together by who holds the data of all; None takes the sites' own, and
                those that follow from what the sites say.
            censuses: what the sites said of their rows, for these.
            public: what the coordinator has as the public set, if it needs it.

        Raises:
            DataError: P205, no site has a usable case; P207, the reference site of harmonisation is none of them; P211,
                the public set is not the same everywhere.
        """
        there = {site: one for site, one in facts.items() if one.used}
        said = [Note("N208", _left_out(site, one)) for site, one in facts.items() if not one.used]
        if not any(one.labelled for one in there.values()):
            what = "usable case" if not there else "usable case with a label or mask"
            raise DataError("P205", f"No site has a {what}. " + " ".join(said), "Mend the images or their paths.")
        own = [Note(number, _of_site(site, text)) for site, one in there.items() for number, text in one.notes]
        features, covariates = agreement.features_encoded(spec), agreement.covariates_encoded(spec)
        _check_shapes(there)
        _check_reference(spec, list(there))
        if notes is None:
            own += [*_labels(there, agreement, censuses or {}, spec, target), *_units(there, features)]
            times = {site: one.usual_time for site, one in there.items() if one.usual_time is not None}
            own += time_unit_notes(times, spec)
        copies = {site: one.public for site, one in there.items() if one.public is not None}
        alike = check_alike(copies, public) if copies else None
        together = [
            *(own if notes is None else notes),
            *said,
            *_unlabelled(there, target),
            *structure_notes(spec, list(facts)),
            *spelling_notes(agreement.groups),
            *_public_notes(copies, alike),
        ]
        return cls(
            there, {site: one for site, one in facts.items() if not one.used}, features, agreement.classes, covariates,
            together, _fingerprint(there, features, agreement.classes, alike), alike, groups=agreement.groups,
        )  # fmt: skip

    @property
    def sites(self) -> list[str]:
        """Names of the sites that take part."""
        return list(self.facts)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one input, the same at all sites."""
        return tuple(next(iter(self.facts.values())).shape)


@dataclass(frozen=True)
class Opened:
    """The cases of all sites in one place.

    Attributes:
        sites: site name -> its cases, sorted by name (tables: study file order).
        cohort: what is known of the sites.
        left_out: sites without a usable case -> what became of their cases.
    """

    sites: dict[str, SiteData]
    cohort: Cohort
    left_out: dict[str, Counts] = field(default_factory=dict)

    def by_instance(self) -> Opened:
        """The same with each instance of a bag as a case of its own."""
        return replace(self, sites={site: data.by_instance() for site, data in self.sites.items()})

    @property
    def features(self) -> list[str]:
        """See `Cohort`."""
        return self.cohort.features

    @property
    def classes(self) -> list[str]:
        """See `Cohort`."""
        return self.cohort.classes

    @property
    def covariates(self) -> dict[str, list[str]]:
        """See `Cohort`."""
        return self.cohort.covariates

    @property
    def notes(self) -> list[Note]:
        """See `Cohort`."""
        return self.cohort.notes

    @property
    def fingerprint(self) -> str:
        """See `Cohort`."""
        return self.cohort.fingerprint


def _left_out(site: str, facts: SiteFacts) -> str:
    """Why a site has no part in the study."""
    why = reasons_text(Counter(facts.rejected)) or "it has no rows"
    return f"Site {site} is left out: none of its {facts.found} cases can be used ({why})."


def _unlabelled(facts: Mapping[str, SiteFacts], target: Target) -> list[Note]:
    """A note that counts the cases without a label."""
    found = {site: one.unlabelled for site, one in facts.items() if one.unlabelled}
    if not found:
        return []
    total = sum(one.used for one in facts.values())
    text = (
        f"{sum(found.values())} of {total} cases used have no {'mask' if target == 'masks' else 'label'} "
        f"({', '.join(f'{site} {count}' for site, count in found.items())}). Only methods that learn without labels "
        "train on them; nothing is fitted, validated or tested on them."
    )
    for what, name in (("boxes", "boxed"), ("names of structures alone", "named")):
        own = {site: getattr(one, name) for site, one in facts.items() if getattr(one, name)}
        each = ", ".join(f"{site} {count}" for site, count in own.items())
        text += f" {sum(own.values())} of them have {what} ({each})." if own else ""
    bare = [site for site in found if not facts[site].labelled]
    if bare:
        text += f" At {', '.join(bare)}, where no case has one, inputs are scaled by them."
    return [Note("N209", text)]


def _public_notes(copies: Mapping[str, PublicFacts], public: PublicFacts | None) -> list[Note]:
    """Cases of the public set that can't be used, what it lacks, and test cases of sites that stand in it."""
    notes = []
    if public is not None and public.rejected:
        why = reasons_text(Counter(public.rejected))
        text = f"{public.found - public.used} of {public.found} cases of the public set can't be used ({why})."
        notes.append(Note("N271", text))
    if public is not None and public.missing:
        several = len(public.missing) > 1
        text = (
            f"No case of the public set has the feature{'s' * several} {some(public.missing)}: for methods that learn "
            f"from it {'they are' if several else 'it is'} filled in, the same in all of its cases."
        )
        notes.append(Note("N272", text))
    found = {site: one for site, one in copies.items() if one.copies}
    if found:
        each = ", ".join(f"{site} {one.copies} of {one.tested}" for site, one in found.items())
        text = (
            f"{sum(one.copies for one in found.values())} cases on which methods are tested stand in the public set, "
            f"too, with the same inputs ({each}). Methods that distil on it have seen them, without their labels."
        )
        notes.append(Note("N270", text))
    return notes


def _of_site(site: str, text: str) -> str:
    """What a site notes of its own data, with its name."""
    return text if text.startswith(f"Site {site}") else f"Site {site}: {text}"


def _labels(
    facts: Mapping[str, SiteFacts], agreement: Agreement, censuses: Mapping[str, Census], spec: DataSpec, target: Target
) -> list[Note]:  # fmt: skip
    """What is said of the labels of all sites, from counts."""
    if target != "labels":
        return []
    rows: list[tuple[str, str, int, int]] = []
    for site, one in facts.items():
        census = censuses.get(site)
        if census is not None and census.labels and agreement.labels is not None:
            rows += [(site, text, agreement.labels[text], count) for text, count in census.labels.items()]
        else:
            rows += [(site, name, place, one.classes[place]) for place, name in enumerate(agreement.classes)]
    table = pd.DataFrame([row for row in rows if row[3]], columns=["site", "text", "class", "size"])
    return counted_label_notes(table, spec, agreement.classes)


def _units(facts: Mapping[str, SiteFacts], features: list[str]) -> list[Note]:
    """A note on features that seem to have another unit at a site."""
    usual = {
        site: (np.array(one.medians, dtype=np.float64), np.array(one.deviations, dtype=np.float64))
        for site, one in facts.items()
        if len(one.medians) == len(one.deviations) == len(features)
    }
    return unit_notes(usual, features)


def _check_shapes(facts: Mapping[str, SiteFacts]) -> None:
    """One network takes the inputs of all sites.

    Raises:
        DataError: P203 with two sites whose inputs differ.
    """
    (first, one), *others = facts.items()
    for site, other in others:
        if other.shape != one.shape:
            raise DataError(
                "P203", f"Inputs have the shape {other.shape} at site {site} and {one.shape} at site {first}.",
                "Let all sites prepare their images in the same way, with the same version of Polyclinic.",
            )  # fmt: skip


def _check_reference(spec: DataSpec, sites: Sequence[str]) -> None:
    combat = spec.harmonisation.combat
    if combat is not None and combat.reference_site is not None and combat.reference_site not in sites:
        raise DataError(
            "P207", f"The reference site {combat.reference_site!r} is not among the sites.",
            nearest(combat.reference_site, list(sites)),
        )  # fmt: skip


def _fingerprint(
    facts: Mapping[str, SiteFacts], features: Sequence[str], classes: Sequence[str], public: PublicFacts | None
) -> str:
    """SHA-256 of what each site's fingerprint says, of the features, of the classes and of the public set."""
    digest = hashlib.sha256()
    add_texts(digest, "features", *features, "classes", *classes)
    for site, one in facts.items():
        add_texts(digest, "site", site, one.fingerprint)
    if public is not None:
        add_texts(digest, "public", public.fingerprint)
    return digest.hexdigest()
