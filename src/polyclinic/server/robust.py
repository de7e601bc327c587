"""Server rules that hold when some sites send corrupt updates, by mistake or on purpose.

Distances and norms are those of the changes Δ_k of the weights ``[T]``. They say nothing of the statistics of
normalisation layers: a site with honest weights may send false statistics. So rules for each coordinate take the
statistics as they take the weights, and all others the median of each statistic over all sites of the round, which
holds as long as fewer than half of them are corrupt. Except where it says so, a rule takes all sites as equal and not
by their declared weights, which a corrupt site could choose.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from polyclinic.errors import SiteError, StudyError, nearest
from polyclinic.parts import SERVER_PARTS, Memory, Now, ServerPart, Step, Update
from polyclinic.server.distances import (
    cosine_distances,
    distances_to_mean,
    gram,
    lengths_and_products,
    norm,
    squared_distances,
)
from polyclinic.server.order import middle_mean, nearest_mean, nearest_rows, sorted_rows
from polyclinic.server.rules import Collected, Weighting, declared_shares, weighted_sum

#: How many coordinates at most are looked at to tell how much each site counted in a rule for each coordinate.
SAMPLE = 65_536


# Coordinate by coordinate ---------------------------------------------------------------------------------------------


class Trimming(Collected):
    """The mean of each coordinate without its smallest and its largest values.

    ``shares`` are the fractions of the weights for which a site's value was among those used (sites with equal values
    share them), estimated from at most 65,536 evenly spaced weights.
    """

    def combine(self, updates: Sequence[Update]) -> Step:
        """The mean of what is left of each coordinate."""
        trim = self.trimmed(len(updates))
        rows = sample(updates)
        ranked = sorted_rows(rows)
        shares = counted(updates, rows, ranked[trim], ranked[len(rows) - trim - 1])
        change = middle_mean([update.change for update in updates], trim)
        return Step(change, middle_mean([update.statistics for update in updates], trim), shares)

    @abstractmethod
    def trimmed(self, sites: int) -> int:
        """How many values to leave out at each end."""


@SERVER_PARTS.add("median")
class Median(Trimming):
    """The median of each coordinate; of an even number of sites the mean of the two values in the middle.

    Source: Yin et al., Byzantine-robust distributed learning: towards optimal statistical rates, ICML 2018, definition
    1. There the sites send gradients; here, as in federated averaging, what they end a round with.
    """

    def trimmed(self, sites: int) -> int:
        """All but the one or two values in the middle."""
        return (sites - 1) // 2


@SERVER_PARTS.add("trimmed_mean")
class TrimmedMean(Trimming):
    """The mean of each coordinate without its ``trim`` smallest and ``trim`` largest values; with 0 the uniform mean.

    Source: Yin et al., Byzantine-robust distributed learning: towards optimal statistical rates, ICML 2018, definition
    2, with β K = ``trim``.

    Args:
        trim: number of values left out at each end; it holds against so many corrupt sites.
    """

    def __init__(self, *, trim: NonNegativeInt = 1) -> None:
        self.trim, self.least = trim, 2 * trim + 1

    def trimmed(self, sites: int) -> int:
        """``trim``.

        Raises:
            SiteError: P402 if no value would be left.
        """
        need_sites(f"trimmed_mean with trim {self.trim}", sites, self.least, "a smaller `trim`")
        return self.trim


# Chosen by distance ---------------------------------------------------------------------------------------------------


class RobustWeighting(Weighting):
    """A weighted mean of changes, and the median of each statistic."""

    def statistics(self, updates: Sequence[Update], weights: Tensor) -> Tensor:
        """Their medians over all sites, whatever these weigh."""
        return median_statistics([update.statistics for update in updates])


@SERVER_PARTS.add("multi_krum")
class MultiKrum(RobustWeighting):
    """The uniform mean of the ``keep`` updates with the lowest Krum score.

    The score of an update is the sum of the squared distances to its K - f - 2 nearest others, see `krum_order`.

    Source: Blanchard et al., Machine learning with adversaries: Byzantine tolerant gradient descent, NeurIPS 2017,
    sections 4 and 5.

    Args:
        corrupt: f, how many corrupt sites it must hold against; there must be at least 2 f + 3 sites.
        keep: m, how many updates go into the mean; without it K - f. The paper proves its bound for m = 1 alone.
    """

    def __init__(self, *, corrupt: NonNegativeInt = 1, keep: PositiveInt | None = None) -> None:
        self.corrupt, self.keep = corrupt, keep
        self.least = max(2 * corrupt + 3, keep or 0)

    def weights(self, updates: Sequence[Update]) -> Tensor:
        """1 for those that are kept, 0 for the others.

        Raises:
            SiteError: P402 for fewer than 2 f + 3 sites, or fewer than ``keep``.
        """
        sites = len(updates)
        keep = sites - self.corrupt if self.keep is None else self.keep
        need_sites(f"Krum with corrupt {self.corrupt}", sites, 2 * self.corrupt + 3, "a smaller `corrupt`")
        need_sites(f"multi_krum with keep {keep}", sites, keep, "a smaller `keep`")
        best = krum_order(squared_distances(changes_gram(updates)), self.corrupt)[:keep]
        return torch.zeros(sites).index_fill(0, torch.tensor(best), 1.0)


@SERVER_PARTS.add("krum")
class Krum(MultiKrum):
    """The one update with the lowest Krum score: multi-Krum with ``keep`` 1.

    Source: Blanchard et al., Machine learning with adversaries: Byzantine tolerant gradient descent, NeurIPS 2017,
    section 4.

    Args:
        corrupt: f, how many corrupt sites it must hold against; there must be at least 2 f + 3 sites.
    """

    def __init__(self, *, corrupt: NonNegativeInt = 1) -> None:
        super().__init__(corrupt=corrupt, keep=1)


@SERVER_PARTS.add("bulyan")
class Bulyan(Collected):
    """Krum chooses θ = K - 2 f updates one by one; of each coordinate the mean of the θ - 2 f closest to their median.

    Source: El Mhamdi et al., The hidden vulnerability of distributed learning in Byzantium, ICML 2018, section 4. The
    paper leaves open what Krum's score is when fewer than f + 3 updates remain: here the squared distance to the
    nearest. The median of an even number is the mean of the two in the middle, where the paper takes either.

    ``shares`` are found as by `Trimming`; sites that were not chosen have 0.

    Args:
        corrupt: f, how many corrupt sites it must hold against; there must be at least 4 f + 3 sites.
    """

    def __init__(self, *, corrupt: NonNegativeInt = 1) -> None:
        self.corrupt, self.least = corrupt, 4 * corrupt + 3

    def combine(self, updates: Sequence[Update]) -> Step:
        """The mean of the values closest to the median of those chosen.

        Raises:
            SiteError: P402 for fewer than 4 f + 3 sites.
        """
        need_sites(f"bulyan with corrupt {self.corrupt}", len(updates), self.least, "a smaller `corrupt`")
        chosen = [updates[index] for index in self.choose(squared_distances(changes_gram(updates)))]
        count = len(chosen) - 2 * self.corrupt
        rows = sample(chosen)
        used = nearest_rows(sorted_rows(rows), count)
        shares = dict.fromkeys((update.site for update in updates), 0.0) | counted(chosen, rows, used[0], used[-1])
        change = nearest_mean([update.change for update in chosen], count)
        return Step(change, median_statistics([update.statistics for update in updates]), shares)

    def choose(self, distances: Tensor) -> list[int]:
        """Indices of the K - 2 f updates that Krum chooses, each without those before it, in rising order."""
        left = list(range(len(distances)))
        chosen: list[int] = []
        while len(chosen) < len(distances) - 2 * self.corrupt:
            chosen.append(left.pop(krum_order(distances[left][:, left], self.corrupt)[0]))
        return sorted(chosen)


def krum_order(distances: Tensor, corrupt: int) -> list[int]:
    """Indices of updates in rising order of Krum's score, from squared distances ``[K, K]``.

    The score is the sum of the distances to the K - f - 2 nearest others, and to at least one.

    Two updates that are each other's nearest have equal scores if there is but one distance in them; the paper takes
    the first site's. Here the one with the lower sum comes first when a further distance is added to both.
    """
    others = distances.sort(dim=1).values[:, 1:]  # the first is the distance to itself
    sums = others.cumsum(dim=1)[:, max(1, len(distances) - corrupt - 2) - 1 :].tolist()
    return sorted(range(len(sums)), key=sums.__getitem__)


# Weighted by distance -------------------------------------------------------------------------------------------------


@SERVER_PARTS.add("geometric_median")
class GeometricMedian(RobustWeighting):
    """RFA: the point z with the least Σ p_k ‖z - w_k‖, with p_k the site's share of the declared weights.

    Smoothed Weiszfeld steps from the weighted mean: z ← Σ β_k w_k / Σ β_k with β_k = p_k / max(ν, ‖z - w_k‖). z is
    always a weighted mean of the updates, so its distances follow from their Gram matrix: updates are read once for
    that and once for the result, however many steps there are. The paper takes 3 steps, each of which costs a secure
    sum there; here they go on until z moves by no more than ``tolerance`` times the harmonic mean of its distances.

    Source: Pillutla, Kakade, Harchaoui, Robust aggregation for federated learning, IEEE Transactions on Signal
    Processing 70, 2022, algorithm 2.

    Args:
        tolerance: of the move of z, see above.
        steps: at most so many steps.
        smoothing: ν, in the units of the weights' distances; an update closer than that has no more pull.
    """

    def __init__(
        self, *, tolerance: PositiveFloat = 1e-6, steps: PositiveInt = 1000, smoothing: PositiveFloat = 1e-6
    ) -> None:
        self.tolerance, self.steps, self.smoothing = tolerance, steps, smoothing

    def weights(self, updates: Sequence[Update]) -> Tensor:
        """β_k / Σ β_k of the last step."""
        matrix, declared = changes_gram(updates), declared_shares(updates)
        weights = declared
        for _ in range(self.steps):
            squares = distances_to_mean(matrix, weights)
            pulls = declared / squares.sqrt().clamp(min=self.smoothing)
            before, weights = weights, pulls / pulls.sum()
            step = weights - before
            if float(step @ matrix @ step) <= (self.tolerance / float(pulls.sum())) ** 2:
                break
        return weights


@SERVER_PARTS.add("dos")
class DOS(RobustWeighting):
    """Distance-based outlier suppression: weights are softmax(-r_k), r_k how much an outlier the distances are.

    Row k of the matrix of Euclidean distances between the updates is an observation of site k, and so is row k of the
    matrix of cosine distances; r_k is the mean of the two outlier scores that COPOD gives, see `copod`. There is
    nothing to choose, but a weight is never quite 0: a few coordinates of a huge size still come through, against
    which `norm_bound` before it helps.

    Source: Alkhunaizi et al., Suppressing poisoning attacks on federated learning for medical imaging, MICCAI 2022.
    The authors' program takes the sum of the two scores in place of the mean, and distances between models in place
    of changes, which matters to the cosine alone.
    """

    def weights(self, updates: Sequence[Update]) -> Tensor:
        """softmax(-r)."""
        matrix = changes_gram(updates)
        euclidean = squared_distances(matrix).sqrt()
        # In float32 because COPOD goes by ranks: distances that differ by rounding alone must be equal.
        euclidean = (euclidean / euclidean.max().clamp(min=1e-300)).float().double()
        return torch.softmax(-(copod(euclidean) + copod(cosine_distances(matrix))) / 2, dim=0)


def copod(observations: Tensor) -> Tensor:
    """Outlier score ``[N]`` of each row among float64 ``[N, D]``; higher is further out.

    With the left tail l = -log of the share of rows that are no larger, the right tail r = -log of the share that are
    no smaller, and s the tail that the column's skewness points to (l if negative, r if positive, l + r if zero), the
    score is the sum over columns of max(s, (l + r) / 2).

    Source: Li et al., COPOD: copula-based outlier detection, ICDM 2020, in the form of PyOD, its authors' own library,
    which DOS uses. (Algorithm 1 of the paper takes the largest of three sums over columns: of l, of r, and of s.)
    """
    columns = observations.T.contiguous()
    left = -torch.log(shares_below(columns))
    right = -torch.log(shares_below(-columns))
    deviations = columns - columns.mean(dim=1, keepdim=True)
    # A column whose values differ by rounding alone has no skewness.
    constant = deviations.square().mean(dim=1).sqrt() <= 1e-15 * columns.mean(dim=1).abs()
    sign = deviations.pow(3).mean(dim=1).sign().masked_fill(constant, 0.0)[:, None]
    skewed = left * (sign <= 0) + right * (sign >= 0)
    return torch.maximum(skewed, (left + right) / 2).sum(dim=0)


def shares_below(columns: Tensor) -> Tensor:
    """For every value of ``[D, N]`` the share of its row that is no larger."""
    ranked = columns.sort(dim=1).values
    return torch.searchsorted(ranked, columns, right=True).double() / columns.shape[1]


# A trusted site -------------------------------------------------------------------------------------------------------


@SERVER_PARTS.add("fltrust")
class FLTrust(Collected):
    """Changes are brought to the length of a trusted site's change Δ_0 and weighted by max(0, cos(Δ_k, Δ_0)).

    w ← w + Σ t_k (‖Δ_0‖ / ‖Δ_k‖) Δ_k / Σ t_k with trust t_k = max(0, cos(Δ_k, Δ_0)). So the step is never longer than
    ‖Δ_0‖, whatever other sites send. Statistics have no direction: they are medians over all sites, so that a network
    with such layers is safe against fewer than half of the sites only.

    Source: Cao et al., FLTrust: Byzantine-robust federated learning via trust bootstrapping, NDSS 2021, algorithm 2
    (with its global rate at 1). There the server has a small clean data set of its own, and its change is not itself
    in the mean. Here a site that all trust plays that part with the data it has; it is in the mean too, with t = 1,
    so that a round in which nobody agrees with it is its own.

    Args:
        trusted: name of the site.
    """

    needs_named = True

    def __init__(self, *, trusted: str) -> None:
        self.trusted, self.named = trusted, (trusted,)

    def begin(self, now: Now) -> None:
        """Begin a round.

        Raises:
            StudyError: P103 if the federation has no such site.
        """
        super().begin(now)
        if now.everyone and self.trusted not in now.everyone:
            hint = nearest(self.trusted, list(now.everyone))
            raise StudyError("P103", f"fltrust is to trust {self.trusted!r}, which is no site of the study.", hint)

    def combine(self, updates: Sequence[Update]) -> Step:
        """The mean of the changes of equal length.

        Raises:
            SiteError: P402 if the trusted site did not answer.
        """
        sites = [update.site for update in updates]
        if self.trusted not in sites:
            message = (
                f"fltrust goes by the update of {self.trusted}, which did not answer in round {self.now.number + 1}."
            )
            raise SiteError("P402", message, "Mend that site, or trust another.", site=self.trusted)
        reference = sites.index(self.trusted)
        changes = [update.change for update in updates]
        lengths, towards = lengths_and_products(changes, reference)
        # Cosines over that of the reference with itself, so that equal changes are trusted alike to the last digit.
        trust = towards / towards[reference] * (lengths[reference] / lengths)
        trust = trust.nan_to_num(0.0, 0.0, 0.0).clamp(0.0, 1.0)
        trust[reference] = 1.0  # also of a change of zero, which has no direction
        trust /= trust.sum()
        scaled = torch.where(trust > 0, trust * (lengths[reference] / lengths), 0.0).nan_to_num(0.0, 0.0)
        return Step(
            weighted_sum(changes, scaled),
            median_statistics([update.statistics for update in updates]),
            dict(zip(sites, trust.tolist(), strict=True)),
        )


# Bounded --------------------------------------------------------------------------------------------------------------


@SERVER_PARTS.add("norm_bound")
class NormBound(ServerPart):
    """Changes of the weights longer than a bound c are shortened to it: Δ_k ← Δ_k min(1, c / ‖Δ_k‖).

    Statistics have no length to go by: in place of what the aggregation made of them stands the median of each over
    all sites. Shares are those of the aggregation, before which this comes.

    Source: Sun et al., Can you really backdoor federated learning?, 2019, section 4 (norm thresholding). The bound
    ``median`` is our own: no length need be known beforehand, it follows the changes as they get shorter over the
    rounds, and it holds as long as fewer than half the sites are corrupt. So are the medians of the statistics.

    Args:
        bound: c; or ``median``, the median length, before they were shortened, of the changes in the last round that
            counted. The first round is then without a bound, and so is one after a round in which most sites changed
            nothing.
    """

    needs_each = True

    def __init__(self, *, bound: PositiveFloat | Literal["median"] = "median") -> None:
        self.bound = bound
        self._lengths: list[float] = []

    def begin(self, now: Now) -> None:
        """Begin a round: the lengths of the last one that counted become its bound."""
        super().begin(now)
        self._seen: list[float] = []
        self._statistics: list[Tensor] = []
        if self.bound == "median":
            lengths = torch.tensor(self._lengths, dtype=torch.float64)
            self._limit = float(lengths.quantile(0.5)) if self._lengths else 0.0
        else:
            self._limit = float(self.bound)

    def take(self, update: Update) -> Update:
        """The update, shortened if its change is too long."""
        length = norm(update.change)
        self._seen.append(length)
        self._statistics.append(update.statistics.clone())  # what is kept must not hold on to the whole update
        if not 0 < self._limit < length:
            return update
        factor = torch.tensor([self._limit / length], dtype=torch.float64)
        return replace(update, change=weighted_sum([update.change], factor))

    def finish(self, step: Step) -> Step:
        """The step with the medians of the statistics; only now the round counts."""
        self._lengths = self._seen
        return replace(step, statistics=median_statistics(self._statistics))

    def memory(self) -> Memory:
        """The lengths seen in the last round that counted, float64 ``[K]``."""
        return {"norms": torch.tensor(self._lengths, dtype=torch.float64)} if self.bound == "median" else {}

    def restore(self, memory: Memory) -> None:
        """Take back the lengths."""
        self._lengths = memory["norms"].tolist() if "norms" in memory else []


# Shared by the rules --------------------------------------------------------------------------------------------------


def need_sites(rule: str, answered: int, needed: int, mend: str) -> None:
    """Check that enough sites answered.

    Raises:
        SiteError: P402 if there were fewer.
    """
    if answered < needed:
        raise SiteError(
            "P402",
            f"{rule} needs the updates of at least {needed} sites; {answered} answered.",
            f"Give it {mend}, or use another server rule.",
        )


def changes_gram(updates: Sequence[Update]) -> Tensor:
    """Gram matrix of the changes of the weights, float64 ``[K, K]``."""
    return gram([update.change for update in updates])


def median_statistics(statistics: Sequence[Tensor]) -> Tensor:
    """The median over the sites ``[K]`` of each statistic ``[S]``."""
    return middle_mean(statistics, (len(statistics) - 1) // 2)


def sample(updates: Sequence[Update]) -> list[Tensor]:
    """At most 65,536 evenly spaced weights of each update; statistics in a model that has no weights."""
    vectors = [update.change if len(update.change) else update.statistics for update in updates]
    return [vector[:: -(-len(vector) // SAMPLE)].contiguous() for vector in vectors]


def counted(updates: Sequence[Update], rows: Sequence[Tensor], low: Tensor, high: Tensor) -> dict[str, float]:
    """How much each site counted where the values from ``low`` to ``high`` ``[B]`` of the ``rows`` were used."""
    used = torch.stack([(row >= low) & (row <= high) for row in rows]).double()
    shares = (used / used.sum(dim=0)).mean(dim=1).tolist()
    return {update.site: share for update, share in zip(updates, shares, strict=True)}
