"""From a site's cases to what it trains on: a split, and a chain of steps, of which some need all sites."""

from __future__ import annotations

import torch
from torch import Tensor

from polyclinic.data.augmentation import Augmentation
from polyclinic.data.bags import Bags
from polyclinic.data.cases import SiteData
from polyclinic.data.dataset import Dataset
from polyclinic.data.datasets import dataset_of
from polyclinic.data.preparation import Prepared, SharedStep, build_steps
from polyclinic.data.public_set import prepare_public
from polyclinic.data.scaling import summarise
from polyclinic.data.splits import split, voting
from polyclinic.data.statistics import LEAST_CASES, sketch, withhold
from polyclinic.site.messages import Prepare

Tensors = dict[str, Tensor]


class Preparing:
    """The preparation of a site's cases for one fold.

    Args:
        data: the site's cases.
        ask: what was asked.

    Attributes:
        parts: the split.
        prepared: the cases as the steps so far left them.
        hides: whether summaries of the site leave it in sums alone.
        asked: the message, as text.
    """

    def __init__(self, data: SiteData, ask: Prepare) -> None:
        self.data, self._ask, self.hides, self.asked = data, ask, ask.hides, ask.model_dump_json()
        self.parts = split(
            data, folds=ask.folds, fold=ask.fold, validation=ask.validation, seed=ask.split_seed,
            small_sites=ask.small_sites, holdout=ask.holdout, final=ask.final, labels=ask.labels,
        )  # fmt: skip
        fitted = self.parts.trained_on
        if data.site in ask.voters:  # a final model of which all is known before looks at no validation cases
            self.parts = voting(self.parts, votes=not ask.final or ask.validation > 0)
        self._steps, self._merged = build_steps(ask.steps), list[Tensors]()
        self.prepared = Prepared(data, fitted)
        self._advance()

    @property
    def waiting(self) -> SharedStep | None:
        """The step that comes next and needs all sites; None at the end of the chain."""
        return self._steps[0] if self._steps and isinstance(self._steps[0], SharedStep) else None

    def _advance(self) -> None:
        """Apply steps that need no other site."""
        while self._steps and self.waiting is None:
            self.prepared = self._steps.pop(0).apply(self.prepared, {})
            self._merged.append({})

    def share(self, told: Tensors) -> Tensors:
        """Summaries of the training cases for the step that waits, which are about what all were ``told``."""
        step = self._next
        if not self.hides:
            return step.share(self.prepared)
        return step.sums_about(self.prepared, told) if told else step.sums(self.prepared)

    def apply(self, merged: Tensors) -> None:
        """Apply the step that waits with what all sites' summaries gave, and go on."""
        self.prepared = self._next.apply(self.prepared, merged)
        self._merged.append(merged)
        self._steps.pop(0)
        self._advance()

    @property
    def _next(self) -> SharedStep:
        step = self.waiting
        if step is None:
            raise ValueError("no step waits for other sites")
        return step

    def dataset(self) -> Dataset:
        """What is trained on, at the end of the chain."""
        ask, done = self._ask, self.prepared
        size = tuple(self.data.inputs.shape[2:]) if ask.patch is None else ask.patch.size
        augmentation = Augmentation(ask.augmentation, size) if ask.augmentation else None
        if done.scaler is None:
            raise ValueError("the chain of preparation has no scaling")
        found = dataset_of(done.data, done.scaler, augmentation, ask.patch, done.standard, ask.most)
        if len(self.parts.hidden):
            found = found.without_labels(self.parts.hidden, ask.labels.leaves if ask.labels else None)
        partial = ask.partial.get(self.data.site, [])
        return found.without_structures(partial) if partial else found

    def public(self) -> Dataset | None:
        """The public set, prepared as the cases are; None without one."""
        return None if self.data.public is None else prepare_public(self.data.public, self._ask.steps, self._merged)


class Harmonised:
    """The features of test cases after harmonisation, so that after all folds every case is there as it was when
    unknown.

    Args:
        data: the site's cases.
    """

    def __init__(self, data: SiteData) -> None:
        self.data = data
        self._values: Tensor | None = None

    @property
    def any(self) -> bool:
        """Whether anything was harmonised."""
        return self._values is not None

    def remember(self, inputs: object, test: Tensor) -> None:
        """Keep the test part of a fold, at ``test [n]``, as it is tested."""
        if inputs is self.data.inputs or not isinstance(inputs, Tensor | Bags):
            return
        values = inputs.instances if isinstance(inputs, Bags) else inputs
        places = inputs.places(test) if isinstance(inputs, Bags) else test
        if self._values is None:
            self._values = torch.full_like(values, torch.nan)
        self._values[places] = values[places]

    def described(self, edges: Tensors) -> Tensors:
        """Summaries of the features before and after, or sketches of them over the grids ``edges``.

        They are of all cases that were a test case in a fold; nothing is said of features with few values.
        """
        if self._values is None:
            raise ValueError("nothing was harmonised")
        tested = (~self._values.isnan()).any(dim=1).nonzero().flatten()
        inputs = self.data.inputs
        if isinstance(inputs, Bags) and len(self.data) < LEAST_CASES:  # a few bags can have many instances
            tested = tested[:0]
        before = inputs.instances if isinstance(inputs, Bags) else self.data.table
        answer: Tensors = {}
        for stage, values in (("before", before), ("after", self._values)):
            grid = edges.get(stage)
            if grid is None:
                found = withhold(summarise(values, tested)).to_tensors()
            else:
                found = sketch(values, tested, grid).to_tensors()
            answer |= {f"{stage}/{name}": tensor for name, tensor in found.items()}
        return answer
