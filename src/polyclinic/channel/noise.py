"""Steps of the channel that add noise to what leaves a site, or to the mean of all sites, with what that guarantees."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, ClassVar

import torch
from pydantic import Field

from polyclinic.errors import StudyError
from polyclinic.limits import AboveZero
from polyclinic.parts import CHANNEL_PARTS, Memory, Now, ServerPart, SitePart, SiteView, Step
from polyclinic.privacy import Budget, Event
from polyclinic.privacy.draws import RepeatableDraws, SystemDraws, gaussian, laplace
from polyclinic.seeds import generator
from polyclinic.shapes import Shaped


def known(value: float | None, part: str, what: str) -> float:
    """A size of noise, which must be known by now: without it there would be none, and nobody would see that.

    Raises:
        StudyError: P102, it is not.
    """
    if value is None:
        raise StudyError("P102", f"{part} has no {what}, so nothing would be protected, and nothing is sent.",
                         "Give it a `noise`, or the study `privacy`, and name `clip` before it.")  # fmt: skip
    return value


def noise_within(budget: Budget | None, plan: Callable[[float], Sequence[Event]], part: str) -> float:
    """The least noise with which a ``part`` keeps a budget, at the server.

    Raises:
        StudyError: P102, there is no budget; P305, no noise keeps it.
    """
    if budget is None:
        raise StudyError("P102", f"{part} has no `noise`, and the study no `privacy` to find it from.",
                         "Give one of them.")  # fmt: skip
    return budget.noise(plan)


class SiteNoise(SitePart):
    """Noise that a site adds to what leaves it: it need not trust the server.

    Neighbours are a site's data and any others in their place, so that each patient of the site is protected as all of
    them together are: two changes of length C lie up to 2 C apart.
    """

    private: ClassVar = "a patient"
    noise: float | None

    def meet(self, view: SiteView) -> Memory:
        """See that nothing else leaves the site, and find the noise that keeps the budget."""
        if self.sizes.get("S"):
            raise StudyError(
                "P104", f"{self.name} adds noise to the change of the weights, and statistics of normalisation layers "
                "leave the sites without any.", "Use `share: no_norm_statistics`, or a network with `norm: group`.",
            )  # fmt: skip
        if self.noise is None:
            self.noise = view.solved(lambda noise: [self.event(noise).times(view.rounds)], self.name)
        return {}

    @abstractmethod
    def event(self, noise: float) -> Event:
        """What a round costs."""

    def spends(self) -> Sequence[Event]:
        """Of each round."""
        return [self.event(known(self.noise, self.name, "noise"))]

    def begin(self, view: SiteView, received: Memory) -> Memory:
        """The round's random numbers."""
        self._draws = view.draws(self.name)
        return {}

    def leaves(self, before: Mapping[str, Shaped], sizes: Mapping[str, int]) -> Mapping[str, Shaped]:
        """The same."""
        return before


@CHANNEL_PARTS.add("gaussian_noise")
class GaussianNoise(SiteNoise):
    """Each site adds Gaussian noise to the change of the weights, whose length `clip` bounds before: of standard
    deviation σ C for each weight.

    A round is the Gaussian mechanism with noise σ / 2 (two changes lie up to 2 C apart), without sampling.

    Source: Li et al., Multi-site fMRI analysis using privacy-preserving federated learning and domain adaptation: ABIDE
    results, Medical Image Analysis 2020, section 3.2, where its size is chosen and no ε over rounds is stated.

    Args:
        noise: σ; default: what keeps the study's budget (`privacy`).
    """

    needs_norm: ClassVar = 2

    def __init__(self, *, noise: AboveZero | None = None) -> None:
        self.noise = noise

    def event(self, noise: float) -> Event:
        """See `SiteNoise`."""
        return Event.gaussian(noise / 2)

    def close(self, packed: Memory) -> Memory:
        """Add."""
        length = known(self.norm, self.name, "bound of the change")
        change, deviation = packed["change"], known(self.noise, self.name, "noise") * length
        return {**packed, "change": (change + gaussian(len(change), self._draws) * deviation).float()}


@CHANNEL_PARTS.add("laplace_noise")
class LaplaceNoise(SiteNoise):
    """Each site shortens the change of the weights to a length in the L1 norm, Σ |Δ| ≤ C, and adds Laplace noise of
    scale b C to each weight.

    A round is 2 / b-differentially private (two changes lie up to 2 C apart), with δ = 0.

    Source: Li et al., Multi-site fMRI analysis using privacy-preserving federated learning and domain adaptation: ABIDE
    results, Medical Image Analysis 2020, section 3.2, where its size is chosen and no ε over rounds is stated.

    Args:
        norm: C.
        noise: b; default: what keeps the study's budget (`privacy`).
    """

    def __init__(self, *, norm: AboveZero = 1.0, noise: AboveZero | None = None) -> None:
        self.length, self.noise = norm, noise

    def event(self, noise: float) -> Event:
        """See `SiteNoise`."""
        return Event.pure(2 / noise)

    def close(self, packed: Memory) -> Memory:
        """Shorten, and add."""
        change = packed["change"].double()
        found = float(change.abs().sum())
        short = change * min(1.0, self.length / found * (1 - 2.0**-40)) if found else change
        noise = laplace(len(change), self._draws) * (known(self.noise, self.name, "noise") * self.length)
        return {**packed, "change": (short + noise).float()}


@CHANNEL_PARTS.add("sparse_vector")
class SparseVector(SiteNoise):
    """Each site sends some weights whose changes are large, with noise on the choice and on what is sent: the sparse
    vector technique. Changes are clipped to ±γ weight by weight. Weights are gone through in an order by lot until as
    many as the share have passed, |clip(Δ)| + Lap(2 c γ / ε₂) ≥ τ + Lap(γ / ε₁); of these clip(Δ) + Lap(2 c γ / ε₃) is
    sent, and zeros for the others. c is how many may pass.

    A round is ε-differentially private, ε = ε₁ + ε₂ + ε₃, with δ = 0; ε₁ : ε₂ : ε₃ is 1 : (2 c)^⅔ : (2 c)^⅔ as
    recommended by Lyu et al. With many weights that is much noise for a small ε.

    Source: Li et al., Privacy-preserving federated brain tumour segmentation, MLMI 2019, algorithm 2, with the noise of
    Lyu, Su and Li, Understanding the sparse vector technique for differential privacy, VLDB 2017, algorithm 7 (the
    paper's own has less noise on the values sent than its ε asks for).

    Args:
        epsilon: ε of a round; default: what keeps the study's budget (`privacy`).
        share: of the weights that may be sent.
        bound: γ.
        threshold: τ.
    """

    def __init__(
        self, *, epsilon: AboveZero | None = None, share: Annotated[float, Field(gt=0, le=1)] = 0.1,
        bound: AboveZero = 0.001, threshold: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0,
    ) -> None:  # fmt: skip
        self.share, self.bound, self.threshold = share, bound, threshold
        self.noise = None if epsilon is None else 1 / epsilon

    def event(self, noise: float) -> Event:
        """See `SiteNoise`; the noise is 1 / ε."""
        return Event.pure(1 / noise)

    def close(self, packed: Memory) -> Memory:
        """Choose, and add."""
        change, draws = packed["change"].double().clamp(-self.bound, self.bound), self._draws
        count = len(change)
        number = min(count, math.ceil(self.share * count - 1e-9))
        ratio = (2 * number) ** (2 / 3)
        first = 1 / (known(self.noise, self.name, "noise") * (1 + 2 * ratio))
        further = first * ratio
        level = self.threshold + float(laplace(1, draws)[0]) * self.bound / first
        noisy = change.abs() + laplace(count, draws) * (2 * number * self.bound / further)
        order = draws.uniform(count).argsort()
        passed = order[(noisy >= level)[order]][:number]
        sent = torch.zeros(count, dtype=torch.float64)
        sent[passed] = change[passed] + laplace(len(passed), draws) * (2 * number * self.bound / further)
        return {**packed, "change": sent.float()}


@CHANNEL_PARTS.add("central_noise")
class CentralNoise(ServerPart):
    """The server adds Gaussian noise to the mean of the sites' changes, whose length `clip` bounds: of standard
    deviation σ C times the largest share that a site has in the mean.

    Sites must trust the server, which sees their updates (`secure_sum` beside it hides these). Neighbours are a site's
    data and any others in their place; a round is the Gaussian mechanism with noise σ / 2. Nothing is won by sampling
    sites, since everybody knows which hospitals take part. After `adaptive_clip` a share of that cost is for the length
    that it finds, and the changes have more noise accordingly.

    Source: McMahan et al., Learning differentially private recurrent language models, ICLR 2018, algorithm 1.

    Args:
        noise: σ; default: what keeps the study's budget (`privacy`).
    """

    private: ClassVar = "a site"
    needs_norm: ClassVar = 2
    needs_mean: ClassVar = True
    hides_beside: ClassVar = True

    def __init__(self, *, noise: AboveZero | None = None) -> None:
        self.noise = noise

    def begin(self, now: Now) -> None:
        """Find the noise that keeps the budget."""
        super().begin(now)
        if len(now.statistics):
            raise StudyError(
                "P104", "central_noise adds noise to the change of the weights, and statistics of normalisation layers "
                "would be without any.", "Use `share: no_norm_statistics`, or a network with `norm: group`.",
            )  # fmt: skip
        self._solve(now.rounds, now.budget)

    def _solve(self, rounds: int, budget: Budget | None) -> float:
        if self.noise is None:
            self.noise = noise_within(budget, lambda noise: [Event.gaussian(noise / 2, count=rounds)], self.name)
        return self.noise

    def spends(self, rounds: int, budget: Budget | None) -> Sequence[Event]:
        """See `ServerEnd`."""
        return [Event.gaussian(self._solve(rounds, budget) / 2)]

    def finish(self, step: Step) -> Step:
        """Add."""
        seeded = RepeatableDraws(generator(self.name, self.now.seed, self.now.fold, self.now.number))
        draws = SystemDraws() if self.now.real else seeded
        largest = max(step.shares.values(), default=1.0)
        length = known(self.norm, self.name, "bound of the changes")
        noise = known(self.noise, self.name, "noise") * largest
        beside = 0.0 if self.bounded_by is None else self.bounded_by.beside
        deviation = noise / math.sqrt(1 - beside) * length
        step.change.copy_(step.change + gaussian(len(step.change), draws) * deviation)
        if self.bounded_by is not None and beside:
            self.bounded_by.hidden = float(gaussian(1, draws)) * noise / (2 * math.sqrt(beside))
        return step
