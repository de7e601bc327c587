"""What parts add to the losses of sites that are trained together."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from polyclinic.client.stacked.network import StackedNetwork
from polyclinic.client.stacked.rules import are_alike, shapes_of
from polyclinic.client.work import drawn
from polyclinic.parts.site_end import Batch, Beside, Memory, SiteEnd
from polyclinic.state import FlatModule


@dataclass
class _Rule:
    """A part whose loss one end computes for all sites.

    Attributes:
        end: a copy without what each site has of its own: who reads it all the same fails, and is not wrong.
        ends: of the sites, which draw.
        given: what each site's own ``begin`` gave ``[S, ...]``.
    """

    end: SiteEnd
    ends: Sequence[SiteEnd]
    given: Memory


class StackedLosses:
    """The terms that parts with ``stacks_loss`` add to the loss of each of many sites.

    A term is a mean over cases, so sites are run together whose batches are of one size, as is what they drew for this
    step, and nothing is padding.

    Args:
        model: the network of the sites, which parts may run with other states.
        network: the same for many sites.
        ends: of each part, the ends of all sites, each with what its ``begin`` gave.
        received: whole states of the received models ``[S, P]``.
        sites: their names.

    Raises:
        ValueError: ends of a part differ from site to site; then each site has to be trained by itself.
    """

    def __init__(
        self, model: FlatModule, network: StackedNetwork, ends: Sequence[Sequence[tuple[SiteEnd, Memory]]],
        received: Tensor, sites: Sequence[str],
    ) -> None:  # fmt: skip
        self.model, self.network, self.received, self.sites = model, network, received, sites
        self.rules = list[_Rule]()
        for mine in ends:
            first = mine[0][0]
            if not are_alike(mine, first.differing):
                raise ValueError(f"{first.name} knows something else at each site")
            given = {name: torch.stack([own[name] for _, own in mine]).to(received.device) for name in mine[0][1]}
            common = copy.copy(first)
            for name in first.differing & vars(common).keys():
                delattr(common, name)
            self.rules.append(_Rule(common, [end for end, _ in mine], given))
        self._needs_features = any(rule.end.needs_features for rule in self.rules)

    def outputs(
        self, weights: Tensor, statistics: Tensor, inputs: Tensor, targets: Tensor, sizes: Sequence[int],
        seeds: Sequence[int],
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Outputs of the network, zero where inputs are padding ``[A, B, ...]``, and the sum of all terms ``[A]``.

        Args:
            weights: of the first A sites ``[A, T]``.
            statistics: the rest of their states, moved on in place ``[A, P - T]``.
            inputs: ``[A, B, ...]``.
            targets: ``[A, B, ...]``.
            sizes: how many cases of each site are none of the padding.
            seeds: of this step at each of them.
        """
        device = inputs.device
        drew = [[drawn(rule.ends[row], seed, device, self.sites[row]) for rule in self.rules]
                for row, seed in enumerate(seeds)]  # fmt: skip
        alike = defaultdict[object, list[int]](list)
        for row, size in enumerate(sizes):
            alike[size, *(tuple(shapes_of(own).items()) for own in drew[row])].append(row)
        if len(alike) == 1:
            return self._alike(weights, statistics, inputs, targets, slice(0, len(sizes)), sizes[0], drew)
        outputs, terms = list[Tensor](), list[Tensor]()
        for rows in alike.values():
            chosen, own = torch.tensor(rows, device=device), [drew[row] for row in rows]
            found, added = self._alike(weights, statistics, inputs, targets, chosen, sizes[rows[0]], own)
            outputs.append(found)
            terms.append(added)
        order = torch.tensor([row for rows in alike.values() for row in rows], device=device).argsort()
        return torch.cat(outputs)[order], torch.cat(terms)[order]

    def _alike(
        self, weights: Tensor, statistics: Tensor, inputs: Tensor, targets: Tensor, chosen: Tensor | slice, size: int,
        drew: Sequence[Sequence[Memory]],
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """The same for the chosen sites, whose batches have ``size`` cases."""
        moved, cases = statistics[chosen], inputs[chosen, :size]
        given = [
            {name: tensor[chosen] for name, tensor in rule.given.items()}
            | {name: torch.stack([own[number][name] for own in drew]) for name in drew[0][number]}
            for number, rule in enumerate(self.rules)
        ]
        outputs, terms = self.network.outputs_with(
            weights[chosen], moved, cases, self._terms, (cases, targets[chosen, :size], self.received[chosen], given),
            self.model if self._needs_features else None,
        )  # fmt: skip
        statistics[chosen] = moved.detach()
        return F.pad(outputs, [0, 0] * (outputs.dim() - 2) + [0, inputs.shape[1] - size]), terms

    def _terms(
        self, outputs: Tensor, features: Tensor, network: Beside, own: tuple[Tensor, Tensor, Tensor, Sequence[Memory]]
    ) -> Tensor:  # fmt: skip
        """The sum of a site's terms, inside `torch.func.vmap`."""
        inputs, targets, received, given = own
        batch = Batch(inputs, targets, self.model, received, 0, outputs, features, beside=network)
        total = outputs.new_zeros(())
        for rule, mine in zip(self.rules, given, strict=True):
            term = rule.end.loss(batch, mine)
            total = total if term is None else total + term.reshape(())
        return total
