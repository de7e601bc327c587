"""Whether a network can be run for many sites at once: it is tried, since no list of layers would be complete."""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.func import functional_call

from polyclinic.client.stacked.network import StackedNetwork
from polyclinic.models import pools_bags
from polyclinic.randomness import own_randomness
from polyclinic.seeds import generator
from polyclinic.state import FlatModule

#: Cases of the trial: of two sites, where the second may have one case less and be padded.
_CASES = 4
#: Largest difference that is rounding, as a share of the largest number compared.
_ROUNDING = {torch.float64: 1e-6, torch.float32: 1e-3}

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
    if pools_bags(model.module):
        return "cases are bags of different sizes"
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
    """What came of running a network on a site's cases."""

    outputs: Tensor
    gradients: Tensor
    running_statistics: Tensor

    def difference(self, other: _Run) -> str:
        """What differs first by more than rounding, for people, or ""."""
        for name, own in vars(self).items():
            given = getattr(other, name)
            largest = max(float(own.abs().max()), 1e-12) if own.numel() else 0.0
            if own.shape != given.shape or not bool(((own - given).abs() <= _ROUNDING[own.dtype] * largest).all()):
                return str(name).replace("_", " ")
        return ""


def _try(model: FlatModule, shape: tuple[int, ...]) -> str:
    trial = _Trial(model, shape)
    if trial.alone(0, _CASES, seed=1).difference(trial.alone(0, _CASES, seed=2)):
        return _known_obstacle(model.module, "the network draws random numbers in training, which would differ")
    for second, where in ((_CASES, ""), (_CASES - 1, ", where one has fewer cases")):
        together = trial.together(second)
        for site, cases in enumerate((_CASES, second)):
            what = trial.alone(site, cases).difference(together[site])
            if what:
                text = f"the network has other {what} when it is run for several sites at once{where}"
                return _known_obstacle(model.module, text)
    return ""


class _Trial:
    """Two sites' states ``[2, P]`` and cases ``[2, B, ...]``, and the network; all on the processor."""

    def __init__(self, model: FlatModule, shape: tuple[int, ...]) -> None:
        source = generator("trial of a network")
        self.layout, trainable = model.layout, model.layout.trainable
        states = model.vector.cpu().repeat(2, 1)
        states[:, :trainable] += 0.1 * torch.randn(states[:, :trainable].shape, generator=source)
        states[:, trainable:] *= 1 + 0.1 * torch.rand(states[:, trainable:].shape, generator=source)
        inputs = torch.randn(2, _CASES, *shape, generator=source)
        self.module, kind = precise_copy(copy.deepcopy(model.module).cpu().train(), inputs[0])
        self.network = StackedNetwork(self.module, self.layout, shape)
        self.states, self.inputs = states.to(kind), inputs.to(kind)

    def _parts(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        weights, statistics = rows[..., : self.layout.trainable], rows[..., self.layout.trainable :]
        return weights.clone().requires_grad_(), statistics.clone()

    def alone(self, site: int, cases: int, seed: int = 1) -> _Run:
        """A site's first ``cases`` by themselves."""
        weights, statistics = self._parts(self.states[site])
        tensors = self.network.tensors(weights, statistics)
        with own_randomness("trial of a network", seed):
            outputs = functional_call(self.module, tensors, (self.inputs[site, :cases],))
        gradient = torch.autograd.grad(_loss(outputs).sum(), weights)[0]
        return _Run(outputs.detach(), gradient, statistics)

    def together(self, second: int) -> list[_Run]:
        """Both sites at once, of the second only its first ``second`` cases."""
        weights, statistics = self._parts(self.states)
        mask = torch.ones_like(self.inputs.flatten(2)[..., 0])
        mask[1, second:] = 0
        padded = self.inputs.clone()
        padded[1, second:] = padded[1, 0]
        outputs = self.network.outputs(weights, statistics, padded, None if second == _CASES else mask)
        losses = _loss(outputs.flatten(0, 1)).view(mask.shape)
        gradient = torch.autograd.grad((losses * mask).sum(), weights)[0]
        sizes = (_CASES, second)
        return [_Run(outputs[i, :size].detach(), gradient[i], statistics[i]) for i, size in enumerate(sizes)]


def precise_copy(module: nn.Module, inputs: Tensor) -> tuple[nn.Module, torch.dtype]:
    """The network in float64, where rounding can't be taken for a difference, if it can be run in that."""
    try:
        copy.deepcopy(module).double()(inputs.double())
    except Exception:  # it makes float32 tensors of its own
        return module, torch.float32
    return copy.deepcopy(module).double(), torch.float64


def _loss(outputs: Tensor) -> Tensor:
    """For each case ``[B]`` a number that depends on each of its outputs ``[B, ...]`` in a way of its own."""
    flat = outputs.flatten(1)
    return (flat * torch.linspace(1.0, 2.0, flat.shape[1], dtype=flat.dtype)).sum(1).tanh() + flat.square().mean(1)


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
