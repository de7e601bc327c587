"""A step of the channel by which sites add shares of one noise to their secure sum, so that no server has to."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, Strict
from torch import Tensor

from polyclinic.channel.noise import SiteNoise, known, noise_within
from polyclinic.errors import StudyError, TrainingError
from polyclinic.limits import AboveZero
from polyclinic.parts import CHANNEL_PARTS, Memory, SiteView
from polyclinic.privacy import Budget, Event
from polyclinic.privacy.discrete import MOST_DEVIATION, discrete_gaussian, excess
from polyclinic.secure import Ring

#: A change has at least so many steps in its length, and so many for each root of its number of weights: rounding makes
#: it longer by 1/128 at most.
_STEPS, _STEPS_A_ROOT = 2**16, 2**6
#: Deviations of the noise of all sites that a sum has room for. A number of it is beyond with a probability below
#: 2 exp(−72), about 10^-31; then it wraps, which spoils the model and tells nothing.
ROOM = 12
#: Numbers that are worked on at a time.
_AT_ONCE = 1 << 18
#: What rounding of 64-bit floats may take away, and much more.
_SLACK = 1 + 2.0**-20


@dataclass(frozen=True)
class Share:
    """A site's share of the noise in a sum; the same for all of its sites.

    Attributes:
        step: what 1 stands for, a power of two.
        length: no site's weighted whole numbers are longer, in the L2 norm.
        deviation: of the share.
        honest: how many such shares are as much noise as ε needs.
        most: what the shares of all sites add to a number of the sum at most.
    """

    step: float
    length: float
    deviation: int
    honest: int
    most: int

    @classmethod
    def fit(cls, noise: float, norm: float, *, weights: int, most_weight: float, sites: int, honest: int) -> Share:
        """The share with which the noise of ``honest`` sites has at least ``noise`` times the length of a change.

        A change of length C and weight w is w C / step long. Rounding moves each of T numbers by ½ at most, so whole
        numbers are at most w C / step + ½ √T long, and two of them lie up to twice that apart.

        Args:
            noise: σ.
            norm: C.
            weights: T.
            most_weight: the largest weight of a site.
            sites: in a sum, at most.
            honest: of these.

        Raises:
            StudyError: P102, there is no such share.
        """
        reach, root = norm * most_weight, math.sqrt(weights)
        finest = reach / max(_STEPS_A_ROOT * root, _STEPS)
        step = math.ldexp(1.0, math.frexp(finest)[1] - 1)
        length = (reach / step + root / 2) * _SLACK
        wanted = noise * length * _SLACK / math.sqrt(honest)
        if wanted <= MOST_DEVIATION:
            deviation = math.ceil(wanted)
            apart = 2 * length / (math.sqrt(honest) * deviation) + excess(deviation, honest, weights)
            if apart <= 2 / noise:
                return cls(step, length, deviation, honest, math.ceil(ROOM * deviation * math.sqrt(sites)))
        raise StudyError(
            "P102", f"Noise of {noise:g} can't be shared by {honest} sites: in the steps of a secure sum of {weights} "
            f"weights a share has a deviation of {wanted:g}, which is too "
            f"{'much' if wanted > MOST_DEVIATION else 'little'}.",
            "Give another `noise`, or use `central_noise`.",
        )  # fmt: skip


@CHANNEL_PARTS.add("distributed_noise")
class DistributedNoise(SiteNoise):
    """Each site adds a share of discrete Gaussian noise to its whole numbers, before the masks of `secure_sum`, which
    comes next: the sum has the noise of many sites, and no server has to add any.

    The noise of those sites that ε counts on has, together, a standard deviation of σ C for each weight, times the
    largest weight of a site, where `clip` bounds changes to the length C; more sites add more. ε counts on the least
    number of sites with which a sum is opened (for up to 30 sites the greater of ``least`` and the threshold of
    `secure_sum`), less those that are ``colluding``: so neither sites that drop out nor a server in league with some
    make it less. The more of the sites are left, the more noise there is than ε needs.

    Neighbours are a site's data and any others in their place, with the same number of cases where updates have
    weights; two whole-numbered changes lie up to twice the length apart that they can have after rounding. A round is
    concentrated as the Gaussian mechanism with noise σ / 2 is.

    Source: Kairouz, Liu and Steinke, The distributed discrete Gaussian mechanism for federated learning with secure
    aggregation, ICML 2021, with rounding to the nearest; the noise is drawn as `polyclinic.privacy.discrete` says.

    Args:
        noise: σ; default: what keeps the study's budget (`privacy`).
        colluding: so many sites of a sum, besides the one that is protected, may tell the server or each other their
            shares of the noise, or add none. Each site knows its own, so with 0 the others are not protected from it.
        bits: of a number in the sum. A study whose noise does not fit is refused.
    """

    needs_norm: ClassVar = 2

    def __init__(
        self, *, noise: AboveZero | None = None, colluding: Annotated[int, Strict(), Field(ge=0)] = 1,
        bits: Literal[32, 64] = 32,
    ) -> None:  # fmt: skip
        self.noise, self.colluding, self.bits = noise, colluding, bits
        self.added = False  # whether a part adds what this one draws

    @property
    def trust(self) -> str:
        """Whom a site trusts."""
        others = f"all but {self.colluding}" if self.colluding else "all"
        return f"the patient's own site, and {others} of the sites in its secure sum, to add their shares of the noise"

    @property
    def alike(self) -> str:
        """σ: sites count on each other's shares, and those that were told of fewer trainings would add less."""
        return repr(self.noise)

    def meet(self, view: SiteView) -> Memory:
        """See `SiteNoise`."""
        if not self.added:
            raise StudyError("P104", f"{self.name} draws noise that no secure sum adds.",
                             "Name `secure_sum` directly after it.")  # fmt: skip
        return super().meet(view)

    def event(self, noise: float) -> Event:
        """See `SiteNoise`."""
        return Event.concentrated(noise / 2)

    def settle(self, rounds: int, budget: Budget | None) -> None:
        """Find the noise that keeps the budget, at the server."""
        if self.noise is None:
            self.noise = noise_within(budget, lambda noise: [self.event(noise).times(rounds)], self.name)

    def agreed(
        self, weights: int, sites: int, left: int, *, most_weight: float, total_weight: float
    ) -> tuple[Ring, Share]:  # fmt: skip
        """How a sum of changes of so many ``weights`` is one of whole numbers, and what each site's share is.

        Args:
            weights: T.
            sites: that take part.
            left: so many of them are in a sum that is opened, at least.
            most_weight: the largest weight of a site.
            total_weight: of all.

        Raises:
            StudyError: P102, there is no such share, or it does not fit.
        """
        honest = left - self.colluding
        if honest < 1:
            raise StudyError(
                "P102", f"A sum of {sites} sites is opened with {left} of them or more, and {self.colluding} may be "
                "colluding: no noise is left that counts.",
                "Give a smaller `colluding`, or `secure_sum` a greater `least`.",
            )  # fmt: skip
        noise, norm = known(self.noise, self.name, "noise"), known(self.norm, self.name, "bound of the change")
        share = Share.fit(noise, norm, weights=weights, most_weight=most_weight, sites=sites, honest=honest)
        ring = Ring.fit(
            norm, sites, most_weight=most_weight, total_weight=total_weight, step=share.step, bits=self.bits,
            noise=share.most,
        )  # fmt: skip
        return ring, share

    def add_(self, numbers: Tensor, share: Share) -> None:
        """Add a share to a site's whole numbers ``[T]``, in place.

        Raises:
            TrainingError: P301, they are longer than what the noise is for.
        """
        length = math.sqrt(sum(float(part.double().square_().sum()) for part in numbers.split(_AT_ONCE)))
        if not length <= share.length:
            raise TrainingError(
                "P301", f"A change for a secure sum has length {length * share.step:g}, and the noise is for "
                f"{share.length * share.step:g}: nothing is sent.", "Report this: `clip` bounds it before.",
            )  # fmt: skip
        for part in numbers.split(_AT_ONCE):
            part += torch.from_numpy(discrete_gaussian(len(part), share.deviation, self._draws)).to(part.dtype)
