"""Corrupt sites in a simulation: which sites are turned bad, and how.

An attack either changes the cases that a corrupt site trains on (`polyclinic.data.corruption`), by mistake or on
purpose, or what it sends (`polyclinic.audit.updates`), always on purpose. False updates are put in place of the honest
ones on their way to the coordinator (`polyclinic.audit.forging`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from polyclinic.audit.forging import Corrupt, ForgingEngine
from polyclinic.audit.updates import UPDATES, UpdateAttack
from polyclinic.data.corruption import CORRUPTIONS, Corruption
from polyclinic.data.spec import Target
from polyclinic.engine.base import Engine
from polyclinic.errors import nearest
from polyclinic.options import Catalogue, EntryError, Place
from polyclinic.seeds import generator
from polyclinic.state import Layout, Role, Selection

#: Where the attack stands in a study file.
PLACE: Place = ("attack",)

#: Attacks by the name used under ``attack:`` in a study file.
ATTACKS: Catalogue[type[Corruption] | type[UpdateAttack]] = Catalogue("kind of attack")
for _name in CORRUPTIONS:
    ATTACKS.add(_name)(CORRUPTIONS[_name])
for _name in UPDATES:
    ATTACKS.add(_name)(UPDATES[_name])


@dataclass(frozen=True)
class Attack:
    """What a study does to some of its sites.

    Attributes:
        name: in the catalogue.
        options: complete; names of classes and features stand for themselves until ``on`` has numbers for them.
        sites: which sites, or how many.
    """

    name: str
    options: dict[str, Any]
    sites: tuple[str, ...] | int

    @property
    def changes_updates(self) -> bool:
        """Whether what sites send is changed, and not the cases that they train on."""
        return issubclass(ATTACKS[self.name], UpdateAttack)

    @property
    def names(self) -> tuple[str, ...]:
        """The corrupt sites.

        Raises:
            ValueError: they are not known yet, see ``on``.
        """
        if isinstance(self.sites, int):
            raise ValueError("the corrupt sites are not chosen yet")
        return self.sites

    def applies_to(self, scope: str) -> bool:
        """Whether it can be done to a method: without a server nobody gets a false update."""
        return scope == "federation" or not self.changes_updates

    def entry(self) -> dict[str, Any]:
        """The entry of a study file with every default filled in."""
        sites = self.sites if isinstance(self.sites, int) else list(self.sites)
        return {"sites": sites, self.name: dict(self.options)}

    def corruption(self) -> Corruption:
        """The corruption of cases.

        Raises:
            ValueError: it changes updates.
        """
        part = ATTACKS[self.name](**self.options)
        if not isinstance(part, Corruption):
            raise ValueError(f"{self.name} changes updates")
        return part

    def around(self, engine: Engine, layout: Layout, selection: Selection, seed: int) -> Engine:
        """``engine`` with corrupt sites that send what they please; ``engine`` itself where cases are changed.

        Args:
            engine: who runs the sites.
            layout: of the model.
            selection: the shared coordinates.
            seed: of the training.
        """
        part = ATTACKS[self.name](**self.options)
        if not isinstance(part, UpdateAttack):
            return engine
        sites, size = frozenset(self.names), selection.trainable
        return ForgingEngine(engine, Corrupt(part, sites, size, seed, variances(layout, selection)[size:]))

    def lacks(self, layout: Layout, selection: Selection) -> str:
        """What the attack changes and is not among the shared coordinates of a model; empty if nothing is missing."""
        part = ATTACKS[self.name]
        if not issubclass(part, UpdateAttack) or not part.honest_weights or variances(layout, selection).any():
            return ""
        return "running variances of normalisation layers"

    def on(self, sites: Sequence[str], classes: Sequence[str], features: Sequence[str], seed: int) -> Attack:
        """The attack on data that are known now: with names of sites, and numbers of classes and features.

        Args:
            sites: all sites of the study.
            classes: names of the classes.
            features: names of the columns of the inputs.
            seed: decides which sites are corrupt where the study only says how many.

        Raises:
            EntryError: P103, it names a site, class or feature that is not there; P104, too many sites are corrupt.
        """
        if isinstance(self.sites, int):
            order = torch.randperm(len(sites), generator=generator(seed, "corrupt sites")).tolist()
            chosen = tuple(sites[position] for position in sorted(order[: self.sites]))
        else:
            chosen = self.sites
            for position, site in enumerate(chosen):
                if site not in sites:
                    message, place = f"{site!r} is no site of this study.", (*PLACE, "sites", position)
                    raise EntryError("P103", message, nearest(site, list(sites)), place=place)
        wanted = self.sites if isinstance(self.sites, int) else len(chosen)
        if 2 * wanted > len(sites):
            raise EntryError(
                "P104", f"{wanted} of {len(sites)} sites would be corrupt, more than are honest: nothing can tell "
                "which of them are right.", f"Name at most {len(sites) // 2}.", place=(*PLACE, "sites"),
            )  # fmt: skip
        options = self.options
        if not self.changes_updates:
            options = CORRUPTIONS[self.name].resolved(options, classes, features, (*PLACE, self.name))
        return Attack(self.name, options, chosen)

    def note(self, sites: int) -> str:
        """A sentence for the report, or ""."""
        part = ATTACKS[self.name](**self.options)
        return part.note(sites, len(self.names)) if isinstance(part, UpdateAttack) else ""


def variances(layout: Layout, selection: Selection) -> Tensor:
    """Which of the shared coordinates are running variances of normalisation layers ``[Q]``."""
    found = torch.zeros(layout.size, dtype=torch.bool)
    for entry in layout.entries:
        if entry.role is Role.NORM_STATISTIC and entry.name.rpartition(".")[2] == "running_var":
            found[entry.offset : entry.offset + entry.size] = True
    return selection.take(found)


def read_attack(entry: object, target: Target, images: bool) -> Attack:
    """The ``attack:`` part of a study file.

    Args:
        entry: its content.
        target: what the study predicts of each case.
        images: whether the cases are images; else they are rows of a table.

    Raises:
        EntryError: P102 to P104 with the place of the first mistake.
    """
    if not isinstance(entry, dict):
        example = "for example `attack: {sites: 1, label_flip: {}}`"
        raise EntryError("P102", f"got {entry!r}; expected `sites` and a kind of attack, {example}.", place=PLACE)
    given = {str(key): value for key, value in entry.items()}
    for key in given:
        if key != "sites" and key not in ATTACKS:
            raise EntryError("P103", f"{key!r} is no kind of attack.", nearest(key, ["sites", *ATTACKS]),
                             place=(*PLACE, key))  # fmt: skip
    kinds = [key for key in given if key != "sites"]
    if len(kinds) != 1:
        named = f"names several kinds: {', '.join(kinds)}" if kinds else "names no kind of attack"
        hint = "Give one of them." if kinds else f"Valid: {', '.join(ATTACKS)}."
        raise EntryError("P102", f"`attack` {named}.", hint, place=(*PLACE, *kinds[1:2]))
    name, options = ATTACKS.resolve({kinds[0]: given[kinds[0]]}, PLACE)
    part = ATTACKS[name]
    if issubclass(part, Corruption):
        _check_cases(part, name, options, target, images)
    return Attack(name, options, _read_sites(given.get("sites", 1)))


def _read_sites(given: object) -> tuple[str, ...] | int:
    place = (*PLACE, "sites")
    if isinstance(given, int) and not isinstance(given, bool) and given > 0:
        return given
    if not isinstance(given, list) or not given or not all(isinstance(site, str | int) for site in given):
        raise EntryError("P102", f"got {given!r}; expected a list of sites, or how many.", place=place)
    names = [str(site) for site in given]
    for position, name in enumerate(names):
        if name in names[:position]:
            raise EntryError("P102", f"The site {name} is there twice.", place=(*place, position))
    return tuple(names)


def _check_cases(part: type[Corruption], name: str, options: dict[str, Any], target: Target, images: bool) -> None:
    """Whether the cases can be corrupted in this way."""
    place = (*PLACE, name)
    if target == "images":
        text = "Of a reconstruction neither images nor labels can be corrupted: its targets are its images."
        raise EntryError("P104", text, "Choose an attack on updates.", place=place)
    if target not in part.targets:
        others = {"masks": "masks have no class of their own", "findings": "a case has several labels"}
        what = others.get(target, f"{target} have no classes")
        hint = f"Use swapped_labels, which gives cases each other's {target}."
        raise EntryError("P104", f"{name} is for classification: {what}.", hint, place=place)
    if part.images and not images:
        raise EntryError("P104", f"{name} is for images; this study has features.", "Use wrong_scaling.", place=place)
    features = options.get("features")
    if images and features is not None:
        raise EntryError("P104", "`features` is for tables; this study has images.", "Take it out.",
                         place=(*place, "features"))  # fmt: skip
    if name == "backdoor" and not images and not features:
        raise EntryError(
            "P102", "the entry 'features' is missing: the mark of a table, such as {age: 99}.", place=place
        )
