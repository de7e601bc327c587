"""What a part is, and the catalogues in which parts have their names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from polyclinic.options import Catalogue
from polyclinic.parts.server_end import ServerEnd
from polyclinic.parts.site_end import Memory, SiteEnd, overrides
from polyclinic.shapes import Shaped

if TYPE_CHECKING:
    from polyclinic.models.variant import Variant
    from polyclinic.state import FlatModule


class Part:
    """A part of a method; its keyword-only arguments are the options that a study file may give.

    A part is built anew for every training at a site, and for every model at the server.

    Attributes:
        name: under which it is in its catalogue.
        reveals: what its ends send each other: name -> what that could reveal. Other names are refused.
        shapes: name -> type and shape of what is sent, of those that are always the same. Of others any tensor is taken
            that is not too large; the values of all must be finite.
        needs_sgd: whether it reads gradients off the way that plain steps of SGD went.
        needs_accuracy: whether it asks for the accuracy of models, which a number to be predicted has not.
        undoes: whether its ``finish`` undoes what its ``take`` did, so that it comes before others that change steps.
        returns: whether it sends sites what other sites sent.
        shares_masks: how many masks of patients it has each site give to the server, at most, which a site's policy
            must allow.
        hands_on: whether it sends sites the model of a single other one in training, which a site's policy must allow.
        tasks: kinds of tasks that it is for; empty for all.
        classes: how many classes it is for; 0 for any number.
        subgroup: a column of `evaluation: {subgroups: ...}` whose groups it looks at; empty for none.
        group: the name of one of them that it looks at; empty for none.
        images_only: whether it is for images, and means nothing for tables.
        sees_unchanged: whether it learns from images as they are before any part changes them, so that no other part
            that changes them goes with it.
        no_bags: whether it changes or reads single inputs, which bags of several instances are not.
        encodes: whether what its ``close`` gives is no change of the weights in their order, so that no step of the
            channel that looks at numbers can come after it.
        packs: whether its ``close`` takes tensors of any kind, so that it can come after a part that encodes.
        requires: the package that it needs besides, and the extra of Polyclinic that brings it.
        means: what its end at a site sends with each update, if the server needs no more of it than the sites' mean by
            weight; empty otherwise.
        private: whom its noise protects ("a patient", "a site"); empty for parts without.
        noise: how much, as the study says; None for what keeps its budget.
        in_steps: whether that noise is in each step of training, so that all that follows from the change is protected.
        retells: whether what its end at a site sends follows from the change and from public numbers.
        needs_norm: the norm (1 or 2) in which steps before it must bound a change; 0 for none.
        needs_mean: whether it supposes that the server takes the mean of the updates.
        needs_public: whether it works on the public set, so that the study must have one.
        replaces: whether its ``close`` takes the change of the weights out, so that its end at the server makes the
            step of a round from what it sends instead.
        without_weights: whether sites learn from each other by what it sends, so that no weights need be shared.
        beside: how large a share of what a round of noise costs is for a mean that its end at a site sends beside the
            change, when it closes; 0 if it sends none.
        hides_beside: whether its noise covers such a mean of the part that bounds the change.
        hidden: the noise on that mean in this round, which the part that adds noise sets before this one's ``finish``.
        summed: whether the server sees sums of what leaves the sites alone, so that what this part gives is added up;
            set before its ends are made.
        same_network: whether all sites have to train the study's network for it, since its ends exchange numbers of
            each weight or feature, or look into the steps of training.
        own_networks: whether sites may have networks of their own for it all the same (``networks:`` in a study file),
            where no weights leave them: its ends exchange nothing of a network.
        model_per_network: whether they may for it where weights do leave them: then those with the same network share a
            model, and its end at the server brings these models together (`ServerEnd.counterparts`).
        freezes: whether it trains little of a network, so that it is for one that was trained before.
        pretraining_rounds: how many of the first rounds are its own: in them sites learn from all their training cases,
            with and without a label, what its end's ``batch`` and ``loss`` say, and nothing else; the head stays as it
            is. No such round is the best one. Sites without labels that learn nothing else take no part later.
        before: the part that closes an update before it, if there is one; set likewise.
        given: the tensors of an update that it is given to close; known once the model is, before its ends are made.
        sizes: lengths of dimensions in these, likewise.
    """

    name: str = ""
    reveals: ClassVar[Mapping[str, str]] = {}
    shapes: ClassVar[Mapping[str, Shaped]] = {}
    needs_sgd: bool = False
    needs_accuracy: bool = False
    undoes: ClassVar[bool] = False
    returns: ClassVar[bool] = False
    shares_masks: int = 0
    hands_on: bool = False
    tasks: ClassVar[tuple[str, ...]] = ()
    classes: ClassVar[int] = 0
    subgroup: str = ""
    group: str = ""
    images_only: ClassVar[bool] = False
    sees_unchanged: ClassVar[bool] = False
    no_bags: ClassVar[bool] = False
    encodes: ClassVar[bool] = False
    packs: ClassVar[bool] = False
    requires: ClassVar[tuple[str, str] | None] = None
    means: ClassVar[frozenset[str]] = frozenset()
    private: ClassVar[str] = ""
    noise: float | None = None
    in_steps: ClassVar[bool] = False
    retells: ClassVar[bool] = False
    needs_norm: ClassVar[int] = 0
    needs_mean: ClassVar[bool] = False
    needs_public: ClassVar[bool] = False
    replaces: ClassVar[bool] = False
    without_weights: ClassVar[bool] = False
    beside: float = 0.0
    hides_beside: ClassVar[bool] = False
    hidden: float = 0.0
    summed: bool = False
    same_network: ClassVar[bool] = False
    own_networks: ClassVar[bool] = False
    model_per_network: ClassVar[bool] = False
    freezes: ClassVar[bool] = False
    pretraining_rounds: int = 0
    before: Part | None = None
    given: Mapping[str, Shaped] = {}
    sizes: Mapping[str, int] = {}

    @property
    def bounded_by(self) -> Part | None:
        """The part before it whose ``bounds``, if it promises any, hold for the change that it is given to close."""
        part = self.before
        while part is not None and type(part).bounds is Part.bounds:
            part = None if overrides(part.at_site(), "close") else part.before
        return part

    @property
    def norm(self) -> float | None:
        """No change that it is given to close in this round is longer; None if parts before it promise nothing."""
        return None if self.bounded_by is None else self.bounded_by.bounds()

    @property
    def alike(self) -> str:
        """What of this round all sites must have been told alike, or a server could leave one alone in a sum."""
        return ""

    def shapes_for(self, model: FlatModule) -> Mapping[str, Shaped]:
        """``shapes`` in a training of ``model``, where they depend on it."""
        return self.shapes

    def variant(self, site: str, whole: FlatModule, seed: Sequence[str | int]) -> Variant | None:
        """What a site trains in place of the study's network; None if it is that one.

        Both ends make it by themselves, so it must follow from what is given here.

        Args:
            site: its name.
            whole: the study's network.
            seed: of what is drawn for this training.

        Raises:
            TrainingError: P302, the network is not of a kind of which there is such a variant.
        """
        return None

    def at_site(self) -> SiteEnd:
        """The end at a site."""
        return SiteEnd()

    def at_server(self) -> ServerEnd:
        """The end at the server."""
        return ServerEnd()

    def shown(self, needed: Memory, shape: Sequence[int]) -> Callable[[Tensor], Tensor]:
        """What ``images`` of its end at a site does, for a model that is in use; without it none can be made.

        Args:
            needed: what `ServerEnd.needed` gave.
            shape: of one image ``(C, H, W)`` or ``(C, D, H, W)``.

        Raises:
            Misfit: ``needed`` is of images of another shape.
        """
        raise NotImplementedError

    @property
    def trust(self) -> str:
        """Whom those that the noise protects have to trust, in words; empty for parts without."""
        return {"a patient": "the patient's own site", "a site": "the server"}.get(self.private, "")

    @property
    def files(self) -> Sequence[str]:
        """Paths that its options name, relative to the study's folder."""
        return []

    def check_files(self, network: FlatModule, folder: Path) -> None:
        """Whether the files that its options name are there and fit; asked at the coordinator before any training.

        Args:
            network: of the study; it is left as it is.
            folder: paths are relative to it.

        Raises:
            StudyError: they don't.
        """

    def bounds(self) -> float | None:
        """No change that it has closed in this round is longer than this; None if it promises nothing."""
        return None if overrides(self.at_site(), "close") else self.norm

    def leaves(self, before: Mapping[str, Shaped], sizes: Mapping[str, int]) -> Mapping[str, Shaped] | None:
        """What its ``close`` makes of an update, so that one which is something else is that site's failure.

        Args:
            before: the tensors of the update that it is given.
            sizes: lengths of dimensions: T shared weights, S shared statistics.

        Returns:
            The tensors that it gives, or None if they can be of any kind and shape: then only its ``open`` knows.
        """
        return None


class SitePart(Part, SiteEnd):
    """A part that is its own end at a site."""

    def at_site(self) -> SiteEnd:
        """Itself."""
        return self


class ServerPart(Part, ServerEnd):
    """A part that is its own end at the server."""

    def at_server(self) -> ServerEnd:
        """Itself."""
        return self


#: Parts by the name used under ``local:``, ``channel:`` and ``server:`` in a study file. All names differ.
LOCAL_PARTS: Catalogue[type[Part]] = Catalogue("local rule")
CHANNEL_PARTS: Catalogue[type[Part]] = Catalogue("channel step")
SERVER_PARTS: Catalogue[type[Part]] = Catalogue("server rule")
