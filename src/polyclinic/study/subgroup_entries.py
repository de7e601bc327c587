"""Whether the subgroups that a study asks for can be some."""

from __future__ import annotations

from itertools import pairwise

from polyclinic.data.opening.subgroups import MOST_GROUPS, Subgroup
from polyclinic.data.spec import DataSpec
from polyclinic.options import EntryError, Place
from polyclinic.study.entries import Evaluation


def check_subgroups(evaluation: Evaluation, data: DataSpec) -> None:
    """Check the entry ``subgroups`` against the others.

    Raises:
        EntryError: P102, it is no column, or no rising edges; P104, the column has another part in the study.
    """
    taken = {data.label: "label", data.site: "site", data.subject: "subject", data.mask_column: "mask"}
    taken |= dict.fromkeys(data.image_columns, "image")
    taken |= dict.fromkeys(data.findings or (), "findings")
    seen: set[str] = set()
    for number, entry in enumerate(evaluation.subgroups):
        place: Place = ("evaluation", "subgroups", number)
        if isinstance(entry, dict) and len(entry) != 1:
            raise EntryError(
                "P102", f"got {len(entry)} columns in one entry; expected one: `{{age: [0, 50, 65, 120]}}`.",
                "Give each column an entry of its own.", place=place,
            )  # fmt: skip
        one = Subgroup.of(entry)
        if one.column in seen:
            raise EntryError("P102", f"the column {one.column!r} is there twice.", place=place)
        seen.add(one.column)
        if one.column in taken:
            raise EntryError(
                "P104", f"{one.column!r} is the `{taken[one.column]}` of the study, and can't be a subgroup as well.",
                "Name a column that describes patients, such as sex or age.", place=place,
            )  # fmt: skip
        if one.edges is not None:
            _check_edges(one, place)


def _check_edges(one: Subgroup, place: Place) -> None:
    edges = one.edges or ()
    if len(edges) < 2 or any(low >= high for low, high in pairwise(edges)):
        raise EntryError(
            "P102", f"got the edges {[float(edge) for edge in edges]} of {one.column!r}; expected two numbers or more "
            "that rise.", "Such as [0, 50, 65, 120]: each interval holds its lower edge, the last one both.",
            place=place,
        )  # fmt: skip
    if len(edges) > MOST_GROUPS + 1:
        raise EntryError("P102", f"got {len(edges) - 1} intervals of {one.column!r}; expected at most {MOST_GROUPS}.",
                         place=place)  # fmt: skip
    if len({f"{edge:g}" for edge in edges}) < len(edges):
        raise EntryError(
            "P102", f"the edges of {one.column!r} are too close to be told apart in six digits.", place=place
        )
