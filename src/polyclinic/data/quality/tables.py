"""Everything that is said of the opened cases of a study besides what `polyclinic.data.check` says of all data."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from torch import Tensor

from polyclinic.data.cases import SiteData
from polyclinic.data.quality.copies import copied_images, copied_rows
from polyclinic.data.quality.leaks import Column, columns_of, leak_notes
from polyclinic.data.quality.values import value_notes
from polyclinic.data.spec import DataSpec
from polyclinic.data.volumes.store import Volumes
from polyclinic.notes import Note


def table_notes(
    sites: dict[str, SiteData], features: Sequence[str], chosen: Sequence[str], spec: DataSpec
) -> list[Note]:
    """Notes on the features of a table: copies, leaks of the label, values that can't be true.

    Args:
        sites: the usable cases.
        features: names of the feature matrix' columns.
        chosen: names of the table's feature columns, in the same order.
        spec: the ``data:`` part of the study file.
    """
    columns = columns_of(features, chosen, spec.categorical)
    first = next(iter(sites.values())).labels
    number = spec.label if first is not None and first.is_floating_point() else None
    return [
        *copied_rows(sites, columns),
        *_leaks(sites, columns, spec),
        *value_notes(sites, features, number),
    ]


def _leaks(sites: dict[str, SiteData], columns: Sequence[Column], spec: DataSpec) -> list[Note]:
    """Leaks of the label, or of each finding at the sites that have labels of it."""
    notes = [] if spec.findings else leak_notes(sites, columns, str(spec.label or spec.event))
    for place, name in enumerate(spec.findings or ()):
        own = {site: data.of_finding(place) for site, data in sites.items()}
        known = {site: data for site, data in own.items() if data.known.any()}
        notes += leak_notes(known, columns, name) if known else []
    return notes


def image_notes(sites: dict[str, SiteData]) -> list[Note]:
    """Notes on images that stand with different labels."""
    return copied_images(sites, {site: _digests(data.plain) for site, data in sites.items()})


def _digests(inputs: Tensor | Volumes) -> list[bytes]:
    if isinstance(inputs, Volumes):
        return [bytes.fromhex(record["content"]) for record in inputs.about]
    return [hashlib.blake2b(case.tobytes(), digest_size=16).digest() for case in inputs.numpy()]
