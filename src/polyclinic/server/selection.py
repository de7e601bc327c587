"""Who takes part in a round."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field, PositiveFloat, PositiveInt

from polyclinic.errors import StudyError
from polyclinic.options import Catalogue
from polyclinic.seeds import generator

Share = Annotated[float, Field(gt=0, le=1)]


@dataclass(frozen=True)
class Candidates:
    """What is known when the sites of a round are chosen.

    Attributes:
        number: rounds done before.
        seed: of the training; choices are a function of it and the round.
        weights: declared weight of each site of the federation.
        losses: the training loss that each site reported last; sites that never took part are missing.
    """

    number: int
    seed: int
    weights: Mapping[str, float]
    losses: Mapping[str, float]


class Participation(ABC):  # noqa: B024 - each part does one of the two
    """Decides who takes part: before the round, or by who answers in time. Several are applied one after another.

    Attributes:
        most: the largest number of sites that it ever leaves; None for no limit.
        wanted: how many sites its options speak of, which must be there; None for any number.
        named: sites that its options name.
    """

    most: int | None = None
    wanted: int | None = None
    named: Sequence[str] = ()

    def choose(self, sites: Sequence[str], known: Candidates) -> list[str]:
        """Those of ``sites`` that are asked, in the same order."""
        return list(sites)

    def in_time(self, site: str, seconds: float) -> bool:
        """Whether an answer that took so long still counts."""
        return True


#: Ways to choose by the name used under ``participation:`` in a study file.
PARTICIPATION: Catalogue[type[Participation]] = Catalogue("way to choose sites")


@PARTICIPATION.add("uniform")
class Uniform(Participation):
    """A fixed number of sites, each set of them equally likely.

    Source: McMahan et al., AISTATS 2017, algorithm 1.

    Args:
        sites: how many; or
        fraction: share of those that could take part, at least one.
    """

    def __init__(self, *, sites: PositiveInt | None = None, fraction: Share | None = None) -> None:
        if (sites is None) == (fraction is None):
            raise StudyError("P102", "uniform takes either `sites` or `fraction`.", "Give one of them.")
        self.sites, self.fraction, self.most, self.wanted = sites, fraction, sites, sites

    def choose(self, sites: Sequence[str], known: Candidates) -> list[str]:
        """A random subset."""
        wanted = self.sites if self.sites is not None else max(1, round((self.fraction or 0) * len(sites)))
        order = torch.randperm(len(sites), generator=generator(known.seed, "uniform", known.number)).tolist()
        chosen = set(order[:wanted])
        return [site for position, site in enumerate(sites) if position in chosen]


@PARTICIPATION.add("poisson")
class Poisson(Participation):
    """Each site by itself with the same probability; the number varies, and may be none: then the round is skipped.

    This is the sampling that privacy accounting supposes (McMahan et al., Learning differentially private recurrent
    language models, ICLR 2018).

    Args:
        probability: that a site takes part.
    """

    def __init__(self, *, probability: Share = 0.5) -> None:
        self.probability = probability

    def choose(self, sites: Sequence[str], known: Candidates) -> list[str]:
        """Those whose own draw says so; a draw depends on the site's name, not on who else is there."""
        return [site for site in sites if _draw(known, "poisson", site) < self.probability]


@PARTICIPATION.add("highest_loss")
class HighestLoss(Participation):
    """Power of choice: of some candidates, drawn in proportion to their weights, those with the highest loss.

    The loss is the one that a site reported when it last took part; a site that never did goes first.

    Source: Cho, Wang and Joshi, Towards understanding biased client selection in federated learning, AISTATS 2022,
    the variant rpow-d, which needs no extra exchange.

    Args:
        sites: how many are chosen.
        candidates: how many are drawn first; default: all.
    """

    def __init__(self, *, sites: PositiveInt, candidates: PositiveInt | None = None) -> None:
        if candidates is not None and candidates < sites:
            raise StudyError("P102", f"highest_loss chooses {sites} sites from {candidates} candidates.",
                             "Give at least as many `candidates` as `sites`.")  # fmt: skip
        self.sites, self.candidates, self.most, self.wanted = sites, candidates, sites, candidates or sites

    def choose(self, sites: Sequence[str], known: Candidates) -> list[str]:
        """The candidates with the highest losses."""
        drawn = list(sites)
        if self.candidates is not None and self.candidates < len(sites):
            weights = torch.tensor([known.weights[site] for site in sites], dtype=torch.float64)
            source = generator(known.seed, "highest loss", known.number)
            drawn = [sites[i] for i in torch.multinomial(weights, self.candidates, generator=source).tolist()]
        ranked = sorted(drawn, key=lambda site: (-known.losses.get(site, float("inf")), sites.index(site)))
        chosen = set(ranked[: self.sites])
        return [site for site in sites if site in chosen]


@PARTICIPATION.add("availability")
class Availability(Participation):
    """Sites are there in some rounds only: at night, or when their machine is free. It is drawn, not measured.

    Args:
        probability: that a site is there in a round; for all, or for each by name (others are always there).
        absent: rounds (counted from 1) in which a site is away: ``{SITE: [3, 4]}``.
    """

    def __init__(
        self, *, probability: Share | dict[str, Share] = 1.0, absent: dict[str, list[PositiveInt]] | None = None
    ) -> None:
        self.probability, self.absent = probability, absent or {}
        self.named = [*(probability if isinstance(probability, dict) else ()), *self.absent]

    def choose(self, sites: Sequence[str], known: Candidates) -> list[str]:
        """Those that are there."""
        return [site for site in sites if self._is_there(site, known)]

    def _is_there(self, site: str, known: Candidates) -> bool:
        if known.number + 1 in self.absent.get(site, []):
            return False
        share = self.probability.get(site, 1.0) if isinstance(self.probability, dict) else self.probability
        return _draw(known, "availability", site) < share


@PARTICIPATION.add("deadline")
class Deadline(Participation):
    """Answers that take too long are left out of the round.

    Where the study declares the sites' speed (``training: {step_seconds: ...}``) that decides, so that runs are
    repeatable; otherwise the time that the site measured. What a late site did is forgotten: the coordinator drops its
    update, and the site is told with the next message that it did not count. So what it keeps for itself (a control
    variate, private layers, a personal model, the state of its optimiser) is as it was before.

    Args:
        seconds: longest time for a site's local work.
    """

    def __init__(self, *, seconds: PositiveFloat) -> None:
        self.seconds = seconds

    def in_time(self, site: str, seconds: float) -> bool:
        """Whether it is not too late."""
        return seconds <= self.seconds


def _draw(known: Candidates, what: str, site: str) -> float:
    return float(torch.rand((), generator=generator(known.seed, what, known.number, site), dtype=torch.float64))
