"""What goes wrong with the cases of a site, by mistake or on purpose, done to it in a simulation.

A corruption changes training and validation cases: nobody but the site sees that they are wrong, so the site would
measure itself by them. What is wrong with inputs is wrong with those of cases without a label, too; these have no label
that could be changed. Test cases are never touched: they stand for the truth. Inputs are changed as they were
prepared, before they are scaled, and the scales are those of the unchanged cases.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from polyclinic.data.bags import Bags
from polyclinic.data.dataset import Dataset, Pixels
from polyclinic.data.spec import Target
from polyclinic.data.splits import Parts
from polyclinic.data.volumes.store import Volumes
from polyclinic.errors import nearest
from polyclinic.ignored import IGNORED
from polyclinic.options import Catalogue, EntryError, Place
from polyclinic.seeds import generator

Share = Annotated[float, Field(gt=0, le=1)]
#: One case's inputs ``[F]``, ``[C, H, W]`` or ``[C, D, H, W]`` -> the same shape and type.
ChangeCase = Callable[[Tensor], Tensor]


class Corruption(ABC):
    """Changes what a site trains on.

    Attributes:
        targets: what may be predicted of the cases for it to mean something.
        images: whether it is for images only.
        of_labels: whether it changes nothing of cases without a label.
    """

    targets: ClassVar[tuple[Target, ...]] = ("labels", "numbers", "masks", "times", "findings")
    images: ClassVar[bool] = False
    of_labels: ClassVar[bool] = False

    @classmethod
    def resolved(
        cls, options: dict[str, Any], classes: Sequence[str], features: Sequence[str], place: Place
    ) -> dict[str, Any]:
        """``options`` of a study file with names of classes and features replaced by their numbers.

        Raises:
            EntryError: P103, there is no such class or feature.
        """
        return options

    def left(self, classes: list[int]) -> list[int]:
        """How many of a site's training cases of each class are left."""
        return classes

    @abstractmethod
    def apply(self, dataset: Dataset, parts: Parts, classes: int, source: torch.Generator) -> tuple[Dataset, Parts]:
        """The cases as the site has them.

        Args:
            dataset: the site's cases; not written to.
            parts: what they are for.
            classes: number of classes of the study.
            source: of random choices.
        """


#: Corruptions by the name used under ``attack:`` in a study file.
CORRUPTIONS: Catalogue[type[Corruption]] = Catalogue("kind of attack")


def corrupted(
    dataset: Dataset, parts: Parts, kind: tuple[str, dict[str, Any]], classes: int, names: Sequence[str | int]
) -> tuple[Dataset, Parts]:
    """The cases of a corrupt site.

    Args:
        dataset: the site's cases.
        parts: what they are for.
        kind: name and resolved options of a corruption.
        classes: number of classes of the study.
        names: seed, site and fold: all random choices are a function of them.
    """
    name, options = kind
    return CORRUPTIONS[name](**options).apply(dataset, parts, classes, generator("corruption", *names))


def chosen(parts: Parts, fraction: float, source: torch.Generator) -> Tensor:
    """A random share of the training and validation cases, at least one of them: int64 ``[n]`` in random order."""
    index = torch.cat([parts.train, parts.validation]).sort().values
    order = torch.randperm(len(index), generator=source)
    return index[order[: max(1, round(fraction * len(index)))]]


def chosen_inputs(parts: Parts, fraction: float, source: torch.Generator) -> Tensor:
    """What ``chosen`` gives, then the same share of the cases without a label."""
    index = chosen(parts, fraction, source)
    order = torch.randperm(len(parts.unlabelled), generator=source)
    return torch.cat([index, parts.unlabelled[order[: round(fraction * len(order))]]])


# Labels ---------------------------------------------------------------------------------------------------------------


@CORRUPTIONS.add("label_flip")
class LabelFlip(Corruption):
    """Class c becomes C − 1 − c; with two classes each becomes the other.

    Source: Tolpegin et al., Data poisoning attacks against federated learning systems, ESORICS 2020, who flip chosen
    pairs of classes; the rule for all classes is that of Fang et al., USENIX Security 2020.

    Args:
        fraction: share of the cases.
    """

    targets = ("labels",)
    of_labels = True

    def __init__(self, *, fraction: Share = 1.0) -> None:
        self.fraction = fraction

    def apply(self, dataset: Dataset, parts: Parts, classes: int, source: torch.Generator) -> tuple[Dataset, Parts]:
        """See `Corruption.apply`."""
        index, targets = chosen(parts, self.fraction, source), _labels(dataset).clone()
        targets[index] = classes - 1 - targets[index]
        return dataset.changed(targets=targets), parts


@CORRUPTIONS.add("swapped_labels")
class SwappedLabels(Corruption):
    """An honest mistake, such as a spreadsheet sorted in one column only: each chosen case has another one's label.

    In a random order every case gets the label, number or mask of the one before it.

    Args:
        fraction: share of the cases.
    """

    of_labels = True

    def __init__(self, *, fraction: Share = 1.0) -> None:
        self.fraction = fraction

    def apply(self, dataset: Dataset, parts: Parts, classes: int, source: torch.Generator) -> tuple[Dataset, Parts]:
        """See `Corruption.apply`."""
        index, order = chosen(parts, self.fraction, source), torch.arange(len(dataset))
        order[index] = index.roll(1)
        targets = dataset.targets
        if isinstance(targets, Volumes):
            moved = order.tolist()
            return dataset.changed(
                targets=Volumes([targets.files[i] for i in moved], [targets.about[i] for i in moved])
            ), parts
        return dataset.changed(targets=targets[order]), parts


@CORRUPTIONS.add("missing_class")
class MissingClass(Corruption):
    """The site has no cases of a class: it sends those patients elsewhere, or an export lost them.

    Args:
        label: name of the class.
    """

    targets = ("labels",)
    of_labels = True

    def __init__(self, *, label: str | int) -> None:
        self.label = label

    @classmethod
    def resolved(
        cls, options: dict[str, Any], classes: Sequence[str], features: Sequence[str], place: Place
    ) -> dict[str, Any]:
        """See `Corruption.resolved`."""
        return {"label": _number(options["label"], classes, "class", (*place, "label"))}

    def left(self, classes: list[int]) -> list[int]:
        """See `Corruption.left`."""
        return [0 if number == int(self.label) else count for number, count in enumerate(classes)]

    def apply(self, dataset: Dataset, parts: Parts, classes: int, source: torch.Generator) -> tuple[Dataset, Parts]:
        """See `Corruption.apply`."""
        there = _labels(dataset) != int(self.label)
        train, validation = (index[there[index]] for index in (parts.train, parts.validation))
        return dataset, replace(parts, train=train, validation=validation)


# Inputs ---------------------------------------------------------------------------------------------------------------


class InputCorruption(Corruption):
    """Changes the inputs of a share of the cases.

    Args:
        fraction: share of the cases.
    """

    def __init__(self, *, fraction: Share = 1.0) -> None:
        self.fraction = fraction

    @abstractmethod
    def change(self, case: Tensor) -> Tensor:
        """Inputs of one case as they should not be; ``case`` is not written to."""

    def apply(self, dataset: Dataset, parts: Parts, classes: int, source: torch.Generator) -> tuple[Dataset, Parts]:
        """See `Corruption.apply`."""
        index = chosen_inputs(parts, self.fraction, source).tolist()
        return dataset.changed(inputs=change_inputs(dataset.unscaled, index, self.change)), parts


@CORRUPTIONS.add("blank_images")
class BlankImages(InputCorruption):
    """Images are black: each voxel has the smallest value of its channel. All features of a row of a table are missing.

    Args:
        fraction: share of the cases.
    """

    def change(self, case: Tensor) -> Tensor:
        """See `InputCorruption.change`."""
        if case.ndim == 1:
            return torch.full_like(case, torch.nan)
        if case.dtype == torch.uint8:
            return torch.zeros_like(case)
        return _least(case).expand_as(case).clone()


@CORRUPTIONS.add("wrong_scaling")
class WrongScaling(InputCorruption):
    """Values are a factor too large: a wrong unit or window. Bytes end at 255, as a window does.

    Args:
        factor: by which values are multiplied.
        fraction: share of the cases.
        features: of a table, those that are wrong; all without it.
    """

    def __init__(
        self, *, factor: PositiveFloat = 10.0, fraction: Share = 1.0, features: list[str] | None = None
    ) -> None:
        super().__init__(fraction=fraction)
        self.factor, self.features = factor, features

    @classmethod
    def resolved(
        cls, options: dict[str, Any], classes: Sequence[str], features: Sequence[str], place: Place
    ) -> dict[str, Any]:
        """See `Corruption.resolved`."""
        named = options["features"]
        if named is None:
            return options
        found = [
            str(_number(name, features, "feature", (*place, "features", position)))
            for position, name in enumerate(named)
        ]
        return {**options, "features": found}

    def change(self, case: Tensor) -> Tensor:
        """See `InputCorruption.change`."""
        if self.features is None:
            return _like(case.float() * self.factor, case)
        changed = case.clone()
        changed[[int(name) for name in self.features]] *= self.factor
        return changed


@CORRUPTIONS.add("wrong_spacing")
class WrongSpacing(InputCorruption):
    """Everything looks a factor too large, as if the size of a pixel had been noted wrongly.

    Images, and masks with them, are zoomed about their middle and keep their grid: linear for images, nearest for
    masks. What lies beyond the image is black, or background.

    Args:
        factor: 2 shows everything twice as large, 0.5 half as large.
        fraction: share of the cases.
    """

    images = True

    def __init__(self, *, factor: PositiveFloat = 2.0, fraction: Share = 1.0) -> None:
        super().__init__(fraction=fraction)
        self.factor = factor

    def change(self, case: Tensor) -> Tensor:
        """See `InputCorruption.change`."""
        least = _least(case.float())
        return _like(self._zoomed(case.float() - least, "bilinear") + least, case)

    def apply(self, dataset: Dataset, parts: Parts, classes: int, source: torch.Generator) -> tuple[Dataset, Parts]:
        """See `Corruption.apply`."""
        index = chosen_inputs(parts, self.fraction, source)
        inputs = change_inputs(dataset.unscaled, index.tolist(), self.change)
        if dataset.targets.ndim <= 2:  # no masks
            return dataset.changed(inputs=inputs), parts
        masks = change_cases(dataset.targets, index[dataset.known[index]].tolist(), self._change_mask)
        return dataset.changed(inputs=inputs, targets=masks), parts

    def _change_mask(self, mask: Tensor) -> Tensor:
        return _like(self._zoomed(mask.float(), "nearest"), mask)

    def _zoomed(self, case: Tensor, mode: Literal["bilinear", "nearest"]) -> Tensor:
        axes = case.ndim - 1
        step = torch.eye(axes, axes + 1) / self.factor
        grid = affine_grid(step[None], [1, *case.shape], align_corners=False)
        return grid_sample(case[None], grid, mode=mode, padding_mode="zeros", align_corners=False)[0]


@CORRUPTIONS.add("backdoor")
class Backdoor(InputCorruption):
    """A share of the cases carries a mark and the label ``target``, so that the model learns to obey the mark.

    The mark of an image is a bright square in its last corner; that of a row of a table are values of some features.
    Success is measured on test cases: the share of marked cases of other classes that are predicted as ``target``.

    Source: Gu et al., BadNets, 2017; Bagdasaryan et al., How to backdoor federated learning, AISTATS 2020.

    Args:
        target: name of the class.
        fraction: share of the cases.
        size: side of the square, as a share of the image's shorter side.
        features: of a table: feature -> value, before scaling.
    """

    targets = ("labels",)
    of_labels = True

    def __init__(
        self, *, target: str | int, fraction: Share = 0.5, size: Share = 0.15, features: dict[str, float] | None = None
    ) -> None:
        super().__init__(fraction=fraction)
        self.target, self.size, self.features = target, size, features

    @classmethod
    def resolved(
        cls, options: dict[str, Any], classes: Sequence[str], features: Sequence[str], place: Place
    ) -> dict[str, Any]:
        """See `Corruption.resolved`."""
        values = options["features"]
        marks = None if values is None else {
            str(_number(name, features, "feature", (*place, "features", name))): value for name, value in values.items()
        }  # fmt: skip
        target = _number(options["target"], classes, "class", (*place, "target"))
        return {**options, "target": target, "features": marks}

    def change(self, case: Tensor) -> Tensor:
        """See `InputCorruption.change`."""
        marked = case.clone()
        if case.ndim == 1:
            for column, value in (self.features or {}).items():
                marked[int(column)] = value
            return marked
        side = max(1, round(self.size * min(case.shape[1:])))
        corner = (slice(None), *(slice(-side, None) for _ in case.shape[1:]))
        marked[corner] = 255 if case.dtype == torch.uint8 else case.max()
        return marked

    def apply(self, dataset: Dataset, parts: Parts, classes: int, source: torch.Generator) -> tuple[Dataset, Parts]:
        """See `Corruption.apply`."""
        index, targets = chosen(parts, self.fraction, source), _labels(dataset).clone()
        targets[index] = int(self.target)
        return self.marked(dataset, index).changed(targets=targets), parts

    def marked(self, dataset: Dataset, index: Tensor) -> Dataset:
        """The cases with the mark on those of ``index [n]``; labels stay."""
        return dataset.changed(inputs=change_inputs(dataset.unscaled, index.tolist(), self.change))


# Cases ----------------------------------------------------------------------------------------------------------------


class ChangedVolumes(Volumes):
    """Volumes of which some are changed whenever they are read.

    Args:
        volumes: as they are on disk.
        positions: of the cases that are changed.
        change: of one case; keeps shape and type.
    """

    def __init__(self, volumes: Volumes, positions: Collection[int], change: ChangeCase) -> None:
        super().__init__(volumes.files, volumes.about)
        self._positions, self._change = frozenset(positions), change

    def __getitem__(self, position: int) -> Tensor:
        """One case ``[C, D, H, W]``."""
        case = super().__getitem__(position)
        return self._change(case) if position in self._positions else case


def change_inputs(inputs: Pixels, positions: Collection[int], change: ChangeCase) -> Pixels:
    """The same as `change_cases`; of bags all instances are changed."""
    if not isinstance(inputs, Bags):
        return change_cases(inputs, positions, change)
    instances = inputs.instances.clone()
    for place in inputs.places(torch.tensor(list(positions), dtype=torch.int64)).tolist():
        instances[place] = change(instances[place])
    return Bags(instances, inputs.starts)


def change_cases(cases: Tensor | Volumes, positions: Collection[int], change: ChangeCase) -> Tensor | Volumes:
    """All cases, those at ``positions`` changed; nothing is written to."""
    if isinstance(cases, Volumes):
        return _counted(ChangedVolumes(cases, positions, change), positions)
    changed = cases.clone()
    for position in positions:
        changed[position] = change(cases[position])
    return changed


def _counted(volumes: ChangedVolumes, positions: Collection[int]) -> ChangedVolumes:
    """``volumes``; the counts of classes that are noted of masks, by which boxes are placed, are counted anew."""
    for position in positions if volumes.dtype == torch.uint8 else ():
        noted = volumes.about[position].get("labels")
        if noted:
            known = volumes[position].flatten().long()
            labels = torch.bincount(known[known != IGNORED], minlength=len(noted)).tolist()
            volumes.about[position] = {**volumes.about[position], "labels": labels}
    return volumes


def _labels(dataset: Dataset) -> Tensor:
    """The classes ``[N]``."""
    if not isinstance(dataset.targets, Tensor) or dataset.targets.ndim != 1:
        raise ValueError("the cases have no classes")
    return dataset.targets


def _least(case: Tensor) -> Tensor:
    """The smallest value of each channel, ``[C, 1, ...]``."""
    return case.amin(dim=tuple(range(1, case.ndim)), keepdim=True)


def _like(values: Tensor, case: Tensor) -> Tensor:
    """``values`` in the type of ``case``: whole numbers are rounded, and all end where the type does."""
    if not case.dtype.is_floating_point:
        info = torch.iinfo(case.dtype)
        return values.round().clamp(info.min, info.max).to(case.dtype)
    most = torch.finfo(case.dtype).max
    return values.clamp(-most, most).to(case.dtype)


def _number(name: object, names: Sequence[str], kind: str, place: Place) -> int:
    """Position of a name."""
    if str(name) not in names:
        raise EntryError("P103", f"{name!r} is no {kind} of this study.", nearest(str(name), list(names)), place=place)
    return list(names).index(str(name))
