"""What sums that hide updates have in common: groups of sites with a sum each, and one sum of a site in a round."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch

from polyclinic.parts import Now, SiteView
from polyclinic.seeds import generator
from polyclinic.shapes import Misfit


def divided(now: Now, part: str, size: int | None) -> list[tuple[str, tuple[str, ...]]]:
    """The sites of a round by lot in groups of at least ``size``: name and members of each (None: one without a name).

    Args:
        now: the round.
        part: its name, from which the lot is drawn.
        size: least sites of a group.
    """
    sites = list(now.sites)
    number = number_of_groups(len(sites), size)
    if number == 1:
        return [("", tuple(sites))]
    drawn = torch.randperm(len(sites), generator=generator(part, now.seed, now.number)).tolist()
    places = [sorted(drawn[place::number]) for place in range(number)]
    return [(f"group {place + 1}", tuple(sites[one] for one in own)) for place, own in enumerate(places)]


def number_of_groups(sites: int, size: int | None) -> int:
    """Of so many sites with at least ``size`` in each (None: one group)."""
    return 1 if size is None else max(1, sites // size)


def check_same_sum(view: SiteView, part: str, number: int, survivors: Sequence[str]) -> None:
    """Whether a site was in no sum of this round with others: the difference of two would be somebody's update.

    Raises:
        Misfit: it was.
    """
    before = view.recall(f"{part} {number}")
    if before is not None and before != _listed(survivors):  # the site's update is the same again
        raise Misfit(
            "it was summed before with other sites, and the difference would be their updates. It can go on with those "
            "that were in it then; if one of them is gone for good, begin the study anew with another `seed`"
        )  # fmt: skip


def note_sum(view: SiteView, part: str, number: int, survivors: Sequence[str]) -> None:
    """Remember the sites with which a site is in the sum of a round."""
    view.note(f"{part} {number}", _listed(survivors))


def _listed(survivors: Sequence[str]) -> str:
    """Stands for a list of names, in any order."""
    return hashlib.sha256("\n".join(sorted(survivors)).encode()).hexdigest()
