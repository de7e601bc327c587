"""Predicting cases with a model: prepared as its training cases were, a few at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from polyclinic.data.cases import NO_CLASS, SiteData
from polyclinic.data.dataset import Dataset
from polyclinic.data.datasets import dataset_of
from polyclinic.data.preparation import Prepared, Tensors, build_steps
from polyclinic.data.undersampled import UndersampledDataset
from polyclinic.deployment.inputs import BAGS_AT_ONCE, PICTURES_AT_ONCE, VOLUMES_AT_ONCE, Cases, evenly
from polyclinic.errors import ModelError
from polyclinic.notes import Note
from polyclinic.site import evaluation
from polyclinic.site.model_part import PART, ModelPart
from polyclinic.state import FlatModule
from polyclinic.statistics.calibration import recalibrated
from polyclinic.study.final_model.folder import Model
from polyclinic.tasks import Task
from polyclinic.tasks.base import Asked, Batch
from polyclinic.tasks.metrics import class_metric

#: A site's cases are scaled by themselves only with so many, and not by more than so many.
LEAST_REFERENCE, MOST_REFERENCE = 20, 512
_OWN_PART = "Give the part that the site kept when this model was made."


@dataclass
class _Ready:
    """Cases that the network is run on; see `polyclinic.site.evaluation.Predicting`."""

    model: FlatModule
    dataset: Dataset
    task: Task
    batch_size: int


@dataclass(frozen=True)
class SiteModel:
    """A model as it is used at a site.

    Attributes:
        site: name of the site.
        vectors: states of the network whose predictions are averaged ``[P]``.
        steps: what each step of preparation is taken with.
        notes: what a person should know.
    """

    site: str
    vectors: list[Tensor]
    steps: list[Tensors]
    notes: list[Note]


@dataclass(frozen=True)
class Predicted:
    """Predictions of some cases.

    Attributes:
        positions: of the cases.
        columns: of ``predictions.csv``.
        images: on the study's grid: probabilities of segmentation ``[N, C, ...]``, or reconstructions ``[N, ...]`` in
            the units of the prepared images; None for other tasks.
        data: the cases as they were read.
    """

    positions: list[int]
    columns: pd.DataFrame
    images: Tensor | None
    data: SiteData


class Predictor:
    """Predicts with a model.

    Args:
        model: the model.
        parts: folder in which the parts of sites are, each in a folder with the site's name; None takes none.
    """

    def __init__(self, model: Model, parts: Path | None = None) -> None:
        self.model, self.parts = model, parts
        self.description = model.description
        self.task = model.description.built_task
        self._steps = build_steps(model.description.steps)

    def at(self, site: str, cases: Cases, cache: Path, reference: Cases | None = None) -> SiteModel:
        """The model as it is used at a site.

        Args:
            site: its name.
            cases: that are to be predicted there.
            cache: folder for prepared volumes.
            reference: other cases of the site, by which its cases are scaled; None takes those to be predicted.

        Raises:
            ModelError: P702, the model can't be used there.
        """
        part = self._part(site)
        notes = self._lacking(site, part)
        vectors = self._vectors(site, part)
        steps = [dict(one) for one in part.steps] if part is not None else None
        if part is not None and part.depth is not None:
            cases.depths[site] = part.depth
        if steps is None:
            steps, said = self._fitted(site, cases, cache, reference)
            notes += said
        elif reference is not None:
            raise ModelError("P702", f"Site {site} took part in training, and its cases are scaled as they were then.",
                             "Leave out --reference.")  # fmt: skip
        return SiteModel(site, vectors, steps, notes)

    def _lacking(self, site: str, part: ModelPart | None) -> list[Note]:
        """A note, if the site has a part of the model that is not there."""
        known = self.description.sites.get(site)
        if part is not None or known is None or not (known.weights or known.prepares or known.white):
            return []
        text = (
            f"Site {site} took part in training, but its own part of the model ({PART}) was not found: its cases "
            "are predicted like those of a site that took no part."
        )
        return [Note("N901", text)]

    def at_opened(self, data: SiteData, bits: int | None = None) -> SiteModel:
        """The model as it is used on all cases of a site that were opened with their labels, of which none is used.

        Args:
            data: the site's cases.
            bits: how many bits white has in pictures of 16 bits, where the study says it.

        Raises:
            ModelError: P702, the model can't be used there.
        """
        part = self._part(data.site)
        vectors = self._vectors(data.site, part)
        if part is not None:
            white = bits or data.depth
            if white is not None and part.depth not in (None, white):
                text = f"White has {white} bits in these pictures of site {data.site}; in training it had {part.depth}."
                raise ModelError("P702", text, f"Say `bits: {part.depth}`, and evaluate sites of other bits apart.")
            return SiteModel(data.site, vectors, [dict(one) for one in part.steps], [])
        prepared, notes = Prepared(data, torch.arange(len(data))), self._lacking(data.site, part)
        if any(step.needs_cases(prepared) for step in self._steps):
            if len(data) < LEAST_REFERENCE:
                raise _too_few(data.site, len(data))
            notes.append(_scaled_by_itself(data.site, len(data)))
        return SiteModel(data.site, vectors, self._chain(prepared), notes)

    def _part(self, site: str) -> ModelPart | None:
        """What of the model belongs to the site.

        Raises:
            ModelError: P702, there is one of another model or site.
        """
        from polyclinic.engine.local import folder_name

        if self.parts is None:
            return None
        path = self.parts if self.parts.is_file() else self.parts / folder_name(site) / PART
        if not path.is_file():
            return None
        part = ModelPart.read(path)
        for what, found, wanted in (("model", part.model, self.description.number), ("site", part.site, site)):
            if found != wanted:
                raise ModelError("P702", f"{path} belongs to the {what} {found!r}, not to {wanted!r}.",
                                 _OWN_PART)  # fmt: skip
        if len(part.steps) != len(self._steps):
            text = f"{path} has {len(part.steps)} steps of preparation, and the model {len(self._steps)}."
            raise ModelError("P702", text, _OWN_PART)
        return part

    def _vectors(self, site: str, part: ModelPart | None) -> list[Tensor]:
        vectors, home = self.model.vectors, self.description.homes.get(site)
        chosen = vectors if home is None else [vectors[home]]
        if part is None or not part.weights:
            if not self.description.whole:
                raise ModelError(
                    "P702", f"Part of the network stays at each site, and that of site {site} is not there.",
                    "Give its folder with --parts, or make a model with the whole networks of the sites "
                    "(`polyclinic fit --site-models`).",
                )  # fmt: skip
            return chosen
        layout, own = self.model.network.layout, chosen[0].clone()
        views = layout.split(own)
        for name, tensor in part.weights.items():
            if name not in views or views[name].shape != tensor.shape:
                text = f"The part of site {site} has a tensor {name[:80]!r} that the network has not."
                raise ModelError("P702", text, _OWN_PART)
            views[name].copy_(tensor)
        return [own]

    def _fitted(
        self, site: str, cases: Cases, cache: Path, reference: Cases | None
    ) -> tuple[list[Tensors], list[Note]]:  # fmt: skip
        """What the steps of preparation are taken with at a site that took no part; as studies do with a site that is
        left out, no label has a part in it."""
        source = cases if reference is None else reference
        positions = source.of(site) if reference is None else _of_reference(reference, site, len(cases.sites))
        first, _ = cases.read(site, cases.of(site)[:1], cache)
        if first is None:
            first, _ = cases.read(site, evenly(cases.of(site), 8), cache)
        if first is None:
            return [], []
        whole = first if cases.spec.image is not None else cases.read(site, cases.of(site), cache)[0]
        prepared = Prepared(whole or first, torch.empty(0, dtype=torch.int64))
        if not any(step.needs_cases(prepared) for step in self._steps):
            return self._chain(prepared), []
        data, there = source.read(site, evenly(positions, MOST_REFERENCE), cache)
        if data is None or len(there) < LEAST_REFERENCE:
            count = 0 if data is None else len(there)
            raise _too_few(site, count)
        return self._chain(Prepared(data, torch.arange(len(data)))), [_scaled_by_itself(site, len(there))]

    def _chain(self, prepared: Prepared) -> list[Tensors]:
        for step, merged in zip(self._steps, self.model.merged, strict=True):
            prepared = step.apply(prepared, merged)
        return list(prepared.fitted)

    def predict(self, cases: Cases, site: SiteModel, cache: Path, done: int = 0) -> Iterator[Predicted | None]:
        """Predict the cases of a site, a few at a time.

        Args:
            cases: all cases.
            site: the model at the site.
            cache: folder for prepared volumes.
            done: how many of the site's cases were predicted before.

        Yields:
            predictions of some cases; None where none of them could be read.
        """
        positions = cases.of(site.site)
        for start in range(done, len(positions), self.chunk_size(cases)):
            chunk = positions[start : start + self.chunk_size(cases)]
            data, there = cases.read(site.site, chunk, cache)
            yield None if data is None else self._predicted(data, there, site)

    def chunk_size(self, cases: Cases) -> int:
        """How many cases are read at once: all rows of a table, else some batches of the network, so that these are the
        same ones as if all were read."""
        if cases.spec.image is None:
            return max(1, len(cases))
        flat, batch = cases.spec.preprocessing is None, self.description.batch_size
        if cases.spec.bags is not None:
            return BAGS_AT_ONCE
        batch = max(batch, 32) if flat else 1 if self.description.data.planned_patch else batch
        return max(1, (PICTURES_AT_ONCE if flat else VOLUMES_AT_ONCE) // batch) * batch

    def ready(self, data: SiteData, site: SiteModel) -> _Ready:
        """Cases as the network is run on them.

        Raises:
            ModelError: P702, they have another shape than those that it was trained on.
        """
        prepared = Prepared(data, torch.empty(0, dtype=torch.int64))
        for step, fitted in zip(self._steps, site.steps, strict=True):
            prepared = step.take(prepared, fitted)
        if prepared.scaler is None:
            raise ValueError("the chain of preparation has no scaling")
        dataset = dataset_of(
            prepared.data, prepared.scaler, None, self.description.data.planned_patch, prepared.standard
        )
        if dataset.training_shape != tuple(self.description.shape):
            raise ModelError("P702", f"The cases have the shape {list(dataset.training_shape)}, and the model takes "
                             f"{self.description.shape}.", "Give cases like those that it was trained on.")  # fmt: skip
        for change in self.model.shown:
            dataset = dataset.seen_through(change)
        return _Ready(self.model.network, dataset, self.task, self.description.batch_size)

    def _predicted(self, data: SiteData, there: list[int], site: SiteModel) -> Predicted:
        ready = self.ready(data, site)
        index = torch.arange(len(data))
        if self.task.target == "masks":
            found = torch.cat([evaluation.probabilities(ready, site.vectors, one)[0] for one in index.split(1)])
            return Predicted(there, self._names(data, there), found, data)
        if isinstance(ready.dataset, UndersampledDataset):
            return self._reconstructed(ready, ready.dataset, there, site, data)
        ready.dataset.targets = self._no_targets(len(data))
        asked = Asked((), self.description.classes, 0.0, self.description.completion)
        batch = Batch(*evaluation.probabilities(ready, site.vectors, index))
        sent = self.task.rows([batch], self.description.threshold, asked)
        columns = self.task.columns(*sent, self.description.threshold)
        known = {name: value for name, value in columns.items() if name not in self.task.truth}
        return Predicted(there, self._names(data, there).assign(**self._decided(sent[1], known)), None, data)

    def _reconstructed(
        self, ready: _Ready, dataset: UndersampledDataset, there: list[int], site: SiteModel, data: SiteData
    ) -> Predicted:  # fmt: skip
        """Images from part of the k-space that is made of them, and how near they are to the whole ones."""
        index = torch.arange(len(data))
        batch = Batch(*evaluation.probabilities(ready, site.vectors, index))
        sent = self.task.rows([batch], 0.5, Asked(self.task.default_metrics, (), 0.0))
        columns = self._names(data, there).assign(**self.task.columns(*sent, 0.5))
        found = batch.found[:, 0] * dataset.units(index).view(-1, *[1] * (batch.found.ndim - 2))
        return Predicted(there, columns, found, data)

    def _no_targets(self, count: int) -> Tensor:
        """In the place of what is true, which nobody knows."""
        if self.task.target == "times":
            return torch.zeros(count, 2)
        if self.task.target == "findings":
            return torch.full((count, len(self.task.heads)), NO_CLASS, dtype=torch.int64)
        return torch.zeros(count, dtype=torch.int64 if self.task.target == "labels" else torch.float32)

    def _decided(self, tensors: Tensors, columns: dict[str, Any]) -> dict[str, Any]:
        """The columns with what was decided, and recalibrated where the model says so."""
        if self.task.target == "findings":
            found = np.array(self.description.classes)[self.task.decided(tensors, self.description.threshold).numpy()]
            own = zip(self.task.heads, found.T, strict=True)
            return columns | {class_metric("predicted", head.name): decided for head, decided in own}
        if self.task.target != "labels":
            return columns
        fitted, names = self.description.calibration, np.array(self.description.classes)
        decided = self.task.decided(tensors, self.description.threshold).numpy()
        found = {**columns, "predicted": names[decided]}
        if fitted is not None and len(names) == 2:
            found["calibrated"] = recalibrated(columns["score"], fitted.intercept, fitted.slope)
        return found

    @staticmethod
    def _names(data: SiteData, there: list[int]) -> pd.DataFrame:
        names = {"site": [data.site] * len(data), "subject": data.subjects, "case": data.cases}
        return pd.DataFrame(names, dtype=str)


def _of_reference(reference: Cases, site: str, sites: int) -> npt.NDArray[np.intp]:
    """Positions of the cases by which those of a site are scaled.

    Raises:
        ModelError: P702, none of them is of the site, or it is not said whose they are.
    """
    if reference.spec.site is None and sites == 1:
        return reference.usable
    found = reference.of(site)
    if len(found):
        return found
    has = "does not say of which site its cases are"
    if reference.spec.site is not None:
        has = f"has no case of site {site}, but of {', '.join(reference.sites[:5]) or 'none'}"
    raise ModelError("P702", f"The reference {has}.", "Give cases of the same site with --reference.")


def _scaled_by_itself(site: str, cases: int) -> Note:
    text = f"Nothing of the model is of site {site}: its cases are scaled by {cases} of them, without labels."
    return Note("N902", text)


def _too_few(site: str, cases: int) -> ModelError:
    return ModelError(
        "P702", f"Cases of site {site}, which took no part in training, are scaled by themselves, and it has {cases}; "
        f"{LEAST_REFERENCE} are needed.", "Give more cases at once, or others of the same site with --reference.",
    )  # fmt: skip
