"""Made-up cases near those of a site, where its model changes its mind or the common one is sure: FedVSS."""

from __future__ import annotations

from collections.abc import Callable

import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from polyclinic.client.features import evaluated_outputs, frozen_outputs
from polyclinic.client.few_labels.consistency import SeenTwice, of_classes
from polyclinic.parts import LOCAL_PARTS, Batch, Memory, SitePart

#: A step this much shorter looks which way a model changes its mind.
_GLANCE = 0.1


@LOCAL_PARTS.add("virtual_samples")
class VirtualSamples(SeenTwice, SitePart):
    """FedVSS: a site's model shall be smooth around its cases, and agree with the common model where that one is sure.

    For the cases x of each batch, and some without a label where the site has any, with p the probabilities of the
    site's model and q those of the model that it received, the loss gets a · mean KL(p(x) ‖ p(x + r)), p(x) without
    gradient, with the change r of a given length that matters most to p (one step of virtual adversarial training),
    and b · mean KL(q(x') ‖ p(x')). There x' = x − s, with s along the gradient of −log q of the class that q finds
    likeliest in x. The length of r and s is ``size``, as root mean square over the features or pixels of a case. The
    network is as in evaluation, so that a change of nothing would add nothing.

    Source: Zhu, Luo, Federated medical image analysis with virtual sample synthesis, MICCAI 2022, by its abstract:
    samples are made adversarially with the local model, and with high confidence of the global model. Its text was not
    at hand, so the losses are ours. The first is Miyato et al., Virtual adversarial training, IEEE TPAMI 41 (2019),
    with one power iteration. Neither needs a label.

    Args:
        smoothness: a; 0 leaves it out.
        consistency: b; 0 leaves it out.
        size: of changes, in units of what the network is given; inputs that are scaled have a deviation of 1.
        cases: without a label in each step.
    """

    needs_unlabelled = False
    needs_labels = False
    tasks = ("classification", "segmentation")

    def __init__(
        self, *, smoothness: NonNegativeFloat = 1.0, consistency: NonNegativeFloat = 1.0, size: PositiveFloat = 0.2,
        cases: PositiveInt = 32,
    ) -> None:  # fmt: skip
        super().__init__(weight=smoothness + consistency, cases=cases, strength=0.0)
        self.smoothness, self.consistency, self.size = smoothness, consistency, size

    def loss(self, batch: Batch, given: Memory) -> Tensor | None:
        """Both terms."""
        if not self.weight:
            return None
        inputs = batch.inputs.float()
        inputs = torch.cat([inputs, given["weak"]]) if "weak" in given else inputs
        terms = [
            weight * term(batch, inputs)
            for weight, term in ((self.smoothness, self._smooth), (self.consistency, self._agree))
            if weight
        ]
        return torch.stack(terms).sum()

    def _smooth(self, batch: Batch, inputs: Tensor) -> Tensor:
        task, model = self._view.task, batch.model
        wanted = of_classes(task, frozen_outputs(model, None, inputs))
        source = torch.Generator().manual_seed(batch.seed)
        way = torch.randn(inputs.shape, generator=source).to(inputs.device)

        def differs(changed: Tensor) -> Tensor:
            return divergence(wanted, of_classes(task, evaluated_outputs(model, None, changed)))

        worst = _slope(differs, inputs + of_size(way, _GLANCE * self.size))
        return differs(inputs + of_size(worst, self.size))

    def _agree(self, batch: Batch, inputs: Tensor) -> Tensor:
        task, model, common = self._view.task, batch.model, batch.received
        likeliest = of_classes(task, frozen_outputs(model, common, inputs)).argmax(1, keepdim=True)

        def doubt(changed: Tensor) -> Tensor:
            found = of_classes(task, evaluated_outputs(model, common, changed))
            return -found.gather(1, likeliest).clamp_min(1e-7).log().mean()

        sure = inputs - of_size(_slope(doubt, inputs), self.size)
        wanted = of_classes(task, frozen_outputs(model, common, sure))
        return divergence(wanted, of_classes(task, evaluated_outputs(model, None, sure)))


def of_size(changes: Tensor, size: float) -> Tensor:
    """Changes of cases ``[B, ...]``, each of a root mean square of ``size``; one of nothing stays so."""
    length = changes.flatten(1).square().mean(1).sqrt().view(-1, *(1 for _ in changes.shape[1:]))
    return torch.where(length > 0, size * changes / length.clamp_min(torch.finfo(changes.dtype).tiny), changes)


def divergence(wanted: Tensor, found: Tensor) -> Tensor:
    """Mean over cases (and pixels) of KL(wanted ‖ found), probabilities ``[B, C, ...]``."""
    logs = [one.clamp_min(1e-7).log() for one in (wanted, found)]
    return (wanted * (logs[0] - logs[1])).sum(1).mean()


def _slope(function: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    """The gradient of a function of inputs at some of them."""
    at = inputs.detach().requires_grad_()
    with torch.enable_grad():
        (found,) = torch.autograd.grad(function(at), at)
    return found
