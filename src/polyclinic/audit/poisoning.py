"""Corrupt sites in a simulation: which sites are turned bad, and how.

An attack either changes the cases that a corrupt site trains on (`polyclinic.data.corruption`), by mistake or on
purpose, or what it sends (here, always on purpose). Answers are changed after all sites of an exchange have answered,
so that corrupt sites may know what the others sent. Changed are weights, and each tensor that a local rule sends with
them (SCAFFOLD's control variates, for example). Statistics of normalisation layers, which must keep their signs, single
numbers such as losses, and what sites say once at the start are sent as they are.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from pydantic import PositiveFloat
from scipy.stats import norm
from torch import Tensor

from polyclinic.data.corruption import CORRUPTIONS, Corruption
from polyclinic.data.spec import Target
from polyclinic.errors import nearest
from polyclinic.options import Catalogue, EntryError, Place
from polyclinic.seeds import generator

Answer = Any

#: Where the attack stands in a study file.
PLACE: Place = ("attack",)


@dataclass(frozen=True)
class Exchange:
    """What corrupt sites know when they choose what to send.

    It is about the changes of the trainable weights, w_k − w, or about one tensor that a local rule sends besides:
    such a tensor is taken as a change from zero, with all its values in a row.

    Attributes:
        seed: of the training.
        names: for each of the M corrupt sites that take part, what its random numbers are a function of besides.
        own: the changes that they would send if they were honest ``[M, T]``.
        others: the changes of the honest sites ``[H, T]``.
    """

    seed: int
    names: Sequence[Sequence[str | int]]
    own: Tensor
    others: Tensor


class UpdateAttack(ABC):
    """Changes what corrupt sites send."""

    @abstractmethod
    def forge(self, now: Exchange) -> Tensor:
        """The changes ``[M, T]`` that the corrupt sites send; nothing of ``now`` is written to."""

    def note(self, sites: int, corrupt: int) -> str:
        """A sentence for the report on this attack in a federation of so many sites, or ""."""
        return ""


#: Attacks by the name used under ``attack:`` in a study file; `polyclinic.audit.words` says what each does.
ATTACKS: Catalogue[type[Corruption] | type[UpdateAttack]] = Catalogue("kind of attack")
for _name in CORRUPTIONS:
    ATTACKS.add(_name)(CORRUPTIONS[_name])


@ATTACKS.add("sign_flip")
class SignFlip(UpdateAttack):
    """The site sends w − s Δ_k: it pulls the model away from what it has learned.

    Source: Li et al., RSA: Byzantine-robust stochastic aggregation methods, AAAI 2019.

    Args:
        scale: s.
    """

    def __init__(self, *, scale: PositiveFloat = 1.0) -> None:
        self.scale = scale

    def forge(self, now: Exchange) -> Tensor:
        """See `UpdateAttack.forge`."""
        return -self.scale * now.own


@ATTACKS.add("scaling")
class Scaling(UpdateAttack):
    """The site sends w + s Δ_k: with s the inverse of its share of the weights, its own model replaces that of all.

    Source: Bagdasaryan et al., How to backdoor federated learning, AISTATS 2020, equation 3. There the model that
    replaces the others is a poisoned one.

    Args:
        scale: s.
    """

    def __init__(self, *, scale: PositiveFloat = 10.0) -> None:
        self.scale = scale

    def forge(self, now: Exchange) -> Tensor:
        """See `UpdateAttack.forge`."""
        return self.scale * now.own


@ATTACKS.add("gaussian_noise")
class GaussianNoise(UpdateAttack):
    """The site sends w + n instead of w + Δ_k, where n is normal noise.

    Source: Blanchard et al., Machine learning with adversaries, NeurIPS 2017, where the deviation is fixed; here it is
    relative, so that it means the same for every network.

    Args:
        deviation: of the noise, as a multiple of the root mean square of Δ_k.
    """

    def __init__(self, *, deviation: PositiveFloat = 10.0) -> None:
        self.deviation = deviation

    def forge(self, now: Exchange) -> Tensor:
        """See `UpdateAttack.forge`."""
        sources = [generator(now.seed, "gaussian_noise", *names) for names in now.names]
        noise = torch.stack([torch.randn(now.own.shape[1], generator=source) for source in sources])
        return self.deviation * now.own.square().mean(dim=1, keepdim=True).sqrt() * noise


@ATTACKS.add("alie")
class ALittleIsEnough(UpdateAttack):
    """All corrupt sites send μ + z σ in each coordinate: too near to the others to stand out, yet always to one side.

    Source: Baruch, Baruch, Goldberg, A little is enough, NeurIPS 2019, algorithm 3. As there, mean and deviation are
    those of the corrupt sites' own honest changes. A single corrupt site has no deviation: here it is given the changes
    of all sites, which makes it stronger than in the paper.

    Args:
        z: how many deviations; without it the largest that the paper's reckoning allows, see ``largest_z``.
    """

    def __init__(self, *, z: PositiveFloat | None = None) -> None:
        self.z = z

    def forge(self, now: Exchange) -> Tensor:
        """See `UpdateAttack.forge`."""
        known = now.own if len(now.own) > 1 else torch.cat([now.own, now.others])
        z = largest_z(len(now.own) + len(now.others), len(now.own)) if self.z is None else self.z
        return (known.mean(dim=0) + z * known.std(dim=0, correction=0)).expand_as(now.own)

    def note(self, sites: int, corrupt: int) -> str:
        """See `UpdateAttack.note`."""
        if self.z is not None or largest_z(sites, corrupt) > 0:
            return ""
        return (
            f"With {corrupt} corrupt of {sites} sites the reckoning of `alie` gives z = 0: the corrupt sites send the "
            "mean of what they know, which does little harm. Give `alie: {z: ...}`, or more corrupt sites."
        )


def largest_z(sites: int, corrupt: int) -> float:
    """How far corrupt sites may stray so that enough honest ones stray further.

    z = max {z: φ(z) < (n − m − s) / (n − m)} with s = ⌊n/2 + 1⌋ − m, the honest sites needed for a majority of n sites
    of which m are corrupt (Baruch et al. 2019, algorithm 3). Never below 0, which small federations would give.
    """
    needed = math.floor(sites / 2 + 1) - corrupt
    honest = sites - corrupt
    share = min(max((honest - needed) / honest, 0.0), 1.0) if honest else 0.0
    return max(float(norm.ppf(share)), 0.0) if share < 1 else math.inf


@ATTACKS.add("inner_product")
class InnerProduct(UpdateAttack):
    """All corrupt sites send −ε times the mean of the honest changes, so that the sum points the wrong way.

    Where no honest site takes part, each takes its own change for that mean.

    Source: Xie, Koyejo, Gupta, Fall of empires: breaking Byzantine-tolerant SGD by inner product manipulation, UAI
    2019, equation 3.

    Args:
        epsilon: ε. Small ones deceive rules that look for what is near the others; to turn a mean of n updates of the
            same weight, m of them corrupt, it must be above (n − m) / m.
    """

    def __init__(self, *, epsilon: PositiveFloat = 1.0) -> None:
        self.epsilon = epsilon

    def forge(self, now: Exchange) -> Tensor:
        """See `UpdateAttack.forge`."""
        if not len(now.others):
            return -self.epsilon * now.own
        return (-self.epsilon * now.others.mean(dim=0)).expand_as(now.own)


@dataclass(frozen=True)
class CorruptUpdates:
    """Changes the answers of corrupt sites before the coordinator sees them; the ``corrupt`` of a plan.

    Attributes:
        attack: what they send.
        sites: the corrupt sites.
        trainable: the first so many shared coordinates are weights.
        seed: of the training.
    """

    attack: UpdateAttack
    sites: frozenset[str]
    trainable: int
    seed: int

    def __call__(self, number: int, state: Tensor, answers: Sequence[Answer]) -> Sequence[Answer]:
        """The answers that the coordinator gets.

        Args:
            number: rounds done before.
            state: the global state that sites were sent ``[Q]``.
            answers: honest ones of all sites of an exchange; not written to.
        """
        start = state[: self.trainable]
        weights = self._forged(number, [(one, one.update.state[: self.trainable] - start) for one in answers])
        if not weights:
            return answers
        extras: dict[str, dict[str, Tensor]] = {site: {} for site in weights}
        kinds = [(name, t.shape) for one in answers for name, t in one.extras.items() if t.is_floating_point()]
        for name, shape in dict.fromkeys(kinds):  # a tensor of another shape tells a corrupt site nothing for its own
            found = [(one, one.extras[name]) for one in answers if name in one.extras]
            alike = [(one, tensor.flatten()) for one, tensor in found if tensor.shape == shape]
            for site, tensor in self._forged(number, alike, name).items():
                extras[site][name] = tensor.reshape(shape)
        sent = list(answers)
        for position, answer in enumerate(answers):
            site = answer.update.site
            if site in weights:
                sent[position] = self._with(answer, start + weights[site], extras[site])
        return sent

    def _forged(self, number: int, honest: Sequence[tuple[Answer, Tensor]], *name: str) -> dict[str, Tensor]:
        """What each corrupt site sends in place of the change ``[T]`` that goes with its answer.

        Args:
            number: rounds done before.
            honest: of all sites.
            name: of what is changed, if it is not the weights.
        """
        corrupt = [answer for answer, _ in honest if answer.update.site in self.sites]
        if not corrupt:
            return {}
        own = torch.stack([change for answer, change in honest if answer.update.site in self.sites])
        others = [change for answer, change in honest if answer.update.site not in self.sites]
        turns = [(f"turn {answer.turn}",) if answer.turn else () for answer in corrupt]
        names = [(number, answer.update.site, *turn, *name) for answer, turn in zip(corrupt, turns, strict=True)]
        forged = self.attack.forge(Exchange(self.seed, names, own, torch.stack(others) if others else own[:0]))
        return {answer.update.site: change for answer, change in zip(corrupt, forged, strict=True)}

    def _with(self, answer: Answer, weights: Tensor, extras: Mapping[str, Tensor]) -> Answer:
        """``answer`` with other weights ``[T]`` and extras."""
        state = torch.cat([weights, answer.update.state[self.trainable :]])
        return replace(answer, update=replace(answer.update, state=state), extras={**answer.extras, **extras})


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

    def on_updates(self, trainable: int, seed: int) -> CorruptUpdates | None:
        """What is done to updates; None where cases are changed."""
        part = ATTACKS[self.name](**self.options)
        if not isinstance(part, UpdateAttack):
            return None
        return CorruptUpdates(part, frozenset(self.names), trainable, seed)

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
    if target not in part.targets:
        what = "masks have no class of their own" if target == "masks" else "numbers have no classes"
        hint = "Use swapped_labels, which gives cases each other's " + ("masks." if images else "numbers.")
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
