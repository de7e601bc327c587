"""Networks of a share of the width: which places of a network's state they have, and the small networks themselves.

Which channels of a layer are left follows from those that are left of what it is given: the network is run once, and
each layer's further channels are marked by values that are not numbers, on their way through activations, pooling,
concatenations and sums to the next layers.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from polyclinic.errors import TrainingError
from polyclinic.models.variant import Variant
from polyclinic.randomness import own_randomness
from polyclinic.state import NORMALISATION, FlatModule, Selection

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_WEIGHTED = (nn.Linear, *_CONVOLUTIONS, *_TRANSPOSED)
#: Layers that work on each channel by itself, or, of these, on groups or on all of them together.
_CHANNELWISE = (*NORMALISATION, nn.PReLU)
_MIXING = (nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
#: Largest difference of outputs that is rounding, as a share of the largest of them.
_ROUNDING = 1e-3


@dataclass(frozen=True)
class _Cut:
    """What is left of a layer: positions of its input channels and of its outputs, in order."""

    inputs: Tensor
    outputs: Tensor


class Slice(Variant):
    """A network with the first share of the channels, or units, of every hidden layer.

    Args:
        whole: the study's network.
        share: r, of the width; inputs and outputs of the network stay.

    Attributes:
        places: of its coordinates among those of the study's network, in order ``[P']``.

    Raises:
        TrainingError: P302, such a network can't be cut out.
    """

    def __init__(self, whole: FlatModule, share: float) -> None:
        self.share = share
        self._module = copy.deepcopy(whole.module).cpu()
        self._device = whole.vector.device
        names = {id(layer): name for name, layer in whole.module.named_modules()}
        self._head = [names[id(layer)] for layer in whole.head]
        if not whole.shape:
            raise ValueError("a network whose inputs are not known")
        self._shape = whole.shape
        self._cuts = _Tracing(copy.deepcopy(self._module), whole.shape, share).cuts()
        self.places = _places(whole, self._module, self._cuts)
        trainable = int((self.places < whole.layout.trainable).sum())
        size = len(self.places)
        self.shared = Selection(((0, size),), size, trainable, size)
        self._sizes = whole.layout.trainable, whole.layout.size

    @cached_property
    def network(self) -> FlatModule:  # type: ignore[override]
        """Built when it is needed: the server needs the places alone."""
        module = copy.deepcopy(self._module)
        for name, cut in self._cuts.items():
            _narrow(module.get_submodule(name), cut)
        for name, cut in self._cuts.items():
            if _is_hidden(self._module.get_submodule(name), cut):
                module.get_submodule(name).register_forward_hook(_Scaler(self.share))
        head = [module.get_submodule(name) for name in self._head]
        return FlatModule(module, head, self._device, self._shape)

    def start(self, sent: Tensor, first: Tensor) -> Tensor:
        """What was sent is its whole state."""
        return sent

    def spread(self, change: Tensor, statistics: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        """Each where it belongs."""
        (trainable, size), own = self._sizes, self.shared.trainable
        whole, others = change.new_zeros(trainable), before[trainable:size].clone()
        whole[self.places[:own]] = change
        others[self.places[own:] - trainable] = statistics
        return whole, others


class _Scaler:
    """HeteroFL's scaler: in training, what a narrow layer gives is as large as what the whole layer would give."""

    def __init__(self, share: float) -> None:
        self.share = share

    def __call__(self, layer: nn.Module, inputs: object, outputs: Tensor) -> Tensor | None:
        """Divide by the share, in training."""
        return outputs / self.share if layer.training else None


_known: WeakKeyDictionary[FlatModule, dict[float, Slice]] = WeakKeyDictionary()


def slice_of(whole: FlatModule, share: float) -> Slice:
    """A slice of a network; it is remembered for as long as the network exists."""
    found = _known.setdefault(whole, {})
    if share not in found:
        found[share] = Slice(whole, share)
    return found[share]


def left_of(channels: int, share: float) -> int:
    """How many of so many channels are left: one at least.

    >>> left_of(16, 0.3)
    5
    """
    return max(1, math.ceil(share * channels - 1e-9))


# Which channels are left ----------------------------------------------------------------------------------------------


class _Tracing:
    """Runs a network to find out what a narrow one has of each layer."""

    def __init__(self, module: nn.Module, shape: Sequence[int], share: float) -> None:
        self.module, self.shape, self.share = module, tuple(shape), share
        self.layers = dict(_layers(module))
        self._left: dict[str, _Cut] = {}
        self._seen: dict[str, Tensor] = {}
        self._probing = False

    def cuts(self) -> dict[str, _Cut]:
        """What is left of each layer that the network runs.

        Raises:
            TrainingError: P302, it can't be told, or what is left is no network.
        """
        with torch.no_grad(), own_randomness("slice of a network"):
            self.module.train()
            try:
                last = {name for name in self._candidates() if self._reaches_the_end(name)}
                outputs = self._run(lambda name: name not in last)
            except _ERRORS as error:
                if isinstance(error, TrainingError):
                    raise
                raise unfit(self.share, f"it fails with some channels left out ({_said(error)})") from error
            if outputs.isnan().any():
                raise unfit(self.share, "some of its outputs come from no layer with weights that has as many")
            found = dict(self._left)
            self._check(found, last)
        return found

    def _candidates(self) -> list[str]:
        """Layers that may give the network's outputs, since they have as many."""
        outputs = self._run(lambda name: False)
        several = outputs.ndim == len(self.shape) + 2 and outputs.ndim > 3  # of more than one head, in training
        count = outputs.shape[2 if several else 1] if outputs.ndim > 1 else 1
        weighted = ((name, layer) for name, layer in self.layers.items() if _is_weighted(layer))
        return [name for name, layer in weighted if name in self._left and _width(layer) == count]

    def _reaches_the_end(self, name: str) -> bool:
        """Whether what a layer gives is an output of the network, with no other layer with weights in between."""
        return bool(self._run(lambda other: other == name, probing=True).isnan().any())

    def _check(self, cuts: Mapping[str, _Cut], last: set[str]) -> None:
        """Whether the small network gives what the large one gives with the same channels left out."""
        try:
            self.module.eval()
            expected = self._run(lambda name: name not in last)
            narrow = copy.deepcopy(self.module)
            for name, cut in cuts.items():
                _narrow(narrow.get_submodule(name), cut)
            found = narrow(self._inputs())
        except _ERRORS as error:
            if isinstance(error, TrainingError):
                raise
            raise unfit(self.share, f"it does not run with fewer channels ({_said(error)})") from error
        largest = max(float(expected.abs().max()), 1e-6)
        if found.shape != expected.shape or float((found - expected).abs().max()) > _ROUNDING * largest:
            raise unfit(self.share, "with fewer channels it computes something else")

    def _inputs(self) -> Tensor:
        source = torch.Generator().manual_seed(0)
        return torch.rand(2, *self.shape, generator=source)

    def _run(self, narrowed: Callable[[str], bool], *, probing: bool = False) -> Tensor:
        """Outputs of the network where further channels of some layers are marked.

        Args:
            narrowed: whether a layer's are.
            probing: whether all of its channels are, to see how far they go.
        """
        self._left, self._seen, self._probing = {}, {}, probing
        with self._hooked(narrowed):
            outputs = self.module(self._inputs())
        if not isinstance(outputs, Tensor):
            raise unfit(self.share, f"it gives {type(outputs).__name__}, not one tensor")
        return outputs

    @contextmanager
    def _hooked(self, narrowed: Callable[[str], bool]) -> Iterator[None]:
        handles = []
        for name, layer in self.layers.items():
            after = self._after_weights(name, narrowed(name)) if _is_weighted(layer) else self._after_channels(name)
            handles.append(layer.register_forward_pre_hook(self._before(name)))
            handles.append(layer.register_forward_hook(after))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _before(self, name: str) -> Callable[..., tuple[Tensor, ...]]:
        def hook(layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            given = self._given(name, layer, inputs[0])
            if isinstance(layer, _MIXING):
                self._seen[name] = given
            return (given, *inputs[1:])

        return hook

    def _given(self, name: str, layer: nn.Module, inputs: Tensor) -> Tensor:
        """Note which channels of its inputs a layer is given, and give it zeros for the others."""
        marked = inputs.isnan().movedim(_axis(layer, inputs), 0).flatten(1).any(1)  # not all of it where it was padded
        left = (~marked).nonzero()[:, 0]
        if not self._probing:
            if not len(left):
                raise unfit(self.share, f"nothing is left of what {name} is given")
            known = self._left.get(name)
            if known is not None and not torch.equal(known.inputs, left):
                raise unfit(self.share, f"{name} is used several times, with other channels each time")
        self._left[name] = _Cut(left, left)
        return inputs.nan_to_num(0.0) if bool(marked.any()) else inputs

    def _after_weights(self, name: str, narrowed: bool) -> Callable[..., Tensor]:
        def hook(layer: Any, inputs: object, outputs: Tensor) -> Tensor:
            given, count = self._left[name].inputs, _width(layer)
            if self._probing:
                left = torch.arange(0 if narrowed else count)
            elif _groups(layer) > 1:
                left = _left_of_groups(name, layer, given, self.share)
            else:
                left = torch.arange(left_of(count, self.share) if narrowed else count)
            self._left[name] = _Cut(given, left)
            return _marked(outputs, _axis(layer, outputs), left)

        return hook

    def _after_channels(self, name: str) -> Callable[..., Tensor]:
        def hook(layer: Any, inputs: object, outputs: Tensor) -> Tensor:
            cut, axis = self._left[name], _axis(layer, outputs)
            if len(cut.inputs) < outputs.shape[axis] and not self._probing and isinstance(layer, _MIXING):
                narrow = copy.deepcopy(layer)  # it must not see what is left out
                _narrow(narrow, cut)
                seen = narrow(self._seen[name].index_select(axis, cut.inputs))
                outputs = outputs.index_copy(axis, cut.inputs, seen)
            return _marked(outputs, axis, cut.inputs)

        return hook


_ERRORS = (TrainingError, RuntimeError, ValueError, IndexError, TypeError, AssertionError)


def _layers(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The layers that have channels, by their paths.

    Raises:
        TrainingError: P302, the network has weights of another kind, or some that several layers use.
    """
    seen = dict[int, str]()
    for name, layer in module.named_modules():
        own = [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]
        if isinstance(layer, (*_WEIGHTED, *_CHANNELWISE)):
            if isinstance(layer, nn.PReLU) and layer.num_parameters == 1:
                continue
            if isinstance(layer, nn.LayerNorm | nn.RMSNorm) and len(layer.normalized_shape) != 1:
                raise TrainingError("P302", f"The layer {name} normalises over places and channels together, so no "
                                    "network of a share of its width can be cut out.", _HINT)  # fmt: skip
            yield name, layer
        elif any(tensor.is_floating_point() and tensor.numel() for _, tensor in own):
            raise TrainingError(
                "P302", f"The network has weights of a kind that can't be cut to a share of its width ({name}, "
                f"{type(layer).__name__}).", _HINT,
            )  # fmt: skip
        for _, tensor in own:
            if seen.setdefault(id(tensor), name) != name:
                raise TrainingError(
                    "P302", f"The layers {seen[id(tensor)]} and {name} have weights in common, so no network of a "
                    "share of its width can be cut out.", _HINT,
                )  # fmt: skip


_HINT = "Use a network of linear, convolution and normalisation layers, or leave the width of all sites at 1."


def unfit(share: float, why: str) -> TrainingError:
    """Why a network can't be cut to a share of its width."""
    return TrainingError("P302", f"The network can't be cut to {share:g} of its width: {why}.", _HINT)


def _is_weighted(layer: nn.Module) -> bool:
    return isinstance(layer, _WEIGHTED)


def _said(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def _width(layer: Any) -> int:
    """Channels, or units, that a layer with weights gives."""
    return int(layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels)


def _groups(layer: Any) -> int:
    """Groups of channels that a layer with weights works on by themselves."""
    return int(getattr(layer, "groups", 1))


def _axis(layer: nn.Module, values: Tensor) -> int:
    """Which axis of a layer's inputs or outputs has its channels."""
    return values.ndim - 1 if isinstance(layer, nn.Linear | nn.LayerNorm | nn.RMSNorm) else 1


def _marked(values: Tensor, axis: int, left: Tensor) -> Tensor:
    """Values where all but some channels are no numbers."""
    if len(left) == values.shape[axis]:
        return values
    others = torch.ones(values.shape[axis], dtype=torch.bool)
    others[left] = False
    return values.index_fill(axis, others.nonzero()[:, 0], math.nan)


def _left_of_groups(name: str, layer: Any, inputs: Tensor, share: float) -> Tensor:
    """What a convolution in groups gives: of one group for each channel the same channels as it is given."""
    if isinstance(layer, _TRANSPOSED) or layer.groups != layer.in_channels:
        raise unfit(share, f"{name} is a convolution in {layer.groups} groups")
    several = layer.out_channels // layer.in_channels
    found: Tensor = (inputs[:, None] * several + torch.arange(several)).flatten()
    return found


def _is_hidden(layer: nn.Module, cut: _Cut) -> bool:
    """Whether a layer with weights gives less than it did, and sums over channels in doing so."""
    return _is_weighted(layer) and len(cut.outputs) < _width(layer) and _groups(layer) == 1


# The small network ----------------------------------------------------------------------------------------------------


def _axes(layer: nn.Module, name: str, cut: _Cut) -> list[tuple[int, Tensor]]:
    """Along which axes a tensor of a layer is cut, and what is left."""
    if not isinstance(layer, _WEIGHTED):
        return [(0, cut.inputs)]
    if name == "bias":
        return [(0, cut.outputs)]
    if isinstance(layer, _TRANSPOSED):
        return [(0, cut.inputs), (1, cut.outputs)]
    return [(0, cut.outputs)] if _groups(layer) > 1 else [(0, cut.outputs), (1, cut.inputs)]


def _cut(tensor: Tensor, axes: Sequence[tuple[int, Tensor]]) -> Tensor:
    found = tensor
    for axis, left in axes:
        found = found.index_select(axis, left.to(found.device))
    return found


def _narrow(layer: Any, cut: _Cut) -> None:
    """Cut a layer, in place, to what is left of it.

    Raises:
        TrainingError: P302, groups of channels that are normalised together would be torn apart.
    """
    if isinstance(layer, nn.GroupNorm):
        _narrow_groups(layer, cut)
    for name, tensor in list(layer.named_parameters(recurse=False)):
        setattr(layer, name, nn.Parameter(_cut(tensor.detach(), _axes(layer, name, cut)), tensor.requires_grad))
    for name, tensor in list(layer.named_buffers(recurse=False)):
        if tensor.is_floating_point():
            setattr(layer, name, _cut(tensor, _axes(layer, name, cut)))
    inputs, outputs = len(cut.inputs), len(cut.outputs)
    if isinstance(layer, nn.Linear):
        layer.in_features, layer.out_features = inputs, outputs
    elif isinstance(layer, _WEIGHTED):
        if _groups(layer) > 1:
            layer.groups = inputs
        layer.in_channels, layer.out_channels = inputs, outputs
    elif isinstance(layer, nn.GroupNorm):
        layer.num_channels = inputs
    elif isinstance(layer, nn.LayerNorm | nn.RMSNorm):
        layer.normalized_shape = (inputs,)
    elif isinstance(layer, nn.PReLU):
        layer.num_parameters = inputs
    else:
        layer.num_features = inputs


def _narrow_groups(layer: nn.GroupNorm, cut: _Cut) -> None:
    """Groups stay as large as they are, and whole."""
    size = layer.num_channels // layer.num_groups
    groups = cut.inputs.view(-1, size) if len(cut.inputs) % size == 0 else cut.inputs.new_zeros(1, 2)
    if bool((groups // size != groups[:, :1] // size).any()) or bool((groups.diff(dim=1) != 1).any()):
        raise TrainingError(
            "P302", f"Group normalisation has groups of {size} channels, and a share of the width would leave "
            f"{len(cut.inputs)} of {layer.num_channels} channels, which are no whole groups.",
            "Choose widths at which whole groups are left, or another `norm`.",
        )  # fmt: skip
    layer.num_groups = len(groups)


def _places(whole: FlatModule, module: nn.Module, cuts: Mapping[str, _Cut]) -> Tensor:
    """Where in the state of the whole network the coordinates of the small one are, in order ``[P']``."""
    found = []
    for entry in whole.layout.entries:
        owner, _, name = entry.name.rpartition(".")
        places = torch.arange(entry.offset, entry.offset + entry.size).view(entry.shape)
        if owner in cuts:
            places = _cut(places, _axes(module.get_submodule(owner), name, cuts[owner]))
        found.append(places.flatten())
    return torch.cat(found)
