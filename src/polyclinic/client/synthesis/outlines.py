"""Which of a site's outlined cases a generator learns from, and whose masks the server is given."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from polyclinic.client.synthesis.generator import AT_ONCE, kinds_of
from polyclinic.errors import SiteError
from polyclinic.parts import SiteView
from polyclinic.seeds import derive_seed

#: Of so many patients whose masks are shared one is kept aside.
_ONE_OF = 4
#: With fewer patients nobody is kept aside: were all others copied, that could be chance.
_LEAST_PATIENTS = 12


@dataclass(frozen=True)
class Outlines:
    """A site's training cases whose masks say of every pixel what it is.

    The masks of some are given to the server. Of their patients one of four is kept aside: a generator does not learn
    from their masks, nor a discriminator from their images, so that what is made from their masks can't be a copy, and
    is what other made images are held against.

    Attributes:
        learned: places, among the training cases, of those that a discriminator learns from ``[n]``.
        shared: places of those whose masks the server is given ``[s]``; those that are kept aside come last.
        aside: how many of these are kept aside.
        masks: of the shared ones, uint8 ``[s, 1, H, W]``.
        people: whose they are ``[s]``.
    """

    learned: Tensor
    shared: Tensor
    aside: int
    masks: Tensor
    people: Tensor

    @cached_property
    def compared(self) -> Tensor:
        """Bool ``[s]``: the first mask of each patient on which there is something. A mask without any structure fits
        many images."""
        seen, found = set[int](), list[bool]()
        for person, mask in zip(self.people.tolist(), self.masks, strict=True):
            found.append(person not in seen and bool(mask.any()))
            seen |= {person} if found[-1] else set()
        return torch.tensor(found)

    @classmethod
    def of(cls, view: SiteView, most: int) -> Outlines:
        """Those of a site, of which ``most`` are shared.

        Which these are does not depend on the training, so that folds and seeds share nearly the same ones: patients
        come in an order that follows from the site's name, with one mask of each before a second of any.

        Raises:
            SiteError: P401, the site has no such case.
        """
        whole = _whole(view)
        if not len(whole):
            text = f"No training case of site {view.name} has a mask that says of every pixel what it is."
            raise SiteError("P401", text, "Leave the site out, or the method.", site=view.name)
        people = view.people()[whole]
        order = torch.tensor(_order(view.name, people.tolist()))[:most]
        shared, whose = whole[order], people[order]
        patients = list(dict.fromkeys(whose.tolist()))
        number = len(patients) // _ONE_OF if len(patients) >= _LEAST_PATIENTS else 0
        kept = torch.tensor(patients[len(patients) - number :], dtype=people.dtype)
        apart = torch.isin(whose, kept)
        last = torch.cat([(~apart).nonzero().flatten(), apart.nonzero().flatten()])
        shared = shared[last]
        masks = view.cases(shared)[1]
        return cls(whole[~torch.isin(people, kept)], shared, int(apart.sum()), masks, whose[last])


def _whole(view: SiteView) -> Tensor:
    """Places of training cases of which every pixel has a class, a few at a time."""
    classes, places = kinds_of(view.task), torch.arange(view.count())
    known = [(view.cases(some)[1] < classes).flatten(1).all(1) for some in places.split(AT_ONCE)]
    return places[torch.cat(known)]


def _order(site: str, people: list[int]) -> list[int]:
    """Positions in the order in which cases are shared, from their patients."""
    own, keys = defaultdict[int, list[int]](list), dict[int, tuple[int, int]]()
    for position, person in enumerate(people):
        own[person].append(position)
    for person, positions in own.items():
        # Also those of a patient come in an order of their own: the first slices often show nothing.
        drawn = sorted((derive_seed("shared mask", site, person, number), one) for number, one in enumerate(positions))
        for turn, (_, position) in enumerate(drawn):
            keys[position] = turn, derive_seed("shared mask", site, person)
    return sorted(keys, key=keys.__getitem__)
