"""A part's end at the server: what it sends, how it changes updates, and what comes out of a round.

A round at the server is a chain: every update passes the chain's parts, one aggregation puts the updates together, and
the step that comes out passes the parts again. ``[norm_bound, trimmed_mean, fedadam]`` shortens each update, takes the
trimmed mean, and gives that to Adam.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from polyclinic.errors import PolyclinicError
from polyclinic.parts.site_end import Memory
from polyclinic.privacy import Budget, Event

if TYPE_CHECKING:
    from pathlib import Path

    from polyclinic.data.dataset import Dataset
    from polyclinic.models.variant import Variant
    from polyclinic.secure import Verifier
    from polyclinic.state import FlatModule
    from polyclinic.tasks import Task

#: ``(verb, site -> what is asked)`` -> answers in site order; why a site can't answer stands in its place. Nothing is
#: asked before answers are taken.
Ask = Callable[[str, Mapping[str, Memory]], Iterator[tuple[str, Memory | PolyclinicError]]]


def all_answers(answers: Iterator[tuple[str, Memory | PolyclinicError]]) -> dict[str, Memory]:
    """Site -> its answer to what an ``Ask`` asked, where every site must answer.

    Raises:
        PolyclinicError: the first failure.
    """
    found = dict[str, Memory]()
    for site, answer in answers:
        if isinstance(answer, PolyclinicError):
            raise answer
        found[site] = answer
    return found


@dataclass(frozen=True)
class Workplace:
    """What the server has to compute with.

    Attributes:
        network: its own network of the study's kind. A part may load any vector into it.
        task: loss and measures.
        public: the public set, prepared; None where no part at the server needs it.
        folder: paths that options name are relative to it; None where there are no files.
    """

    network: FlatModule
    task: Task
    public: Dataset | None = None
    folder: Path | None = None


@dataclass(frozen=True)
class Now:
    """What is known when a round begins.

    Attributes:
        number: rounds done before.
        rounds: of the whole training.
        learning_rate: of the sites in this round.
        weights: of the model that the sites were sent ``[T]``; not written to.
        statistics: its other coordinates, such as running means of normalisation layers ``[S]``; not written to.
        total_weight: sum of the weights of the sites that were asked.
        everyone: weight of each site of the federation, whether or not it takes part in this round.
        sites: who shares this model and takes part in the round, in site order.
        shapes: of the shared weights, one after another.
        seed: of the training.
        fold: likewise.
        budget: what noise of the server may cost the sites' privacy, if the study says it.
        real: whether sites are hospitals, so that noise must not follow from a seed.
        verifier: knows the sites' signatures; None where sites have no certificates.
        variants: site -> what it trains in place of the study's network, with a T' and an S' of its own.
    """

    number: int
    rounds: int
    learning_rate: float
    weights: Tensor
    statistics: Tensor
    total_weight: float
    everyone: Mapping[str, float] = field(default_factory=dict)
    sites: Sequence[str] = ()
    shapes: Sequence[tuple[int, ...]] = ()
    seed: int = 0
    budget: Budget | None = None
    real: bool = False
    verifier: Verifier | None = None
    fold: int = 0
    variants: Mapping[str, Variant] = field(default_factory=dict)

    def at(self, site: str) -> Now:
        """The same as a site sees it that trains a variant: ``weights [T']`` and ``statistics [S']`` have its lengths,
        and no values."""
        variant = self.variants.get(site)
        if variant is None:
            return self
        nothing, sizes = self.weights.new_zeros(1), variant.sizes
        return replace(self, weights=nothing.expand(sizes["T"]), statistics=nothing.expand(sizes["S"]),
                       shapes=variant.shapes)  # fmt: skip


@dataclass(frozen=True)
class Update:
    """What one site's work gave.

    Attributes:
        site: its name.
        change: of the weights, end minus start ``[T]``; not written to.
        statistics: of normalisation layers at the end ``[S]``; not written to. They are never subtracted: beside a
            variance of 1e8 one of 1e-3 would be lost.
        weight: declared weight of the site (usually its number of training cases).
        sent: part -> what its end at the site sent.
        lag: steps that the server has taken since it sent what the site started from.
        count: how many sites it is of. Where no single one is known, ``site`` is empty, ``weight`` that of all, and
            the tensors are their means by weight, also of what parts sent.
    """

    site: str
    change: Tensor
    statistics: Tensor
    weight: float
    sent: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    lag: int = 0
    count: int = 1


@dataclass(frozen=True)
class Step:
    """What comes of a round.

    Attributes:
        change: to be added to the weights ``[T]``, a vector of its own, which may be written to.
        statistics: the next ones ``[S]``, likewise.
        shares: how much each site counted: 1 / K for each where all count the same.
    """

    change: Tensor
    statistics: Tensor
    shares: Mapping[str, float]


class ServerEnd:
    """A part's end at the server. Every hook is optional.

    Attributes:
        name: of the part.
        ask: asks sites something (``part/verb``), which the part's end there answers.
        needs_each: whether it needs the single updates, so that their sum, each with its declared weight, is not
            enough. An aggregation does unless it says that it does not.
        least: with fewer updates it can't work.
        named: sites that its options name.
        needs_named: whether it can't do without these in any training.
        others: sites that do not train and are tested; they can be asked, too.
        workplace: what there is to compute with.
        needs_public: whether it computes on the public set, of which the coordinator then needs a copy.
        needs_whole: whether it runs the sites' models, so that these must be shared as a whole.
        predicts_elsewhere: whether ``predicting`` is for sites alone that did not train.
        counterparts: where sites have different networks, so that those with the same one share a model, the ends of
            the part for all models of the round, its own among them; else empty.
        leaves_out: verbs of questions after which it goes on without sites that gave no answer, so that the study's
            quorum judges these, and a note tells of them.
    """

    name: str = ""
    ask: Ask
    needs_each: ClassVar[bool] = False
    least: int = 1
    named: Sequence[str] = ()
    needs_named: ClassVar[bool] = False
    others: Sequence[str] = ()
    workplace: Workplace
    needs_public: ClassVar[bool] = False
    needs_whole: ClassVar[bool] = False
    predicts_elsewhere: ClassVar[bool] = False
    counterparts: Sequence[ServerEnd] = ()
    leaves_out: ClassVar[frozenset[str]] = frozenset()

    def meet(self, announced: Mapping[str, Memory], everyone: Mapping[str, float]) -> None:
        """Called once, before the model's first round, and again where a training goes on from a checkpoint.

        Args:
            announced: site -> what the part's end there told.
            everyone: weight of each site.
        """

    def begin(self, now: Now) -> None:
        """Begin a round. Whatever is left of one that was given up does not count any more."""
        self.now = now

    def send(self, site: str) -> Memory:
        """What to send a site in the round that begins; names are keys of the part's ``reveals``.

        Before all sites have answered these tensors are not to be written to: some may not have read them yet.
        """
        return {}

    def open(self, packed: Memory) -> Memory:
        """Undo what the end at the site did in ``close``, before any ``take``."""
        return packed

    def take(self, update: Update) -> Update:
        """The update as it goes on. Updates come in the order in which the procedure gives them."""
        return update

    def finish(self, step: Step) -> Step:
        """The step as it goes on; what is kept between rounds changes only here (and in ``Aggregation.done``)."""
        return step

    def spends(self, rounds: int, budget: Budget | None) -> Sequence[Event]:
        """What a round costs of the sites' privacy, in a training of so many rounds with this budget."""
        return []

    def memory(self) -> Memory:
        """What is kept between rounds, for checkpoints."""
        return {}

    def restore(self, memory: Memory) -> None:
        """Take back what ``memory`` gave."""

    def predicting(self) -> Memory:
        """What sites are sent besides the model when their cases are predicted, in validation and in tests; asked after
        each round. ``adapted`` at the site has it as ``view.sent``. Names are keys of the part's ``reveals``, perhaps
        with a number behind: ``model0``, ``model1``, ..."""
        return {}

    def needed(self) -> Memory:
        """What a model that is in use needs of the part besides the network; its `Part.shown` is given it."""
        return {}

    def sent(self, update: Update) -> Mapping[str, Tensor]:
        """What the part's end at the site sent with an update."""
        return update.sent.get(self.name, {})


class Aggregation(ServerEnd):
    """Puts the updates of a round together."""

    needs_each: ClassVar[bool] = True

    @abstractmethod
    def add(self, update: Update) -> None:
        """Take in an update."""

    @abstractmethod
    def done(self) -> Step:
        """What the updates of the round give; there is at least one."""


@dataclass(frozen=True)
class Sum:
    """What is known of many sites together.

    Attributes:
        name: of these sites, where they are not all.
        packed: means over the sites by their weights of what the part at the sites was given to close.
        shares: how much each site counts in the means.
        weight: of all.
    """

    packed: Memory
    shares: Mapping[str, float]
    weight: float
    name: str = ""


class Hiding(ServerEnd):
    """Shows the server no site's update, only what they are together; the parts after it see one update of all.

    A part that needs each site's update, or that sends something with it of which a mean means nothing, is refused
    beside it.

    Attributes:
        groups: whether sites may be in several groups, each with a sum of its own.
        adds_all: whether what parts send with an update is added up with it; else such parts are refused beside it.
    """

    groups: bool = False
    adds_all: ClassVar[bool] = False

    def sums(self, sites: int) -> int:
        """How many updates the parts after it see of so many sites."""
        return 1

    @abstractmethod
    def collect(self, site: str, packed: Memory, weight: float) -> None:
        """Take in what left a site."""

    @abstractmethod
    def together(self) -> Sequence[Sum]:
        """What was taken in, together, or of each group; at the end of the round, when there is at least one."""
