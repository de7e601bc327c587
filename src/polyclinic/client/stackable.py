"""Whether a network can be run for many sites at once: it is tried, since no list of layers would be complete."""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from polyclinic.client.stacked_network import StackedNetwork
from polyclinic.randomness import own_randomness
from polyclinic.seeds import generator
from polyclinic.state import FlatModule

#: Cases of the trial: of two sites, where the second may have one case less and be padded.
_CASES = 4
#: Largest difference that is rounding, as a share of the largest number compared.
_ROUNDING = 1e-3

_found: WeakKeyDictionary[FlatModule, dict[tuple[int, ...], str]] = WeakKeyDictionary()


def network_obstacle(model: FlatModule, shape: tuple[int, ...]) -> str:
    """Why the network can't be run for many sites at once, for people; empty if it can.

    It is run once for two sites with different weights, and once more where a site has fewer cases and is padded; then
    for each site alone. Outputs, gradients and running statistics must agree. What comes of the trial is remembered
    for as long as ``model`` exists.

    Args:
        model: the network; neither its state nor any random generator is changed.
        shape: of one input.
    """
    known = _found.setdefault(model, {})
    if shape not in known:
        with warnings.catch_warnings(), own_randomness("trial of a network"):
            warnings.simplefilter("ignore")  # PyTorch's, of operators that are slow for many sites
            try:
                known[shape] = _try(model, shape)
            except Exception as error:  # of any kind: the network's own, or of an operator that vmap does not know
                said = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
                known[shape] = _known_obstacle(model.module, f"the network can't be run for several at once: {said}")
    return known[shape]


@dataclass
class _Run:
    """What came of running a network on a site's cases, by what it is for people."""

    outputs: Tensor
    gradients: Tensor
    statistics: Tensor

    def difference(self, other: _Run) -> str:
        """The first thing that differs by more than rounding, or ""."""
        for name, own in vars(self).items():
            given = getattr(other, name)
            largest = max(float(own.abs().max()), 1e-12) if own.numel() else 0.0
            if own.shape != given.shape or not bool(((own - given).abs() <= _ROUNDING * largest).all()):
                return name if name != "statistics" else "running statistics"
        return ""


def _try(model: FlatModule, shape: tuple[int, ...]) -> str:
    source = generator("trial of a network")
    one = FlatModule(copy.deepcopy(model.module).to("cpu"))  # on the processor no rounding is hidden by TF32
    trainable = one.layout.trainable
    states = one.vector.repeat(2, 1)
    states[:, :trainable] += 0.1 * torch.randn(states[:, :trainable].shape, generator=source)
    states[:, trainable:] *= 1 + 0.1 * torch.rand(states[:, trainable:].shape, generator=source)
    inputs = torch.randn(2, _CASES, *shape, generator=source)
    network = StackedNetwork(one, shape)
    if _alone(one, states[0], inputs[0], 1).difference(_alone(one, states[0], inputs[0], 2)):
        return _known_obstacle(model.module, "the network draws random numbers in training, which would differ")
    for second, where in ((_CASES, ""), (_CASES - 1, ", where one has fewer cases")):
        together = _together(network, states, inputs, second)
        for site, cases in enumerate((_CASES, second)):
            what = _alone(one, states[site], inputs[site, :cases], 1).difference(together[site])
            if what:
                text = f"the network has other {what} when it is run for several sites at once{where}"
                return _known_obstacle(model.module, text)
    return ""


def _loss(outputs: Tensor) -> Tensor:
    """For each case a number that depends on all of its outputs ``[B, ...]``, each in its own way."""
    flat = outputs.flatten(1)
    return (flat * torch.linspace(1.0, 2.0, flat.shape[1])).sum(1).tanh() + flat.square().mean(1)


def _alone(model: FlatModule, state: Tensor, inputs: Tensor, seed: int) -> _Run:
    model.load(state)
    model.module.train()
    model.gradient.zero_()
    with own_randomness("trial of a network", seed):
        outputs = model.module(inputs)
    _loss(outputs).sum().backward()
    trainable = model.layout.trainable
    return _Run(outputs.detach(), model.gradient.clone(), model.vector[trainable:].clone())


def _together(network: StackedNetwork, states: Tensor, inputs: Tensor, second: int) -> list[_Run]:
    """Both sites at once, of the second only its first ``second`` cases."""
    trainable, sizes = network.layout.trainable, (inputs.shape[1], second)
    weights, statistics = states[:, :trainable].clone().requires_grad_(), states[:, trainable:].clone()
    mask = torch.ones(inputs.shape[:2])
    mask[1, second:] = 0
    padded = inputs.clone()
    padded[1, second:] = inputs[1, 0]
    outputs = network.outputs(weights, statistics, padded, None if second == inputs.shape[1] else mask)
    losses = _loss(outputs.flatten(0, 1)).view(mask.shape)
    gradient = torch.autograd.grad((losses * mask).sum(), weights)[0]
    return [_Run(outputs[site, :size].detach(), gradient[site], statistics[site]) for site, size in enumerate(sizes)]


def _known_obstacle(module: nn.Module, otherwise: str) -> str:
    """What it is likely due to, in words that say more than what the trial found."""
    for layer in module.modules():
        if isinstance(layer, nn.modules.dropout._DropoutNd) and layer.p > 0:
            return "the network has dropout, whose random numbers would differ"
        if isinstance(layer, nn.modules.instancenorm._InstanceNorm) and layer.track_running_stats:
            return "instance normalisation keeps running statistics"
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and (layer.momentum is None or not layer.affine):
            return "batch normalisation keeps cumulative averages or has no scale"
    return otherwise
