"""Images of all sites in one style by a light generator that the sites learn together before the training."""

from __future__ import annotations

import math
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
from polyclinic.parts.site_end import PartOfCases
from polyclinic.seeds import generator
from polyclinic.server.rules import weighted_sum
from polyclinic.shapes import Shaped
from polyclinic.state import FlatModule

#: Images looked at together.
_AT_ONCE = 32
#: Pixels of each of the images that the generator is trained on.
_PIXELS = 128
#: In so many equal shares pixels are divided by how bright they are.
_SHARES = 64
#: So often an image counts at most where its class has fewer than others.
_AGAIN = 8
#: A channel with less variance than this share of its mean square is flat but for rounding.
_FLAT = 1e-12
#: Of Adam, so that gradients that are rounding change nothing.
_EPSILON = 1e-5
#: Of numbers that sites send of what is scaled.
_LARGEST = 1e9
#: Moves of pixels towards the common style, each along all directions.
_MOVES = 30
#: Directions between the channels in which pixels are compared, for each channel.
_BETWEEN = 4


@LOCAL_PARTS.add("style_curves")
class StyleCurves(Part):
    """Style transfer by a light generator: it brings any image to one style, and changes how bright things are alone.

    x ← M + S G((x − M) / S) for each channel, with M and S the mean and deviation of all sites' pixels, and the
    generator of `polyclinic.client.domain_shift.curves.CurveGenerator`, which sees an image and not whose it is. It is
    the last step before the network, after scaling and augmentation, at every site, in validation and tests, too, also
    at sites that did not train.

    Before the first round sites learn it together. Each tells how bright the darkest 64th of its pixels is on average,
    the next, and so on, along some directions among the channels; the mean of these numbers over the sites, by their
    weights, or those of the site ``target`` are the common style. Where cases have classes, these count the same at
    each site, since how frequent a disease is shall not be taken for style. Each site finds by itself where its pixels
    would lie in it: they are moved until they have these numbers along all directions, those that were darker staying
    darker. In each of ``style_rounds`` exchanges every site answers with the gradient of the mean squared difference of
    G from that, and the server makes a step of Adam down their mean. So what is learned is how the pixels of a site, of
    all its images together, differ from those of others, and images of a site that differ go on to do so. Images that
    could be of several sites are brought as far as is right for these on average. One site alone changes nothing.
    (Several steps at a site between exchanges would pull the curves to what it needs alone.)

    Source: a generator that brings the images of all sites to one style while none leaves its site: Ke, Shen, Lu, Style
    normalization in histology with federated learning, ISBI 2021, and Yan et al., Variation-aware federated learning
    with multi-source decentralized medical image data, IEEE JBHI 2021, both by their abstracts, since their texts were
    not at hand. There generators make images by convolutions, and discriminators or made images of a target site say
    what its style is. Here nothing is made: pixels are moved as in Rabin et al., Wasserstein barycenter and its
    application to texture mixing, SSVM 2011 (a sliced transport), and a generator learns it that can only change how
    bright things are. That needs no images of another site and no game between networks, and puts in nothing that is
    not there, of which Cohen et al., Distribution matching losses can hallucinate features in medical image
    translation, MICCAI 2018, warn.

    Args:
        style_rounds: exchanges before the rounds of the study; 0 changes nothing.
        target: the site whose style all images get; None for the mean of all.
        lr: of Adam.
        cases: how many of its training images a site looks at, at most.
    """

    reveals: ClassVar = {
        "mean": "the mean of each channel over some of the site's training images: how bright they are",
        "square": "the mean square of each channel, likewise",
        "common": "the mean of each channel over all sites: of two sites, each learns the other's",
        "deviation": "the deviation of each channel over all sites, likewise",
        "shares": "how bright the darkest 64th of the pixels of these images is on average, the next, and so on, in "
                  "each channel and in mixtures of them: of a single image nearly its histogram",
        "goal": "the mean of these numbers over the sites, or those of the target site",
        "low": "the least of these numbers at any site, in each channel",
        "high": "the largest of these numbers, likewise",
        "curves": "the weights of the common generator: how styles of the sites differ from the common one",
        "gradient": "for these weights, on the site's pixels: how its style differs from the common one",
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
        """Answers with gradients, and changes images."""
        return _Generating(self) if self.style_rounds else SiteEnd()

    def at_server(self) -> ServerEnd:
        """Asks for gradients, and makes steps."""
        return _Averaging(self) if self.style_rounds else ServerEnd()


#: What an image is changed by.
_TOLD = ("curves", "common", "deviation", "low", "high")


def _shapes(channels: int) -> dict[str, Shaped]:
    size, looked = CurveGenerator(channels).size, (_SHARES, directions(channels).shape[1])
    return {
        "mean": Shaped("float64", channels, always="start"),
        "square": Shaped("float64", channels, least=0, always="start"),
        "common": Shaped("float32", channels),
        "deviation": Shaped("float32", channels, least=0),
        "shares": Shaped("float64", *looked, least=-_LARGEST, most=_LARGEST),
        "goal": Shaped("float64", *looked),
        "low": Shaped("float32", channels),
        "high": Shaped("float32", channels),
        "curves": Shaped("float32", size),
        "gradient": Shaped("float32", size, least=-_LARGEST, most=_LARGEST),
    }


class _Generating(Told):
    looks = "style generators"

    def __init__(self, part: StyleCurves) -> None:
        self.part = part
        #: Scaled pixels ``[n, C, N]`` and looks of the images; the common style, and how far pixels go in it.
        self._seen: tuple[Tensor, Tensor] | None = None
        self._aims: tuple[Tensor, Tensor] | None = None
        #: Weights and gradients for them: a site that trains several models is asked the same for each.
        self._answered: list[tuple[Tensor, Tensor]] = []

    def meet(self, view: SiteView) -> Memory:
        """Look at some images, and tell the mean and mean square of their channels ``[C]``."""
        if trained_on_boxes(view):
            raise StudyError("P104", f"{self.name} is about the style of whole images, and the network is trained on "
                             "boxes of volumes.", f"Leave {self.name} out, or train on whole volumes (no `patch`).",
                             )  # fmt: skip
        self.site, self._values = view.name, _looked_at(view, self.part.cases)
        pixels = self._values.double()
        return {"mean": pixels.mean((0, 2)), "square": pixels.square().mean((0, 2))}

    def answer(self, verb: str, asked: Memory, view: SiteView) -> Memory:
        """``look``: how bright pixels are; ``learn``: a gradient; ``tell``."""
        if verb == "look" and asked.keys() >= {"common", "deviation"}:
            values = scaled(self._values, asked["common"], asked["deviation"])
            self._seen = values[..., :_PIXELS], looks_of(values)
            return {"shares": shares_of(along(self._seen[0]).sort(dim=0).values)}
        if verb == "learn" and asked.keys() >= {*_TOLD, "goal"} and self._seen is not None:
            return {"gradient": self._slope(asked, *self._seen)}
        return super().answer(verb, asked, view)

    def _slope(self, asked: Memory, pixels: Tensor, looks: Tensor) -> Tensor:
        """Of the mean squared difference, for the weights ``[W]``."""
        if self._aims is None or not torch.equal(self._aims[0], asked["goal"]):
            self._aims, self._answered = (asked["goal"].clone(), moved(pixels, asked["goal"])), []
        for before, slope in self._answered:
            if torch.equal(before, asked["curves"]):
                return slope
        weights = asked["curves"].clone().requires_grad_()
        with torch.enable_grad():
            change = CurveGenerator(pixels.shape[1]).change(weights, pixels, looks, asked["low"], asked["high"])
            (slope,) = torch.autograd.grad((change - self._aims[1]).square().mean(), weights)
        self._answered.append((weights.detach(), slope))
        return slope

    def images(self, images: Tensor) -> Tensor:
        """M + S G((x − M) / S)."""
        return generated(images, **self.told)


def _looked_at(view: SiteView, cases: int) -> Tensor:
    """Values of some images at the `places` ``[n, C, N]``: equally many of each class, some more than once."""
    part: PartOfCases = "train" if view.count() else "unlabelled"
    counts = view.class_counts if part == "train" else None
    present = 1 if counts is None else int((counts > 0).sum())
    found, most = dict[int, list[Tensor]](), max(cases // present, 1)
    there = places(math.prod(view.input_shape[1:]))
    for index in torch.randperm(view.count(part), generator=view.generator("styles")).split(_AT_ONCE):
        images, targets = view.cases(index, part)
        classes = [0] * len(index) if counts is None else targets.tolist()
        for values, one in zip(images.flatten(2)[..., there].float(), classes, strict=True):
            if len(found.setdefault(one, [])) < most:
                found[one].append(values)
        if sum(map(len, found.values())) == present * most:
            break
    longest = max(map(len, found.values()))
    return torch.stack([
        own[number % len(own)] for _, own in sorted(found.items()) for number in range(min(longest, _AGAIN * len(own)))
    ])  # fmt: skip


class _Averaging(Telling):
    leaves_out = frozenset({"look", "learn"})
    needs_named = True

    def __init__(self, part: StyleCurves) -> None:
        self.part, self.named = part, () if part.target is None else (part.target,)
        self._learned: Memory = {}

    def meet(self, announced: Mapping[str, Memory], everyone: Mapping[str, float]) -> None:
        """M and S; the deviation of a channel that is flat everywhere but for rounding counts as 1."""
        self._everyone = everyone
        mean, square = (
            self._mean({site: told[name] for site, told in announced.items()}) for name in ("mean", "square")
        )
        variance = square - mean.square()
        deviation = torch.where(variance > _FLAT * square, variance, 1.0).sqrt()
        self._scale = {"common": mean.float(), "deviation": deviation.float()}

    def begin(self, now: Now) -> None:
        """The first time sites learn the generator."""
        super().begin(now)
        if not self._learned:
            self._learned = self._learn()
            self._tell()

    def _learn(self) -> Memory:
        """What an image is changed by."""
        channels = len(self._scale["common"])
        found = dict(self._answers("look", self._scale, "shares"))
        if self.part.target is not None and self.part.target not in found:
            raise SiteError("P402", f"{self.name} is to give all images the style of {self.part.target}, which takes "
                            "no part in this training.", "Let that site take part, or leave `target` out.",
                            site=self.part.target)  # fmt: skip
        looked = torch.stack(list(found.values()))[..., :channels]
        told = {
            **self._scale, "low": looked[:, 0].amin(0).float(), "high": looked[:, -1].amax(0).float(),
            "goal": self._mean(found) if self.part.target is None else found[self.part.target],
        }  # fmt: skip
        weights = torch.nn.Parameter(CurveGenerator(channels).initial())
        optimizer = torch.optim.Adam([weights], lr=self.part.lr, eps=_EPSILON)
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
        return weighted_sum(list(found.values()), shares / shares.sum())

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


def generated(
    images: Tensor, *, curves: Tensor, common: Tensor, deviation: Tensor, low: Tensor, high: Tensor
) -> Tensor:  # fmt: skip
    """Images ``[B, C, ...]`` in the common style: M + S G((x − M) / S).

    Args:
        images: ``[B, C, ...]``.
        curves: weights of the generator ``[W]``.
        common, deviation: M and S ``[C]``.
        low, high: where the curves begin and end ``[C]``.
    """
    pixels = images.flatten(2)
    values = scaled(pixels, common, deviation)
    looks = looks_of(values[..., places(values.shape[2])])
    change = CurveGenerator(images.shape[1]).change(curves, values, looks, low, high)
    return (pixels + deviation[:, None] * change).view_as(images)


def scaled(pixels: Tensor, common: Tensor, deviation: Tensor) -> Tensor:
    """(x − M) / S, of ``pixels [B, C, N]``."""
    return (pixels - common[:, None]) / deviation[:, None]


def directions(channels: int) -> Tensor:
    """Unit vectors ``[C, D]`` along which pixels are compared: first each channel, then 4 between them for each."""
    if channels == 1:
        return torch.ones(1, 1)
    between = torch.randn(channels, _BETWEEN * channels, generator=generator("style directions"))
    return torch.cat([torch.eye(channels), between / between.norm(dim=0)], 1)


def shares_of(ordered: Tensor) -> Tensor:
    """Means of the first 64th of each column of ``ordered [N, D]``, of the next, and so on: float64 ``[64, D]``."""
    sums = torch.cat([ordered.new_zeros(1, ordered.shape[1], dtype=torch.float64), ordered.double().cumsum(0)])
    ends = torch.arange(_SHARES + 1, dtype=torch.float64) * len(ordered) / _SHARES
    below = ends.long().clamp_max(len(ordered) - 1)
    up_to = sums[below] + (ends - below)[:, None] * ordered[below]
    return up_to.diff(dim=0) * _SHARES / len(ordered)


def moved(pixels: Tensor, goal: Tensor) -> Tensor:
    """How far ``pixels [n, C, N]`` are moved until they have the shares ``goal [64, D]`` along the directions.

    Along a direction a pixel goes as far as the means of the shares that it is between, so that the order stays.
    """
    ways = directions(pixels.shape[1])
    start = pixels.transpose(1, 2).flatten(0, 1)
    place = ((torch.arange(len(start)) + 0.5) / len(start) * _SHARES - 0.5).clamp(0, _SHARES - 1)
    below, points = place.long(), start
    for _ in range(_MOVES if len(ways) > 1 else 1):
        seen = (points @ ways).sort(dim=0, stable=True)
        apart = (goal - shares_of(seen.values)).float()
        far = apart[below].lerp(apart[(below + 1).clamp_max(_SHARES - 1)], (place - below)[:, None])
        step = torch.empty_like(far).scatter_(0, seen.indices, far)
        points = points + len(ways) / ways.shape[1] * step @ ways.T
    return (points - start).view(len(pixels), -1, pixels.shape[1]).transpose(1, 2)


def along(values: Tensor) -> Tensor:
    """Pixels ``[n, C, N]`` along the directions, ``[n N, D]``."""
    return values.transpose(1, 2).flatten(0, 1) @ directions(values.shape[1])
