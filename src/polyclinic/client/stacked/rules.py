"""What parts do to the gradients of sites that are trained together."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from polyclinic.client.work import change_gradient
from polyclinic.parts.checks import Unwritten
from polyclinic.parts.site_end import Memory, SiteEnd

#: Sites with which it is tried whether one end can serve all.
_TRIED = 3


class StackedRule:
    """A part's change of the gradients of many sites, a row each.

    One end serves all rows where each site's own end would do the same, alone with its row. Where it would not, each
    end changes its own row: an end may know something of its site that ``begin`` did not give, remember something from
    step to step, or take a norm over all that it gets. Which it is is found out in every round.

    Args:
        ends: of the sites, each with what its ``begin`` gave.
        start: weights of the received models ``[S, T]``.
    """

    def __init__(self, ends: Sequence[tuple[SiteEnd, Memory]], start: Tensor) -> None:
        self.ends = [(end, {name: tensor.to(start.device) for name, tensor in given.items()}) for end, given in ends]
        alike = are_alike(self.ends)
        names = self.ends[0][1] if alike else {}
        self.given = {name: torch.stack([own[name] for _, own in self.ends]) for name in names}
        self.together = alike and self._serves_all(start)

    def change(self, gradient: Tensor, weights: Tensor, start: Tensor) -> None:
        """Change the gradients of the first sites ``[S', T]`` in place."""
        active = len(gradient)
        if self.together:
            own = {name: tensor[:active] for name, tensor in self.given.items()}
            change_gradient(self.ends[0][0], gradient, weights, start[:active], own)
            return
        for row, (end, given) in enumerate(self.ends[:active]):
            change_gradient(end, gradient[row], weights[row], start[row], given)

    def _serves_all(self, start: Tensor) -> bool:
        """Whether an end does to the gradients of a few sites together what it does to each of them.

        It is tried on a copy without its memory, which is another one at each site, in 64 bits, and on gradients of
        many lengths, since a rule may heed only long ones.
        """
        end = copy.copy(self.ends[0][0])
        end._kept = None
        try:
            end = copy.deepcopy(end)
            knows = Unwritten(vars(end))
            gradient, step = (made_up[: len(start)] for made_up in _made_up(start.shape[1]))
            start, given = _tried(start), {name: _tried(tensor) for name, tensor in self.given.items()}
            weights, together, alone = start + step, gradient.clone(), gradient.clone()
            end.gradient(together, weights, start, given)
            for row in range(len(start)):
                end.gradient(
                    alone[row], weights[row], start[row], {name: tensor[row] for name, tensor in given.items()}
                )
        except Exception:  # where it is asked in earnest it is told who failed
            return False
        return not knows.changed(vars(end)) and torch.allclose(together - gradient, alone - gradient, 1e-6, 1e-9)


def are_alike(ends: Sequence[tuple[SiteEnd, Memory]], differing: frozenset[str] = frozenset()) -> bool:
    """Whether the ends of all sites know the same, and were given tensors of the same names and shapes.

    Args:
        ends: each with what it was given.
        differing: names of attributes that do not matter.
    """
    first, given = ends[0]
    same = (_alike(vars(first), vars(end), differing) for end, _ in ends[1:])
    return all(same) and all(shapes_of(own) == shapes_of(given) for _, own in ends[1:])


def shapes_of(given: Memory) -> dict[str, torch.Size]:
    """Names and shapes of tensors."""
    return {name: tensor.shape for name, tensor in given.items()}


def _alike(first: Mapping[str, object], other: Mapping[str, object], differing: frozenset[str]) -> bool:
    """Whether two ends know the same, besides what they keep, and what is ``differing``."""
    hidden = {"_kept", *differing}
    names = first.keys() - hidden
    return names == other.keys() - hidden and all(_equal(first[name], other[name]) for name in names)


def _equal(first: object, other: object) -> bool:
    if isinstance(first, Tensor) and isinstance(other, Tensor):
        return first is other or torch.equal(first, other)
    try:
        return first is other or bool(first == other)
    except (RuntimeError, ValueError):  # of things that hold tensors or arrays
        return False


@lru_cache(maxsize=2)
def _made_up(weights: int) -> tuple[Tensor, Tensor]:
    """Gradients and steps of a few sites."""
    random = torch.Generator().manual_seed(0)
    gradient, step = torch.randn((2, _TRIED, weights), generator=random, dtype=torch.float64)
    return gradient * torch.tensor([[1e-3], [1e3], [1.0]], dtype=torch.float64), step


def _tried(tensor: Tensor) -> Tensor:
    """The rows of the sites with which something is tried."""
    tensor = tensor[:_TRIED].cpu()
    return tensor.double() if tensor.is_floating_point() else tensor
