"""What parts add to the losses of sites that are trained together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from polyclinic.client.stacked.network import StackedNetwork
from polyclinic.client.stacked.rules import are_alike
from polyclinic.parts.site_end import Batch, Memory, SiteEnd
from polyclinic.state import FlatModule


@dataclass
class _Rule:
    """A part's end that stands for those of all sites, and what each site's own ``begin`` gave ``[S, ...]``."""

    end: SiteEnd
    given: Memory


class StackedLosses:
    """The terms that parts with ``stacks_loss`` add to the loss of each of many sites.

    A term is a mean over cases, so sites are run together whose batches are of one size, and nothing is padding.

    Args:
        model: the network of the sites, which parts may run with other states.
        network: the same for many sites.
        ends: of each part, the ends of all sites, each with what its ``begin`` gave.
        received: whole states of the received models ``[S, P]``.

    Raises:
        ValueError: ends of a part differ from site to site; then each site has to be trained by itself.
    """

    def __init__(
        self, model: FlatModule, network: StackedNetwork, ends: Sequence[Sequence[tuple[SiteEnd, Memory]]],
        received: Tensor,
    ) -> None:  # fmt: skip
        self.model, self.network, self.received = model, network, received
        self.rules = list[_Rule]()
        for mine in ends:
            if not are_alike(mine):
                raise ValueError(f"{mine[0][0].name} knows something else at each site")
            given = {name: torch.stack([own[name] for _, own in mine]).to(received.device) for name in mine[0][1]}
            self.rules.append(_Rule(mine[0][0], given))
        self._needs_features = any(rule.end.needs_features for rule in self.rules)

    def outputs(
        self, weights: Tensor, statistics: Tensor, inputs: Tensor, targets: Tensor, sizes: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """Outputs of the network, zero where inputs are padding ``[A, B, ...]``, and the sum of all terms ``[A]``.

        Args:
            weights: of the first A sites ``[A, T]``.
            statistics: the rest of their states, moved on in place ``[A, P - T]``.
            inputs: ``[A, B, ...]``.
            targets: ``[A, B, ...]``.
            sizes: how many cases of each site are none of the padding.
        """
        rows = defaultdict[int, list[int]](list)
        for row, size in enumerate(sizes):
            rows[size].append(row)
        if len(rows) == 1:
            return self._alike(weights, statistics, inputs, targets, slice(0, len(sizes)), sizes[0])
        outputs, terms = list[Tensor](), list[Tensor]()
        for size, places in rows.items():
            chosen = torch.tensor(places, device=inputs.device)
            found, added = self._alike(weights, statistics, inputs, targets, chosen, size)
            outputs.append(found)
            terms.append(added)
        order = torch.tensor([row for places in rows.values() for row in places], device=inputs.device).argsort()
        return torch.cat(outputs)[order], torch.cat(terms)[order]

    def _alike(
        self, weights: Tensor, statistics: Tensor, inputs: Tensor, targets: Tensor, chosen: Tensor | slice, size: int
    ) -> tuple[Tensor, Tensor]:
        """The same for the chosen sites, whose batches have ``size`` cases."""
        moved, cases = statistics[chosen], inputs[chosen, :size]
        given = [{name: tensor[chosen] for name, tensor in rule.given.items()} for rule in self.rules]
        outputs, terms = self.network.outputs_with(
            weights[chosen], moved, cases, self._terms, (cases, targets[chosen, :size], self.received[chosen], given),
            self.model if self._needs_features else None,
        )  # fmt: skip
        statistics[chosen] = moved.detach()
        return F.pad(outputs, [0, 0] * (outputs.dim() - 2) + [0, inputs.shape[1] - size]), terms

    def _terms(self, outputs: Tensor, features: Tensor, own: tuple[Tensor, Tensor, Tensor, Sequence[Memory]]) -> Tensor:
        """The sum of a site's terms, inside `torch.func.vmap`."""
        inputs, targets, received, given = own
        batch = Batch(inputs, targets, self.model, received, 0, outputs, features)
        total = outputs.new_zeros(())
        for rule, mine in zip(self.rules, given, strict=True):
            term = rule.end.loss(batch, mine)
            total = total if term is None else total + term.reshape(())
        return total
