"""The public set: cases without labels of which every site, and the coordinator, has a copy."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from polyclinic.data.cases import Counts, SiteData
from polyclinic.data.check import digests
from polyclinic.data.opening.agreement import Agreement
from polyclinic.data.opening.images import read_images
from polyclinic.data.opening.texts import add_texts
from polyclinic.data.quality.values import is_measured
from polyclinic.data.spec import PUBLIC, DataSpec, PublicSet
from polyclinic.data.tables.features import encode_features
from polyclinic.data.tables.rows import Rows, read_rows, reject_rows, reject_strangers
from polyclinic.errors import DataError
from polyclinic.limits import Body, Count, Name, Number, Sentence
from polyclinic.options import EntryError

#: A network's normalisation needs two cases.
_LEAST = 2
_TRUTH = (
    "label", "findings", "positive", "classes", "labels", "time", "event", "mask", "box", "structures", "mask_classes",
)  # fmt: skip


class PublicFacts(Body):
    """What a party says of its copy of the public set.

    Attributes:
        found, used: rows.
        rejected: reason -> rows.
        missing: features that none of its cases has.
        means, deviations: of features that are measured, with ten different values or more; None of others.
        fingerprint: SHA-256 of the inputs of all that are used, in order, hex.
        copies: at a site, how many of its cases that are or can be test cases have the inputs of a public case.
        tested: how many such cases it has.
    """

    found: Count
    used: Count
    rejected: dict[Sentence, Count] = {}
    missing: list[Name] = []
    means: list[Number | None] = []
    deviations: list[Number | None] = []
    fingerprint: Name
    copies: Count = 0
    tested: Count = 0


def check_public(spec: DataSpec) -> None:
    """Whether the study's data can have a public set.

    Raises:
        EntryError: P104, they can't.
    """
    if spec.public is None:
        return

    def refuse(message: str, hint: str) -> None:
        raise EntryError("P104", message, hint, place=("data", "public"))

    if spec.preprocessing is not None:
        refuse("A public set has rows of features, or pictures; this study has volumes.", "Leave `public` out.")
    if spec.bag is not None:
        refuse("A public set has single cases; this study has bags of them.", "Leave `public` out.")
    if spec.harmonisation.combat is not None:
        refuse("ComBat takes out what is a site's own, by its covariates, and a public set is of no site.",
               "Leave out `harmonisation` or `public`.")  # fmt: skip
    if spec.public.sites is not None and spec.site is None and spec.tables is None:
        refuse("`public: {sites: ...}` names sites, and the table does not say which row is of which.",
               "Give `site`, or `public: {table: ...}`.")  # fmt: skip


@dataclass(frozen=True, eq=False)
class PublicCases:
    """The public set as a party has it.

    Attributes:
        inputs: as those of sites before they are prepared, ``[M, F]`` or uint8 ``[M, C, H, W]``.
        facts: what is said of it.
    """

    inputs: Tensor
    facts: PublicFacts

    def facts_at(self, data: SiteData | None) -> PublicFacts:
        """What a site with these cases says of it."""
        if data is None:
            return self.facts
        parts = data.parts or ["test"] * len(data)
        tested = [place for place, known in enumerate(data.known.tolist()) if known and parts[place] == "test"]
        if not isinstance(data.inputs, Tensor):
            raise ValueError("there is no public set of volumes")
        public, own = set(digests(self.inputs)), digests(data.inputs)
        copies = sum(own[place] in public for place in tested)
        return self.facts.model_copy(update={"copies": copies, "tested": len(tested)})


def open_public(spec: DataSpec, folder: Path, agreement: Agreement) -> PublicCases | None:
    """Read the public set with the features, values of codes and sizes of images that the sites agreed on.

    Rows that can't be used are counted with the reason, as those of sites are; a group that no labelled case of the
    sites has is such a reason. Columns of patients and labels are not read.

    Args:
        spec: the ``data:`` part of the study file.
        folder: to which paths are relative.
        agreement: what the sites agreed on.

    Returns:
        the cases; None where the study has no public set.

    Raises:
        DataError: P201 to P205, the copy can't be read, lacks a column, or has fewer than two cases.
    """
    if spec.public is None:
        return None
    try:
        return _opened(_of_public(spec, spec.public, agreement), spec.public, folder, agreement)
    except DataError as error:
        raise DataError(error.code, f"The public set (`data: {{public: ...}}`): {error.message}", error.hint) from None


def _of_public(spec: DataSpec, public: PublicSet, agreement: Agreement) -> DataSpec:
    """How the public set is read: as the study's data, but without labels and patients."""
    changes: dict[str, object] = {**dict.fromkeys(_TRUTH), "unlabelled": "reject", "partition": None, "public": None}
    changes |= {"subject": None, "subject_pattern": None}
    if public.table is not None:
        changes |= {"table": public.table, "tables": None, "site": None, "root": public.root, "where": public.where}
    elif spec.tables is not None:
        changes["tables"] = {site: file for site, file in spec.tables.items() if site in (public.sites or ())}
    if spec.image is None:
        changes |= {"features": list(agreement.features), "exclude": []}
    return spec.model_copy(update=changes)


def _opened(spec: DataSpec, public: PublicSet, folder: Path, agreement: Agreement) -> PublicCases:
    rows = read_rows(spec, folder, None, may_be_none=True)
    if public.sites is not None:
        rows = rows.where(rows.origin["site"].isin(public.sites).to_numpy())
    if spec.image is None:
        rows.chosen = list(agreement.features)
    rows.origin["site"] = PUBLIC
    reject_rows(rows, spec, "labels", None)
    rows.labelled = np.zeros(len(rows), dtype=np.bool_)
    reject_strangers(rows, agreement.spellings)
    counts, used = rows.counts(PUBLIC), rows.where(rows.usable)
    inputs = _inputs(used, spec, folder, agreement, counts)
    if inputs is None or len(inputs) < _LEAST:
        raise DataError("P205", f"{counts.used} of its {counts.found} rows can be used; expected {_LEAST} or more.",
                        "Compare its columns with those of the sites.")  # fmt: skip
    facts = PublicFacts(
        found=counts.found, used=counts.used, rejected=dict(counts.rejected), missing=_missing(inputs, agreement, spec),
        fingerprint=_fingerprint(inputs), **_ranges(inputs),
    )  # fmt: skip
    return PublicCases(inputs, facts)


def _inputs(used: Rows, spec: DataSpec, folder: Path, agreement: Agreement, counts: Counts) -> Tensor | None:
    if spec.image is None:
        codes = (agreement.values, agreement.spellings)
        return torch.from_numpy(encode_features(used.cells, agreement.features, codes, spec)[0])
    if not len(used):
        return None
    found = read_images(PUBLIC, used, spec, folder, "labels", lambda: None)
    for place, reason in found.failures.items():
        counts.reject(str(used.origin["case"].iloc[place]), reason)
    return found.pixels if isinstance(found.pixels, Tensor) else None


def _missing(inputs: Tensor, agreement: Agreement, spec: DataSpec) -> list[str]:
    """Features that no case has."""
    if spec.image is not None:
        return []
    names, nowhere = agreement.features_encoded(spec), inputs.isnan().all(0).tolist()
    return [name for name, missing in zip(names, nowhere, strict=True) if missing]


def _ranges(inputs: Tensor) -> dict[str, list[float | None]]:
    """Mean and deviation of each feature that is measured."""
    if inputs.ndim != 2:
        return {}
    table = inputs.double().numpy()
    known = [column[~np.isnan(column)] if is_measured(column) else None for column in table.T]
    return {
        "means": [None if one is None else float(one.mean()) for one in known],
        "deviations": [None if one is None else float(one.std()) for one in known],
    }


def _fingerprint(inputs: Tensor) -> str:
    digest = hashlib.sha256()
    add_texts(digest, str(inputs.dtype), str(tuple(inputs.shape)))
    values = inputs.numpy()
    if values.dtype == np.float32:
        values = np.where(np.isnan(values), np.float32(np.nan), values + np.float32(0.0))  # one NaN, and no -0.0
    digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()


def check_alike(facts: Mapping[str, PublicFacts], coordinator: PublicFacts | None = None) -> PublicFacts:
    """What all say of the public set, if all have the same.

    Args:
        facts: what each site says.
        coordinator: what the coordinator has; None where it needs none.

    Raises:
        DataError: P211 with the sites that have another one than the coordinator, or than the first site.
    """
    (first, wanted), *_ = facts.items()
    whose = f"site {first}"
    if coordinator is not None:
        whose, wanted = "the coordinator", coordinator
    others = {site: one for site, one in facts.items() if one.fingerprint != wanted.fingerprint}
    if not others:
        return wanted
    each = ", ".join(f"{site} ({one.used} of {one.found} cases used)" for site, one in others.items())
    raise DataError(
        "P211", f"The public set is not the same everywhere: {whose} uses {wanted.used} of {wanted.found} cases, and "
        f"others are at {each}.",
        "All must have the same file, with the same rows in the same order, and the same version of Polyclinic.",
    )  # fmt: skip
