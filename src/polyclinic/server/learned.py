"""Weights that are learned on the validation cases of the sites."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

import torch
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor
from torch.func import functional_call

from polyclinic.errors import PolyclinicError
from polyclinic.parts import SERVER_PARTS, Memory, SiteEnd, SiteView, Update
from polyclinic.parts.site_end import PartOfCases
from polyclinic.server.rules import declared_shares, weighted_sum
from polyclinic.server.weights import Remembering, carry_over, normalised
from polyclinic.shapes import Shaped

#: Rows of tables at a time.
ROWS = 256


@SERVER_PARTS.add("auto_fedavg")
class AutoFedAvg(Remembering):
    """Weights are learned with the model, so that the mean of the sites' models is good on all validation cases.

    w ← Σ a_k w_k with a = softmax(b), and before that, in each round, b ← b − lr ∂F/∂b with F = Σ p_i F_i, F_i the
    validation loss of that mean at site i. a starts at p_k. The gradient is exact: the server sends the mean to the
    sites, each answers ∇F_i there ``[T]``, and with Δ_k = w_k − w and s_k = ⟨∇F, Δ_k⟩ ∂F/∂b_k = a_k (s_k − Σ a_j s_j).
    So no site sees what another one sent; it sees the mean, as it does in every round.

    Sites that take no part in a round keep their share; the others share the rest. A site that does not answer is left
    out of F, if ``training: {quorum: ...}`` allows it. With one site, or ``lr`` 0, nothing is asked. A site without
    validation cases goes by its training cases. Models are run as in evaluation. Statistics of normalisation layers are
    averaged with the same weights, and their part in ∂F/∂b is left out. Volumes larger than the boxes of training are
    gone through in such boxes, side by side.

    Args:
        lr: of b; 0 is FedAvg.
        steps: of b in each round; each is a further model to every site, and a gradient back.

    Source: Xia et al., Auto-FedAvg: learnable federated averaging for multi-institutional medical image segmentation,
    arXiv 2104.10195, with one weight for each site and softmax. Taken from its abstract and summaries; the algorithm's
    text was not at hand. Differs: there every site is sent the models of all others and works out ∂F/∂b by itself; here
    the server does, by the chain rule. The paper also has the mean of a Dirichlet distribution in the place of softmax,
    and weights for each layer. Here b takes plain gradient steps, and F weighs sites as FedAvg does.
    """

    reveals: ClassVar = {
        "gradient": "the gradient of a mean over the site's validation cases, or its training cases where it has none: "
        "of few cases as telling as an update, and from few images can be made again"
    }
    shapes: ClassVar = {"gradient": Shaped("float32", "T")}
    returns = True
    same_network = True
    leaves_out = frozenset({"gradient"})

    def __init__(self, *, lr: NonNegativeFloat = 1.0, steps: PositiveInt = 1) -> None:
        super().__init__()
        self.lr, self.steps = lr, steps

    def at_site(self) -> SiteEnd:
        """Gives the gradient."""
        return _Validating()

    def weights(self, updates: Sequence[Update]) -> Tensor:
        """a after its steps of this round."""
        shares = carry_over(self.recall("share"), self.now.everyone)
        own = torch.tensor([shares[update.site] for update in updates], dtype=torch.float64)
        weights = own / own.sum() if own.any() else declared_shares(updates)
        if len(updates) > 1 and self.lr:
            for _ in range(self.steps):
                slopes = self.slopes(updates, weights)
                weights = normalised(weights * (-self.lr * (slopes - slopes.min())).exp())
        new = (weights * own.sum()).tolist()
        self.keep("share", shares | {update.site: share for update, share in zip(updates, new, strict=True)})
        return weights

    def slopes(self, updates: Sequence[Update], weights: Tensor) -> Tensor:
        """∂F/∂b ``[K]`` at some weights ``[K]``; 0 if no site answers."""
        change = weighted_sum([update.change for update in updates], weights)
        statistics = weighted_sum([update.statistics for update in updates], weights)
        mean = torch.cat([self.now.weights + change, statistics])
        answers = dict(self.ask("gradient", {update.site: {"state": mean} for update in updates}))
        known = [update for update in updates if not isinstance(answers[update.site], PolyclinicError)]
        if not known:
            return torch.zeros_like(weights)
        gradients = [answers[update.site]["gradient"] for update in known]  # type: ignore[index]
        gradient = weighted_sum(gradients, declared_shares(known)).double()
        along = torch.stack([gradient @ update.change.double() for update in updates])
        return weights * (along - weights @ along)


class _Validating(SiteEnd):
    needs_labels = True

    def answer(self, verb: str, asked: Memory, view: SiteView) -> Memory:
        if verb != "gradient":
            return super().answer(verb, asked, view)
        return {"gradient": validation_gradient(view)}


def validation_gradient(view: SiteView) -> Tensor:
    """∇F of the shared weights ``[T]`` at ``view.vector``, F the mean loss over the site's validation cases."""
    part: PartOfCases = "validation" if view.count("validation") else "train"
    cases, device = view.count(part), view.model.vector.device
    weights = view.vector[: view.trainable].to(device, copy=True).requires_grad_()
    state = torch.cat([weights, view.vector[view.trainable :].to(device)])
    # Of statistics there is no gradient.
    trained = {entry.name for entry in view.layout.entries if entry.trainable}
    tensors = {name: t if name in trained else t.detach() for name, t in view.layout.split(state).items()}
    rows = len(view.input_shape) == 1 and not view.bags
    size = cases if view.task.compares_cases else ROWS if rows else view.batch_size
    total, module = torch.zeros(view.trainable), view.model.module
    training = module.training
    module.eval()
    try:
        for index in torch.arange(cases).split(size):
            found = view.cases(index, part)
            for inputs, targets, share in [(*found, 1.0)] if view.bags else _boxes(*found, view.input_shape[1:]):
                loss = view.task.loss(functional_call(module, tensors, (inputs.to(device),)), targets.to(device)).mean()
                (gradient,) = torch.autograd.grad(loss * (share * len(index) / cases), weights, retain_graph=True)
                total += gradient.cpu()
    finally:
        module.train(training)
    whole = torch.zeros(len(view.vector))
    whole[: view.trainable] = total
    return view.shared(whole)[: sum(map(_length, view.shapes))].clone()


def _length(shape: tuple[int, ...]) -> int:
    return int(torch.Size(shape).numel())


def _boxes(
    inputs: Tensor, targets: Tensor, size: tuple[int, ...], axis: int = 2
) -> Iterator[tuple[Tensor, Tensor, float]]:  # fmt: skip
    """Boxes of ``size`` that cover some images, with the same of their masks, and the share of each; the last one along
    an axis overlaps with that before it."""
    if axis >= inputs.dim() or tuple(inputs.shape[2:]) == size:
        yield inputs, targets, 1.0
        return
    length, side = inputs.shape[axis], min(size[axis - 2], inputs.shape[axis])
    starts = sorted({*range(0, length - side + 1, side), length - side})
    for start in starts:
        narrowed = inputs.narrow(axis, start, side), targets.narrow(axis, start, side)
        for one, mask, share in _boxes(*narrowed, size, axis + 1):
            yield one, mask, share / len(starts)
