"""Frozen networks of which little is trained: low-rank adapters beside layers, and some weights as they are."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from polyclinic import paths
from polyclinic.errors import TrainingError
from polyclinic.models.variant import Variant
from polyclinic.randomness import own_randomness
from polyclinic.seeds import generator
from polyclinic.state import NORMALISATION, Entry, FlatModule, Role, Selection

#: What of a frozen network may be trained as it is.
Trained = Literal["head", "bias", "norm"]
_ADAPTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_DOWN, _UP = "lora_down", "lora_up"
#: Largest difference of outputs that is rounding, as a share of the largest of them.
_ROUNDING = 1e-3


@dataclass(frozen=True)
class Tuning:
    """What is trained of a network.

    Attributes:
        rank: r of the adapters; 0 for none.
        alpha: an adapter is multiplied by α / r.
        layers: patterns of the layers that have adapters (see `polyclinic.paths`); none for all that can have one.
        trained: what is trained as it is.
    """

    rank: int
    alpha: float
    layers: tuple[str, ...]
    trained: frozenset[Trained]


class Tuned(Variant):
    """A frozen network with W + (α / r) B A in the place of weights W ``[out, in]`` of linear layers and convolutions.

    A ``[r, in]`` starts at random, the same at all sites, and B ``[out, r]`` at zero. A convolution's weights are a
    matrix with a row for each channel that it gives. Normalisation layers work as in tests, unless they are trained.

    A site is sent W of the layers with adapters, and sends A and B; what is trained as it is goes both ways. For the
    study's network the change of W is (α / r) B A: it takes in the mean of the products, and adapters start anew in
    each round.

    Args:
        whole: the study's network.
        tuning: what is trained.
        seed: of the first A.

    Raises:
        TrainingError: P302, nothing would be trained, or adapters can't be put beside a layer.
    """

    def __init__(self, whole: FlatModule, tuning: Tuning, seed: Sequence[str | int]) -> None:
        if not whole.shape:
            raise ValueError("a network whose inputs are not known")
        self.tuning, self._whole = tuning, whole.layout
        names = {id(layer): name for name, layer in whole.module.named_modules()}
        module = copy.deepcopy(whole.module).cpu()
        kept = {
            entry.name
            for entry in whole.layout.entries
            if entry.trainable and _is_trained(entry, module, tuning.trained)
        }
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(name in kept)
            parameter.grad = None
        self._adapted = _targets(whole, module, tuning, kept)
        scale = tuning.alpha / max(tuning.rank, 1)
        self._beside = dict[str, _Beside]()
        for entry in self._adapted:
            layer = module.get_submodule(_owner(entry.name))
            source = generator("adapters", *seed, entry.name)
            self._beside[entry.name] = _put_beside(layer, tuning.rank, scale, source)
        if "norm" not in tuning.trained:
            for layer in module.modules():
                if isinstance(layer, NORMALISATION):
                    layer.register_forward_pre_hook(_as_in_tests)
        head = [module.get_submodule(names[id(layer)]) for layer in whole.head]
        self.network = FlatModule(module, head, whole.vector.device, whole.shape)
        self._first = self.network.vector.to("cpu", copy=True)
        self._mine = {entry.name: entry for entry in self.network.layout.entries}
        self.shared = self._leaving()
        if not self.shared.trainable:
            text = "Nothing of the network would be trained: no layer can have an adapter, and nothing else is named."
            raise TrainingError("P302", text, "Name what is trained, or other layers.")
        self._where = torch.cat([_all_of(self._mine[entry.name]) for entry in whole.layout.entries])
        self.places = torch.cat([_all_of(entry) for entry in whole.layout.entries if self._may_change(entry)])
        try:
            self._check(whole)
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            text = f"The network can't be tried with adapters ({str(error).splitlines()[0].rstrip('.')})."
            raise TrainingError("P302", text, "Use another network, or train all of it.") from error

    def _leaving(self) -> Selection:
        layout = self.network.layout
        slices, size = [(0, layout.trainable)], layout.trainable
        for entry in layout.entries if "norm" in self.tuning.trained else ():
            if entry.role is Role.NORM_STATISTIC and entry.size:
                slices.append((entry.offset, entry.offset + entry.size))
                size += entry.size
        return Selection(tuple(slices), size, layout.trainable, layout.size)

    def _may_change(self, entry: Entry) -> bool:
        """Whether a tensor of the study's network is trained, or takes in what an adapter learned."""
        statistic = entry.role is Role.NORM_STATISTIC and "norm" in self.tuning.trained
        return self._mine[entry.name].trainable or entry in self._adapted or statistic

    def start(self, sent: Tensor, first: Tensor) -> Tensor:
        """The model, with adapters that change nothing yet."""
        whole, vector = first.cpu().clone(), self._first.clone()
        whole[self.places] = sent
        vector[self._where] = whole
        return vector

    def spread(self, change: Tensor, statistics: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        """(α / r) B A where a layer has an adapter, and the change of what is trained as it is."""
        trainable = self._whole.trainable
        found, others = change.new_zeros(trainable), before[trainable : self._whole.size].clone()
        scale = self.tuning.alpha / max(self.tuning.rank, 1)
        for entry in self._adapted:
            down, up = (self._factor(entry, name, change) for name in (_DOWN, _UP))
            found[entry.offset : entry.offset + entry.size] = (scale * (up @ down)).flatten()
        place = 0
        for entry in self._whole.entries:
            mine = self._mine[entry.name]
            if mine.trainable:
                found[entry.offset : entry.offset + entry.size] = change[mine.offset : mine.offset + mine.size]
            elif "norm" in self.tuning.trained and entry.role is Role.NORM_STATISTIC and entry.size:
                here = entry.offset - trainable
                others[here : here + entry.size] = statistics[place : place + entry.size]
                place += entry.size
        return found, others

    def _factor(self, entry: Entry, name: str, change: Tensor) -> Tensor:
        """A factor of a layer's adapter at the end of a round."""
        owner = _owner(entry.name)
        mine = self._mine[f"{owner}.{name}" if owner else name]
        here = slice(mine.offset, mine.offset + mine.size)
        return (self._first[here] + change[here]).view(mine.shape)

    def _check(self, whole: FlatModule) -> None:
        """Whether the network with adapters gives what the study's network gives once they are taken in."""
        source = generator("check of adapters")
        inputs = torch.rand(2, *self.network.shape, generator=source)
        change = torch.zeros(self.shared.trainable)
        for entry in self._adapted:
            mine = self._mine[f"{_owner(entry.name)}.{_UP}".lstrip(".")]
            change[mine.offset : mine.offset + mine.size] = 0.1 * torch.randn(mine.size, generator=source)
        state = whole.vector.cpu()
        start = self.start(self.sent(state), state)
        taken, others = self.spread(change, self.shared.take(start)[self.shared.trainable :], state)
        start[: len(change)] += change
        vectors = torch.cat([state[: len(taken)] + taken, others]), start
        with torch.no_grad(), own_randomness("check of adapters"):
            given = []
            for model, vector in zip((whole, self.network), vectors, strict=True):
                put_back = model.remember()
                was = model.module.training
                model.load(vector)
                given.append(model.module.eval()(inputs.to(model.vector.device)).cpu())
                put_back()
                model.module.train(was)
        self._check_paths(whole, inputs)
        expected, found = given
        if float((expected - found).abs().max()) > _ROUNDING * max(float(expected.abs().max()), 1e-6):
            raise TrainingError(
                "P302", "With adapters the network computes something else than with their products in its weights: "
                "some layer is no plain linear layer or convolution.", "Name other `layers` for adapters.",
            )  # fmt: skip

    def _check_paths(self, whole: FlatModule, inputs: Tensor) -> None:
        """Whether all that goes through a layer's weights goes through its adapter, after the network was run.

        Of many layers one adapter that is passed by makes a difference to the outputs that may be as small as rounding.
        """
        passed_by = [name for name, beside in self._beside.items() if not beside.used]
        if not passed_by:
            return
        weights = dict(whole.module.named_parameters())
        was, put_back = whole.module.training, whole.remember()
        with torch.enable_grad(), own_randomness("check of adapters"):
            outputs = whole.module.eval()(inputs.to(whole.vector.device))
            slopes = torch.autograd.grad(outputs.sum(), [weights[name] for name in passed_by], allow_unused=True)
        put_back()
        whole.module.train(was)
        # Of what is run in training only nothing is known here.
        wrong = [name for name, slope in zip(passed_by, slopes, strict=True) if slope is not None]
        if wrong:
            raise TrainingError(
                "P302", f"The network uses {wrong[0]} without running its layer"
                + (f", and {len(wrong) - 1} others likewise" if len(wrong) > 1 else "")
                + ": an adapter beside it would never be trained.", "Name other `layers` for adapters.",
            )  # fmt: skip


def _owner(name: str) -> str:
    return name.rpartition(".")[0]


def _all_of(entry: Entry) -> Tensor:
    """The coordinates of a tensor."""
    return torch.arange(entry.offset, entry.offset + entry.size)


def _is_trained(entry: Entry, module: nn.Module, trained: frozenset[Trained]) -> bool:
    """Whether a tensor of a network is trained as it is."""
    of_norm = entry.role is Role.NORM_WEIGHT
    return (
        ("head" in trained and entry.role is Role.HEAD)
        or ("norm" in trained and of_norm)
        or ("bias" in trained and _is_bias(entry, module))
    )


def _is_bias(entry: Entry, module: nn.Module) -> bool:
    """Whether a tensor is a bias: most are called ``bias``, those of attention ``in_proj_bias`` or ``q_bias``, those of
    recurrent layers ``bias_ih_l0``. A table of biases by position has two axes, and is none."""
    name = entry.name.rpartition(".")[2]
    if isinstance(module.get_submodule(_owner(entry.name)), nn.RNNBase | nn.RNNCellBase):
        return name.startswith("bias_")
    return name == "bias" or (name.endswith("bias") and len(entry.shape) == 1)


def _targets(whole: FlatModule, module: nn.Module, tuning: Tuning, kept: set[str]) -> list[Entry]:
    """Weights of layers that have adapters.

    Raises:
        TrainingError: P302, a pattern names no such layer, or a layer's weights are those of another one, too.
    """
    found = []
    owners = Counter(id(tensor) for layer in module.modules() for tensor in layer.parameters(recurse=False))
    for entry in whole.layout.entries if tuning.rank else ():
        layer: Any = module.get_submodule(_owner(entry.name))
        is_weight = entry.name.rpartition(".")[2] == "weight" and entry.trainable and entry.name not in kept
        if not is_weight or not isinstance(layer, _ADAPTED) or getattr(layer, "groups", 1) > 1:
            continue
        # PyTorch's attention takes the weights of its last layer, and never runs it.
        if isinstance(module.get_submodule(_owner(_owner(entry.name))), nn.MultiheadAttention):
            continue
        if tuning.layers and not entry.named(tuning.layers):
            continue
        if owners[id(layer.weight)] > 1:
            raise TrainingError("P302", f"Several layers use the weights {entry.name}, so none of them can have an "
                                "adapter of its own.", "Name other `layers` for adapters.")  # fmt: skip
        found.append(entry)
    for pattern in tuning.layers:
        if not any(paths.names(pattern, path) for entry in found for path in entry.paths):
            raise TrainingError(
                "P302", f"{pattern!r} names no layer that can have an adapter: a linear layer or a convolution without "
                "groups, which is not trained as it is and not in PyTorch's `MultiheadAttention`.",
                "Name others; `layers: []` is all that can have one.",
            )  # fmt: skip
    return found


def _put_beside(layer: Any, rank: int, scale: float, source: torch.Generator) -> _Beside:
    """Give a layer an adapter, in place.

    A is drawn from ±1 / √in, uniformly, as in LoRA's own program; no such draw depends on the processor.
    """
    rows, columns = layer.weight.shape[0], layer.weight[0].numel()
    rank = min(rank, rows, columns)
    first = (2 * torch.rand(rank, columns, generator=source) - 1) / columns**0.5
    layer.register_parameter(_DOWN, nn.Parameter(first))
    layer.register_parameter(_UP, nn.Parameter(torch.zeros(rows, rank)))
    beside = _Beside(scale)
    layer.register_forward_hook(beside)
    return beside


class _Beside:
    """Adds what an adapter gives to what its layer gives.

    Attributes:
        used: whether it ever did.
    """

    def __init__(self, scale: float) -> None:
        self.scale, self.used = scale, False

    def __call__(self, layer: Any, inputs: tuple[Tensor, ...], outputs: Tensor) -> Tensor:
        """With r channels in between."""
        self.used = True
        down, up = getattr(layer, _DOWN), getattr(layer, _UP)
        if isinstance(layer, nn.Linear):
            return outputs + self.scale * nn.functional.linear(nn.functional.linear(inputs[0], down), up)
        low = layer._conv_forward(inputs[0], down.view(-1, *layer.weight.shape[1:]), None)
        return outputs + self.scale * torch.einsum("or,br...->bo...", up, low)


def _as_in_tests(layer: nn.Module, inputs: object) -> None:
    """A frozen normalisation layer goes by its running statistics, and leaves them as they are."""
    layer.eval()


_known: WeakKeyDictionary[FlatModule, tuple[object, Tuned]] = WeakKeyDictionary()


def tuned(whole: FlatModule, tuning: Tuning, seed: Sequence[str | int]) -> Tuned:
    """A frozen network with what is trained of it; the last one of each network is remembered."""
    key = (tuning, tuple(seed))
    found = _known.get(whole)
    if found is None or found[0] != key:
        found = _known[whole] = key, Tuned(whole, tuning, seed)
    return found[1]
