"""Whether made inputs are copies of those that were learned from, as a site finds it and as all may know it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as nnf
from torch import Tensor

from polyclinic.shapes import Shaped

#: Images are compared at this many pixels a side: fine noise would make copies look far from what they copy.
SIDE = 16
#: The share of held-out cases that are as near to a training case as counts as suspicious.
_QUANTILE = 0.05
#: Nor is it suspicious to be nearer to training cases by less than a tenth: where all cases are about as far from each
#: other, as images with much noise are, the 5 % mean little.
_MOST = 0.9
#: Cases whose distances are found together.
_AT_ONCE = 256
#: Shapes of what a site tells.
TOLD: Mapping[str, Shaped] = {
    "counts": Shaped("int64", 4, least=0, most=10**9),
    "nearness": Shaped("float64", 4, least=0, most=1e6),
}


def told(made: Tensor, training: Tensor, held: Tensor) -> dict[str, Tensor]:
    """How near made inputs are to training cases, compared with cases that were held out of training.

    The nearness of an input is its distance to the nearest training case, divided by that to the nearest held-out case
    (another one, for a held-out case itself). A copy has 0. An input that is merely smoother than real ones is near to
    both. Made inputs that are no copies have it as held-out cases do. The limit is what 5 % of the held-out cases, at
    least one, do not exceed, and 0.9 at most.

    Source: the test for copies of Meehan, Chaudhuri, Dasgupta, A non-parametric test to detect data-copying in
    generative models, AISTATS 2020, compares distances to training cases of made and of held-out ones; divided by
    those to held-out cases it does not take smoothness for copying.

    Args:
        made: inputs, `reduced` ``[M, d]``; scaled as the site's own are.
        training: the site's training cases ``[n, d]``.
        held: its held-out cases ``[v, d]``, of a patient each; with fewer than two nothing can be told.

    Returns:
        ``counts`` int64 ``[4]``: made inputs, of these below the limit; held-out cases that it is of, and all of these.
        ``nearness`` float64 ``[4]``: median and least of made, then of held-out ones.
    """
    if len(held) < 2 or not len(training) or not len(made):
        return _nothing()
    others = _distances(held, held)
    others.fill_diagonal_(torch.inf)
    return _below(_ratio(_nearest(made, training), _nearest(made, held)),
                  _ratio(_nearest(held, training), others.amin(1)))  # fmt: skip


def told_of_pairs(learned: Tensor, aside: Tensor) -> dict[str, Tensor]:
    """How near images that were made from masks are to the images that were outlined.

    What is made from a mask shows its structures where they are, so it is nearer to the image with this mask than to
    any other without being a copy. It is held against patients who were kept aside, so that neither their masks nor
    their images were learned from: what is made from their masks has as much of their images as a mask tells. The
    nearness of an image is its distance to the image with its mask, divided by the median of these distances of those
    kept aside; limit and counts are as in `told`.

    Args:
        learned: distances for masks that were learned from, of a patient each ``[m]``.
        aside: for those that were kept aside ``[v]``; with fewer than two nothing can be told.

    Returns:
        As `told`, with those kept aside in the place of held-out cases.
    """
    if len(aside) < 2 or not len(learned):
        return _nothing()
    middle = aside.quantile(0.5).expand(1)
    return _below(_ratio(learned, middle), _ratio(aside, middle))


def least_each(values: Tensor, places: Tensor, count: int) -> Tensor:
    """The least of the values ``[M]`` that have each of ``count`` places ``[M]``; infinite where none has."""
    return torch.full((count,), torch.inf, dtype=values.dtype).scatter_reduce(0, places, values, "amin")


def _nothing() -> dict[str, Tensor]:
    return {"counts": torch.zeros(4, dtype=torch.int64), "nearness": torch.zeros(4, dtype=torch.float64)}


def _below(of_made: Tensor, of_held: Tensor) -> dict[str, Tensor]:
    """What is told of nearness ``[M]``, and that of held-out cases ``[v]``."""
    limit = of_held.sort().values[max(1, int(_QUANTILE * (len(of_held) + 1))) - 1]
    nearer = of_made <= limit.clamp(max=_MOST)
    counts = [len(of_made), int(nearer.sum()), int((of_held <= limit).sum()), len(of_held)]
    nearness = [of_made.quantile(0.5), of_made.min(), of_held.quantile(0.5), of_held.min()]
    return {"counts": torch.tensor(counts), "nearness": torch.stack(nearness)}


def reduced(cases: Tensor) -> Tensor:
    """Inputs ``[N, F]`` or images ``[N, C, H, W]`` as they are compared, one row a case: float64 ``[N, d]``."""
    if cases.ndim > 2:
        height, width = cases.shape[2:]
        cases = nnf.adaptive_avg_pool2d(cases.double(), (min(height, SIDE), min(width, SIDE)))
    return cases.flatten(1).double()


def _distances(rows: Tensor, others: Tensor) -> Tensor:
    """Not by products, which would not give 0 for equal rows."""
    return torch.cdist(rows, others, compute_mode="donot_use_mm_for_euclid_dist")


def _nearest(rows: Tensor, others: Tensor) -> Tensor:
    found = torch.full((len(rows),), torch.inf, dtype=torch.float64)
    for some in others.split(_AT_ONCE):
        found = torch.minimum(found, _distances(rows, some).amin(1))
    return found


def _ratio(near: Tensor, far: Tensor) -> Tensor:
    """0 / 0 is 1: as near to the one as to the other."""
    ratio = (near / far).clamp(max=1e6)
    return torch.where(near == far, 1.0, ratio)


@dataclass(frozen=True)
class Copied:
    """What a site told, and what it means.

    Attributes:
        made: inputs that were looked at.
        nearer: those below the limit.
        held: held-out cases.
        held_nearer: those that the limit is of: 5 % of them, at least one.
        made_median, made_least, held_median, held_least: nearness.
    """

    made: int
    nearer: int
    held: int
    held_nearer: int
    made_median: float
    made_least: float
    held_median: float
    held_least: float

    @classmethod
    def of(cls, told: Mapping[str, Tensor]) -> Copied:
        """What `told` gave."""
        made, nearer, held_nearer, held = told["counts"].tolist()
        return cls(made, nearer, held, held_nearer, *told["nearness"].tolist())

    @property
    def known(self) -> bool:
        """Whether there were cases to compare with."""
        return self.held > 0

    @property
    def expected(self) -> float:
        """The share of inputs below the limit if they were no copies, at most."""
        return self.held_nearer / (self.held + 1)

    @property
    def chance(self) -> float:
        """How probable so many inputs below the limit, or more, are if they are no copies.

        The limit is the k-th of v held-out cases, so that the share of cases below it is Beta(k, v + 1 − k), and the
        number of m made inputs beta-binomial; with many held-out cases that is binomial. If the limit is 0.9 the chance
        is smaller than this.
        """
        from scipy.stats import betabinom

        return float(betabinom.sf(self.nearer - 1, self.made, self.held_nearer, self.held + 1 - self.held_nearer))
