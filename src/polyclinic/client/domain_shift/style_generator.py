"""Images of all sites in one style by a light generator that the sites learn together before the training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Annotated, ClassVar

import torch
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from polyclinic.client.domain_shift.curves import CurveGenerator, looks_of, places
from polyclinic.client.domain_shift.spectra import trained_on_boxes
from polyclinic.client.telling import Telling, Told
from polyclinic.errors import PolyclinicError, SiteError, StudyError
from polyclinic.parts import LOCAL_PARTS, Memory, Now, Part, ServerEnd, SiteEnd, SiteView
from polyclinic.seeds import generator
from polyclinic.shapes import Shaped
from polyclinic.state import FlatModule

#: Images looked at together.
_AT_ONCE = 32
#: Pixels of each of the images that the generator is trained on.
_PIXELS = 128
#: Quantiles that say how bright pixels are.
_QUANTILES = 64
#: Directions between the channels in which pixels are compared, for each channel.
_BETWEEN = 4


@LOCAL_PARTS.add("style_curves")
class StyleCurves(Part):
    """Style transfer by a light generator: it brings any image to one style, and changes how bright things are alone.

    x ← M + S G((x − M) / S) for each channel, with M and S the mean and deviation of images over all sites, and the
    generator of `polyclinic.client.domain_shift.curves.CurveGenerator`, which sees an image and not whose it is. It is
    the last step before the network, after scaling and augmentation, at every site, in validation and tests, too, also
    at sites that did not train.

    Before the first round sites learn it together. In each of ``style_rounds`` exchanges every site answers with a
    gradient on pixels of some of its training images, and the server makes a step of Adam down their mean by the sites'
    weights. The term of site k is Σ_d Σ_i (⟨d, G(z)⟩_(i) − g_d(i))² / (D N): along each of D directions d among the
    channels the i-th darkest of its N pixels shall be as bright as the i-th of as many in the common style. That g_d is
    the mean of the sites' quantile functions, by their weights, or is that of the site ``target``. So the pixels of all
    images of a site together are brought to the common distribution, and not those of each image: what makes images of
    a site differ stays. Steps at the sites between exchanges would let each pull the curves to what it needs alone.

    Source: a generator that brings the images of all sites to one style while none leaves its site: Ke, Shen, Lu, Style
    normalization in histology with federated learning, ISBI 2021, and Yan et al., Variation-aware federated learning
    with multi-source decentralized medical image data, IEEE JBHI 2021, both by their abstracts, since their texts were
    not at hand. There generators make images by convolutions, and discriminators or made images of a target site say
    what its style is. Here nothing is made, and the term is a sliced Wasserstein distance (Rabin et al., Wasserstein
    barycenter and its application to texture mixing, SSVM 2011) in the place of discriminators: it needs no images of
    another site nor a game that may not end, and a generator that can't draw can't put in what is not there, of which
    Cohen et al., Distribution matching losses can hallucinate features in medical image translation, MICCAI 2018, warn.

    Args:
        style_rounds: exchanges before the rounds of the study; 0 changes nothing.
        target: the site whose style all images get; None for the mean of all.
        lr: of Adam.
        cases: how many of its training images a site looks at, at most.
    """

    reveals: ClassVar = {
        "mean": "the mean of each channel over some of the site's training images, and then of all sites'",
        "deviation": "the mean deviation of each channel within these images, likewise",
        "quantiles": "how bright the pixels of the site's images are, by quantiles of each channel and of mixtures of "
                     "them: of a single image nearly its histogram",
        "goal": "the mean of these quantiles over the sites, or those of the target site",
        "low": "the darkest of these quantiles at any site, in each channel",
        "high": "the brightest, likewise",
        "curves": "the weights of the common generator: how styles of the sites differ from the common one",
        "gradient": "of the site's term for these weights: how its style differs from the common one",
    }  # fmt: skip
    images_only = True
    no_bags = True
    sees_unchanged = True

    def __init__(
        self, *, style_rounds: NonNegativeInt = 100, target: Annotated[str, Field(min_length=1)] | None = None,
        lr: PositiveFloat = 0.01, cases: PositiveInt = 128,
    ) -> None:  # fmt: skip
        self.style_rounds, self.target, self.lr, self.cases = style_rounds, target, lr, cases
        if not style_rounds:
            self.reveals = {}  # type: ignore[misc]

    def shapes_for(self, model: FlatModule) -> Mapping[str, Shaped]:
        """Of images with so many channels."""
        return _shapes(model.shape[0]) if self.style_rounds else {}

    def shown(self, needed: Memory, shape: Sequence[int]) -> Callable[[Tensor], Tensor]:
        """M + S G((x − M) / S)."""
        nothing = torch.empty(0)
        told = {name: needed.get(name, nothing) for name in _TOLD}
        for name, tensor in told.items():
            _shapes(shape[0])[name].check(tensor, {})
        return partial(generated, **told)

    def at_site(self) -> SiteEnd:
        """Trains and runs the generator."""
        return _Generating(self) if self.style_rounds else SiteEnd()

    def at_server(self) -> ServerEnd:
        """Averages the generators."""
        return _Averaging(self) if self.style_rounds else ServerEnd()


#: What an image is changed by.
_TOLD = ("curves", "mean", "deviation", "low", "high")


def _shapes(channels: int) -> dict[str, Shaped]:
    size, looked = CurveGenerator(channels).size, (_QUANTILES, directions(channels).shape[1])
    return {
        "mean": Shaped("float32", channels, always="start"),
        "deviation": Shaped("float32", channels, least=0, always="start"),
        "quantiles": Shaped("float32", *looked),
        "goal": Shaped("float32", *looked),
        "low": Shaped("float32", channels),
        "high": Shaped("float32", channels),
        "curves": Shaped("float32", size),
        "gradient": Shaped("float32", size),
    }


class _Generating(Told):
    looks = "style generators"

    def __init__(self, part: StyleCurves) -> None:
        self.part = part

    def meet(self, view: SiteView) -> Memory:
        """Look at some images, and tell their mean and deviation ``[C]``."""
        if trained_on_boxes(view):
            raise StudyError("P104", f"{self.name} is about the style of whole images, and the network is trained on "
                             "boxes of volumes.", f"Leave {self.name} out, or train on whole volumes (no `patch`).",
                             )  # fmt: skip
        self.site = view.name
        part = "train" if view.count() else "unlabelled"
        chosen = torch.randperm(view.count(part), generator=view.generator("styles"))[: self.part.cases]
        found = [view.cases(index, part)[0].float().flatten(2) for index in chosen.split(_AT_ONCE)]
        #: Values of the images at the places ``[n, C, N]``.
        self._values = torch.cat([values[..., places(values.shape[2])] for values in found])
        #: What was answered, since a site that trains several models is asked the same for each.
        self._answered: list[tuple[Tensor, Tensor]] = []
        deviation = self._values.std(2, correction=0)
        return {"mean": self._values.mean(2).mean(0), "deviation": deviation.mean(0)}

    def answer(self, verb: str, asked: Memory, view: SiteView) -> Memory:
        """``look``: how bright pixels are; ``learn``: the gradient of the term; ``tell``."""
        if verb == "look" and asked.keys() >= {"mean", "deviation"}:
            return {"quantiles": quantiles(_seen(self._scaled(asked)))}
        if verb == "learn" and asked.keys() >= {*_TOLD, "goal"}:
            return {"gradient": self._slope(asked)}
        return super().answer(verb, asked, view)

    def _scaled(self, asked: Memory) -> Tensor:
        return (self._values - asked["mean"][:, None]) / asked["deviation"][:, None]

    def _slope(self, asked: Memory) -> Tensor:
        """Of the term for the weights ``[W]``."""
        known = next((slope for weights, slope in self._answered if torch.equal(weights, asked["curves"])), None)
        if known is not None:
            return known
        values = self._scaled(asked)
        looks, pixels = looks_of(values), values[..., :_PIXELS]
        goal, weights = spread(asked["goal"], pixels[:, 0].numel()), asked["curves"].clone().requires_grad_()
        with torch.enable_grad():
            change = CurveGenerator(values.shape[1]).change(weights, pixels, looks, asked["low"], asked["high"])
            term = (_seen(pixels + change).sort(stable=True, dim=0).values - goal).square().mean()
            (slope,) = torch.autograd.grad(term, weights)
        self._answered.append((asked["curves"].clone(), slope))
        return slope

    def images(self, images: Tensor) -> Tensor:
        """M + S G((x − M) / S)."""
        return generated(images, **self.told)


class _Averaging(Telling):
    leaves_out = frozenset({"look", "learn"})

    def __init__(self, part: StyleCurves) -> None:
        self.part, self.named = part, () if part.target is None else (part.target,)
        self._learned: Memory = {}

    def meet(self, announced: Mapping[str, Memory], everyone: Mapping[str, float]) -> None:
        """M and S, of which no channel has 0."""
        self._everyone = everyone
        mean, deviation = (
            self._mean({site: told[name] for site, told in announced.items()}) for name in ("mean", "deviation")
        )
        self._scale = {"mean": mean, "deviation": torch.where(deviation > 0, deviation, 1.0)}

    def begin(self, now: Now) -> None:
        """The first time sites learn the generator."""
        super().begin(now)
        if not self._learned:
            self._learned = self._learn()
            self._tell()

    def _learn(self) -> Memory:
        """What an image is changed by."""
        channels = len(self._scale["mean"])
        found = dict(self._answers("look", self._scale, "quantiles"))
        if self.part.target is not None and self.part.target not in found:
            raise SiteError("P402", f"{self.name} is to give all images the style of {self.part.target}, which takes "
                            "no part in this training.", "Let that site take part, or leave `target` out.",
                            site=self.part.target)  # fmt: skip
        looked = torch.stack(list(found.values()))[..., :channels]
        told = {
            **self._scale, "low": looked[:, 0].amin(0), "high": looked[:, -1].amax(0),
            "goal": self._mean(found) if self.part.target is None else found[self.part.target],
        }  # fmt: skip
        weights = torch.nn.Parameter(CurveGenerator(channels).initial())
        optimizer = torch.optim.Adam([weights], lr=self.part.lr)
        for _ in range(self.part.style_rounds):
            asked = {**told, "curves": weights.detach().clone()}
            weights.grad = self._mean(dict(self._answers("learn", asked, "gradient")))
            optimizer.step()
        told["curves"] = weights.detach()
        return {name: told[name] for name in _TOLD}

    def _answers(self, verb: str, asked: Memory, name: str) -> Iterator[tuple[str, Tensor]]:
        """What each site that answered says of ``name``."""
        for site, answer in self.ask(verb, dict.fromkeys(self._everyone, asked)):
            if isinstance(answer, PolyclinicError):
                continue
            if name not in answer:
                raise SiteError("P401", f"The answer of site {site} to '{self.name}/{verb}' has no {name}.",
                                "Let all sites and the server run the same version of Polyclinic.",
                                site=site)  # fmt: skip
            yield site, answer[name]

    def _mean(self, found: Mapping[str, Tensor]) -> Tensor:
        """By the sites' weights."""
        shares = torch.tensor([self._everyone[site] for site in found], dtype=torch.float64)
        return torch.tensordot(shares / shares.sum(), torch.stack(list(found.values())).double(), 1).float()

    def _tell(self) -> None:
        self.tell(dict.fromkeys((*self._everyone, *self.others), self._learned))

    def needed(self) -> Memory:
        """The generator, and what images are scaled by."""
        return self._learned

    def memory(self) -> Memory:
        """The same."""
        return dict(self._learned)

    def restore(self, memory: Memory) -> None:
        """Take it back; sites keep it in memory alone, so they are told again."""
        self._learned = dict(memory)
        if self._learned:
            self._tell()


def generated(images: Tensor, *, curves: Tensor, mean: Tensor, deviation: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Images ``[B, C, ...]`` in the common style: M + S G((x − M) / S).

    Args:
        images: ``[B, C, ...]``.
        curves: weights of the generator ``[W]``.
        mean, deviation: M and S ``[C]``.
        low, high: where the curves begin and end ``[C]``.
    """
    values = images.flatten(2)
    scaled = (values - mean[:, None]) / deviation[:, None]
    looks = looks_of(scaled[..., places(scaled.shape[2])])
    change = CurveGenerator(images.shape[1]).change(curves, scaled, looks, low, high)
    return (values + deviation[:, None] * change).view_as(images)


def directions(channels: int) -> Tensor:
    """Unit vectors ``[C, D]`` along which pixels are compared: first each channel, then 4 between them for each."""
    if channels == 1:
        return torch.ones(1, 1)
    between = torch.randn(channels, _BETWEEN * channels, generator=generator("style directions"))
    return torch.cat([torch.eye(channels), between / between.norm(dim=0)], 1)


def quantiles(seen: Tensor) -> Tensor:
    """Quantile function of each column of ``seen [N, D]``: at (q + ½) / Q for Q quantiles, ``[Q, D]``."""
    return _at(seen.sort(stable=True, dim=0).values, _QUANTILES)


def spread(goal: Tensor, count: int) -> Tensor:
    """What the first, second, ... of so many pixels should be ``[N, D]``, by a quantile function ``[Q, D]``."""
    return _at(goal, count)


def _at(ordered: Tensor, count: int) -> Tensor:
    """Of numbers in order ``[N, D]``, those at (i + ½) / count: linear in between, ``[count, D]``."""
    place = ((torch.arange(count) + 0.5) / count * len(ordered) - 0.5).clamp(0, len(ordered) - 1)
    below = place.long()
    return ordered[below].lerp(ordered[(below + 1).clamp_max(len(ordered) - 1)], (place - below)[:, None])


def _seen(values: Tensor) -> Tensor:
    """Pixels ``[n, C, N]`` along the directions, ``[n N, D]``."""
    return values.transpose(1, 2).flatten(0, 1) @ directions(values.shape[1])
