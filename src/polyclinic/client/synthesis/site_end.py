"""What sites do for methods that make cases: they tell of their classes, or share masks, and look for copies."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from polyclinic.client.synthesis.generator import AT_ONCE
from polyclinic.client.synthesis.memorisation import least_each, reduced, told, told_of_pairs
from polyclinic.client.synthesis.outlines import Outlines
from polyclinic.errors import SiteError
from polyclinic.parts import Batch, Memory, SiteEnd, SiteView
from polyclinic.parts.site_end import PartOfCases

#: What to do where an answer can't be.
SAME = "Let all sites and the server run the same version of Polyclinic."


class MadeCasesEnd(SiteEnd):
    """What the ends at a site share: they tell their classes, or share masks, and compare made cases with their own.

    Args:
        masks: see `polyclinic.client.synthesis.made_cases.MadeCases`.
    """

    needs_labels = True
    spares_model = True

    def __init__(self, masks: int | None) -> None:
        self.masks = masks
        self._outlines: Outlines | None = None

    def answer(self, verb: str, asked: Memory, view: SiteView) -> Memory:
        """``begin`` a round; share ``masks``; ``check`` whether made cases are copies; ``give`` some to train on."""
        if verb == "begin" and self.masks is None:
            counts = view.class_counts
            return {"cases": torch.zeros(0, dtype=torch.int64) if counts is None else counts.long()}
        if verb == "begin":
            return {}
        if verb == "masks" and self.masks is not None:
            own = self.outlines(view)
            learned = len(own.shared) - own.aside
            return {"masks": own.masks[:learned], "aside": own.masks[learned:]}
        if verb == "give":
            self.given(asked, view)
            return {}
        if verb == "check":
            images, places, _ = self.sent_cases(asked, view)
            return _compare(view, images) if self.masks is None else _pairs(view, self.outlines(view), images, places)
        return super().answer(verb, asked, view)

    def given(self, asked: Memory, view: SiteView) -> None:
        """Take in made cases to train on."""
        raise SiteError("P401", f"Site {view.name} was given made cases, and trains on none.", SAME, site=view.name)

    def outlines(self, view: SiteView) -> Outlines:
        """The site's outlined cases; they are the same in all rounds."""
        if self._outlines is None:
            self._outlines = Outlines.of(view, self.masks or 0)
        return self._outlines

    def sent_cases(self, asked: Memory, view: SiteView) -> tuple[Tensor, Tensor, Tensor]:
        """Made inputs ``[M, ...]`` as a site was sent them, places of what they were made from among the classes or the
        site's own masks ``[M]``, and these classes or masks ``[M, ...]``.

        Raises:
            SiteError: P401, they don't fit the site's own.
        """
        images, places = asked["images"], asked["labels"]
        values = torch.arange(view.task.classes) if self.masks is None else self.outlines(view).masks
        fit = images.shape[1:] == view.input_shape and places.shape == (len(images),) and len(images)
        if not fit or int(places.max()) >= len(values):
            own = f"{list(view.input_shape)}, of {len(values)} {'classes' if self.masks is None else 'masks'}"
            text = f"Site {view.name} was sent made cases {list(images.shape)} with labels {list(places.shape)}; "
            raise SiteError("P401", f"{text}its own are {own}.", SAME, site=view.name)
        return images, places, values[places]

    def real_cases(self, view: SiteView, step: int, count: int) -> tuple[Tensor, Tensor]:
        """Some of the site's own cases for a step, ``count`` at most, and their classes or masks, on the model's
        device."""
        places = torch.arange(view.count()) if self.masks is None else self.outlines(view).learned
        order = torch.randperm(len(places), generator=view.generator("real", step))
        inputs, targets = view.cases(places[order[:count]])
        return inputs.to(view.model.vector.device), targets.to(view.model.vector.device)


class BesideOwn(MadeCasesEnd):
    """What the ends at a site do besides where sites train on made cases: each batch gets some of them.

    Args:
        masks: as above.
    """

    spares_model = False
    _beside: tuple[Tensor, Tensor] | None = None

    def given(self, asked: Memory, view: SiteView) -> None:
        """Keep them for the training of this round."""
        images, _, values = self.sent_cases(asked, view)
        self._beside = images, values

    def begin(self, view: SiteView, received: Memory) -> Memory:
        """The made cases, and how many of them there are for each case of the site.

        Raises:
            SiteError: P401, none were given.
        """
        if self._beside is None:
            text = f"Site {view.name} was asked to train before it was given made cases."
            raise SiteError("P401", text, SAME, site=view.name)
        (images, values), self._beside = self._beside, None
        return {"images": images, "values": values, "each": torch.tensor(len(images) / view.count())}

    def batch(self, batch: Batch, given: Memory) -> Batch:
        """The batch with some of them at its end."""
        images, values = given["images"], given["values"]
        count = math.ceil(len(batch.targets) * float(given["each"]) - 1e-6)
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(batch.seed))
        places = order[:count].to(images.device)
        inputs = torch.cat([batch.inputs, images[places].to(batch.inputs.dtype)])
        return replace(batch, inputs=inputs, targets=torch.cat([batch.targets, values[places].to(batch.targets.dtype)]))


def _compare(view: SiteView, made: Tensor) -> Memory:
    """Of each patient held out one case is compared: others of the same patient are nearer than others are."""
    people, first = view.people("validation").tolist(), dict[int, int]()
    for place, person in enumerate(people):
        first.setdefault(person, place)
    held = _rows(view, torch.tensor(list(first.values()), dtype=torch.int64), "validation")
    return told(reduced(made), _rows(view, torch.arange(view.count()), "train"), held)


def _pairs(view: SiteView, own: Outlines, made: Tensor, places: Tensor) -> Memory:
    """What is made from a mask is compared with the very image that was outlined; the nearest of each mask counts."""
    apart = (reduced(made) - _rows(view, own.shared, "train")[places]).norm(dim=1)
    apart, learned = least_each(apart, places, len(own.shared)), len(own.shared) - own.aside
    counts = own.compared & apart.isfinite()
    return told_of_pairs(apart[:learned][counts[:learned]], apart[learned:][counts[learned:]])


def _rows(view: SiteView, index: Tensor, part: PartOfCases) -> Tensor:
    """Some of the site's own cases as they are compared, a few at a time."""
    return torch.cat([reduced(view.cases(some, part)[0]) for some in index.split(AT_ONCE)])
