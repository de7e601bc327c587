"""A part by which sites learn from what all of them find in a public set."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveInt
from torch import Tensor

from polyclinic.errors import SiteError
from polyclinic.parts import LOCAL_PARTS, Ended, Memory, Now, Part, ServerEnd, SiteEnd, SiteView, Step, Update
from polyclinic.parts.distilling import batches_of, distil, divergence, outputs_on, shuffled
from polyclinic.seeds import generator
from polyclinic.shapes import Shaped


@LOCAL_PARTS.add("public_consensus")
class PublicConsensus(Part):
    """FedMD: sites send what their models find in cases of a public set, and each learns the mean of it.

    In each round a site *digests* the consensus of the round before: it trains on the public cases until its outputs
    (logits) come near the mean of all sites' outputs, Σ p_k f_k(x). Then it *revisits* its own cases by its usual
    local training, and sends its outputs on the public cases of this round. With ``share: none``, as in the method
    fedmd, no weights leave a site, and each site has a model of its own. The first round has no consensus yet.

    p_k are the weights of the sites (``training: {weights: equal}`` is 1/K, as in the paper's experiments). A site that
    gives no outputs in a round is not in the mean of that round. While it digests, normalisation works with the
    statistics that the model has, so that these are of the site's own cases, and nothing is dropped out.

    Source: Li and Wang, FedMD: heterogenous federated learning via model distillation, arXiv 1910.03581, algorithm 1.
    The term, the mean absolute difference of logits, and the new draw of public cases in each round are those of the
    authors' code (FedMD_clean). There sites train on the labels of the public set first; here it has none. As there,
    sites may have networks of their own (``networks:`` in a study file).

    Args:
        weight: of the term, so of the digestion's steps; 0 sends nothing and changes nothing.
        epochs: passes over the round's public cases in a digestion.
        cases: of the public set in a round, drawn anew; None takes all.
        term: ``absolute``, or ``divergence`` of the probabilities (Kullback and Leibler).
    """

    tasks = ("classification", "segmentation", "regression")
    reveals: ClassVar = {
        "logits": "what the site's model finds in each public case: which classes the site knows and how sure it is of "
        "them, and, where a patient of the site is in the public set or near one of its cases, that it trained on "
        "such a case",
        "drawn": "which public cases were drawn: nothing",
        "consensus": "the mean of what all sites' models find; of two sites, each learns the other's",
        "digested": "which public cases the mean is of: nothing",
    }
    means = frozenset({"logits"})
    retells = True
    needs_public = True
    without_weights = True
    same_network = True
    own_networks = True

    def __init__(
        self, *, weight: NonNegativeFloat = 1.0, epochs: PositiveInt = 1,
        cases: Annotated[int, Field(ge=2)] | None = None, term: Literal["absolute", "divergence"] = "absolute",
    ) -> None:  # fmt: skip
        self.weight, self.epochs, self.cases, self.term = weight, epochs, cases, term
        many = cases or "U"
        self.shapes: Mapping[str, Shaped] = {  # type: ignore[misc]
            "logits": Shaped("float32", many, "V", always="train" if weight else ""),
            "drawn": Shaped("int64", many),
            "consensus": Shaped("float32", many, "V"),
            "digested": Shaped("int64", many),
        }

    def at_site(self) -> SiteEnd:
        """Digests, and tells."""
        return _Digesting(self) if self.weight else SiteEnd()

    def at_server(self) -> ServerEnd:
        """Draws, and takes the mean."""
        return _Consensus(self) if self.weight else ServerEnd()


class _Digesting(SiteEnd):
    def __init__(self, part: PublicConsensus) -> None:
        self.part = part

    def begin(self, view: SiteView, received: Memory) -> Memory:
        """Remember what came."""
        self._received = received
        return {}

    def starts_at(self, vector: Tensor, view: SiteView, given: Memory) -> Tensor:
        """Digest."""
        part, public, wanted = self.part, view.public, self._received.get("consensus")
        if wanted is None or public is None:
            return vector
        places = self._received.get("digested", torch.arange(len(public)))
        if len(wanted) != len(places) or int(places.max()) >= len(public):
            raise SiteError("P401", f"Site {view.name} was sent a consensus of other cases than it has.",
                            "Let all sites and the server run the same version of Polyclinic.",
                            site=view.name)  # fmt: skip
        row_of = torch.zeros(len(public), dtype=torch.int64)
        row_of[places] = torch.arange(len(places))

        def term(outputs: Tensor, index: Tensor) -> Tensor:
            target = wanted[row_of[index]].to(outputs.device)
            if part.term == "divergence":
                return part.weight * divergence(view.task, outputs, target)
            return part.weight * (outputs - target.view_as(outputs)).abs().mean()

        order = shuffled(len(places), view.batch_size, view.generator("digest"))
        steps = part.epochs * batches_of(len(places), view.batch_size)
        chosen = (places[index] for index in islice(order, steps))
        return distil(view.model, vector, public, chosen, term, lambda parameters: view.optimizer(parameters).step)

    def end(self, ended: Ended, given: Memory) -> Memory:
        """What the model finds after the round."""
        view = ended.view
        if view.public is None:
            return {}
        return {"logits": outputs_on(view.model, ended.vector, view.public, self._received.get("drawn"))}


class _Consensus(ServerEnd):
    def __init__(self, part: PublicConsensus) -> None:
        self.part, self._known = part, Memory()
        self._total: Tensor | None = None
        self._drawn: Tensor | None = None

    def begin(self, now: Now) -> None:
        """Draw the public cases of the round."""
        super().begin(now)
        self._total, self._weight = None, 0.0
        self._drawn, cases = None, self.part.cases
        if cases is not None:
            order = torch.randperm(self.part.sizes["U"], generator=generator(self.name, now.seed, now.fold, now.number))
            self._drawn = order[:cases].sort().values

    def send(self, site: str) -> Memory:
        """The cases to look at, and the mean of the round before."""
        return self._known | ({} if self._drawn is None else {"drawn": self._drawn})

    def take(self, update: Update) -> Update:
        """Add."""
        logits = self.sent(update)["logits"].double() * update.weight
        self._total = logits if self._total is None else self._total + logits
        self._weight += update.weight
        return update

    def finish(self, step: Step) -> Step:
        """The mean is that of the next round."""
        if self._total is not None:
            self._known = {"consensus": (self._total / self._weight).float()}
            if self._drawn is not None:
                self._known["digested"] = self._drawn
        return step

    def memory(self) -> Memory:
        """The consensus."""
        return dict(self._known)

    def restore(self, memory: Memory) -> None:
        """Take it back."""
        self._known = dict(memory)
