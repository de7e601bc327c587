"""The server's ends of all parts of a method, at work on one model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from polyclinic.errors import PartError, SiteError
from polyclinic.parts import Aggregation, Ask, Hiding, Memory, Now, ServerEnd, Step, Sum, Update, Workplace
from polyclinic.parts.checks import Unwritten, kind_of, tensors_of, wrong
from polyclinic.server.mean import Mean
from polyclinic.shapes import Misfit

Passed = TypeVar("Passed", Update, Step)
#: ``(part, packed, site)``: refuses, with `Misfit`, what the part at a site can't have been given to close.
Check = Callable[[str, Memory, str], None]


class Unopened(SiteError):  # noqa: N818 - a word says it
    """What a site sent is not what the steps of the channel give: that site has not answered."""


@dataclass(frozen=True)
class Result:
    """What a round made: the next state ``[Q]``, and how much each site counted."""

    state: Tensor
    shares: Mapping[str, float]


class Chain:
    """A chain of ends around one aggregation; without one among them it is the mean.

    Args:
        ends: name -> end, in the order in which steps pass them; updates are opened and taken in the same order.
        check: of what was opened.

    Raises:
        ValueError: there are several aggregations.
    """

    def __init__(self, ends: Mapping[str, ServerEnd], check: Check = lambda part, packed, site: None) -> None:
        for name, end in ends.items():
            end.name = name
        self.ends, self._check = dict(ends), check
        self.hiding = next((end for end in ends.values() if isinstance(end, Hiding)), None)
        found = [end for end in ends.values() if isinstance(end, Aggregation)]
        if len(found) > 1:
            raise ValueError("a server rule has one aggregation")
        self.aggregation = found[0] if found else Mean()
        self.aggregation.name = self.aggregation.name or "mean"
        self.others = [end for end in ends.values() if end is not self.aggregation]
        #: Site that has not answered yet -> part -> what it was sent.
        self._on_the_way = dict[str, dict[str, Unwritten]]()

    def meet(
        self, announced: Mapping[str, Mapping[str, Memory]], everyone: Mapping[str, float], ask: Mapping[str, Ask],
        others: Sequence[str] = (), workplace: Workplace | None = None,
    ) -> None:  # fmt: skip
        """Training starts: site -> part -> what it told; how each part asks the sites; ``others`` that don't train;
        what there is to compute with."""
        for name, end in self.ends.items():
            end.ask, end.others = ask[name], others
            if workplace is not None:
                end.workplace = workplace
            end.meet({site: dict(parts.get(name, {})) for site, parts in announced.items()}, everyone)

    def begin(self, now: Now) -> None:
        """Begin a round."""
        self.now, self._sites = now, set[str]()
        self._on_the_way.clear()
        for end in (*self.others, self.aggregation):
            end.now = now
            end.begin(now)

    def send(self, site: str) -> Memory:
        """What a site is sent besides the state: ``part/name`` -> tensor."""
        sent = {name: tensors_of(name, "send", end.send(site)) for name, end in self.ends.items()}
        self._on_the_way[site] = {name: Unwritten(tensors) for name, tensors in sent.items()}
        return {f"{name}/{key}": tensor for name, tensors in sent.items() for key, tensor in tensors.items()}

    def take(self, site: str, packed: Memory, weight: float, lag: int = 0) -> None:
        """Take in what left a site; answers come in site order.

        Args:
            site: its name.
            packed: what left it.
            weight: its declared weight.
            lag: steps that the server has taken since it sent what the site started from.

        Raises:
            PartError: P304, an end gives something else than it must.
            Unopened: the site sent what can't be opened; nothing was taken in.
        """
        names = list(self.ends)
        if self.hiding is None:
            self._add(self._opened(site, packed, names), site, weight, lag)
        else:
            opened = self._undone(site, packed, names[: names.index(self.hiding.name)])
            try:
                self.hiding.collect(site, opened, weight)
            except Misfit as misfit:
                raise self._unopened(site, self.hiding.name, misfit) from None
        self._sites.add(site)
        self._on_the_way.pop(site, None)
        for others in self._on_the_way.values():  # may not have read theirs yet
            for name, unwritten in others.items():
                unwritten.check(name, "take")

    def passes(self, site: str) -> None:
        """A site has answered, and sent no update."""
        self._on_the_way.pop(site, None)

    def _opened(self, site: str, packed: Memory, names: Sequence[str]) -> Memory:
        """An update as it was before the parts called ``names``, the first ones, closed it."""
        opened = self._undone(site, packed, names)
        last = next((name for name in reversed(names) if type(self.ends[name]).open is not ServerEnd.open), "")
        self._check_opened(opened, last, site)
        return opened

    def _undone(self, site: str, packed: Memory, names: Sequence[str]) -> Memory:
        now = self.now.at(site)
        for name in names:
            end = self.ends[name]
            if type(end).open is not ServerEnd.open:
                end.now = now  # lengths are those of what the site trains
                try:
                    packed = tensors_of(name, "open", end.open(packed))
                    self._check(name, packed, site)
                except Misfit as misfit:
                    raise self._unopened(site, name, misfit) from None
                finally:
                    end.now = self.now
        return packed

    @staticmethod
    def _unopened(site: str, part: str, misfit: Misfit) -> Unopened:
        who = f"The update of site {site}" if site else "The sum of the sites' updates"
        return Unopened(
            "P401", f"{who} is not what {part} gives: {misfit}.",
            "Let all sites and the server run the same version of Polyclinic.", site=site,
        )  # fmt: skip

    def _add(self, packed: Memory, site: str, weight: float, lag: int, count: int = 1) -> None:
        sent = {name: named(packed, name) for name in self.ends}
        change, statistics = packed["change"], packed["statistics"]
        variant = self.now.variants.get(site)
        if variant is not None:
            change, statistics = variant.spread(change, statistics, torch.cat([self.now.weights, self.now.statistics]))
        update = Update(site, change, statistics, weight, sent, lag, count)
        for end in self.others:
            update = self._checked(end, "take", end.take(update), Update)
        self.aggregation.add(update)

    def _add_together(self, hiding: Hiding) -> Sequence[Sum]:
        """Give the parts what the sites sent as one update, or one for each group."""
        found, names = hiding.together(), list(self.ends)
        for one in found:
            try:
                self._check(hiding.name, one.packed, "")
            except Misfit as misfit:
                raise self._unopened("", hiding.name, misfit) from None
            packed = self._opened("", one.packed, names[names.index(hiding.name) + 1 :])
            self._add(packed, one.name, one.weight, 0, len(one.shares))
        return found

    def _check_opened(self, packed: Memory, opened: str, site: str) -> None:
        now = self.now.at(site)
        for key, like in (("change", now.weights), ("statistics", now.statistics)):
            found = packed.get(key)
            if found is None or found.shape != like.shape or not found.is_floating_point():
                got = f"{kind_of(found)} as the {key} of site {site}"
                if found is not None and not found.is_floating_point():
                    got = f"{got} with numbers of {str(found.dtype).removeprefix('torch.')}"
                expected = f"{list(like.shape)} numbers with fractions"
                if opened:
                    raise wrong(opened, "open", got, expected)
                raise PartError(
                    "P304", f"A part or a procedure gave {got}; expected {expected}.",
                    "What a part changes in `close` its end at the server has to undo in `open`.",
                )  # fmt: skip

    def finish(self) -> Result | None:
        """The next state; None if there was no update."""
        if not self._sites:
            return None
        sums = () if self.hiding is None else self._add_together(self.hiding)
        step = self._checked(self.aggregation, "done", self.aggregation.done(), Step)
        if self.hiding is not None:
            counted = {s: step.shares.get(one.name, 0.0) * share for one in sums for s, share in one.shares.items()}
            step = replace(step, shares=counted)
        for end in self.others:
            step = self._checked(end, "finish", end.finish(step), Step)
        others = [site for site in step.shares if site not in self._sites]
        if others:
            raise PartError(
                "P304", f"A part at the server gave a share of {others[0]!r}, of whom no update came.",
                "In a `Step` there are shares of those sites only whose updates it is made of.",
            )  # fmt: skip
        before = self.now.weights
        state = torch.empty(len(before) + len(step.statistics), dtype=before.dtype)
        torch.add(before, step.change, out=state[: len(before)])
        state[len(before) :] = step.statistics
        self._keep_still(state)
        return Result(state, step.shares)

    def _keep_still(self, state: Tensor) -> None:
        """What no site of the round trains stays as it is to the bit: sites are not sent it again."""
        if not self.now.variants:
            return
        variants = {id(one): one for one in map(self.now.variants.get, self.now.sites)}
        only = next(iter(variants.values()), None)
        if len(variants) == 1 and only is not None and not only.stays:
            moved = state[only.places]
            state[:] = torch.cat([self.now.weights, self.now.statistics])
            state[only.places] = moved

    def _checked(self, end: ServerEnd, hook: str, found: Passed, kind: type[Passed]) -> Passed:
        """What a hook gave, if it can go on."""
        if not isinstance(found, kind):
            expected = f"a new `{kind.__name__}`, or the one given"
            raise wrong(end.name, hook, kind_of(found), expected)
        for key, like in (("change", self.now.weights), ("statistics", self.now.statistics)):
            values = getattr(found, key)
            if not isinstance(values, Tensor) or values.shape != like.shape:
                raise wrong(end.name, hook, f"{kind_of(values)} as {key}", f"a tensor {list(like.shape)}")
        return found

    def memory(self) -> Memory:
        """What all ends keep between rounds, for checkpoints."""
        return {
            f"{name}/{key}": tensor
            for name, end in self.ends.items()
            for key, tensor in tensors_of(name, "memory", end.memory()).items()
        }

    def restore(self, memory: Memory) -> None:
        """Take back what ``memory`` gave."""
        for name, end in self.ends.items():
            end.restore(named(memory, name))


def named(tensors: Mapping[str, Tensor], name: str) -> Memory:
    """Those of ``tensors`` that are called ``name/...``, without that."""
    return {key.removeprefix(f"{name}/"): t for key, t in tensors.items() if key.startswith(f"{name}/")}


def names_of(tensors: Iterable[str]) -> set[str]:
    """The parts to which tensors called ``part/name`` belong."""
    return {key.split("/", 1)[0] for key in tensors if "/" in key}
