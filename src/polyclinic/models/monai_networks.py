"""MONAI's networks, which remember what they were built of, so that another program can build them again."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn
from torch.overrides import TorchFunctionMode


class BuiltOf(NamedTuple):
    """What a network of MONAI was built of.

    Attributes:
        network: name of its class in ``monai.networks.nets``.
        arguments: plain values for its constructor.
    """

    network: str
    arguments: dict[str, Any]


def build_network(network: str, **arguments: Any) -> Any:
    """A network of ``monai.networks.nets``; `built_of` tells later what is given here."""
    from monai.networks import nets

    with _ReadableRates():
        module = getattr(nets, network)(**arguments)
    module.built_of = BuiltOf(network, arguments)
    return module


class _ReadableRates(TorchFunctionMode):
    """Lets networks that read rates of stochastic depth from a tensor be built on the device ``meta``, too."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = dict(kwargs or {})
        if func is torch.linspace:
            given["device"] = "cpu"
        return func(*args, **given)


def built_of(module: nn.Module) -> BuiltOf | None:
    """What a network was built of; None of those that are not MONAI's own."""
    found = getattr(module, "built_of", None)
    return found if isinstance(found, BuiltOf) else None
