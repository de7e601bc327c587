"""Ways to get the gradients of single patients: layer by layer, with `torch.func`, and one patient after another."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from polyclinic.client.private.layers import recorded, trained_layers
from polyclinic.client.private.rows import Rows
from polyclinic.state import FlatModule

#: How patients' gradients are got, fastest first.
Way = Literal["layers", "vmap", "patients"]
#: Losses of cases ``[B]`` from outputs of the network ``[B, ...]``.
Losses = Callable[[Tensor], Tensor]
#: What puts outputs and losses under automatic mixed precision.
Casting = Callable[[], AbstractContextManager[object]]


def by_layers(
    model: FlatModule, inputs: Tensor, losses: Losses, weights: Tensor, rows: Rows, casting: Casting
) -> Tensor:
    """Fill ``rows`` from one backward pass; see `polyclinic.client.private.layers`.

    Args:
        model: the network.
        inputs: of the cases ``[B, ...]``.
        losses: of the cases.
        weights: by what each case's loss is multiplied ``[B]``.
        rows: of the cases' patients.
        casting: for the forward pass.

    Returns:
        The losses ``[B]``, not multiplied.

    Raises:
        ValueError: a layer's gradients can't be taken case by case.
    """
    tensors = dict(model.module.named_parameters())
    layers = trained_layers(model.module, {tensors[entry.name] for entry in rows.places.entries})
    if layers is None:
        raise ValueError("a layer with trained weights has no rule")
    with recorded(layers, list(tensors.values()), rows.add):
        with casting():
            found = losses(model.module(inputs))
        if found.requires_grad:
            (found * weights).sum().backward()
    rows.complete()
    return found.detach()


def by_vmap(model: FlatModule, inputs: Tensor, losses: Losses, weights: Tensor, rows: Rows, casting: Casting) -> Tensor:
    """Fill ``rows`` by giving each case weights of its own; arguments as for `by_layers`.

    Only the network runs under `torch.func.vmap`, so losses may branch on what the cases are. It is a copy, since some
    networks keep tensors of their last run, which can't be used outside.
    """
    cases = len(inputs)
    module = copy.deepcopy(model.module)
    tensors = {**dict(model.module.named_parameters()), **dict(model.module.named_buffers())}
    own = {
        entry.name: tensors[entry.name].detach().expand(cases, *entry.shape).requires_grad_()
        for entry in rows.places.entries
    }
    others = {name: tensor.detach() for name, tensor in tensors.items() if name not in own}

    def alone(given: dict[str, Tensor], case: Tensor) -> Tensor:
        outputs: Tensor = functional_call(module, {**others, **given}, (case.unsqueeze(0),))
        return outputs.squeeze(0)

    with casting():
        found = losses(vmap(alone, randomness="different")(own, inputs))
    gradients = torch.autograd.grad((found * weights).sum(), list(own.values()), allow_unused=True)
    for name, gradient in zip(own, gradients, strict=True):
        if gradient is not None:
            rows.put(name, gradient.float())
    rows.complete()
    return found.detach()


def add_gradient(model: FlatModule, inputs: Tensor, losses: Losses, weights: Tensor, casting: Casting) -> Tensor:
    """Add the gradient of some cases of one patient to ``model.gradient``; arguments and result as for `by_layers`."""
    with casting():
        found = losses(model.module(inputs))
    if found.requires_grad:
        (found * weights).sum().backward()
    return found.detach()


@contextmanager
def without_dropout(module: nn.Module) -> Iterator[None]:
    """Within ``with``, dropout layers drop nothing."""
    layers = [layer for layer in module.modules() if isinstance(layer, nn.modules.dropout._DropoutNd)]
    shares = [layer.p for layer in layers]
    for layer in layers:
        layer.p = 0.0
    try:
        yield
    finally:
        for layer, share in zip(layers, shares, strict=True):
            layer.p = share
