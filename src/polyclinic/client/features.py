"""What a network makes of cases as in evaluation, in the middle of training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call

from polyclinic.state import FlatModule

#: Layers that leave out numbers at random.
DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


def mean_over_places(features: Tensor) -> Tensor:
    """Features of cases ``[B, G]`` from features of places in them ``[B, G, ...]``."""
    return features.flatten(2).mean(2) if features.dim() > 2 else features


@contextmanager
def evaluating(model: FlatModule, *, dropout: bool = False) -> Iterator[None]:
    """The network as in evaluation, but perhaps for its dropout layers; then as it was."""
    training = model.module.training
    model.module.eval()
    try:
        for layer in model.module.modules() if dropout else ():
            if isinstance(layer, DROPOUT):
                layer.train()
        yield
    finally:
        model.module.train(training)


def head_input(model: FlatModule) -> Tensor | None:
    """What the head of a network is given of one made-up case ``[1, ...]``; None where the network has no head.

    Only its shape means anything: what a head's first layer says of its inputs is not all of it.
    """
    if not model.head or not model.shape:
        return None
    found: list[Tensor] = []
    hook = model.record_features(found)
    try:
        case = torch.zeros(1, *model.shape, device=model.vector.device)
        frozen_outputs(model, torch.zeros_like(model.vector), case)
    finally:
        hook.remove()
    return found[0]


def feature_count(model: FlatModule) -> int | None:
    """How many features G of a case there are, averaged over places; None where the network has no head."""
    given = head_input(model)
    return None if given is None else mean_over_places(given).shape[1]


def frozen_outputs(model: FlatModule, vector: Tensor | None, inputs: Tensor) -> Tensor:
    """Outputs of the network as in evaluation, without gradient; nothing of it is changed.

    Args:
        model: lends its network, which may be in the middle of a step.
        vector: a state of it ``[P]``; None takes its own.
        inputs: ``[B, ...]``.
    """
    with torch.no_grad():
        return evaluated_outputs(model, vector, inputs)


def evaluated_outputs(model: FlatModule, vector: Tensor | None, inputs: Tensor) -> Tensor:
    """As ``frozen_outputs``, with gradient."""
    with evaluating(model):
        if vector is None:
            found: Tensor = model.module(inputs)
        else:
            found = functional_call(model.module, model.layout.split(vector), (inputs,))
    return found


def frozen_features(model: FlatModule, vector: Tensor, inputs: Tensor) -> Tensor:
    """What the head is given in evaluation with the state ``vector [P]``, averaged over places ``[B, G]``; the network
    is lent as for `frozen_outputs`.

    Raises:
        TrainingError: P302 if the model has no head.
    """
    found: list[Tensor] = []
    hook = model.record_features(found)
    try:
        frozen_outputs(model, vector, inputs)
    finally:
        hook.remove()
    return mean_over_places(found[0]).float()
